"""`hf-adaptive-lr report`: what the page says is what the trace says, whoever wrote it; in a real browser too."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hf_adaptive_lr import cli
from hf_adaptive_lr.cli import report as report_verb
from hf_adaptive_lr.report import ReportError, read_run, render_report
from hf_adaptive_lr.report.charts import Curve, chart, decimate, rate_axis
from hf_adaptive_lr.report.run import Row
from hf_adaptive_lr.report.summary import summary
from hf_adaptive_lr.report.table import MAX_ROWS, REASONS, kept_rows
from hf_adaptive_lr.scheduler.decision import Decision
from hf_adaptive_lr.scheduler.trace import TraceWriter

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)")


# --- helpers ---------------------------------------------------------------------------------------------------------


def write_run(folder: Path, lines: list[Any], **files: Any) -> Path:
    """A run folder; keywords are further files without their suffix, lists for .jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lr_trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in files.items():
        if isinstance(content, list):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def lines(count: int, every: int = 1, warmup: int = 0, base: float = 0.01) -> list[dict[str, Any]]:
    """A trace with a decision every so many updates, of factors that wander around 1."""
    out, lr = [], base
    for step in range(count):
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        row: dict[str, Any] = {"step": step, "reason": "between"}
        if step % every == 0:
            factor = math.exp(math.sin(step / 7) / 3)
            lr = base * factor
            row |= {"reason": "decision", "proposed": factor, "bounded": lr}
            row["observation"] = {"loss": 2 / (1 + step / 50), "alignment": math.cos(step)}
        row |= {"lr": lr * ramp} | ({"ramp": ramp} if ramp != 1 else {})
        out.append(row)
    return out


def call(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    monkeypatch.setattr(cli, "VERBS", (report_verb,))


def page_of(*folders: Path) -> str:
    return render_report([read_run(folder) for folder in folders])


class Page(HTMLParser):
    """Every element with its attributes and text; an element that is not closed in its turn fails."""

    VOID = ("meta", "input", "br", "img", "link")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def said(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))

    def updates(self) -> list[list[dict[str, str]]]:
        """The decision table of every run: a line's cells by the name of their column."""
        found = [rows for rows in self.tables if rows[0][:2] == ["update", "reason"]]
        return [[dict(zip(rows[0], row, strict=True)) for row in rows[1:]] for rows in found]


def shown(value: Any) -> Any:
    """A number as the table has it, rounded to six digits, may be compared with this."""
    return pytest.approx(value, rel=1e-5)


