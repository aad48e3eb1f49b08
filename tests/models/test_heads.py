"""The choice of a model's classifier: the checkpoint's own, a new one, or an error that names what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from edge_runtime.errors import ExitCode
from models.errors import LabelsDifferError, LabelsError
from models.heads import choose_head
from models.loading import PretrainedModel, load_model
from tests.conftest import save_bert

OWN = ("no", "yes")


def save_classifier(directory: Path, labels: tuple[str, ...], **settings: Any) -> Path:
    save_bert(directory)
    config = BertConfig.from_pretrained(directory, id2label=dict(enumerate(labels)), **settings)
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def load(source: Path, labels: list[str] | None = None, **options: Any) -> PretrainedModel:
    settings = {"num_labels": None, "seed": 0} | options
    return load_model(source, "text-classification", labels=labels, **settings)


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        (("yes", "no"), ""),
        (("yes",), "nothing was said of its classes no"),
        (("0", "1"), "0 = no, 1 = yes"),
        (("1",), "0 = no, 1 = yes"),
    ],
    ids=str,
)
def test_the_checkpoints_classifier_is_kept(wanted: tuple[str, ...], part: str) -> None:
    head = choose_head(OWN, wanted, is_new=False)
    assert (head.labels, head.is_new) == (OWN, False)
    assert part in head.note
    assert bool(part) == bool(head.note)


@pytest.mark.parametrize("wanted", [("billing", "delivery", "returns"), ("0", "1", "2")], ids=str)
def test_a_classifier_that_cannot_be_meant_gives_way_to_a_new_one(wanted: tuple[str, ...]) -> None:
    head = choose_head(OWN, wanted, is_new=False)
    assert (head.labels, head.is_new) == (wanted, True)
    assert head.note == f"the checkpoint classifies no, yes: a new classifier is made for {', '.join(wanted)}"


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        (OWN, ("neg", "pos")),
        (OWN, ("No", "Yes")),
        (OWN, ("no", "yes", "perhaps")),
        (OWN, ("YES", "NO", "perhaps")),
        (OWN, ("1", "2")),
        (("x", "y", "z"), ("x", "y", "a")),
        (("1", "0"), ("0", "2")),
    ],
    ids=str,
)
def test_classes_that_only_look_alike_are_refused_with_the_option(
    own: tuple[str, ...], wanted: tuple[str, ...]
) -> None:
    with pytest.raises(LabelsDifferError, match=r"use its names, or give --new-head") as caught:
        choose_head(own, wanted, is_new=False)
    assert caught.value.exit_code is ExitCode.UNKNOWN_LABEL
    assert ", ".join(own) in str(caught.value)


def test_classes_with_numbers_as_names_are_no_indices() -> None:
    assert choose_head(("1", "0"), ("0", "1"), is_new=False).labels == ("1", "0")


@pytest.mark.parametrize("own", [None, OWN], ids=str)
def test_a_new_classifier_needs_its_classes(own: tuple[str, ...] | None) -> None:
    with pytest.raises(LabelsError, match="--labels NAME,NAME"):
        choose_head(own, None, is_new=True)


def test_a_new_head_is_made_where_it_is_asked_for(tmp_path: Path) -> None:
    source = save_classifier(tmp_path / "model", OWN, problem_type="multi_label_classification")
    trained = BertForSequenceClassification.from_pretrained(source).state_dict()["classifier.weight"]

    model = load(source, ["no", "yes"], new_head=True)

    assert model.labels == OWN
    assert not torch.equal(model.dense["classifier.weight"], trained)
    assert not model.dense["classifier.bias"].any()
    assert model.config.problem_type is None
    assert model.notes == ("a new one for 2 classes is made in place of the checkpoint's (no, yes)",)


def test_other_classes_get_a_head_of_their_number(tmp_path: Path) -> None:
    """One output, as models that score pairs have, is a classifier of other classes too."""
    source = save_classifier(tmp_path / "model", ("LABEL_0",))
    model = load(source, ["billing", "delivery", "returns"])
    assert model.dense["classifier.weight"].shape == (3, 32)
    assert model.config.id2label == {0: "billing", 1: "delivery", 2: "returns"}
    assert model.config.num_labels == 3


def test_a_new_head_is_not_for_causal_lm(tiny_llama_model: Path) -> None:
    with pytest.raises(LabelsError, match="--new-head is for text-classification"):
        load_model(tiny_llama_model, "causal-lm", labels=None, num_labels=None, seed=0, new_head=True)
