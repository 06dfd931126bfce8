"""What a notebook shows of a run: slices of the trace, tables, pictures and the report in a frame."""

from __future__ import annotations

import copy
import html
import pickle
import re

import pytest
import torch

import hf_adaptive_lr
from hf_adaptive_lr import AutoController, ControlledLR, Hypergradient, show_report
from hf_adaptive_lr.report import ReportError
from hf_adaptive_lr.report.inline import facts, sparkline
from hf_adaptive_lr.scheduler.decision import Decision
from hf_adaptive_lr.scheduler.look import Trace
from hf_adaptive_lr.scheduler.trace import TraceWriter


@pytest.fixture
def trained(tmp_path) -> ControlledLR:
    """Thirty updates of a line, the last of them cooled down, with a trace in `tmp_path/run`."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Hypergradient(), model=model, total_steps=30, trace_size=20)
    scheduler.listeners.append(TraceWriter(tmp_path / "run" / "lr_trace.jsonl", scheduler.controller, 30))
    for step in range(30):
        if step == 25:
            scheduler.cooldown(5)
        loss = model(torch.ones(4, 2)).square().mean()
        loss.backward()
        scheduler.observe(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
    return scheduler


def test_a_slice_of_the_trace_is_a_trace(trained) -> None:
    trace = trained.trace
    assert len(trace) == trace.maxlen == 20 and isinstance(trace[-1], Decision)
    assert [d.step for d in trace[-3:]] == [27, 28, 29] and [d.step for d in trace[::10]] == [10, 20]
    assert isinstance(trace[2:4], Trace) and trace[2:4][0] is trace[2]
    for copied in (copy.deepcopy(trace), pickle.loads(pickle.dumps(trace)), copy.copy(trace)):
        assert list(copied) == list(trace) and copied.maxlen == 20


def test_the_trace_for_pandas_has_a_row_for_each_update(trained) -> None:
    table = trained.trace.to_pandas()
    assert table.index.tolist() == list(range(10, 30)) and table.index.name == "step"
    assert table["lr"].tolist() == trained.lr_history()
    assert (
        table.loc[26, "reason"] == "cooldown"
        and table.loc[10, "alignment"] == trained.trace[0].observation["alignment"]
    )
    two = Trace([Decision(0, (0.1, 0.2), "decision"), Decision(1, (0.0, 0.0), "cooldown")]).to_pandas()
    assert two[["lr", "lr_0", "lr_1"]].values.tolist() == [[0.1, 0.1, 0.2], [0.0, 0.0, 0.0]]
    assert list(Trace().to_pandas().columns)[:2] == ["lr", "reason"]


def test_the_picture_has_the_learning_rate_the_loss_and_marks(trained) -> None:
    figure = trained.plot()
    (rate,) = figure.axes  # this controller looks at no loss
    assert rate.lines[0].get_ydata() == pytest.approx(trained.lr_history())
    assert [line.get_label() for line in rate.lines[1:]] == ["cooldown"]
    assert list(rate.lines[1].get_xdata()) == [25, 26, 27, 28, 29]
    assert rate.get_yscale() == "log" and rate.get_xlabel() == "update"
    assert figure._repr_png_().startswith(b"\x89PNG")
    steps = [Decision(t, (0.1,), "decision", proposed=1.0, observation={"loss": 2.0 - t}) for t in range(3)]
    seen = Trace(steps).plot().axes[0].lines
    assert [line.get_label() for line in seen] == ["loss"] and list(seen[0].get_ydata()) == [2.0, 1.0, 0.0]
    assert Trace().plot().axes  # an empty run has an empty picture


def test_what_a_notebook_shows(trained) -> None:
    shown = trained._repr_html_()
    assert "hypergradient" in shown and "30 of 30" in shown and "<svg" in shown and "Updates 10 to 29" in shown
    assert "No update yet" in Trace()._repr_html_()
    controller = AutoController.from_pretrained("universal_1")._repr_html_()
    assert "Universal (universal)" in controller and "gain_ratio" in controller and "weights" in controller
    assert "cooldown" in trained.trace[-1]._repr_html_() and "Update 29" in trained.trace[-1]._repr_html_()


def test_texts_are_escaped() -> None:
    decision = Decision(0, (0.1,), "held", detail="<script>alert(1)</script>")
    for shown in (decision._repr_html_(), Trace([decision])._repr_html_(), facts("<b>", [("<i>", "<u>")])):
        assert "<script" not in shown and not re.search(r"<[biu]>", shown)


def test_a_line_has_few_points_and_only_of_what_can_be_drawn() -> None:
    drawn = sparkline([1.0, 0.0, float("nan"), 10.0, 100.0], "x")
    assert len(re.search(r'points="([^"]*)"', drawn)[1].split()) == 3
    assert len(re.search(r'points="([^"]*)"', sparkline([1.0 + i for i in range(100_000)], "x"))[1].split()) <= 240
    assert sparkline([0.1], "x") == "" and sparkline([], "x") == "" and "<svg" in sparkline([0.1, 0.1], "x")


def test_the_report_in_a_notebook_is_that_of_the_command_line(trained, tmp_path) -> None:
    page = show_report(tmp_path / "run", str(tmp_path / "run"))
    shown = page._repr_html_()
    assert shown.startswith("<iframe sandbox ") and html.escape(page.html) in shown
    assert page.save(tmp_path / "page.html").read_text() == page.html and "Learning rate of" in page.html
    assert page.save(tmp_path / "new" / "page.html").is_file() and page.save(tmp_path / "page.html").is_file()
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(FileExistsError, match="is no report"):
        page.save(tmp_path / "mine.html")
    with pytest.raises(ValueError, match="at least one folder"):
        show_report()
    with pytest.raises(ValueError, match="height=9 must be at least 100"):
        show_report(tmp_path / "run", height=9)
    with pytest.raises(ReportError):
        show_report(tmp_path / "nothing")


def test_dir_shows_public_names_only() -> None:
    shown = {name for name in dir(hf_adaptive_lr) if not name.startswith("__")}
    assert shown == {*hf_adaptive_lr.__all__} and {"__version__", "__file__"} <= {*dir(hf_adaptive_lr)}
