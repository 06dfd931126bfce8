"""Cards: the README.md of a controller's repository, and the section about its controller in a trained model's card.

A card is a function of the controller, its `training.json` and its `eval_results.json`: every figure on it stands in
one of these files, and the same input gives the same bytes. Files are untrusted: they are checked for their shape and
shown as text. Only the notes are Markdown, without HTML; a person writes them between their markers, and they survive
the next push. Its outline is `card_template.md`, filled in by `string.Template`: huggingface_hub's
`ModelCard.from_template` wants Jinja, which it does not install.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from . import results as held_out
from .markdown import code, escaped, finite, number, shell, table, text
from .serialization import BUNDLED

if TYPE_CHECKING:
    from ..controller import Controller

LIBRARY = "hf_adaptive_lr"
TAGS = ("learning-rate-scheduler", "adaptive-lr", LIBRARY)
"""Tags of every controller on the Hub."""
MODEL_TAGS = ("adaptive-lr", LIBRARY)
"""Tags of a model that a controller trained."""
NOTES, NOTES_END = "<!-- notes -->", "<!-- /notes -->"
MENTION, MENTION_END = "<!-- hf_adaptive_lr -->", "<!-- /hf_adaptive_lr -->"

_TEMPLATE = Path(__file__).with_name("card_template.md")
_COSTS: Mapping[str, str] = {
    "eval_loss": "forward passes over held-out rows of the controller's own, at each evaluation",
    "gain_ratio": "one more forward pass of the same batch, at each decision",
    "kl": "one more forward pass of the last micro-batch, at each decision",
    "loss_after": "one more forward pass of the same batch, at each update it learns from",
    "loss_other": "a forward pass of another batch, at each update it learns from",
    "meta_inner": "a forward and a backward pass of a held-out batch, at each update it learns from",
}
_NO_PASS = "no extra pass"


# --- notes and licence ---------------------------------------------------------------------------------------------


def notes_of(card: str) -> str | None:
    """Text between the notes' markers of a card, without blank lines around; None without markers."""
    _, start, rest = card.partition(NOTES)
    inside, end, _ = rest.partition(NOTES_END)
    return inside.strip() if start and end else None


def license_of(card: str) -> str | None:
    """The licence that a card's front matter states, or None."""
    head = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license: *([\w.+-]{1,50}) *$", head.group(1), re.MULTILINE | re.ASCII) if head else None
    return found.group(1) if found else None


def check_license(stated: str) -> str:
    """A licence as the Hub names it; ValueError where it cannot be one."""
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
    """The card of a controller: Markdown with front matter, valid for `huggingface_hub.ModelCard`.

    `repo_id` is its name for `AutoController.from_pretrained`, None for "path/to/folder". Without `eval_results`
    (ValueError for another format) the card says so in a box. HTML in a person's `notes` is shown as text. `picture`
    is the file name of the one by [`draw_schedules`]. The license of the weights is by default this library's for what
    comes with it, and none for others.
    """
    results = [] if eval_results is None else held_out.check_results(eval_results)
    name, license = escaped(repo_id or controller.controller_type), license or _own_license(controller)
    nowhere = "In none of the comparisons that were made"
    filled = {
        "front_matter": _front_matter(controller, name, results, license),
        "name": text(name),
        "warning": "" if results else _NO_RESULTS,
        "what": _what(controller),
        "picture": f"![factor of the base learning rate over a run]({text(picture)})\n\n" if picture else "",
        "where": json.dumps(escaped(repo_id or "path/to/folder"), ensure_ascii=False).replace("`", "'"),
        "training": _training(controller, training),
        "results": held_out.section(eval_results, results, training),
        "wins": held_out.compared(results, "better", f"{nowhere}."),
        "losses": held_out.compared(results, "worse", f"{nowhere}; many were not."),
        "ties": held_out.compared(results, "no difference", f"{nowhere}."),
        "not_tested": held_out.not_tested(eval_results, results),
        "cost": _cost(controller),
        "config": table(("field", "value"), [(code(k), code(json.dumps(v))) for k, v in controller.config().items()]),
        "license": "Apache-2.0" if license == "apache-2.0" else text(license) if license else "Not stated",
        "citation": _citation(controller),
        "notes": f"{NOTES}\n{_notes(notes)}\n{NOTES_END}",
    }
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(filled)


