"""What the recorder's bench says of a recording is what the server's log says: it would show a loss."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import pytest
import record
import record_bed as bed
from record_peers import found_in

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_what_the_log_has_and_a_file_has_not_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "a.pcap"
    file.write_bytes(b"\0".join(bed.REQUEST % number + ANSWER for number in range(5)))
    whole = record.verdict([0, 1, 2, 3, 4], found_in(file, "5 packets captured\n0 packets dropped by kernel"))
    assert (whole["lost"], whole["no_answer"], whole["unaccounted"]) == (0, 0, 0)
    short = record.verdict(list(range(8)), found_in(file, ""))
    assert (short["lost"], short["no_answer"], short["unaccounted"]) == (3, 0, 3)
    told = record.verdict(list(range(8)), found_in(file, "2 packets dropped by kernel"))
    assert (told["lost"], told["unaccounted"]) == (3, 1)


def test_an_answer_that_is_not_there_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.gor"
    file.write_bytes(b"".join(bed.FRESH % (number, 7) for number in range(3)) + ANSWER * 2)
    found = record.verdict([0, 1, 2], found_in(file, ""))
    assert (found["lost"], found["no_answer"], found["unaccounted"]) == (0, 1, 1)


@pytest.mark.parametrize("nginx", [True, False])
def test_the_server_logs_what_it_served(tmp_path: Path, nginx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not nginx:
        monkeypatch.setattr(bed, "nginx", lambda: None)
    elif bed.nginx() is None:
        pytest.skip("nginx is not installed")
    server = bed.Server(tmp_path, bed.cores()[0])
    try:
        fired = bed.fire(server.port, 500, 0.1, 4, False)
        assert fired["answered"] == 51
        assert sorted(server.served(51)) == list(range(51))
    finally:
        server.stop()
