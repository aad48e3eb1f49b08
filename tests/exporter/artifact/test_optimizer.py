"""The optimizer graph is PyTorch's clipping and AdamW; with the training graph it trains as PyTorch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from edge_runtime.formats import names
from edge_runtime.formats.adapter import AdapterLayout
from exporter.artifact.optimizer import optimizer_graph
from tests.exporter.reference import (
    Arrays,
    TorchReference,
    arms,
    batch_inputs,
    loss_scale,
    manifest_of,
    random_adapter,
    random_batch,
    relative_error,
    session,
    training_inputs,
)

BETAS = (0.9, 0.98)
EPSILON = 1e-8
NUM_MICRO_BATCHES = 4
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def optimizer() -> ort.InferenceSession:
    return ort.InferenceSession(optimizer_graph().SerializeToString(), providers=["CPUExecutionProvider"])


def state_of(params: np.ndarray) -> Arrays:
    return {names.PARAMS: params, names.EXP_AVG: np.zeros_like(params), names.EXP_AVG_SQ: np.zeros_like(params)}


def step(
    optimizer: ort.InferenceSession,
    state: Arrays,
    grads: np.ndarray,
    number: int,
    *,
    lr: float,
    weight_decay: float,
    max_grad_norm: float,
    grad_scale: float,
) -> tuple[Arrays, float]:
    scalars = {
        names.GRAD_SCALE: grad_scale,
        names.LEARNING_RATE: lr,
        names.WEIGHT_DECAY: weight_decay,
        names.MAX_GRAD_NORM: max_grad_norm,
        names.BETA1: BETAS[0],
        names.BETA2: BETAS[1],
        names.EPSILON: EPSILON,
        names.BIAS_CORRECTION1: 1 - BETAS[0] ** number,
        names.BIAS_CORRECTION2: 1 - BETAS[1] ** number,
    }
    feeds = state | {names.GRADS: grads} | {name: np.array(x, np.float32) for name, x in scalars.items()}
    outputs = [name + names.OUT_SUFFIX for name in state]
    *new, norm = optimizer.run([*outputs, names.GRAD_NORM], feeds)
    return dict(zip(state, new, strict=True)), float(norm)


@pytest.mark.parametrize("max_grad_norm", [0.5, 50.0, np.inf], ids=["clips", "clips at times", "never clips"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_every_step_is_that_of_pytorch(
    optimizer: ort.InferenceSession, max_grad_norm: float, weight_decay: float
) -> None:
    rng = np.random.default_rng(0)
    params = rng.normal(size=500).astype(np.float32)
    tensor = torch.nn.Parameter(torch.from_numpy(params.copy()))
    reference = torch.optim.AdamW([tensor], lr=1e-2, betas=BETAS, eps=EPSILON, weight_decay=weight_decay)
    state = state_of(params)
    for number in range(1, 21):
        lr = 1e-2 / number
        grads = (rng.normal(size=500) * rng.choice([1e-3, 1.0, 100.0])).astype(np.float32)

        state, norm = step(
            optimizer,
            state,
            grads,
            number,
            lr=lr,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            grad_scale=1 / NUM_MICRO_BATCHES,
        )

        tensor.grad = torch.from_numpy(grads) / NUM_MICRO_BATCHES
        reference.param_groups[0]["lr"] = lr
        expected_norm = torch.nn.utils.clip_grad_norm_([tensor], max_grad_norm)
        reference.step()
        assert norm == pytest.approx(expected_norm.item(), rel=1e-5)
        moments = reference.state[tensor]
        expected = {names.PARAMS: tensor.detach(), names.EXP_AVG: moments["exp_avg"]}
        expected[names.EXP_AVG_SQ] = moments["exp_avg_sq"]
        for name, value in expected.items():
            assert relative_error(state[name], value.numpy()) <= TOLERANCE


def test_a_zero_gradient_is_no_division_by_zero(optimizer: ort.InferenceSession) -> None:
    params = np.ones(3, np.float32)
    options = {"lr": 0.1, "weight_decay": 0.0, "max_grad_norm": 1.0, "grad_scale": 1.0}

    state, norm = step(optimizer, state_of(params), np.zeros(3, np.float32), 1, **options)

    assert norm == 0.0
    np.testing.assert_array_equal(state[names.PARAMS], params)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_200_steps_follow_pytorch(family: str, optimizer: ort.InferenceSession, request: pytest.FixtureRequest) -> None:
    """Loss parity: one uneven arm trained by both, with decay, clipping and a falling learning rate."""
    model: Path = request.getfixturevalue(f"tiny_{family}_model")
    artifact: Path = request.getfixturevalue(f"tiny_{family}_artifact")
    manifest = manifest_of(artifact)
    arm = arms(manifest)["uneven:5"]
    adapter = random_adapter(manifest, arm)
    reference = TorchReference(model, manifest, arm, adapter, torch.float32)
    layout = AdapterLayout.of(manifest, arm.plan, arm.rank)
    trainer = session(artifact / names.TRAINING_GRAPH)
    torch_optimizer = torch.optim.AdamW(
        reference.parameters.values(), lr=1.0, betas=BETAS, eps=EPSILON, weight_decay=0.01
    )
    batches = [random_batch(manifest, 4, 8, seed=seed) for seed in range(5)]
    feeds = training_inputs(artifact, arm, adapter, batches[0], np.zeros(layout.num_elements, np.float32))
    state = state_of(layout.flatten(adapter))
    losses, expected = [], []
    for number in range(1, 201):
        lr = 2e-3 * (1 - number / 250)
        batch = batch_inputs(batches[number % len(batches)])
        feeds |= batch | loss_scale(batch) | {names.PARAMS: state[names.PARAMS]}
        loss, grads = trainer.run([names.LOSS, names.GRAD_ACCUM_OUT], feeds)
        state, _ = step(optimizer, state, grads, number, lr=lr, weight_decay=0.01, max_grad_norm=1.0, grad_scale=1.0)
        losses.append(float(loss))

        torch_optimizer.param_groups[0]["lr"] = lr
        expected.append(reference.gradients(batches[number % len(batches)])[0])
        torch.nn.utils.clip_grad_norm_(reference.parameters.values(), 1.0)
        torch_optimizer.step()

    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
