from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bounds import limits
from edge_runtime.bounds.versioned import encode_description
from edge_runtime.errors import ArtifactVersionError, ExitCode, ManifestError
from edge_runtime.formats.manifest import FORMAT_VERSION, Manifest, decode_manifest, digest_of


def test_a_manifest_survives_the_round_trip(manifest: Manifest) -> None:
    assert decode_manifest(encode_description(manifest)) == manifest


def test_its_bytes_are_deterministic(manifest: Manifest) -> None:
    files = dict(reversed([*manifest.files.items(), ("a", next(iter(manifest.files.values())))]))
    one, other = (msgspec.structs.replace(manifest, files=f) for f in (files, dict(reversed(files.items()))))
    assert encode_description(one) == encode_description(other)


def test_digests_are_sha_256() -> None:
    assert digest_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_unknown_fields_are_ignored(manifest: Manifest) -> None:
    fields = json.loads(encode_description(manifest)) | {"future": 1}
    assert decode_manifest(json.dumps(fields).encode()) == manifest


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_another_version_is_refused_whatever_else_it_holds(version: int) -> None:
    with pytest.raises(ArtifactVersionError, match=f"version {version}") as caught:
        decode_manifest(json.dumps({"format_version": version, "new": {}}).encode())
    assert caught.value.exit_code == ExitCode.ARTIFACT_VERSION


GROUP = {"layer": 0, "group": "heads", "num_units": 4}
FILE = {"digest": "a" * 64, "size_bytes": 1, "on_device": True}


@pytest.mark.parametrize(
    "changed",
    [
        {"num_layers": 0},
        {"num_layers": limits.MAX_LAYERS + 1},
        {"num_layers": "2"},
        {"groups": [GROUP, GROUP]},
        {"groups": [GROUP | {"num_units": 0}]},
        {"groups": [GROUP | {"layer": 2}]},
        {"groups": []},
        {"block_prefixes": ["l0."]},
        {"task": "translation"},
        {"files": {"../escape": FILE}},
        {"files": {"a\\b": FILE}},
        {"files": {".hidden": FILE}},
        {"files": {"": FILE}},
        {"files": {"x": FILE | {"digest": "A" * 64}}},
        {"files": {"x": FILE | {"digest": "ab"}}},
        {"files": {"x": FILE | {"size_bytes": -1}}},
        {"files": {"x": FILE | {"size_bytes": 2**62}}},
        {"files": {"a\0b": FILE}},
        {"files": {"a" * 5_000: FILE}},
        {"family": "bert\x1b[2J"},
        {"word_embedding": "embed\0weight"},
        {"hidden_size": 2**62},
    ],
    ids=str,
)
def test_contradictions_are_refused(manifest: Manifest, changed: dict[str, Any]) -> None:
    fields = json.loads(encode_description(manifest)) | changed
    with pytest.raises(ManifestError):
        decode_manifest(json.dumps(fields).encode())


@pytest.mark.parametrize("part", ["tensors", "dense"])
def test_shapes_that_no_memory_holds_are_refused(manifest: Manifest, part: str) -> None:
    fields = json.loads(encode_description(manifest))
    fields[part][-1]["shape"] = [2**31 - 1] * 8
    with pytest.raises(ManifestError, match="more than 1099511627776 elements"):
        decode_manifest(json.dumps(fields).encode())


def test_targets_must_come_layer_by_layer(manifest: Manifest) -> None:
    fields = json.loads(encode_description(manifest))
    fields["targets"].reverse()
    with pytest.raises(ManifestError, match="ascending"):
        decode_manifest(json.dumps(fields).encode())


