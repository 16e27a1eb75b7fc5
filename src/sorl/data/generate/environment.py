"""The environment that one worker rolls its episodes in."""

from __future__ import annotations

from typing import Any

import gymnasium
import ogbench  # noqa: F401 (registers the environments)

from sorl.data.generate.protocols import PlayProtocol, Protocol


def make_environment(protocol: Protocol) -> gymnasium.Env[Any, Any]:
    """The environment of `protocol`, in the mode in which only its length ends an episode."""
    mode = {"mode": "data_collection"} if isinstance(protocol, PlayProtocol) else {}
    environment = gymnasium.make(
        protocol.environment,
        terminate_at_goal=False,
        max_episode_steps=protocol.rows,
        disable_env_checker=True,
        **mode,
    )
    # The first reset compiles the model and the later ones do not. With one behind us, every
    # episode starts in the same way.
    environment.reset(seed=0)
    return environment
