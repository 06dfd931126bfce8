"""The ways to train many small MLPs that `throughput.py` compares: the same runs, weights, batches and rates in each.

Every column trains perceptrons with one hidden layer by plain SGD, or by AdamW with clipping where its name says so.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...meta.inner import InnerOptimizer
from ...meta.tasks import Split, TaskSpec
from ...meta.tasks.mlp import MLPTask
from ...meta.tasks.supervised import Batch
from ...meta.vector_run import VectorRun

BATCHES = 8
"""Mini-batches of each run that come round again."""
HORIZON, EVERY = 200, 10
"""Length of a meta-training run, and updates from one of its decisions to the next."""
SGD, ADAMW = InnerOptimizer("sgd"), InnerOptimizer("adamw", weight_decay=0.01, max_grad_norm=1.0)
VECTOR, FEW = "VectorRun", 4
"""Name of the first column; the eager loop trains a few of the runs, as each takes the same time."""


class Replay(MLPTask):
    """Perceptrons whose training batches were drawn beforehand and come round again."""

    batches: Sequence[Batch] = ()
    _turn: Iterator[Batch] | None = None

    def batch(self, split: Split) -> Batch:
        """The next batch of the cycle, whatever `split` is; a fresh one where there is no cycle."""
        if not self.batches:
            return super().batch(split)
        self._turn = self._turn or cycle(self.batches)
        return next(self._turn)


@dataclass(frozen=True)
class Work:
    """What all columns train: `runs` MLPs with one hidden layer on vectors that random networks label."""

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

    def task(self) -> Replay:
        """The perceptrons, with batches."""
        config = {"dims": self.dims, "width": self.width, "classes": self.classes, "depth": 1}
        made = Replay(TaskSpec("mlp", self.runs, self.seed, {**config, "batch_size": self.batch}))
        made.batches = [made.batch("train") for _ in range(BATCHES)]
        return made

    def rates(self) -> Tensor:
        """Learning rates, log-spaced over two decades; none makes a run diverge."""
        return torch.logspace(-3, -1, self.runs)


@dataclass(frozen=True)
class Column:
    """One way to train the runs."""

    name: str
    runs: int
    advance: Callable[[int], Any]  # applies so many updates to every run and waits; a multiple of `unit`
    weights: Callable[[], Tensor]  # as they are, in the layout of the task, of shape (runs, size)
    optimizer: InnerOptimizer = SGD
    unit: int = 1


def vector(task: Replay, rates: Tensor) -> Column:
    """`VectorRun`, without the sensors and the forward pass of the gain ratio."""
    run = VectorRun(copy.copy(task), SGD, rates, HORIZON)

    def advance(updates: int) -> None:
        for _ in range(updates):
            run._update(rates, gain=False)
            run._compute()

    return Column(VECTOR, task.runs, advance, lambda: run.weights)


def sensed(task: Replay, rates: Tensor, *, reward: bool = False) -> Column:
    """`VectorRun` as meta-training pays for it: all sensors at every decision, and a held-out loss as its reward."""

    def begin() -> VectorRun:
        return VectorRun(copy.copy(task), ADAMW, rates, HORIZON)

    runs = [begin()]

    def advance(updates: int) -> None:
        for _ in range(updates // EVERY):
            if runs[0].step >= HORIZON:
                runs[0] = begin()
            runs[0].observe(rates)
            runs[0].advance(rates, EVERY)
            if reward:
                runs[0].evaluate("outer_valid")

    name = f"{VECTOR}, AdamW + sensors" + (" + reward" if reward else "")
    return Column(name, task.runs, advance, lambda: runs[0].weights, ADAMW, EVERY)


def eager(task: Replay, rates: Tensor, *, optimizer: InnerOptimizer = SGD) -> Column:
    """`nn.Module` and `torch.optim`, one run after another."""
    params, few = _params(task), min(FEW, task.runs)
    sizes = params["layer0.weight"].shape[1:], params["head.weight"].shape[1:]
    nets = [nn.Sequential(nn.Linear(*sizes[0]), nn.ReLU(), nn.Linear(*sizes[1])) for _ in range(few)]
    with torch.no_grad():
        for run, net in enumerate(nets):
            for p, value in zip(net.parameters(), params.values(), strict=True):
                p.copy_(value[run].t())  # torch's matrices are (outputs, inputs)
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    if optimizer is ADAMW:
        kind = partial(torch.optim.AdamW, weight_decay=ADAMW.weight_decay)
    made = [kind(n.parameters(), lr=float(r)) for n, r in zip(nets, rates, strict=False)]
    turns = [cycle([(x[r].clone(), y[r].clone()) for x, y in task.batches]) for r in range(few)]

    def advance(updates: int) -> None:
        for net, own, turn in zip(nets, made, turns, strict=True):
            for inputs, labels in islice(turn, updates):
                own.zero_grad()
                torch.autograd.backward(F.cross_entropy(net(inputs), labels))
                if optimizer.max_grad_norm:
                    nn.utils.clip_grad_norm_(net.parameters(), optimizer.max_grad_norm)
                own.step()

    def weights() -> Tensor:
        return torch.stack([torch.cat([p.detach().t().flatten() for p in net.parameters()]) for net in nets])

    return Column("eager loop" + (", AdamW" if optimizer is ADAMW else ""), few, advance, weights, optimizer)


def vmap(task: Replay, rates: Tensor) -> Column:
    """`torch.func.vmap(grad)` of one run's loss."""

    def loss(params: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        hidden = F.relu(inputs @ params["layer0.weight"] + params["layer0.bias"])
        return F.cross_entropy(hidden @ params["head.weight"] + params["head.bias"], labels)

    params, gradient, turn = _params(task), torch.func.vmap(torch.func.grad(loss)), cycle(task.batches)

    def advance(updates: int) -> None:
        for batch in islice(turn, updates):
            grads = gradient(params, *batch)
            for name, p in params.items():
                p.sub_(rates.view(-1, *[1] * (p.dim() - 1)) * grads[name])

    return Column("vmap(grad)", task.runs, advance, lambda: task.net.layout.join(params))


def jax_vmap(task: Replay, rates: Tensor) -> Column:
    """JAX's `jit(vmap(grad))`, the update inside the `jit`."""
    # By name: JAX is in no extra that others need, and the type checker must not miss it.
    jax, jnp = importlib.import_module("jax"), importlib.import_module("jax.numpy")

    def loss(params: Any, inputs: Any, labels: Any) -> Any:
        hidden = jax.nn.relu(inputs @ params["layer0.weight"] + params["layer0.bias"])
        logs = jax.nn.log_softmax(hidden @ params["head.weight"] + params["head.bias"])
        return -jnp.take_along_axis(logs, labels[:, None], 1).mean()

    def step(params: Any, rate: Any, inputs: Any, labels: Any) -> Any:
        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params, inputs, labels))

    apply, rate = jax.jit(jax.vmap(step), donate_argnums=0), jnp.array(rates.numpy())
    params = {k: jnp.array(v.numpy()) for k, v in _params(task).items()}
    turn = cycle([(jnp.array(x.numpy()), jnp.array(y.int().numpy())) for x, y in task.batches])

    def advance(updates: int) -> None:
        for batch in islice(turn, updates):
            params.update(apply(params, rate, *batch))
        jax.block_until_ready(params)

    def weights() -> Tensor:
        return task.net.layout.join({k: torch.tensor(v.tolist()) for k, v in params.items()})

    return Column("JAX jit(vmap(grad))", task.runs, advance, weights)


def _params(task: Replay) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in task.params(task.init()).items()}


def columns(task: Replay, rates: Tensor, fresh: bool = False) -> list[Column]:
    """All that can be had here; `fresh` ones with sensors draw their own batches."""
    own = copy.copy(task)
    own.batches = () if fresh else task.batches
    made = [vector(task, rates), sensed(own, rates), sensed(own, rates, reward=True)]
    made += [eager(task, rates), eager(task, rates, optimizer=ADAMW), vmap(task, rates)]
    return [*made, jax_vmap(task, rates)] if importlib.util.find_spec("jax") else made
