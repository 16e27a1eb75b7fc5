"""Tables 3 to 5: hyperparameters, read from the code itself, so that they cannot drift from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from sorl import algorithms
from sorl.data.names import default_task
from sorl.experiments.cells import cell
from sorl.experiments.experiment import Experiment
from sorl.experiments.rows import Rows
from sorl.experiments.scales import PAPER_ENVIRONMENTS, Scale
from sorl.experiments.table1 import METHODS
from sorl.jobs.grid import text


def table(rows: Rows, scale: Scale) -> str:
    """What is shared, what depends on the environment, and what this scale chooses otherwise."""
    return "\n\n".join(
        [
            "**Table 3: hyperparameters of SORL that all environments share**",
            _shared(scale),
            "**Table 4: hyperparameters of each environment**",
            _by_environment(scale),
            "**Table 5: hyperparameters of the other methods**",
            _others(scale),
        ]
    )


def _varying(method: str) -> list[str]:
    """Fields whose published values depend on the environment, in the order of the class."""
    named = {field for preset in algorithms.get(method).presets.values() for field in preset}
    return [name for name in _fields(method) if name in named]


def _fields(method: str) -> dict[str, Any]:
    fields = dataclasses.fields(algorithms.get(method))  # pyright: ignore[reportArgumentType]
    return {field.name: field.default for field in fields}


def _used(method: str, scale: Scale, environment: str) -> Any:
    return cell(scale, environment, (default_task(environment),), method).algorithm


def _shared(scale: Scale) -> str:
    used = _used("sorl", scale, PAPER_ENVIRONMENTS[0])
    lines = ["| | value |", "| --- | --- |"]
    rows = {
        "updates": f"{scale.updates:,}",
        "batch size": scale.batch_size,
        "arithmetic": scale.arithmetic,
        "seeds": scale.seeds,
        **{name: getattr(used, name) for name in _fields("sorl") if name not in _varying("sorl")},
    }
    return "\n".join([*lines, *(f"| {name} | {_value(value)} |" for name, value in rows.items())])


def _by_environment(scale: Scale) -> str:
    environments = list(dict.fromkeys((*PAPER_ENVIRONMENTS, *scale.table_environments)))
    columns = [(method, field) for method in METHODS for field in _varying(method)]
    lines = [
        f"| | {' | '.join(f'{method.upper()} {field}' for method, field in columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for environment in environments:
        used = {method: _used(method, scale, environment) for method in METHODS}
        values = (_value(getattr(used[method], field)) for method, field in columns)
        lines.append(f"| {environment.removesuffix('-v0')} | {' | '.join(values)} |")
    return "\n".join(lines)


def _others(scale: Scale) -> str:
    lines = ["| | hyperparameters |", "| --- | --- |"]
    for method in METHODS:
        if method == "sorl":
            continue
        used = _used(method, scale, PAPER_ENVIRONMENTS[0])
        values = [
            f"{name} {_value(getattr(used, name))}"
            for name in _fields(method)
            if name not in _varying(method)
        ]
        lines.append(f"| {method.upper()} | {', '.join(values)} |")
    chosen = [
        f"{method.upper()} on {environment.removesuffix('-v0')}: "
        + ", ".join(f"{name} {_value(value)}" for name, value in values.items())
        for environment, methods in scale.chosen.items()
        for method, values in methods.items()
    ]
    if chosen:
        lines += ["", f"Chosen for this scale, see scales.py: {'; '.join(chosen)}."]
    return "\n".join(lines)


def _value(value: Any) -> str:
    return "as all" if value == () else text(value)


EXPERIMENT = Experiment(
    title="Tables 3 to 5: hyperparameters",
    published="The hyperparameters of SORL, shared and by environment, and those of the baselines.",
    table=table,
)
