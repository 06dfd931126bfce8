"""Measures the effect of an update on other batches than its own, for an [`Outcome`], in the optimizer's post-hook.

Each signal costs extra passes through the model, so it is measured only at updates whose outcome the controller asks
for. None leaves a trace: generators and buffers are put back, `param.grad` is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .replay import undisturbed

ExtraLoss = Callable[[int], Tensor]
"""Loss of a batch that belongs to an update, by the update's index, at the weights as they are; a 0-d tensor."""

ARGUMENTS = {"loss_other": "other_loss", "meta_inner": "meta_loss"}
"""The argument of [`ControlledLR`] that computes a field of [`Outcome`]."""


class OutcomeSensor:
    """Measures the fields of an [`Outcome`] that are about batches beside training's own.

    For `meta_inner` the weights are copied, from the pre-step to the post-step hook. `extra` are the functions that
    compute the losses, by the name of `ControlledLR`'s argument; ValueError where a needed one, or the model, is None.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        needs: frozenset[str],
        model: nn.Module | None,
        extra: Mapping[str, ExtraLoss | None],
    ) -> None:
        self._optimizer, self._model = optimizer, model
        self._losses: dict[str, ExtraLoss] = {}
        for field in (name for name in ARGUMENTS if name in needs):
            loss = extra[ARGUMENTS[field]]
            if loss is None:
                raise ValueError(
                    f"the controller needs {field}, the loss of a batch that this integration does not have; use "
                    f"AdaptiveLRTrainer, or give {ARGUMENTS[field]}= to ControlledLR"
                )
            if model is None:
                raise ValueError(f"the controller needs {field}; pass model=, the unwrapped module, as well")
            self._losses[field] = loss
        self.clear()

    def clear(self) -> None:
        """Forget the weights."""
        self._before: list[tuple[Tensor, Tensor]] = []
        self._lr = 0.0

    def before(self, lr: float) -> None:
        """Before an update whose outcome is wanted, keep the weights if it is about them; `lr` is that of group 0."""
        if "meta_inner" in self._losses:
            params = (p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None)
            self._before, self._lr = [(p, p.detach().clone()) for p in params], lr

    def measure(self, update: int) -> dict[str, Tensor]:
        """The fields by name, 0-d tensors of this rank, after an update; no host sync."""
        values: dict[str, Tensor] = {}
        if self._model is not None and "loss_other" in self._losses:
            with undisturbed(next(self._model.parameters()).device, self._model), torch.no_grad():
                values["loss_other"] = self._losses["loss_other"](update).detach()
        if self._model is not None and self._before:
            values["meta_inner"] = self._inner(self._losses["meta_inner"], update, self._model)
        return values

    def _inner(self, loss: ExtraLoss, update: int, model: nn.Module) -> Tensor:
        """<g, w[t] - w[t+1]> / lr with g the gradient of `loss(update)` now; 0-d float64.

        One forward and one backward pass. Under DDP g is this rank's; the average over ranks of the inner products is
        the inner product with the average.
        """
        params = [p for p, _ in self._before]
        with undisturbed(params[0].device, model), torch.enable_grad():
            # Not backward(): param.grad belongs to the update, and DDP's hooks must not fire.
            gradients = torch.autograd.grad(loss(update), params, allow_unused=True)
        with torch.no_grad():
            pairs = zip(self._before, gradients, strict=True)
            parts = [((before - p) * g).sum(dtype=torch.float64) for (p, before), g in pairs if g is not None]
            return torch.stack(parts).sum() / self._lr if self._lr else torch.zeros((), dtype=torch.float64)
