"""aiohttp middleware: decides per request whether its work is production or stress.

    app = web.Application(middlewares=[shadow_middleware(Settings.from_env("orders"))])

It belongs first in the list: a middleware before it runs with no context.
"""

from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from livefire_shadow import audit as audit_module
from livefire_shadow.audit import AUDIT, Audit
from livefire_shadow.context import PRODUCTION, Stress, bind, require_unset_threads
from livefire_shadow.marker import HEADER, BadMarker, verify_headers
from livefire_shadow.settings import Settings, wall_s


def shadow_middleware(settings: Settings, *, audit: Audit = AUDIT, now_s: Callable[[], float] = wall_s) -> Middleware:
    """The middleware: no marker is production, a valid one is stress, any other is answered 403 and counted.

    Serves `GET /.livefire/audit` to requests with a valid marker; those are not counted as marked work.
    """
    require_unset_threads()
    audit.service = settings.service

    @web.middleware
    async def shadow(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            found = verify_headers(request.headers.getall(HEADER, []), settings.keys, now_s())
        except BadMarker as bad:
            audit.refused(bad.reason)
            return web.json_response({"error": "marker refused", "reason": bad.reason}, status=403)
        if request.path == audit_module.PATH:
            audit.audit_read(found is not None)
            if found is None:
                return web.json_response({"error": "a valid marker is needed"}, status=403)
            return web.Response(body=audit.as_json(), content_type="application/json")
        if found is None:
            audit.production_request()
            with bind(PRODUCTION):
                return await handler(request)
        audit.marked_request()
        with bind(Stress(*found)):
            return await handler(request)

    return shadow
