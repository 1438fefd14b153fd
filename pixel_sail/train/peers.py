"""Notice that another rank is gone, and end: killed, out of memory, its machine switched off.

A collective does not notice: NCCL waits for an hour. So every rank holds a TCP connection to rank 0 for as long as it
lives. The kernel closes it when the process ends, however it ends; no thread has to send a sign of life that a long
computation could delay. A rank that ends well says goodbye first. One thread a rank watches the connections.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

CONNECT_S = 60.0  # for all ranks to connect, just after they have met in the process group
HELLO_S = 5.0  # for one connection to say who it is
GRACE_S = 5.0  # for this rank to end by itself, with a message of its own
CHECK_S = 1.0
# A machine that is switched off closes nothing: the kernel asks after 15 quiet seconds, and gives up 20 later.
KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}

TOKEN_BYTES = 16
_HELLO = struct.Struct(f"!{TOKEN_BYTES}sI")  # the run's token, rank
_NEWS = struct.Struct("!cI")  # what a rank does or has done; which rank
BYE, FAILED, GONE = b"b", b"f", b"g"


class Peers:
    """The connections of this rank: on rank 0 to every other rank, elsewhere to rank 0."""

    def __init__(self, rank: int, connections: dict[int, socket.socket]):
        self.rank = rank
        self.connections = connections
        self.lost: str | None = None  # why this rank cannot go on
        self._lost = threading.Event()
        self._ending = threading.Event()  # the main thread ends by itself
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def leave(self, failed: bool) -> None:
        """Say goodbye: from now on this rank may end, and does not watch any more."""
        self._ending.set()
        self._tell(FAILED if failed else BYE, self.rank)

    def end_if_lost(self, wait_s: float) -> None:
        """End the process if another rank is gone, or is so within `wait_s`. For a collective that has failed."""
        if self._lost.wait(wait_s):
            _end()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, connection in self.connections.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._ending.is_set():
                for key, _ in selector.select(CHECK_S):
                    news, rank = _receive(key.fileobj) or (GONE, key.data)
                    if news == BYE:
                        selector.unregister(key.fileobj)
                    elif not self._ending.is_set():
                        self._end_because(news, rank)
                        return

    def _end_because(self, news: bytes, rank: int) -> None:
        what = "is gone (killed, out of memory, or its machine is down)" if news == GONE else "has ended with an error"
        self.lost = f"rank {rank} {what}: this run ends; the same command goes on from the newest checkpoint"
        if self.rank == 0:
            self._tell(news, rank)
        # One rank speaks for all; if rank 0 is gone, one a machine does.
        speaks = self.rank == 0 or (rank == 0 and (self.rank == 1 or os.environ.get("LOCAL_RANK") == "0"))
        if news == GONE and speaks:
            _say(self.lost)
        self._lost.set()
        if not self._ending.wait(GRACE_S):
            if news == FAILED and speaks:
                _say(self.lost)
            _end()

    def _tell(self, news: bytes, rank: int) -> None:
        for connection in self.connections.values():
            with contextlib.suppress(OSError):  # it has gone before
                connection.send(_NEWS.pack(news, rank))


def connect(rank: int, world_size: int, broadcast: Callable[[Any], Any]) -> Peers:
    """Connect every rank with rank 0. `broadcast`: gives rank 0's object to all. All ranks must call it.

    A rank that cannot be reached is not watched; rank 0 says so.
    """
    if rank == 0:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as server:
            token = secrets.token_bytes(TOKEN_BYTES)  # whoever else finds the port is not taken for a rank
            broadcast((server.getsockname()[1], token))
            connections = _accept(server, token, world_size)
        missing = sorted(set(range(1, world_size)) - set(connections))
        if missing:
            _say(f"ranks {missing} cannot reach rank 0 at a port of its choice: nobody notices if they are killed")
        return Peers(0, connections)
    port, token = broadcast(None)
    try:
        connection = socket.create_connection((os.environ["MASTER_ADDR"], port), CONNECT_S)
        connection.sendall(_HELLO.pack(token, rank))
    except OSError:
        return Peers(rank, {})
    return Peers(rank, {0: _kept_alive(connection)})


def _accept(server: socket.socket, token: bytes, world_size: int) -> dict[int, socket.socket]:
    connections: dict[int, socket.socket] = {}
    deadline = time.monotonic() + CONNECT_S
    while len(connections) < world_size - 1 and (left_s := deadline - time.monotonic()) > 0:
        server.settimeout(left_s)
        try:
            connection, _ = server.accept()
            connection.settimeout(HELLO_S)
            given, rank = _HELLO.unpack(connection.recv(_HELLO.size, socket.MSG_WAITALL))
        except (OSError, struct.error):
            continue
        if hmac.compare_digest(given, token) and 0 < rank < world_size:
            connections[rank] = _kept_alive(connection)
        else:
            connection.close()
    return connections


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _receive(connection: socket.socket) -> tuple[bytes, int] | None:
    """(what, rank) that the other side says; None if its process is gone."""
    try:
        return _NEWS.unpack(connection.recv(_NEWS.size, socket.MSG_WAITALL))
    except (OSError, struct.error):
        return None


def _say(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


def _end() -> None:
    """From a thread, and past whatever the main thread waits for."""
    sys.stdout.flush()
    os._exit(1)
