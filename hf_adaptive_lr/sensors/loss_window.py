"""The training loss of one update: the losses of its micro-batches, collected once for every reader."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor


class _Graph:
    """Lives as long as the graph of a loss, as a hook in it holds it."""


class _Heard:
    """Whether a backward pass has reached a loss that the forward hook found, or still can."""

    def __init__(self, loss: Tensor) -> None:
        graph = _Graph()
        self.reached, self._graph = False, weakref.ref(graph)
        loss.register_hook(partial(self._reach, graph))  # type: ignore[no-untyped-call]

    def _reach(self, graph: _Graph, gradient: Tensor | None) -> None:
        self.reached |= gradient is not None

    @property
    def waiting(self) -> bool:
        return not self.reached and self._graph() is not None


class LossWindow:
    """Collects the micro-batch losses of one update, and gives their mean.

    There are two sources. A [`ForwardHook`] reports the loss that it finds in the model's output; a caller that knows
    better, because its loss is computed elsewhere, reports it by `observe`, which replaces the hook's of that
    micro-batch.

    To read the losses of a run with a [`ControlledLR`], share its window, `scheduler.losses`, in place of a second
    hook: it is complete from the last micro-batch on and is emptied when the optimizer has stepped, or when a new
    update begins after a skipped one. In any other run `ForwardHook(model, window)` feeds a window of one's own, whose
    owner calls `clear` once per update.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Empty the window: a new update begins."""
        self.losses: list[Tensor] = []
        """Detached 0-d tensors on the model's device, one of every micro-batch, in order."""
        self.shares = False
        """Whether each is a share of the update's loss, as Trainer passed `num_items_in_batch`, and not a mean."""
        self._heard: list[_Heard | None] = []  # of each loss, None where a caller reported it
        self._from_hook: tuple[Tensor, int] | None = None  # the last one in the output, and its version

    def __len__(self) -> int:
        return len(self.losses)

    def pass_begins(self, again: Callable[[], Any]) -> None:
        """Called by the forward hook before a pass; nothing is kept of it."""

    def pass_ended(self, loss: Tensor | None, kwargs: Mapping[str, Any], output: Any) -> None:
        """Called by the forward hook after a pass, with the loss that it found in the output, if any."""
        if loss is not None:
            self.shares |= kwargs.get("num_items_in_batch") is not None
            self.losses.append(loss.detach().reshape(()).clone())  # a view would change with `loss /= n`
            self._from_hook = loss.detach(), loss._version
            self._heard.append(_Heard(loss))

    def evaluated(self) -> None:
        """Called by the forward hook after a pass in evaluation mode; nothing is kept of it."""

    def is_own(self, loss: Tensor) -> bool:
        """Whether this is the loss that the forward hook has just reported, or on the CPU a value equal to it.

        A tensor elsewhere on a device counts as another loss, as a look at its value would be a host sync.
        """
        if self._from_hook is None:
            return False
        heard, version = self._from_hook
        if loss.data_ptr() == heard.data_ptr():
            return loss._version == version
        if loss.device.type != "cpu":
            return False
        value, known = float(loss), float(self.losses[-1])
        return value == known or (value != value and known != known)

    def observe(self, loss: Tensor) -> bool:
        """Take the mean loss of a micro-batch, 0-d; whether it replaced a loss that the forward hook had reported."""
        replaced = self._from_hook is not None
        if replaced:
            self.losses.pop()
            self._heard.pop()
            self.shares = False
        self.losses.append(loss.detach().clone())
        self._heard.append(None)
        self._from_hook = None
        return replaced

    @property
    def waiting(self) -> bool:
        """Whether a loss waits for its backward pass, as the first of several that are added up before one."""
        return any(heard is not None and heard.waiting for heard in self._heard)

    def forget_untrained(self) -> list[int]:
        """Drop losses that no backward pass reached, where one reached others; their places, counted from the end."""
        if not any(heard is not None and heard.reached for heard in self._heard):
            return []
        kept = [heard is None or heard.reached for heard in self._heard]
        places = [number - len(kept) for number, keep in enumerate(kept) if not keep]
        self.losses = [loss for loss, keep in zip(self.losses, kept, strict=True) if keep]
        self._heard = [heard for heard, keep in zip(self._heard, kept, strict=True) if keep]
        return places

    def mean(self) -> Tensor:
        """Mean loss of the update on this rank, with equal weights; 0-d float64, no host sync. ValueError if empty."""
        if not self.losses:
            raise ValueError("no loss was reported for this update; call observe(loss=...) once per micro-batch")
        losses = torch.stack([loss.double().reshape(()) for loss in self.losses])
        return losses.sum() if self.shares else losses.mean()
