"""Loading data: rewards against ogbench's own, files of every wrong kind, downloads."""

import concurrent.futures
import contextlib
import errno
import http.client
import http.server
import re
import ssl
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import ogbench
import ogbench.utils
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sorl.data.archive
import sorl.data.relabel
from sorl.data.archive import ArchiveReader
from sorl.data.dataset import ACTION_LIMIT
from sorl.data.download import download
from sorl.data.names import EnvironmentName
from sorl.data.sources import load_dataset
from sorl.errors import InputError

# The cheapest environment to build: most tests here are about files.
MAZE = "pointmaze-medium-navigate-singletask-v0"
EPISODES, ROWS = 2, 15


def record(short: str) -> dict[str, np.ndarray]:
    """A small set in OGBench's format: random actions, and rows that solve tasks put in by hand."""
    with warnings.catch_warnings(action="ignore"):
        return _record(EnvironmentName.parse(short))


def _record(name: EnvironmentName) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    environment = gymnasium.make(name.gymnasium_id, terminate_at_goal=False)
    environment.action_space.seed(0)
    simulator: Any = environment.unwrapped
    buttons = int(getattr(simulator, "_num_buttons", 0))
    rows: dict[str, list[Any]] = {key: [] for key in ("observations", "actions", "qpos", "qvel")}
    for _ in range(EPISODES):
        observation, _ = environment.reset()
        for _ in range(ROWS):
            action = environment.action_space.sample()
            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["qpos"].append(simulator.data.qpos.copy())
            rows["qvel"].append(simulator.data.qvel.copy())
            observation = environment.step(action)[0]
    arrays: dict[str, np.ndarray] = {}
    arrays |= {key: np.array(values, np.float32) for key, values in rows.items()}
    arrays["terminals"] = np.tile(np.arange(ROWS) == ROWS - 1, EPISODES)
    if buttons:
        arrays["button_states"] = random.integers(0, 2, size=(EPISODES * ROWS, buttons))
    for task, info in enumerate(simulator.task_infos, start=1):
        _solve(simulator, info, arrays, rows=slice(4 * task, 4 * task + 3))
    environment.close()
    return arrays


def _solve(simulator: Any, info: dict, arrays: dict[str, np.ndarray], rows: slice) -> None:
    qpos = arrays["qpos"]
    if "goal_ij" in info:
        start = 15 if qpos.shape[1] == 22 else 0  # the ball, or the agent
        qpos[rows, start : start + 2] = simulator.ij_to_xy(info["goal_ij"])
    elif "goal_xyzs" in info:
        for cube, goal in enumerate(info["goal_xyzs"]):
            qpos[rows, 14 + 7 * cube : 17 + 7 * cube] = goal
    elif "goal" in info:  # scene
        goal = info["goal"]
        qpos[rows, 14:17] = goal["block_xyzs"][0]
        qpos[rows, -2:] = (goal["drawer_pos"], goal["window_pos"])
        arrays["button_states"][rows] = goal["button_states"]
    else:
        arrays["button_states"][rows] = info["goal_button_states"]


@pytest.fixture(scope="session")
def maze() -> dict[str, np.ndarray]:
    return record(MAZE)


@pytest.fixture
def maze_file(maze: dict[str, np.ndarray], tmp_path: Path) -> Path:
    return save(tmp_path / "pointmaze-medium-navigate-v0.npz", maze)


def save(path: Path, arrays: dict[str, Any], *, compressed: bool = True) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def own_rewards() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        "observations": random.normal(size=(12, 2)).astype(np.float32),
        "actions": random.uniform(-1, 1, size=(12, 2)).astype(np.float32),
        "terminals": np.arange(12) % 4 == 3,
        "rewards": random.normal(size=12),
        "masks": random.integers(0, 2, size=12),
    }


def refusal(*args: Any, **kwargs: Any) -> str:
    """The one sentence with which loading refuses."""
    with pytest.raises(InputError) as raised:
        load_dataset(*args, **kwargs)
    message = str(raised.value)
    assert "\n" not in message
    return message


