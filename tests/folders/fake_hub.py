"""A hub on this machine: the routes that huggingface_hub's snapshot_download asks, for one model folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


@dataclass
class FakeHub:
    """`address`: for HF_ENDPOINT. `fetched`: the files whose bytes were asked for. `tokens`: sent for it."""

    address: str
    fetched: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)


@contextmanager
def serve(folder: Path, name: str = "org/tiny", gated: str = "org/gated") -> Iterator[FakeHub]:
    """Serves `folder` as the repository `name`; `gated` is closed to everybody, and there is nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if name in path:
                hub.tokens.add(self.headers.get("Authorization"))
            if path.startswith(f"/api/models/{gated}/"):
                return self._refuse(403, "GatedRepo")
            api, files = f"/api/models/{name}/", f"/{name}/resolve/"
            if path.startswith(f"{api}revision/"):
                if path.removeprefix(f"{api}revision/") not in REVISIONS:
                    return self._refuse(404, "RevisionNotFound")
                return self._send(json.dumps({"_id": "1", "id": name, "sha": COMMIT, "siblings": []}).encode())
            if path.startswith(f"{api}tree/") and path.removeprefix(f"{api}tree/") in REVISIONS:
                return self._send(json.dumps([_entry(file) for file in sorted(folder.iterdir())]).encode())
            if path.startswith(files):
                revision, _, file_name = path.removeprefix(files).partition("/")
                file = folder / file_name
                if revision not in REVISIONS or not file.is_file():
                    return self._refuse(404, "EntryNotFound")
                if self.command == "GET":
                    hub.fetched.append(file.name)
                return self._send(file.read_bytes(), _git_sha(file))
            return self._refuse(404, "EntryNotFound" if path.startswith(api) else "RepoNotFound")

        do_HEAD = do_GET

        def _send(self, body: bytes, etag: str = "none") -> None:
            self.send_response(200)
            for key, value in (("ETag", f'"{etag}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", str(len(body)))):
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on the console."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _entry(file: Path) -> dict[str, object]:
    return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _git_sha(file)}


def _git_sha(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
