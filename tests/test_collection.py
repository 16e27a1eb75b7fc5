"""Acting: rows agree with the labels of data, episodes are cut and brought back as they should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sorl.collection
from local_environments import LocalEnvironments
from sorl.collection import Collector, start_seed
from sorl.data.archive import ArchiveReader
from sorl.data.dataset import Dataset
from sorl.data.names import EnvironmentName
from sorl.data.relabel import Relabeller
from sorl.environment_worker import _Slot, make_environment, slot_type
from sorl.errors import InputError
from sorl.rollouts import episode_seed
from sorl.types import Member
from sorl.units import Units

MEMBERS = (Member(0, 4), Member(0, 9))


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sorl.collection, "VectorEnvironment", LocalEnvironments)


@pytest.fixture(autouse=True)
def _global_generator() -> Iterator[None]:
    """Slots set NumPy's global generator, which belongs to all tests of this process."""
    random: Any = np.random
    before = random.get_bit_generator()
    yield
    random.set_bit_generator(before)


def actions_of(rng: np.random.Generator, members: int, environments: int, size: int) -> np.ndarray:
    return rng.uniform(-1, 1, (members, environments, size)).astype(np.float32)


@pytest.mark.filterwarnings("ignore:.*precision lowered")  # at every reset of the cube
@pytest.mark.parametrize(
    "environment",
    ["pointmaze-medium-navigate-singletask-task1-v0", "cube-single-play-singletask-task2-v0"],
)
def test_rewards_and_masks_are_those_that_the_labels_of_data_give(
    environment: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Rows stepped in the environment, success among them, labelled as if they had been logged."""
    slot = _Slot(environment, {}, frames=1)
    record = np.zeros(1, slot_type(slot.sizes))[0]
    simulator: Any = slot.environment.unwrapped
    maze = "maze" in environment
    state: Any = simulator.data if maze else simulator._data
    states, rewards, masks = [], [], []
    for episode in range(2):
        slot.reset(episode, record)
        for step in range(6):
            if episode == 1 and step == 3:  # put what is to be moved where it is to be
                qpos = state.qpos.copy()
                if maze:
                    qpos[:2] = simulator.cur_goal_xy
                    simulator.set_state(qpos, state.qvel.copy())
                else:
                    qpos[14:17] = state.mocap_pos[simulator._cube_target_mocap_ids[0]]
                    simulator.set_state(qpos, state.qvel.copy())
                    simulator.post_step()  # as the step that leads there does
            states.append(state.qpos.copy())
            record["action"] = rng.uniform(-1, 1, slot.sizes.action_size)
            slot.step(record)
            rewards.append(record["reward"])
            masks.append(not record["terminated"])
            if record["done"]:
                break
    slot.environment.close()
    assert masks.count(False) == 1
    assert not masks[-1]
    path = tmp_path / "rows.npz"
    np.savez(path, allow_pickle=False, qpos=np.array(states, np.float32))
    name = EnvironmentName.parse(environment)
    with Relabeller(name) as relabeller:
        found = relabeller.label(ArchiveReader(path), len(states), [name.task])
    np.testing.assert_array_equal(found[0][0], np.array(rewards, np.float32))
    np.testing.assert_array_equal(found[1][0], masks)


@pytest.mark.usefixtures("local")
def test_episodes_are_counted_from_a_number() -> None:
    name = "tiny_environments:Reach-v0"
    collector = Collector(name, MEMBERS, environments=2)
    slot = _Slot(name, {}, frames=1)
    record = np.zeros(1, slot_type(slot.sizes))[0]
    for first in (0, 7):
        collector.begin(first)
        for member in range(2):
            for number in range(2):
                slot.reset(start_seed(MEMBERS[member], number, first), record)
                seen = np.asarray(record["observation"], np.float32)
                np.testing.assert_array_equal(collector.observations[member, number], seen)


@pytest.mark.usefixtures("local")
def test_rows_are_what_an_environment_alone_would_give(rng: np.random.Generator) -> None:
    """Reach ends at a success before the step, or is cut off after 12 steps."""
    name = "tiny_environments:Reach-v0"
    collector = Collector(name, MEMBERS, environments=2)
    collector.begin()
    made = []
    for _ in range(60):
        actions = actions_of(rng, 2, 2, 2)
        made.append((actions, collector.step(actions)))
    random: Any = np.random
    before = random.get_bit_generator()
    lengths, masks = [], []
    try:
        for member in range(2):
            for number in range(2):
                slot, episode = _Slot(name, {}, frames=1), 0
                record = np.zeros(1, slot_type(slot.sizes))[0]
                slot.reset(start_seed(MEMBERS[member], number, episode), record)
                for actions, rows in made:
                    at = (member, number)
                    seen = np.asarray(record["observation"], np.float32)
                    np.testing.assert_array_equal(rows.observation[at], seen)
                    solved = np.linalg.norm(record["observation"][:2]) < 0.3
                    record["action"] = actions[at]
                    slot.step(record)
                    np.testing.assert_array_equal(rows.action[at], actions[at])
                    assert rows.reward[at] == (0 if solved else -1)
                    assert rows.mask[at] == (not solved)
                    last = np.asarray(record["observation"], np.float32)
                    np.testing.assert_array_equal(rows.next_observation[at], last)
                    assert rows.end[at] == (solved or record["length"] == 12)
                    if record["done"]:
                        lengths.append(int(record["length"]))
                        masks.append(not solved)
                        episode += 1
                        slot.reset(start_seed(MEMBERS[member], number, episode), record)
    finally:
        random.set_bit_generator(before)
    assert 12 in lengths
    assert 0 < sum(masks) < len(masks)  # of the last steps some were successes, some cut off
    ended = collector.take_ended()
    assert sorted(episode.length for episode in ended) == sorted(lengths)
    assert sum(episode.success for episode in ended) == len(masks) - sum(masks)
    assert not collector.take_ended()


def test_starts_differ_between_members_environments_episodes_and_evaluations() -> None:
    members = [Member(task, seed) for task in range(3) for seed in range(3)]
    ours = {start_seed(m, e, n) for m in members for e in range(3) for n in range(3)}
    assert len(ours) == 81
    theirs = {episode_seed(s, t, n) for s in range(3) for t in range(3) for n in range(9)}
    assert not ours & theirs


@pytest.mark.usefixtures("local")
def test_rows_are_in_the_units_of_the_data(rng: np.random.Generator) -> None:
    """What was stepped in the user's units, logged and made a data set of, gives the same rows."""
    units = Units((-2,), (3,), (0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 0.5, 1.5))
    name = "gym:tiny_environments:Push-v0"
    with Collector(name, (Member(0, 0),), units=units) as collector:
        size = collector.sizes.observation_size
        units = Units((-2,), (3,), tuple(0.1 * i for i in range(size)), (1.5,) * size)
    with Collector(name, (Member(0, 0),), units=units) as collector:
        collector.begin()
        rows = [collector.step(actions_of(rng, 1, 1, 1)) for _ in range(20)]
        sent = collector.episodes
    environment = make_environment(name)
    logged: dict[str, list[Any]] = {"observations": [], "actions": [], "next_observations": []}
    rewards, cut = [], []
    episode, length = 0, 0
    observation, _ = environment.reset(seed=start_seed(Member(0, 0), 0, episode))
    for row in rows:
        action = units.to_user_arrays(np.asarray(row.action[0, 0], np.float32))
        after, reward, terminated, truncated, _ = environment.step(action)
        assert not terminated
        logged["observations"].append(observation)
        logged["actions"].append(action)
        logged["next_observations"].append(after)
        rewards.append(reward)
        cut.append(truncated)
        observation, length = after, length + 1
        if truncated:
            episode, length = episode + 1, 0
            observation, _ = environment.reset(seed=start_seed(Member(0, 0), 0, episode))
    environment.close()
    assert (episode, length) == (2, 4) == (int(sent.number[0, 0]), int(sent.length[0, 0]))
    assert np.ptp(sent.actions) > 2.0  # they reach out of [-1, 1]
    dataset = Dataset.from_arrays(
        units.network_observations(np.asarray(logged["observations"], np.float32)),
        units.network_actions(np.asarray(logged["actions"], np.float32)),
        np.append(np.zeros(19), 1),
        np.asarray(rewards, np.float32)[None],
        np.ones((1, 20)),
        (0,),
        units=units,
    )
    for column, found in (
        (dataset.observations, [row.observation[0, 0] for row in rows]),
        (dataset.actions, [row.action[0, 0] for row in rows]),
        (dataset.rewards[0], [row.reward[0, 0] for row in rows]),
        (
            units.network_observations(np.asarray(logged["next_observations"], np.float32)),
            [row.next_observation[0, 0] for row in rows],
        ),
    ):
        np.testing.assert_allclose(np.asarray(column), np.asarray(found), atol=3e-6)


@pytest.mark.usefixtures("local")
def test_episodes_are_brought_back_by_their_actions(rng: np.random.Generator) -> None:
    def new() -> Collector:
        return Collector("tiny_environments:Reach-v0", MEMBERS, environments=3)

    first = new()
    first.begin()
    for _ in range(17):
        first.step(actions_of(rng, 2, 3, 2))
    saved = first.episodes
    assert len(set(saved.length.flat)) > 2
    later = [actions_of(rng, 2, 3, 2) for _ in range(15)]
    expected = [first.step(actions) for actions in later]
    first.take_ended()
    second = new()
    assert second.restore(saved) == []
    for actions, rows in zip(later, expected, strict=True):
        for one, other in zip(second.step(actions), rows, strict=True):
            np.testing.assert_array_equal(one, other)
    # The sums of rewards, too, as if nothing had been.
    assert saved.length.max() > 0
    third = new()
    third.restore(saved)
    records = third._vector.records(range(6)).reshape(2, 3)
    np.testing.assert_array_equal(records["episode_return"], -saved.length)


@pytest.mark.usefixtures("local")
def test_an_episode_that_does_not_come_back_gives_way_to_a_new_one(
    rng: np.random.Generator,
) -> None:
    def new() -> Collector:
        return Collector("tiny_environments:Moody-v0", MEMBERS)

    first = new()
    first.begin()
    first.step(actions_of(rng, 2, 1, 2))
    saved = first.episodes
    second = new()
    assert second.restore(saved) == [(0, 0), (1, 0)]
    np.testing.assert_array_equal(second.episodes.number, saved.number + 1)
    np.testing.assert_array_equal(second.episodes.length, 0)
    second.step(actions_of(rng, 2, 1, 2))


@pytest.mark.usefixtures("local")
def test_an_action_that_is_not_finite_is_told() -> None:
    collector = Collector("tiny_environments:Reach-v0", MEMBERS)
    collector.begin()
    actions = np.zeros((2, 1, 2), np.float32)
    actions[1, 0, 1] = np.nan
    with pytest.raises(InputError, match="policy of task0-seed9 gave an action that is not"):
        collector.step(actions)


def test_worker_processes_give_the_same_rows(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions = [actions_of(rng, 2, 2, 2) for _ in range(15)]

    def rows() -> list[Any]:
        with Collector(
            "tiny_environments:Reach-v0", MEMBERS, environments=2, workers=2
        ) as collector:
            collector.begin()
            return [collector.step(one) for one in actions]

    apart = rows()
    monkeypatch.setattr(sorl.collection, "VectorEnvironment", LocalEnvironments)
    for one, other in zip(apart, rows(), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
