"""Experts that walk: resumed to the bit, kept as files, run in NumPy, and the data they collect."""

import json
import math
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sorl
from numpy_networks import mlp
from sorl import leaves, tables
from sorl.data.generate import PROTOCOLS, describe, generate, roll
from sorl.data.generate.expert import training
from sorl.data.generate.expert.actor import Actor, Origin, read_expert, write_actor
from sorl.data.generate.expert.environment import make_expert_environment
from sorl.data.generate.expert.replay import Replay
from sorl.data.generate.expert.sac import SAC, SquashedGaussian
from sorl.data.generate.expert.training import train_expert
from sorl.data.generate.parts import hold
from sorl.data.generate.protocols import EXPERTS, ExpertProtocol, SoccerProtocol
from sorl.data.generate.soccer import expert_observation
from sorl.errors import InputError
from sorl.types import Spec

MAZE = "antmaze-medium-navigate-v0"
# Episodes of the ant have 1,000 steps. The buffer is smaller than the training is long, so that it
# forgets.
TINY = SAC(hidden=(8, 8), batch_size=16, warm_up=900, replay=700)
STEPS = 1_600


class KilledError(Exception):
    """Stands for a kill."""


def train(root: Path, *, kill_after: int | None = None) -> Path:
    def on_step(steps: int) -> None:
        if steps == kill_after:
            raise KilledError

    return train_expert(
        root, EXPERTS["ant"], steps=STEPS, seed=3, recipe=TINY, on_step=on_step, save_every=500
    )


