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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import replace_file

if TYPE_CHECKING:
    from .verdict_judge import Word
    from .verdict_papers import Paper

ROWS = Path("model_cards/rows")
PAGES = (Path("README.md"), Path("model_cards/README.md"))
Row = Mapping[str, Any]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none when it is missing."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def demo_table(rows: Sequence[Row]) -> str:
    """Results of the main job, one line per task."""
    lines = ["| task | data | accuracy | majority class | learning rate first / largest / last | seconds | command |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        lr, data = row["lr"], row["data"]
        cells = [
            row["task"],
            f"{data['name']}, {data['train_rows']} + {data['report_rows']} rows",
            f"{row['accuracy']:.3f}",
            f"{row['majority_accuracy']:.3f}",
            f"{lr['first']:.2g} / {lr['max']:.2g} / {lr['last']:.2g}",
            f"{row['wall_seconds']:.0f}",
            f"`hf-adaptive-lr finetune --task {row['task']}`",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def overhead_table(rows: Sequence[Row]) -> str:
    """Overhead of each method at each size, and what the gain ratio costs whole runs."""
    from .overhead import verdict

    lines = ["| parameters | method | decides every | ratio (interval) | in our own code | at most 1.01? |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        if row["row"] == "header":
            continue
        size, (low, high) = f"{row['parameters'] / 1e6:.1f}M", row["interval"]
        if "computed_ratio" in row:
            runs = ", ".join(f"{ratio:.3f} in {run}" for run, ratio in row["computed_ratio"].items())
            lines.append(
                f"| {size} | gain ratio, {row['decisions_per_run']} a run (computed) | - | {runs} updates | - "
                f"| {verdict(row) or '-'} |"
            )
            continue
        own = f"{100 * (row['inside'] - 1):.1f} %"
        lines.append(
            f"| {size} | {row['method']} | {row['every']} | {row['ratio']:.3f} ({low:.3f} ... {high:.3f}) | {own} "
            f"| {verdict(row) or '-'} |"
        )
    return "\n".join(lines)


def known_answer_table(rows: Sequence[Row]) -> str:
    """Ratio to the best schedule, by method."""
    lines = [
        "| method | final loss / best | by decade of the initial learning rate | seconds to train |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row["row"] == "header":
            continue
        decades = ", ".join(f"{decade}: {ratio:.2f}" for decade, ratio in row.get("by_decade", {}).items())
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else "-"
        lines.append(f"| {row['method']} | {row['ratio']:.2f} | {decades or '-'} | {seconds} |")
    return "\n".join(lines)


def mlp_answer_table(rows: Sequence[Row]) -> str:
    """Log regret by initial learning rate."""
    measured = [row for row in rows if row["row"] != "header"]
    rates = list(measured[0]["log_regret"])
    lines = [f"| initial learning rate | {' | '.join(rates)} |", "|---" * (len(rates) + 1) + "|"]
    for row in measured:
        values = " | ".join(f"{row['log_regret'][rate]:.2f}" for rate in rates)
        lines.append(f"| {row['method']} | {values} |")
    return "\n".join(lines)


def throughput_table(rows: Sequence[Row]) -> str:
    """Inner steps per second of every column at the largest number of runs."""
    measured = [row for row in rows if row["row"] != "header"]
    most = max(row["runs"] for row in measured)
    lines = ["| column | steps / s | share of the matmul peak |", "|---|---|---|"]
    for row in measured:
        if row["runs"] == most and row["steps_per_second"]:
            lines.append(f"| {row['column']} | {row['steps_per_second']:,.0f} | {100 * row['share_of_peak']:.1f} % |")
    return "\n".join(lines)


def verdict_table(rows: Path) -> str:
    """Verdict and controls of every paper, one line each; empty without any rows."""
    lines = ["| paper | its claim | verdict | what a reader should ask beyond it |", "|---|---|---|---|"]
    found = _verdicts(rows)
    for paper, word, controls in found:
        asked = "; ".join(f"{text.rstrip('.')}: *{answer}*" for text, answer in controls)
        lines.append(f"| [`{paper.name}`]({paper.name}.md) | {paper.claim} | **{word}** | {asked} |")
    return "\n".join(lines) if found else ""


def verdict_words(rows: Path) -> str:
    """One line with the verdict of every paper; empty without any rows."""
    return ", ".join(f"[`{paper.name}`](model_cards/{paper.name}.md) **{word}**" for paper, word, _ in _verdicts(rows))


def _verdicts(rows: Path) -> list[tuple[Paper, Word, list[tuple[str, Word]]]]:
    from .verdict_judge import cells, paper_word, word_of
    from .verdict_papers import PAPERS
    from .verdict_plan import Book
    from .verdict_tasks import TASKS

    if not any(rows.glob("verdict_*.jsonl")):
        return []
    book, judged = Book(rows), []
    for paper in PAPERS.values():
        found = cells(paper, book, TASKS)
        word = paper_word([word_of(claim, found) for claim in paper.claims])
        judged.append((paper, word, [(control.text, word_of(control, found)) for control in paper.controls]))
    return judged


def guard_table(rows: Path) -> str:
    """Shares of disturbed runs that end as well as undisturbed ones, by task and method; empty without any rows."""
    from .trouble_figures import GUARD, Figures
    from .trouble_methods import METHODS
    from .trouble_pages import TROUBLES, rows_file
    from .trouble_tasks import TASKS

    if not any((rows / rows_file(task)).is_file() for task in TASKS):
        return ""
    lines = [f"| task | {' | '.join(f'`{name}`' for name in METHODS)} | alarms in healthy runs |"]
    lines.append("|---" * (len(METHODS) + 2) + "|")
    for task in TASKS:
        found = Figures(read_rows(rows / rows_file(task)))
        shares = ["{} of {}".format(*found.overall(TROUBLES, method)) for method in METHODS]
        alarms, updates, _ = found.false_alarms()
        shares[list(METHODS).index(GUARD)] = f"**{shares[list(METHODS).index(GUARD)]}**"
        lines.append(f"| {task} | {' | '.join(shares)} | {alarms} in {updates:,} updates |")
    return "\n".join(lines)


def universal_words(rows: Path) -> str:
    """`universal` beside the tuned linear schedule, wins and losses, in a sentence; empty while it has no rows."""
    from .universal_page import in_words
    from .yardstick_plan import PROFILES, Book

    return in_words(PROFILES["full"], Book(rows)).rstrip()


def guard_overhead_table(rows: Sequence[Row]) -> str:
    """What the guard costs."""
    lines = ["| parameters | method | ratio (interval) | aim |", "|---|---|---|---|"]
    for row in rows:
        if row["row"] == "header":
            continue
        (low, high), aim = row["interval"], row["target"]
        ratio = f"{row['ratio']:.3f} ({low:.3f} ... {high:.3f})"
        lines.append(
            f"| {row['parameters'] / 1e6:.1f}M | {row['method']} | {ratio} | {f'at most {aim}' if aim else '-'} |"
        )
    return "\n".join(lines)


def false_alarms_table(rows: Sequence[Row]) -> str:
    """What the guard did to healthy runs."""
    from .false_alarms import table

    return table([dict(row) for row in rows])


TABLES: Mapping[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "demo": ("finetune.jsonl", demo_table),
    "known_answer": ("known_answer.jsonl", known_answer_table),
    "mlp_answer": ("mlp_answer.jsonl", mlp_answer_table),
    "throughput": ("throughput.jsonl", throughput_table),
    "overhead": ("overhead.jsonl", overhead_table),
    "false_alarms": ("guard_false_alarms.jsonl", false_alarms_table),
    "guard_overhead": ("guard_overhead.jsonl", guard_overhead_table),
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
    for name, (file, table) in TABLES.items():
        found = read_rows(rows / file)
        tables[name] = table(found) if found else ""
    for name in [name for name, table in tables.items() if table]:
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
        replace_file(ROWS / "finetune.jsonl", lambda path: path.write_text(text, encoding="utf-8"))
    for page, text in zip(PAGES, render([page.read_text(encoding="utf-8") for page in PAGES]), strict=True):
        replace_file(page, partial(Path.write_text, data=text, encoding="utf-8"))
        print(f"wrote {page} from {ROWS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
