"""What is masked. `mask.yaml` holds the same names; see docs/masking.md."""

from __future__ import annotations

from typing import Literal

import msgspec

Pattern = Literal["jwt", "entropy", "uuid", "card", "email", "phone"]
PATTERNS: tuple[Pattern, ...] = ("jwt", "entropy", "uuid", "card", "email", "phone")


class MaskSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Load with `wire.config.load_file(path, MaskSettings)`. The defaults mask more than most need: fail closed."""

    fields: tuple[str, ...] = ()
    """Further names of fields, parameters and cookies whose values are secret, beside the common ones. Case and
    punctuation do not count: `pass_phrase` names `passPhrase` too."""

    keep_fields: tuple[str, ...] = ()
    """Names that are common for secrets, but hold none here. Their values are still searched for patterns."""

    allow_headers: tuple[str, ...] = ()
    """Headers, beside those of the protocol, whose values are written as they are."""

    allow_cookies: tuple[str, ...] = ()
    """Cookies whose values are written as they are."""

    patterns: tuple[Pattern, ...] = PATTERNS
    """What counts as a secret wherever it stands. Take `uuid` out if the ids of your catalogue are UUIDs: masked ids
    of things that were there before the recording find nothing when they are replayed."""

    scan_text: bool = True
    """Search text that is neither JSON nor a form (HTML, XML, plain) for patterns."""
