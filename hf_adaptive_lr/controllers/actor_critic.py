"""Actor-critic learning-rate control (Xu, Qin, Wang, Liu 2017, arXiv:1705.11159), learned from nothing in every run.

Sees the loss s_t of the batch before the update and answers with the action a_t of a recurrent policy. After it, it
sees the loss of the same batch again, s', and of another batch, s_j', and learns from the drop of the loss:

    a_t = |w . LSTM_theta(s_t, ...) + b + a_0|                                         decision
    r = f_i(w_t) - f_i(w_{t+1})        delta = r + gamma Q_phi(s', pi(s')) - Q_phi(s_t, a_t)
    phi <- phi + Adam(delta dQ_phi(s_t, a_t)/dphi)                                     critic, semi-gradient TD(0)
    theta <- theta + Adam(dpi(s_j')/dtheta dQ_phi(s_j', a)/da at a = pi(s_j'))         actor, with the new phi

Only a decision advances the LSTM; pi(s') and pi(s_j') run on copies of its state. The actor's gradient goes back
through the last 20 inputs, s_j' the newest, recomputed with the weights of the moment from the state before them.

Departs from the paper: a is counted in units of the base LR (`unit`; the paper's is 1, an absolute learning rate). The
offset a_0, the base LR, makes it the first action, exactly: the output layer starts at zero. And a is bounded; at a
bound only what pushes back inside moves theta. The paper gives neither gamma, nor the critic's activation (tanh here),
nor initial weights (torch's defaults here). s_t is the mean over micro-batches and ranks, r and s' are of the last
micro-batch. Q sees a_t, although warm-up or the scheduler's bounds may apply less. Losses enter as they are, as in the
paper, so very large ones saturate both networks.

Beware: the actor climbs a critic that starts at random, and Adam makes its steps large however flat Q is. In units of
the base LR, one step at the paper's 1e-3 moves a by 0.2 % at first and by 1 to 2 % once w has grown: on a noisy
quadratic four of six seeds were at base LR / 100 after 120 updates; with `actor_lr=1e-4` none, after 300.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim.adam import adam

from .._checks import check_range
from ..controller import Citation, Controller, Device, Params, Shape, State
from ..observation import Observation, Outcome
from ._random import seeded, uniform


@dataclass(frozen=True, kw_only=True)
class ActorCritic(Controller):
    """An LSTM policy for the learning rate and its critic, both learning at every decision of the run.

    A decision and its learning take about 2.5 ms of one core; runs of a batch are done one after the other.

    Args:
        hidden_size: units of each of the actor's two LSTM layers, 1 ... 1024; 20 (paper).
        critic_size: units of the critic's hidden layer, 1 ... 1024; 10 (paper).
        window: inputs that the actor's gradient goes back through, 2 ... 1000; 20 (paper).
        gamma: discount of the value, in [0, 1]; the paper does not give it.
        actor_lr: learning rate of the actor's Adam, above 0; 1e-3 (paper: TensorFlow's defaults, with betas 0.9 and
            0.999 and eps 1e-8).
        critic_lr: learning rate of the critic's Adam, above 0; 1e-3 (paper, likewise).
        unit: learning rate that a = 1 stands for, above 0; None is the base LR, 1.0 the paper's absolute scale.
        max_ratio: a stays within a factor of this of the base LR, above 1, at most 1e6; the paper has no bound.
        same_batch: the actor learns from s' instead of s_j', the paper's ablation (figure 6: it does worse).

    Raises:
        ValueError: a value out of range.

    Example:
        >>> from hf_adaptive_lr import Observation, Outcome
        >>> controller, lr = ActorCritic(), torch.tensor(0.05, dtype=torch.float64)
        >>> obs = Observation(step=0, total_steps=None, lr=lr, base_lr=lr, loss=torch.tensor(2.3))
        >>> factor, state = controller.decide(obs, controller.init(seed=1))
        >>> losses = zip(["loss_before", "loss_after", "loss_other"], torch.tensor([2.3, 2.2, 2.4]))
        >>> state = controller.learn(Outcome(step=0, **dict(losses)), state)
        >>> float(factor), float(state["steps"])
        (1.0, 1.0)
    """

    controller_type = "actor_critic"
    citation = Citation(
        "1705.11159",
        "Reinforcement Learning for Learning Rate Control",
        "Xu, Chang and Qin, Tao and Wang, Gang and Liu, Tie-Yan",
        2017,
    )
    needs = frozenset({"loss", "loss_before", "loss_after", "loss_other"})

    hidden_size: int = 20
    critic_size: int = 10
    window: int = 20
    gamma: float = 0.9
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    unit: float | None = None
    max_ratio: float = 100.0
    same_batch: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", self.needs - ({"loss_other"} if self.same_batch else set()))
        super().__post_init__()
        check_range(self, "hidden_size", self.hidden_size, 1, 1024, hint="20 is the paper's")
        check_range(self, "critic_size", self.critic_size, 1, 1024, hint="10 is the paper's")
        check_range(self, "window", self.window, 2, 1000, hint="20 is the paper's")
        check_range(self, "gamma", self.gamma, 0.0, 1.0, hint="0.9 looks about ten updates ahead")
        check_range(
            self, "actor_lr", self.actor_lr, 1e-12, 10.0, hint="1e-3 is the paper's, 1e-4 lets the critic lead"
        )
        check_range(self, "critic_lr", self.critic_lr, 1e-12, 10.0, hint="1e-3 is the paper's")
        check_range(
            self, "max_ratio", self.max_ratio, 1.0 + 1e-6, 1e6, hint="100 allows base LR / 100 ... base LR * 100"
        )
        if self.unit is not None:
            check_range(self, "unit", self.unit, 1e-12, 1e12, hint="None counts in base LRs, 1.0 is the paper's")

    # --- the two networks, of one run ---------------------------------------------------------------------------

    @property
    def _actor_shapes(self) -> list[tuple[int, ...]]:
        """As torch.nn.LSTM has them, layer by layer, then w and b."""
        h = self.hidden_size
        layers = [shape for inputs in (1, h) for shape in ((4 * h, inputs), (4 * h, h), (4 * h,), (4 * h,))]
        return [*layers, (h,), (1,)]

    @property
    def _critic_shapes(self) -> list[tuple[int, ...]]:
        return [(self.critic_size, 2), (self.critic_size,), (self.critic_size,), (1,)]

    def _pi(self, theta: Tensor, losses: Tensor, memory: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Action after the last of `losses`, before bounds, and the LSTM's state, of (h or c, layer, hidden_size)."""
        *lstm, w, b = _split(theta, self._actor_shapes)
        h, c = memory.unsqueeze(2)
        out, h, c = torch.lstm(losses[:, None, None], (h, c), lstm, True, 2, 0.0, False, False, False)
        return (out[-1, 0] @ w + b + offset).abs().squeeze(), torch.stack([h, c]).squeeze(2)

    def _q(self, phi: Tensor, loss: Tensor, action: Tensor) -> Tensor:
        w1, b1, w2, b2 = _split(phi, self._critic_shapes)
        return (torch.tanh(w1 @ torch.stack([loss, action]) + b1) @ w2 + b2).squeeze()

    def _bounded(self, action: Tensor, offset: Tensor) -> Tensor:
        return action.detach().clamp(offset / self.max_ratio, offset * self.max_ratio)

    # --- the contract -------------------------------------------------------------------------------------------

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """Weights theta and phi, Adam's moments, the LSTM's state and the window; the runs of a batch start equal."""
        h, k, past = self.hidden_size, self.critic_size, self.window - 1
        theta_bounds, phi_bounds = [h**-0.5] * 8 + [0.0, 0.0], [2**-0.5, 2**-0.5, k**-0.5, k**-0.5]
        generator = seeded(seed)
        theta, generator = _random(self._actor_shapes, theta_bounds, generator)
        phi, generator = _random(self._critic_shapes, phi_bounds, generator)
        one = {
            **{"theta": theta, "theta_m": torch.zeros_like(theta), "theta_v": torch.zeros_like(theta)},
            **{"phi": phi, "phi_m": torch.zeros_like(phi), "phi_v": torch.zeros_like(phi)},
            **{"memory": torch.zeros(2, 2, h), "inputs": torch.zeros(past), "starts": torch.zeros(past, 2, 2, h)},
            **{"seen": torch.zeros((), dtype=torch.int64), "steps": torch.zeros(())},
            **{"action": torch.zeros(()), "offset": torch.ones(())},
        }
        return {name: value.to(device).expand((*batch_shape, *value.shape)).clone() for name, value in one.items()}

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor a_t / a_0 of `batch_shape`, within [1 / max_ratio, max_ratio]."""
        offset = torch.ones_like(obs.base_lr) if self.unit is None else obs.base_lr / self.unit
        with torch.no_grad():
            state = _each(self._decide, {**state, "offset": offset.float(), "loss": obs.require("loss").float()})
        return (state["action"].double() / state["offset"].double()).to(obs.lr.dtype), state

    def _decide(self, s: State) -> State:
        loss = s.pop("loss")
        raw, memory = self._pi(s["theta"], loss[None], s["memory"], s["offset"])
        return {
            **s,
            "action": self._bounded(raw, s["offset"]),
            "memory": memory,
            "inputs": torch.cat([s["inputs"][1:], loss[None]]),
            "starts": torch.cat([s["starts"][1:], s["memory"][None]]),
            "seen": s["seen"] + 1,
        }

    def learn(self, outcome: Outcome, state: State) -> State:
        """One step of the critic and one of the actor; the LSTM's state stays as the decision left it."""
        names = ("loss_before", "loss_after", "loss_after" if self.same_batch else "loss_other")
        losses = [getattr(outcome, name) for name in names]
        if any(loss is None for loss in losses):
            raise ValueError(f"this outcome lacks one of {sorted(set(names))}, from which ActorCritic learns")
        before, after, other = losses
        seen = {"reward": (before - after).float(), "after": after.float(), "other": other.float()}
        return _each(self._learn, {**state, **seen})

    @torch.enable_grad()
    def _learn(self, s: State) -> State:
        reward, after, other = (s.pop(name) for name in ("reward", "after", "other"))
        theta, phi = (s[name].detach().clone().requires_grad_() for name in ("theta", "phi"))
        offset, steps = s["offset"], s["steps"]

        with torch.no_grad():
            next_action = self._bounded(self._pi(theta, after[None], s["memory"], offset)[0], offset)
            target = reward + self.gamma * self._q(phi, after, next_action)
        q = self._q(phi, s["inputs"][-1], s["action"])
        (along,) = torch.autograd.grad(q, phi, (target - q).detach())
        critic = _ascend("phi", phi, along, s, self.critic_lr)

        first = -min(int(s["seen"]), self.window - 1)
        raw, _ = self._pi(theta, torch.cat([s["inputs"][first:], other[None]]), s["starts"][first], offset)
        action = self._bounded(raw, offset).requires_grad_()
        (slope,) = torch.autograd.grad(self._q(critic["phi"], other, action), action)
        outward = (slope > 0) & (raw > action) | (slope < 0) & (raw < action)
        (along,) = torch.autograd.grad(raw, theta, torch.where(outward, 0.0, slope))
        return {**s, **critic, **_ascend("theta", theta, along, s, self.actor_lr), "steps": steps + 1}


def _ascend(name: str, weights: Tensor, along: Tensor, s: State, lr: float) -> State:
    """One step of Adam uphill; new tensors."""
    new, m, v, steps = weights.detach().clone(), s[f"{name}_m"].clone(), s[f"{name}_v"].clone(), s["steps"].clone()
    step = partial(adam, amsgrad=False, maximize=True, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
    with torch.no_grad():
        step([new], [along], [m], [v], [], [steps], lr=lr)
    return {name: new, f"{name}_m": m, f"{name}_v": v}


def _random(shapes: list[tuple[int, ...]], bounds: list[float], generator: Tensor) -> tuple[Tensor, Tensor]:
    parts = []
    for shape, bound in zip(shapes, bounds, strict=True):
        drawn, generator = uniform(generator, (math.prod(shape),))
        parts.append((2 * drawn - 1) * bound)
    return torch.cat(parts).float(), generator


def _split(flat: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _each(function: Callable[[State], State], state: State) -> State:
    """Run by run: each has weights of its own, and torch's LSTM, far faster than a loop over inputs, takes one set."""
    if state["seen"].ndim == 0:
        return function(dict(state))
    runs = [_each(function, {name: value[i] for name, value in state.items()}) for i in range(len(state["seen"]))]
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
