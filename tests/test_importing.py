"""Importing logs: each format from its own library, wrong files of every kind, reports."""

from __future__ import annotations

import builtins
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import logs
import sorl
from sorl import cli
from sorl.data.columns import columns_of
from sorl.data.episodes import assemble
from sorl.data.importing import import_files
from sorl.data.sources import load_dataset
from sorl.errors import InputError

LOG = logs.episodes()
# Ten and more, so that the order of names is not that of numbers.
LONG = logs.episodes((3, 2) * 6)

WRITERS: dict[str, tuple[str, Callable[[Path, list[logs.Episode]], Path], bool]] = {
    "npz": ("log.npz", logs.write_npz, False),
    "d4rl": ("log.hdf5", logs.write_d4rl, False),
    "robomimic": ("demos.h5", logs.write_robomimic, True),
    "lerobot": ("lerobot", logs.write_lerobot, False),
    "csv": ("log.csv", logs.write_csv, False),
}


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        import_files(*arguments, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) > 20
    return message


def refused(path: Path, out: Path) -> str | None:
    """The one sentence with which importing refuses, or None where it does not."""
    try:
        import_files([path], out, overwrite=True)
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("log", [LOG, LONG], ids=["few", "many"])
@pytest.mark.parametrize("format", WRITERS)
def test_every_format_gives_the_rows_of_its_log(
    format: str, log: list[logs.Episode], tmp_path: Path
) -> None:
    name, write, last_is_known = WRITERS[format]
    made = import_files([write(tmp_path / name, log)], tmp_path / "mine")
    expected = logs.expected(log, last_is_known=last_is_known)
    with np.load(made.path, allow_pickle=False) as arrays:
        for key in ("observations", "rewards", "masks", "terminals"):
            np.testing.assert_array_equal(arrays[key], expected[key])
        units = made.origin.units
        assert np.abs(arrays["actions"]).max() == 1
        np.testing.assert_allclose(
            units.to_user_arrays(arrays["actions"]), expected["actions"], rtol=1e-6
        )
    assert units.action_low == tuple(map(float, expected["actions"].min(axis=0)))
    assert units.action_high == tuple(map(float, expected["actions"].max(axis=0)))
    dataset = load_dataset(data=made.path)
    assert dataset.units == units
    np.testing.assert_array_equal(dataset.observations, expected["observations"])
    report = json.loads(made.report_path.read_text())
    assert report["episodes"] == len(log)
    assert report["terminated"] == sum(one.terminated for one in log)
    lost = 0 if last_is_known else sum(not one.terminated for one in log)
    assert report["without_successor"] == lost


def test_terminations_and_truncations_are_kept_apart(tmp_path: Path) -> None:
    path = logs.write_npz(tmp_path / "log.npz", LOG)
    made = import_files([path], tmp_path / "apart")
    dataset = load_dataset(data=made.path)
    valid = np.asarray(dataset.valid_rows)
    # Of the four episodes two terminate; only their last transitions are not bootstrapped.
    assert np.count_nonzero(~np.asarray(dataset.masks[0])) == 2
    not_bootstrapped = valid[~np.asarray(dataset.masks[0])[valid]]
    assert np.asarray(dataset.ends)[not_bootstrapped + 1].all()
    both = import_files(
        [path],
        tmp_path / "both",
        keys=["truncations=timeouts", "terminations=none"],
    )
    assert not (~np.asarray(load_dataset(data=both.path).masks)).any()
    # Without terminations the first and the third episode run into the next one's beginning.
    assert both.report.episodes == 2


def ends_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ("observations", "rewards", "masks", "terminals")}


@pytest.mark.parametrize("name", ["dones", "done", "next.done"])
def test_done_at_a_time_out_is_a_truncation(name: str, tmp_path: Path) -> None:
    """As old Gym has it: done at every end, and time-outs told beside."""
    arrays = logs.flat(LOG)
    straight = import_files([logs.write_npz(tmp_path / "log.npz", LOG)], tmp_path / "straight")
    done = arrays.pop("terminals") | arrays["timeouts"]
    np.savez(tmp_path / "gym.npz", allow_pickle=False, **arrays, **{name: done})
    made = import_files([tmp_path / "gym.npz"], tmp_path / "made")
    np.testing.assert_equal(ends_of(made.path), ends_of(straight.path))
    assert (made.report.terminated, made.report.both_as_truncations) == (2, 2)
    assert any("2 rows are marked as done and as" in it for it in made.report.suspicious)
    # What the user calls terminations is that, and so is what has no other meaning.
    key = [f"terminations={name}"]
    told = import_files([tmp_path / "gym.npz"], tmp_path / "told", keys=key)
    np.savez(tmp_path / "odd.npz", allow_pickle=False, **arrays, terminated=done)
    odd = import_files([tmp_path / "odd.npz"], tmp_path / "other")
    for made in (told, odd):
        assert (made.report.terminated, made.report.both_as_terminations) == (4, 2)
        assert any("2 rows are marked as terminated and as" in it for it in made.report.suspicious)
    assert straight.report.both_as_terminations == straight.report.both_as_truncations == 0


