"""What policies share whose verifier is a critic of s and a."""

from __future__ import annotations

import equinox as eqx
from jaxtyping import Array, Float

from sorl.algorithm import AbstractScoredPolicy
from sorl.errors import InputError
from sorl.nn import Critic


class AbstractCriticPolicy(AbstractScoredPolicy):
    """A policy with a critic as verifier; how it draws actions is for its subclass to say.

    Attributes:
        critic: the online critic.
    """

    critic: eqx.AbstractVar[Critic]

    def values(
        self,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, " heads"]:
        """Q_φ(s, a) of every head, whatever the number of steps."""
        return self.critic(observation, action)


def check_at_most(steps: int, most: int, why: str) -> None:
    """Raise `InputError` unless `steps` is from 1 to `most`; `why` says whence the limit."""
    if not 1 <= steps <= most:
        raise InputError(
            f"This policy cannot act in {steps} sampling steps: {why}; choose from 1 to {most}."
        )


def check_one_pass(steps: int) -> None:
    """Raise `InputError` unless `steps` is 1: for policies that act in one pass of a network."""
    if steps != 1:
        raise InputError(
            f"This policy cannot act in {steps} sampling steps: it acts in one pass of its "
            "network; choose 1."
        )
