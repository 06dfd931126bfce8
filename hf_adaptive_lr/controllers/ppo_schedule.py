"""A policy that multiplies the learning rate, trained by PPO (Xu, Dai, Kemp, Metz 2019, arXiv:1909.09712).

Every K updates it sees nine raw numbers (losses, variances of the predictions, statistics of the last two weight
matrices, the learning rate) and answers

    a ~ N(mu(s), 0.1^2)         eta <- eta * (1 + 0.1 * (clip(a, -0.2, 0.5) - 0.15))

so that a = 0.15 changes nothing and one decision moves the learning rate by at most 3.5 %. mu is a network of one
hidden layer; its weights come from `meta/schedule_ppo.py`, without them it is a random function. Where the paper is
silent this follows the authors' code (google-research/adaptive_learning_rate_tuner).

Departs from the paper: it answers with the mean, not a sample (`sample=True` samples, as the authors do even at
evaluation). What it sees is of the update about to be applied, while the authors' code records it right after a
controlled update and uses it K - 1 updates later. Numbers are clipped to +-1000 before they enter the network, so
that a run that blows up gets an answer; no other run comes near.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Citation, Controller, Device, Params, Shape, State
from ..observation import Observation
from . import _random
from ._recurrent import affine

FEATURES = (
    "validation loss",
    "log variance of the predictions",
    "log variance of their change",
    "training loss",
    "mean of w1",
    "variance of w1",
    "mean of w2",
    "variance of w2",
    "learning rate",
)
"""Inputs of the policy, in the order of the authors' code; w1 is the last weight matrix but one, w2 the last."""

_PREDICTIONS = {"log_variance": "prediction_variance", "log_change": "prediction_change"}
_MATRICES = ("penultimate_mean", "penultimate_variance", "head_mean", "head_variance")
_LOW, _HIGH, _NEUTRAL, _STEP = -0.2, 0.5, 0.15, 0.1  # of the action; the authors' code, the paper only says "scaling"
_DECAY, _FLOOR = 0.8, 1e-10  # of the averages per decision, and the number added to a variance; the authors' code
_LIMIT = 1e3


