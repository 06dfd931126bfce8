"""Where each parameter stands in a model: its part, and how many layers there are from it up to the head.

Read from the model itself: its module lists are the layers, its input embeddings and what is registered (and so used)
before the layers are at the bottom, what follows them is at the top. What none of that tells is an error, not a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

PARTS = ("embeddings", "body", "head", "lora_A", "lora_B")
"""Names of the parts. Adapters are parts of their own wherever they sit; in a model that is not transformers', perhaps
with PEFT adapters, all but embeddings and adapters is body."""

_EMBEDDING = re.compile(r"(?<!un)embed|(?:^|_)emb(?:_|$)|(?:^|_)(?:cls|class|mask|pos|distillation)_token$")
_OF_THE_OUTPUT = ("logit_scale", "logit_bias")
_CONVOLUTIONS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_TOP, _BOTTOM, _UNKNOWN = "top", "bottom", "unknown"

# Modules that are not used in the order in which they are registered, by the class that has them: at the bottom, at
# the top, or in the layer of this number.
_OUT_OF_ORDER: dict[tuple[str, str], str | int] = {
    ("DebertaEncoder", "LayerNorm"): _BOTTOM,  # of the relative positions
    ("DebertaV2Encoder", "LayerNorm"): _BOTTOM,
    ("DebertaV2Encoder", "conv"): 0,  # added to what the first layer answers
    ("LayoutLMv3Encoder", "rel_pos_bias"): _BOTTOM,  # read by all layers, as are those below
    ("LayoutLMv3Encoder", "rel_pos_x_bias"): _BOTTOM,
    ("LayoutLMv3Encoder", "rel_pos_y_bias"): _BOTTOM,
}
_STABLE = "EncoderStableLayerNorm"  # of wav2vec2 and its kin: its norm is registered first and used last


@dataclass(frozen=True)
class Place:
    """Where a parameter stands."""

    part: str
    """One of [`PARTS`]."""
    below: int | None
    """Layers from here up to the head: 0 for the head and what follows the last layer, 1 for the last layer, one more
    than there are layers for embeddings; None where the model does not say."""


@dataclass(frozen=True)
class _Stack:
    """A list of layers, from the bottom up."""

    path: str
    names: tuple[str, ...]  # of its layers that have parameters

    def place(self, name: str) -> int | None:
        """The number of the layer that a parameter is in, from 0."""
        if not name.startswith(self.prefix):
            return None
        return self.names.index(name.removeprefix(self.prefix).partition(".")[0])

    @property
    def prefix(self) -> str:
        """How the names of its parameters begin; a model may itself be a sequence of layers."""
        return f"{self.path}." if self.path else ""

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]


def places(model: nn.Module) -> dict[str, Place]:
    """The place of every parameter, by its name in `model.named_parameters()`.

    A stage of a hierarchical model (Swin, ResNet) counts as one layer, layers that share their weights (ALBERT) as
    one. Encoder and decoder, or two towers, count their layers each for itself.

    Example:
        >>> from transformers import GPT2Config, GPT2Model
        >>> found = places(GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=2, n_head=1)))
        >>> found["wpe.weight"], found["h.1.ln_1.weight"].below
        (Place(part='embeddings', below=3), 1)
    """
    return _Structure(model).places()


def listed(found: Mapping[str, Place]) -> str:
    """What was put where, for people: the parts from the bottom up, and how the names in each begin."""
    groups: dict[tuple[str, int | None], list[str]] = {}
    for name, place in found.items():
        groups.setdefault((place.part, place.below), []).append(bare(name))
    order = sorted(groups, key=lambda key: (-1 if key[1] is None else -key[1], PARTS.index(key[0])))
    lines = []
    for part, below in order:
        names = dict.fromkeys(_shortened(name) for name in groups[part, below])
        lines.append(f"{part} ({'?' if below is None else below} below the head): {', '.join(names)}")
    return "; ".join(lines)


def base(model: nn.Module) -> nn.Module:
    """The model inside PEFT's, DDP's and torch.compile's wrappers."""
    while True:
        inner = getattr(model, "get_base_model", None)  # PEFT
        found = inner() if callable(inner) else getattr(model, "_orig_mod", None)
        if found is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            found = model.module
        if not isinstance(found, nn.Module) or found is model:
            return model
        model = found


def bare(name: str) -> str:
    """The name without the additions of wrappers (PEFT, DDP, torch.compile)."""
    for words in ("module.", "_orig_mod.", "base_model.model."):
        name = name.removeprefix(words)
    return name.replace(".modules_to_save.default", "").replace(".original_module", "").replace(".base_layer", "")


