"""`sorl export RUN`: write a policy for machines without JAX or without sorl."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro


def run(arguments: list[str]) -> None:
    """Parse and export."""
    tyro.cli(_export, prog="sorl export", args=arguments)


def _export(
    run: tyro.conf.Positional[Path],
    format: Literal["onnx", "stablehlo", "numpy"],
    out: Path,
    budgets: tuple[str, ...] | None = None,
    verifier: str = "own",
    choice: str = "own",
    task: int | None = None,
    seed: int | None = None,
) -> None:
    """Write a policy as ONNX, StableHLO or plain NumPy, and check that it acts alike.

    Noise is an input of what is written. Numbers of steps are fixed when it is exported; a budget
    with best-of above 1 puts the choice in, for any number of candidates, and the critic if it has
    a say.

    Args:
        run: folder of a run or of a policy.
        format: onnx (any runtime of ONNX), stablehlo (JAX without sorl), numpy (NumPy alone).
        out: folder to make; an earlier export there is replaced if nothing else lies beside it.
        budgets: budgets to export; without it 1x1 4x1 4x8 and the algorithm's own, if servable.
        verifier: how the critic's heads are combined: own (as the method does), mean, min, or such
            as mean-0.5std.
        choice: how the scores decide: own (as the method does), best (the highest), central (the
            candidate nearest to all others, without the critic), or such as typical-2 (the higher
            of the two most central ones).
        task: which task's policy of a run; without it the lowest.
        seed: which seed's policy of that task; without it the lowest.
    """
    from sorl.deployment.export.exporting import export
    from sorl.deployment.policy import Policy
    from sorl.types import Budget

    wanted = None if budgets is None else [Budget.parse(text) for text in budgets]
    policy = Policy.load(run, task=task, seed=seed)
    manifest = export(policy, out, format=format, budgets=wanted, verifier=verifier, choice=choice)
    for graph in manifest["graphs"]:
        found = graph["difference"]
        scores = "" if found["scores"] is None else f", of scores {found['scores']:.1e}"
        print(
            f"{graph['name']}: largest difference of actions {found['actions']:.1e}{scores} "
            f"({found['observations']:,} observations, best of {found['best_of']})"
        )
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    print(f"wrote {out}: {policy.member} as {format}, {size / 1e6:.1f} MB")
