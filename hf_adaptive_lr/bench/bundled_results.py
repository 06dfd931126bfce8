"""Writes the bundled controllers' `eval_results.json` and cards, from the rows of benchmark and paper study.

    python -m hf_adaptive_lr.bench.bundled_results

Writes `eval_results.json` into every folder of `hf_adaptive_lr/pretrained` that the paper study or the
benchmark tries, and the card as it would stand on the Hub into `model_cards/hub`. Nothing is run; a task without all
its seeds counts as not tested.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import PROGRAM, TRAINING_NAME, replace_file
from ..auto import PRETRAINED, AutoController
from ..hub.card import notes_of, render
from ..hub.mixin import sidecar
from ..hub.picture import draw_schedules, schedule
from ..hub.results import RESULTS_VERSION
from . import yardstick_results
from .rows import RowsError
from .runner import command_parser
from .verdict_judge import Runs
from .verdict_methods import BASELINES, METHODS
from .verdict_papers import PAPERS, REQUIRED_SEEDS
from .verdict_plan import Book, counted
from .verdict_tasks import TASKS, Task
from .yardstick_results import as_text, result

ROWS, CARDS = Path("model_cards/rows"), Path("model_cards/hub")
METHOD_OF: Mapping[str, str] = {"ppo_schedule": "ppo_schedule", "mlr_snet": "mlr_snet_frozen"}
"""The paper study's method that is a bundled controller as it is, by the controller's name, which is the paper's."""
RIVALS = (*BASELINES, "step_decay")
"""What a bundled controller is compared with, where it was run."""


def bundled(folder: Path = PRETRAINED) -> list[str]:
    """Names of the bundled controllers that the paper study or the benchmark tries."""
    return [name for name in sorted({*METHOD_OF, *yardstick_results.METHOD_OF}) if (folder / name).is_dir()]


def found_of(name: str, rows: Path) -> dict[str, Any]:
    """The `eval_results.json` of a bundled controller, from whatever tries it."""
    if name in yardstick_results.METHOD_OF:
        return yardstick_results.results(name, rows)
    return results(name, Book(rows))


def results(name: str, book: Book, tasks: Mapping[str, Task] = TASKS) -> dict[str, Any]:
    """The `eval_results.json` of a bundled controller, from rows."""
    paper = PAPERS[name]
    found, not_tested = [], []
    for task in (tasks[task_name] for task_name in paper.tasks):

        def runs(method: str, task: Task = task) -> Runs:
            return counted(task, METHODS[method], book, tasks)

        mine = runs(METHOD_OF[name])
        setting = next((row["setting"] for row in mine.values() if "setting" in row), None)
        if len(mine) < REQUIRED_SEEDS or setting is None:
            why = "not run to the end" if len(mine) < REQUIRED_SEEDS else "every run ended in an error"
            not_tested.append(f"{task.name}: {task.data}, {task.model}, {task.optimizer} ({why})")
            continue
        about = {
            "task": task.name,
            **_note(task),
            "data": task.data,
            "model": task.model,
            "optimizer": task.optimizer,
            "parameters": setting["parameters"],
            "updates": setting["updates"],
        }
        others = {rival: runs(rival) for rival in RIVALS if rival in (*BASELINES, *paper.methods)}
        found.append(result(about, mine, others, required=REQUIRED_SEEDS))
    command = f"python -m hf_adaptive_lr.bench.verdict {name}"
    return {"format_version": RESULTS_VERSION, "command": command, "results": found, "not_tested": not_tested}


def _note(task: Task) -> dict[str, str]:
    notes = [f"{100 * task.label_noise:.0f} % of the training labels drawn anew"] if task.label_noise else []
    notes += [f"learning rate tuned on {task.tuned_on}"] if task.tuned_on else []
    return {"note": ", ".join(notes)} if notes else {}


def card(name: str, eval_results: Mapping[str, Any], notes: str | None) -> str:
    """The card of a bundled controller."""
    controller = AutoController.from_pretrained(name)
    training = sidecar(controller, TRAINING_NAME)
    picture = f"{name}.png" if schedule(controller, training) is not None else None
    return render(controller, repo_id=name, training=training, eval_results=eval_results, notes=notes, picture=picture)


def write(name: str, rows: Path, cards: Path) -> Path:
    """Write a bundled controller's `eval_results.json`, card and picture, and return the card; its notes stay."""
    found = found_of(name, rows)
    page = cards / f"{name}.md"
    notes = notes_of(page.read_text(encoding="utf-8")) if page.is_file() else None
    rendered = card(name, found, notes)
    cards.mkdir(parents=True, exist_ok=True)
    replace_file(PRETRAINED / name / "eval_results.json", as_text(found))
    replace_file(page, rendered)
    controller = AutoController.from_pretrained(name)
    training = sidecar(controller, TRAINING_NAME)

    def draw(path: Path) -> None:
        if not draw_schedules(controller, path, training):
            raise ModuleNotFoundError("matplotlib is missing; pip install 'hf_adaptive_lr[demo]'", name="matplotlib")

    if schedule(controller, training) is not None:
        replace_file(cards / f"{name}.png", draw)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Write what the rows say; 0 when done, 2 when they cannot be used."""
    parser = command_parser("bundled_results", __doc__)
    parser.add_argument("--rows-dir", type=Path, default=ROWS, metavar="DIR", help=f"rows (default: {ROWS})")
    parser.add_argument("--cards-dir", type=Path, default=CARDS, metavar="DIR", help=f"cards (default: {CARDS})")
    options = parser.parse_args(argv)
    if not options.rows_dir.is_dir():
        print(f"{PROGRAM}: error: no folder '{options.rows_dir}'; run it in the project's folder", file=sys.stderr)
        return 2
    try:
        for name in bundled():
            print(f"wrote {write(name, options.rows_dir, options.cards_dir)}")
    except (RowsError, ModuleNotFoundError) as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
