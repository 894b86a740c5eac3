"""Where in the service's own code something happened: `shop/orders.py:120 record_event`."""

import sys
from pathlib import PurePath
from types import FrameType

# Frames of the libraries that this package hooks into say nothing about the service.
_NOT_THE_SERVICE = ("livefire_shadow", "sqlalchemy", "aiohttp", "asyncio", "contextlib", "greenlet")


def nearest_place() -> str:
    """`file:line function` of the nearest frame that is the service's own, or "unknown"."""
    frame = _outside(sys._getframe(1))
    # SQLAlchemy's asyncio runs its own half in a greenlet, whose stack ends where it was entered:
    # the caller's frames belong to the parent.
    greenlet = sys.modules.get("greenlet")
    if frame is None and greenlet is not None:
        parent = greenlet.getcurrent().parent
        while frame is None and parent is not None:
            frame = _outside(parent.gr_frame)
            parent = parent.parent
    if frame is None:
        return "unknown"
    code = frame.f_code
    # Two parts of the path name a file well enough, and an audit needs no folder names of the host.
    return f"{'/'.join(PurePath(code.co_filename).parts[-2:])}:{frame.f_lineno} {code.co_name}"


def _outside(frame: FrameType | None) -> FrameType | None:
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] not in _NOT_THE_SERVICE:
            return frame
        frame = frame.f_back
    return None
