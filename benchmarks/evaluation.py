"""Environment steps per second of an evaluation against a bare loop, measured in one run.

The bare loop is one process that steps one environment with random actions, drawn beforehand. Both
run without the time to start workers and to compile. The policy has SORL's shape (a velocity
network and a critic pair) but is untrained, so episodes run to their limit in both.

    python benchmarks/evaluation.py --env cube-single-play-singletask-v0 --budget 4x1
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.algorithm import AbstractScoredPolicy
from sorl.data.names import EnvironmentName
from sorl.environments import make_environment
from sorl.evaluation import Evaluator
from sorl.losses import Aggregation
from sorl.types import Budget, Member


class RandomPolicy(AbstractScoredPolicy):
    """A policy with the cost of SORL's: Euler steps through a network, scored by two critics."""

    velocity: eqx.nn.MLP
    critics: tuple[eqx.nn.MLP, eqx.nn.MLP]
    action_size: int = eqx.field(static=True)
    aggregation: Aggregation = eqx.field(static=True)

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: tuple[int, int],
        *,
        key: PRNGKeyArray,
    ):
        depth, width = hidden
        keys = jax.random.split(key, 3)
        self.velocity = eqx.nn.MLP(
            observation_size + action_size + 2, action_size, width, depth, jax.nn.gelu, key=keys[0]
        )
        first, second = (
            eqx.nn.MLP(
                observation_size + action_size + 1, "scalar", width, depth, jax.nn.gelu, key=k
            )
            for k in keys[1:]
        )
        self.critics = (first, second)
        self.action_size = action_size
        self.aggregation = "mean"

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return (self.action_size,)

    def from_noise(
        self,
        observation: Float[Array, " observation_size"],
        noise: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, " action_size"]:
        x = noise
        for i in range(steps):
            time_and_steps = jnp.asarray([i / steps, np.log2(steps)])
            x = x + self.velocity(jnp.concatenate([observation, x, time_and_steps])) / steps
        return jnp.clip(x, -1, 1)

    def values(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, " heads"]:
        inputs = jnp.concatenate([observation, action, jnp.asarray([float(steps)])])
        return jnp.stack([critic(inputs) for critic in self.critics])


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the measurement."""

    env: str = "cube-single-play-singletask-v0"
    budget: str = "4x1"
    episodes: int = 32
    """Episodes of the evaluation, for each member."""
    members: int = 1
    workers: int = 2
    slots: int | None = None
    hidden: tuple[int, int] = (3, 256)
    """Number of hidden layers and their width."""
    bare_steps: int = 3000
    """Steps of the bare loop, half of them before and half after the evaluation."""


def bare_steps_per_second(environment_id: str, steps: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        environment = make_environment(environment_id)
        environment.reset(seed=0)
    shape = (steps, *(environment.action_space.shape or ()))
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    start = time.perf_counter()
    for index, action in enumerate(actions):
        _, _, terminated, truncated, _ = environment.step(action)
        if terminated or truncated:
            environment.reset(seed=index)
    seconds = time.perf_counter() - start
    environment.close()
    return steps / seconds


def run(arguments: Arguments) -> dict[str, float | str]:
    """Measure, and print a line for each number."""
    name = EnvironmentName.parse(arguments.env)
    budget = Budget.parse(arguments.budget)
    members = [Member(name.task, seed) for seed in range(arguments.members)]
    environment = make_environment(name.id)
    spaces = environment.observation_space.shape, environment.action_space.shape
    (observation_size,), (action_size,) = (shape or (0,) for shape in spaces)
    environment.close()
    policies = eqx.filter_vmap(
        lambda key: RandomPolicy(observation_size, action_size, arguments.hidden, key=key)
    )(jax.random.split(jax.random.key(0), arguments.members))

    before = bare_steps_per_second(name.id, arguments.bare_steps // 2)
    with Evaluator(name, workers=arguments.workers, slots=arguments.slots) as evaluator:
        # Starts the workers, builds every slot's environment and compiles.
        begun = time.perf_counter()
        evaluator.evaluate(policies, members, budgets=[budget], episodes=arguments.episodes)
        first = time.perf_counter() - begun
        ended: list[float] = []
        begun = time.perf_counter()
        rows = evaluator.evaluate(
            policies,
            members,
            budgets=[budget],
            episodes=arguments.episodes,
            seed=1,
            on_progress=lambda done, total: ended.append(time.perf_counter()),
        )
        seconds = ended[-1] - begun  # the last episode's end: latency is measured after it
    after = bare_steps_per_second(name.id, arguments.bare_steps // 2)
    bare = 2 / (1 / before + 1 / after)
    steps = sum(row.length * row.episodes for row in rows)

    print(f"{name.id}, budget {budget}, {arguments.members} member(s) x {arguments.episodes}")
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}, {jax.devices()[0]}")
    print(f"bare loop, one process   {bare:8.0f} steps/s  (before {before:.0f}, after {after:.0f})")
    print(f"evaluation, {arguments.workers} worker(s)  {steps / seconds:8.0f} steps/s")
    print(f"ratio                    {steps / seconds / bare:8.2f}")
    print(f"act in the rollouts      {rows[0].act_ms:8.3f} ms/step")
    print(f"latency of one decision  {rows[0].latency_ms:8.3f} ms")
    print(f"first evaluation         {first:8.1f} s  (second: {seconds:.1f} s)")
    return {
        "environment": name.id,
        "budget": str(budget),
        "bare_steps_per_second": bare,
        "steps_per_second": steps / seconds,
        "ratio": steps / seconds / bare,
        "act_ms": rows[0].act_ms,
    }


if __name__ == "__main__":
    run(tyro.cli(Arguments, description=__doc__))
