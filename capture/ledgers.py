"""The ledgers of capture, each exact: packets, payload bytes, messages, connections.

    packets      seen = emitted (TCP segments that were read) + drops + in_flight (fragments that wait)
    bytes        TCP payload as it was on the wire: seen = emitted (in messages of exchanges) + drops + in_flight
    messages     heads that were recognised: seen = emitted (in exchanges) + drops + in_flight
    connections  that were met: seen = emitted (an exchange of it was recorded) + drops + in_flight (open)

What is in flight is not computed from the rest: it is counted where it waits, so that a byte lost on the way shows as a
difference. Bytes and packets that were never seen (gaps) balance nothing and are notes.
"""

from __future__ import annotations

from wire.account import Account

#: Drops of bytes and messages that a user asked for, or that are no traffic to be recorded.
INTENTIONAL = frozenset(
    {
        "tls", "http2", "not_http", "tunnel", "not_tcp", "not_ip", "not_selected", "blank", "keepalive", "duplicate",
        "stress", "empty",
        "not_sampled", "not_method", "not_path", "not_header", "not_cookie",
        "thrift", "dubbo", "redis", "mysql", "postgresql", "mongodb", "amqp", "mqtt", "ssh",
    }
)  # fmt: skip


class Ledgers:
    """The account, with its ledgers at hand."""

    __slots__ = ("account", "bytes", "connections", "kept", "messages", "packets")

    def __init__(self) -> None:
        self.account = Account()
        self.packets = self.account.ledger("packets")
        self.bytes = self.account.ledger("bytes")
        self.messages = self.account.ledger("messages")
        self.connections = self.account.ledger("connections")
        self.kept = 0  # body bytes in memory, of messages that are not over: what `max_total_bytes` bounds

    def drop_packet(self, reason: str, count: int = 1) -> None:
        self.packets.drop(reason, count, intentional=reason in INTENTIONAL)

    def drop_bytes(self, reason: str, count: int) -> None:
        self.bytes.drop(reason, count, intentional=reason in INTENTIONAL)

    def drop_messages(self, reason: str, count: int) -> None:
        self.messages.drop(reason, count, intentional=reason in INTENTIONAL)

    def drop_connection(self, reason: str) -> None:
        self.connections.drop(reason, intentional=reason in INTENTIONAL)
