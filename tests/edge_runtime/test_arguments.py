"""Options that say what a device may run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from edge_runtime.agent.pins import Pins
from edge_runtime.arguments import add_pins
from edge_runtime.cli import main
from edge_runtime.errors import ExitCode

A, B = "ab" * 32, "cd" * 32


def parsed(*words: str) -> Pins:
    parser = argparse.ArgumentParser()
    add_pins(parser)
    arguments = parser.parse_args(words)
    return Pins.of(arguments.artifact_digest, arguments.artifact_host)


def test_lists_may_be_given_with_commas_again_or_both() -> None:
    expected = Pins(digests=frozenset({A, B}), hosts=frozenset({"one", "two:80", "[::1]"}))
    assert parsed("--artifact-digest", f"{A},{B}", "--artifact-host", "one,two:80,[::1]") == expected
    once = ["--artifact-digest", A, "--artifact-digest", B.upper()]
    assert parsed(*once, "--artifact-host", "one, Two:80", "--artifact-host=[::1]") == expected
    assert parsed() == Pins()


@pytest.mark.parametrize("text", ["", A[:-1], f"{A},", "x" * 64, "sha256:" + A, f"{A} {B}"])
def test_what_is_no_digest_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed("--artifact-digest", text)
    assert "--artifact-digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["", "http://host", "host/path", "host:", "host:0", "host:x", "a b", "a,,b", "::1", "u@host", ".", "h:123456"],
)
def test_what_is_no_host_is_a_usage_error(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed("--artifact-host", text)
    assert "--artifact-host" in capsys.readouterr().err


def test_a_unit_holds_what_its_device_may_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)  # the environment of the tests may lie in /tmp
    data = Path.home() / "examples.jsonl"
    words = ["service", "--broker", "mqtt://b.example", "--data", str(data), "--artifact-digest", f"{A},{B}"]
    assert main([*words, "--artifact-host", "one", "--artifact-host", "two:80"]) == ExitCode.OK
    unit = capsys.readouterr().out
    assert f"--artifact-digest {A},{B} \\\n" in unit
    assert "--artifact-host one,two:80 \\\n" in unit
