"""The nets that Xu et al. 2019 (arXiv:1909.09712) control, on real images: the convolutional one, and the perceptron.

5x5 convolution to 32 channels, 5x5 to 64, each with a rectifier and 2x2 max pooling, a dense layer of 512 rectified
units, ten outputs; Glorot-uniform matrices, zero biases, no dropout, pixels only divided by 255. All as in the
authors' code, but a mini-batch is drawn with replacement where theirs are the data in their order. Without channels it
is their perceptron, whose dense layer has 128 units.

Runs of the paper's width are a loop: one is large enough to keep a core busy. Narrow ones are the groups of grouped
convolutions. Tensors are channels-last, because torch's max pooling is vectorised only there; pooling before the
rectifier is the same function and a quarter of its work. Forward and backward of 100 images take 62 ms on one thread
(plain NCHW modules: 90), the evaluation of 1,000 takes 0.2 s (0.4); of 32 images of 14x14 pixels and 4 channels, in
64 runs at once, 0.8 ms a run (1.6 with NCHW groups, 2.2 as a loop).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import images
from .layers import Net, Params, linear, linear_shapes
from .supervised import Supervised

_KERNEL, _CLASSES = 5, 10
_NARROW = 8  # channels up to which groups are faster than a loop


class LeNet(Net):
    """Two convolutions, to `channels` and twice as many, and two dense layers, for grey images of `side` pixels.

    Without channels there are only the dense layers.
    """

    def __init__(self, channels: int, width: int, side: int = 28) -> None:
        self.narrow, self.convolutions = channels <= _NARROW, ("conv0", "conv1") if channels else ()
        shapes: dict[str, tuple[int, ...]] = {}
        flat, before = side**2, 1
        for i, name in enumerate(self.convolutions):
            wide = channels * 2**i
            shapes |= {f"{name}.weight": (wide, before, _KERNEL, _KERNEL), f"{name}.bias": (wide,)}
            flat, before = (side // 4) ** 2 * wide, wide
        super().__init__({**shapes, **linear_shapes("dense", flat, width), **linear_shapes("head", width, _CLASSES)})

    def init(self, generator: torch.Generator, runs: int) -> Tensor:
        """Fresh weights of shape (runs, size): Glorot & Bengio 2010, eq. 16."""
        params = {}
        for name, shape in self.layout.shapes.items():
            params[name] = torch.zeros(runs, *shape)
            if len(shape) > 1:
                places = _KERNEL**2 if len(shape) == 4 else 1
                bound = (6 / (places * (shape[0] + shape[1]))) ** 0.5
                params[name].uniform_(-bound, bound, generator=generator)
        return self.layout.join(params)

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Scores (runs, batch, classes) of images (runs, batch, 1, side, side)."""
        if self.narrow:
            return self._grouped(params, inputs)
        by_run = zip(*(view.unbind(0) for view in params.values()), strict=True)
        return torch.stack(
            [self._one(dict(zip(params, run, strict=True)), x) for run, x in zip(by_run, inputs, strict=True)]
        )

    def _grouped(self, params: Params, images: Tensor) -> Tensor:
        runs, batch = images.shape[:2]
        x = images
        if self.convolutions:
            x = x.squeeze(2).transpose(0, 1).contiguous(memory_format=torch.channels_last)
            for name in self.convolutions:
                weight, bias = params[f"{name}.weight"].flatten(0, 1), params[f"{name}.bias"].flatten()
                x = F.relu(F.max_pool2d(F.conv2d(x, weight, bias, padding=_KERNEL // 2, groups=runs), 2))
            x = x.permute(0, 2, 3, 1).reshape(batch, *x.shape[2:], runs, -1).permute(3, 0, 1, 2, 4)
        x = x.reshape(runs, batch, -1)
        return linear(params, "head", F.relu(linear(params, "dense", x)))

    @staticmethod
    def _one(params: Params, images: Tensor) -> Tensor:
        # With one channel both layouts look contiguous; these strides say channels-last, and torch keeps to it.
        x = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for name in ("conv0", "conv1"):
            x = F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], padding=_KERNEL // 2)
            x = F.relu(F.max_pool2d(x, 2))
        x = x.permute(0, 2, 3, 1).flatten(1)  # as TensorFlow flattens, and no copy
        x = F.relu(torch.addmm(params["dense.bias"], x, params["dense.weight"]))
        return torch.addmm(params["head.bias"], x, params["head.weight"])


class LeNetTask(Supervised):
    """Convolutional nets of one shape on real images, each on its own rows; `config` may hold the keys of `defaults`.

    `data` is `fashion-mnist` or `mnist-5000` (at most 2,000 training images), `side` is 28, 14 or 7 pixels (then means
    of 4 or 16), `channels` (0: no convolutions) and `width` (of the dense layer) are the net's, `eval_size` images are
    in each split that is not `train`.
    """

    defaults = {
        "data": "fashion-mnist",
        "n_train": 4000,
        "eval_size": 1000,
        "side": 28,
        "channels": 32,
        "width": 512,
    }
    piece = 50

    def setup(self) -> None:
        """Read the images, draw rows and weights."""
        c = self.config
        self.splits = images(self.generator, self.runs, c["data"], c["n_train"], c["eval_size"], c["side"])
        self.net = LeNet(c["channels"], c["width"], c["side"])
        self.start = self.net.init(self.generator, self.runs)
