"""A batch whose loss is computed twice, or a loss on other batches: training and its log do not notice."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Trainer

from hf_adaptive_lr import AdaptiveLRMixin, AdaptiveLRTrainer, Constant, Controller, Plateau
from hf_adaptive_lr.trainer.losses import unlogged
from tests import integrations
from tests.controllers_for_tests import Everything, Extra, Watcher
from tests.tiny import Tokens, batches, bert, flat, mlp

LOOKING = Watcher(fields=("gain_ratio",))


class Tuples(torch.utils.data.Dataset):
    """Inputs and label as a tuple, so that the default collator makes tuples of tensors, and no dict."""

    def __init__(self) -> None:
        self.rows = [row for x, y in batches(6) for row in zip(x, y, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index]


def collate(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


class OnTuples(Trainer):
    """A plain module without a loss, fed with tuples."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(model(inputs[0]), inputs[1])


class AdaptiveOnTuples(AdaptiveLRMixin, OnTuples):
    pass


def train(cls: type, controller: Controller | None, folder, *, model: Any = None, data: Any = None, **changes: Any):
    more = {} if controller is None else {"controller": controller}
    parts = {"model": model if model is not None else bert(), "train_dataset": data if data is not None else Tokens()}
    if isinstance(data, Tuples):
        parts["data_collator"] = collate
    trainer = cls(args=integrations.arguments(folder, **changes), **parts, **more)
    trainer.train()
    return trainer


TUPLES = [Constant(), Everything(), Plateau(metric="eval_loss", window=3)]


@pytest.mark.parametrize("controller", TUPLES, ids=[controller.controller_type for controller in TUPLES])
def test_a_collator_may_make_tuples(controller, tmp_path) -> None:
    trainer = train(AdaptiveOnTuples, controller, tmp_path / "mine", model=mlp(), data=Tuples())
    assert trainer.lr_scheduler.updates == integrations.STEPS
    if not controller.needs:
        plain = train(OnTuples, None, tmp_path / "plain", model=mlp(), data=Tuples())
        assert torch.equal(flat(trainer.model), flat(plain.model))
        return
    field = "gain_ratio" if "gain_ratio" in controller.needs else "eval_loss"
    seen = [row.observation[field] for row in trainer.lr_scheduler.trace]
    assert len({value for value in seen if value == value}) > 3


