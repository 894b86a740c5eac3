"""Exit codes, and how a wrong input is told: one clear line, exit code 2."""

from __future__ import annotations

from typing import Final

import click

from analytics.store_port import StoreError
from bus.ports import BusError
from wire.codec import CodecError
from wire.config import ConfigError

OK: Final = 0
USAGE: Final = 2
INCONCLUSIVE: Final = 96
STOPPED: Final = 97
VIOLATED: Final = 98
THRESHOLD: Final = 99
INTERRUPTED: Final = 130  # as shells report SIGINT

#: What a user can mend. Everything else is a bug, and shows its traceback.
USER_ERRORS: Final = (BusError, CodecError, ConfigError, StoreError)


class UserError(click.ClickException):
    """One line on stderr, exit code 2."""

    exit_code = USAGE

    def show(self, file: object = None) -> None:
        click.echo(f"livefire: {self.message}", err=True)


class Exit(click.exceptions.Exit):
    """End with this code."""
