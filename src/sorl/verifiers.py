"""Verifiers: how the critic's heads become the one score that chooses among candidates.

    own          as the method does by itself
    mean         the mean over the heads
    min          the lowest head
    mean-0.5std  pessimism: the mean less ρ times the standard deviation over the heads

The arg max over candidates finds whatever the critic overrates; heads disagree most there, so
pessimism takes some of that away (as in the ensembles of arXiv 2601.14234; ρ is the user's).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from sorl.algorithm import AbstractScoredPolicy
from sorl.errors import InputError
from sorl.losses import aggregate

Rule = Literal["own", "mean", "min"]


@dataclasses.dataclass(frozen=True)
class Verifier:
    """How heads are combined; written as at the head of this file.

    Args:
        rule: the method's own way, the mean or the minimum.
        pessimism: ρ, standard deviations over the heads that are taken off the mean; 0 or more.

    Raises:
        InputError: an unknown rule, or a pessimism that is negative or not the mean's.
    """

    rule: Rule = "own"
    pessimism: float = 0.0

    def __post_init__(self) -> None:
        """Check what `parse` cannot have made."""
        if self.rule not in ("own", "mean", "min"):
            raise InputError(f"There is no verifier {self.rule!r}: use own, mean or min.")
        if not 0 <= self.pessimism < float("inf"):
            raise InputError(f"Verifier pessimism={self.pessimism} must be a number, 0 or more.")
        if self.pessimism and self.rule != "mean":
            raise InputError(
                f"Verifier pessimism={self.pessimism} goes with the mean, not with {self.rule!r}."
            )

    @classmethod
    def parse(cls, text: str) -> Verifier:
        """Read `own`, `mean`, `min` or `mean-0.5std`; the inverse of `str`.

        Raises:
            InputError: `text` is none of these.
        """
        if text in ("own", "mean", "min"):
            return cls(rule=text)
        match = re.fullmatch(r"mean-([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)std", text)
        if match is None:
            raise InputError(
                f"Verifier {text!r} cannot be read: write own, mean, min, or such as mean-0.5std "
                "for the mean over the critic's heads less half their standard deviation."
            )
        return cls(rule="mean", pessimism=float(match[1]))

    def __str__(self) -> str:
        return f"mean-{self.pessimism!r}std" if self.pessimism else self.rule

    def score(
        self,
        policy: AbstractScoredPolicy,
        observation: Float[Array, " observation_size"],
        action: Float[Array, " action_size"],
        *,
        steps: int,
    ) -> Float[Array, ""]:
        """The score of an action that `policy` drew in `steps` steps; higher is better."""
        values = policy.values(observation, action, steps=steps)
        if not self.pessimism:
            return aggregate(values, policy.aggregation if self.rule == "own" else self.rule)
        return jnp.mean(values) - self.pessimism * jnp.std(values)


OWN = Verifier()
