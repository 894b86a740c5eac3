"""Requests to Elasticsearch: who we are, what an answer means, bulk with patience. Nothing here knows of panes.

Answers are told apart by what is to be done: `StoreAway` = later, `Refused` = never like this, in one line for people.
"""

from __future__ import annotations

import ipaddress
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import msgspec
from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, TlsError, TransportError
from elasticsearch import ApiError, Elasticsearch

from analytics.documents import Document
from analytics.store_address import StoreAddress
from analytics.store_port import StoreAway, StoreError

API_KEY: Final = "LIVEFIRE_ELASTICSEARCH_API_KEY"  # environment: the key, base64 as Kibana shows it
CA_FILE: Final = "LIVEFIRE_ELASTICSEARCH_CA"  # environment: PEM file of who signed the server's certificate
_BUSY: Final = frozenset({429, 502, 503, 504})
_DONE: Final = frozenset({200, 201})
_CONFLICT: Final = 409
_CHUNK: Final = 500  # documents of one bulk request ...
_CHUNK_BYTES: Final = 4 << 20  # ... and bytes
_PATIENCE_S: Final = 8.0  # in which a busy server is asked again
_HEADERS: Final = {"accept": "application/json", "content-type": "application/json"}
_LINES: Final = {"accept": "application/json", "content-type": "application/x-ndjson"}
_encode = msgspec.json.Encoder().encode


class Refused(StoreError):
    """The server said no; the same request will never succeed. `status` is HTTP's, `type` the server's word."""

    def __init__(self, text: str, status: int, type: str, reason: str) -> None:
        super().__init__(text)
        self.status, self.type, self.reason = status, type, reason


