"""What an algorithm and a policy are; the trainer and the evaluator know nothing more."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl.choices import Choice
from sorl.losses import Aggregation, aggregate
from sorl.types import Budget, Spec, Transition
from sorl.units import USUAL, Units

State = TypeVar("State")
Metrics = Mapping[str, Float[Array, ""]]


class AbstractPolicy(eqx.Module):
    """A stochastic policy for ONE observation; callers vmap.

    All that is random in an action is its noise, standard normal numbers: given them, acting is a
    plain function, which can be computed outside JAX too. `steps` is a Python int: it decides the
    shape of the computation. A policy that has no notion of steps ignores it.

    Its own methods take observations as networks see them and give actions in [-1, 1]. Whoever acts
    for a user goes through `sorl.inference`, which maps both by `units`.

    Attributes:
        units: what its observations and actions are for the user.
    """

    units: Units = eqx.field(static=True, default=USUAL, kw_only=True)

    @abc.abstractmethod
    def noise_shape(self, steps: int) -> tuple[int, ...]:
        """Shape of the noise that one action in `steps` sampling steps takes."""

    @abc.abstractmethod
    def from_noise(
        self,
        observation: Float[Array, " observation_size"],
        noise: Float[Array, "*noise_shape"],
        *,
        steps: int,
    ) -> Float[Array, " action_size"]:
        """The action in [-1, 1] that `steps` sampling steps make of `noise`."""

    def sample(
        self, observation: Float[Array, " observation_size"], *, steps: int, key: PRNGKeyArray
    ) -> Float[Array, " action_size"]:
        """Draw one action in [-1, 1] with `steps` sampling steps."""
        noise = jax.random.normal(key, self.noise_shape(steps))
        return self.from_noise(observation, noise, steps=steps)

    @abc.abstractmethod
    def check_steps(self, steps: int) -> None:
        """Raise `InputError` when the policy cannot act in `steps` steps."""


AnyPolicy = TypeVar("AnyPolicy", bound=AbstractPolicy)


def in_units(policy: AnyPolicy, units: Units) -> AnyPolicy:
    """The same policy for a user who has these units."""
    return policy if policy.units == units else dataclasses.replace(policy, units=units)


class AbstractScoredPolicy(AbstractPolicy):
    """A policy with a critic, so that best-of-N is possible.

    Attributes:
        aggregation: how the method itself combines the critic's heads into one score.
        own_choice: how the method itself chooses among scored candidates.
    """

    aggregation: eqx.AbstractVar[Aggregation]
    own_choice: ClassVar[Choice] = Choice("best")

    @abc.abstractmethod
    def values(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, " heads"]:
        """Value of taking `action`, which the policy drew in `steps` steps, by every head."""

    def score(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, ""]:
        """The values combined as the method does by itself; higher is better."""
        return aggregate(self.values(observation, action, steps=steps), self.aggregation)


class AbstractRenoisingPolicy(AbstractScoredPolicy):
    """A scored policy whose way from noise to action can be entered in the middle."""

    @abc.abstractmethod
    def renoise(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        start: int,
        steps: int,
        key: PRNGKeyArray,
    ) -> Float[Array, " action_size"]:
        """Mix noise into `action` up to the place of step `start` and take the rest of the steps.

        With `start` 0 nothing is left of the action: that is `sample`. The work is that of
        `steps - start` steps.
        """


class AbstractAlgorithm(abc.ABC, Generic[State]):
    """A learning rule. Its fields are its hyperparameters: hashable, static under jit.

    Concrete algorithms are frozen dataclasses of plain numbers, strings and tuples. `init`,
    `update` and `policy` are pure functions for one member (one task and one seed); the trainer
    maps them over members, or calls them for one after the other.

    Attributes:
        presets: values of fields that are published for a dataset, by its name without version.
        default_budget: `own_budget` of the published hyperparameters.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    default_budget: ClassVar[Budget]

    @property
    def own_budget(self) -> Budget:
        """The test-time compute that the method uses by itself.

        `Policy.act` uses it too unless it is told otherwise. A method whose hyperparameters say in
        how many steps it learns to act overrides this.
        """
        return self.default_budget

    @abc.abstractmethod
    def init(self, spec: Spec, *, key: PRNGKeyArray) -> State:
        """A fresh training state: networks, targets and optimisers."""

    @abc.abstractmethod
    def update(
        self,
        state: State,
        batch: Transition,
        update_index: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[State, Metrics]:
        """One gradient update from `batch` (leading axis: rows).

        `update_index` counts updates from 0 and is the same for every member. Whatever decides
        control flow is derived from it and never from `key`: under vmap a branch chosen by a
        mapped value runs every branch.
        """

    @abc.abstractmethod
    def policy(self, state: State) -> AbstractPolicy:
        """The policy that `state` has learned."""
