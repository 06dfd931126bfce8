"""What every controller must do, and what single ones claim."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from hf_adaptive_lr import AutoController, Controller, Hypergradient, Linear, Observation, Plateau, Replay
from hf_adaptive_lr.auto import known_names
from hf_adaptive_lr.controllers import CONTROLLERS
from hf_adaptive_lr.observation import OPTIONAL_FIELDS, OUTCOME_FIELDS
from tests.controllers_for_tests import by_default

EVERY = sorted(CONTROLLERS)


def _observation(step: int, total: int, shape: tuple[int, ...], seed: int, needs: frozenset[str]) -> Observation:
    generator = torch.Generator().manual_seed(seed + step)
    measured = sorted(needs & OPTIONAL_FIELDS.keys())
    values = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name in measured}
    base = torch.full(shape, 0.1, dtype=torch.float64)
    return Observation(step=step, total_steps=total, lr=base * 0.7, base_lr=base, **values)


def _column(obs: Observation, run: int) -> Observation:
    pick = {
        f.name: getattr(obs, f.name)[run]
        for f in dataclasses.fields(obs)
        if isinstance(getattr(obs, f.name), torch.Tensor)
    }
    return dataclasses.replace(obs, **pick)


# --- the contract ---


@pytest.mark.parametrize("name", [name for name in EVERY if not by_default(name).random])
def test_a_batch_of_runs_equals_its_columns(name) -> None:
    controller = Plateau(window=2) if name == "plateau" else by_default(name)
    runs, total = 4, 12
    state, alone = controller.init((runs,)), [controller.init() for _ in range(runs)]
    for step in range(total):
        obs = _observation(step, total, (runs,), 0, controller.needs)
        answer, state = controller.decide(obs, state)
        assert answer.shape == (runs,)
        for run in range(runs):
            single, alone[run] = controller.decide(_column(obs, run), alone[run])
            assert single.shape == ()
            # Over many rows a product (in float32) may be summed, and a logarithm (in float64) computed, by other
            # instructions than over one: some eps per operation.
            tolerance = 1e-5 if controller.learned else 1e-13
            assert float(single) == pytest.approx(float(answer[run]), rel=tolerance, abs=0.0)


@pytest.mark.parametrize("name", EVERY)
def test_decide_is_pure_and_state_is_plain(name, tmp_path) -> None:
    controller = by_default(name)
    state = controller.init()
    obs = _observation(0, 5, (), 0, controller.needs)
    copy = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    first, after = controller.decide(obs, state)
    second, _ = controller.decide(obs, state)
    assert torch.equal(first, second)
    assert all(torch.equal(torch.as_tensor(state[k]), torch.as_tensor(copy[k])) for k in copy)
    torch.save(after, tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        controller.params = {}


@pytest.mark.parametrize("name", EVERY)
def test_save_and_load_give_the_same_controller(name, tmp_path) -> None:
    controller = by_default(name)
    controller.save_pretrained(tmp_path / name)
    for loaded in (
        AutoController.from_pretrained(tmp_path / name),
        CONTROLLERS[name].from_pretrained(tmp_path / name),
    ):
        assert loaded == controller
        assert type(loaded) is type(controller)
        assert all(torch.equal(loaded.params[k], v) for k, v in controller.params.items())
    files = ["config.json", "model.safetensors"] if controller.learned else ["config.json"]
    assert sorted(p.name for p in (tmp_path / name).iterdir()) == files
    if controller.learned:
        bundled = {"universal": "universal_1"}.get(name, name)  # the name is now its successor's
        if bundled in known_names():
            assert type(AutoController.from_pretrained(bundled)) is CONTROLLERS[name]
        else:
            with pytest.raises(ValueError, match=f"no weights of '{name}' come with this version; train some"):
                AutoController.from_pretrained(name)
    else:
        assert AutoController.from_pretrained(name) == controller


def test_needs_name_known_fields() -> None:
    for name in CONTROLLERS:
        assert by_default(name).needs <= OPTIONAL_FIELDS.keys() | OUTCOME_FIELDS.keys()
    with pytest.raises(ValueError, match="which no sensor measures"):
        type("Odd", (Controller,), {"needs": frozenset({"mood"})})()


# --- strict files
# ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned(Controller):
    """Has weights."""

    controller_type = "linear"  # so that AutoController meets it under a known name
    width: int = 2

    def param_shapes(self):
        return {"weight": (self.width, 3), "bias": (self.width,)}


def _learned() -> Learned:
    return Learned(params={"weight": torch.randn(2, 3), "bias": torch.randn(2)})


def test_learned_weights_come_back_bit_for_bit(tmp_path) -> None:
    controller = _learned()
    controller.save_pretrained(tmp_path)
    loaded = Learned.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.params[k], v) for k, v in controller.params.items())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "tensor 'bias' is missing"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "unknown tensor 'more'"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"'weight' has shape \(2, 4\), expected \(2, 3\)"),
    ],
)
def test_wrong_tensors_are_refused_by_name(tensors, message, tmp_path) -> None:
    _learned().save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        Learned.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("beta"), "key 'beta' is missing"),
        (lambda c: c.update(gamma=1), "unknown key 'gamma'"),
        (lambda c: c.update(beta="0.05"), "key 'beta' must be float, got '0.05'"),
        (lambda c: c.update(beta=True), "key 'beta' must be float"),
        (lambda c: c.update(beta=7.0), r"beta=7.0 is outside \[0.0, 0.999\]"),
        (lambda c: c.pop("controller_type"), "key 'controller_type' is missing"),
        (lambda c: c.update(controller_type="nonsense"), "controller_type is 'nonsense', expected one of"),
        (lambda c: c.update(format_version=2, library_version="9.9"), r"pip install 'hf_adaptive_lr>=9.9'"),
        (lambda c: c.update(format_version="1"), "'format_version' must be a whole number"),
    ],
)
def test_a_config_that_is_not_exact_is_refused_by_key(edit, message, tmp_path) -> None:
    Hypergradient().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        AutoController.from_pretrained(tmp_path)


def test_other_ways_to_miss_a_controller(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config.json; .*save_pretrained"):
        Linear.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Linear.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        AutoController.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="'controller_type' is missing"):
        AutoController.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no controller 'consine'.*did you mean cosine"):
        AutoController.from_pretrained("consine")
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoController()
    monkeypatch.chdir(tmp_path)
    Linear(final_factor=0.5).save_pretrained("linear")
    with pytest.warns(UserWarning, match="write './linear' for the folder"):
        assert AutoController.from_pretrained("linear") == Linear()
    assert AutoController.from_pretrained("./linear") == Linear(final_factor=0.5)


def test_a_config_tells_what_the_controller_sees_and_answers(tmp_path) -> None:
    """For whoever reads the file without this library; files of before have no such block, and load."""
    for name in EVERY:
        controller = by_default(name)
        path = controller.save_pretrained(tmp_path / name) / "config.json"
        config = json.loads(path.read_text())
        assert config["contract"] == {
            "observation": sorted(controller.needs),
            "answers": controller.answers,
            "decisions": controller.decisions,
            "needs_horizon": controller.needs_horizon,
            "weights": sum(t.numel() for t in controller.params.values()),
        }
        del config["contract"]
        path.write_text(json.dumps(config))
        loaded = AutoController.from_pretrained(path.parent)
        assert loaded == controller
        assert loaded.provenance == {
            "source": str(path.parent),
            "folder": str(path.parent),
            "commit": "",
            "revision": "",
        }


def test_a_save_over_an_old_one_is_whole(tmp_path) -> None:
    _learned().save_pretrained(tmp_path)
    Linear().save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(final_factor=2.0), r"final_factor=2.0 is outside \[0.0, 1.0\]"),
        (lambda: Linear(final_factor=math.nan), "final_factor=nan"),
        (lambda: Hypergradient(beta=-0.1), "beta=-0.1"),
        (lambda: Plateau(metric="accuracy"), "must be 'loss' or 'eval_loss'"),
        (lambda: Plateau(window=1), "window=1"),
        (lambda: Plateau(cut=1.0), "cut=1.0"),
        (lambda: Replay(progress=(0.0, 0.0), factors=(1.0, 1.0)), "must ascend"),
        (lambda: Replay(progress=(0.0,), factors=(1.0, 1.0)), "give as many"),
        (lambda: Replay(progress=(0.0, 2.0), factors=(1.0, 1.0)), r"must lie in \[0, 1\]"),
        (lambda: Replay(progress=(0.0,), factors=(-1.0,)), "must be finite and at least 0"),
    ],
)
def test_config_values_out_of_range_are_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- plateau: none of the known defects of metric-driven schedulers
# ----------------------------------------------------------


def _factors(controller: Plateau, losses: list[float], base: float = 1.0) -> list[float]:
    state, out = controller.init(), []
    for step, loss in enumerate(losses):
        lr = torch.tensor(base, dtype=torch.float64)
        value = torch.tensor(loss, dtype=torch.float64)
        obs = Observation(step=step, total_steps=None, lr=lr, base_lr=lr, loss=value)
        answer, state = controller.decide(obs, state)
        out.append(float(answer))
    return out


def _noise(count: int, seed: int = 0) -> list[float]:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).tolist()


def test_plateau_cuts_on_a_plateau_and_on_worsening() -> None:
    controller = Plateau(window=10)
    flat = _factors(controller, [1.0] * 60)
    assert flat[:19] == [1.0] * 19
    assert flat[19] == 0.5
    assert flat[-1] == 0.125
    assert _factors(controller, [1 + 0.1 * t for t in range(60)])[-1] < 1


def test_plateau_keeps_the_rate_while_the_loss_falls_even_after_one_lucky_value() -> None:
    losses = [3.0 - 0.02 * t + 0.1 * n for t, n in enumerate(_noise(120))]
    assert _factors(Plateau(window=20), losses) == [1.0] * 120
    losses[5] = -50.0
    assert _factors(Plateau(window=20), losses) == [1.0] * 120


def test_plateau_does_not_depend_on_the_scale_of_loss_or_rate() -> None:
    losses = [1.0 / (1 + t) + 0.05 * n for t, n in enumerate(_noise(200))]
    expected = _factors(Plateau(window=10), losses)
    assert expected[-1] < 1
    assert _factors(Plateau(window=10), [1e-6 * loss - 3 for loss in losses]) == expected
    assert _factors(Plateau(window=10), losses, base=1e-7) == expected


def test_plateau_never_raises_the_rate_and_stops_at_the_floor() -> None:
    factors = _factors(Plateau(window=2, floor=0.1), _noise(300))
    assert all(b <= a for a, b in zip(factors, factors[1:], strict=False))
    assert factors[-1] == 0.1


def test_plateau_forgets_nothing_over_a_missing_value() -> None:
    controller = Plateau(window=3)
    losses = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    with_gaps = [v for loss in losses for v in (math.nan, loss)]
    assert _factors(controller, with_gaps)[-1] == _factors(controller, losses)[-1] == 0.5


def test_plateau_raises_few_false_alarms_without_trend_and_is_quick_on_a_step() -> None:
    falling = [math.exp(-t / 100) + 0.1 * n for t, n in enumerate(_noise(150, seed=3))]
    assert _factors(Plateau(window=32), falling)[100] == 1.0
