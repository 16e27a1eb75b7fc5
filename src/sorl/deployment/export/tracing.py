"""From JAX to array programs: traces a policy and writes down the operations that it does.

JAX traces a function of one row, mapped over rows, to a jaxpr. Calls in it are inlined, loops of a
static length unrolled; whatever does not depend on the inputs is computed here and now; nothing is
left in that the result does not need. (jax2onnx would make ONNX alone, and cannot be installed
beside the orbax-checkpoint that training needs.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from sorl import leaves, platform
from sorl.algorithm import AbstractPolicy, AbstractScoredPolicy
from sorl.deployment.export.array_program import (
    ROWS,
    ArrayProgram,
    Operand,
    Operation,
    Shape,
)
from sorl.errors import InputError
from sorl.types import Spec
from sorl.verifiers import Verifier

# Names of programs' inputs, which no constant may take.
_INPUTS = ("observation", "noise", "action")


class Tracer:
    """Traces what one policy does; the programs share their constants.

    A constant with the entries of one of the policy's arrays has the path of that as its name.

    Args:
        policy: the policy.
        spec: sizes of its observations and actions.
    """

    def __init__(self, policy: AbstractPolicy, spec: Spec) -> None:
        self._constants: dict[str, np.ndarray] = {}
        self._policy = policy
        self._spec = spec
        self._names: dict[Any, str] = {}
        self._of_policy: dict[bytes, list[str]] = {}
        for name, leaf in leaves.named(eqx.filter(policy, eqx.is_array)).items():
            self._of_policy.setdefault(leaves.to_host(leaf).tobytes(), []).append(name)

    def candidates(self, *, steps: int) -> ArrayProgram:
        """From `observation`, in the user's units, and `noise` of many rows to actions in [-1, 1].

        Raises:
            InputError: the policy does what an array program cannot express.
        """
        return self._trace(
            lambda observation, noise: self._policy.from_noise(
                self._policy.units.to_network(observation), noise, steps=steps
            ),
            observation=(self._spec.observation_size,),
            noise=self._policy.noise_shape(steps),
        )

    def score(self, verifier: Verifier, *, steps: int) -> ArrayProgram:
        """From `observation`, in the user's units, and `action` in [-1, 1] to scores.

        Raises:
            InputError: the policy does what an array program cannot express.
        """
        policy = self._policy
        assert isinstance(policy, AbstractScoredPolicy)
        return self._trace(
            lambda observation, action: verifier.score(
                policy, policy.units.to_network(observation), action, steps=steps
            ),
            observation=(self._spec.observation_size,),
            action=(self._spec.action_size,),
        )

    def constants(self, programs: Iterable[ArrayProgram | None]) -> dict[str, np.ndarray]:
        """What these programs read beside their inputs and their own results, by name."""
        read = {
            entry
            for program in programs
            for step in (program.operations if program else ())
            for entry in step.inputs
        }
        return {name: array for name, array in self._constants.items() if name in read}

    def _name_of(self, array: np.ndarray) -> str:
        key = (array.shape, str(array.dtype), array.tobytes())
        if key not in self._names:
            taken = (*self._constants, *_INPUTS)
            equal = [name for name in self._of_policy.get(key[-1], []) if name not in taken]
            self._names[key] = equal[0] if equal else f"constant[{len(self._constants)}]"
            self._constants[self._names[key]] = array
        return self._names[key]

    def _trace(self, function: Callable[..., jax.Array], **inputs: tuple[int, ...]) -> ArrayProgram:
        """`function` takes one row of every input; here are their shapes without rows."""
        (rows,) = jax.export.symbolic_shape(ROWS)
        arguments = [jax.ShapeDtypeStruct((rows, *shape), jnp.float32) for shape in inputs.values()]
        closed = jax.make_jaxpr(jax.vmap(function))(*arguments)
        shapes: dict[str, Shape] = {name: (ROWS, *shape) for name, shape in inputs.items()}
        writer = _Writer(type(self._policy).__name__, self._name_of)
        with jax.default_device(platform.cpu()):
            (result,) = writer.run(closed, [_Value(*entry) for entry in shapes.items()])
        output = writer.operand(writer.full(result, _shape(closed.out_avals[0])))
        assert isinstance(output, str)
        return ArrayProgram(shapes, tuple(_needed(writer.operations, output)), output)


class _Value(NamedTuple):
    """What a variable of the jaxpr has become.

    Attributes:
        name: of an input or a result; None for a constant.
        shape: as it is; axes along which all entries are equal may have size 1 still, where JAX
            has broadcast already.
        constant: its entries where they are known.
    """

    name: str | None
    shape: Shape
    constant: np.ndarray | None = None


class _Writer:
    """Writes operations down, in the order of the jaxpr."""

    def __init__(self, policy_name: str, name_of: Callable[[np.ndarray], str]) -> None:
        self.operations: list[Operation] = []
        self._policy_name = policy_name
        self._name_of = name_of
        self._written: dict[Any, _Value] = {}

    def run(self, closed: ClosedJaxpr, inputs: Sequence[_Value]) -> list[_Value]:
        """Write a jaxpr down, given its inputs."""
        jaxpr = closed.jaxpr
        values: dict[Any, _Value] = {}
        values.update(zip(jaxpr.constvars, map(_constant, closed.consts), strict=True))
        values.update(zip(jaxpr.invars, inputs, strict=True))

        def read(variable: Any) -> _Value:
            if isinstance(variable, Literal):
                return _constant(np.asarray(variable.val, variable.aval.dtype))  # pyright: ignore[reportAttributeAccessIssue]
            return values[variable]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(variable) for variable in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def emit(
        self, name: str, inputs: Sequence[_Value], shape: Shape, /, **attributes: Any
    ) -> _Value:
        """Write one operation down; one that is there already is not written again."""
        operands = tuple(self.operand(value) for value in inputs)
        key = (name, operands, repr(attributes))
        if key not in self._written:
            output = f"%{len(self.operations)}"
            self.operations.append(Operation(name, operands, output, attributes))
            self._written[key] = _Value(output, shape)
        return self._written[key]

    def operand(self, value: _Value) -> Operand:
        """How an operation refers to `value`."""
        if value.constant is None:
            assert value.name is not None
            return value.name
        array = value.constant
        if array.ndim == 0 and array.dtype == np.float32 and np.isfinite(array):
            return float(array)
        return self._name_of(array)

    def full(self, value: _Value, shape: Shape) -> _Value:
        """`value` with every axis as long as JAX has it."""
        if value.shape == shape:
            return value
        if value.constant is not None and ROWS not in shape:
            return _constant(np.broadcast_to(value.constant, _static(shape)))
        if value.constant is not None and value.constant.size == 1:
            value = _constant(value.constant.reshape(()))
        return self.emit("broadcast", [value], shape, shape=shape)

    def reshape(self, value: _Value, shape: Shape) -> _Value:
        if value.shape == shape:
            return value
        if value.constant is not None:
            return _constant(value.constant.reshape(_static(shape)))
        return self.emit("reshape", [value], shape, shape=shape)

    def transpose(self, value: _Value, axes: Sequence[int]) -> _Value:
        axes = tuple(int(axis) for axis in axes)
        if axes == tuple(range(len(axes))):
            return value
        if value.constant is not None:
            return _constant(value.constant.transpose(axes))
        return self.emit("transpose", [value], tuple(value.shape[i] for i in axes), axes=axes)

    def slice(self, value: _Value, starts: Sequence[int], stops: Sequence[int | str]) -> _Value:
        """Entries `starts` to `stops` along every axis."""
        cut = [i for i in range(len(stops)) if (starts[i], stops[i]) != (0, value.shape[i])]
        if not cut:
            return value
        if any(isinstance(value.shape[i], str) or isinstance(stops[i], str) for i in cut):
            raise self._refusal("a slice of the rows")
        if value.constant is not None:
            return _constant(value.constant[tuple(map(slice, starts, stops))])  # pyright: ignore[reportArgumentType]
        shape = list(value.shape)
        for i in cut:
            shape[i] = int(stops[i]) - starts[i]
        return self.emit(
            "slice",
            [value],
            tuple(shape),
            axes=tuple(cut),
            starts=tuple(starts[i] for i in cut),
            stops=tuple(int(stops[i]) for i in cut),
        )

    def _equation(self, equation: Any, inputs: list[_Value]) -> list[_Value]:
        name, parameters = equation.primitive.name, equation.params
        for inner in ("jaxpr", "call_jaxpr"):
            if name != "scan" and isinstance(parameters.get(inner), ClosedJaxpr):
                return self.run(parameters[inner], inputs)
        shapes = [_shape(variable.aval) for variable in equation.invars]
        outputs = [_shape(variable.aval) for variable in equation.outvars]
        if name == "scan":
            return self._scan(parameters, inputs, shapes)
        known = [value.constant for value in inputs if value.constant is not None]
        static = not any(ROWS in shape for shape in (*shapes, *outputs))
        # Entry by entry it makes no difference what JAX has broadcast already.
        entrywise = name in _ELEMENTWISE or name in ("convert_element_type", "integer_pow")
        if len(known) == len(inputs) and (static or entrywise):
            results = equation.primitive.bind(*known, **parameters)
            return list(
                map(_constant, results if equation.primitive.multiple_results else [results])
            )
        unknown = [v for v, value in zip(equation.invars, inputs, strict=True) if value.name]
        dtypes = {str(variable.aval.dtype) for variable in (*unknown, *equation.outvars)}
        if name == "copy" or (name == "convert_element_type" and len(dtypes) == 1):
            return inputs
        rule = getattr(self, f"jax_{name}", None)
        if dtypes <= {"float32", "bool"} and name in _ELEMENTWISE:
            return [self._elementwise(_ELEMENTWISE[name], inputs)]
        if not dtypes <= {"float32", "bool"} or rule is None:
            raise self._refusal(f"the JAX operation {name} of {' and '.join(sorted(dtypes))}")
        result = rule(inputs, shapes, outputs, **parameters)
        return [result] if isinstance(result, _Value) else result

    def _refusal(self, what: str) -> InputError:
        return InputError(
            f"{self._policy_name} cannot be exported to this format, because it uses {what}: "
            "use the format stablehlo, which can express everything that JAX can."
        )

    # Rules are named jax_ and the primitive. Each gets the inputs as they are, the shapes that they
    # and the results have in JAX, and the primitive's parameters.

    def _elementwise(self, name: str, inputs: Sequence[_Value]) -> _Value:
        ranked = [value.shape for value in inputs if value.shape]
        shape = (next((n for n in sizes if n != 1), 1) for sizes in zip(*ranked, strict=True))
        return self.emit(name, inputs, tuple(shape))

    def _number(self, name: str, value: _Value, number: float) -> _Value:
        return self.emit(name, [value, _constant(np.float32(number))], value.shape)

    def jax_integer_pow(self, inputs: Any, shapes: Any, outputs: Any, *, y: int) -> _Value:
        """By products: a general power is many times slower."""
        (x,) = inputs
        result, square, left = None, x, abs(y)
        while left:
            if left & 1:
                result = (
                    square if result is None else self.emit("multiply", [result, square], x.shape)
                )
            left //= 2
            square = self.emit("multiply", [square, square], x.shape) if left else square
        if result is None:
            return _constant(np.ones((1,) * len(x.shape), np.float32))
        one = _constant(np.float32(1))
        return self.emit("divide", [one, result], x.shape) if y < 0 else result

    def jax_square(self, inputs: Any, shapes: Any, outputs: Any) -> _Value:
        return self.jax_integer_pow(inputs, shapes, outputs, y=2)

    def jax_rsqrt(self, inputs: Any, shapes: Any, outputs: Any, **_: Any) -> _Value:
        root = self.emit("sqrt", inputs, inputs[0].shape)
        return self.emit("divide", [_constant(np.float32(1)), root], root.shape)

    def jax_logistic(self, inputs: Any, shapes: Any, outputs: Any, **_: Any) -> _Value:
        """(1 + tanh(x / 2)) / 2, which no x overflows."""
        half = self._number("multiply", inputs[0], 0.5)
        tanh = self.emit("tanh", [half], half.shape)
        return self._number("multiply", self._number("add", tanh, 1.0), 0.5)

    def jax_ne(self, inputs: Any, shapes: Any, outputs: Any) -> _Value:
        equal = self._elementwise("equal", inputs)
        return self.emit("logical_not", [equal], equal.shape)

    def jax_clamp(self, inputs: Any, shapes: Any, outputs: Any) -> _Value:
        low, x, high = inputs
        x = self._elementwise("maximum", [x, low])
        return self._elementwise("minimum", [x, high])

    def jax_select_n(self, inputs: Any, shapes: Any, outputs: Any) -> _Value:
        which, *cases = inputs
        if len(cases) != 2:
            raise self._refusal(f"a choice among {len(cases)} arrays")
        return self._elementwise("where", [which, cases[1], cases[0]])

    def jax_convert_element_type(
        self, inputs: Any, shapes: Any, outputs: Any, *, new_dtype: Any, **_: Any
    ) -> _Value:
        (x,) = inputs
        if new_dtype == np.dtype(bool):
            zero = self.emit("equal", [x, _constant(np.float32(0))], x.shape)
            return self.emit("logical_not", [zero], x.shape)
        return self.emit("where", [x, _constant(np.float32(1)), _constant(np.float32(0))], x.shape)

    def jax_broadcast_in_dim(
        self, inputs: Any, shapes: Any, outputs: Any, *, broadcast_dimensions: Any, **_: Any
    ) -> _Value:
        """Axes of size 1 where JAX has longer ones: those operations between arrays fill in."""
        shape: list[int | str] = [1] * len(outputs[0])
        for axis, size in zip(broadcast_dimensions, inputs[0].shape, strict=True):
            shape[axis] = size
        return self.reshape(inputs[0], tuple(shape))

    def jax_reshape(self, inputs: Any, shapes: Any, outputs: Any, **_: Any) -> _Value:
        return self.reshape(self.full(inputs[0], shapes[0]), outputs[0])

    def jax_squeeze(self, inputs: Any, shapes: Any, outputs: Any, *, dimensions: Any) -> _Value:
        kept = [size for i, size in enumerate(inputs[0].shape) if i not in dimensions]
        return self.reshape(inputs[0], tuple(kept))

    def jax_transpose(self, inputs: Any, shapes: Any, outputs: Any, *, permutation: Any) -> _Value:
        return self.transpose(inputs[0], permutation)

    def jax_pad(self, inputs: Any, shapes: Any, outputs: Any, *, padding_config: Any) -> _Value:
        """More of one number at the ends of axes."""
        x, filling = self.full(inputs[0], shapes[0]), inputs[1]
        for axis, (before, after, inside) in enumerate(padding_config):
            if inside or min(before, after) < 0:
                raise self._refusal("a padding that goes inside or takes away")
            parts = [x]
            for count, place in ((before, 0), (after, 1)):
                if count:
                    block = (*x.shape[:axis], int(count), *x.shape[axis + 1 :])
                    number = self.reshape(filling, (1,) * len(block))
                    parts.insert(len(parts) if place else 0, self.full(number, block))
            if len(parts) > 1:
                longer = int(x.shape[axis]) + int(before) + int(after)
                shape = (*x.shape[:axis], longer, *x.shape[axis + 1 :])
                x = self.emit("concatenate", parts, shape, axis=axis)
        return x

    def jax_concatenate(self, inputs: Any, shapes: Any, outputs: Any, *, dimension: int) -> _Value:
        parts = [self.full(value, shape) for value, shape in zip(inputs, shapes, strict=True)]
        return self.emit("concatenate", parts, outputs[0], axis=int(dimension))

    def jax_stack(self, inputs: Any, shapes: Any, outputs: Any, *, axis: int, **_: Any) -> _Value:
        parts = []
        for value, shape in zip(inputs, shapes, strict=True):
            longer = (*shape[:axis], 1, *shape[axis:])
            parts.append(self.reshape(self.full(value, shape), longer))
        return self.emit("concatenate", parts, outputs[0], axis=int(axis))

    def jax_slice(
        self,
        inputs: Any,
        shapes: Any,
        outputs: Any,
        *,
        start_indices: Any,
        limit_indices: Any,
        strides: Any,
    ) -> _Value:
        if any(step != 1 for step in strides or ()):
            raise self._refusal("a slice that leaves entries out")
        return self.slice(self.full(inputs[0], shapes[0]), start_indices, _sizes(limit_indices))

    def jax_split(self, inputs: Any, shapes: Any, outputs: Any, *, sizes: Any, axis: int) -> Any:
        x = self.full(inputs[0], shapes[0])
        ends = np.cumsum(sizes).tolist()
        pieces = []
        for size, end in zip(sizes, ends, strict=True):
            starts, stops = [0] * len(x.shape), list(x.shape)
            starts[axis], stops[axis] = end - int(size), end
            pieces.append(self.slice(x, starts, stops))
        return pieces

    def _reduced(self, name: str, inputs: Any, shapes: Any, outputs: Any, axes: Any) -> _Value:
        x = self.full(inputs[0], shapes[0])
        return self.emit(name, [x], outputs[0], axes=tuple(int(axis) for axis in axes))

    def jax_reduce_sum(
        self, inputs: Any, shapes: Any, outputs: Any, *, axes: Any, **_: Any
    ) -> _Value:
        return self._reduced("sum", inputs, shapes, outputs, axes)

    def jax_reduce_max(
        self, inputs: Any, shapes: Any, outputs: Any, *, axes: Any, **_: Any
    ) -> _Value:
        return self._reduced("max", inputs, shapes, outputs, axes)

    def jax_reduce_min(
        self, inputs: Any, shapes: Any, outputs: Any, *, axes: Any, **_: Any
    ) -> _Value:
        return self._reduced("min", inputs, shapes, outputs, axes)

    def jax_dot_general(
        self, inputs: Any, shapes: Any, outputs: Any, *, dimension_numbers: Any, **_: Any
    ) -> _Value:
        """As a product of matrices: axes go to batch, row, inner and to batch, inner, column."""
        (left_contracted, right_contracted), (left_batch, right_batch) = dimension_numbers
        left, right = (self.full(*pair) for pair in zip(inputs, shapes, strict=True))
        rows = [i for i in range(len(left.shape)) if i not in (*left_contracted, *left_batch)]
        columns = [i for i in range(len(right.shape)) if i not in (*right_contracted, *right_batch)]
        batch = tuple(left.shape[i] for i in left_batch)
        row_sizes = tuple(left.shape[i] for i in rows)
        column_sizes = tuple(right.shape[i] for i in columns)
        if not batch and len(columns) > 1 and ROWS in column_sizes:
            dimensions = (right_contracted, left_contracted), ((), ())
            swapped = self.jax_dot_general(
                inputs[::-1], shapes[::-1], outputs, dimension_numbers=dimensions
            )
            places = range(len(columns) + len(rows))
            return self.transpose(swapped, [*places[len(columns) :], *places[: len(columns)]])
        inner = self._size(left.shape[i] for i in left_contracted)
        # Without a batch, one matrix serves all rows, however many axes they have.
        folded = row_sizes if not batch and rows else (self._size(row_sizes),)
        wide = self._size(column_sizes)
        left = self.transpose(left, [*left_batch, *rows, *left_contracted])
        right = self.transpose(right, [*right_batch, *right_contracted, *columns])
        left = self.reshape(left, (*batch, *folded, inner))
        right = self.reshape(right, (*batch, inner, wide))
        product = self.emit("matmul", [left, right], (*batch, *folded, wide))
        return self.reshape(product, (*batch, *row_sizes, *column_sizes))

    def _size(self, sizes: Any) -> int | str:
        sizes = tuple(sizes)
        if ROWS not in sizes:
            return math.prod(_static(sizes))
        if sizes != (ROWS,):
            raise self._refusal("a product of matrices that mixes rows with other axes")
        return ROWS

    def _scan(
        self, parameters: Any, inputs: Sequence[_Value], shapes: Sequence[Shape]
    ) -> list[_Value]:
        """The steps one after the other; what each reads of an array is a slice of it."""
        consts, carried = parameters["num_consts"], parameters["num_carry"]
        constants, carry = inputs[:consts], list(inputs[consts : consts + carried])
        scanned = list(zip(inputs, shapes, strict=True))[consts + carried :]
        indices = range(parameters["length"])
        stacked: dict[int, list[_Value]] = {}
        for index in reversed(indices) if parameters["reverse"] else indices:
            entries = []
            for value, shape in scanned:
                whole = self.full(value, shape)
                starts, stops = [index, *[0] * (len(shape) - 1)], [index + 1, *shape[1:]]
                entries.append(self.reshape(self.slice(whole, starts, stops), shape[1:]))
            results = self.run(parameters["jaxpr"], [*constants, *carry, *entries])
            carry, stacked[index] = results[:carried], results[carried:]
        inner = [_shape(aval) for aval in parameters["jaxpr"].out_avals[carried:]]
        collected = []
        for place, shape in enumerate(inner):
            whole = [self.full(stacked[index][place], shape) for index in indices]
            parts = [self.reshape(value, (1, *shape)) for value in whole]
            collected.append(self.emit("concatenate", parts, (len(indices), *shape), axis=0))
        return [*carry, *collected]


_ELEMENTWISE = {
    "add": "add",
    "add_any": "add",
    "sub": "subtract",
    "mul": "multiply",
    "div": "divide",
    "max": "maximum",
    "min": "minimum",
    "pow": "power",
    "neg": "negative",
    "abs": "absolute",
    "sign": "sign",
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "tanh": "tanh",
    "sin": "sin",
    "cos": "cos",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "and": "logical_and",
    "or": "logical_or",
    "not": "logical_not",
}


def _constant(value: Any) -> _Value:
    array = np.asarray(value, order="C")
    return _Value(None, array.shape, array)


def _shape(aval: Any) -> Shape:
    return _sizes(aval.shape)


def _sizes(sizes: Sequence[Any]) -> Shape:
    return tuple(str(size) if jax.export.is_symbolic_dim(size) else int(size) for size in sizes)


def _static(shape: Shape) -> tuple[int, ...]:
    """A shape without `ROWS`."""
    return tuple(map(int, shape))


def _needed(operations: Sequence[Operation], output: str) -> list[Operation]:
    """The operations that `output` depends on."""
    wanted: set[Operand] = {output}
    kept: list[Operation] = []
    for step in reversed(operations):
        if step.output in wanted:
            kept.append(step)
            wanted.update(step.inputs)
    return kept[::-1]
