"""Cards: every figure out of a file, valid for the Hub, untrusted text stays text, bundled ones as committed."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from hf_adaptive_lr import AdaptiveLRTrainer, AutoController, Controller, Linear, Plateau
from hf_adaptive_lr.auto import PRETRAINED
from hf_adaptive_lr.bench.rows import read_rows, write_rows
from hf_adaptive_lr.bench.studies import cards
from hf_adaptive_lr.controllers import CONTROLLERS, MLRSNet, PPOSchedule, RandomWalk
from hf_adaptive_lr.hub.card import TAGS, mention, notes_of, render
from hf_adaptive_lr.hub.markdown import code, escaped, measured, number, signed, text
from hf_adaptive_lr.hub.picture import draw_schedules, schedule
from hf_adaptive_lr.hub.results import check_results
from tests.tiny import Tokens, bert

ROOT = Path(__file__).parent.parent
ROWS, CARDS = ROOT / cards.ROWS, ROOT / cards.HUB
BUNDLED = (*cards.METHOD_OF, *cards.BENCHMARKED)
PAPERS = {name: cls.citation for name, cls in CONTROLLERS.items() if cls.citation is not None}
HOSTILE = "x\n---\n# <script>alert(1)</script> [a](javascript:b) | `c` ``` <!-- /notes --> ${7*7} \x1b[2J\u202e"


def learned() -> MLRSNet:
    return MLRSNet(params=MLRSNet.random_params(seed=0))


def arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), max_steps=1, use_cpu=True, dataloader_pin_memory=False)


def results(**changes: Any) -> dict[str, Any]:
    """An `eval_results.json` with a win, a loss and a tie."""
    result = {
        "task": "reviews-bert",
        "data": "reviews",
        "model": "bert",
        "optimizer": "adamw",
        "parameters": 123456,
        "updates": 777,
        "seeds": 6,
        "learning_rate": 3e-5,
        "metrics": {
            "test_loss": {"mean": 0.4321987, "half_width": 0.0123},
            "test_accuracy": {"mean": 0.8765, "half_width": 0.0087},
        },
        "against": {
            "linear": {"test_loss": {"difference": 0.0311, "half_width": 0.0102, "word": "worse"}},
            "constant": {
                "test_loss": {"difference": -0.0222, "half_width": 0.0044, "word": "better"},
                "test_accuracy": {"difference": 0.0015, "half_width": 0.0066, "word": "no difference"},
            },
        },
    }
    command = "python -m hf_adaptive_lr.bench.studies.papers mine"
    head = {"format_version": 1, "command": command, "not_tested": ["images of any kind"]}
    return {**head, "results": [{**result, **changes}]}


TRAINING = {
    "command": "hf-adaptive-lr train ppo --suite quadratic --iterations 200",
    "method": "ppo",
    "suite": "quadratic",
    "runs": 64,
    "seed": 5,
    "iterations": 200,
    "seconds": 90.5,
    "processes": 1,
    "inner_steps": 2688000.0,
    "versions": {"hf_adaptive_lr": "0.1.0", "torch": "2.13.0+cpu"},
    "curves": [{"return": 1.0}],
}


def made(controller: Controller | None = None, **changes: Any) -> str:
    asked: dict[str, Any] = {"repo_id": "user/repo", "training": TRAINING, "eval_results": results()}
    return render(controller or learned(), **{**asked, **changes})


def section(card: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


# --- every figure has a source ---------------------------------------------------------------------------------------

FIGURE = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in [key, *leaves(inner)]]
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list | tuple) else [value]


def shown(value: Any) -> set[str]:
    """The ways in which a card may show a value of a file."""
    if isinstance(value, str):
        return set(FIGURE.findall(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return set()
    return {number(value), measured(value), signed(value), repr(value), json.dumps(value)}


def unsourced(card: str, controller: Controller, *files: Any) -> set[str]:
    """Figures of a card that stand neither in its files nor in what the controller itself is."""
    source = controller.citation
    known = [leaf for file in (*files, controller.config()) for leaf in leaves(file)]
    own = [type(controller).__doc__.partition("\n")[0], "Apache-2.0", controller.controller_type]
    own += [source.arxiv, source.year, source.title] if source else []
    weights = sum(tensor.numel() for tensor in controller.params.values())
    allowed = set().union(*(shown(value) for value in (*known, *own, weights)))
    allowed |= {word.lstrip("+-") for word in allowed}
    return {word for word in FIGURE.findall(card) if not {word, word.lstrip("+-"), word.rstrip(",")} & allowed}


def test_every_figure_of_a_card_stands_in_its_files() -> None:
    controller = learned()
    card = made(controller)
    assert unsourced(card, controller, results(), TRAINING) == set()
    for figure in (
        "0.4322 ± 0.0123",
        "+0.0311 ± 0.0102",
        "-0.0222 ± 0.0044",
        "123,456",
        "3e-05",
        "2,688,000",
        "11,776",
    ):
        assert figure in card, figure
    altered = card.replace("0.4322", "0.4323").replace("11,776", "11,777")
    assert unsourced(altered, controller, results(), TRAINING) == {"0.4323", "11,777"}


@pytest.mark.parametrize("name", BUNDLED)
def test_every_figure_of_a_committed_card_stands_in_the_committed_files(name) -> None:
    paths = [PRETRAINED / name / file for file in ("eval_results.json", "training.json")]
    files = [json.loads(path.read_text()) if path.is_file() else {} for path in paths]  # a rule was not trained
    card = (CARDS / f"{name}.md").read_text()
    without_notes = card.partition("<!-- notes -->")[0]  # a person may write what they like
    pictures = without_notes.replace(f"({name}.png)", "")
    assert unsourced(pictures, AutoController.from_pretrained(name), *files) == set()


@pytest.mark.parametrize("name", BUNDLED)
def test_committed_results_and_cards_are_what_the_rows_say(name) -> None:
    found = cards.results(name, ROWS)
    assert (PRETRAINED / name / "eval_results.json").read_text() == cards.as_text(found)
    page = (CARDS / f"{name}.md").read_text()
    assert cards.card(name, found, notes_of(page)) == page
    picture = re.search(r"\]\((.*?\.png)\)", page)
    assert picture is None or (CARDS / picture[1]).is_file()
    ModelCard.load(CARDS / f"{name}.md")


def test_every_bundled_controller_that_a_verdict_tries_has_a_card() -> None:
    folders = {path.name for path in PRETRAINED.iterdir() if (path / "config.json").is_file()}
    assert folders == set(BUNDLED)
    assert {path.stem for path in CARDS.glob("*.md")} == {*BUNDLED, "README"}


# --- what a card says ------------------------------------------------------------------------------------------------


def test_a_card_is_valid_and_its_data_come_back(tmp_path) -> None:
    path = tmp_path / "README.md"
    path.write_text(made())
    for card in (ModelCard(made()), ModelCard.load(path)):
        data = card.data
        assert (data.license, data.library_name, data.model_name) == (
            None,
            "hf_adaptive_lr",
            "user/repo",
        )  # its owner says
        assert data.tags == [*TAGS, "mlr_snet", "arxiv:2007.14546"]
        found = {(r.dataset_config, r.metric_type): r.metric_value for r in data.eval_results}
        assert found == {("reviews-bert", "loss"): 0.4321987, ("reviews-bert", "accuracy"): 0.8765}
        assert str(card) == made()  # loaded and saved it is the same
    assert ModelCard(str(ModelCard(made()))).data.to_dict() == ModelCard(made()).data.to_dict()


def test_two_tasks_on_one_data_set_stay_two_results() -> None:
    both = results()
    both["results"].append({**both["results"][0], "task": "reviews-bert-noisy", "note": "some labels wrong"})
    card = made(eval_results=both)
    assert [r.dataset_config for r in ModelCard(card).data.eval_results] == 2 * ["reviews-bert"] + 2 * [
        "reviews-bert-noisy"
    ]
    assert "| reviews-bert-noisy (some labels wrong) |" in card


def test_a_card_says_where_the_controller_wins_and_where_it_loses() -> None:
    card = made()
    assert section(card, "Where it wins") == "\n- reviews-bert, test loss, against constant: -0.0222 ± 0.0044\n\n"
    assert section(card, "Where it loses") == "\n- reviews-bert, test loss, against linear: +0.0311 ± 0.0102\n\n"
    assert "against constant: +0.0015 ± 0.0066" in section(card, "Where it makes no difference")
    untried = section(card, "Sizes and settings not tested")
    assert "- images of any kind" in untried
    assert "anything above 123,456 parameters or 777 updates" in untried
    assert "without held-out results" not in card
    only_wins = made(eval_results=results(against={}))
    assert "In none of the comparisons" in section(only_wins, "Where it loses")


def test_runs_that_failed_are_a_loss() -> None:
    card = made(eval_results=results(failed=2, against={}))
    assert "- reviews-bert: 2 of 6 runs failed" in section(card, "Where it loses")
    assert "failed" not in section(card, "Where it wins")


@pytest.mark.parametrize("given", [None, {**results(), "results": []}], ids=["no file", "no results"])
def test_a_card_without_held_out_results_says_so_in_a_box(given) -> None:
    card = made(eval_results=given)
    assert "> [!WARNING]\n> **This controller comes without held-out results.**" in card
    assert "Unknown" in section(card, "Where it loses")
    assert "model-index" not in card
    assert ModelCard(card).data.eval_results is None


def test_a_card_says_how_to_use_it_what_it_learned_from_and_what_it_costs() -> None:
    card = made()
    usage = [line for line in section(card, "How to use it").splitlines() if line]
    assert len(usage) == 4 + 2
    assert 'AutoController.from_pretrained("user/repo")' in usage[2]
    assert "```bash\nhf-adaptive-lr train ppo --suite quadratic --iterations 200\n```" in card
    assert "| suite | quadratic |" in card
    assert "11,776 weights" in section(card, "Cost")
    assert "@misc{shu2020" in section(card, "Citation")
    assert "Not known" in section(made(training=None), "What it was trained on")

    rule = made(Linear(final_factor=0.25), training=None)
    assert "it is a rule" in section(rule, "What it was trained on")
    assert "No weights; it measures nothing" in section(rule, "Cost")
    assert "| `final_factor` | `0.25` |" in rule
    watching = section(made(Plateau(metric="eval_loss")), "Cost")
    assert "| `eval_loss` | forward passes over held-out rows" in watching


def test_what_it_learned_on_is_no_secret() -> None:
    card = made(training={**TRAINING, "lesson": {"task": "reviews-bert", "updates": 2000}})
    assert "learned on the training rows of reviews-bert itself" in card
    assert "itself" not in section(made(), "Held-out results")


def test_the_usage_of_a_card_runs(tmp_path, monkeypatch) -> None:
    Linear().save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    lines = section(made(Linear(), repo_id="./mine"), "How to use it").strip().splitlines()[1:-1]
    names: dict[str, Any] = {"model": bert(), "args": arguments(tmp_path), "train": Tokens()}
    exec("\n".join(lines), names)
    assert names["trainer"].lr_scheduler.updates == 1


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_are_those_of_the_method_files(name) -> None:
    about = sys.modules[CONTROLLERS[name].__module__].__doc__
    first = re.search(r"arXiv:(\d{4}\.\d{4,5})", about)
    assert first is not None
    assert first[1] == PAPERS[name].arxiv
    assert PAPERS[name].author.partition(",")[0] in about


def test_controllers_without_a_paper_are_the_rest() -> None:
    named = {n for n, c in CONTROLLERS.items() if re.search(r"arXiv:\d", sys.modules[c.__module__].__doc__ or "")}
    assert named == set(PAPERS)
    assert "There is no paper" in made(RandomWalk())


def test_the_same_input_gives_the_same_bytes() -> None:
    assert made() == made()
    shuffled = {key: results()[key] for key in reversed(results())}
    assert made(eval_results=shuffled) == made()


# --- notes -----------------------------------------------------------------------------------------------------------


def test_notes_survive_and_stay_as_they_are() -> None:
    written = "Mine: *good* where a < b.\n\n- [link](https://example.org)"
    card = made(notes=written)
    assert notes_of(card) == written
    assert made(notes=notes_of(card)) == card
    assert notes_of(made()) == ""
    assert notes_of("no markers") is None


def test_notes_bring_no_html() -> None:
    card = made(notes="<script>x</script> <!-- /notes --> <img src=x onerror=y> </div>")
    assert not re.search(r"<(?!!-- /?notes -->)", card.partition("## Notes")[2])
    assert card.count("<!-- /notes -->") == 1
    assert made(notes=notes_of(card)) == card


# --- untrusted text --------------------------------------------------------------------------------------------------


def harmless(card: str) -> None:
    assert "<script" not in card
    assert "\x1b" not in card
    assert "\u202e" not in card
    assert card.count("<") == card.count("<!-- notes -->") + card.count("<!-- /notes -->") == 2
    body = card.partition("---\n\n#")[2]
    assert "](javascript:" not in re.sub(r"^```.*?^```|\\\]|`[^`\n]+`", "", body, flags=re.DOTALL | re.MULTILINE)
    body = body.partition("<!-- notes -->")[0]  # the notes are Markdown, headings and all
    assert "\n---\n" not in body
    assert not re.search(r"^# x", body, re.MULTILINE)
    assert body.count("\n```") == made().partition("---\n\n#")[2].count("\n```")
    ModelCard(card)


def hostile_results() -> dict[str, Any]:
    words = {name: HOSTILE for name in ("task", "data", "model", "optimizer", "note")}
    value = {"mean": 1.0, "half_width": 0.5}
    against = {HOSTILE: {HOSTILE: {"difference": 1.0, "half_width": 0.5, "word": "worse"}}}
    made = results(**words, metrics={HOSTILE: value, "test_loss": value}, against=against)
    return {**made, "command": HOSTILE, "not_tested": [HOSTILE]}


def test_untrusted_text_stays_text() -> None:
    training = {**TRAINING, **{name: HOSTILE for name in ("command", "method", "suite")}}
    training |= {"versions": {"torch": HOSTILE}, "lesson": {"task": HOSTILE}, HOSTILE: HOSTILE}
    harmless(made(repo_id=HOSTILE, training=training, eval_results=hostile_results(), notes=HOSTILE))
    harmless(made(repo_id=HOSTILE * 50, training=training))


@pytest.mark.parametrize(
    "training", [{}, {"command": 7, "seconds": math.nan, "lesson": [], "versions": 3}, {"runs": {}}]
)
def test_training_of_the_wrong_shape_is_left_out(training) -> None:
    assert "nan" not in section(made(training=training), "What it was trained on")


def test_values_are_cut_and_cleaned() -> None:
    assert escaped("a\n\tb\x00\u2028c") == "a b c"
    assert len(escaped("x" * 10**6)) < 400
    assert text("a|b [c](d) `e` *f* #g") == r"a\|b \[c\](d) \`e\` \*f\* \#g"
    assert code("a`b") == "`a'b`"
    assert escaped("\ud800ok") == "ok"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": 3}, "'task' must be text"),
        ({"parameters": True}, "'parameters' must be a whole number"),
        ({"seeds": 10**400}, "'seeds' must be a whole number"),
        ({"learning_rate": math.nan}, "'learning_rate' must be a number"),
        ({"metrics": None}, "'metrics' and 'against' are missing"),
        ({"metrics": {"test_loss": {"mean": math.inf, "half_width": 0.0}}}, "'mean' must be a finite number"),
        ({"metrics": {"test_loss": 3}}, "metrics.test_loss must be an object"),
        ({"against": {"linear": 3}}, "against.linear must be an object"),
        ({"against": {"linear": {"m": {"difference": 1, "half_width": 1, "word": "best"}}}}, "'word' must be one of"),
        ({"note": 3}, "'note' must be text"),
        ({"failed": "all"}, "'failed' must be a count"),
    ],
)
def test_results_of_the_wrong_shape_are_refused(changes, said) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        made(eval_results=results(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 2}, "format 2 is not 1; upgrade"),
        ({"format_version": None}, "'format_version' must be a whole number"),
        ({"command": None}, "'command' must be text"),
        ({"results": {}}, "'results' must be a list"),
        ({"results": [3]}, "results[0] must be an object"),
        ({"not_tested": "all"}, "'not_tested' must be texts"),
    ],
)
def test_files_of_the_wrong_shape_are_refused(changes, said) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check_results({**results(), **changes})


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["task", "seeds", "failed", "note", "learning_rate", "metrics", "against", "parameters"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, ANY, max_size=2), st.dictionaries(st.sampled_from(sorted(TRAINING)), ANY), ANY, ANY)
def test_whatever_the_files_hold_a_card_is_valid_or_refused(changed, training, metric, lesson) -> None:
    value = {"test_loss": {"mean": metric if isinstance(metric, float) else 0.5, "half_width": 0.1}}
    try:
        card = made(
            Linear(),
            training={**TRAINING, **training, "lesson": lesson, "factor_curve": lesson},
            eval_results=results(**{"metrics": value, **changed}),
            notes=metric if isinstance(metric, str) else None,
        )
    except ValueError as error:
        assert str(error).startswith("eval_results.json: ")
        return
    assert "## Notes" in card
    card.encode("utf-8")
    assert ModelCard(card).data.tags == [*TAGS, "linear", "arxiv:2310.07831"]


# --- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_of_what_can_be_simulated(tmp_path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    for controller in (Linear(), RandomWalk(), learned(), Plateau()):
        assert draw_schedules(controller, one)
        assert draw_schedules(controller, two)
        assert one.read_bytes() == two.read_bytes()
        assert one.read_bytes().startswith(b"\x89PNG")
    assert "![" not in made()
    assert "](schedules.png)" in made(picture="schedules.png")


def test_a_schedule_is_the_controllers_own() -> None:
    found = schedule(Linear(final_factor=0.5))
    assert found is not None
    points, where = found
    assert where == "simulated"
    assert [factor for _, factor in points] == pytest.approx([1 - 0.5 * k / 200 for k in range(200)])


@pytest.mark.parametrize("name", CONTROLLERS)
def test_what_needs_a_real_run_has_no_picture(name, tmp_path) -> None:
    cls = CONTROLLERS[name]
    controller = cls(params=cls.random_params(seed=0)) if cls.learned else cls()
    drawn = draw_schedules(controller, tmp_path / "x.png")
    assert drawn == (tmp_path / "x.png").exists() == (controller.needs <= {"loss", "eval_loss", "classes"})


def test_a_recorded_curve_wins_and_a_wrong_one_is_left_alone(tmp_path) -> None:
    policy = PPOSchedule(params=PPOSchedule.random_params(seed=0))
    assert schedule(policy, {"factor_curve": [[0.1, 2.0], [0.9, 0.5]]}) == (
        [(0.1, 2.0), (0.9, 0.5)],
        "recorded in its training",
    )
    for wrong in (3, [], [[0, 1]], [[0, 1], [1]], [[0, 1], [1, math.nan]], [[0, 1], [1, "a"]], [[0, 1], [1, -1]]):
        assert not draw_schedules(policy, tmp_path / "x.png", {"factor_curve": wrong})


def test_there_is_no_picture_without_matplotlib(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_schedules(Linear(), tmp_path / "x.png")
    assert importlib.util.find_spec("matplotlib") is not None


# --- results of the bundled controllers, from rows -------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path) -> Path:
    """The committed rows, to be changed."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for path in ROWS.glob("papers_*.jsonl.gz"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def change(rows: Path, of: str, seeds: set[int], **changes: Any) -> None:
    path = rows / "papers_fashion-cnn.jsonl"
    write_rows(
        path, [row | (changes if row["method"] == of and row["seed"] in seeds else {}) for row in read_rows(path)]
    )


