"""Cut on plateau, by comparing two windows of losses by rank. Closed loop, on training or evaluation loss.

Keeps the last 2w losses. When the share of pairs (older, newer) in which the newer loss is lower falls below
`min_win_rate` (0.5 = no trend, 1 = every newer loss is lower; the Mann-Whitney statistic), the learning rate is
multiplied by `cut` and both windows start anew, so that a cut is judged only by losses after it.

Ranks make it robust: no absolute tolerance that freezes small learning rates, no comparison with a lucky best-ever
value, no outlier or NaN that stays in a running sum, no dependence on the scale of the loss. It never raises the
learning rate, so it cannot run away or see-saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Controller, Device, Params, Shape, State
from ..observation import Observation


@dataclass(frozen=True, kw_only=True)
class Plateau(Controller):
    """Multiply the learning rate by `cut` whenever the loss has stopped falling.

    Args:
        metric: "loss" (training loss of every decision) or "eval_loss" (each new evaluation on the controller's data).
        window: losses per window, 2 ... 4096; with "eval_loss" something like 3.
        min_win_rate: in [0.5, 1]: cut when fewer of the pairs than this improve. Without any trend the share is 0.5
            with a standard deviation of about 0.41 / sqrt(window).
        cut: factor of one cut, in (0, 1).
        floor: smallest factor of the base LR, in [0, 1].

    Raises:
        ValueError: a value out of range.

    Example:
        >>> sorted(Plateau(metric="eval_loss", window=3).needs)
        ['eval_loss']
    """

    controller_type = "plateau"

    metric: Literal["loss", "eval_loss"] = "loss"
    window: int = 32
    min_win_rate: float = 0.6
    cut: float = 0.5
    floor: float = 0.01

    def __post_init__(self) -> None:
        if self.metric not in ("loss", "eval_loss"):
            raise ValueError(f"Plateau: metric={self.metric!r} must be 'loss' or 'eval_loss'")
        object.__setattr__(self, "needs", frozenset({self.metric}))
        super().__post_init__()
        check_range(self, "window", self.window, 2, 4096, hint="more losses, fewer false cuts")
        check_range(self, "min_win_rate", self.min_win_rate, 0.5, 1.0, hint="0.6 asks for a clear downward trend")
        check_range(self, "cut", self.cut, 1e-6, 0.999999, hint="0.5 halves the LR")
        check_range(self, "floor", self.floor, 0.0, 1.0, hint="0.01 stops at a hundredth of the base LR")

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """`losses`: batch_shape + (2 * window,), newest last; `seen`: losses since the last cut; `factor`."""
        return {
            "losses": torch.zeros(*batch_shape, 2 * self.window, dtype=torch.float64, device=device),
            "seen": torch.zeros(batch_shape, dtype=torch.int64, device=device),
            "factor": torch.ones(batch_shape, dtype=torch.float64, device=device),
        }

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor of `batch_shape`; unchanged while there is no new loss or the windows are not full."""
        value = obs.require(self.metric)
        new = ~torch.isnan(value)
        shifted = torch.cat((state["losses"][..., 1:], value.to(torch.float64).unsqueeze(-1)), dim=-1)
        losses = torch.where(new.unsqueeze(-1), shifted, state["losses"])
        seen = state["seen"] + new
        older, newer = losses[..., : self.window].unsqueeze(-1), losses[..., self.window :].unsqueeze(-2)
        wins = ((newer < older).double() + 0.5 * (newer == older).double()).mean((-1, -2))
        flat = new & (seen >= 2 * self.window) & (wins < self.min_win_rate)
        factor = torch.where(flat, (state["factor"] * self.cut).clamp_min(self.floor), state["factor"])
        seen = torch.where(flat, torch.zeros_like(seen), seen)
        return factor.to(obs.lr.dtype), {"losses": losses, "seen": seen, "factor": factor}
