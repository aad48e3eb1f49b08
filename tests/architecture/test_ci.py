"""What ``.ci/run`` must not let pass: a stage that failed, and a test that skipped for want of a program."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = ("bash", "dirname", "id", "mktemp", "rm", "tail", "tee")


@pytest.fixture
def few_tools(tmp_path: Path) -> Path:
    """A folder for the PATH with hardly anything: no qemu, no Python."""
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path


@pytest.mark.parametrize(
    ("status", "message"), [(100, "FAILED in system with status 100"), (0, "FAILED in system with status 1")]
)
def test_an_installation_that_fails_stops_it(root: Path, few_tools: Path, status: int, message: str) -> None:
    """Status 0: the installation says that it went well, and the tool is not there all the same."""
    for name in ("apt-get", "sudo"):
        (few_tools / name).write_text(f"#!/bin/bash\nexit {status}\n")
        (few_tools / name).chmod(0o755)

    done = subprocess.run(
        ["bash", str(root / ".ci/run")], env={"PATH": str(few_tools)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    ("ci", "reason", "code"),
    [("true", "mosquitto is not installed", 1), ("", "mosquitto is not installed", 0), ("true", "no GPU here", 0)],
)
def test_a_test_that_skips_for_want_of_a_program_fails_in_ci(
    root: Path, tmp_path: Path, ci: str, reason: str, code: int
) -> None:
    file = tmp_path / "test_skipped.py"
    file.write_text(f"import pytest\n\ndef test_it():\n    pytest.skip({reason!r})\n")
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), "-p", "no:cacheprovider", "-p", "tests.conftest"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)],
        cwd=root,
        env=os.environ | {"CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == code, done.stdout
