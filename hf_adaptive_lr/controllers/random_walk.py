"""Random walk of the learning rate, the placebo of a learned controller. Open loop; not from a paper.

Sees nothing but the learning rate in force and moves its logarithm at random, as often and in the same space as a
learned controller moves it:

    lr_k = lr_{k-1} * exp(step * z_k),    z_k ~ N(0, 1) independent

What is left of a learned controller's gain after the placebo's is taken off is due to what it sees; what the placebo
gains over a constant rate is due to moving at all (or to a badly chosen base LR). For a fair comparison give it the
cadence and bounds of that controller and, as `step`, the standard deviation of its moves. After k free decisions
log(lr / base_lr) has standard deviation step * sqrt(k): 0.45 after 20 with the default step. It is symmetric in the
logarithm, so the median, not the mean, of the learning rate stays where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, Device, Params, Shape, State
from ..observation import Observation
from . import _random


@dataclass(frozen=True, kw_only=True)
class RandomWalk(Controller):
    """Random moves of the log learning rate, relative to the one in force, so that bounds leave no hidden memory.

    Args:
        step: standard deviation of one move of the log LR, in [0, 5]; 0 never moves. 0.1 changes the LR by about a
            tenth.
        span: the walk is reflected where |log(lr / base_lr)| reaches this, in [0.001, 13.8]; None: no bounds but the
            scheduler's. log(10) = 2.3 keeps it within a factor of ten.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> import torch
        >>> from hf_adaptive_lr import Observation
        >>> walk, lr = RandomWalk(span=0.5), torch.tensor(0.1, dtype=torch.float64)
        >>> obs = Observation(step=0, total_steps=None, lr=lr, base_lr=lr)
        >>> factor, state = walk.decide(obs, walk.init(seed=0))
        >>> factor
        tensor(1.1666, dtype=torch.float64)
    """

    controller_type = "random_walk"
    decisions = 20
    random = True

    step: float = 0.1
    span: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "step", self.step, 0.0, 5.0, hint="0.1 moves the LR by about a tenth, 0 not at all")
        if self.span is not None:
            check_range(self, "span", self.span, 1e-3, 13.8, hint="2.3 keeps the LR within a factor of ten")

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """`generator`, one for all runs of a batch."""
        return {_random.GENERATOR: _random.seeded(seed)}

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor of the base LR, of `batch_shape`: one move from where the learning rate stands."""
        z, generator = _random.normal(state[_random.GENERATOR], tuple(obs.lr.shape))
        factor, move = obs.lr / obs.base_lr, self.step * z.to(obs.lr)
        moved = factor * move.exp() if self.span is None else _reflect(factor.log() + move, self.span).exp()
        return moved, {**state, _random.GENERATOR: generator}


def _reflect(x: Tensor, span: float) -> Tensor:
    """`x` folded into [-span, span], as light between two mirrors."""
    return (torch.remainder(x - span, 4 * span) - 2 * span).abs() - span
