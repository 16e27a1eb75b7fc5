"""One episode of type "navigate": a body walks to one random goal after another."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from sorl.data.generate.cells import draw, free_cells, goal_cells, way_to
from sorl.data.generate.expert.actor import Actor
from sorl.data.generate.protocols import NavigateProtocol
from sorl.data.generate.rows import Rows, Step, stack_rows


def roll_navigate_episode(
    environment: gymnasium.Env[Any, Any],
    protocol: NavigateProtocol,
    seed: int,
    actor: Actor | None = None,
) -> Rows:
    """Roll one episode.

    A point's action is the direction itself, and it reaches a goal from the middle of most cells,
    within 1 m. `actor` turns the direction into the action of a body with legs;
    it reads the observation but for the position, then the direction. `seed` is the environment's.
    Goals, starts and noise come from NumPy's global generator, which the caller seeds, because the
    maze itself draws from it.
    """
    maze: Any = environment.unwrapped
    cells, goals = free_cells(maze.maze_map), goal_cells(maze.maze_map)
    maze.action_space.seed(seed)
    task = {"init_ij": draw(cells), "goal_ij": draw(goals)}
    observation, _ = environment.reset(seed=seed, options={"task_info": task})
    steps: list[Step] = []
    done = False
    while not done:
        position = maze.get_xy()
        if actor is None:
            subgoal, _ = maze.get_oracle_subgoal(position, maze.cur_goal_xy)
        else:
            subgoal = way_to(maze, position, np.asarray(maze.cur_goal_xy))
        direction = subgoal - position
        direction = direction / (np.linalg.norm(direction) + 1e-6)
        if actor is None:
            action = direction
        else:
            action = actor(np.concatenate([observation[len(position) :], direction]))
        noise = np.random.normal(0.0, protocol.noise, action.shape)  # noqa: NPY002
        action = np.clip(action + noise, -1.0, 1.0)
        next_observation, _, terminated, truncated, info = environment.step(action)
        done = terminated or truncated
        steps.append((observation, action, done, info))
        observation = next_observation
        if info["success"]:
            maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(draw(goals))))
    return stack_rows(steps)
