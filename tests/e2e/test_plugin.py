"""A run with a method of both sides and a callback of an installed package, in processes that find it on their own."""

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

METHOD = "fedspine_example.class_means:CLASS_MEANS"
"""By its module: devices are told the class of their side; the callbacks are found by their names."""


def test_a_run_plays_a_method_of_a_package(
    installed: Path,
    tmp_path: Path,
    classify_settings: RunSettings,
    prepared_classifier: Path,
) -> None:
    (artifact,) = (prepared_classifier / "artifacts").iterdir()
    options = {"devices": 2, "batch-size": 4, "max-length": 16, "threads": 1}
    named = {"method": METHOD, "callbacks": "curve,tensorboard", "out": tmp_path / "run"}
    source = {
        "model": classify_settings.model,
        "artifact": artifact,
        "task": "text-classification",
        "data": classify_settings.data,
    }
    given = {**source, "test": classify_settings.test, **options, **named}

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
    assert [line.partition(",")[0] for line in lines] == ["round", "0", "1"]
    assert len(list((run / "tensorboard").glob("events.out.tfevents.*"))) == 1
    report = json.loads((run / "report.json").read_text())
    assert report["config"]["method"] == METHOD
    devices = report["rounds"][1]["devices"]
    assert [(device["outcome"], device["work"]) for device in devices] == [("accepted", "class_means")] * 2
    losses = [float(line.partition(",")[2]) for line in lines[1:]]
    assert losses[1] < losses[0]
    assert tomllib.loads((run / "config.toml").read_text())["method"] == METHOD
    log = (run / "logs" / f"{devices[0]['device_id']}.log").read_text()
    assert "method class_means of an installed package" in log
