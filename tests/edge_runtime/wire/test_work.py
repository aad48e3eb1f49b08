from __future__ import annotations

import typing

import pytest

from edge_runtime.wire.messages import Assignment
from edge_runtime.wire.work import LoraWork, ProbeWork, Work, WorkType, type_of
from tests.edge_runtime.wire.test_messages import EXAMPLES

LORA = next(message.work for message in EXAMPLES if isinstance(message, Assignment))
SOFTMAX = ProbeWork(plan=LORA.plan, form="softmax", batch_size=8, max_length=16, num_steps=30)
STATISTICS = ProbeWork(plan=LORA.plan, form="statistics", batch_size=8, max_length=16)


def test_every_tag_has_its_member_of_the_union() -> None:
    members = {tag: type_of(tag) for tag in typing.get_args(WorkType)}
    assert members == {"lora": LoraWork, "probe": ProbeWork}
    assert set(members.values()) == set(typing.get_args(Work))


@pytest.mark.parametrize(
    ("work", "words", "num_steps"),
    [(LORA, "pruning ratio 0.25, rank 8", 20), (SOFTMAX, "probe, softmax", 30), (STATISTICS, "probe, statistics", 1)],
)
def test_work_says_in_a_few_words_what_it_is_and_how_many_steps_it_counts(
    work: Work, words: str, num_steps: int
) -> None:
    assert str(work) == words
    assert work.num_counted_steps == num_steps
