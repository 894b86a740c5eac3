"""Whether the work at hand is production or stress: three states, and the third is an error.

A context variable is *unset* until the service's middleware binds it. Unset does not mean
production: it means that the information was lost (a thread pool, a start-up hook), and asking for
a store then raises `LostContext`.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from livefire_shadow.audit import AUDIT
from livefire_shadow.errors import IsolationViolation, LostContext
from livefire_shadow.marker import Marker
from livefire_shadow.place import nearest_place

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Production:
    """Work for a request without a marker, or work declared to be production on purpose."""


@dataclass(frozen=True, slots=True)
class Stress:
    """Work for a marked request: the verified marker, and the header's value to pass on ('' = nothing to pass on)."""

    marker: Marker
    value: str


Context = Production | Stress
PRODUCTION = Production()

_SETUP = Stress(Marker("setup", 1, "setup"), "")
_context: ContextVar[Context] = ContextVar("livefire_shadow_context")


def require_unset_threads() -> None:
    """Raises RuntimeError where Python hands a new thread the state of whoever started it (the default of free-threaded
    builds from 3.14 on): a pool's thread would then be production for ever, if a production request was the first."""
    if getattr(sys.flags, "thread_inherit_context", 0):
        raise RuntimeError(
            "threads inherit the context here, so a lost one would go unseen: -X thread_inherit_context=0"
        )


def current() -> Context:
    """The state of the work at hand. Raises LostContext, and counts it in the process's `AUDIT`, when it is unset."""
    try:
        return _context.get()
    except LookupError:
        place = nearest_place()
        AUDIT.lost(place)
        raise LostContext(
            f"{place}: neither production nor stress. In a thread pool wrap the function in carry(); "
            "at start-up or in a background job use outside_request()"
        ) from None


def is_stress() -> bool:
    """True for stress, False for production. Raises LostContext when it is neither."""
    return isinstance(current(), Stress)


def is_setup() -> bool:
    """True inside `shadow_setup()`. Raises LostContext."""
    return current() is _SETUP


def run_id() -> str:
    """The run of the marker, '' in production: the value for a table's run column. Raises LostContext."""
    context = current()
    return context.marker.run_id if isinstance(context, Stress) else ""


@contextmanager
def bind(context: Context) -> Iterator[None]:
    """Binds `context` for the block. The middlewares call this; services rarely need to."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


@contextmanager
def outside_request() -> Iterator[None]:
    """Declares start-up code or a background job to be production, on purpose.

    Do not wrap the running of a whole server in it: every request's task would inherit it, and a
    lost context would look like production. Raises IsolationViolation under stress, where it
    would be a way out.
    """
    if isinstance(_context.get(PRODUCTION), Stress):
        raise IsolationViolation(f"{nearest_place()}: outside_request() while working for a stress request")
    with bind(PRODUCTION):
        yield


@contextmanager
def shadow_setup() -> Iterator[None]:
    """Declares start-up code that prepares shadow stores (tables, seeds): stress, without a run and with no outbound.

    Production stores raise in it. Raises IsolationViolation inside a stress request.
    """
    if isinstance(_context.get(PRODUCTION), Stress):
        raise IsolationViolation(f"{nearest_place()}: shadow_setup() while working for a stress request")
    with bind(_SETUP):
        yield


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """`function` bound to the state of the caller, for `run_in_executor` and `ThreadPoolExecutor`.

    Context variables do not follow work into those (they do into `asyncio.to_thread`). The result
    may be called many times and at once. Raises LostContext here, not in the thread, when there is
    no state to carry, and TypeError for a coroutine function, whose body would run after the binding.
    """
    if inspect.iscoroutinefunction(function):
        raise TypeError("carry() is for functions that run in a thread; tasks inherit their context")
    context = current()

    @functools.wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        with bind(context):
            return function(*args, **kwargs)

    return carried
