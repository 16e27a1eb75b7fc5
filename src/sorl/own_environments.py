"""Environments in their own units, made from a name that worker processes can be sent.

    minari:NAME    the environment in which that data set of Minari is to be evaluated
    gym:ID         a registered Gymnasium environment, `gym:module:Name-v0` included

Unlike OGBench's, their actions have any finite bounds and their observations may be dictionaries:
observations are flattened as `sorl.spaces` tells, for Minari by the space of the data, so that
entries stand where the policy has learnt them. A policy acts in the user's units (`sorl.units`).

Success is `info["success"]`, or `info["is_success"]` as others call it, at ANY step of an episode:
environments such as Gymnasium-Robotics' ant mazes and Adroit's go on after a success.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from sorl.data.minari_names import SCHEME, open_minari
from sorl.errors import InputError
from sorl.own_names import is_own
from sorl.spaces import take_apart

if TYPE_CHECKING:
    import gymnasium


def registered(environment_id: str) -> str:
    """What stands behind `module:`, whose module is imported, for that registers its environments.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    module, _, name = environment_id.rpartition(":")
    if module.startswith("."):  # else taken for a relative import, a TypeError
        raise ModuleNotFoundError(f"No module named {module!r}")
    if module:
        importlib.import_module(module)
    return name


def make_own(environment_id: str, options: dict[str, Any]) -> InOwnUnits:
    """Make one.

    Args:
        environment_id: see the head of this file.
        options: for `gymnasium.make`.

    Raises:
        InputError: it is unknown, needs a package that is not installed, or its spaces cannot be
            used.
    """
    import gymnasium

    assert is_own(environment_id)
    space = None
    try:
        if environment_id.startswith(SCHEME):
            found = open_minari(environment_id)
            if found.env_spec is None:
                raise InputError(
                    f"{environment_id}: its environment is not recorded, so there is none to "
                    "evaluate in: train with --data alone, or name another --env."
                )
            space = found.observation_space
            environment = found.recover_environment(eval_env=True, **options)
        else:
            name = registered(environment_id.removeprefix("gym:"))
            environment = gymnasium.make(name, **options)
    except (gymnasium.error.Error, ImportError, AttributeError) as error:
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise InputError(
            f"The environment of {environment_id} cannot be made ({reason}): install the package "
            "it comes from (for D4RL's: pip install 'sorl[robotics]'), or train with --data alone."
        ) from error
    try:
        return InOwnUnits(environment, environment_id, space)
    except InputError:
        environment.close()
        raise


class InOwnUnits:
    """What a worker needs of an environment: flat observations, clipped actions, any success.

    Attributes:
        observation_space: a flat `Box`; where there is an image its `Box`, or a `Dict` of `image`
            and `state`.
        action_space: that of the environment.
        spec: that of the environment.
        unwrapped: the environment itself.
    """

    def __init__(self, environment: gymnasium.Env, name: str, space: Any = None) -> None:
        from gymnasium import spaces

        self._environment = environment
        self._space = environment.observation_space if space is None else space
        self._succeeded = self._told = False
        self.action_space: Any = environment.action_space
        self.spec = environment.spec
        self.unwrapped = environment.unwrapped
        image, state = take_apart(self._space, self._space.sample())
        vector = spaces.Box(-np.inf, np.inf, state.shape, np.float64)
        self.observation_space: Any = vector
        if image is not None:
            seen = spaces.Box(0, 255, image.shape, np.uint8)
            both = {"image": seen, "state": vector}
            self.observation_space = spaces.Dict(both) if state.size else seen
        bounds = self.action_space
        if isinstance(bounds, spaces.Box) and not (
            np.isfinite(bounds.low).all() and np.isfinite(bounds.high).all()
        ):
            raise InputError(
                f"The environment of {name} has actions without bounds ({bounds}): wrap it in "
                "gymnasium's ClipAction or RescaleAction and register that."
            )

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._succeeded = self._told = False
        observation, info = self._environment.reset(seed=seed)
        return self._observed(observation), info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Make a step; `info["success"]` tells whether there was success so far, if they tell."""
        # A range learnt from data may reach a little over the bounds by rounding.
        bounded = np.clip(action, self.action_space.low, self.action_space.high)
        observation, reward, terminated, truncated, info = self._environment.step(
            bounded.astype(self.action_space.dtype)
        )
        told = [info[name] for name in ("success", "is_success") if name in info]
        self._told |= bool(told)
        self._succeeded |= any(map(bool, told))
        if self._told:
            info = {**info, "success": self._succeeded}
        return self._observed(observation), float(reward), terminated, truncated, info

    def _observed(self, observation: Any) -> Any:
        return take_apart(self._space, observation).together()

    def render(self) -> Any:
        """A picture."""
        return self._environment.render()

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()
