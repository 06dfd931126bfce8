"""DSA-style element-wise learning rates: a reconstruction from the abstract of Chen, Wang & Ba 2022, not their method.

"Differentiable Self-Adaptive Learning Rate", https://arxiv.org/abs/2210.10290. Certain, from the abstract: the
learning rate is parameter specific, internally structured, differentiable with respect to the loss to be lowered, and
meant to cure hypergradient descent, of which it says: often the loss does not fall after an update of the learning
rate, it does not suit mini-batches, it overfits. The rest could not be recovered; all below is this library's.

Not a controller but a wrapper around any torch optimizer, whose update Delta (= -lr * direction, with the LR schedule
and decoupled decay in it) it stretches by a factor of its own for every weight. At the weights w, with batch B:

    m(u)  = M sigmoid(u - log(M - 1))                positive, below M; u starts at 0, where m = 1            (1)
    w_try = w + m(u) Delta,   g' = grad f_B(w_try)   on the same batch B                                      (2)
    u    <- u + beta normalise(-g' Delta) m'(u)      where -g' Delta m'(u) = -d f_B(w_try) / du               (3)
    w    <- w + m(u) Delta                           the step is redone with the adapted u                    (4)

Against the first complaint stands (4), against the second that (2) and (3) use one batch, against the third nothing.
Departs from the paper: unknown. On a small real problem (tests/test_dsa_claims.py) the complaints hardly show, and DSA
becomes a constant rate near M lr at twice the cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from .._checks import check_range
from ..distributed import average_over_ranks
from .groups import raw

Closure = Callable[[], Any]
"""Forward and backward pass of the present batch; returns its loss."""

_U = "dsa_u"
_LOW, _HIGH = -6.0, 4.0  # beyond u = -6 or m = sigmoid(4) M, m' is so small that u would not come back within a run
_CHOICES = {
    "granularity": ("element", "tensor", "scalar"),
    "normalise": ("sign", "rms"),
    "redo": (True, False),
    "accept": ("always", "if_lower"),
}


def _of_base(name: str) -> Any:
    return property(lambda self: getattr(self.base, name), lambda self, value: setattr(self.base, name, value))


class DSA(Optimizer):
    """Wraps an optimizer and learns a factor for every weight (DSA-style, a reconstruction).

    Every update is multiplied by a factor that is learned from a second look at the batch.

    Certain is the abstract only (learning rates per parameter, internally structured, differentiable with respect to
    the loss); the equations are this library's, see the module. `param_groups`, `state`, `defaults` and the state dict
    are the wrapped optimizer's, with u in `state[p]["dsa_u"]`: schedulers steer its learning rate, and a run resumes
    bit for bit when built with the same settings. Hooks on state dicts belong on `base`. An optimizer whose state
    follows the weights (Schedule-Free) is put out of step.

    The gradient g must stand in `param.grad` when `step` is called (a parameter without one does not move), and `step`
    needs a closure that computes loss and gradient of the same batch, all its micro-batches, at other weights. All
    gradients are None when it is called, so it may zero them and need not. A positive factor on its loss changes
    nothing; dropout draws anew in it; batch statistics see the batch again. On several ranks its backward pass must
    average the gradients, as that of a DDP or `fully_shard` model does. After the step `param.grad` is g again, except
    with DDP's `gradient_as_bucket_view=True`, where g and g' share one memory.

    Cost: two forward and backward passes per update instead of one; during `step` one copy of the weights (it becomes
    Delta) and one more gradient; u, in float32, as large as the weights or next to nothing. No host sync in "always".

    Args:
        base: any torch optimizer of dense real parameters but LBFGS, not yet prepared by Accelerate.
        beta: step of u, in [0, 1]; 0 is exactly the wrapped optimizer. Ours, as are all values here.
        max_factor: M, the bound of the factor, in [1.1, 1000]; 0.98 of it is reached.
        granularity: what has a u of its own: every "element", every "tensor", or all weights one ("scalar"); -g' Delta
            is summed over those that share it.
        normalise: "sign" of the signal, or the signal over its "rms" within the tensor (for a shared u, the sign).
        redo: False leaves out (4): the adapted u acts from the next update on.
        accept: "always", or "if_lower": unless the batch's loss, averaged over all ranks, fell, put the weights back
            (but neither u nor the state of `base`). Costs a host sync, a second copy of the weights and two more calls
            of the closure, before the step and after (4); with `redo=False` only the first.

    Raises:
        TypeError: `base` is not a torch optimizer, or a setting is not a number.
        ValueError: a setting out of range, a `base` that cannot be wrapped, or a group with `maximize=True`.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 4.0]))
        >>> optimizer = DSA(torch.optim.SGD([w], lr=0.1))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     (w**2 / 2).sum().backward()
        >>> for _ in range(2):
        ...     closure()
        ...     optimizer.step(closure)
        >>> w.detach()  # plain SGD would be at 0.81 and 3.24
        tensor([0.7986, 3.1945])
    """

    param_groups: Any = _of_base("param_groups")
    state: Any = _of_base("state")
    defaults: Any = _of_base("defaults")
    _fed: Closure | None = None

    def __init__(
        self,
        base: Optimizer,
        *,
        beta: float = 0.05,
        max_factor: float = 10.0,
        granularity: Literal["element", "tensor", "scalar"] = "element",
        normalise: Literal["sign", "rms"] = "sign",
        redo: bool = True,
        accept: Literal["always", "if_lower"] = "always",
    ) -> None:
        if raw(base) is not base or isinstance(base, DSA | LBFGS):
            raise ValueError(f"DSA cannot wrap {type(base).__name__}: it takes a plain optimizer, prepared afterwards")
        self.base, self.beta, self.max_factor = base, beta, max_factor
        self.granularity, self.normalise, self.redo, self.accept = granularity, normalise, redo, accept
        check_range(self, "beta", beta, 0.0, 1.0, hint="0 never changes a factor, 0.05 is the default")
        check_range(self, "max_factor", max_factor, 1.1, 1000.0, hint="10 lets a step grow tenfold")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"DSA: {name}={getattr(self, name)!r} is unknown; choose one of {allowed}")
        self._check_parameters()
        # Optimizer.__init__ is left out on purpose: it would make groups and state of its own. This makes the hooks.
        super().__setstate__({})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to `base`; its factors start at 1, or at the shared one."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """State dict of `base`, with u."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of `base` with or without u; where there is none, factors start at 1.

        Raises:
            ValueError: u is of another granularity, or `base` cannot load it; nothing was changed then.
        """
        state, groups = state_dict["state"], state_dict["param_groups"]
        saved = [state.get(name, {}) for group in groups for name in group["params"]]
        found = [(p, entry[_U]) for p, entry in zip(self._parameters(), saved, strict=False) if _U in entry]
        if any(u.shape != self._shape(p) for p, u in found):
            raise ValueError(f"the u in this state is not of granularity='{self.granularity}'; use the saved run's")
        self.base.load_state_dict(state_dict)
        for p, u in found:  # once more, because torch casts state to the parameter's dtype
            self.state[p][_U] = u.to(p.device, torch.float32, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("base", "beta", "max_factor", *_CHOICES)}

    def feed(self, closure: Closure) -> None:
        """Give the closure for the next `step()`, for loops that call it without one (Trainer, Accelerate).

        Args:
            closure: a function (or TypeError); used once, then forgotten. A new one replaces a skipped update's.
        """
        if not callable(closure):
            raise TypeError(f"feed(closure) takes a function that computes the batch again, got {closure!r}")
        self._fed = closure

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One update, from the gradients in `param.grad`.

        Args:
            closure: see the class; by default the one that was fed.

        Returns:
            What the closure returned at the trial weights (2); None when a fed update was skipped, that is, when its
            gradients were taken away. If the closure raises there, the trial step stands.

        Raises:
            RuntimeError: no closure, or no gradient at all; nothing was changed.
            ValueError: a sparse gradient, or a group with `maximize=True`; nothing was changed.
        """
        fed = closure is None
        closure = closure or self._fed
        if closure is None:
            raise RuntimeError(
                "DSA looks at each batch twice: call step(closure), or feed(closure) ahead of a step() that is not "
                "yours, with forward, backward and `return loss` in it; or step .base, which looks once"
            )
        self._check_parameters()
        moving = [p for p in self._parameters() if p.grad is not None and p.numel()]
        if not moving and fed:  # whoever feeds it has run backward: the update was skipped since
            self._fed = None
            return None
        if not moving:
            raise RuntimeError("DSA: no parameter has a gradient; call loss.backward() before step, closure or not")
        self._fed = None
        undo = {p: p.clone() for p in moving} if self.accept == "if_lower" else {}
        loss_before = float(self._look(closure)[0]) if undo else math.nan
        deltas = {p: p.clone() for p in moving}
        self.base.step()
        for p, delta in deltas.items():
            delta.neg_().add_(p)
        shares = [moving] if self.granularity == "scalar" else [[p] for p in moving]
        # Only now: many optimizers take a parameter whose state is not empty for one they have set up.
        shared = [(self._u(share[0]), share) for share in shares]
        for p, u in ((p, u) for u, share in shared for p in share):
            p.add_((self._factor(u, p) - 1) * deltas[p])
        loss, grads = self._look(closure)
        for u, share in shared:
            self._adapt(u, share, deltas, grads)
        loss_after = float(self._look(closure)[0] if self.redo else loss) if undo else math.nan
        if undo and not _is_lower(loss_after, loss_before, moving[0].device):
            for p, w in undo.items():
                p.copy_(w)
        return loss

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _check_parameters(self) -> None:
        if any(group.get("maximize") for group in self.param_groups):
            raise ValueError("DSA lowers the loss and a parameter group has maximize=True; negate the loss instead")
        if any(p.is_complex() or not (p.grad is None or p.grad.layout is torch.strided) for p in self._parameters()):
            raise ValueError("DSA takes dense real gradients; use sparse=False in embeddings, view_as_real")

    def _look(self, closure: Closure) -> tuple[Any, dict[Tensor, Any]]:
        """Loss and gradients at the present weights; the gradients that stood in `param.grad` are put back."""
        kept = {p: p.grad for p in self._parameters()}
        try:
            for p in kept:
                p.grad = None  # so that backward makes new tensors and leaves the old ones alone
            with torch.enable_grad():
                loss = closure()
            if loss is None and self.accept == "if_lower":
                raise TypeError("DSA: accept='if_lower' compares losses; the closure returned None, let it return one")
            return loss, {p: p.grad for p in kept}
        finally:
            for p, grad in kept.items():
                p.grad = grad

    def _shape(self, p: Tensor) -> tuple[int, ...]:
        return {"element": tuple(p.shape), "tensor": (1,) * p.ndim, "scalar": ()}[self.granularity]

    def _find_u(self, p: Tensor) -> Tensor | None:
        owners = self._parameters() if self.granularity == "scalar" else [p]
        return next((self.state[owner][_U] for owner in owners if _U in self.state.get(owner, ())), None)

    def _u(self, p: Tensor) -> Tensor:
        u = self._find_u(p)
        if u is None:
            like = p.detach() if self.granularity == "element" else p.new_zeros(self._shape(p))
            u = self.state[p][_U] = torch.zeros_like(like, dtype=torch.float32)
        return u

    def _factor(self, u: Tensor, p: Tensor) -> Tensor:
        """m(u) of (1) where `p` is and as precisely, at least in float32; exactly 1 at u = 0."""
        u = u.to(p.device, torch.promote_types(p.dtype, torch.float32))
        return (1 + (1 - 1 / self.max_factor) * torch.expm1(-u)).reciprocal()

    def _normalise(self, signal: Tensor) -> Tensor:
        if self.normalise == "sign":
            return signal.sign()
        tiny = torch.finfo(signal.dtype).tiny
        scaled = signal / signal.abs().amax().clamp_min(tiny)  # or the squares of small products would vanish
        return scaled / scaled.square().mean().sqrt().clamp_min(tiny)

    def _adapt(self, u: Tensor, share: list[Tensor], deltas: dict[Tensor, Any], grads: dict[Tensor, Any]) -> None:
        """(3) and, for all that share `u`, (4)."""
        ms = [self._factor(u, p) for p in share]
        signals: Any = (_signal(deltas[p].to(m.dtype), grads[p]) for m, p in zip(ms, share, strict=True))
        if self.granularity != "element":
            signals = iter([sum(signal.sum().to(u.device) for signal in signals).reshape(u.shape)])
        slope = (ms[0] * (1 - ms[0] / self.max_factor)).to(u.device)
        u.add_(self.beta * self._normalise(next(signals)) * slope).clamp_(_LOW, math.log(self.max_factor - 1) + _HIGH)
        if self.redo:
            for m, p in zip(ms, share, strict=True):
                p.add_((self._factor(u, p) - m) * deltas[p])

    @torch.no_grad()
    def factors(self) -> list[tuple[float, float, float]]:
        """Smallest, mean and largest factor m(u) over the elements of each parameter group; 1 before the first update.

        A host sync, and a copy of all factors of a group: for logs and reports, not for every update.
        """
        out = []
        for group in self.param_groups:
            parts = []
            for p, u in ((p, self._find_u(p)) for p in group["params"] if p.numel()):
                m: Any = torch.ones(()) if u is None else self._factor(u, p)
                m = m.full_tensor() if hasattr(m, "full_tensor") else m  # the other ranks' shards as well
                parts.append(m.float().cpu().expand(p.shape).flatten())
            m = torch.cat(parts or [torch.ones(1)])
            out.append((m.min().item(), m.mean().item(), m.max().item()))
        return out


def _signal(delta: Tensor, grad: Tensor | None) -> Tensor:
    """-g' Delta of every element; 0 where it is not finite, so that u stays."""
    product = torch.zeros_like(delta) if grad is None else -delta * grad.to(delta.dtype)
    return product.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _is_lower(after: float, before: float, device: torch.device) -> bool:
    """Whether the mean over all ranks fell; the same answer on every rank."""
    losses = torch.tensor([after, before], dtype=torch.float32 if device.type == "mps" else torch.float64).to(device)
    after, before = average_over_ranks(losses, losses.new_empty(0), None)
    return after < before