# Made by ogbench, environments warn that bounds are rounded; made by us, they must not.
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
@pytest.mark.parametrize(
    ("short", "tasks"),
    [
        ("cube-single-play-singletask-v0", (3, 1, 2, 5, 4)),
        # ogbench builds an environment for each task, which takes it a second for these three.
        ("cube-double-play-singletask-v0", (5, 2)),
        ("scene-play-singletask-v0", (4, 1)),
        ("puzzle-3x3-play-singletask-v0", (2, 3)),
        (MAZE, (3, 1, 2, 5, 4)),
        ("antsoccer-arena-navigate-singletask-v0", (3, 1, 2, 5, 4)),
    ],
)
def test_all_tasks_equal_ogbenchs_own_loading(
    short: str, tasks: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = record(short)
    path = save(tmp_path / "some.npz", arrays)
    save(tmp_path / "some-val.npz", arrays)
    monkeypatch.setattr(sorl.data.relabel, "_ROWS_AT_ONCE", 7)
    dataset = load_dataset(short, data=path, tasks=tasks)
    assert dataset.tasks == tasks
    transitions = jax.jit(jax.vmap(dataset.transition, (0, None)))
    for place, task in enumerate(tasks):
        name = EnvironmentName.parse(short).with_task(task)
        loaded: Any = ogbench.make_env_and_datasets(name.id, dataset_path=str(path))
        environment, theirs, _ = loaded
        environment.close()
        ours = transitions(dataset.valid_rows, place)
        np.testing.assert_array_equal(ours.reward, theirs["rewards"])
        np.testing.assert_array_equal(ours.mask, theirs["masks"])
        np.testing.assert_array_equal(ours.observation, theirs["observations"])
        np.testing.assert_array_equal(ours.next_observation, theirs["next_observations"])
        clipped = np.clip(theirs["actions"], -ACTION_LIMIT, ACTION_LIMIT).astype(np.float32)
        np.testing.assert_array_equal(ours.action, clipped)
        np.testing.assert_array_equal(1 - ours.next_action_mask, theirs["terminals"])
        assert 0 < np.count_nonzero(theirs["masks"] == 0) < len(theirs["masks"])


def test_loading_warns_of_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "cube.npz", record("cube-single-play-singletask-v0"))
    load_dataset("cube-single-play-singletask-v0", data=path)  # warnings are errors here


def test_default_task_and_named_task(maze_file: Path) -> None:
    assert load_dataset(MAZE, data=maze_file).tasks == (1,)
    named = load_dataset("pointmaze-medium-navigate-singletask-task4-v0", data=maze_file)
    assert named.tasks == (4,)
    every = load_dataset(MAZE, data=maze_file, tasks=range(1, 6))
    assert every.select_tasks((4,)).fingerprint == named.fingerprint


def test_fingerprint_does_not_depend_on_the_file(maze: dict[str, np.ndarray], tmp_path: Path):
    first = save(tmp_path / "a.npz", maze)
    (tmp_path / "b").mkdir()
    second = tmp_path / "b" / "b.npz"
    save(second, dict(reversed(maze.items())), compressed=False)
    assert load_dataset(MAZE, data=first).fingerprint == load_dataset(MAZE, data=second).fingerprint


def test_local_folder_comes_first(maze: dict[str, np.ndarray], tmp_path: Path) -> None:
    save(tmp_path / "pointmaze-medium-navigate-v0.npz", maze)
    shorter = {key: values[:ROWS] for key, values in maze.items()}
    save(tmp_path / "pointmaze-medium-navigate-v0-val.npz", shorter)
    assert load_dataset(MAZE, folder=tmp_path).observations.shape == (EPISODES * ROWS, 2)
    assert load_dataset(MAZE, folder=tmp_path, validation=True).observations.shape == (ROWS, 2)


