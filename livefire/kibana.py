"""Kibana's import of saved objects: one request, and what its answer means, in one line each."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from livefire.errors import UserError

FILE_NAME: Final = "livefire.ndjson"  # Kibana takes no other ending
_TIMEOUT_S: Final = 60.0
_LONGEST_WORDS: Final = 300
_REPLY_BYTES: Final = 8 << 20
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key must not be carried to where it was not meant for."""

    def redirect_request(self, *_: Any) -> None:
        return None


def import_objects(base: str, objects: str, *, api_key: str = "", ca: Path | None = None) -> int:
    """Write the objects (a line each) into the space that `base` names, over those that are there.

    How many there are now. Raises UserError, one line a problem, unless Kibana says that all of them are in. The
    import of the others is not undone: Kibana writes what it can. `api_key` is sent over TLS or to this machine alone.
    """
    asked = sum(1 for line in objects.splitlines() if line)
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise UserError("the API key is none: it is one word, the `encoded` value that Kibana shows when it is made")
    request = _request(f"{base}/api/saved_objects/_import?overwrite=true", objects, api_key)
    if api_key and request.type != "https" and _host(request) not in _LOOPBACK:
        raise UserError(f"{base}: an API key is not sent without TLS; use https (with --ca FILE for an own authority)")
    status, location, data = _sent(request, base, ca)
    if status in (301, 302, 303, 307, 308):
        raise UserError(
            f"{base}: redirects to {_words(location) or 'somewhere'}, which is not followed: give Kibana's own address "
            "and an API key where it asks for a login"
        )
    reply = _reply(data)
    if status == 401:
        raise UserError(
            f"{base}: Kibana does not accept the API key" if api_key else f"{base}: Kibana wants an API key"
        )
    if status == 403:
        raise UserError(
            f"{base}: the API key is not allowed to write saved objects here; it needs Saved Objects Management: All"
        )
    if status == 404:
        raise UserError(f"{base}: no such space, or no Kibana, there (does it live under a path?)")
    if reply is None:
        raise UserError(f"{base}: answers {status} with something that is no JSON; is that a Kibana?")
    if status != 200 and not reply.get("message"):  # Kibana says why
        raise UserError(
            f"{base}: answers {status}, and not as Kibana does; is that Kibana's address, or Elasticsearch's?"
        )
    if status != 200:
        raise UserError(f"{base}: Kibana refuses the import: {_words(reply['message'])}")
    problems = [_problem(error) for error in reply.get("errors") or []]
    done = reply.get("successCount")
    if reply.get("success") is not True or problems or done != asked:
        problems = problems or [f"Kibana took {done!r} of {asked} objects and does not say why"]
        raise UserError("\n".join(f"{base}: {problem}" for problem in problems))
    return asked


def _request(address: str, objects: str, api_key: str) -> urllib.request.Request:
    boundary = uuid4().hex
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{FILE_NAME}"\r\n'
        "Content-Type: application/ndjson\r\n\r\n"
    )
    body = head.encode() + objects.encode() + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(address, body, method="POST")
    request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    request.add_header("kbn-xsrf", "livefire")
    if api_key:
        request.add_unredirected_header("Authorization", f"ApiKey {api_key}")
    return request


def _host(request: urllib.request.Request) -> str:
    return request.host.rpartition("@")[2].rsplit(":", 1)[0].strip("[]") if request.host else ""


def _sent(request: urllib.request.Request, base: str, ca: Path | None) -> tuple[int, str, bytes]:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if request.type == "https":
        handlers.append(urllib.request.HTTPSHandler(context=_context(ca)))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=_TIMEOUT_S) as answer:
            return answer.status, "", answer.read(_REPLY_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("Location", ""), error.read(_REPLY_BYTES)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            why = f"its certificate is not trusted ({error.reason.verify_message}); name its authority: --ca FILE"
        elif isinstance(error.reason, ssl.SSLError):
            why = f"no TLS there ({error.reason.reason or error.reason}); http:// perhaps?"
        else:
            why = f"cannot be reached: {_words(error.reason)}"
        raise UserError(f"{base}: {why}") from None
    except (http.client.HTTPException, OSError) as error:
        raise UserError(f"{base}: gave no answer: {_words(error) or type(error).__name__}") from None


def _context(ca: Path | None) -> ssl.SSLContext:
    if ca is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=str(ca))
    except ssl.SSLError:
        raise UserError(f"{ca}: holds no certificate (PEM) of an authority") from None


def _reply(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _problem(error: Any) -> str:
    """One line of one entry in `errors`."""
    if not isinstance(error, dict):
        return _words(error)
    why = error.get("error")
    why = why if isinstance(why, dict) else {}
    kind = str(why.get("type", "unknown"))
    title = (error.get("meta") or {}).get("title") or error.get("title")
    who = f"{error.get('type')} {error.get('id')}" + (f" ({_words(title)})" if title else "")
    told = {
        "missing_references": "refers to what is not there: " + _listed(why.get("references")),
        "conflict": "is there already, and was not overwritten",
        "ambiguous_conflict": "several like it are there already: " + _listed(why.get("destinations")),
        "unsupported_type": "this Kibana does not know the type",
    }
    return f"{who}: {told.get(kind) or _words(why.get('message') or kind)}"


def _listed(found: Any) -> str:
    items: Iterable[Any] = found if isinstance(found, list) else ()
    return ", ".join(f"{item.get('type', '')} {item.get('id')}".strip() for item in items if isinstance(item, dict))


def _words(told: Any) -> str:
    """What somebody else said, on one line and not endless."""
    return " ".join(str(told).split())[:_LONGEST_WORDS]
