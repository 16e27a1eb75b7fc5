"""The device data set: what a transition is, uniform sampling, validation, statistics."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from sorl.data.dataset import ACTION_LIMIT, Dataset
from sorl.errors import InputError
from sorl.types import Spec, Transition


def make_arrays(
    lengths: tuple[int, ...] = (4, 2, 3), *, tasks: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Random arrays with these numbers of rows an episode; column 0 of observations counts rows."""
    random = np.random.default_rng(seed)
    rows = sum(lengths)
    observations = random.normal(size=(rows, 3)).astype(np.float32)
    observations[:, 0] = np.arange(rows)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(lengths) - 1] = True
    return {
        "observations": observations,
        "actions": random.uniform(-1, 1, size=(rows, 2)).astype(np.float32),
        "terminals": terminals,
        "rewards": random.normal(size=(tasks, rows)).astype(np.float32),
        "masks": random.integers(0, 2, size=(tasks, rows)).astype(np.float32),
        "tasks": tuple(range(1, tasks + 1)),
    }


@st.composite
def episode_lengths(draw: st.DrawFn) -> tuple[int, ...]:
    """Three episodes of 12 rows together: one shape, so that compiled functions are reused."""
    first = draw(st.integers(2, 8))
    second = draw(st.integers(2, 10 - first))
    return (first, second, 12 - first - second)


@jax.jit
def every_transition(dataset: Dataset) -> list[Transition]:
    transitions = jax.vmap(dataset.transition, (0, None))
    return [transitions(dataset.valid_rows, task) for task in range(len(dataset.tasks))]


@functools.partial(jax.jit, static_argnums=3)
def draw_batch(dataset: Dataset, key: jax.Array, task: int, batch_size: int) -> Transition:
    return dataset.sample(key, task, batch_size)


@settings(deadline=None, max_examples=25)
@given(episode_lengths(), st.integers(0, 2**32 - 1))
def test_transitions_equal_a_plain_loop_over_episodes(lengths: tuple[int, ...], seed: int) -> None:
    arrays = make_arrays(lengths, seed=seed)
    dataset = Dataset.from_arrays(**arrays)
    clipped = np.clip(arrays["actions"], -np.float32(ACTION_LIMIT), np.float32(ACTION_LIMIT))
    transitions = jax.tree.map(np.asarray, every_transition(dataset))
    expected_rows = []
    start = 0
    for length in lengths:
        for row in range(start, start + length - 1):
            for task in (0, 1):
                got = Transition(*(array[len(expected_rows)] for array in transitions[task]))
                np.testing.assert_array_equal(got.observation, arrays["observations"][row])
                np.testing.assert_array_equal(got.action, clipped[row])
                np.testing.assert_array_equal(got.next_observation, arrays["observations"][row + 1])
                np.testing.assert_array_equal(got.next_action, clipped[row + 1])
                assert got.reward == arrays["rewards"][task, row]
                assert got.mask == arrays["masks"][task, row]
                assert got.next_action_mask == float(row + 1 < start + length - 1)
            expected_rows.append(row)
        start += length
    np.testing.assert_array_equal(dataset.valid_rows, expected_rows)


def test_rows_equal_ogbenchs_own_loading(tmp_path: Path) -> None:
    import ogbench.utils

    arrays = make_arrays((5, 2, 7), tasks=1)
    path = tmp_path / "small.npz"
    np.savez_compressed(
        path, **{key: arrays[key] for key in ("observations", "actions", "terminals")}
    )
    theirs = ogbench.utils.load_dataset(path)
    dataset = Dataset.from_arrays(**arrays)
    ours = jax.vmap(dataset.transition, (0, None))(dataset.valid_rows, 0)
    np.testing.assert_array_equal(ours.observation, theirs["observations"])
    np.testing.assert_array_equal(ours.next_observation, theirs["next_observations"])
    np.testing.assert_allclose(ours.action, theirs["actions"], atol=1.1e-5)
    np.testing.assert_array_equal(1 - ours.next_action_mask, theirs["terminals"])


