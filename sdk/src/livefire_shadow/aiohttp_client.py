"""aiohttp client middleware: where a stress request's own calls may go.

    shadow = shadow_client(inside=["10.0.0.7:8080"], mocks={"payments.example:443": "http://127.0.0.1:9700"})
    session = aiohttp.ClientSession(middlewares=[shadow])

Middlewares given to a single call *replace* those of the session: a call that names its own must
name this one too. Redirects pass through it hop by hop. A proxy, also one that the environment names, is a host like
others: under stress it must be inside.
"""

from collections.abc import Iterable, Mapping

from aiohttp import ClientHandlerType, ClientMiddlewareType, ClientRequest, ClientResponse, hdrs
from yarl import URL

from livefire_shadow.audit import AUDIT, Audit
from livefire_shadow.context import Production, current
from livefire_shadow.errors import OutboundBlocked
from livefire_shadow.marker import HEADER
from livefire_shadow.place import nearest_place


def shadow_client(
    *, inside: Iterable[str] = (), mocks: Mapping[str, str] | None = None, audit: Audit = AUDIT
) -> ClientMiddlewareType:
    """The middleware for `ClientSession(middlewares=[...])`.

    `inside`: `host:port` of services that understand the marker; it is passed on to them unchanged.
    `mocks`: `host:port` of third parties -> `http://host:port` of the mock that answers stress for them.
    Every other host raises OutboundBlocked under stress. Production passes untouched. Without a
    context, LostContext. Raises ValueError here for an address without a port, or in both lists.
    """
    inside_hosts = {_host_port(address) for address in inside}
    mock_urls = {_host_port(address): _base(url) for address, url in (mocks or {}).items()}
    if both := inside_hosts & mock_urls.keys():
        raise ValueError(f"both inside and mocked: {', '.join(sorted(both))}")

    async def shadow(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        context = current()
        if isinstance(context, Production):
            return await handler(request)
        host = _end_of(request.url)
        if not context.value or (host not in inside_hosts and host not in mock_urls):
            raise _blocked(host, audit)
        if host in inside_hosts and request.proxy is not None and _end_of(request.proxy) not in inside_hosts:
            raise _blocked(_end_of(request.proxy), audit)
        request.headers[HEADER] = context.value
        if host in inside_hosts:
            audit.propagated()
            return await handler(request)
        # The Host header stays the third party's: the mock may stand in for several.
        request.url = mock_urls[host].join(request.url.relative())
        request.proxy = None
        # The third party's credentials are production's; a mock has no use for them.
        for name in (hdrs.AUTHORIZATION, hdrs.COOKIE, hdrs.PROXY_AUTHORIZATION):
            request.headers.popall(name, None)
        audit.mocked(host)
        return await handler(request)

    return shadow


def _end_of(url: URL) -> str:
    return f"{url.host}:{url.port}".lower()


def _blocked(host: str, audit: Audit) -> OutboundBlocked:
    place = nearest_place()
    audit.blocked_outbound(host, place)
    return OutboundBlocked(f"{place}: stress request for {host}, which is neither inside nor mocked")


def _host_port(address: str) -> str:
    url = URL(f"//{address}")
    if not url.host or url.explicit_port is None or url.path not in ("", "/"):
        raise ValueError(f"{address!r} is not host:port")
    return f"{url.host}:{url.explicit_port}".lower()


def _base(text: str) -> URL:
    url = URL(text)
    if url.scheme not in ("http", "https") or not url.host or url.path not in ("", "/") or url.query_string:
        raise ValueError(f"{text!r} is not http://host:port")
    return url
