"""The benchmark's statistics: known values, honest intervals, nothing found where there is nothing."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_adaptive_lr.bench.stat_compare import (
    Estimate,
    ends,
    hierarchical_bootstrap,
    holm,
    paired_difference,
    probability_of_improvement,
    resampled,
    swap_test,
)
from hf_adaptive_lr.bench.stat_runs import (
    WORST,
    failure_rate,
    harm_rate,
    iqm,
    log_regret,
    lr_sensitivity,
    matrix,
    mean,
)
from hf_adaptive_lr.bench.yardstick_scores import first_below
from tests.statistics_checks import aa_test, compare, power_test, rate

INF, NAN = math.inf, math.nan

# Three tasks of five seeds, with ties. What `rliable` says of them is of rliable 1.2.0 (arch 7.2.0, scipy 1.17.1); it
# takes them transposed.
A = np.array([[0.31, 0.85, 0.47, 1.20, 0.66], [0.92, 0.15, 0.78, 0.55, 0.33], [1.10, 0.64, 0.29, 0.81, 0.97]])
B = np.array([[0.28, 0.91, 0.47, 0.75, 0.59], [0.88, 0.25, 0.70, 0.55, 0.13], [0.95, 0.64, 0.49, 0.77, 1.05]])


def noise(tasks: int, seeds: int, methods: int = 2, between: float = 0.03, within: float = 0.05):
    """Losses of methods that do not differ, but share what is hard about a task and lucky about a seed."""

    def generate(rng: np.random.Generator) -> dict[str, np.ndarray]:
        shared = rng.normal(size=(tasks, 1)) + 0.05 * rng.normal(size=(tasks, seeds))
        return {
            f"m{i}": np.exp(shared + between * rng.normal(size=(tasks, 1)) + within * rng.normal(size=(tasks, seeds)))
            for i in range(methods)
        }

    return generate


def coverage(interval, scores, trials: int = 300) -> float:
    """Share of the trials in which the interval of scores around 0 holds 0."""
    found = [interval(scores(np.random.default_rng([7, i])), seed=i) for i in range(trials)]
    return float(np.mean([e.low <= 0 <= e.high for e in found]))


def stratified_bootstrap(scores, statistic=iqm, *, reps: int = 2000, seed: int = 0, confidence: float = 0.95):
    """The seeds of each task drawn anew, as `rliable` does it: a claim about these tasks."""
    array = matrix(scores)
    draws = statistic(array[resampled(array.shape, reps=reps, seed=seed, new_tasks=False)])
    return Estimate(float(statistic(array)), *map(float, ends(draws, confidence)))


# --- aggregates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "known"),
    [
        (A, [0.6686666666666667, 0.6677777777777778]),
        (B, [0.6273333333333333, 0.6488888888888888]),
    ],
)
def test_aggregates_are_those_of_rliable(scores, known) -> None:
    assert [float(f(scores)) for f in (mean, iqm)] == pytest.approx(known, abs=1e-15)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (3, 5), (8, 10), (7, 9)])
def test_iqm_is_the_trimmed_mean(shape) -> None:
    scores = np.random.default_rng(0).normal(size=(4, *shape))  # four draws at once
    assert iqm(scores) == pytest.approx([stats.trim_mean(draw, 0.25, axis=None) for draw in scores], abs=1e-14)
    assert mean(scores).shape == (4,)
    assert mean(scores)[1] == pytest.approx(float(mean(scores[1])))


def test_infinite_runs_count_and_nan_has_to_be_explained() -> None:
    scores = A.copy()
    scores[0, 0] = INF
    assert float(mean(scores)) == INF and math.isfinite(iqm(scores))
    assert float(iqm(scores)) > float(iqm(A))
    scores[:, :3] = INF
    assert float(iqm(scores)) == INF
    found = stratified_bootstrap(np.where(A > 1, INF, A), mean, reps=200)
    assert (found.value, found.high) == (INF, INF) and math.isfinite(found.low)
    scores[0, 0] = NAN
    for function in (mean, iqm, stratified_bootstrap, hierarchical_bootstrap):
        with pytest.raises(ValueError, match="what a failed run counts as"):
            function(scores)
    with pytest.raises(ValueError, match="both signs"):
        mean([[INF, -INF]])
    for wrong in ([], [1.0, 2.0], [[]]):
        with pytest.raises(ValueError, match="shape"):
            iqm(wrong)


# --- intervals ----------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_rliable() -> None:
    # 20,000 draws each; the ends of our intervals are draws, so they are as far apart as these.
    for statistic, low, high in ((mean, 0.5213, 0.8160), (iqm, 0.4789, 0.8489)):
        found = stratified_bootstrap(A, statistic, reps=20_000)
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)
        assert found.value == statistic(A)
    for statistic, low, high in ((mean, 0.4900, 0.8440), (iqm, 0.4500, 0.8856)):  # task_bootstrap=True
        draws = statistic(A[resampled(A.shape, reps=20_000, seed=0, new_tasks=True)])
        assert [float(end) for end in ends(draws, 0.95)] == pytest.approx([low, high], abs=0.006)
        found = hierarchical_bootstrap(A, statistic, reps=20_000)
        assert found.low < low and found.high > high  # expanded for three tasks


def test_the_ends_of_an_interval() -> None:
    low, high = ends(np.arange(1000.0)[::-1], 0.95)
    assert (low, high) == (25, 974)
    assert ends(np.arange(1000.0), 0.9) == (50, 949)  # 0.05 * 1000 is a little less than 50 here
    # Hesterberg 2015: n = 10 gives 0.86 % of the draws beyond either end instead of 2.5 %.
    low, high = ends(np.arange(100_000.0), 0.95, widened_for=10)
    assert low / 100_000 == pytest.approx(stats.norm.cdf(-math.sqrt(10 / 9) * 2.262157), abs=1e-5)
    assert high == 99_999 - low
    assert ends(np.array([3.0, 1.0]), 0.5) == (1, 3)
    for confidence in (0, 1, NAN):
        with pytest.raises(ValueError, match="confidence"):
            stratified_bootstrap(A, confidence=confidence)


def test_draws_are_seeded_and_say_what_they_are_of() -> None:
    assert stratified_bootstrap(A, seed=3) == stratified_bootstrap(A, seed=3) != stratified_bootstrap(A, seed=4)
    number = np.arange(15).reshape(3, 5)
    same = number[resampled((3, 5), reps=50, seed=0, new_tasks=False)]
    assert same.shape == (50, 3, 5) and (same // 5 == np.arange(3)[:, None]).all()
    new = number[resampled((3, 5), reps=50, seed=0, new_tasks=True)]
    assert (new // 5 == new[:, :, :1] // 5).all()  # a row is of one task
    assert len(np.unique(new // 5)) == 3 and (np.diff(new[:, :, 0] // 5, axis=1) < 0).any()
    with pytest.raises(ValueError, match="one task"):
        hierarchical_bootstrap(A[:1])
    with pytest.raises(ValueError, match="at least two"):
        stratified_bootstrap(A[:, :1])
    with pytest.raises(ValueError, match="reps"):
        stratified_bootstrap(A, reps=0)
    with pytest.raises(ValueError, match="shape"):
        stratified_bootstrap([A, A])


@pytest.mark.parametrize("statistic", [mean, iqm])
def test_intervals_cover_what_they_say(statistic) -> None:
    # Of the same tasks: the seeds' spread alone. A band of 300 trials is 3 standard errors, 3.8 points.
    found = coverage(
        partial(stratified_bootstrap, statistic=statistic, reps=400), lambda rng: rng.normal(size=(8, 10))
    )
    assert 0.90 < found < 0.98

    # Of other tasks: far more spread, that the seeds do not show.
    def scores(rng: np.random.Generator) -> np.ndarray:
        return rng.normal(size=(8, 1)) + 0.3 * rng.normal(size=(8, 5))

    assert 0.91 < coverage(partial(hierarchical_bootstrap, statistic=statistic, reps=600), scores) < 0.99
    assert coverage(partial(stratified_bootstrap, statistic=statistic, reps=200), scores) < 0.6
    # Where seeds are all there is, it is too wide rather than too narrow.
    assert (
        coverage(partial(hierarchical_bootstrap, statistic=statistic, reps=600), lambda r: r.normal(size=(8, 5)))
        > 0.97
    )


# --- comparisons --------------------------------------------------------------------------------------------------


def test_swaps_by_hand() -> None:
    # Differences 1, 2 and 4: of the eight ways, only none and all are as far from 0. With -1 there are two more.
    zeros = np.zeros((3, 1))
    assert swap_test([[1.0], [2.0], [4.0]], zeros) == (0.25, 0.25)
    assert swap_test([[-1.0], [2.0], [4.0]], zeros) == (0.5, 0.25)
    assert swap_test(zeros, zeros) == (1.0, 0.25)
    # Of six tasks there are 2**6 ways; the p-value is scipy's.
    a, b = A[:, :2].reshape(6, 1), B[:, :2].reshape(6, 1)
    known = stats.permutation_test(
        (a.ravel(), b.ravel()),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=INF,
    )
    assert swap_test(a, b) == pytest.approx((known.pvalue, 2 / 2**6))
    # Drawn ways come close, and count the data's own.
    assert swap_test(a, b, swaps=31)[1] == 1 / 32
    a, b = np.random.default_rng(0).normal(size=(2, 12, 3))
    exact, drawn = swap_test(a, b)[0], swap_test(a, b, swaps=2000)[0]
    assert drawn == pytest.approx(exact, abs=0.04) and drawn != exact
    with pytest.raises(ValueError, match="swaps"):
        swap_test(A, B, swaps=0)


def test_a_difference_uses_the_same_draws_for_both() -> None:
    b = np.random.default_rng(0).normal(size=(8, 5)) * 100  # would drown the difference
    found = paired_difference(b + 1, b)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), abs=1e-9)
    assert found.p == found.p_adjusted == found.least_p == 2 / 2**8
    assert found.found() and not found.found(level=0.001)
    assert paired_difference(b, b).p == 1
    drawn = resampled(A.shape, reps=300, seed=2, new_tasks=True)
    again = paired_difference(A, B, reps=300, seed=2, confidence=0.9)
    assert (again.low, again.high) == ends(mean(A[drawn]) - mean(B[drawn]), 0.9, widened_for=3)


def test_intervals_of_differences_cover_what_they_say() -> None:
    made = noise(8, 5)

    def interval(rng_scores: dict[str, np.ndarray], seed: int):
        return paired_difference(*(np.log(x) for x in rng_scores.values()), reps=400, seed=seed)

    assert 0.92 < coverage(interval, made) <= 1


def test_swapping_the_methods_turns_the_sign_and_nothing_else() -> None:
    for swaps in (2**14, 2):
        options = {"reps": 300, "swaps": swaps}
        there, back = paired_difference(A, B, **options), paired_difference(B, A, **options)
        assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
        assert back.p == there.p


@pytest.mark.parametrize("new_tasks", [True, False])
def test_swapping_the_methods_turns_the_probability_and_nothing_else(new_tasks) -> None:
    there = probability_of_improvement(A, B, lower_is_better=False, new_tasks=new_tasks, reps=300)
    back = probability_of_improvement(B, A, lower_is_better=False, new_tasks=new_tasks, reps=300)
    assert (back.value, back.low, back.high) == pytest.approx((1 - there.value, 1 - there.high, 1 - there.low))
    assert probability_of_improvement(A, B, lower_is_better=True, new_tasks=new_tasks, reps=300) == back


TABLES = st.integers(2, 6).flatmap(
    lambda tasks: st.integers(2, 4).flatmap(
        lambda seeds: st.lists(
            st.lists(st.integers(-50, 50), min_size=2 * seeds, max_size=2 * seeds), min_size=tasks, max_size=tasks
        ).map(lambda rows: np.array(rows, dtype=float).reshape(len(rows), 2, -1).transpose(1, 0, 2))
    )
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(pair=TABLES, constant=st.integers(-1000, 1000), shuffle=st.randoms(use_true_random=False))
def test_order_and_origin_do_not_matter(pair, constant, shuffle) -> None:
    a, b = pair
    order = shuffle.sample(range(len(a)), len(a))
    for statistic in (mean, iqm):
        assert float(statistic(a[order])) == pytest.approx(float(statistic(a)))
        assert float(statistic(a + constant)) == pytest.approx(float(statistic(a)) + constant)
    p = swap_test(a, b)
    assert swap_test(a[order], b[order]) == p
    assert swap_test(a + constant, b + constant) == pytest.approx(p)
    whole, moved = (paired_difference(x, b, reps=100) for x in (a, a + constant))
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        [x + constant for x in (whole.value, whole.low, whole.high)]
    )
    assert whole.low - 1e-9 <= whole.value <= whole.high + 1e-9


def test_probability_of_improvement_is_that_of_rliable() -> None:
    assert probability_of_improvement(A, B, lower_is_better=False).value == pytest.approx(0.5666666666666667)
    known = [stats.mannwhitneyu(x, y).statistic / 25 for x, y in zip(A, B, strict=True)]
    assert probability_of_improvement(A, B, lower_is_better=False).value == pytest.approx(np.mean(known))
    with pytest.raises(ValueError, match="one shape"):
        probability_of_improvement(A, B[:, 1:], lower_is_better=False)


@pytest.mark.parametrize("new_tasks", [True, False])
def test_the_interval_of_the_probability_of_improvement_is_what_its_draws_say(new_tasks) -> None:
    tasks, seeds = resampled(A.shape, reps=400, seed=5, new_tasks=new_tasks)
    x, y = A[tasks, seeds], B[tasks, seeds]
    slow = ((x[..., None] > y[..., None, :]) + 0.5 * (x[..., None] == y[..., None, :])).mean((1, 2, 3))
    low, high = ends(slow, 0.9, widened_for=3 if new_tasks else None)
    found = probability_of_improvement(
        A, B, lower_is_better=False, new_tasks=new_tasks, reps=400, seed=5, confidence=0.9
    )
    assert (found.low, found.high) == pytest.approx((low, high))


def test_failed_runs_lose_and_tie_with_each_other() -> None:
    find = partial(probability_of_improvement, lower_is_better=True, new_tasks=False)
    assert find([[INF, INF]], [[1.0, 2.0]]).value == 0
    assert find([[INF, 1.0]], [[INF, INF]]).value == 0.75
    with pytest.raises(ValueError, match="NaN"):
        find([[NAN, 1.0]], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="finite"):
        paired_difference([[INF, 1.0]], [[1.0, 2.0]])


def test_holm_is_that_of_the_books() -> None:
    # R's p.adjust and statsmodels 0.15.0 (multipletests, method "holm").
    p_values = dict(zip("abcdef", [0.01, 0.04, 0.03, 0.005, 0.2, 0.03], strict=True))
    assert holm(p_values) == pytest.approx({"a": 0.05, "b": 0.12, "c": 0.12, "d": 0.03, "e": 0.2, "f": 0.12})
    assert list(holm(p_values)) == list("abcdef")
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({}) == {} and holm({"a": 0.3}) == {"a": 0.3} and holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    for wrong in (NAN, -0.1, 1.1):
        with pytest.raises(ValueError, match="a: a p-value"):
            holm({"a": wrong})


def test_a_table_of_comparisons() -> None:
    scores = noise(8, 5, methods=4)(np.random.default_rng(0))
    scores["m2"] = scores["m0"] * 1.5
    found = compare({name: np.log(x) for name, x in scores.items()}, "m0", reps=100)
    assert list(found) == ["m1", "m2", "m3"]
    assert found["m2"].value == pytest.approx(math.log(1.5)) and found["m2"].p_adjusted == 3 * 2 / 2**8
    assert {name: d.p_adjusted for name, d in found.items()} == holm({name: d.p for name, d in found.items()})
    assert [name for name, d in found.items() if d.found()] == ["m2"]


# --- does it measure? ---------------------------------------------------------------------------------------------

QUICK = partial(compare, reps=10)  # the p-value does not need the interval


def test_nothing_is_found_where_there_is_nothing() -> None:
    # Three comparisons each; at most one table in twenty, within what 400 trials can tell.
    found = aa_test(noise(8, 5, methods=4), "m0", pipeline=QUICK, trials=400)
    assert found.trials == 400 and found.low <= 0.05 and 0 < found.share < 0.085


def test_what_was_made_ten_percent_worse_is_found() -> None:
    made = noise(8, 5, methods=4)
    assert power_test(made, "m0", "m1", pipeline=QUICK, trials=100).share > 0.8
    assert power_test(made, "m0", "m1", by=-0.10, pipeline=QUICK, trials=100).share > 0.8
    assert power_test(made, "m0", "m1", by=0.01, pipeline=QUICK, trials=100).share < 0.2
    # To be found better is not to be found worse.
    better = {"m0": np.full((8, 2), 2.0), "m1": np.ones((8, 2))}
    assert power_test(lambda rng: better, "m0", "m1", pipeline=QUICK, trials=2).share == 0
    with pytest.raises(ValueError, match="effect"):
        power_test(made, "m0", "m1", by=0)


def test_too_few_tasks_can_be_seen_before_anything_is_run() -> None:
    made = noise(8, 2, methods=8)
    assert power_test(made, "m0", "m1", by=1.0, pipeline=QUICK, trials=5).share == 0
    least = QUICK(made(np.random.default_rng(0)), "m0")["m1"].least_p
    assert least * 7 > 0.05 >= least * 6


def test_rates() -> None:
    found = rate(0, 100)
    assert found.share == found.low == 0 and found.high == pytest.approx(1 - 0.025 ** (1 / 100))


# --- what is measured of a run ------------------------------------------------------------------------------------


def test_log_regret_has_a_worst_value() -> None:
    loss = np.array([[1.0, 2.0, NAN], [INF, 1e9, 0.0], [-INF, 3.0, 1.5]])
    found = log_regret(loss, [[1.0], [2.0], [3.0]])
    known = [[0, math.log(2), WORST], [WORST, WORST, -WORST], [WORST, 0, math.log(0.5)]]
    assert found == pytest.approx(np.array(known))
    assert log_regret(NAN, 1.0, worst=7) == 7
    for bad in (0.0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match="reference"):
            log_regret(1.0, bad)
        with pytest.raises(ValueError, match="worst"):
            log_regret(1.0, 1.0, worst=bad)
    with pytest.raises(ValueError, match="negative"):
        log_regret(-1.0, 1.0)


def test_harm_and_failure() -> None:
    b = np.array([[1.0, 1.0, 1.0, NAN, NAN, 0.0]])
    a = np.array([[1.021, 1.019, INF, 1.0, NAN, 1e-9]])  # harm, within the margin, failed, no, both failed, harm
    assert harm_rate(a, b, lower_is_better=True) == pytest.approx(3 / 6)
    assert harm_rate(a, b, margin=0.5, lower_is_better=True) == pytest.approx(2 / 6)
    assert harm_rate([0.9], [1.0], lower_is_better=False) == 1 and harm_rate([-0.9], [-1.0], lower_is_better=True) == 1
    assert harm_rate(b, b, margin=0, lower_is_better=True) == 0
    with pytest.raises(ValueError, match="one shape"):
        harm_rate(a, b[:, 1:], lower_is_better=True)
    with pytest.raises(ValueError, match="margin"):
        harm_rate(a, b, -1, lower_is_better=True)
    assert failure_rate(a, initial=1.02) == pytest.approx(3 / 6) and failure_rate(a) == pytest.approx(2 / 6)
    for loss, initial in (([], 1.0), ([1.0], NAN)):
        with pytest.raises(ValueError, match="failure rate"):
            failure_rate(loss, initial)


def test_steps_to_a_target() -> None:
    assert first_below([(1, 3.0), (2, 2.0), (3, 1.0)], 1.0) == 3
    assert first_below([(5, 3.0), (6, 1.0), (9, 2.0)], 1.0) == 6  # the first time counts
    assert first_below([(1, NAN), (2, 2.5), (3, None)], 2.5) == 2
    assert first_below([(1, None), (2, NAN), (3, INF)], 2.5) == first_below([(1, 1.0)], NAN) == INF


GRID = [1e-4, 1e-3, 1e-2, 1e-1]


def test_lr_sensitivity_by_hand() -> None:
    # Best 1 at 1e-2. Within 5 %: 0.05 / (2 - 1) of the decade below, 0.05 / (1.1 - 1) of the decade above.
    found = lr_sensitivity(GRID, [3.0, 2.0, 1.0, 1.1], initial=2.5, reference=1.9)
    assert float(found.own_width) == pytest.approx(0.05 + 0.5)
    assert float(found.reference_width) == pytest.approx((1.9 * 1.05 - 1) + 1)  # part of a decade, and a whole one
    assert float(found.mean_excess) == pytest.approx((1.5 + 1 + 0 + 0.1) / 4)  # 3 counts as the initial 2.5
    flat = lr_sensitivity(GRID, [1.0] * 4, initial=2.5, reference=0.9)
    assert (flat.own_width, flat.reference_width, flat.mean_excess) == (3, 0, 0)
    pieces = lr_sensitivity(GRID, [1.0, 2.0, 2.0, 1.0], initial=2.5, reference=2.0, tolerance=0)
    assert (pieces.own_width, pieces.reference_width) == (0, 3)


def test_failures_at_a_learning_rate_are_never_good() -> None:
    losses = [[1.0, 1.0, NAN, 1.0], [NAN, 1.0, INF, NAN], [NAN, NAN, INF, NAN], [9.0, 5.0, 5.0, 9.0]]
    found = lr_sensitivity(GRID, losses, initial=3.0, reference=2.0)
    assert found.own_width.tolist() == [1, 0, 0, 0] and found.reference_width.tolist() == [1, 0, 0, 0]
    # The last two never learned: they are not insensitive, they are useless.
    assert found.mean_excess.tolist() == [0.5, 1.5, INF, INF]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lrs": [1e-2, 1e-3, 1e-1, 1.0]}, "rising"),
        ({"lrs": [0, 1e-3, 1e-1, 1.0]}, "rising"),
        ({"lrs": [1e-3]}, "rising"),
        ({"losses": [1.0]}, "as many"),
        ({"losses": 1.0}, "as many"),
        ({"losses": [-1.0, 1, 1, 1]}, "negative"),
        ({"tolerance": -0.1}, "negative"),
        ({"initial": NAN}, "initial"),
        ({"reference": -1.0}, "initial"),
    ],
)
def test_a_sweep_that_is_none_is_refused(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        lr_sensitivity(**{"lrs": GRID, "losses": [1.0] * 4, "initial": 2.0, "reference": 1.0, **wrong})


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    losses=st.lists(st.one_of(st.floats(0, 10), st.just(NAN)), min_size=4, max_size=4),
    factor=st.floats(0.1, 10),
)
def test_widths_keep_to_the_grid_and_to_no_unit(losses, factor) -> None:
    found = lr_sensitivity(GRID, losses, initial=20.0, reference=2.0)
    assert 0 <= found.own_width <= 3 + 1e-9 and 0 <= found.reference_width <= 3 + 1e-9
    same = lr_sensitivity(GRID, [factor * x for x in losses], initial=20.0 * factor, reference=2.0 * factor)
    assert same.mean_excess == pytest.approx(found.mean_excess * factor)
    more = lr_sensitivity(GRID, losses, initial=20.0, reference=2.0, tolerance=0.2)
    assert more.own_width >= found.own_width - 1e-9 and more.reference_width >= found.reference_width - 1e-9
    reverse = lr_sensitivity(GRID, losses[::-1], initial=20.0, reference=2.0)
    assert reverse.own_width == pytest.approx(found.own_width)
