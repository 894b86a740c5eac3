"""Where the corpus of captures is, for tests; it is not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parent.parent.parent / "shared" / "corpus"


def corpus(part: str) -> Path:
    """The folder of that part; skips where there is none."""
    folder = Path(os.environ.get("LIVEFIRE_CORPUS") or _DEFAULT) / part
    if folder.is_dir():
        return folder
    pytest.skip(
        f"no corpus at {folder}: set LIVEFIRE_CORPUS to a folder that holds {part}/ (captures with expectations)"
    )
