"""The command line and the Hub: push, pull, card and list --hub against a real server; a model's card after a push."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, hf_hub_download
from transformers import TrainingArguments

from hf_adaptive_lr import AdaptiveLRTrainer, AutoController, Linear, Universal
from hf_adaptive_lr.artifacts import printable
from hf_adaptive_lr.cli import main
from hf_adaptive_lr.finetune.job import FinetuneConfig, run
from hf_adaptive_lr.hub.card import notes_of
from hf_adaptive_lr.trainer.mixin import AdaptiveLRMixin
from tests.job import texts, write_csv, write_text_model
from tests.test_card import TRAINING, results
from tests.tiny import Tokens, bert


def call(line: str) -> int:
    try:
        return main(shlex.split(line))
    except SystemExit as end:  # argparse
        assert isinstance(end.code, int)
        return end.code


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder; in it a trained controller with its training and held-out results, and a bare one."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    controller = Universal(hidden_size=4, params=Universal.random_params(hidden_size=4, seed=0))
    for name in ("mine", "bare"):
        controller.save_pretrained(work / name)
    (work / "mine" / "training.json").write_text(json.dumps(TRAINING))
    (work / "mine" / "eval_results.json").write_text(json.dumps(results()))
    return work


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return parsed


def head(hub: Any, repo_id: str, branch: str = "main") -> str:
    commit: str = hub.repos["model", repo_id].git.ref(f"refs/heads/{branch}")
    return commit


def one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    for part in parts:
        assert part in shown.err


# --- push and pull ---------------------------------------------------------------------------------------------------


def test_push_pull_and_load(here, hub, hub_token, capsys) -> None:
    assert call("push mine user/mine") == 0
    commit = head(hub, "user/mine")
    told = capsys.readouterr().out
    assert f"pushed universal to user/mine, commit {commit}" in told and "--controller user/mine" in told

    assert call("pull user/mine --output-dir copy") == 0
    use = "  use it: hf-adaptive-lr finetune --controller copy"
    assert capsys.readouterr().out == f"user/mine: universal, commit {commit}\n  in copy\n{use}\n"
    assert {p.name for p in (here / "copy").iterdir()} == {
        "config.json",
        "model.safetensors",
        "training.json",
        "eval_results.json",
        "README.md",
    }
    assert not [p for p in (here / "copy").iterdir() if p.is_symlink()]
    assert (here / "copy" / "model.safetensors").read_bytes() == (here / "mine" / "model.safetensors").read_bytes()
    assert json.loads((here / "copy" / "eval_results.json").read_text()) == results()
    assert AutoController.from_pretrained("./copy") == AutoController.from_pretrained("./mine")
    card = ModelCard.load(here / "copy" / "README.md")
    assert card.data.model_name == "user/mine"
    assert 'from_pretrained("user/mine")' in card.text


def test_everything_as_json(here, hub, hub_token, capsys) -> None:
    assert call("push mine user/mine --private --commit-message 'Mine, now' --json") == 0
    pushed = said(capsys)
    assert pushed["commit"] == head(hub, "user/mine")
    assert pushed["pull_request"] is None
    assert hub.repos["model", "user/mine"].private
    assert call("pull user/mine --json") == 0
    pulled = said(capsys)
    assert (pulled["commit"], pulled["controller_type"]) == (pushed["commit"], "universal")
    assert Path(pulled["folder"]).name == pushed["commit"]


def test_to_a_branch_and_as_a_pull_request(here, hub, hub_token, capsys) -> None:
    assert call("push mine user/mine") == 0
    first = head(hub, "user/mine")
    (here / "mine" / "eval_results.json").write_text(json.dumps(results(task="another task")))
    capsys.readouterr()
    assert call("push mine user/mine --branch trial --json") == 0
    assert said(capsys)["commit"] == head(hub, "user/mine", "trial")
    assert head(hub, "user/mine") == first
    assert call("pull user/mine --revision trial --output-dir trial") == 0
    assert "another task" in (here / "trial" / "eval_results.json").read_text()
    capsys.readouterr()
    assert call("push mine user/mine --create-pr --json") == 0
    assert said(capsys)["pull_request"]
    assert head(hub, "user/mine") == first


def test_a_push_without_results_wants_the_flag(here, hub, hub_token, capsys) -> None:
    assert call("push bare user/bare") == 2
    one_line(capsys, "no held-out results", "--controller bare --write-results` first, or pass --without-results")
    assert ("model", "user/bare") not in hub.repos
    assert call("push bare user/bare --without-results") == 0
    readme = Path(hf_hub_download("user/bare", "README.md")).read_text()
    assert "This controller comes without held-out results" in readme


def test_notes_survive_the_next_push(here, hub, hub_token, capsys) -> None:
    assert call("push mine user/mine") == 0
    readme = Path(hf_hub_download("user/mine", "README.md")).read_text()
    hub.put_file("user/mine", "README.md", readme.replace("<!-- notes -->\n", "<!-- notes -->\nTry it on mice.\n"))
    (here / "mine" / "eval_results.json").write_text(json.dumps(results(task="another task")))
    assert call("push mine user/mine") == 0
    again = Path(hf_hub_download("user/mine", "README.md")).read_text()
    assert notes_of(again) == "Try it on mice."
    assert "another task" in again


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("pull user/absent", ["user/absent"]),
        ("pull user/mine --revision absent", ["absent"]),
        ("pull not-a-repository", ["not-a-repository"]),
        ("pull user/mine --output-dir mine", ["'mine' is not empty"]),
        ("push nowhere user/mine", ["nowhere"]),
        ("push mine 'user/mine/much'", ["user/mine/much"]),
        ("push mine somebody/mine", ["somebody/mine"]),
        ("push mine user/other --branch b --create-pr", ["create_pr"]),
        ("push mine", ["REPO_ID"]),
        ("push mine user/mine --token secret", ["unrecognized arguments"]),
        ("card user/absent", ["user/absent"]),
        ("list --hub --limit 0", ["--limit 0"]),
        ("list --limit 3", ["--limit is for --hub"]),
    ],
)
def test_what_cannot_be_is_one_line(line, parts, here, hub, hub_token, capsys) -> None:
    assert call("push mine user/mine") == 0
    capsys.readouterr()
    before = sorted(p for p in here.rglob("*"))
    assert call(line) == 2
    one_line(capsys, *parts)
    assert sorted(p for p in here.rglob("*")) == before


def test_without_a_token_nothing_is_published(here, hub, capsys) -> None:
    assert call("push mine user/mine") == 2
    one_line(capsys, "user/mine")
    assert hub.repos == {}


def test_without_a_network_it_is_one_line(here, hub, capsys) -> None:
    with hub.gone():
        for line in ("pull user/mine", "list --hub", "push mine user/mine"):
            assert call(line) == 2
            one_line(capsys, "check the network")


def test_a_repository_that_is_no_controller_is_refused_and_not_copied(here, hub, hub_token, capsys) -> None:
    hub.put_file("user/evil", "config.json", b'{"controller_type": "os.system"}')
    hub.put_file("user/evil", "model.safetensors", b"\x80\x04pickle")
    assert call("pull user/evil --output-dir copy") == 2
    one_line(capsys, "config.json")
    assert not (here / "copy").exists()


# --- card ------------------------------------------------------------------------------------------------------------


def test_the_card_of_a_folder_a_name_and_a_repository(here, hub, hub_token, capsys) -> None:
    assert call("card ./mine") == 0
    of_folder = capsys.readouterr().out
    assert "+0.0311 ± 0.0102" in of_folder
    ModelCard(of_folder)
    assert call("card linear") == 0
    assert "# linear" in capsys.readouterr().out
    assert call("push mine user/mine") == 0
    capsys.readouterr()
    assert call("card user/mine --json") == 0
    shown = said(capsys)
    assert shown["held_out_results"] is True
    published = Path(hf_hub_download("user/mine", "README.md")).read_text()
    assert shown["card"] == published.replace(picture_of(published), "")


def picture_of(card: str) -> str:
    """The line of the picture, which only a push draws."""
    return next((f"{line}\n\n" for line in card.splitlines() if line.startswith("![")), "")


def test_a_card_is_written_and_its_notes_stay(here, capsys) -> None:
    assert call("card ./mine --output mine/README.md") == 0
    assert capsys.readouterr().out == "written to mine/README.md\n"
    path = here / "mine" / "README.md"
    path.write_text(path.read_text().replace("<!-- notes -->\n", "<!-- notes -->\nFor mice.\n"))
    assert call("card ./mine --output mine/README.md") == 0
    assert notes_of(path.read_text()) == "For mice."
    assert call("card ./bare") == 0
    assert "without held-out results" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{nonsense", "eval_results.json"),
        (b"[1]", "must hold a JSON object"),
        (b'{"format_version": 1}', "'command' must be text"),
        (b"[" * 100_000, "eval_results.json"),
        (b"\xff\xfe", "eval_results.json"),
    ],
)
def test_a_card_from_a_broken_file_is_one_line(content, said, here, capsys) -> None:
    (here / "mine" / "eval_results.json").write_bytes(content)
    assert call("card ./mine") == 2
    one_line(capsys, said)


# --- list ------------------------------------------------------------------------------------------------------------


def test_list_finds_the_controllers_of_others(here, hub, hub_token, capsys) -> None:
    assert call("list --hub") == 0
    assert capsys.readouterr().out.startswith("no controller on the Hub has the tag")
    for name in ("one", "two"):
        assert call(f"push mine user/{name}") == 0
    hub.put_file("user/another-thing", "README.md", b"---\ntags: [other]\n---\n")
    capsys.readouterr()
    assert call("list --hub") == 0
    shown = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in shown[1:]} == {"user/one", "user/two"}
    assert all(line.split()[1] == "universal" for line in shown[1:])
    assert {line.split()[-1] for line in shown[1:]} == {head(hub, "user/one"), head(hub, "user/two")}
    assert call("list --hub --limit 1 --json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 1
    assert set(rows[0]) == {"id", "commit", "tags", "downloads", "likes"}


def test_a_terminal_is_not_told_what_to_do() -> None:
    assert printable("a\x1b[2Jb\n\u202ec") == "a[2Jb c"


# --- the model's own card, and the results of a run ------------------------------------------------------------------


def test_a_pushed_model_names_and_links_its_controller(here, hub, hub_token, capsys) -> None:
    assert call("push mine user/mine") == 0
    commit = head(hub, "user/mine")
    args = TrainingArguments(
        output_dir=str(here / "model"),
        max_steps=1,
        use_cpu=True,
        dataloader_pin_memory=False,
        hub_model_id="user/model",
    )
    trainer = AdaptiveLRTrainer(
        model=bert(), args=args, train_dataset=Tokens(), controller=AutoController.from_pretrained("user/mine")
    )
    trainer.train()
    for _ in range(2):
        trainer.push_to_hub()
        readme = Path(hf_hub_download("user/model", "README.md")).read_text()
        assert readme.count("## Learning rate") == 1
        assert f"[user/mine]({hub.url}/user/mine/tree/{commit})" in readme
        assert "| `hidden_size` | `4` |" in readme
        assert {"adaptive-lr", "hf_adaptive_lr"} <= set(ModelCard(readme).data.tags)
    capsys.readouterr()
    assert call("list --hub") == 0
    assert "user/model" not in capsys.readouterr().out, "a model is not a controller"


def test_the_mention_composes_with_other_trainers(tmp_path) -> None:
    class Other:
        """A trainer with a card of its own and other arguments, as in TRL."""

        def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
            (tmp_path / "README.md").write_text(f"{model_name} {dataset_name} {tags}")

    class Mine(AdaptiveLRMixin, Other):
        def __init__(self) -> None:
            self.args = TrainingArguments(output_dir=str(tmp_path))
            self._controller = Linear()

        def is_world_process_zero(self) -> bool:
            return True

    Mine().create_model_card("name", tags="mine")
    assert (tmp_path / "README.md").read_text().startswith("name None ['mine', 'adaptive-lr', 'hf_adaptive_lr']\n")
    Mine().create_model_card("name", "data", ["mine"])
    assert "## Learning rate" in (tmp_path / "README.md").read_text()


def test_results_say_where_the_controller_came_from(here, hub, hub_token, capsys) -> None:
    Linear(final_factor=0.5).save_pretrained("half")
    assert call("push half user/half --without-results") == 0
    write_text_model(here / "model")
    write_csv(here / "rows.csv", texts(24))
    found = {}
    for controller in ("user/half", "./half", "linear"):
        config = FinetuneConfig(
            data="rows.csv", model="model", output_dir="out", controller=controller, overwrite=True, max_steps=2
        )
        found[controller] = run(config)["controller"].get("provenance")
        assert (
            json.loads((here / "out" / "results.json").read_text())["controller"].get("provenance")
            == found[controller]
        )
    assert found["user/half"] == {"source": "user/half", "commit": head(hub, "user/half")}
    assert Path(found["./half"]["source"]) == Path("half")
    assert found["./half"]["commit"] == ""
    assert found["linear"] is None
