"""What stands before the page's server: passwords, sizes of requests, which addresses there are, and files of sessions."""

import asyncio
import base64
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .limits import Limits, megabytes
from .session import ServedFile, Sessions

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PAGES = ("", "config", "theme.css", "favicon.ico", "manifest.json", "robots.txt", "pwa_icon")
"""Single addresses of gradio that the page needs."""
FOLDERS = ("assets/", "static/", "svelte/", "custom_component/", "study-files/")
CALLS = (
    *("info", "app_id", "startup-events", "upload", "upload_progress", "reset", "cancel", "theme.css"),
    *("component_server", "run/predict"),
)
CALL_FOLDERS = ("queue/", "heartbeat/", "custom_component/")
"""Below `gradio_api`. What is not here is not served: files by path, proxies, monitoring, run history, calls by name."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob: data:; "
    "frame-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
"""Of the page: the browser itself lets it talk to no other host."""
VIEWER_POLICY = "sandbox allow-scripts"
"""Of a report, beside its own: it is nobody's origin, wherever it is opened."""
OTHER_REQUEST = 4 << 20
"""Bytes of a request that uploads nothing."""


@dataclass
class Guard:
    """
    ASGI application in front of another.

    Args:
        app: what is guarded.
        sessions: of the app.
        limits: of the app.
        password: that HTTP Basic has to bring along, with any user name; None: nobody is asked.
        hosts: names that browsers may call the app by. Another page whose
            name is made to lead here is refused so. None: any.
    """

    app: Callable[..., Awaitable[None]]
    sessions: Sessions
    limits: Limits
    password: str | None = None
    hosts: tuple[str, ...] | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers or refuses one request, or passes it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path") or "").lstrip("/")
        if path.startswith("gradio_api/startup-events"):  # gradio's own first question
            await self.app(scope, receive, send)
        elif self.hosts is not None and urlsplit(f"//{headers.get('host', '')}").hostname not in self.hosts:
            await _answer(send, 403, f"the app answers to {', '.join(self.hosts)} only.")
        elif not self._knows_password(headers.get("authorization", "")):
            if "authorization" in headers:
                await asyncio.sleep(1)  # guessing takes time
            asked = [(b"www-authenticate", b'Basic realm="itemized-clip", charset="UTF-8"')]
            await _answer(send, 401, "a password is needed.", asked)
        elif not is_served(path):
            await _answer(send, 404, "there is nothing here.")
        elif scope["method"] not in ("GET", "HEAD") and not _is_of_page(headers):
            await _answer(send, 403, "the request comes from another page.")
        elif path.startswith("study-files/"):
            await self._send_file(path, send)
        else:
            await self._pass_on(path, headers, scope, receive, send)

    def _knows_password(self, authorization: str) -> bool:
        if self.password is None:
            return True
        kind, _, encoded = authorization.partition(" ")
        try:
            _, _, given = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
        except ValueError:
            return False
        return kind.lower() == "basic" and hmac.compare_digest(given.encode(), self.password.encode())

    async def _pass_on(self, path: str, headers: dict[str, str], scope: Message, receive: Receive, send: Send) -> None:
        """To gradio, with bounds on what comes in and rules for what goes out."""
        uploads = path.rstrip("/") == "gradio_api/upload"
        most = (self.limits.upload_mb << 20) + (1 << 20) if uploads else OTHER_REQUEST
        stated = headers.get("content-length", "0")
        if not stated.isdigit() or int(stated) > most:
            await _answer(send, 413, f"the request is larger than {megabytes(most)}, which is all that the app takes.")
            return
        if uploads:
            try:
                self.sessions.require_room()
            except ValueError as error:
                await _answer(send, 507, str(error))
                return
        count = 0

        async def bounded() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > most:
                return {"type": "http.disconnect"}
            return message

        async def with_rules(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_rules(POLICY)]}
            await send(message)

        await self.app(scope, bounded, with_rules)

    async def _send_file(self, path: str, send: Send) -> None:
        """A file of the session that the address names; it is made now if it is not there yet."""
        found = self.sessions.find((path.split("/") + [""])[1])
        if found is None or path.split("/")[2:] != [found[1].name]:
            await _answer(send, 404, "the file is no longer there: run the findings again.")
            return
        file = found[1]
        try:
            place = await asyncio.to_thread(file.make)
            size = place.stat().st_size
            stream = place.open("rb")
        except (OSError, ValueError, ImportError) as error:
            folder = str(found[0].folder)
            await _answer(send, 500, f"the file cannot be made: {str(error).replace(folder, '')}")
            return
        with stream:
            await send({"type": "http.response.start", "status": 200, "headers": _file_headers(file, size)})
            while block := await asyncio.to_thread(stream.read, 1 << 20):
                await send({"type": "http.response.body", "body": block, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def is_served(path: str) -> bool:
    """Whether the app has an address, `path` being without its first slash."""
    if ".." in path.split("/"):
        return False
    if path.startswith("gradio_api/"):
        call = path.removeprefix("gradio_api/")
        return call.rstrip("/") in CALLS or call.startswith(CALL_FOLDERS)
    return path.rstrip("/") in PAGES or path.startswith(FOLDERS)


def _is_of_page(headers: dict[str, str]) -> bool:
    """Whether a request that changes something comes from the app's own page, or from no page at all."""
    origin = headers.get("origin")
    hosts = {headers.get("host", ""), headers.get("x-forwarded-host", headers.get("host", ""))}
    return origin is None or urlsplit(origin).netloc in hosts


def _file_headers(file: ServedFile, size: int) -> list[tuple[bytes, bytes]]:
    stored = "inline" if file.page else f'attachment; filename="{file.name}"'
    return [
        (b"content-type", file.media_type.encode()),
        (b"content-length", str(size).encode()),
        (b"content-disposition", stored.encode("latin-1", "replace")),
        (b"content-encoding", b"identity"),
        *_rules(VIEWER_POLICY),
    ]


def _rules(policy: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", policy.encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
    ]


async def _answer(send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = text.encode()
    known = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*known, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
