"""Every paper's method: text and image, Trainer and a raw Accelerate loop, one and two processes, resumed exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import set_seed

from hf_adaptive_lr import (
    DSA,
    PLRS,
    ActorCritic,
    AdaptiveLRTrainer,
    AdaptiveLRTrainingArguments,
    ControlledLR,
    Controller,
    Linear,
    MLRSNet,
    PPOSchedule,
)
from hf_adaptive_lr.finetune.job import FinetuneConfig, run
from hf_adaptive_lr.scheduler.trace import TraceWriter
from tests import integrations
from tests.job import texts, write_csv, write_image_model, write_images, write_text_model
from tests.test_ranks import _launch, _save
from tests.tiny import Tokens, bert, flat, vit

METHODS: dict[str, Controller] = {
    "ppo_schedule": PPOSchedule(params=PPOSchedule.random_params(), every_steps=2),
    "mlr_snet": MLRSNet(params=MLRSNet.random_params()),
    "mlr_snet, learning": MLRSNet(meta_learn=True, meta_every=2, meta_lr=0.05),
    "actor_critic": ActorCritic(),
    "plrs": PLRS(),
    "dsa": Linear(),
}
STEPS, HALF = 6, 3


# --- finetune --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    write_text_model(folder / "text_model")
    write_image_model(folder / "image_model")
    write_csv(folder / "texts.csv", texts(60))
    write_images(folder / "images", per_class=20)
    for name, controller in METHODS.items():
        controller.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["text", "image"])
def test_the_main_job_with_every_method_interrupted_and_resumed(task, method, shelf, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    job = FinetuneConfig(
        task=task,
        data=str(shelf / {"text": "texts.csv", "image": "images"}[task]),
        model=str(shelf / f"{task}_model"),
        controller=str(shelf / method),
        optimizer="dsa" if method == "dsa" else "adamw",
        learning_rate=0.01,
        max_steps=STEPS,
        batch_size=8,
        save_steps=HALF,
        output_dir=str(tmp_path / "whole"),
    )
    whole = run(job)
    assert whole["optimizer"] == job.optimizer
    parted = replace(job, output_dir=str(tmp_path / "parted"))
    write = TraceWriter.__call__

    def interrupted(self: TraceWriter, decision: Any) -> None:
        write(self, decision)
        if decision.step == HALF:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TraceWriter, "__call__", interrupted)
        run(parted)
    resumed = run(replace(parted, resume=True))
    for name in ("lr_trace.jsonl", "model/model.safetensors"):
        assert (job.folder / name).read_bytes() == (parted.folder / name).read_bytes(), name
    volatile = ("wall_seconds", "command")
    assert {k: v for k, v in resumed.items() if k not in volatile} == {
        k: v for k, v in whole.items() if k not in volatile
    }
    rates = {json.loads(line)["lr"] for line in (job.folder / "lr_trace.jsonl").read_text().splitlines()}
    assert len(rates) > 1


@pytest.mark.parametrize("name", ["ppo_schedule", "mlr_snet", "actor_critic", "plrs"])
def test_every_method_comes_with_the_library_by_name(name, shelf, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data, model = str(shelf / "texts.csv"), str(shelf / "text_model")
    job = FinetuneConfig(data=data, model=model, controller=name, max_steps=2, output_dir=str(tmp_path / "out"))
    assert run(job)["controller"]["controller_type"] == name


# --- a raw Accelerate loop -------------------------------------------------------------------------------------------


def _loop(method: str, kind: str, folder: Path, *, stop: int = STEPS, resume: bool = False) -> Result:
    set_seed(3)
    model = bert() if kind == "text" else vit()
    rows: Any = Tokens(96) if kind == "text" else _Images(96)
    optimizer: torch.optim.Optimizer = integrations.optimizer_for(model)
    if method == "dsa":
        optimizer = DSA(optimizer)
    own = list(DataLoader(rows, batch_size=8))[-2:]
    scheduler = ControlledLR(
        optimizer,
        METHODS[method],
        model=model,
        total_steps=STEPS,
        max_grad_norm=0,
        other_loss=lambda t: model(**own[t % 2]).loss,
        meta_loss=lambda t: model(**own[t % 2]).loss,
    )
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(rows, batch_size=8)
    wrapped, prepared, loader, _ = accelerator.prepare(model, optimizer, loader, scheduler)
    batches = list(loader)  # a loader draws a number when it is opened, which a resumed loop would do once more
    set_seed(3)
    if resume:
        accelerator.load_state(str(folder / "state"))
    wrapped.train()
    for batch in batches[scheduler.updates : stop]:
        generators = torch.get_rng_state()
        accelerator.backward(wrapped(**batch).loss)
        if "eval_loss" in scheduler.controller.needs and scheduler.due():
            scheduler.observe(eval_loss=_evaluate(model, own))

        def closure(batch=batch, generators=generators) -> torch.Tensor:
            after = torch.get_rng_state()
            torch.set_rng_state(generators)
            loss = wrapped(**batch).loss
            accelerator.backward(loss)
            torch.set_rng_state(after)
            return loss

        prepared.step(closure if method == "dsa" else None)
        prepared.zero_grad()
    if stop < STEPS:
        accelerator.save_state(str(folder / "state"))
    return scheduler.lr_history(), model


Result = tuple[list[float], torch.nn.Module]


class _Images(torch.utils.data.Dataset):
    """Noise with a bright corner that says the class."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 3, (size,), generator=generator)
        self.pixels = torch.rand(size, 1, 8, 8, generator=generator)
        self.pixels[:, 0, 0, 0] += self.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