def test_own_rewards_need_no_environment(tmp_path: Path) -> None:
    arrays = own_rewards()
    path = save(tmp_path / "own.npz", arrays)
    dataset = load_dataset(data=path)
    assert dataset.tasks == (0,)
    np.testing.assert_array_equal(dataset.rewards[0], arrays["rewards"].astype(np.float32))
    np.testing.assert_array_equal(dataset.masks[0], arrays["masks"] != 0)
    assert load_dataset(data=path, tasks=[0]).fingerprint == dataset.fingerprint
    assert load_dataset(MAZE, data=path).tasks == (1,)
    assert "holds the rewards of one task" in refusal(data=path, tasks=[1])
    assert "holds the rewards of one task" in refusal(MAZE, data=path, tasks=[1, 2])
    message = refusal("antmaze-large-navigate-singletask-v0", data=path)
    assert "does not belong to antmaze-large-navigate-singletask-task1-v0" in message


def test_a_row_a_transition_is_no_data_set(tmp_path: Path) -> None:
    arrays = own_rewards()
    following = {"next_observations": arrays["observations"]}
    message = refusal(data=save(tmp_path / "dumped.npz", arrays | following))
    assert f"`sorl import {tmp_path / 'dumped.npz'} --out NAME`" in message
    # Of these no mask could ever be drawn; where one more is 0, that is no sign of anything.
    ends = arrays["terminals"]
    path = save(tmp_path / "ends.npz", arrays | {"masks": ~ends})
    assert "masks are 0 on the last rows of episodes alone" in refusal(data=path)
    for masks in (np.ones(12), ~(ends | np.roll(ends, -1)), ~np.roll(ends, -1)):
        load_dataset(data=save(tmp_path / "own.npz", arrays | {"masks": masks}))


def test_logged_state_outranks_own_rewards_where_an_environment_is_named(
    maze: dict[str, np.ndarray], tmp_path: Path
) -> None:
    extra = {"rewards": np.full(EPISODES * ROWS, 7.0), "masks": np.ones(EPISODES * ROWS)}
    path = save(tmp_path / "both.npz", maze | extra)
    assert load_dataset(MAZE, data=path).statistics().tasks[0].reward_max == 0
    assert load_dataset(data=path).statistics().tasks[0].reward_max == 7


def test_neither_name_nor_file() -> None:
    assert "name of an environment, a data file, or both" in refusal()


def test_validation_beside_a_file(maze_file: Path) -> None:
    assert "leave out the file" in refusal(MAZE, data=maze_file, validation=True)


def test_file_without_rewards_needs_an_environment(maze_file: Path) -> None:
    assert "name the environment" in refusal(data=maze_file)


def test_unknown_environment_and_tasks(maze_file: Path) -> None:
    assert "did you mean 'cube-single-play-sin" in refusal("cube-single-pley-singletask-v0")
    # Checked before anything is read or downloaded: there is no such file.
    nowhere = maze_file.with_name("nowhere.npz")
    assert "Task 6 of" in refusal(MAZE, data=nowhere, tasks=[1, 6])
    assert "each once" in refusal(MAZE, data=nowhere, tasks=[])
    assert "each once" in refusal(MAZE, data=nowhere, tasks=[1, 1])


