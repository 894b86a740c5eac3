"""Runs one server for the process that asked for it, and ends it when that process ends, however it ends.

    python keeper.py REPORT_FD ASKER FOLDER USER COMMAND...

Tells the server's pid on REPORT_FD (a pipe). Its own exit code is the server's (128 + N after signal N). USER: the
account to run as, or "-". When ASKER (a pid, its parent) is gone, the server's whole process group is killed and
FOLDER removed: a pytest that was killed with -9 leaves neither a Java machine nor its data.

Why a process between: PR_SET_PDEATHSIG strikes when the *thread* that forked ends, macOS has none, and nobody would
remove the folder.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

_GONE_S = 10.0  # a killed group is gone by then, or what remains are zombies that nobody collects


def _dies_with_the_keeper() -> Callable[[], None] | None:
    """For the case that the keeper itself is killed. It has one thread, so that PR_SET_PDEATHSIG means the process."""
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    return lambda: prctl(1, signal.SIGKILL)


def _until_one_ends(server: subprocess.Popen[bytes], asker: int) -> None:
    fds: list[int] = []
    try:
        fds += [os.pidfd_open(server.pid), os.pidfd_open(asker)]
    except (AttributeError, OSError):  # not on Linux, or the asker is gone already
        while server.poll() is None and os.getppid() == asker:
            time.sleep(0.1)
    else:
        if os.getppid() == asker:
            select.select(fds, (), ())
    for fd in fds:
        os.close(fd)


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """A launcher's server may outlive the launcher."""
    deadline = time.monotonic() + _GONE_S
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: no permission for zombies
        while time.monotonic() < deadline:
            os.killpg(server.pid, signal.SIGKILL)
            server.poll()  # a zombie would be of the group still
            time.sleep(0.02)


def main() -> int:
    report, asker, folder, user, *command = sys.argv[1:]
    drop: dict[str, object] = {}
    if user != "-":
        import pwd

        entry = pwd.getpwnam(user)
        drop = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    server = subprocess.Popen(command, start_new_session=True, preexec_fn=_dies_with_the_keeper(), **drop)  # type: ignore[call-overload]
    os.write(int(report), b"%d\n" % server.pid)
    os.close(int(report))
    _until_one_ends(server, int(asker))
    _end_group(server)
    code: int = server.wait()
    if os.getppid() != int(asker):
        shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
