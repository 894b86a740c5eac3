"""The live answer beside the recorded one: status, then length.

Lengths are of bodies as they were on the wire, de-chunked and not content-decoded. They are taken for equal when they
differ by at most SLACK_BYTES or by `tolerance` of the recorded length, whichever is more: tokens, dates and
compression change a few bytes of answers that say the same.
"""

from __future__ import annotations

from typing import Final

from wire.records import Baseline, Verdict

SLACK_BYTES: Final = 64


def compare(baseline: Baseline, status: int, body_bytes: int, *, tolerance: float = 0.1) -> Verdict:
    """`status` 0 = no live answer. NONE when one of the two answers is not there."""
    if not status or not baseline.status:
        return Verdict.NONE
    if status != baseline.status:
        return Verdict.STATUS
    if baseline.body_bytes < 0:  # a log told the status alone
        return Verdict.SAME
    if abs(body_bytes - baseline.body_bytes) > max(SLACK_BYTES, tolerance * baseline.body_bytes):
        return Verdict.LENGTH
    return Verdict.SAME
