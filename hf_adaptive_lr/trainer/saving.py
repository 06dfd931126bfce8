"""Part of AdaptiveLRTrainer: saves checkpoints so that one is always whole, resumes from whole ones only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_utils import rotate_checkpoints

from ..artifacts import STATE_NAME
from ..scheduler.controlled_lr import ControlledLR
from .checkpoints import check_checkpoint, fault, newest_whole, note_position, numbered, sync


class WholeCheckpoints:
    """Part of `AdaptiveLRMixin`: the order in which a checkpoint is written, and what may be resumed."""

    args: Any
    state: Any
    lr_scheduler: Any

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, from a checkpoint that continues its run exactly, or from the beginning.

        Args:
            resume_from_checkpoint: a checkpoint's folder; True for the newest whole one in the output folder.
            *args: the rest are Trainer's.
            **kwargs: the same.

        Raises:
            ValueError: the checkpoint lacks a file (`save_only_model=True` leaves out three), one is cut short, or its
                parts have counted different updates; or True, and there is none.
        """
        if isinstance(resume_from_checkpoint, bool):
            resume_from_checkpoint = self._newest_checkpoint() if resume_from_checkpoint else None
        if resume_from_checkpoint is not None:
            check_checkpoint(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def _newest_checkpoint(self) -> str:
        folder = Path(str(self.args.output_dir))
        found = newest_whole(folder)
        if found is None:
            newest = next((f"; {path.name}: {fault(path)}" for _, path in numbered(folder)), "")
            raise ValueError(f"'{folder}' has no whole checkpoint to resume from{newest}")
        return str(found)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, bring it to the disk, and only then delete older ones."""
        run_dir = Path(self._get_output_dir(trial=trial))  # type: ignore[attr-defined]
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:  # that of an earlier run would call a mixture whole
            (folder / STATE_NAME).unlink(missing_ok=True)
        if isinstance(self.lr_scheduler, ControlledLR):
            note_position(self.state, self.lr_scheduler.updates)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            sync(folder)
            rotate_checkpoints(str(run_dir), limit, self.state.best_model_checkpoint, use_mtime=True)
