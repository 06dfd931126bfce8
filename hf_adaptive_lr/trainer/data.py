"""The controller's own data: a held-out share of the training set, extra batches, and losses on them.

Batch number i is the same whenever it is asked for, so nothing has to be remembered to resume a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import Trainer

from ..controller import Controller
from ..sensors.replay import frozen_generators, undisturbed
from .losses import has_tensors, unlogged

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object  # at run time the mixin composes with any Trainer subclass


class ExtraBatches:
    """Random batches of a map-style data set, each a pure function of its number, on the CPU.

    `batch_size` rows, at least 1, are drawn with replacement and collated. Give each use and each rank a seed of its
    own. ValueError: the data set has no length (a stream), or is empty.
    """

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], Any], batch_size: int, seed: int | tuple[int, ...]
    ) -> None:
        if not hasattr(dataset, "__len__") or not len(dataset):
            raise ValueError(
                "the controller needs batches beside training's own, and the data set has no length; pass a map-style "
                "data set with at least one row"
            )
        self._dataset, self._collate, self._batch_size = dataset, collate, batch_size
        self._seed = (seed,) if isinstance(seed, int) else seed

    def __call__(self, number: int) -> Any:
        """Batch `number`, collated, on the CPU."""
        entropy = np.random.SeedSequence((*self._seed, number)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy[0]))
        rows = torch.randint(len(self._dataset), (self._batch_size,), generator=generator).tolist()
        return self._collate([self._dataset[row] for row in rows])


def hold_out(dataset: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Split a map-style data set in two, at random but always alike for one seed: for training, for the controller.

    The controller gets `share`, in (0, 0.5], at least one example; the type stays where the data set has `select`.
    ValueError: the data set has no length (a stream), or fewer than two examples.
    """
    if dataset is None or not hasattr(dataset, "__len__"):
        raise ValueError(
            "the controller needs evaluation losses and the training set has no length; pass controller_dataset="
        )
    size = len(dataset)
    if size < 2:
        raise ValueError(f"a training set of {size} cannot be split; pass controller_dataset=")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, int(size * share))
    own, rest = sorted(order[:count]), sorted(order[count:])
    if hasattr(dataset, "select"):
        return dataset.select(rest), dataset.select(own)
    base: Dataset[Any] = dataset
    return Subset(base, rest), Subset(base, own)


class ControllerData(_Trainer):
    """The part of `AdaptiveLRMixin` that computes losses again, and on other batches than the one that trains."""

    args: Any  # TrainingArguments, with or without the controller's fields
    train_dataset: Any
    controller_dataset: Any
    _gathers: nn.Module | None = None
    controller_data: str | None = None
    """Where the controller's data comes from, in words; None where it needs none."""

    def _prepare_controller_data(self, controller: Controller) -> None:
        """Set a part of the training set aside for a controller that needs data and was given none."""
        if not controller.needs & {"eval_loss", "meta_inner"}:
            self.controller_data = None
        elif self.controller_dataset is not None:
            self.controller_data = "controller_dataset"
        else:
            share = getattr(self.args, "controller_split", 0.1)
            self.train_dataset, self.controller_dataset = hold_out(self.train_dataset, share, self.args.seed)
            self.controller_data = f"seeded split of the training set ({share:g})"
            log = logger.warning if self.is_world_process_zero() else logger.debug
            log(
                "'%s' needs data of its own: %d of the training set's %d examples are held out for it and not trained "
                "on (controller_split=%g); the eval_dataset is not used for it. Pass controller_dataset= to the "
                "trainer to train on all of them",
                controller.controller_type,
                len(self.controller_dataset),
                len(self.controller_dataset) + len(self.train_dataset),
                share,
            )

    def _extra_loss(self, dataset: Any, use: int) -> Callable[[int], Tensor]:
        """Loss of batch i of a stream beside training's own, on this rank."""
        seed = (self.args.seed, use, self.args.process_index)
        size = self.args.train_batch_size
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="controller")
            batches = ExtraBatches(dataset, self.data_collator, size, seed)
        else:
            collate = self._get_collator_with_removed_columns(self.data_collator, description="controller")
            batches = ExtraBatches(dataset, collate, size, seed)
        with frozen_generators(self.args.device):
            ready = has_tensors(batches(0))
        if not ready:
            raise ValueError(
                f"the controller needs the loss of other batches than the one that trains, and {type(self).__name__} "
                "makes its batches from rows while it trains (GRPO and RLOO generate them), so there are none; use a "
                "controller that does not need it"
            )

        def loss(number: int) -> Tensor:
            with unlogged(self):
                return self._loss(self._prepare_inputs(batches(number)))

        return loss

    def _computing_model(self) -> nn.Module:
        """The module without its wrapper, unless that gathers the weights, as the first FSDP's does."""
        model: nn.Module = self._gathers or self.accelerator.unwrap_model(self.model)
        return model

    def _loss(self, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        # DDP's wrapper would start a collective; alone, the compiled module gives the same bits as the training pass.
        model = self.model_wrapped if self.accelerator.num_processes == 1 else self._computing_model()
        loss: Any = self.compute_loss(model, inputs, *args, **kwargs)
        return (loss if isinstance(loss, Tensor) else loss[0]).mean()

    def _replay(self, repeat: Callable[..., Any], num_items_in_batch: Any) -> Callable[[], Tensor]:
        """Mean loss of a micro-batch, from `repeat`, which makes the call of `compute_loss` once more."""
        # A loss that is normalised over the whole update is the micro-batch's share of it; the others are its mean.
        scaled: bool | None = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            has_share = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = has_share or bool(self.compute_loss_func)
        share = self.current_gradient_accumulation_steps if scaled else 1

        def replay() -> Tensor:
            with unlogged(self):
                loss: Tensor = repeat(self._loss)
                return loss * share

        return replay

    @torch.no_grad()
    def _mean_loss(self, model: nn.Module, dataset: Any) -> float:
        """Mean loss per example in evaluation mode, equal on all ranks; neither training nor its log notice it."""
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        training = [module for module in model.modules() if module.training]
        with undisturbed(self.args.device, model), unlogged(self):
            model.eval()
            try:
                for inputs in self._each_once(dataset):
                    inputs = self._prepare_inputs(inputs)
                    rows = _rows(inputs)
                    loss = self._loss(inputs).double()
                    total += torch.stack((loss * rows, torch.full_like(loss, rows)))
            finally:
                for module in training:
                    module.training = True
        summed = self.accelerator.reduce(total, reduction="sum")
        return float(summed[0] / summed[1])

    def _each_once(self, dataset: Any) -> DataLoader[Any]:
        # Ranks with fewer batches must not be padded with copies.
        even, self.accelerator.even_batches = self.accelerator.even_batches, False
        try:
            return self.get_eval_dataloader(dataset)
        finally:
            self.accelerator.even_batches = even


def _rows(batch: Any) -> int:
    """Length of the first tensor of a batch of any kind; ValueError where there is none."""
    if isinstance(batch, Tensor):
        return batch.shape[0]
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    for part in parts:
        if has_tensors(part):
            return _rows(part)
    raise ValueError("a batch of the controller's data has no tensor in it, so its rows cannot be counted")
