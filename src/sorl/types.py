"""The words everyone speaks: `Spec`, `Image`, `Transition`, `Budget` and `Member`."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from sorl.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Array, Float

MAX_UPDATES = 2**31 - 1
"""Updates are numbered in 32 bits on the device."""
MAX_STEPS = 1024
MAX_BEST_OF = 65_536
MAX_SEED = 2**32 - 1
"""Larger ones make the same keys as smaller ones."""


EncoderName = Literal["impala-small", "impala"]
"""What makes features of images, see `sorl.encoders`."""


@dataclasses.dataclass(frozen=True)
class Image:
    """The image at the beginning of an observation: its pixels, 0 to 255, as numbers.

    They stand row by row, the channels of one pixel together: first those of the oldest of the
    frames that are stacked, last those of the newest.

    Args:
        height: pixels, at least 1.
        width: pixels, at least 1.
        channels: of one frame, 3 for colours.
        frames: how many frames are stacked, the observation's own and those before it.
        encoder: what makes features of it.

    Raises:
        InputError: a number below 1, or an unknown encoder.
    """

    height: int
    width: int
    channels: int
    frames: int = 1
    encoder: EncoderName = "impala-small"

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("height", "width", "channels", "frames"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"An image with {name}={value!r} is not possible: give 1 or more.")
        if self.encoder not in get_args(EncoderName):
            raise InputError(
                f"There is no encoder {self.encoder!r}: use {' or '.join(get_args(EncoderName))}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, and channels of all frames together."""
        return (self.height, self.width, self.channels * self.frames)

    @property
    def size(self) -> int:
        """Entries of an observation that it takes."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.frames} frame(s) of {self.height}x{self.width}x{self.channels}"


@dataclasses.dataclass(frozen=True)
class Spec:
    """Sizes of one observation and one action; actions live in [-1, 1].

    An observation is one flat vector. Where there is an image its pixels come first, and then the
    state's entries, if there are any.

    Args:
        observation_size: number of observation entries, at least 1.
        action_size: number of action entries, at least 1.
        image: what the first entries of an observation are; None where all are a state.
    """

    observation_size: int
    action_size: int
    image: Image | None = None

    @property
    def state_size(self) -> int:
        """Entries of an observation that are no pixels."""
        return self.observation_size - (0 if self.image is None else self.image.size)

    def describe(self) -> dict[str, Any]:
        """What JSON can hold; without an image nothing is said of it."""
        described = dataclasses.asdict(self)
        return described if self.image else {k: v for k, v in described.items() if k != "image"}

    @classmethod
    def parse(cls, description: Mapping[str, Any]) -> Spec:
        """The inverse of `describe`.

        Raises:
            InputError: the image makes no sense.
            TypeError: another entry is missing or unknown.
        """
        image = description.get("image")
        return cls(**{**description, "image": None if image is None else Image(**image)})


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
            whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if not whole or not 1 <= value <= most:
                raise InputError(
                    f"Budget {name}={value!r} is not possible: give a whole number, 1 to {most}."
                )
            object.__setattr__(self, name, int(value))  # NumPy's are no JSON

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
