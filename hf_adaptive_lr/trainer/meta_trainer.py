"""MetaLRTrainer: a Trainer that learns its learning-rate schedule while it trains (Shu et al. 2020, MLR-SNet)."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ..controller import Controller
from ..controllers import MLRSNet
from .mixin import AdaptiveLRTrainer


class MetaLRTrainer(AdaptiveLRTrainer):
    """`AdaptiveLRTrainer` with an MLR-SNet that is learned inside the run; its meta set is `controller_dataset=`.

    Every `meta_every`-th update the net takes one step on the loss of a meta batch, which costs one more forward and
    backward pass there. Before the first update the mean loss over the training set is measured, from which the scale
    gamma of the learning rates follows; with `gamma` or `initial_loss` in the controller's config it is not.

    Args:
        controller: an [`MLRSNet`] with `meta_learn=True`, by default one with the paper's settings, which meta-learns
            every 300 updates: a shorter run should say `MLRSNet(meta_learn=True, meta_every=...)`.
        controller_dataset: clean data from which the schedule is learned; by default a seeded tenth of the training
            set, which is then not trained on. Never the `eval_dataset`.

    Raises:
        ValueError: another controller, or one that does not learn.

    Example:
        ```python
        trainer = MetaLRTrainer(model=model, args=args, train_dataset=train, controller_dataset=meta)
        trainer.train()
        trainer.learned_controller().save_pretrained("my-schedule")   # frozen, for other runs
        ```
    """

    def __init__(self, *args: Any, controller: Controller | str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, controller=MLRSNet(meta_learn=True) if controller is None else controller, **kwargs)
        chosen = self.controller
        if not isinstance(chosen, MLRSNet) or not chosen.meta_learn:
            raise ValueError(
                f"MetaLRTrainer learns an MLR-SNet and got '{chosen.controller_type}'; pass MLRSNet(meta_learn=True), "
                "or use AdaptiveLRTrainer for a frozen one"
            )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        """One micro-batch; before the first of a new run the training set's mean loss is measured."""
        scheduler, net = self.lr_scheduler, self._net
        if scheduler.updates == 0 and not self._measured and net.gamma is None and net.initial_loss is None:
            loss = self._mean_loss(model, self.train_dataset)
            scheduler.change_controller_state(lambda state: net.with_initial_loss(state, loss))
            self._measured = True
        return super().training_step(model, inputs, num_items_in_batch)

    _measured = False

    @property
    def _net(self) -> MLRSNet:
        net: MLRSNet = self.lr_scheduler.controller
        return net

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """See [`AdaptiveLRTrainer`]; a new run measures its initial loss again."""
        self._measured = False
        scheduler = super().create_scheduler(*args, **kwargs)
        total, every = scheduler.run.total_steps, self._net.meta_every
        if total is not None and every > total:
            warnings.warn(
                f"meta_every={every} and a run of {total} updates: the schedule will never be learned from; pass "
                "controller=MLRSNet(meta_learn=True, meta_every=...) with a smaller one",
                UserWarning,
                stacklevel=2,
            )
        return scheduler

    def learned_controller(self) -> MLRSNet:
        """The schedule that this run has learned, as a frozen controller with three snapshots (Shu et al., meta-test).

        Raises:
            ValueError: `train()` has not begun.
        """
        if self.lr_scheduler is None:
            raise ValueError("nothing was learned yet; call train() first")
        return self._net.harvest(self.lr_scheduler.controller_state)
