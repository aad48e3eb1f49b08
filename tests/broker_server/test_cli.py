"""``fedspine``: errors become one line and an exit code; nothing heavy is imported before it is needed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker_server import cli
from broker_server.errors import ChildFailedError
from edge_runtime.errors import ExitCode

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _raise(error: BaseException) -> None:
    raise error


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fedspine: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "--devices", "two"], ExitCode.USAGE),
        (["run", "--nope"], ExitCode.USAGE),
        (["nope"], ExitCode.USAGE),
        (["run", "--task", "chess"], ExitCode.USAGE),
        (["run", "--resume", "--devices", "3"], ExitCode.USAGE),
        (["run", "--resume", "--rounds", "3"], ExitCode.RUN_EXISTS),
        (["run", "--arms", "2:8"], ExitCode.ARM_OUT_OF_RANGE),
        (["run", "--model", "./no/model", "--task", "causal-lm"], ExitCode.MODEL_NOT_FOUND),
        (["run", "--data", "./none.jsonl"], ExitCode.DATA_INVALID),
        (["run", "--broker", "mqtt://127.0.0.1:1"], ExitCode.BROKER_UNREACHABLE),
        (["run", "--resume", "--out", "none"], ExitCode.RUN_EXISTS),
        (["coordinate", "none"], ExitCode.USAGE),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.name,
)
def test_what_a_person_gets_wrong_is_one_line_and_a_code(
    arguments: list[str],
    code: ExitCode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert cli.call(arguments) == code

    _one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"), ExitCode.DISK_FULL, "disk full while writing /x"),
        (PermissionError(errno.EACCES, "not allowed", "/x"), ExitCode.UNEXPECTED, "error: /x: not allowed; check"),
        (OSError("no file"), ExitCode.UNEXPECTED, "unexpected OSError"),
        (RuntimeError("\x1b[2J\u202e"), ExitCode.UNEXPECTED, "\\x1b[2J\\u202e"),
        (RuntimeError("two\nlines"), ExitCode.UNEXPECTED, "two lines"),
        (ChildFailedError("device", ExitCode.INSUFFICIENT_MEMORY, Path("x")), ExitCode.INSUFFICIENT_MEMORY, "device"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_inside_is_one_line_and_a_code(
    error: BaseException,
    code: ExitCode,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: _raise(error))

    assert cli.call([]) == code
    assert part in _one_line(capsys)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, broker_server.cli as cli; cli.call(['--help']); cli.call(['run', '--help']); "
        "cli.call(['bench', 'engine', '--help']); "
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'matplotlib', 'sqlalchemy', 'exporter'}; "
        "sys.exit(f'imported: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "--local-steps" in done.stdout


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedspine ")
