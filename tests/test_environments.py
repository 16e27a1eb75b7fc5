"""Vector environments: bookkeeping, independence of the slots, failures and a clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from typing import Any

import numpy as np
import pytest

from sorl.environments import Sizes, VectorEnvironment, make_environment
from sorl.errors import InputError, WorkerError

REACH = "tiny_environments:Reach-v0"
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 2)).astype(np.float32)


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process has ended (a zombie counts as ended only for somebody else's child)."""
    for _ in range(int(seconds / 0.05)):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as status:
                if status.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def by_hand(seed: int) -> list[dict[str, Any]]:
    """The episode that a slot should see, stepped in this process."""
    environment = make_environment(REACH)
    random: Any = np.random
    before = random.get_bit_generator()
    random.set_bit_generator(np.random.PCG64(seed))
    observation, _ = environment.reset(seed=seed)
    rows = [
        {"observation": observation, "episode_return": 0.0, "length": 0, "done": 0, "success": 0}
    ]
    for index, action in enumerate(ACTIONS):
        observation, reward, terminated, truncated, info = environment.step(action)
        rows.append(
            {
                "observation": observation,
                "episode_return": rows[-1]["episode_return"] + float(reward),
                "length": index + 1,
                "done": terminated or truncated,
                "success": info["success"],
            }
        )
        if rows[-1]["done"]:
            break
    random.set_bit_generator(before)
    return rows


def assert_same(record: np.void, row: dict[str, Any]) -> None:
    for field, value in row.items():
        np.testing.assert_array_equal(record[field], value, err_msg=field)


def test_interleaved_slots_run_the_episodes_of_a_plain_loop() -> None:
    episodes = {seed: by_hand(seed) for seed in range(20)}
    reaching = [seed for seed, rows in episodes.items() if rows[-1]["success"]]
    failing = [seed for seed, rows in episodes.items() if not rows[-1]["success"]]
    seeds = {0: reaching[0], 1: failing[0], 2: reaching[1]}
    expected = {slot: episodes[seed] for slot, seed in seeds.items()}
    with VectorEnvironment(REACH, slots=3, workers=2) as vector:
        assert vector.sizes == Sizes(3, 2, 12)
        for repetition in range(2):
            for slot, seed in seeds.items():
                assert_same(vector.reset(slot, REACH, seed), expected[slot][0])
            for index in range(12):
                for slot, rows in expected.items():
                    if index + 1 < len(rows):
                        assert_same(vector.step(slot, ACTIONS[index]), rows[index + 1])
            assert all(vector.records([0, 1, 2])["done"]), repetition


def test_a_message_with_resets_and_steps_touches_no_other_slot() -> None:
    with VectorEnvironment(REACH, slots=4, workers=2) as vector:
        for slot in range(4):
            vector.reset(slot, REACH, slot)
        before = vector.records(range(4))
        vector.send(0, 7, resets={0: (REACH, 9)}, actions={2: ACTIONS[0]})
        assert vector.receive() == [7]
        after = vector.records(range(4))
        np.testing.assert_array_equal(after[[1, 3]], before[[1, 3]])
        assert list(after["length"]) == [0, 0, 1, 0]
        assert not np.array_equal(after[0]["observation"], before[0]["observation"])


def test_success_comes_one_step_after_the_goal_was_reached() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        environment = make_environment("cube-single-play-singletask-task2-v0")
        inner: Any = environment.unwrapped
        environment.reset(seed=0)
    goal = inner.cur_task_info["goal_xyzs"][0]
    _, reward, terminated, _, info = environment.step(np.zeros(5))
    assert (reward, terminated, info["success"]) == (-1, False, False)
    inner.data.joint("object_joint_0").qpos[:3] = goal  # during the next step, so to speak
    _, _, terminated, _, info = environment.step(np.zeros(5))
    assert (terminated, info["success"]) == (False, False)
    _, reward, terminated, _, info = environment.step(np.zeros(5))
    assert (reward, terminated, info["success"]) == (0, True, True)
    environment.close()


def test_a_slot_that_changes_its_task_equals_a_new_environment() -> None:
    names = [f"pointmaze-medium-navigate-singletask-task{task}-v0" for task in (1, 2)]

    def episode(vector: VectorEnvironment, name: str) -> np.ndarray:
        vector.reset(0, name, 5)
        return np.stack([vector.step(0, action) for action in ACTIONS])

    with VectorEnvironment(names[0], slots=1, workers=1) as vector:
        first, second, again = (episode(vector, names[i]) for i in (0, 1, 0))
    with VectorEnvironment(names[1], slots=1, workers=1) as vector:
        fresh = episode(vector, names[1])
    np.testing.assert_array_equal(second, fresh)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first["observation"], second["observation"])


