"""`livefire keys`: the keys that mask values and sign markers."""

from __future__ import annotations

import json

import click

from livefire import keyring
from livefire.errors import Group, UserError
from livefire.settings import Resolved


@click.group("keys", cls=Group)
def command() -> None:
    """The keys that mask values and sign markers; the file is readable by you alone.

    \b
    livefire keys new                       make a key file
    livefire keys export                    what a service under test needs: LIVEFIRE_SHADOW_KEYS
    """


@command.command("new")
@click.option("--rotate-marker", is_flag=True, help="Put a new marker key first; the old ones still verify.")
@click.pass_obj
def new(resolved: Resolved, rotate_marker: bool) -> None:
    """Make a key file, or put a new marker key into it.

    \b
    livefire keys new --rotate-marker
    """
    path = resolved.settings.keys_path
    if rotate_marker:
        ring = keyring.load(path)
        ring = keyring.Keyring(ring.masking, (keyring.new_marker_key(), *ring.markers))
    elif path.exists():
        raise UserError(f"{path}: exists already (a new masking key would change every token); see: livefire keys show")
    else:
        ring = keyring.new()
    keyring.save(path, ring)
    click.echo(f"{path}: signs with {ring.marker.id}, masks with {keyring.fingerprint(ring.masking)}")


@command.command("show")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def show(resolved: Resolved, as_json: bool) -> None:
    """Ids and fingerprints; never a key.

    \b
    livefire keys show
    """
    path = resolved.settings.keys_path
    ring = keyring.load(path)
    shown = {
        "file": str(path),
        "masking": keyring.fingerprint(ring.masking),
        "markers": [{"id": key.id, "fingerprint": keyring.fingerprint(key.key)} for key in ring.markers],
    }
    if as_json:
        click.echo(json.dumps(shown))
        return
    click.echo(f"{path}\nmasking  {shown['masking']}")
    for place, key in enumerate(ring.markers):
        click.echo(f"marker   {keyring.fingerprint(key.key)}  {key.id}{'  signs' if place == 0 else ''}")


@command.command("export")
@click.option("--masking", is_flag=True, help="The masking key, for another recorder of the same system.")
@click.pass_obj
def export(resolved: Resolved, masking: bool) -> None:
    """Print keys, for a secret store: this is the only command that shows them.

    \b
    export LIVEFIRE_SHADOW_KEYS=$(livefire keys export)
    """
    ring = keyring.load(resolved.settings.keys_path)
    click.echo(ring.masking if masking else ring.shadow_keys())


@command.command("import")
@click.argument("masking", default="-", metavar="[KEY]")
@click.pass_obj
def import_(resolved: Resolved, masking: str) -> None:
    """Take over another recorder's masking key (hex), so that both give the same tokens. It is read from stdin: what
    stands on a command line can be seen by everybody on the machine.

    \b
    ssh other livefire keys export --masking | livefire keys import
    """
    path = resolved.settings.keys_path
    if masking == "-":
        masking = click.get_text_stream("stdin").readline().strip()
    try:
        if len(bytes.fromhex(masking)) < 16:
            raise ValueError
    except ValueError:
        raise UserError(
            "a masking key is 32 or more hex characters, as printed by: livefire keys export --masking"
        ) from None
    ring, _ = keyring.load_or_make(path)
    keyring.save(path, keyring.Keyring(masking, ring.markers))
    click.echo(f"{path}: masks with {keyring.fingerprint(masking)}")
