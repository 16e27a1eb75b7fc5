"""Data on the disk: the same batches as data on the device, and the same training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sorl
from sorl import cli, streaming
from sorl.data.dataset import Dataset
from sorl.data.importing import import_files
from sorl.data.sharding import make_shards
from sorl.data.shards import Manifest, Shards, is_shards, open_shards
from sorl.data.sources import load_dataset, open_stream
from sorl.errors import InputError
from sorl.jobs.calibration import held_out_file, states_of
from sorl.members import Snapshot, members_of, update_keys
from sorl.training import train

SIZES = ((4, 6, 3), (5,), (2, 9))
"""Rows of each episode, of each file."""


def write(path: Path, lengths: tuple[int, ...], seed: int) -> Path:
    rng, rows = np.random.default_rng(seed), sum(lengths)
    ends = np.zeros(rows, np.float32)
    ends[np.cumsum(lengths) - 1] = 1
    np.savez(
        path,
        allow_pickle=False,
        observations=rng.normal(size=(rows, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        terminals=ends,
        rewards=-rng.uniform(0, 2 + seed, rows).astype(np.float32),
        # No transition begins at an end, so files whose masks are 0 there alone are refused.
        masks=np.maximum(rng.uniform(size=rows) < 0.7, ends).astype(np.float32),
    )
    return path


@pytest.fixture(scope="module")
def files_of(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    write(folder / "a-000-val.npz", (3,), 9)
    return [write(folder / f"a-{i:03d}.npz", sizes, i) for i, sizes in enumerate(SIZES)]


@pytest.fixture(scope="module")
def shards(files_of: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return make_shards([files_of[0].parent], tmp_path_factory.mktemp("shards") / "made")


@pytest.fixture(scope="module")
def whole(files_of: list[Path]) -> Dataset:
    """The same rows on the device."""
    parts = [load_dataset(data=path) for path in files_of]

    def joined(name: str, axis: int = 0) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(part, name)) for part in parts], axis)

    return Dataset.from_arrays(
        joined("observations"),
        joined("actions"),
        joined("ends").astype(float),
        joined("rewards", 1),
        joined("masks", 1),
    )


def same(found: Any, expected: Any) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


# What lies on the disk.


def test_every_transition_by_its_number(shards: Shards, whole: Dataset) -> None:
    assert shards.transitions == len(whole.valid_rows) == 29 - 6
    assert (shards.spec, shards.tasks, shards.rows) == (whole.spec, whole.tasks, whole.rows)
    np.testing.assert_array_equal(shards.largest_rewards, whole.largest_rewards)
    numbers = np.arange(shards.transitions)
    found = shards.read(numbers, np.zeros(1, int))
    same(found, jax.vmap(whole.transition, in_axes=(0, None))(whole.valid_rows, 0))
    assert {leaf.dtype for leaf in found} == {np.dtype(np.float32)}
    mixed = np.array([[22, 0, 0], [11, 12, 13]])
    picked = shards.read(mixed, np.zeros((2, 1), int))
    same(picked, jax.tree.map(lambda leaf: leaf[mixed], found))


@given(data=st.data())
def test_rows_of_any_episodes(data: st.DataObject, tmp_path_factory: Any) -> None:
    sizes = data.draw(
        st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=4), min_size=1, max_size=3)
    )
    folder = tmp_path_factory.mktemp("any")
    paths = [write(folder / f"{i}.npz", tuple(each), i) for i, each in enumerate(sizes)]
    made = make_shards(paths, folder / "out")
    expected = [load_dataset(data=path) for path in paths]
    found = made.read(np.arange(made.transitions), np.zeros(1, int))
    rows = [np.asarray(data.observations[data.valid_rows + 1]) for data in expected]
    np.testing.assert_array_equal(found.next_observation, np.concatenate(rows))


def test_several_tasks_of_an_environment(tmp_path: Path) -> None:
    name = "cube-single-play-singletask-v0"
    sorl.generate("cube-single-play-v0", out=tmp_path, episodes=1, workers=1, seed=0)
    file = tmp_path / "cube-single-play-v0.npz"
    made = make_shards([file], tmp_path / "shards", environment=name)
    assert (made.environment, made.tasks) == ("cube-single-play-v0", (1, 2, 3, 4, 5))
    wanted = open_stream(name, tmp_path / "shards", tasks=(4, 2))
    expected = load_dataset(name, data=file, tasks=(4, 2))
    assert wanted.tasks == expected.tasks
    np.testing.assert_array_equal(wanted.largest_rewards, expected.largest_rewards)
    numbers = np.arange(wanted.transitions)
    for place in (0, 1):
        found = wanted.read(numbers, wanted.task_places[place : place + 1])
        every = jax.vmap(expected.transition, in_axes=(0, None))
        same(found, every(expected.valid_rows, place))
    assert open_stream(name, made.path).tasks == (2,), "the task that the name means"
    assert wanted.fingerprint != made.fingerprint
    with pytest.raises(InputError, match="was made of cube-single-play-v0, not of cube-double"):
        open_stream("cube-double-play-singletask-v0", made.path)
    with pytest.raises(InputError, match="judged by what lies on the device"):
        open_stream(None, made.path)


# Training.

ALGORITHM = sorl.SORL(hidden=(8,), discretization=4, backprop_steps=2, q_loss_coef=1.0)


def test_batches_are_those_that_the_device_draws(
    shards: Shards, whole: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = members_of((0,), (0, 3))
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 1)
    layout = streaming.lay_out(members, shards.tasks, jnp.asarray(shards.largest_rewards))
    blocks = streaming._Blocks(shards, layout, 7, 3, 5, 4, 12)
    assert blocks.parts == [(4, 1), (5, 3), (8, 2), (10, 2)]
    drawn: dict[tuple[int, int], Any] = {}
    for (first, count), block in zip(blocks.parts, streaming._read_ahead(blocks), strict=True):
        for place in range(len(members)):
            for offset in range(count):
                drawn[place, first + offset] = [leaf[place, offset] for leaf in block]
    assert len(drawn) == 2 * 8
    for (place, update), found in drawn.items():
        sample_key, _ = update_keys(layout.keys[place], jnp.int32(update))
        same(found, list(whole.sample(sample_key, 0, 7)))


def test_numbers_are_drawn_uniformly(shards: Shards) -> None:
    """Chi-squared over all transitions; and no two members or updates share their draws."""
    members = members_of((0,), (0, 1))
    layout = streaming.lay_out(members, shards.tasks, jnp.asarray(shards.largest_rewards))
    blocks = streaming._Blocks(shards, layout, 4000, 5, 5, 0, 5)
    numbers = blocks.numbers(0)
    assert numbers.shape == (2, 5, 4000)
    counts = np.bincount(numbers.ravel(), minlength=shards.transitions)
    expected = numbers.size / shards.transitions
    # 22 degrees of freedom: above 48.3 once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 48.3
    flat = numbers.reshape(10, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(10)).max() < 0.08


@pytest.mark.parametrize("block_bytes", [1, 5000, streaming.BLOCK_BYTES])
def test_training_equals_that_on_the_device(
    block_bytes: int, shards: Shards, whole: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", block_bytes)
    options: Any = {"seeds": (0, 1), "updates": 11, "chunk": 4, "batch_size": 16}
    for found, expected in zip(
        train(ALGORITHM, shards, **options), train(ALGORITHM, whole, **options), strict=True
    ):
        assert (found.update, found.members) == (expected.update, expected.members)
        assert found.metrics.keys() == expected.metrics.keys()
        for name, value in expected.metrics.items():
            np.testing.assert_allclose(found.metrics[name], value, rtol=2e-4, atol=1e-5)
        pairs = zip(jax.tree.leaves(found.state), jax.tree.leaves(expected.state), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=2e-3, atol=2e-5)


def test_several_devices_get_the_batches_of_their_members(shards: Shards) -> None:
    """In a process with 8 devices, of which 4 members take 4, as in this one."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import jax, numpy as np
