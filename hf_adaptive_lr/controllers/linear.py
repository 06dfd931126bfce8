"""Linear decay to zero, the strongest simple baseline (Defazio et al. 2023, arXiv:2310.07831). Open loop.

At update t of T: factor = final + (1 - final) * (T - t) / T. With `warmup_steps=0` and `final_factor=0` it equals
transformers' `linear` schedule bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .._checks import check_range
from ..controller import Citation, Controller, Params, State
from ..observation import Observation


@dataclass(frozen=True, kw_only=True)
class Linear(Controller):
    """Linear decay from the base LR.

    Args:
        final_factor: factor that the line reaches after the last update, in [0, 1].

    Raises:
        ValueError: `final_factor` out of range.

    Example:
        >>> Linear(final_factor=0.1).config()
        {'final_factor': 0.1}
    """

    controller_type = "linear"
    citation = Citation(
        "2310.07831",
        "Optimal Linear Decay Learning Rate Schedules and Further Refinements",
        "Defazio, Aaron and Cutkosky, Ashok and Mehta, Harsh and Mishchenko, Konstantin",
        2023,
    )
    needs_horizon = True

    final_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "final_factor", self.final_factor, 0.0, 1.0, hint="0 decays to zero, 1 is constant")

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor of `batch_shape` for update `obs.step` of `obs.total_steps`."""
        return self.final_factor + (1 - self.final_factor) * obs.remaining, state
