"""A contender's process: what it measures, what it prints, and how it fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edge_runtime.benchmark.errors import BenchmarkError
from edge_runtime.benchmark.process import Contender, contend
from edge_runtime.benchmark.protocol import BenchmarkRequest, BenchmarkResult
from edge_runtime.errors import ExitCode
from tests.edge_runtime.benchmark.requests import request_for


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "request.json"
    path.write_bytes(msgspec.json.encode(request_for(tmp_path, num_steps=8)))
    return path


def slow_steps(request: BenchmarkRequest) -> Contender:
    """Halves 1.0 step by step; every step takes longer than the one before."""
    made = iter(range(request.hyper_parameters.num_local_steps))

    def step() -> float:
        number = next(made)
        time.sleep(0.01 * (number + 1))
        return 2.0**-number

    return Contender(step=step, num_trainable=7)


def losses(*values: float) -> Callable[[BenchmarkRequest], Contender]:
    """An engine with these losses."""
    given: Iterator[float] = iter(values)
    return lambda request: Contender(step=lambda: next(given), num_trainable=len(request.engine))


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == ""
    return line.removeprefix("fedspine-contender: error: ")


def test_steps_after_the_warm_up_are_timed_and_every_loss_is_told(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = time.monotonic()
    assert contend(slow_steps, ("numpy",), [str(file)]) == ExitCode.OK
    result = msgspec.json.decode(capsys.readouterr().out.splitlines()[-1], type=BenchmarkResult)

    assert result.losses == tuple(2.0**-number for number in range(8))
    assert len(result.step_times_s) == 3
    for number, seconds in zip((2, 3, 4), result.step_times_s, strict=True):  # the third to the fifth of eight
        assert 0.01 * (number + 1) <= seconds
    assert before + 0.01 <= result.first_step_at <= time.monotonic() - 0.3
    assert result.num_trainable == 7
    assert result.peak_rss_bytes > 10_000_000
    assert set(result.versions) == {"numpy"}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(wrong: float, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = [1.0, 1.0, wrong, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert contend(losses(*values), (), [str(file)]) == ExitCode.UNEXPECTED
    assert one_error_line(capsys).startswith(f"the loss of fused is {wrong} in step 3 of 8")


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file"), (b"{", "truncated"), (b"{}", "missing required field"), (b'{"engine": 3}', "got `int`")],
)
def test_a_request_that_cannot_be_read_is_one_line(
    content: bytes | None, problem: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert contend(slow_steps, (), [str(file)]) == ExitCode.USAGE
    line = one_error_line(capsys)
    assert problem in line
    assert str(file) in line


def test_no_request_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert contend(slow_steps, (), []) == ExitCode.USAGE
    assert "got 0 arguments, expected one" in one_error_line(capsys)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BenchmarkError("this engine cannot"), ExitCode.UNEXPECTED, "this engine cannot"),
        (RuntimeError("two\nlines"), ExitCode.UNEXPECTED, "unexpected RuntimeError: two lines"),
    ],
)
def test_whatever_an_engine_raises_is_one_line(
    error: Exception, code: ExitCode, text: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(request: BenchmarkRequest) -> Contender:
        del request
        raise error

    assert contend(prepare, (), [str(file)]) == code
    assert one_error_line(capsys) == text
