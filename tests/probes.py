"""Problems whose answers are known, so small that any algorithm solves them in seconds.

All data sets have the same shapes (3 observation entries, 2 action entries unless asked otherwise,
`ROWS` rows in episodes of 3), so one compiled program trains on all of them. Observations are the
unit vectors of the three states.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial.distance import cdist

from sorl.data.dataset import Dataset

EPISODES = 2048
ROWS = 3 * EPISODES
STATES = np.eye(3, dtype=np.float32)

BANDIT_OPTIMUM = np.array([0.5, -0.4])


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians: a distribution of actions with several modes.

    Args:
        centres: shape `[modes, action_size]`.
        weights: shape `[modes]`, sum 1.
        spread: standard deviation of every mode in every action entry.
    """

    centres: np.ndarray
    weights: np.ndarray
    spread: float

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Independent actions, shape `[count, action_size]`."""
        mode = rng.choice(len(self.weights), count, p=self.weights)
        noise = rng.normal(size=(count, self.centres.shape[1]))
        return np.clip(self.centres[mode] + self.spread * noise, -1, 1)

    def nearest(self, actions: np.ndarray) -> np.ndarray:
        """Index of the mode each action lies nearest to."""
        return cdist(actions, self.centres).argmin(axis=1)

    def shares(self, actions: np.ndarray) -> np.ndarray:
        """Share of the actions nearest to each mode; what `weights` says for true draws."""
        return np.bincount(self.nearest(actions), minlength=len(self.weights)) / len(actions)

    def astray(self, actions: np.ndarray) -> float:
        """Share of the actions more than four spreads from every mode: near 0 for true draws."""
        return float((cdist(actions, self.centres).min(axis=1) > 4 * self.spread).mean())


FOUR_MODES = Mixture(
    centres=np.array([[-0.6, -0.6], [0.6, -0.6], [-0.6, 0.6], [0.6, 0.6]]),
    weights=np.array([0.4, 0.3, 0.2, 0.1]),
    spread=0.1,
)
TWO_MODES = Mixture(np.array([[-0.5], [0.5]]), np.array([0.7, 0.3]), spread=0.1)


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|: 0 for one distribution, else above (Székely 2003).

    Both samples have shape `[count, action_size]`. Between two samples of n the value is of the
    order of 1/n; pairs of an action with itself are counted, so it is never below 0.
    """
    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


def bandit(
    actions: np.ndarray,
    rewards: np.ndarray,
    *,
    states: np.ndarray | None = None,
) -> Dataset:
    """Decisions that end at once: nothing is bootstrapped anywhere.

    Args:
        actions: shape `[2 * EPISODES, action_size]`.
        rewards: one for each action, or `[tasks, 2 * EPISODES]`; tasks are numbered from 0.
        states: index of each action's state; state 0 everywhere if left out.
    """
    rewards = np.atleast_2d(rewards)
    states = np.zeros(len(actions), int) if states is None else states
    return _episodes(
        np.pad(states.reshape(EPISODES, 2), ((0, 0), (0, 1))),
        actions.reshape(EPISODES, 2, -1),
        rewards.reshape(-1, EPISODES, 2),
        np.zeros((len(rewards), EPISODES, 2)),
    )


def behaviour(mixture: Mixture, rng: np.random.Generator) -> Dataset:
    """One state, actions from `mixture`, no rewards."""
    return bandit(mixture.draw(rng, 2 * EPISODES), np.zeros(2 * EPISODES))


def uniform_actions(rng: np.random.Generator) -> np.ndarray:
    """Actions over the whole square [-1, 1]²."""
    return rng.uniform(-1, 1, (2 * EPISODES, 2))


def bandit_reward(actions: np.ndarray) -> np.ndarray:
    """-|a - a*|² with a* = `BANDIT_OPTIMUM`; uniform actions have -1.077 on average."""
    return -((actions - BANDIT_OPTIMUM) ** 2).sum(axis=-1)


GAUSSIAN_MEANS = np.array([[0.5, -0.3], [-0.4, 0.3], [0.1, -0.1]])
GAUSSIAN_SPREADS = np.array([0.0, 0.2, 0.35])