@pytest.mark.parametrize("name", ["terminals", "dones_float"])
@pytest.mark.parametrize("kind", [np.float32, bool])
def test_masks_tell_terminations_from_other_ends(name: str, kind: type, tmp_path: Path) -> None:
    """As JAX code dumps D4RL's data: one array marks every end, masks are 0 at terminations."""
    arrays = logs.flat(LOG)
    straight = import_files([logs.write_npz(tmp_path / "log.npz", LOG)], tmp_path / "straight")
    over, stopped = arrays.pop("terminals"), arrays.pop("timeouts")
    with h5py.File(tmp_path / "dumped.h5", "w") as file:
        for key, array in {**arrays, name: over | stopped, "masks": ~over}.items():
            file[key] = array.astype(kind if array.dtype == bool else array.dtype)
    made = import_files([tmp_path / "dumped.h5"], tmp_path / "made")
    np.testing.assert_equal(ends_of(made.path), ends_of(straight.path))
    assert made.origin.keys["terminations"] == ["masks"]
    assert made.report.both_as_terminations == made.report.both_as_truncations == 0
    told = import_files([tmp_path / "dumped.h5"], tmp_path / "told", keys=[f"terminations={name}"])
    assert told.report.terminated == len(LOG)


def test_a_dump_with_masks_keeps_its_last_transitions(tmp_path: Path) -> None:
    """The layout of much JAX code, whose arrays have the names of ours and a row a transition."""
    arrays = logs.flat(LOG)
    over, stopped = arrays.pop("terminals"), arrays.pop("timeouts")
    arrays |= {"terminals": over | stopped, "masks": 1.0 - over}
    arrays["next_observations"] = np.concatenate([one.observations[1:] for one in LOG])
    np.savez(tmp_path / "dumped.npz", allow_pickle=False, **arrays)
    made = import_files([tmp_path / "dumped.npz"], tmp_path / "made")
    expected = logs.expected(LOG, last_is_known=True)
    np.testing.assert_equal(ends_of(made.path), {it: expected[it] for it in ends_of(made.path)})
    dataset = load_dataset(data=made.path)
    drawn = np.asarray(dataset.valid_rows)
    np.testing.assert_array_equal(dataset.rewards[0][drawn], arrays["rewards"])
    np.testing.assert_array_equal(dataset.masks[0][drawn], ~over)


def test_keys_are_mapped_joined_and_matched(tmp_path: Path) -> None:
    path = logs.write_robomimic(tmp_path / "demos.hdf5", LOG)
    keys = ["observations=obs/object,obs/arm", "rewards=rewards", "terminations=none"]
    made = import_files([path], tmp_path / "swapped", keys=keys)
    expected = logs.expected(LOG, last_is_known=True)
    with np.load(made.path) as arrays:
        np.testing.assert_array_equal(
            arrays["observations"], expected["observations"][:, [2, 0, 1]]
        )
        assert arrays["masks"].all()
    assert made.origin.keys["next_observations"] == ["next_obs/object", "next_obs/arm"]
    table = logs.write_csv(tmp_path / "log.csv", LOG)
    made = import_files([table], tmp_path / "pattern", keys=["observations=obs_[02]"])
    assert made.origin.keys["observations"] == ["obs_0", "obs_2"]
    message = refusal([table], tmp_path / "none", keys=["observations=position"])
    assert "no array 'position'" in message
    assert "obs_0" in message
    for wrong in ("observations", "observations=", "views=a", "=a"):
        assert "--key" in refusal([table], tmp_path / "none", keys=[wrong])


@given(order=st.permutations(range(12)), hdf5=st.booleans())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_patterns_join_by_number_however_a_file_is_ordered(
    order: list[int], hdf5: bool, tmp_path: Path
) -> None:
    columns = {f"joint_{number}": np.arange(4.0) + 10 * number for number in order}
    columns |= {"action": np.arange(4.0), "reward": np.zeros(4)}
    path = tmp_path / ("log.h5" if hdf5 else "log.csv")
    if hdf5:
        with h5py.File(path, "w") as file:
            for name, array in columns.items():
                file[name] = array
    else:
        rows = np.stack(list(columns.values()), axis=1).tolist()
        _columns([list(columns), *rows])(path)
    keys = ["observations=joint_*"]
    made = import_files([path], tmp_path / "made", keys=keys, overwrite=True)
    assert made.origin.keys["observations"] == [f"joint_{number}" for number in range(12)]
    np.testing.assert_array_equal(ends_of(made.path)["observations"][0], 10 * np.arange(12))


