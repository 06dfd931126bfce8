"""Warmup-stable-decay (Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4). Open loop.

The stable part holds the base LR, the decay part goes linearly to `final_factor` in the last `decay_fraction` of the
run. Warm-up is `warmup_steps` of [`ControlledLR`], as for every controller.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .._checks import check_range
from ..controller import Citation, Controller, Params, State
from ..observation import Observation


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Controller):
    """Constant, then linear decay.

    Args:
        decay_fraction: share of the run that decays, in (0, 1]; about 0.1 in the paper, 0.2 here for short
            fine-tunings.
        final_factor: factor after the last update, in [0, 1].

    Raises:
        ValueError: a value out of range.

    Example:
        >>> WarmupStableDecay(decay_fraction=0.5).config()
        {'decay_fraction': 0.5, 'final_factor': 0.0}
    """

    controller_type = "wsd"
    citation = Citation(
        "2404.06395",
        "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies",
        "Hu, Shengding and others",
        2024,
    )
    needs_horizon = True

    decay_fraction: float = 0.2
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "decay_fraction", self.decay_fraction, 1e-6, 1.0, hint="1 decays from the start, as linear")
        check_range(self, "final_factor", self.final_factor, 0.0, 1.0, hint="0 decays to zero")

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor of `batch_shape` for update `obs.step` of `obs.total_steps`."""
        line = (obs.remaining / self.decay_fraction).clamp(0, 1)
        return self.final_factor + (1 - self.final_factor) * line, state