def gaussians(rng: np.random.Generator) -> Dataset:
    """Three states; in each the actions are N(mean, spread²), in the first a single point."""
    states = rng.integers(0, 3, 2 * EPISODES)
    noise = rng.normal(size=(2 * EPISODES, 2))
    actions = GAUSSIAN_MEANS[states] + GAUSSIAN_SPREADS[states, None] * noise
    return bandit(np.clip(actions, -1, 1), np.zeros(len(states)), states=states)


def gaussian_shortcut(state: int, noise: np.ndarray, *, discretization: int) -> np.ndarray:
    """Where every number of steps must land from `noise` [count, 2], for `gaussians`.

    With x0 ~ N(0, I) and x1 ~ N(μ, σ² I) independent, x_t = (1 - t) x0 + t x1 is Gaussian, and
    the exact velocity is affine,

        v(x, t) = E[x1 - x0 | x_t = x] = μ + (t σ² - (1 - t)) / ((1 - t)² + t² σ²) · (x - t μ).

    A consistent shortcut of any size lands where M Euler steps of that velocity land.
    """
    mean, variance = GAUSSIAN_MEANS[state], GAUSSIAN_SPREADS[state] ** 2
    x = noise
    for j in range(discretization):
        t = j / discretization
        slope = (t * variance - (1 - t)) / ((1 - t) ** 2 + t**2 * variance)
        x = x + (mean + slope * (x - t * mean)) / discretization
    return np.clip(x, -1, 1)


TWO_STEP_DISCOUNT = 0.9
TwoStepValues = dict[tuple[int, int], float]


def two_step(rng: np.random.Generator) -> tuple[Dataset, TwoStepValues]:
    """Two decisions, in state 0 and then state 1; only the sign of the first action entry counts.

    State 0, left: reward 0.5 and the end, although the log goes on to state 1.
    State 0, right: reward 0, on to state 1.
    State 1, left: reward -1 and the end. State 1, right: reward 1 and the end.

    Right is the better first step only for a policy that then goes right: the behaviour, which
    goes left half the time, gets 0 there and would be better off with left.

    Returns:
        The data and Q* by (state, -1 for left or 1 for right). An agent that bootstraps over the
        end finds 1.4 for the first left, one that never bootstraps 0 for the first right.
    """
    actions = np.stack([sided_actions(rng, EPISODES), sided_actions(rng, EPISODES)], axis=1)
    right = actions[..., 0] > 0
    rewards = np.stack([np.where(right[:, 0], 0.0, 0.5), np.where(right[:, 1], 1.0, -1.0)], axis=1)
    masks = np.stack([right[:, 0], np.zeros(EPISODES)], axis=1)
    states = np.tile([0, 1, 2], (EPISODES, 1))
    values = {(0, -1): 0.5, (0, 1): TWO_STEP_DISCOUNT, (1, -1): -1.0, (1, 1): 1.0}
    return _episodes(states, actions, rewards[None], masks[None]), values


def sided_actions(rng: np.random.Generator, count: int, side: int = 0) -> np.ndarray:
    """Actions clearly left (`side` -1), clearly right (1) or either (0) in their first entry."""
    sign = rng.choice([-1, 1], count) if side == 0 else np.full(count, side)
    return np.stack([sign * rng.uniform(0.2, 1, count), rng.uniform(-1, 1, count)], axis=1)


def _episodes(
    states: np.ndarray, actions: np.ndarray, rewards: np.ndarray, masks: np.ndarray
) -> Dataset:
    """Episodes of two transitions: states [episodes, 3], the rest [..., episodes, 2]."""
    last = ((0, 0), (0, 0), (0, 1))
    return Dataset.from_arrays(
        observations=STATES[states.reshape(-1)],
        actions=np.pad(actions, ((0, 0), (0, 1), (0, 0))).reshape(ROWS, -1).astype(np.float32),
        terminals=np.tile([0, 0, 1], EPISODES),
        rewards=np.pad(rewards, last).reshape(-1, ROWS).astype(np.float32),
        masks=np.pad(masks, last, constant_values=1).reshape(-1, ROWS),
        tasks=tuple(range(len(rewards))),
    )
