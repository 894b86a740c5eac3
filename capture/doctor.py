"""What this machine can record, and what to do about each lack. `livefire doctor` prints it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from capture.source_ring import explained, open_error
from wire.compiled import ROOT, VARIABLE, modules, stale

_CAPABILITIES = {"cap_net_raw": 13, "cap_net_admin": 12}


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor."""

    name: str
    good: bool
    says: str
    remedy: str = ""  # what to do when it is not good


def findings() -> list[Finding]:
    """All of them, in the order in which they are printed. Never raises."""
    return [ring(), capabilities(), packet_path()]


def ring() -> Finding:
    """Whether packets can be captured, by opening a packet socket."""
    error = open_error()
    if error is None:
        return Finding("packet ring", True, "packets can be captured")
    remedy = "record by proxy (needs no right), or pipe: ssh host tcpdump -U -w - | livefire import -"
    return Finding("packet ring", False, f"packets cannot be captured: {explained(error)}", remedy)


def packet_path(root: Path = ROOT) -> Finding:
    """Whether what reads packets is compiled; and why not. Slower is not wrong, so it is never a lack."""
    if changed := stale(root):
        says = f"interpreted: changed since it was compiled: {', '.join(path.stem for path in changed)} (make native)"
    elif not modules(root):
        says = "interpreted (compiled it takes half the CPU: make native)"
    else:
        says = f"interpreted, as {VARIABLE} asks for" if os.environ.get(VARIABLE) else "compiled"
    return Finding("packet path", True, says)


def capabilities(status: Path = Path("/proc/self/status")) -> Finding:
    """The effective capabilities that capturing asks for (capabilities(7))."""
    try:
        lines = status.read_text().splitlines()
        mask = int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16)
    except (OSError, StopIteration, ValueError, IndexError):
        return Finding("capabilities", sys.platform != "linux", "this system has none to ask for")
    held = [name for name, bit in _CAPABILITIES.items() if mask >> bit & 1]
    return Finding(
        "capabilities",
        "cap_net_raw" in held,
        ", ".join(held) if held else "none of those that capturing needs",
        "" if "cap_net_raw" in held else "sudo, or AmbientCapabilities=CAP_NET_RAW in the systemd unit",
    )