def dumped(address: str, home: Path) -> str:
    """The document that a browser makes of a page, as HTML."""
    assert BROWSER is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={home}/profile"]
    done = subprocess.run(
        [BROWSER, *words, "--virtual-time-budget=4000", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def dom(page: Path, address: str = "") -> Page:
    """The same, parsed."""
    return Page(dumped(page.resolve().as_uri() + address, page.parent))


# --- three sentences -------------------------------------------------------------------------------------------------


def told(folder: Path, rates: list[float], losses: list[float] = (), **files: Any) -> str:
    rows = [{"step": step, "lr": lr, "reason": "decision"} for step, lr in enumerate(rates)]
    log = [{"step": step + 1, "loss": loss} for step, loss in enumerate(losses)]
    return summary(read_run(write_run(folder, rows, trainer_state={"global_step": 9, "log_history": log}, **files)))


def test_a_run_is_told_in_three_sentences(tmp_path) -> None:
    rates = [1e-4, 2e-4, 4e-4, 3e-4, 2e-4, 1e-5]
    falling = [2.0 - 0.05 * t + 0.01 * (-1) ** t for t in range(24)]
    assert told(tmp_path / "a", rates, falling) == (
        "The learning rate began at 0.0001, was raised to 0.0004 at update 2 and fell to 1e-05 at the end. Nothing "
        "went wrong. The training loss was still falling at the end (0.975): a longer run may help."
    )
    flat = [1.0 + 0.01 * (-1) ** t for t in range(24)]
    assert told(tmp_path / "b", [1e-3] * 6, flat).startswith("The learning rate stayed at 0.001. Nothing")
    assert told(tmp_path / "b", [1e-3] * 6, flat).endswith("shows no clear trend at the end (1).")
    back = [*(t + 1 for t in flat[:12]), *falling[::-1][:12]]
    assert "was rising at the end (1.27)" in told(tmp_path / "c", [1e-3, 1e-4], back)
    assert "ended above where it began (2.27)" in told(
        tmp_path / "c", [1e-3, 1e-4], [*flat[:12], *(x + 1 for x in back[12:])]
    )
    dipped = told(tmp_path / "i", [1e-3, 1e-3, 1e-5, 1e-5, 1e-3, 9e-4])
    assert dipped.startswith(
        "The learning rate began at 0.001, lay at 1e-05 at update 2 and fell to 0.0009 at the end."
    )
    assert told(tmp_path / "d", [1e-3, 1e-4], flat[:5]) == (
        "The learning rate began at 0.001 and fell to 0.0001 at the end. Nothing went wrong. There are too few losses "
        "to say how it ended."
    )
    assert told(tmp_path / "e", [1e-4, 1e-3]).startswith(
        "The learning rate began at 0.0001 and was raised to 0.001 at"
    )
    assert told(tmp_path / "g", [1e-8, 1e-4, 1e-3, 1e-4]).startswith(
        "After a first update at 1e-08 or less the learning rate began at 0.0001, was raised to 0.001 at update 2 and"
    )
    assert told(tmp_path / "h", [0.0, 1e-8, 1e-3]).startswith(
        "After 2 updates at 1e-08 or less the learning rate stayed"
    )
    assert told(tmp_path / "f", [0.0, 0.0]).startswith("The learning rate was 0 all along.")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (
            [1.0] * 20 + [math.nan] * 40,
            "no finite number 40 times, first at update 20. At the end the training loss was no",
        ),
        (
            [2 - 0.01 * t for t in range(20)] + [1e150] * 20,
            "no finite number 20 times, first at update 20. At the end",
        ),
        ([2 - 0.01 * t for t in range(20)] + [100.0] * 20, "ended above where it began (100)"),
        (
            [1.0, math.inf] + [1 - 0.01 * t for t in range(20)],
            "no finite number once, first at update 1. The training loss was still",
        ),
    ],
)
def test_a_run_that_came_apart_is_not_called_healthy(losses, said, tmp_path) -> None:
    assert said in told(tmp_path / "run", [1e-3] * 6, losses)
    assert "Nothing went wrong" not in told(tmp_path / "run", [1e-3] * 6, losses) or "ended above" in said


def test_what_went_wrong_is_counted(tmp_path) -> None:
    rows = [{"step": t, "lr": 0.1, "reason": "decision"} for t in range(9)]
    rows[2]["reason"] = rows[3]["reason"] = "held"
    rows[4]["reason"] = "bounded"
    rows[6] |= {"reason": "handed_over", "detail": "three mistakes"}
    events = [{"update": 5, "action": "skip"}, {"update": 6, "action": "skip"}, {"update": 7, "action": "rollback"}]
    said = summary(read_run(write_run(tmp_path / "run", rows, events=events)))
    assert said.split(". ")[1] == (
        "The guard acted (skip 2 times, rollback once); a number that was not finite kept the rate as it was 2 times; "
        "an answer outside the bounds was cut once; from update 6 on the controller was not asked any more (three "
        "mistakes)"
    )
    page = Page(page_of(tmp_path / "run"))
    assert said in page.said()
    both = Page(page_of(tmp_path / "run", tmp_path / "run"))
    assert both.said().count(said) == 2


def test_an_evaluation_loss_that_rises_again_is_told(tmp_path) -> None:
    log = [{"step": 2 * t + 2, "eval_loss": loss} for t, loss in enumerate((2.0, 1.0, 1.5, 1.6))]  # once is chance
    rows = [{"step": t, "lr": 0.1, "reason": "decision"} for t in range(9)]
    said = summary(read_run(write_run(tmp_path / "run", rows, trainer_state={"global_step": 8, "log_history": log})))
    assert "The evaluation loss was lowest after update 3 (1) and rose to 1.6" in said


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_holds_every_number_of_the_trace(tmp_path) -> None:
    trace = lines(60, every=3, warmup=20)
    trace[33] |= {"reason": "bounded", "detail": "factor bound", "proposed": 1e9}
    (run,) = Page(page_of(write_run(tmp_path / "run", trace))).updates()
    assert [int(row["update"]) for row in run] == list(range(60))
    assert [row["reason"] for row in run] == [": ".join(filter(None, (r["reason"], r.get("detail")))) for r in trace]
    for name, key, scale in (("applied", "lr", 1), ("bounded", "bounded", 1), ("factor", "proposed", 1)):
        assert [float(row[name] or "nan") for row in run] == pytest.approx(
            [scale * row.get(key, math.nan) for row in trace], rel=1e-5, nan_ok=True
        )
    assert [float(row["proposed"] or 0) for row in run] == shown([0.01 * row.get("proposed", 0) for row in trace])
    assert [float(row["ramp"] or 1) for row in run] == shown([row.get("ramp", 1.0) for row in trace])
    for row, line in zip(run, trace, strict=True):
        seen = [pair.split() for pair in row["observed"].split(", ") if pair]
        assert {name: float(value) for name, value in seen} == shown(line.get("observation", {}))


