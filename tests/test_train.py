"""The training driver and its command: outputs, exact resume, a real kill, two processes, bad input."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import debug_launcher

from hf_adaptive_lr import AutoController, ControlledLR
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.meta.driver import DriverConfig, run
from hf_adaptive_lr.meta.ppo import PPOTrainer
from hf_adaptive_lr.meta.trainers import METHODS, make_trainer
from tests.tiny import batches, mlp

LINE = ["train", "ppo", "--suite", "quadratic", "--runs", "4", "--hidden-size", "4", "--iterations", "4"]


def _weights(folder: Path) -> torch.Tensor:
    return torch.cat([p.flatten() for _, p in sorted(AutoController.from_pretrained(folder).params.items())])


RECURRENT = METHODS[1:4]  # universal and schedule_ppo have tests of their own


@pytest.mark.parametrize("method", RECURRENT)
def test_every_method_writes_a_controller_that_loads_and_steers(method, tmp_path, capsys) -> None:
    folder = tmp_path / "out"
    assert main(["train", method, *LINE[2:], "--output-dir", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "training.json", "checkpoint.pt"}
    record = json.loads((folder / "training.json").read_text())
    assert record["method"] == method
    assert record["iterations"] == len(record["curves"]) == 4
    assert record["inner_steps"] > 0
    assert len(record["suite_digest"]) == 64
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    controller = AutoController.from_pretrained(folder)
    scheduler = ControlledLR(optimizer, controller, model=model, hook=False, total_steps=4, max_grad_norm=0)
    for x, y in batches(4):
        scheduler.before_forward(lambda x=x, y=y: torch.nn.functional.cross_entropy(model(x), y))
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        scheduler.observe(loss=loss)
        optimizer.step()
        optimizer.zero_grad()
    assert len(set(scheduler.lr_history())) == 4


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("stop", "checkpoint_seconds"), [(Stopped, 0), (KeyboardInterrupt, 3600)], ids=["checkpoint", "ctrl-c"]
)
@pytest.mark.parametrize("method", RECURRENT)
def test_a_training_stopped_and_resumed_gives_the_same_weights(method, stop, checkpoint_seconds, tmp_path) -> None:
    def drive(folder: Path, iterations: int, *, resume: bool = False) -> torch.Tensor:
        # The learning rate falls with the progress, so both parts must know the whole length.
        config = DriverConfig(suite="quadratic", output_dir=folder, runs=4, iterations=iterations)
        run(make_trainer(method, hidden_size=4, seed=0), config, resume=resume, bar=False)
        return _weights(folder)

    whole = drive(tmp_path / "whole", 4)
    assert torch.equal(drive(tmp_path / "again", 4), whole)
    part = make_trainer(method, hidden_size=4, seed=0)

    iterate = part.iterate

    def stops(problems, iteration, progress=0.0):
        if iteration == 2:
            raise stop
        return iterate(problems, iteration, progress)

    part.iterate = stops
    settings = {"runs": 4, "iterations": 4, "checkpoint_seconds": checkpoint_seconds}
    config = DriverConfig(suite="quadratic", output_dir=tmp_path / "part", **settings)
    with pytest.raises(stop):
        run(part, config, bar=False)
    assert not (tmp_path / "part" / "config.json").exists()
    assert torch.equal(drive(tmp_path / "part", 4, resume=True), whole)


@pytest.mark.parametrize(("at", "hint"), [(0, "continue with: "), (2, "continue with: ")])
def test_ctrl_c_says_how_to_go_on(at, hint, tmp_path, capsys, monkeypatch) -> None:
    line = ["train", "ppo", "--suite", "quadratic", "--runs", "4", "--hidden-size", "4", "--iterations", "3"]
    line += ["--output-dir", str(tmp_path / "out")]
    iterate = PPOTrainer.iterate

    def interrupted(self, problems, iteration, progress=0.0):
        if iteration == at:
            raise KeyboardInterrupt
        return iterate(self, problems, iteration, progress)

    monkeypatch.setattr(sys, "argv", ["hf-adaptive-lr", *line])
    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "iterate", interrupted)
        assert main(line) == 130
    command = capsys.readouterr().err.splitlines()[-1].partition(hint)[2]
    assert "--resume" in command
    assert main(shlex.split(command)[1:]) == 0
    assert json.loads((tmp_path / "out" / "training.json").read_text())["iterations"] == 3


def test_a_killed_training_resumes_to_the_same_weights(tmp_path) -> None:
    """A real kill -9 of the command, then --resume."""
    line = ["train", "ppo", "--suite", "quadratic", "--runs", "16", "--hidden-size", "4", "--iterations", "60"]
    assert main([*line, "--output-dir", str(tmp_path / "whole")]) == 0
    killed = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "hf_adaptive_lr.cli",
        *line,
        "--checkpoint-seconds",
        "0.1",
        "--output-dir",
        str(killed),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (killed / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "config.json").exists(), "it was killed too late for this test to mean anything"
    assert main([*line, "--output-dir", str(killed), "--resume"]) == 0
    assert torch.equal(_weights(killed), _weights(tmp_path / "whole"))


def _on_a_rank(folder: Path, method: str) -> None:
    torch.set_num_threads(1)
    config = DriverConfig(suite="quadratic", output_dir=folder, runs=4, iterations=3)
    controller = run(make_trainer(method, hidden_size=4, seed=0), config, bar=False)
    weights = torch.cat([p.flatten() for _, p in sorted(controller.params.items())])
    torch.save(weights, folder.parent / f"{dist.get_rank()}.pt")


@pytest.mark.parametrize("method", RECURRENT)
def test_two_processes_end_with_the_same_weights(method, tmp_path) -> None:
    debug_launcher(_on_a_rank, args=(tmp_path / "out", method), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    assert torch.equal(_weights(tmp_path / "out"), first)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--suite", "nonsense"], "no suite 'nonsense'; known: "),
        (["--minutes", "-1"], "minutes=-1 must be above 0"),
        (["--iterations", "0"], "iterations=0 must be at least 1"),
        (["--runs", "1"], "runs=1 must be at least 2"),
        (["--seed", "-1"], "seed=-1 must be at least 0"),
        (["--report-to", "abacus"], "no tracker 'abacus' is installed; installed: tensorboard"),
        (["--resume"], "no checkpoint.pt to resume from"),
        (["--controller-kwargs", "{}"], "--controller-kwargs is for universal, not for ppo"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(change, message, tmp_path, capsys) -> None:
    assert main([*LINE, *change, "--output-dir", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_a_killed_training_left_is_no_dead_end(tmp_path, capsys) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".checkpoint.pt.123.tmp").write_bytes(b"half")  # killed during its first checkpoint
    assert main([*LINE, "--output-dir", str(folder), "--resume"]) == 2
    assert "start without --resume" in capsys.readouterr().err
    assert main([*LINE, "--output-dir", str(folder)]) == 0
    assert not list(folder.glob(".*"))
    checkpoint = folder / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-40])
    capsys.readouterr()
    assert main([*LINE, "--output-dir", str(folder), "--resume"]) == 2
    err = capsys.readouterr().err
    assert "is cut short or damaged" in err and "checkpoint.pt" in err and err.count("\n") == 1


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, capsys) -> None:
    folder = tmp_path / "out"
    assert main([*LINE, "--output-dir", str(folder)]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for change, message in (
        (["train", "evolution", *LINE[2:], "--resume"], "method=ppo, not evolution"),
        ([*LINE, "--seed", "1", "--resume"], "seed=0, not 1"),
        ([*LINE, "--hidden-size", "5", "--resume"], "resume with the same options"),
        (LINE, "pass --resume, or name another folder"),
    ):
        capsys.readouterr()
        assert main([*change, "--output-dir", str(folder)]) == 2
        assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    assert main([*LINE, "--output-dir", str(other)]) == 2
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    with pytest.raises(SystemExit) as stop:
        main(["train", "magic", "--output-dir", str(other)])
    assert stop.value.code == 2


def test_no_length_is_refused(tmp_path, capsys) -> None:
    assert main(["train", "ppo", "--output-dir", str(tmp_path / "out")]) == 2
    assert "the training has no end; give minutes or iterations" in capsys.readouterr().err


def test_figures_reach_a_tracker(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "out"
    assert main([*LINE, "--report-to", "tensorboard", "--output-dir", str(folder)]) == 0
    events = EventAccumulator(str(folder / "logs" / "hf_adaptive_lr")).Reload()
    values = [event.value for event in events.Scalars("train/return")]
    record = json.loads((folder / "training.json").read_text())
    assert values == pytest.approx([row["return"] for row in record["curves"]], abs=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ("without", "is not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"hidden_size": 8}', "--hidden-size is for the width"),
        ('{"speed": 1}', "speed"),
        ('{"rho": 2.0}', "rho=2"),
    ],
)
def test_bad_fields_of_the_controller_are_one_line_and_write_nothing(kwargs, message, tmp_path, capsys) -> None:
    line = ["train", "universal", "--iterations", "1", "--controller-kwargs", kwargs]
    assert main([*line, "--output-dir", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_ablation_of_universal_is_trained_and_saved_as_such(tmp_path) -> None:
    line = ["train", "universal", "--suite", "quadratic", "--runs", "2", "--hidden-size", "4", "--iterations", "1"]
    kwargs = ["--controller-kwargs", '{"without_gain": true}', "--output-dir", str(tmp_path / "out")]
    assert main([*line, *kwargs]) == 0
    controller = AutoController.from_pretrained(tmp_path / "out")
    assert controller.config()["without_gain"] and "gain_ratio" not in controller.needs
