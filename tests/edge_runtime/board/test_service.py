"""The unit that ``fedspine-edge service`` prints, as systemd itself reads it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.board.errors import ServiceError
from edge_runtime.board.service import NEVER_MENDS, Service, unit, unreadable
from edge_runtime.errors import ExitCode

Save = Callable[[str], Path]


def make(**changes: Any) -> Service:
    given: dict[str, Any] = {
        "name": "fedspine-edge",
        "user": None,
        "program": (sys.executable, "-m", "edge_runtime", "start"),
        "options": ("--broker", "mqtts://b.example", "--data", "/srv/x.jsonl"),
        "credentials": {"password-file": Path("/etc/fedspine/password")},
        "readable": (Path("/srv/x.jsonl"), Path("/usr")),
        "nice": 10,
        "num_threads": None,
        "memory_limit_bytes": None,
    }
    return Service(**{**given, **changes})


def settings(text: str) -> dict[str, list[str]]:
    """Values by setting, with continued lines joined."""
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(" ".join(value.split()))
    return found


@pytest.fixture
def analyze(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """systemd-analyze on a unit that is written out."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")

    def run(command: str, text: str, *options: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "fedspine-edge.service"
        path.write_text(text)
        return subprocess.run(
            [str(program), command, *options, str(path)], capture_output=True, text=True, check=False, timeout=120
        )

    return run


Analyze = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"user": "root", "num_threads": 2, "memory_limit_bytes": 10**9},
        {
            "readable": (Path("/home/pi/x.jsonl"),),
            "options": ("--data", '/srv/5% of "mine"; $HOME.jsonl', "--broker", "x"),
        },
    ],
    ids=["plain", "user and limits", "in a home, odd words"],
)
def test_systemd_finds_nothing_wrong(analyze: Analyze, changes: dict[str, Any]) -> None:
    done = analyze("verify", unit(make(**changes)))
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_a_unit_that_is_wrong_would_be_found(analyze: Analyze) -> None:
    wrong = unit(make()).replace("ProtectClock=yes", "ProtectClok=yes")
    assert "ProtectClok" in analyze("verify", wrong).stderr


def test_little_of_the_machine_is_exposed(analyze: Analyze) -> None:
    """0 is the least, 10 the most; systemd calls up to 2 OK, and a unit without a sandbox has 9.2 or more."""
    done = analyze("security", unit(make()), "--offline=yes", "--no-pager", "--threshold=20")
    assert done.returncode == 0, done.stdout
    bare = "[Service]\nExecStart=/bin/true\n"
    assert analyze("security", bare, "--offline=yes", "--no-pager", "--threshold=20").returncode != 0


def test_limits_are_those_of_the_owner() -> None:
    found = settings(unit(make(num_threads=2, memory_limit_bytes=800_000_000, nice=15)))
    assert (found["MemoryMax"], found["CPUQuota"], found["Nice"]) == (["1000000000"], ["200%"], ["15"])
    plain = settings(unit(make()))
    assert plain["MemoryMax"] == ["90%"]
    assert "CPUQuota" not in plain


def test_it_has_a_user_of_its_own_or_the_one_that_is_named() -> None:
    assert settings(unit(make()))["DynamicUser"] == ["yes"]
    named = settings(unit(make(user="pi")))
    assert named["User"] == ["pi"]
    assert "DynamicUser" not in named


def test_what_does_not_mend_itself_is_not_tried_again() -> None:
    (codes,) = settings(unit(make()))["RestartPreventExitStatus"]
    assert codes.split() == [str(int(code)) for code in NEVER_MENDS]
    own = {"USAGE", "DATA_INVALID", "DATA_EMPTY", "STATE_IN_USE", "MISSING_DEPENDENCY"}
    assert {code.name for code in NEVER_MENDS} == own, "what a broker or a server says may be mended there"


def test_homes_are_hidden_but_for_what_is_needed() -> None:
    assert settings(unit(make()))["ProtectHome"] == ["yes"]
    needed = (Path("/home/pi/env"), Path("/home/pi/env/lib"), Path("/root/x.jsonl"), Path("/usr"))
    found = settings(unit(make(readable=needed)))
    assert found["ProtectHome"] == ["tmpfs"]
    assert found["BindReadOnlyPaths"] == ["/home/pi/env", "/root/x.jsonl"]


