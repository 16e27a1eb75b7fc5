"""Generated data: the same whatever happens on the way, in OGBench's layout, and of its kind."""

# ruff: noqa: NPY002 (the oracles draw from the global generator, so it is what is tested here)

import errno
import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sorl import graphics
from sorl.data.generate import PROTOCOLS, Progress, describe, engine, generate, roll, show_progress
from sorl.data.generate.archive import is_whole_part, merge_parts, save_part
from sorl.data.generate.parts import open_parts
from sorl.data.generate.play import _is_lost
from sorl.data.generate.pool import roll_jobs
from sorl.data.generate.protocols import find_protocol
from sorl.data.generate.seeding import seed_episode
from sorl.data.generate.worker import Job
from sorl.data.names import IMAGE_SHAPE, VISUAL, dataset_names
from sorl.data.sources import load_dataset
from sorl.errors import InputError, WorkerError

MAZE = "pointmaze-medium-navigate-v0"
PARTS = f".{MAZE}.parts"


@pytest.fixture
def global_generators() -> Iterator[None]:
    """Put back the global generators, which rolling in this process seeds."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three episodes of the quickest set, rolled by one worker."""
    out = tmp_path_factory.mktemp("maze")
    generate(MAZE, out=out, episodes=3, workers=1, seed=5)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def run_script(body: str, **options) -> subprocess.Popen:
    header = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from sorl.data.generate import generate\n"
    )
    script = (
        header + 'if __name__ == "__main__":\n' + textwrap.indent(textwrap.dedent(body), "    ")
    )
    path = options.pop("folder") / "script.py"
    path.write_text(script)
    return subprocess.Popen([sys.executable, str(path)], stdout=-1, stderr=-1, text=True, **options)


# What is written


def test_layout_is_ogbenchs(maze: Path) -> None:
    train, validation = load(maze / f"{MAZE}.npz"), load(maze / f"{MAZE}-val.npz")
    layout = {key: (array.shape, array.dtype.name) for key, array in train.items()}
    assert layout == {
        "observations": ((3003, 2), "float32"),
        "actions": ((3003, 2), "float32"),
        "terminals": ((3003,), "bool"),
        "qpos": ((3003, 2), "float32"),
        "qvel": ((3003, 2), "float32"),
    }
    assert np.flatnonzero(train["terminals"]).tolist() == [1000, 2001, 3002]
    assert len(validation["terminals"]) == 1001
    assert np.abs(train["actions"]).max() == 1.0
    # The state of a row is the one that its observation shows.
    np.testing.assert_array_equal(train["observations"], train["qpos"])


