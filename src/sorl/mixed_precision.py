"""Training in shorter numbers: an algorithm whose updates multiply in another arithmetic.

What it is given and what it returns are networks in float32 that multiply in float32, so
checkpoints, policies and evaluation know nothing of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Int, PRNGKeyArray

from sorl import kernels
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy, Metrics, State
from sorl.arithmetic import Arithmetic, check_devices, with_arithmetic
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
    check_devices(arithmetic)
    if arithmetic == "float32":
        return algorithm
    fused = arithmetic == "bfloat16" and kernels.usable(batch_devices)
    return _InArithmetic(algorithm, arithmetic, fused)


@dataclasses.dataclass(frozen=True)
class _InArithmetic(AbstractAlgorithm[Any]):
    algorithm: AbstractAlgorithm[Any]
    arithmetic: Arithmetic
    fused: bool

    def init(self, spec: Spec, *, key: PRNGKeyArray) -> Any:
        return self.algorithm.init(spec, key=key)

    def update(
        self, state: Any, batch: Transition, update_index: Int[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Any, Metrics]:
        state = with_arithmetic(state, self.arithmetic, fused=self.fused)
        state, metrics = self.algorithm.update(state, batch, update_index, key=key)
        return with_arithmetic(state, "float32"), metrics

    def policy(self, state: Any) -> AbstractPolicy:
        return self.algorithm.policy(state)
