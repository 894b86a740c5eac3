"""Routes marked stress traffic to shadow storage, and raises where it cannot.

The core needs the standard library only. The integrations are imported by name, each from its own
module: `aiohttp_server`, `aiohttp_client`, `asgi`, `sqlalchemy_routing`.
"""

from livefire_shadow.audit import AUDIT, Audit
from livefire_shadow.context import (
    PRODUCTION,
    Context,
    Production,
    Stress,
    bind,
    carry,
    current,
    is_stress,
    outside_request,
    run_id,
    shadow_setup,
)
from livefire_shadow.errors import IsolationViolation, LostContext, OutboundBlocked
from livefire_shadow.marker import HEADER, BadMarker, Marker, Reason, sign, verify
from livefire_shadow.settings import Settings

__all__ = [
    "AUDIT",
    "HEADER",
    "PRODUCTION",
    "Audit",
    "BadMarker",
    "Context",
    "IsolationViolation",
    "LostContext",
    "Marker",
    "OutboundBlocked",
    "Production",
    "Reason",
    "Settings",
    "Stress",
    "bind",
    "carry",
    "current",
    "is_stress",
    "outside_request",
    "run_id",
    "shadow_setup",
    "sign",
    "verify",
]
