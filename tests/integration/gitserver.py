"""A host of repositories for the tests of cloning: HTTPS, git's own backend, and a few ways of misbehaving.

Run as ``python gitserver.py <folder of repositories> <certificate and key>``; it has an address of its own, because
nothing is cloned from an address of the hub's host.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOLDER, PEM = sys.argv[1:3]


class Repositories(BaseHTTPRequestHandler):
    """Serves every repository in the folder, and the addresses below as they are named."""

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.partition("?")[0]
        if path.startswith("/silent"):
            time.sleep(60)
        elif path.startswith("/moved"):
            self._answer(302, {"Location": self.path.replace("/moved", "/plain.git")})
        elif path.startswith("/private"):
            self._answer(401, {"WWW-Authenticate": 'Basic realm="private"'})
        else:
            self._backend()

    do_POST = do_GET  # noqa: N815 - named by the library

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _backend(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": FOLDER,
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
        }
        said = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=False)
        head, _, answer = said.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self._answer(int(headers.pop("Status", "200 OK").split()[0]), headers, answer)


if __name__ == "__main__":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PEM)
    server = ThreadingHTTPServer(("0.0.0.0", 443), Repositories)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
