"""`livefire mock`: recorded answers of a third party, served to stress traffic."""

from __future__ import annotations

import sys

import click

from bus.address import open_bus
from bus.ports import Bus
from livefire import keyring
from livefire.options import on_bus
from livefire.settings import Resolved
from livefire.story import Story
from livefire_shadow.settings import Settings as ShadowSettings
from mock import app
from mock.settings import Settings


@click.command("mock")
@click.argument("recording", nargs=-1, required=True)
@click.option("--listen", required=True, metavar="HOST:PORT", help="Where to answer.")
@click.option("--server", multiple=True, metavar="IP:PORT", help="The third party as it was recorded; repeatable.")
@click.option("--no-latency", is_flag=True, help="Answer at once, not as slowly as was recorded.")
@click.option("--stdin-guard", is_flag=True, help="Stop when stdin closes: for a supervisor.")
@on_bus
@click.pass_obj
def command(
    resolved: Resolved,
    recording: tuple[str, ...],
    listen: str,
    server: tuple[str, ...],
    no_latency: bool,
    stdin_guard: bool,
) -> None:
    """Serve a third party's recorded answers to marked requests. What matches nothing gets 501; nothing is passed on.

    \b
    livefire mock monday.lf --server 10.0.0.7:8443 --listen 127.0.0.1:9090
    livefire mock monday --bus kafka://broker:9092 --server 10.0.0.7:8443 --listen 127.0.0.1:9090
    """
    ring = keyring.load(resolved.settings.keys_path)
    settings = Settings(
        listen=listen,
        recordings=recording,
        servers=server,
        latency_factor=0.0 if no_latency else 1.0,
        stdin_guard=stdin_guard,
    )
    story = Story(sys.stderr)
    shadow = ShadowSettings.from_env("mock", {"LIVEFIRE_SHADOW_KEYS": ring.shadow_keys()})
    bus = resolved.settings.bus

    def opened(name: str) -> Bus:
        return open_bus(bus, name, resolved.settings.kafka_security)

    say = None if stdin_guard else story.line
    app.serve(settings, shadow, announce=say, open_bus=opened if bus else None)
