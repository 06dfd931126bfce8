"""GuardCallback: the divergence guard on any Trainer, with a controller, a schedule of transformers, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from ..artifacts import EVENTS_NAME
from ..distributed import sharder
from ..guard.detector import Detector
from ..guard.events import Event, sentence
from ..guard.guard import DivergenceGuard
from ..guard.snapshot_file import FILE_NAME as SNAPSHOT_NAME
from ..guard.thresholds import Thresholds
from ..optimizers.groups import raw
from ..scheduler.trace import EventWriter
from ..sensors.checked_losses import CheckedLosses
from ..sensors.forward_hook import ForwardHook
from ..sensors.loss_window import LossWindow

logger = logging.get_logger(__name__)

_PRETRAINED_DRIFT, _SCRATCH_DRIFT = 0.0035, 0.01  # of the weights' norm per update, at a healthy learning rate


class GuardCallback(TrainerCallback, ExportableState):
    """Guards any Trainer against divergence: skips bad updates, goes back if they persist: `Trainer(callbacks=[...])`.

    [`DivergenceGuard`] explains how. Works with `AdaptiveLRTrainer` and
    [`AdaptiveLRCallback`] and, in any other Trainer, with its own schedule.

    - A skipped update is one without gradients: the optimizer and the scheduler do not step. Trainer still counts it
      (as it does the overflows of a gradient scaler), so the run does not get longer.
    - After a rollback training continues with the next batch, at the schedule's present position.
    - The events are in `guard.events` and in `events.jsonl` in the output folder, with the reason and the numbers
      behind it; `hf-adaptive-lr report` draws them.
    - Checkpoints carry the guard's state and snapshots, so that a resumed run continues as if it had not stopped.
    - In an unmodified Trainer the loss is that of the model's output, and gradient norms are those after clipping, so
      that explosions are seen only by their consequences; `AdaptiveLRTrainer` sees both as they are. A model that
      returns no loss is judged by its gradients alone.
    - Models sharded by FSDP are not snapshotted: bad updates are skipped and the learning rate is cut, and
      `AdaptiveLRTrainer` goes back to the last checkpoint. DeepSpeed fails fast: it steps inside the backward pass.

    Args:
        thresholds: when an update is divergent; a [`Thresholds`], or a dict of what differs from its defaults.
        snapshot_every: applied updates between snapshots, at least 1; by default a twentieth of the run, in [5, 50].
        max_skips: updates skipped before going back, at least 0.
        max_rollbacks: how often the run may go back, at least 0.
        lr_cut: factor of the learning rate at a rollback, in (0, 1].
        recover: whether the first cut of a sudden trouble is taken back after a while.
        safe_drift: where a learning rate that is far too large from the start is cut to: that an update moves the
            weights by this share of their norm; by default 0.0035 for a model that `from_pretrained` made, 0.01 for
            one from scratch, as pretrained weights bear less.
        raise_on_stop: True raises [`DivergenceError`] when nothing helps; False ends training there, with the last
            good weights.
        save_snapshots: whether checkpoints hold the snapshots, which makes them three times as large, and up to five
            times in runs of under 160 updates, whose snapshots are less than 8 apart; without them a resumed run
            cannot go back behind its checkpoint.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value out of range; when training begins, DeepSpeed.

    Example:
        >>> GuardCallback(max_rollbacks=2, thresholds={"loss_rise": 4.0}).thresholds.loss_rise
        4.0
    """

    def __init__(
        self,
        *,
        thresholds: Thresholds | Mapping[str, Any] | None = None,
        snapshot_every: int | None = None,
        max_skips: int = 5,
        max_rollbacks: int = 3,
        lr_cut: float = 0.5,
        recover: bool = True,
        safe_drift: float | None = None,
        raise_on_stop: bool = False,
        save_snapshots: bool = True,
    ) -> None:
        self.thresholds = Thresholds.of(thresholds)
        self.settings: dict[str, Any] = {
            "snapshot_every": snapshot_every,
            "max_skips": max_skips,
            "max_rollbacks": max_rollbacks,
            "lr_cut": lr_cut,
            "recover": recover,
            "safe_drift": safe_drift,
        }
        self.raise_on_stop, self.save_snapshots = raise_on_stop, save_snapshots
        # Values out of range fail here and not when training begins; a norm, as its weights take no random draw.
        scratch = torch.nn.LayerNorm(1)
        given = {name: value for name, value in self.settings.items() if value is not None}
        DivergenceGuard(scratch, torch.optim.SGD(scratch.parameters(), lr=0.1), **given)
        self.guard: DivergenceGuard | None = None
        """The guard of the run, from its first update on."""
        self.restore_checkpoint: Callable[[Path], None] | None = None
        """Set by `AdaptiveLRTrainer`: goes back to a checkpoint, for models that cannot be snapshotted."""
        self.resumed_from: Path | None = None
        """Set by `AdaptiveLRTrainer`: the checkpoint that is resumed; else it is looked for in the output folder."""
        self.saved_state: dict[str, Any] | None = None
        self._controlled: Any = None  # the ControlledLR on the run's optimizer, if any
        self._writer: EventWriter | None = None
        self._applied, self._flagged, self._place = False, False, 0
        self._sound = 0  # updates that Trainer had counted when the weights were last known to be good
        self._run: tuple[TrainingArguments, TrainerState] | None = None  # under way
        self._hook: ForwardHook | None = None
        self._losses = CheckedLosses()
        self._forget()

    def _forget(self) -> None:
        self._losses.clear()
        self._observed: LossWindow | None = None
        self._grad_norm: Tensor | float | None = None

    # --- reports -----------------------------------------------------------------------------------------------

    def observe(self, *, losses: LossWindow, grad_norm: Tensor | float) -> None:
        """Report what the trainer knows better than a forward hook; `AdaptiveLRTrainer` does, once per update.

        `losses` are those of the update's micro-batches on this rank, `grad_norm` is before clipping.
        """
        self._observed, self._grad_norm = losses, grad_norm

    def log_values(self) -> dict[str, float]:
        """For the log: updates skipped, rollbacks, and the factor on the learning rate."""
        if self.guard is None:
            return {}
        skips = sum(event["action"] == "skip" for event in self.guard.events)
        values = {"skips": float(skips), "rollbacks": float(self.guard.rollbacks), "factor": self.guard.factor}
        return {f"adaptive_lr/guard_{name}": value for name, value in values.items()}

    # --- called by Trainer --------------------------------------------------------------------------------------

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin anew; the guard itself is made at the first update, when everything else is in place."""
        self.close()
        self.guard = None

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Before the first forward pass of the run: make the guard and take its first snapshot."""
        if self.guard is None:
            self._make(args, state, kwargs["model"], kwargs["optimizer"], kwargs["lr_scheduler"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Judge the update; one that is not to be applied loses its gradients."""
        guard = self._running()
        self._place = self._step(state)
        losses = self._observed or self._losses
        if self._observed is None:
            self._losses.warn_of_another("GuardCallback")
        action = guard.before_step(losses.mean() if losses else 0.0, self._grad_norm)
        self._forget()
        self._applied = action == "apply"
        if self._applied and not guard.detector.suspicious:
            self._sound = state.global_step
        if action == "rollback" and guard.snapshots is None:
            self._to_checkpoint(args)
        if action == "stop":
            logger.warning(f"training ends here: {guard.message}")
            control.should_training_stop = True
        if action != "apply" or self._flagged:
            # How Accelerate says that an optimizer did not step; Trainer then leaves the scheduler alone.
            kwargs["optimizer"]._is_overflow = self._flagged = action != "apply"

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Mark the step as skipped: a gradient scaler reports no overflow, but without gradients nothing stepped."""
        if not self._applied:
            kwargs["optimizer"]._is_overflow = True

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """After the scheduler: take a snapshot if one is due."""
        if self._applied:
            self._running().after_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add this process's generators to the checkpoint; `state` has written the rest, if it was asked here."""
        if not args.should_save:
            self._save_snapshots(args, state)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the hooks off; `guard` stays, with its events."""
        self.close()
        if self._flagged:
            kwargs["optimizer"]._is_overflow = self._flagged = False

    def close(self) -> None:
        """Take the forward hooks off the model."""
        if self._hook is not None:
            self._hook.close()
        self._hook = self._run = None
        self._forget()

    # --- state in Trainer's checkpoints -------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For `trainer_state.json`: settings and the guard's state.

        Trainer asks for it just before it writes that file, which is the last of a checkpoint and marks it as whole,
        and then deletes older ones; so this is where the snapshots are written.
        """
        if self._run is not None:
            self._save_snapshots(*self._run)
        thresholds = asdict(self.thresholds)
        saved = self.saved_state if self.guard is None else self.guard.state_dict()
        options = {"raise_on_stop": self.raise_on_stop, "save_snapshots": self.save_snapshots}
        return {
            "args": {"thresholds": {**thresholds, "windows": list(thresholds["windows"])}, **self.settings, **options},
            "attributes": {"saved_state": saved},
        }

    # --- inside -------------------------------------------------------------------------------------------------

    def _save_snapshots(self, args: TrainingArguments, state: TrainerState) -> None:
        folder, guard = _checkpoint(args, state.global_step), self.guard
        if guard is not None and guard.snapshots is not None and self.save_snapshots and folder.is_dir():
            guard.snapshots.to_disk(folder, rank=args.process_index)

    def _running(self) -> DivergenceGuard:
        if self.guard is None:
            raise RuntimeError("GuardCallback was added after training had begun; pass it when the trainer is made")
        return self.guard

    def _make(self, args: TrainingArguments, state: TrainerState, model: Any, optimizer: Any, scheduler: Any) -> None:
        sharded = sharder(raw(optimizer))
        if getattr(args, "deepspeed", None) or sharded == "DeepSpeed":
            raise ValueError(
                "DeepSpeed steps the optimizer inside backward, before a guard can judge; train under DDP"
            )
        self._controlled = getattr(raw(optimizer), "_adaptive_lr", lambda: None)()
        if sharded:
            logger.warning(f"{sharded}: the guard takes no snapshots; bad updates are skipped and the LR is cut")
        settings = {**self.settings, "safe_drift": self._safe_drift(model)}
        self.guard = DivergenceGuard(
            model,
            optimizer,
            scheduler=self._controlled if self._controlled is not None else scheduler,
            scaler=getattr(optimizer, "scaler", None),
            detector=Detector(self.thresholds),
            **{**settings, "snapshot_every": None if sharded else self._interval(state)},
            rewind_schedule=False,
            raise_on_stop=self.raise_on_stop,
            folder=Path(str(args.output_dir)) / "last_good",
            on_event=self._happened,
        )
        self._writer = EventWriter(Path(str(args.output_dir)) / EVENTS_NAME) if state.is_world_process_zero else None
        self._applied, self._flagged, self._place = False, False, self._step(state)
        if state.global_step > 0:
            self._resume(args, state)
        self._run = (args, state)
        if self._writer is not None:
            self._writer.start(self.guard.updates)
        self._hook = ForwardHook(model, self._losses)
        if not self.guard.stopped:
            self.guard.start()

    def _interval(self, state: TrainerState) -> int:
        """A rollback should lose little of a short run, and snapshots cost little in a long one."""
        every: int | None = self.settings["snapshot_every"]
        return min(50, max(5, state.max_steps // 20)) if every is None else every

    def _safe_drift(self, model: Any) -> float:
        drift: float | None = self.settings["safe_drift"]
        config = getattr(model, "config", None)
        pretrained = bool(getattr(config, "name_or_path", "") or getattr(config, "_name_or_path", ""))
        return (_PRETRAINED_DRIFT if pretrained else _SCRATCH_DRIFT) if drift is None else drift

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        kept: Any = state.stateful_callbacks  # declared otherwise; as a checkpoint it is a dict
        saved = kept.get(type(self).__name__, {})
        saved = saved[0] if isinstance(saved, list) else saved
        found = saved.get("attributes", {}).get("saved_state")
        guard = self._running()
        if found is None:
            logger.warning("the checkpoint was saved without a guard; it starts afresh")
            kept[type(self).__name__] = self.state()  # Trainer saves only the states that it finds there
            return
        folder = self.resumed_from or _checkpoint(args, state.global_step)
        if guard.snapshots is not None and (folder / SNAPSHOT_NAME).is_file():
            guard.snapshots.from_disk(folder, rank=args.process_index)
        guard.load_state_dict(found)

    def _step(self, state: TrainerState) -> int:
        """The trace's index of the update about to be applied, for the report's time axis."""
        return self._controlled.updates if self._controlled is not None else state.global_step

    def _happened(self, event: Event) -> None:
        event["step"] = self._place
        if event["action"] != "skip":
            logger.warning(sentence(event))
        if self._writer is not None:
            self._writer(event)

    def _to_checkpoint(self, args: TrainingArguments) -> None:
        """Sharded weights: back to the last checkpoint, where a trainer can load one in mid-run."""
        # Trainer also saves while updates are being skipped: such a checkpoint has the damage in it.
        sound = self._sound - self._running().detector.unseen
        folders = [_checkpoint(args, step) for step in range(sound, 0, -1)]
        folder = next((folder for folder in folders if (folder / "trainer_state.json").is_file()), None)
        if self.restore_checkpoint is None or folder is None:
            logger.warning("there is no checkpoint to go back to; training continues with a lower learning rate")
            return
        self.restore_checkpoint(folder)
        logger.warning(f"went back to {folder}")


def _checkpoint(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{step}"
