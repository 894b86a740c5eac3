"""Where the parts are put together: files of packets, or live traffic, to a recording."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bus.address import KafkaSecurity, open_bus, parse_kafka
from bus.logreader import LogReader
from bus.ports import BusError
from capture import goreplay, goreplay_kafka, heap
from capture.assembler import Assembler
from capture.dealer import Dealer
from capture.exchange import Masker
from capture.hearing import StopHeard
from capture.imported import Imported
from capture.importing import Choice, check, gor_values, import_entries, import_gor
from capture.merged import read_into
from capture.output import Output
from capture.progress import Progress
from capture.record import record as record_live
from capture.settings import CaptureSettings, RecordSettings
from capture.source_pcap import PcapSource, digest_of
from wire import topics
from wire.account import Account
from wire.ids import recording_id_of, ulid
from wire.records import Manifest

_PUMP_EVERY = 512  # packets


def import_files(
    paths: Sequence[Path | str],
    to: Path,
    settings: CaptureSettings | None = None,
    masker: Masker | None = None,
    key: bytes = b"",
    *,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Account:
    """Captures (pcap, pcapng, gzipped or not; "-" is stdin) to a recording at `to`; its account.

    `say` gets one line for each thing that is wrong with the input but did not stop the import; `progress` gets
    packets read and exchanges written. Raises ConfigError for input that is no capture, BusError when `to` cannot
    be written or has something in it.
    """
    heap.keep_freed()
    chosen = settings if settings is not None else CaptureSettings()
    if chosen.keep_unpaired is None:
        chosen = msgspec.structs.replace(chosen, keep_unpaired=True)
    now_ns = time.time_ns()
    from_stdin = any(str(path) == "-" for path in paths)
    digests = [] if from_stdin else [digest_of(Path(path)) for path in paths]
    recording_id = ulid(now_ns) if from_stdin else recording_id_of(digests)
    sources = [PcapSource(path) for path in paths]
    assembler = Assembler(recording_id, chosen, masker, key)
    _make_room(Path(to), recording_id)
    inputs = tuple(Path(source.name).name for source in sources)
    output = Output.open(Path(to), recording_id, chosen, created_ns=now_ns, inputs=inputs, masked=masker is not None)
    reason = "failed"
    try:
        packets = _feed(sources, assembler, output, progress)
        reason = "done"
    except KeyboardInterrupt:
        packets, reason = 0, "stopped"
    finally:
        for source in sources:
            for fault, count in source.faults.items():
                assembler.account.note(f"input_{fault}", count)
            if say is not None:
                for line in source.lines:
                    say(line)
        output.end(assembler, reason)
    if progress is not None:
        progress(packets, output.written_exchanges)
    return assembler.account


def import_goreplay(
    address: str,
    to: Path,
    settings: CaptureSettings | None = None,
    masker: Masker | None = None,
    key: bytes = b"",
    *,
    security: KafkaSecurity | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Account:
    """What GoReplay has in the topic of `kafka://host:port/topic` now, to a recording at `to`; its account.

    `progress` gets messages read and exchanges written. Raises BusError, ConfigError.
    """
    from bus.kafka_foreign import foreign_messages

    chosen = settings if settings is not None else CaptureSettings()
    named = parse_kafka(address)
    now_ns = time.time_ns()
    recording_id = ulid(now_ns)
    messages = foreign_messages(named, named.prefix, security)
    first = list(itertools.islice(messages, 1))  # for its errors, before the file is made
    assembler = Assembler(recording_id, chosen, masker, key)
    _make_room(to, recording_id)
    output = Output.open(to, recording_id, chosen, created_ns=now_ns, inputs=(address,), masked=masker is not None)
    values = (message.value for message in itertools.chain(first, messages))
    count = 0
    with _ending(output, assembler):
        count = import_gor(values, assembler, output, goreplay_kafka.feed, progress)
    if progress is not None:
        progress(count, output.written_exchanges)
    return assembler.account


def import_tool(
    paths: Sequence[Path | str],
    to: Path,
    choice: Choice,
    settings: CaptureSettings | None = None,
    masker: Masker | None = None,
    key: bytes = b"",
    *,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Account:
    """Files of other tools (`choice.format` is not `capture`) to a recording at `to`; its account.

    `say` and `progress` as for `import_files`; progress counts lines, entries or GoReplay's records. Raises
    ConfigError for files that are not of that format at all, BusError when `to` cannot be written or is not empty.
    """
    chosen = settings if settings is not None else CaptureSettings()
    now_ns = time.time_ns()
    from_stdin = any(str(path) == "-" for path in paths)
    recording_id = ulid(now_ns) if from_stdin else recording_id_of([digest_of(Path(path)) for path in paths])
    for path in paths:
        if str(path) != "-":
            check(path, choice)
    source = Assembler if choice.format == "goreplay" else Imported
    target = source(recording_id, chosen, masker, key)
    _make_room(Path(to), recording_id)
    inputs = tuple(Path(str(path)).name if str(path) != "-" else "stdin" for path in paths)
    output = Output.open(Path(to), recording_id, chosen, created_ns=now_ns, inputs=inputs, masked=masker is not None)
    count = 0
    with _ending(output, target):
        if isinstance(target, Assembler):
            count = import_gor(gor_values(paths, target.account, say), target, output, goreplay.feed, progress)
        else:
            count = import_entries(paths, choice, target, output, say, progress)
    if progress is not None:  # only the end mark writes what was pending
        progress(count, output.written_exchanges)
    return target.account


@contextmanager
def _ending(output: Output, source: Assembler | Imported) -> Iterator[None]:
    """The recording's end mark says how it ended."""
    reason = "failed"
    try:
        yield
        reason = "done"
    except KeyboardInterrupt:
        reason = "stopped"
    finally:
        output.end(source, reason)


