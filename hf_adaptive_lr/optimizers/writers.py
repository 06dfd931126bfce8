"""Notices learning rates that somebody else wrote: a second scheduler, `SequentialLR`, a line in the training loop."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from .groups import base_lrs, set_lrs

_ATTRIBUTE = "_adaptive_lr_written"


class WrittenLRs:
    """The learning rates of an optimizer as this library left them; one for each optimizer.

    Reading one that is a tensor on a device would be a host sync, so a tensor counts as untouched while it is the same
    tensor and nobody has written into it.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._said = optimizer, False
        self._lrs: list[float] = []
        self._tensors: list[tuple[Tensor, int] | None] = []
        self._unexplained: tuple[float, float] | None = None

    @classmethod
    def of(cls, optimizer: Optimizer) -> WrittenLRs:
        """The one of this optimizer, new if it has none yet."""
        written = getattr(optimizer, _ATTRIBUTE, None)
        if not isinstance(written, WrittenLRs) or written._optimizer is not optimizer:  # a copy has the original's
            written = WrittenLRs(optimizer)
            setattr(optimizer, _ATTRIBUTE, written)
        return written

    def base_lrs(self) -> list[float]:
        """Base learning rate of every group: `initial_lr`, or `lr` where that was changed since an earlier scheduler.

        What another scheduler made of `lr` is no base. Where nobody knows which it is, `write` warns.
        """
        if self._lrs:
            for index in self._changed():
                group = self._optimizer.param_groups[index]
                lr = group["lr"]
                group["initial_lr"] = lr.clone() if isinstance(lr, Tensor) else lr
            bases = base_lrs(self._optimizer)
        else:
            bases = base_lrs(self._optimizer)
            found = [float(group["lr"]) for group in self._optimizer.param_groups]
            odd = [(lr, base) for lr, base in zip(found, bases, strict=True) if lr != base]
            self._unexplained = odd[0] if odd else None
        self._remember()
        self._said = False
        return bases

    def accept(self, of: Sequence[float | Tensor] | None = None) -> None:
        """Take the learning rates as they stand for our own: whoever wrote them was to.

        With `of`, what another scheduler wrote, only if they are that. A tensor into which somebody has written once
        since, as that scheduler does after an update, is taken for it: to compare its value would be a host sync.
        """
        lrs = None if of is None else self._written_by(of)
        if of is None or lrs is not None:
            self._unexplained = None
            self._remember(lrs)

    def _written_by(self, other: Sequence[float | Tensor]) -> list[float] | None:
        """Our learning rates, or the other scheduler's in their place; None where there are any others."""
        found = [group["lr"] for group in self._optimizer.param_groups]
        if not len(found) == len(other) == len(self._lrs):
            return None
        lrs = []
        for lr, theirs, ours, tensor in zip(found, other, self._lrs, self._tensors, strict=True):
            once = tensor is not None and lr is tensor[0] and lr._version <= tensor[1] + 1
            if not once and float(lr) != float(theirs):
                return None
            lrs.append(ours if once else float(lr))
        return lrs

    def write(self, lrs: list[float]) -> None:
        """Write the learning rate of every group; warns once where somebody else has written one since."""
        if not self._said:
            self._warn()
        set_lrs(self._optimizer, lrs)
        self._remember(lrs)

    def _warn(self) -> None:
        text = ""
        if self._unexplained is not None:
            lr, base = self._unexplained
            text = (
                f"the optimizer came with lr={lr:g} and initial_lr={base:g}, as another scheduler leaves it; the base "
                f"learning rate is {base:g}. To start from {lr:g}, remove 'initial_lr' from its groups before the "
                "ControlledLR is made"
            )
            self._unexplained = None
        elif changed := self._changed():
            index = changed[0]
            found = float(self._optimizer.param_groups[index]["lr"])
            text = (
                f"somebody else set the learning rate of group {index} to {found:g}, where ControlledLR had left "
                f"{self._lrs[index]:g}; that is overruled, as the controller decides. Remove the other scheduler "
                "(for a warm-up, give warmup_steps=), or make a new ControlledLR after setting lr"
            )
        if text:
            self._said = True
            warnings.warn(f"{text} (said once)", UserWarning, stacklevel=6)

    def _changed(self) -> list[int]:
        """Indices of the groups whose learning rate is not as we left it."""
        known = zip(self._optimizer.param_groups, self._lrs, self._tensors, strict=False)
        return [i for i, (group, lr, tensor) in enumerate(known) if not _same(group["lr"], lr, tensor)]

    def _remember(self, lrs: list[float] | None = None) -> None:
        found = [group["lr"] for group in self._optimizer.param_groups]
        self._lrs = [float(lr) for lr in found] if lrs is None else list(lrs)
        self._tensors = [(lr, lr._version) if isinstance(lr, Tensor) else None for lr in found]


def _same(found: float | Tensor, lr: float, tensor: tuple[Tensor, int] | None) -> bool:
    if tensor is not None and found is tensor[0] and tensor[0]._version == tensor[1]:
        return True
    return float(found) == (lr if tensor is None else _rounded(lr, tensor[0]))


def _rounded(lr: float, like: Tensor) -> float:
    return float(like.new_tensor(lr))
