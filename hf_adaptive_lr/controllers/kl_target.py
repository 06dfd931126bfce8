"""Keeps the KL divergence of an update near a target (the adaptive schedule of rl_games and rsl_rl).

Sees d_t, the KL divergence between the predictions before and after the previous update, and answers

    alpha_t = alpha_{t-1} / max(c, sqrt(d_t / d_targ))    where d_t > z * d_targ
    alpha_t = alpha_{t-1} * c                             where d_t < d_targ / z
    alpha_t = alpha_{t-1}                                 in the dead zone between these

with c = 1.5 and z = 2 as in rl_games. PPO's penalty coefficient moves by such a rule (Schulman et al. 2017,
arXiv:1707.06347, section 4: c = 2, z = 1.5); here it is the learning rate.

Departs from rl_games, whose rule has raised a rate to its upper bound, 1e-2, and so made a blow-up worse
(Denys88/rl_games#374). Where rewards no longer differ no update moves the policy, and a small d says nothing about the
rate. So the bounds are factors of the base LR, the upper one 1; once an update has reached the dead zone c is 1.05
upwards; and a d below a hundredth of the target raises nothing then. It begins at a hundredth of the base LR, as the
first update has no d before it. It cuts by more than 1.5 at once where d is far above the target, as d grows with the
square of the rate. Under a warm-up or a guard's cut it judges what d would have been at its own rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Citation, Controller, Device, Params, Shape, State
from ..observation import Observation

_LARGEST_CUT = 10.0
_LARGEST_SCALE = 100.0  # by which a divergence is multiplied that a smaller rate caused: a tenth of its own


@dataclass(frozen=True, kw_only=True)
class KLTarget(Controller):
    """Lowers the learning rate where an update moves the predictions too far, raises it where it hardly does.

    Preset: `rl_games` starts at the base LR, raises by 1.5 whatever the reason, up to ten times the base LR.

    Args:
        target: KL divergence of an update, in nats for each prediction (token, row), in [1e-8, 10]; 0.008 in rl_games.
        zone: at least 1: from target / zone to target * zone the rate stays.
        step: factor of one move, in (1, 10]: of cuts, and of raises until the target was reached for the first time.
        later: factor of one raise after that, in [1, step].
        idle: share of the target in [0, 1) below which an update then counts as one that had nothing to learn.
        start: factor of the base LR at the first update, in [floor, ceiling].
        floor: smallest factor of the base LR, in [1e-6, 1].
        ceiling: largest one, in [floor, 1000]; above 1 it may exceed the rate that you gave.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> import torch
        >>> from hf_adaptive_lr import Observation
        >>> lr = torch.tensor(0.1, dtype=torch.float64)
        >>> obs = Observation(step=5, total_steps=None, lr=lr, base_lr=lr, kl=torch.tensor(0.032))
        >>> controller = KLTarget(target=0.008)
        >>> round(float(controller.decide(obs, controller.init())[0]), 6)  # four times the target: half the rate
        0.5
    """

    controller_type = "kl_target"
    citation = Citation(
        "1707.06347",
        "Proximal Policy Optimization Algorithms",
        "Schulman, John and Wolski, Filip and Dhariwal, Prafulla and Radford, Alec and Klimov, Oleg",
        2017,
    )
    needs = frozenset({"kl"})
    presets = {"rl_games": {"start": 1.0, "ceiling": 10.0, "later": 1.5, "idle": 0.0}}

    target: float = 0.008
    zone: float = 2.0
    step: float = 1.5
    later: float = 1.05
    idle: float = 0.01
    start: float = 0.01
    floor: float = 1e-4
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "target", self.target, 1e-8, 10.0, hint="0.008 nats is usual")
        check_range(self, "zone", self.zone, 1.0, 100.0, hint="2 leaves half to twice the target alone")
        check_range(self, "step", self.step, 1.001, 10.0, hint="1.5 moves the rate by half")
        check_range(self, "later", self.later, 1.0, self.step, hint="1.05 recovers a tenth of the rate in 50 moves")
        check_range(self, "idle", self.idle, 0.0, 0.999, hint="0.01 is a tenth of the rate")
        check_range(self, "floor", self.floor, 1e-6, 1.0, hint="1e-4 stops at a ten-thousandth of the base LR")
        check_range(self, "ceiling", self.ceiling, self.floor, 1e3, hint="1 never exceeds the base LR")
        check_range(self, "start", self.start, self.floor, self.ceiling, hint="0.01 begins with caution")

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """`reached`: whether the divergence of an update has reached the dead zone, of `batch_shape`."""
        return {"reached": torch.zeros(batch_shape, dtype=torch.bool, device=device)}

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor of the base LR, of `batch_shape`. It moves the rate in force, so bounds leave no memory."""
        kl = obs.require("kl").to(obs.lr.dtype)
        if obs.last_lr is not None:
            # Early in a warm-up the divergence is rounding, which must not be multiplied by thousands.
            at_own_rate = (obs.lr / obs.last_lr).square().clamp_max(_LARGEST_SCALE)
            kl = kl * torch.where(obs.last_lr > 0, at_own_rate, 1.0)
        low = kl < self.target / self.zone
        reached = state["reached"] | (kl >= self.target / self.zone)
        cut = (kl / self.target).sqrt().clamp(self.step, max(self.step, _LARGEST_CUT))
        move = torch.where(kl > self.zone * self.target, 1 / cut, 1.0)
        move = torch.where(low & ~reached & (kl > 0), self.step, move)
        move = torch.where(low & reached & (kl > self.idle * self.target), self.later, move)
        factor = (obs.lr / obs.base_lr * move).clamp(self.floor, self.ceiling)
        first = torch.as_tensor(obs.step, device=obs.lr.device) == 0
        return torch.where(first, self.start, factor).to(obs.lr.dtype), {"reached": reached}
