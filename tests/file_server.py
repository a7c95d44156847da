"""A web server on this machine that serves one file, well or badly, for tests of downloads."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """Serves ``content`` at every address; the address decides how.

    Attributes:
        content: the file.
        requests: the address and the ``Range`` header of every request so far.
        hold: what ``/stuck`` and ``/crawl`` wait for after their first bytes.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.requests: list[tuple[str, str | None]] = []
        self.hold = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{path}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                path = self.path.strip("/")
                server.requests.append((path, asked))
                if path.isdecimal():
                    self.send_error(int(path))
                    return
                if path == "moved":
                    self.send_response(302)
                    self.send_header("Location", "/good")
                    self.end_headers()
                    return
                content = server.content
                if path == "corrupt":
                    content = content[:-1] + bytes([content[-1] ^ 1])
                if path == "page":
                    content = b"<html>no such file</html>"
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                if path in {"no-ranges", "page", "truncated-no-ranges"}:
                    start = 0
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    shown = start + 1 if path == "shifted" else start
                    self.send_header(
                        "Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}"
                    )
                if path != "no-length":
                    self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self._send(path, content[start:])

            def _send(self, path: str, body: bytes) -> None:
                try:
                    if path.startswith("truncated"):  # a third of what is left, then good-bye
                        self.wfile.write(body[: max(1, len(body) // 3)])
                        self.close_connection = True
                    elif path == "reset":
                        self.wfile.write(body[: len(body) // 2])
                        self.wfile.flush()
                        self.connection.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                        )
                        self.connection.close()
                    elif path == "stuck":
                        self.wfile.write(body[:10])
                        server.hold.wait(30)
                    elif path == "crawl":
                        for byte in body:
                            self.wfile.write(bytes([byte]))
                            if server.hold.wait(0.01):
                                break
                    else:
                        self.wfile.write(body)
                except OSError:
                    pass  # the client has left

        return Handler


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    """A `FileServer` that runs for the length of the block."""
    server = FileServer(content)
    thread = threading.Thread(target=server._server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.hold.set()
        server._server.shutdown()
        server._server.server_close()
        thread.join()