def test_a_line_says_why_its_update_had_its_learning_rate(tmp_path) -> None:
    trace = lines(1000, every=4, warmup=100)
    trace[812] |= {"reason": "bounded", "detail": "factor bound", "proposed": 30.0, "lr": 0.04, "bounded": 0.04}
    trace[813] |= {"lr": 0.04}
    events = [{"update": 812, "action": "skip", "reason": "loss spike", "loss": 40.5}]
    text = page_of(write_run(tmp_path / "run", trace, events=events))
    page = Page(text)
    (run,) = page.updates()
    seen = trace[812]["observation"]
    change = 100 * (0.04 / trace[811]["lr"] - 1)
    assert run[812] == {
        "update": "812",
        "reason": "bounded: factor bound; guard: skip (reason loss spike, loss 40.5)",
        "observed": f"loss {seen['loss']:.6g}, alignment {seen['alignment']:.6g}",
        "factor": "30",
        "proposed": "0.3",
        "bounded": "0.04",
        "ramp": "",
        "applied": "0.04",
        "change": f"+{change:.3g} %",
    }
    assert (run[813]["reason"], run[813]["applied"], run[813]["change"]) == ("between", "0.04", "+0 %")
    assert (float(run[41]["ramp"]), float(run[41]["applied"])) == shown((trace[41]["ramp"], trace[41]["lr"]))
    assert REASONS["bounded"] in page.said() and REASONS["between"] in page.said()
    assert REASONS["held"] not in page.said(), "the legend explains what occurs"
    assert '<tr id="run=0&amp;step=812">' in text, "the address of an update"
    assert '<tr id="run=0&amp;step=813" class="between">' in text, "which the reader may hide"


def test_the_page_needs_nothing_else_and_runs_no_other_script(tmp_path) -> None:
    text = page_of(write_run(tmp_path / "run", lines(30)))
    page = Page(text)
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "script" not in policy and page.count("script") == 0
    assert not {name for _, attributes in page.elements for name in attributes} & {"src", "style", "onclick", "onload"}
    assert not re.search(r"https?:|@import|url\(|innerHTML|eval\(", text)
    assert page.count("svg") >= 2
    assert all(a.get("aria-label") or a.get("aria-hidden") for tag, a in page.elements if tag == "svg")
    assert {"label", "dl", "h1", "thead"} <= {tag for tag, _ in page.elements}


def test_the_same_input_gives_the_same_bytes(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("a"), lines(40), results={"versions": {"b": 1, "a": 2}}, events=[{"update": 3, "action": "skip"}])
    write_run(Path("b"), lines(30, every=5))
    hashes = {
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import hashlib; from pathlib import Path; from hf_adaptive_lr.report import *;"
                "print(hashlib.sha256(render_report([read_run(Path(n)) for n in 'ab']).encode()).hexdigest())",
            ],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(hashes) == 1


