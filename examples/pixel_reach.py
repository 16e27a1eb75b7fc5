"""A task to be seen: bring the green square onto the red one, 16 x 16 pixels.

Makes the data, as a file that `sorl train` reads, and registers the environment:

    python -m examples.pixel_reach --out data/pixel-reach.npz
    sorl train sorl --env gym:examples.pixel_reach:PixelReach-v0 --data data/pixel-reach.npz \\
        --frame-stack 1 --augment-probability 0 --out runs/pixel-reach

The data are those of a mediocre hand, which is scored too, beside chance and the straight way.
Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro

SIDE = 16
SQUARE = 3
STEP = 0.15
NEAR = 0.12
STEPS = 25


class PixelReach(gymnasium.Env):
    """Positions lie in [0, 1]²; the reward is -1 a step until the goal is within `NEAR`."""

    observation_space: Any = gymnasium.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    action_space: Any = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Draw both places anew."""
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(0, 1, (2, 2))
        return self.render(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Reward and success are those of the state before the step, as in OGBench."""
        success = bool(np.linalg.norm(self.place - self.goal) < NEAR)
        self.place = np.clip(self.place + STEP * np.asarray(action), 0, 1)
        return self.render(), float(success) - 1, success, False, {"success": success}

    def render(self) -> Any:
        """The picture, which is the observation too."""
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        for channel, place in ((0, self.goal), (1, self.place)):
            row, column = np.rint(place * (SIDE - SQUARE)).astype(int)
            picture[row : row + SQUARE, column : column + SQUARE, channel] = 255
        return picture


Actor = Callable[[PixelReach], np.ndarray]
"""What acts, knowing the places themselves."""

gymnasium.register("PixelReach-v0", "examples.pixel_reach:PixelReach", max_episode_steps=STEPS)


class Hand:
    """Half of the time it goes to the goal, half of the time where chance leads it."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.drift = random.uniform(-1, 1, 2)

    def __call__(self, environment: PixelReach) -> np.ndarray:
        """An action."""
        if self.random.random() < 0.2:
            self.drift = self.random.uniform(-1, 1, 2)
        aim = straight(environment)
        chosen = aim if self.random.random() < 0.5 else self.drift
        return np.clip(chosen + self.random.normal(0, 0.2, 2), -1, 1)


def straight(environment: PixelReach) -> np.ndarray:
    """The best action: straight to the goal."""
    return np.clip((environment.goal - environment.place) / STEP, -1, 1)


def collect(episodes: int, seed: int) -> dict[str, np.ndarray]:
    """The arrays of a data file, `STEPS + 1` rows an episode."""
    environment = PixelReach()
    random = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "masks", "terminals")
    }
    for episode in range(episodes):
        observation, _ = environment.reset(seed=seed + episode)
        hand = Hand(random)
        for step in range(STEPS + 1):
            action = hand(environment)
            following, reward, success, _, _ = environment.step(action)
            values = (observation, action, reward, not success, step == STEPS)
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
            observation = following
    return {
        name: np.asarray(values, None if name == "observations" else np.float32)
        for name, values in rows.items()
    }


def score(make: Callable[[np.random.Generator], Actor], episodes: int = 500) -> str:
    """Success and mean return of an actor, over episodes that are not in the data."""
    environment, random = PixelReach(), np.random.default_rng(1)
    successes, returns = 0, 0.0
    for episode in range(episodes):
        environment.reset(seed=1_000_000 + episode)
        act = make(random)
        for _ in range(STEPS):
            _, reward, done, _, info = environment.step(act(environment))
            returns += reward
            successes += info["success"]
            if done:
                break
    return f"success {successes / episodes:.0%}, mean return {returns / episodes:.1f}"


def main(out: Path = Path("data/pixel-reach.npz"), episodes: int = 400, seed: int = 0) -> None:
    """Write the data.

    Args:
        out: the file.
        episodes: episodes.
        seed: of everything random.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    arrays: Any = collect(episodes, seed)
    np.savez_compressed(out, allow_pickle=False, **arrays)
    solved = int((arrays["masks"] == 0).sum())
    print(f"wrote {out}: {len(arrays['actions']):,} rows, {solved:,} of them at the goal")
    print(f"the hand of the data: {score(Hand)}")
    print(f"chance: {score(lambda random: lambda _: random.uniform(-1, 1, 2))}")
    print(f"straight to the goal: {score(lambda _: straight)}")


if __name__ == "__main__":
    tyro.cli(main)
