"""Fine-tuning: bodies pretrained inside the suite, then a fresh head, other labels, shifted inputs and less data.

A pretraining is a few hundred Adam updates of a small batch of bodies, deterministic in its seed and shape and kept in
memory; run r starts from body r modulo their number. All weights are trained, or low-rank adapters (Hu et al. 2021,
arXiv:2106.09685) and the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...sensors.gradients import inner
from ...sensors.lora import moved_sq, product_sq
from ..inner import InnerOptimizer
from .base import TaskSpec
from .data import EVAL, Sequences, Vectors, split_own
from .layers import Layout, Net, Params
from .mlp import MLP, MLPTask
from .supervised import Supervised
from .transformer import Transformer, TransformerTask

_SOURCE_CLASSES = 6
_LORA_SCALE = 2.0  # alpha / rank, as in the paper's code for language models
_HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class Bodies:
    """Pretrained weights by name, (bodies, ...), without the head; the teacher that labelled their data.

    `losses` are on validation data before and after pretraining, each (bodies,).
    """

    weights: Mapping[str, Tensor]
    teacher: Vectors | Sequences
    losses: tuple[Tensor, Tensor]


@lru_cache(maxsize=256)
def pretrain(source: str, steps: int) -> Bodies:
    """Train the bodies of a source task by Adam at 3e-3, decaying linearly; the same arguments give the same bits.

    `source` is the JSON of the spec of an `MLPTask` or a `TransformerTask`, `steps` the number of updates.
    """
    spec = TaskSpec.from_json(source)
    task = MLPTask(spec) if spec.family == "mlp" else TransformerTask(spec)
    optimizer = InnerOptimizer("adamw", max_grad_norm=1.0)
    weights = task.init()
    state, before = optimizer.init(weights), task.evaluate(weights, "inner_valid")
    for step in range(steps):
        with torch.enable_grad():
            leaf = weights.requires_grad_()
            (grads,) = torch.autograd.grad(task.loss(leaf, task.batch("train")).sum(), leaf)
        weights = weights.detach()
        direction = optimizer.direction(weights, optimizer.clip(grads)[0], state)
        weights = optimizer.apply(weights, direction, torch.full((task.runs,), 3e-3 * (1 - step / steps)))
    named = {name: view.clone() for name, view in task.net.layout.views(weights).items() if name not in _HEAD}
    return Bodies(named, task.teacher, (before, task.evaluate(weights, "inner_valid")))


class FinetuneTask(Supervised):
    """Fine-tuning of pretrained bodies to another target; all runs share the shape.

    `config` may hold the keys of `defaults`: `body` is `mlp` or `transformer`; `norm`, `heads`, `length`, `vocab`,
    `rule` (of the target) and `source_rule` are the transformer's, `activation`, `layer_norm` and `dims` the MLP's;
    `rank` is that of the adapters, 0 to train all weights; `shift` moves the inputs (standard deviations of the mean
    of vectors, missing share of the vocabulary); `bodies` distinct bodies come from `body_seed`.
    """

    defaults = {
        "body": "transformer",
        "width": 16,
        "depth": 2,
        "classes": 3,
        "n_train": 128,
        "rank": 0,
        "shift": 0.25,
        "bodies": 8,
        "body_seed": 0,
        "pretrain_steps": 300,
        "norm": "post",
        "heads": 2,
        "length": 8,
        "vocab": 16,
        "rule": "majority",
        "source_rule": "majority",
        "activation": "relu",
        "layer_norm": False,
        "dims": 16,
    }

    def setup(self) -> None:
        """Pretrain or recall the bodies, draw the target and the fresh weights."""
        c = self.config
        bodies = pretrain(self._source().to_json(), c["pretrain_steps"])
        self.splits = split_own(*self._target(bodies.teacher), c["n_train"])
        self.net = self._net()
        which = torch.arange(self.runs) % c["bodies"]
        fresh = self.net.layout.views(self.net.init(self.generator, self.runs))
        whole = {**{name: w[which] for name, w in bodies.weights.items()}, **{name: fresh[name] for name in _HEAD}}
        self.rank = int(c["rank"])
        if not self.rank:
            self._trained, self.start = self.net.layout, self.net.layout.join(whole)
            return
        self._body = {name: w for name, w in whole.items() if name not in _HEAD}
        self._trained = Layout(self._adapter_shapes() | {name: self.net.layout.shapes[name] for name in _HEAD})
        self.start = self._trained.join({**self._fresh_adapters(), **{name: whole[name] for name in _HEAD}})

    def _source(self) -> TaskSpec:
        c = self.config
        shape: dict[str, Any] = {k: c[k] for k in ("width", "depth")}
        shape |= {"classes": _SOURCE_CLASSES, "n_train": 2048, "batch_size": 64}
        if c["body"] == "mlp":
            shape |= {"dims": c["dims"], "activation": c["activation"], "norm": c["layer_norm"]}
        elif c["body"] == "transformer":
            shape |= {k: c[k] for k in ("norm", "heads", "length", "vocab")} | {"data": c["source_rule"]}
        else:
            raise ValueError(f"no body '{c['body']}'; known: mlp, transformer")
        return TaskSpec(c["body"], c["bodies"], c["body_seed"], shape)

    def _target(self, teacher: Vectors | Sequences) -> tuple[Tensor, Tensor]:
        c, count = self.config, self.config["n_train"] + 3 * EVAL
        if isinstance(teacher, Vectors):
            other = teacher.relabel(self.generator, self.runs, c["classes"])
            return other.examples(self.generator, count, c["shift"])
        rule = teacher.relabel(self.generator, self.runs, c["rule"], c["classes"], c["length"])
        return rule.examples(self.generator, count, c["length"], c["shift"])

    def _net(self) -> Net:
        c = self.config
        if c["body"] == "mlp":
            return MLP(c["dims"], c["width"], c["depth"], c["classes"], c["activation"], norm=c["layer_norm"])
        return Transformer(
            c["vocab"], c["length"], c["width"], c["heads"], c["depth"], c["classes"], norm=c["norm"], tokens=True
        )

    def _adapter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name in self.net.adaptable:
            inputs, outputs = self.net.layout.shapes[name]
            shapes |= {f"{name}.down": (inputs, self.rank), f"{name}.up": (self.rank, outputs)}
        return shapes

    def _fresh_adapters(self) -> dict[str, Tensor]:
        out = {}
        for name, shape in self._adapter_shapes().items():
            draw = torch.randn(self.runs, *shape, generator=self.generator)
            out[name] = draw / shape[0] ** 0.5 if name.endswith(".down") else torch.zeros_like(draw)
        return out

    def trained_layout(self) -> Layout:
        """Layout of the trained weights: all, or adapters and head."""
        return self._trained

    def sizes(self, weights: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """As in the base class; adapters count by their product, as in a live run (`sensors/lora.py`)."""
        if not self.rank:
            return super().sizes(weights, direction)
        heads = ([self._trained.views(each)[name] for name in _HEAD] for each in (weights, direction))
        weight_sq, moved = (inner(head, head, 1) for head in heads)
        now, step = (self._trained.views(self.unscaled(each)) for each in (weights, direction))
        for name in self.net.adaptable:
            a, b = now[f"{name}.up"], now[f"{name}.down"]  # the layout of a layer is (inputs, outputs)
            moved = moved + moved_sq(a, b, step[f"{name}.up"], step[f"{name}.down"], _LORA_SCALE)
            weight_sq = weight_sq + product_sq(a, b, _LORA_SCALE) + inner([self._body[name]], [self._body[name]], 1)
        return moved, weight_sq

    def params(self, weights: Tensor) -> Params:
        """Named weights of the network; adapters are added to the frozen body."""
        trained = self._trained.views(self.unscaled(weights))
        if not self.rank:
            return trained
        whole = {**self._body, **{name: trained[name] for name in _HEAD}}
        for name in self.net.adaptable:
            product = (self._body[name], trained[f"{name}.down"], trained[f"{name}.up"])
            whole[name] = torch.baddbmm(*product, alpha=_LORA_SCALE)
        return whole