_NO_RESULTS = """\
> [!WARNING]
> **This controller comes without held-out results.** Nobody has measured, on data that it was not trained on, whether
> it is of any use. Compare it with linear decay before you rely on it.

"""


def _front_matter(controller: Controller, name: str, results: Sequence[Mapping[str, Any]], license: str | None) -> str:
    from huggingface_hub import ModelCardData

    paper = controller.citation
    tags = [*TAGS, escaped(controller.controller_type), *([f"arxiv:{paper.arxiv}"] if paper else [])]
    found = list(held_out.entries(results))
    listed: dict[str, Any] = {"model_name": name, "eval_results": found} if found else {}
    data = ModelCardData(license=license, library_name=LIBRARY, tags=tags, **listed)
    return data.to_yaml()


def _what(controller: Controller) -> str:
    first = (inspect.getdoc(type(controller)) or "").partition("\n")[0]
    paper = controller.citation
    after = f", after [{paper.title}](https://arxiv.org/abs/{paper.arxiv})" if paper else ""
    seen = ", ".join(code(name) for name in sorted(controller.needs)) or "nothing but how far the run is"
    answer = "a factor of the base learning rate" if controller.answers == "factor" else "the learning rate"
    kind = code(controller.controller_type)
    return f"{first}\n\nA controller of type {kind}{after}. It sees {seen}, and answers with {answer}."


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
    facts = table(("what", "value"), [(text(name.replace("_", " ")), _shown(value)) for name, value in rows])
    command = training.get("command")
    return facts + (f"\n{shell(command)}" if isinstance(command, str) and command.strip() else "")


def _known(values: object, names: Iterable[str]) -> Iterator[tuple[str, str | float]]:
    """The fields of those names that are text or finite numbers."""
    if isinstance(values, Mapping):
        for name in names:
            value = values.get(name)
            if isinstance(value, str) or (isinstance(value, int | float) and finite(value)):
                yield name, value


def _shown(value: str | float) -> str:
    return text(value) if isinstance(value, str) else number(value)


def _cost(controller: Controller) -> str:
    weights = sum(tensor.numel() for tensor in controller.params.values())
    rows = [(code(name), _COSTS.get(name, _NO_PASS)) for name in sorted(controller.needs)]
    head = f"{number(weights)} weights" if weights else "No weights"
    if not rows:
        return f"{head}; it measures nothing, so an update costs what it does without it.\n"
    return f"{head}. What it measures costs, beside the forward and backward pass of the update:\n\n" + table(
        ("measurement", "cost"), rows
    )


def _citation(controller: Controller) -> str:
    paper = controller.citation
    if paper is None:
        return "There is no paper; name the library, hf_adaptive_lr, and this repository."
    key = f"{paper.author.split(',')[0].lower()}{paper.year}{controller.controller_type.replace('_', '')}"
    return f"```bibtex\n{paper.bibtex(key)}\n```"


# --- the card of a trained model ----------------------------------------------------------------------------------


def mention(card: str, controller: Controller, settings: Mapping[str, Any]) -> str:
    """A trained model's card with a section about the controller that chose its learning rates.

    A section of an earlier call is replaced; a controller from the Hub is linked. `settings` are names and values that
    were in force beside its config, the base learning rate for instance.
    """
    without = re.sub(
        rf"\n*{re.escape(MENTION)}.*?{re.escape(MENTION_END)}\n*", "\n", card, flags=re.DOTALL
    )  # without both markers nothing is removed
    lines = [
        MENTION,
        "## Learning rate",
        "",
        f"Chosen during the training by the controller {_link(controller)}, of the library {LIBRARY}, not by the "
        f"scheduler type among the hyperparameters.",
        "",
        table(
            ("setting", "value"),
            [(code(name), code(json.dumps(v))) for name, v in {**controller.config(), **settings}.items()],
        ).rstrip("\n"),
        MENTION_END,
    ]
    return without.rstrip("\n") + "\n\n" + "\n".join(lines) + "\n"


def _link(controller: Controller) -> str:
    provenance = controller.provenance
    kind, source = code(controller.controller_type), escaped(provenance.get("source", ""))
    commit = provenance.get("commit", "")
    if not (re.fullmatch(r"[0-9a-f]{7,64}", commit) and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)):
        return kind
    from huggingface_hub import constants

    return f"{kind} ([{text(source)}]({constants.ENDPOINT}/{source}/tree/{commit}) at commit {code(commit)})"
