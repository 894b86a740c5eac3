"""The checks of `fault_stores.py` see what they look for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fault_stores
from fault_checks import until
from store_books import Books, Stores, cell_problems, cells_of


def test_cells_that_differ_are_told(tmp_path):
    with Books(str(tmp_path / "bus"), 7) as books:
        until(lambda: books.count >= 200, 20, "nothing is written")
    panes = books.panes()
    found = cells_of(panes)
    assert cell_problems(found, books.cells) == []
    assert len(cell_problems(found + found, books.cells)) == 7  # twice
    assert len(cell_problems(cells_of(panes[1:]), books.cells)) >= 1  # something is lost
    (moved,) = cell_problems(found - Counter({max(found): 1}) + Counter({("unknown", "GET /x", 1): 1}), books.cells)[
        -1:
    ]
    assert "2 cells are wrong" in moved or "1 cells are wrong" in moved


def killed_once(folder: Path, servers: dict[str, str], python: Sequence[str]) -> str:
    """What is wrong after a kill of an aggregator that had taken something in."""
    folder.mkdir()
    bus = str(folder / "bus")
    with Stores(folder, **servers) as stores, Books(bus, 11) as books:
        first = fault_stores.Aggregator(folder, bus, books.run_id, stores, python)
        try:
            for name in stores.addresses:
                until(lambda: stores.held(name, books.run_id), 60, "nothing arrives", first.said)  # noqa: B023
        finally:
            first.kill()
        books.end()
        second = fault_stores.Aggregator(folder, bus, books.run_id, stores, python)
        try:
            return " ".join(second.ended() + stores.problems(books))
        finally:
            second.kill()


def test_an_aggregator_that_forgets_what_it_has_taken_in_is_found_out(
    tmp_path, clickhouse_server, elasticsearch_server
):
    """In both databases it counts twice; what keeps its books otherwise passes, as does one that does not forget."""
    servers = {"clickhouse": clickhouse_server.address, "elasticsearch": elasticsearch_server.address}
    assert killed_once(tmp_path / "careful", servers, ()) == ""
    found = killed_once(tmp_path / "forgetful", servers, fault_stores.FORGETFUL)
    for name in ("ClickHouse: offered", "ClickHouse: ns", "Elasticsearch: offered", "Elasticsearch, tumbling_10s"):
        assert name in found
    assert "file: " not in found
