"""Methods by name, for ``fedspine run``, ``fedspine compare`` and ``config.toml``.

Each preset is a configuration of this system. A name or a source with "like" applies the idea of a published system in
FedSpine (same engine, same messages, same evaluation); it is not that system's own code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final

from broker_server.methods.method import Method
from broker_server.methods.probe.ridge import PENALTY
from broker_server.methods.registry import WORKS
from edge_runtime.wire.arms import LORA_AXES
from edge_runtime.wire.work import Arm

Settings = dict[str, object]
"""Settings, by the names that they have in a file for ``fedspine run --config`` (options, with underscores)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The settings that all methods of a comparison share, as input of presets."""

    rounds: int
    sparsity: float
    """Target pruning ratio at the end."""
    arms: tuple[Arm, ...]
    """Grid of arms of the method; methods without a grid use its bounding box."""

    @property
    def max_rank(self) -> int:
        """Rank of methods with one rank."""
        return max(arm.rank for arm in self.arms)

    @property
    def unpruned(self) -> str:
        """The only arm of methods without pruning and with one rank."""
        return LORA_AXES.format((Arm(pruning_ratio=0.0, rank=self.max_rank),))

    @property
    def pruned(self) -> str:
        """The only arm of methods that prune to the target ratio."""
        return LORA_AXES.format((Arm(pruning_ratio=self.sparsity, rank=self.max_rank),))

    @property
    def ranks(self) -> str:
        """Unpruned arms, one for each rank of the grid, largest first."""
        ranks = sorted({arm.rank for arm in self.arms}, reverse=True)
        return LORA_AXES.format(tuple(Arm(pruning_ratio=0.0, rank=rank) for rank in ranks))

    @property
    def ratios(self) -> str:
        """Arms of the largest rank, one for each ratio of the grid, ascending."""
        ratios = sorted({arm.pruning_ratio for arm in self.arms})
        return LORA_AXES.format(tuple(Arm(pruning_ratio=ratio, rank=self.max_rank) for ratio in ratios))

    def rounds_share(self, share: float) -> int:
        """A share of the rounds, at least one."""
        return max(1, round(share * self.rounds))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A method by name."""

    label: str
    """Name for tables."""
    about: str
    """Description, one line."""
    source: str = ""
    """Source, such as ``arXiv 2305.05644``; empty = FedSpine."""
    work: str | type[Method] = "lora"
    """Method: a key of :data:`.registry.WORKS`, or a class."""
    settings: Callable[[Shared], Settings]
    """Returns the settings of the preset; all other settings come from the user or the defaults."""

    @property
    def about_and_source(self) -> str:
        """Description and source in one line."""
        return f"{self.about} ({self.source})" if self.source else self.about

    @property
    def method(self) -> type[Method]:
        """The class of the method."""
        return WORKS[self.work] if isinstance(self.work, str) else self.work


RAMP_SHARE: Final = 0.1
"""Rounds of the ramp to an arm's ratio, as a share of all (ours)."""

DEPLOY_SHARE: Final = 0.3
"""Last rounds at the deployed size, as a share of all (ours)."""


def _adaptive(scheduler: str) -> Callable[[Shared], Settings]:
    """The whole system, with another scheduler; the rule of aggregation is the run's default."""

    def settings(shared: Shared) -> Settings:
        return {
            "scheduler": scheduler,
            "importance": "lora",
            "prune_scope": "global",
            "protect_first": 0,
            "protect_last": 0,
            "ramp_rounds": shared.rounds_share(RAMP_SHARE),
            "deploy_rounds": shared.rounds_share(DEPLOY_SHARE),
        }

    return settings


def _unpruned(aggregation: str) -> Callable[[Shared], Settings]:
    """One arm, nothing pruned, another rule of aggregation."""
    return lambda shared: {"scheduler": "fixed", "arms": shared.unpruned, "aggregation": aggregation}


def _by_rank(aggregation: str) -> Callable[[Shared], Settings]:
    """Nothing pruned; faster classes get larger ranks."""
    return lambda shared: {"scheduler": "by_class", "arms": shared.ranks, "aggregation": aggregation}