@torch.no_grad()
def _evaluate(model: torch.nn.Module, data: list[dict[str, torch.Tensor]]) -> float:
    model.eval()
    loss = sum(float(model(**batch).loss) for batch in data) / len(data)
    model.train()
    return loss


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("method", METHODS)
def test_a_raw_loop_resumes_to_the_same_weights(method, kind, tmp_path) -> None:
    lrs, model = _loop(method, kind, tmp_path)
    first, _ = _loop(method, kind, tmp_path, stop=HALF)
    rest, resumed = _loop(method, kind, tmp_path, resume=True)
    assert first + rest == lrs
    assert torch.equal(flat(resumed), flat(model))
    assert len(set(lrs)) > 1


def _raw_on_a_rank(method: str, kind: str, folder: Path) -> None:
    lrs, model = _loop(method, kind, folder)
    first, _ = _loop(method, kind, folder, stop=HALF)
    rest, resumed = _loop(method, kind, folder, resume=True)
    assert first + rest == lrs
    assert torch.equal(flat(resumed), flat(model))
    _save(folder, lrs, model)


def _every_method(run: Callable[[str, str, Path], None], kind: str, folder: Path) -> None:
    """All methods, one after the other, within the same two processes: starting them is what takes long."""
    torch.set_num_threads(1)
    for method in METHODS:
        own = folder / method
        own.mkdir(exist_ok=True)
        try:
            run(method, kind, own)
        except Exception as error:
            error.add_note(f"with the method {method}")
            raise


def _ranks_agree(run: Callable[[str, str, Path], None], kind: str, folder: Path) -> None:
    _launch(_every_method, run, kind, folder)
    for method in METHODS:
        first, second = (torch.load(folder / method / f"{rank}.pt") for rank in (0, 1))
        assert first["lrs"] == second["lrs"], method
        assert torch.equal(first["weights"], second["weights"]), method


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_raw_loop_on_two_processes(kind, tmp_path) -> None:
    _ranks_agree(_raw_on_a_rank, kind, tmp_path)


# --- Trainer on two processes ----------------------------------------------------------------------------------------


def _trainer_on_a_rank(method: str, kind: str, folder: Path) -> None:
    build, rows = (bert, Tokens) if kind == "text" else (vit, _Images)

    def train(checkpoint: str | None = None) -> AdaptiveLRTrainer:
        args = integrations.arguments(
            folder,
            AdaptiveLRTrainingArguments,
            dsa=method == "dsa",
            max_grad_norm=0.5,
            save_strategy="no" if checkpoint else "steps",
            save_steps=HALF,
        )
        data = {"train_dataset": rows(107), "controller_dataset": rows(20)}
        trainer = AdaptiveLRTrainer(model=build(), args=args, controller=METHODS[method], **data)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = train()
    dist.barrier()
    resumed = train(str(folder / f"checkpoint-{HALF}"))
    assert whole.lr_scheduler.lr_history()[HALF:] == resumed.lr_scheduler.lr_history()
    assert torch.equal(flat(whole.model), flat(resumed.model))
    _save(folder, whole.lr_scheduler.lr_history(), whole.accelerator.unwrap_model(whole.model))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_trainer_on_two_processes_resumes(kind, tmp_path) -> None:
    _ranks_agree(_trainer_on_a_rank, kind, tmp_path)
