"""What the file system does to a command: one line on stderr, exit code 2, or 1 where a run had begun."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from hf_adaptive_lr.artifacts import only_writer, shell_word
from hf_adaptive_lr.bench.rows import append_row
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.scheduler.trace import TraceWriter
from tests.job import texts, write_csv, write_text_model

LONG = "x" * 300
ESCAPE = "\x1b[31mred\x07"
TRAIN = ["train", "ppo", "--suite", "quadratic", "--runs", "4", "--hidden-size", "4", "--iterations", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing" / "there")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 3000 + "]" * 3000)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lr_trace.jsonl").write_text('{"step": 0, "lr": 0.1, "reason": "decision"}\n')
    return tmp_path


def _one_line(words: list[str], capfd: pytest.CaptureFixture[str], code: int = 2) -> str:
    try:
        found = main(words)
    except SystemExit as end:
        found = end.code
    out, err = capfd.readouterr()
    assert found == code, err
    err = err.splitlines(keepends=True)[-1] if code == 1 else err  # after the bar and Trainer's own words
    assert err.count("\n") == 1, err
    assert err.startswith("hf-adaptive-lr: error: ")
    assert "\x1b" not in out + err and "\x07" not in out + err
    return err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["finetune", "--save-steps=--"], "--save-steps: expected one argument"),
        (["finetune", "--save=--"], "--save: expected one argument"),
        (["finetune", "--config=--"], "--config: expected one argument"),
        (["finetune", "--config", "deep.yaml"], "nested too deep"),
        (["finetune", "--config", "device"], "it is no regular file"),
        (["finetune", "--controller-kwargs", "[" * 3000], "is not valid JSON"),
        (["finetune", "--output-dir", "dangling"], "is a link to nothing"),
        (["finetune", "--output-dir", LONG], "File name too long"),
        (["finetune", "--data", LONG], "File name too long"),
        (["finetune", "--output-dir", ESCAPE, "--resume"], "'[31mred' has no run to resume"),
        (["finetune", "--controller", ESCAPE], "no controller '[31mred'"),
        (["finetune", f"--{ESCAPE}"], "unrecognized arguments: --[31mred"),
        (["train", "universal", "--iterations", "1", "--output-dir", "o", "--controller-kwargs", "[" * 9999], "JSON"),
        ([*TRAIN, "--output-dir", "dangling"], "or a link to nothing"),
        ([*TRAIN, "--output-dir", LONG], "File name too long"),
        (["report", "run", "--output", LONG], "File name too long"),
        (["report", ESCAPE], "'[31mred': no such folder"),
        (["pull", "a/b", "--output-dir", LONG], "File name too long"),
        (["refine", ESCAPE, "--output-dir", "o"], "'[31mred' is no folder"),
    ],
)
def test_odd_arguments_are_one_line(line, said, here, capfd) -> None:
    before = sorted(here.iterdir())
    assert said in _one_line(line, capfd)
    assert sorted(here.iterdir()) == before


def test_a_page_with_an_odd_name_is_announced_without_control_characters(here, capfd) -> None:
    assert main(["report", "run", "--output", f"a{ESCAPE}.html"]) == 0
    assert "\x1b" not in capfd.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error(capfd, monkeypatch) -> None:
    """`list | head -1`: the pipe is closed before all has been written."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["list"]) == 128 + signal.SIGPIPE
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("verb", ["refine", "bench"])
def test_a_disk_that_is_full_is_code_1_where_work_had_begun(verb, here, capfd, monkeypatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rows = [{"step": step, "grad_norm": 1.0, "learning_rate": 0.1, "loss": 1.0} for step in range(1, 60)]
    state = {"log_history": rows, "global_step": 59, "max_steps": 59, "logging_steps": 1}
    (here / "run" / "trainer_state.json").write_text(json.dumps(state))
    if verb == "refine":
        monkeypatch.setattr("hf_adaptive_lr.hub.serialization.replace_file", full)
        words = ["refine", "run", "--output-dir", "schedule"]
    else:
        monkeypatch.setattr("hf_adaptive_lr.bench.page.replace_file", full)
        words = ["bench", "--quick", "--render-only", "--output-dir", "bench"]
    assert "No space left on device" in _one_line(words, capfd, code=1)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_mount_without_locks_gets_a_warning(number, here, monkeypatch, caplog) -> None:
    def flock(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with only_writer(here / "out"):
        (here / "out" / "file").touch()
    append_row(here / "rows" / "rows.jsonl", {"lr": 1.0})
    assert caplog.text.count("cannot be locked") == 2
    assert [path.name for path in (here / "out").iterdir()] == ["file"]
    assert [path.name for path in (here / "rows").iterdir()] == ["rows.jsonl"]


def test_a_lock_that_may_not_be_made_is_an_error(here, monkeypatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), only_writer(here / "out"):
        pass
    assert not (here / "out" / "lr_trace.jsonl").exists()


def test_drafts_of_the_user_stay(here) -> None:
    theirs, ours = here / "run" / ".notes.txt.123.tmp", here / "run" / ".results.json.123.tmp"
    theirs.touch()
    ours.touch()
    with only_writer(here / "run"):
        assert theirs.exists() and not ours.exists()


def test_a_folder_with_double_blanks_is_quoted_as_it_is() -> None:
    assert shell_word(Path("my  runs") / ESCAPE) == "'my  runs/[31mred'"


JOB = ["finetune", "--data", "good.csv", "--model", "model", "--controller", "linear", "--batch-size", "8"]
JOB += ["--max-steps", "6", "--save-steps", "2", "--output-dir", "out"]


@pytest.fixture
def job(here) -> Path:
    write_csv(here / "good.csv", texts(48))
    write_text_model(here / "model")
    return here


def test_a_disk_that_is_full_ends_a_run_in_one_line_and_it_goes_on(job, capfd, monkeypatch) -> None:
    save, files = torch.save, []

    def full(content: object, path: object, *args: object, **kwargs: object) -> None:
        files.append(str(path))
        if "checkpoint-4" in str(path):
            Path(str(path)).write_bytes(b"PK half")
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"
            )  # torch's own words
        save(content, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert "go on with --resume" in _one_line(JOB, capfd, code=1)
    assert any("checkpoint-4" in name for name in files)
    assert main([*JOB, "--resume"]) == 0
    whole = [*JOB[:-1], "whole"]
    assert main(whole) == 0
    weights = [(job / name / "model" / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("what", ["deleted", "full", "elsewhere"])
def test_a_folder_that_changes_in_mid_run(what, job, capfd, monkeypatch) -> None:
    write = TraceWriter.__call__

    def trouble(self: TraceWriter, decision: object) -> None:
        if decision.step == 3:
            if what == "deleted":
                shutil.rmtree(job / "out")
            elif what == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            else:
                os.chdir("model")
        write(self, decision)

    monkeypatch.setattr(TraceWriter, "__call__", trouble)
    if what == "elsewhere":
        assert main(JOB) == 0
        assert (job / "out" / "results.json").is_file() and (job / "out" / "checkpoint-6").is_dir()
        return
    said = {"deleted": "No such file or directory", "full": "No space left on device"}[what]
    assert said in _one_line(JOB, capfd, code=1)


def test_a_training_whose_disk_is_full_ends_in_one_line(here, capfd, monkeypatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    assert "No space left on device" in _one_line([*TRAIN, "--output-dir", "out"], capfd, code=1)
