"""A controller of your own: the learning rate falls as the loss falls.

    hf-adaptive-lr finetune --task image --controller examples/own_controller.py:LossProportional --learning-rate 1e-3
    hf-adaptive-lr bench --quick --controller examples/own_controller.py:LossProportional

What to copy: a frozen dataclass whose fields are the settings, `needs` for what is to be measured, `init` for the
state at the start, and a pure `decide` in torch operations, which answers with a factor of the user's learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_adaptive_lr import Controller


@dataclass(frozen=True, kw_only=True)
class LossProportional(Controller):
    """Factor = (smoothed loss / first loss) ** power."""

    controller_type = "loss_proportional"
    needs = frozenset({"loss"})
    power: float = 1.0
    memory: float = 0.9

    def init(self, batch_shape=(), *, n_groups=1, seed=0, device=None):
        return {"first": torch.zeros(batch_shape, device=device), "mean": torch.zeros(batch_shape, device=device)}

    def decide(self, obs, state, params=None):
        start = state["first"] == 0
        loss = obs.loss.float().clamp_min(1e-8)
        first = torch.where(start, loss, state["first"])
        mean = torch.where(start, loss, self.memory * state["mean"] + (1 - self.memory) * loss)
        return (mean / first) ** self.power, {"first": first, "mean": mean}
