"""One episode of soccer: an ant drives a ball to one random goal after another."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from sorl.data.generate.cells import draw, free_cells, goal_cells, way_to
from sorl.data.generate.expert.actor import Actor
from sorl.data.generate.protocols import SoccerProtocol
from sorl.data.generate.rows import Rows, Step, stack_rows

BALL_IN_REACH = 4.0
"""Metres, the side of a cell: from nearer the expert sees where the ball is."""


def roll_soccer_episode(
    environment: gymnasium.Env[Any, Any], protocol: SoccerProtocol, seed: int, actor: Actor
) -> Rows:
    """Roll one episode; `seed` and NumPy's global generator as in `roll_navigate_episode`.

    The expert knows no walls: it goes to a ball and brings it to a place, in the open. So it is
    told of the next cell on the way to the ball while that is out of reach, and always of the next
    cell on the ball's way to its goal.
    """
    maze: Any = environment.unwrapped
    cells, goals = free_cells(maze.maze_map), goal_cells(maze.maze_map)
    maze.action_space.seed(seed)
    task = {"agent_init_ij": draw(cells), "ball_init_ij": draw(cells), "goal_ij": draw(goals)}
    observation, _ = environment.reset(seed=seed, options={"task_info": task})
    steps: list[Step] = []
    done = False
    while not done:
        action = actor(expert_observation(maze, observation))
        noise = np.random.normal(0.0, protocol.noise, action.shape)  # noqa: NPY002
        action = np.clip(action + noise, -1.0, 1.0)
        next_observation, _, terminated, truncated, info = environment.step(action)
        done = terminated or truncated
        steps.append((observation, action, done, info))
        observation = next_observation
        if info["success"]:
            maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(draw(goals))))
    return stack_rows(steps)


def expert_observation(maze: Any, observation: np.ndarray) -> np.ndarray:
    """What `online-antball-v0` would show: the state but for both positions, and two ways.

    `observation` is positions, 15 of the ant's and 7 of the ball's, then velocities; the ways are
    from the ant to the ball and from the ball to its goal, in metres.
    """
    ant, ball = maze.get_agent_ball_xy()
    near = np.linalg.norm(ball - ant) <= BALL_IN_REACH
    to_ball = (ball if near else way_to(maze, ant, ball)) - ant
    to_goal = way_to(maze, ball, np.asarray(maze.cur_goal_xy)) - ball
    return np.concatenate([observation[2:15], observation[17:], to_ball, to_goal])
