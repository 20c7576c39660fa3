"""The comparison with peers: its table, and that changepair's side returns what it is asked for. The peers need `make bench-peers`."""

from __future__ import annotations

import sys
from pathlib import Path

import peers
import pytest
from peers_work import vectors


def test_a_table_replaces_the_one_on_the_page_and_nothing_else(tmp_path: Path) -> None:
    before, _start, rest = peers.PAGE.read_text(encoding="utf-8").partition(peers.START)
    after = rest.partition(peers.END)[2]
    page = tmp_path / "peers.md"
    page.write_text(peers.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    for table in ("| one |", "| another |"):
        peers.write(page, table)
        assert page.read_text(encoding="utf-8") == f"{before}{peers.START}\n{table}\n{peers.END}{after}"
    page.write_text(before, encoding="utf-8")
    with pytest.raises(ValueError, match="no markers"):
        peers.write(page, "| one |")


def test_a_row_states_how_many_times_as_fast_changepair_is() -> None:
    row = str(peers.Row("search", "faiss", 1, 20.0, 50.0, memory=(300.0, 600.0), difference=2e-7))
    assert row == "| search | faiss | 1 | 20.0 ms | 50.0 ms | 2.50 × | 300; 600 (0.50 ×) | 2e-07 |"
    assert " 0.50 × " in str(peers.Row("rate", "anomalib", 1, 10.0, 20.0, unit="pictures/s"))
    assert row.count("|") == peers.HEAD.count("|")


def test_a_process_returns_values_seconds_and_memory(tmp_path: Path) -> None:
    worker = peers.Worker(sys.executable, "nearest-faiss-384-4", "ours", tmp_path, 1)
    query, memory = (vectors(count * 1024, 384, seed) for seed, count in enumerate((1, 4)))
    assert worker.values == pytest.approx((query @ memory.T).amax(dim=1).tolist(), abs=1e-6)
    assert 0 < worker.answer("seconds") < 60 and worker.answer("memory") > 50
    worker.close()


def test_a_process_that_fails_is_an_error_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no-such-case"):
        peers.Worker(sys.executable, "no-such-case", "ours", tmp_path, 1)