def _one_shot(shared: Shared) -> Settings:
    return {
        "scheduler": "fixed",
        "arms": shared.pruned,
        "aggregation": "fedit",
        "importance": "magnitude",
        "ramp_rounds": 0,
    }


def _loraprune(shared: Shared) -> Settings:
    return {
        "scheduler": "fixed",
        "arms": shared.pruned,
        "aggregation": "fedit",
        "importance": "lora",
        "ramp_rounds": shared.rounds_share(0.5),
    }


def _fedlps(shared: Shared) -> Settings:
    return {"scheduler": "fedlps", "arms": shared.ratios, "aggregation": "fedit", "importance": "magnitude"}


def _probe(shared: Shared) -> Settings:
    del shared
    return {
        "scheduler": "fixed",
        "importance": "magnitude",
        "rounds": 1,
        "local_steps": 1,
        "weight_decay": PENALTY,
    }


def _probe_softmax(shared: Shared) -> Settings:
    del shared
    return {
        "scheduler": "fixed",
        "importance": "magnitude",
        "local_steps": 20,
        "learning_rate": 30.0,
        "weight_decay": 0.0,
    }


def _zero_order(learning_rate: float, **own: object) -> Callable[[Shared], Settings]:
    """One rank, nothing pruned, a constant learning rate."""

    def settings(shared: Shared) -> Settings:
        del shared
        return {
            "scheduler": "fixed",
            "importance": "magnitude",
            "learning_rate": learning_rate,
            "final_learning_rate_ratio": 1.0,
            **own,
        }

    return settings


def _mixed(**own: object) -> Callable[[Shared], Settings]:
    """First-order on devices that have the memory, zero-order on the others; one rank, the same tensors tuned."""

    def settings(shared: Shared) -> Settings:
        del shared
        return {"scheduler": "costliest", "aggregation": "ffa_lora", "importance": "magnitude", **own}

    return settings


def _zowarmup(shared: Shared) -> Settings:
    return _mixed(first_order_rounds=shared.rounds_share(0.5))(shared)


def _split(shared: Shared) -> Settings:
    del shared
    return {"scheduler": "fixed", "importance": "magnitude", "freeze_lower": True}


def _fedara(shared: Shared) -> Settings:
    return {"scheduler": "fedara", "arms": shared.ranks, "aggregation": "flexlora"}


