"""`make bench`: every benchmark in turn, each in a process of its own, into benchmarks/results.

    python -m benchmarks [--only startup acting] [--seeds 1 4]

It writes `<machine>.json`, in which every part keeps what it measured last and when, and
`<machine>.md`, its tables. The growth of cost has a page of its own, `python -m benchmarks.growth`;
exports, streaming and serving print theirs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tyro

from benchmarks import startup
from sorl import platform
from sorl.files import write_json, write_text
from sorl.provenance import provenance

RESULTS = Path(__file__).parent / "results"


def _parts() -> list[dict[str, Any]]:
    from benchmarks import parts

    return parts.run()


def _evaluation() -> list[dict[str, Any]]:
    from benchmarks import evaluation

    return [evaluation.run(evaluation.Arguments())]


def _generation() -> list[dict[str, Any]]:
    from benchmarks import generation

    return generation.run(generation.Arguments())


def _acting() -> list[dict[str, Any]]:
    from benchmarks import acting

    return acting.run(acting.Arguments())


def _bfloat16() -> list[dict[str, Any]]:
    from benchmarks import training

    arithmetics = ("float32", "bfloat16")
    cases = [training.Arguments(("sorl",), (1, 4), arithmetic) for arithmetic in arithmetics]
    return [row for case in cases for row in training.run(case)]


def _training(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    from benchmarks import training

    return training.run(training.Arguments(seeds=seeds))


PARTS: Mapping[str, Callable[[], list[dict[str, Any]]]] = {
    "startup": startup.run,
    "acting": _acting,
    "evaluation": _evaluation,
    "generation": _generation,
    "parts": _parts,
    "bfloat16": _bfloat16,
}
TRAINING = "training"


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """The rows of a part as Markdown."""
    from benchmarks import parts, training

    own = {"startup": startup, "parts": parts, "bfloat16": training, "training": training}
    if name in own:
        return own[name].table(rows)
    head = list(rows[0])
    return [
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
        *("| " + " | ".join(_text(row[key]) for key in head) + " |" for row in rows),
    ]


def page(found: Mapping[str, Any]) -> str:
    """The tables of all parts."""
    lines = []
    for name in (*PARTS, TRAINING):
        if name in found:
            part = found[name]
            machine, versions = part["machine"], part["versions"]
            lines += [
                f"## {name}",
                "",
                f"{machine['processor']}, {machine['cores']} cores, {', '.join(machine['devices'])}"
                f"; {part['created'][:10]}, load {part['load']:.1f} before it began; jax "
                f"{versions['jax']}, sorl {versions['sorl']}.",
                "",
                *table(name, part["rows"]),
                "",
            ]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _machine_name() -> str:
    machine = provenance()["machine"]
    gpus = [kind for kind in machine["devices"] if kind != "cpu"]
    name = gpus[0] if gpus else f"{machine['processor']}-{machine['cores']}-cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _measure(name: str, path: Path, seeds: tuple[int, ...]) -> None:
    """Measure a part in this process, and put it into the file."""
    platform.prepare()
    load = os.getloadavg()[0]
    print(f"== {name}", flush=True)
    rows = _training(seeds) if name == TRAINING else PARTS[name]()
    found = json.loads(path.read_text()) if path.exists() else {}
    found[name] = {**provenance(), "load": load, "rows": rows}
    write_json(path, found)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    only: tuple[str, ...] = (*PARTS, TRAINING)
    seeds: tuple[int, ...] = (1, 4, 8)
    """Numbers of seeds that every algorithm trains together."""
    in_this_process: bool = False
    """Measure here what `only` names; without it every part gets a process of its own."""
    redraw: bool = False
    """Write the tables again from the JSON file that is there."""


def main() -> None:
    """Measure and write."""
    arguments = tyro.cli(Arguments, description=__doc__)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{_machine_name()}.json"
    for name in () if arguments.redraw else arguments.only:
        if arguments.in_this_process:
            _measure(name, path, arguments.seeds)
            continue
        command = [sys.executable, "-m", "benchmarks", "--in-this-process", "--only", name]
        subprocess.run([*command, "--seeds", *map(str, arguments.seeds)], check=True)
    write_text(path.with_suffix(".md"), page(json.loads(path.read_text())))
    print(path.with_suffix(".md"))


if __name__ == "__main__":
    main()
