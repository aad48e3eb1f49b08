"""Physical pruning of a Hugging Face model: weights sliced by a plan, and the modules told their new sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from edge_runtime.formats.manifest import Manifest
    from edge_runtime.formats.plan import Plan
    from models.family import Family


def prune_model(model: Any, family: Family, manifest: Manifest, plan: Plan) -> None:
    """Remove everything from ``model``, in place, that ``plan`` does not keep.

    Args:
        model: Hugging Face model with merged weights, of the manifest's shapes.
        family: its family.
        manifest: says which axes of which weights shrink.
        plan: units that stay.

    Raises:
        ModelUnsupportedError: the family cannot run a plan like this (see :meth:`models.family.Family.resize`).
    """
    family.resize(model, {key: units.size for key, units in plan.units.items()})
    for spec in manifest.tensors:
        if spec.layer is None or not spec.prune:
            continue
        path, _, leaf = spec.name.rpartition(".")
        module = model.get_submodule(path)
        value = getattr(module, leaf).detach()
        for prune in spec.prune:
            value = value.index_select(prune.axis, torch.from_numpy(plan.indices(spec.layer, prune)))
        setattr(module, leaf, nn.Parameter(value.contiguous(), requires_grad=False))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
