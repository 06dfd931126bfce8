"""Observes a model's training passes from outside: the loss of each forward pass, the end of each backward pass.

[`ForwardHook`] reports each training micro-batch's loss. [`after_backward`] calls back when a backward pass is over
and nothing has clipped its gradients yet: Trainer and Accelerate clip between `loss.backward()` and
`optimizer.step()`, where no hook of the model or the optimizer runs, but autograd has one at the end of a pass.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import Variable


class ForwardListener(Protocol):
    """Receives the forward passes of a model from a [`ForwardHook`]."""

    def pass_begins(self, again: Callable[[], Any]) -> None:
        """A training micro-batch is about to be computed; `again` computes the model's output once more."""

    def pass_ended(self, loss: Tensor | None, kwargs: Mapping[str, Any], output: Any) -> None:
        """The model returned this output for the micro-batch, and in it this loss, of shape () or (1,), if any."""

    def evaluated(self) -> None:
        """The model returned a loss in evaluation mode."""


class ForwardHook:
    """Reports the training passes of a model to a listener; no-grad passes are ignored, but for evaluated losses.

    `model` is the module whose outputs carry `loss`, not its DDP or compiled wrapper. Both ends are weak references:
    the hook keeps neither alive. A copy of the model, or a model saved whole, carries an inert stand-in from the
    standard library, so it neither reports nor needs this library.
    """

    def __init__(self, model: nn.Module, listener: ForwardListener) -> None:
        self._model, self._listener = weakref.ref(model), weakref.ref(listener)
        self._handles = [
            model.register_forward_pre_hook(_Hook(self._before), with_kwargs=True),
            model.register_forward_hook(_Hook(self._after), with_kwargs=True),
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _active(self, module: nn.Module) -> ForwardListener | None:
        if module is not self._model() or not module.training or not torch.is_grad_enabled():
            return None
        return self._listener()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        listener = self._active(module)
        if listener is not None:
            listener.pass_begins(lambda: module(*args, **kwargs))

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        listener = self._active(module)
        if listener is not None:
            listener.pass_ended(_find_loss(output), kwargs, output)
        elif module is self._model() and not module.training and isinstance(_loss_field(output), Tensor):
            evaluating = self._listener()
            if evaluating is not None:
                evaluating.evaluated()


class _Hook:
    """A hook that copies and pickles as a standard-library callable which does nothing."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any) -> None:
        self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return (getattr, (contextlib.nullcontext(), "__exit__"))


def _loss_field(output: Any) -> Any:
    return output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)


def _find_loss(output: Any) -> Tensor | None:
    loss = _loss_field(output)
    shapes: tuple[tuple[int, ...], ...] = ((), (1,))
    if loss is None and isinstance(output, tuple) and output:
        loss, shapes = output[0], ((),)  # one of shape (1,) may be a prediction
    return loss if isinstance(loss, Tensor) and tuple(loss.shape) in shapes and loss.requires_grad else None


def loss_of(output: Any) -> Tensor:
    """The loss in a model's output, 0-d."""
    loss = _loss_field(output)
    chosen: Tensor = loss if loss is not None else output[0]
    return chosen.reshape(())


def after_backward(tensors: Iterable[Tensor], call: Callable[[Tensor | None], None]) -> None:
    """Call a function when a backward pass through any of the tensors is over: `param.grad` is there, unclipped.

    `tensors` have a graph, for instance all that a model returned, as a trainer may compute its own loss from any of
    them. `call` is called once for each pass, with the 0-d gradient that reached the first tensor, if that has shape
    () or (1,) (of a loss it is 1, or 1 / n under accumulation of n micro-batches, times a gradient scaler's factor),
    else None.
    """
    reached: list[Tensor | None] = []

    def begun(gradient: Tensor | None) -> None:
        if gradient is None:  # an output of a compiled graph that nobody uses
            return
        if not reached:
            engine = Variable._execution_engine
            # Twice, as the exchange of DistributedDataParallel ends in such a call too, queued later than ours.
            engine.queue_callback(lambda: engine.queue_callback(over))
        reached.append(gradient.detach().reshape(()) if gradient.shape in ((), (1,)) else None)

    def over() -> None:
        root = reached[0]
        reached.clear()
        call(root)

    for tensor in tensors:
        tensor.register_hook(begun)  # type: ignore[no-untyped-call]


def differentiable(output: Any) -> list[Tensor]:
    """The tensors with a graph that a model returned: alone, in a tuple or a mapping, its loss first if it has one."""
    if isinstance(output, Mapping):
        found = [output[name] for name in sorted(output, key=lambda name: name != "loss")]
    else:
        found = list(output) if isinstance(output, tuple | list) else [output]
    return [value for value in found if isinstance(value, Tensor) and value.requires_grad]