def test_rows_become_results(rows) -> None:
    found = cards.results("mlr_snet", rows)
    check_results(found)
    first = found["results"][0]
    assert (first["task"], first["failed"]) == ("fashion-cnn", 0)
    assert set(first["against"]) == {"constant", "linear", "cosine"}
    read = read_rows(rows / "papers_fashion-cnn.jsonl")
    mine, other = (
        {r["seed"]: r["test_loss"] for r in read if r["method"] == method and "test_loss" in r}
        for method in ("mlr_snet_frozen", "linear")
    )
    assert first["seeds"] == len(mine) >= 5
    assert first["metrics"]["test_loss"]["mean"] == pytest.approx(sum(mine.values()) / len(mine), rel=1e-5)
    difference = first["against"]["linear"]["test_loss"]["difference"]
    both = mine.keys() & other.keys()
    assert difference == pytest.approx(sum(mine[s] - other[s] for s in both) / len(both), rel=1e-4)
    tried = [result["task"] for result in found["results"]] + [what.split(":")[0] for what in found["not_tested"]]
    assert sorted(tried) == sorted(["fashion-cnn", "fashion-cnn-noisy", "newsgroups-minilm3"])


def test_failed_runs_make_it_worse_and_missing_ones_untested(rows) -> None:
    change(rows, "mlr_snet_frozen", {0, 1}, diverged=True)
    first = cards.results("mlr_snet", rows)["results"][0]
    assert first["failed"] == 2
    words = {value["word"] for rival in first["against"].values() for value in rival.values()}
    assert words == {"worse"}
    seeds = set(range(first["seeds"]))
    change(rows, "mlr_snet_frozen", seeds, diverged=True)
    first = cards.results("mlr_snet", rows)["results"][0]
    assert (first["failed"], first["metrics"], first["against"]) == (len(seeds), {}, {})
    assert f"- fashion-cnn: {len(seeds)} of {len(seeds)} runs failed" in cards.card(
        "mlr_snet", cards.results("mlr_snet", rows), None
    )
    change(rows, "mlr_snet_frozen", seeds - set(range(4)), method="another")
    assert (
        "fashion-cnn: fashion-mnist, cnn, sgd (not run to the end)" in (cards.results("mlr_snet", rows)["not_tested"])
    )


