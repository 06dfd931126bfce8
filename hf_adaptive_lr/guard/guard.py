"""DivergenceGuard: divergence becomes an event, not the end. Skip; go back and cut the LR; stop, always bounded."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from .._checks import check_range
from ..artifacts import replace_file
from ..distributed import average_over_ranks, rank, world_size
from ..optimizers.groups import raw
from ..scheduler.controlled_lr import ControlledLR
from .detector import EARLY, Detector
from .lr_scaling import Rates
from .snapshot import FILE_NAME as SNAPSHOT_NAME
from .snapshot import Snapshot
from .thresholds import Thresholds

Action = Literal["apply", "skip", "rollback", "stop"]
Event = dict[str, Any]
FILE_NAME = "guard.pt"
STATE_FORMAT = 1

_PAID_BACK = 0.25  # a healthy update makes up for this many skipped ones
_CONFIRMED = 2  # healthy updates after a snapshot before it counts as good, where trouble shows at once
_SPAN = 16  # updates that snapshots reach back, at least: what creeps shows after ten
_CALM = 8  # healthy updates since the last trouble before the next snapshot
_LARGEST_CUT = 1e-3
_PERSISTS = 3  # updates in succession with a finite loss or gradient out of bounds: the weights are damaged
_PAROLE = 8  # healthy updates, at least, before a cut is taken back
_DATA_PATIENCE = 4  # times max_skips: how long finite trouble that the data brings is skipped before it is accepted
_SCALER_SKIPS = 20  # overflows in a row that are left to a gradient scaler; it needs them to find its scale


class DivergenceError(RuntimeError):
    """Training was stopped because it diverged again and again; the last good state has been restored."""


class DivergenceGuard:
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
    - `rollback`: as `skip`; besides, the newest good snapshot has been restored and the learning rate is cut. Go on
      with the next batch: the data is not rewound, so the batches that did the damage are left behind.
    - `stop`: the same for the last time (the LR is not cut); by default it is raised as [`DivergenceError`].

    An update in trouble is skipped until `max_skips` is used up (or three in succession have had a loss or gradient
    that is finite and out of bounds), where a healthy update pays back a quarter of a skip, so that a run that is bad
    every third time does not go on for ever. A loss that has shifted for four updates, and a slow divergence, go back
    at once, as does a loss that rises from the very start while an update moves the weights by percents of their norm:
    then the learning rate is cut to where it moves them by `safe_drift`.

    Trouble that is there again at the very next update after a rollback comes from the data, not from weights or LR:
    the cut is undone. A finite loss is then skipped for 20 more updates, which outlives a burst of bad batches, and
    after that accepted: the data has changed for good. For values that are not finite each further rollback leaves the
    LR alone and doubles the patience.

    Snapshots are taken every `snapshot_every` applied updates, only when nothing is suspicious; one counts as good
    after 2 more healthy updates and if it is older than the trouble, until then the guard goes back to the one before.
    Rollbacks are never forgotten: at most `max_rollbacks` in a run.

    Cost: one small collective and one host read per update; per snapshot one more of each, a read of all that trains,
    and a copy of it. Host memory: two copies of trainable weights, buffers and optimizer state, up to
    16 where snapshots are less than 8 updates apart.

    Args:
        model: the module that trains.
        optimizer: its optimizer, raw or prepared by Accelerate.
        scheduler: its scheduler, or None. One with `set_scale` (see `guard_rates.ScalesLR`) is told the factor. A
            [`ControlledLR`] without it keeps writing its own rates: whoever wires it applies `factor`. For all others
            the guard scales `lr` and `initial_lr` of the groups and the scheduler's `base_lrs`.
        scaler: a `torch.amp.GradScaler`, or None. With one, overflows are left to it (it skips by itself), up to 20 in
            a row.
        detector: when an update is divergent; a [`Detector`] or its [`Thresholds`].
        snapshot_every: applied updates between snapshots. None takes none, for sharded models: on `rollback` and
            `stop` the caller restores its own checkpoint, and the guard cuts the LR and
            judges what follows afresh.
        max_skips: updates that may be skipped before going back, at least 0.
        max_rollbacks: times the run may go back, at least 0.
        lr_cut: factor of the learning rate at a rollback, in (0, 1].
        recover: whether the first cut is taken back, where trouble came suddenly, once there have been more healthy
            updates than it took to go wrong. If the learning rate was the cause it happens again, and the second
            cut is for good.
        safe_drift: where a learning rate that was far too large from the start is cut to: that an update moves the
            weights by this share of their norm, in [1e-5, 1]. Pretrained weights want about 0.0035, new ones 0.01.
        rewind_schedule: whether schedulers and hyper-parameters go back with the weights. False keeps the schedule's
            position, for hosts whose own update count cannot go back and whose schedule must end with the run.
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
            ("snapshot_every", snapshot_every or 1, 1),
        ):
            check_range(self, name, value, low, 1_000_000, hint="it is a number of updates or rollbacks")
        check_range(self, "safe_drift", safe_drift, 1e-5, 1.0, hint="it is a share of the weights' norm")
        check_range(self, "lr_cut", lr_cut, 1e-6, 1.0, hint="0.5 halves the learning rate at each rollback")
        self.optimizer = raw(optimizer)
        self._rates = Rates(self.optimizer, scheduler)
        self.scheduler = self._rates.scheduler
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.detector = detector if isinstance(detector, Detector) else Detector(detector)
        self.snapshots = (
            Snapshot(
                model,
                self.optimizer,
                schedulers=self.scheduler,
                scaler=scaler,
                slots=max(2, math.ceil(_SPAN / snapshot_every)),
            )
            if snapshot_every
            else None
        )
        self.snapshot_every, self.max_skips, self.max_rollbacks = snapshot_every, max_skips, max_rollbacks
        self.lr_cut, self.recover, self.safe_drift = lr_cut, recover, safe_drift
        self.rewind_schedule, self.raise_on_stop = rewind_schedule, raise_on_stop
        self.folder, self.on_event, self._group = folder, on_event, process_group
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

        self.events: list[Event] = []
        """What happened, oldest first; the last 1000."""
        self.factor = 1.0
        """What the learning rate has been multiplied by so far: `lr_cut` to the number of cuts."""
        self.updates = 0
        """Updates seen, applied or not; it never goes back."""
        self.rollbacks = 0
        self.stopped = False
        self.message = ""
        """Why the run was stopped, and what to do about it."""
        self._trouble = 0.0  # skips not yet paid back
        self._fruitless = 0  # rollbacks since the last healthy update
        self._in_a_row = 0  # skips since then
        self._last_cut = 1.0  # of the last rollback
        self._parole = 0  # healthy updates until it is taken back
        self._overflows = 0
        self._healthy = _CALM  # healthy updates since the last trouble
        self._since_snapshot = 0
        self._ages: list[int] = []  # healthy updates since each snapshot, newest first

    # --- what the loop calls ------------------------------------------------------------------------------------

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
            What to do, the same on all ranks.

        Raises:
            DivergenceError: the end of all means, with `raise_on_stop`.
            RuntimeError: the ranks have drifted apart.
        """
        if self.stopped:
            return self._end("the run was stopped before")
        if not self._trouble and self._healthy >= _CALM:
            self.start()
        loss, grad_norm = self._agree(loss, self._norm() if grad_norm is None else grad_norm)
        self.updates += 1
        reason = self.detector.see(loss, grad_norm)
        seen = {"update": self.updates - 1, "reason": reason, "loss": loss, "grad_norm": grad_norm}
        seen |= self.detector.seen
        if reason == "non_finite_gradient" and self._left_to_scaler():
            return "apply"
        if reason is None and self._diverges_at_once(seen):
            reason = seen["reason"] = EARLY
        if reason is None and self.detector.suspicious:
            return "apply"  # neither healthy nor trouble yet
        if reason is None:
            self._trouble = max(0.0, self._trouble - _PAID_BACK)
            self._healthy += 1
            self._overflows = self._fruitless = self._in_a_row = 0
            self._serve_parole(seen)
            if isinstance(self.scheduler, ControlledLR):
                self.scheduler.note_loss(loss)
            return "apply"
        return self._act(reason, seen)

    def _act(self, reason: str, seen: Event) -> Action:
        """What to do about an update in trouble."""
        self._healthy = 0
        self._trouble += 1.0
        finite = not reason.startswith("non_finite")
        if self._fruitless:
            self._undo_cut()
            if finite and self._trouble > _DATA_PATIENCE * self.max_skips:
                return self._accept(seen)
        self.optimizer.zero_grad(set_to_none=True)
        if self._fruitless and finite:
            return self._skip(seen)
        self._in_a_row += 1
        # Soon after a rollback a single loss may be a shift: not yet a reason to go back once more.
        lasts = reason in ("slow_divergence", EARLY) or (reason == "loss_shift" and self.detector.lasted > 1)
        lasts = lasts or (finite and self._in_a_row >= _PERSISTS)
        if not lasts and self._trouble <= self.max_skips * 2**self._fruitless:
            return self._skip(seen)
        if self.rollbacks < self.max_rollbacks:
            return self._roll_back(seen)
        return self._stop(seen)

    def after_step(self) -> None:
        """Tell that the update was applied; takes a snapshot when one is due and nothing is suspicious."""
        if self._overflows:  # the scaler has skipped it
            return
        if not self.detector.suspicious:
            self._ages = [age + 1 for age in self._ages]
        self._since_snapshot += 1
        due = self.snapshot_every is not None and self._since_snapshot >= self.snapshot_every
        if due and self._healthy >= _CALM and not self._trouble and self.detector.calm and self._confirmed(0):
            self._take()  # weights that are not finite show in the next loss; until then the earlier states stand

    # --- ranks --------------------------------------------------------------------------------------------------

    def _agree(self, loss: Tensor | float, grad_norm: Tensor | float) -> tuple[float, float]:
        """Means over ranks: a NaN or infinity of any rank makes the mean non-finite on all of them."""
        values = [torch.as_tensor(_whole(v)).detach().reshape(()) for v in (loss, grad_norm)]
        device = self._device if world_size(self._group) > 1 else _common_device(values)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        packed = torch.stack([v.to(device, dtype, non_blocking=True) for v in values])
        state = [float(self.updates), self._trouble, float(self.rollbacks), self.factor]
        mean_loss, mean_norm = average_over_ranks(packed, torch.tensor(state, dtype=dtype), self._group)
        return mean_loss, mean_norm

    def _all(self, good: bool) -> bool:
        if world_size(self._group) == 1:
            return good
        flag = torch.tensor([float(not good)], device=self._device)
        return average_over_ranks(flag, torch.tensor([float(self.updates)]), self._group) == [0.0]

    def _norm(self) -> Tensor:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    # --- acting -------------------------------------------------------------------------------------------------

    def _diverges_at_once(self, seen: Event) -> bool:
        if self.snapshots is None or not self.detector.rising:
            return False
        seen["drift"] = self._drift()
        return not seen["drift"] <= self.detector.thresholds.opening_drift

    def _drift(self) -> float:
        """How far an update of the opening has moved the weights, as a share of their norm, on average."""
        assert self.snapshots is not None
        return self.snapshots.drift(len(self.snapshots) - 1) / self.detector.opening

    def _cut(self) -> float:
        """Factor of the learning rate at this rollback; asked before the weights go back."""
        if self._fruitless:
            return 1.0
        if self.snapshots is None or not self.detector.opening or not len(self.snapshots):
            return self.lr_cut
        drift = self._drift()
        return (
            min(self.lr_cut, max(_LARGEST_CUT, self.safe_drift / drift)) if math.isfinite(drift) else self.lr_cut / 5
        )

    def _left_to_scaler(self) -> bool:
        if self.scaler is None or self._overflows >= _SCALER_SKIPS:
            return False
        self._overflows += 1
        return True

    def _skip(self, seen: Event) -> Action:
        if self.snapshots is not None:
            seen["buffers_repaired"] = self.snapshots.repair_buffers(self._good())
        self._rates.forget_losses()
        self._log("skip", seen)
        return "skip"

    def _roll_back(self, seen: Event) -> Action:
        dismissed = self._dismisses(seen)
        before, cut = self._rates.now(), 1.0 if dismissed and seen["reason"] == "slow_divergence" else self._cut()
        restored = self._restore(seen)
        self.rollbacks += 1
        factor_then = restored["factor"] if self.rewind_schedule and restored else self.factor
        self._parole = self._sentence(seen, restored)
        self._fruitless += 1
        self.factor *= cut
        self._rates.scale(self.factor / factor_then, self.factor)
        self._trouble, self._overflows, self._last_cut = 0.0, 0, cut
        self._rates.forget_losses()
        if dismissed:
            self.scheduler.fall_back(f"{seen['reason']} at update {seen['update']}")
            seen["handed_over"] = True
        self.detector.be_wary(seen["loss"])
        after = before * cut if self._rates.written_by_scheduler else self._rates.now()
        self._log("rollback", seen, lr_before=before, lr_after=after)
        return "rollback"

    def _dismisses(self, seen: Event) -> bool:
        """Whether a controller in an envelope is to go: it led the run astray slowly, or for the second time."""
        again = self.rollbacks > 0 and not self._fruitless
        can = isinstance(self.scheduler, ControlledLR) and self.scheduler.can_fall_back
        return can and (again or seen["reason"] == "slow_divergence")

    def _sentence(self, seen: Event, restored: Mapping[str, Any] | None) -> int:
        """Healthy updates after which the cut is taken back; 0 for never.

        A sudden accident may come from anywhere. So the first time the cut lasts until it did not happen again when
        it would have; if the learning rate was the cause, it happens later, and then the cut is for good.
        """
        slow = seen["reason"] in (EARLY, "slow_divergence")
        if (
            not self.recover
            or slow
            or restored is None
            or self.rollbacks > 1
            or seen["update"] <= self.detector.thresholds.opening
        ):
            return 0
        lost: int = seen["update"] - restored["update"]
        return max(_PAROLE, lost + 4)

    def _serve_parole(self, seen: Event) -> None:
        if self._parole:
            self._parole -= 1
            if not self._parole:
                before, cut = self._rates.now(), self._last_cut
                self._undo_cut()
                after = before / cut if self._rates.written_by_scheduler else self._rates.now()
                self._log("recover", seen, lr_before=before, lr_after=after)

    def _undo_cut(self) -> None:
        """Good weights meet the same trouble before their first update: the learning rate had no part in it."""
        if self._last_cut != 1.0:
            self.factor = min(1.0, self.factor / self._last_cut)  # never a rounding above 1
            self._rates.scale(1.0 / self._last_cut, self.factor)
        self._last_cut, self._parole = 1.0, 0

    def _accept(self, seen: Event) -> Action:
        """Good weights have gone on meeting losses like this one: the data has changed for good."""
        self.detector.accept()
        self._trouble, self._fruitless = 0.0, 0
        self._log("accept", seen)
        return "apply"

    def _stop(self, seen: Event) -> Action:
        before = self._rates.now()
        restored = self._restore(seen)
        if restored is not None and self.rewind_schedule:
            self._rates.scale(self.factor / restored["factor"], self.factor)
        self.stopped = True
        self._log("stop", seen, lr_before=before, lr_after=self._rates.now())
        where = ""
        if self.folder is not None and self.snapshots is not None and rank(self._group) == 0:
            where = f" and written to {self.snapshots.to_disk(self.folder)}"
        good = (
            f"the weights of update {restored['update']} are restored{where}" if restored else "nothing was restored"
        )
        numbers = f"loss {seen['loss']:.4g}, gradient norm {seen['grad_norm']:.4g}"
        return self._end(
            f"{seen['reason']} at update {seen['update']} ({numbers}) after {self.rollbacks} rollbacks; {good}. Look "
            "at the data of these batches, lower the learning rate, or raise max_rollbacks"
        )

    def _end(self, message: str) -> Action:
        self.message = f"training diverged: {message}"
        if self.raise_on_stop:
            raise DivergenceError(self.message)
        return "stop"

    def _restore(self, seen: Event) -> Mapping[str, Any] | None:
        """Go back to the newest good state, with the detector's view of it; newer ones are forgotten."""
        if self.snapshots is None or not len(self.snapshots):
            seen["restored_update"] = None
            self.detector.load_state_dict(Detector(self.detector.thresholds).state_dict())
            return None
        for _ in range(self._good(self.detector.unseen + 1)):
            self.snapshots.drop(0)
            self._ages.pop(0)
        meta: Mapping[str, Any] = self.snapshots.restore(0, schedule=self.rewind_schedule)
        self.detector.load_state_dict(meta["detector"])
        # Trouble that comes back before this state has proved itself again goes one state further back.
        self._ages[0], self._since_snapshot = 0, 0
        seen["restored_update"] = meta["update"]
        return meta

    def _good(self, age: int = 0) -> int:
        """Index of the newest snapshot that has proved itself and is of this age in updates, or of the oldest."""
        proved = (i for i in range(len(self._ages)) if self._confirmed(i, age))
        return next(proved, max(len(self._ages) - 1, 0))

    def _confirmed(self, index: int, age: int = 0) -> bool:
        return index >= len(self._ages) or self._ages[index] >= max(_CONFIRMED, age)

    def _take(self) -> bool:
        snapshots = self.snapshots
        if snapshots is None or not self._all(snapshots.finite()):
            return False
        meta = {"update": self.updates, "factor": self.factor, "detector": self.detector.state_dict()}
        snapshots.take(meta, check=False)
        self._ages = [0 if self._ages else _CONFIRMED, *self._ages][: snapshots.slots]  # the first is what was given
        self._since_snapshot = 0
        return True

    # --- events and state ---------------------------------------------------------------------------------------

    def _log(self, action: str, seen: Event, **more: Any) -> None:
        rate = self._rates.now()
        event = {"action": action, **seen, "lr_before": rate, "lr_after": rate, **more}
        event |= {"factor": self.factor, "rollbacks": self.rollbacks, "trouble": self._trouble}
        event = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in event.items()}
        self.events = [*self.events[-999:], event]
        if self.on_event is not None:
            self.on_event(event)

    def state_dict(self) -> dict[str, Any]:
        """Plain values; what decides the next action, but not the snapshots (see `save`)."""
        return {
            "format": STATE_FORMAT,
            "updates": self.updates,
            "rollbacks": self.rollbacks,
            "factor": self.factor,
            "stopped": self.stopped,
            "trouble": self._trouble,
            "fruitless": self._fruitless,
            "in_a_row": self._in_a_row,
            "last_cut": self._last_cut,
            "parole": self._parole,
            "overflows": self._overflows,
            "healthy": self._healthy,
            "since_snapshot": self._since_snapshot,
            "ages": list(self._ages),
            "detector": self.detector.state_dict(),
            "events": [dict(event) for event in self.events],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run whose weights, optimizer and scheduler the caller has restored (with them the cut LR).

        A scheduler with `set_scale` is told the factor again. Without `load` there is no snapshot until the run is
        calm; a rollback before that has nothing to go back to and only cuts the learning rate.
        """
        if state["format"] > STATE_FORMAT:
            raise ValueError(f"this guard state has format {state['format']}, newer than this library reads; upgrade")
        self.updates, self.rollbacks = state["updates"], state["rollbacks"]
        self.factor, self.stopped = state["factor"], state["stopped"]
        self._trouble, self._fruitless, self._overflows = state["trouble"], state["fruitless"], state["overflows"]
        self._last_cut, self._parole, self._in_a_row = state["last_cut"], state["parole"], state["in_a_row"]
        self._healthy, self._since_snapshot = state["healthy"], state["since_snapshot"]
        kept = 0 if self.snapshots is None else len(self.snapshots)
        self._ages = [*state["ages"], *[0] * kept][:kept]
        self.detector.load_state_dict(state["detector"])
        self.events = [dict(event) for event in state["events"]]
        self._rates.tell(self.factor)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write state and snapshots into a checkpoint's folder, so that a resumed run can go back behind it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.snapshots is not None and len(self.snapshots):
            self.snapshots.to_disk(folder)
        replace_file(folder / FILE_NAME, lambda path: torch.save(self.state_dict(), path))

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Continue from what `save` wrote; the training itself is restored by the caller, as for `load_state_dict`."""
        if self.snapshots is not None and (Path(folder) / SNAPSHOT_NAME).exists():
            self.snapshots.from_disk(folder)
        self.load_state_dict(torch.load(Path(folder) / FILE_NAME, weights_only=True))


def _whole(value: Any) -> Any:
    """The value of a sharded model's norm, which `fully_shard` leaves as a DTensor."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _common_device(values: list[Tensor]) -> torch.device:
    return next((v.device for v in values if v.device.type != "cpu"), torch.device("cpu"))
