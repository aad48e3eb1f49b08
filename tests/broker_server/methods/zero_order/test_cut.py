"""The cut that moves: what is predicted of every cut, and where a log of scalars leads."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_server.methods.method import Reply
from broker_server.methods.zero_order.cut import MARGIN, Stack, next_cut
from broker_server.methods.zero_order.log import SHARE_DRAWS, Log
from broker_server.methods.zero_order.method import ZeroOrder
from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from edge_runtime.formats.manifest import FileRef, Manifest
from edge_runtime.formats.plan import Plan
from edge_runtime.formats.zero_order import encode_reply
from edge_runtime.wire.logged_rounds import LoggedRound
from edge_runtime.wire.work import ZeroOrderWork
from edge_runtime.zero_order.parts import TunedParts
from edge_runtime.zero_order.replay import apply_round
from tests.broker_server import tiny
from tests.broker_server.methods.replies import reply
from tests.broker_server.methods.zero_order.samples import RANK, SEED, method, start, steps

EVEN = Stack(elements=(0.0, 0.25, 0.5, 0.75), passes=(0.0, 0.25, 0.5, 0.75))
"""Four equal blocks, and no head."""
DEEP = Stack(elements=tuple(n / 24 for n in range(24)), passes=tuple(n / 24 for n in range(24)))


def stack_of(manifest: Manifest) -> Stack:
    return Stack.of(manifest, lambda cut: TunedParts.of(manifest, RANK, cut))


def measured(number: int, cut: int, share: float, num_draws: int = 80, num_inner: int = 4) -> LoggedRound:
    """Scalars of a linear loss that has a share of its gradient's energy below the cut."""
    rng = np.random.default_rng(number)
    lower = math.sqrt(share) * rng.choice([-1.0, 1.0], (num_draws, 1, 1))
    upper = math.sqrt(1 - share) * rng.choice([-1.0, 1.0], (num_draws, 1, num_inner))
    return LoggedRound(
        round_number=number,
        cut=cut,
        lower_learning_rate=0.01,
        learning_rate=0.02,
        num_outer=1,
        num_inner=num_inner,
        scalars=(lower + upper).astype("<f4").tobytes(),
    )


def path_of(stack: Stack, shares: tuple[float, ...], num_rounds: int, first: int, **draws: int) -> list[int]:
    """Cuts of the rounds after the first, where the blocks have these shares of the gradient."""
    log, cut, cuts = Log(), first, []
    for number in range(1, num_rounds + 1):
        log = log.after(measured(number, cut, sum(shares[:cut]), **draws), 1.0)
        cut = next_cut(log, stack, first)
        cuts.append(cut)
    return cuts


@pytest.mark.parametrize("share", [0.5, 0.3, 0.2, 0.1])
def test_progress_at_the_best_number_of_inner_perturbations_is_the_documents(share: float) -> None:
    """The closed form of docs/zero-order.md, for two equal parts at one rate."""
    a = 0.5 * share
    best = math.sqrt((1 - a) / a)
    predicted = EVEN.progress(2, share, 1.0, best)
    assert predicted == pytest.approx(1 / (math.sqrt(a / 2) + math.sqrt((1 - a) / 2)) ** 2)


def test_at_the_best_rates_progress_is_what_own_rates_give() -> None:
    """Each part's rate in proportion to its gradient's energy over its estimate's: no other ratio is better."""
    share, num_inner = 0.2, 4
    lower, upper = 0.5 * (share + (1 - share) / num_inner), 0.5 / num_inner
    best = (share / lower) / ((1 - share) / upper)
    predicted = EVEN.progress(2, share, best, num_inner)
    assert predicted == pytest.approx((share**2 / lower + (1 - share) ** 2 / upper) / (0.5 + 0.5 * num_inner))
    assert predicted == pytest.approx(2.13, abs=0.01), "the document's table"
    assert all(EVEN.progress(2, share, best * factor, num_inner) < predicted for factor in (0.8, 1.25))