def test_data_of_another_environment(maze: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = save(tmp_path / "maze.npz", maze)
    message = refusal("antmaze-large-navigate-singletask-v0", data=path)
    assert "observations have shape (30, 2)" in message
    assert "needs (rows, 29)" in message
    path = save(tmp_path / "short.npz", maze | {"actions": maze["actions"][:, :1]})
    assert "actions have shape (30, 1)" in refusal(MAZE, data=path)
    path = save(tmp_path / "flat.npz", maze | {"actions": maze["actions"][:, 0]})
    assert "actions have shape (30,)" in refusal(MAZE, data=path)


@pytest.mark.parametrize(
    ("key", "change", "expected"),
    [
        ("qpos", lambda a: a[:, :1], r"qpos have shape \(30, 1\).*need \(30, 2\)"),
        ("qpos", lambda a: a[:-1], r"qpos have shape \(29, 2\)"),
        ("qpos", lambda a: a.astype(int), "qpos are int64, but must be floating-point"),
        ("qpos", lambda a: np.where(np.arange(30)[:, None] == 4, np.nan, a), "qpos, row 4.*nan"),
        (
            "observations",
            lambda a: np.where(np.arange(30)[:, None] == 7, np.inf, a),
            "observations, row 7.*inf",
        ),
        ("actions", lambda a: a + 2, "actions, row 0, column 0.*outside"),
        ("terminals", lambda a: a[:-1], r"terminals have shape \(29,\)"),
        ("terminals", np.zeros_like, "no episode ends"),
    ],
)
def test_bad_content(
    key: str, change: Any, expected: str, maze: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = save(tmp_path / "bad.npz", maze | {key: change(maze[key])})
    message = refusal(MAZE, data=path)
    assert message.startswith(f"{path}: ")
    assert re.search(expected, message)


def test_missing_states(maze: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", {key: a for key, a in maze.items() if key != "qpos"})
    message = refusal(MAZE, data=path)
    assert (
        "lacks qpos, from which the rewards of pointmaze-medium-navigate-singletask-task1-v0"
        in message
    )
    assert "the file holds observations, actions, qvel, terminals" in message
    scene = {"observations": np.zeros((4, 40), np.float32), "qpos": np.zeros((4, 25), np.float32)}
    rest = {"actions": np.zeros((4, 5), np.float32), "terminals": np.arange(4) == 3}
    path = save(tmp_path / "b.npz", scene | rest)
    assert "lacks button_states" in refusal("scene-play-singletask-v0", data=path)


def test_wrong_keys(tmp_path: Path) -> None:
    path = save(tmp_path / "wrong.npz", {"obs": np.zeros(3), "actions": np.zeros(3)})
    assert "lacks observations, terminals; the file holds obs, actions" in refusal(data=path)
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    assert "the file holds no arrays" in refusal(data=tmp_path / "empty.npz")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    arrays: dict[str, Any] = own_rewards()
    arrays["observations"] = arrays["observations"].astype(object)
    path = save(tmp_path / "pickled.npz", arrays)
    assert "observations holds pickled Python objects" in refusal(data=path)


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    assert refusal(data=tmp_path / "absent.npz").endswith("there is no such file.")
    assert "this is a folder" in refusal(data=tmp_path)
    for content in (b"", b"PK", b"hello", b"\x93NUMPY\x01\x00"):
        path = tmp_path / "other.npz"
        path.write_bytes(content)
        assert "not a readable .npz file" in refusal(data=path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    assert "not a readable .npz file" in refusal(data=tmp_path / "one.npy")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        for name in own_rewards():
            archive.writestr(f"{name}.npy", "no array at all")
    assert "observations is damaged" in refusal(data=tmp_path / "text.npz")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "no permission to read"),
        (OSError(errno.EIO, "Input/output error"), "cannot be read"),
    ],
)
def test_files_that_cannot_be_opened(
    error: OSError, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    path = save(tmp_path / "own.npz", own_rewards())
    monkeypatch.setattr(sorl.data.archive.zipfile, "ZipFile", refuse)
    assert expected in refusal(data=path)


def test_header_that_promises_more_than_memory_holds(tmp_path: Path) -> None:
    path = tmp_path / "huge.npz"
    save(path, own_rewards() | {"actions": np.zeros((3, 2))})
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    header = contents["actions.npy"]
    shape = b"(3, 2), }"
    contents["actions.npy"] = header.replace(shape + b" " * 16, b"(3333333333333, 2), }" + b" " * 4)
    assert contents["actions.npy"] != header
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    message = refusal(data=path)
    assert "actions needs more memory" in message or "actions is damaged" in message


@pytest.fixture(scope="session")
def intact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = save(tmp_path_factory.mktemp("fuzz") / "own.npz", own_rewards())
    return path, load_dataset(data=path).fingerprint


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chance=st.data())
def test_damage_is_always_noticed(
    chance: st.DataObject, intact: tuple[Path, str], tmp_path: Path
) -> None:
    original, fingerprint = intact
    content = bytearray(original.read_bytes())
    if chance.draw(st.booleans(), label="truncate"):
        del content[chance.draw(st.integers(0, len(content) - 1), label="length") :]
    for _ in range(chance.draw(st.integers(0 if len(content) < 3000 else 1, 4), label="flips")):
        if content:
            place = chance.draw(st.integers(0, len(content) - 1), label="place")
            content[place] ^= chance.draw(st.integers(1, 255), label="bits")
    path = tmp_path / "damaged.npz"
    path.write_bytes(content)
    try:
        dataset = load_dataset(data=path)
    except InputError:
        return
    # Some bytes of a zip archive mean nothing for the content, such as dates.
    assert dataset.fingerprint == fingerprint


@pytest.mark.parametrize("name", ["observations", "actions", "terminals", "rewards", "masks"])
def test_a_flipped_byte_in_the_middle_of_an_array(name: str, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    save(path, own_rewards(), compressed=False)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + info.compress_size - 6] ^= 1
    path.write_bytes(content)
    assert f"{name} is damaged" in refusal(data=path)


class Server:
    """A file server on this machine whose bad habits a test can choose."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.ranges = True
        self.break_after: int | None = None
        self.pause_at, self.go_on = 0, threading.Event()
        self.requests: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append(wanted)
        if not handler.path.endswith("/pointmaze-medium-navigate-v0.npz"):
            handler.send_error(404)
            return
        start = 0
        if wanted is not None and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.content):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(self.content)}")
                handler.end_headers()
                return
            handler.send_response(206)
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {start}-{last}/{len(self.content)}")
        else:
            handler.send_response(200)
        body = self.content[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        body = body if self.break_after is None else body[: self.break_after]
        handler.wfile.write(body[: self.pause_at])
        if self.pause_at:
            self.go_on.wait(60)
        handler.wfile.write(body[self.pause_at :])


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def server(maze: dict[str, np.ndarray], tmp_path: Path, monkeypatch) -> Iterator[Server]:
    source = save(tmp_path / "served.npz", maze)
    running = Server(source.read_bytes())
    monkeypatch.setattr(ogbench.utils, "DATASET_URL", running.url)
    monkeypatch.setenv("no_proxy", "*")
    yield running
    running.http.shutdown()
    running.http.server_close()


def test_download_is_complete_and_atomic(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    dataset = load_dataset(MAZE, folder=folder)
    assert [path.name for path in folder.iterdir()] == ["pointmaze-medium-navigate-v0.npz"]
    assert (folder / "pointmaze-medium-navigate-v0.npz").read_bytes() == server.content
    assert load_dataset(MAZE, folder=folder).fingerprint == dataset.fingerprint
    assert server.requests == [None]


def test_broken_download_is_resumed(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    server.break_after = 1000
    message = refusal(MAZE, folder=folder)
    assert "the connection broke" in message
    assert "run again to resume" in message
    assert "sorl generate pointmaze-medium-navigate-v0 --out" in message
    assert [path.name for path in folder.iterdir()] == ["pointmaze-medium-navigate-v0.npz.part"]
    server.break_after = None
    load_dataset(MAZE, folder=folder)
    assert server.requests == [None, "bytes=1000-"]
    assert [path.name for path in folder.iterdir()] == ["pointmaze-medium-navigate-v0.npz"]
    assert (folder / "pointmaze-medium-navigate-v0.npz").read_bytes() == server.content


@pytest.mark.parametrize(
    "error", [ssl.SSLError("bad record"), OSError(errno.EHOSTUNREACH, "No route to host")]
)
def test_a_network_that_fails_on_the_way_is_no_disk_that_fails(
    error: OSError, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, sizes = http.client.HTTPResponse.read, []

    def broken(response: http.client.HTTPResponse, size: int | None = None) -> bytes:
        sizes.append(size)
        if len(sizes) > 1:
            raise error
        return read(response, 10)

    monkeypatch.setattr(http.client.HTTPResponse, "read", broken)
    message = refusal(MAZE, folder=tmp_path)
    assert "the connection broke" in message
    assert "run again to resume" in message


def test_of_two_that_want_the_same_set_one_downloads_it(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In two processes and in two threads of one, the second of which comes while bytes arrive."""
    target = tmp_path / "folder" / "pointmaze-medium-navigate-v0.npz"
    url = f"{server.url}/{target.name}"
    program = "import sys; from pathlib import Path; from sorl.data.download import download;"
    command = [sys.executable, "-c", f"{program} download(sys.argv[1], Path(sys.argv[2]))"]
    server.pause_at, server.go_on = 1000, threading.Event()
    with concurrent.futures.ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        stack.callback(server.go_on.set)
        first = pool.submit(download, url, target)
        wait_until(lambda: bool(server.requests))
        others = [pool.submit(download, url, target)]
        others += [
            pool.submit(subprocess.run, [*command, url, str(target)], check=True) for _ in range(2)
        ]
        waiting = ""

        def all_wait() -> bool:
            nonlocal waiting
            waiting += capfd.readouterr().err
            return waiting.count("\n") == len(others)

        wait_until(all_wait)
        assert set(waiting.splitlines()) == {
            f"{target} is being downloaded already: waiting for that to end."
        }
        server.go_on.set()
        for one in (first, *others):
            one.result(60)
    assert server.requests == [None]
    assert target.read_bytes() == server.content
    assert list(target.parent.iterdir()) == [target]


def test_the_next_one_goes_on_where_a_download_broke(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "pointmaze-medium-navigate-v0.npz"
    server.break_after = 300
    with concurrent.futures.ThreadPoolExecutor() as pool:
        tries = [pool.submit(download, f"{server.url}/{target.name}", target) for _ in range(3)]
        for one in tries:
            with pytest.raises(InputError, match="the connection broke"):
                one.result(60)
    assert server.requests == [None, "bytes=300-", "bytes=600-"]
    part = target.with_name(f"{target.name}.part")
    assert part.read_bytes() == server.content[:900]
    assert not list(tmp_path.glob("*.lock"))


def test_server_that_cannot_resume(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "pointmaze-medium-navigate-v0.npz.part").write_bytes(server.content[:500])
    load_dataset(MAZE, folder=tmp_path)
    assert server.requests == ["bytes=500-"]
    assert (tmp_path / "pointmaze-medium-navigate-v0.npz").read_bytes() == server.content


@pytest.mark.parametrize("surplus", [b"", b"of another file"])
def test_download_that_had_arrived_already(surplus: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "pointmaze-medium-navigate-v0.npz.part").write_bytes(server.content + surplus)
    load_dataset(MAZE, folder=tmp_path)
    assert (tmp_path / "pointmaze-medium-navigate-v0.npz").read_bytes() == server.content
    assert len(server.requests) == (2 if surplus else 1)


def test_damaged_download_never_becomes_the_file(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "pointmaze-medium-navigate-v0.npz.part"
    part.write_bytes(b"x" * 600)  # the beginning of something else
    assert "not an intact .npz file" in refusal(MAZE, folder=tmp_path)
    assert not part.exists()
    assert not (tmp_path / "pointmaze-medium-navigate-v0.npz").exists()
    load_dataset(MAZE, folder=tmp_path)


def test_absent_on_the_server(server: Server, tmp_path: Path) -> None:
    message = refusal("antmaze-large-explore-singletask-v0", folder=tmp_path)
    assert "answers 404" in message
    assert not any(tmp_path.glob("*.part"))
    assert f"put antmaze-large-explore-v0.npz into {tmp_path}" in message
    assert "sorl generate" not in message
    message = refusal(MAZE, folder=tmp_path, validation=True)
    assert f"{tmp_path}/pointmaze-medium-navigate-v0-val.npz does not exist" in message


def test_server_out_of_reach(server: Server, tmp_path: Path) -> None:
    server.http.shutdown()
    server.http.server_close()
    message = refusal(MAZE, folder=tmp_path / "folder")
    assert "cannot be reached" in message
    assert not any((tmp_path / "folder").iterdir())
    assert (
        f"make it with `sorl generate pointmaze-medium-navigate-v0 --out {tmp_path}/folder`"
        in message
    )


def test_folder_that_is_a_file(server: Server, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    assert "cannot be written" in refusal(MAZE, folder=blocked / "folder")


def test_verify_reads_everything(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    save(path, own_rewards(), compressed=False)
    ArchiveReader(path).verify()
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        ArchiveReader(path).verify()


def test_empty_answer(server: Server, tmp_path: Path) -> None:
    server.content = b""
    assert "not an intact .npz file" in refusal(MAZE, folder=tmp_path)
    assert not list(tmp_path.glob("pointmaze*"))