def test_the_verb_writes_the_page_whole_and_loads_no_torch(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", lines(5))
    assert call("report", "run") == 0
    assert "report.html" in capsys.readouterr().out
    assert call("report", "run", "run", "--output", "new/page.html") == 0
    assert (tmp_path / "new/page.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "report.html", "run"], "no drafts are left"
    code = "import sys, hf_adaptive_lr.report; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=env).strip() == "False"


@pytest.mark.parametrize("kind", ["no folder", "no trace", "empty trace", "no rows", "a file", "bad output"])
def test_what_cannot_be_reported_is_one_line_and_exit_code_2(tmp_path, capsys, kind) -> None:
    folder, output = tmp_path / "run", tmp_path / "page.html"
    if kind == "a file":
        folder.write_text("")
    elif kind != "no folder":
        folder.mkdir()
    if kind in ("empty trace", "no rows"):
        (folder / "lr_trace.jsonl").write_text("" if kind == "empty trace" else '[1]\n{"step": 1}\nnull\n')
    if kind == "bad output":
        write_run(folder, lines(3))
        output.mkdir()
    assert call("report", folder, "--output", output) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-adaptive-lr: error: ") and error.count("\n") == 1
    assert ("page.html" if kind == "bad output" else "run") in error
    assert not output.is_file()


def test_loss_and_facts_come_from_the_files_that_are_there(tmp_path) -> None:
    trace = [{k: v for k, v in row.items() if k != "observation"} for row in lines(20)]
    history = [{"step": s, "loss": 2.0 / s} for s in range(1, 21)] + [{"step": 20, "eval_loss": 0.5, "epoch": 1.0}]
    results = {"accuracy": 0.875, "controller": {"controller_type": "plateau", "patience": 3}, "seed": 7}
    settings = {"controller": "plateau", "seed": 7, "batch_size": 8}
    run = write_run(tmp_path / "run", trace, results=results, finetune_config=settings)
    for step in (9, 100, 20):
        (run / f"checkpoint-{step}").mkdir()
        state = {"global_step": step, "log_history": history[:step]} if step != 100 else []
        (run / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    (run / "trainer_state.json").write_text(json.dumps({"global_step": 21, "log_history": history}))
    read = read_run(run)
    assert read.losses == [(s - 1, 2.0 / s) for s in range(1, 21)]
    assert read.evals == [(19, 0.5)]
    assert read.facts["controller"] == "plateau"
    assert read.facts["controller settings"] == "patience 3"
    assert (read.facts["accuracy"], read.facts["batch size"], read.facts["last LR"]) == (
        "0.875",
        "8",
        f"{trace[-1]['lr']:.6g}",
    )
    assert read.notes == ["trainer_state.json could not be read and is left out."]
    bare = read_run(write_run(tmp_path / "bare", trace))
    assert bare.facts["controller"] == "the files do not say"
    assert "No loss was found" in bare.notes[0]
    assert "No loss was found" in Page(page_of(tmp_path / "bare")).said()


def test_a_line_cut_short_is_said_and_the_rest_is_kept(tmp_path) -> None:
    run = write_run(tmp_path / "run", lines(10), results={"accuracy": 1})
    whole = (run / "lr_trace.jsonl").read_bytes()
    (run / "lr_trace.jsonl").write_bytes(whole[:-20])
    read = read_run(run)
    assert [row.step for row in read.rows] == list(range(9))
    assert "cut short" in Page(page_of(run)).said()
    (run / "lr_trace.jsonl").write_bytes(whole[:-1])
    assert len(read_run(run).rows) == 10, "only the end of the line is missing"
    middle = whole.splitlines(keepends=True)
    middle[4] = b"\xff\xfe nonsense\n"
    middle[6] = b'{"step": -1, "lr": 0.1}\n'
    (run / "lr_trace.jsonl").write_bytes(b"".join(middle))
    (run / "results.json").write_text("{")
    read = read_run(run)
    assert [row.step for row in read.rows] == [0, 1, 2, 3, 5, 7, 8, 9]
    assert read.notes == [
        "2 lines of lr_trace.jsonl could not be read and left out: 5, 7.",
        "results.json could not be read and is left out.",
    ]


def test_events_stand_at_their_update_or_where_it_would_have_been(tmp_path) -> None:
    trace = [row for row in lines(12) if row["step"] not in (5, 6)]
    events = [
        {"update": 6, "action": "rollback", "reason": "loss spike", "loss": 40.0, "lr_after": 0.005},
        {"step": 2, "update": 7, "reason": "skip"},
        {"update": 99, "action": "stop"},
        {"note": "says nothing else"},
        "no event",
    ]
    read = read_run(write_run(tmp_path / "run", trace, events=events))
    assert [(row.step, row.reason) for row in read.rows if row.lr is None] == [(6, "event"), (99, "event")]
    assert [read.rows[event.row].step for event in read.events] == [2, 6, 99, 99]
    assert [event.action for event in read.events] == ["skip", "rollback", "stop", "event"]
    assert read.events[0].facts == {"update": 7.0}, "the index of the trace counts"
    assert read.events[1].facts == {"reason": "loss spike", "loss": 40.0, "lr_after": 0.005}
    assert read.facts["guard events"] == "4" and read.facts["updates in the trace"] == "10"
    text = Page(page_of(tmp_path / "run")).said()
    assert all(f"guard: {name} (1)" in text for name in ("skip", "rollback", "stop", "event"))


def test_a_run_that_went_back_keeps_both_tries(tmp_path) -> None:
    again = [{**row, "lr": row["lr"] / 2} for row in lines(20)[8:]]
    read = read_run(write_run(tmp_path / "run", lines(12) + again))
    assert [row.step for row in read.rows] == [*range(12), *range(8, 20)]
    assert "goes back once" in " ".join(read.notes)
    (run,) = Page(page_of(tmp_path / "run")).updates()
    assert [int(row["update"]) for row in run] == [*range(12), *range(8, 20)]
    assert [row["reason"] for row in run[11:17]] == ["decision", *["decision; run again"] * 4, "decision"]
    assert page_of(tmp_path / "run").count('id="run=0&amp;step=9"') == 1, "the last one has the address"


def test_answers_that_are_rates_and_groups_that_differ(tmp_path) -> None:
    rates = [{"step": s, "lr": 0.1 + s, "reason": "decision", "proposed": 0.1 + s, "bounded": 0.1 + s} for s in (0, 1)]
    assert read_run(write_run(tmp_path / "rates", rates)).base_lr == 1.0
    assert "factor" not in Page(page_of(tmp_path / "rates")).updates()[0][0]
    cut = [{"step": 0, "lr": 0.02, "reason": "bounded", "proposed": 50.0, "bounded": 0.02}]
    assert "Proposals are not drawn" in Page(page_of(write_run(tmp_path / "cut", cut))).said()
    cut[0]["detail"] = "factor bound"
    assert read_run(write_run(tmp_path / "cut", cut, results={"learning_rate": 0.01})).base_lr == 0.01
    frozen = [{"step": s, "lr": 0.0, "lrs": [0.0, 0.3], "reason": "decision"} for s in (0, 1)]
    read = read_run(write_run(tmp_path / "frozen", frozen))
    assert (read.group, [row.lr for row in read.rows]) == (1, [0.3, 0.3])
    assert "Group 0 does not train" in Page(page_of(tmp_path / "frozen")).said()


def test_a_learning_rate_of_zero_and_wild_proposals_are_said(tmp_path) -> None:
    trace = lines(40)
    trace[20] |= {"reason": "bounded", "detail": "factor bound", "proposed": 1e300}
    trace[21] |= {"reason": "bounded", "detail": "factor bound", "proposed": -1.0}
    trace[22] |= {"reason": "held", "detail": "answer is nan"}
    trace[39] |= {"lr": 0.0}
    text = Page(page_of(write_run(tmp_path / "run", trace))).said()
    assert "2 of 40 proposals are far outside" in text
    assert "was 0 at 1 updates" in text
    assert "held (1)" in text and "bounded (2)" in text
    # Tiny first updates do not stretch it; tiny ones later do.
    for steps in (6, 60, 200):
        rates = [(t, 1e-3) for t in range(1, steps)]
        first = [Curve("applied", [(0, 1e-8), *rates], ""), Curve("bounded", [(0, 1e-7), (1, 1e-3)], "")]
        assert 9e-4 < rate_axis(first).low < 1e-3
        assert rate_axis([Curve("applied", [*rates, (steps, 1e-8)], "")]).low < 1e-8
    axis = rate_axis([Curve("applied", [(0, 1e-4), (1, 1e-2)], ""), Curve("p", [(0, 1e9)], "", sets_axis=False)])
    assert axis.low < 1e-4 and 1e-2 < axis.high < 1, "wild proposals do not flatten what was applied"


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0], [5e-324, 1e308], [-1e300, 1e300], [1.0, math.inf, math.nan]])
def test_any_finite_or_infinite_numbers_make_a_chart(tmp_path, values) -> None:
    rows = [{"step": s, "lr": v, "reason": "decision", "observation": {"loss": v}} for s, v in enumerate(values)]
    run = write_run(tmp_path / "run", [{"step": 0, "lr": 0.1, "reason": "decision"}, *rows])
    state = {"global_step": 2, "log_history": [{"step": s, "loss": v} for s, v in enumerate(values)]}
    (run / "trainer_state.json").write_text(json.dumps(state))
    text = page_of(run)
    shapes = re.findall(r' d="([^"]*)"', text)
    assert shapes and not any(re.search("nan|inf", shape) for shape in shapes)