def test_success_by_another_name_counts_and_what_is_never_told_is_known() -> None:
    names = [f"gym:tiny_environments:{name}-v0" for name in ("Push", "OtherWord", "Silent")]
    found = {}
    with VectorEnvironment(names[0], slots=1, workers=1) as environments:
        for name in names:
            assert not environments.reset(0, name, 3)["success_told"]
            pushes = [3.0] * 3 + [0.5] * 5  # past the goal
            records = [environments.step(0, np.full(1, push, np.float32)) for push in pushes]
            found[name] = [(bool(r["success"]), bool(r["success_told"])) for r in records]
        assert not environments.reset(0, names[1], 3)["success"]
    one, other, silent = found.values()
    assert one == other
    assert one[0] == (False, True)
    assert one[-1] == (True, True)
    assert set(silent) == {(False, False)}


def test_fewer_steps_can_be_asked_for() -> None:
    with VectorEnvironment(REACH, slots=1, workers=1, max_episode_steps=2) as vector:
        vector.reset(0, REACH, 3)
        assert not vector.step(0, ACTIONS[0])["done"]
        assert vector.step(0, ACTIONS[1])["done"]
        with pytest.raises(WorkerError, match="has ended"):
            vector.step(0, ACTIONS[2])


def test_pictures() -> None:
    with VectorEnvironment(REACH, slots=1, workers=1, render_size=8) as vector:
        vector.reset(0, REACH, 0)
        vector.step(0, ACTIONS[0])
        np.testing.assert_array_equal(vector.frame(0), np.ones((4, 6, 3)))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cube-sinle-play-singletask-v0", "no environment 'cube-sinle"),
        ("Nonsense-v0", "no environment 'Nonsense-v0'"),
        ("no_such_module:Reach-v0", "no environment 'no_such_module:Reach-v0'"),
        ("Pendulum", "no environment 'Pendulum'"),
        ("Ant-v0", "no environment 'Ant-v0'"),
        ("Pendulum v1", "no environment 'Pendulum v1'"),
        (":Pendulum-v9", "no environment ':Pendulum-v9'"),
        (".x:Reach-v0", "no environment '.x:Reach-v0'.*No module named '.x'"),
        ("gym:.x:Reach-v0", "environment of gym:.x:Reach-v0 cannot be made .*No module"),
        ("gym:Ant-v0", "environment of gym:Ant-v0 cannot be made"),
        ("tiny_environments:ReachDiscrete-v0", "continuous actions"),
        ("tiny_environments:ReachLarge-v0", "RescaleAction"),
        ("tiny_environments:ReachPicture-v0", "FlattenObservation"),
        ("tiny_environments:ReachForever-v0", "max_episode_steps"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_environment_that_cannot_be_used_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as raised:
        make_environment(name)
    assert "\n" not in str(raised.value)


def test_a_refusal_in_a_worker_reaches_the_caller() -> None:
    with pytest.raises(InputError, match="no environment"):
        VectorEnvironment("tiny_environments:Nonsense-v0", slots=1, workers=1)
    with (
        VectorEnvironment(REACH, slots=1, workers=1) as vector,
        pytest.raises(InputError, match="observation_size=4"),
    ):
        vector.reset(0, "tiny_environments:ReachWide-v0", 0)
    with pytest.raises(InputError, match="2 workers cannot share 1 slots"):
        VectorEnvironment(REACH, slots=1, workers=2)


@pytest.mark.parametrize(
    ("name", "sentence"), [("ReachDeath-v0", "killed by SIGKILL"), ("ReachError-v0", "on fire")]
)
def test_a_worker_that_fails_ends_in_a_sentence_and_leaves_nothing(
    name: str, sentence: str
) -> None:
    name = f"tiny_environments:{name}"
    start = time.monotonic()
    with VectorEnvironment(name, slots=2, workers=2) as vector:
        for slot in range(2):
            vector.reset(slot, name, 0)
            vector.step(slot, ACTIONS[0])
        vector.step(0, ACTIONS[1])
        with pytest.raises(WorkerError, match=sentence):
            vector.step(0, ACTIONS[2])
        processes = vector._processes
    assert all(process.returncode is not None for process in processes)
    vector.close()  # a second time does no harm
    assert time.monotonic() - start < 30


def test_workers_that_hang_share_one_time_of_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sorl.environments.CLOSING_SECONDS", 1.0)
    vector = VectorEnvironment(REACH, slots=4, workers=4)
    for process in vector._processes[:3]:
        process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    vector.close()
    assert 1 <= time.monotonic() - start < 2.5
    codes = [process.returncode for process in vector._processes]
    assert codes == [-signal.SIGKILL] * 3 + [0]


SCRIPT = """
from sorl.environments import VectorEnvironment
with VectorEnvironment("tiny_environments:Reach-v0", slots=2, workers=2) as vector:
    print(*[process.pid for process in vector._processes], flush=True)
    while True:
        vector.reset(0, "tiny_environments:Reach-v0", 0)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_script_without_a_main_guard(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stdout is not None
        pids = [int(pid) for pid in script.stdout.readline().split()]
        assert len(pids) == 2
        script.send_signal(number)
        try:
            _, errors = script.communicate(timeout=60)
        finally:
            script.kill()
    assert all(gone(pid) for pid in pids)
    assert "Exception ignored" not in errors
    assert errors.count("Traceback") == (1 if number == signal.SIGINT else 0), errors


def test_environments_do_not_import_jax() -> None:
    program = "import sys, sorl.environments; assert not {'jax', 'mujoco'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