def test_sampling_is_uniform_over_valid_rows() -> None:
    dataset = Dataset.from_arrays(**make_arrays((10, 2, 25, 7)))
    draw = jax.jit(lambda key: dataset.sample(key, 0, 50_000).observation[:, 0])
    rows = np.asarray(draw(jax.random.key(3))).astype(int)
    counts = np.bincount(rows, minlength=44)
    ends = np.asarray(dataset.ends)
    assert not counts[ends].any()
    assert scipy.stats.chisquare(counts[~ends]).pvalue > 1e-3
    assert scipy.stats.chisquare(counts[~ends] + 300 * (rows[0] == np.arange(40))).pvalue < 1e-3


@settings(deadline=None, max_examples=15)
@given(episode_lengths(), st.integers(0, 2**31 - 1))
def test_samples_never_cross_episodes(lengths: tuple[int, ...], seed: int) -> None:
    arrays = make_arrays(lengths)
    dataset = Dataset.from_arrays(**arrays)
    batch = jax.tree.map(np.asarray, draw_batch(dataset, jax.random.key(seed), 1, 64))
    rows = np.asarray(batch.observation[:, 0]).astype(int)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    np.testing.assert_array_equal(batch.next_observation[:, 0], rows + 1)
    np.testing.assert_array_equal(episode[rows], episode[rows + 1])


def test_members_sampled_together_equal_members_sampled_alone() -> None:
    dataset = Dataset.from_arrays(**make_arrays((4, 9), tasks=3))
    keys = jax.random.split(jax.random.key(0), 6)
    tasks = jnp.array([0, 0, 1, 1, 2, 2])

    @jax.jit
    def together(dataset: Dataset, keys: jax.Array, tasks: jax.Array) -> Any:
        return jax.vmap(lambda key, task: dataset.sample(key, task, 16))(keys, tasks)

    batches = together(dataset, keys, tasks)
    for member in range(6):
        alone = dataset.sample(keys[member], int(tasks[member]), 16)
        for ours, theirs in zip(batches, alone, strict=True):
            np.testing.assert_array_equal(ours[member], theirs)
    assert not np.array_equal(batches.observation[0], batches.observation[1])
    assert batches.reward.shape == (6, 16)
    assert {array.dtype for array in batches} == {jnp.dtype("float32")}


def test_another_data_set_of_the_same_size_needs_no_recompilation() -> None:
    first = Dataset.from_arrays(**make_arrays(seed=1))
    second = Dataset.from_arrays(**make_arrays(seed=2))
    traces = []

    @jax.jit
    def draw(dataset: Dataset, key: jax.Array) -> jax.Array:
        traces.append(1)
        return dataset.sample(key, 0, 8).observation[:, 1]

    key = jax.random.key(0)
    assert not np.array_equal(draw(first, key), draw(second, key))
    assert len(traces) == 1


def test_actions_are_clipped() -> None:
    arrays = make_arrays()
    arrays["actions"][0] = (1.0, -1.0 - 5e-5)
    actions = np.asarray(Dataset.from_arrays(**arrays).actions)
    np.testing.assert_array_equal(actions[0], np.array([ACTION_LIMIT, -ACTION_LIMIT], np.float32))
    assert np.abs(actions).max() < 1


def test_later_changes_of_the_callers_arrays_change_nothing() -> None:
    arrays = make_arrays()
    dataset = Dataset.from_arrays(**arrays)
    before = dataset.fingerprint
    for key in ("observations", "actions", "rewards", "masks", "terminals"):
        arrays[key][:] = 0
    assert dataset.fingerprint == before


def test_spec() -> None:
    assert Dataset.from_arrays(**make_arrays()).spec == Spec(observation_size=3, action_size=2)


