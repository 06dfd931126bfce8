"""The paper study's claims: each paper's, as comparisons written down before any run.

A claim is a line of text and the comparisons that decide it; its word follows mechanically. Controls are what a reader
should ask beyond the paper's own claims: they are judged alike and shown apart, and do not count for the paper's word.
Texts have no digits: every number of a page comes out of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Measure = Literal["test_loss", "test_metric", "train_loss"]
Relation = Literal["better", "not worse"]

LOWER_IS_BETTER: Mapping[Measure, bool] = {"test_loss": True, "test_metric": False, "train_loss": True}

MARGINS: Mapping[Measure, float] = {"test_loss": 0.02, "test_metric": 0.01, "train_loss": 0.02}
"""How much worse "not worse" may be: hundredths of a nat, one point of accuracy."""


@dataclass(frozen=True)
class Comparison:
    """Whether a method is better than another, or not worse, on one task.

    "better": the interval of the paired difference lies on the good side of 0; "not worse": of the margin.
    """

    task: str
    method: str
    against: str
    measure: Measure = "test_loss"
    relation: Relation = "better"


@dataclass(frozen=True)
class Claim:
    """A line of text, without digits, and the comparisons that decide it.

    It holds when all are met, partly when some are, and fails when none is; without any it is untestable here, and
    `why` says the reason in half a sentence.
    """

    text: str
    comparisons: tuple[Comparison, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper's claims, and how they are judged; its name is the method's, the command's argument and the page's."""

    name: str
    title: str
    link: str
    claim: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]  # beside the baselines
    claims: tuple[Claim, ...]
    controls: tuple[Claim, ...] = ()
    notes: str = ""  # the page's first ones, which people may then change


def _against(
    tasks: tuple[str, ...],
    method: str,
    rivals: tuple[str, ...],
    measures: tuple[Measure, ...] = ("test_loss",),
    relation: Relation = "better",
) -> tuple[Comparison, ...]:
    return tuple(
        Comparison(task, method, rival, measure, relation)
        for task in tasks
        for rival in rivals
        for measure in measures
    )


_HELD_OUT: tuple[Measure, ...] = ("test_loss", "test_metric")
_FEEDBACK = "What it sees matters: it beats the open-loop replay of its own mean schedule."
_DECAY = "It beats linear and cosine decay with a tuned learning rate."

_PPO = Paper(
    name="ppo_schedule",
    title="Xu, Dai, Kemp & Metz 2019, Learning an Adaptive Learning Rate Schedule",
    link="https://arxiv.org/abs/1909.09712",
    claim="A controller trained by reinforcement learning beats tuned step decay, and transfers to another data set.",
    tasks=("fashion-papercnn", "mnist-papercnn"),
    methods=("step_decay", "ppo_schedule", "replay:ppo_schedule", "random_walk"),
    claims=(
        Claim(
            "It beats step decay with tuned settings on the data it was trained for.",
            _against(("fashion-papercnn",), "ppo_schedule", ("step_decay",), _HELD_OUT),
        ),
        Claim(
            "Frozen, it beats the step decay of the first data set on another data set.",
            _against(("mnist-papercnn",), "ppo_schedule", ("step_decay",), _HELD_OUT),
        ),
        Claim(
            "The same holds for residual networks and colour pictures.", why="too large for the machine of this page"
        ),
    ),
    controls=(
        Claim(_FEEDBACK, _against(("fashion-papercnn", "mnist-papercnn"), "ppo_schedule", ("replay:ppo_schedule",))),
        Claim(
            "It beats a random walk in its own action space.",
            _against(("fashion-papercnn", "mnist-papercnn"), "ppo_schedule", ("random_walk",)),
        ),
        Claim(_DECAY, _against(("fashion-papercnn",), "ppo_schedule", ("linear", "cosine"))),
    ),
    notes="The controller's validation loss is measured on rows that nothing is trained, tuned or reported on.",
)

_SNET_TASKS = ("fashion-cnn", "fashion-cnn-noisy")
_MLR = Paper(
    name="mlr_snet",
    title="Shu, Zhu, Zhao, Meng & Xu 2020, MLR-SNet: Transferable LR Schedules for Heterogeneous Tasks",
    link="https://arxiv.org/abs/2007.14546",
    claim="A small network, taught during training on clean data, matches or beats hand-made schedules, withstands "
    "wrong labels, and transfers.",
    tasks=(*_SNET_TASKS, "newsgroups-minilm3"),
    methods=("mlr_snet", "mlr_snet_scalar", "mlr_snet_frozen", "replay:mlr_snet"),
    claims=(
        Claim(
            "It is comparable to or better than hand-made schedules.",
            _against(("fashion-cnn",), "mlr_snet", ("constant", "linear", "cosine"), _HELD_OUT, "not worse"),
        ),
        Claim(
            "With wrong training labels and clean meta data it is better than hand-made schedules.",
            _against(("fashion-cnn-noisy",), "mlr_snet", ("constant", "linear", "cosine"), _HELD_OUT),
        ),
        Claim(
            "Frozen, it is comparable to hand-made schedules on another kind of data and model.",
            _against(("newsgroups-minilm3",), "mlr_snet_frozen", ("constant", "linear"), _HELD_OUT, "not worse"),
        ),
    ),
    controls=(
        Claim(
            "The network matters: it beats one learned number in its place.",
            _against(_SNET_TASKS, "mlr_snet", ("mlr_snet_scalar",)),
        ),
        Claim(_FEEDBACK, _against(_SNET_TASKS, "mlr_snet", ("replay:mlr_snet",))),
    ),
    notes="Meta-steps are far more frequent per update than in the paper, whose runs are far longer; their learning "
    "rate is tuned for that.",
)

