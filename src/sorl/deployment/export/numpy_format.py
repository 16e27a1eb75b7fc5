"""The NumPy format: the policy's arrays, what is done with them, and one module that does it.

    weights.safetensors    arrays
    programs.json          operations between them, see `array_program`, for every number of steps
    numpy_policy.py        a copy of the file beside this one; it needs nothing but NumPy

Programs are data for one short module that is the same for every policy, rather than source code
written anew for each: so a reader has one file to trust, and whatever is damaged can be told.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sorl.deployment.export import numpy_policy
from sorl.deployment.export.array_program import ArrayProgram
from sorl.deployment.export.graphs import Contents, Graph, Outputs
from sorl.deployment.export.tracing import Tracer
from sorl.units import Units


def write(folder: Path, contents: Contents) -> None:
    """Write the three files.

    Raises:
        InputError: the policy does what an array program cannot express.
    """
    import safetensors.numpy

    tracer = Tracer(contents.policy, contents.spec)
    texts, programs = [], []
    for steps in sorted({graph.steps for graph in contents.graphs}):
        graph = Graph(steps, chooses=True)
        scored = graph in contents.graphs and contents.scores(graph)
        score = tracer.score(contents.verifier, steps=steps) if scored else None
        candidates = tracer.candidates(steps=steps)
        noise_shape = json.dumps(contents.policy.noise_shape(steps))
        programs += [candidates, score]
        texts.append(
            f'{{"steps": {steps}, "noise_shape": {noise_shape},\n'
            f'"candidates": {_text(candidates)},\n"score": {_text(score)}}}'
        )
    head: dict[str, Any] = {
        "observation_size": contents.spec.observation_size,
        "action_size": contents.spec.action_size,
        "steps": contents.default.steps,
        "best_of": contents.default.best_of,
        "choice": str(contents.choice),
    }
    if contents.policy.units.maps_actions:
        head["units"] = action_map(contents.policy.units)
    lines = [f"{json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    body = ",\n".join(texts)
    text = "\n".join(["{", *lines, f'"programs": [\n{body}', "]}", ""])
    (folder / "programs.json").write_text(text)
    (folder / "weights.safetensors").write_bytes(safetensors.numpy.save(tracer.constants(programs)))
    (folder / "numpy_policy.py").write_bytes(Path(numpy_policy.__file__).read_bytes())


def load(folder: Path) -> Callable[[Graph, np.ndarray, np.ndarray], Outputs]:
    """What was written, as functions from observations and noise."""
    policy = numpy_policy.Policy(folder)

    def run(graph: Graph, observation: np.ndarray, noise: np.ndarray) -> Outputs:
        return Outputs(*policy.from_noise(observation, noise, steps=graph.steps))

    return run


def file_name(graph: Graph) -> str:
    """Name of the file that a graph is in."""
    return "programs.json"


def action_map(units: Units) -> dict[str, list[float]]:
    """From actions in [-1, 1] to the user's, as `sorl.units` does."""
    return {
        "middle": units.middle.tolist(),
        "half_width": units.half_width.tolist(),
        "low": list(units.action_low),
        "high": list(units.action_high),
    }


def _text(program: ArrayProgram | None) -> str:
    """JSON with one operation a line, so that people can read it."""
    if program is None:
        return "null"
    lines: list[Any] = [
        [step.output, step.name, step.inputs, step.attributes] for step in program.operations
    ]
    operations = ",\n".join(f"  {json.dumps(line)}" for line in lines)
    return f'{{"output": {json.dumps(program.output)}, "operations": [\n{operations}]}}'
