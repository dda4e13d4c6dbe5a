"""A notebook server as its browser uses it: pages, kernels and terminals, over HTTP and websockets."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.websocket import WebSocketClientConnection, websocket_connect

ANSWER_SECONDS = 60.0


class Notebook:
    """One running server.

    Args:
        url: its address with a slash at the end.
        token: opens it.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}

    async def ready(self, seconds: float = ANSWER_SECONDS) -> Notebook:
        """Wait until the server answers, and return it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if (await self.request("GET", "api")).code == 200:  # noqa: PLR2004 - HTTP's
                    return self
            except OSError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def request(self, method: str, path: str, body: Any = None, *, anonymous: bool = False) -> HTTPResponse:
        """Return the answer to a request, whatever it is; redirects are not followed."""
        asked = HTTPRequest(
            self.url + path,
            method=method,
            headers={} if anonymous else self._headers,
            body=None if body is None else json.dumps(body),
            allow_nonstandard_methods=True,
            follow_redirects=False,
            request_timeout=ANSWER_SECONDS,
        )
        return await AsyncHTTPClient().fetch(asked, raise_error=False)

    async def start_kernel(self, name: str = "python3") -> str:
        """Start a kernel and return its id."""
        return str(json.loads((await self.request("POST", "api/kernels", {"name": name})).body)["id"])

    async def execute(self, kernel: str, code: str) -> str:
        """Run code in a kernel and return what it printed, errors included."""
        connection = await self._connect(f"api/kernels/{kernel}/channels")
        identity = uuid.uuid4().hex
        header = {
            "msg_id": identity,
            "username": "",
            "session": identity,
            "msg_type": "execute_request",
            "version": "5.3",
        }
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        await connection.write_message(json.dumps(message))
        printed = ""
        while True:
            said = await self._read(connection)
            if said["parent_header"].get("msg_id") != identity:
                continue
            if said["msg_type"] == "stream":
                printed += said["content"]["text"]
            if said["msg_type"] == "error":
                printed += f"{said['content']['ename']}: {said['content']['evalue']}"
            if said["msg_type"] == "status" and said["content"]["execution_state"] == "idle":
                connection.close()
                return printed.strip()

    async def type_in_terminal(self, line: str, until: str) -> str:
        """Type a line in a new terminal and return all it showed up to a text."""
        name = json.loads((await self.request("POST", "api/terminals", {})).body)["name"]
        connection = await self._connect(f"terminals/websocket/{name}")
        shown = ""
        await connection.write_message(json.dumps(["stdin", line + "\r"]))
        while until not in shown:
            kind, *rest = await self._read(connection)
            if kind == "stdout":
                shown += rest[0]
        connection.close()
        return shown

    async def _connect(self, path: str) -> WebSocketClientConnection:
        return await websocket_connect(HTTPRequest(self.url.replace("http", "ws", 1) + path, headers=self._headers))

    async def _read(self, connection: WebSocketClientConnection) -> Any:
        message = await asyncio.wait_for(connection.read_message(), ANSWER_SECONDS)
        if message is None:
            raise ConnectionError("the server closed the connection")
        return json.loads(message)
