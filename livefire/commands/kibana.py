"""`livefire kibana`: data views and dashboards for Kibana."""

from __future__ import annotations

from pathlib import Path

import click

from analytics.fields import NAME
from analytics.kibana.address import base_address
from analytics.kibana.dashboards import dashboard_id, exported
from livefire.errors import Group, UserError
from livefire.kibana import import_objects
from livefire.settings import Resolved

_INDICES = click.option(
    "--name", default=NAME, metavar="NAME", help=f"What names of indices begin with (default: {NAME})."
)


@click.group("kibana", cls=Group)
def command() -> None:
    """Data views and dashboards for Kibana 8.9 and later.

    \b
    livefire kibana install https://kibana.example:5601
    livefire kibana export --to livefire.ndjson
    """


@command.command("install")
@click.argument("url", required=False)
@click.option(
    "--api-key",
    envvar="LIVEFIRE_KIBANA_API_KEY",
    metavar="KEY",
    help="An encoded API key; better in LIVEFIRE_KIBANA_API_KEY, where other users of the machine do not see it.",
)
@click.option(
    "--space", default="", metavar="NAME", help="The space (default: the address's own, else the default one)."
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Certificates (PEM) of the authority that signed Kibana's.",
)
@_INDICES
@click.pass_obj
def install(resolved: Resolved, url: str | None, api_key: str | None, space: str, ca: Path | None, name: str) -> None:
    """Import them, over those of an earlier release. URL: default is the setting `kibana`.

    \b
    export LIVEFIRE_KIBANA_API_KEY=...
    livefire kibana install https://kibana.example:5601 --space ops --ca ca.pem
    """
    address = url or resolved.settings.kibana
    if not address:
        raise UserError("which Kibana? livefire kibana install https://kibana.example:5601")
    base = base_address(address, space)
    count = import_objects(base, exported(name), api_key=(api_key or "").strip(), ca=ca)
    click.echo(f"{base}: {count} objects are in")
    click.echo(f"open {base}/app/dashboards#/view/{dashboard_id('drill', name)}")


@command.command("export")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="The file to write (default: stdout).")
@_INDICES
def export(to: Path | None, name: str) -> None:
    """Write the file that Kibana imports (Stack Management, Saved Objects, Import).

    \b
    livefire kibana export --to livefire.ndjson
    """
    text = exported(name)
    if to is None:
        click.get_text_stream("stdout", encoding="utf-8").write(text)
        return
    to.write_text(text, "utf-8")
    click.echo(f"{to}: {text.count(chr(10))} objects")