def test_odd_values_from_anywhere_are_survived(tmp_path) -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    odd = [
        None,
        True,
        10**400,
        "x" * 10_000,
        deep,
        {"a": deep},
        [1, "b", None, [2]],
        "\x00\x1b[31m\u202e",
        "\ud800",
        -1,
    ]
    rows = lines(4)
    for value in odd:
        names = ("reason", "ramp", "proposed", "bounded", "detail", "lrs", "observation")
        rows.append({"step": len(rows), "lr": 0.1, **dict.fromkeys(names, value)})
        rows.append(
            {"step": len(rows), "lr": 0.1, "reason": "decision", "observation": {"f": value, str(value)[:50]: 1}}
        )
        rows.append({"step": value, "lr": value})
    event = [{"update": value, "action": value, "x": value} for value in odd]
    results = {str(index): value for index, value in enumerate(odd)} | {"controller": [1], "accuracy": None}
    run = write_run(tmp_path / "run", rows, events=event, results=results)
    for value in odd:
        (run / "trainer_state.json").write_text(json.dumps({"global_step": 1, "log_history": value}))
        Page(page_of(run))
    (run / "trainer_state.json").write_text("[" * 100_000)
    text = page_of(run)
    assert not re.search("[\x00\x1b\u202e\ud800]", text)
    text.encode()