class Client:
    """One server or cluster. Calls come from one thread."""

    def __init__(
        self, where: StoreAddress, *, timeout_s: float = 10.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Connects at the first request. Raises StoreError for secrets that would travel in clear."""
        self.where, self._sleep = where, sleep
        tls = where.scheme == "elasticsearchs"
        options: dict[str, Any] = {}
        if key := os.environ.get(API_KEY):
            if where.user:
                raise StoreError(f"{where}: a user, and an API key in {API_KEY}: only one of them")
            options["api_key"] = key
        elif where.user:
            options["basic_auth"] = (where.user, where.password)
        if options and not tls and not _is_loopback(where.host):
            raise StoreError(f"{where}: the password or API key would travel in clear: elasticsearchs://")
        if tls and (ca := os.environ.get(CA_FILE)):
            if not os.path.isfile(ca):
                raise StoreError(f"{ca}: no such file ({CA_FILE})")
            options["ca_certs"] = ca
        host = f"[{where.host}]" if ":" in where.host else where.host
        self._client = Elasticsearch(
            f"http{'s' if tls else ''}://{host}:{where.port}", request_timeout=timeout_s, max_retries=0,
            retry_on_timeout=False, **options,
        )  # fmt: skip

    def request(
        self, method: str, path: str, body: Any = None, *, params: Mapping[str, Any] | None = None, absent: bool = False
    ) -> Any:
        """The decoded answer; None for 404 when `absent` is allowed. Raises StoreAway, Refused."""
        headers = _LINES if isinstance(body, list) else _HEADERS
        try:
            return self._client.perform_request(method, path, params=params, headers=headers, body=body).body
        except ApiError as error:
            if absent and error.status_code == 404:
                return None
            raise self.told(error) from None
        except TlsError as error:
            raise StoreError(f"{self.where}: TLS: {_short(error)}") from None
        except (NoConnection, ConnectionTimeout) as error:
            raise StoreAway(f"{self.where}: not there: {_short(error)}") from None
        except TransportError as error:
            raise StoreError(f"{self.where}: {_short(error)}") from None

    def told(self, error: ApiError) -> StoreError:
        """What to do about an answer, in one line."""
        status = error.status_code
        type, reason = _reason_of(error.body)
        if status in _BUSY:
            return StoreAway(f"{self.where}: busy ({status}): {reason}")
        if status in (401, 403):
            who = "nobody" if not self.where.user and not os.environ.get(API_KEY) else self.where.user or "the API key"
            text = f"refuses {who} ({status}): {reason}"
        elif "media_type_header" in type and "version must be" in reason:
            text = (
                f"this client ({version('elasticsearch')}) is newer than the server: {reason.partition('.')[0]}; "
                "install an elasticsearch package of the server's major version"
            )
        else:
            text = f"{status} {type}: {reason}"
        return Refused(f"{self.where}: {text}", status, type, reason)

    def bulk(self, made: Iterable[Document], *, refresh: bool = False) -> int:
        """Write documents; how many were new or newer. One that is there already, or newer there, is done.

        With `refresh` they can be found when it returns, else with the next refresh of their index.
        Raises StoreAway when the server is away, or stays busy: some are written then, and may be written again.
        Raises Refused naming the field that one item was refused for.
        """
        written, chunk, size = 0, list[tuple[Document, bytes, bytes]](), 0
        for document in made:
            lines = (document, _action_of(document), _encode(document.source))
            chunk.append(lines)
            size += len(lines[1]) + len(lines[2])
            if len(chunk) >= _CHUNK or size >= _CHUNK_BYTES:
                written += self._patiently(chunk, refresh)
                chunk, size = [], 0
        return written + self._patiently(chunk, refresh)

    def _patiently(self, chunk: list[tuple[Document, bytes, bytes]], refresh: bool) -> int:
        written, waited, pause = 0, 0.0, 0.1
        params = {"refresh": "true"} if refresh else None
        while chunk:
            try:
                lines = [line for item in chunk for line in item[1:]]
                items = self.request("POST", "/_bulk", lines, params=params)["items"]
            except StoreAway as away:
                if "busy (429)" not in str(away) or waited >= _PATIENCE_S:
                    raise
                items = [{"index": {"status": 429}}] * len(chunk)
            busy = []
            for sent, item in zip(chunk, items, strict=True):
                (answer,) = item.values()
                if answer["status"] in _DONE:
                    written += 1
                elif answer["status"] in _BUSY:
                    busy.append(sent)
                elif answer["status"] != _CONFLICT:
                    raise self._refused(sent[0], answer)
            if busy and waited >= _PATIENCE_S:
                raise StoreAway(f"{self.where}: busy for {waited:.0f} s: {len(busy)} documents are not written")
            if busy:
                self._sleep(pause)
                waited, pause = waited + pause, min(pause * 2, 2.0)
            chunk = busy
        return written

    def _refused(self, document: Document, answer: Mapping[str, Any]) -> Refused:
        type, reason = _reason_of(answer)
        named = re.search(r"(?:field \[|introduction of \[)([^\]]+)\](?: within \[([^\]]+)\])?", reason)
        parent = named[2] if named and named[2] and named[2] != "_doc" else ""
        field = f"field {parent + '.' if parent else ''}{named[1]}: " if named else ""
        text = f"{self.where}: {document.index} refuses a document: {field}{' '.join(reason.split())}"
        return Refused(text, int(answer["status"]), type, reason)

    def close(self) -> None:
        self._client.close()


def _action_of(document: Document) -> bytes:
    where: dict[str, Any] = {"_index": document.index, "_id": document.id}
    if document.version is None:
        return _encode({"create": where})
    return _encode({"index": {**where, "version": document.version, "version_type": "external"}})


def _reason_of(body: Any) -> tuple[str, str]:
    """The server's type and reason, down to the cause where it says more."""
    error = body.get("error") if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return "", str(error)[:300]
    reason = str(error.get("reason", ""))
    cause = error.get("caused_by")
    if isinstance(cause, Mapping) and cause.get("reason") and str(cause["reason"]) not in reason:
        reason = f"{reason} ({cause['reason']})"
    return str(error.get("type", "")), reason[:500]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


__all__: Sequence[str] = ["API_KEY", "CA_FILE", "Client", "Refused"]
