"""A trainer for each way of training a controller, by name, with an untrained controller in it."""

from __future__ import annotations

import json
from typing import Any

METHODS = ("universal", "ppo", "evolution", "bilevel", "schedule_ppo")
"""`universal` trains the net of that type as the bundled `universal_1` was, `schedule_ppo` trains `ppo_schedule` as
its paper does; the others train `gru` on any suite."""

PRESETS = ("paper", "released", "paired")


def make_trainer(
    method: str,
    *,
    hidden_size: int,
    seed: int,
    preset: str = "paper",
    every_steps: int | None = None,
    recurrent: bool = False,
    controller_kwargs: str = "{}",
) -> Any:
    """A trainer with an untrained controller.

    Args:
        method: one of [`METHODS`].
        hidden_size: width of the controller's network.
        seed: of its first weights and of all random draws.
        preset: one of [`PRESETS`]; this and the next two are for `schedule_ppo` alone. `paired` starts close to a
            constant rate, the others where the net's first draws are: mostly where every action is clipped.
        every_steps: updates between decisions; None for 5, or for the preset's where that is `released`.
        recurrent: whether the policy is an LSTM cell.
        controller_kwargs: config fields of `universal` to change, as a JSON object.

    Raises:
        ValueError: `controller_kwargs` is no JSON object, or has a field or value that the controller does not take.

    Example:
        >>> from hf_adaptive_lr.meta.suites import SUITES
        >>> trainer = make_trainer("ppo", hidden_size=4, seed=0)
        >>> sorted(trainer.iterate(SUITES["quadratic"].problems("train", 0, 4), 0))
        ['diverged', 'inner_steps', 'policy_loss', 'return', 'value_loss']
    """
    from ..controllers import GRUController, PPOSchedule, Universal
    from ..hub.config import configure
    from .bilevel import BilevelTrainer
    from .evolution import EvolutionTrainer
    from .ppo import PPOConfig, PPOTrainer
    from .schedule_ppo import ScheduleConfig, SchedulePPOTrainer

    width: dict[str, Any] = {"hidden_size": hidden_size}
    if method == "schedule_ppo":
        if every_steps is None and preset != "released":
            every_steps = 5
        shape = {**width, "recurrent": recurrent}
        rhythm = {} if every_steps is None else {"every_steps": every_steps}
        bias, gain = (0.15, 0.01) if preset == "paired" else (0.0, 1.0)
        params = PPOSchedule.random_params(**shape, bias=bias, gain=gain, seed=seed)
        start = PPOSchedule.from_preset(
            "released" if preset == "released" else "paper", **shape, **rhythm, params=params
        )
        return SchedulePPOTrainer(start, ScheduleConfig.from_preset(preset), seed=seed)
    if method == "universal":
        universal = Universal(**width, params=Universal.random_params(**width, seed=seed))
        trainer = PPOTrainer(configure(universal, _changes(controller_kwargs)), PPOConfig.for_universal(), seed=seed)
        trainer.method = "universal"
        return trainer
    trainers = {"ppo": PPOTrainer, "evolution": EvolutionTrainer, "bilevel": BilevelTrainer}
    return trainers[method](GRUController(**width, params=GRUController.random_params(**width, seed=seed)), seed=seed)


def _changes(controller_kwargs: str) -> dict[str, Any]:
    try:
        changes = json.loads(controller_kwargs)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"controller_kwargs={controller_kwargs[:200]!r} is not valid JSON: {error}") from error
    if not isinstance(changes, dict) or "hidden_size" in changes:
        raise ValueError(
            f"controller_kwargs={controller_kwargs!r} must be a JSON object; --hidden-size is for the width"
        )
    return changes
