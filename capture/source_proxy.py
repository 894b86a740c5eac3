"""Byte streams from the recording proxy: starts its process, reads its frames, feeds the reassembler.

The pipe's reader is the record loop; what it does not read in time fills the proxy's bounded hand-over.
The proxy counts what it passed on by itself, and `finish` holds that against what arrived here.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from bus.ports import BusError
from capture import handover
from capture.handover import FRAME
from capture.proxy import Pair, ProxySettings, Totals
from capture.source import Channel, StreamSink
from wire.account import UNREAD
from wire.config import ConfigError

_READ_BYTES: Final = 1 << 20
_READY_S: Final = 20.0


class ProxySource:
    """Any number of LISTEN=UPSTREAM pairs, in one process of its own. Called by one thread."""

    kernel_times = False
    _kind = "proxy"  # the module that is run, and the interface of what it sees
    _called = "the recording proxy"
    _requests_only = False

    def __init__(
        self,
        pairs: tuple[Pair, ...],
        anchor_ns: int,
        *,
        hand_over_bytes: int = 16 << 20,
        monotonic_ns: Callable[[], int],
        user: str = "",
    ) -> None:
        """Listens when this returns. Raises ConfigError for what cannot be listened on, or is no host to pass on to."""
        for pair in pairs:
            _must_be_there(pair)
        self.totals = Totals()
        self.received_bytes = 0  # of streams, from the proxy
        self._told = Totals()  # what the account knows of
        self._pairs = pairs
        self._monotonic_ns = monotonic_ns
        self._channels: dict[int, Channel] = {}
        self._half_closed: set[int] = set()
        self._buffer = bytearray()
        self._over = False
        settings = ProxySettings(pairs, anchor_ns, hand_over_bytes, user=user)
        home = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"capture.{self._kind}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._out = self._process.stdin, self._process.stdout.fileno()
        os.set_blocking(self._out, False)
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        try:
            self._stdin.write(msgspec.json.encode(settings) + b"\n")
            self._stdin.flush()
            self.ports = self._await_ready()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(
            f"{_text(p.listen_host, p.listen_port)}={_text(p.upstream_host, p.upstream_port)}" for p in self._pairs
        )

    @property
    def described(self) -> str:
        listening = ", ".join(
            f"{_text(pair.listen_host, port)} -> {_text(pair.upstream_host, pair.upstream_port)}"
            for pair, port in zip(self._pairs, self.ports, strict=True)
        )
        return f"proxy {listening}"

    def feed(self, sink: StreamSink, timeout_s: float) -> int:
        """Raises BusError when the proxy has ended by itself."""
        if not self._fill(timeout_s):
            if self._over:
                code = self._process.wait()
                raise BusError(f"{self._called} ended by itself (exit code {code}): its connections are cut")
            return 0
        return self._take(sink)

    def count(self, sink: StreamSink) -> None:
        """Bytes of shed connections were seen, and dropped as such."""
        bytes_, connections = (
            self.totals.shed_bytes - self._told.shed_bytes,
            self.totals.shed_connections - self._told.shed_connections,
        )
        failures = self.totals.upstream_failures - self._told.upstream_failures
        if bytes_:
            ledger = sink.account.ledger("bytes")
            ledger.seen += bytes_
            ledger.drop("shed", bytes_)
            sink.account.note(UNREAD, bytes_)
        if connections:
            sink.account.note("shed_connections", connections)
        if failures:
            sink.account.note("upstream_failures", failures)
        self._told = self.totals

    def finish(self, sink: StreamSink) -> None:
        """No new connections; busy ones go on for up to a second. Then what is missing is counted as seen alone."""
        self._stdin.close()
        until = self._monotonic_ns() + 10_000_000_000
        while not self._over and self._monotonic_ns() < until:
            if self._fill(0.2):
                self._take(sink)
        self.count(sink)
        missing = self.totals.passed_bytes - self.totals.shed_bytes - self.received_bytes
        sink.account.ledger("bytes").seen += missing

    def close(self) -> None:
        if not self._stdin.closed:
            try:
                self._stdin.close()
            except BrokenPipeError:
                pass
        if self._process.poll() is None:
            try:
                self._process.wait(0.2 if self._over else 2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    # -- frames

    def _await_ready(self) -> list[int]:
        until = self._monotonic_ns() + int(_READY_S * 1e9)
        while self._monotonic_ns() < until and not self._over:
            self._fill(0.2)
            if len(self._buffer) < FRAME.size:
                continue
            kind, _, _, length = FRAME.unpack_from(self._buffer)
            if len(self._buffer) < FRAME.size + length:
                continue
            data = bytes(self._buffer[FRAME.size : FRAME.size + length])
            del self._buffer[: FRAME.size + length]
            if kind == handover.READY:
                return msgspec.json.decode(data, type=list[int])
            if kind == handover.FAILED:
                raise ConfigError(f"{self._called} cannot listen on {data.decode()}")
        raise BusError(f"{self._called} did not start")

    def _fill(self, timeout_s: float) -> bool:
        if not self._poll.poll(max(0, round(timeout_s * 1000))):
            return False
        try:
            data = os.read(self._out, _READ_BYTES)
        except BlockingIOError:
            return False
        self._over = not data
        self._buffer += data
        return bool(data)

    def _take(self, sink: StreamSink) -> int:
        buffer, at, taken = self._buffer, 0, 0
        have = len(buffer)
        channels = self._channels
        while have - at >= FRAME.size:
            kind, number, ts_ns, length = FRAME.unpack_from(buffer, at)
            if have - at - FRAME.size < length:
                break
            at += FRAME.size
            taken += 1
            channel = channels.get(number)
            if kind in (handover.FROM_CLIENT, handover.FROM_SERVER):
                self.received_bytes += length
                if channel is not None:
                    with memoryview(buffer) as view:  # a slice of the buffer itself would be one more copy
                        data = bytes(view[at : at + length])
                    channel.data(kind == handover.FROM_CLIENT, data, ts_ns)
                else:  # of a connection that was abandoned: passed on, and nothing that can be reassembled
                    ledger = sink.account.ledger("bytes")
                    ledger.seen += length
                    ledger.drop("after_end", length)
            elif kind == handover.OPENED:
                client, _, server = bytes(buffer[at : at + length]).decode().partition("\0")
                channels[number] = sink.connection_opened(client, server, ts_ns, self._kind)
                if self._requests_only:
                    channels[number].no_answers()
            elif kind == handover.TOTALS:
                self.totals = msgspec.json.decode(bytes(buffer[at : at + length]), type=Totals)
            elif channel is not None:
                self._ended(channel, kind, number, ts_ns)
            at += length
        del buffer[:at]
        return taken

    def _ended(self, channel: Channel, kind: int, number: int, ts_ns: int) -> None:
        if kind in (handover.CLIENT_END, handover.SERVER_END):
            channel.closed(kind == handover.CLIENT_END, ts_ns)
            # The second end takes the channel away; a connection that is reset half way is taken away by that.
            if number in self._half_closed:
                self._half_closed.discard(number)
                del self._channels[number]
            else:
                self._half_closed.add(number)
        elif kind in (handover.RESET, handover.SHED):
            channel.reset(ts_ns)
            self._half_closed.discard(number)
            del self._channels[number]


class MirrorSource(ProxySource):
    """Addresses that gateways mirror their requests to. There are no answers: exchanges have none."""

    _kind = "mirror"
    _called = "the listener for mirrored requests"
    _requests_only = True

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(f"mirror {_text(pair.listen_host, pair.listen_port)}" for pair in self._pairs)

    @property
    def described(self) -> str:
        listening = (_text(pair.listen_host, port) for pair, port in zip(self._pairs, self.ports, strict=True))
        return f"mirror on {', '.join(listening)}: requests only"


def _must_be_there(pair: Pair) -> None:
    if not pair.upstream_host:  # a mirror
        return
    try:
        socket.getaddrinfo(pair.upstream_host, pair.upstream_port, type=socket.SOCK_STREAM)
    except OSError:
        raise ConfigError(f"proxy to {pair.upstream_host}:{pair.upstream_port}: there is no such host") from None


def listeners_of(texts: tuple[str, ...]) -> tuple[Pair, ...]:
    """Addresses to listen on, "host:port" or ":port", with nothing behind them. Raises ConfigError."""
    return tuple(Pair(*_address(text, listen=True), "", 0) for text in texts)


def pairs_of(texts: tuple[tuple[str, str], ...]) -> tuple[Pair, ...]:
    """(listen, upstream) pairs, each "host:port" ("[::1]:80", ":80" to listen everywhere). Raises ConfigError."""
    pairs = []
    for listen, upstream in texts:
        listen_host, listen_port = _address(listen, listen=True)
        upstream_host, upstream_port = _address(upstream, listen=False)
        if (listen_host, listen_port) == (upstream_host, upstream_port) and listen_port:
            raise ConfigError(f"proxy {listen}={upstream}: it would pass everything on to itself")
        pairs.append(Pair(listen_host, listen_port, upstream_host, upstream_port))
    return tuple(pairs)


def _address(text: str, *, listen: bool) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    wrong = not colon or not port.isdigit() or int(port) > 65535 or (not listen and not (host and int(port)))
    if wrong:
        want = "127.0.0.1:8080, [::1]:8080 or :8080" if listen else "127.0.0.1:9080 or [::1]:9080"
        raise ConfigError(
            f"{text!r} is no address to {'listen on' if listen else 'pass on to'}: write host:port (as in {want})"
        )
    return host, int(port)


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
