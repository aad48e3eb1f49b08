"""Logs stay one line a record."""

from __future__ import annotations

import logging
import sys

from edge_runtime.bounds.plain import PlainFormatter


def formatted(message: str, *, with_traceback: bool = False) -> str:
    try:
        raise ValueError("x")  # noqa: EM101, TRY301 - to have one
    except ValueError:
        info = sys.exc_info() if with_traceback else None
    record = logging.LogRecord("a", logging.INFO, "file", 1, "%s", (message,), info)
    return PlainFormatter("%(levelname)s %(message)s").format(record)


def test_a_record_is_one_line_that_steers_nothing() -> None:
    assert formatted("done\n2026-01-01 INFO forged \x1b[2J") == "INFO done\\n2026-01-01 INFO forged \\x1b[2J"


def test_a_traceback_keeps_its_lines() -> None:
    lines = formatted("a\nb", with_traceback=True).splitlines()
    assert lines[0] == "INFO a\\nb"
    assert lines[-1] == "ValueError: x"
