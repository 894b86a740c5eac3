"""Names of streams: whose a stream is, and what it was made from. A stream is a partition of a topic, with one writer.

An agent `web-1` deals what it records over the raw streams `web-1.0`, `web-1.1` ...; what is cleansed of `web-1.3`
goes to the clean streams `web-1.3.0`, `web-1.3.1` ..., one for each partition of `clean`. A dead letter from offset 17
of `web-1.3` that is tried again later is a stream beside it, `web-1.3.r17`.
"""

from __future__ import annotations

import re
from typing import Final

_RETRIED = re.compile(r"(.+)\.r\d+")

#: In the settings of a clean stream's manifest: how many clean streams are made of one raw stream.
CLEAN_WIDTH: Final = "clean_partitions"
#: Notes of a clean stream's account that name the servers of what stays: "server.10.0.0.1:80".
SERVER_NOTE: Final = "server."
#: Notes of a clean stream's account, by ledger of its recorder: what that kept, and shed. Of both is its scale.
RECORDED_NOTE: Final = "recorded."
SHED_NOTE: Final = "recorded.shed."


def clean_stream(raw: str, j: int) -> str:
    return f"{raw}.{j}"


def raw_stream(clean: str) -> str:
    """The raw stream that a clean one is made from."""
    return clean.rpartition(".")[0] or clean


def agent_of(raw: str) -> str:
    """The agent that writes a raw stream."""
    raw = parent_of(raw)
    stem, _, number = raw.rpartition(".")
    return stem if stem and number.isdigit() else raw


def retried_stream(raw: str, offset: int) -> str:
    """The stream of one dead letter that is tried again."""
    return f"{raw}.r{offset}"


def parent_of(raw: str) -> str:
    """The raw stream that a retried one belongs to; any other is its own."""
    match = _RETRIED.fullmatch(raw)
    return match[1] if match else raw
