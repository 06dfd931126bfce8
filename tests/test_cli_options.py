"""What every verb has: help with an example, options from a file, JSON, and one clear line for whatever is wrong."""

from __future__ import annotations

import argparse
import json

import pytest
import yaml

import hf_adaptive_lr
from hf_adaptive_lr import cli
from hf_adaptive_lr.cli import config_file, main
from tests.job import python

VERBS = [verb.__name__.rpartition(".")[2] for verb in cli.VERBS]


def call(*words: object) -> int:
    """The exit code, also where argparse leaves by an exception."""
    try:
        return main([str(word) for word in words])
    except SystemExit as left:
        return int(left.code or 0)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    for verb in cli.VERBS:
        verb.add_parser(verbs)
    return parser, dict(verbs.choices)


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_the_common_options(verb, capsys) -> None:
    assert call(verb, "--help") == 0
    said = capsys.readouterr().out
    assert "examples:" in said and f"hf-adaptive-lr {verb}" in said.partition("examples:")[2]
    for option in ("--json", "--config FILE"):
        assert option in said


# --- what is wrong ends as one line and exit code 2 ---

BAD = [
    ("finetun", "did you mean finetune?"),
    ("--nonsense", "the following arguments are required: VERB"),
    ("finetune --learing-rate 3", "unrecognized arguments: --learing-rate 3; did you mean --learning-rate?"),
    ("finetune --learning-rat 3", "unrecognized arguments: --learning-rat 3; did you mean --learning-rate?"),
    ("finetune --task txt", "task 'txt' must be one of: text, image"),
    ("finetune --delimiter ;", "the demo's data have their own"),
    ("finetune --problem-type classes", "problem_type 'classes' must be one of: single_label_classification, "),
    ("finetune --skip-unreadable", "skip_unreadable is for --task image"),
    ("finetune --task image --text-pair-column b", "text_pair_column is for --task text"),
    ("finetune --controller-kwargs [1]", "controller_kwargs='[1]' is not a JSON object"),
    ("finetune --controller absent.py:Mine:saved", "no file 'absent.py' for the controller"),
    ("finetune --controller linar", "did you mean linear?"),
    ("finetune --learning-rate fast", "invalid learning rate value: 'fast'"),
    ("finetune --learning-rate=-1", "learning_rate"),
    ("finetune --data absent.csv", "absent.csv"),
    ("finetune --max-steps 0", "max_steps"),
    ("finetune --output-dir absent --resume", "absent"),
    ("report absent", "'absent': no such folder"),
    ("report", "the following arguments are required: RUN_DIR"),
    ("refine absent --output-dir out", "'absent' is no folder"),
    ("refine absent", "the following arguments are required: --output-dir"),
    ("train", "the following arguments are required: METHOD, --output-dir"),
    ("train ppoo --output-dir out", "did you mean ppo?"),
    ("train ppo --suite quadratik --minutes 1 --output-dir out", "did you mean quadratic?"),
    ("train ppo --output-dir out", "minutes"),
    ("train ppo --minutes 0 --output-dir out", "minutes"),
    ("train ppo --iterations 1 --runs 1 --output-dir out", "runs=1 must be at least 2"),
    ("finetune --task image --lr 3", "did you mean --learning-rate? (see hf-adaptive-lr finetune --help)"),
    ("train ppo --suite fashion --iterations 1 --output-dir out", "for schedule_ppo; ppo wants many small runs"),
    ("push ppo_schedule user/name --license no,such", "no licence that the Hub knows"),
    ("train ppo --iterations 1 --preset paper --output-dir out", "--preset is for schedule_ppo, not for ppo"),
    ("train universal --iterations 1 --controller-kwargs {} --resume --output-dir out", "out"),
    ("train universal --iterations 1 --controller-kwargs nonsense --output-dir out", "is not valid JSON"),
    ("bench --methods cosin", "no method 'cosin'; did you mean cosine?"),
    ("bench --tasks nothing-like-it", "no task 'nothing-like-it' in this profile; known: "),
    ("bench --jobs 0", "--jobs 0: at least 1"),
    ("bench --quick --full", "not allowed with argument --quick"),
    ("bench --controller absent/", "absent"),
    ("list --limit 3", "--limit is for --hub"),
    ("list --hub --limit 0", "--limit 0: at least 1"),
    ("list all", "unrecognized arguments: all"),
    ("card absent", "no controller 'absent'"),
    ("card universl", "did you mean universal"),
    ("push absent user/name", "no controller 'absent'"),
    ("push linear user/name", "no held-out results of this Linear: run `hf-adaptive-lr bench"),
    ("push linear nobody --without-results", "'nobody' is not a repository of the Hub; write 'user/name'"),
    ("push", "the following arguments are required: CONTROLLER, REPO_ID"),
    ("pull nothing-here", "'nothing-here' is not a repository of the Hub; write 'user/name'"),
    ("pull", "the following arguments are required: REPO_ID"),
    ("list --config absent.yaml", "'absent.yaml' cannot be read: No such file"),
]


