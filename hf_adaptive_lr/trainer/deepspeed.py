"""Trainer under DeepSpeed, whose backward pass makes the update: what a controller needs is said ahead of that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ..sensors.deepspeed import check_config


def check_deepspeed(accelerator: Any) -> None:
    """ValueError, by name, for a DeepSpeed config under which AdaptiveLRTrainer cannot steer; nothing without one."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None:
        return
    check_config(plugin.deepspeed_config)
    if "optimizer" in plugin.deepspeed_config:
        raise ValueError(
            "the DeepSpeed config has 'optimizer', which DeepSpeed would make after the controller is put in charge; "
            "take it out, and Trainer makes the optimizer (optim=, learning_rate=)"
        )


@contextlib.contextmanager
def ahead_of_backward(accelerator: Any, hear: Callable[[Tensor], None]) -> Iterator[None]:
    """Inside, `hear` is called with each loss that `accelerator.backward` is about to differentiate."""
    backward, others = accelerator.backward, vars(accelerator).get("backward")

    def hearing(loss: Tensor, **kwargs: Any) -> None:
        hear(loss.detach())
        backward(loss, **kwargs)

    vars(accelerator)["backward"] = hearing  # on the instance, for this call alone
    try:
        yield
    finally:
        if others is None:
            del vars(accelerator)["backward"]
        else:
            vars(accelerator)["backward"] = others
