"""Exports a policy into a folder, and checks what it has written against the policy itself."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import sorl
from sorl import algorithms, choices, files, inference
from sorl.choices import Choice
from sorl.deployment.export.check import OBSERVATIONS, TOLERANCE, compare
from sorl.deployment.export.graphs import Contents, Graph, graphs_of
from sorl.deployment.policy import Policy
from sorl.errors import InputError
from sorl.inference import Strategy, servable_budgets
from sorl.types import Budget
from sorl.units import USUAL
from sorl.verifiers import OWN, Verifier

Format = Literal["onnx", "stablehlo", "numpy"]

FORMAT = 1
# Whatever runs an earlier format might not know that actions have units of their own.
FORMAT_WITH_UNITS = 2
MANIFEST = "export.json"


def export(
    policy: Policy,
    out: Path | str,
    *,
    format: Format,
    budgets: Iterable[Budget] | None = None,
    verifier: Verifier | str = OWN,
    choice: Choice | str = choices.OWN,
) -> dict[str, Any]:
    """Write `policy` in another format into the folder `out`, an earlier export there replaced.

    What was written is run and compared with the policy, see `sorl.deployment.export.check`.

    Args:
        policy: the policy.
        out: folder to make.
        format: onnx, stablehlo or numpy; each has a file beside this one that tells what it is.
        budgets: which numbers of steps, and where best-of is above 1, for any number of candidates;
            when None 1x1, 4x1, 4x8 and the algorithm's own, as far as they can be served.
        verifier: how the critic's heads become a score.
        choice: how the scores decide, see `sorl.choices`. The critic is left out where it has no
            say, as with central.

    Returns:
        What export.json holds: versions, origin, graphs with inputs and outputs and the largest
        differences found, digests of the files.

    Raises:
        InputError: the policy cannot serve a budget or be written in this format, a package is
            missing, the choice is softmax, `out` is something else or holds something besides an
            export, or the export differs from the policy by more than
            `sorl.deployment.export.check.TOLERANCE`. `out` is as it was then.
    """
    out = Path(out).resolve()
    if format not in get_args(Format):
        raise InputError(f"There is no format {format!r}: use {', '.join(get_args(Format))}.")
    if out.exists():
        _check_replaceable(out)
    if isinstance(verifier, str):
        verifier = Verifier.parse(verifier)
    if isinstance(choice, str):
        choice = Choice.parse(choice)
    if choice.rule == "softmax":
        raise InputError(
            f"The choice {choice} draws at random and an export is a plain function of its noise: "
            "use best, central or such as typical-2."
        )
    asked = sorted(set(servable_budgets(policy.algorithm) if budgets is None else budgets))
    if not asked:
        raise InputError("There is no budget to export: give at least one, such as 4x1.")
    for budget in asked:
        inference.check(policy.module, budget, Strategy(verifier=verifier, choice=choice))
    own, graphs = policy.algorithm.own_budget, graphs_of(asked)
    served = any(g.steps == own.steps and (g.chooses or own.best_of == 1) for g in graphs)
    contents = Contents(
        policy.module,
        policy.spec,
        graphs,
        verifier,
        inference.resolved(policy.module, choice),
        own if served else asked[0],
    )
    module = importlib.import_module(f"sorl.deployment.export.{format}_format")
    with files.explained("write", out), files.new_folder(out) as folder:
        module.write(folder, contents)
        manifest: dict[str, Any] = {
            "format": FORMAT if policy.units == USUAL else FORMAT_WITH_UNITS,
            "kind": format,
            "sorl": sorl.__version__,
            "algorithm": algorithms.describe(policy.algorithm),
            "spec": policy.spec.describe(),
            "member": policy.member._asdict(),
            "update": policy.update,
            "verifier": str(verifier),
            "choice": str(contents.choice),
            **({} if policy.units == USUAL else {"units": policy.units.describe()}),
            "files": {path.name: _described(path) for path in sorted(folder.iterdir())},
        }
        files.write_json(folder / MANIFEST, manifest)
        run = module.load(folder)
        manifest["graphs"] = [
            {
                "name": str(graph),
                "steps": graph.steps,
                "file": module.file_name(graph),
                "inputs": graph.inputs(policy.module, policy.spec),
                "outputs": graph.outputs(policy.spec, contents.choice),
                "difference": {"observations": OBSERVATIONS, "tolerance": TOLERANCE}
                | compare(contents, graph, run, candidates=_most(asked, graph))._asdict(),
            }
            for graph in contents.graphs
        ]
        files.write_json(folder / MANIFEST, manifest)
    return manifest


def _check_replaceable(out: Path) -> None:
    """Refuse what is no export of ours, and what the user has put beside one."""
    try:
        manifest = files.read_json(out / MANIFEST)
    except InputError:
        manifest = {}
    ours = manifest.get("files")
    known = manifest.get("format") in (FORMAT, FORMAT_WITH_UNITS)
    if not (known and manifest.get("kind") in get_args(Format) and isinstance(ours, dict)):
        raise InputError(f"{out} is there and is no export: choose another folder.")
    for path in sorted(out.iterdir()):
        ordinary = path.is_file() and path.name in (MANIFEST, *ours)
        if not ordinary and path.name != "__pycache__":
            raise InputError(
                f"{path} is no part of the export beside it, which would be replaced: move it, or "
                "choose another folder."
            )


def _most(budgets: Iterable[Budget], graph: Graph) -> int:
    return max(budget.best_of for budget in budgets if graph in graphs_of([budget]))


def _described(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
