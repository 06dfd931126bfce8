"""Part of AdaptiveLRTrainer: saves checkpoints so that one is always whole, resumes from whole ones only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers.trainer_utils import rotate_checkpoints

from ..artifacts import STATE_NAME, numbered_checkpoints
from ..scheduler.controlled_lr import ControlledLR
from .checkpoints import (
    Expected,
    check_checkpoint,
    fault,
    generator_names,
    generators,
    newest_whole,
    sync,
)

_OF_WEIGHTS = ("_save", "_load_from_checkpoint")  # who overrides one may give the weights any name


class WholeCheckpoints:
    """Part of `AdaptiveLRMixin`: the order in which a checkpoint is written, and what may be resumed."""

    args: Any
    state: Any
    lr_scheduler: Any
    accelerator: Any
    _limit: int | None = None

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
            check_checkpoint(Path(resume_from_checkpoint), self._expected())
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def _newest_checkpoint(self) -> str:
        folder, expected = Path(str(self.args.output_dir)), self._expected()
        found = newest_whole(folder, expected)
        if found is None:
            newest = next((f"; {path.name}: {fault(path, expected)}" for _, path in numbered_checkpoints(folder)), "")
            raise ValueError(f"'{folder}' has no whole checkpoint to resume from{newest}")
        return str(found)

    def _expected(self) -> Expected:
        ours = [
            cls for cls in type(self).__mro__ if cls.__module__.partition(".")[0] in ("hf_adaptive_lr", "transformers")
        ]
        others = [cls for cls in type(self).__mro__ if cls not in ours]
        return Expected(
            processes=None if self.args.save_on_each_node else self.args.world_size,  # then a folder has its node's
            scaler=getattr(self.accelerator, "scaler", None) is not None,
            weights=not any(name in vars(cls) for name in _OF_WEIGHTS for cls in others),
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, bring it to the disk, and only then delete older ones."""
        run_dir = Path(self._get_output_dir(trial=trial))  # type: ignore[attr-defined]
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:  # what is there of an earlier run would be called whole, or be of more processes
            (folder / STATE_NAME).unlink(missing_ok=True)
            for name in generators(folder) - generator_names(self.args.world_size):
                (folder / name).unlink()
        if isinstance(self.lr_scheduler, ControlledLR):
            self.lr_scheduler.global_step = self.state.global_step
        self._limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self.args.save_total_limit, self._limit = self._limit, None
        self.accelerator.wait_for_everyone()  # for the files of the others
        if self.args.should_save:
            sync(folder)
            limit = self.args.save_total_limit
            rotate_checkpoints(str(run_dir), limit, self.state.best_model_checkpoint, use_mtime=True)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's own."""
        with self._limit_in_place():
            super().save_model(*args, **kwargs)  # type: ignore[misc]

    def _push_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._limit_in_place():
            super()._push_from_checkpoint(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _limit_in_place(self) -> Iterator[None]:
        """The arguments as the user made them, for these write them to `training_args.bin`."""
        hidden = self.args.save_total_limit
        if hidden is None:
            self.args.save_total_limit = self._limit
        try:
            yield
        finally:
            self.args.save_total_limit = hidden