@pytest.mark.parametrize("axis", [{"axis": 2}, {"unit_size": 2}, {"group": "experts"}], ids=str)
def test_axes_that_do_not_fit_their_tensor_are_refused(manifest: Manifest, axis: dict[str, Any]) -> None:
    fields = json.loads(encode_description(manifest))
    fields["tensors"][0]["prune"][0] |= axis
    with pytest.raises(ManifestError, match=r"l0\.q\.weight"):
        decode_manifest(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("number", "changed", "message"),
    [
        (-1, {"shape": [20 * 6]}, "no matrix 'embed.weight'"),
        (-1, {"name": "other.weight"}, "no matrix 'embed.weight'"),
        (0, {"layer": 1}, "of layer 1, whose names begin otherwise"),
        (0, {"layer": 7}, "of layer 7, whose names begin otherwise"),
        (0, {"name": "q.weight"}, "of layer 0, whose names begin otherwise"),
        (0, {"dtype": "nf4"}, "cannot be stored as nf4"),
        (-1, {"dtype": "nf4", "shape": [20, 63]}, "cannot be stored as nf4"),
        (0, {"dtype": "int8", "shape": [8], "prune": []}, "cannot be stored as int8"),
    ],
    ids=str,
)
def test_tensors_that_staged_mode_cannot_use_are_refused(
    manifest: Manifest, number: int, changed: dict[str, Any], message: str
) -> None:
    fields = json.loads(encode_description(manifest))
    fields["tensors"][number] |= changed
    with pytest.raises(ManifestError, match=message):
        decode_manifest(json.dumps(fields).encode())


def test_whole_blocks_of_nf4_along_an_axis_that_no_plan_cuts_are_taken(manifest: Manifest) -> None:
    fields = json.loads(encode_description(manifest))
    fields["tensors"][-1] |= {"dtype": "nf4", "shape": [20, 64]}
    assert decode_manifest(json.dumps(fields).encode()).tensors[-1].dtype == "nf4"


@pytest.mark.parametrize(("task", "is_tied"), [("causal-lm", True), ("text-classification", False)])
def test_an_embedding_without_an_output_matrix_beside_it_is_tied(
    manifest: Manifest, task: Literal["causal-lm", "text-classification"], *, is_tied: bool
) -> None:
    assert msgspec.structs.replace(manifest, task=task).is_embedding_tied is is_tied
    output = msgspec.structs.replace(manifest.tensors[-1], name="lm_head.weight")
    untied = msgspec.structs.replace(manifest, task=task, tensors=(*manifest.tensors, output))
    assert not untied.is_embedding_tied


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"null", b"\xff", b'{"format_version": %d}' % FORMAT_VERSION, b"[" * 9000]
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        decode_manifest(data)


@pytest.mark.parametrize("text", [b"bert\xff", b"\xc3\x28", b"\xed\xa0\x80"], ids=["byte", "pair", "surrogate"])
def test_text_that_is_no_utf8_is_refused(manifest: Manifest, text: bytes) -> None:
    data = encode_description(manifest).replace(manifest.model_name.encode(), text)
    with pytest.raises(ManifestError, match="malformed") as caught:
        decode_manifest(data)
    assert caught.value.exit_code == ExitCode.ARTIFACT_CORRUPTED


@pytest.mark.parametrize("token", [-1, 20, 2**31])
@pytest.mark.parametrize("field", ["pad_token_id", "eos_token_id", "end_token_ids"])
def test_ids_outside_the_vocabulary_are_refused(field: str, token: int, manifest: Manifest) -> None:
    fields = json.loads(encode_description(manifest))
    fields["text"][field] = [3, token] if field == "end_token_ids" else token
    with pytest.raises(ManifestError, match=field):
        decode_manifest(json.dumps(fields).encode())


def test_a_vocabulary_is_the_rows_of_the_word_embedding(manifest: Manifest) -> None:
    fields = json.loads(encode_description(manifest))
    fields["text"]["vocab_size"] = 21
    with pytest.raises(ManifestError, match="vocabulary of 21 tokens, but the word embedding has 20 rows"):
        decode_manifest(json.dumps(fields).encode())


def test_every_end_of_text_counts(manifest: Manifest) -> None:
    text = manifest.text
    assert text.ends == frozenset()
    assert msgspec.structs.replace(text, eos_token_id=3).ends == {3}
    assert msgspec.structs.replace(text, eos_token_id=3, end_token_ids=(5, 3)).ends == {3, 5}


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        decode_manifest(data)


def test_a_manifest_over_the_limit_is_refused() -> None:
    with pytest.raises(ManifestError, match="at most"):
        decode_manifest(b" " * (limits.MAX_MANIFEST_BYTES + 1))


def test_a_group_that_is_missing_is_named(manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match="'experts' in layer 0"):
        manifest.group(0, "experts")
