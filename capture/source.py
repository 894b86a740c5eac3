"""What a live source is: something that the record loop lets feed an assembler, a little at a time."""

from __future__ import annotations

from typing import Protocol

from capture.lane import Lane
from wire.account import Account


class PacketSink(Protocol):
    """What packets are handed to: the assembler, or a test."""

    @property
    def account(self) -> Account:
        """What is counted here besides what was handed over."""

    @property
    def lane(self) -> Lane | None:
        """As `frames.Sink`: who reads Ethernet frames where they stand; what it does not take is for `packet`."""

    def packet(self, ts_ns: int, data: bytes, wire_len: int, linktype: int = 1, interface: str = "") -> None:
        """`data` begins with the link header; never raises on what is in it."""

    def kernel_dropped(self, count: int) -> None:
        """So many more packets were seen by the kernel and lost."""


class Channel(Protocol):
    """One connection whose bytes are handed over in order."""

    def data(self, from_client: bool, data: bytes, ts_ns: int) -> None: ...

    def no_answers(self) -> None:
        """Only requests pass here: each is complete when it is whole. Said before any data."""

    def closed(self, from_client: bool, ts_ns: int) -> None:
        """That direction is complete."""

    def reset(self, ts_ns: int) -> None:
        """Both directions ended abruptly."""


class StreamSink(Protocol):
    """What byte streams are handed to: the assembler, or a test."""

    @property
    def account(self) -> Account:
        """What is counted here besides what was handed over."""

    def connection_opened(self, client: str, server: str, ts_ns: int, interface: str = "") -> Channel:
        """Addresses are "ip:port", IPv6 in brackets."""


class Sink(PacketSink, StreamSink, Protocol):
    """Both: the assembler."""


class Source(Protocol):
    """Calls come from one thread. Memory is bounded by the source itself."""

    @property
    def described(self) -> str:
        """A few words for the user: "ring on eth0 (32 MB)"."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Where it records, for the manifest."""

    @property
    def kernel_times(self) -> bool:
        """Its times are the system's clock as it goes, not the anchor carried on."""

    def feed(self, sink: Sink, timeout_s: float) -> int:
        """Wait up to `timeout_s` for something, hand a bounded amount of it on; how many packets or pieces.

        Raises BusError when the source is gone for good.
        """

    def count(self, sink: Sink) -> None:
        """Account for what was lost so far on the way here. Called about once a second, and before `finish` ends."""

    def finish(self, sink: Sink) -> None:
        """Take in nothing new, hand on what is there already, and account for what is missing."""

    def close(self) -> None: ...