def test_ogbench_reads_it(maze: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ogbench
    data = ogbench.load_dataset(str(maze / f"{MAZE}.npz"), add_info=True)
    assert {len(array) for array in data.values()} == {3000}
    assert np.flatnonzero(data["terminals"]).tolist() == [999, 1999, 2999]


def test_same_seed_same_bytes_for_any_number_of_workers(maze: Path, tmp_path: Path) -> None:
    report = generate(MAZE, out=tmp_path, episodes=3, workers=3, seed=5)
    assert contents(tmp_path) == contents(maze)
    assert (report.train_rows, report.validation_rows, report.found_rows) == (3003, 1001, 0)
    assert report.train_path == tmp_path / f"{MAZE}.npz"
    assert report.validation_path == tmp_path / f"{MAZE}-val.npz"


def test_zip_holds_no_date_of_today(maze: Path) -> None:
    with zipfile.ZipFile(maze / f"{MAZE}.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_fewer_episodes_are_the_first_of_more_and_seeds_and_splits_differ(
    maze: Path, tmp_path: Path
) -> None:
    three, validation = load(maze / f"{MAZE}.npz"), load(maze / f"{MAZE}-val.npz")
    generate(MAZE, out=tmp_path, episodes=1, workers=2, seed=5)
    one = load(tmp_path / f"{MAZE}.npz")
    for key, array in one.items():
        np.testing.assert_array_equal(array, three[key][:1001])
    generate(MAZE, out=tmp_path, episodes=1, workers=2, seed=6, overwrite=True)
    other = load(tmp_path / f"{MAZE}.npz")
    starts = [data["observations"][0] for data in (one, other, validation)]
    starts += [three["observations"][1001], three["observations"][2002]]
    assert len(np.unique(starts, axis=0)) == 5


@pytest.mark.parametrize(
    ("name", "rows"),
    [("cube-double-play-v0", 60), ("scene-play-v0", 120), ("puzzle-3x3-play-v0", 60), (MAZE, 200)],
)
@pytest.mark.usefixtures("global_generators")
def test_an_episode_does_not_remember_the_ones_before(name: str, rows: int) -> None:
    protocol = replace(PROTOCOLS[name], rows=rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sorl.data.generate.environment import make_environment

        used, fresh = make_environment(protocol), make_environment(protocol)
    for episode in (0, 1, 2):
        last = roll.roll_episode(used, protocol, seed=3, split="train", episode=episode)
    np.random.seed()
    first = roll.roll_episode(fresh, protocol, seed=3, split="train", episode=2)
    assert list(first) == list(last)
    assert ("button_states" in first) == name.startswith(("scene", "puzzle"))
    for key, array in first.items():
        assert len(array) == rows
        np.testing.assert_array_equal(array, last[key])
    assert not np.array_equal(first["actions"][0], first["actions"][-1])


def test_cube_single_is_of_the_published_kind(tmp_path: Path) -> None:
    report = generate("cube-single-play-v0", out=tmp_path, episodes=1, workers=2, seed=0)
    found = describe(report.train_path)
    assert found.episode_lengths == {1001: 1}
    assert 0.05 < found.saturation < 0.13
    data = load(report.train_path)
    assert data["observations"].shape == (1001, 28)
    assert (data["qpos"].shape[1], data["qvel"].shape[1], data["actions"].shape[1]) == (21, 20, 5)
    # The oracle carries the cube about: it is lifted above 8 cm, and put down elsewhere.
    cube = data["qpos"][:, 14:17]
    assert cube[:, 2].max() > 0.08
    assert np.linalg.norm(cube[-1, :2] - cube[0, :2]) > 0.02


@pytest.mark.usefixtures("global_generators")
def test_seeds_of_attempts_differ_and_are_repeatable() -> None:
    seeds = {
        (seed, split, episode, attempt): (
            seed_episode(seed, split, episode, attempt),
            np.random.random(),
            random.random(),
        )
        for seed in (0, 1)
        for split in ("train", "val")
        for episode in (0, 1)
        for attempt in (0, 1)
    }
    for column in zip(*seeds.values(), strict=True):
        assert len(set(column)) == 16
    again = seed_episode(1, "val", 1, 0), np.random.random(), random.random()
    assert again == seeds[1, "val", 1, 0]


@pytest.mark.usefixtures("global_generators")
def test_a_discarded_episode_is_retried_with_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def roll_play_episode(environment, protocol, seed: int) -> dict | None:
        seeds.append(seed)
        return None if len(seeds) < 3 else {"actions": np.zeros(1)}

    monkeypatch.setattr(roll, "roll_play_episode", roll_play_episode)
    rows = roll.roll_episode(
        gymnasium.Env(), PROTOCOLS["scene-play-v0"], seed=0, split="train", episode=4
    )
    assert list(rows) == ["actions"]
    assert len(set(seeds)) == len(seeds) == 3


@pytest.mark.parametrize(
    ("y", "z", "lost"),
    [
        (0.0, 0.02, False),
        (0.28, 0.02, False),
        (0.29, 0.02, True),
        (-0.31, 0.07, False),
        (-0.31, 0.05, True),
        (-0.31, 0.09, True),
        (-0.29, 0.02, False),
    ],
)
def test_lost_cubes(y: float, z: float, lost: bool) -> None:
    assert _is_lost(np.array([0.4, y, z])) is lost


def test_protocols_are_the_published_ones() -> None:
    assert set(PROTOCOLS) <= set(dataset_names())
    transitions = {
        name: protocol.episodes * (protocol.rows - 1) for name, protocol in PROTOCOLS.items()
    }
    million = {name: count / 1e6 for name, count in transitions.items()}
    large = (
        "cube-triple-play-v0",
        "cube-quadruple-play-v0",
        "puzzle-4x5-play-v0",
        "puzzle-4x6-play-v0",
        "humanoidmaze-medium-navigate-v0",
        "humanoidmaze-large-navigate-v0",
        "humanoidmaze-giant-navigate-v0",
    )
    assert {
        million[f"humanoidmaze-{size}-navigate-v0"] for size in ("medium", "large", "giant")
    } == {2.0}
    seen_as_states = {name: count for name, count in million.items() if VISUAL not in name}
    assert {name for name, count in seen_as_states.items() if count != 1.0} == set(large)
    # The manipulation sets again, of the same sizes.
    visual = {name.removeprefix(VISUAL): n for name, n in million.items() if VISUAL in name}
    assert visual == {name: n for name, n in seen_as_states.items() if "play" in name}
    assert million["cube-triple-play-v0"] == million["puzzle-4x5-play-v0"] == 3.0
    assert million["cube-quadruple-play-v0"] == million["puzzle-4x6-play-v0"] == 5.0


# Interrupted and resumed


def test_resumes_after_kill_to_the_same_bytes(maze: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = run_script(
        f"""
        def stop(progress):
            if progress.done >= 2 * 1001:
                os.kill(os.getpid(), signal.SIGKILL)
        generate({MAZE!r}, out=Path({str(out)!r}), episodes=3, workers=1, seed=5, on_progress=stop)
        """,
        folder=tmp_path,
    )
    # Returns when every process that holds the pipes has ended, the orphaned worker included.
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    parts = sorted((out / PARTS).glob("train-*.npz"))
    assert len(parts) >= 2
    assert not (out / f"{MAZE}.npz").exists()
    torn = parts[1].read_bytes()
    parts[1].write_bytes(torn[: len(torn) // 2])
    whole = sum(is_whole_part(part, 1001) for part in (out / PARTS).glob("*-*.npz"))
    report = generate(MAZE, out=out, episodes=3, workers=2, seed=5)
    assert report.found_rows == 1001 * whole > 0
    assert contents(out) == contents(maze)


def test_interrupt_from_the_keyboard_keeps_the_episodes_and_ends_the_workers(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    process = run_script(
        f"""
        def tell(progress):
            print(progress.done, flush=True)
        try:
            generate({MAZE!r}, out=Path({str(out)!r}), episodes=500, workers=2, on_progress=tell)
        except KeyboardInterrupt as interrupt:
            sys.exit(f"{{interrupt}}")
        """,
        folder=tmp_path,
        start_new_session=True,
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) == 0:
        pass
    os.killpg(process.pid, signal.SIGINT)
    # Returns when every process that holds the pipes has ended, the workers included.
    _, message = process.communicate(timeout=60)
    # No worker wrote a traceback: the message is all there is.
    assert message == (
        f"Stopped; finished episodes are kept in {out / PARTS}, and the same call goes on from "
        "there.\n"
    )
    parts = list((out / PARTS).glob("train-*.npz"))
    assert parts
    assert all(is_whole_part(part, 1001) for part in parts)


def test_other_settings_than_the_interrupted_run_are_explained(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="kept"):
        generate(MAZE, out=tmp_path, episodes=2, workers=1, seed=0, on_progress=stop)
    assert multiprocessing.active_children() == []
    kept = contents(tmp_path / PARTS)
    with pytest.raises(InputError, match=r"other settings \(seed 0 there, 1 here\)"):
        generate(MAZE, out=tmp_path, episodes=2, workers=1, seed=1)
    assert contents(tmp_path / PARTS) == kept
    (tmp_path / PARTS / "settings.json").write_text("[")
    with pytest.raises(InputError, match="other settings"):
        generate(MAZE, out=tmp_path, episodes=2, workers=1, seed=0)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        open_parts(tmp_path / PARTS, {}),
        pytest.raises(InputError, match="Another process"),
    ):
        generate(MAZE, out=tmp_path, episodes=1, workers=1)


def test_killed_between_the_two_moves(
    maze: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = os.replace

    def replace_file(source: Path, target: Path) -> None:
        if target == tmp_path / f"{MAZE}-val.npz":
            raise SystemError("killed")
        move(source, target)

    (tmp_path / f"{MAZE}.npz").write_bytes(b"old")
    (tmp_path / f"{MAZE}-val.npz").write_bytes(b"old")
    settings = {"out": tmp_path, "episodes": 3, "workers": 2, "seed": 5}
    monkeypatch.setattr(os, "replace", replace_file)
    with pytest.raises(SystemError):
        generate(MAZE, overwrite=True, **settings)
    monkeypatch.undo()
    assert (tmp_path / f"{MAZE}-val.npz").read_bytes() == b"old"
    assert generate(MAZE, **settings).found_rows == 4 * 1001
    assert contents(tmp_path) == contents(maze)


def test_a_dead_worker_is_noticed(tmp_path: Path) -> None:
    jobs = [Job("train", i, tmp_path / f"{i}.npz") for i in range(100)]
    rolling = roll_jobs(jobs, PROTOCOLS[MAZE], seed=0, workers=1)
    next(rolling)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="died at train episode"):
        list(rolling)


def test_what_a_worker_cannot_write_is_raised_here(tmp_path: Path) -> None:
    jobs = [Job("train", 0, tmp_path / "missing" / "0.npz")]
    with pytest.raises(FileNotFoundError):
        list(roll_jobs(jobs, PROTOCOLS[MAZE], seed=0, workers=1))


# Bad input


def test_unknown_names_get_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'cube-single-play-v0'"):
        generate("cube-singel-play-v0", out=tmp_path)
    with pytest.raises(InputError, match="there are cube-single-play-v0, "):
        find_protocol("?")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes": 0}, "0 episodes cannot be used: give 1 or more"),
        ({"workers": 0}, "0 workers cannot be used: give 1 or more"),
        ({"seed": -1}, "-1 seed cannot be used: give 0 or more"),
    ],
)
def test_numbers_out_of_range(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        generate(MAZE, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["", "-val"])
def test_nothing_is_overwritten_unasked(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"{MAZE}{suffix}.npz"
    file.write_bytes(b"precious")
    with pytest.raises(InputError, match="already there"):
        generate(MAZE, out=tmp_path, episodes=1)
    assert contents(tmp_path) == {file.name: b"precious"}


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is not a folder"):
        generate(MAZE, out=tmp_path / "file", episodes=1)


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "is full"), (errno.EFBIG, "is full"), (errno.EACCES, "cannot be written to")],
)
def test_full_disk_and_missing_permission(
    code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(engine, "merge_parts", fail)
    with pytest.raises(InputError, match=message):
        generate(MAZE, out=tmp_path, episodes=1, workers=2)
    assert len(list((tmp_path / PARTS).glob("*-*.npz"))) == 2
    assert [path.name for path in tmp_path.iterdir()] == [PARTS]


# The pieces


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
    st.integers(1, 7),
    st.integers(1, 3),
)
def test_merging_is_concatenation(seeds: list[int], rows: int, width: int) -> None:
    episodes = []
    for seed in seeds:
        draw = np.random.default_rng(seed)
        terminals = np.zeros(rows, bool)
        terminals[-1] = True
        episodes.append(
            {
                "observations": draw.normal(size=(rows, width)).astype(np.float32),
                "terminals": terminals,
                "button_states": draw.integers(0, 2, (rows, width)),
            }
        )
    heard: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{i}.npz" for i in range(len(seeds))]
        for part, episode in zip(parts, episodes, strict=True):
            save_part(part, episode)
            assert is_whole_part(part, rows)
            assert not is_whole_part(part, rows + 1)
        merge_parts(parts, Path(folder) / "all.npz", rows=rows, on_rows=heard.append)
        merged = load(Path(folder) / "all.npz")
        assert len(list(Path(folder).iterdir())) == len(parts) + 1
    assert sum(heard) == rows * len(seeds)
    assert list(merged) == list(episodes[0])
    for key, array in merged.items():
        expected = np.concatenate([episode[key] for episode in episodes])
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_progress_counts_every_row_once(tmp_path: Path) -> None:
    heard: list[Progress] = []
    generate(MAZE, out=tmp_path, episodes=2, workers=2, on_progress=heard.append)
    for stage in ("rolling", "writing"):
        counts = [one.done for one in heard if one.stage == stage]
        assert counts == sorted(counts)
        assert counts[-1] == heard[-1].total == 3 * 1001
    assert [one.stage for one in heard] == sorted(one.stage for one in heard)


def test_the_bar_shows_on_a_terminal_alone() -> None:
    for terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=100)
        with show_progress(console) as on_progress:
            on_progress(Progress("rolling", 0, 0, 2002))
            on_progress(Progress("rolling", 1001, 0, 2002))
        assert ("1001/2002" in file.getvalue()) is terminal
        assert terminal or file.getvalue() == ""


def test_the_bar_tells_that_a_training_will_stop() -> None:
    file = io.StringIO()
    with show_progress(Console(file=file, force_terminal=True, width=100)) as on_progress:
        on_progress(Progress("training", 150, 150, 400))
        assert "training the expert, steps" in file.getvalue()
        assert "150/400" in file.getvalue()
        on_progress(Progress("stopping", 0, 0, 0))
    assert "stopping after this episode" in file.getvalue()
    assert file.getvalue().rstrip().endswith("?25h")


def test_description_agrees_with_distances_in_the_maze(maze: Path) -> None:
    data = load(maze / f"{MAZE}.npz")
    found = describe(maze / f"{MAZE}.npz")
    assert (found.rows, found.episode_lengths) == (3003, {1001: 3})
    assert found.saturation == pytest.approx(np.isin(data["actions"], (-1.0, 1.0)).mean())
    assert [one.task for one in found.successes] == [1, 2, 3, 4, 5]
    # Goals of pointmaze-medium in metres, and its tolerance.
    goals = [(20, 20), (20, 0), (4, 12), (0, 20), (0, 0)]
    states = np.delete(data["qpos"], [1000, 2001, 3002], axis=0)
    for one, goal in zip(found.successes, goals, strict=True):
        near = np.linalg.norm(states - goal, axis=1) <= 1.0
        assert one.rows == near.sum()
        assert one.per_million == pytest.approx(1e6 * near.mean())
        assert one.episodes == near.reshape(3, 1000).any(axis=1).sum()
    assert sum(one.rows for one in found.successes) > 0
    assert "task 5:" in str(found)


def test_description_of_files_that_are_none(maze: Path, tmp_path: Path) -> None:
    actions = np.array([[0.5, 1.0], [-1.0, 1.0]], np.float32)
    with pytest.raises(InputError, match="no such file"):
        describe(tmp_path / "missing.npz")
    torn = tmp_path / f"{MAZE}.npz"
    torn.write_bytes((maze / f"{MAZE}.npz").read_bytes()[:5000])
    with pytest.raises(InputError, match="truncated"):
        describe(torn)
    np.savez(tmp_path / "other.npz", actions=actions)
    with pytest.raises(InputError, match="lacks terminals"):
        describe(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", actions=actions, terminals=np.array([True]))
    with pytest.raises(InputError, match=r"\(2, 2\).*\(1,\)"):
        describe(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", actions=actions, terminals=np.array([False, True]))
    found = describe(tmp_path / "other.npz")
    assert (found.saturation, found.episode_lengths, found.successes) == (0.75, {2: 1}, ())


def test_nothing_heavy_is_imported() -> None:
    light = (
        "import sys, sorl.data.generate as _; print({'jax', 'ogbench', 'mujoco'} & {*sys.modules})"
    )
    worker = (
        "import sys, warnings; warnings.simplefilter('ignore'); import sorl.data.generate.roll, "
        "sorl.data.generate.environment; print({'jax', 'torch'} & {*sys.modules})"
    )
    for code in (light, worker):
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert answer.stdout == "set()\n", answer.stderr


def test_pictures_of_the_same_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The visual set shows what the set of states holds: the same seed, the same simulator."""
    try:
        graphics.working()
    except InputError as error:
        pytest.skip(str(error))
    for name in ("cube-single-play-v0", "visual-cube-single-play-v0"):
        monkeypatch.setitem(PROTOCOLS, name, replace(PROTOCOLS[name], rows=3))
        generate(name, out=tmp_path, episodes=1, workers=1, seed=4)
    generate("visual-cube-single-play-v0", out=tmp_path / "two", episodes=1, workers=2, seed=4)
    states, seen = (load(tmp_path / f"{prefix}cube-single-play-v0.npz") for prefix in ("", VISUAL))
    assert seen["observations"].dtype == np.uint8
    assert seen["observations"].shape == (3, *IMAGE_SHAPE)
    assert seen["observations"].std() > 10
    for key in ("actions", "terminals", "qpos", "qvel"):
        np.testing.assert_array_equal(seen[key], states[key])
    for name, content in contents(tmp_path / "two").items():
        assert content == (tmp_path / name).read_bytes()
    dataset = load_dataset("visual-cube-single-play-singletask-v0", data=tmp_path / "two" / name)
    assert dataset.spec.image is not None
    assert dataset.spec.image.shape == (64, 64, 9)


def test_without_graphics_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(InputError, match=r"Pictures cannot be drawn.*nonsense") as raised:
        graphics.working()
    assert "\n" not in str(raised.value)
