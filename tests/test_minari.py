"""Minari's data sets, made here by Minari's own API: loaded, trained on, evaluated."""

from __future__ import annotations

import gc
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest

import sorl
import tiny_environments  # noqa: F401  (registers its environments)
from run_fixtures import tiny, tiny_folder  # noqa: F401
from sorl import cli
from sorl.data.minari_names import resolve
from sorl.data.sources import load_dataset
from sorl.environments import VectorEnvironment
from sorl.errors import InputError
from sorl.own_environments import make_own
from sorl.runs import Run
from sorl.spaces import flatten

NAME = "push/random-v1"


def collect(name: str, episodes: int = 6) -> list[dict[str, Any]]:
    """Make a set, and keep what happened apart from Minari."""
    kept = []
    with warnings.catch_warnings(action="ignore"):  # of descriptions that are not given
        collector = minari.DataCollector(gymnasium.make("Push-v0"), record_infos=True)
        collector.action_space.seed(0)
        for episode in range(episodes):
            observation, _ = collector.reset(seed=episode)
            seen, acted, rewards, over = [observation], [], [], False
            while not over:
                action = collector.action_space.sample()
                observation, reward, terminated, truncated, _ = collector.step(action)
                seen.append(observation)
                acted.append(action)
                rewards.append(reward)
                over = terminated or truncated
            kept.append({"seen": seen, "acted": acted, "rewards": rewards})
        collector.create_dataset(dataset_id=name, eval_env="Push-v0")
        collector.close()
        del collector
        gc.collect()  # Minari leaves the removal of its temporary folder to the collector
    return kept


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("minari")
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        yield folder, collect(NAME)


def vector(observation: dict[str, Any]) -> np.ndarray:
    contact = np.eye(3)[observation["contact"]]
    return np.concatenate([contact, observation["desired_goal"], observation["observation"]])


def test_a_set_is_what_was_collected(sets: tuple[Path, list[dict[str, Any]]]) -> None:
    dataset = load_dataset(data=f"minari:{NAME}")
    _, kept = sets
    seen = np.stack([vector(o) for episode in kept for o in episode["seen"]])
    np.testing.assert_array_equal(dataset.observations, seen.astype(np.float32))
    assert dataset.units == sorl.Units((-2.0,), (3.0,))
    valid = np.asarray(dataset.valid_rows)
    acted = np.concatenate([episode["acted"] for episode in kept])
    clipped = np.clip((acted - 0.5) / 2.5, -1 + 1e-5, 1 - 1e-5)
    np.testing.assert_allclose(np.asarray(dataset.actions)[valid], clipped, atol=1e-6)
    rewards = np.concatenate([episode["rewards"] for episode in kept])
    np.testing.assert_array_equal(np.asarray(dataset.rewards[0])[valid], rewards)
    assert np.asarray(dataset.masks).all()  # all were cut off after eight steps
    assert dataset.statistics().episodes == len(kept)
    assert load_dataset(f"minari:{NAME}").fingerprint == dataset.fingerprint


def test_flattening_is_gymnasiums() -> None:
    spaces = gymnasium.spaces
    space = spaces.Dict(
        {
            "b": spaces.Tuple((spaces.Box(-1, 1, (2, 2)), spaces.Discrete(3, start=2))),
            "a": spaces.MultiBinary(3),
        }
    )
    space.seed(0)
    for _ in range(5):
        value = space.sample()
        np.testing.assert_array_equal(flatten(space, value), spaces.flatten(space, value))
    for wrong in (spaces.Text(3), spaces.Box(0, 255, (4, 4, 3), np.uint8)):
        with pytest.raises(InputError):
            flatten(wrong, wrong.sample())
    with pytest.raises(InputError, match="lack 'a'"):
        flatten(space, {"b": ()})


def test_workers_run_the_environment_in_its_own_units(
    sets: tuple[Path, list[dict[str, Any]]],
) -> None:
    name = "gym:tiny_environments:Push-v0"
    for same in (f"minari:{NAME}", name):  # this process has imported the module that registers it
        own = make_own(same, {"disable_env_checker": True})
        assert own.reset(seed=3)[0].shape == (6,)
    with VectorEnvironment(name, slots=1, workers=1) as environments:
        assert (environments.sizes.action_low, environments.sizes.action_high) == ((-2,), (3,))
        record = environments.reset(0, name, 3)
        plain = gymnasium.make("Push-v0")
        observation, _ = plain.reset(seed=3)
        np.testing.assert_array_equal(record["observation"], vector(observation))
        success, total, over, info = False, 0.0, False, {}
        for step in range(8):
            action = np.array([3.0 if step < 3 else 0.5], np.float32)
            # What rounding puts a little over the bounds is put back.
            record = environments.step(0, action + np.float32(1e-6))
            observation, reward, _, over, info = plain.step(action)
            success |= info["success"]
            total += float(reward)
            np.testing.assert_allclose(record["observation"], vector(observation), atol=1e-5)
            assert record["success"] == success
            assert record["episode_return"] == total
        assert over
        assert record["done"]
        assert success
        assert not info["success"]  # it ran past the goal, and succeeded all the same


