"""The options that every command shares which writes what it saw: --unmasked and --mask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from livefire import keyring
from livefire.settings import Resolved
from mask.masker import Masker
from mask.settings import MaskSettings
from wire import config

F = TypeVar("F", bound=Callable[..., Any])


def masking_options(function: F) -> F:
    function = click.option(
        "--mask",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A mask.yaml: more names of secret fields, more headers to keep.",
    )(function)
    return click.option(
        "--unmasked", is_flag=True, help="Write values as they were seen, secrets too. Only for data without any."
    )(function)


def masker_for(resolved: Resolved, unmasked: bool, mask: Path | None) -> tuple[Masker | None, bytes]:
    """The masker (None: --unmasked was asked for), and the key that session ids and tokens are made with."""
    path = resolved.settings.keys_path
    ring, made = keyring.load_or_make(path)
    if made:
        click.echo(
            f"livefire: made a key file, {path}; recorders of the same system share it (livefire keys)", err=True
        )
    if unmasked:
        return None, ring.masking_key
    settings = config.load_file(mask, MaskSettings) if mask is not None else MaskSettings()
    return Masker(ring.masking_key, settings), ring.masking_key
