"""Faults that ``.ci/run`` must not let pass: a stage that failed, and a test that skipped for want of a program."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = ("bash", "cat", "dirname", "id", "mktemp", "rm", "tail", "tee")


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


def run_stages(root: Path, script: str) -> subprocess.CompletedProcess[str]:
    """A script with the stages of ``.ci/run``."""
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source {shlex.quote(str(root / '.ci/stages'))}; {script}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_lanes_run_side_by_side_and_bear_their_names(root: Path) -> None:
    """Each waits for a file that the other makes."""
    meet = 'touch "$work/$1"; until [ -e "$work/$2" ]; do sleep 0.05; done; echo "met $2"'
    script = f"meet() {{ {meet}; }}; a() {{ stage one meet 1 2; stage two true; }}; b() {{ stage three meet 2 1; }}"

    done = run_stages(root, f'{script}; lane a; lane b; join; echo passed; cat "$work/summary"')

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"[a] met 2", "[b] met 1"} <= set(lines[: lines.index("passed")])
    assert {line.split()[0] for line in lines[lines.index("passed") + 1 :]} == {"one", "two", "three"}


def test_a_lane_that_fails_stops_there_and_fails_the_whole_when_the_others_are_done(root: Path) -> None:
    script = "bad() { echo reason; return 7; }; a() { stage one bad; stage two true; }; b() { stage three sleep 1; }"

    done = run_stages(root, f"{script}; lane a; lane b; join; stage four true")

    assert done.returncode == 1
    assert "FAILED in one with status 7" in done.stderr
    assert "one failed; its last lines\nreason\n" in done.stderr
    assert "three" in done.stderr
    assert "== two" not in done.stdout
    assert "== four" not in done.stdout


def test_a_lane_that_is_joined_by_its_name_is_not_waited_for_with_the_others(root: Path) -> None:
    script = "a() { stage one false; }; b() { stage two sleep 30; }; lane a; lane b; join a; echo not reached"
    start = time.monotonic()

    done = run_stages(root, script)

    assert time.monotonic() - start < 15
    assert "FAILED in one with status 1" in done.stderr
    assert "not reached" not in done.stdout


def test_the_table_has_the_time_of_processors(root: Path) -> None:
    busy = "import time\nwhile time.process_time() < 1: pass"
    script = f"a() {{ stage one {shlex.join([sys.executable, '-c', busy])}; }}"
    done = run_stages(root, f'{script}; lane a; join; cat "$work/summary"')

    (line,) = [line for line in done.stdout.splitlines() if line.startswith("one ")]
    found = re.search(r"\d s, of processors 0m([\d.]+)s \+ 0m([\d.]+)s ", line)
    assert found, line
    assert 0.9 < float(found[1]) + float(found[2]) < 5


def test_lanes_end_with_the_script(root: Path, tmp_path: Path) -> None:
    mark = tmp_path / "still there"
    waits = f"a() {{ stage one sleep 3; touch {shlex.quote(str(mark))}; }}"
    done = run_stages(root, f"{waits}; lane a; sleep 0.5; stage two false")

    assert done.returncode == 1
    assert "FAILED in two with status 1" in done.stderr
    time.sleep(3.5)
    assert not mark.exists()


def test_nothing_is_left_behind_when_a_lane_ended_before_the_script_failed(root: Path, tmp_path: Path) -> None:
    script = f"export TMPDIR={shlex.quote(str(tmp_path))}; source .ci/stages; a() {{ stage one true; }}; lane a"
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; {script}; sleep 1; stage two false"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_lane_that_is_killed_fails_the_whole(root: Path) -> None:
    done = run_stages(root, "a() { stage one kill -9 0; }; lane a; join; echo passed")

    assert done.returncode == 1
    assert "FAILED in a lane that was killed" in done.stderr
    assert "passed" not in done.stdout