_MARK = "document.documentElement.dataset.pwned='1'"
EVIL = f'</script><script>{_MARK}</script><img src=x onerror="{_MARK}">\'"&<!--'


def evil_runs(tmp_path: Path) -> list[Path]:
    """Two runs with script in every string that a file or a folder can hold."""
    names = ["x<", "script><script>document.documentElement.dataset.pwned=1<", "script><img src=x onerror=alert(1)>"]
    row = {"lr": 0.1, "proposed": EVIL, "bounded": EVIL, "reason": EVIL, "detail": EVIL, "ramp": EVIL}
    trace = [{"step": s, **row, "observation": {EVIL: EVIL, "loss": EVIL, "many": [EVIL]}} for s in range(4)]
    events = [{"update": s, "reason": EVIL, "action": EVIL, EVIL: EVIL, "lr_before": EVIL} for s in (1, 9)]
    results = {
        **{name: EVIL for name in ("task", "accuracy", "loss", "data", "command", "optimizer", EVIL)},
        "controller": {"controller_type": EVIL, EVIL: EVIL},
        "model": {"name": EVIL},
        "versions": {EVIL: EVIL},
    }
    state = {"global_step": 3, "epoch": EVIL, "log_history": [{"step": EVIL, "loss": EVIL}, {"eval_accuracy": EVIL}]}
    files = {"results": results, "events": events, "finetune_config": {EVIL: EVIL}, "trainer_state": state}
    return [
        write_run(tmp_path.joinpath(*names), trace, **files),
        write_run(tmp_path / "other", lines(6), finetune_config={"controller": EVIL}, events=events),
    ]


def test_texts_from_files_are_only_ever_text(tmp_path) -> None:
    plain = Page(page_of(write_run(tmp_path / "a", lines(6)), write_run(tmp_path / "b", lines(6))))
    page = Page(page_of(*evil_runs(tmp_path)))
    for tag in ("script", "style", "img", "meta", "html"):
        assert page.count(tag) == plain.count(tag), tag
    assert not [a for _, a in page.elements if "onerror" in a]
    run = page.updates()[0]
    assert [row["reason"].startswith(f"{EVIL}: {EVIL}") for row in run] == [*[True] * 4, False]
    assert run[4]["reason"].startswith(f"event; guard: {EVIL}")
    assert all(f"{EVIL} {EVIL}" in row["observed"] and row["bounded"] == EVIL for row in run[:4])
    assert page.said().count(EVIL) > 10


