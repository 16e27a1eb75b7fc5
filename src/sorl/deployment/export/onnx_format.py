"""The ONNX format: one self-contained file for each graph, such as `4xN.onnx`, weights inside.

It is built from array programs, operation by operation, with the choice in the graph and the critic
if it has a say; batch and candidates are dynamic axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sorl
from sorl.choices import Choice
from sorl.deployment.export.array_program import ROWS, ArrayProgram, Operand, Shape
from sorl.deployment.export.graphs import Contents, Graph, Outputs
from sorl.deployment.export.tracing import Tracer
from sorl.errors import InputError
from sorl.units import Units

try:
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise InputError(
        f"The format onnx needs packages that are not installed ({error}): "
        "pip install 'sorl[onnx]'."
    ) from error

# What runtimes of the last two years read.
OPSET = 18
IR_VERSION = 9

_OPERATORS = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "divide": "Div",
    "maximum": "Max",
    "minimum": "Min",
    "power": "Pow",
    "negative": "Neg",
    "absolute": "Abs",
    "sign": "Sign",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
    "sin": "Sin",
    "cos": "Cos",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "equal": "Equal",
    "logical_and": "And",
    "logical_or": "Or",
    "logical_not": "Not",
    "where": "Where",
    "matmul": "MatMul",
    "sum": "ReduceSum",
    "max": "ReduceMax",
    "min": "ReduceMin",
}


def write(folder: Path, contents: Contents) -> None:
    """Write one file a graph.

    Raises:
        InputError: the policy does what an array program cannot express.
    """
    tracer = Tracer(contents.policy, contents.spec)
    for graph in contents.graphs:
        model = _model(tracer, contents, graph)
        onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString(deterministic=True)
        (folder / file_name(graph)).write_bytes(content)


def load(folder: Path) -> Callable[[Graph, np.ndarray, np.ndarray], Outputs]:
    """What was written, as functions from observations and noise."""
    sessions: dict[Graph, onnxruntime.InferenceSession] = {}

    def run(graph: Graph, observation: np.ndarray, noise: np.ndarray) -> Outputs:
        if graph not in sessions:
            sessions[graph] = onnxruntime.InferenceSession(
                folder / file_name(graph), providers=["CPUExecutionProvider"]
            )
        names = [output.name for output in sessions[graph].get_outputs()]
        answer = sessions[graph].run(names, {"observation": observation, "noise": noise})
        found = {name: np.asarray(array) for name, array in zip(names, answer, strict=True)}
        candidates = found.get("candidates", found["action"][:, None])
        return Outputs(found["action"], candidates, found.get("scores"))

    return run


def file_name(graph: Graph) -> str:
    """Name of a graph's file."""
    return f"{graph}.onnx"


