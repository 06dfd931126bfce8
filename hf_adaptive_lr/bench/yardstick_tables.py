"""The benchmark's smaller tables: wrong lengths, trouble, equal budgets, variants, and what learning cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..artifacts import TRAINING_NAME
from ..hub import markdown
from ..hub.mixin import sidecar
from .yardstick_methods import METHODS, Method
from .yardstick_plan import BUDGET, DEFAULT, STUDIES, misled, troubled
from .yardstick_scores import Results
from .yardstick_tasks import VectorTask


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, or a sentence when it would be empty."""
    return markdown.table(head, rows) if rows else "No rows yet.\n"


def misled_table(results: Results) -> str:
    """What a wrong length costs."""
    text = "Mean of ln(test loss / that with the true length), and the number of vectorised tasks.\n"
    return text + "\n" + _changed_table(results, misled, ["told a quarter", "told four times"])


def troubled_table(results: Results) -> str:
    """What trouble costs."""
    text = (
        "Mean of ln(test loss / that of the undisturbed run), and the number of vectorised tasks. Half-way, the loss "
        "of one batch is multiplied by 100, or noise of half their root mean square is added to all weights. Nothing "
        "guards these runs; `python -m hf_adaptive_lr.bench.trouble` measures what the guard is worth on real tasks.\n"
    )
    return text + "\n" + _changed_table(results, troubled, ["loss x 100", "noise on the weights"])


def _changed_table(results: Results, others: Callable[[Method], list[Method]], heads: list[str]) -> str:
    rows = []
    for method in results.methods:
        found = [results.changed(method, other) for other in others(method)]
        if any(len(values) for values in found):
            rows.append([f"`{method.name}`", *(f"{v.mean():+.3f} ({len(v)})" if len(v) else "-" for v in found)])
    return table(["method", *heads], rows)


def budget_table(results: Results) -> str:
    """Everyone has the same number of trials."""
    rows = []
    for method in results.methods:
        regret = results.equal_budget(method)
        if regret is not None:
            means = sorted(regret.mean(0).tolist())
            middle, own = float(np.median(means)), results.scores.get(method.name)
            names = [task.name for task in results.tasks if task.family != "real"]
            default = own.part([n for n in names if n in own.tasks]).regret.mean() if own else math.nan
            cells = [f"{value:+.3f}" for value in (middle, means[0], means[-1], default)]
            rows.append((middle, [f"`{method.name}`", str(len(regret)), *cells]))
    text = (
        f"Vectorised tasks. In each of {STUDIES} studies everyone tries the same {BUDGET} of nine initial learning "
        "rates, half a decade apart and centred on the default, and keeps the one with the lowest validation loss on "
        "seeds of its own. Mean log-regret over tasks: the median study, the best, the worst; beside it that of the "
        "default learning rate, without trials.\n"
    )
    head = ["method", "tasks", "median study", "best", "worst", "no trials"]
    return text + "\n" + table(head, [cells for _, cells in sorted(rows)])


def variants_table(results: Results) -> str:
    """Each variant's regret, and that of the task that it is made of."""
    variants = [task for task in results.variants if isinstance(task, VectorTask)]
    if not variants:
        return "No rows yet.\n"
    parts = [
        f"Mean log-regret to a linear schedule tuned on the variant; the first column is the task as it is. Learned "
        f"controllers were trained with SGD and AdamW, never with Lion. `{DEFAULT.name}` is the one to compare with: "
        "the default learning rate that suits a task does not suit all its variants.\n"
    ]
    for base in dict.fromkeys(v.name.split("-")[0] + "-" + v.name.split("-")[1] for v in variants):
        mine = [v for v in variants if v.name.startswith(base + "-")]
        rows = []
        for name, scores in results.on_variants.items():
            own = results.scores.get(name)
            first = f"{own.part([base]).regret.mean():+.3f}" if own and base in own.tasks else "-"
            cells = [f"{scores.part([v.name]).regret.mean():+.3f}" if v.name in scores.tasks else "-" for v in mine]
            if any(cell != "-" for cell in cells):
                rows.append([f"`{name}`", first, *cells])
        parts += [f"### {base}\n", table(["method", base, *(v.axis for v in mine)], rows)]
    return "\n".join(parts)


def cost_table(results: Results) -> str:
    """Seconds of training a controller against those of tuning a learning rate."""
    real = [results.references[task.name] for task in results.tasks if task.family == "real"]
    if not real:
        return "No rows yet.\n"
    mean = float(np.mean([reference.tuning_runs * reference.seconds for reference in real]))
    rows = []
    for method in results.methods:
        seconds = _training_seconds(method)
        if seconds is not None:
            rows.append([f"`{method.name}`", f"{seconds:,.0f}", f"{mean:,.0f}", f"{seconds / mean:.1f}"])
    text = (
        "Training a controller pays when it spares its user the tuning of a learning rate: as many times as the last "
        "column says, on tasks of the size of the real ones here, if it is then as good as the tuned schedule, which "
        "the tables above tell. Tuning is the whole sweep of the reference, mean over real tasks.\n"
    )
    return text + "\n" + table(["controller", "seconds to train", "seconds to tune", "pays after"], rows)


def _training_seconds(method: Method) -> float | None:
    if not method.weights or method.name not in METHODS:
        return None
    seconds = (sidecar(method.make_controller(), TRAINING_NAME) or {}).get("seconds")
    return None if seconds is None else float(seconds)
