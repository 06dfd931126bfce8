"""Cards: the README.md of a controller's repository, and what a trained model's own card says about its controller.

A card is a function of the controller, its `training.json` and its `eval_results.json`: every figure on it stands in
one of these files, and the same input gives the same bytes. What comes out of files may be a stranger's: it is checked
for its shape and shown as text, so that no HTML, Markdown or YAML of theirs becomes ours. Only the notes are Markdown,
without HTML; a person writes them between their markers, and they survive the next push.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..observation import Observation
from .serialization import BUNDLED

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from ..controller import Controller

LIBRARY = "hf_adaptive_lr"
TAGS = ("learning-rate-scheduler", "adaptive-lr", LIBRARY)
"""Tags of every controller on the Hub."""
MODEL_TAGS = ("adaptive-lr", LIBRARY)
"""Tags of a model that a controller trained."""
RESULTS_VERSION = 1
"""Version of `eval_results.json`; a newer one is refused."""
NOTES, NOTES_END = "<!-- notes -->", "<!-- /notes -->"
MENTION, MENTION_END = "<!-- hf_adaptive_lr -->", "<!-- /hf_adaptive_lr -->"
PICTURE_NAME = "schedules.png"

WORDS = ("better", "worse", "no difference")
_MOST_RESULTS, _LONGEST = 1000, 300  # entries of a list and characters of a value that a card shows
_HUGE = 1e15  # from here on numbers are shown in short


@dataclass(frozen=True)
class Source:
    """The paper that a controller follows.

    Args:
        arxiv: its number there.
        title: of the paper.
        author: as BibTeX has them.
        year: of publication.
    """

    arxiv: str
    title: str
    author: str
    year: int


SOURCES: Mapping[str, Source] = {
    "cosine": Source(
        "1608.03983",
        "SGDR: Stochastic Gradient Descent with Warm Restarts",
        "Loshchilov, Ilya and Hutter, Frank",
        2017,
    ),
    "linear": Source(
        "2310.07831",
        "Optimal Linear Decay Learning Rate Schedules and Further Refinements",
        "Defazio, Aaron and Cutkosky, Ashok and Mehta, Harsh and Mishchenko, Konstantin",
        2023,
    ),
    "wsd": Source(
        "2404.06395",
        "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies",
        "Hu, Shengding and others",
        2024,
    ),
    "hypergradient": Source(
        "1703.04782",
        "Online Learning Rate Adaptation with Hypergradient Descent",
        "Baydin, Atilim Gunes and Cornish, Robert and Martinez Rubio, David and Schmidt, Mark and Wood, Frank",
        2018,
    ),
    "plrs": Source(
        "2407.07613",
        "Probabilistic learning rate scheduler with provable convergence",
        "Devapriya, Dahlia and Tholeti, Thulasi and Suresh, Janani and Kalyani, Sheetal",
        2024,
    ),
    "mlr_snet": Source(
        "2007.14546",
        "MLR-SNet: Transferable LR Schedules for Heterogeneous Tasks",
        "Shu, Jun and Zhu, Yanwen and Zhao, Qian and Meng, Deyu and Xu, Zongben",
        2020,
    ),
    "actor_critic": Source(
        "1705.11159",
        "Reinforcement Learning for Learning Rate Control",
        "Xu, Chang and Qin, Tao and Wang, Gang and Liu, Tie-Yan",
        2017,
    ),
    "ppo_schedule": Source(
        "1909.09712",
        "Learning an Adaptive Learning Rate Schedule",
        "Xu, Zhen and Dai, Andrew M. and Kemp, Jonas and Metz, Luke",
        2019,
    ),
}
"""The paper of each controller type that has one."""

_COSTS: Mapping[str, str] = {
    "eval_loss": "forward passes over held-out rows of the controller's own, at each evaluation",
    "gain_ratio": "one more forward pass of the same batch, at each decision",
    "loss_after": "one more forward pass of the same batch, at each update it learns from",
    "loss_other": "a forward pass of another batch, at each update it learns from",
    "meta_inner": "a forward and a backward pass of a held-out batch, at each update it learns from",
}
_NO_PASS = "no extra pass"


# --- text of strangers --------------------------------------------------------------------------------------------


def plain(value: object) -> str:
    """A value of somebody's file as one line of text: no control characters, no `<` or `>`, not endless.

    Example:
        >>> plain(" a  <b>")
        'a &lt;b&gt;'
    """
    words = " ".join(str(value).split())
    seen = "".join(c for c in words if c.isprintable())
    cut = seen if len(seen) <= _LONGEST else seen[:_LONGEST] + " ..."
    return cut.replace("<", "&lt;").replace(">", "&gt;")


def text(value: object) -> str:
    """The same, with nothing in it that Markdown would take for more than text."""
    return re.sub(r"([\\`*\[\]|#~$!])", r"\\\1", plain(value))


def code(value: object) -> str:
    """The same as a code span; it cannot be closed from inside."""
    return f"`{plain(value).replace('`', chr(39))}`"


def number(value: float) -> str:
    """A setting: 1,000 or 0.001."""
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < _HUGE else f"{value:g}"


def measured(value: float) -> str:
    """A measured value, four decimals."""
    return f"{value:.4f}" if abs(value) < _HUGE else f"{value:g}"


def signed(value: float) -> str:
    """A measured difference, with its sign."""
    return f"{value:+.4f}" if abs(value) < _HUGE else f"{value:+g}"


def notes_of(card: str) -> str | None:
    """What a person wrote between the notes' markers of a card, without blank lines around; None without markers."""
    _, start, rest = card.partition(NOTES)
    inside, end, _ = rest.partition(NOTES_END)
    return inside.strip() if start and end else None


