"""Pictures of one episode, for a report's short film or strip.

Rendering without a screen depends on the machine's drivers and can end in a crash of the graphics
library. It happens in a worker process, so that the worst outcome is no pictures and a sentence.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sorl import graphics, inference
from sorl.algorithm import AbstractPolicy
from sorl.encoders import frames_of
from sorl.environments import VectorEnvironment
from sorl.errors import InputError, WorkerError
from sorl.rollouts import GroupActor, environment_id, episode_seed
from sorl.types import Budget, Member

if TYPE_CHECKING:
    from sorl.data.names import EnvironmentName

_logger = logging.getLogger(__name__)


def rollout_frames(
    policy: AbstractPolicy,
    member: Member,
    environment: EnvironmentName | str,
    budget: Budget,
    *,
    seed: int = 0,
    episode: int = 0,
    size: int = 240,
    every: int = 1,
    most: int | None = None,
    max_episode_steps: int | None = None,
    on_problem: Callable[[str], None] = _logger.warning,
) -> list[np.ndarray] | None:
    """Pictures of one episode, the very one that `evaluate` runs with the same seed.

    Where `MUJOCO_GL` is not set, a screen is used if there is one, else EGL, else OSMesa.

    Args:
        policy: ONE member's policy, not a stacked one.
        member: whose policy it is; its task decides the environment.
        environment: an OGBench name, or a gymnasium id, see `sorl.evaluation.Evaluator`.
        budget: test-time compute of each decision.
        seed: seed of the evaluation.
        episode: number of the episode, from 0.
        size: width and height in pixels, for OGBench's environments.
        every: keep each `every`-th frame; the first and the last are kept always.
        most: of more frames every other one is dropped, and `every` is doubled, so that a long
            episode takes no longer to draw than a short one by much; at least 2, None for all.
        max_episode_steps: cut the episode off earlier than the environment does.
        on_problem: called with one sentence if there are no pictures; logs a warning by default.

    Returns:
        RGB frames, uint8 `[height, width, 3]`, or None where rendering does not work.

    Raises:
        InputError: see `sorl.evaluation.evaluate`; also where `size` or `every` is below 1.
    """
    if size < 1 or every < 1 or (most is not None and most < 2):
        raise InputError(f"{size=} and {every=} must both be at least 1, and {most=} at least 2.")
    inference.check_budgets(policy, [budget])
    name = environment_id(environment, member.task)
    start = episode_seed(seed, member.task, episode)
    actor = GroupActor(policy, member, budget, seed)
    problems = []
    for variables in graphics.ways():
        try:
            with VectorEnvironment(
                name,
                slots=1,
                workers=1,
                max_episode_steps=max_episode_steps,
                render_size=size,
                variables=variables,
                frames=frames_of(policy),
            ) as vector:
                actor.prepare(vector.sizes)
                actor.check_range(vector.sizes)
                record = vector.reset(0, name, start)
                frames, stride = [vector.frame(0)], every
                while not record["done"]:
                    clock = np.asarray([(episode, record["length"])])
                    record = vector.step(0, actor(vector.observations([0]), clock)[0])
                    if record["done"] or record["length"] % stride == 0:
                        frames.append(vector.frame(0))
                    if most is not None and len(frames) > most:
                        frames = [*frames[:-1:2], frames[-1]] if record["done"] else frames[::2]
                        stride *= 2
                return frames
        except WorkerError as error:
            way = variables.get("MUJOCO_GL", os.environ.get("MUJOCO_GL", "the default"))
            problems.append(f"{way}: {str(error).splitlines()[-1]}")
    on_problem(
        f"No pictures of {name}: rendering does not work on this machine ({'; '.join(problems)})."
    )
    return None
