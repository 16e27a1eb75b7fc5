"""SORL's actor without its Q loss, on endless actions of a known behaviour at one state.

Everything is SORL's own: network, optimiser, both losses with their draws of time and level, and
the moving average that self-consistency aims at. Only the sum of the two losses is left, so what is
trained is exactly the regularizer that the theorem speaks of. Actions are drawn anew at every
update, so the error of flow matching is the network's and never that of a finite data set.
"""

from __future__ import annotations

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl.algorithms.sorl import SORL
from sorl.experiments.cost import flops_of
from sorl.experiments.theorem2.mixtures import Mixture
from sorl.experiments.theorem2.settings import Setting
from sorl.nn import ActionNetwork
from sorl.optim import adam, gradient_step, moving_average
from sorl.types import Spec, Transition

OBSERVATION_SIZE = 1
CHUNK = 500


class Shortcut(eqx.Module):
    """The velocity `(x, time, level) -> [dimension]` of a network at the one state there is."""

    network: ActionNetwork

    def __call__(
        self, x: Float[Array, " dimension"], time: Float[Array, ""], level: Float[Array, ""]
    ) -> Float[Array, " dimension"]:
        """s(x, t, h) with h = 2^-level."""
        return self.network(jnp.zeros(OBSERVATION_SIZE), x, time, level)


class Training(eqx.Module):
    """What an update changes; `Shortcut(training.actor)` is its velocity."""

    actor: ActionNetwork
    target_actor: ActionNetwork
    optimizer: optax.OptState


def fresh(setting: Setting) -> Training:
    """The state before any update."""
    _, init_key = _keys(setting)
    state = _sorl(setting).init(Spec(OBSERVATION_SIZE, setting.dimension), key=init_key)
    return Training(state.actor, state.target_actor, state.actor_optimizer)


def trained(
    setting: Setting, start: tuple[int, Training] | None = None
) -> Iterator[tuple[int, Training]]:
    """One training, chunk by chunk; a chunk ends at each of `setting.updates`.

    Args:
        setting: the setting.
        start: what an earlier call yielded, to go on from; None means from the beginning.

    Yields:
        The number of updates and the state after them.
    """
    done, state = (0, fresh(setting)) if start is None else start
    key, _ = _keys(setting)
    source = _Source(setting.behaviour())
    for end in _ends(setting, done):
        numbers = jnp.asarray(done), jnp.asarray(end)
        state = _train(_sorl(setting), setting.batch_size, state, source, *numbers, key)
        done = end
        yield done, state


def chunks(setting: Setting, done: int = 0) -> int:
    """How many chunks `trained` has left after `done` updates."""
    return sum(1 for _ in _ends(setting, done))


def flops(setting: Setting) -> float:
    """FLOPs of the matrix products of the whole training."""
    state = eqx.filter_eval_shape(lambda: fresh(setting))
    key, _ = _keys(setting)
    numbers = jnp.asarray(0), jnp.asarray(1)
    source = _Source(setting.behaviour())
    arguments = _sorl(setting), setting.batch_size, state, source, *numbers, key
    return setting.updates[-1] * flops_of(_train, *arguments)


def _ends(setting: Setting, done: int) -> Iterator[int]:
    for level in setting.updates:
        while done < level:
            done = min(done + CHUNK, level)
            yield done


def _keys(setting: Setting) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Of the updates, and of the initial state."""
    key, init_key = jax.random.split(jax.random.key(setting.seed))
    return key, init_key


def _sorl(setting: Setting) -> SORL:
    return SORL(
        discretization=setting.discretization,
        backprop_steps=1,
        q_loss_coef=0.0,
        hidden=setting.hidden,
        learning_rate=setting.learning_rate,
    )


class _Source(eqx.Module):
    """A mixture that JAX draws from."""

    means: Float[Array, "components dimension"]
    log_weights: Float[Array, " components"]
    std: Float[Array, ""]

    def __init__(self, behaviour: Mixture):
        self.means = jnp.asarray(behaviour.means, jnp.float32)
        self.log_weights = jnp.asarray(jnp.log(behaviour.weights), jnp.float32)
        self.std = jnp.asarray(behaviour.std, jnp.float32)

    def actions(self, rows: int, key: PRNGKeyArray) -> Float[Array, "rows dimension"]:
        component_key, noise_key = jax.random.split(key)
        component = jax.random.categorical(component_key, self.log_weights, shape=(rows,))
        noise = jax.random.normal(noise_key, (rows, self.means.shape[1]))
        return self.means[component] + self.std * noise


@eqx.filter_jit
def _train(
    sorl: SORL,
    rows: int,
    training: Training,
    source: _Source,
    first: Int[Array, ""],
    end: Int[Array, ""],
    key: PRNGKeyArray,
) -> Training:
    optimizer = adam(sorl.learning_rate, max_gradient_norm=sorl.max_gradient_norm)
    observation, nothing = jnp.zeros((rows, OBSERVATION_SIZE)), jnp.zeros(rows)

    def update(index: Int[Array, ""], training: Training) -> Training:
        data_key, loss_key = jax.random.split(jax.random.fold_in(key, index))
        action = source.actions(rows, data_key)
        batch = Transition(
            observation, action, nothing, nothing, observation, jnp.zeros_like(action), nothing
        )
        gradient, _ = eqx.filter_grad(sorl.behaviour_loss, has_aux=True)(
            training.actor, training.target_actor, batch, key=loss_key
        )
        actor, state, _ = gradient_step(optimizer, training.actor, training.optimizer, gradient)
        target = moving_average(training.target_actor, actor, rate=sorl.target_rate)
        return Training(actor, target, state)

    return jax.lax.fori_loop(first, end, update, training)