def license_of(card: str) -> str | None:
    """The licence that a card's front matter states, or None."""
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license: *([\w.+-]{1,50}) *$", head.group(1), re.MULTILINE | re.ASCII) if head else None
    return found.group(1) if found else None


def check_license(stated: str) -> str:
    """A licence as the Hub names it.

    Raises:
        ValueError: it cannot be one.
    """
    if not re.fullmatch(r"[\w.+-]{1,50}", stated, re.ASCII):
        raise ValueError(f"license={stated!r} is no licence that the Hub knows; say 'mit', 'apache-2.0' or 'other'")
    return stated


def _own_license(controller: Controller) -> str | None:
    """This library's licence for its own rules and weights; whoever trains others says under which."""
    ours = not controller.params or Path(controller.provenance.get("folder") or "/").parent == BUNDLED
    return "apache-2.0" if ours else None


def _notes(written: str | None) -> str:
    """Notes without HTML, so also without markers, or links that run; writing them twice changes nothing."""
    seen = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "", written or "")
    seen = re.sub(r"(\][(:]\s*)((?:javascript|vbscript|data)\s*:)", r"\1unsafe:\2", seen, flags=re.IGNORECASE)
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", seen.strip())


# --- eval_results.json --------------------------------------------------------------------------------------------

_NAMES, _COUNTS = ("task", "data", "model", "optimizer"), ("parameters", "updates", "seeds")


