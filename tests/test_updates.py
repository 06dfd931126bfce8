"""What counts as an update: accumulation, skipped steps, mixed precision, groups, compiled and adapted models."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from accelerate import Accelerator
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments, ControlledLR, Hypergradient, Linear
from tests import integrations
from tests.controllers_for_tests import Everything, LossOnly, Recurrent, Watcher
from tests.tiny import Tokens, batches, bert, flat, mlp, vit


def _loss(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


# --- accumulation ---


@pytest.mark.parametrize("make", [bert, vit], ids=["head ignores num_items", "head honours num_items"])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_subclass_sees_one_true_loss_and_norm_per_update(make, accumulation, tmp_path) -> None:
    if make is vit:
        generator = torch.Generator().manual_seed(0)
        data = [
            {"pixel_values": torch.randn(1, 8, 8, generator=generator), "labels": torch.tensor(i % 3)}
            for i in range(48)
        ]
    else:
        data = Tokens()
    model = make(dropout=0.0) if make is bert else make()
    watcher = Watcher(fields=("alignment", "grad_norm", "loss", "update_ratio"))

    def run(batch: int, steps: int, model: torch.nn.Module) -> AdaptiveLRTrainer:
        args = integrations.arguments(
            tmp_path,
            AdaptiveLRTrainingArguments,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=3,
            max_grad_norm=1.0,
            optim="sgd",
            weight_decay=0.0,
        )
        trainer = AdaptiveLRTrainer(model=model, args=args, train_dataset=data, controller=watcher)
        trainer.train()
        return trainer

    split = run(16 // accumulation, accumulation, copy.deepcopy(model))
    whole = run(16, 1, copy.deepcopy(model))
    for a, b in zip(split.lr_scheduler.trace, whole.lr_scheduler.trace, strict=True):
        assert a.observation["loss"] == pytest.approx(b.observation["loss"], rel=1e-5)
        assert a.observation["grad_norm"] == pytest.approx(b.observation["grad_norm"], rel=1e-4)
        assert a.observation["alignment"] == pytest.approx(b.observation["alignment"], abs=1e-4)
    assert torch.allclose(flat(split.model), flat(whole.model), atol=1e-5)
    logged = [row["loss"] for row in split.state.log_history if "loss" in row]
    assert [d.observation["loss"] for d in split.lr_scheduler.trace] == pytest.approx(logged, rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_accelerate_decides_once_per_update_and_in_the_last_partial_window(accumulation) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model)
    loader = DataLoader(Tokens(40), batch_size=8)  # five micro-batches: windows of 1; 2, 2, 1; 4, 1
    inner = scheduler
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    seen: list[list[float]] = [[]]
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            seen[-1].append(float(loss.detach()))
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            seen.append([])
    windows = [window for window in seen if window]
    assert len(windows) == -(-5 // accumulation) == inner.updates
    expected = [sum(window) / len(window) for window in windows]
    assert [d.observation["loss"] for d in inner.trace] == pytest.approx(expected, rel=1e-6)


# --- skipped updates
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_an_update_that_overflows_is_no_decision(fused) -> None:
    """A real gradient scaler; the overflow is put into the gradient by hand, as float16 would."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    scheduler = ControlledLR(optimizer, Recurrent(), model=model, hook=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    used: list[float] = []
    for step, batch in enumerate(batches(6)):
        loss = _loss(model, batch)
        scaler.scale(loss).backward()
        if step in (1, 4):
            next(model.parameters()).grad.fill_(float("inf"))
        else:
            used.append(float(loss.detach()))
        before = flat(model).clone()
        scheduler.observe(loss=loss)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        assert torch.equal(flat(model), before) == (step in (1, 4))
    assert scheduler.updates == 4
    assert [d.step for d in scheduler.trace] == [0, 1, 2, 3]
    assert [d.observation["loss"] for d in scheduler.trace] == pytest.approx(used)


@pytest.mark.parametrize("fused", [False, True])
def test_the_norm_is_unscaled_under_a_gradient_scaler(fused) -> None:
    def run(scaler: torch.amp.GradScaler | None) -> list[float]:
        model = mlp()
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
        scheduler = ControlledLR(
            optimizer, Watcher(fields=("grad_norm", "gain_ratio")), model=model, hook=False, max_grad_norm=0
        )
        for batch in batches(4):
            scheduler.before_forward()
            loss = _loss(model, batch)
            (scaler.scale(loss) if scaler else loss).backward()
            scheduler.observe(loss=loss, closure=lambda batch=batch: _loss(model, batch))
            scaler.step(optimizer) if scaler else optimizer.step()
            if scaler:
                scaler.update()
            optimizer.zero_grad()
        return [v for d in scheduler.trace for v in d.observation.values()]

    assert run(torch.amp.GradScaler("cpu", init_scale=64.0)) == pytest.approx(run(None), rel=1e-4)


