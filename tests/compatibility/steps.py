"""Too large a step in reinforcement learning and preference training: what it does, and which signal tells of it.

Rows and parts of the page of `rollouts.py`, whose command makes them. `rate_run` is the recipe of `examples/grpo.py`
at a multiple of its learning rate. `signal_run` is one of TRL's trainers on the same words, at a constant rate with
every signal written down that could tell, or with `kl_target`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import random
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import trl
from datasets import Dataset
from tqdm import tqdm
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, set_seed

from examples import grpo
from hf_adaptive_lr.auto import AutoController
from hf_adaptive_lr.bench.rows import Row
from hf_adaptive_lr.controllers.kl_target import KLTarget
from hf_adaptive_lr.hub.markdown import table
from hf_adaptive_lr.trainer.callback import AdaptiveLRCallback
from hf_adaptive_lr.trainer.mixin import AdaptiveLRMixin
from tests.controllers_for_tests import Watcher

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL, TIMES = 3e-3, (1, 10, 100)
"""The rate that is right for the recipe, of those that were tried by hand, and its multiples."""
METHODS = ("constant", "universal", "kl_target", "kl_target, as rl_games")
UPDATES, SHORT, LAST, EARLY = 200, 100, 20, 5
"""Length of a run of the recipe and of others, updates at its end that are averaged, first ones of which to tell."""
TRAINERS = ("GRPO", "RLOO", "DPO", "KTO", "Reward")
SEEN = ("kl", "update_ratio", "grad_norm", "gain_ratio")
LOGGED = {"kl": "logged `kl`", "entropy": "logged `entropy`"}
PICTURE = "rollouts_rates.png"


def controller_of(method: str) -> Any:
    """The controller that a line of the table names."""
    return KLTarget.from_preset("rl_games") if "rl_games" in method else AutoController.from_pretrained(method)


@contextlib.contextmanager
def quietly() -> Iterator[Path]:
    """A folder that is removed, without the trainers' prints and warnings."""
    quiet = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
    ):
        warnings.simplefilter("ignore")
        yield Path(folder)


def trainer_of(
    name: str, controller: Any, folder: Path, *, times: float, seed: int, updates: int, callback: bool = False
) -> Any:
    """One of TRL's trainers on the words of the recipe, through the subclass or the callback."""
    set_seed(seed)
    model, tokenizer = grpo.tiny_model()
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": updates,
        "learning_rate": times * USUAL,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 64,
        "logging_steps": 1,
        "seed": seed,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    parts: dict[str, Any] = {"processing_class": tokenizer}
    if name in ("GRPO", "RLOO"):
        model.save_pretrained(folder / "start")  # a reference model is loaded by its name
        parts |= {"train_dataset": grpo.prompts(), "reward_funcs": grpo.repeats}
        parts["model"] = LlamaForCausalLM.from_pretrained(folder / "start")
        usual |= {"num_generations": 8, "max_completion_length": grpo.LENGTH}
        usual["beta"] = 0.01 if isinstance(controller, Watcher) else 0.0  # without one no KL is logged
    else:
        parts |= {"model": model, "train_dataset": _pairs(name, seed)}
        usual |= {"max_length": 16, "per_device_train_batch_size": 16}
        if name == "Reward":
            model.config.num_labels = 1
            parts["model"] = LlamaForSequenceClassification(model.config)
        else:
            parts["ref_model"] = grpo.tiny_model()[0]
            parts["ref_model"].load_state_dict(model.state_dict())
    made, args = getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")(**usual)
    if callback:
        return made(args=args, callbacks=[AdaptiveLRCallback(controller)], **parts)
    mixed: Any = type(f"Adaptive{name}", (AdaptiveLRMixin, made), {})
    return mixed(args=args, controller=controller, **parts)


def _pairs(name: str, seed: int) -> Dataset:
    """Prompts of two words; right is to repeat the first one, wrong is another."""
    words, draw, rows = grpo.WORDS, random.Random(seed), []
    for prompt in list(grpo.prompts()["prompt"]) * 8:
        first = prompt.split()[0]
        wrong = draw.choice([word for word in words if word != first])
        rows.append({"prompt": prompt, "chosen": f" {first} {first}", "rejected": f" {wrong} {wrong}"})
    if name == "KTO":
        rows = [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for number, row in enumerate(rows)
            for side in [("chosen", "rejected")[number % 2]]
        ]
    return Dataset.from_list(rows)


# --- runs ----------------------------------------------------------------------------------------------------------


def rate_run(method: str, times: float, seed: int, updates: int = UPDATES, *, callback: bool = False) -> Row:
    """The recipe with a method: its rewards and learning rates, every update."""
    with quietly() as folder:
        controller = controller_of(method)
        trainer = trainer_of("GRPO", controller, folder, times=times, seed=seed, updates=updates, callback=callback)
        trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    return {
        "row": "rate",
        "method": method,
        "times": times,
        "seed": seed,
        "rewards": [round(reward, 4) for reward in rewards],
        "rates": [float(f"{rate:.3g}") for rate in rates],
    }


def signal_run(name: str, method: str, times: float, seed: int, updates: int = SHORT) -> Row:
    """One trainer with `constant` or `kl_target`: what became of it, and of `constant` the first signals."""
    controller = Watcher(fields=SEEN) if method == "constant" else controller_of(method)
    with quietly() as folder:
        trainer = trainer_of(name, controller, folder, times=times, seed=seed, updates=updates)
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    # Less is better: one minus the mean reward, or the loss of preferences.
    score = [1 - entry["reward"] if "reward" in entry else entry["loss"] for entry in log]
    seen: dict[str, list[float]] = {}
    if method == "constant":
        seen = {field: [d.observation[field] for d in trainer.lr_scheduler.trace] for field in SEEN}
        seen |= {LOGGED[key]: [entry[key] for entry in log] for key in LOGGED if key in log[0]}
    first = slice(1, EARLY + 1)  # the first update has none before it
    return {
        "row": "signal",
        "trainer": name,
        "method": method,
        "times": times,
        "seed": seed,
        "first": round(score[0], 4),
        "last": round(fmean(score[-LAST:]), 4),
        "signals": {key: [float(f"{value:.4g}") for value in values[first]] for key, values in seen.items()},
    }


