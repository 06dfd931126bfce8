"""Every example runs as it stands, on small data and models."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from hf_adaptive_lr.observation import OPTIONAL_FIELDS
from tests.job import python, texts, write_csv, write_image_model, write_images, write_text_model

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    write_csv(folder / "train.csv", texts(48))
    write_csv(folder / "test.csv", texts(12, seed=1))
    write_text_model(folder / "text_model")
    write_images(folder / "train", per_class=12)
    write_images(folder / "test", per_class=6, seed=1)
    write_image_model(folder / "image_model")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory, and the libraries as a new process has them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return tmp_path


def run(name: str, *words: str, capsys, monkeypatch) -> str:
    """What the example prints, run within this process: a new one imports for longer than most of them train."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def run_alone(name: str, *words: str, cwd: Path) -> str:
    """What the example prints, run by an interpreter of its own, as a reader runs it."""
    ended = python(str(EXAMPLES / name), *words, cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def accuracy_and_rates(printed: str) -> tuple[float, float, float]:
    """Final accuracy, smallest and largest learning rate, as the example prints them."""
    accuracy = re.search(r"^accuracy (\S+) on", printed, re.MULTILINE)
    rates = re.search(r"^learning rate (\S+) \.\.\. (\S+) \(", printed, re.MULTILINE)
    assert accuracy is not None and rates is not None, printed
    return float(accuracy[1]), float(rates[1]), float(rates[2])


def test_text_classification(shelf, tmp_path) -> None:
    words = ["--train_file", f"{shelf}/train.csv", "--validation_file", f"{shelf}/test.csv"]
    words += ["--model_name_or_path", f"{shelf}/text_model", "--output_dir", "out", "--use_cpu"]
    words += ["--max_steps", "40", "--learning_rate", "0.02", "--per_device_train_batch_size", "8"]
    words += ["--controller", "hypergradient"]
    accuracy, low, high = accuracy_and_rates(run_alone("text_classification.py", *words, cwd=tmp_path))
    assert accuracy > 0.6
    assert low < high
    assert len((tmp_path / "out" / "lr_trace.jsonl").read_text().splitlines()) == 40


def test_image_classification(shelf, here, capsys, monkeypatch) -> None:
    words = ["--train_dir", f"{shelf}/train", "--validation_dir", f"{shelf}/test", "--output_dir", "out", "--use_cpu"]
    words += ["--model_name_or_path", f"{shelf}/image_model", "--max_steps", "20", "--learning_rate", "0.01"]
    words += ["--per_device_train_batch_size", "8", "--controller", "plateau", "--controller_kwargs", '{"window": 2}']
    printed = run("image_classification.py", *words, capsys=capsys, monkeypatch=monkeypatch)
    accuracy, low, high = accuracy_and_rates(printed)
    assert accuracy > 0.7
    assert low <= high == 0.01


@pytest.mark.parametrize("accumulation", ["1", "2"])
def test_text_classification_no_trainer(accumulation, shelf, here, capsys, monkeypatch) -> None:
    words = ["--train_file", f"{shelf}/train.csv", "--validation_file", f"{shelf}/test.csv", "--batch_size", "8"]
    words += ["--model_name_or_path", f"{shelf}/text_model", "--max_steps", "40", "--learning_rate", "0.02"]
    words += ["--gradient_accumulation_steps", accumulation, "--output_dir", "state"]
    printed = run("text_classification_no_trainer.py", *words, capsys=capsys, monkeypatch=monkeypatch)
    accuracy, low, high = accuracy_and_rates(printed)
    assert accuracy > 0.6
    assert low < high
    assert (here / "state" / "scheduler.bin").exists()


def test_plain_pytorch(tmp_path) -> None:
    accuracy, low, high = accuracy_and_rates(run_alone("plain_pytorch.py", "--max_steps", "200", cwd=tmp_path))
    assert accuracy > 0.7
    assert 0 < low < high


def losses_of(printed: str) -> tuple[float, float]:
    """First and last loss of an example that has no accuracy; its learning rate must have moved."""
    losses = re.search(r"^loss (\S+) \.\.\. (\S+)$", printed, re.MULTILINE)
    rates = re.search(r"^learning rate (\S+) \.\.\. (\S+) \(universal\)", printed, re.MULTILINE)
    assert losses is not None and rates is not None, printed
    assert 0 < float(rates[1]) < float(rates[2])
    return float(losses[1]), float(losses[2])


def test_callback(here, capsys, monkeypatch) -> None:
    words = ["--max_steps", "120", "--output_dir", "out"]
    accuracy, low, high = accuracy_and_rates(run("callback.py", *words, capsys=capsys, monkeypatch=monkeypatch))
    assert accuracy > 0.3
    assert low == pytest.approx(1e-7 / 6, rel=0.01) and high > 1e-4  # the first update of six of the warm-up


# TRL 1.16 asks transformers 5.23 for the old name of its checkpointing flag. The examples name no device; on a
# machine without a GPU torch says that memory will not be pinned.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_sft_lora(here, capsys, monkeypatch) -> None:
    rows = "".join(json.dumps({"text": text}) + "\n" for text, _ in texts(48))
    (here / "texts.jsonl").write_text(rows)
    words = ["--train_file", "texts.jsonl", "--max_steps", "30", "--output_dir", "out"]
    first, last = losses_of(run("sft_lora.py", *words, capsys=capsys, monkeypatch=monkeypatch))
    assert last < first
    assert (here / "out" / "adapter_model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_grpo_at_a_hundred_times_its_learning_rate(here, capsys, monkeypatch) -> None:
    words = ["--learning_rate", "0.3", "--max_steps", "40", "--output_dir", "out"]
    printed = run("grpo.py", *words, capsys=capsys, monkeypatch=monkeypatch)
    rewards = re.search(r"^reward (\S+) \.\.\. (\S+)$", printed, re.MULTILINE)
    rates = re.search(r"^learning rate (\S+) \.\.\. (\S+) \(kl_target\)", printed, re.MULTILINE)
    assert rewards is not None and rates is not None, printed
    assert float(rewards[2]) > 1.5 * float(rewards[1])
    assert float(rates[2]) < 0.03


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_sentence_embeddings(shelf, here, capsys, monkeypatch) -> None:
    pairs = [{"anchor": text, "positive": text.partition(" ")[2]} for text, _ in texts(64)]
    (here / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    words = ["--model_name_or_path", f"{shelf}/text_model", "--train_file", "pairs.jsonl", "--max_steps", "30"]
    words += ["--output_dir", "out"]
    first, last = losses_of(run("sentence_embeddings.py", *words, capsys=capsys, monkeypatch=monkeypatch))
    assert last < first
    assert (here / "out" / "model" / "modules.json").is_file()


def test_every_script_is_in_the_guide_and_tested() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")} | {path.name for path in EXAMPLES.glob("*.ipynb")}
    guide = (EXAMPLES / "README.md").read_text()
    assert {name for name in scripts if f"({name})" not in guide} == set()
    for link in re.findall(r"\]\(([\w./-]+)", guide):
        assert (EXAMPLES / link).exists(), link


def test_the_guide_lists_what_can_be_looked_at() -> None:
    guide = (EXAMPLES / "guides" / "own_controller.md").read_text()
    for name, field in OPTIONAL_FIELDS.items():
        assert f"| `{name}` | {field.unit} | {field.measured} |" in guide
