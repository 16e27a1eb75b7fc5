"""What each data set that can be generated consists of: one frozen record a name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sorl.data.names import VISUAL
from sorl.errors import InputError


@dataclass(frozen=True)
class PlayProtocol:
    """How a manipulation set of type "play" is collected (OGBench, arXiv 2410.20092).

    A scripted oracle carries out one random target after another; nothing but its length ends an
    episode.
    """

    environment: str
    """Gymnasium identifier of the environment, without a task."""
    episodes: int
    """Published number of training episodes."""
    rows: int = 1001
    """Rows of one episode, which are its steps; the last has no successor in the data."""
    stack_probability: tuple[float, float] = (0.5, 0.5)
    """Range of the probability, drawn once an episode, that a cube goes on top of another."""
    always_closed_gripper: bool = False
    """Whether buttons are pressed with the gripper closed all the time (puzzle)."""
    discard_lost_cube: bool = False
    """Whether an episode whose cube got out of reach is thrown away and retried (scene)."""


@dataclass(frozen=True)
class NavigateProtocol:
    """How a maze set of type "navigate" is collected (OGBench, arXiv 2410.20092).

    A point, or an expert with legs, walks to one random goal after another in breadth-first
    direction, with Gaussian noise.
    """

    environment: str
    """Gymnasium identifier of the environment, without a task."""
    episodes: int
    """Published number of training episodes."""
    rows: int = 1001
    """Rows of one episode, which are its steps; the last has no successor in the data."""
    noise: float = 0.5
    """Standard deviation of the noise added to each entry of the action."""
    expert: str | None = None
    """Which of `EXPERTS` walks; a point needs none."""


@dataclass(frozen=True)
class SoccerProtocol:
    """How a soccer set of type "navigate" is collected here; the walk is ours.

    OGBench (arXiv 2410.20092) takes an expert that drives a ball; how it alternates between going
    and driving is not known to us, so ours always goes for the ball.
    """

    environment: str
    """Gymnasium identifier of the environment, without a task."""
    episodes: int = 1000
    """Published number of training episodes."""
    rows: int = 1001
    """Rows of one episode, which are its steps; the last has no successor in the data."""
    noise: float = 0.2
    """Standard deviation of the noise added to each entry of the action."""
    expert: str = "antball"
    """Which of `EXPERTS` plays."""


@dataclass(frozen=True)
class ExpertProtocol:
    """How an expert that walks is trained (OGBench, arXiv 2410.20092): by online SAC."""

    environment: str
    """Name of the environment as published; `-xy` stands for ogbench's wrapper that commands a
    direction."""
    steps: int
    """Published number of steps of the environment, each with one update."""
    resample_interval: int = 100
    """Steps for which one direction is commanded, ogbench's default."""
    draws: bool = False
    """Whether the environment draws pictures as it is made, so that it needs OpenGL."""


EXPERTS: dict[str, ExpertProtocol] = {
    "ant": ExpertProtocol("online-ant-xy-v0", 400_000),
    "antball": ExpertProtocol("online-antball-v0", 12_000_000, draws=True),
    "humanoid": ExpertProtocol("online-humanoid-xy-v0", 40_000_000),
}
"""Every expert that can be trained, by the body that it moves."""


Protocol: TypeAlias = PlayProtocol | NavigateProtocol | SoccerProtocol

_ANT: dict[str, Any] = {"noise": 0.2, "expert": "ant"}
_HUMANOID: dict[str, Any] = {"noise": 0.2, "expert": "humanoid"}

_PLAY: dict[str, PlayProtocol] = {
    "cube-single-play-v0": PlayProtocol("cube-single-v0", 1000, stack_probability=(0.0, 0.0)),
    "cube-double-play-v0": PlayProtocol("cube-double-v0", 1000, stack_probability=(0.0, 0.25)),
    "cube-triple-play-v0": PlayProtocol("cube-triple-v0", 3000, stack_probability=(0.05, 0.35)),
    "cube-quadruple-play-v0": PlayProtocol("cube-quadruple-v0", 5000, stack_probability=(0.1, 0.5)),
    "scene-play-v0": PlayProtocol("scene-v0", 1000, discard_lost_cube=True),
    "puzzle-3x3-play-v0": PlayProtocol("puzzle-3x3-v0", 1000, always_closed_gripper=True),
    "puzzle-4x4-play-v0": PlayProtocol("puzzle-4x4-v0", 1000, always_closed_gripper=True),
    "puzzle-4x5-play-v0": PlayProtocol("puzzle-4x5-v0", 3000, always_closed_gripper=True),
    "puzzle-4x6-play-v0": PlayProtocol("puzzle-4x6-v0", 5000, always_closed_gripper=True),
}

_NAVIGATE: dict[str, NavigateProtocol | SoccerProtocol] = {
    "pointmaze-medium-navigate-v0": NavigateProtocol("pointmaze-medium-v0", 1000),
    "pointmaze-large-navigate-v0": NavigateProtocol("pointmaze-large-v0", 1000),
    "pointmaze-giant-navigate-v0": NavigateProtocol("pointmaze-giant-v0", 500, rows=2001),
    "antmaze-medium-navigate-v0": NavigateProtocol("antmaze-medium-v0", 1000, **_ANT),
    "antmaze-large-navigate-v0": NavigateProtocol("antmaze-large-v0", 1000, **_ANT),
    "antmaze-giant-navigate-v0": NavigateProtocol("antmaze-giant-v0", 500, rows=2001, **_ANT),
    "humanoidmaze-medium-navigate-v0": NavigateProtocol(
        "humanoidmaze-medium-v0", 1000, rows=2001, **_HUMANOID
    ),
    "humanoidmaze-large-navigate-v0": NavigateProtocol(
        "humanoidmaze-large-v0", 1000, rows=2001, **_HUMANOID
    ),
    "humanoidmaze-giant-navigate-v0": NavigateProtocol(
        "humanoidmaze-giant-v0", 500, rows=4001, **_HUMANOID
    ),
    "antsoccer-arena-navigate-v0": SoccerProtocol("antsoccer-arena-v0"),
    "antsoccer-medium-navigate-v0": SoccerProtocol("antsoccer-medium-v0"),
}

# The same protocol with other eyes: the oracles read the simulator's state, not the observation.
_VISUAL: dict[str, PlayProtocol] = {
    VISUAL + name: replace(protocol, environment=VISUAL + protocol.environment)
    for name, protocol in _PLAY.items()
}

PROTOCOLS: dict[str, Protocol] = {**_PLAY, **_NAVIGATE, **_VISUAL}
"""Every set that can be generated, by its name."""


def renders(protocol: Protocol) -> bool:
    """Whether observations are pictures, which need a graphics library."""
    return protocol.environment.startswith(VISUAL)


def find_protocol(name: str) -> Protocol:
    """The protocol of a data set.

    Raises:
        InputError: no such set can be generated; the message names what comes nearest.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    near = difflib.get_close_matches(name, PROTOCOLS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PROTOCOLS)}."
    raise InputError(f"No data set called {name!r} can be generated: {hint}")
