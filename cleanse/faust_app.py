"""Faust round the relay: our options, what an acknowledgement waits for, and an end that comes when it is due."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from bus import kafka_layout as layout
from bus.address import KafkaSecurity
from bus.kafka_layout import Entry
from bus.ports import BusAway, BusError
from cleanse.relay import Relay, Sending
from cleanse.signs import SignsOfLife
from cleanse.stream import WRITER

if TYPE_CHECKING:  # drivers are imported where they are used: cleansing a file needs none
    from bus.kafka_link import Link
    from bus.kafka_streams import Streams

_SESSION_S: Final = 8.0
_STOP_S: Final = 5.0  # for what is under way, and for Faust to commit and to leave its group; then it is cut off
_THREAD_S: Final = 3.0  # of it, for a thread of Faust's
_LOOK_S: Final = 0.1  # how often `stop` is asked


class Shell:
    """Faust round the relay. It commits past what an agent raised for, so nothing is raised: an input is acknowledged
    when its outputs, or its dead letter, are written, and where neither can be the worker ends.

    One input of a partition is under way at a time, so that outputs stand in its order; those of different partitions
    are written side by side.
    """

    def __init__(
        self, link: Link, streams: Streams, relay: Relay, stop: Callable[[], bool], told: Callable[[str], None]
    ) -> None:
        self.messages = 0
        self._link, self._streams, self._relay, self._stop, self._told = link, streams, relay, stop, told
        self._known: set[bytes] = set()  # streams that are in the directory
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._app: Any = None

    async def run(self, app: Any, topic: str) -> None:
        """Until `stop` says so. Raises BusError when the worker cannot go on."""
        self._app = app

        @app.agent(app.topic(topic, internal=False, key_type=bytes, value_type=bytes), concurrency=1)  # type: ignore
        async def cleanse_messages(stream: Any) -> None:
            stream = stream.noack()
            async for event in stream.events():
                place = event.message.partition
                if before := self._under_way.get(place):
                    await before
                self._under_way[place] = asyncio.create_task(self._do(stream, event))

        crash: BaseException | None = None
        starting = asyncio.create_task(app.start())
        signs: SignsOfLife | None = None
        try:
            while not self._stop() and not app.should_stop:
                if signs is None and starting.done():
                    starting.result()
                    self._told("ready")
                    signs = SignsOfLife(self._told)
                await asyncio.sleep(_LOOK_S)
                if signs is not None:
                    signs.look(self.messages, self._relay.dead)
            crash = app.crash_reason
        finally:
            # Threads and tasks of Faust's do not end in order when it has crashed, or the brokers are gone. Why it ends
            # is told by our own line.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            threading.excepthook = lambda _: None
            sys.unraisablehook = lambda _: None
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            await self._leave(app)
        if crash is not None:
            raise crash if isinstance(crash, BusError) else BusError(f"{self._link.address}: {crash}")

    async def _leave(self, app: Any) -> None:
        """In order, or when the time for that is up as it is."""
        until = time.monotonic() + _STOP_S
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=_STOP_S / 2)
        await asyncio.wait([asyncio.create_task(app.stop())], timeout=until - time.monotonic())
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=max(until - time.monotonic(), _LOOK_S))

    async def _do(self, stream: Any, event: Any) -> None:
        message = event.message
        headers = _pairs(message.headers)
        try:
            sendings = self._relay.relay(message.key, message.value, headers, message.offset, message.partition)
            try:
                await self._write(sendings)
            except _TooLarge as error:
                reason = f"the brokers refuse what it becomes: {error}"
                await self._write(self._relay.refused(message.key, message.value, headers, message.offset, reason))
            self.messages += 1
            await stream.ack(event)
        except Exception as error:
            await self._app.crash(error)

    async def _write(self, sendings: Sequence[Sending]) -> None:
        """Returns when all are written, and in the directory."""
        producer = self._app.producer
        futures = [await producer.send(s.topic, s.key, s.value, s.partition, None, s.headers) for s in sendings]
        written: list[Any] = await asyncio.gather(*futures, return_exceptions=True)
        for result in written:
            if isinstance(result, BaseException):
                raise (_TooLarge(result) if "TooLarge" in type(result).__name__ else result)
        firsts: dict[bytes, tuple[Sending, int]] = {}
        for sending, result in zip(sendings, written, strict=True):
            if sending.ends or sending.key not in self._known:
                firsts.setdefault(sending.key, (sending, int(result.offset)))
        while firsts:
            try:
                await asyncio.to_thread(self._register, list(firsts.values()))
                return
            except BusAway:  # the input waits; what is written already is not written again
                if self._stop():
                    raise
                await asyncio.sleep(_LOOK_S)

    def _register(self, news: Sequence[tuple[Sending, int]]) -> None:
        """Tell the directory of streams. An entry that is there stays: the stream begins where it was first written."""
        with self._link.lock:
            self._streams.refresh()
            for sending, offset in news:
                known = self._streams.get(sending.key)
                entry = known.entry if known is not None else Entry("released", WRITER, 1, sending.partition, offset)
                if sending.ends:
                    entry = msgspec.structs.replace(entry, state="ended", last=offset)
                if known is None or entry != known.entry:
                    self._streams.put(sending.key, entry)
                self._known.add(sending.key)


class _TooLarge(Exception):
    """A message that the brokers do not take."""


def _pairs(headers: Any) -> list[tuple[str, bytes | None]]:
    return list(headers.items() if isinstance(headers, dict) else headers or ())


def faust_app(link: Link, group: str, worker: str, folder: str, security: KafkaSecurity | None) -> Any:
    import faust

    from bus.kafka_security import security_options

    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        for driver in ("aiokafka", "faust", "mode"):  # an outage would fill the user's terminal with repeats
            logging.getLogger(driver).setLevel(logging.CRITICAL)
    _leave_threads()
    options = security_options(security or KafkaSecurity())
    context = None
    if "SSL" in options["security_protocol"]:
        context = ssl.create_default_context(cafile=options.get("ssl_cafile"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    credentials: Any = None
    if "sasl_mechanism" in options:
        credentials = faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=context,
        )
    elif context is not None:
        credentials = faust.SSLCredentials(context)
    return faust.App(
        group,
        broker=";".join(f"kafka://{server}" for server in link.address.servers),
        broker_credentials=credentials,
        datadir=folder,
        key_serializer="raw",
        value_serializer="raw",
        broker_commit_interval=0.5,
        # A killed worker's partitions go to others after this; under its own name it has them back at once.
        broker_session_timeout=_SESSION_S,
        broker_heartbeat_interval=_SESSION_S / 4,
        broker_request_timeout=30.0,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=f"{group}.{worker}",
        consumer_max_fetch_size=layout.TOPIC_BYTES,
        producer_acks=-1,
        producer_max_request_size=layout.TOPIC_BYTES,
        stream_buffer_maxsize=64,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
    )


def run_app(work: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run`, but what has not ended when the work has is left: some of Faust's tasks do not heed that they
    are cancelled when the brokers are gone, and `asyncio.run` waits for them for ever."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(work)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _leave_threads() -> None:
    """Faust waits for its threads where it stops, its event loop with it, and they wait for brokers that may be gone:
    from now on for a while only, and the process ends without them. What they had not committed comes again, and what
    it becomes has the same numbers: readers see it once."""
    from mode.threads import ServiceThread, WorkerThread

    class Left(WorkerThread):
        def __init__(self, service: Any, **more: Any) -> None:
            super().__init__(service, **more)
            self.daemon = True

        def stop(self) -> None:
            self.is_stopped.wait(_THREAD_S)

    ServiceThread.Worker = Left
