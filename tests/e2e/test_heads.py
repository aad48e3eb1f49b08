"""A checkpoint that classifies already, tuned by ``fedspine run`` for the classes of the data."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from broker_server.experiments.run.display import PlainDisplay
from broker_server.experiments.run.job import prepare_run
from broker_server.experiments.run.settings import RunSettings
from broker_server.experiments.run.view import RunView
from broker_server.options import changed
from edge_runtime.formats.manifest import decode_manifest
from tests.conftest import save_bert_classifier

pytestmark = pytest.mark.e2e


def rows(path: Path, labels: tuple[object, ...]) -> str:
    path.write_text("".join(json.dumps({"text": "the sea", "label": label}) + "\n" for label in labels * 8))
    return str(path)


@pytest.mark.parametrize(
    ("given", "options", "labels", "on_devices", "part"),
    [
        ((0, 1), {}, ("land", "sea"), {"land", "sea"}, "0 = land, 1 = sea"),
        (("a", "b", "c"), {}, ("a", "b", "c"), {"a", "b", "c"}, "a new classifier is made for a, b, c"),
        (("no", "yes"), {"new_head": True}, ("no", "yes"), {"no", "yes"}, "in place of the checkpoint's (land, sea)"),
    ],
    ids=["numbers", "other classes", "new head"],
)
def test_the_head_is_chosen_by_the_data_and_the_choice_is_said(
    given: tuple[object, ...],
    options: dict[str, object],
    labels: tuple[str, ...],
    on_devices: set[str],
    part: str,
    classify_settings: RunSettings,
    tmp_path: Path,
) -> None:
    model = save_bert_classifier(tmp_path / "model", ("land", "sea"))
    data = rows(tmp_path / "data.jsonl", given)
    changes = {"model": str(model), "data": str(data), "test": "", "devices": 1} | options
    said = io.StringIO()

    prepare_run(changed(classify_settings, changes), tmp_path / "run", PlainDisplay[RunView](said))

    assert "note: " in said.getvalue()
    assert part in said.getvalue()
    (manifest,) = (tmp_path / "run" / "artifacts").glob("*/manifest.json")
    assert decode_manifest(manifest.read_bytes()).labels == labels
    lines = (tmp_path / "run" / "data" / "device-1.jsonl").read_text().splitlines()
    assert {json.loads(line)["label"] for line in lines} == on_devices
