"""The ways to train many small MLPs that `throughput.py` compares: the same runs, weights, batches and rates in each.

Every column trains perceptrons with one hidden layer by plain SGD, or by AdamW with clipping where its name says so.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..meta.inner import InnerOptimizer
from ..meta.tasks import Split, TaskSpec
from ..meta.tasks.mlp import MLPTask
from ..meta.tasks.supervised import Batch
from ..meta.vector_run import VectorRun

SGD = InnerOptimizer("sgd")
ADAMW = InnerOptimizer("adamw", weight_decay=0.01, max_grad_norm=1.0)
HORIZON, DECISIONS = 200, 20
"""Length of a meta-training run, in updates, and its decisions."""


class Replay(MLPTask):
    """Perceptrons whose training batches were drawn beforehand and come round again: all columns see the same ones."""

    batches: Sequence[Batch] = ()
    """The batches; without any, fresh ones are drawn."""
    _next = 0

    def batch(self, split: Split) -> Batch:
        """The next batch of the cycle, from the training split whatever `split` is."""
        if not self.batches:
            return super().batch(split)
        self._next += 1
        return self.batches[(self._next - 1) % len(self.batches)]


@dataclass(frozen=True)
class Work:
    """What all columns train; `seed` is of weights and data."""

    runs: int
    dims: int = 64
    width: int = 32
    classes: int = 10
    batch: int = 64
    seed: int = 0

    @property
    def flops(self) -> int:
        """Of one update of one run, matrix products only; the gradient of the inputs is not needed."""
        return 2 * self.batch * self.width * (2 * self.dims + 3 * self.classes)

    def task(self, batches: int) -> Replay:
        """Perceptrons on vectors that random networks label, and this many batches."""
        config = {"dims": self.dims, "width": self.width, "classes": self.classes, "depth": 1}
        made = Replay(TaskSpec("mlp", self.runs, self.seed, {**config, "batch_size": self.batch}))
        made.batches = [made.batch("train") for _ in range(batches)]
        return made

    def rates(self) -> Tensor:
        """Learning rates, log-spaced over two decades; none makes a run diverge."""
        return torch.logspace(-3, -1, self.runs)


class Column(ABC):
    """One way to train the runs from the same start, at learning rates of shape (runs,)."""

    name: str
    optimizer: InnerOptimizer = SGD
    unit = 1
    """`advance` is called with multiples of this."""

    def __init__(self, task: Replay, rates: Tensor) -> None:
        self.task, self.rates, self.runs, self.done = task, rates, task.runs, 0

    @abstractmethod
    def advance(self, updates: int) -> None:
        """Apply the next `updates` updates to every run, and wait until they are done."""

    @abstractmethod
    def weights(self) -> Tensor:
        """Weights as they are, in the layout of the task, of shape (runs, size)."""

    def _params(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.task.params(self.task.init()).items()}

    def _batches(self, updates: int) -> list[int]:
        first, self.done = self.done, self.done + updates
        return [k % len(self.task.batches) for k in range(first, self.done)]


class Vector(Column):
    """`VectorRun`, which meta-training uses; nothing is measured between the updates."""

    name = "VectorRun"

    def __init__(self, task: Replay, rates: Tensor) -> None:
        super().__init__(task, rates)
        # Each column has its own place in the cycle of batches.
        self.run = VectorRun(copy.copy(task), self.optimizer, rates, HORIZON)

    def advance(self, updates: int) -> None:
        """Without the forward pass of the gain ratio, which belongs to the sensors."""
        for _ in range(updates):
            self.run._update(self.rates, gain=False)
            self.run._compute()

    def weights(self) -> Tensor:
        """The run's own."""
        return self.run.weights


