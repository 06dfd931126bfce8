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
the base LR, one step at the paper's 1e-3 moves a by 0.2 % at first and by 1 to 2 % once w has grown, so that the rate
doubles within some hundred updates or falls as far; which of the two, the first weights of Q mostly decide.
`ActorCritic.from_preset("safe")` never goes above the base LR; what both lose and cost: model_cards/actor_critic.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._checks import check_range
from ..controller import Citation, Controller, Device, Params, Shape, State
from ..observation import Observation, Outcome
from ._random import seeded, uniform


@dataclass(frozen=True, kw_only=True)
class ActorCritic(Controller):
    """An LSTM policy for the learning rate and its critic, both learning at every decision of the run.

    A decision and its learning take about 2.5 ms of one core. Presets: `paper` is the published rule; `safe` stays
    between a tenth of the base LR and the base LR, with an actor ten times slower.

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
        ceiling: a stays at or below this many base LRs, 1 ... max_ratio; None is max_ratio.
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

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "safe": {"ceiling": 1.0, "max_ratio": 10.0, "actor_lr": 1e-4},
    }

    hidden_size: int = 20
    critic_size: int = 10
    window: int = 20
    gamma: float = 0.9
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    unit: float | None = None
    max_ratio: float = 100.0
    ceiling: float | None = None
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
        if self.ceiling is not None:
            check_range(self, "ceiling", self.ceiling, 1.0, self.max_ratio, hint="1 never exceeds the base LR")
        if self.unit is not None:
            check_range(self, "unit", self.unit, 1e-12, 1e12, hint="None counts in base LRs, 1.0 is the paper's")

    # --- the two networks; flat weights (..., size) ---------------------------------------------------------------

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
        """Action after the last of `losses`, (..., inputs), before bounds; the LSTM's state, (..., 2, layer, h)."""
        *lstm, w, b = _split(theta, self._actor_shapes)
        last, memory = (_lstm if theta.ndim == 1 else _lstms)(losses, memory, lstm)
        return ((last * w).sum(-1) + b[..., 0] + offset).abs(), memory

    def _q(self, phi: Tensor, loss: Tensor, action: Tensor) -> Tensor:
        w1, b1, w2, b2 = _split(phi, self._critic_shapes)
        hidden = torch.tanh((w1 * torch.stack([loss, action], -1).unsqueeze(-2)).sum(-1) + b1)
        return (hidden * w2).sum(-1) + b2[..., 0]

    def _bounded(self, action: Tensor, offset: Tensor) -> Tensor:
        return action.detach().clamp(offset / self.max_ratio, offset * (self.ceiling or self.max_ratio))

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

    @torch.no_grad()
    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor a_t / a_0 of `batch_shape`, within [1 / max_ratio, ceiling]."""
        offset = (torch.ones_like(obs.base_lr) if self.unit is None else obs.base_lr / self.unit).float()
        loss = obs.require("loss").float()
        raw, memory = self._pi(state["theta"], loss.unsqueeze(-1), state["memory"], offset)
        action = self._bounded(raw, offset)
        return (action.double() / offset.double()).to(obs.lr.dtype), {
            **state,
            "action": action,
            "offset": offset,
            "memory": memory,
            "inputs": torch.cat([state["inputs"][..., 1:], loss.unsqueeze(-1)], -1),
            "starts": torch.cat([state["starts"][..., 1:, :, :, :], state["memory"].unsqueeze(-4)], -4),
            "seen": state["seen"] + 1,
        }

    def learn(self, outcome: Outcome, state: State) -> State:
        """One step of the critic and one of the actor; the LSTM's state stays as the decision left it."""
        names = ("loss_before", "loss_after", "loss_after" if self.same_batch else "loss_other")
        losses = [getattr(outcome, name) for name in names]
        if any(loss is None for loss in losses):
            raise ValueError(f"this outcome lacks one of {sorted(set(names))}, from which ActorCritic learns")
        before, after, other = losses
        return self._learn((before - after).float(), after.float(), other.float(), state)

    @torch.enable_grad()
    def _learn(self, reward: Tensor, after: Tensor, other: Tensor, s: State) -> State:
        theta, phi = (s[name].detach().clone().requires_grad_() for name in ("theta", "phi"))
        offset = s["offset"]

        with torch.no_grad():
            next_action = self._bounded(self._pi(theta, after.unsqueeze(-1), s["memory"], offset)[0], offset)
            target = reward + self.gamma * self._q(phi, after, next_action)
        q = self._q(phi, s["inputs"][..., -1], s["action"])
        (along,) = torch.autograd.grad(q, phi, (target - q).detach())
        critic = _ascend("phi", phi, along, s, self.critic_lr)

        # The runs of a batch decide together, so all have seen as many inputs.
        first = -min(int(s["seen"].amax()), self.window - 1)
        losses = torch.cat([s["inputs"][..., first:], other.unsqueeze(-1)], -1)
        raw, _ = self._pi(theta, losses, s["starts"][..., first, :, :, :], offset)
        action = self._bounded(raw, offset).requires_grad_()
        (slope,) = torch.autograd.grad(self._q(critic["phi"], other, action).sum(), action)
        outward = (slope > 0) & (raw > action) | (slope < 0) & (raw < action)
        (along,) = torch.autograd.grad(raw, theta, torch.where(outward, 0.0, slope))
        return {**s, **critic, **_ascend("theta", theta, along, s, self.actor_lr), "steps": s["steps"] + 1}