def test_secrets_are_handed_over_and_not_named() -> None:
    options = ("--password-file", "${CREDENTIALS_DIRECTORY}/password-file")
    found = settings(unit(make(options=options)))
    assert found["LoadCredential"] == ["password-file:/etc/fedspine/password"]
    assert "--password-file ${CREDENTIALS_DIRECTORY}/password-file" in found["ExecStart"][0]


def test_words_mean_what_they_say() -> None:
    (command,) = settings(unit(make(options=("--device-id", "a b", "--data", "/srv/$HOME/50%\\"))))["ExecStart"]
    assert '--device-id "a b"' in command
    assert "/srv/$$HOME/50%%\\\\" in command


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "a/b"}, "a/b"),
        ({"user": "x y"}, "x y"),
        ({"options": ("--device-id", "a\nExecStartPre=/bin/sh")}, "line break"),
        ({"readable": (Path("/run/x.jsonl"),)}, "survive a reboot"),
        ({"credentials": {"key-file": Path("/etc/my key.pem")}}, "without spaces"),
    ],
    ids=["name", "user", "second line", "short-lived", "credential"],
)
def test_what_a_unit_cannot_hold_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ServiceError, match=expected) as caught:
        unit(make(**changes))
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n" not in str(caught.value)


def test_files_that_a_user_of_its_own_could_not_read_are_found(tmp_path: Path) -> None:
    closed, hidden, readable = tmp_path / "closed", tmp_path / "folder" / "hidden", Path("/usr/bin/env")
    hidden.parent.mkdir()
    for path, mode in ((closed, 0o600), (hidden, 0o644)):
        path.write_text("x")
        path.chmod(mode)
    hidden.parent.chmod(0o700)
    assert unreadable([closed, hidden, readable, tmp_path / "absent"]) == [closed, hidden]


INSTALLED = "import sys; sys.prefix = sys.base_prefix; from edge_runtime.cli import main; sys.exit(main())"
"""As if it were installed where the interpreter is: the environment of the tests may lie in /tmp, which is refused."""


def edge(*arguments: object, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    """The command on a terminal with this encoding; what it prints, read as UTF-8."""
    command = [sys.executable, "-c", INSTALLED, "service", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": encoding}
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False, env=env)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_unit_holds_paths_byte_by_byte_whatever_the_terminal_s_encoding(encoding: str) -> None:
    path = "/var/lib/fedspine/Prüfung ☕.jsonl"
    done = edge("--broker", "mqtt://b.example", "--data", path, encoding=encoding)
    assert done.returncode == ExitCode.OK, done.stderr
    assert path in done.stdout


def test_the_command_prints_a_unit_with_the_options_that_were_given(analyze: Analyze) -> None:
    done = edge(
        *("--broker", "mqtts://board-7@b.example", "--password-file", "/etc/fedspine/password"),
        *(
            "--data",
            "/var/lib/fedspine/x.jsonl",
            "--memory-limit",
            "512MB",
            "--pause-on-throttling",
            "--mode",
            "staged",
        ),
    )
    assert done.returncode == 0, done.stderr
    found = settings(done.stdout)
    command = found["ExecStart"][0]
    for part in (
        "--broker mqtts://board-7@b.example",
        "--data /var/lib/fedspine/x.jsonl",
        "--memory-limit 512000000",
        "--pause-on-throttling",
        "--mode staged",
        "--wait-for-broker",
        "--state /var/lib/fedspine-edge",
    ):
        assert f" {part} " in f"{command} "
    assert "--checkpoint-every" not in command  # the default stays that of the release that runs
    assert analyze("verify", done.stdout).stderr == ""
    assert re.search(r"save it as /etc/systemd/system/fedspine-edge.service", done.stderr)


def test_a_password_in_the_url_is_refused() -> None:
    done = edge("--broker", "mqtt://me:hunter2@b.example", "--data", "/srv/x.jsonl")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert "--password-file" in done.stderr
    assert "hunter2" not in done.stderr


def test_a_user_without_a_password_is_told_of() -> None:
    done = edge("--broker", "mqtt://me@b.example", "--data", "/srv/x.jsonl", "--user", "pi")
    assert done.returncode == ExitCode.OK
    assert "'me'" in done.stderr