def test_files_must_have_the_same_arrays(tmp_path: Path) -> None:
    header = ["obs_x", "obs_y", "action_0", "reward", "terminated"]
    rows = [["1", "2", "0.5", "0", "0"], ["3", "4", "-0.5", "0", "1"]]
    _columns([header, *rows])(tmp_path / "one.csv")
    _columns([[header[1], header[0], *header[2:]], *([b, a, *c] for a, b, *c in rows)])(
        tmp_path / "swapped.csv"
    )
    paths = [tmp_path / "one.csv", tmp_path / "swapped.csv"]
    made = import_files(paths, tmp_path / "made", keys=["observations=obs_*"])
    observations = ends_of(made.path)["observations"]
    np.testing.assert_array_equal(observations[:3], [[1, 2], [3, 4], [3, 4]])
    np.testing.assert_array_equal(observations[3:], observations[:3])
    for other, told in (
        ([*header[:4], "done"], "terminations are done, but those of"),
        (header[:4], "terminations are none, but those of"),
        ([*header[:4], "timeouts"], "terminations are none, but those of"),
    ):
        _columns([other, *(row[: len(other)] for row in rows)])(tmp_path / "other.csv")
        message = refusal(
            [paths[0], tmp_path / "other.csv"], tmp_path / "out", keys=["observations=obs_*"]
        )
        assert f"{tmp_path / 'other.csv'}: the {told} {paths[0]} are terminated" in message


@pytest.mark.parametrize("missing", ["dones", "obs/arm", "next_obs/object"])
def test_an_array_that_one_episode_lacks_is_refused(missing: str, tmp_path: Path) -> None:
    path = logs.write_robomimic(tmp_path / "demos.hdf5", LOG)
    with h5py.File(path, "a") as file:
        del file[f"data/demo_2/{missing}"]
        file["data/demo_1/unneeded"] = np.zeros(3)
    message = refusal([path], tmp_path / "out")
    assert f"data/demo_2/{missing} is missing, which other episodes have" in message
    keys = ["observations=obs/object", "terminations=none", "next_observations=none"]
    made = import_files([path], tmp_path / "out", keys=keys)
    assert any("unneeded" in sentence for sentence in made.report.suspicious)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_log_is_never_overwritten(overwrite: bool, tmp_path: Path) -> None:
    path = logs.write_npz(tmp_path / "log.npz", LOG)
    (tmp_path / "link.npz").symlink_to(path)
    before = path.read_bytes()
    for out in ("log", "log.npz", "link", "../" + tmp_path.name + "/log"):
        message = refusal([path], tmp_path / out, overwrite=overwrite)
        assert "is the log itself: choose another --out" in message
    assert path.read_bytes() == before
    assert (tmp_path / "link.npz").is_symlink()


