"""From answers to learning rates: cadence, warm-up, hold on non-finite input, hand-over, cooldown.

The governor owns the run state. It knows no optimizer and no device: plain Python and 0-d CPU tensors, so a run can be
simulated and checkpointed without a model. [`ControlledLR`] measures and writes; the governor decides when to ask the
controller and what to make of its answer.
"""

from __future__ import annotations

import copy
import math
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..controller import Controller, ControllerError, State
from ..observation import OPTIONAL_FIELDS, OUTCOME_FIELDS, Observation, Outcome, Value
from .decision import Decision, Settings
from .envelope import Watch, reference
from .identity import STATE_FORMAT, check_saved, identity
from .limits import Bounds, reference_group


class Governor:
    """Asks the controller when a decision is due and turns its answer into learning rates; holds the run state.

    Args:
        controller: who decides.
        base_lrs: learning rate of each parameter group as the user set it; at least one must be positive.
        settings: cadence, bounds and warm-up.

    Raises:
        ValueError: settings out of range, no positive base LR, or a base LR outside `[min_lr, max_lr]`.

    Example:
        >>> from hf_adaptive_lr.controllers import CONTROLLERS
        >>> governor = Governor(CONTROLLERS["linear"](), [1.0], Settings(total_steps=4))
        >>> [governor.advance({}).lr[0] for _ in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """

    def __init__(self, controller: Controller, base_lrs: Sequence[float], settings: Settings) -> None:
        settings.check(controller)
        self._own_rhythm = settings.every is None and settings.decisions is None
        if settings.every is None and settings.decisions is None and settings.total_steps is not None:
            settings = replace(settings, decisions=controller.decisions)
        self.controller, self.settings = controller, settings
        self.base_lrs = [float(lr) for lr in base_lrs]
        self._bounds = Bounds(settings, controller)
        self._bounds.check(self.base_lrs)
        self.total_steps = settings.total_steps
        self.every = settings.every or 1
        if settings.decisions is not None and settings.total_steps is not None:
            self.every = max(1, settings.total_steps // settings.decisions)
        self.updates = 0
        self.held = 0
        self._said_below_zero = False
        self.scale = 1.0
        self.last_lr = 0.0
        """Learning rate of the reference group at the last update that was applied; 0 before the first."""
        self._cooldown: tuple[int, int] | None = None  # (first update, length)
        self._answer = list(self.base_lrs)
        self._watch = Watch(settings.envelope, free=controller.ignores_base_lr)
        self._state = controller.init(n_groups=len(self.base_lrs), seed=settings.seed)
        self._identity = identity(controller)

    # --- one update ---------------------------------------------------------------------------------------------

    def due(self, update: int | None = None) -> bool:
        """Whether the controller is asked at this update (default: the one about to be applied)."""
        t = self.updates if update is None else update
        return self._cooldown is None and self.fallen_back is None and self._on_grid(t)

    def _on_grid(self, t: int) -> bool:
        own = self.controller.due(t, self.total_steps) if self._own_rhythm else None
        if own is not None:
            return own
        total, decisions = self.settings.total_steps, self.settings.decisions
        if decisions is None or total is None or t >= total:
            return t % self.every == 0
        # Decision k of n falls on update k * total // n: evenly spread, and as meta-training plays its episodes.
        return -(-t * decisions // total) * total // decisions == t

    def wants_outcome(self) -> bool:
        """Whether the controller learns from the update about to be applied."""
        learns = bool(self.controller.needs & OUTCOME_FIELDS.keys())
        return learns and self.due() and self.controller.wants_outcome(self.updates, self.total_steps)

    def advance(self, fields: Mapping[str, Value]) -> Decision:
        """Learning rates of the update about to be applied; afterwards that update counts as done.

        Args:
            fields: the measured optional fields, all that the controller needs if a decision is due, else ignored.
        """
        decision = self.decide(fields)
        self.applied(decision)
        return decision

    def applied(self, decision: Decision) -> None:
        """The update was made with these learning rates."""
        self.last_lr = decision.lr[reference_group(self.base_lrs)]
        self.updates += 1

    def decide(self, fields: Mapping[str, Value]) -> Decision:
        """Like `advance`, but the update does not count yet (it may still be skipped)."""
        t = self.updates
        if not self.due():
            return self._unasked(t)
        bad = next((name for name, v in fields.items() if not _usable(name, v)), None)
        if bad is not None:
            return self._hold(t, f"{bad} is {fields[bad]}", fields)
        if isinstance(loss := fields.get("loss"), float):
            self._watch.note(loss, every_update=False)
        answer, state = self._ask(fields)
        values = [float(v) for v in answer.detach().reshape(-1).tolist()]
        if len(values) not in (1, len(self.base_lrs)):
            raise ValueError(
                f"'{self.controller.controller_type}' answered with shape {tuple(answer.shape)}; a run with "
                f"{len(self.base_lrs)} parameter groups takes () or ({len(self.base_lrs)},)"
            )
        if not all(math.isfinite(v) for v in values):
            return self._hold(t, f"answer is {values[0] if len(values) == 1 else values}", fields)
        self._warn_below_zero(t, values)
        self._state = state
        line = reference(t, self.total_steps)
        fresh = self._watch.fresh and self.controller.answers == "factor"
        before = self._bounds.at(line, self.base_lrs)[0] if fresh else self._answer
        self._answer, detail, mistaken = self._bounds.apply(values, self.base_lrs, before, line)
        self._watch.fresh = False
        self._judge(t, detail if mistaken else "")
        reason = "bounded" if detail else "decision"
        seen = dict(fields)
        return self._applied(t, reason, proposed=values[0], bounded=self._answer[0], observation=seen, detail=detail)

    def _ask(self, fields: Mapping[str, Value]) -> tuple[Tensor, State]:
        """The controller's answer and next state; what goes wrong in its code is said with its name."""
        name = self.controller.controller_type
        try:
            with torch.no_grad():
                answer, state = self.controller.decide(self._observation(fields), self._state)
        except (TypeError, AttributeError, KeyError, IndexError) as error:
            raise ControllerError(
                f"'{name}' failed in decide(obs, state, params=None) at update {self.updates}: "
                f"{type(error).__name__}: {error}{_where(error)}; in obs are the fields that its needs name, "
                f"{sorted(fields) or 'none'}, all others are None"
            ) from error
        if not isinstance(answer, Tensor) or not isinstance(state, dict):
            raise ControllerError(
                f"'{name}' must answer with a tensor and the next state, a dict, got {type(answer).__name__} and "
                f"{type(state).__name__}; a constant is torch.full_like(obs.lr, 0.5)"
            )
        return answer, state

    def _warn_below_zero(self, step: int, values: list[float]) -> None:
        """The bounds take care of it, and some rules of this library mean it; in one's own class it is a slip."""
        ours = type(self.controller).__module__.startswith(f"{__name__.partition('.')[0]}.")
        if min(values) < 0 and not ours and not self._said_below_zero and self.settings.envelope is None:
            self._said_below_zero = True
            warnings.warn(
                f"'{self.controller.controller_type}' answered {min(values):g} at update {step}; below 0 the smallest "
                "learning rate is used (said once)",
                UserWarning,
                stacklevel=4,
            )

    def _unasked(self, t: int) -> Decision:
        handed = self.fallen_back
        why = handed if handed is not None and t == self._watch.since else ""
        if self._cooldown is not None:
            return self._applied(t, "cooldown", detail=why)
        if handed is None:
            return self._applied(t, "between")
        self._answer, _ = self._bounds.at(self._watch.factor(t, self.total_steps), self.base_lrs)
        return self._applied(t, "handed_over", detail=why)

    def learn(self, outcome: Outcome) -> None:
        """Let a controller that learns inside the run see what the update did; a non-finite outcome is not shown."""
        values = [
            v
            for v in (outcome.loss_before, outcome.loss_after, outcome.loss_other, outcome.meta_inner)
            if v is not None
        ]
        if all(bool(torch.isfinite(v).all()) for v in values):
            self._state = self.controller.learn(outcome, self._state)
        else:
            self._warn_held(f"outcome of update {outcome.step} is not finite")

    def _observation(self, fields: Mapping[str, Value]) -> Observation:
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in fields.items()}
        group = reference_group(self.base_lrs)
        return Observation(
            step=self.updates,
            total_steps=self.total_steps,
            lr=torch.tensor(self._answer[group], dtype=torch.float64),
            base_lr=torch.tensor(self.base_lrs[group], dtype=torch.float64),
            lrs=torch.tensor(self._answer, dtype=torch.float64),
            base_lrs=torch.tensor(self.base_lrs, dtype=torch.float64),
            last_lr=torch.tensor(self.last_lr, dtype=torch.float64),
            **tensors,
        )

    def _hold(self, step: int, detail: str, fields: Mapping[str, Value]) -> Decision:
        self._warn_held(f"update {step}: {detail}")
        self._judge(step, detail)
        return self._applied(step, "held", observation=dict(fields), detail=detail)

    def _warn_held(self, detail: str) -> None:
        self.held += 1
        if self.held == 1:
            warnings.warn(
                f"learning rate held: {detail} (said once; the trace lists every time)", UserWarning, stacklevel=4
            )

    def _applied(self, step: int, reason: str, **details: Any) -> Decision:
        ramp = self._ramp(step) * self.scale
        lrs = self._answer
        if ramp != 1.0:
            lrs = [max(lr * ramp, min(lr, self.settings.min_lr)) for lr in lrs]
        self._watch.rate = lrs[reference_group(self.base_lrs)]
        return Decision(step=step, lr=tuple(lrs), reason=reason, ramp=ramp, **details)

    def _ramp(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self.settings.warmup_steps) if self.settings.warmup_steps else 1.0
        if self._cooldown is None:
            return warm
        first, length = self._cooldown
        return warm * max(0.0, (length - (step - first)) / length)

    def add_group(self, lr: float) -> None:
        """A parameter group joined the optimizer: it takes the factor that is in force for group 0."""
        base = self.base_lrs[0]
        self.base_lrs.append(lr)
        self._answer.append(lr * (self._answer[0] / base if base > 0 else 1.0))

    # --- envelope -----------------------------------------------------------------------------------------------

    @property
    def fallen_back(self) -> str | None:
        """Why the controller was dismissed, or None."""
        return self._watch.reason

    def fall_back(self, reason: str) -> None:
        """Dismiss the controller from the next update on; see [`ControlledLR.fall_back`]."""
        if self.settings.envelope is None:
            raise ValueError(f"fall_back({reason!r}): there is no envelope to fall back in; pass envelope=Envelope()")
        if not isinstance(reason, str) or not reason:
            raise ValueError(f"fall_back({reason!r}): say why, in a few words; the trace shows it")
        if self.fallen_back is None:
            self._watch.fall_back(reason, self.updates, self.base_lrs[reference_group(self.base_lrs)])

    def note_loss(self, loss: float) -> None:
        """See [`ControlledLR.note_loss`]."""
        self._watch.note(float(loss), every_update=True)

    def _judge(self, step: int, mistake: str) -> None:
        if self.total_steps is not None and step >= self.total_steps:
            return  # past the planned end no learning rate is right
        if self._watch.judge(bool(mistake)):
            reason = f"{self._watch.mistakes} decisions in succession were corrected, the last: {mistake}"
            self._watch.fall_back(reason, step + 1, self.base_lrs[reference_group(self.base_lrs)])
            warnings.warn(f"the controller was dismissed: {reason}", UserWarning, stacklevel=4)

    # --- horizon ------------------------------------------------------------------------------------------------

    def extend(self, steps: int) -> None:
        """Make the run `steps` updates longer; a cooldown under way ends and the controller takes over again."""
        _whole("extend", steps)
        if self.total_steps is None:
            raise ValueError(f"extend({steps}): this run has no total_steps, so there is nothing to extend")
        self.total_steps, self._cooldown, self._watch.fresh = self.total_steps + steps, None, True

    def cooldown(self, steps: int) -> None:
        """From the next update on, decay the learning rate now in force linearly to zero within `steps` updates."""
        _whole("cooldown", steps)
        self._cooldown, self.total_steps = (self.updates, steps), self.updates + steps

    @property
    def cooldown_left(self) -> int | None:
        """Updates until the end of a cooldown, at least 0; None where there is none."""
        return None if self._cooldown is None else max(0, sum(self._cooldown) - self.updates)

    def simulate(
        self, steps: int, observe: Callable[[int, float], Mapping[str, float]] | None = None
    ) -> list[Decision]:
        """The next `steps` decisions on a copy of the run; see [`ControlledLR.simulate`]."""
        twin, out = copy.deepcopy(self), []
        lr = twin._answer[0]
        for _ in range(steps):
            fields = dict(observe(twin.updates, lr)) if observe is not None else {}
            unmeasured = twin.controller.needs & OPTIONAL_FIELDS.keys() - fields.keys() if twin.due() else set()
            if unmeasured:
                raise ValueError(
                    f"'{twin.controller.controller_type}' needs {sorted(unmeasured)}; pass observe=, which gives them"
                )
            out.append(twin.advance(fields))
            lr = out[-1].lr[0]
        return out

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: plain numbers, strings, lists and CPU tensors."""
        return {
            "format": STATE_FORMAT,
            **self._identity,
            "declared_total_steps": self.settings.total_steps,
            "total_steps": self.total_steps,
            "every": self.every,
            "updates": self.updates,
            "held": self.held,
            "scale": self.scale,
            "applied_lr": self.last_lr,
            "cooldown": None if self._cooldown is None else list(self._cooldown),
            "base_lrs": list(self.base_lrs),
            "answer": list(self._answer),
            "controller_state": self.controller_state(),
            "envelope": self._watch.state_dict(),
        }

    def controller_state(self) -> State:
        """A copy of the controller's run state, on the CPU."""
        return {k: v.detach().cpu().clone() if isinstance(v, Tensor) else v for k, v in self._state.items()}

    def set_controller_state(self, state: State) -> None:
        """Go on with another run state of the controller."""
        self._state = state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run; a state of another scheduler or controller is refused before anything changes.

        A horizon that `extend` or `cooldown` set comes back with the state; another `total_steps` in the constructor
        than the saved run had is a new wish and wins.
        """
        check_saved(state, self.controller, self._identity, len(self.base_lrs))
        self.base_lrs, self._answer = list(state["base_lrs"]), list(state["answer"])
        self.updates, self.held = state["updates"], state["held"]
        self.scale, self.last_lr = float(state.get("scale", 1.0)), float(state.get("applied_lr", 0.0))
        self._state = dict(state["controller_state"])
        self._watch.load_state_dict(state.get("envelope", {}))
        if state["declared_total_steps"] == self.settings.total_steps:
            self.total_steps, self.every = state["total_steps"], state["every"]
            self._cooldown = None if state["cooldown"] is None else (state["cooldown"][0], state["cooldown"][1])


def _where(error: BaseException) -> str:
    """The line of the controller's code that failed; nothing if the call itself did."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "" if last.filename == __file__ else f" ({Path(last.filename).name}, line {last.lineno})"


def _usable(name: str, value: Value) -> bool:
    neutral = OPTIONAL_FIELDS[name].neutral
    if isinstance(value, tuple):
        return all(math.isfinite(v) for v in value)
    return math.isfinite(value) or (math.isnan(value) and neutral is not None and math.isnan(neutral))


def _whole(name: str, steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{name}({steps!r}): pass a whole number of updates, at least 1")
