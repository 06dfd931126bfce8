"""Learning rates by part of the model: embeddings, body, head, the two factors of LoRA, and by depth.

A controller answers for the whole run; parts differ by a fixed factor of each parameter group's base learning rate,
which every controller keeps. Splitting happens in the optimizer that is already there, so whatever else
its groups say (weight decay, betas) stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .groups import raw

PARTS = ("embeddings", "body", "head", "lora_A", "lora_B")
"""Names of the parts. Adapters are parts of their own wherever they sit."""

_LAYER = re.compile(r"\.(?:layers?|blocks?|h|encoder_layers|stages)\.(\d+)\.")
_RANGE = (1e-6, 1e6)


def part_of(name: str, model: nn.Module) -> str:
    """Part that a parameter belongs to, one of [`PARTS`], by its name in `model.named_parameters()`.

    In any but a transformers model, perhaps with PEFT adapters, all but adapters is body.
    """
    for adapter in ("lora_A", "lora_B"):
        if f"{adapter}." in name or name.endswith(adapter):
            return adapter
    bare = _bare(name)
    prefix = getattr(_base(model), "base_model_prefix", "")
    if "embeddings." in bare or ".embed" in f".{bare}" or bare.startswith(("wte.", "wpe.")) or ".wte." in bare:
        return "embeddings"
    if prefix and hasattr(_base(model), prefix) and not bare.startswith(f"{prefix}."):
        return "head"
    return "body"


def depth_of(name: str, part: str, layers: int) -> int:
    """Number of a parameter's layer from the bottom: 0 for embeddings, 1 ... layers, layers + 1 for the rest."""
    if part == "embeddings":
        return 0
    found = _LAYER.search(f".{_bare(name)}")
    return int(found[1]) + 1 if found and part != "head" else layers + 1


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
        layer_decay: factor from one layer to the one below, in (0, 1]: ULMFiT's and BEiT's layer-wise decay.

    Raises:
        ValueError: an unknown part, a factor out of range, an optimizer that has made updates.

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
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [match for name in named.values() if (match := _LAYER.search(f".{_bare(name)}"))]
    layers = max((int(match[1]) + 1 for match in found), default=0)
    groups = [
        piece
        for group in optimizer.param_groups
        for piece in _split(group, named, model, layers, factors, layer_decay)
    ]
    first = min(groups, key=lambda group: abs(math.log(group["lr_factor"])))
    optimizer.param_groups[:] = [first, *(group for group in groups if group is not first)]


def _split(
    group: dict[str, Any],
    named: Mapping[int, str],
    model: nn.Module,
    layers: int,
    factors: Mapping[str, float],
    layer_decay: float | None,
) -> list[dict[str, Any]]:
    """The group's pieces, by part and factor, in order of their first parameter."""
    pieces: dict[tuple[str, float], list[nn.Parameter]] = {}
    for parameter in group["params"]:
        name = named.get(id(parameter), "")
        part = part_of(name, model)
        factor = float(factors.get(part, 1.0))
        if layer_decay is not None:
            factor *= layer_decay ** (layers + 1 - depth_of(name, part, layers))
        pieces.setdefault((part, factor), []).append(parameter)
    return [
        {**group, "params": params, "lr": group["lr"] * factor, "lr_factor": factor, "name": part}
        for (part, factor), params in pieces.items()
    ]


def check_factors(factors: Mapping[str, float], layer_decay: float | None) -> None:
    """ValueError for an unknown part, or for factors that are out of range."""
    low, high = _RANGE
    for part, factor in factors.items():
        if part not in PARTS:
            raise ValueError(f"'{part}' is no part of a model; parts are: {', '.join(PARTS)}")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not low <= factor <= high:
            raise ValueError(f"factor {factor!r} of '{part}' is outside [{low:g}, {high:g}]; 1 leaves it as it is")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay} is outside (0, 1]; 0.9 is usual, 1 leaves all layers alike")


def _base(model: nn.Module) -> nn.Module:
    inner = getattr(model, "get_base_model", None)  # PEFT
    out: nn.Module = inner() if callable(inner) else model
    return out


def _bare(name: str) -> str:
    """The name without the additions of wrappers (PEFT, DDP, torch.compile)."""
    for words in ("base_model.model.", "module.", "_orig_mod."):
        name = name.removeprefix(words)
    return name.replace(".modules_to_save.default", "").replace(".original_module", "").replace(".base_layer", "")