class Bookkeeper(AdaptiveLRTrainer):
    """Keeps books in `compute_loss` in all the ways that trainers do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metrics: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self.tokens, self.running = 0, torch.zeros(2)
        self.prepared = 0

    def _prepare_inputs(self, inputs: Any) -> Any:
        self.prepared += 1
        return super()._prepare_inputs(inputs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        labels = inputs.pop("labels")
        out = model(**inputs)
        loss = torch.nn.functional.cross_entropy(out.logits, labels)
        mode = "train" if model.training else "eval"
        self._metrics[mode].setdefault("loss", []).append(loss.item())
        self.tokens += inputs["input_ids"].numel()
        self.running[0] += loss.item()
        self.newest = mode
        self.log({"own": loss.item()})
        return (loss, out) if kwargs.get("return_outputs") else loss


def test_the_trainers_books_are_those_of_a_single_look(tmp_path) -> None:
    once, twice = (train(Bookkeeper, c, tmp_path / c.controller_type) for c in (Constant(), LOOKING))
    assert torch.equal(flat(once.model), flat(twice.model))
    assert len({row.observation["gain_ratio"] for row in twice.lr_scheduler.trace}) > 3
    for name in ("_metrics", "tokens", "newest", "prepared"):
        assert getattr(once, name) == getattr(twice, name), name
    assert torch.equal(once.running, twice.running)
    own = [[entry["own"] for entry in trainer.state.log_history if "own" in entry] for trainer in (once, twice)]
    assert own[0] == own[1] and len(own[0]) == integrations.STEPS


def test_a_loss_on_held_out_data_is_in_no_book_either(tmp_path) -> None:
    data, evaluation = Tokens(), {"eval_strategy": "steps", "eval_steps": 2}

    def run(controller: Controller, **more: Any) -> Bookkeeper:
        args = integrations.arguments(tmp_path / controller.controller_type, **evaluation)
        trainer = Bookkeeper(
            model=bert(), args=args, train_dataset=data, eval_dataset=Tokens(16, 1), controller=controller, **more
        )
        trainer.train()
        return trainer

    plain = run(Constant())
    watching = run(Plateau(metric="eval_loss", window=50), controller_dataset=Tokens(24, 2))
    assert plain._metrics == watching._metrics and plain.tokens == watching.tokens
    losses = [[e["eval_loss"] for e in t.state.log_history if "eval_loss" in e] for t in (plain, watching)]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_frozen_parts_stay_in_evaluation_mode_after_the_controllers_own_evaluation(tmp_path) -> None:
    data = Tokens(16)
    args = integrations.arguments(tmp_path)
    trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=data, controller=Constant())
    trainer.model.train()
    trainer.model.bert.eval()
    trainer._mean_loss(trainer.model, data)
    assert trainer.model.training and not trainer.model.bert.training


def test_generators_of_python_and_numpy_are_put_back(tmp_path) -> None:
    """SpecAugment draws its masks from NumPy, other code from Python: a second look draws the same again."""

    class Drawing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.drawn = bert(dropout=0.0), []

        def forward(self, **inputs: Any) -> Any:
            self.drawn.append((np.random.rand(), random.random()))
            out = self.inner(**inputs)
            out.loss = out.loss * (1 + self.drawn[-1][0])
            return out

    once, twice = Drawing(), Drawing()
    whole = {"remove_unused_columns": False}
    train(AdaptiveLRTrainer, Constant(), tmp_path / "once", model=once, **whole)
    trainer = train(AdaptiveLRTrainer, LOOKING, tmp_path / "twice", model=twice, **whole)
    assert torch.equal(flat(once), flat(twice))
    assert list(dict.fromkeys(twice.drawn)) == once.drawn  # the second time the same
    assert len(twice.drawn) == 2 * len(once.drawn)
    gains = [row.observation["gain_ratio"] for row in list(trainer.lr_scheduler.trace)[1:]]
    assert all(0 < gain < 2 for gain in gains)  # of the loss with the same factor


# --- accumulation ---


def test_a_loss_that_says_how_it_is_scaled_is_heard_and_repeated_as_a_mean(tmp_path) -> None:
    def observations(scaled: bool) -> list[dict[str, float]]:
        class Scaling(AdaptiveLRTrainer):
            loss_is_scaled_for_ga = scaled

            def compute_loss(self, model, inputs, *args, **kwargs):
                loss = model(**inputs).loss
                return loss / self.current_gradient_accumulation_steps if scaled else loss

        changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
        watcher, folder = Watcher(fields=("gain_ratio", "loss")), tmp_path / str(scaled)
        trainer = train(Scaling, watcher, folder, model=bert(dropout=0.0), **changes)
        return [row.observation for row in trainer.lr_scheduler.trace]

    for mine, other in zip(observations(True), observations(False), strict=True):
        assert mine == pytest.approx(other, rel=1e-3)  # halves are exact, and so nearly everything
        assert 0.9 < mine["loss"] < 1.3 and 0.4 < mine["gain_ratio"] < 2


# --- where it cannot be right ---


class TwoLosses(Trainer):
    """A training step of its own, with two losses."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, dict(inputs)) + 0.1 * self.compute_loss(model, dict(inputs))
        loss.backward()
        return loss.detach()


class AdaptiveTwoLosses(AdaptiveLRMixin, TwoLosses):
    pass


def test_a_training_step_of_several_losses_is_refused_only_where_one_is_repeated(tmp_path) -> None:
    assert train(AdaptiveTwoLosses, Constant(), tmp_path).lr_scheduler.updates == integrations.STEPS
    model = bert()
    before = flat(model).clone()
    with pytest.raises(ValueError, match="gain_ratio takes the loss.*AdaptiveTwoLosses calls compute_loss 2 times"):
        train(AdaptiveTwoLosses, LOOKING, tmp_path, model=model)
    assert torch.equal(before, flat(model))


def test_other_batches_are_refused_where_a_trainer_makes_its_own_from_rows(tmp_path) -> None:
    class Rows(AdaptiveLRTrainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return super()._prepare_inputs({name: torch.stack([row[name] for row in inputs]) for name in inputs[0]})

    def build(controller: Controller) -> Rows:
        args = integrations.arguments(tmp_path, remove_unused_columns=False)
        data = [{"text": "a", **row} if controller.needs & {"loss_other"} else row for row in Tokens()]
        return Rows(model=bert(), args=args, train_dataset=data, data_collator=_texts, controller=controller)

    def _texts(rows: list[dict[str, Any]]) -> Any:
        return [{"text": row["text"]} for row in rows] if "text" in rows[0] else rows

    build(Everything()).train()
    with pytest.raises(ValueError, match="Rows makes its batches from rows while it trains"):
        build(Extra()).train()


def test_books_are_put_back_in_place() -> None:
    class Owner:
        pass

    owner: Any = Owner()
    owner.log = print
    owner.nested = {"a": [1, {2}], "b": {}}
    nested, inner = owner.nested, owner.nested["a"]
    with unlogged(owner):
        owner.nested["a"][1].add(3)
        owner.nested["a"].append(4)
        owner.nested["b"]["c"] = 5
        owner.new, owner.nested = 6, {}
        owner.log({"nothing": "is printed"})
    assert owner.nested is nested and nested["a"] is inner and nested == {"a": [1, {2}], "b": {}}
    assert owner.log is print and not hasattr(owner, "new")
