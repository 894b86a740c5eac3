"""What a driver that only logs lets one tell: who is refused, and who is merely hung up on."""

from __future__ import annotations

import logging

import pytest
from kafka.errors import KafkaTimeoutError

from bus.address import parse_kafka
from bus.kafka_link import listen, told
from bus.ports import BusAway

ADDRESS = parse_kafka("kafka://127.0.0.1:9")
HUNG_UP = "Connection failed: KafkaConnectionError: socket disconnected"
DENIED = "Bootstrap connection to x failed: SaslAuthenticationFailedError: no"


@pytest.mark.parametrize(
    ("lines", "sasl", "met", "refused"),
    [
        ([HUNG_UP, HUNG_UP], True, False, True),
        ([HUNG_UP, HUNG_UP], True, True, False),  # let in before: a broker ends
        ([HUNG_UP, HUNG_UP], False, False, False),  # no password that could be wrong
        ([HUNG_UP], True, False, False),
        ([DENIED], True, True, True),
        ([DENIED], False, False, False),  # said of another connection of this process
    ],
)
def test_only_who_was_never_let_in_is_refused_by_being_hung_up_on(
    lines: list[str], sasl: bool, met: bool, refused: bool
) -> None:
    listen()
    for line in lines:
        logging.getLogger("kafka.net.connection").error(line)
    error = told(ADDRESS, KafkaTimeoutError(), sasl=sasl, met=met)
    assert isinstance(error, BusAway) != refused
    assert ("refuse user or password" in str(error)) == refused
    listen()
