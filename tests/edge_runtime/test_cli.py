"""``fedspine-edge`` as a person meets it: real processes, one line for each mistake, an exit code of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import cli
from edge_runtime.agent.identity import StateDirectory
from edge_runtime.engine.errors import DataInvalidError
from edge_runtime.engine.examples import read_texts
from edge_runtime.errors import ExitCode

EXAMPLE = '{"text": "the cat", "label": "red"}\n'


def edge(*arguments: object, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, input=stdin, env=env)


def check_refusal(result: subprocess.CompletedProcess[str], code: ExitCode, *expected: str) -> None:
    """One line on standard error beside the log, nothing on standard output, the code of its kind."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    complaints = [line for line in result.stderr.splitlines() if line.startswith("fedspine-edge: error: ")]
    assert len(complaints) == 1
    assert "Traceback" not in result.stderr
    assert all(part in complaints[0] for part in expected), complaints[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(EXAMPLE)
    return path


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def start(tmp_path: Path, data: Path, broker: str, *more: object, **environment: str) -> Any:
    return edge("start", "--broker", broker, "--data", data, "--state", tmp_path / "state", *more, **environment)


@pytest.mark.parametrize("command", ["start", "infer", "generate"])
def test_help_shows_every_command(command: str) -> None:
    result = edge(command, "--help")
    assert result.returncode == ExitCode.OK
    assert "--threads" in result.stdout


def test_no_broker_is_one_line(tmp_path: Path, data: Path, closed_port: int) -> None:
    result = start(tmp_path, data, f"mqtt://127.0.0.1:{closed_port}")
    check_refusal(result, ExitCode.BROKER_UNREACHABLE, f"127.0.0.1:{closed_port}", "check")


def test_a_wrong_password_is_one_line_without_it(tmp_path: Path, data: Path, start_mosquitto: Any) -> None:
    (tmp_path / "passwords").write_text("")
    broker = start_mosquitto(
        "listener {port} 127.0.0.1", "allow_anonymous false", f"password_file {tmp_path / 'passwords'}"
    )
    url = f"mqtt://lab@127.0.0.1:{broker.port}"
    result = start(tmp_path, data, url, FEDSPINE_BROKER_PASSWORD="hunter2")  # noqa: S106 - a test's
    check_refusal(result, ExitCode.BROKER_REFUSED, "'lab'", "password")
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize(
    ("content", "code", "expected"),
    [
        ("", ExitCode.DATA_EMPTY, "holds no example"),
        ("not json\n", ExitCode.DATA_INVALID, "data.jsonl: line 1"),
        ('{"label": "red"}\n', ExitCode.DATA_INVALID, "'text'"),
        (None, ExitCode.DATA_INVALID, "does not exist"),
    ],
    ids=["empty", "not-json", "no-text", "missing"],
)
def test_bad_data_is_found_before_the_broker(
    tmp_path: Path, closed_port: int, content: str | None, code: ExitCode, expected: str
) -> None:
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_text(content)
    check_refusal(start(tmp_path, data, f"mqtt://127.0.0.1:{closed_port}"), code, expected)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("broker", "more", "expected"),
    [
        ("http://host", (), "mqtt://"),
        ("mqtt://127.0.0.1:1", ("--device-id", "a/b"), "'a/b'"),
        ("mqtt://127.0.0.1:1", ("--fleet", "a/b"), "'a/b'"),
        ("mqtts://127.0.0.1:1", ("--ca-file", "absent.pem"), "absent.pem"),
        ("mqtts://127.0.0.1:1", ("--key-file", "key.pem"), "--cert-file"),
        ("mqtt://127.0.0.1:1", ("--ca-file", "ca.pem"), "not encrypted"),
    ],
    ids=["url", "device-id", "fleet", "ca-file", "key-file", "ca-file unused"],
)
def test_impossible_options_are_one_line(
    tmp_path: Path, data: Path, broker: str, more: tuple[str, ...], expected: str
) -> None:
    check_refusal(start(tmp_path, data, broker, *more), ExitCode.USAGE, expected)


@pytest.mark.parametrize(
    "more",
    [
        ("--threads", "0"),
        ("--threads", "x"),
        ("--threads", "9" * 400),
        ("--memory-limit", "many"),
        ("--memory-limit", "9" * 400 + "GiB"),
        ("--memory-limit", "0.1B"),
        ("--holdout", "-1"),
        ("--holdout", "9" * 5_000),
    ],
    ids=lambda more: " ".join(more)[:30],
)
def test_options_that_are_no_numbers_are_usage_errors(tmp_path: Path, data: Path, more: tuple[str, ...]) -> None:
    result = start(tmp_path, data, "mqtt://127.0.0.1:1", *more)
    assert result.returncode == ExitCode.USAGE
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_a_seed_that_is_no_count_is_a_usage_error(tmp_path: Path, seed: str) -> None:
    result = edge("generate", tmp_path, "--prompt", "x", "--temperature", "1", f"--seed={seed}")
    assert result.returncode == ExitCode.USAGE
    assert "--seed" in result.stderr


