"""The norm of the gradient as it was before clipping.

By the time the optimizer steps, Trainer and Accelerate may have clipped the gradient. So the norm is taken from a
caller who knows it, or else measured at the end of the backward pass, or, where nothing clips, in the step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed import Shards, local, whole
from .forward_hook import after_backward

_LARGEST_ROOT = 1.001  # gradient of the loss itself: 1, or 1 / n under accumulation, unless it was scaled


@torch.no_grad()
def measure_grad_norm(optimizer: Optimizer, model: nn.Module | None = None) -> Tensor:
    """L2 norm of the gradients now in `param.grad`, over all groups; 0-d tensor on their device, no host sync.

    With a model it adds up in its order, as `clip_grad_norm_(model.parameters())` does, to the same bits.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if model is not None:
        mine = {id(p) for p in params}
        params = [p for p in model.parameters() if id(p) in mine]
    return torch.nn.utils.get_total_norm([dense(p.grad) for p in params if p.grad is not None]) / loss_scale(optimizer)


@torch.no_grad()
def grad_square(optimizer: Optimizer, shards: Shards) -> Tensor:
    """Squared norm of sharded gradients, to be averaged over the ranks; 0-d float64, no collective, no host sync."""
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    squares = [square_sum(dense(local(p.grad))) * shards.parts(p) for p in params]
    device = next(p.device for group in optimizer.param_groups for p in group["params"])
    total = torch.zeros((), dtype=torch.float64, device=device)
    scale = loss_scale(optimizer)
    return torch.stack([total, *squares]).sum() / (scale * scale)


def square_sum(tensor: Tensor) -> Tensor:
    """Sum of the squares of a tensor's entries, 0-d float64."""
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32)
    return norm.double().square()


def dense(grad: Tensor) -> Tensor:
    """The gradient itself, unless it is sparse (ValueError)."""
    if grad.is_sparse:
        raise ValueError("a sparse gradient cannot be compared with other updates; use sparse=False in the embedding")
    return grad


def loss_scale(optimizer: Optimizer) -> Tensor | float:
    """Factor that is still in the gradients: a fused optimizer under a gradient scaler unscales inside its step."""
    scale = getattr(optimizer, "grad_scale", None)
    return scale.double() if isinstance(scale, Tensor) else 1.0


