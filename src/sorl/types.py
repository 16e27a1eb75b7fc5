"""The words everyone speaks: `Spec`, `Transition`, `Budget` and `Member`."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, NamedTuple

from sorl.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Array, Float

MAX_STEPS = 1024
MAX_BEST_OF = 65_536


@dataclasses.dataclass(frozen=True)
class Spec:
    """Sizes of one observation and one action; actions live in [-1, 1].

    Args:
        observation_size: number of observation entries, at least 1.
        action_size: number of action entries, at least 1.
    """

    observation_size: int
    action_size: int


class Transition(NamedTuple):
    """One step of logged experience; a batch is the same tuple with a leading axis.

    Attributes:
        observation: s, shape `[observation_size]`.
        action: a in [-1, 1], shape `[action_size]`.
        reward: r of (s, a), scalar.
        mask: 0 where the task ended by success, so nothing is bootstrapped; else 1.
        next_observation: s', shape `[observation_size]`.
        next_action: the logged action at s', shape `[action_size]`.
        next_action_mask: 0 where the log holds no action at s' (last step of an episode).
    """

    observation: Float[Array, "*batch observation_size"]
    action: Float[Array, "*batch action_size"]
    reward: Float[Array, "*batch"]
    mask: Float[Array, "*batch"]
    next_observation: Float[Array, "*batch observation_size"]
    next_action: Float[Array, "*batch action_size"]
    next_action_mask: Float[Array, "*batch"]


@dataclasses.dataclass(frozen=True, order=True)
class Budget:
    """Test-time compute of one decision, written `steps x best_of`, for example `4x8`.

    Args:
        steps: sampling steps of one candidate (sequential compute), 1 to 1024.
        best_of: candidates among which the verifier chooses (parallel compute), 1 to 65536.

    Raises:
        InputError: a number is not a whole one or out of range.
    """

    steps: int = 4
    best_of: int = 1

    def __post_init__(self) -> None:
        """Check the ranges, so that a budget that exists is a budget that makes sense."""
        for name, value, most in (
            ("steps", self.steps, MAX_STEPS),
            ("best_of", self.best_of, MAX_BEST_OF),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(
                    f"Budget {name}={value!r} is not possible: give a whole number, 1 to {most}."
                )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `4x8` (steps x best_of); the inverse of `str`.

        Raises:
            InputError: `text` is not two whole numbers joined by an x.
        """
        match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text.strip())
        if match is None:
            raise InputError(
                f"Budget {text!r} cannot be read: write steps x best-of, for example 4x8 for 4 "
                "sampling steps and the best of 8 candidates."
            )
        return cls(steps=int(match[1]), best_of=int(match[2]))

    def __str__(self) -> str:
        return f"{self.steps}x{self.best_of}"


class Member(NamedTuple):
    """One training among those of one compiled program: a task and a seed.

    Members are ordered by task, then by seed. Whatever is kept per member has one leading axis
    in that order.

    Attributes:
        task: number of the task; OGBench counts from 1. 0 where the data know no tasks.
        seed: seed of everything random in this member's training.
    """

    task: int
    seed: int

    def __str__(self) -> str:
        return f"task{self.task}-seed{self.seed}"
