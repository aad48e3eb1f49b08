"""The families' own descriptions agree with transformers and with the wire's plans."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from edge_runtime.formats.manifest import Task
from edge_runtime.formats.ranking import HEADS
from models.errors import ModelUnsupportedError
from models.family import CHANNELS, Family
from models.registry import FAMILIES, family_class, family_for

CASES: list[tuple[str, Task, type[transformers.PreTrainedModel]]] = [
    ("tiny_bert_model", "text-classification", transformers.BertForSequenceClassification),
    ("tiny_llama_model", "causal-lm", transformers.LlamaForCausalLM),
]


@pytest.fixture(params=CASES, ids=["bert", "llama"])
def case(request: pytest.FixtureRequest) -> tuple[Family, torch.nn.Module]:
    name, task, kind = request.param
    source: Path = request.getfixturevalue(name)
    model = kind.from_pretrained(source, attn_implementation="eager").eval()
    return family_for(model.config, task), model


def test_parameters_are_those_of_transformers(case: tuple[Family, torch.nn.Module]) -> None:
    family, model = case
    said = {p.name: p.shape for p in (*family.frozen_params(), *family.head_params)}
    assert said == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_targets_are_all_linear_layers_of_the_blocks(case: tuple[Family, torch.nn.Module]) -> None:
    family, model = case
    prefixes = tuple(family.block_prefix(layer) for layer in range(family.num_layers))
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith(prefixes)}
    assert {target.module for target in family.target_specs()} == linear
    for target in family.target_specs():
        module = model.get_submodule(target.module)
        assert isinstance(module, torch.nn.Linear)
        assert (module.in_features, module.out_features) == (target.in_features, target.out_features)


def test_pruned_axes_are_whole_groups(case: tuple[Family, torch.nn.Module]) -> None:
    family, _ = case
    for param in family.block_params:
        for prune in param.prune:
            assert family.groups[prune.group] * prune.unit_size == param.shape[prune.axis], param.name


def test_the_stages_one_after_the_other_are_the_model(case: tuple[Family, torch.nn.Module]) -> None:
    family, model = case
    weights = dict(model.named_parameters())
    ids = torch.arange(12).reshape(2, 6) % family.vocab_size
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with torch.no_grad():
        hidden, context = family.embed(weights, ids, mask)
        assert {spec.name for spec in family.context} == set(context)
        sizes = {"batch": 2, "length": 6}
        for spec in family.context:
            expected = [sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape]
            assert list(context[spec.name].shape) == expected
        for layer in range(family.num_layers):
            prefix = family.block_prefix(layer)
            block = {p.name: weights[prefix + p.name] for p in family.block_params}
            hidden, _ = family.block(block, hidden, context)
        expected_logits = model(input_ids=ids, attention_mask=mask).logits
        of_tokens = expected_logits.dim() == 3
        scored = hidden[mask == 1] if of_tokens else hidden[:, 0]
        logits = family.logits(weights, scored)
    expected_logits = expected_logits[mask == 1] if of_tokens else expected_logits
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)


def test_units_of_grouped_queries_take_their_queries_along(case: tuple[Family, torch.nn.Module]) -> None:
    family, _ = case
    assert family.groups == {HEADS: 4, CHANNELS: 24}
    axes = {p.name: p.prune for p in family.block_params}
    if family.name == "llama":
        assert axes["self_attn.q_proj.weight"][0].unit_size == 2 * axes["self_attn.k_proj.weight"][0].unit_size


def test_the_stack_can_be_cut_between_blocks(case: tuple[Family, torch.nn.Module]) -> None:
    assert case[0].cut_points == (0, 1, 2)


def test_no_architecture_has_two_families() -> None:
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize(
    ("model_type", "task", "message"),
    [
        ("gpt2", "causal-lm", "'gpt2' is not supported; known architectures: bert, llama, mistral, qwen2"),
        ("antigravity:Family", "causal-lm", "'antigravity:Family' is not supported"),  # of a file: imports nothing
        ("bert", "causal-lm", "'bert' cannot do causal-lm; it can do text-classification"),
        ("llama", "text-classification", "'llama' cannot do text-classification; it can do causal-lm"),
        ("bert", "translation", "'translation' is not known; choose one of text-classification, causal-lm"),
    ],
)
def test_refusals_name_what_is_known(model_type: str, task: str, message: str) -> None:
    with pytest.raises(ModelUnsupportedError, match=message):
        family_class(model_type, task)


@pytest.mark.parametrize(
    "changes", [{"position_embedding_type": "relative_key"}, {"is_decoder": True}], ids=["positions", "decoder"]
)
def test_settings_that_the_stages_do_not_reproduce_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ModelUnsupportedError):
        family_for(transformers.BertConfig(**changes), "text-classification")
