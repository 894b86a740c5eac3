"""Cleanses a recording on a bus of files: the pipeline of single batches in a plain loop, in one process.

Where it stood is read from what it wrote: each message names the one that it was made from. A message of `raw` may
become several, and a kill may leave some of them unwritten, so the last one is done again, and what is there already
is left out. Nothing is missing, nothing is there twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from bus.highwater import HighWater
from bus.ports import Bus, BusError, Message, Reader, Writer
from cleanse.stream import STAGE, WRITER, Output, StreamPipeline
from wire import codec, topics
from wire.account import Account
from wire.codec import RecordType
from wire.records import Manifest
from wire.streams import agent_of, clean_stream

_POLL_S: Final = 0.1
#: Written by the writer that opens a stream, or known to stand behind its manifest.
_HEAD: Final = (RecordType.ROUTE_TABLE, RecordType.FLOWS)


class LoopResult(msgspec.Struct, frozen=True):
    messages: int  # of raw, cleansed now
    dead: int  # of them, dead letters
    whole: bool  # every raw stream has ended and is cleansed to its end


def run(bus: Bus, name: str, pipeline: StreamPipeline, stop: Callable[[], bool] = lambda: False) -> LoopResult:
    """Cleanse recording `name` until it is whole or `stop` says so. Raises BusError."""
    loop = _Loop(bus, name, pipeline)
    try:
        while not stop():
            moved = loop.step()
            if loop.whole:
                break
            if not moved:
                time.sleep(_POLL_S)
        return LoopResult(loop.messages, loop.dead, loop.whole)
    finally:
        loop.close()


class _Loop:
    def __init__(self, bus: Bus, name: str, pipeline: StreamPipeline) -> None:
        self.messages = 0
        self.dead = 0
        self._bus, self._name, self._pipeline = bus, name, pipeline
        self._readers: dict[str, Reader] = {}
        self._agents: set[str] = set()
        self._writers: dict[tuple[str, str], Writer] = {}
        self._seen = HighWater()
        self._ended: set[str] = set()  # clean streams that are whole
        self._headed: set[tuple[str, RecordType]] = set()
        self._damaged: dict[str, int] = {}

    @property
    def whole(self) -> bool:
        """Every agent that the recording names is there, and every stream is cleansed to its end."""
        here = {agent_of(stream) for stream in self._readers}
        return bool(self._readers) and self._agents <= here and all(r.ended for r in self._readers.values())

    def step(self) -> bool:
        """What is there now. False when there was nothing."""
        for stream in self._bus.partitions(topics.RAW):
            if stream not in self._readers:
                self._readers[stream] = self._bus.reader(topics.RAW, stream, self._resume(stream))
        moved = False
        for reader in self._readers.values():
            for message in reader.read():
                moved = True
                self._do(message, reader)
        return moved

    def _resume(self, stream: str) -> int:
        """Where to go on: the last message of the raw stream of which anything was written, again."""
        last = 0
        for topic, names in (
            (topics.CLEAN, [clean_stream(stream, j) for j in range(self._pipeline.width)]),
            (topics.DEAD, [stream]),
        ):
            there = set(self._bus.partitions(topic))
            for name in names:
                if name not in there:
                    continue
                reader = self._bus.reader(topic, name)
                while messages := reader.read():
                    for message in messages:
                        last = max(last, self._known(topic, name, message))
                if reader.ended:
                    self._ended.add(name)
                reader.close()
        return last

    def _known(self, topic: str, name: str, message: Message) -> int:
        try:
            header = codec.decode_header(message.data)
        except codec.CodecError:
            return 0
        if header.type in _HEAD:
            self._headed.add((name, header.type))
        if not header.sources:
            return 0
        self._seen.is_new(f"{topic}/{name}", header.sources)
        return max(source.first for source in header.sources)

    def _do(self, message: Message, reader: Reader) -> None:
        if reader.manifest is not None:
            self._agents.update(reader.manifest.hosts)
        self.messages += 1
        try:
            outputs = self._pipeline.apply(message)
        except codec.CodecError as error:
            self.dead += 1
            outputs = self._pipeline.poison(message, str(error))
        for output in outputs:
            self._write(message, output)

    def _write(self, message: Message, output: Output) -> None:
        key = (output.topic, output.stream)
        if output.stream in self._ended and output.topic == topics.CLEAN:
            return
        header = codec.decode_header(output.data)
        if header.type is RecordType.MANIFEST:
            if key not in self._writers:
                (manifest,) = codec.decode(output.data, header).records
                self._writers[key] = self._bus.writer(*key, manifest)
            return
        if header.type in _HEAD:
            if (output.stream, header.type) in self._headed:
                return
            self._headed.add((output.stream, header.type))
        elif not self._seen.is_new(f"{output.topic}/{output.stream}", header.sources):
            return
        writer = self._writers.get(key) or self._open(message, output)
        if header.type is RecordType.END:
            self._note_damage(message.partition, writer)
            (end,) = codec.decode(output.data, header).records
            writer.end(end)
            self._ended.add(output.stream)
        else:
            writer.write(output.data)

    def _open(self, message: Message, output: Output) -> Writer:
        """Of a stream whose manifest was written before, or that begins with something else."""
        raw = self._readers[message.partition].manifest
        if raw is None:
            raise BusError(f"recording {self._name}: raw stream {message.partition} has no manifest that can be read")
        if output.topic == topics.CLEAN:
            manifest = self._pipeline.heads(raw, message.partition)[output.partition]
        else:
            manifest = Manifest(topics.DEAD, output.stream, raw.owner_id, raw.created_ns, WRITER, inputs=(STAGE,))
        writer = self._writers[output.topic, output.stream] = self._bus.writer(output.topic, output.stream, manifest)
        return writer

    def _note_damage(self, stream: str, writer: Writer) -> None:
        """Damaged places of a file are known to its reader alone; one of its clean streams tells of them."""
        damaged = getattr(self._readers[stream], "corrupt_frames", 0)
        if damaged > self._damaged.get(stream, 0):
            self._damaged[stream] = damaged
            account = Account()
            account.note("damaged_frames", damaged)
            writer.write_records((), RecordType.ACCOUNT, increment=account.take())

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        for writer in self._writers.values():
            writer.close()
