"""Why the driver could not connect. It says so only in its log, which is not for the user's terminal: an outage would
fill it. Each client's lines come from a thread that bears the client's name, so each hears its own words only.
"""

from __future__ import annotations

import itertools
import logging
import re
import threading
import time
import weakref
from typing import Final

from bus.ports import BusError

_WHY: Final = re.compile(
    r"(?:Connection failed|Bootstrap connection to \S+ failed): (\w+)(?:: (?:\d+ )?([^\n]*?))?(?: \(backoff.*)?"
)
_PLAIN: Final = {"ECONNREFUSED": "connection refused", "ETIMEDOUT": "timed out", "EHOSTUNREACH": "no route to the host"}
_THREAD: Final = "kafka-io-"  # and the client's name
_CERTIFICATE: Final = re.compile(r"CERTIFICATE_VERIFY_FAILED\] certificate verify failed: (.*?)(?: \(_ssl.*|\.)?$")
#: What the driver says of the first answer of a port that does not speak TLS, or of its hanging up instead.
_NO_TLS: Final = ("UNEXPECTED_EOF_WHILE_READING", "WRONG_VERSION_NUMBER")
#: A record of TLS that is taken for a frame of Kafka: an alert, 0x15 and version 3.x, as its length.
_FRAME: Final = re.compile(r"Invalid frame length: (\d+)")
_TLS_ALERT: Final = 0x1503
_numbers = itertools.count(1)


class Words:
    """What is said of the connections of one client."""

    def __init__(self) -> None:
        self.client: Final = f"livefire-{next(_numbers)}"  # as brokers see it, too
        self.forget()
        driver = logging.getLogger("kafka")
        if _listener not in driver.handlers:
            driver.addHandler(_listener)
            driver.propagate = False
        _listener.heard_by[self.client] = self

    def forget(self) -> None:
        """A connection is to be made."""
        self._denied = False
        self._hung_up = self._no_tls = self._others = 0
        self._unasked = self._untrusted = ""
        self._text, self._at = "", 0.0

    def hear(self, line: str) -> None:
        self._denied |= "SaslAuthenticationFailedError" in line
        if "SaslHandshake failed" in line or "UnsupportedSaslMechanism" in line:
            self._unasked = line
        if match := _WHY.fullmatch(line):
            self._text = " ".join(_PLAIN.get(word, word) for word in (match[2] or match[1]).split())
            self._at = time.monotonic()
            hung_up, no_tls = "disconnected" in self._text, any(word in self._text for word in _NO_TLS)
            self._hung_up += hung_up
            self._no_tls += no_tls
            self._others += not (hung_up or no_tls)
            if (frame := _FRAME.search(self._text)) and int(frame[1]) >> 16 == _TLS_ALERT:
                self._text = "disconnected by an alert of TLS"
            if found := _CERTIFICATE.search(self._text):
                self._untrusted = found[1]

    def verdict(self, where: object, *, sasl: bool, met: bool) -> BusError | None:
        """What waiting does not mend; None where it may. `met`: these brokers have let this client in before.

        While connecting the driver only logs that a password is wrong, and loses the answer when it comes together with
        the end of the connection: then the brokers hang up, each time. Who was let in before is hung up on because a
        broker ends.
        """
        if self._untrusted:
            return BusError(f"{where}: the brokers' certificate is not trusted: {self._untrusted} (kafka_security: ca)")
        if met:
            return self._refusal(where) if sasl and self._denied else None
        if self._no_tls > 1 and not self._others and not self._hung_up:
            return BusError(f"{where}: this port does not speak TLS (kafka_security: tls and ca are for another one)")
        if sasl and self._unasked:
            return BusError(f"{where}: this port does not take that mechanism, or no password at all (kafka_security)")
        if sasl and (self._denied or (self._hung_up > 1 and not self._others and not self._no_tls)):
            return self._refusal(where)
        return None

    @staticmethod
    def _refusal(where: object) -> BusError:
        return BusError(f"{where}: the brokers refuse user or password (kafka_security)")

    @property
    def text(self) -> str:
        """What was said in the last seconds: older words are about something else."""
        return self._text if time.monotonic() - self._at < 5.0 else ""


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.heard_by: weakref.WeakValueDictionary[str, Words] = weakref.WeakValueDictionary()

    def emit(self, record: logging.LogRecord) -> None:
        thread = record.threadName or threading.current_thread().name
        words = self.heard_by.get(thread.removeprefix(_THREAD)) if thread.startswith(_THREAD) else None
        if words is not None:
            words.hear(record.getMessage().partition("\n")[0])


_listener = _Listener()
