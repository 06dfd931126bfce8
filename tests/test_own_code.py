"""Controllers from a Python file of one's own, wherever a controller is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hf_adaptive_lr import AdaptiveLRTrainer, AutoController, ControlledLR, auto
from hf_adaptive_lr.bench.methods import third_party
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.controller import ControllerError
from tests import integrations
from tests.job import python, texts, write_csv, write_text_model
from tests.tiny import Tokens, bert

EXAMPLE = f"{Path(__file__).parent.parent / 'examples' / 'own_controller.py'}:LossProportional"


def test_it_is_a_controller_like_any_other(tmp_path) -> None:
    controller = AutoController.from_pretrained(EXAMPLE)
    assert controller.controller_type == "loss_proportional" and controller.provenance["source"] == EXAMPLE
    trainer = AdaptiveLRTrainer(
        model=bert(), args=integrations.arguments(tmp_path, max_steps=20), train_dataset=Tokens(), controller=EXAMPLE
    )
    trainer.train()
    losses = [decision.observation["loss"] for decision in trainer.lr_scheduler.trace]
    mean, expected = losses[0], []
    for loss in losses:
        mean = loss if not expected else 0.9 * mean + 0.1 * loss
        expected.append(integrations.LR * mean / losses[0])
    assert trainer.lr_scheduler.lr_history() == pytest.approx(expected, rel=1e-5)


def test_the_main_job_takes_it_and_resumes(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "train.csv", texts(48))
    write_text_model(tmp_path / "model")
    words = ["finetune", "--data", "train.csv", "--model", "model", "--controller", EXAMPLE, "--learning-rate", "0.01"]
    assert main([*words, "--max-steps", "12", "--output-dir", "out", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["updates"] == 12 and results["controller"]["provenance"]["source"] == EXAMPLE
    assert main(["finetune", "--output-dir", "out", "--resume", "--max-steps", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["updates"] == 16, "a run may grow"
    assert len(Path("out/lr_trace.jsonl").read_text().splitlines()) == 16
    assert main(["finetune", "--output-dir", "out", "--resume", "--max-steps", "14"]) == 2
    assert "has max_steps=16, not 14; resume it with as many or more" in capsys.readouterr().err


def test_nobody_else_could_load_it_from_the_hub(tmp_path) -> None:
    controller = AutoController.from_pretrained(EXAMPLE)
    with pytest.raises(
        ValueError, match="own_controller.py:LossProportional' is code of yours, which the Hub does not"
    ):
        controller.push_to_hub("user/repo", without_results=True)


def test_another_text_of_the_file_is_another_method(tmp_path) -> None:
    text = Path(EXAMPLE.rpartition(":")[0]).read_text()
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "b.py").write_text(text.replace("** self.power", "** (2 * self.power)"))
    first, second = (third_party(f"{tmp_path}/{name}.py:LossProportional") for name in "ab")
    assert first.spec()["weights"] != second.spec()["weights"]


@pytest.mark.parametrize(
    "text, name, said",
    [
        (None, "X", "no file '"),
        ("", "X", "has no controller 'X'; it defines none; subclass hf_adaptive_lr.Controller"),
        ("X = 3", "X", "has no controller 'X'"),
        ("from hf_adaptive_lr import Controller", "Controller", "has no controller 'Controller'"),
        (
            "from hf_adaptive_lr import Controller\nclass Drop(Controller):\n    controller_type = 'drop'",
            "Dropp",
            "did you mean Drop?",
        ),
        (
            "from dataclasses import dataclass\nfrom hf_adaptive_lr import Controller\n"
            "@dataclass(frozen=True, kw_only=True)\nclass Drop(Controller):\n"
            "    controller_type = 'drop'\n    at: int",
            "Drop",
            "give its fields defaults",
        ),
        (
            "from hf_adaptive_lr import Controller\nclass Drop(Controller):\n    pass",
            "Drop",
            "has no controller_type of its own",
        ),
        (
            "from hf_adaptive_lr import Controller\n"
            "class Drop(Controller):\n    controller_type = 'drop'\n    at: int = 3",
            "Drop",
            "'at' is no setting; put @dataclass(frozen=True, kw_only=True) above the class",
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_line(text, name, said, tmp_path, capsys) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    words = ["finetune", "--controller", f"{tmp_path}/mine.py:{name}", "--output-dir", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


_WRONG = """
from dataclasses import dataclass
import torch
from hf_adaptive_lr import Controller

