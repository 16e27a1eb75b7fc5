"""One episode of type "play": an oracle carries out random targets, one after another."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
from ogbench.manipspace.oracles.plan.plan_oracle import PlanOracle
from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

from sorl.data.generate.protocols import PlayProtocol
from sorl.data.generate.rows import Rows, Step, stack_rows

# OGBench's settings for the temporally correlated noise on the oracles' plans.
_NOISE = {"noise": 0.1, "noise_smoothing": 0.5}


def roll_play_episode(
    environment: gymnasium.Env[Any, Any], protocol: PlayProtocol, seed: int
) -> Rows | None:
    """Roll one episode; None if the protocol discards it.

    `seed` is the environment's. The oracles draw from NumPy's global generator, which the caller
    seeds.
    """
    stack_probability = np.random.uniform(*protocol.stack_probability)  # noqa: NPY002
    unwrapped: Any = environment.unwrapped
    oracles = _make_oracles(environment, protocol)
    observation, info = environment.reset(seed=seed)
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    steps: list[Step] = []
    done = False
    while not done:
        # A plan that has come to its end is followed by the plan to a new target.
        if oracle.done:
            observation, info = unwrapped.set_new_target(p_stack=stack_probability)
            oracle = oracles[info["privileged/target_task"]]
            oracle.reset(observation, info)
        action = np.clip(oracle.select_action(observation, info), -1.0, 1.0)
        next_observation, _, terminated, truncated, info = environment.step(action)
        done = terminated or truncated
        steps.append((observation, action, done, info))
        if protocol.discard_lost_cube and _is_lost(info["privileged/block_0_pos"]):
            return None
        observation = next_observation
    return stack_rows(steps)


def _make_oracles(
    environment: gymnasium.Env[Any, Any], protocol: PlayProtocol
) -> dict[str, PlanOracle]:
    closed = protocol.always_closed_gripper
    return {
        "cube": CubePlanOracle(env=environment, **_NOISE),
        "button": ButtonPlanOracle(env=environment, gripper_always_closed=closed, **_NOISE),
        "drawer": DrawerPlanOracle(env=environment, **_NOISE),
        "window": WindowPlanOracle(env=environment, **_NOISE),
    }


def _is_lost(position: np.ndarray) -> bool:
    """Whether a cube at `position` (metres) is behind the window, or beyond the drawer."""
    y, z = position[1], position[2]
    return bool(y >= 0.29 or (y <= -0.3 and not 0.06 <= z <= 0.08))
