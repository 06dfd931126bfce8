"""Writes what the rows say into README.md, model_cards/README.md and the bundled controllers' cards; nothing is run.

    python -m hf_adaptive_lr.bench.studies.cards [RESULTS.json ...]
    python -m hf_adaptive_lr.bench.studies.cards --bundled

Files given on the command line (the `results.json` of `hf-adaptive-lr finetune`) become rows of
`model_cards/rows/finetune.jsonl` first. Then the tables between the pages' markers are written anew. With `--bundled`
every folder of `hf_adaptive_lr/pretrained` gets its `eval_results.json`, and `model_cards/hub` the card as it would
stand on the Hub; a task without all its seeds counts as not tested.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...artifacts import EVAL_NAME, TRAINING_NAME, replace_file
from ...auto import PRETRAINED, AutoController
from ...controller import Controller
from ...hub.card import render as render_card
from ...hub.mixin import sidecar
from ...hub.picture import draw_schedules, schedule
from ...hub.results import RESULTS_VERSION
from ..comparison import compare
from ..markdown import rewrite, table
from ..methods import METHODS as BENCH_METHODS
from ..plan import PROFILES, Book
from ..results import RIVALS, Runs, as_text, described, result, results_of
from ..rows import read_rows, write_rows
from ..runner import command_parser
from ..tasks import TASKS as BENCH_TASKS
from ..tasks import Task
from . import known_answer, long_run, overhead, run_cost
from .command import CARDS, carry_out
from .guard import false_alarms
from .guard.figures import read_figures
from .guard.injections import TROUBLES
from .guard.methods import GUARD
from .guard.methods import METHODS as GUARD_METHODS
from .measured import ROWS
from .papers.claims import PAPERS
from .papers.judge import Found, find, verdict, word_of
from .papers.methods import BASELINES, METHODS
from .papers.pages import COMMAND as PAPER_STUDY
from .papers.plan import FULL, book_of, counted
from .papers.tasks import TUNED_ON

HUB, PAGES = CARDS / "hub", (Path("README.md"), CARDS / "README.md")
Row = Mapping[str, Any]


# --- tables of the pages ------------------------------------------------------------------------------------------


def demo_table(rows: Sequence[Row]) -> str:
    """Results of `hf-adaptive-lr finetune`, one line per task."""
    head = ["task", "data", "accuracy", "majority class", "learning rate first / largest / last", "seconds", "command"]
    lines = []
    for row in rows:
        lr, data = row["lr"], row["data"]
        rows_of = f"{data['name']}, {data['train_rows']} + {data['report_rows']} rows"
        rates = f"{lr['first']:.2g} / {lr['max']:.2g} / {lr['last']:.2g}"
        found = (f"{row['accuracy']:.3f}", f"{row['majority_accuracy']:.3f}", rates, f"{row['wall_seconds']:.0f}")
        lines.append([row["task"], rows_of, *found, f"`hf-adaptive-lr finetune --task {row['task']}`"])
    return table(head, lines)


def verdict_table(rows: Path) -> str:
    """Verdict and controls of every paper, one line each; empty without any rows."""
    lines = []
    for found in _papers(rows):
        asked = (f"{control.text.rstrip('.')}: *{word_of(control, found)}*" for control in found.paper.controls)
        page = f"[`{found.paper.name}`]({found.paper.name}.md)"
        lines.append([page, found.paper.claim, f"**{verdict(found)}**", "; ".join(asked)])
    return table(["paper", "its claim", "verdict", "what a reader should ask beyond it"], lines) if lines else ""


def verdict_words(rows: Path) -> str:
    """One line with the verdict of every paper; empty without any rows."""
    names = {found.paper.name: verdict(found) for found in _papers(rows)}
    return ", ".join(f"[`{name}`](model_cards/{name}.md) **{word}**" for name, word in names.items())


def _papers(rows: Path) -> list[Found]:
    there = any(rows.glob("papers_*.jsonl*"))
    return [find(paper, FULL, book_of(rows)) for paper in PAPERS.values()] if there else []


def guard_table(rows: Path) -> str:
    """Shares of disturbed runs that end as well as undisturbed ones, by task and method; empty without any rows."""
    lines = []
    for task, found in read_figures(rows).items():
        shares = {name: "{} of {}".format(*found.overall(TROUBLES, name)) for name in GUARD_METHODS}
        shares[GUARD] = f"**{shares[GUARD]}**"
        alarms, updates, _ = found.false_alarms()
        lines += [[task, *shares.values(), f"{alarms} in {updates:,} updates"]] if found.all else []
    return table(["task", *(f"`{name}`" for name in GUARD_METHODS), "alarms in healthy runs"], lines) if lines else ""


TABLES: Mapping[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "demo": ("finetune.jsonl", demo_table),
    "known_answer": ("known_answer.jsonl", known_answer.quadratic_table),
    "mlp_answer": ("mlp_answer.jsonl", known_answer.mlp_table),
    "overhead": ("overhead.jsonl", overhead.table),
    "false_alarms": (false_alarms.FILE, false_alarms.table),
    "guard_overhead": ("guard_overhead.jsonl", overhead.guard_table),
    "run_cost": ("run_cost.jsonl", run_cost.table),
    "long_run": ("long_run.jsonl", long_run.table),
}
"""Tables of one file of rows."""

BLOCKS: Mapping[str, Callable[[Path], str]] = {
    "guard": guard_table,
    "verdict_words": verdict_words,
    "verdicts": verdict_table,
}
"""What is made from the whole folder of rows."""


def render(pages: Sequence[str], rows: Path = ROWS) -> list[str]:
    """The pages with every table written anew."""
    wanted = "".join(pages)
    tables = {name: block(rows) for name, block in BLOCKS.items() if f"<!-- {name}: " in wanted}
    for name, (file, render_table) in TABLES.items():
        found = [row for row in read_rows(rows / file) if row.get("row") != "header"]
        tables[name] = render_table(found) if found else ""
    for name, text in tables.items():
        markers = re.compile(rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if text and not markers.search(wanted):
            raise ValueError(f"no page has markers for '{name}'")
        if text:
            pages = [_between(markers, page, text) for page in pages]
    return list(pages)


def _between(markers: re.Pattern[str], page: str, text: str) -> str:
    return markers.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)


# --- the bundled controllers --------------------------------------------------------------------------------------

METHOD_OF: Mapping[str, str] = {"ppo_schedule": "ppo_schedule", "mlr_snet": "mlr_snet_frozen"}
"""The paper study's method that is a bundled controller as it is, by the controller's name, which is the paper's."""
BENCHMARKED = ("universal", "universal_1")
"""Bundled controllers whose results are those of the benchmark's test tasks."""
BENCHMARK = "hf-adaptive-lr bench --full --suite test"