def _model(tracer: Tracer, contents: Contents, graph: Graph) -> onnx.ModelProto:
    """The file's content: candidates for every row, then the choice among them."""
    spec, steps = contents.spec, graph.steps
    shape = contents.policy.noise_shape(steps)
    candidates = tracer.candidates(steps=steps)
    score = tracer.score(contents.verifier, steps=steps) if contents.scores(graph) else None
    writer = _Writer(tracer.constants([candidates, score]))

    writer.node("Shape", ["noise"], "leading", start=0, end=2)
    writer.node("ReduceProd", ["leading"], ROWS, keepdims=1)
    writer.reshape("noise", (ROWS, *shape), "noise_rows")
    units = contents.policy.units
    if not graph.chooses:
        target = "network_action" if units.maps_actions else "action"
        writer.program(candidates, {"noise": "noise_rows"}, target)
        _stretch(writer, units, target, "action")
    else:
        size = writer.integers([spec.observation_size])
        writer.node("Unsqueeze", ["observation", writer.integers([1])], "observation_once")
        writer.node("Concat", ["leading", size], "repeated_shape", axis=0)
        writer.node("Expand", ["observation_once", "repeated_shape"], "repeated")
        writer.reshape("repeated", (ROWS, spec.observation_size), "observation_rows")
        given = {"noise": "noise_rows", "observation": "observation_rows"}
        writer.program(candidates, given, "action_rows")
        if score is not None:
            writer.program(score, {**given, "action": "action_rows"}, "score_rows")
            writer.node("Reshape", ["score_rows", "leading"], "scores")
        size = writer.integers([spec.action_size])
        writer.node("Concat", ["leading", size], "candidates_shape", axis=0)
        target = "network_candidates" if units.maps_actions else "candidates"
        writer.node("Reshape", ["action_rows", "candidates_shape"], target)
        _choose(writer, contents.choice, target)
        _stretch(writer, units, target, "candidates")
        writer.node("GatherND", ["candidates", "chosen"], "action", batch_dims=1)

    inputs, outputs = (
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
            for name, sizes in it.items()
        ]
        for it in (graph.inputs(contents.policy, spec), graph.outputs(spec, contents.choice))
    )
    return helper.make_model(
        helper.make_graph(writer.nodes, str(graph), inputs, outputs, writer.initializers),
        producer_name="sorl",
        producer_version=sorl.__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def _stretch(writer: _Writer, units: Units, actions: str, output: str) -> None:
    """From actions in [-1, 1] to the user's, where they differ."""
    if not units.maps_actions:
        return
    low, high = (np.asarray(bound, np.float32) for bound in (units.action_low, units.action_high))
    half_width = writer.array("units half_width", units.half_width)
    middle = writer.array("units middle", units.middle)
    writer.node("Mul", [actions, half_width], f"{output} stretched")
    writer.node("Add", [f"{output} stretched", middle], f"{output} moved")
    bounds = writer.array("units low", low), writer.array("units high", high)
    writer.node("Max", [f"{output} moved", bounds[0]], f"{output} bounded")
    writer.node("Min", [f"{output} bounded", bounds[1]], f"{output} inside")
    # At the ends the bounds themselves, which arithmetic may miss by a digit.
    for sign, comparison, bound, before, after in (
        (-1.0, "LessOrEqual", bounds[0], f"{output} inside", f"{output} from low"),
        (1.0, "GreaterOrEqual", bounds[1], f"{output} from low", output),
    ):
        writer.node(comparison, [actions, writer.number(sign)], f"{after} at end")
        writer.node("Where", [f"{after} at end", bound, before], after)


def _choose(writer: _Writer, choice: Choice, candidates: str) -> None:
    """From `candidates` and `scores` to `chosen`, as `Choice.choose` does; ties go to the first."""
    if choice.rule == "best":
        writer.node("ArgMax", ["scores"], "chosen", axis=1, keepdims=1)
        return
    first, second, third = (writer.integers([axis]) for axis in (1, 2, 3))
    writer.node("Unsqueeze", [candidates, second], "these")
    writer.node("Unsqueeze", [candidates, first], "others")
    writer.node("Sub", ["these", "others"], "between")
    writer.node("Mul", ["between", "between"], "squares")
    writer.node("ReduceSum", ["squares", third], "squared_distances", keepdims=0)
    writer.node("Sqrt", ["squared_distances"], "distances")
    writer.node("ReduceMean", ["distances", second], "remoteness", keepdims=0)
    if choice.rule == "central":
        writer.node("ArgMin", ["remoteness"], "chosen", axis=1, keepdims=1)
        return
    writer.node("Unsqueeze", ["remoteness", second], "this_remoteness")
    writer.node("Unsqueeze", ["remoteness", first], "other_remoteness")
    writer.node("Less", ["other_remoteness", "this_remoteness"], "is_nearer")
    writer.node("Cast", ["is_nearer"], "ones", to=TensorProto.FLOAT)
    writer.node("ReduceSum", ["ones", second], "nearer", keepdims=0)
    writer.node("Less", ["nearer", writer.number(choice.parameter)], "kept")
    writer.node("Where", ["kept", "scores", writer.number(-np.inf)], "kept_scores")
    writer.node("ArgMax", ["kept_scores"], "chosen", axis=1, keepdims=1)


class _Writer:
    """Collects nodes and initializers; every name stands for one array."""

    def __init__(self, constants: dict[str, np.ndarray]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._defined: set[str] = set()
        for name, array in constants.items():
            self._define(name, array)

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Write one node down."""
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))

    def integers(self, values: Sequence[int]) -> str:
        """The name of a list of integers."""
        return self._define(f"integers {list(values)}", np.asarray(values, np.int64))

    def number(self, value: float) -> str:
        """The name of a float32 number."""
        return self._define(f"number {value!r}", np.asarray(value, np.float32))

    def array(self, name: str, array: np.ndarray) -> str:
        """The name of an array."""
        return self._define(name, array)

    def reshape(self, name: str, shape: Shape, output: str) -> None:
        """Reshape to a shape that may have `ROWS` in it."""
        self.node("Reshape", [name, self._shape(shape)], output)

    def program(self, program: ArrayProgram, given: dict[str, str], output: str) -> None:
        """Write a program's operations down, its inputs and its result renamed."""
        names = {**given, program.output: output}

        def operand(entry: Operand) -> str:
            if isinstance(entry, str):
                return names.get(entry, entry)
            return self.number(entry)

        if program.output in program.inputs:
            self.node("Identity", [given.get(program.output, program.output)], output)
        for step in program.operations:
            if step.output not in names:
                names[step.output] = f"{output}/{step.output}"
            inputs = [operand(entry) for entry in step.inputs]
            self._operation(step.name, inputs, names[step.output], step.attributes)

    def _operation(
        self, name: str, inputs: list[str], output: str, attributes: dict[str, Any]
    ) -> None:
        if name == "transpose":
            self.node("Transpose", inputs, output, perm=attributes["axes"])
        elif name == "reshape":
            self.reshape(inputs[0], attributes["shape"], output)
        elif name == "broadcast":
            self.node("Expand", [*inputs, self._shape(attributes["shape"])], output)
        elif name == "concatenate":
            self.node("Concat", inputs, output, axis=attributes["axis"])
        elif name == "slice":
            places = [self.integers(attributes[key]) for key in ("starts", "stops", "axes")]
            self.node("Slice", [*inputs, *places], output)
        elif name in ("sum", "max", "min"):
            axes = self.integers(attributes["axes"])
            self.node(_OPERATORS[name], [*inputs, axes], output, keepdims=0)
        else:
            self.node(_OPERATORS[name], inputs, output)

    def _shape(self, shape: Shape) -> str:
        """The name of a shape, put together when the graph runs if it has `ROWS` in it."""
        if ROWS not in shape:
            return self.integers([int(size) for size in shape])
        if shape == (ROWS,):
            return ROWS
        name = f"shape {list(shape)}"
        if name not in self._defined:
            self._defined.add(name)
            parts = [ROWS if size == ROWS else self.integers([int(size)]) for size in shape]
            self.node("Concat", parts, name, axis=0)
        return name

    def _define(self, name: str, array: np.ndarray) -> str:
        if name not in self._defined:
            self._defined.add(name)
            self.initializers.append(numpy_helper.from_array(array, name))
        return name
