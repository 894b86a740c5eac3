"""Looks at isolation while the load is on, beside the loop that renews leases: a service under stress may take
seconds to answer, and the loop must not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from drill.isolation import IsolationReport


class ProofWatch:
    """One check at a time, in a thread that ends by itself. Called from one thread."""

    def __init__(self, check: Callable[[], IsolationReport], every_ns: int) -> None:
        self._check = check
        self._every_ns = every_ns
        self._due_ns = 0
        self._thread: threading.Thread | None = None
        self._latest: IsolationReport | None = None
        self._error: BaseException | None = None

    def poll(self, now_ns: int) -> IsolationReport | None:
        """The latest report, if there is one. Raises what a check raised: a proof that cannot be made is a bug."""
        if self._error is not None:
            raise self._error
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._thread is None and now_ns >= self._due_ns:
            self._due_ns = now_ns + self._every_ns
            self._thread = threading.Thread(target=self._run, name="isolation", daemon=True)
            self._thread.start()
        return self._latest

    def _run(self) -> None:
        try:
            self._latest = self._check()
        except BaseException as error:
            self._error = error

    def close(self, timeout_s: float = 10.0) -> None:
        if self._thread is not None:
            self._thread.join(timeout_s)