def check_results(eval_results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The results in an `eval_results.json`, checked.

    Args:
        eval_results: the parsed file: `format_version`, `command`, `results` and `not_tested`.

    Returns:
        Its results.

    Raises:
        ValueError: a missing key or a value of the wrong type; the message names it.
    """
    _need(isinstance(eval_results, Mapping), "it must be an object")
    version = eval_results.get("format_version")
    _need(isinstance(version, int) and not isinstance(version, bool), "'format_version' must be a whole number")
    _need(version == RESULTS_VERSION, f"format {plain(version)} is not {RESULTS_VERSION}; upgrade hf_adaptive_lr")
    _need(isinstance(eval_results.get("command"), str), "'command' must be text")
    not_tested, results = eval_results.get("not_tested"), eval_results.get("results")
    _need(isinstance(not_tested, list) and all(isinstance(v, str) for v in not_tested), "'not_tested' must be texts")
    _need(isinstance(results, list) and len(results) <= _MOST_RESULTS, "'results' must be a list, not endless")
    found: list[Mapping[str, Any]] = list(results or [])
    for place, result in enumerate(found):
        _check_result(result, f"results[{place}]")
    return found


def _check_result(result: Any, where: str) -> None:
    _need(isinstance(result, Mapping), f"{where} must be an object")
    for name in _NAMES:
        _need(isinstance(result.get(name), str), f"{where}: '{name}' must be text")
    for name in _COUNTS:
        value = result.get(name)
        _need(isinstance(value, int) and _finite(value), f"{where}: '{name}' must be a whole number")
    _need(_finite(result.get("learning_rate")), f"{where}: 'learning_rate' must be a number")
    _need(isinstance(result.get("note", ""), str), f"{where}: 'note' must be text")
    _need(
        isinstance(result.get("failed", 0), int) and _finite(result.get("failed", 0)),
        f"{where}: 'failed' must be a count",
    )
    metrics, against = result.get("metrics"), result.get("against")
    _need(
        isinstance(metrics, Mapping) and isinstance(against, Mapping), f"{where}: 'metrics' and 'against' are missing"
    )
    for name, value in metrics.items():
        _check_numbers(value, ("mean", "half_width"), f"{where}: metrics.{plain(name)}")
    for rival, differences in against.items():
        place = f"{where}: against.{plain(rival)}"
        _need(isinstance(differences, Mapping), f"{place} must be an object")
        for name, value in differences.items():
            _check_numbers(value, ("difference", "half_width"), f"{place}.{plain(name)}")
            _need(value.get("word") in WORDS, f"{place}.{plain(name)}: 'word' must be one of {', '.join(WORDS)}")


def _check_numbers(value: Any, keys: Iterable[str], where: str) -> None:
    _need(isinstance(value, Mapping), f"{where} must be an object")
    for key in keys:
        _need(_finite(value.get(key)), f"{where}: '{key}' must be a finite number")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _need(met: bool, what: str) -> None:
    if not met:
        raise ValueError(f"eval_results.json: {what}")


# --- the card -----------------------------------------------------------------------------------------------------


def render(
    controller: Controller,
    *,
    repo_id: str | None,
    training: Mapping[str, Any] | None,
    eval_results: Mapping[str, Any] | None,
    notes: str | None = None,
    picture: str | None = None,
    license: str | None = None,
) -> str:
    """The card of a controller.

    Args:
        controller: the controller.
        repo_id: what `AutoController.from_pretrained` finds it by; None for "path/to/folder".
        training: its `training.json`, None when there is none.
        eval_results: its `eval_results.json`; without results the card says so in a box.
        notes: what a person wrote, Markdown; HTML in it is shown as text.
        picture: file name of what [`draw_schedules`] drew, None when there is none.
        license: of the weights; by default this library's for what comes with it, and none for others.

    Returns:
        Markdown with front matter, valid for `huggingface_hub.ModelCard`.

    Raises:
        ValueError: `eval_results` is not of its format.

    Example:
        >>> from hf_adaptive_lr import Linear
        >>> "without held-out results" in render(Linear(), repo_id="user/repo", training=None, eval_results=None)
        True
    """
    results = [] if eval_results is None else check_results(eval_results)
    name = plain(repo_id or controller.controller_type)
    license = license or _own_license(controller)
    parts = [
        f"---\n{_front_matter(controller, name, results, license)}\n---\n",
        f"# {text(name)}\n",
        *([] if results else [_NO_RESULTS]),
        "## What it is\n",
        _what(controller),
        *([f"![factor of the base learning rate over a run]({text(picture)})\n"] if picture else []),
        "## How to use it\n",
        _usage(repo_id),
        "## What it was trained on\n",
        _training(controller, training),
        "## Held-out results\n",
        _results(eval_results, results, training),
        "## Where it wins\n",
        _compared(results, "better", "In none of the comparisons that were made."),
        "## Where it loses\n",
        _compared(results, "worse", "In none of the comparisons that were made; many were not."),
        "## Where it makes no difference\n",
        _compared(results, "no difference", "In none of the comparisons that were made."),
        "## Sizes and settings not tested\n",
        _not_tested(eval_results, results),
        "## Cost\n",
        _cost(controller),
        "## Config\n",
        _table(("field", "value"), [(code(k), code(json.dumps(v))) for k, v in controller.config().items()]),
        "## Licence\n",
        f"{'Apache-2.0' if license == 'apache-2.0' else text(license) if license else 'Not stated'}.\n",
        "## Citation\n",
        _citation(controller),
        "## Notes\n",
        f"{NOTES}\n{_notes(notes)}\n{NOTES_END}\n",
    ]
    return "\n".join(parts)


_NO_RESULTS = """\
> [!WARNING]
> **This controller comes without held-out results.** Nobody has measured, on data that it was not trained on, whether
> it is of any use. Compare it with linear decay before you rely on it.
"""


def _front_matter(controller: Controller, name: str, results: Sequence[Mapping[str, Any]], license: str | None) -> str:
    from huggingface_hub import ModelCardData

    source = SOURCES.get(controller.controller_type)
    tags = [*TAGS, plain(controller.controller_type), *([f"arxiv:{source.arxiv}"] if source else [])]
    found = list(_entries(results))
    listed: dict[str, Any] = {"model_name": name, "eval_results": found} if found else {}
    data = ModelCardData(license=license, library_name=LIBRARY, tags=tags, **listed)
    return data.to_yaml()


def _entries(results: Sequence[Mapping[str, Any]]) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    for result in results:
        data = plain(result["data"])
        for metric, value in result["metrics"].items():
            yield EvalResult(
                task_type="learning-rate-scheduling",
                task_name=plain(f"{result['model']}, {result['optimizer']}"),
                dataset_type=re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "unknown",
                dataset_name=data,
                # To the Hub entries of one data set and config are one result.
                dataset_config=plain(result["task"]) or "unknown",
                dataset_split="test",
                metric_type=plain(metric).removeprefix("test_") or "unknown",
                metric_name=plain(metric).replace("_", " "),
                metric_value=value["mean"],
            )


def _what(controller: Controller) -> str:
    first = (inspect.getdoc(type(controller)) or "").partition("\n")[0]
    source = SOURCES.get(controller.controller_type)
    after = f", after [{source.title}](https://arxiv.org/abs/{source.arxiv})" if source else ""
    seen = ", ".join(code(name) for name in sorted(controller.needs)) or "nothing but how far the run is"
    answer = "a factor of the base learning rate" if controller.answers == "factor" else "the learning rate"
    kind = code(controller.controller_type)
    return f"{first}\n\nA controller of type {kind}{after}. It sees {seen}, and answers with {answer}.\n"


def _usage(repo_id: str | None) -> str:
    where = json.dumps(plain(repo_id or "path/to/folder"), ensure_ascii=False).replace("`", "'")
    return (
        f"```python\n"
        f"from hf_adaptive_lr import AdaptiveLRTrainer, AutoController\n\n"
        f"controller = AutoController.from_pretrained({where})\n"
        f"trainer = AdaptiveLRTrainer(model=model, args=args, train_dataset=train, controller=controller)\n"
        f"trainer.train()\n"
        f"```\n"
    )


_FACTS = (
    *("method", "suite", "runs", "seed", "iterations", "inner_steps", "processes", "seconds"),
    *("sources", "learning_rate", "smoothing", "power"),
)
_LESSON = ("task", "updates", "meta_every", "meta_lr", "learning_rate", "seed")


def _training(controller: Controller, training: Mapping[str, Any] | None) -> str:
    if not isinstance(training, Mapping):
        why = "it has weights, but no training.json says where they come from" if controller.params else "it is a rule"
        return f"Not known: {why}.\n" if controller.params else f"Nothing: {why}, without learned weights.\n"
    lesson, versions = (training.get(name) for name in ("lesson", "versions"))
    rows = [(f"lesson: {name}", value) for name, value in _known(lesson, _LESSON)]
    rows += list(_known(training, _FACTS))
    rows += [(f"version of {name}", value) for name, value in _known(versions, ("hf_adaptive_lr", "torch"))]
    table = _table(("what", "value"), [(text(name.replace("_", " ")), _shown(value)) for name, value in rows])
    command = training.get("command")
    return table + (f"\n{_command(command)}" if isinstance(command, str) and command.strip() else "")


def _known(values: object, names: Iterable[str]) -> Iterator[tuple[str, str | float]]:
    """The fields of those names that are text or finite numbers."""
    if isinstance(values, Mapping):
        for name in names:
            value = values.get(name)
            if isinstance(value, str) or (isinstance(value, int | float) and _finite(value)):
                yield name, value


def _shown(value: str | float) -> str:
    return text(value) if isinstance(value, str) else number(value)


def _command(command: str) -> str:
    return f"```bash\n{plain(command).replace('`', chr(39))}\n```\n"


def _results(
    eval_results: Mapping[str, Any] | None,
    results: Sequence[Mapping[str, Any]],
    training: Mapping[str, Any] | None,
) -> str:
    if eval_results is None or not results:
        return "None.\n"
    metrics = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    head = ["task", "data", "model", "parameters", "optimizer", "learning rate", "updates", "seeds"]
    lines = []
    for result in results:
        values = [result["metrics"].get(name) for name in metrics]
        note = f" ({text(result['note'])})" if result.get("note") else ""
        lines.append(
            [
                text(result["task"]) + note,
                *(text(result[name]) for name in ("data", "model")),
                number(result["parameters"]),
                text(result["optimizer"]),
                number(result["learning_rate"]),
                *(number(result[name]) for name in ("updates", "seeds")),
                *("-" if v is None else f"{measured(v['mean'])} ± {measured(v['half_width'])}" for v in values),
            ]
        )
    table = _table([*head, *(text(name.replace("_", " ")) for name in metrics)], lines)
    command = _command(eval_results["command"]) if eval_results["command"].strip() else ""
    lesson = training.get("lesson") if isinstance(training, Mapping) else None
    learned_on = lesson.get("task") if isinstance(lesson, Mapping) else None
    known = any(result["task"] == learned_on for result in results)
    beware = f"The controller learned on the training rows of {text(learned_on)} itself.\n\n" if known else ""
    return f"{_HOW}\n{beware}{table}\n{command}"


_HOW = """\
On rows that nothing was trained or tuned on, read once, after the last update. Differences below are the controller's
minus the other's, paired by seed, each at its own tuned learning rate; ± is half a ninety-five percent interval over
seeds. It wins or loses where the interval lies on one side of zero. Runs that failed are left out of means and
differences; a controller that failed where the other did not loses.
"""


def _compared(results: Sequence[Mapping[str, Any]], word: str, none: str) -> str:
    if not results:
        return "Unknown: there are no held-out results.\n"
    lines = [
        f"- {text(result['task'])}, {text(metric.replace('_', ' '))}, against {text(rival)}: "
        f"{signed(value['difference'])} ± {measured(value['half_width'])}"
        for result in results
        for rival, differences in result["against"].items()
        for metric, value in differences.items()
        if value["word"] == word
    ]
    if word == "worse":
        lines += [
            f"- {text(result['task'])}: {number(result['failed'])} of {number(result['seeds'])} runs failed"
            for result in results
            if result.get("failed")
        ]
    return "\n".join([*(lines or [none]), ""])


def _not_tested(eval_results: Mapping[str, Any] | None, results: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"- {text(what)}" for what in (eval_results or {}).get("not_tested", [])[:_MOST_RESULTS]]
    if results:
        most, longest = (max(result[name] for result in results) for name in ("parameters", "updates"))
        lines.append(
            f"- anything above {number(most)} parameters or {number(longest)} updates, and every model, data set, "
            f"optimizer, batch size and length of run that the table of results does not name"
        )
    else:
        lines.append("- all of them")
    return "\n".join([*lines, ""])


def _cost(controller: Controller) -> str:
    weights = sum(tensor.numel() for tensor in controller.params.values())
    rows = [(code(name), _COSTS.get(name, _NO_PASS)) for name in sorted(controller.needs)]
    head = f"{number(weights)} weights" if weights else "No weights"
    if not rows:
        return f"{head}; it measures nothing, so an update costs what it does without it.\n"
    return f"{head}. What it measures costs, beside the forward and backward pass of the update:\n\n" + _table(
        ("measurement", "cost"), rows
    )


def _citation(controller: Controller) -> str:
    source = SOURCES.get(controller.controller_type)
    if source is None:
        return "There is no paper; name the library, hf_adaptive_lr, and this repository.\n"
    key = f"{source.author.split(',')[0].lower()}{source.year}{controller.controller_type.replace('_', '')}"
    fields = {"title": f"{{{source.title}}}", "author": source.author, "year": source.year}
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    link = f"  eprint = {{{source.arxiv}}},\n  archivePrefix = {{arXiv}}"
    return "\n".join([f"```bibtex\n@misc{{{key},", *lines, link, "}\n```\n"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "None.\n"
    lines = [head, ["---"] * len(head), *rows]
    whole = ([re.sub(r"(?<!\\)\|", r"\|", cell) for cell in line] for line in lines)
    return "\n".join([*(f"| {' | '.join(line)} |" for line in whole), ""])


# --- the picture --------------------------------------------------------------------------------------------------

_UPDATES, _BASE_LR, _LOW, _HIGH = 200, 1e-3, 1e-7, 10.0  # of the simulated run; the bounds are the scheduler's
_CLASSES = 10.0


def draw_schedules(controller: Controller, path: Path, training: Mapping[str, Any] | None = None) -> bool:
    """Draw the controller's factor over a run into a PNG file; the same input gives the same bytes.

    Args:
        controller: the controller.
        path: file to write.
        training: its `training.json`; a recorded `factor_curve` in it is drawn instead of a simulated run.

    Returns:
        Whether there is a picture: not without matplotlib, and not for controllers that see what only a real run has.
    """
    found = schedule(controller, training)
    if found is None:
        return False
    try:
        from matplotlib.figure import Figure  # without pyplot: no global backend, no window
    except ModuleNotFoundError:
        return False
    curve, title = found
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True), color="tab:orange", linewidth=1.5)
    axes.set(xlabel="share of the run", ylabel="factor of the base LR", xlim=(0, 1), ylim=(0, None))
    axes.set_title(f"{controller.controller_type}: {title}", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})
    return True


def schedule(
    controller: Controller, training: Mapping[str, Any] | None = None
) -> tuple[list[tuple[float, float]], str] | None:
    """Points (share of the run, factor of the base LR) and where they come from; None for what needs a real run."""
    recorded = _recorded(training)
    if recorded:
        return recorded, "recorded in its training"
    if not controller.needs <= {"loss", "eval_loss", "classes"}:
        return None
    factors = _simulated(controller)
    if factors is None:
        return None
    where = "simulated, on a loss that falls smoothly" if controller.needs else "simulated"
    return [(update / _UPDATES, factor) for update, factor in enumerate(factors)], where


def _recorded(training: Mapping[str, Any] | None) -> list[tuple[float, float]]:
    points = training.get("factor_curve") if isinstance(training, Mapping) else None
    if not isinstance(points, list) or not 2 <= len(points) <= 10 * _MOST_RESULTS:
        return []
    usable = all(isinstance(p, list) and len(p) == 2 and all(_finite(v) and 0 <= v <= 1e9 for v in p) for p in points)
    return [(float(share), float(factor)) for share, factor in points] if usable else []


def _simulated(controller: Controller) -> list[float] | None:
    base = torch.tensor(_BASE_LR, dtype=torch.float64)
    state, lr, factors = controller.init(seed=0), base, list[float]()
    for update in range(_UPDATES):
        if _due(controller, update):
            level = math.log(_CLASSES) * (0.1 + 0.9 * math.exp(-4 * update / _UPDATES))
            made = {"loss": level, "eval_loss": level, "classes": _CLASSES}
            fields = {name: torch.tensor(made[name], dtype=torch.float64) for name in controller.needs}
            seen = Observation(step=update, total_steps=_UPDATES, lr=lr, base_lr=base, **fields)
            with torch.no_grad():
                answer, state = controller.decide(seen, state)
            value = float(answer.reshape(-1)[0])
            if not math.isfinite(value):
                return None
            lr = (base * value if controller.answers == "factor" else answer.reshape(-1)[0].to(base)).clamp(
                _LOW, _HIGH
            )
        factors.append(float(lr / base))
    return factors


def _due(controller: Controller, update: int) -> bool:
    own = controller.due(update, _UPDATES)
    if own is not None:
        return own
    return controller.decisions is None or update % max(1, _UPDATES // controller.decisions) == 0


# --- the card of a trained model ----------------------------------------------------------------------------------


def mention(card: str, controller: Controller, settings: Mapping[str, Any]) -> str:
    """A trained model's card with a section about the controller that chose its learning rates.

    Args:
        card: the card as it is; a section of an earlier call is replaced.
        controller: who decided; linked when it came from the Hub.
        settings: names and values that were in force beside its config, the base learning rate for instance.
    """
    without = re.sub(
        rf"\n*{re.escape(MENTION)}.*?{re.escape(MENTION_END)}\n*", "\n", card, flags=re.DOTALL
    )  # a card that a person has cut into keeps what it has
    lines = [
        MENTION,
        "## Learning rate",
        "",
        f"Chosen during the training by the controller {_link(controller)}, of the library {LIBRARY}, not by the "
        f"scheduler type among the hyperparameters.",
        "",
        _table(
            ("setting", "value"),
            [(code(name), code(json.dumps(v))) for name, v in {**controller.config(), **settings}.items()],
        ).rstrip("\n"),
        MENTION_END,
    ]
    return without.rstrip("\n") + "\n\n" + "\n".join(lines) + "\n"


def _link(controller: Controller) -> str:
    provenance = controller.provenance
    kind, source = code(controller.controller_type), plain(provenance.get("source", ""))
    commit = provenance.get("commit", "")
    if not (re.fullmatch(r"[0-9a-f]{7,64}", commit) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)):
        return kind
    from huggingface_hub import constants

    return f"{kind} ([{text(source)}]({constants.ENDPOINT}/{source}/tree/{commit}) at commit {code(commit)})"
