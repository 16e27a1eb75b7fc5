"""The statistics against slow computations, SciPy, worked values and their promised coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sorl.errors import InputError
from sorl.report import statistics

FINITE = st.floats(-100.0, 100.0, width=32)
SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 5))
COMPLETE = arrays.arrays(np.float64, SHAPES, elements=FINITE)
HOLED = arrays.arrays(np.float64, SHAPES, elements=st.one_of(FINITE, st.just(np.nan)))


def slow_mean(scores: np.ndarray) -> float:
    per_task = []
    for task in range(scores.shape[1]):
        present = [score for score in scores[:, task] if not np.isnan(score)]
        per_task.append(sum(present) / len(present) if present else np.nan)
    return sum(per_task) / len(per_task)


def slow_interquartile_mean(scores: np.ndarray) -> float:
    if np.isnan(scores).all(axis=0).any():
        return np.nan
    return float(scipy.stats.trim_mean(scores[~np.isnan(scores)], 0.25))


def slow_interval(scores: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """One resample after the other, one task after the other, one run after the other."""
    runs, tasks = scores.shape
    draws = np.random.default_rng(seed).random((resamples, runs, tasks))
    values = []
    for resample in range(resamples):
        means = []
        for task in range(tasks):
            present = sorted(score for score in scores[:, task] if not np.isnan(score))
            picked = [present[int(draws[resample, i, task] * len(present))]
                      for i in range(len(present))]  # fmt: skip
            means.append(sum(picked) / len(picked))
        values.append(sum(means) / tasks)
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


@given(HOLED)
def test_mean_equals_the_slow_one(scores: np.ndarray) -> None:
    np.testing.assert_allclose(statistics.mean(scores), slow_mean(scores), atol=1e-9)


@given(HOLED)
def test_interquartile_mean_equals_the_trimmed_mean_of_scipy(scores: np.ndarray) -> None:
    expected = slow_interquartile_mean(scores)
    np.testing.assert_allclose(statistics.interquartile_mean(scores), expected, atol=1e-9)


def test_worked_values() -> None:
    scores = np.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 100.0]])
    assert statistics.mean(scores) == pytest.approx((2.5 + 29.5) / 2)
    assert statistics.interquartile_mean(scores) == pytest.approx((3 + 4 + 5 + 6) / 4)


def test_every_task_weighs_the_same_when_scores_are_missing() -> None:
    scores = np.array([[0.0, 1.0], [np.nan, 1.0], [np.nan, 1.0]])
    assert statistics.mean(scores) == pytest.approx(0.5)


def test_a_task_without_any_score_leaves_no_mean() -> None:
    scores = np.array([[0.2, np.nan], [0.4, np.nan]])
    estimate = statistics.bootstrap(scores)
    assert np.isnan([*estimate, statistics.interquartile_mean(scores)]).all()


@settings(max_examples=40, deadline=None)
@given(HOLED, st.integers(0, 1000))
def test_bootstrap_equals_the_slow_one(scores: np.ndarray, seed: int) -> None:
    estimate = statistics.bootstrap(scores, resamples=60, seed=seed)
    if ((~np.isnan(scores)).sum(axis=0) < 2).any():
        assert np.isnan(estimate.low)
        assert np.isnan(estimate.high)
    else:
        expected = slow_interval(scores, 60, seed)
        np.testing.assert_allclose((estimate.low, estimate.high), expected, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(COMPLETE)
def test_interval_stays_within_the_scores_and_widens_with_confidence(scores: np.ndarray) -> None:
    wide = statistics.bootstrap(scores, confidence=0.95, resamples=100)
    narrow = statistics.bootstrap(scores, confidence=0.5, resamples=100)
    if len(scores) == 1:
        assert np.isnan(wide.low)
        return
    slack = 1e-9
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    assert scores.min() - slack <= wide.low
    assert wide.high <= scores.max() + slack


@pytest.mark.parametrize("statistic", [statistics.mean, statistics.interquartile_mean])
def test_leading_axes_are_computed_one_by_one(statistic: statistics.Statistic) -> None:
    scores = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    scores[0, 1, 2, 3] = np.nan
    together = statistics.bootstrap(scores, statistic, resamples=200, seed=3)
    for point in np.ndindex(3, 2):
        alone = statistics.bootstrap(scores[point], statistic, resamples=200, seed=3)
        for part, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(part[point], expected, atol=1e-12)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(1).normal(size=(11, 4, 2))
    whole = statistics.bootstrap(scores, resamples=50)
    monkeypatch.setattr(statistics, "_CHUNK", 50 * 4 * 2 * 3)
    for part, expected in zip(statistics.bootstrap(scores, resamples=50), whole, strict=True):
        np.testing.assert_array_equal(part, expected)


def test_two_runs_of_one_task_give_their_range() -> None:
    estimate = statistics.bootstrap(np.array([[0.2], [0.6]]))
    assert tuple(estimate) == pytest.approx((0.4, 0.2, 0.6))


def test_agrees_with_scipy_on_one_task() -> None:
    sample = np.random.default_rng(2).normal(size=12)
    expected = scipy.stats.bootstrap(
        (sample,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    estimate = statistics.bootstrap(sample[:, None], resamples=20_000)
    np.testing.assert_allclose((estimate.low, estimate.high), expected, atol=0.02)


def test_tasks_are_strata_so_their_differences_do_not_widen_the_interval() -> None:
    noise = np.random.default_rng(3).normal(scale=0.01, size=(6, 2))
    estimate = statistics.bootstrap(noise + np.array([0.0, 1.0]))
    assert estimate.high - estimate.low < 0.02


@pytest.mark.parametrize(
    ("runs", "tasks", "least", "most"), [(20, 5, 0.91, 0.97), (8, 5, 0.88, 0.96)]
)
def test_coverage_on_synthetic_scores(runs: int, tasks: int, least: float, most: float) -> None:
    truth = np.linspace(0.0, 1.0, tasks)
    scores = np.random.default_rng(4).normal(truth, 0.3, size=(1500, runs, tasks))
    estimate = statistics.bootstrap(scores, resamples=400)
    covered = (estimate.low <= truth.mean()) & (truth.mean() <= estimate.high)
    assert least < covered.mean() < most


def test_the_seed_decides_the_interval() -> None:
    scores = np.random.default_rng(5).normal(size=(5, 3))
    first, again, other = (statistics.bootstrap(scores, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.low != other.low


@given(st.integers(1, 6), st.integers(1, 6))
def test_mean_of_last(length: int, count: int) -> None:
    values = np.arange(length * 2.0).reshape(2, length) ** 2
    if count > length:
        with pytest.raises(InputError, match="from 1 to the number of evaluations"):
            statistics.mean_of_last(values, count, axis=1)
    else:
        expected = [sum(row[-count:]) / count for row in values.tolist()]
        np.testing.assert_allclose(statistics.mean_of_last(values, count, axis=1), expected)


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((0, 2)), np.array([[np.inf], [0.0]])])
def test_impossible_scores_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(InputError, match="cannot be summarised"):
        statistics.bootstrap(scores)


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"confidence": 0.0}, {"resamples": 0}])
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match="is not possible"):
        statistics.bootstrap(np.zeros((2, 2)), **options)


# Of two methods.


def test_published_worked_values() -> None:
    # The small scores by which rliable's own tests check its metrics.
    x = np.array([[1, 2], [2, 2], [1, 1], [2, 1]], float)
    y = np.array([[1, 1], [2, 2], [3, 3]], float)
    assert [statistics.mean(x), statistics.interquartile_mean(x)] == [1.5, 1.5]
    assert [statistics.mean(y), statistics.interquartile_mean(y)] == [2, 2]
    assert statistics.probability_of_improvement(x, y).value == pytest.approx(1 / 3)
    # SciPy's example of the test of Mann and Whitney: U = 17 of 5 x 4 pairs.
    ages = np.array([[19.0, 22, 16, 29, 24]]).T, np.array([[20.0, 11, 17, 12]]).T
    assert statistics.probability_of_improvement(*ages).value == pytest.approx(17 / 20)


@given(COMPLETE, COMPLETE)
def test_probability_of_improvement_equals_mann_and_whitney(x: np.ndarray, y: np.ndarray) -> None:
    tasks = min(x.shape[1], y.shape[1])
    x, y = x[:, :tasks], y[:, :tasks]
    expected = np.mean(
        [
            scipy.stats.mannwhitneyu(x[:, task], y[:, task], method="asymptotic").statistic
            / (len(x) * len(y))
            for task in range(tasks)
        ]
    )
    there = statistics.probability_of_improvement(x, y, resamples=50)
    back = statistics.probability_of_improvement(y, x, resamples=1)
    assert there.value == pytest.approx(expected)
    assert there.value + back.value == pytest.approx(1)
    if min(len(x), len(y)) < 2:
        assert np.isnan([there.low, there.high]).all()
    else:
        assert 0 <= there.low <= there.high <= 1


def test_interval_of_the_probability_holds_the_truth() -> None:
    generator = np.random.default_rng(6)
    truth, covered = scipy.stats.norm.cdf(0.5 / np.sqrt(2)), 0
    for _ in range(150):
        x, y = generator.normal(0.5, 1, (12, 3)), generator.normal(0, 1, (12, 3))
        found = statistics.probability_of_improvement(x, y, resamples=150)
        covered += int(found.low <= truth <= found.high)
    assert 0.86 < covered / 150 < 0.99


@given(HOLED, st.lists(FINITE, min_size=1, max_size=4))
def test_performance_profile_counts(scores: np.ndarray, thresholds: list[float]) -> None:
    profile = statistics.performance_profile(scores, np.array(thresholds), resamples=20)
    for place, threshold in enumerate(thresholds):
        above = np.where(np.isnan(scores), np.nan, scores > threshold)
        np.testing.assert_allclose(profile.value[place], slow_mean(above), atol=1e-9)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3))),
        (np.zeros((2, 2)), np.full((2, 2), np.nan)),
        (np.zeros((1, 2, 2)), np.zeros((2, 2))),
    ],
)
def test_scores_that_cannot_be_compared(x: np.ndarray, y: np.ndarray) -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        statistics.probability_of_improvement(x, y)
