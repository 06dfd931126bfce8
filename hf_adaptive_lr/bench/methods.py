"""The methods that the benchmark compares, as values: adding a method is one entry of `METHODS`.

A method is a schedule of `Trainer`'s, a controller of ours, or an optimizer that needs no schedule. Each has one
configuration for all tasks: that of its class, its package or its paper. What needs a learning rate and is not tuned
has that of the `rule` of thumb, so a controller is measured by what it makes of the rate that a user would have given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..auto import PRETRAINED
from .method import REPLAY, TRAINER_LR, WARMUP, Config, Method, loaded
from .tasks import TASKS

# --- the methods ----------------------------------------------------------------------------------------------------


def replay(of: Method) -> Method:
    """The control that shows whether feedback matters: the mean schedule of a method's other seeds, open loop."""
    return Method(
        name=f"{REPLAY}{of.name}",
        text=f"mean schedule of `{of.name}`, open loop",
        controller="replay",
        lr=of.lr,
        replay_of=of.name,
    )


def third_party(source: str) -> Method:
    """An entry for any controller: a name, a folder or a repository of the Hub, as [`AutoController`] takes it."""
    controller, short = loaded(source), source.rstrip("/").split("/")[-1]
    return Method(
        name=short if source.startswith((".", "/")) and short not in METHODS else f"{source} (given)",
        text=f"`{controller.controller_type}` given on the command line",
        controller=source,
        weights=True,
    )


def _with_replay(**fields: Any) -> tuple[Method, Method]:
    method = Method(**fields)
    return method, replay(method)


def _bundled(name: str, text: str, **more: Any) -> tuple[Method, ...]:
    """A bundled controller and its replay; nothing where this version does not bundle it."""
    there = (PRETRAINED / name).is_dir()
    return _with_replay(name=name, text=text, controller=name, weights=True, **more) if there else ()


def _variant(how: str, text: str, config: Config | None = None, **more: Any) -> Method:
    """`universal` in another way, to see what it makes of it: on development tasks alone."""
    name = f"universal {how}"
    return Method(name=name, text=text, controller="update_size", config=config or {}, part_of="universal", **more)


# transformers gives GreedyLR a min_lr of 1e-3: from most rates it can only rise. Repaired, it may fall a
# thousandfold, eps, the smallest change that is made, is no longer of the size of the learning rates, and it moves
# within the twenty evaluations of a run.
_REPAIRED = {"min_lr": TRAINER_LR / 1000, "eps": 1e-12, "patience": 2}

RHO_BY_KIND = {"pretrained": 0.001, "adapter": 0.016, "scratch": 0.016}
"""The `rho` of `relative`."""
RELATIVE_WARMUP = 0.05
"""Its warm-up, the default of `universal`, too."""
_OLD_TASKS = ("20newsgroups", "fashion-mnist", "mnist-5000")
"""Data of the tasks on which earlier versions were chosen."""
_DEVELOPMENT = tuple(dict.fromkeys(task.data for task in TASKS.values() if task.suite == "development"))

_PRETRAINED: dict[str, Any] = {"kinds": ("pretrained",)}
_FRESH: dict[str, Any] = {"kinds": ("adapter", "scratch")}
_VARIANTS = (
    _variant("without feedback", "its first guess alone", {"gain": 0.0}),
    _variant("without the usual rate", "the relative rate alone from scratch", {"usual": 0.0}, kinds=("scratch",)),
    _variant("without length", "one first size for all lengths", {"length_power": 0.0}),
    _variant("all fresh", "pretrained weights are taken for fresh ones", {"start": "fresh"}, **_PRETRAINED),
    _variant("all pretrained", "fresh weights are taken for pretrained ones", {"start": "pretrained"}, **_FRESH),
    _variant("told 4x", "told four times the length, cooled down over the last fifth", told=4.0, cooldown=0.2),
    _variant(
        "told no length",
        "of unknown length, cooled down over the last fifth",
        arguments={"anytime": True},
        told=2.0,
        cooldown=0.2,
    ),
)
"""`universal` without a part of it, and in runs whose length it was told wrong."""

TUNED_METHODS = (
    Method(name="linear", text="linear to zero, tuned", lr="tuned"),
    Method(name="linear_warmup", text="the same after 6 % warm-up, tuned", warmup=WARMUP, lr="tuned"),
    Method(name="cosine", text="cosine to zero, tuned", schedule="cosine", lr="tuned"),
    Method(
        name="cosine_warmup",
        text="the same after 6 % warm-up, tuned",
        schedule="cosine",
        warmup=WARMUP,
        lr="tuned",
    ),
)
"""Schedules whose learning rate is chosen for each task by its validation loss."""

