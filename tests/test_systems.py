"""The systems study: its checks pass what is sound, find what is planted, and the command goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback

from hf_adaptive_lr import Controller, Observation
from hf_adaptive_lr.bench.method import Method
from hf_adaptive_lr.bench.methods import METHODS
from hf_adaptive_lr.bench.rivals import OPTIMIZERS, Package
from hf_adaptive_lr.bench.rows import read_rows
from hf_adaptive_lr.bench.runner import attempt
from hf_adaptive_lr.bench.studies import systems
from hf_adaptive_lr.bench.studies import systems_checks as checks
from hf_adaptive_lr.bench.studies.systems import NAMES, SystemsRun, main, plan, render
from hf_adaptive_lr.bench.studies.systems_checks import CHECKS
from hf_adaptive_lr.bench.studies.systems_train import HALF, PLAIN, UPDATES
from hf_adaptive_lr.bench.studies.tiny_bert import TINY
from hf_adaptive_lr.controllers import CONTROLLERS

SOUND = ("hypergradient", "greedy_repaired")


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    yield
    assert not dist.is_initialized() and "RANK" not in os.environ


def checked(method: Method, check: str) -> dict:
    row = attempt(SystemsRun(method, check))
    assert row["method"] == method.name and row["task"] == check
    return row


# --- what is sound passes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_method_passes(name):
    method = METHODS[name]
    resume, ranks, accumulation = (checked(method, check) for check in ("resume", "ranks", "accumulation"))
    assert resume["passed"] and resume["max_difference"] == 0 and resume["updates"] == UPDATES
    assert resume["lr_changes"] > 0  # greedy, too, has moved: its patience is part of what was resumed
    assert ranks["passed"] and ranks["processes"] == 2 and ranks["updates"] == HALF
    assert accumulation["passed"] and accumulation["updates"] == accumulation["decisions"] == [HALF, HALF]
    assert accumulation["lr_difference"] < 1e-6  # sums of gradients in another order


@pytest.mark.parametrize("name", SOUND)
def test_what_a_rule_holds_and_saves_does_not_grow_with_the_model(name):
    memory, checkpoint = (checked(METHODS[name], check) for check in ("memory", "checkpoint"))
    assert memory["bytes"] == memory["bytes_per_parameter"] == 0 and "passed" not in memory
    assert 0 < checkpoint["bytes"] == checkpoint["fixed_bytes"] < 4096
    assert checkpoint["files"]["scheduler.pt"] > 0


def test_bytes_of_weights_state_and_optimizer_are_counted(monkeypatch):
    amsgrad = Method(name="amsgrad", text="one more vector", optimizer="amsgrad")
    monkeypatch.setitem(OPTIMIZERS, "amsgrad", Package("torch.optim", "AdamW", "torch", {"amsgrad": True}))
    row = checked(amsgrad, "memory")
    assert row["bytes"] == 4 * row["parameters"] and row["bytes_per_parameter"] == 4 and row["fixed_bytes"] == 0
    assert checked(amsgrad, "checkpoint")["bytes_per_parameter"] == pytest.approx(4, abs=0.1)
    walk = checked(METHODS["random_walk"], "memory")
    assert walk["parts"]["scheduler"] == walk["fixed_bytes"] > 5000  # the state of its generator
    learned = METHODS["mlr_snet"]
    size = sum(p.numel() * p.element_size() for p in learned.make_controller().params.values())
    assert checked(learned, "memory")["parts"]["controller"] == size


# --- what is planted is found -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Forgetful(Controller):
    """Counts where no checkpoint sees it."""

    controller_type = "forgetful"

    def __post_init__(self) -> None:
        object.__setattr__(self, "calls", [])
        super().__post_init__()

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        self.calls.append(1)
        return torch.ones_like(obs.lr) / len(self.calls), state


@dataclass(frozen=True, kw_only=True)
class Wayward(Controller):
    """Draws from a generator that is seeded differently in every process."""

    controller_type = "wayward"

    def decide(self, obs: Observation, state: dict, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, dict]:
        drawn = torch.rand((), generator=torch.Generator().manual_seed(os.getpid()))
        return torch.ones_like(obs.lr) * (0.5 + float(drawn)), state


class Drifting(torch.optim.AdamW):
    """Its updates depend on the rank, and only there."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for weight in self.param_groups[0]["params"] if dist.is_initialized() else ():
            weight += 1e-4 * dist.get_rank()


class Unloadable(torch.optim.AdamW):
    """Saves what it does not take back."""

    def load_state_dict(self, state_dict):
        raise ValueError("cannot be resumed")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Method]:
    methods = {}
    for cls in (Forgetful, Wayward):
        monkeypatch.setitem(CONTROLLERS, cls.controller_type, cls)
        methods[cls.controller_type] = Method(name=cls.controller_type, text="", controller=cls.controller_type)
    for optimizer in (Drifting, Unloadable):
        name = optimizer.__name__.lower()
        monkeypatch.setitem(OPTIMIZERS, name, Package(__name__, optimizer.__name__, "torch"))
        methods[name] = Method(name=name, text="", optimizer=name)
    return methods


def test_state_that_is_not_saved_is_found(planted):
    row = checked(planted["forgetful"], "resume")
    assert row["passed"] is row["weights_equal"] is row["lrs_equal"] is False and row["max_difference"] > 0
    assert checked(planted["forgetful"], "ranks")["passed"]


