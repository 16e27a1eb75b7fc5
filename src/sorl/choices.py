"""Choices: which of the scored candidates the action is.

    own          as the method does by itself
    best         the highest score: the arg max of the paper
    central      the candidate nearest to all others, whatever the scores (so no critic is needed)
    typical-2    the highest score among the two (or as many as are named) most central ones
    softmax-1.0  at random, with probability ∝ exp(score / (T · standard deviation of the scores))

The arg max takes candidates from the edge of what the sampler draws, where the data are thin.
Distances among the candidates tell where the sampler's density is high without computing it: the
more candidates, the nearer `central` comes to the densest place, and `typical` sets a floor to how
far from it the critic may go. All but the arg max are ours.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from sorl.errors import InputError

Rule = Literal["own", "best", "central", "typical", "softmax"]

_NUMBER = r"[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?"

_SOFTMAX = 0x50F7  # tells the key of the choice from those of the candidates


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one candidate is chosen; written as at the head of this file.

    Args:
        rule: which rule.
        parameter: for `typical` how many candidates stay, a whole number of at least 1; for
            `softmax` the temperature T, above 0; for the others 0.

    Raises:
        InputError: an unknown rule, or a parameter out of its range.
    """

    rule: Rule = "own"
    parameter: float = 0.0

    def __post_init__(self) -> None:
        """Check what `parse` cannot have made."""
        if self.rule not in get_args(Rule):
            raise InputError(f"There is no choice {self.rule!r}: use {', '.join(get_args(Rule))}.")
        possible = {
            "typical": self.parameter >= 1 and float(self.parameter).is_integer(),
            "softmax": 0 < self.parameter < float("inf"),
        }.get(self.rule, self.parameter == 0)
        if not possible:
            raise InputError(
                f"Choice {self.rule} with {self.parameter} is not possible: typical takes a whole "
                "number of candidates, softmax a temperature above 0, the others no number."
            )

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read `own`, `best`, `central`, `typical-2` or `softmax-1`; the inverse of `str`.

        Raises:
            InputError: `text` is none of these.
        """
        rule, _, number = text.partition("-")
        if rule in get_args(Rule) and (not number or re.fullmatch(_NUMBER, number)):
            return cls(rule=cast(Rule, rule), parameter=float(number or 0))
        raise InputError(
            f"Choice {text!r} cannot be read: write own, best, central, or such as typical-2 or "
            "softmax-1."
        )

    def __str__(self) -> str:
        if self.rule == "typical":
            return f"typical-{round(self.parameter)}"
        return f"{self.rule}-{self.parameter!r}" if self.parameter else self.rule

    @property
    def reads_scores(self) -> bool:
        """Whether the scores have a say; `own` depends on the method and counts as one."""
        return self.rule != "central"

    def choose(
        self,
        actions: Float[Array, "candidates action_size"],
        scores: Float[Array, " candidates"],
        *,
        key: PRNGKeyArray,
    ) -> Int[Array, ""]:
        """The place of the chosen candidate; ties go to the first.

        Args:
            actions: the candidates.
            scores: what the verifier says of them; finite.
            key: the key that the candidates were drawn with; only `softmax` reads it.

        Raises:
            ValueError: the rule is `own`, which whoever knows the method must resolve.
        """
        if self.rule == "best":
            return jnp.argmax(scores)
        if self.rule == "central":
            return jnp.argmin(remoteness(actions))
        if self.rule == "typical":
            # Counted, not sorted: exports leave the number of candidates open, which K may exceed.
            far = remoteness(actions)
            nearer = jnp.sum(far[None] < far[:, None], axis=1)
            return jnp.argmax(jnp.where(nearer < self.parameter, scores, -jnp.inf))
        if self.rule == "softmax":
            # Equal scores leave nothing to choose by: then every candidate is as likely.
            temperature = self.parameter * jnp.maximum(jnp.std(scores), 1e-12)
            logits = (scores - jnp.max(scores)) / temperature
            return jax.random.categorical(jax.random.fold_in(key, _SOFTMAX), logits)
        raise ValueError("own is no rule of its own: resolve it first")


def remoteness(
    actions: Float[Array, "candidates action_size"],
) -> Float[Array, " candidates"]:
    """Mean Euclidean distance of each candidate to all of them (itself included)."""
    between = actions[:, None] - actions[None]
    return jnp.mean(jnp.sqrt(jnp.sum(between**2, axis=-1)), axis=-1)


OWN = Choice()
