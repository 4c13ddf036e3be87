"""A small hub on this machine, from which its client downloads files over HTTP."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1" * 40


class HubServer:
    """Serves a folder as a repository of the hub, whatever name it is asked for.

    Attributes:
        url: its address.
        gate: while it isn't set, the large files stop in the middle.
        sent: names of the files whose contents were asked for.
    """

    def __init__(self, folder: Path, large: int = 1_000_000):
        self.folder, self.large = folder, large
        self.gate, self.sent = threading.Event(), []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator["HubServer"]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self.gate.set()
            self._server.shutdown()
            self._server.server_close()

    def files(self) -> dict[str, Path]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}


class _Handler(BaseHTTPRequestHandler):
    """Answers what the hub's client asks for one repository."""

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(contents=False)

    def do_GET(self) -> None:
        self._answer(contents=True)

    def _answer(self, *, contents: bool) -> None:
        path, files = self.path.partition("?")[0], self.server.hub.files()
        if "/revision/" in path:
            self._json({"sha": COMMIT, "id": "owner/model", "siblings": []})
        elif "/tree/" in path:
            self._json([_entry(name, file) for name, file in files.items()])
        elif file := files.get(path.partition(f"/resolve/{COMMIT}/")[2]):
            self._file(file, contents)
        else:
            self.send_error(404)

    def _json(self, value) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, file: Path, contents: bool) -> None:
        data = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if contents:
            with suppress(ConnectionError):  # the client has gone
                self._send(file, data)

    def _send(self, file: Path, data: bytes) -> None:
        hub, half = self.server.hub, 0
        hub.sent.append(file.name)
        if len(data) >= hub.large:
            half = len(data) // 2
            self.wfile.write(data[:half])
            hub.gate.wait()
        self.wfile.write(data[half:])


def _entry(name: str, file: Path) -> dict:
    oid = hashlib.sha1(file.read_bytes()).hexdigest()
    return {"type": "file", "path": name, "size": file.stat().st_size, "oid": oid}