def test_learning_rates_that_differ_by_rank_are_found(planted):
    row = checked(planted["wayward"], "ranks")
    # Our own scheduler notices where it measures anything; this controller reads nothing, so here only the check does.
    assert row["passed"] is row["lrs_equal"] is row["weights_equal"] is False
    assert f"- `wayward`, ranks: max_difference {row['max_difference']}, weights_equal False" in render([row])


def test_weights_that_drift_apart_in_silence_are_found(planted):
    row = checked(planted["drifting"], "ranks")
    assert row["passed"] is row["weights_equal"] is False and row["lrs_equal"] and row["max_difference"] > 0
    assert checked(planted["drifting"], "resume")["passed"]


def test_a_schedule_that_counts_micro_batches_is_found(monkeypatch):
    monkeypatch.setattr(TrainerCallback, "on_substep_end", lambda self, *_, lr_scheduler, **__: lr_scheduler.step())
    row = checked(PLAIN, "accumulation")
    assert row["passed"] is False and row["decisions"] == [HALF, 2 * HALF] and row["lr_difference"] > 0.01
    assert "- `plain`, accumulation: updates [12, 12], decisions [12, 24]" in render([row])


def test_what_cannot_be_done_is_a_failed_row_with_the_reason(planted, monkeypatch):
    row = checked(planted["unloadable"], "resume")
    assert row["error"] == "ValueError: cannot be resumed"
    text = render([row])
    assert "- `unloadable`, resume: ValueError: cannot be resumed" in text and "| failed |" in text

    def broken(self: Method, kind: str) -> Controller:
        raise KeyError("no such thing")

    monkeypatch.setattr(Method, "make_controller", broken)
    assert checked(planted["wayward"], "ranks")["error"] == "RuntimeError: KeyError: 'no such thing'"  # in the child


# --- overhead -----------------------------------------------------------------------------------------------------


def test_overhead_compares_two_trainers_in_turn(monkeypatch):
    monkeypatch.setattr(checks, "TIMED", TINY)
    monkeypatch.setattr(checks, "PAIRS", 2)
    row = checked(PLAIN, "overhead")
    low, high = row["quartiles"]
    assert 0.3 < low <= row["ratio"] <= high < 3 and row["blocks"] == checks.PAIRS * checks.BLOCKS
    assert row["plain_ms"] > 0 and "passed" not in row
    assert f"| `plain` | {row['ratio']:.3f} [{low:.3f}, {high:.3f}] | - |" in render([row])


# --- the page and the command -------------------------------------------------------------------------------------


def test_the_last_row_counts():
    old = checked(PLAIN, "memory")
    new = old | {"bytes_per_parameter": 4.0, "fixed_bytes": -100}
    assert "| `plain` | - | 4 per weight - 100 | - | - | - | - |" in render([old, new])
    assert "**no**" not in render([old, new]) and "No check failed." in render([new])


def test_the_committed_page_is_what_the_rows_say():
    cards = Path(__file__).parent.parent / "model_cards"
    assert (cards / systems.PAGE).read_text(encoding="utf-8") == render(read_rows(cards / "rows" / systems.ROWS))


def test_all_methods_but_replays_go_through_all_checks():
    runs = plan([METHODS[name] for name in NAMES])
    assert len({(run.key, run.task_digest, run.method_digest) for run in runs}) == (len(NAMES) + 1) * len(CHECKS)
    assert [run.check for run in runs][-1] == "overhead" and not any(name.startswith("replay:") for name in NAMES)
    assert SystemsRun(PLAIN, "memory").task_digest != SystemsRun(PLAIN, "resume").task_digest


def test_the_command_goes_on_after_an_interrupt_and_computes_nothing_twice(tmp_path, capsys, monkeypatch):
    rows, page, argv = tmp_path / "rows" / systems.ROWS, tmp_path / systems.PAGE, ["--output-dir", str(tmp_path)]
    monkeypatch.setattr(systems, "NAMES", ("plrs", "hypergradient"))
    monkeypatch.setattr(systems, "CHECKS", {name: CHECKS[name] for name in ("memory", "accumulation")})
    real, calls = SystemsRun.execute, []

    def interrupted(run: SystemsRun) -> dict:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(run.key)
        return real(run)

    monkeypatch.setattr(SystemsRun, "execute", interrupted)
    assert main(argv) == 130 and len(read_rows(rows)) == 2
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(SystemsRun, "execute", lambda run: calls.append(run.key) or real(run))
    assert main(argv) == 0
    assert len(calls) == len(set(calls)) == len(read_rows(rows)) == 6
    first, written = page.read_text(), rows.read_bytes()
    assert main(argv) == 0 and main([*argv, "--render-only"]) == 0
    assert page.read_text() == first and rows.read_bytes() == written and len(calls) == 6
    assert str(tmp_path) not in written.decode()
    lines = [line.split(" | ")[0] for line in first.splitlines() if line.startswith("| `")]
    assert lines == ["| `plain`", "| `plrs`", "| `hypergradient`"]  # the order of the methods


def test_a_method_without_its_package_is_left_out_aloud(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(systems, "missing_package", lambda method: method.optimizer)
    monkeypatch.setattr(systems, "NAMES", ("prodigy",))
    monkeypatch.setattr(systems, "CHECKS", {"memory": CHECKS["memory"]})
    assert main(["--output-dir", str(tmp_path)]) == 0
    assert "'prodigy' is left out for want of prodigy" in capsys.readouterr().out
    assert [row["method"] for row in read_rows(tmp_path / "rows" / systems.ROWS)] == ["plain"]