_AC_TASKS = ("digits-mlp", "fashion-cnn")
_AC = Paper(
    name="actor_critic",
    title="Xu, Qin, Wang & Liu 2017, Reinforcement Learning for Learning Rate Control",
    link="https://arxiv.org/abs/1705.11159",
    claim="An actor and a critic that learn within one training run reach a better test accuracy than tuned SGD.",
    tasks=_AC_TASKS,
    methods=("actor_critic", "actor_critic_same_batch", "replay:actor_critic"),
    claims=(
        Claim(
            "It reaches a better test accuracy than SGD with a tuned learning rate.",
            _against(_AC_TASKS, "actor_critic", ("constant",), ("test_metric",)),
        ),
        Claim(
            "Its training loss falls about as fast.",
            _against(_AC_TASKS, "actor_critic", ("constant",), ("train_loss",), "not worse"),
        ),
        Claim(
            "Teaching the actor on another batch is better than on the same one.",
            _against(_AC_TASKS, "actor_critic", ("actor_critic_same_batch",), ("test_metric",)),
        ),
    ),
    controls=(
        Claim(_FEEDBACK, _against(_AC_TASKS, "actor_critic", ("replay:actor_critic",))),
        Claim(_DECAY, _against(_AC_TASKS, "actor_critic", ("linear", "cosine"))),
    ),
    notes="The paper names no discount factor, batch size for its second data set or rule for the recurrent state; "
    "the controller's page says what was chosen.",
)

_DSA_TASKS, _DSAS = _AC_TASKS, ("dsa", "dsa_scalar", "dsa_tensor", "dsa_rms", "dsa_no_redo")
_DSA = Paper(
    name="dsa",
    title="Chen, Wang & Ba 2022, Differentiable Self-Adaptive Learning Rate",
    link="https://arxiv.org/abs/2210.10290",
    claim="A learning rate of its own for every weight, adapted so that the loss really falls, converges faster and "
    "generalises better than hypergradient descent.",
    tasks=_DSA_TASKS,
    methods=(*_DSAS, "hypergradient", "hypergradient_additive", "hypergradient_per_tensor", "constant_twice_as_long"),
    claims=(
        Claim(
            "The training loss falls faster than with hypergradient descent.",
            _against(_DSA_TASKS, "dsa", ("hypergradient", "hypergradient_additive"), ("train_loss",)),
        ),
        Claim(
            "It generalises better than hypergradient descent.",
            _against(_DSA_TASKS, "dsa", ("hypergradient", "hypergradient_additive"), _HELD_OUT),
        ),
        Claim(
            "It converges faster than a tuned constant learning rate in the same updates.",
            _against(_DSA_TASKS, "dsa", ("constant",), ("train_loss", "test_loss")),
        ),
        Claim("The paper's own equations do this.", why="only the abstract could be had; this is a reconstruction"),
    ),
    controls=(
        Claim("A rate for every weight beats one for all.", _against(_DSA_TASKS, "dsa", ("dsa_scalar",))),
        Claim("Doing the step again with the adapted rate helps.", _against(_DSA_TASKS, "dsa", ("dsa_no_redo",))),
        Claim(
            "At equal cost it beats a constant learning rate, which makes twice as many updates.",
            _against(_DSA_TASKS, "dsa", ("constant_twice_as_long",)),
        ),
        Claim(_DECAY, _against(_DSA_TASKS, "dsa", ("linear", "cosine"))),
    ),
    notes="A reconstruction from the abstract. What is judged here is that reconstruction.",
)

_PLRS_TASKS = ("digits-mlp", "fashion-cnn", "fashion-resnet")
_PLRS = Paper(
    name="plrs",
    title="Devapriya, Tholeti, Suresh & Kalyani 2024, Probabilistic learning rate scheduler with provable convergence",
    link="https://arxiv.org/abs/2407.07613",
    claim="A learning rate drawn uniformly at random at every update does as well as the usual schedules or better.",
    tasks=_PLRS_TASKS,
    methods=("plrs", "plrs_wider", "plrs_widest", "constant_mean", "replay:plrs"),
    claims=(
        Claim(
            "It is as good as or better than a tuned constant rate and cosine decay.",
            _against(_PLRS_TASKS, "plrs", ("constant", "cosine"), _HELD_OUT, "not worse"),
        ),
        Claim("It converges near a local minimum and leaves saddle points.", why="a theorem, which no run can test"),
    ),
    controls=(
        Claim(
            "Randomness helps: it beats the constant rate of the same mean.",
            _against(_PLRS_TASKS, "plrs", ("constant_mean",), _HELD_OUT),
        ),
        Claim(
            "More randomness of the same mean helps more.",
            _against(_PLRS_TASKS, "plrs_wider", ("constant_mean",))
            + _against(_PLRS_TASKS, "plrs_widest", ("plrs_wider",)),
        ),
        Claim(_DECAY, _against(_PLRS_TASKS, "plrs", ("linear", "cosine"))),
    ),
    notes="The base learning rate is the upper end of the interval; the paper's most frequent ratio of the ends is "
    "kept.",
)

PAPERS: Mapping[str, Paper] = {paper.name: paper for paper in (_PPO, _MLR, _AC, _DSA, _PLRS)}
"""Every paper by the name of its method."""
