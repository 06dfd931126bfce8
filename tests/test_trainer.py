"""The Trainer subclass: arguments, its own data, composition, hyper-parameter search, learning inside the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
import yaml
from torch import Tensor
from transformers import HfArgumentParser, Seq2SeqTrainer, Trainer, TrainingArguments

from hf_adaptive_lr import (
    AdaptiveLRCallback,
    AdaptiveLRMixin,
    AdaptiveLRSeq2SeqTrainer,
    AdaptiveLRTrainer,
    AdaptiveLRTrainingArguments,
    AutoController,
    ControlledLR,
    Controller,
    Hypergradient,
    Linear,
    Observation,
    Outcome,
    Plateau,
    UpdateSize,
)
from hf_adaptive_lr.finetune.options import FinetuneConfig
from hf_adaptive_lr.trainer.defaults import DEFAULT_CONTROLLER
from tests import integrations
from tests.tiny import Tokens, batches, bert, mlp

# --- arguments ---


def test_settings_come_from_the_command_line_and_from_yaml(tmp_path) -> None:
    parser = HfArgumentParser(AdaptiveLRTrainingArguments)
    line = ["--output_dir", str(tmp_path), "--controller", "hypergradient", "--controller_kwargs", '{"beta": 0.01}']
    line += ["--controller_every", "5", "--controller_max_factor", "3", "--learning_rate", "0.01", "--use_cpu"]
    (args,) = parser.parse_args_into_dataclasses(line)
    assert args.make_controller() == Hypergradient(beta=0.01)
    assert args.scheduler_settings(100)["every"] == 5
    assert args.scheduler_settings(100)["max_factor"] == 3.0
    (tmp_path / "args.yaml").write_text(
        yaml.safe_dump({"output_dir": str(tmp_path), "controller": "plateau", "controller_kwargs": {"window": 3}})
    )
    (args,) = parser.parse_yaml_file(str(tmp_path / "args.yaml"))
    assert args.make_controller() == Plateau(window=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"controller_kwargs": "{"}, "not valid JSON"),
        ({"controller_split": 0.9}, r"controller_split=0.9 is outside \[1e-09, 0.5\]"),
        ({"controller_split": float("nan")}, "controller_split=nan is outside"),
        ({"controller_split": None}, "controller_split must be a number, got None; 0.1 holds out"),
        ({"controller_split": "3"}, "controller_split must be a number, got '3'"),
        ({"controller_split": [1]}, r"controller_split must be a number, got \[1\]"),
        ({"controller_eval_steps": 0}, "controller_eval_steps=0"),
        ({"controller_eval_steps": "3"}, "controller_eval_steps must be a whole number, got '3'; pass"),
        ({"controller_eval_steps": True}, "controller_eval_steps must be a whole number, got True"),
        ({"controller_eval_steps": 1e300}, r"controller_eval_steps must be a whole number, got 1e\+300"),
        ({"controller_eval_steps": float("nan")}, "controller_eval_steps must be a whole number, got nan"),
        ({"controller_min_lr": None}, "controller_min_lr must be a number, got None; leave it out"),
        ({"controller_max_lr": None}, "controller_max_lr must be a number, got None; leave it out"),
        ({"controller_max_lr": float("nan")}, "controller_max_lr=nan is outside"),
        ({"anytime": "false"}, "anytime must be True or False, got 'false'"),
        ({"divergence_guard": "false"}, "divergence_guard must be True or False, got 'false'"),
        ({"dsa": 1}, "dsa must be True or False, got 1"),
        ({"controller": "nonsense"}, "no controller 'nonsense'"),
        ({"controller_kwargs": {"fres": 0.1}}, "unknown key 'fres'; known keys: start"),
        ({"controller_kwargs": {"fresh": "x"}}, "key 'fresh' must be float"),
        ({"controller_kwargs": "[1]"}, r"controller_kwargs='\[1\]' is not a JSON object"),
        ({"controller_envelope": "3"}, "controller_envelope='3' is not a JSON object"),
        ({"controller_envelope": {"hihg": 3}}, "controller_envelope: no setting 'hihg'; did you mean high?"),
        ({"controller_envelope": {"high": 0.5}}, "Envelope: high=0.5 is outside"),
        ({"divergence_guard_kwargs": {"max_skip": 3}}, "divergence_guard_kwargs: no setting 'max_skip'; did you mean"),
        ({"dsa_kwargs": {"betta": 0.1}}, "dsa_kwargs: no setting 'betta'; did you mean beta?"),
        ({"controller_every": -1}, "every=-1"),
    ],
)
def test_bad_settings_fail_by_name(settings, message, tmp_path) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, **settings)
        AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens()).train()
    assert not (tmp_path / "lr_trace.jsonl").exists()


def test_the_default_controller_is_the_same_everywhere(tmp_path, caplog) -> None:
    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, learning_rate=5e-5)
    assert args.controller == FinetuneConfig().resolved().controller == DEFAULT_CONTROLLER == "universal"
    usual = AutoController.from_pretrained("universal")
    assert AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens()).controller == usual == UpdateSize()
    args.controller_kwargs = {"fresh": 0.003}
    assert args.make_controller() == UpdateSize(fresh=0.003)
    AdaptiveLRTrainer(
        model=bert(),
        args=integrations.arguments(tmp_path, AdaptiveLRTrainingArguments),
        train_dataset=Tokens(),
        controller="linear",
    )
    assert "is not used" not in caplog.text
    rated = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, learning_rate=0.1)
    AdaptiveLRTrainer(model=bert(), args=rated, train_dataset=Tokens())
    assert caplog.text.count("learning_rate=0.1 is not used: controller 'universal', the default, finds it") == 1


def test_a_trainer_without_a_controller_or_with_two_schedulers_fails_fast(tmp_path) -> None:
    with pytest.raises(ValueError, match="no controller: pass controller="):
        AdaptiveLRTrainer(model=bert(), args=integrations.arguments(tmp_path), train_dataset=Tokens())
    model = bert()
    optimizer = integrations.optimizer_for(model)
    scheduler = ControlledLR(optimizer, "constant")
    with pytest.raises(ValueError, match="makes its own scheduler"):
        AdaptiveLRTrainer(model=model, args=integrations.arguments(tmp_path), optimizers=(optimizer, scheduler))
    with pytest.raises(ValueError, match="AdaptiveLRCallback has no setting 'evry'"):
        AdaptiveLRCallback("constant", evry=3)


def test_plain_arguments_and_warmup_work_too(tmp_path) -> None:
    args = integrations.arguments(tmp_path, TrainingArguments, warmup_steps=3)
    trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller="constant")
    trainer.train()
    assert trainer.lr_scheduler.lr_history()[:4] == pytest.approx(
        [integrations.LR / 3, integrations.LR * 2 / 3, integrations.LR, integrations.LR]
    )


def test_the_mixin_composes_with_any_trainer(tmp_path) -> None:
    class Halved(Trainer):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) / 2

    class Mine(AdaptiveLRMixin, Halved):
        pass

    args = integrations.arguments(tmp_path)
    trainer = Mine(model=bert(), args=args, train_dataset=Tokens(), controller=Plateau(window=2))
    trainer.train()
    seen = [d.observation["loss"] for d in trainer.lr_scheduler.trace]
    assert seen == pytest.approx([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert issubclass(AdaptiveLRSeq2SeqTrainer, Seq2SeqTrainer)


def test_hyperparameter_search_over_the_controller(tmp_path) -> None:
    args = integrations.arguments(
        tmp_path, AdaptiveLRTrainingArguments, max_steps=2, eval_strategy="steps", eval_steps=2
    )
    seen: list[tuple[str, float | None]] = []

    class Recording(AdaptiveLRTrainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            seen.append((scheduler.controller.controller_type, getattr(scheduler.controller, "beta", None)))
            return scheduler

    trainer = Recording(model_init=lambda: bert(), args=args, train_dataset=Tokens(), eval_dataset=Tokens(8, seed=1))
    space = [{"controller": "linear"}, {"controller": "hypergradient", "controller_kwargs": {"beta": 0.2}}]

    def hp_space(trial) -> dict:
        trial.suggest_float("unused", 0, 1)
        return space[trial.number]

    best = trainer.hyperparameter_search(hp_space, backend="optuna", n_trials=2, direction="minimize")
    assert seen == [("linear", None), ("hypergradient", 0.2)]
    assert best.objective > 0


# --- the controller's own data ---


class _Counting(Tokens):
    """Remembers which rows were read."""

    def __init__(self, size: int, seed: int = 0) -> None:
        super().__init__(size, seed)
        self.read: set[int] = set()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.read.add(index)
        return super().__getitem__(index)


def _evaluating(folder, train, **kwargs) -> AdaptiveLRTrainer:
    args = integrations.arguments(folder, AdaptiveLRTrainingArguments, max_steps=12, controller_eval_steps=3)
    controller = Plateau(metric="eval_loss", window=2)
    trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=train, controller=controller, **kwargs)
    trainer.train()
    return trainer


def test_a_tenth_of_the_training_set_is_held_out_and_never_trained_on(tmp_path, caplog) -> None:
    data, reported = _Counting(40), _Counting(8, seed=1)
    trainer = _evaluating(tmp_path, data, eval_dataset=reported)
    held, left = set(trainer.controller_dataset.indices), set(trainer.train_dataset.indices)
    assert len(held) == 4
    assert held | left == set(range(40))
    assert not held & left
    assert data.read == set(range(40))
    assert reported.read == set()
    (line,) = [record.getMessage() for record in caplog.records if "held out" in record.msg]
    assert "4 of the training set's 40 examples" in line and "controller_dataset=" in line
    assert "split of the training set" in trainer.controller_data
    fresh = [d.step for d in trainer.lr_scheduler.trace if d.observation["eval_loss"] == d.observation["eval_loss"]]
    assert fresh == [0, 3, 6, 9]
    again = _evaluating(tmp_path, _Counting(40))
    assert again.controller_dataset.indices == trainer.controller_dataset.indices


def test_data_of_the_callers_own(tmp_path, caplog) -> None:
    data, own, said = _Counting(40), _Counting(6, seed=2), lambda: [r for r in caplog.records if "held out" in r.msg]
    trainer = _evaluating(tmp_path, data, controller_dataset=own)
    assert own.read == set(range(6))
    assert trainer.controller_data == "controller_dataset"
    assert len(trainer.train_dataset) == 40 and not said()
    expected = bert()
    expected.eval()
    batch = {"input_ids": own.ids, "labels": own.labels}
    with torch.no_grad():
        loss = float(expected(**batch).loss)
    assert trainer.lr_scheduler.trace[0].observation["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_evaluating_for_the_controller_changes_nothing_in_training(tmp_path) -> None:
    weights = []
    for steps in (1, 100):
        args = integrations.arguments(
            tmp_path, AdaptiveLRTrainingArguments, controller_eval_steps=steps, train_sampling_strategy="random"
        )
        controller = Plateau(metric="eval_loss", window=1000)
        own = Tokens(6, seed=2)
        trainer = AdaptiveLRTrainer(
            model=bert(), args=args, train_dataset=Tokens(), controller=controller, controller_dataset=own
        )
        trainer.train()
        weights.append(integrations._flat(trainer.model))
    assert torch.equal(*weights)


def test_a_stream_cannot_be_split(tmp_path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from (Tokens()[i] for i in range(48))

    with pytest.raises(ValueError, match="has no length; pass controller_dataset="):
        _evaluating(tmp_path, Stream())
    args = integrations.arguments(tmp_path, train_sampling_strategy="random")
    trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Stream(), controller=Linear())
    trainer.train()
    assert trainer.lr_scheduler.updates == integrations.STEPS


# --- learning inside the run ---


@dataclass(frozen=True, kw_only=True)
class Learner(Controller):
    """Raises its factor after updates that lowered their own batch's loss, lowers it after the others."""

    controller_type = "learner"
    needs = frozenset({"loss_before", "loss_after"})

    def init(self, batch_shape=(), *, n_groups=1, seed=0, device=None) -> dict:
        return {"factor": torch.ones(batch_shape, dtype=torch.float64), "gains": torch.zeros(0, dtype=torch.float64)}

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        return state["factor"], state

    def learn(self, outcome: Outcome, state: dict) -> dict:
        gain = outcome.loss_before - outcome.loss_after
        factor = state["factor"] * torch.where(gain > 0, 1.1, 0.5)
        return {"factor": factor, "gains": torch.cat((state["gains"], gain.reshape(1)))}


