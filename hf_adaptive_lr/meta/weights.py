"""Parts that the trainers share: a controller's weights under Adam, and the settings that a resumed training needs."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..controller import Controller
from ..distributed import average_tensors


class WeightTrainer:
    """Base of the trainers that move a controller's weights along a gradient with Adam.

    `seed` is of all random draws of the trainer; ValueError for a controller without weights.
    """

    def __init__(self, controller: Controller, lr: float, betas: tuple[float, float], seed: int) -> None:
        if not controller.params:
            raise ValueError(f"{type(controller).__name__} has no weights to train")
        self.start, self.seed = controller, seed
        self.weights = {k: v.detach().clone().requires_grad_() for k, v in controller.params.items()}
        self._optimizer = torch.optim.Adam(list(self.weights.values()), lr=lr, betas=betas)

    def controller(self) -> Controller:
        """The controller with its current weights."""
        return self.start.replace(params={k: v.detach().clone() for k, v in self.weights.items()})

    def state_dict(self) -> dict[str, Any]:
        """All values that training changes, as tensors and numbers; the same on every process."""
        weights = {k: v.detach().clone() for k, v in self.weights.items()}
        return {"weights": weights, "optimizer": copy.deepcopy(self._optimizer.state_dict())}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`; ValueError for one of a controller with other weights."""
        shapes = {name: tuple(value.shape) for name, value in self.weights.items()}
        found = {name: tuple(value.shape) for name, value in state["weights"].items()}
        if found != shapes:
            raise ValueError(f"the state is of another controller: it has weights {found}, not {shapes}")
        for name, value in self.weights.items():
            value.copy_(state["weights"][name])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    @torch.no_grad()
    def descend(self, gradients: Mapping[str, Tensor], lr: float | None = None) -> float:
        """Average the gradients, by name, over all processes and take one step of Adam; the norm of the average.

        `lr` is the learning rate of this step; None keeps the one before.
        """
        averaged = [gradients[name].clone() for name in self.weights]
        average_tensors(averaged)
        for value, gradient in zip(self.weights.values(), averaged, strict=True):
            value.grad = gradient
        if lr is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
        self._optimizer.step()
        return float(torch.stack([gradient.square().sum() for gradient in averaged]).sum().sqrt())


def settings_of(controller: Controller, config: Any) -> str:
    """The settings of a training, controller's and trainer's, as JSON with sorted keys."""
    return json.dumps({**controller.config(), **asdict(config)}, sort_keys=True)


def check_settings(saved: str, mine: str) -> None:
    """Fails fast for a checkpoint of a training with other settings; the ValueError names both."""
    if saved != mine:
        raise ValueError(f"the checkpoint is of a training with {saved}, not {mine}; resume with the same options")
