"""Fixtures of a test session: one server of each kind, or the running one that the environment names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from servers.chdb_child import Chdb
from servers.clickhouse import ClickHouse
from servers.elasticsearch import Elasticsearch
from servers.kafka import Kafka
from servers.process import Missing, Server


class Running(NamedTuple):
    """A server that somebody else runs."""

    address: str


def _one(make: Callable[[], Server], variable: str = "") -> Iterator[Server | Running]:
    if address := os.environ.get(variable):
        yield Running(address)
        return
    with started(make) as server:
        yield server


def started(make: Callable[[], Server]) -> Server:
    """`make()`, or the test is skipped with a line that says how to get what is missing."""
    try:
        return make()
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[Server | Running]:
    yield from _one(Kafka, "LIVEFIRE_KAFKA")


@pytest.fixture(scope="session")
def elasticsearch_server() -> Iterator[Server | Running]:
    yield from _one(Elasticsearch, "LIVEFIRE_ELASTICSEARCH")


@pytest.fixture(scope="session")
def clickhouse_server() -> Iterator[Server | Running]:
    yield from _one(ClickHouse, "LIVEFIRE_CLICKHOUSE")


@pytest.fixture(scope="session")
def chdb_server() -> Iterator[Server | Running]:
    yield from _one(Chdb)
