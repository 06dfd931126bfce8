"""The command that learned the bundled `mlr_snet`, and what is bundled."""

from __future__ import annotations

import json

import torch

from hf_adaptive_lr import AutoController, MLRSNet, Observation
from hf_adaptive_lr.auto import PRETRAINED
from hf_adaptive_lr.bench.learn_schedule import main


def test_a_short_lesson_leaves_a_controller(tmp_path, capsys) -> None:
    words = ["--task", "digits-mlp", "--quick", "--updates", "20", "--meta-every", "2", "--meta-lr", "0.01"]
    assert main([*words, "--output-dir", str(tmp_path / "net")]) == 0
    assert "3 snapshots" in capsys.readouterr().out
    learned = AutoController.from_pretrained(tmp_path / "net")
    assert isinstance(learned, MLRSNet)
    record = json.loads((tmp_path / "net" / "training.json").read_text())
    assert record["lesson"]["meta_every"] == 2
    first, _, last = (torch.cat([p[i].flatten() for p in learned.params.values()]) for i in range(3))
    assert not torch.equal(first, last)
    assert main([*words, "--output-dir", str(tmp_path / "net")]) == 2
    assert main(["--task", "digits-mlp", "--quick", "--meta-every", "0", "--output-dir", str(tmp_path / "no")]) == 2
    assert "meta_every=0 is outside" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_the_bundled_schedule_has_learned_to_decay() -> None:
    controller = AutoController.from_pretrained("mlr_snet")
    record = json.loads((PRETRAINED / "mlr_snet" / "training.json").read_text())
    assert record["command"].startswith("python -m hf_adaptive_lr.bench.learn_schedule --")
    state, one = controller.init(), torch.ones((), dtype=torch.float64)
    factors = []
    for step in range(90):
        loss, classes = 2.3 * 0.98**step * one, 10 * one
        obs = Observation(step=step, total_steps=90, lr=one, base_lr=one, loss=loss, classes=classes)
        factor, state = controller.decide(obs, state)
        factors.append(float(factor))
    assert factors[25] > 10 * factors[55] > 10 * factors[85]
