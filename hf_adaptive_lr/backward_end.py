"""The moment at which a backward pass is over and nobody has clipped its gradients yet.

Trainer and Accelerate clip between `loss.backward()` and `optimizer.step()`, out of sight of everything that is
attached to the model or the optimizer. Autograd itself tells when a pass is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.autograd import Variable


def after_backward(tensors: Iterable[Tensor], call: Callable[[Tensor | None], None]) -> None:
    """Have something done when a backward pass through any of the tensors is over: `param.grad` is there, unclipped.

    Args:
        tensors: with a graph, for instance all that a model returned, as a trainer may make its own loss of any of
            them. Nothing happens where no backward pass reaches one.
        call: called once for each pass, with the gradient that reached the first tensor if that is 0-d (of a loss it
            is 1, or 1 / n under accumulation of n micro-batches, times the factor of a gradient scaler), else None.

    Example:
        >>> import torch
        >>> w = torch.ones(2, requires_grad=True)
        >>> loss = (3 * w).sum()
        >>> after_backward([loss], lambda root: print(float(root), w.grad.tolist()))
        >>> (loss / 2).backward()
        0.5 [1.5, 1.5]
    """
    reached: list[Tensor | None] = []

    def begun(gradient: Tensor | None) -> None:
        if gradient is None:  # an output of a compiled graph that nobody uses
            return
        if not reached:
            engine = Variable._execution_engine
            # Twice, as the exchange of DistributedDataParallel ends in such a call too, queued later than ours.
            engine.queue_callback(lambda: engine.queue_callback(over))
        reached.append(gradient.detach() if gradient.ndim == 0 else None)

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
