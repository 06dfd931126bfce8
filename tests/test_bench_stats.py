"""The studies' statistics: known values, honest intervals, nothing found where there is nothing."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy import stats as scipy_stats

from hf_adaptive_lr.bench.stats import (
    SWAPS,
    Estimate,
    corrected,
    holm,
    judge,
    mean_interval,
    paired_difference,
    swap_test,
    task_difference,
    task_interval,
)

NAN = math.nan
# Three tasks of five seeds, with ties.
A = np.array([[0.31, 0.85, 0.47, 1.20, 0.66], [0.92, 0.15, 0.78, 0.55, 0.33], [1.10, 0.64, 0.29, 0.81, 0.97]])
B = np.array([[0.28, 0.91, 0.47, 0.75, 0.59], [0.88, 0.25, 0.70, 0.55, 0.13], [0.95, 0.64, 0.49, 0.77, 1.05]])


def made(rng: np.random.Generator, tasks: int = 12, seeds: int = 3, methods: int = 4) -> dict[str, np.ndarray]:
    """Log losses of methods that do not differ, but share what is hard about a task and lucky about a seed."""
    shared = rng.normal(size=(tasks, 1)) + 0.05 * rng.normal(size=(tasks, seeds))
    own = 0.03 * rng.normal(size=(methods, tasks, 1)) + 0.05 * rng.normal(size=(methods, tasks, seeds))
    return {f"m{i}": shared + own[i] for i in range(methods)}


def compared(scores: dict[str, np.ndarray]):
    """All methods against the first, as in the primary endpoint; p-values do not need the intervals."""
    base, *others = scores
    return corrected({name: task_difference(scores[name], scores[base], reps=10) for name in others})


def test_t_intervals_are_those_of_scipy_and_of_the_tables() -> None:
    # Mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776445.
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = mean_interval(values)
    assert (found.value, found.n) == (3.0, 5)
    assert found.half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    known = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    # Differences 1, 2, 3 at seeds 0, 1, 2: the other seeds have no partner. t(0.975, 2) = 4.302653.
    paired = paired_difference({0: 2.0, 1: 4.0, 2: 6.0, 7: 99.0}, {0: 1.0, 1: 2.0, 2: 3.0, 8: -99.0})
    assert (paired.value, paired.n) == (2.0, 3)
    assert paired.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(mean_interval([1.0]).half)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({0: 1.0}, {1: 1.0})


@pytest.mark.parametrize(
    ("mean", "half", "lower", "word"),
    [
        (-0.3, 0.2, True, "better"),
        (-0.3, 0.2, False, "worse"),
        (0.3, 0.2, False, "better"),
        (0.1, 0.2, False, "no difference"),
        (-0.1, 0.2, True, "no difference"),
        (1.0, NAN, True, "no difference"),
    ],
)
def test_what_a_difference_says(mean, half, lower, word) -> None:
    assert judge(Estimate(mean, mean - half, mean + half, 5), lower_is_better=lower) == word


def test_the_bootstrap_is_that_of_rliable_but_for_its_expanded_ends() -> None:
    # rliable 1.2.0 with task_bootstrap=True and 20,000 draws; three tasks make the expanded interval much wider.
    found = task_interval(A, reps=20_000)
    assert found.value == A.mean() and found.low < 0.4900 and found.high > 0.8440
    # Its tail for three tasks is Phi(-sqrt(3 / 2) t(.975, 2)): the lowest draws, near the lowest seed of all tasks.
    draws = task_interval(A, reps=20_000, confidence=1 - 2 * _plain_tail(0.025, 3))
    assert (draws.low, draws.high) == pytest.approx((0.4900, 0.8440), abs=0.006)
    assert task_interval(A, seed=3) == task_interval(A, seed=3) != task_interval(A, seed=4)


def _plain_tail(tail: float, tasks: int) -> float:
    """The tail whose expansion is the given one."""
    return float(scipy_stats.t.cdf(scipy_stats.norm.ppf(tail) / math.sqrt(tasks / (tasks - 1)), tasks - 1))


def test_intervals_cover_tasks_that_were_not_seen() -> None:
    def covers(i: int) -> bool:
        rng = np.random.default_rng([7, i])
        found = task_interval(rng.normal(size=(12, 1)) + 0.3 * rng.normal(size=(12, 3)), reps=400, seed=i)
        return found.low <= 0 <= found.high

    share = float(np.mean([covers(i) for i in range(300)]))
    assert 0.92 < share < 0.99  # a band of 300 trials is 3 standard errors, 3.8 points


SIZES = (4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)
ORIGINS = [f"o{number}" for number, size in enumerate(SIZES) for _ in range(size)]


def clustered(rng: np.random.Generator) -> np.ndarray:
    """Scores of tasks of 12 origins that differ by origin, a little by task and by seed; their mean is 0."""
    shared = np.repeat(rng.normal(size=len(SIZES)), SIZES)[:, None]
    return shared + 0.3 * rng.normal(size=(len(ORIGINS), 1)) + 0.3 * rng.normal(size=(len(ORIGINS), 3))


def test_tasks_of_one_origin_are_no_draws_of_their_own() -> None:
    every = [clustered(np.random.default_rng([9, i])) for i in range(150)]
    found = {kind: [task_interval(s, kind, reps=400) for s in every] for kind in (None, tuple(ORIGINS))}
    single, grouped = (np.mean([f.low <= 0 <= f.high for f in intervals]) for intervals in found.values())
    assert single < 0.89 < 0.91 < grouped < 0.99
    false = {kind: np.mean([swap_test(s.mean(1), kind)[0] <= 0.05 for s in every]) for kind in found}
    assert false[None] > 0.09 > false[tuple(ORIGINS)] > 0.01


def test_origins_only_group_and_the_mean_stays_that_over_tasks() -> None:
    scores = clustered(np.random.default_rng(0))
    where = np.random.default_rng(1).permutation(len(scores))
    assert task_interval(scores) == task_interval(scores, [f"{number:02}" for number in range(len(scores))])
    found = task_interval(scores, ORIGINS)
    assert found.value == scores.mean() and found.n == len(ORIGINS)
    shuffled = task_difference(scores[where], 0 * scores, [ORIGINS[i] for i in where])
    assert shuffled.value == pytest.approx(found.value) and shuffled.least_p == 2 / 2**12
    assert shuffled.p == task_difference(scores, 0 * scores, ORIGINS).p
    # By hand: sums 3, 1 and -1 of three origins; of the four ways three are as far from 0 as 3.
    assert swap_test([1.0, 2.0, 1.0, -1.0], ["a", "a", "b", "c"]) == (0.75, 0.25)
    with pytest.raises(ValueError, match="4 tasks have one origin each, not 2"):
        swap_test([1.0] * 4, ["a", "b"])


def test_one_task_or_origin_has_a_mean_and_no_interval() -> None:
    assert math.isnan(task_interval(A, ["a"] * 3).low) and swap_test([1.0, 2.0], ["a", "a"]) == (1.0, 1.0)
    found = task_interval([[1.0, 2.0]])
    assert found.value == 1.5 and math.isnan(found.low) and found.signed() == "+1.500"
    assert Estimate(0.1234, -0.1, 0.2, 4).signed(2) == "+0.12 [-0.10, +0.20]"


def test_swaps_by_hand() -> None:
    # Differences 1, 2 and 4: of the eight ways, only none and all are as far from 0. With -1 there are two more.
    assert swap_test([1.0, 2.0, 4.0]) == (0.25, 0.25)
    assert swap_test([-1.0, 2.0, 4.0]) == (0.5, 0.25)
    assert swap_test([0.0, 0.0, 0.0]) == (1.0, 0.25)
    with pytest.raises(ValueError, match="one finite difference"):
        swap_test([[1.0]])


@pytest.mark.parametrize("tasks", [2, 3, 6, 10])
def test_swaps_are_those_of_scipy(tasks) -> None:
    gaps = np.random.default_rng(tasks).normal(0.5, 1, size=tasks).round(1)  # rounded: ties
    known = scipy_stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=math.inf)
    assert swap_test(gaps) == pytest.approx((known.pvalue, 2 / 2**tasks))


def test_of_many_tasks_swaps_are_drawn() -> None:
    p, least = swap_test(np.ones(30))  # the data's own way counts, so that no p-value is 0
    assert p == least == 1 / (1 + SWAPS)
    gaps = np.random.default_rng(0).normal(0.3, 1, size=16)
    exact = np.abs(((1 - 2 * (np.arange(2**16)[:, None] >> np.arange(16) & 1)) * gaps).mean(1)) >= abs(gaps.mean())
    assert swap_test(gaps)[0] == pytest.approx(exact.mean(), abs=0.015)
    assert swap_test(gaps) == swap_test(gaps) != swap_test(gaps, seed=1)


def test_a_difference_is_of_pairs() -> None:
    b = np.random.default_rng(0).normal(size=(8, 5)) * 100  # would drown the difference
    found = task_difference(b + 1, b)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-9)
    assert found.p == found.p_adjusted == found.least_p == 2 / 2**8
    assert found.found() and not found.found(level=0.001)
    there, back = task_difference(A, B), task_difference(B, A)
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
    assert back.p == there.p


def test_holm_is_that_of_the_books() -> None:
    # R's p.adjust and statsmodels 0.15.0 (multipletests, method "holm").
    p_values = dict(zip("abcdef", [0.01, 0.04, 0.03, 0.005, 0.2, 0.03], strict=True))
    assert holm(p_values) == pytest.approx({"a": 0.05, "b": 0.12, "c": 0.12, "d": 0.03, "e": 0.2, "f": 0.12})
    assert list(holm(p_values)) == list("abcdef")
    assert holm({}) == {} and holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    for wrong in (NAN, -0.1, 1.1):
        with pytest.raises(ValueError, match="a: a p-value"):
            holm({"a": wrong})


def test_two_copies_of_one_method_are_found_in_at_most_one_table_of_twenty() -> None:
    tables = [compared(made(np.random.default_rng([1, i]))) for i in range(200)]
    times = sum(any(difference.found() for difference in table.values()) for table in tables)
    band = scipy_stats.binomtest(times, 200).proportion_ci(method="exact")
    assert band.low <= 0.05 and times / 200 < 0.085  # at least 95 % find nothing, within what 200 tables can tell


@pytest.mark.parametrize("by", [1.10, 1 / 1.10])
def test_what_was_made_ten_percent_worse_or_better_is_found(by) -> None:
    found = 0
    for i in range(50):
        scores = made(np.random.default_rng([2, i]))
        scores["m2"] = scores["m2"] + math.log(by)
        difference = compared(scores)["m2"]
        found += difference.found() and (difference.value > 0) == (by > 1)
    assert found >= 45


def test_too_few_tasks_can_be_seen_before_anything_is_run() -> None:
    scores = made(np.random.default_rng(0), tasks=5, methods=3)
    scores["m1"] = scores["m1"] + 9.0
    found = compared(scores)["m1"]
    assert not found.found() and found.least_p * 2 > 0.05


@pytest.mark.parametrize("function", [task_interval, lambda scores: task_difference(scores, scores)])
def test_scores_that_are_none_are_refused(function) -> None:
    for wrong in ([], [1.0, 2.0], [[]], [A, A]):
        with pytest.raises(ValueError, match="shape"):
            function(wrong)
    for wrong in ([[NAN]], [[math.inf, 1.0]]):
        with pytest.raises(ValueError, match="what a failed run counts as"):
            function(wrong)


def test_other_arguments_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        task_difference(A, B[:, 1:])
    for options in ({"confidence": 0}, {"confidence": 1}, {"reps": 0}):
        with pytest.raises(ValueError, match="must lie between"):
            task_interval(A, **options)


def test_without_scipy_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_adaptive_lr\[bench\]'"):
        mean_interval([1.0, 2.0])
