"""The signals of one update that a controller may see, each with its unit, range and moment of measurement.

`Controller.decide` reads an [`Observation`] *before* update `t` is applied, `Controller.learn` an [`Outcome`] *after*
it. Both serve one live run (0-d tensors) and hundreds of vectorised runs (a leading batch dimension), so feature code
exists once. Only the optional fields that a controller names in `needs` are measured; the rest are None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

Value = float | tuple[float, ...]
"""A measured field: one number, or one for each parameter group."""


_INF = float("inf")


@dataclass(frozen=True)
class FieldSpec:
    """Unit, range and moment of measurement of one field of [`Observation`] or [`Outcome`].

    Args:
        unit: physical unit, or "1" for a pure number.
        measured: when, and over what, it is measured.
        low: smallest finite value.
        high: largest finite value.
        neutral: value when there is nothing to measure yet (`None`: such a decision cannot happen).
    """

    unit: str
    measured: str
    low: float = -_INF
    high: float = _INF
    neutral: float | None = None


OPTIONAL_FIELDS: Mapping[str, FieldSpec] = MappingProxyType(
    {
        "loss": FieldSpec("loss", "before update t: mean over its micro-batches (equal weights) and all ranks"),
        "eval_loss": FieldSpec(
            "loss", "latest evaluation since the last decision; NaN when there was none", neutral=float("nan")
        ),
        "grad_norm": FieldSpec(
            "loss / weight", "L2 norm of the gradient of batch t over all groups, before clipping", 0
        ),
        "alignment": FieldSpec(
            "1", "cosine of gradient t and the descent direction of update t-1, all groups", -1, 1, 0.0
        ),
        "update_ratio": FieldSpec(
            "1",
            "norm of update t-1 (decoupled decay left out if possible) over the norm of the weights before update t",
            0,
            _INF,
            0.0,
        ),
        "gain_ratio": FieldSpec(
            "1",
            "update t-1: loss decrease on its own batch over the decrease the gradient promised",
            neutral=1.0,
        ),
        "kl": FieldSpec(
            "nats",
            "update t-1: mean KL divergence between the predictions before and after it, on its last micro-batch",
            0,
            _INF,
            float("nan"),
        ),
        "slope": FieldSpec(
            "loss / lr", "gradient t times the descent direction of update t-1, all groups", -_INF, _INF, 0.0
        ),
        "group_alignment": FieldSpec("1", "alignment of every parameter group by itself", -1, 1, 0.0),
        "group_slope": FieldSpec("loss / lr", "slope of every parameter group by itself", -_INF, _INF, 0.0),
        "pretrained": FieldSpec(
            "1",
            "share of the weights in trained matrices that do not look freshly drawn, when these began to train",
            0,
            1,
        ),
        "usual_lr": FieldSpec("lr", "rate that is usual from scratch with this optimizer; 0 where none is known", 0),
        "classes": FieldSpec("1", "number of classes that the model tells apart", 2),
        "prediction_variance": FieldSpec(
            "1", "variance of the class probabilities of update t's last micro-batch on rank 0", 0, 0.25
        ),
        "prediction_change": FieldSpec(
            "1", "variance of their difference to those of the decision before, row by row", 0, 1
        ),
        "penultimate_mean": FieldSpec("weight", "mean of the weight matrix before the head's"),
        "penultimate_variance": FieldSpec("weight^2", "variance of its entries", 0),
        "head_mean": FieldSpec("weight", "mean of the last weight matrix of the model"),
        "head_variance": FieldSpec("weight^2", "variance of its entries", 0),
    }
)
"""The optional fields of [`Observation`], by name."""

PER_GROUP: frozenset[str] = frozenset({"group_alignment", "group_slope"})
"""Fields of shape `batch_shape + (n_groups,)`."""

OUTCOME_FIELDS: Mapping[str, FieldSpec] = MappingProxyType(
    {
        "loss_before": FieldSpec("loss", "last micro-batch of update t, at the weights before it"),
        "loss_after": FieldSpec("loss", "the same micro-batch and dropout mask, after update t"),
        "loss_other": FieldSpec("loss", "another training batch, after update t"),
        "meta_inner": FieldSpec(
            "loss / lr", "gradient of a meta batch after update t times the direction of update t"
        ),
    }
)
"""The fields of [`Outcome`], by name."""


@dataclass(frozen=True)
class Observation:
    """The signals just before update `step` is applied.

    Tensors have the shape of the controller's `batch_shape`: 0-d (float64, CPU) in a live run, `(runs,)` in vectorised
    meta-training. Fields that the controller does not name in `needs` are None.

    Args:
        step: 0-based index of the update about to be applied; int, or an integer tensor of `batch_shape`.
        total_steps: number of updates of the whole run, or None when unknown.
        lr: learning rate in force, after bounds, without the warm-up ramp; the base LR at the first update. Of group
            0, or of the first group whose base LR is not 0.
        base_lr: learning rate that the user set, of the same group.
        lrs: learning rates in force of all groups, of `batch_shape + (n_groups,)`; None where there is one group.
        base_lrs: learning rates that the user set, of all groups, likewise.
        last_lr: learning rate that the previous update was made with, of the same group, with warm-up and all else
            that was applied; 0 before the first.
        loss: training loss of batch `step` in nats (or the model's unit), before the update.
        eval_loss: newest loss on the controller's own held-out data since the last decision, NaN if there is none.
        grad_norm: L2 norm of the gradient over all parameter groups, before clipping, at least 0.
        alignment: cosine in [-1, 1] between the gradient and the direction of the previous update; 0 at the first.
            Positive: a longer previous step would have lowered this batch's loss. So also where an optimizer's update
            is no gradient direction (Lion's signs, Muon's orthogonal matrices): its size says less there.
        update_ratio: norm of the previous update over the norm of the weights, at least 0; 0 at the first update, and
            where it cannot be told from the weights' rounding. Of SGD, Adam and AdamW without decoupled decay, of
            other optimizers all that their weights did.
        gain_ratio: (L(w[t-1]) - L(w[t])) on batch t-1 over -g . (w[t] - w[t-1]); 1 at the first update. Near 1 the
            loss is locally linear, near 0.5 the step is about optimal for a quadratic, below 0 it overshot.
        slope: g[t] . d[t-1], minus the derivative of batch t's loss in the previous learning rate (Baydin et al.
            2018); depends on the scale of the loss. 0 at the first update.
        kl: sum over classes of p log(p / q), p the probabilities before update t-1 and q after it, with one dropout
            mask; a mean over the positions of its last micro-batch (those of the attention mask, or labels, where
            there are any) and all ranks, at most 20. NaN where there was none to measure, as at the first update.
            Where the model returns log-probabilities of labels alone it is estimated from these.
        group_alignment: `alignment` of each parameter group, of `batch_shape + (n_groups,)`.
        group_slope: `slope` of each parameter group, of `batch_shape + (n_groups,)`.
        pretrained: share in [0, 1] of the trained matrices' entries whose matrix does not look freshly drawn: 0 for a
            model from scratch and for a new adapter, near 1 for a pretrained model with a new head.
        usual_lr: learning rate, at least 0, that is usual from scratch with this optimizer: 0.001 with Adam and AdamW,
            0.1 (1 - momentum) with SGD; 0 for other optimizers and where most of the model is frozen.
        classes: number of classes.
        prediction_variance: variance over examples and classes of the softmax outputs of the last micro-batch before
            the update, on rank 0 (Xu et al. 2019).
        prediction_change: variance of the difference between these and those of the decision before, which were of
            another batch; at the first decision `prediction_variance` + 1/12, as if they had been uniform noise.
        penultimate_mean: mean of the last trained weight matrix but one; in a model with one, of that one.
        penultimate_variance: variance of its entries.
        head_mean: mean of the last trained weight matrix; in a model with one, of its bias.
        head_variance: variance of its entries.

    Example:
        >>> import torch
        >>> Observation(step=3, total_steps=10, lr=torch.tensor(0.1), base_lr=torch.tensor(0.2)).loss is None
        True
    """

    step: int | Tensor
    total_steps: int | Tensor | None
    lr: Tensor
    base_lr: Tensor
    lrs: Tensor | None = None
    base_lrs: Tensor | None = None
    last_lr: Tensor | None = None
    loss: Tensor | None = None
    eval_loss: Tensor | None = None
    grad_norm: Tensor | None = None
    alignment: Tensor | None = None
    update_ratio: Tensor | None = None
    gain_ratio: Tensor | None = None
    kl: Tensor | None = None
    slope: Tensor | None = None
    group_alignment: Tensor | None = None
    group_slope: Tensor | None = None
    pretrained: Tensor | None = None
    usual_lr: Tensor | None = None
    classes: Tensor | None = None
    prediction_variance: Tensor | None = None
    prediction_change: Tensor | None = None
    penultimate_mean: Tensor | None = None
    penultimate_variance: Tensor | None = None
    head_mean: Tensor | None = None
    head_variance: Tensor | None = None

    @property
    def progress(self) -> Tensor:
        """Share of the run that is done before this update: step / total_steps, of `batch_shape`; 0 at the first."""
        return self._of_total(self.step)

    @property
    def remaining(self) -> Tensor:
        """Share of the run that is left, this update included: 1 at the first, 1 / total_steps at the last, then 0."""
        return self._of_total((self.total_steps if self.total_steps is not None else 0) - self.step).clamp_min(0)

    def _of_total(self, count: int | Tensor) -> Tensor:
        if self.total_steps is None:
            raise ValueError("this run has no total_steps; pass total_steps= or use a controller without a horizon")
        total = torch.as_tensor(self.total_steps, dtype=self.lr.dtype, device=self.lr.device)
        return (torch.as_tensor(count, dtype=self.lr.dtype, device=self.lr.device) / total).expand(self.lr.shape)

    def require(self, name: str) -> Tensor:
        """The optional field of this name, of `batch_shape`; the ValueError says how to have it measured."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(
                f"this observation has no '{name}'; name it in the controller's needs to have it measured"
            )
        return value


@dataclass(frozen=True)
class Outcome:
    """The effect of update `step`, for controllers that learn inside the run (`Controller.learn`).

    Args:
        step: 0-based index of the update that was applied.
        loss_before: loss of the last micro-batch at the weights before the update, of `batch_shape`.
        loss_after: loss of the same micro-batch, same dropout mask, after the update.
        loss_other: loss of another training batch after the update (Xu et al. 2017, the actor's batch).
        meta_inner: g . (w[t] - w[t+1]) / lr with g the gradient of a batch of the controller's own data at w[t+1], and
            lr group 0's: minus the derivative of that batch's loss in the learning rate (Shu et al. 2020).

    Example:
        >>> import torch
        >>> Outcome(step=0, loss_before=torch.tensor(2.0), loss_after=torch.tensor(1.5)).loss_other is None
        True
    """

    step: int | Tensor
    loss_before: Tensor | None = None
    loss_after: Tensor | None = None
    loss_other: Tensor | None = None
    meta_inner: Tensor | None = None
