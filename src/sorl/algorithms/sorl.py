"""SORL: scalable offline RL with shortcut models (arXiv 2505.22866).

One network v_θ(s, x, t, κ) is, at every step size 1/k with κ = log2 k, the velocity of a flow
from noise to actions. One stage of training, three losses:

    flow matching      L_FM = mean (v_θ(s, x_t, t, log2 M) - (x1 - (1-e) x0))²
    self-consistency   L_SC = mean (v_θ(s, x_t, t, κ) - stopgrad((v1 + v2)/2))²,
                       v1, v2: two half steps of the target network θ̄
    Q                  L_QL = -mean q / stopgrad(mean |q|),
                       q = mean over heads of Q_φ(s, π_k(s), k)
    actor              L = 10 L_FM + 10 L_SC + q_loss_coef · L_QL
    critic             L = mean (Q_φ(s, a, k) - stopgrad(r + γ · mask · agg Q_φ̄(s', π_k(s'), k)))²

Pseudocode of one update (M = M^disc, B^ = M^BTT, `batch` of B rows):

    k, k' ~ Uniform{1, 2, 4, ..., B^}                    one for the critic, one for the actor
    φ ← φ - Adam(clip(∇φ critic loss with a' = π_k(s')))
    θ ← θ - Adam(clip(∇θ actor loss; the gradient of L_QL runs through all k' steps))
    θ̄ ← θ̄ + τ (θ - θ̄);  φ̄ ← φ̄ + τ (φ - φ̄)

At test time: π_k for any k in {1, 2, 4, ...}, and N candidates with Q_φ(s, ·, k) as verifier; what
k above M and B^ mean, and which candidate is chosen, is told at `SORLPolicy`.

Departures from the paper: the critic may read the number of steps k of the policy it values
(`critic_sees_steps`, as in the authors' experiments; the paper's equations do not show it).
Ours: of N candidates the better of the two most central ones acts (`typical-2` of `sorl.choices`)
and not the arg max of Q over all, which is the choice `best` and the same for N = 2; the actor's Q
loss reads the critic after the critic's step of the same update; LayerNorm's epsilon is 1e-6; k and
k' are the same for all seeds and runs at the update of one number, drawn independently of all else.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl import published
from sorl.algorithm import AbstractAlgorithm, AbstractRenoisingPolicy, Metrics
from sorl.choices import Choice
from sorl.errors import InputError
from sorl.flows import (
    euler_loop,
    euler_path,
    interpolate,
    self_consistency_target,
    stratified_levels,
)
from sorl.hyperparameters import (
    check_choices,
    check_discount,
    check_layers,
    check_not_negative,
    check_positive,
    check_power_of_two,
    check_rate,
    make_plain,
)
from sorl.layers import shortened
from sorl.losses import (
    Aggregation,
    aggregate,
    critic_loss,
    normalised_q_loss,
    td_target,
)
from sorl.nn import ActionNetwork, Critic
from sorl.optim import adam, gradient_step, minimise, moving_average
from sorl.path_gradient import path_value_and_gradient
from sorl.types import Budget, Spec, Transition

HEADS = 2

# e of the flow's straight paths: the share of the noise that is left at t = 1.
NOISE_FLOOR = 1e-5

# Steps are unrolled, so more would take long to compile; and 128 Euler steps land where more do.
MOST_STEPS = 128

# Decides the draws of k; the same for every member and every run, since k is control flow.
STEPS_KEY_SEED = 2505


class SORLPolicy(AbstractRenoisingPolicy):
    """π_k with the critic as verifier, for k = 1, 2, 4, 8, ...

    Above M^disc the path is finer than any step size that was trained: it asks the network for the
    velocity of the finest, which is that of the flow itself. Above M^BTT the critic has seen no
    such policy: it is asked about the one of M^BTT steps. Both rules are ours.

    Of several candidates the better of the two most central ones acts unless another choice is
    asked for: the paper's arg max of Q over all of them, taken at every decision, often does worse
    than one candidate while the critic is young (results/test-time-compute).

    Attributes:
        velocity: the shortcut network.
        critic: the online critic.
        discretization: M^disc, the finest discretisation that was trained.
        backprop_steps: M^BTT, the most steps of a policy that the critic has valued.
        aggregation: how the verifier combines the critic's heads.
        critic_sees_steps: whether the critic reads k.
    """

    velocity: ActionNetwork
    critic: Critic
    discretization: int = eqx.field(static=True)
    backprop_steps: int = eqx.field(static=True)
    aggregation: Aggregation = eqx.field(static=True)
    critic_sees_steps: bool = eqx.field(static=True)
    own_choice: ClassVar[Choice] = Choice("typical", 2)

    def check_steps(self, steps: int) -> None:
        """Raise `InputError` unless `steps` is a power of two, at most `MOST_STEPS`."""
        if steps < 1 or steps & (steps - 1) or steps > MOST_STEPS:
            raise InputError(
                f"This policy cannot act in {steps} sampling steps: its step sizes are 1, 1/2, "
                f"1/4, ...; choose a power of two up to {MOST_STEPS} (training saw those up to "
                f"{self.discretization})."
            )

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
        return act_from_noise(
            self.velocity, observation, noise, steps=steps, finest=self.discretization
        )

    def renoise(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        start: int,
        steps: int,
        key: PRNGKeyArray,
    ) -> Float[Array, " action_size"]:
        """From x_t on the straight path between fresh noise and `action`, t = start/steps."""
        noise = jax.random.normal(key, action.shape)
        x, _ = interpolate(noise, action, jnp.asarray(start / steps), noise_floor=NOISE_FLOOR)
        return act_from_noise(
            self.velocity, observation, x, steps=steps, start=start, finest=self.discretization
        )

    def values(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, " heads"]:
        """Q_φ(s, a, k) of every head, with k = min(steps, M^BTT)."""
        k = jnp.asarray(min(steps, self.backprop_steps), jnp.float32)
        return self.critic(observation, action, *steps_input(k, self.critic_sees_steps))


class SORLState(eqx.Module):
    """Everything that training changes."""

    actor: ActionNetwork
    target_actor: ActionNetwork
    critic: Critic
    target_critic: Critic
    actor_optimizer: optax.OptState
    critic_optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class SORL(AbstractAlgorithm[SORLState]):
    """The hyperparameters of SORL; defaults are the paper's.

    Args:
        discretization: M^disc, finest number of sampling steps in training; a power of two.
        backprop_steps: M^BTT, most steps the Q loss is backpropagated through; a power of two, at
            most `discretization`.
        q_loss_coef: weight of the Q loss beside the two weights of 10; like those, 0 or more.
        discount: γ in [0, 1).
        target_aggregation: agg, how heads are combined in targets and in the verifier.
        critic_sees_steps: whether the critic reads k, the steps of the policy it values.
        hidden: sizes of the hidden layers of every network.
        actor_hidden: sizes for the actor alone; empty means as `hidden`.
        learning_rate: of both Adams, above 0.
        max_gradient_norm: global norm to which either gradient is clipped, above 0.
        target_rate: τ of both target networks, above 0.
        flow_matching_coef: weight of L_FM.
        self_consistency_coef: weight of L_SC.

    Raises:
        InputError: a value is out of its range.
    """

    discretization: int = 8
    backprop_steps: int = 8
    q_loss_coef: float = 100.0
    discount: float = 0.99
    target_aggregation: Aggregation = "mean"
    critic_sees_steps: bool = True
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    actor_hidden: tuple[int, ...] = ()
    learning_rate: float = 1e-4
    max_gradient_norm: float = 1.0
    target_rate: float = 0.005
    flow_matching_coef: float = 10.0
    self_consistency_coef: float = 10.0

    # Table of the paper, per dataset.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = published.presets(
        {
            "antmaze-large-navigate": {"q_loss_coef": 500.0},
            "antmaze-giant-navigate": {"q_loss_coef": 500.0},
            "humanoidmaze-medium-navigate": {"q_loss_coef": 100.0},
            "humanoidmaze-large-navigate": {"q_loss_coef": 500.0},
            "antsoccer-arena-navigate": {"q_loss_coef": 500.0},
            "cube-single-play": {"q_loss_coef": 10.0},
            "cube-double-play": {"q_loss_coef": 50.0},
            "scene-play": {"q_loss_coef": 100.0},
        }
    )
    default_budget: ClassVar[Budget] = Budget(steps=4, best_of=1)

    def __post_init__(self) -> None:
        """Check what the equations assume."""
        make_plain(self)
        check_power_of_two(self, "discretization", "backprop_steps")
        if self.backprop_steps > self.discretization:
            raise InputError(
                f"SORL backprop_steps={self.backprop_steps} is more than discretization="
                f"{self.discretization}: the Q loss can only use step sizes that are trained."
            )
        check_choices(self)
        check_discount(self)
        check_layers(self, "hidden")
        check_layers(self, "actor_hidden", may_be_empty=True)
        check_positive(self, "learning_rate", "max_gradient_norm")
        check_rate(self)
        check_not_negative(self, "q_loss_coef", "flow_matching_coef", "self_consistency_coef")

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> SORLState:
        """Fresh networks; targets start as copies."""
        actor_key, critic_key = jax.random.split(key)
        actor = ActionNetwork(spec, self.actor_hidden or self.hidden, scalars=2, key=actor_key)
        critic = Critic(spec, int(self.critic_sees_steps), self.hidden, heads=HEADS, key=critic_key)
        optimizer = self._optimizer()
        return SORLState(
            actor=actor,
            target_actor=actor,
            critic=critic,
            target_critic=critic,
            actor_optimizer=optimizer.init(eqx.filter(actor, eqx.is_array)),
            critic_optimizer=optimizer.init(eqx.filter(critic, eqx.is_array)),
        )

    def update(
        self,
        state: SORLState,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[SORLState, Metrics]:
        """One step of the critic, one of the actor, one of both averages."""
        critic_key, behaviour_key, q_key = jax.random.split(key, 3)
        critic_choice, actor_choice = self.choose_steps(update_index)
        optimizer = self._optimizer()

        steps = jnp.left_shift(1, critic_choice)
        target = self.critic_target(state, batch, steps, key=critic_key)
        critic, critic_optimizer, critic_metrics = minimise(
            "critic",
            lambda critic: self.critic_loss(critic, batch, target, steps),
            optimizer,
            state.critic,
            state.critic_optimizer,
        )

        (behaviour_loss, parts), gradient = eqx.filter_value_and_grad(
            self.behaviour_loss, has_aux=True
        )(state.actor, state.target_actor, batch, key=behaviour_key)
        noise = jax.random.normal(q_key, batch.action.shape)
        q_loss, q_gradient = self._q_loss_and_gradient(
            state.actor, critic, batch.observation, noise, actor_choice
        )
        gradient = jax.tree.map(lambda a, b: a + self.q_loss_coef * b, gradient, q_gradient)
        actor, actor_optimizer, actor_norm = gradient_step(
            optimizer, state.actor, state.actor_optimizer, gradient
        )

        new_state = SORLState(
            actor=actor,
            target_actor=moving_average(state.target_actor, actor, rate=self.target_rate),
            critic=critic,
            target_critic=moving_average(state.target_critic, critic, rate=self.target_rate),
            actor_optimizer=actor_optimizer,
            critic_optimizer=critic_optimizer,
        )
        return new_state, {
            **critic_metrics,
            "actor/loss": behaviour_loss + self.q_loss_coef * q_loss,
            "actor/flow_matching_loss": parts[0],
            "actor/self_consistency_loss": parts[1],
            "actor/q_loss": q_loss,
            "actor/gradient_norm": actor_norm,
        }

    def policy(self, state: SORLState) -> SORLPolicy:
        """The online actor with the online critic as verifier."""
        return SORLPolicy(
            velocity=state.actor,
            critic=state.critic,
            discretization=self.discretization,
            backprop_steps=self.backprop_steps,
            aggregation=self.target_aggregation,
            critic_sees_steps=self.critic_sees_steps,
        )

    def critic_target(
        self, state: SORLState, batch: Transition, steps: Int[Array, ""], *, key: PRNGKeyArray
    ) -> Float[Array, " batch"]:
        """y = r + γ · mask · agg Q_φ̄(s', a', k) with a' ~ π_k(s') from the online actor."""
        noise = jax.random.normal(key, batch.action.shape)
        extra = steps_input(steps.astype(jnp.float32), self.critic_sees_steps)
        sampler = shortened(state.actor)

        def next_action(
            observation: Float[Array, " observation_size"], x0: Float[Array, " action_size"]
        ) -> Float[Array, " action_size"]:
            return jnp.clip(euler_loop(sampler.bind(observation), x0, steps=steps), -1, 1)

        actions = jax.vmap(next_action)(batch.next_observation, noise)
        values = aggregate(
            state.target_critic.batch(batch.next_observation, actions, *extra),
            self.target_aggregation,
        )
        return td_target(batch.reward, batch.mask, values, discount=self.discount)

    def critic_loss(
        self,
        critic: Critic,
        batch: Transition,
        target: Float[Array, " batch"],
        steps: Int[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean over rows and heads of (Q_φ(s, a, k) - y)², and metrics."""
        extra = steps_input(steps.astype(jnp.float32), self.critic_sees_steps)
        return critic_loss(critic, batch.observation, batch.action, target, *extra)

    def behaviour_loss(
        self,
        actor: ActionNetwork,
        target_actor: ActionNetwork,
        batch: Transition,
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
        """10 L_FM + 10 L_SC in one forward pass of 2B rows, and (L_FM, L_SC)."""
        rows = batch.action.shape[0]
        noise_key, time_key = jax.random.split(key)
        finest = int(math.log2(self.discretization))
        flow_levels = jnp.full(rows, finest, jnp.int32)
        features = jax.vmap(actor.encode)(batch.observation)
        if finest == 0:
            levels, action = flow_levels, batch.action
        else:
            levels = jnp.concatenate([flow_levels, stratified_levels(rows, finest)])
            features = jnp.concatenate([features, features])
            action = jnp.concatenate([batch.action, batch.action])
        noise = jax.random.normal(noise_key, action.shape)
        slots = 2**levels
        time = jax.random.randint(time_key, levels.shape, 0, slots) / slots
        level = levels.astype(jnp.float32)
        x, flow_target = jax.vmap(functools.partial(interpolate, noise_floor=NOISE_FLOOR))(
            noise, action, time
        )
        target = flow_target
        if finest > 0:
            consistent = jax.vmap(
                lambda s, *where: self_consistency_target(target_actor.bind(s), *where)
            )(batch.observation, x[rows:], time[rows:], level[rows:])
            target = jnp.concatenate([flow_target[:rows], jax.lax.stop_gradient(consistent)])
        error = jnp.mean((actor.answers(features, x, time, level) - target) ** 2, axis=-1)
        flow_matching = jnp.mean(error[:rows])
        self_consistency = jnp.mean(error[rows:]) if finest > 0 else jnp.zeros(())
        loss = (
            self.flow_matching_coef * flow_matching + self.self_consistency_coef * self_consistency
        )
        return loss, (flow_matching, self_consistency)

    def q_loss(
        self,
        actor: ActionNetwork,
        critic: Critic,
        observation: Float[Array, "batch observation_size"],
        noise: Float[Array, "batch action_size"],
        *,
        steps: int,
    ) -> Float[Array, ""]:
        """L_QL of the actions of `steps` steps; heads combined by their mean."""

        def end(
            s: Float[Array, " observation_size"], x0: Float[Array, " action_size"]
        ) -> Float[Array, " action_size"]:
            return euler_path(actor.bind(s), x0, steps=steps)

        return self._q_loss_at(jax.vmap(end)(observation, noise), critic, observation, steps)

    def _q_loss_at(
        self,
        ends: Float[Array, "batch action_size"],
        critic: Critic,
        observation: Float[Array, "batch observation_size"],
        steps: int,
    ) -> Float[Array, ""]:
        """L_QL of paths of `steps` steps that end at `ends`; a clipped entry passes no gradient."""
        extra = steps_input(jnp.asarray(steps, jnp.float32), self.critic_sees_steps)
        values = critic.batch(observation, jnp.clip(ends, -1, 1), *extra)
        return normalised_q_loss(jnp.mean(values, axis=-1))

    def _q_loss_and_gradient(
        self,
        actor: ActionNetwork,
        critic: Critic,
        observation: Float[Array, "batch observation_size"],
        noise: Float[Array, "batch action_size"],
        choice: Int[Array, ""],
    ) -> tuple[Float[Array, ""], ActionNetwork]:
        def through(
            steps: int, actor: ActionNetwork, critic: Critic
        ) -> tuple[Float[Array, ""], ActionNetwork]:
            def loss(ends: Float[Array, "batch action_size"]) -> Float[Array, ""]:
                return self._q_loss_at(ends, critic, observation, steps)

            return path_value_and_gradient(loss, actor, observation, noise, steps=steps)

        # Rounded once, not in every branch and step; an encoder's gradient needs its own weights.
        actor = eqx.tree_at(lambda network: network.mlp, actor, shortened(actor.mlp))
        critic = shortened(critic)
        # The gradient is taken inside each branch: a gradient through `switch` would save the
        # intermediate values of every branch, whichever runs.
        branches = [functools.partial(through, 2**power) for power in range(self._powers())]
        return jax.lax.switch(choice, branches, actor, critic)

    def choose_steps(self, update_index: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """log2 k for the critic and, independently, for the actor; uniform over the powers."""
        key = jax.random.fold_in(jax.random.key(STEPS_KEY_SEED), update_index)
        choices = jax.random.randint(key, (2,), 0, self._powers())
        return choices[0], choices[1]

    def _powers(self) -> int:
        return self.backprop_steps.bit_length()

    def _optimizer(self) -> optax.GradientTransformation:
        return adam(self.learning_rate, max_gradient_norm=self.max_gradient_norm)


def act_from_noise(
    network: ActionNetwork,
    observation: Float[Array, " observation_size"],
    x: Float[Array, " action_size"],
    *,
    steps: int,
    start: int = 0,
    finest: int | None = None,
) -> Float[Array, " action_size"]:
    """π_k(s) as a function of its noise, or of the point x of step `start`; see `euler_path`."""
    path = euler_path(network.bind(observation), x, steps=steps, start=start, finest=finest)
    return jnp.clip(path, -1, 1)


def steps_input(steps: Float[Array, ""], sees_steps: bool) -> tuple[Float[Array, ""], ...]:
    """What the critic reads beside s and a: the raw k, or nothing."""
    return (steps,) if sees_steps else ()
