"""ASGI wrapper: decides per request or websocket whether its work is production or stress.

    app = ShadowASGI(app, Settings.from_env("orders"))

The lifespan scope is passed through with no context: start-up code says `outside_request()` or
`shadow_setup()` itself, so that tasks started there do not look like production by accident.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from livefire_shadow import audit as audit_module
from livefire_shadow.audit import AUDIT, Audit
from livefire_shadow.context import PRODUCTION, Stress, bind, require_unset_threads
from livefire_shadow.marker import HEADER, BadMarker, verify_headers
from livefire_shadow.settings import Settings, wall_s

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_NAME = HEADER.lower().encode("ascii")


class ShadowASGI:
    """Wraps an ASGI 3 application. The counters and answers are those of the aiohttp middleware."""

    def __init__(
        self, app: App, settings: Settings, *, audit: Audit = AUDIT, now_s: Callable[[], float] = wall_s
    ) -> None:
        require_unset_threads()
        self._app = app
        self._settings = settings
        self._audit = audit
        self._now_s = now_s
        audit.service = settings.service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403 (a websocket: closes before accepting) for a bad marker, else calls the application."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        # Header names come in lower case from a conforming server; a marker missed because of one that
        # does not conform would be taken for production.
        values = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == _NAME]
        try:
            found = verify_headers(values, self._settings.keys, self._now_s())
        except BadMarker as bad:
            self._audit.refused(bad.reason)
            await _refuse(scope, receive, send, {"error": "marker refused", "reason": bad.reason})
            return
        if scope["type"] == "http" and scope["path"] == audit_module.PATH:
            self._audit.audit_read(found is not None)
            if found is None:
                await _refuse(scope, receive, send, {"error": "a valid marker is needed"})
            else:
                await _answer(send, 200, self._audit.as_json())
        elif found is None:
            self._audit.production_request()
            with bind(PRODUCTION):
                await self._app(scope, receive, send)
        else:
            self._audit.marked_request()
            with bind(Stress(*found)):
                await self._app(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send, why: dict[str, str]) -> None:
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        await send({"type": "websocket.close", "code": 1008, "reason": why["error"]})
    else:
        await _answer(send, 403, json.dumps(why).encode())


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
