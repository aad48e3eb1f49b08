"""docs/exit-codes.md has one section for each exit code, and none more."""

from __future__ import annotations

import re
from pathlib import Path

from edge_runtime.errors import ExitCode

PAGE = Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md"


def test_every_exit_code_has_its_section_and_no_section_is_left_over() -> None:
    sections = re.findall(r"^## (\d+) `(\w+)`$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert sections == [(str(int(code)), code.name) for code in ExitCode]


def test_every_section_says_what_to_do() -> None:
    sections = re.split(r"^## \d+ `\w+`$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]

    assert all("**Do:**" in section for section in sections)
