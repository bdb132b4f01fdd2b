"""What stands between the network and the demo: which hosts, origins, paths and sizes are let through. Plain ASGI.

A page of another site that is open in the same browser can send requests to a server on this machine, and with DNS
rebinding read the answers. Such requests carry that site's name as Host or Origin: both must be names of this server.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cxu.demo import folder

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# Of gradio's endpoints those that the page does not need and that fetch addresses, serve files of the folder, keep what
# a page shows, or run it without the queue.
CLOSED: Final = re.compile(
    r"/+(monitoring|docs|redoc|openapi\.json"
    r"|gradio_api/+(file=|file/|proxy=|deep_link|runs|run-history|process_recording|stream|dev/|vibe|undo-vibe"
    r"|component_server|call/|run/|api/|openapi\.json|profiling))"
)
UPLOAD: Final = "/gradio_api/upload"
MB: Final = 1 << 20  # as browsers count
_OVERHEAD_BYTES: Final = 64 * 1024  # of a form around a file
_MAX_OTHER_BYTES: Final = MB  # of a request that is no upload: settings, strokes
_FOLDER_UPLOADS: Final = 10  # full-sized uploads that may lie in the folder at a time
_LONG_LIVED: Final = ("/assets/", "/static/", "/svelte/")
# Nothing of the page may be loaded from, or sent to, anywhere else. Gradio builds its templates with eval.
_POLICY: Final = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; "
    b"form-action 'self'; base-uri 'self'; object-src 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


@dataclass
class Rules:
    """What is let through.

    Attributes
    ----------
    names
        Names of this server, without port.
    any_address
        Whether numeric addresses count as well: no other site's page can have one as its host by rebinding.
    max_bytes
        Largest film.
    uploads
        Folder that uploads lie in.
    """

    names: set[str]
    any_address: bool
    max_bytes: int
    uploads: Path

    @classmethod
    def of(cls, host: str, max_bytes: int, uploads: Path) -> Rules:
        """Return the rules of a server bound to ``host``: its own names, and where it is bound to all, addresses."""
        bare = host.strip("[]").lower()
        is_everywhere = _is_unspecified(bare)
        names = {*LOOPBACK_NAMES, bare, *([socket.gethostname().lower()] if is_everywhere else [])}
        return cls(names, is_everywhere, max_bytes, uploads)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the sentence that a request is refused with, or None."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if not self._is_own(_name_of(f"//{host}")):
            return 421, f"the host {host[:100]!r} is none of this server's: open the address that cxu demo printed"
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "requests from pages of other sites are refused"
        if CLOSED.match(scope["path"]):
            return 404, "there is no such page"
        return self._refused_size(scope, headers.get(b"content-length", "0"))

    def limit(self, path: str) -> int:
        """Return how many bytes the body of a request may have."""
        return self.max_bytes + _OVERHEAD_BYTES if path.startswith(UPLOAD) else _MAX_OTHER_BYTES

    def too_large(self, path: str) -> str:
        """Return the sentence for a body above the limit."""
        if path.startswith(UPLOAD):
            return f"the file is larger than {self.max_bytes / MB:g} MB, the limit of this demo (--max-mb)"
        return f"the request is larger than {_MAX_OTHER_BYTES / MB:g} MB: reload the page"

    def foreign_file(self, body: bytes) -> str | None:
        """Return a file that a request names and that was not uploaded here, None where there is none.

        Gradio opens files by their path, and fetches those whose path is an address.
        """
        if b"path" not in body:
            return None
        try:
            waiting = [json.loads(body)]
        except (ValueError, RecursionError):
            return None  # nor can gradio read it
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                named = value.get("path")
                if named is not None and not self._was_uploaded(named):
                    return str(named)
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
        return None

    def _was_uploaded(self, named: object) -> bool:
        # without following links: as gradio compares them
        folder_path, path = (os.path.normpath(str(one)) for one in (self.uploads, named))
        return isinstance(named, str) and path.startswith(f"{folder_path}{os.sep}")

    def _refused_size(self, scope: Scope, length: str) -> tuple[int, str] | None:
        path = scope["path"]
        if not length.isdigit() or int(length) > self.limit(path):
            return 413, self.too_large(path)
        if scope["method"] == "POST" and path.startswith(UPLOAD):
            lying = folder.size_of(self.uploads)
            if lying + int(length) > _FOLDER_UPLOADS * self.limit(path):
                return 503, "too many films are being uploaded: try again in two minutes"
        return None

    def _is_own(self, name: str | None) -> bool:
        if name is None:
            return False
        return name in self.names or (self.any_address and _is_address(name))


def _name_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_unspecified(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_unspecified


class _TooLargeError(Exception):
    """A body went beyond its limit while it was read."""


class Guard:
    """An ASGI application that lets through to another what its rules allow, and closes its answers to the outside."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        refused = self.rules.refusal(scope)
        if refused is not None:
            await _answer(send, *refused)
            return
        await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        body = _Body(receive, self.rules.limit(path))
        has_begun = False

        async def closed(message: Message) -> None:
            nonlocal has_begun
            if body.is_too_large and not has_begun:
                return  # what frameworks make of the error below
            has_begun = True
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_headers_for(path)]}
            await send(message)

        try:
            if scope["method"] == "POST" and not path.startswith(UPLOAD):
                stranger = self.rules.foreign_file(await body.read_whole())
                if stranger is not None:
                    await _answer(send, 403, f"{stranger[:100]!r} is no file that was uploaded here")
                    return
            await self.app(scope, body.receive, closed)
        except _TooLargeError:
            if not has_begun:
                await _answer(send, 413, self.rules.too_large(path))


class _Body:
    """The body of a request, read up to a limit."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._left = receive, limit
        self._held: list[Message] = []
        self.is_too_large = False

    async def receive(self) -> Message:
        """Return the next message, first those that were read already."""
        return self._held.pop(0) if self._held else await self._counted()

    async def read_whole(self) -> bytes:
        """Return the whole body; :meth:`receive` gives it once more."""
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body", False):
            messages.append(await self._counted())
        self._held = messages
        return b"".join(message.get("body", b"") for message in messages)

    async def _counted(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self.is_too_large = True
            raise _TooLargeError
        return message


def _headers_for(path: str) -> tuple[tuple[bytes, bytes], ...]:
    # films and results do not stay in the browser's cache
    return _HEADERS if path.startswith(_LONG_LIVED) else (*_HEADERS, (b"cache-control", b"no-store"))


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = f"{sentence}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # what is left of a body is not read
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