def test_what_the_benchmark_measured_is_on_the_card_losses_included() -> None:
    for name in cards.BENCHMARKED:
        found = cards.results(name, ROWS)
        assert len(check_results(found)) >= 6 and found["command"] == cards.BENCHMARK
        text = cards.card(name, found, None)
        assert "against tuned linear" in section(text, "Where it loses") and "no learning rate given" in text


def test_the_command_needs_the_projects_folder_and_whole_rows(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cards.main(["--bundled"]) == 2
    assert "README.md" in capsys.readouterr().err
    (tmp_path / "model_cards" / "rows").mkdir(parents=True)
    for page in cards.PAGES:
        (tmp_path / page).write_text("")
    (tmp_path / "model_cards" / "rows" / "finetune.jsonl").write_text("{]\n{}\n")
    assert cards.main([]) == 2
    assert "line 1 is not JSON" in capsys.readouterr().err


# --- the card of a trained model -------------------------------------------------------------------------------------


def from_the_hub(controller: Controller) -> Controller:
    commit = "0123456789abcdef0123456789abcdef01234567"
    object.__setattr__(controller, "provenance", {"source": "user/repo", "commit": commit, "folder": "/cache"})
    return controller


def test_a_mention_names_and_links_the_controller_once() -> None:
    card = "---\nlicense: mit\n---\n\n# A model\n\nText.\n"
    once = mention(card, from_the_hub(Linear(final_factor=0.25)), {"learning_rate": 3e-5})
    assert once.startswith(card)
    assert "| `final_factor` | `0.25` |" in once
    assert "| `learning_rate` | `3e-05` |" in once
    assert "/user/repo/tree/0123456789abcdef0123456789abcdef01234567) at commit" in once
    assert mention(once, from_the_hub(Linear(final_factor=0.25)), {"learning_rate": 3e-5}) == once
    other = mention(once + "\nMore by hand.\n", Linear(), {})
    assert "More by hand." in other
    assert other.count("## Learning rate") == 1
    assert "user/repo" not in other


def test_the_trainers_card_mentions_the_controller(tmp_path) -> None:
    args = arguments(tmp_path)
    trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller=Linear())
    trainer.train()
    cards = []
    for asked in ({}, {"tags": "mine"}, {"tags": ["mine"], "model_name": "name"}):
        trainer.create_model_card(**asked)
        cards.append((tmp_path / "README.md").read_text())
    assert cards[0].count("Chosen during the training by the controller `linear`") == 1
    assert cards[2].count("## Learning rate") == 1
    tags = ModelCard(cards[2]).data.tags
    assert {"mine", "adaptive-lr", "hf_adaptive_lr", "generated_from_trainer"} <= set(tags)
    assert len(tags) == len(set(tags))
