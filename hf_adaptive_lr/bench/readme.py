"""The figures of README.md and model_cards/README.md, from what the commands measured.

    python -m hf_adaptive_lr.bench.readme [RESULTS.json ...]

Files given on the command line (the `results.json` of `hf-adaptive-lr finetune`) become rows of
`model_cards/rows/finetune.jsonl` first. Then the tables between the pages' markers are written anew from the rows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import replace_file
from . import false_alarms, trouble_tasks, verdict_plan, verdict_tasks, yardstick_plan
from .markdown import table
from .overhead import verdict
from .relative_sizes import summary
from .rows import read_rows
from .trouble_figures import GUARD, Figures
from .trouble_methods import METHODS
from .trouble_pages import TROUBLES, rows_file
from .universal_page import in_words
from .verdict_judge import Word, cells, paper_word, word_of
from .verdict_papers import PAPERS, Paper

ROWS = Path("model_cards/rows")
PAGES = (Path("README.md"), Path("model_cards/README.md"))
Row = Mapping[str, Any]


def demo_table(rows: Sequence[Row]) -> str:
    """Results of `hf-adaptive-lr finetune`, one line per task."""
    head = ["task", "data", "accuracy", "majority class", "learning rate first / largest / last", "seconds", "command"]
    lines = []
    for row in rows:
        lr, data = row["lr"], row["data"]
        lines.append(
            [
                row["task"],
                f"{data['name']}, {data['train_rows']} + {data['report_rows']} rows",
                f"{row['accuracy']:.3f}",
                f"{row['majority_accuracy']:.3f}",
                f"{lr['first']:.2g} / {lr['max']:.2g} / {lr['last']:.2g}",
                f"{row['wall_seconds']:.0f}",
                f"`hf-adaptive-lr finetune --task {row['task']}`",
            ]
        )
    return table(head, lines)


def overhead_table(rows: Sequence[Row]) -> str:
    """Overhead of each method at each size, and what the gain ratio costs whole runs."""
    lines = []
    for row in rows:
        method, every, ratio, own = (
            row["method"],
            str(row["every"]),
            _interval(row),
            f"{100 * (row['inside'] - 1):.1f} %",
        )
        if "computed_ratio" in row:
            runs = ", ".join(f"{ratio:.3f} in {run}" for run, ratio in row["computed_ratio"].items())
            method, every, own = f"gain ratio, {row['decisions_per_run']} a run (computed)", "-", "-"
            ratio = f"{runs} updates"
        lines.append([_size(row), method, every, ratio, own, verdict(row) or "-"])
    head = ["parameters", "method", "decides every", "ratio (interval)", "in our own code", "at most 1.01?"]
    return table(head, lines)


def _size(row: Row) -> str:
    return f"{row['parameters'] / 1e6:.1f}M"


def _interval(row: Row) -> str:
    low, high = row["interval"]
    return f"{row['ratio']:.3f} ({low:.3f} ... {high:.3f})"


def known_answer_table(rows: Sequence[Row]) -> str:
    """Ratio to the best schedule, by method."""
    lines = []
    for row in rows:
        decades = ", ".join(f"{decade}: {ratio:.2f}" for decade, ratio in row.get("by_decade", {}).items())
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else "-"
        lines.append([row["method"], f"{row['ratio']:.2f}", decades or "-", seconds])
    head = ["method", "final loss / best", "by decade of the initial learning rate", "seconds to train"]
    return table(head, lines)


def mlp_answer_table(rows: Sequence[Row]) -> str:
    """Log regret by initial learning rate."""
    rates = list(rows[0]["log_regret"])
    lines = [[row["method"], *(f"{row['log_regret'][rate]:.2f}" for rate in rates)] for row in rows]
    return table(["initial learning rate", *rates], lines)


def throughput_table(rows: Sequence[Row]) -> str:
    """Inner steps per second of every column at the largest number of runs."""
    most = max(row["runs"] for row in rows)
    lines = [
        [row["column"], f"{row['steps_per_second']:,.0f}", f"{100 * row['share_of_peak']:.1f} %"]
        for row in rows
        if row["runs"] == most and row["steps_per_second"]
    ]
    return table(["column", "steps / s", "share of the matmul peak"], lines)


def verdict_table(rows: Path) -> str:
    """Verdict and controls of every paper, one line each; empty without any rows."""
    lines = []
    for paper, word, controls in _verdicts(rows):
        asked = "; ".join(f"{text.rstrip('.')}: *{answer}*" for text, answer in controls)
        lines.append([f"[`{paper.name}`]({paper.name}.md)", paper.claim, f"**{word}**", asked])
    return table(["paper", "its claim", "verdict", "what a reader should ask beyond it"], lines) if lines else ""


def verdict_words(rows: Path) -> str:
    """One line with the verdict of every paper; empty without any rows."""
    return ", ".join(f"[`{paper.name}`](model_cards/{paper.name}.md) **{word}**" for paper, word, _ in _verdicts(rows))


def _verdicts(rows: Path) -> list[tuple[Paper, Word, list[tuple[str, Word]]]]:
    if not any(rows.glob("verdict_*.jsonl")):
        return []
    book, judged = verdict_plan.Book(rows), []
    for paper in PAPERS.values():
        found = cells(paper, book, verdict_tasks.TASKS)
        word = paper_word([word_of(claim, found) for claim in paper.claims])
        judged.append((paper, word, [(control.text, word_of(control, found)) for control in paper.controls]))
    return judged


def guard_table(rows: Path) -> str:
    """Shares of disturbed runs that end as well as undisturbed ones, by task and method; empty without any rows."""
    if not any((rows / rows_file(task)).is_file() for task in trouble_tasks.TASKS):
        return ""
    lines = []
    for task in trouble_tasks.TASKS:
        found = Figures(read_rows(rows / rows_file(task)))
        shares = ["{} of {}".format(*found.overall(TROUBLES, method)) for method in METHODS]
        alarms, updates, _ = found.false_alarms()
        shares[list(METHODS).index(GUARD)] = f"**{shares[list(METHODS).index(GUARD)]}**"
        lines.append([task, *shares, f"{alarms} in {updates:,} updates"])
    return table(["task", *(f"`{name}`" for name in METHODS), "alarms in healthy runs"], lines)


def universal_words(rows: Path) -> str:
    """`universal` beside the tuned linear schedule, wins and losses, in a sentence; empty while it has no rows."""
    return in_words(yardstick_plan.PROFILES["full"], yardstick_plan.Book(rows)).rstrip()


def guard_overhead_table(rows: Sequence[Row]) -> str:
    """What the guard costs."""
    lines = [
        [_size(row), row["method"], _interval(row), f"at most {row['target']}" if row["target"] else "-"]
        for row in rows
    ]
    return table(["parameters", "method", "ratio (interval)", "aim"], lines)


TABLES: Mapping[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "demo": ("finetune.jsonl", demo_table),
    "known_answer": ("known_answer.jsonl", known_answer_table),
    "mlp_answer": ("mlp_answer.jsonl", mlp_answer_table),
    "throughput": ("throughput.jsonl", throughput_table),
    "overhead": ("overhead.jsonl", overhead_table),
    "false_alarms": ("guard_false_alarms.jsonl", false_alarms.table),
    "guard_overhead": ("guard_overhead.jsonl", guard_overhead_table),
    "relative_sizes": ("relative_sizes.jsonl", summary),
}
"""Tables of one file of rows."""

BLOCKS: Mapping[str, Callable[[Path], str]] = {
    "guard": guard_table,
    "universal": universal_words,
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
    for name in [name for name, text in tables.items() if text]:
        if not _block(name).search(wanted):
            raise ValueError(f"no page has markers for '{name}'")
        pages = [_replaced(page, name, tables[name]) for page in pages]
    return list(pages)


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def _replaced(page: str, name: str, table: str) -> str:
    return _block(name).sub(lambda found: f"{found[1]}{table}\n{found[2]}", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Collect results and write the pages' tables; 0 when done, 2 when a file is missing."""
    parser = argparse.ArgumentParser(prog="python -m hf_adaptive_lr.bench.readme", description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="*", type=Path, help="results.json of runs to put into the rows")
    options = parser.parse_args(argv)
    missing = [path for path in (*options.results, *PAGES) if not path.is_file()]
    if missing:
        print(f"{parser.prog}: error: no file '{missing[0]}'; run it in the project's folder", file=sys.stderr)
        return 2
    if options.results:
        text = "".join(json.dumps(json.loads(path.read_text(encoding="utf-8"))) + "\n" for path in options.results)
        ROWS.mkdir(parents=True, exist_ok=True)
        replace_file(ROWS / "finetune.jsonl", text)
    for page, text in zip(PAGES, render([page.read_text(encoding="utf-8") for page in PAGES]), strict=True):
        replace_file(page, text)
        print(f"wrote {page} from {ROWS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