class GradNorm:
    """Keeps the norms of one update's gradient: before clipping, and for gain ratios also after it.

    `max_grad_norm` is the clipping in force, 0 for none, None for unknown. `shards` gives those of the optimizer; of
    sharded gradients a measured norm is kept as [`grad_square`], which an exchange completes.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module | None,
        needs: frozenset[str],
        max_grad_norm: float | None,
        shards: Callable[[], Shards | None],
    ) -> None:
        self._optimizer, self._model, self.max_grad_norm = optimizer, model, max_grad_norm
        self._wanted = bool(needs & {"grad_norm", "gain_ratio"})
        self._checked_clipping = False
        self._shards = shards
        self._ever_observed = False  # then the backward pass need not be listened to
        self.clear()

    def clear(self) -> None:
        """Forget the norms of this update."""
        self.observed: Tensor | None = None
        """As a caller reported it."""
        self.unclipped: Tensor | None = None
        """As measured at the end of the last backward pass."""
        self._root: Tensor | None = None  # gradient of the loss itself in that pass
        self._clipped: Tensor | None = None  # in the step

    def observe(self, norm: Tensor) -> None:
        """Take the norm before clipping, 0-d, from a caller who knows it."""
        self.observed, self._ever_observed = norm, True

    def measure_unclipped(self) -> Tensor:
        """Measure now, as nothing has clipped the gradients yet; see [`grad_square`] for what of sharded ones."""
        self.unclipped = self._measure()
        return self.unclipped

    def listen(self, tensors: Iterable[Tensor]) -> None:
        """Measure at the end of the backward pass through these tensors, unless a caller reports or nothing clips.

        That nothing clips is believed after a first update at which nothing did.
        """
        wanted = self._wanted and (self.max_grad_norm != 0 or not self._checked_clipping)
        if wanted and not self._ever_observed and not scales_gradients():
            after_backward(tensors, self._backward_ended)

    def _backward_ended(self, root: Tensor | None) -> None:
        if any(p.grad is not None for group in self._optimizer.param_groups for p in group["params"]):
            self.unclipped, self._root = self._measure(), root

    def _measure(self) -> Tensor:
        shards = self._shards()
        if shards is not None:
            return grad_square(self._optimizer, shards)
        return measure_grad_norm(self._optimizer, self._model)

    def _norms(self, *measured: Tensor) -> list[Tensor]:
        """The norms that were measured; of sharded gradients a collective, with the same bits on all ranks."""
        shards = self._shards()
        return list(measured) if shards is None else list(shards.mean(torch.stack(measured)).sqrt())

    def check_clipping(self) -> None:
        """At the first update, ValueError if `max_grad_norm=0` was given and something clips after all."""
        if self.max_grad_norm == 0 and self.unclipped is not None and not self._checked_clipping:
            if self._root is not None and float(self._root) <= _LARGEST_ROOT:  # else it is a gradient scaler's
                before, now = map(float, self._norms(self.unclipped, self._measure()))
                if now < 0.999 * before:
                    raise ValueError(
                        f"max_grad_norm=0 means that nothing clips, but the gradient's norm was {before:.4g} after "
                        f"backward() and is {now:.4g} in the step. Leave max_grad_norm= out, or give the trainer's "
                        "(TrainingArguments has 1.0)"
                    )
            self.unclipped = self._root = None
        self._checked_clipping = True

    def hidden_by_clipping(self, needs: frozenset[str]) -> str | None:
        """The needed signal whose norm from before clipping is not known; None where there is none."""
        if self.max_grad_norm == 0 or self.unclipped is not None:
            return None
        if "grad_norm" in needs and self.observed is None:
            return "grad_norm"
        # The gain ratio divides clipping out again, for which both numbers are needed.
        known = self.max_grad_norm is not None and self.observed is not None
        return "gain_ratio" if "gain_ratio" in needs and not known else None

    def fields(self) -> dict[str, Tensor]:
        """`grad_norm`, and `root` beside a norm of the backward pass: above 1 a gradient scaler's factor is in it.

        Of sharded gradients `grad_square` in its place, unless a caller has reported the norm.
        """
        if self.observed is not None:
            return {"grad_norm": self.observed}
        name = "grad_norm" if self._shards() is None else "grad_square"
        if self.unclipped is not None:
            # Always there, as all ranks must exchange the same number of values.
            return {name: self.unclipped, "root": torch.ones(()) if self._root is None else self._root}
        return {name: self._measure()}

    def before_step(self) -> None:
        """Measure the norm after clipping, where only the comparison tells by how much it was clipped."""
        if self.unclipped is not None and not self.max_grad_norm:
            self._clipped = self._measure()

    def clip_factor(self) -> Tensor | float:
        """Factor in (0, 1] that clipping applied to the gradients of this update; a collective where sharded."""
        norm = None if self.observed is None else whole(self.observed)
        if self.max_grad_norm and norm is None and self.unclipped is not None:
            norm = self._norms(self.unclipped)[0]
        if self.max_grad_norm and norm is not None:
            # torch.nn.utils.clip_grad_norm_ multiplies by this factor
            return (self.max_grad_norm / (norm.double() + 1e-6)).clamp(max=1.0)
        if self.unclipped is not None and self._clipped is not None:
            clipped, unclipped = self._norms(self._clipped, self.unclipped)
            return (clipped.double() / unclipped.double().clamp(min=1e-30)).clamp(min=1e-30, max=1.0)
        return 1.0


def scales_gradients() -> bool:
    """Whether Accelerate puts a gradient scaler's factor into the gradients, until it clips them."""
    state = sys.modules.get("accelerate.state")
    return bool(state and state.AcceleratorState._shared_state and state.AcceleratorState().mixed_precision == "fp16")


def check_unscaled(root: float) -> None:
    """Fails fast (ValueError) when a norm has a gradient scaler's factor in it: the loss's own gradient is above 1."""
    if root > _LARGEST_ROOT:
        raise ValueError(
            f"the controller needs the gradient's norm from before clipping, and the loss was multiplied by "
            f"{root:.6g} ahead of backward(), as a float16 gradient scaler does. Use AdaptiveLRTrainer, or give "
            "max_grad_norm= and observe(grad_norm=...) with the result of clip_grad_norm_, or train in bfloat16"
        )
