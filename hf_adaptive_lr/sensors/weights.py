"""Statistics of a model's last two weight matrices, which Xu et al. 2019 (arXiv:1909.09712) observe."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WEIGHT_FIELDS = ("penultimate_mean", "penultimate_variance", "head_mean", "head_variance")


def last_matrices(params: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The last two trained weight matrices, the head's second; where there is one, that and its bias.

    `params` are in the model's order; ValueError where there is no matrix among them.
    """
    trained = [p for p in params if p.requires_grad]
    places = [i for i, p in enumerate(trained) if p.ndim == 2]
    if not places:
        raise ValueError("the controller looks at the last weight matrices, and the model trains none")
    if len(places) > 1:
        return trained[places[-2]], trained[places[-1]]
    after = trained[places[0] + 1 :]
    return trained[places[0]], after[0] if after else trained[places[0]]


@torch.no_grad()
def measure_weights(optimizer: Optimizer, model: nn.Module | None) -> dict[str, Tensor]:
    """Mean and variance of the last two weight matrices in the model's (else optimizer's) order; 0-d, no host sync."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if model is not None:
        mine = {id(p) for p in params}
        params = [p for p in model.parameters() if id(p) in mine]
    numbers = [f for p in last_matrices(params) for f in (p.float().mean(), p.float().var(correction=0))]
    return dict(zip(WEIGHT_FIELDS, numbers, strict=True))
