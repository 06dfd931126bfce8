"""Linear decay of the relative update instead of the learning rate (no paper; this library's own).

Observes how far the last update moved the weights, and answers with the learning rate under which the next one moves
them by the share

    |w_{t+1} - w_t| / |w_t| = rho * (1 - t / T)

The user's learning rate is not used: the first update is made at 1e-7 to be measured. `universal_1` does the same
while its net answers zero. But for that measurement it is open loop: it does not observe whether the loss falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, Device, Params, Shape, State
from ..observation import Observation
from . import _random, _relative_update

_MAX_SHIFT = 4.0  # as in `universal_1`


@dataclass(frozen=True, kw_only=True)
class Relative(Controller):
    """A schedule of relative updates; the user's learning rate does not matter.

    Args:
        rho: relative update at the start of the run, in [1e-6, 1]. The default suits pretrained weights; from scratch
            and for adapters 0.016 does.
        walk: for benchmarks, the placebo of `universal_1`: standard deviation of a random step of the log relative
            update at each decision, in [0, 5]; 0 stays on the line.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> controller, lr = Relative(rho=0.01), torch.tensor(1e-7, dtype=torch.float64)
        >>> moved = {"update_ratio": torch.tensor(1e-6), "last_lr": lr}  # 1e-7 moved the weights by 1e-6 of them
        >>> obs = Observation(step=1, total_steps=100, lr=lr, base_lr=lr, **moved)
        >>> controller.decide(obs, controller.init())[0]
        tensor(0.0010, dtype=torch.float64)
    """

    controller_type = "relative"
    answers = "lr"
    needs = frozenset({"update_ratio"})
    ignores_base_lr = True
    decisions = 20

    rho: float = 0.001
    walk: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "random", self.walk > 0)
        check_range(self, "walk", self.walk, 0.0, 5.0, hint="0 is the straight line")
        check_range(self, "rho", self.rho, 1e-6, 1.0, hint="0.001 suits pretrained transformers, 0.016 new nets")

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """The size of a unit update; of a walk also its place, and the generator of all runs."""
        state: State = dict(_relative_update.init_units(batch_shape, device))
        if self.walk:
            start = torch.zeros(batch_shape, dtype=torch.float64, device=device)
            state |= {"shift": start, _random.GENERATOR: _random.seeded(seed)}
        return state

    def due(self, update: int, total_steps: int | None) -> bool | None:
        """At updates 0, 1, 2, 4 and so on up to an even rhythm, then in that."""
        return _relative_update.due(update, total_steps, self.decisions)

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Learning rate of `batch_shape`."""
        state = {**state, **_relative_update.measure(obs, state)}
        wanted = self.rho * (torch.ones_like(obs.lr) if obs.total_steps is None else obs.remaining)
        if self.walk:
            z, generator = _random.normal(state[_random.GENERATOR], tuple(obs.lr.shape))
            shift = (state["shift"] + self.walk * z.to(obs.lr)).clamp(-_MAX_SHIFT, _MAX_SHIFT)
            state |= {"shift": shift, _random.GENERATOR: generator}
            wanted = wanted * shift.exp()
        return _relative_update.rate_for(wanted, state, obs), state
