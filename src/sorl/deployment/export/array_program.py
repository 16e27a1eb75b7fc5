"""A short list of array operations: what the ONNX and the NumPy format are made of.

The operations are such as every array library has, with NumPy's broadcasting between their inputs:

    add subtract multiply divide maximum minimum power negative absolute sign
    exp log sqrt tanh sin cos
    less less_equal greater greater_equal equal  logical_and logical_or logical_not  where
    matmul
    transpose(axes)  reshape(shape)  broadcast(shape)  concatenate(axis)  slice(axes, starts, stops)
    sum(axes)  max(axes)  min(axes)                       these axes vanish

Everything is float32, but for what comparisons answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

ROWS = "rows"
"""In a shape: the number of rows, known only when the program runs."""

Shape = tuple[int | str, ...]

Operand = str | float
"""The name of an input, a constant or an earlier result; or a float32 number."""


class Operation(NamedTuple):
    """One line of a program: `output = name(*inputs, **attributes)`."""

    name: str
    inputs: tuple[Operand, ...]
    output: str
    attributes: dict[str, Any]


class ArrayProgram(NamedTuple):
    """Operations in the order they run.

    Attributes:
        inputs: names and shapes of what the caller gives, the first axis of each `ROWS`.
        operations: every input of one is a number, an input of the program, a constant, or the
            output of an operation before it.
        output: name of the result.
    """

    inputs: dict[str, Shape]
    operations: tuple[Operation, ...]
    output: str
