"""The card of a released policy: a README.md that says what it is, where it comes from, how good.

It is made from what the policy's folder and the run's tables hold, so the same run gives the same
card. Its head is the metadata that hubs of models read; no network is needed to write it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

from sorl import algorithms, files
from sorl.algorithm import AbstractAlgorithm
from sorl.deployment.storage import read_policy
from sorl.types import Member
from sorl.units import USUAL, Units

CARD = "README.md"

Row = Mapping[str, Any]


def write_card(folder: Path, scores: Iterable[Row]) -> None:
    """Write the card of the policy in `folder`, replacing an earlier one in one step.

    Args:
        folder: folder of one policy.
        scores: rows of evaluations.csv; those of this policy's member and update are told.

    Raises:
        InputError: there is no such policy, or the card cannot be written.
    """
    saved = read_policy(folder)
    own = [row for row in scores if _is_of(row, saved.member, saved.update)]
    units = saved.module.units
    text = card(saved.algorithm, saved.member, saved.update, saved.provenance, own, units)
    files.write_text(folder / CARD, text)


def card(
    algorithm: AbstractAlgorithm[Any],
    member: Member,
    update: int,
    provenance: Mapping[str, Any],
    scores: Iterable[Row],
    units: Units = USUAL,
) -> str:
    """The card as Markdown.

    Args:
        algorithm: what trained the policy.
        member: its task and seed.
        update: after how many updates it was saved.
        provenance: what `save_policy` was given; of what it lacks nothing is said.
        scores: rows of evaluations.csv of this very policy, one a budget.
        units: what its observations and actions are.
    """
    name = algorithms.name_of(algorithm)
    environment = provenance.get("environment")
    where = environment or "logged data"
    head = {"library_name": "sorl", "tags": ["offline-reinforcement-learning", name]}
    paragraphs = [
        "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---"]),
        f"# {type(algorithm).__name__} on {where}, task {member.task}, seed {member.seed}",
        f"{type(algorithm).__name__}: {algorithms.description_of(name)}",
        "```python\n"
        "import sorl\n\n"
        'policy = sorl.Policy.load("path/to/this/folder")\n'
        f"action = policy.act(observation, steps={algorithm.own_budget.steps}, "
        f"best_of={algorithm.own_budget.best_of})  # the compute of this one decision\n"
        "```",
        *_units(units),
        "## Scores",
        *_scores(list(scores), provenance),
        "## Training",
        _training(update, member, provenance),
        "Hyperparameters:",
        "\n".join(
            f"* `{field}`: {json.dumps(value)}"
            for field, value in algorithms.describe(algorithm).items()
            if field != "name"
        ),
        "## Limits",
        f"It was trained from {_sources(provenance)} and has been tried in simulation at most, as "
        "far as this card tells. Outside the situations of its data its actions mean nothing; the "
        "critic, which chooses where `best_of` is above 1, least of all.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _sources(provenance: Mapping[str, Any]) -> str:
    if "finetuning" in provenance:
        return "logged data, then from what it did itself in its environment,"
    return "logged data alone"


def _units(units: Units) -> list[str]:
    paragraphs = []
    if units.maps_actions:
        ranges = zip(units.action_low, units.action_high, strict=True)
        told = ", ".join(f"[{low:g}, {high:g}]" for low, high in ranges)
        paragraphs.append(f"Actions are in the units of the data: {told}.")
    if units.standardises:
        paragraphs.append(
            "Observations are in the units of the data too; the policy standardises them itself."
        )
    return paragraphs


def _is_of(row: Row, member: Member, update: int) -> bool:
    return (row.get("task"), row.get("seed"), row.get("update")) == (*member, update)


def _wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share.

    Here because every training writes a card, and importing SciPy's takes 0.7 s.
    """
    z = NormalDist().inv_cdf(0.975)
    share, spread = successes / episodes, z**2 / episodes
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt((share * (1 - share) + spread / 4) / episodes) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _scores(rows: list[Row], provenance: Mapping[str, Any]) -> list[str]:
    if not rows:
        return ["It has not been evaluated in an environment."]
    lines = [
        "| steps x best-of | success | 95% interval | return | ms per decision | episodes |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        episodes = round(float(row["episodes"]))
        successes = round(float(row["success"]) * episodes)
        low, high = _wilson_interval(successes, episodes)
        lines.append(
            f"| {row['budget']} | {float(row['success']):.0%} | {low:.0%} to {high:.0%} | "
            f"{float(row['return']):.1f} | {float(row['latency_ms']):.2f} | {episodes} |"
        )
    times = "Times are of the machine below"
    if any(device != "cpu" for device in provenance.get("machine", {}).get("devices", ())):
        times += ", of its processor while the accelerator trained where evaluations ran beside"
    return [
        "\n".join(lines),
        "The interval is Wilson's, over the episodes of this one policy: another seed of the same "
        f"training may lie outside it. {times}.",
    ]


def _training(update: int, member: Member, provenance: Mapping[str, Any]) -> str:
    training, dataset = provenance.get("training", {}), provenance.get("dataset", {})
    machine, versions = provenance.get("machine", {}), provenance.get("versions", {})
    online = provenance.get("finetuning", {})
    facts = {
        "updates": f"{update:,}",
        "of these from logged data alone": (
            f"{online['parent']['update']:,}, after which it was fine-tuned for "
            f"{online['steps']:,} steps in its environment, acting at {online['budget']}"
            if online
            else None
        ),
        "rows of a batch": training.get("batch_size"),
        "seed": member.seed,
        "data": f"{dataset['rows']:,} rows" if "rows" in dataset else None,
        "fingerprint of the data": dataset.get("fingerprint"),
        "begun": provenance.get("created"),
        "machine": ", ".join(
            str(machine[key]) for key in ("processor", "cores", "devices") if key in machine
        ),
        "versions": ", ".join(f"{library} {version}" for library, version in versions.items()),
    }
    return "\n".join(
        f"* {fact}: {value}" for fact, value in facts.items() if value not in (None, "")
    )
