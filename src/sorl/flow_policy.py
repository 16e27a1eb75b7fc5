"""The policy of a flow that reads t alone: any number of Euler steps, a critic as verifier.

    x ← x0 ~ N(0, I);   x ← x + (1/k) v(s, x, i/k)  for i = 0..k-1;   a = clip(x, -1, 1)

Methods that share it differ in how v and the critic are trained.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from sorl.algorithm import AbstractRenoisingPolicy
from sorl.critic_policy import AbstractCriticPolicy, check_at_most
from sorl.flows import euler_loop, euler_path, interpolate, one_size
from sorl.losses import Aggregation
from sorl.nn import ActionNetwork, Critic
from sorl.types import MAX_STEPS, Spec


class FlowPolicy(AbstractCriticPolicy, AbstractRenoisingPolicy):
    """A flow from noise to actions, with a critic as verifier.

    The velocity was learned at every t in [0, 1), so every number of steps is an approximation of
    the same differential equation; more steps come closer to its solution, beyond what training
    sampled with too. Where a loss saw only what one number of steps lands on (FBRAC), the others
    do about as well as they land near that.

    Attributes:
        velocity: v(s, x, t).
        critic: the online critic.
        aggregation: how the verifier combines the critic's heads.
    """

    velocity: ActionNetwork
    critic: Critic
    aggregation: Aggregation = eqx.field(static=True)

    def check_steps(self, steps: int) -> None:
        """Raise `InputError` unless `steps` is a whole number from 1 to `MAX_STEPS`."""
        check_at_most(steps, MAX_STEPS, "that is not a number of steps that a flow can take")

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        """[action_size]: where the path begins."""
        return (self.velocity.action_size,)

    def from_noise(
        self,
        observation: Float[Array, " observation_size"],
        noise: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, " action_size"]:
        """`steps` Euler steps from the noise, clipped once at the end."""
        return self._path(observation, noise, start=0, steps=steps)

    def renoise(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        start: int,
        steps: int,
        key: PRNGKeyArray,
    ) -> Float[Array, " action_size"]:
        """From x_t = (1 - t) ε + t a at t = start/steps on, as `from_noise` does from t = 0."""
        noise = jax.random.normal(key, action.shape)
        x, _ = interpolate(noise, action, jnp.asarray(start / steps))
        return self._path(observation, x, start=start, steps=steps)

    def _path(
        self,
        observation: Float[Array, " observation_size"],
        x: Float[Array, " action_size"],
        *,
        start: int,
        steps: int,
    ) -> Float[Array, " action_size"]:
        # A loop, for hundreds of unrolled steps would take long to compile.
        velocity = one_size(self.velocity, observation)
        path = euler_loop(velocity, x, steps=steps, start=start)
        return jnp.clip(path, -1, 1)


def init(
    spec: Spec,
    hidden: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
) -> tuple[ActionNetwork, optax.OptState]:
    """A fresh velocity v(s, x, t) and its optimiser's state."""
    velocity = ActionNetwork(spec, hidden, scalars=1, key=key)
    return velocity, optimizer.init(eqx.filter(velocity, eqx.is_array))


def flow_actions(
    network: ActionNetwork,
    observation: Float[Array, "rows observation_size"],
    noise: Float[Array, "rows action_size"],
    *,
    steps: int,
) -> Float[Array, "rows action_size"]:
    """What the flow policy does from given noise, row by row.

    The steps are unrolled and gradients flow through all of them; a clipped entry passes none.
    """
    answer = network.bind(observation)

    def velocity(
        x: Float[Array, "rows action_size"], time: Float[Array, ""], _level: Float[Array, ""]
    ) -> Float[Array, "rows action_size"]:
        return answer(x, jnp.full(len(x), time))

    return jnp.clip(euler_path(velocity, noise, steps=steps), -1, 1)