class _Structure:
    """The lists of layers of a model, and where its parameters stand to them."""

    def __init__(self, model: nn.Module) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.order = {bare(name): index for index, name in enumerate(self.names)}
        self.model = base(model)
        self.modules = dict(self.model.named_modules())
        prefix = getattr(self.model, "base_model_prefix", "")
        self.body = prefix if prefix and hasattr(self.model, prefix) else ""
        self.inputs = _input_embeddings(self.model)
        lists = [stack for stack in self._lists() if not _EMBEDDING.search(stack.path)]
        layers = [stack for stack in lists if not self._only_convolutions(stack)] or lists
        shapes = {(stack.parent, len(stack.names)) for stack in layers}
        self.stacks = [stack for stack in lists if stack in layers or (stack.parent, len(stack.names)) in shapes]
        # The convolutions that come first make what the layers read.
        first = min((self._span(stack)[0] for stack in self.stacks), default=0)
        self.stems = [stack for stack in lists if stack not in self.stacks and self._span(stack)[1] < first]

    def places(self) -> dict[str, Place]:
        return {name: self._place(name) for name in self.names}

    def _place(self, full: str) -> Place:
        name = bare(full)
        where, height = self._where(name)
        below = {_TOP: 0, _BOTTOM: height + 1, _UNKNOWN: None}[where] if isinstance(where, str) else height - where
        for adapter in ("lora_A", "lora_B"):
            if f"{adapter}." in full or full.endswith(adapter):
                return Place(adapter, below)
        if self._is_head(name):
            return Place("head", 0)
        return Place("embeddings" if where == _BOTTOM else "body", below)

    def _where(self, name: str) -> tuple[str | int, int]:
        """Bottom, top, unknown or the number of its layer; and how many layers there are beside or above it."""
        for stack in self.stacks:
            layer = stack.place(name)
            if layer is not None:
                return layer, len(stack.names)
        parent, near = self._beside(name)
        height = max((len(stack.names) for stack in near), default=0)
        if self._is_embedding(name) or any(name.startswith(stem.prefix) for stem in self.stems):
            return _BOTTOM, height
        child = name.removeprefix(f"{parent}." if parent else "").partition(".")[0]
        kind = type(self.modules.get(parent)).__name__
        if (kind, child) in _OUT_OF_ORDER:
            return _OUT_OF_ORDER[kind, child], height
        if kind.endswith(_STABLE) and child == "layer_norm":
            return _TOP, height
        if name.rpartition(".")[2] in _OF_THE_OUTPUT:
            return _TOP, height
        direct = name.rpartition(".")[0] == parent  # registered before all modules, whenever it is used
        if not near or direct:
            return _UNKNOWN, height
        spans = [self._span(stack) for stack in near]
        at = self.order[name]
        if at < min(low for low, _ in spans):
            return _BOTTOM, height
        if at < max(high for _, high in spans) or self._may_serve_all(parent, child, near):
            return _UNKNOWN, height
        return _TOP, height

    def _may_serve_all(self, parent: str, child: str, near: list[_Stack]) -> bool:
        """Whether a module after the layers, in the encoder that has them, may be used by each of them."""
        if not parent or all(stack.parent != parent for stack in near):
            return False
        kind = type(self.modules.get(f"{parent}.{child}")).__name__.lower()
        return "norm" not in kind and "pool" not in kind

    def _beside(self, name: str) -> tuple[str, list[_Stack]]:
        """The smallest module around a parameter that has layers, and its lists of them."""
        parent = name
        while parent:
            parent = parent.rpartition(".")[0]
            near = [stack for stack in self.stacks if not parent or stack.path.startswith(f"{parent}.")]
            if near:
                return parent, near
        return "", []

    def _is_embedding(self, name: str) -> bool:
        owner = name.rpartition(".")[0]
        given = any(owner == path or owner.startswith(f"{path}.") for path in self.inputs)
        words = name.split(".")
        return given or isinstance(self.modules.get(owner), nn.Embedding) or any(map(_EMBEDDING.search, words))

    def _is_head(self, name: str) -> bool:
        """Whether it is outside of the body; without a body of its own, what a `...For...` model has after it."""
        if self.body:
            return not name.startswith(f"{self.body}.")
        child = name.partition(".")[0]
        if child in _OF_THE_OUTPUT:
            return True
        if not re.search(r"For[A-Z]", type(self.model).__name__) or self._is_embedding(name) or not self.stacks:
            return False
        return self.order[name] > max(self._span(stack)[1] for stack in self.stacks) and not any(
            stack.path.partition(".")[0] == child for stack in self.stacks
        )

    def _lists(self) -> Iterator[_Stack]:
        """The outermost lists of modules in the body that have parameters; sequences where there are no lists."""
        for kind in (nn.ModuleList, nn.Sequential):
            found: list[_Stack] = []
            for path, module in self.modules.items():
                inside = path == self.body or path.startswith(f"{self.body}.") or not self.body
                if not isinstance(module, kind) or not inside or any(path.startswith(s.prefix) for s in found):
                    continue
                names = tuple(name for name, child in module.named_children() if any(True for _ in child.parameters()))
                if names:
                    found.append(_Stack(path, names))
            if found:
                yield from found
                return

    def _only_convolutions(self, stack: _Stack) -> bool:
        owners = (
            m
            for m in self.modules[stack.path].modules()
            if m._parameters and any(p is not None for p in m._parameters.values())
        )
        return all(isinstance(module, _CONVOLUTIONS) for module in owners)

    def _span(self, stack: _Stack) -> tuple[int, int]:
        """The first and the last parameter of a list, in the order in which they are registered."""
        inside = [index for name, index in self.order.items() if name.startswith(stack.prefix)]
        return (min(inside), max(inside)) if inside else (-1, -1)


def _input_embeddings(model: nn.Module) -> list[str]:
    """Paths of the modules that the model names as its input embeddings."""
    get: Any = getattr(model, "get_input_embeddings", None)
    try:
        found = get() if callable(get) else None
    except (NotImplementedError, AttributeError):  # models of images and sounds need not have any
        found = None
    return [path for path, module in model.named_modules() if module is found and path]


def _shortened(name: str) -> str:
    """The module of a parameter, its layer's number and no more."""
    words: Sequence[str] = name.split(".")[:-1] or name.split(".")
    number = next((index for index, word in enumerate(words) if word.isdigit()), None)
    return ".".join(words if number is None else words[: number + 1])