class Sensed(Vector):
    """`VectorRun` as meta-training pays for it: AdamW, clipping, fresh batches, all sensors at every decision."""

    name, optimizer, unit = "VectorRun, AdamW + sensors", ADAMW, HORIZON // DECISIONS
    scored = False

    def draw(self) -> None:
        """From now on every batch is drawn when it is needed, and a run ends after its horizon."""
        self.task = copy.copy(self.task)
        self.task.batches = ()
        self._begin()

    def _begin(self) -> None:
        self.run = VectorRun(self.task, self.optimizer, self.rates, HORIZON)

    def advance(self, updates: int) -> None:
        """Decision by decision."""
        for _ in range(updates // self.unit):
            if not self.task.batches and self.run.step >= HORIZON:
                self._begin()
            self.run.observe(self.rates)
            self.run.advance(self.rates, self.unit)
            if self.scored:
                self.run.evaluate("outer_valid")


class Scored(Sensed):
    """The same with the held-out loss after every decision, which is a trainer's reward."""

    name, scored = "VectorRun, AdamW + sensors + reward", True


class Eager(Column):
    """`nn.Module` and `torch.optim`, one run after another; a few of the runs, as each takes the same time."""

    name = "eager loop"
    few = 4
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.SGD

    def __init__(self, task: Replay, rates: Tensor) -> None:
        super().__init__(task, rates)
        self.runs, params = min(self.few, task.runs), self._params()
        sizes = params["layer0.weight"].shape[1:], params["head.weight"].shape[1:]
        self.nets = [nn.Sequential(nn.Linear(*sizes[0]), nn.ReLU(), nn.Linear(*sizes[1])) for _ in range(self.runs)]
        with torch.no_grad():
            for run, net in enumerate(self.nets):
                for p, value in zip(net.parameters(), params.values(), strict=True):
                    p.copy_(value[run].t())  # torch's matrices are (outputs, inputs)
        self.optimizers = [self.kind(n.parameters(), lr=float(r)) for n, r in zip(self.nets, rates, strict=False)]
        self.own = [[(x[r].clone(), y[r].clone()) for x, y in task.batches] for r in range(self.runs)]

    def advance(self, updates: int) -> None:
        """The usual loop, as often as there are runs."""
        turn = self._batches(updates)
        for net, optimizer, batches in zip(self.nets, self.optimizers, self.own, strict=True):
            for k in turn:
                inputs, labels = batches[k]
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(net(inputs), labels))
                if self.optimizer.max_grad_norm:
                    nn.utils.clip_grad_norm_(net.parameters(), self.optimizer.max_grad_norm)
                optimizer.step()

    def weights(self) -> Tensor:
        """Of the few."""
        return torch.stack([torch.cat([p.detach().t().flatten() for p in net.parameters()]) for net in self.nets])


class EagerAdamW(Eager):
    """The same with AdamW and clipping, no sensors."""

    name, optimizer = "eager loop, AdamW", ADAMW
    kind = partial(torch.optim.AdamW, weight_decay=ADAMW.weight_decay)


class Vmap(Column):
    """`torch.func.vmap(grad)` of one run's loss."""

    name = "vmap(grad)"

    def __init__(self, task: Replay, rates: Tensor) -> None:
        super().__init__(task, rates)
        self.params = self._params()
        self.gradient = torch.func.vmap(torch.func.grad(self._loss))

    @staticmethod
    def _loss(params: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        hidden = F.relu(inputs @ params["layer0.weight"] + params["layer0.bias"])
        return F.cross_entropy(hidden @ params["head.weight"] + params["head.bias"], labels)

    def advance(self, updates: int) -> None:
        """All runs at once."""
        for k in self._batches(updates):
            grads = self.gradient(self.params, *self.task.batches[k])
            for name, p in self.params.items():
                p.sub_(self.rates.view(-1, *[1] * (p.dim() - 1)) * grads[name])

    def weights(self) -> Tensor:
        """Joined."""
        return self.task.net.layout.join(self.params)


class Jax(Column):
    """JAX's `jit(vmap(grad))`, the update inside the `jit`."""

    name = "JAX jit(vmap(grad))"

    def __init__(self, task: Replay, rates: Tensor) -> None:
        super().__init__(task, rates)
        # By name: JAX is in no extra, and the type checker must not miss it.
        jax, jnp = importlib.import_module("jax"), importlib.import_module("jax.numpy")

        def loss(params: Any, inputs: Any, labels: Any) -> Any:
            hidden = jax.nn.relu(inputs @ params["layer0.weight"] + params["layer0.bias"])
            logs = jax.nn.log_softmax(hidden @ params["head.weight"] + params["head.bias"])
            return -jnp.take_along_axis(logs, labels[:, None], 1).mean()

        def step(params: Any, rate: Any, inputs: Any, labels: Any) -> Any:
            return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params, inputs, labels))

        self._step, self._wait = jax.jit(jax.vmap(step), donate_argnums=0), jax.block_until_ready
        self.params = {k: jnp.array(v.numpy()) for k, v in self._params().items()}
        self._rates = jnp.array(rates.numpy())
        self._own = [(jnp.array(x.numpy()), jnp.array(y.int().numpy())) for x, y in task.batches]

    @staticmethod
    def installed() -> bool:
        """Whether it is."""
        return importlib.util.find_spec("jax") is not None

    def advance(self, updates: int) -> None:
        """All runs at once."""
        for k in self._batches(updates):
            self.params = self._step(self.params, self._rates, *self._own[k])
        self._wait(self.params)

    def weights(self) -> Tensor:
        """Joined, copied into torch."""
        return self.task.net.layout.join({k: torch.tensor(v.tolist()) for k, v in self.params.items()})


COLUMNS: tuple[type[Column], ...] = (Vector, Sensed, Scored, Eager, EagerAdamW, Vmap, Jax)
