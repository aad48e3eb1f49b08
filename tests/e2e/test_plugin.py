"""A run with a method, scheduler, rule and callback of an installed package, in processes that find it on their own."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from broker_server.experiments.run.settings import RunSettings
from edge_runtime.system.interpreter import module_command
from tests.extending.conftest import installed

pytestmark = pytest.mark.e2e

__all__ = ["installed"]  # a fixture


def test_a_run_plays_a_method_of_an_installed_package(
    installed: Path,
    tmp_path: Path,
    generate_settings: RunSettings,
) -> None:
    options = {"devices": 2, "rounds": 2, "local-steps": 1, "batch-size": 2, "max-length": 16, "threads": 1}
    named = {"method": "equal_voices", "callbacks": "curve,tensorboard", "arms": "0.0:4,0.0:8", "out": tmp_path / "run"}
    given = {"model": generate_settings.model, "task": "causal-lm", "data": generate_settings.data, **options, **named}

    done = subprocess.run(
        module_command(
            "broker_server", "run", *(word for key, value in given.items() for word in (f"--{key}", str(value)))
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(installed)])},
    )

    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "run"
    lines = (run / "curve.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["round", "0", "1", "2"]
    assert len(list((run / "tensorboard").glob("events.out.tfevents.*"))) == 1
    report = json.loads((run / "report.json").read_text())
    assert report["config"]["method"] == "equal_voices"
    assert (report["config"]["scheduler"], report["config"]["aggregation"]) == ("largest_first", "equal_voices")
    played = {device["arm"]["rank"] for entry in report["rounds"] for device in entry["devices"]}
    assert played == {8}
    config = tomllib.loads((run / "config.toml").read_text())
    assert (config["method"], config["scheduler"], config["pruning"]["ramp_rounds"]) == (
        "equal_voices",
        "largest_first",
        1,
    )
