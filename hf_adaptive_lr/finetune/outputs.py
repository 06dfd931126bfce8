"""Writes the outputs of `hf-adaptive-lr finetune`: results, curves and the model, each whole or not at all."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import (
    CURVES_NAME,
    EVENTS_NAME,
    MODEL_NAME,
    PROGRAM,
    RESULTS_NAME,
    TRACE_NAME,
    library_version,
    printable,
    replace_file,
    shell_word,
)
from .data import FinetuneError

if TYPE_CHECKING:
    from ..controller import Controller
    from ..trainer.mixin import AdaptiveLRTrainer
    from .data import JobData
    from .job import FinetuneConfig
    from .model import Parts

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "accelerate", "datasets")


def collect(
    config: FinetuneConfig,
    controller: Controller,
    data: JobData,
    parts: Parts,
    trainer: AdaptiveLRTrainer,
    scores: Mapping[str, float],
) -> dict[str, Any]:
    """The results of a finished run as JSON values; a number that is not finite is a string.

    All but the wall time are the same for a run that was killed and resumed. `scores` are those of the report rows,
    with the prefix `report`.
    """
    from ..scheduler.trace import read_trace
    from .config import AUTO
    from .labels import NUMBER
    from .metrics import METRICS
    from .model import DEMO_MODELS

    folder = Path(trainer.args.output_dir)  # absolute, whatever the working folder is by now
    trace = read_trace(folder / TRACE_NAME)
    _check_trace(trace, config.folder)
    acts = [event["action"] for event in read_trace(folder / EVENTS_NAME)]
    rates = [row["lr"] for row in trace]
    return {
        "task": config.task,
        **{name: _number(scores[f"report_{name}"]) for name in METRICS[data.problem_type]},
        "loss": _number(scores["report_loss"]),
        **({} if data.problem_type == NUMBER else {"majority_accuracy": round(data.majority_accuracy(), 6)}),
        "data": {
            "name": data.name,
            "train_rows": len(trainer.train_dataset),
            "report_rows": len(data.report),
            "report_split": data.report_split,
            "labels": len(data.labels),
            "left_out": data.left_out,
            "unreadable": data.unreadable,
            "sixteen_bits": data.sixteen_bits,
            "problem_type": data.problem_type,
            "rare_labels": data.rare_labels(),
        },
        "model": {"name": config.model or DEMO_MODELS[config.task], "parameters": parts.model.num_parameters()},
        "controller": {
            "controller_type": controller.controller_type,
            **controller.config(),
            **_provenance(controller),
        },
        "controller_choice": config.choice,
        "warmup_steps": config.warmup_steps,
        "controller_data": trainer.controller_data or "training batches only",
        "optimizer": config.optimizer,
        "guard": {f"{act}s": acts.count(act) for act in ("skip", "rollback", "stop")}
        if config.guard == "on"
        else None,
        "learning_rate": config.learning_rate,
        "learning_rate_unused": controller.ignores_base_lr and config.learning_rate != AUTO,
        "lr": {"first": rates[0], "max": max(rates), "last": rates[-1]},
        "every": config.every,
        "decisions": sum(row["reason"] in ("decision", "bounded", "held") for row in trace),
        "max_steps": config.max_steps,
        "updates": len(rates),
        "batch_size": config.batch_size,
        "seed": config.seed,
        "versions": {"hf_adaptive_lr": library_version(), **{name: installed_version(name) for name in _PACKAGES}},
        "command": config.command(),
    }


def _check_trace(trace: Sequence[Mapping[str, Any]], folder: Path) -> None:
    if [row["step"] for row in trace] != list(range(len(trace))):
        raise FinetuneError(
            f"{folder / TRACE_NAME} does not hold updates 0 ... {len(trace) - 1} in their order, each once: another "
            "process wrote into this folder; start again with --overwrite, or name another --output-dir"
        )


def write_outputs(
    folder: Path, results: Mapping[str, Any], parts: Parts, log_history: Sequence[Mapping[str, Any]]
) -> None:
    """Write `model/`, `curves.png` and, when they are there, `results.json`."""
    from ..scheduler.trace import read_trace

    _save_model(folder / MODEL_NAME, parts)
    losses = [(row["step"], row["loss"]) for row in log_history if "loss" in row]
    rates = [(row["step"] + 1, row["lr"]) for row in read_trace(folder / TRACE_NAME)]
    title = f"{results['data']['name']}, {results['controller']['controller_type']}"
    try:
        replace_file(folder / CURVES_NAME, lambda path: draw_curves(path, title, losses, rates))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        logger.warning("curves.png is left out: matplotlib is missing; pip install 'hf_adaptive_lr[demo]'")
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    replace_file(folder / RESULTS_NAME, text)


def draw_curves(
    path: Path, title: str, losses: Sequence[tuple[int, float]], rates: Sequence[tuple[int, float]]
) -> None:
    """Draw training loss and learning rate (logarithmic) of group 0 over updates into a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # without pyplot: no global backend, no window

    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(*zip(*losses, strict=True), color="tab:blue") if losses else None
    above.set(title=title, ylabel="training loss", ylim=(0, None))
    below.step(*zip(*rates, strict=True), color="tab:orange", where="mid")
    below.set(yscale="log", ylabel="learning rate", xlabel="update")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=120)