def test_learn_sees_the_loss_of_the_same_batch_before_and_after() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Learner(), model=model, hook=False)
    gains = []
    for x, y in batches(4):

        def closure(x=x, y=y) -> Tensor:
            return torch.nn.functional.cross_entropy(model(x), y)

        state = torch.get_rng_state()  # before the forward pass: the same dropout mask
        scheduler.before_forward()
        loss = closure()
        loss.backward()
        scheduler.observe(loss=loss, closure=closure)
        optimizer.step()
        optimizer.zero_grad()
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        with torch.no_grad():
            gains.append(float(loss.detach() - closure()))
        torch.set_rng_state(after)
    learned = scheduler.state_dict()["controller_state"]
    assert learned["gains"].tolist() == pytest.approx(gains, abs=1e-6)
    expected = [0.1]
    for gain in gains[:-1]:
        expected.append(expected[-1] * (1.1 if gain > 0 else 0.5))
    assert scheduler.lr_history() == pytest.approx(expected)


def test_a_learner_works_through_trainer(tmp_path) -> None:
    trainer, (lrs, _) = integrations.subclassed(Learner(), tmp_path)
    assert len(set(lrs)) > 1
    _, (others, _) = integrations.passed_to_trainer(Learner(), tmp_path)
    assert others == lrs


def test_a_signal_that_no_scheduler_can_measure_fails_fast() -> None:
    controller = type("Actor", (Controller,), {"needs": frozenset({"loss_other"})})()
    with pytest.raises(ValueError, match="loss_other, the loss of a batch that this integration does not have"):
        ControlledLR(torch.optim.SGD(mlp().parameters(), lr=0.1), controller)


def test_the_output_folder_says_who_decided(tmp_path) -> None:
    from hf_adaptive_lr.report import read_run

    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments)
    AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller=Hypergradient(beta=0.03)).train()
    facts = read_run(tmp_path).facts
    assert facts["controller"] == "hypergradient" and "0.03" in facts["controller settings"]
