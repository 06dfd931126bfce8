"""The KL divergence of an update against a direct computation, and the rule that keeps it near a target."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments, ControlledLR, KLTarget, Observation
from hf_adaptive_lr.sensors.divergence import LARGEST, divergence_terms, predicted
from tests import integrations
from tests.controllers_for_tests import Watcher
from tests.tiny import Tokens, batches, bert, flat, mlp

TARGET = 0.008


def observed(kl, *, step=5, lr=0.1, base=0.1, last=None) -> Observation:
    values = {"lr": lr, "base_lr": base, "kl": kl}.items()
    tensors = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in values}
    return Observation(step=step, total_steps=None, last_lr=None if last is None else torch.tensor(last), **tensors)


def factor(kl: float, reached: bool = True, controller: KLTarget | None = None, **changes) -> float:
    state = {"reached": torch.tensor(reached)}
    return float((controller or KLTarget()).decide(observed(kl, **changes), state)[0])


# --- the rule ------------------------------------------------------------------------------------------------------


def test_it_cuts_above_the_dead_zone_and_raises_below_it() -> None:
    for inside in (TARGET / 2, TARGET, TARGET * 2, float("nan")):
        assert factor(inside, lr=0.05) == 0.5
    assert factor(2.1 * TARGET, lr=0.05) == pytest.approx(0.5 / 1.5)
    assert factor(16 * TARGET, lr=0.05) == pytest.approx(0.5 / 4)  # d grows with the square of the rate
    assert factor(LARGEST, lr=0.05) == pytest.approx(0.5 / 10)  # at most tenfold at once
    assert factor(TARGET / 3, reached=False, lr=0.05) == pytest.approx(0.5 * 1.5)
    assert factor(TARGET / 3, lr=0.05) == pytest.approx(0.5 * 1.05)


def test_nothing_to_learn_raises_nothing() -> None:
    assert factor(0.0, reached=False, lr=0.05) == 0.5
    assert factor(1e-9, reached=False, lr=0.05) == pytest.approx(0.75)
    assert factor(TARGET / 101, lr=0.05) == 0.5


def test_it_begins_low_and_stays_within_its_bounds() -> None:
    assert factor(float("nan"), step=0) == 0.01 and factor(1.0, step=0) == 0.01
    assert factor(TARGET / 3, reached=False, lr=0.09) == 1.0
    assert factor(1.0, lr=1.1e-5) == 1e-4
    assert factor(TARGET / 3, reached=False, lr=0.1, controller=KLTarget(ceiling=1.2)) == pytest.approx(1.2)


def test_under_a_warm_up_it_judges_its_own_rate() -> None:
    quarter = TARGET / 16  # of a rate that was a quarter of its own, so at its own it is the target
    assert factor(quarter, lr=0.08, last=0.02) == pytest.approx(0.8)
    assert factor(TARGET, lr=0.08, last=0.02) == pytest.approx(0.8 / 4)


def test_rounding_early_in_a_warm_up_is_no_reason_to_cut() -> None:
    rounding = TARGET / 1000  # at a thousandth of the rate: not judged as a million times as much
    assert factor(rounding, lr=0.1, last=0.0001) == factor(rounding, lr=0.1, last=0.01) == 1.0


def test_runs_side_by_side_decide_like_each_alone() -> None:
    kls = torch.tensor([0.0, 1e-3, TARGET, 0.05, 3.0, float("nan")], dtype=torch.float64)
    steps = torch.tensor([3, 3, 3, 3, 0, 7])
    state = KLTarget().init((6,))
    answers, after = KLTarget().decide(observed(kls, step=steps, lr=[0.05] * 6, base=[0.1] * 6), state)
    for i, kl in enumerate(kls):
        alone, own = KLTarget().decide(observed(kl, step=int(steps[i]), lr=0.05), KLTarget().init())
        assert float(answers[i]) == float(alone) and bool(after["reached"][i]) == bool(own["reached"])


def drive(controller: KLTarget, sensitivities: list[float], base: float) -> list[float]:
    """Learning rates of a run whose update at rate lr has a divergence of sensitivity * lr^2."""
    state, lr, kl, rates = controller.init(), base, float("nan"), []
    for step, sensitivity in enumerate(sensitivities):
        answer, state = controller.decide(observed(kl, step=step, lr=lr, base=base), state)
        lr = float(answer) * base
        kl = min(LARGEST, sensitivity * lr**2)
        rates.append(lr)
    return rates


@pytest.mark.parametrize("times", [1, 10, 100])
def test_it_finds_the_rate_of_the_target_below_the_one_given(times) -> None:
    rates = drive(KLTarget(), [TARGET / 1e-3**2] * 60, base=times * 2e-3)
    assert 1e-3 / 2 < rates[-1] < 1e-3 * 2
    assert max(rates) < 1e-3 * 2**0.5 * 1.5


def test_a_long_stretch_without_gradients_does_not_blow_it_up() -> None:
    """What rl_games' rule does: to its upper bound, and the next gradient finds it there (Denys88/rl_games#374)."""
    live, fading = TARGET / 1e-3**2, [TARGET / 1e-3**2 * 0.81**i for i in range(200)]
    mine = drive(KLTarget(ceiling=100.0), [live] * 60 + fading, base=1e-2)
    theirs = drive(KLTarget.from_preset("rl_games").replace(ceiling=100.0), [live] * 60 + fading, base=1e-2)
    assert theirs[-1] == 1.0  # a thousand times as much as the target allows
    assert max(mine) < 5e-3 and mine[-1] == mine[-50]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"target": 0.0}, "target=0.0 is outside"),
        ({"target": float("nan")}, "target=nan is outside"),
        ({"zone": 0.5}, "zone=0.5 is outside"),
        ({"step": 1.0}, "step=1.0 is outside"),
        ({"later": 2.0}, "later=2.0 is outside"),
        ({"idle": 1.0}, "idle=1.0 is outside"),
        ({"floor": 0.0}, "floor=0.0 is outside"),
        ({"floor": 0.5, "ceiling": 0.1}, "ceiling=0.1 is outside"),
        ({"start": 2.0}, "start=2.0 is outside"),
    ],
)
def test_settings_out_of_range(config, words) -> None:
    with pytest.raises(ValueError, match=words):
        KLTarget(**config)