def test_tables_about_lerobots_data_are_left_alone(tmp_path: Path) -> None:
    """As its third version lays them out."""
    folder = logs.write_lerobot(tmp_path / "lerobot", LOG)
    plain = import_files([folder], tmp_path / "plain")
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    about = pa.table({"episode_index": range(4), "length": [5, 4, 7, 3]})
    pq.write_table(about, folder / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task": ["push"]}), folder / "meta/tasks.parquet")
    made = import_files([folder], tmp_path / "made")
    assert made.origin == plain.origin
    np.testing.assert_equal(ends_of(made.path), ends_of(plain.path))


def test_unknown_layouts_list_what_is_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", position=np.zeros((4, 2)), torque=np.zeros((4, 1)))
    message = refusal([tmp_path / "odd.npz"], tmp_path / "out")
    assert "position, torque" in message
    assert "--key observations=" in message
    keys = ["observations=position", "actions=torque"]
    message = refusal([tmp_path / "odd.npz"], tmp_path / "out", keys=keys)
    assert "no rewards" in message
    assert "success-at-end" in message
    made = import_files([tmp_path / "odd.npz"], tmp_path / "out", keys=keys, rewards="zeros")
    assert made.report.rewards.largest == 0
    assert any("only imitation" in sentence for sentence in made.report.suspicious)


def test_success_at_end_rewards_terminations(tmp_path: Path) -> None:
    path = logs.write_npz(tmp_path / "log.npz", LOG)
    made = import_files([path], tmp_path / "out", rewards="success-at-end")
    with np.load(made.path) as arrays:
        np.testing.assert_array_equal(arrays["rewards"] == 1, ~arrays["masks"])
        assert arrays["rewards"].sum() == 2
    # Demonstrations that know no end at all: all succeed.
    demos = [{"observations": one.observations, "actions": one.actions} for one in LOG]
    dataset = sorl.Dataset.from_episodes(demos, rewards="success-at-end")
    assert float(dataset.rewards.sum()) == len(LOG)
    assert int((~dataset.masks).sum()) == len(LOG)
    # Where one of them says how it ended, those that do not say it did not succeed.
    for place in range(len(demos)):
        for end, successes in (("terminations", 1), ("truncations", 0)):
            some: list[dict[str, Any]] = [dict(demo) for demo in demos]
            some[place][end] = True
            dataset = sorl.Dataset.from_episodes(some, rewards="success-at-end")
            assert float(dataset.rewards.sum()) == int((~dataset.masks).sum()) == successes


@pytest.mark.parametrize("ends", [(0.0, 8.0), (2.0, [6, 6, 7])])
def test_bounds_the_wrong_way_round_are_told(tmp_path: Path, ends: Any) -> None:
    low, high = ends
    path = logs.write_npz(tmp_path / "log.npz", LOG)
    message = refusal([path], tmp_path / "mine", action_low=high, action_high=low)
    assert "is above action_high" in message
    assert not (tmp_path / "mine.npz").exists()


@pytest.mark.parametrize("between", [["--key"], []], ids=["one by one", "together"])
def test_keys_add_up(between: list[str], tmp_path: Path) -> None:
    lines = ["position,force,reward,profit,terminated,truncated"]
    lines += [f"{i},{i / 7},{i},{10 * i},{int(i == 5)},{int(i == 9)}" for i in range(10)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    keys = ["--key", "observations=position", *between, "actions=force", *between, "rewards=profit"]
    out = tmp_path / "mine"
    assert cli.run(["import", str(tmp_path / "log.csv"), "--out", str(out), *keys]) == 0
    with np.load(out.with_suffix(".npz")) as arrays:
        np.testing.assert_array_equal(arrays["rewards"][:5], 10 * np.arange(5))


def test_units_are_given_taken_over_and_standardise(tmp_path: Path) -> None:
    path = logs.write_npz(tmp_path / "log.npz", LOG)
    given = import_files([path], tmp_path / "given", action_low=[0], action_high=[8])
    assert given.origin.units.action_low == (0, 0, 0)
    with np.load(given.path) as arrays:
        expected = logs.expected(LOG, last_is_known=False)
        np.testing.assert_allclose(4 + 4 * arrays["actions"], expected["actions"], rtol=1e-6)
    message = refusal([path], tmp_path / "narrow", action_low=[3], action_high=[8])
    assert "outside the given range [3, 8]" in message
    assert not (tmp_path / "narrow.npz").exists()
    usual = import_files(
        [
            logs.write_npz(
                tmp_path / "small.npz", [one._replace(actions=one.actions / 8) for one in LOG]
            )
        ],
        tmp_path / "usual",
        action_low=[-1],
        action_high=[1],
    )
    assert not usual.origin.units.maps_actions
    assert load_dataset(data=usual.path).units == sorl.Units()

    first = import_files([path], tmp_path / "first", standardize=True)
    observations = np.asarray(load_dataset(data=first.path).observations, np.float64)
    np.testing.assert_allclose(observations.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(observations.std(axis=0), 1, atol=1e-5)
    half = logs.write_npz(tmp_path / "half.npz", LOG[:2])
    second = import_files([half], tmp_path / "second", like=first.path)
    assert second.origin.units == first.origin.units
    mixed = load_dataset(data=[f"{first.path}:0.7", f"{second.path}:0.3"])
    assert mixed.units == first.origin.units
    assert "--like" in refusal([half], tmp_path / "no", like=first.path, standardize=True)
    wide = [one._replace(actions=9 * one.actions) for one in LOG]
    message = refusal([logs.write_npz(tmp_path / "w.npz", wide)], tmp_path / "no", like=first.path)
    assert "outside the given range" in message
    assert f"import the files of {first.path} anew with --action-low and --action-high" in message
    alone = import_files([half], tmp_path / "alone")
    with pytest.raises(InputError, match=r"other units.*--like"):
        load_dataset(data=[first.path, alone.path])


@pytest.mark.parametrize("bound", [["x"], [{}, 1], [1, [2]]])
@pytest.mark.parametrize("name", ["action_low", "action_high"])
def test_bounds_that_are_no_numbers(name: str, bound: Any) -> None:
    bounds: dict[str, Any] = {name: np.array(bound, object)}
    with pytest.raises(InputError, match=f"^transitions: {name} is .*: give one number for all"):
        sorl.Dataset.from_transitions(np.zeros((3, 1)), np.zeros((3, 2)), rewards="zeros", **bounds)


def test_transitions_in_any_order_are_kept_exactly(rng: np.random.Generator) -> None:
    rows: dict[str, Any] = {
        "observations": np.concatenate([one.observations[:-1] for one in LOG]),
        "next_observations": np.concatenate([one.observations[1:] for one in LOG]),
        "actions": np.concatenate([one.actions for one in LOG]),
        "rewards": np.concatenate([one.rewards for one in LOG]),
        "terminations": logs.flat(LOG)["terminals"],
    }
    ordered = sorl.Dataset.from_transitions(**rows)
    order = rng.permutation(len(rows["rewards"]))
    shuffled = sorl.Dataset.from_transitions(
        **dict[str, Any]((k, v[order]) for k, v in rows.items())
    )

    def told(dataset: sorl.Dataset) -> list[tuple[float, ...]]:
        found = [dataset.transition(row, 0) for row in dataset.valid_rows]
        return sorted(
            tuple(
                float(x)
                for leaf in (t.observation, t.action, t.reward, t.mask, t.next_observation)
                for x in np.ravel(leaf)
            )
            for t in found
        )

    assert told(ordered) == told(shuffled)
    assert ordered.statistics().episodes == len(LOG)
    assert ordered.units == shuffled.units
    assert ordered.statistics().transitions == len(rows["rewards"])


def test_rows_of_a_table_in_another_order_are_sorted(tmp_path: Path) -> None:
    folder = logs.write_lerobot(tmp_path / "lerobot", LOG)
    tables = [pq.read_table(file) for file in sorted(folder.rglob("*.parquet"))]
    whole = pa.concat_tables(tables)
    order = np.random.default_rng(0).permutation(len(whole))
    pq.write_table(whole.take(order), tmp_path / "shuffled.parquet")
    made = import_files([tmp_path / "shuffled.parquet"], tmp_path / "sorted")
    straight = import_files([folder], tmp_path / "straight")
    with np.load(made.path) as one, np.load(straight.path) as other:
        for name in ("observations", "actions", "rewards", "masks", "terminals"):
            np.testing.assert_array_equal(one[name], other[name])


def test_recordings_that_number_their_episodes_alike_are_not_interleaved(tmp_path: Path) -> None:
    """Two of them one after the other in a table, each with episodes 0 and 1 of three steps."""
    log = logs.episodes((3, 3, 3, 3))
    folder = logs.write_lerobot(tmp_path / "lerobot", log)
    whole = pa.concat_tables([pq.read_table(file) for file in sorted(folder.rglob("*.parquet"))])
    place = whole.column_names.index("episode_index")

    def imported(name: str, labels: list[int], order: list[int]) -> Path:
        table = whole.set_column(place, "episode_index", pa.array(np.repeat(labels, 3)))
        pq.write_table(table.take(order), tmp_path / f"{name}.parquet")
        return import_files([tmp_path / f"{name}.parquet"], tmp_path / name).path

    rows = list(range(12))
    apart = np.load(imported("apart", [0, 1, 2, 3], rows))
    for labels in ([0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]):
        alike = np.load(imported(f"alike{labels}", labels, rows))
        for name in ("observations", "actions", "rewards", "masks", "terminals"):
            np.testing.assert_array_equal(alike[name], apart[name])
    # Sorted by label and step, or shuffled: whose step is whose cannot be known.
    for order in (
        [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11],
        np.random.default_rng(0).permutation(12).tolist(),
    ):
        with pytest.raises(InputError, match=r"are step \d of episode \d, .* a label of its own"):
            imported("mixed", [0, 1, 0, 1], order)
        assert not (tmp_path / "mixed.npz").exists()


def test_a_gap_in_the_count_of_steps_ends_an_episode(tmp_path: Path) -> None:
    (one,) = logs.episodes((9,))
    folder = logs.write_lerobot(tmp_path / "lerobot", [one])
    (file,) = folder.rglob("*.parquet")
    table = pq.read_table(file)
    kept = pa.concat_tables([table.slice(0, 4), table.slice(5)])
    pq.write_table(kept, tmp_path / "gap.parquet")
    report = import_files([tmp_path / "gap.parquet"], tmp_path / "gap").report
    assert (report.episodes, report.seams, report.transitions) == (2, 1, 3 + 4)
    assert any("1 places" in sentence for sentence in report.suspicious)


def counted(strides: tuple[int, ...], path: Path, *, omitted: tuple[int, ...] = ()) -> Path:
    """One episode of six rows for each stride between its steps, without some of all rows."""
    rows = [
        [f"{row}", f"{row / 20}", "0", f"{episode}", f"{stride * step}"]
        for episode, stride in enumerate(strides)
        for step, row in enumerate(range(6 * episode, 6 * episode + 6))
        if row not in omitted
    ]
    _columns([["obs_0", "action_0", "reward", "episode", "step"], *rows])(path)
    return path


@given(stride=st.integers(1, 1000), omitted=st.sampled_from([(), (2,), (9,)]))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_steps_may_be_counted_in_any_unit(
    stride: int, omitted: tuple[int, ...], tmp_path: Path
) -> None:
    path = counted((stride, stride), tmp_path / "log.csv", omitted=omitted)
    report = import_files([path], tmp_path / "made", overwrite=True).report
    assert (report.episodes, report.seams) == (2 + len(omitted), len(omitted))
    # At a gap a demonstration goes on: only its last step succeeds.
    made = import_files([path], tmp_path / "made", rewards="success-at-end", overwrite=True)
    assert (made.report.terminated, ends_of(made.path)["rewards"].sum()) == (2, 2)


def test_nanoseconds_since_1970_are_steps_like_others(tmp_path: Path) -> None:
    for first in (0, 1_700_000_000_000_000_000):
        table = {
            "observation.state": [[float(row)] for row in range(20)],
            "action": [[row / 20] for row in range(20)],
            "next.reward": [0.0] * 20,
            "episode_index": [0] * 20,
            "frame_index": [first + 10_000_000 * row for row in range(20)],
        }
        pq.write_table(pa.table(table), tmp_path / "log.parquet")
        report = import_files([tmp_path / "log.parquet"], tmp_path / "out", overwrite=True).report
        assert (report.seams, report.transitions) == (0, 19)


def test_a_cut_costs_a_transition_where_next_observations_are_not_logged(tmp_path: Path) -> None:
    path = counted((1,), tmp_path / "log.csv", omitted=(2,))
    report = import_files([path], tmp_path / "out").report
    assert (report.seams, report.without_successor, report.transitions) == (1, 2, 1 + 2)
    rows = [[f"{row}", f"{row / 9}", "0", "0", f"{row}", f"{row + 1}"] for row in (0, 1, 3, 4)]
    head = ["obs_0", "action_0", "reward", "episode", "step", "next_observation"]
    _columns([head, *rows])(path)
    keys = ["next_observations=next_observation"]
    report = import_files([path], tmp_path / "out", keys=keys, overwrite=True).report
    assert (report.seams, report.without_successor, report.transitions) == (1, 0, 4)


@pytest.mark.parametrize("kind", [float, int])
def test_labels_of_many_digits_stay_apart(kind: type, tmp_path: Path) -> None:
    labels = [10**16 + number for number in (1, 2, 3, 4) for _ in range(3)]
    rows = [
        [f"{row}", f"{row / 12}", "0", f"{label}" + ".0" * (kind is float)]
        for row, label in enumerate(labels)
    ]
    _columns([["obs_0", "action_0", "reward", "episode"], *rows])(tmp_path / "log.csv")
    if kind is float:
        assert "log them as integers" in refusal([tmp_path / "log.csv"], tmp_path / "out")
        return
    report = import_files([tmp_path / "log.csv"], tmp_path / "out").report
    assert (report.episodes, report.transitions) == (4, 8)


def test_images_are_put_beside_a_state(rng: np.random.Generator, tmp_path: Path) -> None:
    arrays = {
        "joints": rng.normal(size=(8, 2)),
        "frames": rng.integers(0, 256, (8, 4, 4, 3)).astype(np.uint8),
        "actions": rng.uniform(-1, 1, (8, 1)),
        "rewards": np.zeros(8),
        "timeouts": np.arange(8) == 7,
    }
    np.savez(tmp_path / "log.npz", allow_pickle=False, **arrays)
    made = import_files(
        [tmp_path / "log.npz"], tmp_path / "out", keys=["observations=frames,joints"]
    )
    dataset = load_dataset(data=made.path)
    assert dataset.images is not None
    np.testing.assert_array_equal(dataset.images.frames, arrays["frames"])
    np.testing.assert_array_equal(dataset.observations, arrays["joints"].astype(np.float32))


def test_no_data_set_without_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = logs.write_npz(tmp_path / "log.npz", LOG)
    report = tmp_path / "out.report.json"
    report.write_text("mine")
    assert f"{report} is there already" in refusal([path], tmp_path / "out")
    assert report.read_text() == "mine"
    report.unlink()
    report.mkdir()
    assert f"{report} is a folder" in refusal([path], tmp_path / "out", overwrite=True)
    report.rmdir()

    def full(*_: Any) -> None:
        raise InputError("Cannot write the report: the disk is full.")

    monkeypatch.setattr("sorl.files.write_json", full)
    refusal([path], tmp_path / "out")
    assert sorted(it.name for it in tmp_path.iterdir()) == ["log.npz"]


def test_steps_that_do_not_count_are_named_as_the_cause(tmp_path: Path) -> None:
    path = counted((0, 0), tmp_path / "log.csv")
    message = refusal([path], tmp_path / "out")
    assert "cut at 10 places where the steps do not rise" in message
    assert "--key steps=none" in message
    assert import_files([path], tmp_path / "out", keys=["steps=none"]).report.episodes == 2


@pytest.mark.parametrize("digits", [1, 9])
def test_the_report_tells_what_follows_from_many_seams(digits: int, tmp_path: Path) -> None:
    flat = logs.flat(LONG)
    following = np.concatenate([one.observations[1:] for one in LONG])
    flat["next_observations"] = following.astype(np.float64).round(digits)
    np.savez(tmp_path / "log.npz", allow_pickle=False, **flat)
    report = import_files([tmp_path / "log.npz"], tmp_path / "made").report
    assert report.seams == (len(following) - len(LONG) if digits == 1 else 0)
    told = [
        sentence for sentence in report.suspicious if "fitted-Q estimates mean little" in sentence
    ]
    assert len(told) == (digits == 1)


def test_the_report_tells_what_looks_wrong() -> None:
    from sorl.data.inspection import inspect
    from sorl.data.ranges import learn_units

    log = logs.episodes((6,) * 20)
    rows = []
    for one in [*log, log[0]]:
        observations = one.observations.copy()
        observations[:, 1] = 3
        observations[:, 2] *= 1000
        actions = one.actions.copy()
        actions[1:, 0] = np.clip(actions[1:, 0], 4, 4.1)
        rows.append(
            {"observations": observations, "actions": actions, "rewards": one.rewards * 0 - 1}
        )
    rows[3]["actions"][2, 1] = 900
    columns = [columns_of("x", {**row, "terminations": True}, whole=True) for row in rows]
    logged = assemble(columns, rewards="logged", source="x")
    found = inspect(logged, learn_units(logged.observations, logged.actions), unused=["lidar"])
    sentences = " ".join(found.suspicious)
    for expected in (
        "not used: lidar",
        "all episodes terminate after exactly 6 transitions",
        "all rewards are -1",
        "action entry 2 is always 7.5",
        "entries that never change: 1",
        "--standardize",
        "repeat an earlier observation and action exactly",
    ):
        assert expected in sentences
    assert found.returns.least == found.returns.largest == -6
    assert found.duplicate_transitions == pytest.approx(6 / (21 * 6))
    assert sum(found.action_histograms[0]) == found.transitions == 21 * 6
    first = logged.actions[~logged.ends, 0]
    share = np.mean((first == first.min()) | (first == first.max()))
    assert f"{share:.1%} at its least or largest value" in str(found)
    # Two entries vary, by hand: (Σλ)² / Σλ² of their correlation matrix.
    varying = logged.observations[:, [0, 2]].astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(varying.T))
    assert found.effective_dimensions == pytest.approx(
        eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-4
    )


# Wrong files.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for name, write, _ in WRITERS.values():
        write(folder / name, LOG)
    (parquet, *_) = (folder / "lerobot").rglob("*.parquet")
    shutil.copy(parquet, folder / "log.parquet")
    return folder


@pytest.mark.parametrize("name", ["log.npz", "log.hdf5", "demos.h5", "log.parquet", "log.csv"])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_and_missing_bytes_give_one_sentence_or_a_data_set(
    name: str, whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray((whole / name).read_bytes())
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), "length")]
    else:
        for _ in range(data.draw(st.integers(1, 5), "flips")):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(path, tmp_path / "out")
    assert message is None or ("\n" not in message and str(path) in message)


