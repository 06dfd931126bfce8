"""What measuring must not cost or change: host reads are counted, weights stay equal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import Trainer, TrainerCallback

from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments, Controller, Hypergradient, Universal
from hf_adaptive_lr.observation import OPTIONAL_FIELDS
from tests.controllers_for_tests import Watcher
from tests.integrations import arguments
from tests.tiny import CLASSES, LENGTH, VOCAB, Tokens, bert, flat

CHEAP = ("loss", "grad_norm", "alignment", "update_ratio")

# --- host reads -----------------------------------------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Counts, per update, what would make the host wait for the device.

    On the CPU every tensor is the host's. So a tensor counts as the device's if it was computed from a weight or an
    input; counters, learning rates and what the controller computes are the host's own.
    """

    READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.device = WeakTensorKeyDictionary()
        for tensor in [*model.parameters(), *model.buffers()]:
            self.device[tensor] = True
        self.update = 0
        self.reads: Counter[int] = Counter()  # from the device
        self.all_reads: Counter[int] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        derived = any(x in self.device for x in tensors)
        if func in self.READS:
            self.count(derived)
        out = func(*args, **(kwargs or {}))
        if derived:
            written = [x for s, x in zip(func._schema.arguments, args, strict=False) if _is_written(s)]
            for x in tree_leaves((written, out)):
                if isinstance(x, torch.Tensor):
                    self.device[x] = True
        return out

    def count(self, derived: bool) -> None:
        self.all_reads[self.update] += 1
        self.reads[self.update] += derived


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


class ListReads(TorchFunctionMode):
    """What reads CPU memory without any operator is counted where Python calls it."""

    def __init__(self, reads: HostReads) -> None:
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu):
            self.reads.count(args[0] in self.reads.device)
        return func(*args, **(kwargs or {}))


class NextUpdate(TrainerCallback):
    def __init__(self, reads: HostReads) -> None:
        self.reads = reads

    def on_step_end(self, args, state, control, **kwargs):
        self.reads.update = state.global_step


def host_reads(folder: Path, controller: Controller | None, every: int) -> HostReads:
    model = bert()
    changes: dict[str, Any] = {"max_steps": 25, "logging_steps": 1000, "max_grad_norm": 1.0}
    if controller is None:
        trainer = Trainer(model=model, args=arguments(folder, **changes), train_dataset=Tokens())
    else:
        args = arguments(folder, AdaptiveLRTrainingArguments, controller_every=every, **changes)
        trainer = AdaptiveLRTrainer(model=model, args=args, train_dataset=Tokens(), controller=controller)
    reads = HostReads(model)
    trainer.add_callback(NextUpdate(reads))
    with reads, ListReads(reads):
        trainer.train()
    return reads


@pytest.fixture(scope="module")
def plain_reads(tmp_path_factory) -> HostReads:
    return host_reads(tmp_path_factory.mktemp("plain"), None, 1)


@pytest.mark.parametrize(
    "controller",
    [
        Watcher(fields=CHEAP),
        Watcher(fields=("gain_ratio",)),
        Hypergradient(),
        Universal(without_gain=True, params=Universal.random_params()),
    ],
    ids=["cheap", "gain_ratio", "hypergradient", "universal"],
)
def test_no_host_read_between_decisions_and_one_at_a_decision(controller, tmp_path, plain_reads):
    ours = host_reads(tmp_path, controller, every=10)
    # The Trainer itself looks for a NaN loss at every update; without these the count would prove nothing.
    assert all(plain_reads.reads[t] >= 2 for t in range(25))
    gain = "gain_ratio" in controller.needs
    for t in range(25):
        # The gain ratio belongs to the update before the decision and is read right after it.
        due = t % 10 == (9 if gain else 0)
        extra = ours.reads[t] - plain_reads.reads[t]
        # At update 0 there may be nothing to measure yet.
        assert extra == 1 if due and t > 0 else 0 <= extra <= due, f"update {t}"
        if t % 10 not in (0, 9):
            assert ours.all_reads[t] == plain_reads.all_reads[t], f"update {t}, the host's own tensors included"


def test_the_counter_sees_what_it_is_there_for():
    model = nn.Linear(2, 1)
    reads = HostReads(model)
    with reads, ListReads(reads):
        loss = model(torch.ones(1, 2)).sum()
        loss.item()
        float(loss.detach())
        bool(loss > 0)
        loss.detach().cpu()
        (loss.double() * 2).tolist()
        torch.stack([torch.zeros(()), loss.detach()]).numpy()
        total = torch.zeros(())
        total += loss.detach()
        total.item()
        torch.tensor(3.0).item()
        torch.tensor([3.0]).tolist()
    assert (reads.reads[0], reads.all_reads[0]) == (7, 9)


# --- measuring changes nothing --------------------------------------------------------------------------------------


class BatchNormNet(nn.Module):
    """Batch statistics in buffers and dropout: what a repeated forward pass could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 4)
        self.norm = nn.BatchNorm1d(4 * LENGTH)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4 * LENGTH, CLASSES)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(self.drop(torch.tanh(self.norm(self.embed(input_ids).flatten(1)))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def batch_norm_net() -> BatchNormNet:
    torch.manual_seed(0)
    return BatchNormNet()


def trained(make, fields: tuple[str, ...], folder: Path, **changes: Any) -> tuple[torch.Tensor, ...]:
    model = make()
    args = arguments(folder, AdaptiveLRTrainingArguments, max_grad_norm=1.0, **changes)
    trainer = AdaptiveLRTrainer(
        model=model,
        args=args,
        train_dataset=Tokens(),
        controller=Watcher(fields=fields),
        controller_dataset=Tokens(8, seed=2),
    )
    trainer.train()
    assert len(trainer.lr_scheduler.trace) == args.max_steps
    seen = trainer.lr_scheduler.trace[-1].observation or {}
    assert set(seen) == set(fields)
    buffers = torch.cat([b.detach().flatten().double() for b in model.buffers()] or [torch.zeros(0)])
    return flat(model), buffers, torch.get_rng_state()


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory) -> dict[str, tuple[torch.Tensor, ...]]:
    folder = tmp_path_factory.mktemp("unmeasured")
    return {make.__name__: trained(make, (), folder / make.__name__) for make in (bert, batch_norm_net)}


@pytest.mark.parametrize("make", [bert, batch_norm_net], ids=["dropout", "batch norm"])
@pytest.mark.parametrize("field", OPTIONAL_FIELDS)
def test_measuring_a_field_changes_no_bit(field, make, tmp_path, unmeasured):
    for mine, theirs in zip(trained(make, (field,), tmp_path), unmeasured[make.__name__], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("make", [bert, batch_norm_net], ids=["dropout", "batch norm"])
def test_an_unmeasured_run_equals_a_plain_trainer(make, tmp_path, unmeasured):
    model = make()
    trainer = Trainer(model=model, args=arguments(tmp_path, max_grad_norm=1.0), train_dataset=Tokens())
    if isinstance(model, BatchNormNet):
        trainer.model_accepts_loss_kwargs = False
    trainer.train()
    weights, buffers, generator = unmeasured[make.__name__]
    assert torch.equal(flat(model), weights) and torch.equal(torch.get_rng_state(), generator)
