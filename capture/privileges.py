"""Who goes on recording when the sockets are open: nobody needs the right to open them any more.

A packet ring takes CAP_NET_RAW, a low port root, and both only once. What recording writes is given to the user first,
so that it is theirs, and can be gone on with by them.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from wire.config import ConfigError


class User(msgspec.Struct, frozen=True):
    name: str
    uid: int
    gid: int


def is_root() -> bool:
    return os.geteuid() == 0


def user_of(name: str) -> User | None:
    """The user to become, by name or number; None when this process is theirs already. Raises ConfigError for one that
    is not there, or that this process may not become."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise ConfigError(f"user {name!r}: there is none of that name here (nobody is one)") from None
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise ConfigError(f"user {name!r}: only root can become another user; leave --user out, or begin as root")
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid)


def give(path: Path, user: User, ours: Sequence[str] = ()) -> None:
    """A file, or a folder and the files in it whose names match `ours`, to that user. The folder stays whose it is when
    it holds anything else: it may be everybody's. What is not there is passed over. Raises ConfigError when that is not
    permitted."""
    given = [path]
    if path.is_dir() and not path.is_symlink():
        inside = list(path.iterdir())
        given = [each for each in inside if any(each.match(name) for name in ours)]
        given += [path] if len(given) == len(inside) else []
    for each in given:
        with contextlib.suppress(FileNotFoundError), _permitted(user):
            os.chown(each, user.uid, user.gid, follow_symlinks=False)


@contextlib.contextmanager
def _permitted(user: User) -> Iterator[None]:
    """In a container root may lack the rights of root."""
    try:
        yield
    except PermissionError:
        raise ConfigError(
            f"user {user.name!r}: this root may not become another user (CAP_CHOWN, CAP_SETUID and CAP_SETGID are "
            "needed); give them to the container, or leave --user out"
        ) from None


def become(user: User, writes: Path | None = None) -> None:
    """For good: this process, all its threads. Raises ConfigError when that is not permitted, or `writes`, a folder, is
    out of their reach."""
    with _permitted(user):
        os.initgroups(user.name, user.gid)
        os.setgid(user.gid)
        os.setuid(user.uid)
    if (os.getuid(), os.geteuid(), os.getgid()) != (user.uid, user.uid, user.gid):
        raise ConfigError(f"user {user.name!r}: the system did not let go of root")
    if writes is not None and not os.access(writes, os.W_OK | os.X_OK):
        raise ConfigError(f"{writes}: {user.name} cannot write there; another folder, or --user root")
