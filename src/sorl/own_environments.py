"""Environments in their own units, made from a name that worker processes can be sent.

    minari:NAME    the environment in which that data set of Minari is to be evaluated
    gym:ID         a registered Gymnasium environment, `gym:module:Name-v0` included

Unlike OGBench's, their actions have any finite bounds and their observations may be dictionaries:
observations are flattened as `sorl.spaces` tells, for Minari by the space of the data, so that
entries stand where the policy has learnt them. A policy acts in the user's units (`sorl.units`).

What a data set of Minari records of its environment comes from whoever made it, and Gymnasium
would import and call what is written there. So it is made only where an environment of that name is
registered here and is the recorded one: Gymnasium's own, Gymnasium-Robotics', and those of modules
that are imported already. Others are `gym:module:Name-v0` beside the data.

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
    from gymnasium.envs.registration import EnvSpec

_ROBOTICS = "gymnasium_robotics"
_WRAPPERS = {
    f"gymnasium.wrappers.{module}:{name}"
    for module, names in {
        "transform_action": ("ClipAction", "RescaleAction"),
        "transform_observation": (
            "DtypeObservation",
            "FilterObservation",
            "FlattenObservation",
            "RescaleObservation",
        ),
    }.items()
    for name in names
}
"""Wrappers that only compute; others write files, or call what they are given."""


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
            # Minari tells of the one for evaluation only by making it.
            recorded = found._eval_env_spec or found.env_spec
            if recorded is None:
                raise InputError(
                    f"{environment_id}: its environment is not recorded, so there is none to "
                    "evaluate in: train with --data alone, or name another --env."
                )
            space = found.observation_space
            environment = gymnasium.make(_as_registered(environment_id, recorded), **options)
        else:
            name = registered(environment_id.removeprefix("gym:"))
            environment = gymnasium.make(name, **options)
    except InputError:
        raise
    except (gymnasium.error.Error, ImportError, AttributeError, TypeError, ValueError) as error:
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


def _as_registered(environment_id: str, recorded: EnvSpec) -> EnvSpec:
    """The recorded environment, if it is registered here as what was recorded.

    Raises:
        InputError: it is not, or stands in wrappers that are not `_WRAPPERS`.
    """
    import gymnasium

    if str(recorded.entry_point).startswith(f"{_ROBOTICS}."):
        importlib.import_module(_ROBOTICS)  # registers its environments
    here = gymnasium.registry.get(recorded.id)
    if here is None or here.entry_point != recorded.entry_point:
        raise InputError(
            f"The environment of {environment_id} is recorded as {recorded.id} of "
            f"{recorded.entry_point}, which is not registered here, and a data set is not trusted "
            f"to name code that runs: evaluate in --env gym:MODULE:{recorded.id}, whose module "
            f"registers it, with --data {environment_id}."
        )
    for wrapper in recorded.additional_wrappers:
        if wrapper.entry_point not in _WRAPPERS:
            raise InputError(
                f"The environment of {environment_id} is recorded in the wrapper {wrapper.name}, "
                "and a data set is not trusted to name code that runs: register an environment "
                f"that has it and evaluate in --env gym:MODULE:ID with --data {environment_id}."
            )
    return recorded


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
