"""Updates to put into outboxes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge_runtime.wire import chunks, limits
from edge_runtime.wire.messages import Measurements, Update

MakeUpdate = Callable[..., Update]


@pytest.fixture
def make_update() -> MakeUpdate:
    def make(blob: bytes, round_number: int = 1, attempt: int = 1, run_id: str = "run") -> Update:
        return Update(
            run_id=run_id,
            device_id="board-7",
            round_number=round_number,
            attempt=attempt,
            adapter=chunks.describe(blob, limits.MIN_CHUNK_BYTES),
            num_examples=5,
            train_loss=1.0,
            measurements=Measurements(
                train_s=1.0,
                step_s_p50=0.1,
                step_s_p95=0.2,
                fetch_s=0.0,
                prepare_s=0.0,
                evaluate_s=0.0,
                peak_rss_bytes=1,
                bytes_up=1,
                bytes_down=1,
            ),
        )

    return make
