"""Tokens that activations give away: ``python -m benchmarks.cut_inversion ARTIFACT --public FILE --test FILE``.

Inverts what a device would send of the test's examples at a cut: real bytes of a reply, coded and with noise as split
tuning has them. Both attackers know the pretrained weights, the cut, the coding and the size of the noise, not its
bits; they look for the token whose output of the embedding stage at that position is nearest, among the vocabulary:

- ``nearest``: nearest to the hidden state as it is, by the cosine;
- ``ridge``: nearest to its image under a linear map, by the cosine of what differs from the mean embedding. The map is
  fitted, by ridge regression, from the hidden states of a public text to its embeddings; the states are made with the
  same coding, and with noise of the attacker's own.

Writes JSON to stdout: by cut, coding and noise the share of tokens that each recovers; and that of who always says the
commonest token of the public text. Tokens that all of its examples have (marks of beginning and end) do not count.
Neither attacker uses that tokens of a text depend on one another, so a better one recovers more.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.fleet import processor
from benchmarks.step import environment
from edge_runtime.agent.methods.split.noise import KEY_BYTES, CutNoise
from edge_runtime.engine.artifact import Artifact
from edge_runtime.engine.data import load_examples
from edge_runtime.engine.dataset import Batch, Dataset
from edge_runtime.engine.slicing import slice_weights
from edge_runtime.engine.staged import StagedGraphs
from edge_runtime.formats.activations import Coder, Form, decode_activations
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.plan import Plan

Array = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

VICTIM: Final = bytes(KEY_BYTES)
ATTACKER: Final = bytes([1]) * KEY_BYTES
"""Secrets of their noise."""
BATCH: Final = 16
BLOCK: Final = 1024
"""Tokens of the vocabulary that are embedded at a time, about."""
PENALTIES: Final = (1e-6, 1e-4, 1e-2, 1.0)
"""Of the ridge, in units of the mean square of an input; the one with the least error on the last tenth is taken."""
ATTACKERS: Final = ("nearest", "ridge")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The form of what is sent."""

    cut: int
    dtype: Any
    noise: float


class Lower:
    """Hidden states of a model without an adapter."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        plan, graphs = Plan.full(artifact.manifest), StagedGraphs(artifact, num_threads=1)
        layout = AdapterLayout.of(artifact.manifest, plan, 1)
        weights = slice_weights(artifact, plan, keep_stored=graphs.keeps_stored)
        self._model = graphs.model(weights, layout, 1.0)
        self._none = np.zeros(layout.num_elements, np.float32)

    def states(self, dataset: Dataset, cut: int) -> Array:
        """After ``cut`` blocks, of all tokens of a dataset, float32 ``[T, H]``; 0 = the embedding stage's output."""
        hidden = np.empty((dataset.tokens.size, self.artifact.manifest.hidden_size), np.float32)
        order = np.argsort(-dataset.lengths, kind="stable")
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            found = self._model.lower(dataset.batch(chosen), self._none, cut).hidden
            for row, example in enumerate(chosen):
                hidden[dataset.offsets[example] : dataset.offsets[example + 1]] = found[row, : dataset.lengths[example]]
        return hidden

    def vocabulary(self, length: int) -> Iterator[tuple[Int64, Array]]:
        """Some tokens at a time, int64 ``[n]``, and their embeddings at each position, float32 ``[length, n, H]``."""
        size = self.artifact.manifest.text.vocab_size
        count = -(-BLOCK // length) * length
        for begin in range(0, size, count):
            tokens = np.arange(begin, begin + count) % size
            table = np.empty((length, count, self.artifact.manifest.hidden_size), np.float32)
            for shift in range(length):  # by so many places, so that each token is at each position once
                ids = np.roll(tokens, shift).reshape(-1, length)
                batch = Batch(input_ids=ids, attention_mask=np.ones_like(ids), labels=np.zeros(len(ids), np.int64))
                hidden = self._model.lower(batch, self._none, 0).hidden
                places = (np.arange(count).reshape(-1, length) - shift) % count
                for position in range(length):
                    table[position, places[:, position]] = hidden[:, position]
            yield tokens, table


def main() -> None:
    """Parse, attack, print."""
    options = parser().parse_args()
    result = attack(options)
    json.dump({"environment": environment() | {"processor": processor()}} | result, sys.stdout)
    print()


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="directory that `fedspine export` wrote")
    parser.add_argument("--public", type=Path, required=True, help="JSON lines that the attacker fits his map on")
    parser.add_argument("--test", type=Path, required=True, help="JSON lines that are attacked")
    parser.add_argument("--cut", default="1,2,3", help="default: %(default)s")
    parser.add_argument("--dtype", default="float32,int8", help="without noise, default: %(default)s")
    parser.add_argument("--noise", default="0.5,2,8", help="sizes, coded in int8, default: %(default)s")
    parser.add_argument("--public-examples", type=int, default=1500, help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=100, help="attacked ones, default: %(default)s")
    parser.add_argument("--max-length", type=int, default=32, help="tokens of an example, default: %(default)s")
    return parser


