"""Every id that a checkpoint can give is inside its vocabulary when it is exported, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.errors import ModelNotFoundError, ModelUnsupportedError
from models.loading import PretrainedModel, load_model
from tests.conftest import save_bert, save_llama

ROWS = 24
"""Of the tiny models' embeddings."""


def edit(path: Path, **changes: object) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**found, **changes}.items() if value != "absent"}))


def without_pad(directory: Path) -> Path:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(directory / name, pad_token="absent")  # noqa: S106 - a token of text
    return directory


def add_token(directory: Path, text: str, *, index: int) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    token = {"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer["added_tokens"].append({**token, "normalized": False, "special": True})
    path.write_text(json.dumps(tokenizer))


def load(directory: Path) -> PretrainedModel:
    return load_model(directory, "causal-lm", labels=None, num_labels=None, seed=0)


# ---- padding: any id inside will do ----


@pytest.mark.parametrize("pad", [-1, ROWS, 10**6, "absent", None], ids=str)
def test_a_decoder_without_a_usable_padding_token_is_padded_with_its_last(pad: object, tmp_path: Path) -> None:
    source = without_pad(save_llama(tmp_path / "model"))
    edit(source / "config.json", pad_token_id=pad)
    edit(source / "generation_config.json", pad_token_id=pad)
    model = load(source)
    assert (model.tokens.pad, model.tokens.eos) == (3, 3)
    assert (model.config.pad_token_id, model.generation["pad_token_id"]) == (3, 3)


def test_an_encoder_whose_padding_token_has_no_row_is_padded_with_another(tmp_path: Path) -> None:
    source = without_pad(save_bert(tmp_path / "model"))
    edit(source / "config.json", pad_token_id=ROWS)
    model = load_model(source, "text-classification", labels=["a", "b"], num_labels=None, seed=0)
    assert model.tokens.pad == model.config.pad_token_id == 0


def test_a_padding_token_that_was_added_without_a_row_is_replaced_and_told(tmp_path: Path) -> None:
    source = without_pad(save_llama(tmp_path / "model"))
    add_token(source, "<more>", index=ROWS)
    edit(source / "tokenizer_config.json", pad_token="<more>")  # noqa: S106 - a token of text
    model = load(source)
    assert model.tokens.pad == 0
    assert any("padding token 24 is outside the embedding's 24 rows: 0 pads" in note for note in model.notes)


# ---- what text becomes ----


def test_an_added_token_without_a_row_is_refused(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    add_token(source, "<|im_start|>", index=ROWS)
    with pytest.raises(ModelUnsupportedError, match=r"beyond the embedding's 24 rows: '<\|im_start\|>' = 24; .*resize"):
        load(source)


@pytest.mark.parametrize("role", ["eos_token", "unk_token", "bos_token"])
def test_a_special_token_without_a_row_is_refused(role: str, tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    add_token(source, "<new>", index=ROWS)
    edit(source / "tokenizer_config.json", **{role: "<new>"})
    with pytest.raises(ModelUnsupportedError, match="'<new>' = 24"):
        load(source)


def test_a_padding_token_that_ends_text_too_needs_a_row(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    add_token(source, "<new>", index=ROWS)
    edit(source / "tokenizer_config.json", eos_token="<new>", pad_token="<new>")  # noqa: S106 - tokens of text
    with pytest.raises(ModelUnsupportedError, match="'<new>' = 24"):
        load(source)


def test_a_mask_token_without_a_row_is_refused(tmp_path: Path) -> None:
    source = save_bert(tmp_path / "model")
    add_token(source, "[MASK]", index=ROWS)
    edit(source / "tokenizer_config.json", mask_token="[MASK]")  # noqa: S106 - a token of text
    with pytest.raises(ModelUnsupportedError, match=r"'\[MASK\]' = 24"):
        load_model(source, "text-classification", labels=["a", "b"], num_labels=None, seed=0)


def test_an_id_that_the_tokenizer_puts_before_every_text_needs_a_row(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    path = source / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"]["special_tokens"]["<s>"]["ids"] = [77]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelUnsupportedError, match="adds token 77 to every text"):
        load(source)


# ---- ends of text ----


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": [3, 9]}, {}, (3, 9)),
        ({"eos_token_id": [9, 3, 9]}, {}, (9, 3)),
        ({"eos_token_id": 9}, {}, (9, 3)),
        ({"eos_token_id": [9, 99, -1]}, {}, (9, 3)),
        ({"eos_token_id": "absent"}, {"eos_token_id": [9, 10]}, (3,)),
        (None, {"eos_token_id": [9, 10]}, (9, 10, 3)),
        (None, {"eos_token_id": -1}, (3,)),
        (None, {"eos_token_id": "absent"}, (3,)),
    ],
    ids=range(8),
)
def test_every_end_of_text_is_known(
    generation: dict[str, Any] | None, config: dict[str, Any], expected: tuple[int, ...], tmp_path: Path
) -> None:
    source = save_llama(tmp_path / "model")
    if generation is None:
        (source / "generation_config.json").unlink()
    else:
        edit(source / "generation_config.json", **generation)
    edit(source / "config.json", **config)
    model = load(source)
    assert model.tokens.ends == expected
    assert model.tokens.eos == 3
    assert model.generation["eos_token_id"] == (list(expected) if len(expected) > 1 else expected[0])


def test_an_end_that_no_text_can_have_is_told(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    edit(source / "generation_config.json", eos_token_id=[3, 99])
    assert any("no text can end with token 99" in note for note in load(source).notes)


def test_a_tokenizer_without_an_end_takes_that_of_the_configuration(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(source / name, eos_token="absent")  # noqa: S106 - a token of text
    assert load(source).tokens.eos == 3


def test_other_settings_of_generation_are_kept(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    edit(source / "generation_config.json", temperature=0.6, top_p=0.9, do_sample=True)
    kept = {"temperature": 0.6, "top_p": 0.9, "do_sample": True}
    assert load(source).generation == {**kept, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


@pytest.mark.parametrize("content", ["{", "[]", '"text"'])
def test_a_broken_description_of_generation_is_not_passed_over(content: str, tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    (source / "generation_config.json").write_text(content)
    with pytest.raises(ModelNotFoundError, match=r"generation_config\.json"):
        load(source)


def test_the_longest_length_is_the_tokenizers_too(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "model")
    edit(source / "tokenizer_config.json", model_max_length=10**30)
    assert load(source).tokenizer.model_max_length == 64
