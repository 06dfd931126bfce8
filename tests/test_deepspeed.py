"""Under DeepSpeed's ZeRO, on two processes with different data: the rates and weights of one process alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hf_adaptive_lr import AdaptiveLRCallback, AdaptiveLRTrainer, AdaptiveLRTrainingArguments, ControlledLR
from hf_adaptive_lr.sensors import deepspeed as ours
from tests import integrations, zero
from tests.controllers_for_tests import Watcher
from tests.sharded import Run, launch, lora, plain_bert, results, seen, train
from tests.test_sharded import OPTIMIZERS, SIGNALS
from tests.tiny import Tokens, flat

pytest.importorskip("deepspeed", reason="DeepSpeed compiles its operators; model_cards/SHARDING.md has these results")
pytestmark = pytest.mark.filterwarnings("ignore")  # DeepSpeed's own, of torch functions that are old
STEPS, SAVED = 10, 5


def _check(run: Run, folder: Path, *, rel: float = 1e-4) -> None:
    first, second = results(run, folder)
    assert first["lr"] == second["lr"] and first["seen"] == second["seen"]
    assert torch.equal(first["weights"], second["weights"])
    model, _, scheduler = train(replace(run, sharding="alone", data_ranks=1))
    assert first["lr"] == pytest.approx(scheduler.lr_history(), rel=rel)
    assert torch.allclose(first["weights"], flat(model), atol=rel)
    for name, values in seen(scheduler).items():
        if run.bf16 and name == "gain_ratio":
            continue  # differences of losses, which bfloat16 cannot tell apart
        # At the second update of universal, after one at 1e-7, there is nothing but rounding.
        tolerance = 1e-3 if name == "gain_ratio" else rel
        assert first["seen"][name][1:] == pytest.approx(values[1:], rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize("stage", zero.STAGES)
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_universal_does_what_it_does_alone(stage, clip, tmp_path) -> None:
    _check(Run(sharding=stage, data_ranks=2, clip=clip, accumulation=2 if clip else 1), tmp_path)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_all_signals_under_accumulation_and_clipping(stage, optimizer, tmp_path) -> None:
    make = OPTIMIZERS[optimizer]
    run = Run(sharding=stage, data_ranks=2, controller=SIGNALS, optimizer=make, clip=0.05, accumulation=2, steps=6)
    _check(run, tmp_path)


@pytest.mark.parametrize("stage", zero.STAGES)
def test_bf16_is_float32_but_for_its_rounding(stage, tmp_path) -> None:
    """ZeRO-3 leaves what was in the memory in the padding of its partitions, which counted as weights."""
    _check(Run(sharding=stage, data_ranks=2, clip=0.05, accumulation=2, bf16=True), tmp_path, rel=1e-2)


# --- Trainer and Accelerate ------------------------------------------------------------------------------------------


def _arguments(folder: Path, stage: int, cls: type = AdaptiveLRTrainingArguments, **top: object):
    from accelerate.state import PartialState

    auto = dict.fromkeys(
        ("gradient_clipping", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto"
    )
    config = {"zero_optimization": {"stage": stage}, "steps_per_print": 10**9, **auto, **top}
    args = integrations.arguments(
        folder,
        cls,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.05,
        save_strategy="steps",
        save_steps=SAVED,
        use_cpu=not stage,
        **({"deepspeed": config} if stage else {}),
    )
    if stage:
        assert args.device.type == "cpu"  # looking makes Accelerate's state
        # Without an accelerator that counts one process; all else is the real one.
        rank = dist.get_rank()
        PartialState._shared_state |= {"backend": "gloo", "num_processes": 2, "process_index": rank}
        PartialState._shared_state |= {"local_process_index": rank}
    return args


def _ready(stage: int) -> None:
    if stage:
        os.environ.pop("ACCELERATE_USE_CPU", None)  # debug_launcher's, under which Trainer leaves DeepSpeed out
        zero.start()


def _trainer(folder: Path, stage: int, callback: bool, checkpoint: str | None) -> None:
    _ready(stage)
    args = _arguments(folder, stage)
    given = {"model": plain_bert(), "args": args, "train_dataset": Tokens(400)}
    if callback:
        ours = AdaptiveLRCallback("universal")
        trainer = integrations.Trainer(**given, callbacks=[ours])
        trainer.train(resume_from_checkpoint=checkpoint)
        scheduler = ours.scheduler
    else:
        trainer = AdaptiveLRTrainer(**given, controller="universal")
        trainer.train(resume_from_checkpoint=checkpoint)
        scheduler = trainer.lr_scheduler
    assert (type(trainer.model_wrapped).__name__ == "DeepSpeedEngine") == bool(stage)
    torch.save({"lr": scheduler.lr_history(), "seen": seen(scheduler)}, folder / f"{dist.get_rank()}.pt")


def _trained(folder: Path, *how: object) -> list[float]:
    folder.mkdir(exist_ok=True)
    launch(_trainer, folder, *how)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    return first["lr"]


@pytest.mark.parametrize(("stage", "callback"), [(2, True), (3, False)])
def test_trainer_under_zero_does_what_it_does_under_ddp_and_resumes(stage, callback, tmp_path) -> None:
    expected = _trained(tmp_path / "ddp", 0, callback, None)
    found = _trained(tmp_path / "zero", stage, callback, None)
    assert len(set(expected)) > 5 and found == pytest.approx(expected, rel=1e-4)
    resumed = _trained(tmp_path / "zero", stage, callback, str(tmp_path / "zero" / f"checkpoint-{SAVED}"))
    assert resumed == found[SAVED:]


def _loop(folder: Path) -> None:
    from accelerate import Accelerator, DeepSpeedPlugin

    _ready(2)
    _arguments(folder, 2)
    plugin = DeepSpeedPlugin(zero_stage=2, gradient_accumulation_steps=2, gradient_clipping=0.05)
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
    accelerator = Accelerator(deepspeed_plugin=plugin)
    run = Run(accumulation=2, clip=0.05, data_ranks=2)
    model = inner = run.make()
    model, optimizer = accelerator.prepare(model, run.optimizer(model.parameters()))
    scheduler = ControlledLR(optimizer, "universal", model=inner, total_steps=run.steps)
    for parts in zero.data(run, dist.get_rank()):
        for batch in parts:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    torch.save(scheduler.lr_history(), folder / f"{dist.get_rank()}.pt")


def test_accelerate_under_zero(tmp_path) -> None:
    launch(_loop, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    _, _, scheduler = train(Run(accumulation=2, clip=0.05))
    assert first == second == pytest.approx(scheduler.lr_history(), rel=1e-4)


# --- what is no update, and what cannot be steered -------------------------------------------------------------------


def _overflow(folder: Path) -> None:
    run = Run(sharding="zero2", data_ranks=2, steps=6)
    engine, optimizer, model = zero.build(run)
    scheduler = ControlledLR(optimizer, SIGNALS, model=model, total_steps=run.steps)
    engine.train()
    for number, parts in enumerate(zero.data(run, dist.get_rank())):
        loss = engine(**parts[0])["loss"]
        engine.backward(loss * (float("nan") if number == 2 else 1.0))
        engine.step()
    assert engine.skipped_steps == 1 and scheduler.updates == 5
    assert [row.step for row in scheduler.trace] == [0, 1, 2, 3, 4]
    assert scheduler.trace[-1].observation["loss"] > 0
    (folder / str(dist.get_rank())).touch()


def test_an_update_that_zero_skips_is_none(tmp_path) -> None:
    launch(_overflow, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def _refused(folder: Path, case: str) -> None:
    run, given, fields, words = Run(sharding="zero2"), None, ("loss",), ""
    if case == "offload":
        given = zero.config(run, offload_optimizer={"device": "cpu"}) | {"zero_force_ds_cpu_optimizer": False}
        words = "offload of optimizer or weights is not supported"
    elif case == "stage 0":
        run = replace(run, sharding="zero0")
        words = "DeepSpeed steps AdamW, and a controller needs ZeRO of stage 1, 2 or 3"
    elif case == "version":
        ours.TESTED = ("0.1",)
        words = "DeepSpeed .* is installed, and 0.1 alone is known here"
    elif case == "inside":
        words = "make the ControlledLR after"
    elif case == "head":
        fields, words = ("head_mean",), "head_mean, and DeepSpeed leaves each rank only a part"
    elif case == "adapters":
        run, fields, words = replace(run, make=lora), ("update_ratio",), "DeepSpeed keep these in flat parameters"
    engine, optimizer, model = zero.build(run, given)
    if case == "inside":
        optimizer = optimizer.optimizer
    before = flat(model)
    with pytest.raises(ValueError, match=words):
        scheduler = ControlledLR(optimizer, Watcher(fields=fields), model=model, max_lr=1e3)
        batch = next(zero.data(replace(run, data_ranks=2), dist.get_rank()))[0]
        output = engine(**batch)
        engine.backward(output["loss"])
        engine.step()
        assert scheduler.updates == 0
    assert torch.equal(flat(model), before)
    (folder / str(dist.get_rank())).touch()


@pytest.mark.parametrize("case", ["offload", "stage 0", "version", "inside", "head", "adapters"])
def test_what_cannot_be_steered_fails_before_the_first_update(case, tmp_path) -> None:
    launch(_refused, tmp_path, case)
    assert len(list(tmp_path.iterdir())) == 2


def _bad_config(folder: Path, key: str) -> None:
    _ready(2)
    part = {"type": "WarmupLR"} if key == "scheduler" else {"type": "AdamW", "params": {"lr": 1e-3}}
    with pytest.raises(ValueError, match=f"the DeepSpeed config has '{key}'"):
        args = _arguments(folder, 2, **{key: part})
        AdaptiveLRTrainer(model=plain_bert(), args=args, train_dataset=Tokens(), controller="universal")
    (folder / str(dist.get_rank())).touch()


@pytest.mark.parametrize("key", ["scheduler", "optimizer"])
def test_what_deepspeed_would_make_itself_is_refused_by_name(key, tmp_path) -> None:
    launch(_bad_config, tmp_path, key)
    assert len(list(tmp_path.iterdir())) == 2
