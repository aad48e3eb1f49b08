"""The figure of memory that everything reports."""

from __future__ import annotations

from pathlib import Path

from edge_runtime.system.resident import peak_rss_bytes


def test_peak_is_that_of_the_process() -> None:
    assert 10 * 2**20 < peak_rss_bytes() < 2**40


def test_peak_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert peak_rss_bytes(tmp_path / "nowhere") == 0
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert peak_rss_bytes(tmp_path / "status") == 0
