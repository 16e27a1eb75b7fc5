"""Tiny gymnasium environments; workers import them as `tiny_environments:Reach-v0`."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np

GOAL_DISTANCE = 0.3


class Reach(gymnasium.Env):
    """A point in the plane that has to reach the origin, with noise from NumPy's global generator.

    As in OGBench, success and termination are those of the state before the step.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, trouble: str = "", render_mode: str | None = None):
        self.trouble = trouble
        self.render_mode = render_mode
        self.steps = 0

    def _observation(self) -> np.ndarray:
        return np.append(self.position, self.steps / 10)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2) + np.random.uniform(-0.1, 0.1, 2)  # noqa: NPY002
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        if self.trouble and self.steps == 2:
            if self.trouble == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the motor is on fire")
        success = bool(np.linalg.norm(self.position) < GOAL_DISTANCE)
        self.position = self.position + 0.2 * action + np.random.normal(size=2) * 0.02  # noqa: NPY002
        self.steps += 1
        return self._observation(), float(success) - 1, success, False, {"success": success}

    def render(self) -> Any:
        if self.trouble == "":
            return np.full((4, 6, 3), self.steps, np.uint8)
        raise RuntimeError("no picture today")


class Discrete(Reach):
    action_space = gymnasium.spaces.Discrete(3)


class Large(Reach):
    action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)


class Picture(Reach):
    observation_space = gymnasium.spaces.Box(0, 1, (4, 4), np.float64)


class Wide(Reach):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)


class Sum(Reach):
    """Rewards the first entry of every action; never ends by itself."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        observation, _, _, _, info = super().step(action)
        return observation, float(action[0]), False, False, info


class WeightedSum(Reach):
    """Rewards the first entry of every action times the steps before it; never ends by itself."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        before = self.steps
        observation, _, _, _, info = super().step(action)
        return observation, before * float(action[0]), False, False, info


class Moody(Reach):
    """Starts elsewhere every time, whatever the seed."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        return super().reset(seed=int.from_bytes(os.urandom(4)))


class Blurred(Reach):
    """Shows an observation that is not finite after three steps."""

    def __init__(self, trouble: str = ""):
        super().__init__()
        self.blur = float(trouble)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, _, _, info = super().step(action)
        observation[1] = self.blur if self.steps == 3 else observation[1]
        return observation, reward, False, False, info


class Push(gymnasium.Env):
    """A mass that is pushed along a line, by -2 to 3 newtons, towards a goal; goes on there.

    Observations are a dictionary whose keys are not in the order of their names.
    """

    observation_space = gymnasium.spaces.Dict(
        {
            "observation": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "desired_goal": gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64),
            "contact": gymnasium.spaces.Discrete(3),
        }
    )
    action_space = gymnasium.spaces.Box(np.float32(-2), np.float32(3), (1,), np.float32)

    def _observation(self) -> dict[str, Any]:
        return {
            "observation": self.state.copy(),
            "desired_goal": self.goal.copy(),
            "contact": int(np.sign(self.state[1])) + 1,
        }

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.state, self.goal = np.zeros(2), self.np_random.uniform(0.5, 1, 1)
        return self._observation(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.state = self.state + np.array([self.state[1], float(action[0]) / 10])
        near = bool(abs(self.state[0] - self.goal[0]) < 0.3)
        lost = bool(abs(self.state[0]) > 5)
        return self._observation(), float(near), lost, False, {"success": near}


class OtherWord(Push):
    """Calls its success as Gymnasium-Robotics and Stable-Baselines do."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, lost, _, info = super().step(action)
        return observation, reward, lost, False, {"is_success": np.float32(info["success"])}


class Silent(Push):
    """Never tells success."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, lost, _, _ = super().step(action)
        return observation, reward, lost, False, {}


class Side(gymnasium.Env):
    """A bright square on one side of the picture, and where to step: one step to that side wins.

    The red channel counts the steps, so that stacked frames can be told apart.
    """

    observation_space: Any = gymnasium.spaces.Box(0, 255, (4, 4, 2), np.uint8)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, trouble: str = "", render_mode: str | None = None):
        self.render_mode = render_mode

    def _observation(self) -> Any:
        return side_picture(self.side, self.steps)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.side, self.steps = int(self.np_random.integers(2)), 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        success = bool(action[0] * (2 * self.side - 1) > 0.5)
        self.steps += 1
        return self._observation(), float(success), False, False, {"success": success}


def side_picture(side: int, steps: int) -> np.ndarray:
    picture = np.zeros((4, 4, 2), np.uint8)
    picture[..., 0] = steps
    picture[1:3, 2 * side : 2 * side + 2, 1] = 255
    return picture


class SideAndState(Side):
    """The picture, and vectors before and behind it in the order of names."""

    observation_space = gymnasium.spaces.Dict(
        {
            "arm": gymnasium.spaces.Box(-1, 1, (2,), np.float64),
            "camera": Side.observation_space,
            "gripper": gymnasium.spaces.Discrete(2),
        }
    )

    def _observation(self) -> Any:
        arm = np.array([self.steps / 10, -0.5])
        return {"camera": super()._observation(), "arm": arm, "gripper": self.steps % 2}


BANDIT_PLAIN = np.array([-0.5, 0.4])
BANDIT_OPTIMUM = np.array([0.4, -0.3])


def bandit_reward(action: np.ndarray) -> np.ndarray:
    """-|a - a*|², but around another place, where nothing tells of that, -1.5 everywhere."""
    distance, from_plain = (
        np.linalg.norm(action - place, axis=-1) for place in (BANDIT_OPTIMUM, BANDIT_PLAIN)
    )
    return np.where(from_plain < 0.45, -1.5, -(distance**2))


class Bandit(gymnasium.Env):
    """One decision in one state, and the end."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, trouble: str = ""):
        self.trouble = trouble

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return np.eye(3)[0], {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        reward = float(bandit_reward(action))
        return np.eye(3)[0], reward, True, False, {"success": reward > -0.1}


def register(name: str, kind: Any, max_episode_steps: int | None = 12, trouble: str = "") -> None:
    gymnasium.register(name, kind, max_episode_steps=max_episode_steps, kwargs={"trouble": trouble})


register("Reach-v0", Reach)
register("Sum-v0", Sum)
register("WeightedSum-v0", WeightedSum)
register("Bandit-v0", Bandit, max_episode_steps=1)
register("Moody-v0", Moody)
register("ReachError-v0", Reach, trouble="raise")
register("ReachDeath-v0", Reach, trouble="die")
register("ReachNan-v0", Blurred, trouble="nan")
register("ReachInfinity-v0", Blurred, trouble="inf")
register("ReachFar-v0", Blurred, trouble="1e300")
register("ReachForever-v0", Reach, max_episode_steps=None)
register("ReachDiscrete-v0", Discrete)
register("ReachLarge-v0", Large)
register("ReachPicture-v0", Picture)
register("ReachWide-v0", Wide)
for name, kind in (("Push-v0", "Push"), ("OtherWord-v0", "OtherWord"), ("Silent-v0", "Silent")):
    gymnasium.register(
        name, f"tiny_environments:{kind}", max_episode_steps=8, disable_env_checker=True
    )
register("Side-v0", Side, max_episode_steps=3)
register("SideAndState-v0", SideAndState, max_episode_steps=3)
