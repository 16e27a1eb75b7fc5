"""Training in an arithmetic: an algorithm whose updates multiply as devices do it fastest.

What it is given and what it returns are networks in float32 that multiply in float32 everywhere, so
checkpoints, policies and evaluation know nothing of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Int, PRNGKeyArray

from sorl import kernels
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy, Metrics, State
from sorl.arithmetic import Arithmetic, Compute, check_devices, computing
from sorl.types import Spec, Transition


def in_arithmetic(
    algorithm: AbstractAlgorithm[State], arithmetic: Arithmetic, *, batch_devices: int = 1
) -> AbstractAlgorithm[State]:
    """The same learning rule, whose updates multiply in `arithmetic`.

    Args:
        algorithm: the learning rule.
        arithmetic: in which numbers.
        batch_devices: devices that share the rows of every batch.

    Raises:
        InputError: the devices of this process cannot.
    """
    compute = compute_here(arithmetic, batch_devices=batch_devices)
    return algorithm if compute == Compute() else _Computing(algorithm, compute)


def compute_here(arithmetic: Arithmetic, *, batch_devices: int = 1) -> Compute:
    """How layers compute in `arithmetic` on the devices that this process trains on.

    Args:
        arithmetic: in which numbers.
        batch_devices: devices that share the rows of every batch.

    Raises:
        InputError: the devices cannot.
    """
    check_devices(arithmetic)
    short = arithmetic == "bfloat16"
    return Compute(
        arithmetic,
        fused=short and kernels.usable(batch_devices),
        on_cpu=jax.default_backend() == "cpu",
    )


@dataclasses.dataclass(frozen=True)
class _Computing(AbstractAlgorithm[Any]):
    algorithm: AbstractAlgorithm[Any]
    compute: Compute

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> Any:
        return self.algorithm.init(spec, key=key)

    def update(
        self, state: Any, batch: Transition, update_index: Int[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Any, Metrics]:
        state = computing(state, self.compute)
        state, metrics = self.algorithm.update(state, batch, update_index, key=key)
        return computing(state, Compute()), metrics

    def policy(self, state: Any) -> AbstractPolicy:
        return self.algorithm.policy(state)
