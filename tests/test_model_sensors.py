"""Sensors that look into the model or take extra batches: against a direct computation, and without a trace."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    set_seed,
)

from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments, ControlledLR, Hypergradient
from hf_adaptive_lr.sensors.weights import last_matrices
from hf_adaptive_lr.trainer.data import ExtraBatches
from tests import integrations
from tests.controllers_for_tests import Classified, Extra, Watcher
from tests.tiny import CLASSES, Tokens, batches, bert, flat, mlp, vit

PREDICTIONS = ("prediction_variance", "prediction_change")
WEIGHTS = ("penultimate_mean", "penultimate_variance", "head_mean", "head_variance")


def _run(model: nn.Module, watcher: Watcher, steps: int = 3) -> list[dict[str, float]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, watcher, model=model, max_grad_norm=0)
    model.train()
    for start in range(0, 8 * steps, 8):
        rows = [Tokens()[i] for i in range(start, start + 8)]
        model(**{k: torch.stack([r[k] for r in rows]) for k in rows[0]}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [dict(d.observation) for d in scheduler.trace]


def test_predictions_are_those_of_the_training_batch_before_its_update() -> None:
    seen = _run(bert(dropout=0.0), Watcher(fields=PREDICTIONS))
    model, before, expected = bert(dropout=0.0), None, []
    for start in range(0, 24, 8):
        rows = [Tokens()[i] for i in range(start, start + 8)]
        output = model(**{k: torch.stack([r[k] for r in rows]) for k in rows[0]})
        now = output.logits.detach().softmax(-1)
        change = now.var(correction=0) + 1 / 12 if before is None else (now - before).var(correction=0)
        expected.append((float(now.var(correction=0)), float(change)))
        before = now
        output.loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
                p.grad = None
    got = [(row["prediction_variance"], row["prediction_change"]) for row in seen]
    assert got == pytest.approx([pytest.approx(pair, rel=1e-5) for pair in expected])


def test_weights_and_classes_of_transformers_models() -> None:
    model = bert()
    row = _run(model, Watcher(fields=("classes", *WEIGHTS)), steps=1)[0]
    fresh = bert()  # the first decision is taken before the first update
    assert row["classes"] == CLASSES
    pooler, head = fresh.bert.pooler.dense.weight, fresh.classifier.weight
    assert row["penultimate_mean"] == pytest.approx(float(pooler.detach().mean()))
    assert row["head_variance"] == pytest.approx(float(head.detach().var(correction=0)))


def test_the_head_is_found_in_any_classification_model() -> None:
    set_seed(0)
    resnet = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3))
    kernel, bias = last_matrices(resnet.parameters())
    assert kernel is resnet.classifier[1].weight
    assert bias is resnet.classifier[1].bias  # as in the paper's released code for ResNet
    config = DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=8, num_labels=3)
    distil = DistilBertForSequenceClassification(config)
    assert last_matrices(distil.parameters())[0] is distil.pre_classifier.weight
    assert last_matrices(distil.parameters())[1] is distil.classifier.weight
    image = vit()
    assert last_matrices(image.parameters())[1] is image.classifier.weight
    for p in image.vit.parameters():
        p.requires_grad = False
    assert last_matrices(image.parameters()) == (image.classifier.weight, image.classifier.bias)
    with pytest.raises(ValueError, match="the model trains none"):
        last_matrices([nn.Parameter(torch.zeros(3))])


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.AdamW])
def test_slopes_of_groups_add_up_and_equal_autograd(build) -> None:
    """The slope is minus the derivative of the loss in the learning rate of the update before."""
    torch.set_default_dtype(torch.float64)
    try:
        model = mlp()
        model.eval()
        groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[3].parameters(), "lr": 0.02}]
        kwargs = {"weight_decay": 0.0} if build is torch.optim.AdamW else {}
        optimizer = build(groups, **kwargs)
        scheduler = ControlledLR(optimizer, Watcher(fields=("slope", "group_slope", "group_alignment")))
        (x0, y0), (x1, y1) = batches(2)
        nn.functional.cross_entropy(model(x0.double()), y0).backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        rates = [0.1, 0.1, 0.02, 0.02]
        params = list(model.parameters())
        directions = [(b - p.detach()) / lr for b, p, lr in zip(before, params, rates, strict=True)]
        scales = torch.tensor(rates[::2], requires_grad=True)
        names = [n for n, _ in model.named_parameters()]
        moved = {n: b - scales[i // 2] * d for i, (n, b, d) in enumerate(zip(names, before, directions, strict=True))}
        loss = nn.functional.cross_entropy(torch.func.functional_call(model, moved, x1.double()), y1)
        expected = -torch.autograd.grad(loss, scales)[0]
        nn.functional.cross_entropy(model(x1.double()), y1).backward()
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    seen = scheduler.trace[1].observation
    # The readers work in float32.
    assert seen["group_slope"] == pytest.approx(expected.tolist(), rel=1e-4)
    assert seen["slope"] == pytest.approx(float(expected.sum()), rel=1e-4)
    assert all(-1 <= value <= 1 for value in seen["group_alignment"])


def test_a_rate_for_every_group() -> None:
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[3].parameters(), "lr": 0.02}]
    optimizer = torch.optim.SGD(groups)
    scheduler = ControlledLR(optimizer, Hypergradient(per_group=True))
    for x, y in batches(3):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = list(scheduler.trace)
    expected = [0.1, 0.02]
    for row in rows:
        expected = [lr * (1 + 0.05 * a) for lr, a in zip(expected, row.observation["group_alignment"], strict=True)]
        assert row.lr == pytest.approx(expected)
    assert len({row.lr[0] / row.lr[1] for row in rows}) == 3
    assert rows[-1].as_dict()["observation"]["group_alignment"] == list(rows[-1].observation["group_alignment"])


def test_the_additive_rule_by_hand_on_a_quadratic() -> None:
    """L = w^2 / 2, so g = w: three steps of SGD-HD (Baydin et al. 2018, Algorithm 1)."""
    w = nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.SGD([w], lr=0.1)
    scheduler = ControlledLR(optimizer, Hypergradient.from_preset("paper", beta=0.01))
    value, rate, last = 2.0, 0.1, None
    for _ in range(4):
        optimizer.zero_grad()
        (w.square() / 2).sum().backward()
        optimizer.step()
        rate += 0.01 * value * last if last is not None else 0.0
        last = value
        value -= rate * value
        assert scheduler.trace[-1].lr[0] == pytest.approx(rate, rel=1e-6)
        assert float(w.detach()) == pytest.approx(value, rel=1e-6)


def test_a_negative_additive_rate_stops_at_the_bound() -> None:
    w = nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.SGD([w], lr=0.1)
    scheduler = ControlledLR(optimizer, Hypergradient(rule="additive", beta=10.0), min_lr=1e-3)
    for sign in (1.0, -1.0):
        optimizer.zero_grad()
        (sign * w).sum().backward()
        optimizer.step()
    assert scheduler.trace[-1].lr[0] == 1e-3
    assert scheduler.trace[-1].reason == "bounded"


# --- batches beside training's own ---


def test_extra_batches_are_functions_of_their_number() -> None:
    first = ExtraBatches(range(1000), torch.tensor, 8, (3, 0, 0))
    again = ExtraBatches(range(1000), torch.tensor, 8, (3, 0, 0))
    other = ExtraBatches(range(1000), torch.tensor, 8, (3, 1, 0))
    assert torch.equal(first(5), again(5))
    assert not torch.equal(first(5), first(6))
    assert not torch.equal(first(5), other(5))
    with pytest.raises(ValueError, match="no length"):
        ExtraBatches(iter(()), torch.tensor, 8, 0)


def test_outcomes_of_other_batches_equal_autograd_and_leave_no_trace() -> None:
    def train(controller, **losses) -> tuple[ControlledLR, torch.Tensor]:
        model = mlp(batch_norm=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        made = {name: lambda t, data=data: _loss(model, data[t]) for name, data in losses.items()}
        scheduler = ControlledLR(optimizer, controller, model=model, **made)
        torch.manual_seed(0)
        for x, y in batches(4):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            scheduler.observe(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
        return scheduler, torch.cat((flat(model), *[b.flatten().float() for b in model.buffers()]))

    def _loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    other, meta = batches(4, seed=5), batches(4, seed=6)
    frozen = type(
        "Frozen", (Extra,), {"decide": lambda self, obs, state, params=None: (torch.ones(()).double(), state)}
    )
    scheduler, weights = train(frozen(), other_loss=other, meta_loss=meta)
    _, plain = train(Watcher())
    assert torch.equal(weights, plain)
    seen = scheduler.state_dict()["controller_state"]["seen"]
    assert seen[:, 0].tolist() == [1.0, 3.0]

    model = mlp(batch_norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(0)
    for step, (x, y) in enumerate(batches(2)):
        nn.functional.cross_entropy(model(x), y).backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        if step == 1:
            state = torch.get_rng_state()
            buffers = [b.clone() for b in model.buffers()]
            loss_other = _loss(model, other[1])
            torch.set_rng_state(state)
            for buffer, kept in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(kept)
            gradients = torch.autograd.grad(_loss(model, meta[1]), list(model.parameters()))
            pairs = zip(before, model.parameters(), gradients, strict=True)
            inner = sum(float(((b - p.detach()) * g).sum()) for b, p, g in pairs) / 0.1
    assert float(seen[0, 1]) == pytest.approx(float(loss_other.detach()), rel=1e-6)
    assert float(seen[0, 2]) == pytest.approx(inner, rel=1e-5)


def test_trainer_gives_other_and_meta_batches(tmp_path) -> None:
    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments)
    own = Tokens(20, seed=2)
    trainer = AdaptiveLRTrainer(
        model=bert(), args=args, train_dataset=Tokens(), controller=Extra(), controller_dataset=own
    )
    trainer.train()
    assert trainer.controller_data == "controller_dataset"
    assert len(set(trainer.lr_scheduler.lr_history())) == 3  # learned after updates 1 and 3
    split = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller=Extra())
    assert len(split.train_dataset) == 44
    assert "split of the training set" in split.controller_data


def test_watching_changes_nothing(tmp_path) -> None:
    class Still(Classified):
        def decide(self, obs, state, params=None):
            for name in self.needs:
                obs.require(name)
            return torch.ones(2, dtype=torch.float64), state

    _, (_, watched) = integrations.subclassed(Still(), tmp_path)
    _, (_, plain) = integrations.subclassed(Watcher(), tmp_path)
    assert torch.equal(watched, plain)


def test_what_cannot_be_seen_fails_fast_by_name() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batches(1)[0]

    def update(fields: tuple[str, ...], **observed) -> None:
        scheduler = ControlledLR(optimizer, Watcher(fields=fields), max_grad_norm=0)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        scheduler.observe(loss=loss, **observed)
        optimizer.step()

    with pytest.raises(ValueError, match="call observe\\(logits=...\\)"):
        update(("prediction_variance",))
    with pytest.raises(ValueError, match="number of classes"):
        update(("classes",))
    with pytest.raises(ValueError, match=r"logits have shape \(8,\)"):
        update(("prediction_variance",), logits=torch.zeros(8))
    update(("prediction_variance", "classes"), logits=torch.zeros(8, 3))
    fresh = type("Fresh", (Watcher,), {"fresh_eval": True})
    ControlledLR(optimizer, fresh(fields=("eval_loss",)))
    nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(ValueError, match="an evaluation at every decision"):
        optimizer.step()


def test_a_controller_with_a_rhythm_of_its_own_is_evaluated_at_its_decisions(tmp_path) -> None:
    class Rhythm(Watcher):
        fresh_eval = True

        def due(self, update, total_steps):
            return update in (0, 1, 4)

    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments)
    trainer = AdaptiveLRTrainer(
        model=bert(),
        args=args,
        train_dataset=Tokens(),
        controller=Rhythm(fields=("eval_loss",)),
        controller_dataset=Tokens(9, seed=2),
    )
    trainer.train()
    decided = [d for d in trainer.lr_scheduler.trace if d.reason == "decision"]
    assert [d.step for d in decided] == [0, 1, 4]
    assert all(math.isfinite(d.observation["eval_loss"]) for d in decided)
    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, controller_every=3)
    trainer = AdaptiveLRTrainer(
        model=bert(), args=args, train_dataset=Tokens(), controller=Rhythm(fields=("eval_loss",))
    )
    trainer.train()
    assert [d.step for d in trainer.lr_scheduler.trace if d.reason == "decision"] == [0, 3]
