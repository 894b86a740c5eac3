"""What a driver that only logs lets one tell: who is refused, who is merely hung up on, and whose words they are."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path

import pytest
from kafka.errors import KafkaTimeoutError

from bus.address import KafkaSecurity, parse_kafka
from bus.kafka_link import told
from bus.kafka_security import security_options
from bus.kafka_words import Words
from bus.ports import BusAway, BusError

ADDRESS = parse_kafka("kafka://127.0.0.1:9")
HUNG_UP = "Connection failed: KafkaConnectionError: socket disconnected"
DENIED = "Bootstrap connection to x failed: SaslAuthenticationFailedError: no"
NO_TLS = (
    "Connection failed: KafkaConnectionError: Handshake failed: [SSL: UNEXPECTED_EOF_WHILE_READING] EOF (_ssl.c:1006)"
)
UNTRUSTED = (
    "Connection failed: KafkaConnectionError: Handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] "
    "certificate verify failed: self-signed certificate (_ssl.c:1006)"
)


def said_of(words: Words, *lines: str) -> None:
    """As the driver's thread of that client says it."""

    def say() -> None:
        for line in lines:
            logging.getLogger("kafka.net.manager").error("%s", line)

    thread = threading.Thread(target=say, name=f"kafka-io-{words.client}")
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    ("lines", "sasl", "met", "says"),
    [
        ([HUNG_UP, HUNG_UP], True, False, "refuse user or password"),
        ([HUNG_UP, HUNG_UP], True, True, ""),  # let in before: a broker ends
        ([HUNG_UP, HUNG_UP], False, False, ""),  # no password that could be wrong
        ([HUNG_UP], True, False, ""),
        ([DENIED], True, True, "refuse user or password"),
        ([NO_TLS, NO_TLS], True, False, "does not speak TLS"),
        ([NO_TLS, NO_TLS], True, True, ""),  # a broker ends in the middle of a handshake
        ([NO_TLS], True, False, ""),
        ([UNTRUSTED], False, False, "certificate is not trusted: self-signed certificate (kafka_security: ca)"),
    ],
)
def test_what_waiting_does_not_mend_is_told_apart(lines: list[str], sasl: bool, met: bool, says: str) -> None:
    words = Words()
    said_of(words, *lines)
    error = told(ADDRESS, KafkaTimeoutError("x"), words, sasl=sasl, met=met)
    assert isinstance(error, BusAway) == (not says) and says in str(error)


def test_words_are_those_of_one_connection() -> None:
    """Two clusters in one process: what is said of one is not told of the other."""
    ours, others = Words(), Words()
    said_of(others, DENIED, HUNG_UP)
    assert (ours.text, ours.verdict(ADDRESS, sasl=True, met=False)) == ("", None)
    assert others.verdict(ADDRESS, sasl=True, met=False) is not None


def test_an_alert_of_tls_that_is_taken_for_a_frame_is_told_as_what_it_is() -> None:
    for length, says in ((0x15030300, True), (0x15030100, True), (0x16FFFFFF, False), (4, False)):
        words = Words()
        said_of(words, f"Connection failed: InvalidReceiveError: Invalid frame length: {length}")
        error = told(ADDRESS, KafkaTimeoutError("x"), words, met=False)
        assert isinstance(error, BusAway)
        assert ("does it want TLS" in str(error)) is says, error


def test_papers_that_cannot_be_used_are_told_before_any_broker_is_asked(tmp_path: Path) -> None:
    """The driver says of them what it says of brokers that are away: who waits for those would wait for ever."""
    (tmp_path / "empty.pem").write_bytes(b"")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
    empty, binary = str(tmp_path / "empty.pem"), str(tmp_path / "binary")
    for security, says in (
        (KafkaSecurity(ca=empty), f"kafka_security: {empty}: cannot be used: "),
        (KafkaSecurity(cert=empty), f"kafka_security: {empty}: cannot be used: "),
        (KafkaSecurity(tls=True, ca=str(tmp_path / "none.pem")), "kafka_security: there is no file "),
        (KafkaSecurity(mechanism="PLAIN", user="a", password_file=binary), f"kafka_security: {binary}: is no text"),
    ):
        with pytest.raises(BusError, match=re.escape(says)) as error:
            security_options(security)
        assert not isinstance(error.value, BusAway) and "\n" not in str(error.value)