# --- the divergence ------------------------------------------------------------------------------------------------


def divergence(before, after, **kwargs) -> float:
    total, count = divergence_terms(predicted(before, kwargs), predicted(after, kwargs))
    return float(total / count)


def test_it_is_exact_for_logits_and_an_estimate_for_log_probs_of_given_tokens() -> None:
    old, new = torch.randn(2, 5, 7, dtype=torch.float64).unbind(0)
    exact = (old.softmax(-1) * (old.log_softmax(-1) - new.log_softmax(-1))).sum(-1).mean()
    assert divergence({"logits": old}, {"logits": new}) == pytest.approx(float(exact), rel=1e-5)
    assert divergence(old, new) == pytest.approx(float(exact), rel=1e-5)  # a bare tensor
    assert divergence((torch.tensor(0.0), old), (torch.tensor(0.0), new)) == pytest.approx(float(exact), rel=1e-5)

    mask = torch.tensor([[True, True, False]])
    first = SimpleNamespace(log_probs=torch.tensor([[-1.0, -2.0, 0.0]]), label_mask=mask)
    second = SimpleNamespace(log_probs=torch.tensor([[-1.5, -1.0, 0.0]]), label_mask=mask)
    d = torch.tensor([-0.5, 1.0])
    assert divergence(first, second) == pytest.approx(float((d.exp() - 1 - d).mean()))


def test_positions_of_padding_do_not_count_and_long_texts_are_sampled_evenly() -> None:
    old, new, mask = torch.randn(3, 4, 6), torch.randn(3, 4, 6), torch.tensor([[1, 1, 0, 0]]).expand(3, 4)
    assert divergence({"logits": old}, {"logits": new}, attention_mask=mask) == pytest.approx(
        divergence({"logits": old[:, :2]}, {"logits": new[:, :2]})
    )
    assert len(predicted(torch.zeros(3, 1000, 2), {}).log_probs) == 256
    long = torch.cat((torch.ones(len(old), 7, dtype=mask.dtype), mask), 1)  # logits of the last tokens alone
    assert divergence({"logits": old}, {"logits": new}, attention_mask=long) == pytest.approx(
        divergence({"logits": old}, {"logits": new}, attention_mask=mask)
    )