def record(
    settings: RecordSettings,
    masker: Masker | None,
    key: bytes,
    stop: Callable[[], bool],
    progress: Callable[[Progress], None] | None = None,
    *,
    security: KafkaSecurity | None = None,
) -> Account:
    """Live traffic to `settings.to` or `settings.bus`, until `stop()` or `settings.for_ns`; this process's account.

    `progress` is called before the first packet, then once a second. Raises ConfigError, BusError: see
    `capture.record`.
    """
    anchor_ns = time.time_ns() - time.monotonic_ns()
    if not settings.bus:
        bus, heard = None, None
    else:
        bus = open_bus(settings.bus, settings.recording, security)
        heard = StopHeard(lambda: open_bus(settings.bus, topics.FLEET, security), settings.recording, time.time_ns())
    try:
        return record_live(
            settings,
            masker,
            key,
            (lambda: stop() or heard()) if heard is not None else stop,
            progress,
            anchor_ns=anchor_ns,
            host=socket.gethostname(),
            bus=bus,
            wall_ns=time.time_ns,
        )
    finally:
        if heard is not None:
            heard.close()


def drain(settings: RecordSettings, *, security: KafkaSecurity | None = None) -> int:
    """Bring to the bus what a recorder of this name left in its spool; how many bytes of files that was.

    Raises BusAway when the bus does not take it, BusError.
    """
    manifest = Manifest("raw", "0", settings.recording, time.time_ns(), "livefire", (settings.agent,))
    folder = Path(settings.spool).expanduser() / settings.recording
    dealer = Dealer(
        open_bus(settings.bus, settings.recording, security),
        manifest,
        settings.agent,
        folder,
        settings.spool_max_bytes,
        monotonic_ns=time.monotonic_ns,
        skew_ns=lambda: 0,
        only_left=True,
    )
    try:
        found = dealer.left_bytes
        dealer.settle()
        return found
    finally:
        dealer.close()


def _make_room(to: Path, recording_id: str) -> None:
    """What an import of the same files left when it was cut off is made again; nothing else is touched."""
    if not to.is_file() or not to.stat().st_size:
        return
    with LogReader(to) as reader:
        manifest = reader.manifest
        while reader.read():
            pass
        if manifest is None or manifest.owner_id != recording_id or reader.ended:
            raise BusError(f"{to}: is there already; write to another file, or remove it")
    to.unlink()


def _feed(
    sources: Sequence[PcapSource],
    assembler: Assembler,
    output: Output,
    progress: Callable[[int, int], None] | None,
) -> int:
    count = 0
    for read in read_into(sources, assembler, _PUMP_EVERY, assembler.source_over):
        output.pump(assembler, time.monotonic_ns())
        count += read
        if progress is not None and read:
            progress(count, output.written_exchanges)
    return count