@dataclass(frozen=True, kw_only=True)
class PPOSchedule(Controller):
    """Scales the learning rate in force by a learned factor between 0.965 and 1.035; `params` hold the weights.

    Args:
        hidden_size: width of the hidden layer, 1 ... 1024; 32 in paper and code.
        recurrent: an LSTM cell instead of the hidden layer of rectified units; an option of both.
        memory: whether the LSTM remembers from decision to decision, as the paper's words suggest. The released code
            starts it from zero every time.
        every_steps: K, updates between two decisions, at least 1; 10 in the paper, 1 by default in the code. In the
            last K - 1 updates of a run of known length it decides at each one.
        std: standard deviation of the action, in (0, 10]; 0.1 in the code. Its training explores with it, too.
        sample: draw the action instead of taking its mean.

    Raises:
        ValueError: a value out of range, or weights of another shape.

    Example:
        >>> controller = PPOSchedule(params=PPOSchedule.random_params(seed=0))
        >>> [round(float(controller.multiplier(torch.tensor(a))), 4) for a in (-1.0, 0.15, 0.25, 1.0)]
        [0.965, 1.0, 1.01, 1.035]
        >>> sum(controller.due(update, 1000) for update in range(1000))
        109
    """

    controller_type = "ppo_schedule"
    citation = Citation(
        "1909.09712",
        "Learning an Adaptive Learning Rate Schedule",
        "Xu, Zhen and Dai, Andrew M. and Kemp, Jonas and Metz, Luke",
        2019,
    )
    needs = frozenset({"eval_loss", "loss", *_PREDICTIONS.values(), *_MATRICES})
    learned = True
    fresh_eval = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"every_steps": 10, "memory": True},
        "released": {"every_steps": 1, "memory": False, "sample": True},
    }

    hidden_size: int = 32
    recurrent: bool = False
    memory: bool = True
    every_steps: int = 10
    std: float = 0.1
    sample: bool = False

    def __post_init__(self) -> None:
        check_range(self, "hidden_size", self.hidden_size, 1, 1024, hint="32 is the authors' width")
        check_range(self, "every_steps", self.every_steps, 1, 10**6, hint="10 is the paper's K")
        check_range(self, "std", self.std, 1e-6, 10.0, hint="0.1 is the authors' value")
        object.__setattr__(self, "random", self.sample)
        super().__post_init__()

    def param_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The hidden layer (or the LSTM's gates in torch's order: input, forget, cell, output), then the output."""
        return _shapes(self.hidden_size, recurrent=self.recurrent)

    @classmethod
    def random_params(
        cls,
        *,
        hidden_size: int = 32,
        recurrent: bool = False,
        bias: float = 0.0,
        gain: float = 1.0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Untrained weights: TensorFlow's defaults, as the paper names none.

        Matrices are Glorot-uniform (Glorot & Bengio 2010, eq. 16), biases zero, an LSTM's forget gate one. A `bias` of
        the output of 0.15 starts near a constant learning rate, the default 0 near a decay of 1.5 % a decision; yet
        what the net sees spreads the first means by about 1, and all below -0.2 or above 0.5 are alike. A `gain`, the
        factor of the output's weights, of 0.01 keeps them together.
        """
        generator = torch.Generator().manual_seed(seed)
        out = {}
        for name, shape in _shapes(hidden_size, recurrent=recurrent).items():
            out[name] = torch.zeros(shape)
            if len(shape) == 2:
                bound = (6 / sum(shape)) ** 0.5
                out[name].uniform_(-bound, bound, generator=generator)
        out["output_bias"] += bias
        out["output_weight"] *= gain
        if recurrent:
            out["bias_ih"][hidden_size : 2 * hidden_size] = 1.0
        return out

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """Averages and last validation loss of `batch_shape`; with `sample` the generator's state as well."""
        zeros = torch.zeros(batch_shape, dtype=torch.float64, device=device)
        state: State = {"decided": 0, "eval_loss": zeros + 1, "log_variance": zeros, "log_change": zeros}
        if self.recurrent and self.memory:
            blank = torch.zeros(*batch_shape, self.hidden_size, device=device)
            state |= {"hidden": blank, "cell": blank.clone()}
        return {**state, _random.GENERATOR: _random.seeded(seed)} if self.sample else state

    def due(self, update: int, total_steps: int | None) -> bool:
        """Every K-th update, and each of the last K - 1: 109 decisions in 1,000 updates at K = 10."""
        ending = total_steps is not None and total_steps - self.every_steps < update < total_steps
        return update % self.every_steps == 0 or ending

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor of the base LR, of `batch_shape`; from the learning rate in force, so bounds leave no memory."""
        features, state = self.encode(obs, state)
        action, state = self.policy(features, state, self.params if params is None else params)
        if self.sample:
            noise, generator = _random.normal(state[_random.GENERATOR], tuple(action.shape))
            action, state = action + self.std * noise.to(action.device), {**state, _random.GENERATOR: generator}
        return self.act(action, obs), state

    # The three steps of a decision, one by one, for a trainer that puts noise between the second and the third.

    def encode(self, obs: Observation, state: State) -> tuple[Tensor, State]:
        """The nine numbers, of batch_shape + (9,) in float32; ones at the first decision, as in the authors' code."""
        first, found = state["decided"] == 0, obs.require("eval_loss")
        eval_loss = torch.where(found.isnan(), state["eval_loss"], found)
        averages = {}
        for kept, field in _PREDICTIONS.items():
            now = (obs.require(field) + _FLOOR).log()
            averages[kept] = now if first else _DECAY * state[kept] + (1 - _DECAY) * now
        weights = [obs.require(name) for name in _MATRICES]
        columns = [eval_loss, *averages.values(), obs.require("loss"), *weights, obs.lr]
        features = torch.stack([column.float() for column in columns], dim=-1)
        features = torch.ones_like(features) if first else features.nan_to_num(0.0).clamp(-_LIMIT, _LIMIT)
        return features, {**state, **averages, "eval_loss": eval_loss, "decided": state["decided"] + 1}

    def policy(self, features: Tensor, state: State, params: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Mean action of batch_shape, and the state with the LSTM's memory; `params` may have a run dimension."""
        if not self.recurrent:
            hidden = torch.relu(affine(features, params["hidden_weight"], params["hidden_bias"]))
        else:
            blank = features.new_zeros(*features.shape[:-1], self.hidden_size)
            before, cell = (state["hidden"], state["cell"]) if self.memory else (blank, blank)
            gates = affine(features, params["weight_ih"], params["bias_ih"])
            gates = gates + affine(before, params["weight_hh"], params["bias_hh"])
            enter, forget, new, leave = gates.chunk(4, -1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            state = {**state, "hidden": hidden, "cell": cell} if self.memory else state
        return affine(hidden, params["output_weight"], params["output_bias"]).squeeze(-1), state

    def multiplier(self, action: Tensor) -> Tensor:
        """Factor in [0.965, 1.035] of the learning rate for an action."""
        return 1 + _STEP * (action.clamp(_LOW, _HIGH) - _NEUTRAL)

    def act(self, action: Tensor, obs: Observation) -> Tensor:
        """Factor of the base LR after an action, of `batch_shape`."""
        return obs.lr / obs.base_lr * self.multiplier(action.to(obs.lr.dtype))


def _shapes(width: int, *, recurrent: bool) -> dict[str, tuple[int, ...]]:
    inputs = len(FEATURES)
    hidden: dict[str, tuple[int, ...]] = {"hidden_weight": (width, inputs), "hidden_bias": (width,)}
    if recurrent:
        hidden = {"weight_ih": (4 * width, inputs), "weight_hh": (4 * width, width)}
        hidden |= {"bias_ih": (4 * width,), "bias_hh": (4 * width,)}
    return {**hidden, "output_weight": (1, width), "output_bias": (1,)}