import test_streaming as t
last = t.last_of_four(t.open_shards({str(shards.path)!r}))
assert len(jax.devices()) == 8 and len(last.state.alive.sharding.device_set) == 4
sys.stdout.buffer.write(np.asarray(last.state.algorithm.actor.mlp.layers[0].weight).tobytes())
"""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True
    )
    one = np.asarray(last_of_four(shards).state.algorithm.actor.mlp.layers[0].weight)
    found = np.frombuffer(done.stdout, np.float32).reshape(one.shape)
    np.testing.assert_allclose(found, one, rtol=2e-3, atol=2e-5)


def last_of_four(shards: Shards) -> Snapshot:
    *_, last = train(ALGORITHM, shards, seeds=range(4), updates=6, chunk=4, batch_size=16)
    return last


def test_going_on_is_exact(shards: Shards) -> None:
    options: Any = {"seeds": (5,), "chunk": 4, "batch_size": 16}
    *_, last = train(ALGORITHM, shards, updates=12, **options)
    half = next(train(ALGORITHM, shards, updates=12, **options))
    assert half.update == 4
    start = half.update, jax.tree.map(jnp.copy, half.state)
    *_, again = train(ALGORITHM, shards, updates=12, start=start, **options)
    same(again.state, last.state)
    same(dict(again.metrics), dict(last.metrics))


def test_a_member_that_diverges_is_put_back(shards: Shards) -> None:
    wild = sorl.SORL(hidden=(8,), discretization=4, backprop_steps=2, learning_rate=1e20)
    found = list(train(wild, shards, seeds=(0,), updates=8, chunk=4, batch_size=16))
    assert found[0].stopped
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[-1].state.algorithm))
    assert np.isnan(found[1].metrics["critic/loss"]).all()


def test_a_block_has_a_bounded_size(shards: Shards) -> None:
    numbers = 2 * (3 + 2) + 3
    assert streaming.block_length(shards, 1, 16, 4) == 4
    most = streaming.BLOCK_BYTES // (4 * numbers * 8 * 256)
    assert most // 2 < streaming.block_length(shards, 8, 256, 10**6) <= most
    assert streaming.block_length(shards, 1000, 2**20, 250) == 1


# By the command.


def test_from_files_to_an_evaluated_run_and_on(
    files_of: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "shards"
    assert cli.run(["shard", str(files_of[0].parent), "--out", str(made)]) == 0
    assert "3 of 3 shards, 29 rows in 6 episodes, 3 observation entries" in capsys.readouterr().out
    assert cli.run(["info", str(made)]) == 0
    solved = Manifest.read(made).shards
    assert f"task 0: {sum(s.success_rows[0] for s in solved)} terminating rows" in (
        capsys.readouterr().out
    )
    run = tmp_path / "run"
    words = ["train", "bc", "--env", "gym:tiny_environments:Reach-v0", "--data", str(made)]
    words += ["--hidden", "8", "--batch-size", "8", "--updates", "6", "--log-every", "3"]
    words += ["--episodes", "1", "--workers", "1"]
    words += ["--evaluate-every", "6", "--tensorboard", "False", "--out", str(run)]
    assert cli.run(words) == 0, capsys.readouterr().err
    opened = sorl.Run.open(run)
    assert opened.config["dataset"]["rows"] == 29
    assert len(opened.evaluations()) == 1
    assert cli.run(["resume", str(run)]) == 0
    assert held_out_file(opened) == made
    assert states_of(opened, made, 50, seed=0).shape == (50, 3)
    capsys.readouterr()
    shutil.rmtree(made / "00001")
    assert cli.run(["resume", str(run)]) == 2
    assert "There is no" in capsys.readouterr().err


def test_held_out_states_are_in_the_users_units(tmp_path: Path) -> None:
    """Policies standardise what they are given: it must not be standardised already."""
    logged = write(tmp_path / "log.npz", (6, 9), 0)
    with np.load(logged) as arrays:
        changed = {key: arrays[key] for key in ("actions", "rewards", "terminals")}
        observations = 20 + 300 * arrays["observations"]
    np.savez(logged, allow_pickle=False, observations=observations, **changed)
    imported = import_files([logged], tmp_path / "imported", standardize=True).path
    shards = make_shards([imported], tmp_path / "made")
    assert shards.units.standardises
    states = states_of(sorl.Run(tmp_path, {}), shards.path, 200, seed=0)
    assert states.dtype == np.float32
    with np.load(imported) as arrays:
        apart = np.abs(states[:, None] - arrays["observations"]).max(axis=-1)
    assert apart.min(axis=1).max() < 1e-3
    assert len(set(apart.argmin(axis=1))) > 9


def test_making_shards_goes_on(
    files_of: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sorl.data import sharding

    made, read = tmp_path / "made", []

    def load(environment: str | None, *, data: Path, tasks: Any) -> Dataset:
        read.append(data.name)
        if len(read) == 2:
            raise KeyboardInterrupt
        return load_dataset(environment, data=data, tasks=tasks)

    monkeypatch.setattr(sharding, "load_dataset", load)
    with pytest.raises(KeyboardInterrupt):
        make_shards(files_of, made)
    assert is_shards(made)
    with pytest.raises(InputError, match="1 of 3 shards: give the command"):
        open_shards(made)
    with pytest.raises(InputError, match="shards of other files"):
        make_shards(files_of[1:], made)
    shards = make_shards(files_of, made)
    assert read == ["a-000.npz", "a-001.npz", "a-001.npz", "a-002.npz"]
    fresh = make_shards(files_of, tmp_path / "fresh")
    assert fresh.fingerprint == shards.fingerprint
    make_shards(files_of, made)
    assert len(read) == 7, "what is complete is not read again"


def test_a_file_that_has_changed_is_noticed(files_of: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in files_of]
    made = tmp_path / "made"
    shards = make_shards(copies, made)
    size = copies[1].stat().st_size
    with np.load(files_of[1], allow_pickle=False) as arrays:
        np.savez(copies[1], allow_pickle=False, **{**arrays, "rewards": -arrays["rewards"]})
    assert copies[1].stat().st_size == size
    with pytest.raises(InputError, match=f"{copies[1]} is another file than when"):
        make_shards(copies, made)
    # Shards that were made before contents were kept are known by names and sizes alone.
    told = json.loads((made / "shards.json").read_text())
    for shard in told["shards"]:
        del shard["contents"]
    (made / "shards.json").write_text(json.dumps(told))
    assert make_shards(copies, made).fingerprint == shards.fingerprint


def test_a_file_by_two_paths_is_one(files_of: list[Path], tmp_path: Path) -> None:
    folder, first = files_of[0].parent, files_of[0]
    detour = folder / ".." / folder.name / first.name
    for twice in ([folder, first], [first, detour]):
        with pytest.raises(InputError, match="named twice"):
            make_shards(twice, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    with pytest.raises(InputError, match="named twice"):
        load_dataset(data=[str(first), str(detour)])


def test_making_shards_goes_on_after_a_kill_before_the_first_one(
    files_of: list[Path], tmp_path: Path
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / ".saving-shards.json").write_text("{")
    assert len(make_shards(files_of, made).shards) == 3
    assert not list(made.glob(".*"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no shards"):
        make_shards(files_of, tmp_path / "other")


def test_more_shards_than_files_may_be_open_at_first(files_of: list[Path], tmp_path: Path) -> None:
    """In a process of its own, since limits are of processes."""
    made = make_shards(files_of[:1], tmp_path / "made")
    told = json.loads((made.path / "shards.json").read_text())
    names = [f"{number:05d}" for number in range(300)]
    for name in names[1:]:
        (made.path / name).symlink_to("00000")
    garble(files=300, shards=[{**told["shards"][0], "name": name} for name in names])(made.path)
    script = """