def test_what_was_measured_at_cuts_is_known_and_what_lies_between_is_guessed_low() -> None:
    log = Log()
    assert EVEN.shares_below(log) == {1: 0.25**3, 2: 0.5**3, 3: 0.75**3}
    log = log.after(measured(1, 3, 0.9, num_draws=600), 1.0)
    assert EVEN.shares_below(log) == pytest.approx({1: 0.9 / 27, 2: 0.9 * 8 / 27, 3: 0.9}, abs=0.02)
    log = log.after(measured(2, 2, 0.3, num_draws=600), 1.0)
    assert EVEN.shares_below(log) == pytest.approx({1: 0.3 / 8, 2: 0.3, 3: 0.9}, abs=0.04)
    few = log.after(measured(3, 1, 0.9, num_draws=SHARE_DRAWS - 1), 1.0)
    assert EVEN.shares_below(few) == EVEN.shares_below(log)
    log = log.after(measured(4, 1, 0.5), 1.0)
    later = EVEN.shares_below(log)
    assert later == pytest.approx({1: 0.5, 2: 0.5, 3: 0.9}, abs=0.1)
    assert later[1] == later[2], "what is newer is right"


def test_the_cut_moves_from_a_predicted_gain_of_a_tenth_on() -> None:
    gains = {}
    for percent in range(30, 100):
        log = Log().after(measured(1, 3, percent / 100, num_draws=2000), 1.0)
        below = EVEN.shares_below(log)
        progress = {cut: EVEN.progress(cut, below[cut], 0.5, 4) for cut in EVEN.cuts}
        gains[max(progress.values()) / progress[3]] = next_cut(log, EVEN, 3) != 3
    assert all(has_moved == (gain >= 1.1) for gain, has_moved in gains.items()), gains
    assert any(1.02 < gain < 1.08 for gain in gains)
    assert any(1.12 < gain < 1.2 for gain in gains)


def test_a_stack_is_counted_from_the_model() -> None:
    manifest = tiny.manifest(has_bias=True)
    stack = stack_of(manifest)
    outputs = [6 + 4 + 5 + 4 + 4, 6 + 4 + 5 + 4]  # of the targets, block by block
    tuned = RANK * sum(outputs) + 10  # the classifier
    assert stack.elements == pytest.approx((0, RANK * outputs[0] / tuned))
    assert stack.passes == (0, 0.5)
    assert stack.cuts == (1,)
    language = msgspec.structs.replace(manifest, task="causal-lm", dense=())
    block = 2 * 24 + 2 * 20
    assert stack_of(language).passes == pytest.approx((0, block / (2 * block + 10 * tiny.HIDDEN)))


def test_a_last_block_that_gives_first_tokens_alone_is_cheap() -> None:
    manifest = tiny.manifest(
        {names.LAST_BLOCK_STAGE: FileRef(digest="0" * 64, size_bytes=1, on_device=True)}, has_bias=True
    )
    renamed = tuple(
        msgspec.structs.replace(spec, name=spec.name.replace("query", "key").replace("output", "attention.output"))
        for spec in manifest.tensors
    )
    stack = stack_of(msgspec.structs.replace(manifest, tensors=renamed))
    assert stack.passes == pytest.approx((0, 88 / (88 + 24))), "of the last block, the keys"


def test_without_anything_known_it_is_where_it_begins() -> None:
    assert next_cut(Log(), EVEN, 3) == 3
    other = Log().after(msgspec.structs.replace(measured(1, 2, 0.9), cut=0), 1.0)
    assert next_cut(other, EVEN, 3) == 3, "a cut that was set otherwise before"


def test_it_is_lowered_as_the_gradient_below_it_grows() -> None:
    """High first; from some share on one block lower, and no further than is known to be better."""
    at = {share: path_of(EVEN, (share / 3,) * 3 + (1 - share,), 1, 3)[0] for share in (0.1, 0.5, 0.7, 0.95, 0.99)}
    assert list(at.values()) == sorted(at.values(), reverse=True)
    assert (at[0.1], at[0.99]) == (3, 2)


def test_it_is_raised_again_where_most_is_in_the_block_below() -> None:
    assert path_of(EVEN, (0.9, 0.04, 0.03, 0.03), 5, 1) == [2, 3, 3, 3, 3]


