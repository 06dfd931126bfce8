"""The convolutional net that Xu et al. 2019 (arXiv:1909.09712) control, on real 28x28 images.

5x5 convolution to 32 channels, 5x5 to 64, each with a rectifier and 2x2 max pooling, a dense layer of 512 rectified
units, ten outputs; Glorot-uniform matrices, zero biases, no dropout, pixels only divided by 255. All as in the
authors' code, but a mini-batch is drawn with replacement where theirs are the data in their order.

Runs are a loop: one is large enough to keep a core busy. Tensors are channels-last, because torch's max pooling is
vectorised only there; pooling before the rectifier is the same function and a quarter of its work. Forward and
backward of 100 images take 62 ms on one thread (plain NCHW modules: 90), the evaluation of 1,000 takes 0.2 s (0.4).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import images
from .layers import Net, Params, linear_shapes
from .supervised import Supervised

_SIDE, _KERNEL, _CLASSES = 28, 5, 10


class LeNet(Net):
    """Two convolutions, to `channels` and twice as many, and two dense layers, for images of 28x28 grey pixels."""

    def __init__(self, channels: int, width: int) -> None:
        flat = (_SIDE // 4) ** 2 * 2 * channels
        super().__init__(
            {
                "conv0.weight": (channels, 1, _KERNEL, _KERNEL),
                "conv0.bias": (channels,),
                "conv1.weight": (2 * channels, channels, _KERNEL, _KERNEL),
                "conv1.bias": (2 * channels,),
                **linear_shapes("dense", flat, width),
                **linear_shapes("head", width, _CLASSES),
            }
        )

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
        """Scores (runs, batch, classes) of images (runs, batch, 1, 28, 28)."""
        by_run = zip(*(view.unbind(0) for view in params.values()), strict=True)
        return torch.stack(
            [self._one(dict(zip(params, run, strict=True)), x) for run, x in zip(by_run, inputs, strict=True)]
        )

    @staticmethod
    def _one(params: Params, images: Tensor) -> Tensor:
        # With one channel both layouts look contiguous; these strides say channels-last, and torch keeps to it.
        x = images.reshape(-1, _SIDE, _SIDE, 1).permute(0, 3, 1, 2)
        for name in ("conv0", "conv1"):
            x = F.conv2d(x, params[f"{name}.weight"], params[f"{name}.bias"], padding=_KERNEL // 2)
            x = F.relu(F.max_pool2d(x, 2))
        x = x.permute(0, 2, 3, 1).flatten(1)  # as TensorFlow flattens, and no copy
        x = F.relu(torch.addmm(params["dense.bias"], x, params["dense.weight"]))
        return torch.addmm(params["head.bias"], x, params["head.weight"])


class LeNetTask(Supervised):
    """Convolutional nets of one shape on real images, each on its own rows; `config` may hold the keys of `defaults`.

    `data` is `fashion-mnist` or `mnist-5000` (at most 2,000 training images), `channels` and `width` (of the dense
    layer) are the net's, `eval_size` images are in each split that is not `train`.
    """

    defaults = {"data": "fashion-mnist", "n_train": 4000, "eval_size": 1000, "channels": 32, "width": 512}
    piece = 50

    def setup(self) -> None:
        """Read the images, draw rows and weights."""
        c = self.config
        self.splits = images(self.generator, self.runs, c["data"], c["n_train"], c["eval_size"])
        self.net = LeNet(c["channels"], c["width"])
        self.start = self.net.init(self.generator, self.runs)