def test_losses_of_a_skipped_window_are_dropped_without_scheduler_step() -> None:
    model = bert(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model)
    rows = [{k: v[None] for k, v in Tokens()[i].items()} for i in range(2)]
    model(**rows[0]).loss.backward()
    optimizer.zero_grad()  # Trainer's order when a scaler has skipped optimizer.step
    loss = model(**rows[1]).loss
    loss.backward()
    optimizer.step()
    assert scheduler.trace[-1].observation["loss"] == pytest.approx(float(loss.detach()))


# --- precision, groups, tensors
# ------------------------------------------------------------------------------------------


def test_bfloat16_autocast_through_trainer(tmp_path) -> None:
    trainer, (lrs, weights) = integrations.subclassed(Everything(), tmp_path, bf16=True)
    assert len(set(lrs)) == integrations.STEPS
    assert torch.isfinite(weights).all()
    _, (again, same) = integrations.subclassed(Everything(), tmp_path, bf16=True)
    assert again == lrs
    assert torch.equal(same, weights)


def test_groups_keep_their_ratios_whatever_the_answer() -> None:
    for controller in (Linear(), Hypergradient(), Recurrent()):
        model = mlp()
        groups = [
            {"params": list(model[0].parameters()), "lr": 0.1},
            {"params": list(model[3].parameters()), "lr": 0.4},
            {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups)
        scheduler = ControlledLR(optimizer, controller, total_steps=5)
        for batch in batches(5):
            loss = _loss(model, batch)
            loss.backward()
            scheduler.observe(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
            first, second, frozen = (group["lr"] for group in optimizer.param_groups)
            assert second == pytest.approx(4 * first)
            assert frozen == 0.0
            assert scheduler.get_last_lr() == [first, second, frozen]
        assert len(set(scheduler.lr_history())) > 1


def test_replaced_and_added_groups_are_found() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=1.0, momentum=0.9)
    ControlledLR(optimizer, Linear(), total_steps=4)

    def update() -> list[float]:
        _loss(model, batches(1)[0]).backward()
        optimizer.step()
        optimizer.zero_grad()
        return [group["lr"] for group in optimizer.param_groups]

    assert update() == [1.0]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # replaces every group dict
    assert update() == [0.75]
    optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 2.0})
    assert update() == [0.5, 1.0]
    del optimizer.param_groups[1]
    with pytest.raises(RuntimeError, match="2 parameter groups and now has 1"):
        update()


def test_a_tensor_learning_rate_is_changed_in_place() -> None:
    model = mlp()
    rate = torch.tensor(1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, capturable=False, foreach=False)
    scheduler = ControlledLR(optimizer, Linear(), total_steps=4)
    held = optimizer.param_groups[0]["lr"]
    for batch in batches(2):
        _loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.param_groups[0]["lr"] is held
    assert float(held) == 0.75
    assert scheduler.run.base_lrs == [1.0]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model(backend, tmp_path) -> None:
    _, (lrs, weights) = integrations.subclassed(Recurrent(), tmp_path)
    torch._dynamo.reset()
    _, (compiled, close) = integrations.subclassed(
        Recurrent(), tmp_path, torch_compile=True, torch_compile_backend=backend
    )
    assert compiled == pytest.approx(lrs, rel=1e-4)
    assert torch.allclose(close, weights, atol=1e-3)
    torch._dynamo.reset()
    _, (hooked, _) = integrations.passed_to_trainer(
        Recurrent(), tmp_path, torch_compile=True, torch_compile_backend=backend
    )
    assert hooked == compiled


def test_a_compiled_step_is_one_graph_whatever_the_rates() -> None:
    """Traced into our hooks it was 20 graphs in these updates, until dynamo gave up."""
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        graphs, model = CompileCounter(), mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01), foreach=False)
        watcher = Watcher(fields=("alignment", "grad_norm", "update_ratio"))
        for controller in (watcher, LossOnly()):  # the second one moves the rate
            scheduler = ControlledLR(optimizer, controller, max_grad_norm=0)
            step = torch.compile(optimizer.step, backend=graphs) if compiled else optimizer.step
            for batch in batches(6):
                loss = _loss(model, batch)
                scheduler.observe(loss=loss)
                loss.backward()
                step()
                optimizer.zero_grad()
            assert len(set(scheduler.lr_history())) == (1 if controller is watcher else 6)
        found.append((flat(model), graphs.frame_count))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert [graphs for _, graphs in found] == [0, 1]
    torch._dynamo.reset()


