"""Runs one controller through one training: when it is asked, and what its answers become.

Cadence, warm-up, non-finite input, fallback and cooldown are decided here, without an optimizer or a device: plain
Python and 0-d CPU tensors, so a run can be simulated and checkpointed without a model. [`ControlledLR`] measures and
writes.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..cadence import Cadence, Plan, simulate
from ..controller import Controller, State
from ..observation import OPTIONAL_FIELDS, OUTCOME_FIELDS, Observation, Outcome, Value
from .asking import ask, numbers, unusable
from .checkpoint_check import STATE_FORMAT, check_saved, identity
from .config import SchedulerConfig
from .decision import Decision
from .envelope import EnvelopeMonitor, reference
from .limits import Bounds, reference_group


class ControllerRun:
    """One run of a controller: asks it when a decision is due, and turns its answer into learning rates.

    ValueError for settings out of range, no positive base LR, or a base LR outside `[min_lr, max_lr]`.

    Example:
        >>> from hf_adaptive_lr.controllers import CONTROLLERS
        >>> run = ControllerRun(CONTROLLERS["linear"](), [1.0], SchedulerConfig(total_steps=4))
        >>> [run.advance({}).lr[0] for _ in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """

    def __init__(self, controller: Controller, base_lrs: Sequence[float], config: SchedulerConfig) -> None:
        config.check(controller)
        self.controller, self.config = controller, config
        self.base_lrs = [float(lr) for lr in base_lrs]
        self._bounds = Bounds(config, controller)
        self._bounds.check(self.base_lrs)
        self.total_steps = config.total_steps
        """Length of the run as known now: `extend` and `cooldown` change it."""
        chosen = config.every is not None or config.decisions is not None
        decisions, rule = (config.decisions, None) if chosen else (controller.decisions, controller.due)
        self._cadence = Cadence(config.total_steps, config.every or 1, decisions, rule)
        self._plan: Plan | None = None
        self.updates = 0
        self.kept = 0
        self._said_below_zero = False
        self.scale = 1.0
        self.last_lr = 0.0
        """Learning rate of the reference group at the last update that was applied; 0 before the first."""
        self._cooldown: tuple[int, int] | None = None  # (first update, length)
        self._answer = list(self.base_lrs)
        own = math.ceil(controller.warmup * (config.total_steps or 0))
        self._warm = own if config.warmup_steps is None else config.warmup_steps
        self._answered = 0  # the update that `_answer` is of
        self._monitor = EnvelopeMonitor(config.envelope, free=controller.ignores_base_lr)
        self._state = controller.init(n_groups=len(self.base_lrs), seed=config.seed)
        self._identity = identity(controller)

    # --- one update ---------------------------------------------------------------------------------------------

    def due(self, update: int) -> bool:
        """Whether the controller is asked at this update, as far as is known now."""
        return self._cooldown is None and self.fallen_back is None and self._cadence.due(update, self.total_steps)

    def plan(self) -> Plan:
        """The needs of the update about to be applied, worked out once for each update."""
        if self._plan is None:
            t, decides = self.updates, self.due(self.updates)
            learns = decides and bool(self.controller.needs & OUTCOME_FIELDS.keys())
            outcome = learns and self.controller.wants_outcome(t, self.total_steps)
            self._plan = Plan(decides, self.due(t + 1), outcome)
        return self._plan

    def advance(self, fields: Mapping[str, Value]) -> Decision:
        """Learning rates of the update about to be applied, which then counts as done.

        `fields` are the measured optional fields, all that the controller needs if a decision is due, else ignored.
        """
        decision = self.decide(fields)
        self.applied(decision)
        return decision

    def applied(self, decision: Decision) -> None:
        """Count the update: it was made with these learning rates."""
        self.last_lr = decision.lr[reference_group(self.base_lrs)]
        self.updates += 1
        self._plan = None

    def decide(self, fields: Mapping[str, Value]) -> Decision:
        """Like `advance`, but the update does not count yet (it may still be skipped)."""
        t = self.updates
        if not self.plan().decides:
            return self._unasked(t)
        bad = unusable(fields)
        if bad is not None:
            return self._keep(t, f"{bad} is {fields[bad]}", fields)
        if isinstance(loss := fields.get("loss"), float):
            self._monitor.note(loss, every_update=False)
        answer, state = ask(self.controller, self._observation(fields), self._state, fields)
        values = numbers(self.controller, answer, len(self.base_lrs))
        if not all(math.isfinite(v) for v in values):
            return self._keep(t, f"answer is {values[0] if len(values) == 1 else values}", fields)
        self._warn_below_zero(t, values)
        self._state = state
        line = reference(t, self.total_steps)
        fresh = self._monitor.fresh and self.controller.answers == "factor"
        before = self._bounds.at(line, self.base_lrs)[0] if fresh else self._in_force()
        self._answered = t
        self._answer, detail, mistaken = self._bounds.apply(values, self.base_lrs, before, line)
        self._monitor.fresh = False
        self._judge(t, detail if mistaken else "")
        reason = "bounded" if detail else "decision"
        seen = dict(fields)
        return self._applied(t, reason, proposed=values[0], bounded=self._answer[0], observation=seen, detail=detail)

    def _warn_below_zero(self, step: int, values: list[float]) -> None:
        """Warns once when a user's own controller answers below 0; some of this library do it on purpose."""
        ours = type(self.controller).__module__.startswith(f"{__name__.partition('.')[0]}.")
        if min(values) < 0 and not ours and not self._said_below_zero and self.config.envelope is None:
            self._said_below_zero = True
            warnings.warn(
                f"'{self.controller.controller_type}' answered {min(values):g} at update {step}; below 0 the smallest "
                "learning rate is used (said once)",
                UserWarning,
                stacklevel=4,
            )

    def _unasked(self, t: int) -> Decision:
        fallen_back = self.fallen_back
        why = fallen_back if fallen_back is not None and t == self._monitor.since else ""
        if self._cooldown is not None:
            return self._applied(t, "cooldown", detail=why)
        if fallen_back is None:
            return self._applied(t, "between")
        self._answer, _ = self._bounds.at(self._monitor.factor(t, self.total_steps), self.base_lrs)
        return self._applied(t, "handed_over", detail=why)  # reason of version 0.1: the run fell back

    def learn(self, outcome: Outcome) -> None:
        """Show an outcome to a controller that learns inside the run, unless it is not finite."""
        values = (getattr(outcome, name) for name in OUTCOME_FIELDS)
        if all(bool(torch.isfinite(v).all()) for v in values if v is not None):
            self._state = self.controller.learn(outcome, self._state)
        else:
            self._warn_kept(f"outcome of update {outcome.step} is not finite")

    def _observation(self, fields: Mapping[str, Value]) -> Observation:
        tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in fields.items()}
        group, lrs = reference_group(self.base_lrs), self._in_force()
        return Observation(
            step=self.updates,
            total_steps=self.total_steps,
            lr=torch.tensor(lrs[group], dtype=torch.float64),
            base_lr=torch.tensor(self.base_lrs[group], dtype=torch.float64),
            lrs=torch.tensor(lrs, dtype=torch.float64),
            base_lrs=torch.tensor(self.base_lrs, dtype=torch.float64),
            last_lr=torch.tensor(self.last_lr, dtype=torch.float64),
            **tensors,
        )

    def _keep(self, step: int, detail: str, fields: Mapping[str, Value]) -> Decision:
        self._warn_kept(f"update {step}: {detail}")
        self._judge(step, detail)
        return self._applied(step, "held", observation=dict(fields), detail=detail)

    def _warn_kept(self, detail: str) -> None:
        self.kept += 1
        if self.kept == 1:
            warnings.warn(
                f"learning rate kept: {detail} (said once; the trace lists every time)", UserWarning, stacklevel=4
            )

    def _applied(self, step: int, reason: str, **details: Any) -> Decision:
        ramp = self._ramp(step) * self.scale * self._line(step)
        lrs = self._answer
        if ramp != 1.0:
            lrs = [max(lr * ramp, min(lr, self.config.min_lr)) for lr in lrs]
        self._monitor.rate = lrs[reference_group(self.base_lrs)]
        return Decision(step=step, lr=tuple(lrs), reason=reason, ramp=ramp, **details)

    def _ramp(self, step: int) -> float:
        warm = min(1.0, (step + 1) / self._warm) if self._warm else 1.0
        if self._cooldown is None:
            return warm
        first, length = self._cooldown
        return warm * max(0.0, (length - (step - first)) / length)

    def _line(self, step: int) -> float:
        """What is left at this update of the answer of a controller whose rate falls between its decisions."""
        total, since = self.total_steps, self._answered
        fallen = self.fallen_back is not None and step >= self._monitor.since
        held = not self.controller.linear_between or self._cooldown is not None or fallen
        return 1.0 if held or total is None or since >= total else max(0, total - step) / (total - since)

    def _in_force(self) -> list[float]:
        """The rates of the update about to be applied if nothing is decided, at the end those of the last one."""
        line = self._line(self.updates if self.total_steps is None else min(self.updates, self.total_steps - 1))
        return [lr * line for lr in self._answer]

    def _start_line_here(self) -> None:
        """Before the length changes: the line goes on from the rate in force."""
        if self.controller.linear_between:
            self._answer, self._answered = self._in_force(), self.updates

    def add_group(self, lr: float) -> None:
        """Take in a parameter group that joined the optimizer, with the factor in force for group 0."""
        base = self.base_lrs[0]
        self.base_lrs.append(lr)
        self._answer.append(lr * (self._answer[0] / base if base > 0 else 1.0))

    # --- envelope -----------------------------------------------------------------------------------------------

    @property
    def fallen_back(self) -> str | None:
        """Why the run fell back, or None."""
        return self._monitor.reason

    def fall_back(self, reason: str) -> None:
        """Go on without the controller from the next update on; see [`ControlledLR.fall_back`]."""
        if self.config.envelope is None:
            raise ValueError(f"fall_back({reason!r}): there is no envelope to fall back in; pass envelope=Envelope()")
        if not isinstance(reason, str) or not reason:
            raise ValueError(f"fall_back({reason!r}): say why, in a few words; the trace shows it")
        if self.fallen_back is None:
            self._fall_back(reason, self.updates)

    def _fall_back(self, reason: str, update: int) -> None:
        self._monitor.fall_back(reason, update, self.base_lrs[reference_group(self.base_lrs)])
        self._plan = None

    def note_loss(self, loss: float) -> None:
        """See [`ControlledLR.note_loss`]."""
        self._monitor.note(float(loss), every_update=True)

    def _judge(self, step: int, mistake: str) -> None:
        if self.total_steps is not None and step >= self.total_steps:
            return  # past the planned end no learning rate is right
        if self._monitor.judge(bool(mistake)):
            reason = f"{self._monitor.mistakes} decisions in succession were corrected, the last: {mistake}"
            self._fall_back(reason, step + 1)
            warnings.warn(f"the controller is asked no more, the run falls back: {reason}", UserWarning, stacklevel=4)

    # --- horizon ------------------------------------------------------------------------------------------------

    def extend(self, steps: int) -> None:
        """Make the run `steps` updates longer; a cooldown under way ends and the controller takes over again."""
        _whole("extend", steps)
        if self.total_steps is None:
            raise ValueError(f"extend({steps}): this run has no total_steps, so there is nothing to extend")
        self._start_line_here()
        self.total_steps, self._cooldown, self._monitor.fresh = self.total_steps + steps, None, True
        self._plan = None

    def cooldown(self, steps: int) -> None:
        """From the next update on, decay the learning rate now in force linearly to zero within `steps` updates."""
        _whole("cooldown", steps)
        self._start_line_here()
        self._cooldown, self.total_steps = (self.updates, steps), self.updates + steps
        self._plan = None

    @property
    def cooldown_left(self) -> int | None:
        """Updates until the end of a cooldown, at least 0; None where there is none."""
        return None if self._cooldown is None else max(0, sum(self._cooldown) - self.updates)

    def simulate(
        self, steps: int, observe: Callable[[int, float], Mapping[str, float]] | None = None
    ) -> list[Decision]:
        """The next `steps` decisions on a copy of the run; see [`ControlledLR.simulate`]."""
        twin, out = copy.deepcopy(self), list[Decision]()

        def advance(update: int, lr: float) -> float:
            fields = dict(observe(update, lr)) if observe is not None else {}
            missing = twin.controller.needs & OPTIONAL_FIELDS.keys() - fields.keys() if twin.plan().decides else set()
            if missing:
                raise ValueError(
                    f"'{twin.controller.controller_type}' needs {sorted(missing)}; pass observe=, which gives them"
                )
            out.append(twin.advance(fields))
            return out[-1].lr[0]

        simulate(range(self.updates, self.updates + steps), self._in_force()[0], advance)
        return out

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: plain numbers, strings, lists and CPU tensors."""
        return {
            "format": STATE_FORMAT,
            **self._identity,
            "declared_total_steps": self.config.total_steps,
            "total_steps": self.total_steps,
            "every": self._cadence.distance,
            "updates": self.updates,
            "held": self.kept,  # key of version 0.1
            "scale": self.scale,
            "applied_lr": self.last_lr,
            "cooldown": None if self._cooldown is None else list(self._cooldown),
            "base_lrs": list(self.base_lrs),
            "answer": list(self._answer),
            "answered": self._answered,
            "warm": self._warm,
            "controller_state": self.controller_state(),
            "envelope": self._monitor.state_dict(),
        }

    def controller_state(self) -> State:
        """A copy of the controller's run state, on the CPU."""
        return {k: v.detach().cpu().clone() if isinstance(v, Tensor) else v for k, v in self._state.items()}

    def set_controller_state(self, state: State) -> None:
        """Continue with another run state of the controller."""
        self._state = state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run.

        A length that `extend` or `cooldown` set comes back with the state, unless the constructor was given another
        `total_steps` than the saved run's: then that wins.

        Raises:
            ValueError: before anything changes, for a state of another scheduler, of a newer format, of another
                controller class, config or weights, or of another number of parameter groups.
        """
        check_saved(state, self.controller, self._identity, len(self.base_lrs))
        self._plan = None
        self.base_lrs, self._answer = list(state["base_lrs"]), list(state["answer"])
        self.updates, self.kept = state["updates"], state["held"]
        self._answered = state.get("answered", 0)
        if self.config.warmup_steps is None:  # a share of the length that the run had when it warmed up
            self._warm = state.get("warm", self._warm)
        self.scale, self.last_lr = float(state.get("scale", 1.0)), float(state.get("applied_lr", 0.0))
        self._state = dict(state["controller_state"])
        self._monitor.load_state_dict(state.get("envelope", {}))
        wanted, self.total_steps = self.total_steps, state["total_steps"]
        if state["declared_total_steps"] == self.config.total_steps:
            self._cadence = replace(self._cadence, every=state["every"])
            self._cooldown = None if state["cooldown"] is None else (state["cooldown"][0], state["cooldown"][1])
        else:
            self._start_line_here()
            self.total_steps = wanted


def _whole(name: str, steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{name}({steps!r}): pass a whole number of updates, at least 1")