def measure_rates(seeds: int, updates: int) -> Iterable[Row]:
    """The rows of the recipe."""
    for method, times, seed in tqdm(list(itertools.product(METHODS, TIMES, range(seeds))), unit="run"):
        yield rate_run(method, times, seed, updates)


def measure_signals(seeds: int, updates: int) -> Iterable[Row]:
    """The rows of all five trainers."""
    ways = itertools.product(TRAINERS, ("constant", "kl_target"), TIMES, range(seeds))
    for name, method, times, seed in tqdm(list(ways), unit="run"):
        yield signal_run(name, method, times, seed, min(updates, SHORT))


# --- the page ------------------------------------------------------------------------------------------------------


def rates_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean reward at the end of a run, and over all of it, at each multiple."""
    lines = []
    for method in METHODS:
        cells = []
        for times in TIMES:
            runs = [row["rewards"] for row in _found(rows, "rate", method=method, times=times)]
            cells.append(f"{fmean(fmean(run[-LAST:]) for run in runs):.2f} ({fmean(map(fmean, runs)):.2f})")
        lines.append([f"`{method}`" if "," not in method else method, *cells])
    return table(["controller", *(f"{times}x" for times in TIMES)], lines).strip()


def _found(rows: Iterable[Mapping[str, Any]], kind: str, **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["row"] == kind and all(row[key] == value for key, value in wanted.items())]


def _measured(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return [name for name in TRAINERS if any(row.get("trainer") == name for row in _found(rows, "signal"))]


def signals_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: medians of the signals of early updates at each multiple, and how well they tell the ruined runs."""
    lines = []
    for name in _measured(rows):
        runs = _found(rows, "signal", trainer=name, method="constant")
        for signal in runs[0]["signals"]:
            by = [_values([row for row in runs if row["times"] == times], signal) for times in TIMES]
            lines.append([name, signal, *(f"{median(values):.2g}" for values in by), _told(runs, signal)])
    return table(["trainer", "signal", *(f"{times}x" for times in TIMES), "tells ruined runs"], lines).strip()


def ends_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: how the runs of all trainers ended."""
    lines = []
    for name, method in itertools.product(_measured(rows), ("constant", "kl_target")):
        all_, runs = _found(rows, "signal", trainer=name), _found(rows, "signal", trainer=name, method=method)
        if not runs:  # not measured yet
            continue
        by = [[row for row in runs if row["times"] == times] for times in TIMES]
        ends = [fmean(math.nan if row["last"] is None else row["last"] for row in group) for group in by]
        cells = [f"{end:.3f}{_short(group, all_)}" for end, group in zip(ends, by, strict=True)]
        lines.append([name, f"`{method}`", f"{fmean(row['first'] for row in runs):.3f}", *cells])
    return table(["trainer", "controller", "first", *(f"{times}x" for times in TIMES)], lines).strip()


def _short(group: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> str:
    short = sum(fell_short(row, runs) for row in group)
    return f", short {short} of {len(group)}" if short else ""


def fell_short(row: Mapping[str, Any], runs: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a run came less than half as far down as the best of its trainer."""
    best = min(other["last"] for other in runs if other["last"] is not None)
    return row["last"] is None or row["last"] > (row["first"] + best) / 2


def ruined(row: Mapping[str, Any], runs: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a run fell short, at a larger rate than the best one's."""
    best = min((other for other in runs if other["last"] is not None), key=lambda other: other["last"])
    return row["times"] > best["times"] and fell_short(row, runs)


def _told(runs: Sequence[Mapping[str, Any]], signal: str) -> str:
    """Share of the pairs of an early update of a ruined run and one of another in which the ruined one's is larger."""
    bad = _values([row for row in runs if ruined(row, runs)], signal)
    good = _values([row for row in runs if not ruined(row, runs)], signal)
    pairs = [(b > g) + 0.5 * (b == g) for b in bad for g in good]
    return f"{fmean(pairs):.2f}" if pairs else "-"


def _values(runs: Iterable[Mapping[str, Any]], signal: str) -> list[float]:
    return [value for row in runs for value in row["signals"][signal] if value is not None]


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Rewards and learning rates of the recipe, a column for each multiple, a line for each method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    above, below = figure.subplots(2, len(TIMES), sharex=True, sharey="row")
    for times, top, bottom in zip(TIMES, above, below, strict=True):
        for method in METHODS:
            runs = _found(rows, "rate", method=method, times=times)
            mean = [fmean(values) for values in zip(*(run["rewards"] for run in runs), strict=True)]
            smooth = [fmean(mean[max(0, i - 4) : i + 5]) for i in range(len(mean))]
            top.plot(smooth, label=method)
            bottom.plot([math.exp(fmean(map(math.log, v))) for v in zip(*(run["rates"] for run in runs), strict=True)])
        top.set(title=f"{times}x {USUAL:g}", ylim=(0, 1.02))
        bottom.set(xlabel="update", yscale="log")
    above[0].set_ylabel("reward")
    below[0].set_ylabel("learning rate")
    above[0].legend(fontsize=8)
    return figure
