"""The Hub of these tests, held against the unmodified client of huggingface_hub, and its objects against git."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    auth_check,
    get_safetensors_metadata,
    hf_hub_download,
    hf_hub_url,
    resolve_revision,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save_file
from torch import arange

from tests import job
from tests.hub_server import Hub

REPO = "user/repo"
CARD = "---\nlicense: mit\nlibrary_name: hf_adaptive_lr\ntags:\n- adaptive-lr\n---\n\n# Title\n\nhttps://arxiv.org/abs/1909.00001\n"


@pytest.fixture
def api(hub_token: str) -> HfApi:
    """The client, logged in, with an empty repository."""
    api = HfApi()
    api.create_repo(REPO)
    return api


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model: a card, a config, weights (LFS by their name)."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "notes.txt").write_text("notes")
    save_file({"w": arange(1000.0)}, folder / "model.safetensors")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextmanager
def refused(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> Iterator[None]:
    """The Hub answers with this status, and the client raises exactly this error."""
    with pytest.raises(kind) as caught:
        yield
    assert (caught.value.response.status_code, caught.type) == (status, kind)


# Up and down


def test_a_folder_goes_up_and_comes_back(api: HfApi, hub: Hub, folder: Path) -> None:
    info = api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="Title", commit_description="Why")
    assert hub.files(REPO) == contents(folder)
    assert hub.commits(REPO)[0] == info.oid
    # exactly the sequence that the real Hub is sent
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert hub.calls[1:] == [
        "POST /api/validate-yaml",
        "POST /api/validate-yaml",
        "POST /api/models/user/repo/preupload/main",
        "POST /user/repo.git/info/lfs/objects/batch",
        f"PUT /lfs/{sha256}",
        "POST /user/repo.git/info/lfs/objects/verify",
        "POST /api/models/user/repo/commit/main",
    ]
    here = Path(snapshot_download(REPO))
    assert here.name == info.oid
    assert {**contents(here), ".gitattributes": b""} == {**contents(folder), ".gitattributes": b""}
    assert [(c.commit_id, c.title, c.message, c.authors) for c in api.list_repo_commits(REPO)][0] == (
        *(info.oid, "Title", "Why", ["user"]),
    )


def test_what_was_put_comes_back(hub: Hub) -> None:
    first = hub.put_file(REPO, "config.json", b"{}")
    second = hub.put_file(REPO, "weights.safetensors", b"w" * 10)
    third = hub.put_file(REPO, "config.json", b"[]", revision="dev")
    assert resolve_revision(REPO).resolved == second
    assert Path(hf_hub_download(REPO, "config.json")).read_bytes() == b"{}"
    assert Path(hf_hub_download(REPO, "weights.safetensors")).read_bytes() == b"w" * 10
    assert Path(hf_hub_download(REPO, "config.json", revision="dev")).read_bytes() == b"[]"
    assert (hub.commits(REPO)[:2], hub.commits(REPO, "dev")[:2]) == ([second, first], [third, second])


def test_hostile_names_can_be_put(hub: Hub) -> None:
    names = ["../../up", "/etc/root", "a/../../b", "a\\..\\b", "sp ace?#%2f", "ö"]
    for name in names:
        hub.put_file(REPO, name, name)
    assert set(names) < set(HfApi().list_repo_files(REPO))
    for name in names[-2:]:
        assert Path(hf_hub_download(REPO, name)).read_text() == name


def test_nothing_new_makes_no_commit(api: HfApi, hub: Hub, folder: Path) -> None:
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.requests.clear()
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert not [call for call in hub.calls if "/commit/" in call or call.startswith("PUT")]


def test_large_and_binary_files_go_to_lfs_and_an_object_goes_up_once(api: HfApi, hub: Hub) -> None:
    hub.lfs_threshold = 100
    api.upload_file(repo_id=REPO, path_in_repo="long.txt", path_or_fileobj=b"x" * 101)
    api.upload_file(repo_id=REPO, path_in_repo="short.txt", path_or_fileobj=b"x" * 100)
    api.upload_file(repo_id=REPO, path_in_repo="picture", path_or_fileobj=b"\0\1")
    api.upload_file(repo_id=REPO, path_in_repo="again.txt", path_or_fileobj=b"x" * 101)
    assert sum(call.startswith("PUT") for call in hub.calls) == 2
    lfs = {item.path: item.lfs for item in api.get_paths_info(REPO, ["long.txt", "short.txt", "picture", "nowhere"])}
    assert {path: bool(found) for path, found in lfs.items()} == {
        "long.txt": True,
        "short.txt": False,
        "picture": True,
    }
    assert lfs["long.txt"].sha256 == hashlib.sha256(b"x" * 101).hexdigest()
    assert all("authorization" not in request.headers for request in hub.requests if request.origin == "storage")


def test_operations_of_one_commit(api: HfApi, hub: Hub, folder: Path) -> None:
    api.upload_folder(repo_id=REPO, folder_path=folder)
    operations = [
        CommitOperationAdd("new.txt", b"new"),
        CommitOperationDelete("config.json"),
        CommitOperationDelete("sub/"),
        CommitOperationCopy("model.safetensors", "copy.safetensors"),
    ]
    api.create_commit(REPO, operations, commit_message="several")
    assert sorted(hub.files(REPO)) == ["README.md", "copy.safetensors", "model.safetensors", "new.txt"]
    assert hub.files(REPO)["copy.safetensors"] == hub.files(REPO)["model.safetensors"]
    with refused(404, RemoteEntryNotFoundError):
        api.delete_file("nowhere.txt", REPO)
    with refused(422):
        api.upload_file(repo_id=REPO, path_in_repo="new.txt/below", path_or_fileobj=b"")


def test_ranges(hub: Hub) -> None:
    hub.put_file(REPO, "a.txt", b"0123456789")
    hub.put_file(REPO, "a.bin", b"0123456789")
    with httpx2.Client(follow_redirects=True) as client:
        for name in ("a.txt", "a.bin"):
            url = hf_hub_url(REPO, name)
            for wanted, expected in {"2-4": b"234", "7-": b"789", "-2": b"89", "8-99": b"89"}.items():
                answer = client.get(url, headers={"Range": f"bytes={wanted}"})
                assert (answer.status_code, answer.content) == (206, expected)
            assert client.get(url, headers={"Range": "bytes=10-"}).status_code == 416
            assert client.get(url).content == b"0123456789"


def test_safetensors_header_is_read_through_the_redirect(api: HfApi, folder: Path) -> None:
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert get_safetensors_metadata(REPO).parameter_count == {"F32": 1000}


def test_card(api: HfApi, hub: Hub) -> None:
    card = ModelCard(CARD)
    card.push_to_hub(REPO)
    assert ModelCard.load(REPO).content == CARD
    with pytest.raises(ValueError, match="license"):
        ModelCard("---\nlicense: nobodys\n---\n").push_to_hub(REPO)
    assert hub.files(REPO) == {"README.md": CARD.encode()}


# Revisions


def test_branch_tag_commit_and_short_commit(api: HfApi, hub: Hub) -> None:
    one = hub.put_file(REPO, "f", "one")
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="a/b", revision="v1")
    two = hub.put_file(REPO, "f", "two")
    three = api.upload_file(repo_id=REPO, path_in_repo="f", path_or_fileobj=b"three", revision="a/b").oid
    expected = {"main": "two", "v1": "one", "a/b": "three", one: "one", two: "two", three: "three"}
    for revision, content in expected.items():
        assert Path(hf_hub_download(REPO, "f", revision=revision)).read_text() == content
    assert api.model_info(REPO, revision=one[:7]).sha == one
    refs = api.list_repo_refs(REPO)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": two, "a/b": three}
    assert [(tag.name, tag.ref, tag.target_commit) for tag in refs.tags] == [("v1", "refs/tags/v1", one)]


def test_refs_that_cannot_be(api: HfApi) -> None:
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="dev")
    api.create_branch(REPO, branch="dev", exist_ok=True)
    with refused(409):
        api.create_tag(REPO, tag="v1")
    with refused(409):
        api.create_branch(REPO, branch="dev")
    with refused(403):
        api.delete_branch(REPO, branch="main")
    with refused(404, RevisionNotFoundError):
        api.create_branch(REPO, branch="other", revision="nowhere")
    for revision in ("nowhere", "v1"):  # one cannot commit to a tag
        with refused(404, RevisionNotFoundError):
            api.upload_file(repo_id=REPO, path_in_repo="f", path_or_fileobj=b"", revision=revision)
    api.delete_tag(REPO, tag="v1")
    api.delete_branch(REPO, branch="dev")
    refs = api.list_repo_refs(REPO)
    assert ([branch.name for branch in refs.branches], refs.tags) == (["main"], [])


def test_a_pull_request_of_a_stranger(api: HfApi, hub: Hub) -> None:
    hub.put_file(REPO, "f", "theirs")
    with refused(403):
        api.upload_file(repo_id=REPO, path_in_repo="f", path_or_fileobj=b"mine", token=hub.add_user("stranger"))
    operations = [CommitOperationAdd("f", b"mine"), CommitOperationAdd("w.bin", b"\0\1")]
    info = api.create_commit(
        REPO, operations, commit_message="Better", create_pr=True, token=hub.add_token("stranger", "write")
    )
    assert (info.pr_num, info.pr_revision, info.oid) == (1, "refs/pr/1", hub.commits(REPO, "refs/pr/1")[0])
    assert Path(hf_hub_download(REPO, "f", revision="refs/pr/1")).read_text() == "mine"
    assert Path(hf_hub_download(REPO, "f")).read_text() == "theirs"
    assert [r.ref for r in api.list_repo_refs(REPO, include_pull_requests=True).pull_requests] == ["refs/pr/1"]
    more = api.upload_file(repo_id=REPO, path_in_repo="f", path_or_fileobj=b"more", revision="refs/pr/1")
    assert hub.commits(REPO, "refs/pr/1")[:2] == [more.oid, info.oid]


def test_a_stale_parent_is_a_conflict(api: HfApi, hub: Hub) -> None:
    known = api.model_info(REPO).sha
    theirs = hub.put_file(REPO, "f", "theirs")
    mine = {"repo_id": REPO, "path_in_repo": "f", "path_or_fileobj": b"mine"}
    with refused(412):
        api.upload_file(**mine, parent_commit=known)
    assert hub.files(REPO) == {"f": b"theirs"}
    api.upload_file(**mine, parent_commit=theirs)
    assert hub.files(REPO) == {"f": b"mine"}


def test_of_many_at_once_one_wins(api: HfApi, hub: Hub) -> None:
    known = api.model_info(REPO).sha

    def status(number: int) -> int:
        try:
            add = CommitOperationAdd(f"{number}", b"x")
            api.create_commit(REPO, [add], commit_message="mine", parent_commit=known)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(status, range(4))) == [200, 412, 412, 412]
    assert len(hub.commits(REPO)) == 2


# Repositories


def test_create_and_delete(api: HfApi, hub: Hub) -> None:
    with refused(409):
        api.create_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    with refused(403):
        api.create_repo("somebody/else")
    assert api.repo_exists("USER/Repo")
    hub.add_user("member", orgs=["org"])
    assert api.create_repo("org/repo", token=hub.add_token("member", "write")).repo_id == "org/repo"
    assert api.create_repo("data", repo_type="dataset").repo_id == "user/data"
    assert api.dataset_info("user/data").author == "user"
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    with refused(404, RepositoryNotFoundError):
        api.delete_repo(REPO)
    api.delete_repo(REPO, missing_ok=True)


def test_info_and_tree(api: HfApi, hub: Hub, folder: Path) -> None:
    hub.page = 2  # the client turns pages
    commit = api.upload_folder(repo_id=REPO, folder_path=folder).oid
    info = api.model_info(REPO, files_metadata=True)
    assert (info.id, info.sha, info.author, info.private, info.gated) == (REPO, commit, "user", False, False)
    assert info.tags == [
        *("safetensors", "hf_adaptive_lr", "adaptive-lr", "arxiv:1909.00001"),
        *("license:mit", "region:us"),
    ]
    assert (info.card_data.license, info.library_name) == ("mit", "hf_adaptive_lr")
    expected = {path: len(data) for path, data in contents(folder).items()}
    assert {file.rfilename: file.size for file in info.siblings if file.rfilename != ".gitattributes"} == expected
    assert sorted(api.list_repo_files(REPO)) == sorted([*expected, ".gitattributes"])
    assert [item.path for item in api.list_repo_tree(REPO, "sub")] == ["sub/notes.txt"]
    tree = {item.path: item for item in api.list_repo_tree(REPO, recursive=True, expand=True)}
    assert tree["config.json"].last_commit.oid == commit
    assert tree[".gitattributes"].last_commit.title == "initial commit"
    with refused(404, RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere"))


def test_models_are_found(api: HfApi, hub: Hub) -> None:
    names = [f"a/model-{n}" for n in range(5)]
    for name in names:
        hub.put_file(name, "README.md", CARD)
    hub.put_file("b/other", "README.md", CARD.replace("adaptive-lr", "something"))
    hub.put_file("b/broken", "README.md", "---\n: [\n---\n")
    hub.add_repo("c/hidden", private=True)
    hub.repos["model", "a/model-2"].downloads = 7
    hub.page = 2
    assert [m.id for m in api.list_models(filter="adaptive-lr")] == names[::-1]
    assert [m.id for m in api.list_models(filter=["adaptive-lr", "arxiv:1909.00001"], limit=3)] == names[:1:-1]
    assert [m.id for m in api.list_models(search="OTHER")] == ["b/other"]
    assert {m.id for m in api.list_models(author="b")} == {"b/other", "b/broken"}
    assert not list(api.list_models(author="c"))
    found = next(iter(api.list_models(sort="downloads", full=True, cardData=True)))
    assert (found.id, found.sha, found.downloads) == ("a/model-2", hub.commits("a/model-2")[0], 7)
    assert found.card_data.license == "mit"


# Who may


def test_private(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, stranger = hub.add_user("user"), hub.add_user("stranger")
    HfApi(token=owner).create_repo(REPO, private=True)
    hub.put_file(REPO, "f", "secret")
    for token, status in ((None, 401), (False, 401), (stranger, 404)):
        with refused(status, RepositoryNotFoundError):
            resolve_revision(REPO, token=token)
        with refused(status, RepositoryNotFoundError):
            hf_hub_download(REPO, "f", token=token)
    assert Path(hf_hub_download(REPO, "f", token=hub.add_token("user", "read"))).read_text() == "secret"
    monkeypatch.setenv("HF_TOKEN", owner)
    assert resolve_revision(REPO).resolved == hub.commits(REPO)[0]


def test_gated(hub: Hub) -> None:
    owner, stranger = hub.add_user("user"), hub.add_user("stranger")
    hub.add_repo(REPO)
    HfApi(token=owner).update_repo_settings(REPO, gated="auto")
    hub.put_file(REPO, "f", "gated")
    assert HfApi(token=False).model_info(REPO).gated == "auto"
    for token, status in ((False, 401), (stranger, 403)):
        with refused(status, GatedRepoError):
            auth_check(REPO, token=token)
        with refused(status, GatedRepoError):
            hf_hub_download(REPO, "f", token=token)
    hub.repos["model", REPO].granted.add("stranger")
    assert Path(hf_hub_download(REPO, "f", token=stranger)).read_text() == "gated"


def test_tokens(hub: Hub) -> None:
    hub.add_user("user", orgs=["org"])
    reader = HfApi(token=hub.add_token("user", "read"))
    about = reader.whoami()
    assert (about["name"], about["orgs"][0]["name"], about["auth"]["accessToken"]["role"]) == ("user", "org", "read")
    hub.put_file(REPO, "f", "x")
    mine = {"repo_id": REPO, "path_in_repo": "f", "path_or_fileobj": b"mine"}
    for token, status in ((reader.token, 403), (False, 401), ("hf_nobody", 401)):
        with refused(status):
            HfApi(token=token).upload_file(**mine)
    with refused(401):
        HfApi(token="hf_nobody").whoami()


@pytest.mark.parametrize("repo_id", ["user/nowhere", "nowhere"])
def test_nothing_there(hub: Hub, repo_id: str) -> None:
    for look in (resolve_revision, HfApi().model_info, HfApi().list_repo_refs):
        with refused(401, RepositoryNotFoundError):
            look(repo_id)
    with refused(401, RepositoryNotFoundError):
        hf_hub_download(repo_id, "config.json")
    hub.put_file(REPO, "f", "x")
    with refused(404, RemoteEntryNotFoundError):
        hf_hub_download(REPO, "config.json")
    with refused(404, RevisionNotFoundError):
        hf_hub_download(REPO, "f", revision="nowhere")


# What goes wrong


def test_two_refusals_are_waited_out(api: HfApi, hub: Hub, folder: Path) -> None:
    hub.fault("POST .*/preupload/", times=2)
    hub.fault("PUT ", status=429, headers={"Retry-After": "3"})
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert (hub.slept, hub.files(REPO)) == ([1, 2, 4], contents(folder))


def test_refusals_for_good(api: HfApi, hub: Hub, folder: Path) -> None:
    hub.fault("POST .*/preupload/", times=None, body=b"overloaded")
    with refused(503):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert (hub.slept, hub.files(REPO)) == ([1, 2, 4, 8, 8], {})


@pytest.mark.parametrize("cut", [0, 500])
def test_a_connection_that_dies_in_mid_upload_publishes_nothing(api: HfApi, hub: Hub, folder: Path, cut: int) -> None:
    before = hub.commits(REPO)
    fault = hub.fault("PUT /lfs/", times=None, drop=True, cut=cut)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model\.safetensors'"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert (hub.commits(REPO), hub.files(REPO), list(hub.folder.glob("lfs/*"))) == (before, {}, [])
    assert [len(r.body) for r in hub.requests if r.method == "PUT"] == [cut] * 6
    fault.times = 1  # once more, and then the line holds
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.files(REPO) == contents(folder)


@pytest.mark.parametrize("after", [False, True])
def test_a_commit_without_an_answer(api: HfApi, hub: Hub, after: bool) -> None:
    hub.fault("POST .*/commit/main", drop=True, after=after)
    with pytest.raises(httpx2.RemoteProtocolError):
        api.upload_file(repo_id=REPO, path_in_repo="f", path_or_fileobj=b"x")
    assert hub.files(REPO) == ({"f": b"x"} if after else {})


def test_a_download_cut_short_goes_on(hub: Hub) -> None:
    data = bytes(range(256)) * 100
    hub.put_file(REPO, "w.bin", data)
    hub.fault("GET /lfs/", cut=1000)
    assert Path(hf_hub_download(REPO, "w.bin")).read_bytes() == data
    assert sum(call.startswith("GET /lfs/") for call in hub.calls) == 2


def test_a_slow_answer_is_a_true_one(hub: Hub) -> None:
    hub.put_file(REPO, "f", "x")
    hub.fault("HEAD ", status=None, delay=0.01)
    assert Path(hf_hub_download(REPO, "f")).read_text() == "x"


def test_our_own_mistakes_are_kept(hub: Hub) -> None:
    with httpx2.Client() as client:
        assert client.post(f"{hub.url}/api/validate-yaml", json={}).status_code == 500
    assert "KeyError: 'content'" in hub.errors.pop()


def test_storage_refuses_a_token_and_a_bad_signature(hub: Hub) -> None:
    hub.put_file(REPO, "w.bin", b"\0")
    path = f"/lfs/{hashlib.sha256(bytes(1)).hexdigest()}"
    with httpx2.Client() as client:
        assert client.get(hub.sign("GET", path)).content == b"\0"
        assert client.get(hub.sign("GET", path), headers={"Authorization": "Bearer x"}).status_code == 400
        assert client.get(hub.sign("PUT", path)).status_code == 403
        assert client.put(hub.sign("PUT", path), content=b"other").status_code == 400


# Without a network


def test_offline_second_load_asks_nothing(api: HfApi, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = api.upload_folder(repo_id=REPO, folder_path=folder).oid
    snapshot_download(REPO)
    resolve_revision(REPO)
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve_revision(REPO).resolved == commit
    assert Path(hf_hub_download(REPO, "config.json")).read_text() == "{}"
    assert Path(snapshot_download(REPO)).name == commit
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, "other.json")
    with pytest.raises(OfflineModeIsEnabled):
        api.model_info(REPO)
    assert hub.requests == []


def test_a_network_that_is_gone_and_comes_back(hub: Hub) -> None:
    hub.put_file(REPO, "f", "x")
    path = hf_hub_download(REPO, "f")
    with hub.gone():
        assert hf_hub_download(REPO, "f") == path
        with pytest.raises(httpx2.ConnectError):
            HfApi().model_info(REPO)
    assert HfApi().model_info(REPO).sha == hub.commits(REPO)[0]


# The objects, and the fixture


def test_git_agrees(api: HfApi, hub: Hub, folder: Path) -> None:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="Ünïcode", commit_description="two\nlines")
    for path in ("sub/a", "sub.txt", "sub0", "sub/b/c", "ö"):  # git's order of files and folders is its own
        hub.put_file(REPO, path, path)
    api.create_tag(REPO, tag="v1")
    api.upload_file(repo_id=REPO, path_in_repo="f", path_or_fileobj=b"pr", create_pr=True)
    repo = hub.repos["model", REPO].git

    def git(*args: str) -> str:
        command = ["git", "-C", str(repo.folder), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert git("fsck", "--strict", "--full", "--no-dangling") == ""
    assert git("log", "--format=%H", "main").split() == hub.commits(REPO)
    assert git("rev-parse", "v1", "refs/pr/1^").split() == hub.commits(REPO)[:1] * 2
    listed = git("-c", "core.quotePath=false", "ls-tree", "-r", "main").splitlines()
    assert {line.split("\t")[1]: line.split()[2] for line in listed} == repo.files(
        repo.commit(hub.commits(REPO)[0]).tree
    )


def test_every_test_has_an_empty_hub_and_cache(hub: Hub, tmp_path: Path) -> None:
    assert (hub.repos, hub.requests, hub.slept) == ({}, [], [])
    assert Path(huggingface_hub.constants.HF_HUB_CACHE) == tmp_path / "hub-cache"
    assert not (tmp_path / "hub-cache").exists()
    assert huggingface_hub.get_token() is None


def test_tests_without_the_hub_are_offline() -> None:
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info(REPO)


def test_a_process_of_its_own_reaches_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.put_file(REPO, "f", "x")
    code = "import sys, huggingface_hub as h; print(open(h.hf_hub_download(sys.argv[1], 'f')).read())"
    done = job.python("-c", code, REPO, cwd=tmp_path, HF_HUB_OFFLINE="0")
    assert (done.returncode, done.stdout) == (0, "x\n"), done.stderr
