"""What Maven fetches, and where it lies. Tests only look; `make servers` fetches."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from servers.process import Missing, cache

HERE = Path(__file__).resolve().parent
_WHOLE = ".whole"  # holds the pom that it was fetched with


def _pom(name: str) -> Path:
    return HERE / f"pom_{name}.xml"


def _place(name: str) -> Path:
    version = re.search(r"<server\.version>(.*?)<", _pom(name).read_text())
    assert version, name
    return cache() / f"{name}-{version[1]}"


def _is_whole(folder: Path, name: str) -> bool:
    mark = folder / _WHOLE
    return mark.is_file() and mark.read_text() == _pom(name).read_text()


def fetched(name: str) -> Path:
    """The folder of what `make servers` fetched. Raises Missing."""
    folder = _place(name)
    if not _is_whole(folder, name):
        raise Missing(f"{name.capitalize()} is not in {cache()}: make servers")
    return folder


def fetch(name: str) -> str:
    """Fetches it, when it is not there yet. Raises Missing when Maven is, and says what was done."""
    folder = _place(name)
    if _is_whole(folder, name):
        return f"{folder} is there"
    mvn = shutil.which("mvn")
    if mvn is None:
        raise Missing(f"{name.capitalize()} is fetched with Maven: sudo apt-get install -y maven")
    cache().mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache()))
    try:
        argv = (mvn, "-B", "-ntp", "-q", "-f", _pom(name), f"-Dto={new}", "generate-resources")
        subprocess.run(tuple(map(str, argv)), check=True)
        new.chmod(0o755)
        _readable_by_all(new)
        (new / _WHOLE).write_text(_pom(name).read_text())
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)  # whole or not at all
    except subprocess.CalledProcessError as error:
        raise Missing(f"Maven could not fetch {name} (exit code {error.returncode}, its words are above)") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return f"{folder} is new"


def _readable_by_all(top: Path) -> None:
    """Elasticsearch runs as another account when root starts it."""
    for root, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(root, name)
            mode = path.stat().st_mode
            path.chmod(stat.S_IMODE(mode) | 0o444 | (0o111 if stat.S_ISDIR(mode) or mode & 0o100 else 0))