@dataclass(frozen=True, kw_only=True)
class Wrong(Controller):
    controller_type = "wrong"
    needs = frozenset({"loss"})
"""


_MISTAKES = [
    ("def decide(self, obs):\n        return obs.lr, {}", "takes 2 positional"),
    (
        "def decide(self, obs, state, params=None):\n        return obs.grad_norm.float(), state",
        r"'NoneType' object has no attribute 'float'.*line 1[0-9]\).*\['loss'\]",
    ),
    ("def decide(self, obs, state, params=None):\n        return 0.5, state", "answer with a tensor.*got float"),
    ("def decide(self, obs, state, params=None):\n        return obs.lr", "failed.*TypeError"),
]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        *_MISTAKES,
        ("def init(self):\n        return {}", r"called as init\(batch_shape, \*, n_groups, seed, device\)"),
        (
            "def decide(self, obs, state, params=None):\n        return obs.lr[None].expand(3), state",
            r"got shape \(3,\)",
        ),
        (
            "def decide(self, obs, state, params=None):\n        return obs.lr, {'a': [1]}",
            "'a' of its state is no tensor",
        ),
        ("def decide(self, obs, state, params=None):\n        return obs.lr, None", "each a dict"),
    ],
)
def test_mistakes_are_said_in_one_line_when_it_is_loaded(body, said, tmp_path, capsys) -> None:
    (tmp_path / "mine.py").write_text(f"{_WRONG}\n    {body}\n")
    with pytest.raises(ValueError, match=said) as caught:
        AutoController.from_pretrained(f"{tmp_path}/mine.py:Wrong")
    assert "\n" not in str(caught.value)
    assert main(["finetune", "--controller", f"{tmp_path}/mine.py:Wrong", "--output-dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_without_its_class_says_what_is_missing(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"is a file; name the class in it as well: .*mine.py:MyController"):
        AutoController.from_pretrained(f"{tmp_path}/mine.py")


def _attached(tmp_path: Path, body: str) -> tuple[torch.nn.Module, torch.optim.Optimizer, ControlledLR]:
    """The class itself, as a script makes it, so that nobody tries it out before."""
    (tmp_path / "mine.py").write_text(f"{_WRONG}\n    {body}\n")
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ControlledLR(optimizer, auto._module(tmp_path / "mine.py", str(tmp_path)[::-1]).Wrong())
    loss = model(torch.ones(1, 2)).square().mean()
    loss.backward()
    scheduler.observe(loss=loss)
    return model, optimizer, scheduler


@pytest.mark.parametrize(("decide", "said"), _MISTAKES)
def test_mistakes_in_decide_are_said_before_any_update(decide, said, tmp_path) -> None:
    model, optimizer, _ = _attached(tmp_path, decide)
    weights = model.weight.detach().clone()
    with pytest.raises(ControllerError, match=said) as caught:
        optimizer.step()
    assert "\n" not in str(caught.value) and torch.equal(model.weight, weights)


def test_an_answer_below_zero_is_said(tmp_path) -> None:
    body = "def decide(self, obs, state, params=None):\n        return -torch.ones_like(obs.lr), state"
    _, optimizer, scheduler = _attached(tmp_path, body)
    with pytest.warns(UserWarning, match="'wrong' answered -1 at update 0; below 0 the smallest learning rate"):
        optimizer.step()
    assert scheduler.lr_history() == [1e-8]


def test_an_error_in_the_file_keeps_its_traceback(tmp_path) -> None:
    (tmp_path / "mine.py").write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            AutoController.from_pretrained(f"{tmp_path}/mine.py:X")


# --- what one's own class has saved ---


def saved(tmp_path: Path) -> Path:
    """A folder that the example's class saved, in another module than any other test's."""
    (tmp_path / "rules.py").write_text(Path(EXAMPLE.rpartition(":")[0]).read_text())
    loaded = AutoController.from_pretrained(f"{tmp_path}/rules.py:LossProportional")
    return loaded.replace(power=0.25).save_pretrained(tmp_path / "saved")


def test_file_class_and_folder_load_what_was_saved(tmp_path) -> None:
    folder = saved(tmp_path)
    text = f"{tmp_path}/rules.py:LossProportional:{folder}"
    controller = AutoController.from_pretrained(text)
    assert controller.power == 0.25 and controller.provenance["source"] == text
    assert controller.provenance["folder"] == str(folder) and len(controller.provenance["code"]) == 64
    assert third_party(text).spec()["weights"] != third_party(text.rpartition(":")[0]).spec()["weights"]
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        AutoController.from_pretrained(f"{tmp_path}/rules.py:LossProportional:nowhere")
    AutoController.from_pretrained("plateau").save_pretrained(tmp_path / "plateau")
    with pytest.raises(ValueError, match="controller_type is 'plateau', expected one of: loss_proportional"):
        AutoController.from_pretrained(f"{tmp_path}/rules.py:LossProportional:{tmp_path / 'plateau'}")


def test_another_process_loads_the_folder_by_the_file_and_after_registration(tmp_path) -> None:
    folder = saved(tmp_path)
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from hf_adaptive_lr import AutoController
print(AutoController.from_pretrained("rules.py:LossProportional:saved").power)
try: AutoController.from_pretrained("./saved")
except ValueError as error: print(error)
from rules import LossProportional
AutoController.register("loss_proportional", LossProportional)
print(AutoController.from_pretrained({str(folder)!r}).power, AutoController.from_pretrained("loss_proportional").power)
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, error, last = done.stdout.splitlines()
    assert first == "0.25" and last == "0.25 1.0"
    assert "loads as FILE.py:CLASS:FOLDER, or after AutoController.register(its name, the class)" in error


def test_registering_fails_fast_on_what_could_not_be_found_again(monkeypatch) -> None:
    monkeypatch.setattr(auto, "_REGISTERED", {})
    own = type(AutoController.from_pretrained(EXAMPLE))
    with pytest.raises(TypeError, match="takes a subclass of Controller, got 'cosine'"):
        AutoController.register("cosine", "cosine")
    with pytest.raises(ValueError, match="has controller_type 'loss_proportional', not 'mine'"):
        AutoController.register("mine", own)
    with pytest.raises(ValueError, match="'plateau' is .* already; give your class another controller_type"):
        AutoController.register("plateau", type(AutoController.from_pretrained("plateau")))
    AutoController.register("loss_proportional", own)
    AutoController.register("loss_proportional", own)  # a notebook's cell that is run again
    assert "loss_proportional" in auto.known_names()


def test_the_folder_of_an_own_class_may_be_named_like_its_type(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(auto, "_REGISTERED", {})
    monkeypatch.chdir(tmp_path)
    own = type(AutoController.from_pretrained(EXAMPLE))
    AutoController.register("loss_proportional", own)
    assert AutoController.from_pretrained("loss_proportional").power == own().power, "no folder yet"
    own(power=0.25).save_pretrained("loss_proportional")
    assert own.from_pretrained("loss_proportional").power == 0.25
    assert AutoController.from_pretrained("loss_proportional").power == 0.25


def test_no_name_at_all_is_said_in_a_sentence() -> None:
    for wrong in (None, 3):
        with pytest.raises(TypeError, match=f"takes a name, a folder, FILE.py:CLASS or a repository, got {wrong};"):
            AutoController.from_pretrained(wrong)


def test_the_caution_about_universal_is_for_the_bundled_weights_on_the_first_process(monkeypatch, caplog) -> None:
    bundled = AutoController.from_pretrained("universal_1")
    other = bundled.replace(params={name: torch.zeros_like(tensor) for name, tensor in bundled.params.items()})
    for controller, rank, said in ((other, "0", 0), (bundled, "1", 0), (bundled, "0", 1)):
        auto._caution.cache_clear()
        caplog.clear()
        monkeypatch.setenv("RANK", rank)
        auto.resolve_controller(controller)
        assert caplog.text.count("experimental") == said
