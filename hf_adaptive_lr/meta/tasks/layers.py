"""Building blocks of networks that exist `runs` times: every tensor has the run as its first dimension.

All weights of a task are one tensor of shape (runs, size). `Layout` cuts it into named views with one split, whose
backward is one concatenation; slice by slice, the backward of each is a tensor of full size, which doubles or triples
the whole step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Params = Mapping[str, Tensor]
"""Named weights, each of shape (runs, ...)."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu}
"""Activation functions by the name they have in a spec."""

_SHORT = 16  # entries of a row from which torch's softmax over the last dimension is vectorised


class Layout:
    """Names, shapes without the run dimension, and places, in order, of the tensors inside one (runs, size) tensor."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.size = sum(self.sizes)

    def views(self, weights: Tensor) -> dict[str, Tensor]:
        """Named views of weights of shape (runs, size); no copy."""
        parts = torch.split_with_sizes(weights, self.sizes, dim=-1)
        items = zip(self.shapes.items(), parts, strict=True)
        return {name: part.view(len(weights), *shape) for (name, shape), part in items}

    def join(self, params: Params) -> Tensor:
        """The inverse of `views`, new memory of shape (runs, size)."""
        return torch.cat([params[name].flatten(1) for name in self.shapes], dim=-1)

    def spread(self, values: Tensor) -> Tensor:
        """One number per run and tensor, of shape (runs, number of tensors), repeated to (runs, size)."""
        return values.repeat_interleave(torch.tensor(self.sizes), dim=-1)


class Net(ABC):
    """A network as a value: shapes of its weights and the function from weights and inputs to class scores.

    Shapes are without the run dimension. Matrices are (inputs, outputs) and end in `.weight`; gains of normalisation
    end in `.gain`, what is added in `.bias`, tables in `.table`. `gain` is the standard deviation of fresh matrices,
    times the root of their inputs.
    """

    adaptable: tuple[str, ...] = ()
    """Matrices that low-rank adapters may change."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], gain: float = 1.0) -> None:
        self.layout, self.gain = Layout(shapes), gain

    def init(self, generator: torch.Generator, runs: int) -> Tensor:
        """Fresh weights of shape (runs, size); the head starts small, as in transformers' classifiers."""
        params = {}
        for name, shape in self.layout.shapes.items():
            draw = torch.randn(runs, *shape, generator=generator)
            if name == "head.weight":
                params[name] = 0.1 * draw / math.sqrt(shape[0])
            elif name.endswith(".weight"):
                inputs = shape[0] if len(shape) == 2 else math.prod(shape[1:])  # of a kernel (outputs, inputs, 3, 3)
                params[name] = self.gain * draw / math.sqrt(inputs)
            elif name.endswith(".table"):
                params[name] = 0.5 * draw
            else:
                params[name] = torch.full_like(draw, float(name.endswith(".gain")))
        return self.layout.join(params)

    @abstractmethod
    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Scores of shape (runs, batch, classes) for inputs of shape (runs, batch, ...)."""


def linear(params: Params, name: str, x: Tensor) -> Tensor:
    """Affine map of x of shape (runs, rows, inputs), one batched matrix product."""
    return torch.baddbmm(params[f"{name}.bias"].unsqueeze(1), x, params[f"{name}.weight"])


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Shapes for `linear`."""
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """Layer norm over the last dimension of x of shape (runs, rows, width)."""
    normed = F.layer_norm(x, x.shape[-1:])
    return torch.addcmul(params[f"{name}.bias"].unsqueeze(1), normed, params[f"{name}.gain"].unsqueeze(1))


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes for `layer_norm`."""
    return {f"{name}.gain": (width,), f"{name}.bias": (width,)}


def softmax(x: Tensor) -> Tensor:
    """Softmax over the last dimension.

    torch does rows shorter than a vector register one number at a time; with the rows as columns it is four to nine
    times faster on the CPU (eight entries: 1.8 against 0.2 ms for 12 thousand rows).
    """
    if x.shape[-1] >= _SHORT:
        return x.softmax(-1)
    return x.flatten(0, -2).T.softmax(0).T.reshape(x.shape)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of every run, in nats: scores (runs, batch, classes) and labels (runs, batch) to (runs,)."""
    logs = scores.flatten(0, 1).T.log_softmax(0)  # classes first, for the reason given at `softmax`
    return -logs.gather(0, labels.view(1, -1)).view(labels.shape).mean(-1)
