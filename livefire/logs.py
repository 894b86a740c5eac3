"""One log format for every process: `2026-11-20T12:00:00.123Z WARN capture: text`, or one JSON object a line.

Logs carry no bodies, no header values and no keys: what is logged are counts, names, addresses and reasons.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final, TextIO

#: They log each refused connection, with its traceback. What it means to the user is told by our own line.
_DRIVERS: Final = ("clickhouse_driver", "elastic_transport", "elasticsearch")


class _Utc(logging.Formatter):
    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)


class _Text(_Utc):
    def format(self, record: logging.LogRecord) -> str:
        stamp = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        name = record.name.removeprefix("livefire.")
        level = "WARN" if record.levelno == logging.WARNING else record.levelname
        text = f"{stamp}.{int(record.msecs):03d}Z {level} {name}: {record.getMessage()}"
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _Json(_Utc):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "at": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
                "level": record.levelname.lower(),
                "logger": record.name.removeprefix("livefire."),
                "text": record.getMessage(),
                **({"trace": self.formatException(record.exc_info)} if record.exc_info else {}),
            }
        )


def configure(level: str, format: str, stream: TextIO | None = None) -> None:
    """Send the log of this process to stderr (or `stream`) in the one format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if format == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    if not root.isEnabledFor(logging.DEBUG):
        for driver in _DRIVERS:
            logging.getLogger(driver).setLevel(logging.CRITICAL)
