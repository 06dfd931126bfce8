"""Multi-layer perceptrons on vectors labelled by random networks, or on the digits."""

from __future__ import annotations

from torch import Tensor

from .data import EVAL, Vectors, digits, split_own
from .layers import ACTIVATIONS, Net, Params, layer_norm, linear, linear_shapes, norm_shapes
from .supervised import Supervised


class MLP(Net):
    """`depth` hidden layers of `width`, at least 1, and a linear head; `norm`: layer norm before every activation."""

    def __init__(self, inputs: int, width: int, depth: int, classes: int, activation: str, *, norm: bool) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(depth):
            shapes |= linear_shapes(f"layer{i}", width if i else inputs, width)
            shapes |= norm_shapes(f"norm{i}", width) if norm else {}
        super().__init__(shapes | linear_shapes("head", width, classes), 1.0 if activation == "tanh" else 2.0**0.5)
        self.depth, self.norm, self.activation = depth, norm, ACTIVATIONS[activation]
        self.adaptable = tuple(f"layer{i}.weight" for i in range(depth))

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Scores (runs, batch, classes) of inputs (runs, batch, ...), which are flattened."""
        x = inputs.flatten(2)
        for i in range(self.depth):
            x = linear(params, f"layer{i}", x)
            x = self.activation(layer_norm(params, f"norm{i}", x) if self.norm else x)
        return linear(params, "head", x)


class MLPTask(Supervised):
    """Multi-layer perceptrons of one shape, each with its own weights, data and mini-batches.

    `config` may hold the keys of `defaults`; `data` is `teacher`, `correlated` or `digits` (then `dims` and `classes`
    are those of the digits).
    """

    defaults = {
        "data": "teacher",
        "dims": 16,
        "classes": 4,
        "width": 32,
        "depth": 2,
        "activation": "relu",
        "norm": False,
        "n_train": 512,
    }

    def setup(self) -> None:
        """Draw data and weights."""
        c = self.config
        dims, classes, n_train = c["dims"], c["classes"], c["n_train"]
        if c["data"] == "digits":
            dims, classes = 64, 10
            self.splits = digits(self.generator, self.runs, n_train)
        elif c["data"] in ("teacher", "correlated"):
            correlated = c["data"] == "correlated"
            self.teacher = Vectors.draw(self.generator, self.runs, dims, classes, correlated=correlated)
            self.splits = split_own(*self.teacher.examples(self.generator, n_train + 3 * EVAL), n_train)
        else:
            raise ValueError(f"no data '{c['data']}'; known: teacher, correlated, digits")
        self.classes = classes
        self.net = MLP(dims, c["width"], c["depth"], classes, c["activation"], norm=c["norm"])
        self.start = self.net.init(self.generator, self.runs)
