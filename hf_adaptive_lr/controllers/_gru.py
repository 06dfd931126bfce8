"""The recurrent net of the learned controllers: one GRU cell and a linear head, as pure functions of named weights.

Weights may have a leading run dimension, so that evolution can give each run its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def shapes(inputs: int, width: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight: gates in torch's order (reset, update, new), then the head.

    Args:
        inputs: number of features.
        width: of the hidden vector.
    """
    return {
        "weight_ih": (3 * width, inputs),
        "weight_hh": (3 * width, width),
        "bias_ih": (3 * width,),
        "bias_hh": (3 * width,),
        "head_weight": (1, width),
        "head_bias": (1,),
    }


def random_params(inputs: int, width: int, seed: int) -> dict[str, Tensor]:
    """Untrained weights: GRU uniform in +-1 / sqrt(width), head near zero, so that it does little at first."""
    generator = torch.Generator().manual_seed(seed)
    bound = width**-0.5

    def uniform(*shape: int, scale: float = 1.0) -> Tensor:
        drawn: Tensor = (torch.rand(*shape, generator=generator) * 2 - 1) * bound * scale
        return drawn

    return {
        "weight_ih": uniform(3 * width, inputs),
        "weight_hh": uniform(3 * width, width),
        "bias_ih": uniform(3 * width),
        "bias_hh": uniform(3 * width),
        "head_weight": uniform(1, width, scale=0.1),
        "head_bias": torch.zeros(1),
    }


def forward(features: Tensor, hidden: Tensor, params: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One step.

    Args:
        features: batch_shape + (inputs,).
        hidden: batch_shape + (width,).
        params: as in [`shapes`], perhaps with a run dimension.

    Returns:
        The head's number, of batch_shape, and the next hidden vector.
    """
    gates_x = _affine(features, params["weight_ih"], params["bias_ih"])
    gates_h = _affine(hidden, params["weight_hh"], params["bias_hh"])
    reset_x, update_x, new_x = gates_x.chunk(3, -1)
    reset_h, update_h, new_h = gates_h.chunk(3, -1)
    reset, update = torch.sigmoid(reset_x + reset_h), torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + reset * new_h)
    hidden = new + update * (hidden - new)
    return _affine(hidden, params["head_weight"], params["head_bias"]).squeeze(-1), hidden


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if weight.ndim == 2:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.einsum("...i,...oi->...o", x, weight) + bias  # one set of weights per run
