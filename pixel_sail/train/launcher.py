"""Stop when the launcher is gone.

`deepspeed` starts a second process, which starts the ranks. SIGTERM, with which `kill`, `timeout` and schedulers end a
command, ends only the first: the ranks would train on, unseen. A killed `torchrun` leaves its ranks behind as well.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

CHECK_S = 1.0
_LAUNCHERS = (
    "deepspeed.launcher.launch",
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
    "accelerate launch",
    "accelerate-launch",
    "accelerate.commands.launch",
)
_STARTS_ANOTHER = "deepspeed.launcher.launch"  # whose own parent is the command that the user has started


def watch_launcher() -> None:
    """Send SIGTERM to this process when its launcher is gone. Does nothing without a launcher."""
    launcher = os.getppid()
    command = _command(launcher)
    if not any(name in command for name in _LAUNCHERS):
        return
    outer = _parent(launcher) if _STARTS_ANOTHER in command else None
    threading.Thread(target=_watch, args=(launcher, outer), name="launcher", daemon=True).start()


def _watch(launcher: int, outer: int | None) -> None:
    while os.getppid() == launcher and (outer is None or _parent(launcher) == outer):
        time.sleep(CHECK_S)
    if os.environ.get("RANK", "0") == "0":
        print("the launcher is gone", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # no /proc, or a process of somebody else
        return ""


def _parent(process: int) -> int | None:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:")), None)
