"""The cells of ogbench's mazes: where episodes start, where goals may be, and the way there."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Cell: TypeAlias = tuple[int, int]


def free_cells(maze_map: np.ndarray) -> list[Cell]:
    """The cells without a wall, row by row."""
    return [(i, j) for i, j in np.argwhere(maze_map == 0).tolist()]


def goal_cells(maze_map: np.ndarray) -> list[Cell]:
    """The free cells that are no piece of a straight corridor."""
    return [cell for cell in free_cells(maze_map) if not _is_corridor(maze_map, *cell)]


def draw(cells: list[Cell]) -> Cell:
    """One of them, by NumPy's global generator."""
    return cells[np.random.randint(len(cells))]  # noqa: NPY002


def way_to(maze: Any, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Where to head for from `start`: the middle of the next cell on the shortest way to `goal`.

    In the goal's own cell it is the goal: a goal is up to 1.4 m off the middle and reached within
    0.5 m, so whoever stayed in the middle would miss most of them.
    """
    if maze.xy_to_ij(start) == maze.xy_to_ij(goal):
        return np.asarray(goal)
    return maze.get_oracle_subgoal(start, goal)[0]


def _is_corridor(maze_map: np.ndarray, i: int, j: int) -> bool:
    """Whether a free cell is a piece of a straight corridor: open on two opposite sides alone."""
    up, down, left, right = (
        maze_map[i + di, j + dj] == 0 for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1))
    )
    vertical, horizontal = up and down, left and right
    return bool((vertical and not left and not right) or (horizontal and not up and not down))
