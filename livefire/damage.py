"""What is damaged in a run's books, so that whoever reads them is told what is not there."""

from __future__ import annotations

from pathlib import Path

from bus.logfile import FileBus
from wire import topics


def damage_of(run_dir: Path) -> list[str]:
    """One line for each file of claims or outcomes with damaged bytes: they are skipped, all else is read."""
    found = []
    for folder in (run_dir / "canary", run_dir):
        bus = FileBus(folder)
        for topic in (topics.CLAIMS, topics.OUTCOMES):
            for worker in bus.partitions(topic):
                with bus.reader(topic, worker) as reader:
                    while reader.read():
                        pass
                if reader.corrupt_frames:
                    places = "place" if reader.corrupt_frames == 1 else "places"
                    found.append(
                        f"{bus.path(topic, worker)}: {reader.corrupt_frames} damaged {places}, "
                        f"{reader.corrupt_bytes} bytes skipped; all else was read"
                    )
    return found
