"""Measure an expert that walks and the data that it collected, and keep what was found.

    python examples/measure_expert.py data/antmaze-medium-navigate-v0.npz \
        data/experts/online-ant-xy-v0-.../actor.safetensors results/antmaze-expert --seed 0

Writes `summary.json`, `directions.csv` (a row for each direction commanded to the expert), the
training's `returns.csv` and `expert.json` where they stand beside the expert, and a README.md that
says it all in a table. `--seed` is the one that the data were generated with: their first episodes
are rolled once more, which must give the same rows, to count the goals that were reached.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro

from sorl import files, tables
from sorl.data.generate import PROTOCOLS, Description, describe
from sorl.data.generate.environment import make_environment
from sorl.data.generate.expert.actor import Actor, read_expert
from sorl.data.generate.expert.environment import make_expert_environment, seed_expert_episode
from sorl.data.generate.protocols import EXPERTS, ExpertProtocol, NavigateProtocol
from sorl.data.generate.roll import roll_episode
from sorl.provenance import provenance


def main(
    data: tyro.conf.Positional[Path],
    expert: tyro.conf.Positional[Path],
    target: tyro.conf.Positional[Path],
    seed: int = 0,
    episodes: int = 10,
) -> None:
    """Measure, write, and print what was written.

    Args:
        data: training file that `sorl generate` made.
        expert: the expert's file.
        target: folder for the results.
        seed: the one that the data were generated with.
        episodes: to be walked with the expert alone, and to be rolled once more.
    """
    warnings.simplefilter("ignore")
    protocol = PROTOCOLS[data.stem]
    if not isinstance(protocol, NavigateProtocol) or protocol.expert is None:
        raise SystemExit(f"{data} was not collected by an expert.")
    actor, origin, _ = read_expert(expert)
    target.mkdir(parents=True, exist_ok=True)
    directions = command_directions(actor, EXPERTS[protocol.expert], episodes)
    tables.write_rows(target / "directions.csv", directions)
    for name in ("returns.csv", "expert.json"):
        if (expert.parent / name).exists():
            shutil.copy(expert.parent / name, target / name)
    summary = {
        "data": data.name,
        "seed": seed,
        "expert": {
            "environment": origin.environment,
            "steps": origin.steps,
            "seed": origin.seed,
            "seconds": training_seconds(expert.parent),
            **summarise_directions(directions),
        },
        "walk": count_goals(data, protocol, actor, seed, episodes),
        "coverage": cover_cells(data, protocol),
        **describe_data(describe(data)),
        **provenance(),
    }
    files.write_json(target / "summary.json", summary)
    files.write_text(target / "README.md", page(summary))
    print(page(summary))


def command_directions(
    actor: Actor, protocol: ExpertProtocol, episodes: int
) -> list[dict[str, float]]:
    """Walk with the mean action; a row for each stretch in which one direction is commanded.

    `along` is metres moved in the commanded direction, the stretch's return; `moved` the metres
    between its ends; `cosine` tells how well the two directions agree.
    """
    environment, rows = make_expert_environment(protocol), []
    for episode in range(episodes):
        # Seeds apart from those of training, which are small numbers too.
        environment_seed, _ = seed_expert_episode(2**32 + episode, episode)
        observation, _ = environment.reset(seed=environment_seed)
        ant: Any = environment.unwrapped
        start = position = ant.data.qpos[:2].copy()
        done, steps, total = False, 0, 0.0
        while not done:
            direction = observation[-2:].copy()
            observation, reward, ended, truncated, info = environment.step(actor(observation))
            done, steps, position = ended or truncated, steps + 1, info["xy"]
            total += float(reward)
            if done or steps % protocol.resample_interval == 0:
                moved = position - start
                rows.append(
                    {
                        "episode": episode,
                        "step": steps,
                        "along": float(moved @ direction),
                        "moved": float(np.linalg.norm(moved)),
                        "cosine": float(moved @ direction / (np.linalg.norm(moved) + 1e-9)),
                        "return": float(total),
                    }
                )
                start, total = position, 0.0
    return rows


def summarise_directions(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the stretches, and the return of whole episodes."""
    returns: dict[float, float] = {}
    for row in rows:
        returns[row["episode"]] = returns.get(row["episode"], 0.0) + row["return"]
    # The last row of an episode holds its length.
    steps = sum({row["episode"]: row["step"] for row in rows}.values())
    return {
        "episodes": len(returns),
        "return_mean": float(np.mean(list(returns.values()))),
        "return_lowest": min(returns.values()),
        "metres_a_step_along": sum(returns.values()) / steps,
        "falls": sum({row["episode"]: row["step"] < 1000 for row in rows}.values()),
        "cosine_mean": float(np.mean([row["cosine"] for row in rows])),
        "share_of_stretches_with_cosine_above_0.9": float(
            np.mean([row["cosine"] > 0.9 for row in rows])
        ),
    }


class GoalCounter(gymnasium.Wrapper):
    """Counts the goals that an episode reaches."""

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self.goals = 0

    def step(self, action: Any) -> Any:
        """One step; a success is a goal, after which the walk draws the next."""
        answer = self.env.step(action)
        self.goals += int(answer[4]["success"])
        return answer


