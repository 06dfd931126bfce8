"""Hypergradient descent (Baydin et al. 2018, arXiv:1703.04782); multiplicative rule by D. Martinez Rubio (MSc thesis).

Sees how the gradient g_t meets the direction d_{t-1} of the previous update: their inner product is minus the
derivative of the loss with respect to the learning rate. Answers

    alpha_t = alpha_{t-1} + beta * g_t . d_{t-1}                                     (additive; paper, Algorithms 1-3)
    alpha_t = alpha_{t-1} * (1 + beta * g_t . d_{t-1} / (|g_t| |d_{t-1}|))          (multiplicative; thesis, eq. 3.4)

for one learning rate or for every parameter group by itself. d is torch's own direction: gradient (SGD-HD), momentum
buffer or Nesterov direction (SGDN-HD, with coupled weight decay), corrected m / (sqrt(v) + eps) (Adam-HD). The
additive rule depends on the scale of the loss, and in the paper's own VGG run made the learning rate negative in 5,980
of 39,100 updates; the multiplicative one does neither.

Departs from the paper: gradients are compared as they stand in `param.grad` when the optimizer steps, so clipping is
inside (the cosine does not see it, the additive rule does); AdamW's decoupled decay is not part of d; the learning
rate stays within the scheduler's bounds, above 0, and what the bounds cut off is not remembered; Adam-HD's learning
rate is one for all tensors of an update, where the authors' code changes it from tensor to tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Citation, Controller, Params, State
from ..observation import Observation


@dataclass(frozen=True, kw_only=True)
class Hypergradient(Controller):
    """Grow the learning rate while successive updates agree, shrink it when they turn against each other.

    Presets: `paper` is the additive rule with the authors' step for SGD, `paper_adam` with their step for Adam.

    Args:
        beta: hypergradient step. Multiplicative: in [0, 1), 0.05 in all of the thesis' experiments; one decision
            changes the learning rate by at most this share. Additive: at least 0, in learning rate squared per loss;
            the paper has 1e-3 for SGD and SGDN, 1e-7 (logistic regression, MLP) and 1e-8 (VGG) for Adam.
        rule: "multiplicative" or "additive".
        per_group: a learning rate for every parameter group by itself, instead of one.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> import torch
        >>> from hf_adaptive_lr import Observation
        >>> lr = torch.tensor(0.1, dtype=torch.float64)
        >>> obs = Observation(step=1, total_steps=None, lr=lr, base_lr=lr, alignment=torch.tensor(1.0))
        >>> Hypergradient(beta=0.05).decide(obs, {})[0]
        tensor(1.0500, dtype=torch.float64)
    """

    controller_type = "hypergradient"
    citation = Citation(
        "1703.04782",
        "Online Learning Rate Adaptation with Hypergradient Descent",
        "Baydin, Atilim Gunes and Cornish, Robert and Martinez Rubio, David and Schmidt, Mark and Wood, Frank",
        2018,
    )
    needs = frozenset({"alignment"})
    presets = {
        "paper": {"rule": "additive", "beta": 1e-3},
        "paper_adam": {"rule": "additive", "beta": 1e-7},
    }

    beta: float = 0.05
    rule: Literal["multiplicative", "additive"] = "multiplicative"
    per_group: bool = False

    def __post_init__(self) -> None:
        if self.rule not in ("multiplicative", "additive"):
            raise ValueError(f"Hypergradient: rule={self.rule!r} must be 'multiplicative' or 'additive'")
        field = "alignment" if self.rule == "multiplicative" else "slope"
        object.__setattr__(self, "needs", frozenset({f"group_{field}" if self.per_group else field}))
        super().__post_init__()
        if self.rule == "multiplicative":
            hint = "0 never changes the LR, 0.05 is the authors' value"
            check_range(self, "beta", self.beta, 0.0, 0.999, hint=hint)
        else:
            check_range(self, "beta", self.beta, 0.0, 1e6, hint="the paper has 1e-3 for SGD and 1e-7 for Adam")

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor of the base LR, of `batch_shape` (`per_group`: + (n_groups,)).

        It starts from the learning rate in force, so bounds leave no memory.
        """
        (field,) = self.needs
        agreement = obs.require(field)
        lr, base = _group_lrs(obs) if self.per_group else (obs.lr, obs.base_lr)
        if self.rule == "multiplicative":
            return lr / base * (1 + self.beta * agreement), state
        return (lr + self.beta * agreement) / base, state


def _group_lrs(obs: Observation) -> tuple[Tensor, Tensor]:
    if obs.lrs is None or obs.base_lrs is None:
        return obs.lr.unsqueeze(-1), obs.base_lr.unsqueeze(-1)
    # A group that the user gave the learning rate 0 keeps it, whatever its factor.
    idle = obs.base_lrs == 0
    return torch.where(idle, 1.0, obs.lrs), torch.where(idle, 1.0, obs.base_lrs)