@pytest.fixture
def global_generators() -> Iterator[None]:
    """Put back the global generators, which rolling in this process seeds."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tiny expert, trained without a stop."""
    return train(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one episode a split, walked by an expert of 40 steps trained on the way."""
    out = tmp_path_factory.mktemp("maze")
    generate(MAZE, out=out, episodes=1, workers=1, seed=4, expert_steps=40)
    return out


# Training


@pytest.mark.usefixtures("global_generators")
def test_resumes_after_a_kill_to_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    np.random.seed(8)  # noqa: NPY002
    expected_draw = np.random.random()  # noqa: NPY002
    np.random.seed(8)  # noqa: NPY002
    with pytest.raises(KilledError):
        train(tmp_path, kill_after=1_300)
    (folder,) = tmp_path.iterdir()
    assert read_expert(folder / "actor.safetensors").origin.steps == 1_000
    # What a kill between the two writes of a checkpoint leaves: steps that no checkpoint knows.
    (folder / "training" / "replay-000001000-000002000.safetensors").write_bytes(b"torn")
    heard: list[int] = []
    resumed = train_expert(
        tmp_path,
        EXPERTS["ant"],
        steps=STEPS,
        seed=3,
        recipe=TINY,
        on_step=heard.append,
        save_every=500,
    )
    assert heard == list(range(1_000, STEPS + 1))
    assert resumed.read_bytes() == trained.read_bytes()
    rows, expected = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in tables.read_rows(path)]
        for path in (resumed.parent / "returns.csv", trained.parent / "returns.csv")
    )
    assert rows == expected
    assert [row["steps"] for row in rows] == [1_000, STEPS]
    assert sorted(path.name for path in folder.iterdir()) == [
        "actor.safetensors",
        "expert.json",
        "lock",
        "returns.csv",
    ]
    # The caller's generator is as it was.
    assert np.random.random() == expected_draw  # noqa: NPY002


def test_a_trained_expert_is_found_again_and_another_seed_is_another(trained: Path) -> None:
    heard: list[int] = []
    root = trained.parent.parent
    arguments = {"steps": STEPS, "recipe": TINY, "on_step": heard.append}
    assert train_expert(root, EXPERTS["ant"], seed=3, **arguments) == trained
    assert heard == []
    with hold(trained.parent, "unused"):  # found without waiting for anybody
        assert train_expert(root, EXPERTS["ant"], seed=3, **arguments) == trained
    settings = json.loads((trained.parent / "expert.json").read_text())
    assert settings["steps"] == STEPS
    assert settings["seed"] == 3
    assert settings["recipe"]["hidden"] == [8, 8]
    assert read_expert(trained).origin == Origin("online-ant-xy-v0", STEPS, 3)


def test_an_interrupt_stops_at_the_end_of_an_episode(tmp_path: Path) -> None:
    heard: list[str] = []

    def on_step(steps: int) -> None:
        if steps == 1_200:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"first 2,000 steps are kept in .*ant-xy-v0"):
        train_expert(
            tmp_path,
            EXPERTS["ant"],
            steps=9_000,
            seed=0,
            recipe=replace(TINY, warm_up=9_000),
            on_step=on_step,
            on_stopping=lambda: heard.append("stopping"),
        )
    assert heard == ["stopping"]


def test_a_training_that_diverges_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_worthless(protocol: ExpertProtocol) -> gymnasium.Env:
        environment = make_expert_environment(protocol)
        return gymnasium.wrappers.TransformReward(environment, lambda reward: math.nan)

    monkeypatch.setattr(training, "make_expert_environment", make_worthless)
    recipe = replace(TINY, warm_up=9_000)
    with pytest.raises(InputError, match="diverged before step 1,000"):
        train_expert(tmp_path, EXPERTS["ant"], steps=1_100, seed=0, recipe=recipe, save_every=500)
    (folder,) = tmp_path.iterdir()
    assert not (folder / "actor.safetensors").exists()


def test_two_trainings_do_not_share_a_folder(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, kill_after=10)
    (folder,) = tmp_path.iterdir()
    with (
        hold(folder, "unused"),
        pytest.raises(InputError, match="Another process is training"),
    ):
        train(tmp_path)


def test_a_damaged_checkpoint_is_explained(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, kill_after=1_001)
    (folder,) = tmp_path.iterdir()
    (replay,) = (folder / "training").glob("replay-*")
    content = replay.read_bytes()
    replay.write_bytes(content[:100])
    with pytest.raises(InputError, match=r"replay-.* is damaged .* remove"):
        train(tmp_path)
    replay.unlink()
    with pytest.raises(InputError, match="lacks the steps from 300 on"):
        train(tmp_path)
    checkpoint = folder / "training" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"checkpoint.* is damaged .* remove"):
        train(tmp_path)


@settings(max_examples=30, deadline=None)
@given(capacity=st.integers(1, 7), chunks=st.lists(st.integers(0, 9), max_size=5))
def test_the_buffer_remembers_the_newest(
    tmp_path_factory: pytest.TempPathFactory, capacity: int, chunks: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("replay")
    replay = Replay(Spec(2, 1), capacity)
    for chunk in chunks:
        for _ in range(chunk):
            s = np.full(2, replay.added, np.float32)
            replay.add(s, s[:1], float(s[0]), 1.0, s + 1)
        replay.save(folder)
        replay.remove_forgotten(folder)
    loaded = Replay(Spec(2, 1), capacity)
    loaded.load(folder, replay.added)
    if not replay.added:
        return
    rows, again = (one.sample(np.random.default_rng(0), 60) for one in (replay, loaded))
    for array, other in zip(rows, again, strict=True):
        np.testing.assert_array_equal(array, other)
    newest = range(max(0, replay.added - capacity), replay.added)
    assert set(rows.reward.tolist()) == set(newest)
    np.testing.assert_array_equal(rows.next_observation[:, 1], rows.reward + 1)
    # What is on the disk is bounded, too.
    kept = sum(int(f.stem[-9:]) - int(f.stem[-19:-10]) for f in folder.iterdir())
    assert kept < capacity + max(chunks)


# The file, and NumPy


def test_the_numpy_actor_is_the_mode_of_the_policy(tmp_path: Path) -> None:
    policy = SquashedGaussian(Spec(29, 8), (16, 16), key=jax.random.key(0))
    arrays = {name: leaves.to_host(leaf) for name, leaf in leaves.named(policy).items()}
    origin = Origin("online-ant-xy-v0", 7, 0)
    write_actor(tmp_path / "actor.safetensors", arrays, origin)
    actor, found, _ = read_expert(tmp_path)
    assert found == origin
    assert (actor.observation_size, actor.action_size) == (29, 8)
    for observation in np.random.default_rng(0).normal(0, 3, (20, 29)):
        action = actor(observation)
        assert action.dtype == np.float32
        mode, _ = policy(jnp.asarray(observation, jnp.float32), jnp.full(8, 0.0))
        np.testing.assert_allclose(action, mode, atol=1e-5)
        np.testing.assert_allclose(action, np.tanh(mlp(policy.mlp, observation)[:8]), atol=1e-5)


def test_files_that_are_no_expert(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no"):
        read_expert(tmp_path / "missing.safetensors")
    path = tmp_path / "actor.safetensors"
    path.write_bytes(b"other")
    with pytest.raises(InputError, match="is not the file of an expert"):
        read_expert(path)
    layers = {"mlp.layers[0].weight": np.zeros((3, 4)), "mlp.layers[0].bias": np.zeros(4)}
    write_actor(path, {**layers, "mlp.layers[1].weight": np.zeros((3, 2))}, Origin("x", 1, 0))
    with pytest.raises(InputError, match=r"layers\[1\].bias"):
        read_expert(path)
    with pytest.raises(ValueError, match="shapes"):
        Actor({})


# The data


class Witness(Actor):
    """An actor that stands still and compares what it reads with what it would have read before.

    Args:
        expected: from the maze, and what is read, to what the expert's own environment would show.
    """

    def __init__(
        self, maze: Any, actions: int, expected: Callable[[Any, np.ndarray], np.ndarray]
    ) -> None:
        self.maze, self.actions, self.expected = maze, actions, expected
        self.calls = 0

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        self.calls += 1
        np.testing.assert_array_equal(observation, self.expected(self.maze, observation))
        return np.zeros(self.actions)


def ant_reads(maze: Any, observation: np.ndarray) -> np.ndarray:
    from ogbench.online_locomotion.ant import AntEnv

    ant: Any = SimpleNamespace(
        data=maze.data,
        _exclude_current_positions_from_observation=True,
        _use_contact_forces=False,
    )
    return np.concatenate([AntEnv._get_obs(ant), direction(maze, observation)])


def humanoid_reads(maze: Any, observation: np.ndarray) -> np.ndarray:
    from ogbench.online_locomotion.humanoid import HumanoidEnv

    return np.concatenate([HumanoidEnv._get_obs(maze), direction(maze, observation)])


def direction(maze: Any, observation: np.ndarray) -> np.ndarray:
    """The last two entries, which must be a unit vector towards a free cell next door."""
    way = observation[-2:]
    assert np.linalg.norm(way) == pytest.approx(1.0, abs=1e-3)
    ahead = maze.get_xy() + 0.9 * way
    assert maze.maze_map[maze.xy_to_ij(ahead)] == 0
    return way


def antball_reads(maze: Any, observation: np.ndarray) -> np.ndarray:
    from ogbench.online_locomotion.ant_ball import AntBallEnv

    ant, ball = maze.get_agent_ball_xy()
    # The ball is put within reach and the goal beside it.
    expected = AntBallEnv._get_obs(maze)
    assert np.linalg.norm(ball - ant) < 4
    return expected


@pytest.mark.parametrize(
    ("name", "actions", "expected"),
    [
        (MAZE, 8, ant_reads),
        ("humanoidmaze-medium-navigate-v0", 21, humanoid_reads),
        ("antsoccer-arena-navigate-v0", 8, antball_reads),
    ],
)
@pytest.mark.usefixtures("global_generators")
def test_experts_read_in_mazes_what_they_read_in_training(
    name: str, actions: int, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sorl.data.generate import soccer
        from sorl.data.generate.environment import make_environment

        protocol = replace(PROTOCOLS[name], rows=12)
        environment = make_environment(protocol)
        maze: Any = environment.unwrapped
        witness: Any = Witness(maze, actions, expected)
        if isinstance(protocol, SoccerProtocol):
            monkeypatch.setattr(soccer, "draw", lambda cells: (2, 2))
        rows = roll.roll_episode(
            environment, protocol, seed=0, split="train", episode=0, actor=witness
        )
    assert witness.calls == len(rows["actions"]) == 12
    # The witness stands still, so the actions are the noise.
    assert np.std(rows["actions"]) == pytest.approx(0.2, abs=0.06)


@pytest.mark.usefixtures("global_generators")
def test_a_ball_behind_a_corner_is_gone_for_cell_by_cell() -> None:
    class Maze:
        """Two cells with a wall between them, and the way around."""

        maze_map = np.array([[1] * 5, [1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1] * 5])
        cur_goal_xy = (8.0, 0.0)
        ant, ball = np.array([0.5, 0.0]), np.array([8.5, 0.0])

        def get_agent_ball_xy(self) -> Any:
            return self.ant, self.ball

        def xy_to_ij(self, xy: Any) -> Any:
            return round(xy[1] / 4) + 1, round(xy[0] / 4) + 1

        def get_oracle_subgoal(self, start: Any, goal: Any) -> Any:
            assert tuple(start) == (0.5, 0.0)
            return np.array([0.0, 4.0]), None

    observation = np.arange(42.0)
    read = expert_observation(Maze(), observation)
    assert read[:-4].tolist() == [*range(2, 15), *range(17, 42)]
    assert read[-4:].tolist() == [-0.5, 4.0, -0.5, 0.0]


def test_the_layout_is_ogbenchs(walked: Path) -> None:
    for suffix in ("", "-val"):
        with np.load(walked / f"{MAZE}{suffix}.npz", allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
        assert {key: (array.shape, array.dtype.name) for key, array in data.items()} == {
            "observations": ((1001, 29), "float32"),
            "actions": ((1001, 8), "float32"),
            "terminals": ((1001,), "bool"),
            "qpos": ((1001, 15), "float32"),
            "qvel": ((1001, 14), "float32"),
        }
        state = np.concatenate([data["qpos"], data["qvel"]], axis=1)
        np.testing.assert_array_equal(data["observations"], state)
        assert np.flatnonzero(data["terminals"]).tolist() == [1000]
        assert np.abs(data["actions"]).max() <= 1.0
    dataset = sorl.load_dataset(
        "antmaze-medium-navigate-singletask-v0", data=str(walked / f"{MAZE}.npz")
    )
    assert (dataset.spec.observation_size, dataset.spec.action_size) == (29, 8)
    assert describe(walked / f"{MAZE}.npz").episode_lengths == {1001: 1}


def test_the_actions_are_the_experts_but_for_noise_of_two_tenths(walked: Path) -> None:
    (folder,) = (walked / "experts").iterdir()
    actor, origin, _ = read_expert(folder)
    assert origin == Origin("online-ant-xy-v0", 40, 4)
    with np.load(walked / f"{MAZE}.npz", allow_pickle=False) as file:
        observations, actions = file["observations"], file["actions"]
    # An expert of 40 steps hardly listens to the direction, so any will do.
    means = np.array([actor(np.concatenate([s[2:], [0.7, 0.7]])) for s in observations])
    noise = (actions - means)[np.abs(actions) < 0.99]
    assert np.std(noise) == pytest.approx(0.2, abs=0.03)
    assert np.mean(noise) == pytest.approx(0.0, abs=0.03)


def test_same_bytes_for_any_number_of_workers_given_the_expert(
    walked: Path, tmp_path: Path
) -> None:
    (folder,) = (walked / "experts").iterdir()
    report = generate(MAZE, out=tmp_path, episodes=1, workers=2, seed=4, expert=folder)
    assert report.expert == folder / "actor.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{MAZE}-val.npz", f"{MAZE}.npz"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (walked / path.name).read_bytes()


def test_bad_words_about_experts(walked: Path, tmp_path: Path) -> None:
    (folder,) = (walked / "experts").iterdir()
    with pytest.raises(InputError, match="needs an expert of online-humanoid-xy-v0: give another"):
        generate("humanoidmaze-medium-navigate-v0", out=tmp_path, expert=folder)
    with pytest.raises(InputError, match="made without an expert"):
        generate("pointmaze-medium-navigate-v0", out=tmp_path, expert=folder)
    with pytest.raises(InputError, match="leave out one of the two"):
        generate(MAZE, out=tmp_path, expert=folder, expert_steps=9)
    with pytest.raises(InputError, match="0 steps of the expert's training cannot be used"):
        generate(MAZE, out=tmp_path, expert_steps=0)
    assert list(tmp_path.iterdir()) == []
