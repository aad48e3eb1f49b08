"""A wrong option of ``fedspine-edge`` is one line that names it as it was typed, and ends with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.cli import main
from edge_runtime.errors import ExitCode

START = ["start", "--broker", "mqtt://127.0.0.1:1", "--data", "d.jsonl", "--state", "s"]
GENERATE = ["generate", "model", "--prompt", "x"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["strat"], "invalid choice: 'strat'"),
        (["start"], "required: --broker, --data, --state"),
        ([*START, "--hodlout", "3"], "--hodlout is not known; did you mean --holdout?"),
        ([*START, "--xyz=3"], "--xyz is not known; see"),
        ([*START, "--prompt", "x"], "--prompt is not for this command"),
        ([*START, "--fleet", "lab/+"], "--fleet: 'lab/+' is not allowed: use 1 to 64 letters"),
        ([*START, "--device-id", "a b"], "--device-id: 'a b' is not allowed"),
        ([*START, "--threads", "0"], "--threads: '0' is outside 1 to 1024"),
        ([*START, "--memory-limit", "much"], "--memory-limit: 'much' is not a size"),
        ([*START, "--holdout=-1"], "--holdout: '-1' is not a whole number"),
        ([*START, "--checkpoint-every", "x"], "--checkpoint-every: 'x' is not a whole number"),
        ([*START, "--mode", "fast"], "--mode: invalid choice: 'fast'"),
        ([*START, "--engine", "torch"], "--engine: invalid choice: 'torch'"),
        ([*START, "--device-method", "os:system"], "--device-method: 'os:system' is not a method and its class"),
        ([*START, "--device-method", "a=b:c,../x=b:c"], "--device-method: '../x=b:c' is not a method and its class"),
        ([*START, "--nice", "20"], "--nice: '20' is outside 0 to 19"),
        ([*START, "--max-temperature", "nan"], "--max-temperature: 'nan' is not a number from 20 to 120"),
        ([*START, "--min-battery", "101"], "--min-battery: '101' is not a number from 1 to 100"),
        ([*START, "--log-level", "loud"], "--log-level: invalid choice: 'loud'"),
        ([*GENERATE, "--temperature=-1"], "--temperature: '-1' is not a number from 0"),
        ([*GENERATE, "--temperature", "inf"], "--temperature: 'inf' is not a number from 0"),
        ([*GENERATE, "--top-k=-1"], "--top-k: '-1' is not a whole number"),
        ([*GENERATE, "--max-new-tokens", "0"], "--max-new-tokens: '0' is not a whole number of 1 or more"),
        ([*GENERATE, "--threads", "9" * 12], "--threads: '999999999999' is outside 1 to 1024"),
        (["infer", "model", "--threads", "0"], "--threads: '0' is outside 1 to 1024"),
        ([*GENERATE, "--seed", "x"], "--seed: 'x' is not a whole number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_was_typed_is_named_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedspine-edge: error: ")
    assert said in line
    assert "--help'" in line
    assert caught.value.code == ExitCode.USAGE
    assert list(tmp_path.iterdir()) == []


def test_a_broker_that_is_no_url_is_said_of_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d.jsonl").write_text('{"text": "a"}\n')
    code = main(["start", "--broker", "localhost", "--data", "d.jsonl", "--state", "s", "--nice", "0"])
    assert code == ExitCode.USAGE
    assert "error: --broker: broker URL has scheme 'none'" in capsys.readouterr().err