@pytest.mark.parametrize("words, said", BAD, ids=[words for words, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(words, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("hf-adaptive-lr: error: ") and printed.err.count("\n") == 1, printed.err
    assert said in printed.err
    assert list(tmp_path.rglob("*.json")) == [] and not (tmp_path / "out" / "rows").exists()


def test_every_verb_has_bad_inputs_above() -> None:
    assert {words.split()[0] for words, _ in BAD} >= set(VERBS)


def test_both_ways_to_call_it_say_their_version(tmp_path) -> None:
    for module in ("hf_adaptive_lr", "hf_adaptive_lr.cli"):
        done = python("-m", module, "--version", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"hf-adaptive-lr {hf_adaptive_lr.__version__}\n"), done.stderr


def test_the_hub_that_cannot_be_reached_is_said_at_once(monkeypatch, capsys) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"a retry after {seconds} s"))
    assert call("list", "--hub") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("no connection to" in error or "HF_HUB_OFFLINE" in error)


# --- options in a file ---


def test_a_file_says_what_would_be_typed_and_the_command_line_wins(tmp_path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("task: image\nlearning-rate: 1e-4\noverwrite: true\nresume: false\n")
    _, verbs = _parser()
    for verb in verbs.values():
        config_file.add_option(verb)
    words = config_file.expand(["finetune", "--config", str(file), "--task", "text"], verbs)
    args = verbs["finetune"].parse_args(words[1:])
    assert args.task == "text" and args.learning_rate == 1e-4 and args.overwrite is True
    assert not hasattr(args, "resume")


def test_lists_and_repeated_options(tmp_path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("tasks: [mlp-1, mlp-2]\ncontroller:\n- a/b\n- c/d\njobs: 2\nfull: true\n")
    _, verbs = _parser()
    words = config_file.expand(["bench", f"--config={file}"], verbs)
    args = verbs["bench"].parse_args([word for word in words[1:] if not word.startswith("--config")])
    assert args.tasks == ["mlp-1", "mlp-2"] and args.controller == ["a/b", "c/d"] and args.jobs == 2 and args.full


@pytest.mark.parametrize(
    "text, said",
    [
        ("learing-rate: 3", "'finetune' has no option 'learing-rate'; did you mean learning-rate?"),
        ("[1, 2]", "must be a mapping of options to values"),
        ("a: [", "is not YAML"),
        ("overwrite: maybe", "--overwrite is true or false, not 'maybe'"),
        ("task: [text, image]", "--task takes one value, not 2"),
        ("task: {a: b}", "--task takes words, not {'a': 'b'}; quote what is JSON"),
        ("config: other.yaml", "has no option 'config'"),
        ("task: txt", "task 'txt' must be one of: text, image"),
    ],
)
def test_a_file_that_cannot_be_used(text, said, tmp_path, capsys) -> None:
    (tmp_path / "options.yaml").write_text(text)
    assert call("finetune", "--config", tmp_path / "options.yaml") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_all_kinds_of_options_survive_the_file(tmp_path) -> None:
    _, verbs = _parser()
    given = ["--full", "--tasks", "mlp-1", "mlp-2", "--controller", "a/b", "--jobs", "2", "--output-dir", "x y"]
    options = {"full": True, "tasks": ["mlp-1", "mlp-2"], "controller": ["a/b"], "jobs": 2, "output-dir": "x y"}
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump(options))
    words = config_file.expand(["bench", "--config", str(file)], verbs)
    assert vars(verbs["bench"].parse_args(words[1:-2])) == vars(verbs["bench"].parse_args(given))


@pytest.mark.parametrize("verb", ["card", "report"])
def test_a_file_of_somebody_else_stays(verb, tmp_path, capsys) -> None:
    file = tmp_path / "mine"
    file.write_text("three years of work")
    run = tmp_path / "run"
    run.mkdir()
    (run / "lr_trace.jsonl").write_text(json.dumps({"step": 0, "kind": "decision", "lr": 0.1}) + "\n")
    words = {"card": ["card", "plateau", "--output"], "report": ["report", run, "--output"]}
    assert call(*words[verb], file) == 2
    error = capsys.readouterr().err
    said = {"card": "was not written by this command", "report": "is there and is no report"}
    assert said[verb] in error and error.count("\n") == 1
    assert file.read_text() == "three years of work"
    file.unlink()
    assert call(*words[verb], file) == 0 == call(*words[verb], file)  # its own it replaces


# --- JSON ---


def test_report_in_json(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": i, "lr": 0.1, "reason": "decision"} for i in range(3)]
    (run / "lr_trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("report", run, "--output", tmp_path / "page.html", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == (tmp_path / "page.html").stat().st_size and said["runs"] == [str(run)]


def test_train_in_json(tmp_path, capsys) -> None:
    words = ["train", "ppo", "--suite", "quadratic", "--iterations", 1, "--runs", 4, "--hidden-size", 4, "--json"]
    assert call(*words, "--output-dir", tmp_path / "out") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["iterations"] == 1 and said["controller_type"] == "gru" and said["weights"] > 0
    assert len(said["return"]) == 2


def test_bench_in_json(tmp_path, capsys) -> None:
    assert call("bench", "--render-only", "--json", "--output-dir", tmp_path / "bench") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["profile"] == "quick" and said["page"] == str(tmp_path / "bench" / "BENCHMARK.md")
