"""The firer, a process of its own: `python -m replay.firer`, started by the feeder, which it hears on stdin.

It ends when its stdin closes. Exit codes: 0 it said goodbye or the feeder is gone, 2 the target is refused.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import sys
from typing import Final

import msgspec

from replay import pipes, targets
from replay.clock import clock_of
from replay.firing import Firer
from replay.pipes import FrameType, PipeReader, PipeWriter
from replay.pool import make_poller
from wire.config import ConfigError

_CHUNK: Final = 1 << 16  # read from the feeder in one tick: about 100 shots, 0.2 ms


def raise_open_files() -> None:
    """A connection is a descriptor: take as many as the system lets us without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            pass


def main() -> int:
    reader = PipeReader(0, _CHUNK)
    frames: list[tuple[int, bytes]] = []
    while not frames and not reader.ended:
        select.select((reader.fd,), (), ())
        frames = reader.read(1)
    if not frames or frames[0][0] != FrameType.CONFIG:
        return 2
    settings = msgspec.json.decode(frames[0][1], type=pipes.FirerSettings)
    # The address is judged again in the process that connects to it.
    host = f"[{settings.address}]" if ":" in settings.address else settings.address
    try:
        targets.admit(
            f"http://{host}:{settings.port}",
            refused_sources=settings.refused_sources,
            named_sources=settings.named_sources,
            pinned=settings.address,
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    raise_open_files()
    writer = PipeWriter(os.dup(1))
    os.dup2(2, 1)  # whatever prints by mistake must not land between frames
    firer = Firer(settings, reader, writer, make_poller(), clock_of(settings.anchor_ns))
    firer.take_frames(frames[1:])
    # Nothing here makes cycles (a closed connection lets go of its parser), so the collector would only cost pauses.
    gc.collect()
    gc.freeze()
    gc.disable()
    firer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
