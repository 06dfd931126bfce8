"""Controllers on the Hub: the round trip of the real client against our own Hub, and each way it can fail."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants, errors

from hf_adaptive_lr import AutoController, Cosine, Linear, Universal
from hf_adaptive_lr.hub import repo as on_hub
from hf_adaptive_lr.hub.config import configure
from hf_adaptive_lr.hub.mixin import sidecar
from hf_adaptive_lr.hub.repo import HubError

ID = "user/controller"
DECAY = Linear(final_factor=0.25)
WEIGHTS = Universal.random_params(hidden_size=4, seed=3)
LEARNED = Universal(hidden_size=4, params=WEIGHTS)
RESULT = {
    "task": "digits",
    "data": "scikit-learn digits",
    "model": "mlp",
    "optimizer": "adamw",
    "parameters": 1000,
    "updates": 100,
    "seeds": 3,
    "learning_rate": 0.001,
    "metrics": {"test_loss": {"mean": 0.5, "half_width": 0.1}},
    "against": {"linear": {"test_loss": {"difference": -0.1, "half_width": 0.05, "word": "better"}}},
}
RESULTS = {"format_version": 1, "command": "python -m bench", "results": [RESULT], "not_tested": ["models above 1000"]}
TRAINING = {"command": "hf-adaptive-lr train universal", "versions": {"hf_adaptive_lr": "0.1.0"}}


def _same(a, b) -> None:
    assert type(a) is type(b)
    assert a == b
    assert a.params.keys() == b.params.keys()
    assert all(torch.equal(a.params[name], b.params[name]) for name in a.params)


def _push(controller=LEARNED, repo_id=ID, **options):
    return controller.push_to_hub(repo_id, **{"eval_results": RESULTS, **options})


def _bytes_sent(hub) -> list[str]:
    return [call for call in hub.calls if "/resolve/" in call or "/lfs" in call]


# --- push and pull ----------------------------------------------------------------------------------------------


def test_round_trip(hub, hub_token) -> None:
    info = _push(training=TRAINING)
    assert hub.commits(ID)[0] == info.oid
    assert len(hub.commits(ID)) == 2  # the one that made the repository, and all files in one
    files = hub.files(ID)
    assert {"README.md", "config.json", "model.safetensors", "training.json", "eval_results.json"} <= files.keys()
    assert json.loads(files["eval_results.json"]) == RESULTS
    assert json.loads(files["training.json"]) == TRAINING
    loaded = AutoController.from_pretrained(ID)
    _same(loaded, LEARNED)
    _same(Universal.from_pretrained(ID), LEARNED)
    folder = Path(loaded.provenance["folder"])
    assert loaded.provenance == {"source": ID, "folder": str(folder), "commit": info.oid, "revision": ""}
    card = ModelCard.load(folder / "README.md")
    assert "learning-rate-scheduler" in card.data.tags
    assert any("hf_adaptive_lr" in request.headers["user-agent"] for request in hub.requests)


def test_by_branch_tag_commit_and_pull_request(hub, hub_token) -> None:
    api = HfApi()
    first = _push(Linear(final_factor=0.1)).oid
    api.create_tag(ID, tag="v1", revision=first)
    second = _push(Linear(final_factor=0.2)).oid
    branch = _push(Linear(final_factor=0.3), revision="trial").oid
    request = _push(Linear(final_factor=0.4), create_pr=True)
    assert request.pr_revision == "refs/pr/1"
    expected = {
        None: (0.2, second),
        "main": (0.2, second),
        "v1": (0.1, first),
        first: (0.1, first),
        "trial": (0.3, branch),
        "refs/pr/1": (0.4, request.oid),
    }
    for revision, (factor, commit) in expected.items():
        loaded = AutoController.from_pretrained(ID, revision=revision)
        assert loaded == Linear(final_factor=factor)
        assert loaded.provenance["commit"] == commit
        assert loaded.provenance["revision"] == (revision or "")
    assert hub.commits(ID)[0] == second


def test_all_files_come_from_one_commit(hub, hub_token, monkeypatch) -> None:
    """Somebody pushes between the look at main and the download."""
    first = _push(LEARNED).oid
    resolve = HfApi.resolve_revision

    def then_a_push(self, *args, **kwargs):
        found = resolve(self, *args, **kwargs)
        hub.put_file(ID, "config.json", b"{}")
        return found

    monkeypatch.setattr(HfApi, "resolve_revision", then_a_push)
    loaded = AutoController.from_pretrained(ID)
    _same(loaded, LEARNED)
    assert loaded.provenance["commit"] == first


def test_from_the_cache(hub, hub_token, monkeypatch) -> None:
    """With the network, one question; without, or offline, none."""
    _push()
    AutoController.from_pretrained(ID)
    hub.requests.clear()
    _same(AutoController.from_pretrained(ID), LEARNED)
    assert hub.calls == [f"GET /api/models/{ID}"]
    with hub.gone():
        _same(AutoController.from_pretrained(ID), LEARNED)
    hub.requests.clear()
    _same(AutoController.from_pretrained(ID, local_files_only=True), LEARNED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = AutoController.from_pretrained(ID)
    _same(loaded, LEARNED)
    assert loaded.provenance["commit"] == hub.commits(ID)[0]
    assert hub.calls == []


def test_a_second_process_offline_makes_no_call(hub, hub_token) -> None:
    _push(DECAY)
    AutoController.from_pretrained(ID)
    hub.requests.clear()
    code = f"from hf_adaptive_lr import AutoController; print(AutoController.from_pretrained('{ID}').config())"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "{'final_factor': 0.25}"
    assert hub.requests == []


def test_force_download_and_cache_dir(hub, hub_token, tmp_path) -> None:
    _push()
    loaded = AutoController.from_pretrained(ID, cache_dir=tmp_path / "elsewhere")
    assert Path(loaded.provenance["folder"]).is_relative_to(tmp_path / "elsewhere")
    hub.requests.clear()
    AutoController.from_pretrained(ID, cache_dir=tmp_path / "elsewhere", force_download=True)
    assert sum("config.json" in call and call.startswith("GET") for call in hub.calls) == 1
    with pytest.raises(ValueError, match="contradict"):
        AutoController.from_pretrained(ID, force_download=True, local_files_only=True)


# --- who may ----------------------------------------------------------------------------------------------------


def test_private(hub, hub_token, monkeypatch) -> None:
    _push(private=True)
    _same(AutoController.from_pretrained(ID), LEARNED)
    monkeypatch.delenv("HF_TOKEN")
    other = hub.add_user("other")
    for token in (None, False, other):
        for force in (False, True):
            with pytest.raises(HubError, match="no repository 'user/controller' that you may see.*hf auth login"):
                AutoController.from_pretrained(ID, token=token, force_download=force)
    _same(AutoController.from_pretrained(ID, token=hub_token), LEARNED)


def test_gated(hub, hub_token, monkeypatch) -> None:
    _push()
    hub.repos["model", ID].gated = True
    monkeypatch.delenv("HF_TOKEN")
    other = hub.add_user("other")
    for token in (None, other):
        with pytest.raises(HubError, match="'user/controller' is gated; ask for access at http"):
            AutoController.from_pretrained(ID, token=token)
    hub.repos["model", ID].granted.add("other")
    _same(AutoController.from_pretrained(ID, token=other), LEARNED)


def test_a_token_that_may_not(hub, hub_token) -> None:
    _push()
    commits = hub.commits(ID)
    for token in (hub.add_token("user", "read"), hub.add_user("other"), "hf_nonsense"):
        with pytest.raises(HubError, match="hf auth login"):
            _push(Linear(), token=token)
    assert hub.commits(ID) == commits


def test_anyone_may_open_a_pull_request(hub, hub_token) -> None:
    _push(Linear())
    commits = hub.commits(ID)
    _push(Cosine(), create_pr=True, token=hub.add_user("other"))
    assert hub.commits(ID) == commits
    assert AutoController.from_pretrained(ID, revision="refs/pr/1") == Cosine()


# --- what is not there ------------------------------------------------------------------------------------------


def test_missing_things(hub, hub_token) -> None:
    with pytest.raises(HubError, match="no controller 'user/cosin': .*known name.*folder.*Hub.*did you mean cosine"):
        AutoController.from_pretrained("user/cosin")
    _push()
    with pytest.raises(HubError, match="no revision 'v9'; name a branch"):
        AutoController.from_pretrained(ID, revision="v9")
    with pytest.raises(HubError, match="no revision"):
        AutoController.from_pretrained(ID, revision="0" * 40)
    hub.put_file("user/model", "weights.bin", b"1")
    with pytest.raises(HubError, match="has no config.json.*not a controller"):
        AutoController.from_pretrained("user/model")
    hub.put_file("user/half", "config.json", hub.files(ID)["config.json"])
    with pytest.raises(ValueError, match="tensor 'weight_ih' is missing.*no model.safetensors"):
        AutoController.from_pretrained("user/half")


def test_not_in_the_cache(hub, hub_token, monkeypatch) -> None:
    _push()
    for options in ({"local_files_only": True}, {"local_files_only": True, "revision": hub.commits(ID)[0]}):
        hub.requests.clear()
        with pytest.raises(HubError, match="not in the cache"):
            AutoController.from_pretrained(ID, **options)
        assert hub.calls == []
    with hub.gone(), pytest.raises(HubError, match="not in the cache, and the Hub was not reached"):
        AutoController.from_pretrained(ID)
    with hub.gone(), pytest.raises(HubError, match="no connection to http"):
        AutoController.from_pretrained(ID, revision=hub.commits(ID)[0])
    with hub.gone(), pytest.raises(HubError, match="no connection to http.* to push to"):
        _push()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        AutoController.from_pretrained(ID)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE=1 forbids to push"):
        _push()


def test_names(hub, tmp_path, monkeypatch) -> None:
    """A name, then a folder, then a repository; nothing else asks the Hub."""
    monkeypatch.chdir(tmp_path)
    DECAY.save_pretrained("user/controller")
    loaded = AutoController.from_pretrained("user/controller")
    assert loaded == DECAY
    assert loaded.provenance["source"] == "user/controller"
    assert loaded.provenance["folder"] == str(tmp_path / "user" / "controller")
    for wanted in (
        "nonsense",
        "a/b/c",
        "../up",
        "/no/where",
        "a b/c",
        "users/",
        "user/--x",
        "users/..",
        "~/x",
        "",
        "x\0y",
    ):
        with pytest.raises(ValueError, match="no controller .*'user/name'"):
            AutoController.from_pretrained(wanted)
    for wanted in (tmp_path / "x", Path("some/where")):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            AutoController.from_pretrained(wanted)
    for options in ({"revision": "main"}, {"cache_dir": "x"}, {"force_download": True}):
        for wanted in ("cosine", "mlr_snet", "user/controller"):
            with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is for a repository of the Hub"):
                AutoController.from_pretrained(wanted, **options)
    for revision in ("../x", "/x", "a\nb", ""):
        with pytest.raises(ValueError, match="revision="):
            AutoController.from_pretrained("user/other", revision=revision)
    for repo_id in ("name", "../x", "a/b/c"):
        with pytest.raises(ValueError, match="write 'user/name'"):
            _push(repo_id=repo_id)
        with pytest.raises(ValueError, match="write 'user/name'"):
            on_hub.pull(repo_id)
    assert hub.requests == []
    assert Cosine.from_pretrained("cosine") == Cosine()
    with pytest.raises(ValueError, match="controller_type is 'mlr_snet', expected one of: cosine"):
        Cosine.from_pretrained("mlr_snet")


def test_the_wrong_class(hub, hub_token) -> None:
    _push(DECAY)
    with pytest.raises(ValueError, match="controller_type is 'linear', expected one of: cosine"):
        Cosine.from_pretrained(ID)


# --- push -------------------------------------------------------------------------------------------------------


def test_results_are_asked_for(hub, hub_token, tmp_path) -> None:
    for empty in (None, {}, {"format_version": 1, "command": "x", "results": [], "not_tested": []}):
        with pytest.raises(ValueError, match="no held-out results of this Linear: pass eval_results"):
            DECAY.push_to_hub(ID, eval_results=empty)
    assert hub.requests == []
    DECAY.push_to_hub(ID, without_results=True)
    assert "eval_results.json" not in hub.files(ID)
    # Those that lie beside its files count, as long as it is what these files say.
    DECAY.save_pretrained(tmp_path)
    (tmp_path / "eval_results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "training.json").write_text(json.dumps(TRAINING))
    loaded = AutoController.from_pretrained(tmp_path)
    loaded.push_to_hub(ID)
    assert json.loads(hub.files(ID)["eval_results.json"]) == RESULTS
    assert json.loads(hub.files(ID)["training.json"]) == TRAINING
    with pytest.raises(ValueError, match="do not count, as final_factor changed"):
        loaded.replace(final_factor=0.5).push_to_hub(ID)
    (tmp_path / "eval_results.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        loaded.push_to_hub(ID)


def test_from_repository_to_repository(hub, hub_token) -> None:
    _push(training=TRAINING)
    AutoController.from_pretrained(ID).push_to_hub("user/copy")
    _same(AutoController.from_pretrained("user/copy"), LEARNED)
    assert json.loads(hub.files("user/copy")["eval_results.json"]) == RESULTS


def test_notes_stay_and_leftovers_go(hub, hub_token) -> None:
    _push(training=TRAINING)
    card = hub.files(ID)["README.md"].decode()
    start, end = "<!-- notes -->", "<!-- /notes -->"
    assert start in card
    assert end in card
    noted = card[: card.index(start)] + f"{start}\n\nWorks well for **me**.\n\n{end}" + card.partition(end)[2]
    hub.put_file(ID, "README.md", noted)
    hub.put_file(ID, "figures/mine.txt", b"stays")
    _push(DECAY)
    files = hub.files(ID)
    assert "Works well for **me**." in files["README.md"].decode()
    assert "model.safetensors" not in files  # a rule has no weights: they would be refused
    assert "training.json" not in files  # it told of another controller
    assert files["figures/mine.txt"] == b"stays"
    assert AutoController.from_pretrained(ID) == DECAY


def test_the_same_again_is_no_commit(hub, hub_token) -> None:
    first = _push().oid
    assert _push().oid == first
    assert len(hub.commits(ID)) == 2


def test_weights_that_would_not_load_are_not_published(hub, hub_token) -> None:
    ruined = {**WEIGHTS, "head_bias": torch.tensor([float("nan")])}
    with pytest.raises(ValueError, match="tensor 'head_bias' holds NaN"):
        _push(LEARNED.replace(params=ruined))
    whole = {**WEIGHTS, "head_bias": torch.tensor([1])}
    with pytest.raises(ValueError, match="tensor 'head_bias' is torch.int64"):
        _push(LEARNED.replace(params=whole))
    with pytest.raises(ValueError, match="training.json cannot be written as JSON"):
        _push(training={"loss": float("nan")})
    with pytest.raises(ValueError, match="create_pr is against main"):
        _push(revision="x", create_pr=True)
    assert hub.requests == []


def test_conflicting_commits(hub, hub_token, monkeypatch) -> None:
    """Somebody commits between the look at the card and our commit: theirs stays, ours is refused."""
    _push(DECAY)
    commit = HfApi.create_commit
    theirs = []

    def too_late(self, *args, **kwargs):
        theirs.append(hub.put_file(ID, "README.md", b"mine"))
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", too_late)
    with pytest.raises(HubError, match="somebody else committed.*nothing was published.*push again") as caught:
        _push(Linear(final_factor=0.5))
    assert isinstance(caught.value.__cause__, errors.HfHubHTTPError)
    assert hub.commits(ID)[0] == theirs[0]
    assert json.loads(hub.files(ID)["config.json"])["final_factor"] == 0.25


# --- the network fails ------------------------------------------------------------------------------------------


def test_two_503s_are_waited_out(hub, hub_token) -> None:
    hub.fault(r"POST .*/preupload/", times=2)
    hub.fault(r"POST .*/info/lfs/objects/batch", times=2)
    _push()
    assert len(hub.slept) == 4
    hub.fault(r"HEAD .*/resolve/", times=1)
    _same(AutoController.from_pretrained(ID), LEARNED)


def test_a_server_that_is_down_says_so(hub, hub_token) -> None:
    hub.fault(r"POST .*/commit/", times=None)
    with pytest.raises(HubError, match="the Hub answered 503 to the wish to push to 'user/controller'"):
        _push()
    assert len(hub.commits(ID)) == 1
    hub.faults.clear()
    _push()
    hub.fault(r"GET /api/models/", times=None)
    with pytest.raises(HubError, match="not in the cache, and the Hub was not reached"):
        AutoController.from_pretrained(ID)


@pytest.mark.parametrize(
    "fault",
    [
        {"pattern": r"PUT /lfs", "drop": True, "cut": 100},
        {"pattern": r"POST .*/commit/", "drop": True, "cut": 100},
        {"pattern": r"POST .*/preupload/", "drop": True},
        {"pattern": r"POST .*/info/lfs/objects/batch", "drop": True},
    ],
    ids=["weights", "commit", "preupload", "batch"],
)
def test_a_connection_that_dies_in_mid_upload(hub, hub_token, fault) -> None:
    """Nothing is half-published: the old controller stays, whole; the next push gets through."""
    _push(DECAY)
    commits = hub.commits(ID)
    made = hub.fault(times=None, **fault)
    hub.requests.clear()
    with pytest.raises(HubError, match="no connection|failed"):
        _push()
    assert any(request.status == 0 for request in hub.requests), hub.calls
    assert hub.commits(ID) == commits
    assert AutoController.from_pretrained(ID) == DECAY
    hub.faults.remove(made)
    _push()
    _same(AutoController.from_pretrained(ID), LEARNED)


def test_a_download_that_dies_leaves_no_half_file(hub, hub_token) -> None:
    _push()
    made = hub.fault(r"GET .*lfs/", times=None, cut=100)
    with pytest.raises(HubError):
        AutoController.from_pretrained(ID)
    hub.faults.remove(made)
    _same(AutoController.from_pretrained(ID), LEARNED)


def test_sidecars_are_not_needed(hub, hub_token, monkeypatch) -> None:
    """A note that is too large, or cannot be had, does not keep the controller away."""
    _push(training=TRAINING)
    monkeypatch.setitem(on_hub._LIMITS, "training.json", 10)
    folder, _ = on_hub.pull(ID)
    assert not (folder / "training.json").exists()
    assert (folder / "eval_results.json").exists()
    with hub.gone():
        _same(AutoController.from_pretrained(ID), LEARNED)


# --- provenance -------------------------------------------------------------------------------------------------


def test_provenance(hub, hub_token) -> None:
    commit = _push(DECAY).oid
    loaded = AutoController.from_pretrained(ID)
    assert DECAY.provenance == {}
    assert loaded == DECAY
    assert hash(loaded) == hash(DECAY)
    assert loaded.config() == DECAY.config()
    for twin in (copy.copy(loaded), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), configure(loaded, {})):
        assert twin == loaded
        assert twin.provenance == loaded.provenance
    assert loaded.replace(final_factor=0.25).provenance["commit"] == commit
    other = configure(loaded, {"final_factor": 0.5})
    assert other.provenance == {**loaded.provenance, "commit": "", "changed": "final_factor"}
    assert other.replace(final_factor=0.25).provenance["commit"] == ""
    assert LEARNED.replace(params=WEIGHTS).provenance == {}
    bundled = AutoController.from_pretrained("mlr_snet")
    assert bundled.provenance["source"] == "mlr_snet"
    assert bundled.replace(params={**bundled.params}, meta_lr=0.1).provenance["changed"] == "meta_lr, params"
    assert AutoController.from_pretrained("cosine").provenance == {}


# --- search -----------------------------------------------------------------------------------------------------


def test_search_finds_controllers_by_their_tags(hub, hub_token) -> None:
    commit = _push(DECAY).oid
    hub.put_file("user/model", "README.md", "---\ntags: [adaptive-lr]\n---\nA model that a controller trained.")
    hub.put_file("user/else", "README.md", "---\ntags: [bert]\n---\n")
    (found,) = on_hub.search()
    assert (found["id"], found["commit"]) == (ID, commit)
    assert {"adaptive-lr", "learning-rate-scheduler"} <= set(found["tags"])
    assert found.keys() == {"id", "commit", "tags", "downloads", "likes"}
    with hub.gone(), pytest.raises(HubError, match="no connection"):
        on_hub.search()


def test_files_of_a_controller_have_the_usual_rights(tmp_path) -> None:
    AutoController.from_pretrained("universal_1").save_pretrained(tmp_path / "mine")
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "mine").iterdir()} == {usual}


def test_what_is_known_about_a_controller_goes_along_unless_it_was_changed(tmp_path) -> None:
    universal = AutoController.from_pretrained("universal_1")
    universal.save_pretrained(tmp_path / "copy")
    assert {p.name for p in (tmp_path / "copy").iterdir()} >= {"training.json", "eval_results.json"}
    again = AutoController.from_pretrained(tmp_path / "copy")
    assert sidecar(again, "training.json") == sidecar(universal, "training.json")
    universal.replace(rho=0.01).save_pretrained(tmp_path / "other")
    assert {p.name for p in (tmp_path / "other").iterdir()} == {"config.json", "model.safetensors"}


def test_a_folder_with_an_unfinished_training_or_a_pointer_says_so(tmp_path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "checkpoint.pt").touch()
    with pytest.raises(FileNotFoundError, match="training that was not finished; continue with .*--resume"):
        AutoController.from_pretrained(folder)
    AutoController.from_pretrained("universal_1").save_pretrained(folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="pointer of Git LFS.*git lfs pull"):
        AutoController.from_pretrained(folder)


def test_the_licence_is_the_owners(hub, hub_token) -> None:
    def card_of(controller, repo_id=ID, **options) -> ModelCard:
        commit = _push(controller, repo_id, **options).oid
        return ModelCard(Path(HfApi().hf_hub_download(repo_id, "README.md", revision=commit)).read_text())

    card = card_of(LEARNED)
    assert "license" not in card.data.to_dict() and "## Licence\n\nNot stated." in card.content
    assert card_of(LEARNED, license="mit").data.license == "mit"
    assert card_of(LEARNED.replace(rho=0.01)).data.license == "mit"  # as the card there stated
    with pytest.raises(ValueError, match="no licence that the Hub knows"):
        _push(LEARNED, license="no such\nthing")
    assert card_of(DECAY, "user/rule").data.license == "apache-2.0"


@pytest.mark.parametrize("name", ["linear", "user/repo", "rules.py:Rule"])
def test_an_option_with_a_typo_is_named_beside_the_known_ones(name) -> None:
    with pytest.raises(TypeError, match="'revison' is no option for reading from the Hub; there are: revision, token"):
        AutoController.from_pretrained(name, revison="main")


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("plateau", {"metric": "eval_loss"}, r"settings go to Plateau\(metric=...\)$"),
        ("universal_1", {"rho": 0.01}, r"settings go to from_pretrained\('universal_1'\).replace\(rho=...\)$"),
    ],
)
def test_a_setting_among_the_options_is_told_where_it_goes(name, setting, said) -> None:
    with pytest.raises(TypeError, match=f"'{next(iter(setting))}' is no option.*; {said}"):
        AutoController.from_pretrained(name, **setting)