def results(name: str, rows: Path) -> dict[str, Any]:
    """The `eval_results.json` of a bundled controller, from the benchmark's or the paper study's rows."""
    if name in BENCHMARKED:
        tasks = [task for task in BENCH_TASKS.values() if task.suite == "test"]
        methods = [BENCH_METHODS[each] for each in (name, *RIVALS) if each in BENCH_METHODS]
        return results_of(name, compare(tasks, methods, PROFILES["full"], Book(rows)), BENCHMARK)
    paper, book = PAPERS[name], book_of(rows)
    rivals = (*BASELINES, *(["step_decay"] if "step_decay" in paper.methods else []))
    found, not_tested = [], []
    for task in (FULL.tasks[task_name] for task_name in paper.tasks):
        runs = {method: _in_words(counted(task, METHODS[method], FULL, book)) for method in (METHOD_OF[name], *rivals)}
        mine = runs.pop(METHOD_OF[name])
        setting = next((row["setting"] for row in mine.values() if "setting" in row), None)
        if len(mine) < FULL.required or setting is None:
            why = "not run to the end" if len(mine) < FULL.required else "every run ended in an error"
            not_tested.append(f"{task.name}: {task.data}, {task.model}, {task.optimizer} ({why})")
            continue
        about = described(task, _note(task), setting["parameters"])
        measures = {"test_loss": True, "test_accuracy": False}
        found.append(result(about, mine, runs, measures, required=FULL.required))
    command = f"{PAPER_STUDY} {name}"
    return {"format_version": RESULTS_VERSION, "command": command, "results": found, "not_tested": not_tested}


def _in_words(runs: Runs) -> Runs:
    return {seed: {**row, "test_accuracy": row.get("test_metric")} for seed, row in runs.items()}


def _note(task: Task) -> str:
    notes = [f"{100 * task.label_noise:.0f} % of the training labels drawn anew"] if task.label_noise else []
    notes += [f"learning rate tuned on {TUNED_ON[task.name]}"] if task.name in TUNED_ON else []
    return ", ".join(notes)


def card(name: str, eval_results: Mapping[str, Any], notes: str | None) -> str:
    """The card of a bundled controller."""
    controller, training = _bundled(name)
    drawn = schedule(controller, training) is not None
    shown = {"training": training, "eval_results": eval_results, "picture": f"{name}.png" if drawn else None}
    return render_card(controller, repo_id=name, notes=notes, **shown)


def _bundled(name: str) -> tuple[Controller, Any]:
    controller = AutoController.from_pretrained(name)
    return controller, sidecar(controller, TRAINING_NAME)


def write_bundled(name: str, rows: Path) -> Path:
    """Write a bundled controller's `eval_results.json`, card and picture, and return the card; its notes stay."""
    found, page = results(name, rows), HUB / f"{name}.md"
    controller, training = _bundled(name)
    replace_file(PRETRAINED / name / EVAL_NAME, as_text(found))
    rewrite(page, lambda notes: card(name, found, notes))

    def draw(path: Path) -> None:
        if not draw_schedules(controller, path, training):
            raise ModuleNotFoundError("matplotlib is missing; pip install 'hf_adaptive_lr[demo]'", name="matplotlib")

    if schedule(controller, training) is not None:
        replace_file(HUB / f"{name}.png", draw)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Collect results and write what was asked for; 0 when done, 2 when a file is missing or cannot be used."""
    parser = command_parser("studies.cards", __doc__)
    parser.add_argument("results", nargs="*", type=Path, help="results.json of runs to put into the rows")
    parser.add_argument("--bundled", action="store_true", help="write the bundled controllers' results and cards, too")
    options = parser.parse_args(argv)
    return carry_out(
        parser.prog, lambda: _write(options.results, (*METHOD_OF, *BENCHMARKED) if options.bundled else ())
    )


def _write(results_files: Sequence[Path], bundled: Iterable[str]) -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in results_files]
    if rows:
        write_rows(ROWS / "finetune.jsonl", rows)
    for page, text in zip(PAGES, render(texts), strict=True):
        replace_file(page, text)
        print(f"wrote {page}")
    for name in bundled:
        print(f"wrote {write_bundled(name, ROWS)}")


if __name__ == "__main__":
    sys.exit(main())
