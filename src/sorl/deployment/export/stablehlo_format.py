"""The StableHLO format: one file for each graph, such as `4xN.stablehlo`, weights inside.

`jax.export` serialises it for CPUs and NVIDIA GPUs; batch and candidates are symbolic, so one file
serves any number of both. To load it, in a process that has JAX and no sorl:

    graph = jax.export.deserialize(bytearray(Path("4xN.stablehlo").read_bytes()))
    answer = graph.call(observation, noise)
    answer["action"]
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from sorl.deployment.export.graphs import Contents, Graph, Outputs, decide
from sorl.errors import InputError

try:
    import flatbuffers  # noqa: F401
except ImportError as error:
    raise InputError(
        f"The format stablehlo needs a package that is not installed ({error}): "
        "pip install 'sorl[stablehlo]'."
    ) from error

PLATFORMS = ("cpu", "cuda")


def write(folder: Path, contents: Contents) -> None:
    """Write one file a graph."""
    spec = contents.spec
    for graph in contents.graphs:
        scope = export.SymbolicScope()
        inputs = [
            jax.ShapeDtypeStruct(
                export.symbolic_shape(", ".join(map(str, shape)), scope=scope), jnp.float32
            )
            for shape in graph.inputs(contents.policy, spec).values()
        ]

        def function(
            observation: jax.Array, noise: jax.Array, graph: Graph = graph
        ) -> dict[str, jax.Array]:
            answer = decide(
                contents.policy, graph, contents.verifier, contents.choice, observation, noise
            )
            return {name: getattr(answer, name) for name in graph.outputs(spec, contents.choice)}

        # GPUs would multiply float32 matrices in less than float32 otherwise.
        with jax.default_matmul_precision("highest"), _without_source_paths():
            exported = export.export(jax.jit(function), platforms=PLATFORMS)(*inputs)
        (folder / file_name(graph)).write_bytes(exported.serialize())


def load(folder: Path) -> Callable[[Graph, np.ndarray, np.ndarray], Outputs]:
    """What was written, as functions from observations and noise."""
    functions: dict[Graph, Callable[..., dict[str, jax.Array]]] = {}

    def run(graph: Graph, observation: np.ndarray, noise: np.ndarray) -> Outputs:
        if graph not in functions:
            content = bytearray((folder / file_name(graph)).read_bytes())
            functions[graph] = jax.jit(export.deserialize(content).call)
        answer = functions[graph](observation, noise)
        found = {name: np.asarray(array) for name, array in answer.items()}
        candidates = found.get("candidates", found["action"][:, None])
        return Outputs(found["action"], candidates, found.get("scores"))

    return run


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """JAX would write the paths of the source files of this machine into what it exports."""
    limit = jax.config.jax_traceback_in_locations_limit  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)


def file_name(graph: Graph) -> str:
    """Name of a graph's file."""
    return f"{graph}.stablehlo"