# Prodigy's and D-Adaptation's authors advise no schedule or a cosine.
_FREE: dict[str, Any] = {"lr": 1.0, "schedule": "cosine"}
_ENTRIES: tuple[Method, ...] = (
    *TUNED_METHODS,
    Method(
        name="rule",
        text="2e-5 whole, 2e-4 adapter, 1e-3 from scratch (SGD: 1e-3, 1e-2, 1e-2); linear, 6 % warm-up",
        warmup=WARMUP,
    ),
    Method(name="default", text="`Trainer`'s defaults: 5e-5, linear; not with SGD", lr=TRAINER_LR, not_with=("sgd",)),
    *_bundled(
        "universal",
        "this library's default, relative updates of a known size, raised where they prove short; needs no LR",
        chosen_on=_DEVELOPMENT,
    ),
    *_VARIANTS,
    *_bundled("universal_1", "its first version, a net; needs no LR", chosen_on=_OLD_TASKS),
    Method(
        name="relative",
        text="linear decay of the relative update, .001 pretrained, .016 else; needs no LR",
        controller="relative",
        config_by_kind={kind: {"rho": rho} for kind, rho in RHO_BY_KIND.items()},
        arguments={"warmup_steps": RELATIVE_WARMUP},
        chosen_on=(*_OLD_TASKS, "digits", "spam"),
    ),
    Method(
        name="relative_walk",
        text="`relative` with random steps, the placebo of `universal_1`",
        controller="relative",
        config={"rho": 0.005, "walk": 0.3},
    ),
    Method(name="prodigy", text="Prodigy (Mishchenko & Defazio 2023)", optimizer="prodigy", **_FREE),
    Method(
        name="prodigy_half",
        text="the same, d_coef=0.5",
        optimizer="prodigy",
        optimizer_kwargs={"d_coef": 0.5},
        **_FREE,
    ),
    Method(
        name="prodigy_double",
        text="the same, d_coef=2",
        optimizer="prodigy",
        optimizer_kwargs={"d_coef": 2.0},
        **_FREE,
    ),
    Method(
        name="prodigy_plus",
        text="prodigy-plus-schedule-free 2, without clipping, as it says",
        optimizer="prodigy_plus",
        arguments={"max_grad_norm": 0.0},
        lr=1.0,
        schedule="constant",
    ),
    Method(
        name="schedule_free_radam",
        text='`optim="schedule_free_radam"` at the default rate of the package, 0.0025',
        arguments={"optim": "schedule_free_radam"},
        lr=0.0025,
        schedule="constant",
    ),
    Method(
        name="schedule_free_rule",
        text="the same at the rule's rate: what it replaces is the schedule",
        arguments={"optim": "schedule_free_radam"},
        schedule="constant",
    ),
    Method(name="dadapt_adam", text="D-Adapted Adam (Defazio & Mishchenko 2023)", optimizer="dadapt_adam", **_FREE),
    Method(
        name="hyperball",
        text="HyperBallAdamW at its default rate (2606.16899)",
        optimizer="hyperball",
        kinds=("pretrained", "scratch"),  # it keeps norms, and an adapter begins at a norm of 0
        lr=0.0025,
        warmup=WARMUP,
    ),
    Method(name="gen", text="GeN, every fourth update (2407.02772)", steering="gen", schedule="constant"),
    Method(name="greedy", text="transformers' `GreedyLR` as shipped", schedule="greedy", evaluates=True),
    Method(
        name="greedy_repaired",
        text="`GreedyLR` with min_lr=5e-8, eps=1e-12 and patience=2",
        schedule="greedy",
        schedule_kwargs=_REPAIRED,
        evaluates=True,
    ),
    Method(
        name="reduce_on_plateau",
        text="torch's `ReduceLROnPlateau` with patience=2",
        schedule="reduce_lr_on_plateau",
        schedule_kwargs={"patience": 2},
        evaluates=True,
    ),
    Method(
        name="range_test",
        text="`lr_range_test`, 100 updates on training rows; from its `l_max`, half the rate at which the loss turns "
        "up, cosine",
        steering="range_test",
        schedule="cosine",
    ),
    *_bundled("ppo_schedule", "PPO schedule (Xu et al. 2019), bundled weights"),
    *_bundled("mlr_snet", "MLR-SNet (Shu et al. 2020), bundled weights"),
    *_with_replay(name="actor_critic", text="learns inside the run (Xu et al. 2017)", controller="actor_critic"),
    Method(
        name="dsa", text="a factor for every weight, DSA-style after Chen et al. 2022", controller="constant", dsa={}
    ),
    *_with_replay(name="plrs", text="probabilistic LR (Devapriya et al. 2024)", controller="plrs"),
    *_with_replay(name="hypergradient", text="hypergradient descent (Baydin et al. 2018)", controller="hypergradient"),
    *_with_replay(name="plateau", text="our plateau by ranks of training losses", controller="plateau"),
    Method(
        name="random_walk",
        text="random walk from the rule's rate, the placebo",
        controller="random_walk",
        arguments={"controller_decisions": 20},
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ENTRIES}
"""Every method by its name."""