@torch.no_grad()
def _ascend(name: str, weights: Tensor, along: Tensor, s: State, lr: float) -> State:
    """One step of Adam uphill, with the moments of the downhill gradient, as torch keeps them; new tensors."""
    steps = (s["steps"].double() + 1).unsqueeze(-1)  # in float32 the first corrections would lose a digit
    m = s[f"{name}_m"].lerp(-along, 0.1)
    v = (0.999 * s[f"{name}_v"]).addcmul_(along, along, value=0.001)
    step = m * (lr / (1 - 0.9**steps)).float() / (v.sqrt() / (1 - 0.999**steps).sqrt().float() + 1e-8)
    return {name: weights.detach() - step, f"{name}_m": m, f"{name}_v": v}


def _lstm(losses: Tensor, memory: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The last output of one run's two layers, (h,), and their state."""
    h, c = memory.unsqueeze(2)
    out, h, c = torch.lstm(losses[:, None, None], (h, c), weights, True, 2, 0.0, False, False, False)
    return out[-1, 0], torch.stack([h, c]).squeeze(2)


def _lstms(losses: Tensor, memory: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The same of many runs, each with weights of its own, which torch's LSTM cannot."""
    x, ends = losses.unsqueeze(-1), []
    for layer in (0, 1):
        w_x, w_h, b_x, b_h = weights[4 * layer : 4 * layer + 4]
        h, c = memory[..., layer, :].unbind(-2)
        outs = []
        for from_x in (x @ w_x.mT + (b_x + b_h).unsqueeze(-2)).unbind(-2):
            gates = from_x + (w_h @ h.unsqueeze(-1)).squeeze(-1)
            i, f, g, o = gates.chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outs.append(h)
        x = torch.stack(outs, -2)
        ends.append(torch.stack([h, c], -2))
    return x[..., -1, :], torch.stack(ends, -2)


def _random(shapes: list[tuple[int, ...]], bounds: list[float], generator: Tensor) -> tuple[Tensor, Tensor]:
    parts = []
    for shape, bound in zip(shapes, bounds, strict=True):
        drawn, generator = uniform(generator, (math.prod(shape),))
        parts.append((2 * drawn - 1) * bound)
    return torch.cat(parts).float(), generator


def _split(flat: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    parts = torch.split(flat, [math.prod(shape) for shape in shapes], -1)
    return [part.view(*flat.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)]
