"""Small transformer encoders, post-norm and pre-norm, on token sequences and on image patches."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import EVAL, Sequences, draw_images, split_own
from .layers import Net, Params, layer_norm, linear, linear_shapes, norm_shapes, softmax
from .supervised import Supervised

_PATCH = 2  # side of an image patch: 8x8 pixels are 16 patches of 4


class Transformer(Net):
    """An encoder of `depth` blocks and a linear head on the mean over the places; `heads` divides `width`.

    Inputs are tokens (runs, batch, length) from a vocabulary of `inputs`, or patches (runs, batch, length, inputs).
    `norm` is `post` (as BERT) or `pre` (as ViT).
    """

    def __init__(
        self, inputs: int, length: int, width: int, heads: int, depth: int, classes: int, *, norm: str, tokens: bool
    ) -> None:
        if norm not in ("post", "pre"):
            raise ValueError(f"no norm '{norm}'; known: post, pre")
        shapes: dict[str, tuple[int, ...]] = {"position.table": (length, width), **norm_shapes("norm", width)}
        shapes |= {"embed.table": (inputs, width)} if tokens else linear_shapes("embed", inputs, width)
        for i in range(depth):
            for name, before, after in (("qkv", 1, 3), ("out", 1, 1), ("up", 1, 2), ("down", 2, 1)):
                shapes |= linear_shapes(f"block{i}.{name}", before * width, after * width)
            shapes |= norm_shapes(f"block{i}.norm1", width) | norm_shapes(f"block{i}.norm2", width)
        super().__init__(shapes | linear_shapes("head", width, classes))
        self.heads, self.depth, self.post, self.tokens = heads, depth, norm == "post", tokens
        names = ("qkv", "out", "up", "down")
        self.adaptable = tuple(f"block{i}.{name}.weight" for i in range(depth) for name in names)

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Scores (runs, batch, classes)."""
        runs, batch, length = inputs.shape[:3]
        x = self._embed(params, inputs) + params["position.table"].unsqueeze(1)
        x = x.flatten(1, 2)  # (runs, batch * length, width)
        if self.post:
            x = layer_norm(params, "norm", x)
        for i in range(self.depth):
            x = self._block(params, f"block{i}", x, (runs, batch, length))
        if not self.post:
            x = layer_norm(params, "norm", x)
        return linear(params, "head", x.view(runs, batch, length, -1).mean(2))

    def _embed(self, params: Params, inputs: Tensor) -> Tensor:
        runs, batch, length = inputs.shape[:3]
        if not self.tokens:
            return linear(params, "embed", inputs.flatten(1, 2)).view(runs, batch, length, -1)
        table = params["embed.table"]
        # One table for all runs: the tokens of run r are moved by r vocabularies.
        first = inputs.new_tensor(range(runs)).view(-1, 1, 1) * table.shape[1]
        return F.embedding(inputs + first, table.flatten(0, 1))

    def _block(self, params: Params, name: str, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
        if self.post:
            x = layer_norm(params, f"{name}.norm1", x + self._attend(params, name, x, shape))
            return layer_norm(params, f"{name}.norm2", x + self._feed(params, name, x))
        x = x + self._attend(params, name, layer_norm(params, f"{name}.norm1", x), shape)
        return x + self._feed(params, name, layer_norm(params, f"{name}.norm2", x))

    def _attend(self, params: Params, name: str, x: Tensor, shape: tuple[int, int, int]) -> Tensor:
        runs, batch, length = shape
        qkv = linear(params, f"{name}.qkv", x).view(runs * batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)  # (runs * batch * heads, length, size)
        # Two batched products, not scaled_dot_product_attention: faster at these lengths, and differentiable twice.
        shares = softmax(torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2)))
        mixed = torch.bmm(shares, v).view(runs * batch, self.heads, length, -1).transpose(1, 2)
        return linear(params, f"{name}.out", mixed.reshape(runs, batch * length, -1))

    @staticmethod
    def _feed(params: Params, name: str, x: Tensor) -> Tensor:
        return linear(params, f"{name}.down", F.gelu(linear(params, f"{name}.up", x)))


def patches(images: Tensor) -> Tensor:
    """Images (examples, 1, side, side) as (examples, patches, pixels of a patch)."""
    return F.unfold(images, _PATCH, stride=_PATCH).transpose(1, 2).contiguous()


class TransformerTask(Supervised):
    """Transformer encoders of one shape; `config` may hold the keys of `defaults`.

    `data` is `majority`, `position` or `motif` (token sequences), or `gratings` or `digits` (2x2 patches of 8x8
    images; then `length` is 16).
    """

    defaults = {
        "data": "majority",
        "vocab": 16,
        "length": 8,
        "classes": 4,
        "width": 16,
        "heads": 2,
        "depth": 2,
        "norm": "post",
        "n_train": 512,
    }

    def setup(self) -> None:
        """Draw data and weights."""
        c = self.config
        inputs, length, classes = c["vocab"], c["length"], c["classes"]
        tokens = c["data"] not in ("gratings", "digits")
        if tokens:
            self.teacher = Sequences.draw(self.generator, c["data"], self.runs, inputs, classes, length)
            drawn = self.teacher.examples(self.generator, c["n_train"] + 3 * EVAL, length)
            self.splits = split_own(*drawn, c["n_train"])
        else:
            inputs, length = _PATCH**2, 16
            images, classes = draw_images(self.generator, self.runs, c["data"], classes, c["n_train"])
            cut = patches(images["train"].pool)  # all splits share one pool
            self.splits = {name: replace(examples, pool=cut) for name, examples in images.items()}
        self.net = Transformer(
            inputs, length, c["width"], c["heads"], c["depth"], classes, norm=c["norm"], tokens=tokens
        )
        self.start = self.net.init(self.generator, self.runs)
