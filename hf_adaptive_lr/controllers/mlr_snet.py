"""MLR-SNet (Shu et al. 2020, arXiv:2007.14546; code: xjtushujun/MLR-SNet): an LSTM from the batch's loss to the rate.

Sees the training loss l_t of the batch, before the update, and the number of classes C; answers with a factor, so that

    alpha_t = base_lr * gamma * p_t        p_t = sigmoid(w3 . h_t + b3)        h_t, c_t = cell(l_t, h_{t-1}, c_{t-1})
    gamma = |sqrt(L) ln(L C) / C^(1/4)| / 4        gates of the cell: W2i relu(W1i l_t) + W2h relu(W1h h_{t-1})

With `meta_learn` the weights theta are learned inside the run: every T_val-th update takes one step of Adam on the
loss of a meta batch after it. Its direction d does not depend on theta, so the exact gradient is a number times a
vector, dL_meta/dtheta = -<grad L_meta(w_{t+1}), d> dalpha_t/dtheta, taken before bounds and warm-up. State keeps theta
as it was after 1/200 and 1/2 of the run; `harvest` makes these and the newest a frozen controller, which uses each for
a third of a run. Params have the names of the authors' checkpoints, which belong to gates="test".

Departs from the paper: alpha is a factor of the base LR (the paper's own is base LR 1 under plain SGD; its alpha of
about 0.5 would ruin AdamW). L is the first batch's loss, or `initial_loss`, and at a switch of snapshots an average
(decay 0.9 per decision) of the batches' losses, not a pass over the training set in eval mode. The meta-gradient is
taken at w_{t+1} as reached with the old theta, and the new theta acts from the next update on; the authors repeat
update t with it, and their cell sees that batch twice. Frozen use keeps the gates it was learned with; the authors'
meta-test changes them. Of the language version there is the width, neither the loss over ln C nor perplexity as L.

Beware: gamma collapses where L is near 1 / C, so a third that starts there hardly trains. Adam's coupled weight decay
outweighs the meta-gradient where alpha is tiny. The authors' trained networks are constant in the loss to within a few
percent: `network="scalar"`, one learned number, is the ablation to run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.adam import adam

from .._checks import check_range
from ..controller import Citation, Controller, Device, Params, Shape, State
from ..observation import Observation, Outcome
from ._random import seeded, uniform
from ._recurrent import affine

_DECAY = 0.9  # of the average loss, per decision
_SAVED = (1 / 200, 1 / 2)  # shares of the run after which the authors save theta: epochs 1 and 100 of 200


@dataclass(frozen=True, kw_only=True)
class MLRSNet(Controller):
    """LSTM from the training loss to a factor gamma * p of the base LR; frozen, or learned inside the run.

    Args:
        network: "lstm", or "scalar": p = sigmoid(one learned number), the ablation.
        inner_size: width of W1i and W1h, 1 ... 1024; 25 for images, 50 for language (code).
        hidden_size: H, width of h, 1 ... 1024; 50 (code).
        gates: "train" is [i, f - 1, o, g], the authors' meta-training; "test" is [i, f, g, o], their meta-test and
            checkpoints. Weights of one are noise in the other.
        gamma: scale, in (0, 1e6], used as it is; None computes it from L and C (about 0.4 ... 1.1 at the start).
        classes: C, at least 2; None takes the model's. Not used if `gamma` is given.
        initial_loss: L at the first decision, above 0, mean loss over the training set; None: the first batch's.
        snapshots: sets of weights, 1 ... 100, each for an equal share of the run; 3 in the authors' meta-test.
        bias: b3 of fresh weights (the scalar's value); None draws it, p starts near 0.5. The checkpoints have 1.0.
        meta_learn: learn inside the run, from `params` or from fresh weights; decide at every update.
        meta_every: T_val, updates from one meta-step to the next, at least 1; 300 (code), once per epoch of CIFAR.
        meta_lr: learning rate of Adam, above 0; 1e-3 (code; betas 0.9 and 0.999, eps 1e-8).
        meta_weight_decay: coupled weight decay of Adam, at least 0; 1e-4 (code).

    Raises:
        ValueError: a value out of range, weights missing or of another shape, or learning with several snapshots.

    Example:
        >>> from hf_adaptive_lr import Observation
        >>> controller = MLRSNet(params=MLRSNet.random_params(), classes=10)
        >>> lr, loss = torch.tensor(0.1, dtype=torch.float64), torch.tensor(10.0, dtype=torch.float64).log()
        >>> obs = Observation(step=0, total_steps=None, lr=lr, base_lr=lr, loss=loss)
        >>> round(float(controller.decide(obs, controller.init())[1]["gamma"]), 4)
        0.6691
    """

    controller_type = "mlr_snet"
    citation = Citation(
        "2007.14546",
        "MLR-SNet: Transferable LR Schedules for Heterogeneous Tasks",
        "Shu, Jun and Zhu, Yanwen and Zhao, Qian and Meng, Deyu and Xu, Zongben",
        2020,
    )
    needs = frozenset({"loss", "classes"})
    learned = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "released": {"gates": "test", "bias": 1.0}}

    network: Literal["lstm", "scalar"] = "lstm"
    inner_size: int = 25
    hidden_size: int = 50
    gates: Literal["train", "test"] = "train"
    gamma: float | None = None
    classes: int | None = None
    initial_loss: float | None = None
    snapshots: int = 1
    bias: float | None = None
    meta_learn: bool = False
    meta_every: int = 300
    meta_lr: float = 1e-3
    meta_weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        by_itself = self.gamma is None and self.classes is None
        needs = {"loss", *(["classes"] if by_itself else []), *(["meta_inner"] if self.meta_learn else [])}
        object.__setattr__(self, "needs", frozenset(needs))
        object.__setattr__(self, "needs_horizon", self.snapshots > 1)
        for name, options in (("network", ("lstm", "scalar")), ("gates", ("train", "test"))):
            if getattr(self, name) not in options:
                raise ValueError(f"MLRSNet: {name}={getattr(self, name)!r} must be one of {options}")
        ranges = {"inner_size": (1, 1024), "hidden_size": (1, 1024), "gamma": (1e-12, 1e6), "classes": (2, math.inf)}
        ranges |= {"initial_loss": (1e-12, 1e6), "snapshots": (1, 100), "bias": (-50, 50)}
        ranges |= {"meta_every": (1, math.inf), "meta_lr": (1e-12, 10), "meta_weight_decay": (0, 10)}
        for name, (low, high) in ranges.items():
            if getattr(self, name) is not None:
                check_range(self, name, getattr(self, name), low, high, hint=f"default: {getattr(MLRSNet, name)}")
        if self.meta_learn and self.snapshots > 1:
            raise ValueError(f"MLRSNet: with meta_learn=True, snapshots={self.snapshots} must be 1; harvest() gives 3")
        super().__post_init__()

    # --- weights ------------------------------------------------------------------------------------------------

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        if self.network == "scalar":
            return {"logit": (1,)}
        inner, hidden = self.inner_size, self.hidden_size
        layers = {"layer1.fc_i2h.0": (inner, 1), "layer1.fc_i2h.2": (4 * hidden, inner)}
        layers |= {"layer1.fc_h2h.0": (inner, hidden), "layer1.fc_h2h.2": (4 * hidden, inner), "layer3": (1, hidden)}
        return {f"{name}.{k}": size[:n] for name, size in layers.items() for k, n in (("weight", 2), ("bias", 1))}

    def param_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """With a leading dimension of `snapshots` if above 1; empty for a run that learns from scratch."""
        lead = (self.snapshots,) if self.snapshots > 1 else ()
        from_scratch = self.meta_learn and not self.params
        return {} if from_scratch else {name: lead + shape for name, shape in self._shapes.items()}

    @classmethod
    def random_params(cls, *, seed: int = 0, **config: Any) -> dict[str, Tensor]:
        """Untrained weights as in nn.Linear, uniform in +-1 / sqrt(inputs), for the class's arguments in `config`."""
        shapes, params = cls(meta_learn=True, **config)._shapes, {}
        drawn, _ = uniform(seeded(seed), (sum(map(math.prod, shapes.values())),))
        for name, value in _named(2 * drawn - 1, shapes).items():
            params[name] = (value * shapes[name.replace("bias", "weight")][-1] ** -0.5).float()
        bias = config.get("bias")
        if bias is not None or "logit" in params:
            params[list(params)[-1]].fill_(bias or 0.0)
        return params

    # --- the contract -------------------------------------------------------------------------------------------

    def init(self, batch_shape: Shape = (), *, n_groups: int = 1, seed: int = 0, device: Device = None) -> State:
        """`hidden` and `cell` of batch_shape + (hidden_size,), and with `meta_learn` weights `theta` for every run."""
        hidden = torch.zeros(*batch_shape, self.hidden_size, device=device)
        number = torch.zeros(batch_shape, dtype=torch.float64, device=device)
        initial = torch.full_like(number, self.initial_loss or 0.0)  # 0: not known
        state = {"hidden": hidden, "cell": hidden, "gamma": number, "average": number, "initial": initial}
        state["snapshot"] = torch.full(batch_shape, -1, dtype=torch.int64, device=device)
        if not self.meta_learn:
            return state
        config = {name: getattr(self, name) for name in ("network", "inner_size", "hidden_size", "bias")}
        start = self.params or self.random_params(seed=seed, **config)
        flat = torch.cat([start[name].detach().flatten() for name in self._shapes]).to(device)
        theta = flat.expand(*batch_shape, -1).contiguous()
        return {
            **state,
            **{"last_hidden": hidden, "last_cell": hidden, "last_loss": number, "last_scale": number},
            **{"theta": theta, "exp_avg": torch.zeros_like(theta), "exp_avg_sq": torch.zeros_like(theta)},
            "meta_steps": torch.zeros(()),
            "saved": torch.stack([theta] * len(_SAVED), -2),
            "progress": torch.full_like(number, -1.0),  # not known
        }

    def with_initial_loss(self, state: State, loss: float) -> State:
        """A fresh state with the mean loss over the training set, above 0, as L of the first decision."""
        return {**state, "initial": torch.full_like(state["initial"], float(loss))}

    def decide(self, obs: Observation, state: State, params: Params = None) -> tuple[Tensor, State]:
        """Factor gamma * p_t of `batch_shape`; differentiable in `params`, which may have a run dimension."""
        loss = obs.require("loss")
        state = self._with_gamma(obs, loss, state)
        p, hidden, cell = self._network(loss, state["hidden"], state["cell"], self._weights(state, params))
        if self.meta_learn:
            state = self._remember(obs, loss, state)
        return (state["gamma"] * p).to(obs.lr.dtype), {**state, "hidden": hidden, "cell": cell}

    def _with_gamma(self, obs: Observation, loss: Tensor, state: State) -> State:
        """Which snapshot is in use, and its gamma, computed when it comes into use."""
        first, snapshot = state["snapshot"] < 0, torch.zeros_like(state["snapshot"])
        if self.snapshots > 1:
            snapshot = (obs.progress * self.snapshots).long().clamp(max=self.snapshots - 1)
        average = torch.where(first, loss, _DECAY * state["average"] + (1 - _DECAY) * loss)
        if self.gamma is not None:
            gamma = torch.full_like(average, self.gamma)
        else:
            level = torch.where(first & (state["initial"] > 0), state["initial"], average)
            level = _positive(level, snapshot != state["snapshot"]).clamp_min(1e-12)
            classes = obs.require("classes") if self.classes is None else self.classes
            gamma = (level.sqrt() * (level * classes).log() / classes**0.25).abs() / 4
        gamma = torch.where(snapshot == state["snapshot"], state["gamma"], gamma)
        return {**state, "average": average, "snapshot": snapshot, "gamma": gamma}

    def _weights(self, state: State, params: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        if params is None and self.meta_learn:
            return _named(state["theta"], self._shapes)
        params = self.params if params is None else params
        if self.snapshots == 1:
            return params
        if any(params[name].shape != shape for name, shape in self.param_shapes().items()):
            raise ValueError("MLRSNet: weights per run work with snapshots=1; train so, and stack snapshots later")
        return {name: value[state["snapshot"]] for name, value in params.items()}

    def _network(
        self, loss: Tensor, hidden: Tensor, cell: Tensor, w: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The equations above: p of `batch_shape`, h and c."""
        if self.network == "scalar":
            return torch.sigmoid(w["logit"].squeeze(-1)).expand(loss.shape), hidden, cell
        x = _affine(torch.relu(_affine(loss.unsqueeze(-1), w, "layer1.fc_i2h.0")), w, "layer1.fc_i2h.2")
        x = x + _affine(torch.relu(_affine(hidden, w, "layer1.fc_h2h.0")), w, "layer1.fc_h2h.2")
        if self.gates == "train":
            i, f, o, g = x.chunk(4, -1)
            f = f - 1
        else:
            i, f, g, o = x.chunk(4, -1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        return torch.sigmoid(_affine(hidden, w, "layer3")).squeeze(-1), hidden, cell

    # --- learning inside the run --------------------------------------------------------------------------------

    def _remember(self, obs: Observation, loss: Tensor, state: State) -> State:
        """Keeps the inputs of `learn`; a saved theta follows the newest until its share of the run has passed."""
        passed = torch.stack([state["progress"] >= share for share in _SAVED], -1).unsqueeze(-1)
        return {
            **state,
            **{"last_hidden": state["hidden"], "last_cell": state["cell"], "last_loss": loss},
            "last_scale": obs.base_lr * state["gamma"],
            "saved": torch.where(passed, state["saved"], state["theta"].unsqueeze(-2)),
            "progress": state["progress"] if obs.total_steps is None else obs.progress,
        }

    def wants_outcome(self, update: int, total_steps: int | None) -> bool:
        """At every `meta_every`-th update of a run that learns."""
        return self.meta_learn and (update + 1) % self.meta_every == 0

    def learn(self, outcome: Outcome, state: State) -> State:
        """One step of Adam along the meta-gradient of the last decision, cut off at the state that it started from."""
        if not self.meta_learn:
            return state
        if outcome.meta_inner is None:
            raise ValueError("this outcome has no 'meta_inner', from which MLRSNet(meta_learn=True) learns")
        theta = state["theta"].detach().clone().requires_grad_()
        with torch.enable_grad():
            last = (state["last_loss"], state["last_hidden"], state["last_cell"])
            p, _, _ = self._network(*last, _named(theta, self._shapes))
            (gradient,) = torch.autograd.grad((-outcome.meta_inner * state["last_scale"] * p).sum(), theta)
        m, v, steps = (state[name].clone() for name in ("exp_avg", "exp_avg_sq", "meta_steps"))
        step = partial(adam, amsgrad=False, maximize=False, beta1=0.9, beta2=0.999, eps=1e-8)
        with torch.no_grad():
            step([theta], [gradient], [m], [v], [], [steps], lr=self.meta_lr, weight_decay=self.meta_weight_decay)
        return {**state, "theta": theta.detach(), "exp_avg": m, "exp_avg_sq": v, "meta_steps": steps}

    def harvest(self, state: State) -> MLRSNet:
        """The frozen controller that one run learned, without its `classes` and `initial_loss`.

        It has three snapshots, or one if the run's length was unknown; those whose time had not come are the newest.
        ValueError for the state of a controller that did not learn, or of many runs.
        """
        if "theta" not in state or state["theta"].ndim != 1:
            raise ValueError("harvest takes the state of one run of MLRSNet(meta_learn=True), without a run dimension")
        theta, progress = state["theta"], float(state["progress"])
        if progress >= 0:
            saved = [old if progress >= share else theta for share, old in zip(_SAVED, state["saved"], strict=True)]
            theta = torch.stack([*saved, theta])
        params = {name: value.clone() for name, value in _named(theta, self._shapes).items()}
        count = 1 if theta.ndim == 1 else len(theta)
        return self.replace(meta_learn=False, snapshots=count, classes=None, initial_loss=None, params=params)


def _positive(level: Tensor, used: Tensor) -> Tensor:
    """The loss that gamma comes from, NaN where it is below 0; ValueError in a run of its own, if it is `used` now.

    Of many runs one must not end the others, nor should they wait for the device to say so.
    """
    if level.ndim == 0 and bool((level < 0) & used):
        raise ValueError(
            f"MLRSNet: gamma comes from the loss, which must be above 0 and is {float(level):.4g}; "
            "give gamma=, for instance 1.0, or a loss that is positive, such as this one plus a constant"
        )
    return torch.where(level < 0, torch.nan, level)


def _named(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    parts = torch.split(flat, [math.prod(shape) for shape in shapes.values()], -1)
    lead = flat.shape[:-1]
    return {name: part.reshape(*lead, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _affine(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    weight = w[f"{name}.weight"]
    return affine(x.to(weight.dtype), weight, w[f"{name}.bias"])