def count_goals(
    data: Path, protocol: NavigateProtocol, actor: Actor, seed: int, episodes: int
) -> dict[str, float]:
    """Roll the first episodes once more and count their goals; the rows must be those of `data`."""
    with np.load(data, allow_pickle=False) as file:
        observations = file["observations"]
    episodes = min(episodes, len(observations) // protocol.rows)
    environment = GoalCounter(make_environment(protocol))
    counts = []
    for episode in range(episodes):
        environment.goals = 0
        rows = roll_episode(
            environment, protocol, seed=seed, split="train", episode=episode, actor=actor
        )
        logged = observations[episode * protocol.rows :][: protocol.rows]
        if not np.array_equal(rows["observations"], logged):
            raise SystemExit(f"{data} was not collected with this expert, seed or version.")
        counts.append(environment.goals)
    total = sum(counts)
    return {
        "episodes": episodes,
        "goals": total,
        "goals_an_episode_fewest": min(counts),
        "steps_a_goal": episodes * protocol.rows / max(1, total),
    }


def training_seconds(folder: Path) -> float | None:
    """Wall-clock time of the expert's training, where its table says so."""
    rows = tables.read_rows(folder / "returns.csv")
    return float(rows[-1]["seconds"]) if rows else None


def cover_cells(data: Path, protocol: NavigateProtocol) -> dict[str, float]:
    """How many of the maze's free cells the data visit, how evenly, and how often lying down."""
    maze: Any = make_environment(protocol).unwrapped
    with np.load(data, allow_pickle=False) as file:
        qpos = file["qpos"]
    positions = qpos[:, :2]
    # The vertical part of the torso's own vertical, from its quaternion (w, x, y, z).
    upright = 1 - 2 * (qpos[:, 4] ** 2 + qpos[:, 5] ** 2)
    visits = np.zeros(maze.maze_map.shape, int)
    for position in positions:
        visits[maze.xy_to_ij(position)] += 1
    free = visits[maze.maze_map == 0]
    return {
        "free_cells": len(free),
        "visited_cells": int(np.count_nonzero(free)),
        "least_visited_share": float(free.min() / len(positions)),
        "most_visited_share": float(free.max() / len(positions)),
        "share_upside_down": float(np.mean(upright < 0)),
    }


def describe_data(found: Description) -> dict[str, Any]:
    """What `sorl generate` says of a file."""
    return {
        "rows": found.rows,
        "episode_lengths": found.episode_lengths,
        "saturation": found.saturation,
        "tasks": [
            {"task": one.task, "rows": one.rows, "episodes": one.episodes}
            for one in found.successes
        ],
    }


def page(summary: dict[str, Any]) -> str:
    """The results in words."""
    expert, walk, cover = summary["expert"], summary["walk"], summary["coverage"]
    tasks = ", ".join(f"{one['rows']:,} ({one['episodes']})" for one in summary["tasks"])
    lengths = ", ".join(f"{n} of {rows}" for rows, n in summary["episode_lengths"].items())
    versions = summary["versions"]
    seconds = expert["seconds"]
    took = "not known here" if seconds is None else f"{seconds / 60:.0f} minutes of wall-clock time"
    used = ", ".join(f"{name} {versions[name]}" for name in ("ogbench", "mujoco", "jax", "numpy"))
    return f"""# {summary["data"]}, collected by an expert trained here

| | |
| --- | --- |
| expert | SAC in {expert["environment"]}, {expert["steps"]:,} steps, seed {expert["seed"]} |
| its return, mean action, {expert["episodes"]} episodes | {expert["return_mean"]:.1f} m in \
commanded directions (lowest {expert["return_lowest"]:.1f}), \
{expert["metres_a_step_along"]:.3f} m a step; {expert["falls"]} of them ended early by a fall |
| moves against commands | mean cosine {expert["cosine_mean"]:.2f}, above 0.9 in \
{expert["share_of_stretches_with_cosine_above_0.9"]:.0%} of the stretches |
| its training | {took} |
| data | {summary["rows"]:,} rows, seed {summary["seed"]}; episodes of rows: {lengths} |
| action entries at -1 or 1 | {summary["saturation"]:.1%} |
| success rows of tasks 1 to 5 (episodes that hold one) | {tasks} |
| free cells visited | {cover["visited_cells"]} of {cover["free_cells"]}; shares of rows \
{cover["least_visited_share"]:.1%} to {cover["most_visited_share"]:.1%} |
| rows with the body upside down | {cover["share_upside_down"]:.1%} |
| steps a goal, first {walk["episodes"]} episodes | {walk["steps_a_goal"]:.0f} ({walk["goals"]} \
goals; fewest in one episode {walk["goals_an_episode_fewest"]}) |

{summary["machine"]["processor"]}, {summary["created"][:10]}; {used}. Made by

    sorl generate {summary["data"].removesuffix(".npz")} --seed {summary["seed"]}
    python examples/measure_expert.py {summary["data"]} actor.safetensors TARGET \
--seed {summary["seed"]} --episodes {expert["episodes"]}

`returns.csv` holds the training: returns of episodes with noise,
`directions.csv` every stretch in which one direction was commanded.
"""


if __name__ == "__main__":
    tyro.cli(main)
