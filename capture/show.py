"""An exchange as `livefire show --json` prints it: a contract, see docs/cli.md."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from wire.head import field, request_head
from wire.records import Exchange


def exchange_json(exchange: Exchange) -> dict[str, Any]:
    """Bodies are told by length (de-chunked, not content-decoded) and by the hash of what is stored."""
    request, response = exchange.request, exchange.response
    head = request_head(request.head) if request.head else None
    host = field(request.head, b"host") if request.head else None
    return {
        "session": exchange.session_id.hex(),
        "client": exchange.client,
        "server": exchange.server,
        "method": head.method.decode("latin-1") if head else None,
        "target": _text(head.target) if head else None,
        "host": _text(host) if host is not None else None,
        "request_start_ns": exchange.request_start_ns or None,
        "request_body_bytes": request.body_bytes,
        "request_body_sha256": _digest(request.body),
        "status": response.status if response else None,
        "response_start_ns": exchange.response_start_ns or None if response else None,
        "response_body_bytes": response.body_bytes if response else 0,
        "response_body_sha256": _digest(response.body) if response else None,
        "missing_bytes": request.missing_bytes + (response.missing_bytes if response else 0),
        "mode": exchange.mode.value,
    }


def in_order(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """By the request's first byte (the answer's where the request was not seen)."""
    return sorted(exchanges, key=lambda e: e.request_start_ns or e.response_start_ns)


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _digest(body: bytes) -> str | None:
    return hashlib.sha256(body).hexdigest() if body else None
