"""PLRS, the probabilistic learning rate scheduler (Devapriya, Tholeti, Suresh, Kalyani, arXiv:2407.07613).

Sees nothing; at every update t answers with a fresh, independent draw, the same for all parameter groups:

    eta_t ~ Uniform[L_min, L_max]          w_{t+1} = w_t - eta_t g_t

that is eta_c + u_t: the constant mean eta_c = (L_min + L_max) / 2 plus zero-mean noise u_t that multiplies the
gradient, E u^2 = (L_max - L_min)^2 / 12. No decay and, in the vision runs, no warm-up, momentum or weight decay.

What is proven, for plain SGD: under A1 beta-smoothness, A2 a rho-Lipschitz Hessian, A3 bounded gradient noise
(E Q^2 <= sigma^2), A4 strict saddles, A5 bounded f, A6 local alpha-strong convexity, u independent of g,
  Theorem 1: while |grad f| >= sqrt(3 eta_c beta sigma^2), a step lowers f by Omega~(L_max^2) in expectation, if
    L_max < 1/beta;
  Theorem 2: a strict saddle is left within O~(L_max^(-1/4)) steps, with probability at least 1 - O~(L_max^(7/2));
  Theorem 3: once near a local minimum it stays there for O~(L_max^(-2) log(1/xi)) steps with probability 1 - xi, if
    L_max < alpha/beta^2.
This is convergence to a neighbourhood, as the learning rate never decays. No theorem says that randomness improves a
rate. Nothing is proven for momentum, Adam, or beta, alpha, sigma that nobody knows: a range test stands in for them.

The published tables do not support a gain either: the authors' `validate()` stores the running average after every
batch and the table takes its maximum, so that the VGG-16, ResNet-110 and DenseNet columns are accuracies of the first
mini-batch (97.66 % is 125/128). In the rows without that defect (WRN-28-10, Tiny ImageNet) the mean is no better than
a constant rate's. So compare with both controls: `Constant(factor=plrs.mean_factor)`, and `plrs.widened(times)`, the
same mean with more noise.

Departs from the paper: bounds are factors of the base LR, which is L_max; `from_bounds` takes the paper's absolute
ones. The optimizer may have momentum and weight decay. All groups get the draw (the authors' class returns a
one-element list, which breaks with several). The released SQuAD callback forgets an offset and draws from
[1/3, 2/3] L_max where [2/3, 1] was meant; here it is what was meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from .._checks import check_range
from ..controller import Citation, Controller, Device, Params, Shape, State
from ..observation import Observation
from . import _random


@dataclass(frozen=True, kw_only=True)
class PLRS(Controller):
    """An independent uniform learning rate at every update, from `[low, high]` times the base LR.

    Once per epoch, as in the authors' ImageNet trainer: `ControlledLR(..., every=updates_per_epoch)`. After linear
    warm-up, as in their translation runs (5000 updates): `ControlledLR(..., warmup_steps=5000)`; the ramp multiplies
    the draws. Draws come from a generator of their own in the run state, seeded by `ControlledLR(..., seed=)`, which
    must be equal on all ranks.

    Args:
        low: L_min / L_max if the base LR is L_max, in [1e-6, high]. 0.7 for VGG-16 and WRN-28-10 on CIFAR-10 and
            ResNet-110 on CIFAR-100 ([.07, .1]) and for tensor decomposition ([.007, .01]); 0.5 for DenseNet-40-12
            ([.1, .2]); 0.875 for Tiny ImageNet ([.35, .4]); 2/3 as intended for SQuAD ([2e-5, 3e-5]); 1/3 for
            IWSLT'14 ([1.5e-4, 4.5e-4]); 0.45 for ImageNet ([.05, .11], momentum .8, once per epoch).
        high: 1 where the base LR is L_max, in [low, 1e6]. L_max is to be just below the learning rate where the
            training loss turns up in an LR range test (`hf_adaptive_lr.tuning.range_test`).

    Raises:
        ValueError: `low` or `high` out of range, or `low` above `high`.

    Example:
        >>> plrs = PLRS.from_bounds(base_lr=0.1, l_min=0.07, l_max=0.1)  # the paper's VGG-16
        >>> round(plrs.mean_factor, 3), round(plrs.variance, 4)
        (0.85, 0.0075)
    """

    controller_type = "plrs"
    citation = Citation(
        "2407.07613",
        "Probabilistic learning rate scheduler with provable convergence",
        "Devapriya, Dahlia and Tholeti, Thulasi and Suresh, Janani and Kalyani, Sheetal",
        2024,
    )
    random = True

    low: float = 0.7
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "high", self.high, 1e-6, 1e6, hint="1 is the base LR, for a base LR of L_max")
        check_range(self, "low", self.low, 1e-6, self.high, hint="L_min is above 0 and at most L_max; the paper: 0.7")

    @classmethod
    def from_bounds(cls, base_lr: float, l_min: float, l_max: float) -> Self:
        """Draws from the paper's absolute bounds, 0 < l_min <= l_max; `base_lr`, above 0, is of the group 0."""
        if not base_lr > 0:
            raise ValueError(f"{cls.__name__}: base_lr={base_lr} must be above 0; pass the optimizer's learning rate")
        return cls(low=l_min / base_lr, high=l_max / base_lr)

    @property
    def mean_factor(self) -> float:
        """eta_c over the base LR, the factor of the control `Constant(factor=plrs.mean_factor)`."""
        return (self.low + self.high) / 2

    @property
    def variance(self) -> float:
        """E u^2 over the squared base LR: (high - low)^2 / 12."""
        return (self.high - self.low) ** 2 / 12

    def widened(self, times: float) -> Self:
        """The control with the same mean and `times` the width, 0: constant; ValueError if it reaches down to 0."""
        half = times * (self.high - self.low) / 2
        return self.replace(low=self.mean_factor - half, high=self.mean_factor + half)

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """`generator`, one for all runs of a batch."""
        return {_random.GENERATOR: _random.seeded(seed)}

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor of `batch_shape`, in [low, high): one draw per run, for all groups."""
        share, generator = _random.uniform(state[_random.GENERATOR], tuple(obs.lr.shape))
        return self.low + (self.high - self.low) * share.to(obs.lr), {**state, _random.GENERATOR: generator}
