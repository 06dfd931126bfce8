"""Hypergradient descent, multiplicative rule (Baydin et al. 2018, arXiv:1703.04782; D. Martinez Rubio's MSc thesis).

Sees the cosine between the gradient g_t and the direction d_{t-1} of the previous update, which is minus the
normalised derivative of the loss with respect to the learning rate; answers

    alpha_t = alpha_{t-1} * (1 + beta * g_t . d_{t-1} / (|g_t| |d_{t-1}|))          (thesis eq. 3.4, Algorithm 3.1.3)

d is torch's own direction: gradient, momentum buffer or Nesterov direction for SGD (with coupled weight decay),
corrected m / (sqrt(v) + eps) for Adam and AdamW. The paper's additive rule depends on the scale of the loss and can
make the learning rate negative (5,980 of 39,100 updates of the authors' own VGG run); this one does neither.

Departs from the paper: gradients are compared as they stand in `param.grad` when the optimizer steps, so clipping is
inside (the cosine does not see it); AdamW's decoupled decay is not part of d; the learning rate stays within the
scheduler's bounds, and what the bounds cut off is not remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..controller import Controller, State, check_range
from ..observation import Observation


@dataclass(frozen=True, kw_only=True)
class Hypergradient(Controller):
    """Grow the learning rate while successive updates agree, shrink it when they turn against each other.

    Args:
        beta: hypergradient step, in [0, 1); 0.05 in all of the thesis' experiments. One decision changes the learning
            rate by at most this share.

    Raises:
        ValueError: `beta` out of range.

    Example:
        >>> import torch
        >>> from hf_adaptive_lr import Observation
        >>> lr = torch.tensor(0.1, dtype=torch.float64)
        >>> obs = Observation(step=1, total_steps=None, lr=lr, base_lr=lr, alignment=torch.tensor(1.0))
        >>> Hypergradient(beta=0.05).decide(obs, {})[0]
        tensor(1.0500, dtype=torch.float64)
    """

    controller_type = "hypergradient"
    needs = frozenset({"alignment"})

    beta: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "beta", self.beta, 0.0, 0.999, hint="0 never changes the LR, 0.05 is the authors' value")

    def decide(
        self, obs: Observation, state: State, params: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, State]:
        """Factor of the base LR, of `batch_shape`; from the learning rate in force, so bounds leave no memory."""
        del params
        return obs.lr / obs.base_lr * (1 + self.beta * obs.require("alignment")), state
