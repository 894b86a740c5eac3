"""Cleanses a recording: a raw file becomes a clean one, or messages of a Kafka topic those of another, under Faust."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from bus import kafka_layout as layout
from bus.address import KafkaAddress, KafkaSecurity
from bus.doubts import doubts_of
from bus.logfile import LogReader
from bus.order import Sorter
from bus.parts import parts_of
from bus.ports import BusAway, BusError, BusHeld
from cleanse import files
from cleanse.faust_app import Shell, faust_app, run_app
from cleanse.learned import Learned
from cleanse.pipeline import Pipeline
from cleanse.relay import Relay
from cleanse.rules.unreplayable import started_ns
from cleanse.settings import CleanseSettings
from cleanse.stream import WRITER, StreamPipeline
from cleanse.summary import CleanseResult, summary_lines
from wire import topics
from wire.account import Account, kept_and_shed, kept_share
from wire.records import Manifest

if TYPE_CHECKING:  # drivers are imported where they are used: cleansing a file needs none
    from bus.kafka import KafkaBus

__all__ = ["CleanseResult", "StreamResult", "cleanse", "cleanse_stream", "summary_lines"]

_T = TypeVar("_T")

_TOPICS: Final = (topics.RAW, topics.CLEAN, topics.DEAD, layout.STREAMS)
_HELD_S: Final = 6.0  # the hold of a killed worker of this name lapses within this
_MET_S: Final = 15.0  # at its start: brokers may be starting too, or busy
_LOOK_S: Final = 0.1  # how often it is asked again, and `stop`


def cleanse(
    source: Path,
    to: Path,
    settings: CleanseSettings | None = None,
    until_ns: int | None = None,
    from_ns: int | None = None,
) -> CleanseResult:
    """Read the raw recording `source` (a file, or a folder of its files) as far as it is written now, write the clean
    one `to`, sorted by time.

    Exchanges that began after `until_ns` or before `from_ns` (epoch ns) are left out. `to` appears when it is whole:
    until then its name ends in .part. Raises BusError for files that cannot be used, ConfigError for rules that
    cannot be meant.
    """
    settings = settings or CleanseSettings()
    if to.exists():
        raise BusError(f"{to}: exists already; remove it, or write to another file")
    part = to.with_name(to.name + ".part")
    parts = parts_of(source)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(LogReader(path, topic=topics.RAW)) for path in parts]
        manifests = [files.manifest_of(reader, path) for reader, path in zip(readers, parts, strict=True)]
        manifest = manifests[0]
        pipeline = Pipeline(settings, manifest.owner_id, until_ns, from_ns)
        sorter = Sorter(settings.memory_bytes, to.with_name(to.name + ".runs"), started_ns)
        try:
            captured = Account()
            for number, reader in enumerate(readers):
                files.read(reader, number, pipeline, sorter, captured)
            for entry in sorter:
                pipeline.learn(entry.record)
            # Left over by a cleanse that was killed: its work is done again from the start.
            part.unlink(missing_ok=True)
            partitions = [manifest.partition for manifest in manifests]
            # What the recorder shed was production's load, too: 1x is to be production's rate.
            scale = manifest.scale * kept_share(kept_and_shed(captured.ledgers, captured.notes))
            manifest = msgspec.structs.replace(manifest, scale=scale, created_ns=time.time_ns())
            result = files.write(part, manifest, source, pipeline, sorter, settings, partitions)
            result = msgspec.structs.replace(result, doubts=tuple(doubts_of(readers)))
            os.replace(part, to)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            sorter.close()
    return result


# ---------------------------------------------------------------------------- on Kafka


def cleanse_stream(
    address: KafkaAddress,
    settings: CleanseSettings,
    learned: Learned,
    *,
    worker: str,
    security: KafkaSecurity | None = None,
    recording: str = "",
    from_ns: int | None = None,
    until_ns: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    told: Callable[[str], None] = lambda line: None,
) -> StreamResult:
    """Cleanse what comes into the raw topic, beside other workers of the cluster, until `stop` says so.

    `worker` is this one's own name among all that run: with the same name again after a kill it goes on at once;
    others take over within seconds. `recording`: only that one. When it is to stop it does within ten seconds, also
    when the brokers are gone. Raises BusError where topics are missing, BusHeld where the name is taken, BusAway.
    """
    try:
        from bus.kafka import KafkaBus
        from bus.kafka_streams import Streams

        importlib.import_module("faust")
    except ImportError as error:
        raise BusError(f"{address}: {error.name} is not installed: pip install 'livefire[kafka,faust]'") from None
    fleet = KafkaBus(address, topics.FLEET, security)
    link = fleet.link
    try:
        topic = {name: layout.kafka_topic(address.prefix, name) for name in _TOPICS}
        counts = _patiently(lambda: {name: link.count(topic[name]) for name in _TOPICS}, stop, told)
        _patiently(lambda: _hold(fleet, worker, recording, stop), stop, told)
        pipeline = StreamPipeline(
            settings,
            learned,
            counts[topics.CLEAN],
            from_ns=from_ns,
            until_ns=until_ns,
            max_bytes=layout.MAX_MESSAGE_BYTES,
        )
        relay = Relay(pipeline, address.prefix, counts[topics.DEAD], recording)
        shell = Shell(link, Streams(link), relay, stop, told)
        with tempfile.TemporaryDirectory(prefix="livefire-cleanse-") as folder:
            group = f"{address.prefix}.cleanse" + (f".{recording}" if recording else "")
            what = f"recording {recording}" if recording else "all recordings"
            told(f"{address}: cleanses {what}, from where group {group} stands, as {worker}")
            run_app(shell.run(faust_app(link, group, worker, folder, security), topic[topics.RAW]))
    finally:
        fleet.close()
    return StreamResult(shell.messages, relay.dead)


def _patiently(call: Callable[[], _T], stop: Callable[[], bool], told: Callable[[str], None]) -> _T:
    """What a worker asks before it has begun, asked again while no broker answers. Raises BusAway when none did for
    `_MET_S`, and when it is to stop."""
    deadline = time.monotonic() + _MET_S
    waits = False
    while True:
        try:
            return call()
        except BusAway as error:
            if stop() or time.monotonic() >= deadline:
                raise
            if not waits:
                told(f"{error}; asks again for {_MET_S:.0f} s")
            waits = True
        time.sleep(_LOOK_S)


def _hold(fleet: KafkaBus, worker: str, recording: str, stop: Callable[[], bool]) -> None:
    """Be the only worker of this name, until the bus is closed: two would take each other's partitions, without a word.

    The hold of one that was killed lapses within seconds. Raises BusHeld, BusAway.
    """
    name = f"cleanse.{worker}" + (f":{recording}" if recording else "")
    manifest = Manifest(topics.AUDIT, name, topics.FLEET, time.time_ns(), WRITER)
    deadline = time.monotonic() + _HELD_S
    while True:
        try:
            fleet.writer(topics.AUDIT, name, manifest)
            return
        except BusHeld as error:
            if time.monotonic() >= deadline or stop():
                raise BusHeld(f"another cleanser of the name {worker} runs ({error}); --worker another") from None
        time.sleep(_LOOK_S)


class StreamResult(msgspec.Struct, frozen=True):
    messages: int  # of raw
    dead: int  # of them, dead letters