def attack(options: argparse.Namespace) -> dict[str, Any]:
    """The shares of all settings."""
    artifact = Artifact.open(options.artifact)
    public, private = (
        first(load_examples(path, artifact, options.max_length), count)
        for path, count in ((options.public, options.public_examples), (options.test, options.examples))
    )
    lower = Lower(artifact)
    positions = np.concatenate([np.arange(length) for length in private.lengths])
    settings = [
        Setting(cut=cut, dtype=dtype, noise=noise)
        for cut in map(int, options.cut.split(","))
        for dtype, noise in (
            *((dtype, 0.0) for dtype in options.dtype.split(",")),
            *(("int8", float(noise)) for noise in options.noise.split(",") if noise),
        )
    ]
    embedded = lower.states(public, 0)
    centre = embedded.mean(axis=0)
    states = functools.lru_cache(maxsize=2)(lambda name, cut: lower.states({"p": public, "t": private}[name], cut))
    queries = np.empty((2, len(settings), private.tokens.size, embedded.shape[1]), np.float32)
    for place, setting in enumerate(settings):
        seen = sent(artifact, private, states("t", setting.cut), setting, VICTIM)
        known = sent(artifact, public, states("p", setting.cut), setting, ATTACKER)
        queries[0, place] = unit(seen)
        queries[1, place] = unit(ridge(known, embedded)(seen) - centre)
    guessed = nearest(lower, queries, centre, positions)
    counted = ~np.isin(private.tokens, in_all(public))
    right = (guessed == private.tokens)[:, :, counted].mean(axis=2)
    common = np.bincount(public.tokens[~np.isin(public.tokens, in_all(public))]).argmax()
    runs = [
        dataclasses.asdict(setting) | {name: round(float(right[way, place]), 4) for way, name in enumerate(ATTACKERS)}
        for place, setting in enumerate(settings)
    ]
    return {
        "public_tokens": int(public.tokens.size),
        "tokens": int(counted.sum()),
        "commonest": round(float((private.tokens[counted] == common).mean()), 4),
        "runs": runs,
    }


def first(dataset: Dataset, count: int) -> Dataset:
    """So many examples of the beginning."""
    return dataset.subset(np.arange(min(len(dataset), count)))


def in_all(dataset: Dataset) -> npt.NDArray[np.int32]:
    """Tokens that every example has."""
    pairs = zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)
    found = functools.reduce(np.intersect1d, (dataset.tokens[begin:end] for begin, end in pairs))
    return np.asarray(found, np.int32)


def sent(artifact: Artifact, dataset: Dataset, states: Array, setting: Setting, key: bytes) -> Array:
    """The hidden states as the server decodes them from a device's reply, float32 ``[T, H]``."""
    longest = int(dataset.lengths.max())
    form = Form.of(artifact.manifest, artifact.digest, setting.cut, setting.dtype, longest)
    labels = dataset.tokens if dataset.labels is None else dataset.labels.astype(np.int32)
    coder = Coder(form, dataset.lengths, labels)
    noise = CutNoise(key, artifact.digest, setting.cut, setting.noise) if setting.noise else None
    for example in range(len(dataset)):
        place = slice(dataset.offsets[example], dataset.offsets[example + 1])
        coder.put(example, states[place] if noise is None else noise.added(dataset.tokens[place], states[place]))
    return decode_activations(coder.encode(), form, len(dataset)).rows(0, dataset.tokens.size)


def ridge(inputs: Array, outputs: Array) -> Callable[[Array], Array]:
    """An affine map from inputs to outputs, both float32 ``[n, H]``."""
    many = -(-9 * len(inputs) // 10)
    mean, target = inputs[:many].mean(axis=0), outputs[:many].mean(axis=0)
    given, wanted = (inputs[:many] - mean).astype(np.float64), (outputs[:many] - target).astype(np.float64)
    gram, product = given.T @ given, given.T @ wanted
    unit_size = np.trace(gram) / len(gram)
    tried = []
    for penalty in PENALTIES:
        weights = np.linalg.solve(gram + penalty * unit_size * np.eye(len(gram)), product).astype(np.float32)
        left = (inputs[many:] - mean) @ weights + target - outputs[many:]
        tried.append((float(np.square(left).mean()), penalty, weights))
    best = min(tried, key=lambda one: one[:2])[2]
    return lambda rows: (rows - mean) @ best + target


def nearest(lower: Lower, queries: Array, centre: Array, positions: Int64) -> Int64:
    """The nearest token of each query, by the cosine.

    Args:
        lower: gives the embeddings.
        queries: of length 1, float32 ``[2, S, T, H]``: to compare with embeddings, and with embeddings less ``centre``.
        centre: float32 ``[H]``.
        positions: of the tokens, int64 ``[T]``.

    Returns:
        Tokens, int64 ``[2, S, T]``.
    """
    best = np.full(queries.shape[:3], -np.inf, np.float32)
    guessed = np.zeros(queries.shape[:3], np.int64)
    for tokens, table in lower.vocabulary(int(positions.max()) + 1):
        for position, embeddings in enumerate(table):
            here = np.flatnonzero(positions == position)
            for way, candidates in enumerate((unit(embeddings), unit(embeddings - centre))):
                scores = queries[way][:, here].reshape(-1, len(centre)) @ candidates.T
                places = scores.argmax(axis=1)
                shape = (queries.shape[1], here.size)
                found = scores[np.arange(len(scores)), places].reshape(shape)
                is_better = found > best[way][:, here]
                best[way][:, here] = np.where(is_better, found, best[way][:, here])
                guessed[way][:, here] = np.where(is_better, tokens[places].reshape(shape), guessed[way][:, here])
    return guessed


def unit(rows: Array) -> Array:
    """The same directions, of length 1."""
    scaled: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


if __name__ == "__main__":
    main()
