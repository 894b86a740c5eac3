"""Exit codes, and how a wrong input is told: one clear line, exit code 2."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from analytics.store_port import StoreError
from bus.ports import BusError
from wire.codec import CodecError
from wire.config import ConfigError, suggestion

OK: Final = 0
USAGE: Final = 2
INCONCLUSIVE: Final = 96
STOPPED: Final = 97
VIOLATED: Final = 98
THRESHOLD: Final = 99
INTERRUPTED: Final = 130  # as shells report SIGINT

#: What a user can mend. Everything else is a bug, and shows its traceback.
USER_ERRORS: Final = (BusError, CodecError, ConfigError, StoreError)


#: What the machine refuses, and the user can mend. Other errors of the system are bugs here.
_REFUSED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_NAMES: Final = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}
_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}
_MENDABLE: Final = _REFUSED | _NAMES | _ROOM | {errno.EADDRINUSE, errno.EADDRNOTAVAIL}
_ADVICE: Final[Mapping[int, str]] = {
    errno.ENOSPC: "; make some room and try again",
    errno.EMFILE: "; raise it: ulimit -n 8192",
}


def line_of(error: OSError) -> str | None:
    """One line for what the machine refused; None for what is a bug."""
    if error.errno not in _MENDABLE:
        return None
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOENT and error.filename and not (folder := Path(str(error.filename)).parent).is_dir():
        return f"{where}there is no folder {folder}"
    return f"{where}{words_of(error)}"


def name_line(error: UnicodeEncodeError) -> str | None:
    """One line for a name of a file that cannot be written into what others read; None for what is a bug."""
    if "surrogates" not in error.reason:
        return None
    name = error.object.encode("utf-8", "backslashreplace").decode()
    return f"{name}: this name is not UTF-8; rename it and try again"


def words_of(error: OSError) -> str:
    """What the machine refused, and what to do about it, without a name."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):  # where a folder is made, or looked into
        return "there is a file where a folder should be"
    return os.strerror(error.errno or 0).lower() + _ADVICE.get(error.errno or 0, "")


def usage_line(error: click.UsageError) -> str:
    """One line for a wrong command line: what is wrong, what was probably meant, where to read."""
    command = error.ctx.command_path if error.ctx else "livefire"
    text = " ".join(error.format_message().split())
    if isinstance(error, click.NoSuchOption):
        near = suggestion(error.option_name, list(error.possibilities or _options_of(error.ctx)))
        text = f"no option {error.option_name}{near if 'did you mean' in near else ''}"
        if error.ctx and error.option_name in _options_of(error.ctx.find_root()):
            text = (
                f"{error.option_name} stands before the command: livefire {error.option_name} ... {error.ctx.info_name}"
            )
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        text = f"{error.param.get_error_hint(error.ctx) if error.ctx else error.param.name} is missing".replace("'", "")
    return f"{command}: {text.rstrip('.')} (see {command} --help)"


def _options_of(context: click.Context | None) -> list[str]:
    return [name for parameter in context.command.params for name in parameter.opts] if context else []


class Group(click.Group):
    """A command of commands; for a word that is none of them it names the near one."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            near = suggestion(args[0], list(self.commands))
            raise UserError(f"no command '{context.info_name} {args[0]}'{near}")
        return super().resolve_command(context, args)


class UserError(click.ClickException):
    """One line on stderr, exit code 2."""

    exit_code = USAGE

    def show(self, file: object = None) -> None:
        click.echo(f"livefire: {self.message}", err=True)


class Exit(click.exceptions.Exit):
    """End with this code."""
