"""The environments that experts are trained in, as ogbench ships them."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
import ogbench.online_locomotion  # noqa: F401 (registers the environments)
from ogbench.online_locomotion.wrappers import DMCHumanoidXYWrapper, GymXYWrapper

from sorl import graphics
from sorl.data.generate.protocols import ExpertProtocol
from sorl.errors import InputError


def make_expert_environment(protocol: ExpertProtocol) -> gymnasium.Env[Any, Any]:
    """The environment of `protocol`, in its own default settings.

    In a name, `-xy` stands for ogbench's wrapper that appends a random unit direction to the
    observation, draws another every so many steps, and rewards metres moved along it.
    """
    # The ball's environment draws a picture when it is made.
    try:
        if protocol.draws:
            os.environ.update(graphics.working())
        environment = gymnasium.make(
            protocol.environment.replace("-xy", ""),
            disable_env_checker=True,
            render_mode="rgb_array" if protocol.draws else None,
        )
    except InputError:
        raise
    except Exception as error:
        if not protocol.draws:
            raise
        raise InputError(
            f"{protocol.environment} cannot be made, because it draws a picture at once ({error})."
        ) from error
    if "-xy" in protocol.environment:
        wrapper = DMCHumanoidXYWrapper if "humanoid" in protocol.environment else GymXYWrapper
        environment = wrapper(environment, resample_interval=protocol.resample_interval)
    # The first reset compiles the model and the later ones do not. With one behind us, every
    # episode starts in the same way.
    environment.reset(seed=0)
    return environment


def seed_expert_episode(seed: int, episode: int) -> tuple[int, np.random.Generator]:
    """Seed NumPy's global generator, from which ogbench draws directions, for one episode.

    Returns:
        The number for `environment.reset(seed=...)`, and a generator for all else that is random
        in the episode.
    """
    sequence = np.random.SeedSequence([seed, episode])
    global_seed, environment_seed = (int(word) for word in sequence.generate_state(2))
    np.random.seed(global_seed)  # noqa: NPY002
    return environment_seed, np.random.default_rng(sequence.spawn(1)[0])
