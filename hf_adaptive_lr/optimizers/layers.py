"""Learning rates by part of the model: embeddings, body, head, the two factors of LoRA, and by depth.

A controller answers for the whole run; parts differ by a fixed factor of each parameter group's base learning rate,
which every controller keeps. Splitting happens in the optimizer that is already there, so whatever else
its groups say (weight decay, betas) stays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .groups import raw
from .places import PARTS, Place, listed, places

logger = logging.getLogger(__name__)

_RANGE = (1e-6, 1e6)


def split_groups(
    optimizer: Optimizer,
    model: nn.Module,
    factors: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
) -> None:
    """Split the groups of a fresh optimizer so that each part of the model has its factor of the learning rate.

    Call it before a scheduler or a controller takes over: they read the base learning rates once. The group whose
    factor is nearest to 1 comes first, as learning rates are reported and bounded for the first one.

    Args:
        optimizer: has made no update yet.
        model: what it optimizes.
        factors: part to factor, in [1e-6, 1e6]; parts are [`PARTS`], those left out have 1.
        layer_decay: factor from one layer to the one below, in (0, 1]: ULMFiT's and BEiT's layer-wise decay. What is
            in which layer, [`places`] reads from the model; it is logged at level INFO.

    Raises:
        ValueError: an unknown part or one that the model does not have, a factor out of range, an optimizer that has
            made updates or is another model's; with `layer_decay` a parameter whose layer the model does not tell.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> shape = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, **shape))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> split_groups(optimizer, model, {"head": 10.0}, layer_decay=0.5)
        >>> [f"{group['name']} {group['lr']:g}" for group in optimizer.param_groups]
        ['body 0.001', 'embeddings 0.000125', 'body 0.00025', 'body 0.0005', 'head 0.01']
    """
    factors = dict(factors or {})
    check_factors(factors, layer_decay)
    optimizer = raw(optimizer)
    if optimizer.state:
        raise ValueError("the optimizer has made updates already; split its groups before training begins")
    found = places(model)
    _check_places(found, factors, layer_decay)
    placed = {id(parameter): found[name] for name, parameter in model.named_parameters()}
    strange = sum(id(parameter) not in placed for group in optimizer.param_groups for parameter in group["params"])
    if strange:
        raise ValueError(f"{strange} of the optimizer's parameters are not in this model; pass the model it optimizes")
    logger.info("learning rates by part of the model: %s", listed(found))
    groups = [piece for group in optimizer.param_groups for piece in _split(group, placed, factors, layer_decay)]
    first = min(groups, key=lambda group: abs(math.log(group["lr_factor"])))
    optimizer.param_groups[:] = [first, *(group for group in groups if group is not first)]


def _split(
    group: dict[str, Any], placed: Mapping[int, Place], factors: Mapping[str, float], layer_decay: float | None
) -> list[dict[str, Any]]:
    """The group's pieces, by part and factor, in order of their first parameter."""
    pieces: dict[tuple[str, float], list[nn.Parameter]] = {}
    for parameter in group["params"]:
        place = placed[id(parameter)]
        factor = float(factors.get(place.part, 1.0))
        if layer_decay is not None:
            assert place.below is not None  # checked
            factor *= layer_decay**place.below
        pieces.setdefault((place.part, factor), []).append(parameter)
    return [
        {**group, "params": params, "lr": group["lr"] * factor, "lr_factor": factor, "name": part}
        for (part, factor), params in pieces.items()
    ]


def _check_places(found: Mapping[str, Place], factors: Mapping[str, float], layer_decay: float | None) -> None:
    """ValueError for a part that this model does not have, or a parameter that is in no known layer."""
    there = {place.part for place in found.values()}
    for part in factors:
        if part not in there:
            tied = " (a head that is tied to the embeddings is theirs)" if part == "head" else ""
            raise ValueError(f"this model has no '{part}'{tied}; there are: {listed(found)}")
    unknown = [name for name, place in found.items() if place.below is None]
    if layer_decay is not None and unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"layer_decay={layer_decay}: the model does not tell in which layer {', '.join(unknown[:5])}{more} is; "
            f"give the optimizer groups of your own instead. What is known: {listed(found)}"
        )


def check_factors(factors: Mapping[str, float], layer_decay: float | None) -> None:
    """ValueError for an unknown part, or for factors that are out of range."""
    low, high = _RANGE
    for part, factor in factors.items():
        if part not in PARTS:
            raise ValueError(f"'{part}' is no part of a model; parts are: {', '.join(PARTS)}")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not low <= factor <= high:
            raise ValueError(f"factor {factor!r} of '{part}' is outside [{low:g}, {high:g}]; 1 leaves it as it is")
    if layer_decay is None:
        return
    if isinstance(layer_decay, bool) or not isinstance(layer_decay, int | float) or not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay!r} is outside (0, 1]; 0.9 is usual, 1 leaves all layers alike")