def test_training_and_evaluation_by_the_command(
    sets: tuple[Path, list[dict[str, Any]]],
    tiny: None,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    command = f"""
        train tiny --env gym:tiny_environments:Push-v0 --data minari:{NAME} --out {out} --updates 4
        --log-every 2 --budgets 1x1 --episodes 3 --workers 1 --tensorboard False
    """
    assert cli.run(command.split()) == 0
    run = Run.open(out)
    assert run.config["units"]["action_high"] == [3]
    (row,) = run.evaluations()
    assert (row["episodes"], row["length"]) == (3, 8)
    policy = sorl.Policy.load(out)
    # The same episodes by hand, from the policy in its own units.
    from sorl.rollouts import episode_seed

    environment = gymnasium.make("Push-v0")
    returns = []
    for episode in range(3):
        observation, _ = environment.reset(seed=episode_seed(0, 0, episode))
        total, over = 0.0, False
        while not over:
            action = policy.act(vector(observation), steps=1, best_of=1, key=0)
            assert -2 <= action[0] <= 3
            observation, reward, terminated, truncated, _ = environment.step(action)
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    # Noise differs from that of the evaluation: a hundredth of the range, so returns nearly agree.
    assert float(row["return"]) == pytest.approx(np.mean(returns), abs=1.5)
    assert cli.run(f"evaluate {out} --budgets 1x1 --episodes 2 --workers 1".split()) == 0
    wrong = tmp_path / "wrong"
    data = tmp_path / "mine"
    sorl_arguments = ["--env", "gym:tiny_environments:Push-v0", "--data", f"{data}.npz"]
    from sorl.data.importing import import_files

    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "log.npz",
        observations=rng.normal(size=(40, 6)),
        actions=rng.uniform(-50, 50, (40, 1)),
        rewards=np.zeros(40),
        timeouts=np.arange(40) % 10 == 9,
    )
    import_files([tmp_path / "log.npz"], data)
    capsys.readouterr()
    arguments = ["--out", str(wrong), *["--updates", "2", "--log-every", "2", "--budgets", "1x1"]]
    assert cli.run(["train", "tiny", *sorl_arguments, *arguments, "--workers", "1"]) == 2
    assert "in other units" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("identifier", "port", "asked", "order"),
    [
        # The keys of a dictionary in alphabetical order: achieved, desired, observation.
        ("AntMaze_UMaze-v5", "D4RL/antmaze/umaze-v1", "antmaze-umaze-v2", (2, 2, 105)),
        ("AdroitHandPen-v1", "D4RL/pen/human-v2", "pen-human-v1", (45,)),
    ],
)
def test_ports_of_d4rl_with_their_environments(
    identifier: str,
    port: str,
    asked: str,
    order: tuple[int, ...],
    sets: tuple[Path, list[dict[str, Any]]],
    tiny: None,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Sets as the ports are: named so, recorded in Gymnasium-Robotics by Minari's own collector."""
    folder, _ = sets
    seen, acted = [], []
    with warnings.catch_warnings(action="ignore"):  # of environments that have newer versions
        import gymnasium_robotics  # noqa: F401  (registers its environments)

        collector = minari.DataCollector(gymnasium.make(identifier, max_episode_steps=7))
        collector.action_space.seed(0)
        for episode in range(2):
            observation, _ = collector.reset(seed=episode)
            over = False
            while True:
                parts = (
                    [observation[key] for key in sorted(observation)]
                    if isinstance(observation, dict)
                    else [observation]
                )
                assert tuple(map(len, parts)) == order
                seen.append(np.concatenate(parts))
                if over:
                    break
                action = collector.action_space.sample()
                observation, _, terminated, truncated, _ = collector.step(action)
                acted.append(action)
                over = terminated or truncated
        collector.create_dataset(dataset_id=port)
        collector.close()
        del collector
        gc.collect()
    try:
        dataset = load_dataset(data=f"minari:{asked}")
        np.testing.assert_array_equal(dataset.observations, np.asarray(seen, np.float32))
        valid = np.asarray(dataset.valid_rows)
        clipped = np.clip(acted, -1 + 1e-5, 1 - 1e-5)
        np.testing.assert_allclose(np.asarray(dataset.actions)[valid], clipped, atol=1e-6)
        out = tmp_path / "run"
        command = f"""
            train tiny --env minari:{asked} --out {out} --updates 2 --log-every 2 --budgets 1x1
            --episodes 2 --workers 1 --tensorboard False
        """
        assert cli.run(command.split()) == 0
        (row,) = Run.open(out).evaluations()
        assert (row["episodes"], row["length"]) == (2, 7)
    finally:
        shutil.rmtree(folder / "D4RL")


@pytest.fixture
def recorded(
    sets: tuple[Path, list[dict[str, Any]]],
) -> Iterator[Callable[..., None]]:
    """Changes what the set records of its environment."""
    path = sets[0] / NAME / "data" / "metadata.json"
    before = path.read_text()

    def change(**changes: Any) -> None:
        told = json.loads(before)
        spec = json.loads(told["eval_env_spec"])
        path.write_text(json.dumps({**told, "eval_env_spec": json.dumps({**spec, **changes})}))

    yield change
    path.write_text(before)


def test_a_set_names_no_code_that_runs(
    recorded: Callable[..., None],
    tmp_path: Path,
    tiny: None,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    mark = tmp_path / "mark"
    command = f"train tiny --env minari:{NAME} --out {tmp_path / 'run'} --updates 2 --log-every 2"
    touch = {"entry_point": "subprocess:getoutput", "kwargs": {"cmd": f"touch {mark}"}}
    for changes in (
        touch,
        {"id": "CartPole-v1", **touch},  # registered, as something else
        {"additional_wrappers": [{"name": "Wrapper", **touch}]},
    ):
        recorded(**changes)
        assert cli.run([*command.split(), "--workers", "1"]) == 2
        told = capsys.readouterr().err
        assert "not trusted to name code" in told
        assert len(told.strip().splitlines()) == 1
        with pytest.raises(InputError, match="not trusted"):
            make_own(f"minari:{NAME}", {})
        assert not mark.exists()


def test_recorded_wrappers_that_only_compute_are_put_on(recorded: Callable[..., None]) -> None:
    with warnings.catch_warnings(action="ignore"):  # of bounds that become float32
        wrapped = gymnasium.wrappers.RescaleAction(
            gymnasium.make("Push-v0"),
            np.float64(0),
            np.float64(1),  # which JSON can hold
        )
        assert wrapped.spec is not None
        recorded(**json.loads(wrapped.spec.to_json()))
        own = make_own(f"minari:{NAME}", {})
    assert (own.action_space.low, own.action_space.high) == (0, 1)
    # What cannot be made of arguments is one sentence.
    recorded(kwargs={"unknown": 1})
    with pytest.raises(InputError, match="cannot be made"):
        make_own(f"minari:{NAME}", {})


def test_names(sets: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder, _ = sets
    assert resolve(f"minari:{NAME}") == NAME
    assert resolve("push/random") == NAME
    for version in (0, 1, 10):
        (folder / f"D4RL/antmaze/medium-play-v{version}/data").mkdir(parents=True)
    (folder / "D4RL/pen/human-v2/data").mkdir(parents=True)
    try:
        assert resolve("antmaze-medium-play-v2") == "D4RL/antmaze/medium-play-v10"
        assert resolve("pen-human-v1") == "D4RL/pen/human-v2"
        assert resolve("D4RL/antmaze/medium-play-v1") == "D4RL/antmaze/medium-play-v1"
        with pytest.raises(InputError, match="cannot be read"):
            load_dataset(data="minari:pen-human-v1")
    finally:
        shutil.rmtree(folder / "D4RL")
    for missing in ("antmaze-umaze-v2", "nothing", "push/random-v7", ""):
        with pytest.raises(InputError, match="minari download"):
            resolve(missing)
    with pytest.raises(InputError, match="one task, 0"):
        load_dataset("pointmaze-medium-navigate-singletask-v0", data=f"minari:{NAME}")
    with pytest.raises(InputError, match="No data are known"):
        load_dataset("gym:Pendulum-v1")


def test_damaged_sets_give_one_sentence(
    sets: tuple[Path, list[dict[str, Any]]], rng: np.random.Generator
) -> None:
    folder, _ = sets
    shutil.copytree(folder / NAME, folder / "push/broken-v0")
    content = (folder / NAME / "data/main_data.hdf5").read_bytes()
    for trial in range(12):
        damaged = bytearray(content)
        if trial < 4:
            damaged = damaged[: int(rng.integers(len(content)))]
        else:
            for place in rng.integers(0, len(content), 60):
                damaged[place] ^= 255
        (folder / "push/broken-v0/data/main_data.hdf5").write_bytes(damaged)
        try:
            load_dataset(data="minari:push/broken-v0")
        except InputError as error:
            message = str(error)
            assert "\n" not in message
    (folder / "push/broken-v0/data/metadata.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_dataset(data="minari:push/broken-v0")