def test_something_is_left_on_either_side() -> None:
    assert path_of(EVEN, (0.02, 0.9, 0.04, 0.04), 5, 3) == [2, 1, 1, 1, 1]
    assert path_of(EVEN, (0.0, 0.0, 0.0, 1.0), 5, 3) == [3, 3, 3, 3, 3]


def test_of_a_deep_stack_it_moves_by_an_eighth_of_the_blocks() -> None:
    shares = tuple((12 - abs(n - 11.5)) / 144 for n in range(24))
    cuts = path_of(DEEP, shares, 12, 23)
    assert cuts[:2] == [20, 17]
    predicted = [DEEP.progress(cut, sum(shares[:cut]), 0.5, 4) for cut in DEEP.cuts]
    assert predicted[cuts[-1] - 1] > MARGIN * predicted[23 - 1]
    assert cuts[-1] == cuts[-3]


def test_a_cut_below_which_little_is_left_is_found() -> None:
    """Shares of the blocks of MiniLM at the probe's head on AG News; the rule has the last cut's to begin with."""
    stack = Stack(elements=(0, 0.16, 0.32, 0.48, 0.64, 0.8), passes=(0, 0.194, 0.387, 0.581, 0.774, 0.968))
    shares = (0.02, 0.05, 0.09, 0.23, 0.35, 0.26)
    predicted = {cut: stack.progress(cut, sum(shares[:cut]), 0.5, 4) for cut in stack.cuts}
    cuts = path_of(stack, shares, 8, 5)
    assert predicted[cuts[-1]] > 0.95 * max(predicted.values()) > 1.2 * predicted[5]


def test_it_waits_for_enough_scalars_at_each_cut() -> None:
    cuts = path_of(EVEN, (0.02, 0.9, 0.04, 0.04), 9, 3, num_draws=SHARE_DRAWS // 4)
    assert cuts == [3, 3, 3, 2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize("seed", range(20))
def test_where_the_gradient_stays_the_cut_comes_to_rest_and_has_not_lost(seed: int) -> None:
    shares = tuple(float(share) for share in np.random.default_rng(seed).dirichlet(np.full(4, 2.0)))
    cuts = path_of(EVEN, shares, 16, 3)
    assert len(set(cuts[6:])) == 1, "it does not move to and fro"
    predicted = {cut: EVEN.progress(cut, sum(shares[:cut]), 0.5, 4) for cut in EVEN.cuts}
    assert predicted[cuts[-1]] * MARGIN > predicted[3]


def test_rounds_at_several_cuts_are_asked_and_done_again_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a server that starts in between: it has the log alone."""
    monkeypatch.setattr(tiny, "LAYERS", 4)
    manifest = tiny.manifest(has_bias=True)
    monkeypatch.setattr("tests.broker_server.methods.zero_order.samples.MANIFEST", manifest)
    made = method(move_cut=True, num_outer=64)
    model = before = start(made)
    cuts = []
    for number in range(1, 5):
        work = steps(made, model, number)
        assert steps(method(move_cut=True, num_outer=64), model, number).cut == work.cut
        cuts.append(work.cut)
        replies = [agreeing(tmp_path, made, work, name) for name in "ab"]
        model = made.combine(number, model, {}, replies, np.random.default_rng(0)).model
    assert cuts[:3] == [3, 2, 1]
    flat = AdapterLayout.of(manifest, Plan.full(manifest), RANK).flatten(before.adapter)
    for one in steps(method(move_cut=True, num_outer=64), model, 5).log:
        apply_round(flat, TunedParts.of(manifest, RANK, one.cut), SEED, one)
    assert flat.tobytes() == AdapterLayout.of(manifest, Plan.full(manifest), RANK).flatten(model.adapter).tobytes()


def agreeing(folder: Path, made: ZeroOrder, work: ZeroOrderWork, device_id: str) -> Reply:
    """Scalars that say that nearly all of the gradient is below the cut."""
    rng = np.random.default_rng([work.cut, ord(device_id)])
    lower = rng.choice([-0.1, 0.1], (work.num_local_steps, work.num_outer, 1))
    values = lower + 0.02 * rng.choice([-1, 1], (work.num_local_steps, work.num_outer, work.num_inner))
    return reply(
        folder, made, work, device_id, encode_reply(values.astype(np.float32).reshape(work.num_local_steps, -1), 0)
    )
