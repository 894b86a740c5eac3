"""Names of topics: where stages meet."""

from __future__ import annotations

from typing import Final

RAW: Final = "raw"
CLEAN: Final = "clean"
CLAIMS: Final = "claims"
OUTCOMES: Final = "outcomes"
PANES: Final = "panes"
DROPPED: Final = "dropped"
DEAD: Final = "dead"
CONTROL: Final = "control"
BEATS: Final = "beats"
SAMPLES: Final = "samples"
EXEMPLARS: Final = "exemplars"
AUDIT: Final = "audit"

#: The scope of what concerns no single run: idle workers, plans, recorders, `livefire stop --all`.
FLEET: Final = "fleet"

ALL: Final = (
    RAW, CLEAN, CLAIMS, OUTCOMES, PANES, DROPPED, DEAD, CONTROL, BEATS, SAMPLES, EXEMPLARS, AUDIT,
)  # fmt: skip
