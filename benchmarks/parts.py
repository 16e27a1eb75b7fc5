"""Where the time of an update of SORL goes: drawing the batch, critic, actor, optimisers.

    python -m benchmarks.parts

Each part is a program of its own, run on the state and batch of one seed, so what XLA fuses between
them counts in none, and the whole can be less than their sum.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from sorl import platform

platform.prepare()

import equinox as eqx  # noqa: E402 - XLA reads its settings when JAX starts
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmarks.case import ACTION, OBSERVATION  # noqa: E402
from benchmarks.training import NETWORKS  # noqa: E402
from sorl.algorithms.sorl import SORL  # noqa: E402
from sorl.arithmetic import computing  # noqa: E402
from sorl.data.synthetic import synthetic  # noqa: E402
from sorl.mixed_precision import compute_here  # noqa: E402
from sorl.optim import gradient_step, moving_average  # noqa: E402
from sorl.types import Spec  # noqa: E402

UPDATES = 16
"""The parts are timed over the draws of k and k' of this many updates."""
ROUNDS = 5


def run() -> list[dict[str, Any]]:
    """Milliseconds of every part, by network."""
    rows = []
    for hidden in NETWORKS:
        rows.append({"network": f"{len(hidden)} x {hidden[0]}", **_parts(SORL(hidden=hidden))})
        print(table(rows[-1:])[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    names = [name for name in rows[0] if name != "network"]
    lines = [
        "| network | " + " | ".join(f"{name}, ms" for name in names) + " |",
        "|" + " --- |" * (1 + len(names)),
    ]
    return lines + [
        f"| {row['network']} | " + " | ".join(f"{row[name]:.2f}" for name in names) + " |"
        for row in rows
    ]


def _parts(sorl: SORL) -> dict[str, float]:
    key, spec = jax.random.key(0), Spec(OBSERVATION, ACTION)
    data = synthetic(OBSERVATION, ACTION)
    # As `train` has it computed.
    state = computing(sorl.init(spec, key=key), compute_here("float32"))
    batch = data.sample(key, jnp.int32(0), 256)
    optimizer = sorl._optimizer()

    def sampling(data: Any, index: Any) -> Any:
        return data.sample(jax.random.fold_in(key, index), jnp.int32(0), 256)

    def critic_steps(index: Any) -> Any:
        return jnp.exp2(sorl.choose_steps(index)[0]).astype(jnp.int32)

    def targets(given: Any, index: Any) -> Any:
        state, batch = given
        return sorl.critic_target(state, batch, critic_steps(index), key=key)

    def critic(given: Any, index: Any) -> Any:
        state, batch = given
        return eqx.filter_value_and_grad(
            lambda critic: sorl.critic_loss(critic, batch, batch.reward, critic_steps(index))[0]
        )(state.critic)

    def behaviour(given: Any, index: Any) -> Any:
        state, batch = given
        return eqx.filter_value_and_grad(
            lambda actor: sorl.behaviour_loss(actor, state.target_actor, batch, key=key)[0]
        )(state.actor)

    def q(given: Any, index: Any) -> Any:
        state, batch = given
        noise = jax.random.normal(key, batch.action.shape)
        choice = sorl.choose_steps(index)[1]
        return sorl._q_loss_and_gradient(
            state.actor, state.critic, batch.observation, noise, choice
        )

    def optimisers(given: Any, index: Any) -> Any:
        state, _ = given  # a network has the shape of its gradient
        actor = gradient_step(optimizer, state.actor, state.actor_optimizer, state.target_actor)
        critic = gradient_step(optimizer, state.critic, state.critic_optimizer, state.target_critic)
        averages = (
            moving_average(state.target_actor, actor[0], rate=sorl.target_rate),
            moving_average(state.target_critic, critic[0], rate=sorl.target_rate),
        )
        return actor, critic, averages

    def whole(given: Any, index: Any) -> Any:
        state, data = given
        return sorl.update(state, sampling(data, index), index, key=key)

    parts: dict[str, tuple[Callable[..., Any], Any]] = {
        "batch": (sampling, data),
        "next actions and targets": (targets, (state, batch)),
        "critic's gradient": (critic, (state, batch)),
        "behaviour's gradient": (behaviour, (state, batch)),
        "Q loss's gradient": (q, (state, batch)),
        "optimisers and averages": (optimisers, (state, batch)),
        "whole update": (whole, (state, data)),
    }
    compiled = {name: (eqx.filter_jit(part), given) for name, (part, given) in parts.items()}
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(1 + ROUNDS):
        for name, (part, given) in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready([part(given, jnp.int32(index)) for index in range(UPDATES)])
            if turn:  # the first one compiled
                times[name].append((time.perf_counter() - began) / UPDATES)
    return {name: 1000 * statistics.median(taken) for name, taken in times.items()}


if __name__ == "__main__":
    run()
