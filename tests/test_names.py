"""OGBench's names against ogbench itself."""

import subprocess
import sys

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sorl.data.names import (
    NUMBER_OF_TASKS,
    EnvironmentName,
    dataset_names,
    default_task,
    environment_names,
)
from sorl.errors import InputError


def test_default_task_is_resolved() -> None:
    name = EnvironmentName.parse("cube-single-play-singletask-v0")
    assert name == EnvironmentName(dataset="cube-single-play-v0", task=2)
    assert name.id == "cube-single-play-singletask-task2-v0"
    assert name.gymnasium_id == "cube-single-singletask-task2-v0"
    assert str(name) == name.id


def test_task_in_the_name_and_another_task() -> None:
    name = EnvironmentName.parse(" scene-play-singletask-task3-v0 ")
    assert name == EnvironmentName("scene-play-v0", 3)
    assert name.gymnasium_id == "scene-singletask-task3-v0"
    assert name.with_task(4).id == "scene-play-singletask-task4-v0"
    assert name.task == 3


@given(st.sampled_from(dataset_names()), st.integers(1, NUMBER_OF_TASKS))
def test_parse_inverts_id(dataset: str, task: int) -> None:
    name = EnvironmentName(dataset, task)
    assert EnvironmentName.parse(name.id) == name


def test_every_name_is_registered_by_ogbench() -> None:
    import ogbench  # noqa: F401  registers the environments

    known = set(gymnasium.registry)
    for dataset in dataset_names():
        for task in range(1, NUMBER_OF_TASKS + 1):
            assert EnvironmentName(dataset, task).gymnasium_id in known


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
@pytest.mark.parametrize(
    "short",
    [
        "pointmaze-medium-navigate-singletask-v0",
        "antmaze-giant-stitch-singletask-v0",
        "antsoccer-arena-navigate-singletask-v0",
        "cube-double-play-singletask-v0",
        "scene-noisy-singletask-v0",
        "puzzle-3x3-play-singletask-v0",
        "puzzle-4x6-play-singletask-v0",
    ],
)
def test_default_task_is_ogbenchs_own(short: str) -> None:
    import ogbench

    environment = ogbench.make_env_and_datasets(short, env_only=True)
    assert isinstance(environment, gymnasium.Env)
    assert environment.unwrapped._reward_task_id == EnvironmentName.parse(short).task  # pyright: ignore[reportAttributeAccessIssue]
    environment.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cube-singel-play-singletask-v0", "cube-single-play-singletask-v0"),
        ("cube-single-singletask-v0", "cube-single-play-singletask-v0"),
        ("cube-single-play-v0", "write 'cube-single-play-singletask-v0'"),
        ("cube-single-play-singletask-task6-v0", "from 1 to 5"),
        ("cube-single-play-singletask-task0-v0", "from 1 to 5"),
        ("cube-single-play-singletask-task²-v0", "There is no OGBench environment"),
        ("powderworld-easy-play-singletask-v0", "discrete actions"),
        ("HalfCheetah-v5", "There is no OGBench environment"),
        ("", "There is no OGBench environment"),
    ],
)
def test_unknown_names_get_one_sentence(text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as raised:
        EnvironmentName.parse(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("task", [0, 6, -1, True])
def test_impossible_tasks(task: int) -> None:
    with pytest.raises(InputError, match=r"whole number|from 1 to 5"):
        EnvironmentName("scene-play-v0", task)


def test_unknown_dataset() -> None:
    with pytest.raises(InputError, match="did you mean 'scene-play-v0'"):
        default_task("scene-plya-v0")


@given(st.text(max_size=60))
def test_any_text_gives_a_name_or_an_input_error(text: str) -> None:
    try:
        name = EnvironmentName.parse(text)
    except InputError:
        return
    assert name.dataset in dataset_names()


def test_short_names_parse_to_the_default() -> None:
    for short, dataset in zip(environment_names(), dataset_names(), strict=True):
        assert EnvironmentName.parse(short) == EnvironmentName(dataset, default_task(dataset))


def test_names_need_nothing_heavy() -> None:
    code = (
        "import sys, sorl.data.names; "
        "heavy = {'jax', 'gymnasium', 'ogbench', 'mujoco', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
