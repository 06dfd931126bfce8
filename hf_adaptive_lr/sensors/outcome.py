"""Measures the effect of an update, the losses and the gradient of an [`Outcome`], in the optimizer's post-hook.

Each costs extra passes through the model, so they are taken only at updates whose outcome the controller asks for.
None of them leaves a trace: generators and buffers are put back, `param.grad` is not touched.
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


class MetaProbe:
    """Keeps the weights from before an update, to measure how its learning rate changes a meta batch's loss.

    The copy costs the memory of the trained weights once, from the pre-step to the post-step hook.

    Args:
        optimizer: its parameters are copied.
        lr: learning rate of group 0 in this update.
    """

    def __init__(self, optimizer: Optimizer, lr: float) -> None:
        self._lr = lr
        self._kept = [
            (p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]

    def inner(self, loss: ExtraLoss, update: int, model: nn.Module) -> Tensor:
        """<g, w[t] - w[t+1]> / lr with g the gradient of `loss(update)` now; 0-d float64, no host sync.

        One forward and one backward pass. Under DDP the gradient is this rank's; the average over ranks of the inner
        products is the inner product with the average.
        """
        params = [p for p, _ in self._kept]
        with undisturbed(params[0].device, model), torch.enable_grad():
            # Not backward(): param.grad belongs to the update, and DDP's hooks must not fire.
            gradients = torch.autograd.grad(loss(update), params, allow_unused=True)
        with torch.no_grad():
            parts = [
                ((before - p) * g).sum(dtype=torch.float64)
                for (p, before), g in zip(self._kept, gradients, strict=True)
                if g is not None
            ]
            return torch.stack(parts).sum() / self._lr if self._lr else torch.zeros((), dtype=torch.float64)


@torch.no_grad()
def loss_of_other_batch(loss: ExtraLoss, update: int, model: nn.Module, device: torch.device) -> Tensor:
    """Loss of another training batch at the weights as they are; one forward pass, no host sync."""
    with undisturbed(device, model):
        return loss(update).detach()


class OutcomeSensor:
    """Measures the fields of an [`Outcome`] that are about batches beside training's own.

    Args:
        optimizer: the raw optimizer.
        needs: field names of the controller.
        model: the unwrapped module.
        extra: what computes the losses, by the name of `ControlledLR`'s argument; None where not given.

    Raises:
        ValueError: a field is needed for which there is no loss, or no model.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        needs: frozenset[str],
        model: nn.Module | None,
        extra: Mapping[str, ExtraLoss | None],
    ) -> None:
        self._optimizer, self._model = optimizer, model
        self._losses = {field: extra[name] for field, name in ARGUMENTS.items() if field in needs}
        for field, loss in self._losses.items():
            if loss is None:
                raise ValueError(
                    f"the controller needs {field}, the loss of a batch that this integration does not have; use "
                    f"AdaptiveLRTrainer, or give {ARGUMENTS[field]}= to ControlledLR"
                )
            if model is None:
                raise ValueError(f"the controller needs {field}; pass model=, the unwrapped module, as well")
        self._probe: MetaProbe | None = None

    def before(self, lr: float) -> None:
        """The outcome of the update about to be applied is wanted: keep the weights if it is about them.

        Args:
            lr: learning rate of group 0 in this update.
        """
        if "meta_inner" in self._losses:
            self._probe = MetaProbe(self._optimizer, lr)

    def clear(self) -> None:
        """Forget the weights."""
        self._probe = None

    def measure(self, update: int) -> dict[str, Tensor]:
        """The fields by name, 0-d tensors of this rank; no host sync.

        Args:
            update: index of the update that was applied.
        """
        values: dict[str, Tensor] = {}
        other, meta = self._losses.get("loss_other"), self._losses.get("meta_inner")
        if self._model is not None and other is not None:
            device = next(self._model.parameters()).device
            values["loss_other"] = loss_of_other_batch(other, update, self._model, device)
        if self._model is not None and meta is not None and self._probe is not None:
            values["meta_inner"] = self._probe.inner(meta, update, self._model)
        return values