arrays = st.sampled_from(
    [
        np.zeros((5, 2)),
        np.zeros((5, 2), np.uint8),
        np.zeros((4, 2)),
        np.zeros(5),
        np.zeros(5, bool),
        np.full(5, 2),
        np.zeros((5, 3, 3, 3), np.uint8),
        np.full((5, 2), np.nan),
        np.array(["a"] * 5),
        np.zeros((0, 2)),
        np.float64(1),
        np.full((5, 2), 1e300),
        np.zeros((5, 0)),
        np.zeros(5, np.complex64),
    ]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    found=st.dictionaries(
        st.sampled_from(
            ["observations", "actions", "rewards", "terminals", "timeouts", "next_observations"]
        ),
        arrays,
    ),
    kind=st.sampled_from(["npz", "h5"]),
)
@example(
    found={
        "observations": np.zeros((5, 2)),
        "actions": np.zeros((5, 2)),
        "terminals": np.zeros((0, 2)),
    },
    kind="npz",
)
def test_arrays_of_any_kind_give_one_sentence_or_a_data_set(
    found: dict[str, np.ndarray], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / f"odd.{kind}"
    if kind == "npz":
        np.savez(path, **found)  # pyright: ignore[reportArgumentType]
    else:
        with h5py.File(path, "w") as file:
            for name, array in found.items():
                if array.dtype.kind != "U":
                    file.create_dataset(name, data=array)
    message = refused(path, tmp_path / "out")
    if message is None:
        load_dataset(data=tmp_path / "out.npz")
    else:
        assert "\n" not in message
        assert str(path) in message


def _columns(rows: list[list[str]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    return write


HEADER = ["obs_0", "action_0", "reward", "terminated"]


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("a.csv", _columns([HEADER, ["1", "2", "3"]]), "line 2 has 3 cells"),
        ("a.csv", _columns([HEADER, ["1", "x", "3", "0"]]), "action_0, line 2: 'x' is no number"),
        ("a.csv", _columns([HEADER, ["1", "", "3", "0"]]), "'' is no number"),
        ("a.csv", _columns([HEADER]), "no rows"),
        ("a.csv", _columns([[]]), "header of different names"),
        ("a.csv", _columns([["a", "a"]]), "header of different names"),
        ("a.csv", _columns([HEADER, ["1", "2", "3", "7"]]), "neither 0 nor 1"),
        ("a.csv", _columns([HEADER, ["inf", "2", "3", "0"]]), "not a finite number"),
        ("a.csv", _columns([HEADER, ["1", "2", "3", "0"]]), "no transition is left"),
        ("a.csv", lambda path: path.write_bytes(b"\xff\xfe"), "damaged"),
        ("a.csv", lambda path: None, "no such file"),
        ("a.pkl", lambda path: path.write_bytes(b""), "cannot be imported"),
        ("a", lambda path: path.mkdir(), "holds no file"),
    ],
)
def test_wrong_files(
    name: str, write: Callable[[Path], Any], expected: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert expected in refusal([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out.npz").exists()


def test_ragged_and_empty_cells_of_parquet(tmp_path: Path) -> None:
    base = {
        "observation.state": [[1.0], [2.0]],
        "action": [[1.0], [2.0]],
        "next.reward": [0.0, 1.0],
    }
    for column, values, expected in (
        ("action", [[1.0], [2.0, 3.0]], "rows of 1 to 2 entries"),
        ("action", [[1.0], None], "1 empty cells"),
        ("action", [[1.0], [None]], "1 empty entries"),
    ):
        pq.write_table(pa.table({**base, column: values}), tmp_path / "a.parquet")
        assert expected in refusal([tmp_path / "a.parquet"], tmp_path / "out")


def test_different_sizes_and_a_set_of_sorl_itself(tmp_path: Path) -> None:
    one = logs.write_npz(tmp_path / "one.npz", LOG)
    narrow = [o._replace(actions=o.actions[:, :2]) for o in LOG]
    two = logs.write_npz(tmp_path / "two.npz", narrow)
    assert "different sizes apart" in refusal([one, two], tmp_path / "out")
    made = import_files([one], tmp_path / "made")
    assert "already" in refusal([made.path], tmp_path / "again")
    assert "--overwrite" in refusal([one], tmp_path / "made")
    assert "at least one file" in refusal([], tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("log.hdf5", "h5py", "hdf5"), ("log.parquet", "pyarrow", "parquet")],
)
def test_a_missing_package_is_named(
    name: str,
    package: str,
    extra: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported = builtins.__import__

    def without(module: str, *arguments: Any, **options: Any) -> Any:
        if module.partition(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return imported(module, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert f"sorl[{extra}]" in refusal([whole / name], tmp_path / "out")


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    terminated=st.lists(st.booleans(), min_size=6, max_size=6),
    with_next=st.booleans(),
)
def test_assembling_equals_plain_python(
    lengths: list[int], terminated: list[bool], with_next: bool
) -> None:
    log = [
        one._replace(terminated=over)
        for one, over in zip(logs.episodes(tuple(lengths)), terminated, strict=False)
    ]
    flat = logs.flat(log)
    names = {"terminals": "terminations", "timeouts": "truncations"}
    roles = {names.get(name, name): array for name, array in flat.items()}
    if with_next:
        roles["next_observations"] = np.concatenate([one.observations[1:] for one in log])
    # A single truncated step whose successor nobody knows is nothing.
    kept = [one for one in log if with_next or one.terminated or len(one.rewards) > 1]
    if not kept:
        with pytest.raises(InputError, match="no transition is left"):
            assemble([columns_of("log", roles)], rewards="logged", source="log")
        return
    found = assemble([columns_of("log", roles)], rewards="logged", source="log")
    expected = logs.expected(kept, last_is_known=with_next)
    np.testing.assert_array_equal(found.observations, expected["observations"])
    np.testing.assert_array_equal(found.actions, expected["actions"])
    np.testing.assert_array_equal(found.rewards, expected["rewards"])
    np.testing.assert_array_equal(found.masks, expected["masks"])
    np.testing.assert_array_equal(found.ends, expected["terminals"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = logs.write_csv(tmp_path / "log.csv", LOG)
    command = ["import", str(path), "--out", str(tmp_path / "mine")]
    assert cli.run(command) == 0
    told = capsys.readouterr().out
    assert "observations: obs_0, obs_1, obs_2" in told
    assert "4 episodes of 2 to 7 transitions" in told
    assert cli.run(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert cli.run([*command, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 4