def test_several_runs_stand_side_by_side(tmp_path) -> None:
    first = write_run(tmp_path / "one", lines(30), results={"accuracy": 0.5, "task": "text"})
    second = write_run(tmp_path / "two", lines(20, base=0.1), results={"accuracy": 0.75, "task": "text"})
    text = page_of(first, second)
    page = Page(text)
    assert [len(run) for run in page.updates()] == [30, 20]
    assert [Path(name).name for tag, name in page.texts if tag == "h2"][1:3] == ["one", "two"]
    assert page.count("figure") == 2 + 2 * 3
    assert '<tr class="differs"><th scope="row">accuracy</th><td>0.5</td><td>0.75</td></tr>' in text
    assert '<tr><th scope="row">task</th><td>text</td><td>text</td></tr>' in text
    twice = [Path(name).name for tag, name in Page(page_of(first, first)).texts if tag == "h2"][1:3]
    assert twice == ["one", "one (2)"], "one folder given twice"
    assert "Compared" in page.said() and "Compared" not in Page(page_of(first)).said()


# --- size ------------------------------------------------------------------------------------------------------------


def test_curves_are_thinned_without_losing_a_spike() -> None:
    points = [(float(x), math.sin(x / 900)) for x in range(50_000)]
    points[31_234] = (31_234.0, 40.0)
    kept = decimate(points)
    assert len(kept) <= 2_002
    assert kept == sorted(kept) and {points[0], points[-1], points[31_234]} <= set(kept)
    assert decimate(points[:2000]) == points[:2000]
    back = [point for start in range(300) for point in points[start : start + 30]]
    assert len(chart("t", "u", [Curve("c", back, "k0")], rate_axis([Curve("c", [(0, 1.0)], "")]), 400)) < 60_000


def test_what_a_page_has_no_room_for_goes_by_importance_and_is_said(tmp_path, monkeypatch) -> None:
    rows = [Row(s, 0.1, "decision" if s % 10 == 0 else "between") for s in range(1000)]
    rows[333] = Row(333, 0.1, "held")
    assert kept_rows(rows, [], 1000) == list(range(1000))
    kept = kept_rows(rows, [], 150)
    assert len(kept) == len(set(kept)) == 150
    assert {0, 333, 999, *range(0, 1000, 10)} <= set(kept)
    assert {0, 333, 999} <= set(kept_rows(rows, [], 20))
    monkeypatch.setattr("hf_adaptive_lr.report.page.MAX_ROWS", 60)
    page = Page(page_of(write_run(tmp_path / "run", lines(200, every=5))))
    assert len(page.updates()[0]) == 60
    assert "60 of 200 updates are in this table" in page.said()


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> tuple[Path, list[dict[str, Any]], float]:
    folder = tmp_path_factory.mktemp("long")
    trace = lines(100_000, warmup=500)
    write_run(folder / "run", trace)
    started = time.process_time()
    assert (
        report_verb.run(
            report_verb.argparse.Namespace(run_dirs=[folder / "run"], output=folder / "page.html", json=False)
        )
        == 0
    )
    return folder / "page.html", trace, time.process_time() - started


def test_a_hundred_thousand_decisions_stay_small_and_quick(long_run) -> None:
    path, trace, seconds = long_run
    assert seconds < 20, "about 3 s on two busy cores"
    assert path.stat().st_size < 3e6
    page = Page(path.read_text())
    (run,) = page.updates()
    assert len(run) == MAX_ROWS and f"{MAX_ROWS:,} of 100,000 updates are in this table" in page.said()
    for name, key in (("applied", "lr"), ("bounded", "bounded"), ("factor", "proposed")):
        assert [float(row[name]) for row in run] == shown([trace[int(row["update"])][key] for row in run])


# --- a real run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory) -> list[Path]:
    from hf_adaptive_lr.finetune.job import FinetuneConfig, run
    from tests.job import texts, write_csv, write_text_model

    folder = tmp_path_factory.mktemp("real")
    write_csv(folder / "train.csv", texts(48))
    write_text_model(folder / "model")
    for name in ("hypergradient", "linear"):
        run(
            FinetuneConfig(
                data=str(folder / "train.csv"),
                model=str(folder / "model"),
                controller=name,
                output_dir=str(folder / name),
                learning_rate=0.02,
                max_steps=12,
                batch_size=8,
                save_steps=6,
            )
        )
    return [folder / "hypergradient", folder / "linear"]