PRESETS: Final[Mapping[str, Preset]] = {
    "fedspine": Preset(
        label="FedSpine",
        about="bandit over (pruning ratio, rank), LoRA-gradient importance, iterative pruning",
        source="arXiv 2501.02438",
        settings=_adaptive("fedspine"),
    ),
    "fedit": Preset(
        label="FedIT",
        about="one rank, nothing pruned, A and B averaged",
        source="arXiv 2305.05644",
        settings=_unpruned("fedit"),
    ),
    "hetlora": Preset(
        label="HetLoRA",
        about="ranks by class of device, nothing pruned, zero-padded and weighted by norm",
        source="arXiv 2401.06432",
        settings=_by_rank("hetlora"),
    ),
    "one_shot": Preset(
        label="One-shot",
        about="pruned once by magnitude before training, then federated LoRA",
        source="LLM-Pruner, arXiv 2305.11627, like",
        settings=_one_shot,
    ),
    "loraprune": Preset(
        label="LoRAPrune",
        about="one fixed ratio for all, LoRA-gradient importance, cubic ramp",
        source="arXiv 2305.18403, like",
        settings=_loraprune,
    ),
    "fedara": Preset(
        label="FedARA-like",
        about="ranks allocated as training goes on, nothing pruned, combined by SVD",
        source="FedARA, arXiv 2501.14406, like",
        settings=_fedara,
    ),
    "fedlps": Preset(
        label="FedLPS-like",
        about="bandit over the pruning ratio alone, one rank, magnitude",
        source="FedLPS, arXiv 2412.07216, like",
        settings=_fedlps,
    ),
    "random": Preset(label="Random arm", about="as FedSpine, each arm drawn at random", settings=_adaptive("random")),
    "oracle": Preset(
        label="Oracle arm",
        about="as FedSpine, the scheduler knows the device models (emulation only)",
        settings=_adaptive("oracle"),
    ),
    "ducb": Preset(
        label="Discounted UCB", about="as FedSpine, discounted UCB on the grid of arms", settings=_adaptive("ducb")
    ),
    "thompson": Preset(
        label="Thompson", about="as FedSpine, Thompson sampling on the grid of arms", settings=_adaptive("thompson")
    ),
    "ffa_lora": Preset(
        label="FFA-LoRA",
        about="one rank, nothing pruned, A frozen",
        source="arXiv 2403.12313",
        settings=_unpruned("ffa_lora"),
    ),
    "flexlora": Preset(
        label="FlexLoRA",
        about="one rank, nothing pruned, exact sum and SVD",
        source="arXiv 2402.11505",
        settings=_unpruned("flexlora"),
    ),
    "flora": Preset(
        label="FLoRA",
        about="ranks by class, nothing pruned, stacked",
        source="arXiv 2409.05976",
        settings=_by_rank("flora"),
    ),
    "probe": Preset(
        label="Probe",
        about="a linear head on frozen features: exact sums, added in any order, one ridge regression; one round",
        source="ridge regression from sufficient statistics",
        work="probe",
        settings=_probe,
    ),
    "probe_softmax": Preset(
        label="Softmax probe",
        about="a linear head on frozen features: gradient steps on each device, heads averaged",
        source="FedAvg (arXiv 1602.05629) of softmax regression",
        work="probe_softmax",
        settings=_probe_softmax,
    ),
    "mezo": Preset(
        label="MeZO",
        about="tuning by forward passes alone: one perturbation a step, scalars averaged",
        source="MeZO, arXiv 2305.17333, like",
        work="zero_order",
        settings=_zero_order(1e-2, zo_cut=0, zo_outer=1, zo_inner=1),
    ),
    "decomfl": Preset(
        label="DeComFL-like",
        about="tuning by forward passes alone: several perturbations a step, shared seeds, scalars averaged",
        source="DeComFL, arXiv 2405.15861, like",
        work="zero_order",
        settings=_zero_order(2e-2, zo_cut=0, zo_outer=4, zo_inner=1),
    ),
    "fedspzo": Preset(
        label="FedSPZO-like",
        about="tuning by forward passes alone: the lower half's activations serve several perturbations of the upper",
        source="FedSPZO, arXiv 2502.10239, in the form of",
        work="zero_order",
        settings=_zero_order(2e-2, zo_outer=1, zo_inner=4),
    ),
    "fedkseed": Preset(
        label="FedKSeed-like",
        about="all weights tuned by forward passes alone, along the noise of a finite pool of seeds",
        source="FedKSeed, arXiv 2312.06353, like",
        work="zero_order",
        settings=_zero_order(1e-6, tune="all", zo_cut=0, zo_outer=1, zo_inner=1, zo_epsilon=1e-3),
    ),
    "topzo": Preset(
        label="Top-half ZO",
        about="as FedSPZO, the lower half is not tuned, and runs once for a batch",
        work="zero_order",
        settings=_zero_order(2e-2, zo_lower_learning_rate=0.0, zo_outer=1, zo_inner=4),
    ),
    "mixed": Preset(
        label="Mixed",
        about="devices with the memory for it train first-order (A frozen), the others zero-order, in the same rounds",
        work="mixed",
        settings=_mixed(),
    ),
    "zowarmup": Preset(
        label="ZOWarmUp-like",
        about="as Mixed for the first half of the rounds, then zero-order on all devices",
        source="ZOWarmUp, arXiv 2509.03503, in the form of",
        work="mixed",
        settings=_zowarmup,
    ),
    "split": Preset(
        label="Split",
        about="devices run the lower blocks once for each example; the server tunes the upper ones on what they send",
        source="SplitFrozen, arXiv 2503.18986, in the form of",
        work="split",
        settings=_split,
    ),
    "fedex_lora": Preset(
        label="FedEx-LoRA",
        about="one rank, nothing pruned, averages plus residual",
        source="arXiv 2410.09432",
        settings=_unpruned("fedex_lora"),
    ),
}
"""FedSpine's own methods by name."""