def test_lora_through_peft(tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted() -> torch.nn.Module:
        config = LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS", lora_dropout=0.1)
        return get_peft_model(bert(), config)

    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, max_grad_norm=0.1)
    trainer = AdaptiveLRTrainer(model=adapted(), args=args, train_dataset=Tokens(), controller=Everything())
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert trainer.model_accepts_loss_kwargs is False
    assert len(set(trainer.lr_scheduler.lr_history())) == integrations.STEPS
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.named_parameters() if n in frozen)

    model = adapted()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=integrations.LR)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model, total_steps=integrations.STEPS)
    args = integrations.arguments(tmp_path)
    Trainer(model=model, args=args, train_dataset=Tokens(), optimizers=(optimizer, scheduler)).train()
    assert scheduler.updates == integrations.STEPS


# --- the hook on the model
# ----------------------------------------------------------------------------------------------


def _hooked(folder) -> tuple[Trainer, ControlledLR]:
    model = bert()
    optimizer = integrations.optimizer_for(model)
    scheduler = ControlledLR(optimizer, LossOnly(), model=model)
    args = integrations.arguments(folder)
    return Trainer(model=model, args=args, train_dataset=Tokens(), optimizers=(optimizer, scheduler)), scheduler


def test_copies_of_the_model_and_evaluation_are_not_observed(tmp_path) -> None:
    trainer, scheduler = _hooked(tmp_path)
    model, batch = trainer.model, {k: v[None] for k, v in Tokens()[0].items()}
    twin = copy.deepcopy(model)
    twin.train()
    twin(**batch).loss.backward()
    model.eval()
    model(**batch)
    model.train()
    with torch.no_grad():
        model(**batch)
    assert len(scheduler.losses) == 0
    model(**batch)
    assert len(scheduler.losses) == 1


def test_a_model_saved_whole_loads_and_trains_without_the_scheduler(tmp_path) -> None:
    trainer, scheduler = _hooked(tmp_path)
    trainer.train()
    file = io.BytesIO()
    torch.save(trainer.model, file)
    assert b"hf_adaptive_lr" not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    updates = scheduler.updates
    loaded.train()
    loaded(**{k: v[None] for k, v in Tokens()[0].items()}).loss.backward()
    assert scheduler.updates == updates
    assert len(scheduler.losses) == 0


def test_a_second_train_goes_on_where_the_first_ended(tmp_path) -> None:
    trainer, scheduler = _hooked(tmp_path)
    trainer.train()
    trainer.train()
    assert scheduler.updates == 2 * integrations.STEPS
    assert all(d.reason == "decision" for d in scheduler.trace)


def test_a_second_train_of_the_subclass_starts_a_new_schedule(tmp_path) -> None:
    trainer, (lrs, _) = integrations.subclassed(Linear(), tmp_path)
    first = trainer.lr_scheduler
    trainer.train()
    assert trainer.lr_scheduler is not first
    assert trainer.lr_scheduler.lr_history() == lrs
    assert first.updates == integrations.STEPS  # the old one no longer listens


def test_close_and_garbage_collection_leave_nothing_on_the_model(tmp_path) -> None:
    trainer, scheduler = _hooked(tmp_path)
    model = trainer.model
    scheduler.close()
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 0
    assert len(scheduler.optimizer._optimizer_step_pre_hooks) == 0
    trainer, scheduler = _hooked(tmp_path)
    model, gone = trainer.model, weakref.ref(scheduler)
    del trainer, scheduler
    gc.collect()
    assert gone() is None
    model(**{k: v[None] for k, v in Tokens()[0].items()}).loss.backward()


def test_a_scheduler_on_another_optimizer_is_noticed(tmp_path) -> None:
    model = bert()
    scheduler = ControlledLR(integrations.optimizer_for(model), LossOnly(), model=model)
    args = integrations.arguments(tmp_path, max_steps=70)
    trainer = Trainer(model=model, args=args, train_dataset=Tokens(), optimizers=(None, scheduler))
    with pytest.warns(UserWarning, match=r"applied no update; .*optimizers=\(None, scheduler\)") as caught:
        trainer.train()
    assert len(caught) == 1
    assert scheduler.updates == 0


def test_the_gain_ratio_is_of_all_micro_batches(tmp_path) -> None:
    """The same update in one piece and in four: the controller sees the same, and does the same."""
    rates, seen = [], []
    for name, batch, pieces in (("whole", 8, 1), ("pieces", 2, 4)):
        args = integrations.arguments(
            tmp_path / name, per_device_train_batch_size=batch, gradient_accumulation_steps=pieces, max_steps=8
        )
        trainer = AdaptiveLRTrainer(
            model=bert(dropout=0.0), args=args, train_dataset=Tokens(), controller="universal_1"
        )
        trainer.train()
        rates.append(trainer.lr_scheduler.lr_history())
        seen.append([decision.observation["gain_ratio"] for decision in trainer.lr_scheduler.trace])
    assert seen[0][2:] == pytest.approx(seen[1][2:], rel=1e-2, abs=1e-3)
    assert rates[0] == pytest.approx(rates[1], rel=1e-2)