def test_of_many_checkpoints_the_newest_is_read(tmp_path, monkeypatch) -> None:
    """Each has the whole log up to it: 400 of a run of 200,000 updates would be 40 million entries."""
    run = write_run(tmp_path / "run", lines(30))
    for step in (2, 10, 20, 30):
        (run / f"checkpoint-{step}").mkdir()
        state = {"global_step": step, "log_history": [{"step": s, "loss": float(s)} for s in range(1, step + 1)]}
        (run / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    (run / "checkpoint-30" / "trainer_state.json").write_text('{"cut')
    (run / "checkpoint-mine").mkdir()
    (run / "checkpoint-mine" / "trainer_state.json").write_text("{}")
    opened = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path.parent.name), read(path))[1])
    found = read_run(run)
    assert found.losses[-1] == (19, 20.0) and len(found.losses) == 20
    assert [name for name in opened if name.startswith("checkpoint")] == ["checkpoint-30", "checkpoint-20"]


def test_what_the_main_job_leaves_is_understood(real_runs) -> None:
    run = read_run(real_runs[0])
    assert not run.notes
    assert len(run.losses) == len(run.rows) == 12
    assert run.base_lr == pytest.approx(0.02, rel=1e-6)
    assert run.facts["controller"] == "hypergradient"
    assert "transformers 5" in run.facts["versions"]
    assert float(run.facts["accuracy"]) == pytest.approx(
        json.loads((real_runs[0] / "results.json").read_text())["accuracy"], rel=1e-5
    )


def test_what_the_writer_of_traces_writes_is_read_back(tmp_path) -> None:
    writer = TraceWriter(tmp_path / "lr_trace.jsonl")
    decisions = [
        Decision(
            0, (0.1, 0.2), "bounded", 0.5, 9.0, 0.2, {"loss": 2.0, "group_alignment": (0.5, -0.5)}, "factor bound"
        ),
        Decision(1, (0.1, 0.2), "held", observation={"loss": math.nan}, detail="loss is nan"),
        Decision(2, (0.1, 0.2), "between"),
    ]
    for decision in decisions:
        writer(decision)
    rows = read_run(tmp_path).rows
    assert {row.reason for row in rows} <= REASONS.keys()
    assert [(row.step, row.lrs, row.ramp, row.detail) for row in rows] == [
        (d.step, d.lr, d.ramp, d.detail) for d in decisions
    ]
    assert rows[0].observation == {"loss": 2.0, "group_alignment": [0.5, -0.5]}
    assert (rows[0].proposed, rows[0].bounded, rows[1].observation) == (9.0, 0.2, {"loss": "nan"})


# --- in a browser ----------------------------------------------------------------------------------------------------


@needs_browser
def test_the_browser_agrees_with_a_real_run(real_runs, tmp_path) -> None:
    call("report", *real_runs, "--output", tmp_path / "page.html")
    row = json.loads((real_runs[0] / "lr_trace.jsonl").read_text().splitlines()[7])
    page = dom(tmp_path / "page.html", "#run=0&step=7")
    line = page.updates()[0][7]
    assert (float(line["applied"]), float(line["factor"])) == shown((row["lr"], row["proposed"]))
    assert line["observed"] == f"alignment {row['observation']['alignment']:.6g}"
    assert [len(run) for run in page.updates()] == [12, 12]


@needs_browser
@pytest.mark.parametrize("guarded", [True, False])
def test_nothing_that_a_file_says_runs_in_the_browser(tmp_path, guarded) -> None:
    text = page_of(*evil_runs(tmp_path))
    if not guarded:  # the escaping must do without the page's policy
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert "Security-Policy" not in text
    path = tmp_path / "page.html"
    for address in ("#run=0&step=1", "#run=" + EVIL):
        path.write_text(text)
        page = dom(path, address)
        assert next(a for tag, a in page.elements if tag == "html") == {"lang": "en"}
        assert page.count("script") == 0 and page.count("img") == 0
        assert EVIL in page.said()
    # The same payload does run where it is not escaped, so that the test means something.
    path.write_text(f"<!doctype html><html lang=en><body>{EVIL[9:]}--></body></html>")
    assert "data-pwned" in dumped(path.resolve().as_uri(), tmp_path).split("<body", 1)[0]


def test_a_folder_given_by_mistake_is_named() -> None:
    with pytest.raises(ReportError, match="'nowhere': no such folder"):
        read_run(Path("nowhere"))
