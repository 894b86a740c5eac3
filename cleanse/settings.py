"""What cleanse leaves out and how it names routes. A rules file (YAML) holds the same names; each has a good default:

server: [":8080"]                       # keep only what was sent to these
drop:                                   # leave out, with the name as the reason in the account
  - {name: health, method: GET, path: /health*}
  - {name: broken, status: 5xx, server: ":8081"}
drop_static: true
routes: ["GET /shop/{slug}"]            # patterns that are known; the others are learned
rename: {"GET /shop/{slug}": "shop page"}
"""

from __future__ import annotations

import msgspec

_MIB = 1 << 20


class Drop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exchanges to leave out: those to which everything that is given applies."""

    name: str = "rule"  # the reason in the account
    method: str | None = None
    path: str | None = None  # as in a shell: /health*, /static/*.png; * matches slashes too
    status: int | str | None = None  # 404, or 5xx
    server: str | None = None  # ip:port, or :port


class CleanseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: tuple[str, ...] = ()
    drop: tuple[Drop, ...] = ()
    drop_static: bool = False  # images, fonts, styles, scripts
    routes: tuple[str, ...] = ()
    rename: dict[str, str] = {}
    learn_flows: bool = True
    min_support: int = 2  # how often a value must come back for a flow to be learned
    max_baseline_bytes: int = 64 << 10
    memory_bytes: int = 192 * _MIB  # what is held while sorting; beyond, runs are written beside the output
    batch_records: int = 256
    batch_bytes: int = 2 * _MIB
