"""What is raised where stress work cannot be kept apart from production.

None of these is ever swallowed here: a tracer that fails loses a span, a router of storage that
fails writes stress data to production. So the request fails instead, and the audit counts it.
"""


class LostContext(RuntimeError):
    """Nobody said whether this work is production or stress, so no store may be chosen for it.

    Usual causes: a thread pool (`context.carry`), start-up code or a background job
    (`context.outside_request`), a server without the middleware.
    """


class IsolationViolation(RuntimeError):
    """Stress work reached for a store that is not its shadow, or production work for a shadow."""


class OutboundBlocked(RuntimeError):
    """Stress work called a host that is neither inside the system under test nor mocked."""