def test_select_tasks() -> None:
    dataset = Dataset.from_arrays(**make_arrays(tasks=3))
    chosen = dataset.select_tasks((3, 1))
    assert chosen.tasks == (3, 1)
    np.testing.assert_array_equal(chosen.rewards, dataset.rewards[np.array([2, 0])])
    np.testing.assert_array_equal(chosen.masks, dataset.masks[np.array([2, 0])])
    assert chosen.observations is dataset.observations
    assert dataset.select_tasks((1, 2, 3)) is dataset


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [((4,), "no rewards of task 4"), ((), "each task once"), ((1, 1), "once")],
)
def test_select_tasks_refuses(tasks: tuple[int, ...], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Dataset.from_arrays(**make_arrays()).select_tasks(tasks)


def test_batch_size_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        Dataset.from_arrays(**make_arrays()).sample(jax.random.key(0), 0, 0)


def test_statistics_by_hand() -> None:
    dataset = Dataset.from_arrays(
        observations=np.zeros((7, 1)),
        # Rows 2 and 6 end episodes: what they hold must not count.
        actions=np.array([1, 0, 1, -1, 0.5, 0, 1.0])[:, None],
        terminals=np.array([0, 0, 1, 0, 0, 0, 1]),
        rewards=np.array([[-1, 0, 9, -1, -1, -2, 9], [3, 3, 0, 3, 3, 3, 0]]),
        masks=np.array([[1, 0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 1, 1, 1]]),
        tasks=(2, 5),
    )
    statistics = dataset.statistics()
    assert (statistics.rows, statistics.episodes, statistics.transitions) == (7, 2, 5)
    assert (statistics.episode_length_min, statistics.episode_length_max) == (2, 3)
    assert statistics.episode_length_mean == 2.5
    assert statistics.action_saturation == pytest.approx(2 / 5)
    two, five = statistics.tasks
    assert (two.task, two.reward_min, two.reward_max, two.success_rows) == (2, -2.0, 0.0, 1)
    assert two.reward_mean == -1.0
    assert (five.task, five.reward_mean, five.success_rows) == (5, 3.0, 3)


def test_fingerprint_is_stable() -> None:
    dataset = Dataset.from_arrays(
        observations=np.array([[0.5], [1.5]]),
        actions=np.array([[0.25], [-0.25]]),
        terminals=np.array([0, 1]),
        rewards=np.array([[-1, 0]]),
        masks=np.array([[1, 0]]),
    )
    # A constant: runs record it, so it must not change from one version or machine to the next.
    assert dataset.fingerprint == "95a23833d9459b3e9ff260dada3fde0ba026bb80a531661c78bbc2137982d6b7"


@pytest.mark.parametrize("key", ["observations", "actions", "terminals", "rewards", "masks"])
def test_fingerprint_sees_every_array(key: str) -> None:
    arrays = make_arrays()
    before = Dataset.from_arrays(**arrays).fingerprint
    if key == "terminals":
        arrays[key][1] = True
    else:
        place = (1, 1)
        arrays[key][place] = 1 - arrays[key][place] if key == "masks" else arrays[key][place] / 2
    assert Dataset.from_arrays(**arrays).fingerprint != before


def test_fingerprint_sees_task_numbers_but_not_the_origin() -> None:
    arrays = make_arrays()
    dataset = Dataset.from_arrays(**arrays)
    arrays["tasks"] = (1, 3)
    renumbered = Dataset.from_arrays(**arrays)
    arrays["tasks"] = (1, 2)
    assert dataset.fingerprint == Dataset.from_arrays(**arrays, source="elsewhere").fingerprint
    assert dataset.fingerprint != renumbered.fingerprint


def put(key: str, place: Any, value: Any, dtype: Any = None) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[key] = arrays[key].astype(dtype or arrays[key].dtype)
        arrays[key][place] = value

    return change


def replace(key: str, function: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[key] = function(arrays[key])

    return change


def empty(arrays: dict[str, Any]) -> None:
    for key in ("observations", "actions", "terminals"):
        arrays[key] = arrays[key][:0]
    for key in ("rewards", "masks"):
        arrays[key] = arrays[key][:, :0]


BAD = {
    "observation NaN": (put("observations", (5, 2), np.nan), "observations, row 5, column 2: nan"),
    "observation infinite": (put("observations", (0, 0), -np.inf), "observations, row 0.*-inf"),
    "too large for float32": (
        put("observations", (3, 1), 1e300, np.float64),
        "observations, row 3, column 1: inf",
    ),
    "first of several": (put("actions", (slice(4, 8), 1), np.nan), "actions, row 4, column 1"),
    "action outside": (put("actions", (6, 0), 1.01), r"actions, row 6, column 0: 1.01 is outside"),
    "action below": (put("actions", (6, 0), -2), r"actions, row 6, column 0: -2.0 is outside"),
    "reward NaN": (put("rewards", (1, 3), np.nan), "rewards of task 2, row 3: nan"),
    "mask NaN": (put("masks", (0, 3), np.nan), "masks of task 1, row 3: nan is neither 0 nor 1"),
    "mask half": (put("masks", (1, 8), 0.5), "masks of task 2, row 8: 0.5 is neither"),
    "terminal two": (put("terminals", 3, 2, int), "terminals, row 3: 2 is neither"),
    "no ends": (replace("terminals", np.zeros_like), "no episode ends"),
    "cut off": (put("terminals", -1, False), "last row .8. is not marked"),
    "single row": (put("terminals", 4, True), "ends at row 4 has a single row"),
    "single first row": (put("terminals", 0, True), "ends at row 0 has a single row"),
    "empty": (empty, "the set is empty"),
    "images": (
        replace("observations", lambda _: np.zeros((9, 8, 8), np.uint8)),
        "uint8 of shape .9, 8, 8., but images must be uint8 of shape",
    ),
    "whole-number actions": (replace("actions", lambda a: a.astype(int)), "actions are int64"),
    "text": (replace("rewards", lambda a: a.astype(str)), "rewards are <U.*must be numbers"),
    "complex": (replace("observations", lambda a: a + 1j), "observations are complex"),
    "ragged": (replace("actions", lambda _: [[1.0], [1.0, 2.0]]), "one rectangular array"),
    "flat observations": (replace("observations", np.ravel), "shape .27,., but must have 2"),
    "flat rewards": (replace("rewards", lambda a: a[0]), "rewards have shape .9,."),
    "short actions": (replace("actions", lambda a: a[:-1]), r"actions have shape \(8, 2\)"),
    "short terminals": (replace("terminals", lambda a: a[1:]), r"terminals have shape \(8,\)"),
    "rewards of one task": (replace("rewards", lambda a: a[:1]), r"rewards have shape \(1, 9\)"),
    "short masks": (replace("masks", lambda a: a[:, :4]), r"masks have shape \(2, 4\)"),
    "no columns": (replace("actions", lambda a: a[:, :0]), "actions have no columns"),
    "no tasks": (replace("tasks", lambda _: ()), "no task was named"),
    "task twice": (replace("tasks", lambda _: (1, 1)), "task 1 is named twice"),
    "negative task": (replace("tasks", lambda _: (1, -2)), "task -2 is not a whole number"),
    "truth as a task": (replace("tasks", lambda _: (2, True)), "task True is not a whole number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_get_one_sentence(case: str) -> None:
    change, expected = BAD[case]
    arrays = make_arrays()
    Dataset.from_arrays(**arrays)
    change(arrays)
    with pytest.raises(InputError, match=expected) as raised:
        Dataset.from_arrays(**arrays, source="some/file.npz")
    message = str(raised.value)
    assert message.startswith("some/file.npz: ")
    assert "\n" not in message


def test_first_bad_row_is_found_beyond_the_first_part() -> None:
    rows = 200_000
    observations = np.zeros((rows, 1), np.float32)
    observations[150_000] = np.nan
    with pytest.raises(InputError, match="row 150000, column 0"):
        Dataset.from_arrays(
            observations,
            np.zeros((rows, 1), np.float32),
            np.arange(rows) == rows - 1,
            np.zeros((1, rows)),
            np.ones((1, rows)),
        )