def test_a_state_directory_in_use_is_one_line(tmp_path: Path, data: Path, closed_port: int) -> None:
    with StateDirectory(tmp_path / "state"):
        result = start(tmp_path, data, f"mqtt://127.0.0.1:{closed_port}")
    check_refusal(result, ExitCode.STATE_IN_USE, "in use")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.OK)], ids=["int", "term"]
)
def test_signals_end_it_cleanly(
    tmp_path: Path, data: Path, mosquitto: Any, number: signal.Signals, code: ExitCode
) -> None:
    command = [sys.executable, "-m", "edge_runtime", "start", "--broker", mosquitto.url, "--data", str(data)]
    command += ["--state", str(tmp_path / "state"), "--device-id", "board-7"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "connected to" in line:
                break
        process.send_signal(number)
        assert process.wait(20) == code
    assert "board-7" in (tmp_path / "state" / "device-id").read_text()


def test_waiting_for_a_broker_can_be_interrupted(tmp_path: Path, data: Path, closed_port: int) -> None:
    command = [sys.executable, "-m", "edge_runtime", "start", "--broker", f"mqtt://127.0.0.1:{closed_port}"]
    command += ["--data", str(data), "--state", str(tmp_path / "state"), "--wait-for-broker"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "trying again until it answers" in line:
                break
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == ExitCode.INTERRUPTED
        assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "exactly one"),
        (("-", "--text", "x"), "exactly one"),
    ],
    ids=["none", "two"],
)
def test_infer_wants_one_input(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    check_refusal(edge("infer", tmp_path, *arguments), ExitCode.USAGE, expected)


@pytest.mark.parametrize("arguments", [("infer", "--text", "x"), ("generate", "--prompt", "x")], ids=str)
def test_a_missing_model_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    command, *more = arguments
    result = edge(command, tmp_path / "absent", *more)
    assert result.returncode not in {ExitCode.OK, ExitCode.UNEXPECTED}
    check_refusal(result, ExitCode(result.returncode), "absent")


def test_an_unexpected_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_path: Path) -> None:
        msg = "surprise\nin two lines"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr("edge_runtime.agent.opening.look_at_examples", fail)
    code = cli.main(["start", "--broker", "mqtt://h", "--data", "d", "--state", "s", "--nice", "0"])
    error = capsys.readouterr().err
    assert code == ExitCode.UNEXPECTED
    assert error.count("\n") == 1
    assert "ZeroDivisionError: surprise in two lines" in error


@pytest.mark.parametrize(
    ("line", "expected"),
    [("not json", "line 2"), ("[]", "line 2"), ('{"label": 1}', "line 2"), ('{"text": 7}', "line 2")],
)
def test_lines_to_classify_are_checked(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    texts = read_texts(None, path)
    assert next(texts) == "fine"
    with pytest.raises(DataInvalidError, match=expected):
        next(texts)


THREADS = """
import os, sys
from tokenizers import Tokenizer, models
from edge_runtime import cli
code = cli.main(sys.argv[1:])
started = len(os.listdir("/proc/self/task"))
Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).encode_batch(["a"] * 64)
print(code, started, len(os.listdir("/proc/self/task")) - started)
"""


@pytest.mark.parametrize("is_capped", [True, False], ids=["one thread", "default"])
def test_threads_caps_every_pool_whatever_the_environment_says(
    tmp_path: Path,
    data: Path,
    closed_port: int,
    is_capped: bool,  # noqa: FBT001
) -> None:
    """Threads beside the main one: numpy's and the tokenizer's; the environment asks for four."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    env |= {"OPENBLAS_NUM_THREADS": "4", "RAYON_NUM_THREADS": "4"}
    command = [sys.executable, "-c", THREADS, "start", "--broker", f"mqtt://127.0.0.1:{closed_port}"]
    command += ["--data", str(data), "--state", str(tmp_path / "state"), *(["--threads", "1"] if is_capped else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    code, started, tokenizing = map(int, done.stdout.split())
    assert code == ExitCode.BROKER_UNREACHABLE, done.stderr
    most = min(4, len(os.sched_getaffinity(0)))  # numpy starts no more than there are cores
    assert (started - 1, tokenizing) == ((0, 1) if is_capped else (most - 1, 4))


@pytest.mark.parametrize(
    "more",
    [
        ("--nice", "20"),
        ("--nice", "-1"),
        ("--checkpoint-every", "-1"),
        ("--max-temperature", "hot"),
        ("--max-temperature", "nan"),
        ("--max-temperature", "8"),
        ("--min-battery", "0"),
        ("--min-battery", "101"),
    ],
    ids=" ".join,
)
def test_sharing_outside_its_range_is_a_usage_error(tmp_path: Path, data: Path, more: tuple[str, str]) -> None:
    result = start(tmp_path, data, "mqtt://127.0.0.1:1", *more)
    assert result.returncode == ExitCode.USAGE
    assert more[0] in result.stderr


def test_a_threshold_without_a_sensor_is_one_line(tmp_path: Path, data: Path) -> None:
    result = start(tmp_path, data, "mqtt://127.0.0.1:1", "--sensors", tmp_path, "--min-battery", "20")
    check_refusal(result, ExitCode.USAGE, "--min-battery", "no battery")
    assert not (tmp_path / "state").exists()


def test_a_password_may_come_from_a_file(tmp_path: Path, data: Path, start_mosquitto: Any) -> None:
    """The right one in the file, a wrong one in the environment: the file is what was asked for."""
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "lab", "right"], check=True)
    passwords.chmod(0o644)
    broker = start_mosquitto("listener {port} 127.0.0.1", "allow_anonymous false", f"password_file {passwords}")
    (tmp_path / "mine").write_text("right\n")
    command = [sys.executable, "-m", "edge_runtime", "start", "--broker", f"mqtt://lab@127.0.0.1:{broker.port}"]
    command += ["--data", str(data), "--state", str(tmp_path / "state"), "--password-file", str(tmp_path / "mine")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "FEDSPINE_BROKER_PASSWORD": "wrong"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        assert any("connected to" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == ExitCode.OK