def test_a_single_logit_is_a_preference_and_broken_predictions_count_as_far() -> None:
    p, q = torch.tensor(0.3).sigmoid(), torch.tensor(-0.6).sigmoid()
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert divergence(torch.tensor([[0.3]]), torch.tensor([[-0.6]])) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(torch.zeros(2, 3), torch.full((2, 3), float("nan"))) == LARGEST
    ruled_out = torch.tensor([[0.0, 1.0, -float("inf")]])
    assert divergence(ruled_out, ruled_out) == 0.0


def test_a_run_measures_its_own_last_micro_batch_and_disturbs_nothing() -> None:
    def run(watcher: Watcher, direct: list[float] | None = None) -> tuple[list[float], torch.Tensor]:
        model = mlp(batch_norm=True)  # with dropout, too
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        scheduler = ControlledLR(optimizer, watcher, model=model, max_grad_norm=0)
        for x, y in batches(4):
            for part in (slice(0, 4), slice(4, 8)):
                state = torch.get_rng_state()
                before = model(x[part])
                loss = nn.functional.cross_entropy(before, y[part])
                scheduler.observe(loss=loss)
                (loss / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            if direct is not None:
                drawn, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
                torch.set_rng_state(state)
                with torch.no_grad():
                    after = model.forward(x[part])  # no hooks
                direct.append(divergence(before, after))
                torch.set_rng_state(drawn)
                for buffer, saved in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(saved)
        return [d.observation.get("kl") for d in scheduler.trace if d.observation], flat(model)

    direct: list[float] = []
    seen, weights = run(Watcher(fields=("kl",)), direct)
    assert seen[0] != seen[0] and seen[1:] == pytest.approx(direct[:-1], rel=1e-6)
    assert all(kl > 1e-4 for kl in direct)
    assert torch.equal(weights, run(Watcher(fields=("loss",)))[1])


def test_a_forward_pass_is_repeated_at_decisions_alone() -> None:
    model, passes = mlp(), 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, KLTarget(), model=model, every=5, max_grad_norm=0)

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    model.register_forward_hook(count)
    for x, y in batches(11):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert passes == 11 + 2  # at updates 5 and 10; the first has none before it
    assert scheduler.trace[5].observation["kl"] > 0


def test_a_divergence_that_is_handed_in_takes_the_place_of_the_measured_one() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, KLTarget(), hook=False)
    for kl in (float("nan"), 1.0, -1e-9):
        scheduler.observe(kl=kl)
        nn.functional.cross_entropy(*[model(batches(1)[0][0]), batches(1)[0][1]]).backward()
        optimizer.step()
    assert [d.observation["kl"] for d in list(scheduler.trace)[1:]] == [1.0, 0.0]
    assert scheduler.lr_history() == pytest.approx([1e-3, 1e-4, 1e-4])
    with pytest.raises(ValueError, match=r"observe\(kl=...\) takes one number"):
        scheduler.observe(kl=torch.zeros(2))


@pytest.mark.parametrize("with_model", [True, False])
def test_without_predictions_it_fails_before_the_first_update(with_model) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.inner(x).square().mean()}

    model = Bare()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ControlledLR(optimizer, KLTarget(), model=model if with_model else None)
    weights = flat(model)
    model(torch.ones(2, 4))["loss"].backward()
    with pytest.raises(ValueError, match="needs kl, .* neither logits" if with_model else "needs kl, .* no model"):
        optimizer.step()
    assert torch.equal(weights, flat(model))


def test_in_a_trainer_a_rate_a_thousand_times_too_large_is_brought_down(tmp_path) -> None:
    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, max_steps=20, learning_rate=3.0)
    trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller="kl_target")
    trainer.train()
    seen = [decision.observation["kl"] for decision in trainer.lr_scheduler.trace][1:]
    assert trainer.lr_scheduler.lr_history()[-1] < 0.03 and max(seen[10:]) < 10 * TARGET