import resource, sys
from sorl.data.shards import open_shards
from sorl.errors import InputError
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[2:])))
try:
    print(len(open_shards(sys.argv[1]).shards))
except InputError as error:
    print(error)
"""

    def opened(soft: int, hard: int) -> str:
        command = [sys.executable, "-c", script, str(made.path), str(soft), str(hard)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert opened(128, 1200) == "300\n"
    assert "too many files are open; allow more of them by `ulimit -n`" in opened(128, 256)


def garble(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / "shards.json").read_text())
        (folder / "shards.json").write_text(json.dumps({**told, **changes}))

    return change


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "00001" / name
        path.write_bytes(path.read_bytes()[:-5])

    return change


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (garble(format=7), "has format 7"),
        (garble(tasks="x"), "lacks or garbles"),
        (garble(tasks=[1, 2]), "another number of tasks"),
        (garble(spec={"observation_size": 3}), "lacks or garbles"),
        (garble(spec={"observation_size": 4, "action_size": 2}), "shards.json says"),
        (garble(units={"action_low": 3}), "garbled"),
        (garble(shards=[{"name": "../x"}]), "lacks or garbles"),
        (garble(more=1), "lacks or garbles"),
        (cut("rows.npy"), "is damaged"),
        (cut("ends.npy"), "is damaged"),
        (
            lambda folder: np.save(folder / "00000" / "ends.npy", np.array([9, 3, 12])),
            "no ends of episodes",
        ),
        (lambda folder: (folder / "shards.json").write_text("[]"), "must hold a JSON object"),
        (lambda folder: (folder / "00000" / "ends.npy").unlink(), "There is no"),
        (
            lambda folder: np.save(folder / "00000" / "ends.npy", np.zeros(3), allow_pickle=False),
            "holds float64",
        ),
        (
            lambda folder: np.save(
                folder / "00000" / "ends.npy", np.array([None]), allow_pickle=True
            ),
            "is damaged",
        ),
    ],
)
def test_damaged_shards(
    damage: Callable[[Path], None], sentence: str, shards: Shards, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shards.path, folder)
    damage(folder)
    with pytest.raises(InputError, match=sentence):
        open_shards(folder)


def test_what_cannot_become_shards(
    files_of: list[Path], shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"holds no \.npz files"):
        make_shards([tmp_path], tmp_path / "out")
    with pytest.raises(InputError, match="Name at least one"):
        make_shards([], tmp_path / "out")
    monkeypatch.setattr("sorl.data.sharding.load_dataset", None)  # nothing is loaded for nothing
    with pytest.raises(InputError, match="Cannot write"):
        make_shards(files_of, files_of[0] / "out")
    monkeypatch.undo()
    with pytest.raises(InputError, match="rewards of one task, which counts as task 0"):
        make_shards(files_of, tmp_path / "out", tasks=(3,))
    with pytest.raises(InputError, match="holds no shards"):
        make_shards(files_of, files_of[0].parent)
    wide = tmp_path / "wide.npz"
    with np.load(files_of[0], allow_pickle=False) as arrays:
        more = np.concatenate([arrays["observations"]] * 2, axis=1)
        np.savez(wide, allow_pickle=False, **{**arrays, "observations": more})
    with pytest.raises(InputError, match="differs from the files before it"):
        make_shards([files_of[0], wide], tmp_path / "out")
    with pytest.raises(InputError, match="hold no rewards of task 3"):
        shards.select_tasks((3,))
    with pytest.raises(InputError, match="cannot be mixed, fine-tuned on or loaded"):
        load_dataset(data=shards.path)
    monkeypatch.setattr("sorl.data.sharding.MOST_TRANSITIONS", 12)
    with pytest.raises(InputError, match="more than 12 transitions"):
        make_shards(files_of, tmp_path / "many")