def table(results: Mapping[str, Any], folder: Path) -> str:
    """The short table that stands at the end of a run: lines of name and value."""
    data, lr = results["data"], results["lr"]
    written = [name for name in (RESULTS_NAME, TRACE_NAME, CURVES_NAME, MODEL_NAME) if (folder / name).exists()]
    why = {"left_out": "without input or label", "unreadable": "unreadable"}
    left_out = ", ".join(f"{data[name]} {text}" for name, text in why.items() if data.get(name))
    left_out = f" ({left_out} left out)" if left_out else ""
    split = data["report_split"]
    reported = split if split.startswith(f"{data['report_rows']} ") else f"{data['report_rows']} of {split}"
    rare = "; ".join(
        f"{label}: {n} to train on, {m} reported" for label, (n, m) in data.get("rare_labels", {}).items()
    )
    unused = results.get("learning_rate_unused")
    unused = f" (the controller finds it: {results['learning_rate']:g} was not used)" if unused else ""
    deep = data.get("sixteen_bits")
    scaled = f"{deep} 16-bit images were scaled by 1/257; do the same before you use {folder / MODEL_NAME}"
    rows = {
        **({"16 bits": scaled} if deep else {}),
        **({"few rows": rare} if rare else {}),
        "data": f"{data['name']}: {data['train_rows']} rows{left_out}; reported: {reported}",
        "model": results["model"]["name"],
        **_scores(results),
        "loss": _shown(results["loss"]),
        "controller": _controller(results),
        "learning rate": f"{lr['first']:.3g} first, {lr['max']:.3g} largest, {lr['last']:.3g} last{unused}",
        "updates": f"{results['updates']} in {results['wall_seconds']:.0f} s",
        "written to": f"{folder}: {' '.join(written)}",
    }
    lines = [f"{name:<14} {printable(value)}" for name, value in rows.items()]
    return "\n".join([*lines, f"{'why':<14} {PROGRAM} report {shell_word(folder)}"])


def _scores(results: Mapping[str, Any]) -> dict[str, str]:
    """How well the model does; results of earlier versions have the accuracy alone."""
    if "accuracy" not in results:
        return {name: _shown(results[name]) for name in ("mae", "rmse", "r2")}
    lines = {"accuracy": f"{_shown(results['accuracy'])}  (majority class {results['majority_accuracy']:.3f})"}
    return lines | ({"macro F1": _shown(results["macro_f1"])} if "macro_f1" in results else {})


def _controller(results: Mapping[str, Any]) -> str:
    """Which controller, of which size if it has one, and why."""
    made = results["controller"]
    size = f", rho={made['rho']:g}" if "rho" in made else ""
    name = made.get("provenance", {}).get("source") or made["controller_type"]
    return f"{name}{size} ({results.get('controller_choice', 'given')})"


def _save_model(folder: Path, parts: Parts) -> None:
    draft, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        parts.model.save_pretrained(draft)
        parts.processor.save_pretrained(draft)
        if folder.exists():  # a folder cannot be replaced in one move
            folder.rename(old)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _provenance(controller: Controller) -> dict[str, Any]:
    """Where the controller's files came from, of which commit, and what was changed; nothing for one without files."""
    known = controller.provenance
    names = [name for name in ("source", "commit", "changed") if name != "changed" or name in known]
    return {"provenance": {name: known.get(name, "") for name in names}} if known else {}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"


def installed_version(package: str) -> str:
    """The version of a package, "unknown" for one that is importable but not installed (a source tree on the path)."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
