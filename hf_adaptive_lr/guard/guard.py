"""DivergenceGuard: the order of decisions; the parts they rest on are in the modules beside this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from .._checks import check_range
from ..distributed import average_values, rank
from ..optimizers.groups import raw
from .detector import EARLY, Detector
from .events import Event, EventLog
from .guard_state import GuardState
from .history import SnapshotHistory
from .lr_scaling import LRScaling
from .thresholds import Thresholds, has_grown
from .trouble import TroubleCount

Action = Literal["apply", "skip", "rollback", "stop"]
STATE = "non_finite_state"
"""A guard's reason when weights or optimizer state are not finite while the loss still is."""


class DivergenceError(RuntimeError):
    """Training was stopped because it kept diverging; the last good state has been restored."""


class DivergenceGuard(GuardState):
    """Notices divergence before an update is applied, skips it, goes back if it persists, and stops if that fails.

    Works with any training loop, with a controller, a plain scheduler or none:

        action = guard.before_step(loss, grad_norm)      # gradients are there, clipped or not
        if action == "apply":
            optimizer.step(); scheduler.step()
            guard.after_step()
        optimizer.zero_grad()

    - `apply`: healthy. Step, then call `after_step`.
    - `skip`: do not step. The guard has set the gradients to None, and has put batch statistics back if NaN reached
      them. Do not step a plain scheduler either; the update does not count.
    - `rollback`: as `skip`; besides, the newest good snapshot has been restored and the learning rate is cut. Continue
      with the next batch: the data is not rewound, so the batches that did the damage are left behind.
    - `stop`: the same for the last time (the LR is not cut); by default it is raised as [`DivergenceError`].

    `help(hf_adaptive_lr.guard)` has the rules: when it skips, goes back, takes trouble for the data's, and stops.

    Cost: one small collective and one host read per update; per snapshot one more of each, a read of all that trains,
    and a copy of it. Host memory: two copies of trainable weights, buffers and optimizer state, up to 16 where
    snapshots are less than 8 updates apart.

    Args:
        model: the module that trains.
        optimizer: its optimizer, raw or prepared by Accelerate.
        scheduler: its scheduler, or None. One with `set_scale` gets the factor; for all others the guard scales
            `lr` and `initial_lr` of the groups and the scheduler's `base_lrs`. One with the other methods of
            `lr_scaling.GuardedScheduler`, as [`ControlledLR`], may have its controller dismissed.
        scaler: a `torch.amp.GradScaler`, or None. Up to 20 overflows in a row are left to it (it skips by itself).
        detector: decides when an update is divergent; a [`Detector`] or its [`Thresholds`].
        snapshot_every: applied updates between snapshots. None takes none, for sharded models: on `rollback` and
            `stop` the caller restores its own checkpoint, and the guard cuts the LR and judges later updates afresh.
        max_skips: updates that may be skipped before going back, at least 0.
        max_rollbacks: times the run may go back, at least 0.
        lr_cut: factor of the learning rate at a rollback, in (0, 1].
        recover: whether the first cut is taken back, where trouble came suddenly, after more healthy updates than it
            took to diverge. If the learning rate was the cause it happens again, and the second cut is for good.
        safe_drift: where a learning rate that was far too large from the start is cut to: that an update moves the
            weights by this share of their norm, in [1e-5, 1]. Pretrained weights want about 0.0035, new ones 0.01.
        rewind_schedule: whether schedulers and hyper-parameters go back with the weights. False keeps the position,
            for hosts whose own update count cannot go back and whose schedule must end with the run.
        raise_on_stop: False returns `stop` instead of raising.
        folder: where the last good state is written on `stop` (and nothing else), or None.
        on_event: called with each event, a dict of JSON values; see `events`.
        process_group: ranks that act together, None for the default group.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value out of range, or a sharded model with snapshots.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        scheduler: Any = None,
        scaler: Any = None,
        detector: Detector | Thresholds | None = None,
        snapshot_every: int | None = 50,
        max_skips: int = 5,
        max_rollbacks: int = 3,
        lr_cut: float = 0.5,
        recover: bool = True,
        safe_drift: float = 0.005,
        rewind_schedule: bool = True,
        raise_on_stop: bool = True,
        folder: str | os.PathLike[str] | None = None,
        on_event: Callable[[Event], object] | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        for name, value, low in (
            ("max_skips", max_skips, 0),
            ("max_rollbacks", max_rollbacks, 0),
            ("snapshot_every", 1 if snapshot_every is None else snapshot_every, 1),
        ):
            check_range(self, name, value, low, 1_000_000, hint="it is a number of updates or rollbacks")
        check_range(self, "safe_drift", safe_drift, 1e-5, 1.0, hint="it is a share of the weights' norm")
        check_range(self, "lr_cut", lr_cut, 1e-6, 1.0, hint="0.5 halves the learning rate at each rollback")
        self.optimizer = raw(optimizer)
        self._lr = LRScaling(self.optimizer, scheduler, lr_cut, safe_drift, recover)
        self.scheduler = self._lr.scheduler
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.detector = detector if isinstance(detector, Detector) else Detector(detector)
        self._history = SnapshotHistory(snapshot_every, model, self.optimizer, self.scheduler, scaler)
        self.snapshots = self._history.snapshots
        self.max_rollbacks, self.rewind_schedule, self.raise_on_stop = max_rollbacks, rewind_schedule, raise_on_stop
        self.folder, self._group = folder, process_group
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._log = EventLog(on_event)

        self.updates = 0
        """Updates seen, applied or not; it never goes back."""
        self.rollbacks = 0
        self.stopped = False
        self.message = ""
        """Why the run was stopped, and the ways out."""
        self._trouble = TroubleCount(max_skips)
        self._damaged = False  # a snapshot that was due found weights or optimizer state that are not finite

    @property
    def events(self) -> list[Event]:
        """The last 1000 events, oldest first."""
        return self._log.events

    @property
    def factor(self) -> float:
        """Factor on the learning rate: `lr_cut` to the number of cuts in force."""
        return self._lr.factor

    # --- called by the training loop ----------------------------------------------------------------------------

    def start(self) -> None:
        """Take the first snapshot, before the first forward pass; else the first `before_step` does.

        By then that forward pass has moved generators and batch statistics, which matters only to exactness.

        Raises:
            ValueError: the weights are not finite to begin with.
        """
        if self.snapshots is not None and not len(self.snapshots) and not self._take():
            raise ValueError(
                "the model or optimizer holds NaN or infinity before the first update: check how it was loaded; or "
                "the first batch did it: call start() before the first forward pass"
            )

    def before_step(self, loss: Tensor | float, grad_norm: Tensor | float | None = None) -> Action:
        """Judge the update that is about to be applied; call it on every rank, once per update.

        Args:
            loss: its mean loss on this rank, unscaled.
            grad_norm: L2 norm of its gradient before clipping, unscaled; None measures the gradients as they are.

        Returns:
            The action to take, the same on all ranks.

        Raises:
            DivergenceError: nothing helped, with `raise_on_stop`.
            RuntimeError: the ranks have drifted apart.
        """
        if self.stopped:
            return self._end("the run was stopped before")
        if self._history.forget_outdated():
            self._take()
        if self._trouble.calm:
            self.start()
        values = (loss, self._norm() if grad_norm is None else grad_norm)
        loss, grad_norm = self._means(values, self._trouble.unpaid, float(self.rollbacks), self.factor)
        self.updates += 1
        reason = self.detector.see(loss, grad_norm, self._lr.uncut())
        seen = {"update": self.updates - 1, "reason": reason, "loss": loss, "grad_norm": grad_norm}
        seen |= self.detector.seen
        if reason == "non_finite_gradient" and self.scaler is not None and self._trouble.left_to_scaler():
            return "apply"
        if reason is None and self._diverges_at_once(seen):
            reason = seen["reason"] = EARLY
        if reason is None and self._damaged:
            reason = seen["reason"] = STATE
        if reason is None and self.detector.suspicious:
            return "apply"  # neither healthy nor trouble yet
        if reason is not None:
            return self._act(reason, seen)
        self._trouble.count_healthy()
        self.detector.tolerate()
        self._count_down_cut(seen)
        if self._lr.controlled is not None:
            self._lr.controlled.note_loss(loss)
        return "apply"

    def after_step(self) -> None:
        """Call it once the update has been applied; takes a snapshot when one is due and nothing is suspicious."""
        if self._trouble.overflows:  # the scaler has skipped it
            return
        self._lr.count_update()
        due = self._history.count(healthy=not self.detector.suspicious)
        if due and self._trouble.calm and self.detector.calm:
            self._damaged = not self._take()

    # --- judging ------------------------------------------------------------------------------------------------

    def _means(self, values: Sequence[Tensor | float], *agreed: float) -> list[float]:
        return average_values(values, [float(self.updates), *agreed], self._device, self._group)

    def _norm(self) -> Tensor:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _diverges_at_once(self, seen: Event) -> bool:
        if not len(self._history) or not self.detector.rising:
            return False
        seen["drift"] = self._drift()
        return not seen["drift"] <= self.detector.thresholds.opening_drift

    def _drift(self) -> float:
        """How far an update of the opening has moved the weights, as a share of their norm, on average."""
        return self._history.drift() / self.detector.opening

    def _act(self, reason: str, seen: Event) -> Action:
        """Skip, go back, accept or stop, for an update in trouble."""
        self._trouble.count_trouble()
        finite = not reason.startswith("non_finite")
        if self._trouble.failed_rollbacks:
            self._lr.undo_cut()  # good weights meet the same trouble before their first update: LR had no part in it
            if finite:
                self.detector.blame_data(seen["loss"], seen["grad_norm"])
                return self._accept(seen) if self._trouble.data_has_changed else self._skip(seen)
        # Soon after a rollback a single loss may be a shift: not yet a reason to go back once more.
        at_once = reason in ("slow_divergence", EARLY) or (reason == "loss_shift" and self.detector.lasted > 1)
        last = self.rollbacks >= self.max_rollbacks  # a few bad batches in succession must not end a run
        if not self._trouble.persists(finite=finite and not last, at_once=at_once or self._damaged):
            return self._skip(seen)
        shifts = reason == "loss_shift" and not self.detector.exploded(seen["loss"])
        target = self._history.target(self.detector.unseen + 1)
        rise, lr = self.detector.thresholds.shift_rise, self.detector.lr
        again = shifts and self._trouble.comes_again(seen, target, rise, lr)
        if again or (last and shifts):
            return self._accept(seen, undo_cut=again)
        return self._stop(seen) if last else self._roll_back(seen)

    # --- acting -------------------------------------------------------------------------------------------------

    def _skip(self, seen: Event) -> Action:
        self.optimizer.zero_grad(set_to_none=True)
        seen |= self._history.repair_buffers()
        self._lr.drop_pending()
        self._report("skip", seen)
        return "skip"

    def _roll_back(self, seen: Event) -> Action:
        falls_back = self._falls_back(seen)
        slowly, before = seen["reason"] == "slow_divergence", self._lr.now()
        blameless = bool(self._trouble.failed_rollbacks) or (falls_back and slowly) or seen["reason"] == STATE
        measured = self.detector.opening and len(self._history)
        ratio = 1.0 if blameless else self._lr.cut_ratio(self._drift() if measured else None)
        lr = self.detector.lr
        restored = self._restore(seen)
        grown = has_grown(lr, self.detector.lr)
        if grown and slowly:
            self.detector.blame_rate()
        self.rollbacks += 1
        then = restored["factor"] if self.rewind_schedule and restored else None
        accident = not slowly and seen["reason"] != EARLY and not (grown and seen["reason"] == "loss_shift")
        sudden = accident and seen["update"] > self.detector.thresholds.opening
        lost = seen["update"] - restored["update"] if restored and sudden and self.rollbacks == 1 else None
        self._lr.cut(ratio, lost=lost, factor_then=then)
        self._trouble.count_rollback(seen, self._lr.uncut())
        self._lr.drop_pending()
        if falls_back:
            self.scheduler.fall_back(f"{seen['reason']} at update {seen['update']}")
            seen["handed_over"] = True  # key of version 0.1
        self.detector.be_strict(seen["loss"])
        self._report("rollback", seen, lr_before=before, lr_after=self._lr.after(before * ratio))
        return "rollback"

    def _falls_back(self, seen: Event) -> bool:
        """Whether a run with an envelope falls back: its controller led it astray slowly, or for the second time."""
        again = self.rollbacks > 0 and not self._trouble.failed_rollbacks
        controlled = self._lr.controlled
        can = controlled is not None and controlled.can_fall_back
        return can and (again or seen["reason"] == "slow_divergence")

    def _count_down_cut(self, seen: Event) -> None:
        if self._lr.cut_hold:
            self._lr.cut_hold -= 1
            if not self._lr.cut_hold:
                before = self._lr.now()
                self._report("recover", seen, lr_before=before, lr_after=self._lr.after(before / self._lr.undo_cut()))

    def _accept(self, seen: Event, *, undo_cut: bool = False) -> Action:
        """Good weights have kept meeting losses like this one: the data has changed for good."""
        before = self._lr.now()
        ratio = self._lr.undo_cut() if undo_cut else 1.0  # the learning rate had no part in it
        self.detector.blame_data(seen["loss"], seen["grad_norm"])
        self.detector.accept()
        self._trouble.accept()
        self._report("accept", seen, lr_before=before, lr_after=self._lr.after(before / ratio))
        return "apply"

    def _stop(self, seen: Event) -> Action:
        before = self._lr.now()
        restored = self._restore(seen)
        if restored is not None and self.rewind_schedule:
            self._lr.scale(self.factor / restored["factor"])
        self.stopped = True
        self._report("stop", seen, lr_before=before, lr_after=self._lr.now())
        where = ""
        if self.folder is not None and self.snapshots is not None and rank(self._group) == 0:
            where = f" and written to {self.snapshots.to_disk(self.folder)}"
        back = f"the weights of update {restored['update']} are restored" if restored else "nothing was restored"
        numbers = f"loss {seen['loss']:.4g}, gradient norm {seen['grad_norm']:.4g}"
        return self._end(
            f"{seen['reason']} at update {seen['update']} ({numbers}) after {self.rollbacks} rollbacks; {back}{where}."
            " Look at the data of these batches, lower the learning rate, or raise max_rollbacks"
        )

    def _end(self, message: str) -> Action:
        self.message = f"training diverged: {message}"
        if self.raise_on_stop:
            raise DivergenceError(self.message)
        return "stop"

    def _restore(self, seen: Event) -> Mapping[str, Any] | None:
        """Go back to the newest good state, with the detector's view of it; newer ones are forgotten."""
        self.optimizer.zero_grad(set_to_none=True)
        meta = self._history.go_back(self.detector.unseen + 1, schedule=self.rewind_schedule)
        self.detector.go_back(None if meta is None else meta["detector"])
        self._damaged = False
        seen["restored_update"] = None if meta is None else meta["update"]
        return meta

    def _take(self) -> bool:
        """Take a snapshot, unless some value on some rank is not finite."""
        if self.snapshots is None or self._means([float(not self.snapshots.finite())]) != [0.0]:
            return False
        self._history.take({"update": self.updates, "factor": self.factor, "detector": self.detector.state_dict()})
        return True

    def _report(self, action: str, seen: Event, **more: Any) -> None:
        rate = self._lr.now()
        event = {"action": action, **seen, "lr_before": rate, "lr_after": rate, **more}
        event |= {"factor": self.factor, "rollbacks": self.rollbacks, "trouble": self._trouble.unpaid}
        self._log.add(event)
