"""Units: how a user's observations and actions become those that networks see, and back.

    action       a_user = middle + half_width · a,  a in [-1, 1]       (per entry, then clipped;
                                                                        low at -1, high at 1)
    observation  s = (s_user - mean) / scale                           (where standardised)

A data set carries its units, training hands them to the policies it releases, and whoever acts with
a policy (`Policy.act`, evaluation, every export) gives it observations and gets actions in the
user's units. Between the two everything is as if there were no units: candidates are drawn, scored
and compared in [-1, 1].

All bounds are float32 numbers, and -1 and 1 become them without arithmetic, whose rounding may miss
them: an action at a bound comes back as exactly that bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sorl.errors import InputError

Numbers = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of one data set or policy; without arguments nothing is changed at all.

    Args:
        action_low: the user's action that becomes -1, one number for each entry; empty for actions
            that are in [-1, 1] already.
        action_high: what becomes 1, at least `action_low`. Where the two are equal the entry is
            constant: it is 0 for networks and comes back as that constant.
        observation_mean: what becomes 0, one number for each entry; empty for observations that
            are not standardised.
        observation_scale: by what the difference is divided, above 0.

    Raises:
        InputError: lengths differ, a number is not finite in float32, or a range is empty.
    """

    action_low: Numbers = ()
    action_high: Numbers = ()
    observation_mean: Numbers = ()
    observation_scale: Numbers = ()

    def __post_init__(self) -> None:
        """Round to float32, and check."""
        for field in dataclasses.fields(self):
            with np.errstate(over="ignore"):
                rounded = np.asarray(getattr(self, field.name), np.float32)
            if rounded.ndim != 1 or not np.isfinite(rounded).all():
                raise InputError(f"{field.name} must be finite numbers, one for each entry.")
            object.__setattr__(self, field.name, tuple(map(float, rounded)))
        for one, other in (
            ("action_low", "action_high"),
            ("observation_mean", "observation_scale"),
        ):
            lengths = len(getattr(self, one)), len(getattr(self, other))
            if lengths[0] != lengths[1]:
                raise InputError(
                    f"There are {lengths[0]} numbers of {one} and {lengths[1]} of {other}: give "
                    "one of each for every entry."
                )
        for place, (low, high) in enumerate(zip(self.action_low, self.action_high, strict=True)):
            if low > high:
                raise InputError(
                    f"The range of action entry {place} is empty: {low:g} is above {high:g}."
                )
        if any(not scale > 0 for scale in self.observation_scale):
            raise InputError("Every observation_scale must be above 0.")

    @classmethod
    def parse(cls, description: Mapping[str, Any] | None) -> Units:
        """The inverse of `describe`.

        Raises:
            InputError: the description is garbled.
        """
        if description is None:
            return USUAL
        known = [field.name for field in dataclasses.fields(cls)]
        try:
            if set(description) != set(known):
                raise ValueError(f"they should name {', '.join(known)}")
            return cls(**{name: tuple(map(float, description[name])) for name in known})
        except (TypeError, ValueError) as error:
            raise InputError(f"The units are garbled ({error}).") from error

    def describe(self) -> dict[str, list[float]] | None:
        """What JSON can hold; None where nothing is changed."""
        if self == USUAL:
            return None
        return {name: list(values) for name, values in dataclasses.asdict(self).items()}

    def check_sizes(self, observation_size: int, action_size: int) -> None:
        """Raise `InputError` unless the units are those of vectors of these sizes."""
        for what, numbers, size in (
            ("actions", self.action_low, action_size),
            ("observations", self.observation_mean, observation_size),
        ):
            if numbers and len(numbers) != size:
                raise InputError(
                    f"The units are those of {what} with {len(numbers)} entries, but there are "
                    f"{size}."
                )

    @property
    def maps_actions(self) -> bool:
        """Whether actions have a range of their own."""
        return bool(self.action_low)

    @property
    def standardises(self) -> bool:
        """Whether observations are standardised."""
        return bool(self.observation_mean)

    @property
    def middle(self) -> np.ndarray:
        """Middle of each action entry's range, float32; empty without ranges."""
        low, high = np.asarray(self.action_low), np.asarray(self.action_high)
        return ((low + high) / 2).astype(np.float32)

    @property
    def half_width(self) -> np.ndarray:
        """Half of each action entry's range, float32, 0 for a constant; empty without ranges."""
        low, high = np.asarray(self.action_low), np.asarray(self.action_high)
        return ((high - low) / 2).astype(np.float32)

    def to_network(self, observation: Float[Array, " size"]) -> Float[Array, " size"]:
        """ONE observation as networks see it."""
        if not self.standardises:
            return observation
        mean = np.asarray(self.observation_mean, np.float32)
        return (observation - mean) * self._inverse_scale

    def to_user(self, action: Float[Array, " size"]) -> Float[Array, " size"]:
        """ONE action in the user's units, inside their range."""
        if not self.maps_actions:
            return action
        low, high = (np.asarray(bound, np.float32) for bound in (self.action_low, self.action_high))
        inside = jnp.clip(self.middle + self.half_width * action, low, high)
        return jnp.where(action >= 1, high, jnp.where(action <= -1, low, inside))

    def to_user_arrays(self, actions: np.ndarray) -> np.ndarray:
        """`to_user` of float32 NumPy arrays `[..., size]`."""
        if not self.maps_actions:
            return actions
        low, high = (np.asarray(bound, np.float32) for bound in (self.action_low, self.action_high))
        inside = np.clip(self.middle + self.half_width * actions, low, high)
        return np.where(actions >= 1, high, np.where(actions <= -1, low, inside))

    def network_observations(self, observations: np.ndarray) -> np.ndarray:
        """`to_network` of NumPy arrays `[..., size]`."""
        if not self.standardises:
            return observations
        mean = np.asarray(self.observation_mean, np.float32)
        return (observations - mean) * self._inverse_scale

    def user_observations(self, observations: np.ndarray) -> np.ndarray:
        """The inverse of `network_observations`, but for rounding."""
        if not self.standardises:
            return observations
        mean, scale = (
            np.asarray(numbers, np.float32)
            for numbers in (self.observation_mean, self.observation_scale)
        )
        return mean + scale * observations

    def network_actions(self, actions: np.ndarray) -> np.ndarray:
        """User's actions `[..., size]` in [-1, 1] where they are in range; constants become 0."""
        if not self.maps_actions:
            return actions
        low, high = (np.asarray(bound, np.float64) for bound in (self.action_low, self.action_high))
        half = (high - low) / 2
        moves = half > 0
        # In double precision: a narrow range far from 0 would lose its digits.
        scaled = (actions.astype(np.float64) - (low + high) / 2) / np.where(moves, half, 1)
        return np.where(moves, scaled, 0).astype(np.float32)

    @property
    def _inverse_scale(self) -> np.ndarray:
        return (1 / np.asarray(self.observation_scale)).astype(np.float32)


USUAL = Units()
"""Actions in [-1, 1], observations as they are."""
