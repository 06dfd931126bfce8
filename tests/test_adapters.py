"""The relative update of LoRA is that of the weights the model computes with, live and vectorised."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_adaptive_lr import AdaptiveLRTrainer, Relative
from hf_adaptive_lr.meta.inner import InnerOptimizer
from hf_adaptive_lr.meta.problem import Problem
from hf_adaptive_lr.meta.tasks.base import TaskSpec
from hf_adaptive_lr.sensors.gradients import measure_previous_update
from hf_adaptive_lr.sensors.lora import find_adapters, moved_sq, product_sq
from tests import integrations
from tests.tiny import Tokens, bert


def _lora(**config):
    torch.manual_seed(1)
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["query", "value"], "lora_dropout": 0.0}
    return get_peft_model(bert(dropout=0.0), LoraConfig(**(settings | config)))


def _effective(model) -> list[torch.Tensor]:
    """The weights that the adapted layers compute with, and what else is trained."""
    out, factors = [], set()
    for module in model.modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "lora_A"):
            out.append((module.get_base_layer().weight + module.get_delta_weight("default")).detach().clone())
            factors |= {id(p) for d in (module.lora_A, module.lora_B) for p in d.parameters()}
    rest = [p.detach().clone() for p in model.parameters() if p.requires_grad and id(p) not in factors]
    return out + rest


def _norm(tensors) -> float:
    return float(sum(t.double().square().sum() for t in tensors) ** 0.5)


# --- formulas ---


def test_the_formulas_are_those_of_the_products() -> None:
    generator = torch.Generator().manual_seed(0)
    a, da = (torch.randn(5, 3, 7, generator=generator) for _ in range(2))
    b, db = (torch.randn(5, 4, 3, generator=generator) for _ in range(2))
    exact = 2.5 * (db @ a + b @ da)
    assert moved_sq(a, b, da, db, 2.5) == pytest.approx(exact.double().square().sum((1, 2)), rel=1e-5)
    assert product_sq(a, b, 2.5) == pytest.approx((2.5 * b @ a).double().square().sum((1, 2)), rel=1e-5)
    only_b = 2.5 * db @ a
    assert moved_sq(a, b, None, db, 2.5) == pytest.approx(only_b.double().square().sum((1, 2)), rel=1e-5)
    assert float(moved_sq(a, b, None, None, 2.5).sum()) == 0.0


# --- a live run ---


@pytest.mark.parametrize("saved", [None, ["classifier"]])
@pytest.mark.parametrize("rate", [1e-5, 1e-4])
def test_the_update_ratio_is_the_change_of_the_effective_weights(rate, saved) -> None:
    model = _lora(modules_to_save=saved)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    tokens = Tokens(8)
    batch = {
        "input_ids": torch.stack([tokens[i]["input_ids"] for i in range(8)]),
        "labels": torch.stack([tokens[i]["labels"] for i in range(8)]),
    }
    for _ in range(3):
        before = _effective(model)
        model(**batch).loss.backward()
        optimizer.step()
        after = _effective(model)
        ratio = measure_previous_update(optimizer, [rate], frozenset({"update_ratio"}), find_adapters(model))
        moved = _norm([new - old for new, old in zip(after, before, strict=True)])
        assert float(ratio["update_ratio"]) == pytest.approx(moved / _norm(after), rel=0.02)


def test_models_without_adapters_are_measured_as_ever() -> None:
    model = bert()
    assert find_adapters(model) == () and find_adapters(None) == ()


def test_frozen_and_convolutional_adapters_are_left_out() -> None:
    model = _lora()
    assert len(find_adapters(model)) == 2
    for name, parameter in model.named_parameters():
        if "query" in name:
            parameter.requires_grad_(False)
    assert len(find_adapters(model)) == 1
    whole = get_peft_model(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3)), LoraConfig(r=2, target_modules=["0"]))
    assert find_adapters(whole) == ()


def test_the_trainer_measures_it(tmp_path) -> None:
    model = _lora()
    trainer = AdaptiveLRTrainer(
        model=model, args=integrations.arguments(tmp_path), train_dataset=Tokens(), controller=Relative(rho=0.005)
    )
    trainer.train()
    seen = [decision.observation["update_ratio"] for decision in trainer.lr_scheduler.trace]
    wanted = [0.005 * (1 - t / integrations.STEPS) for t in range(integrations.STEPS)]
    assert seen[0] == 0.0 and seen[2:] == pytest.approx(wanted[1:-1], rel=0.6), "what was wanted is what happens"


# --- vectorised ---


@pytest.mark.parametrize("rescale", [1.0, 4.0])
def test_vectorised_adapters_are_measured_alike(rescale) -> None:
    spec = TaskSpec("finetune", 3, 5, {"rank": 2, "pretrain_steps": 5, "bodies": 2, "rescale": rescale})
    problem = Problem(spec, InnerOptimizer("adamw"), total_steps=5, low_lr=1e-4, high_lr=1e-4)
    run = problem.start()
    task, rate = run.task, torch.full((3,), 1e-4, dtype=torch.float64)

    def effective() -> tuple[torch.Tensor, torch.Tensor]:
        whole, trained = task.params(run.weights), task.trained_layout().views(run.weights)
        layers = torch.cat([whole[name].flatten(1) for name in task.net.adaptable], 1)
        head = torch.cat([trained[name].flatten(1) for name in ("head.weight", "head.bias")], 1)
        return layers.double(), head.double()

    for _ in range(3):
        before = effective()
        run.advance(rate, 1)
        after = effective()
        moved = sum((new - old).square().sum(1) for new, old in zip(after, before, strict=True)).sqrt()
        size = sum(new.square().sum(1) for new in after).sqrt()
        ratio = run.observe(rate, frozenset({"update_ratio"})).update_ratio
        assert ratio == pytest.approx(moved / size, rel=0.02)
