"""The card of a released policy: what it says, of whom, and that the run writes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from sorl import algorithms
from sorl.deployment.card import card, write_card
from sorl.errors import InputError
from sorl.runs import Run
from sorl.types import Member

pytest_plugins = ("run_fixtures",)

PROVENANCE = {
    "environment": "cube-single-play-singletask-v0",
    "training": {"batch_size": 256},
    "dataset": {"rows": 1_001_000, "fingerprint": "abc123"},
    "versions": {"jax": "0.10.2"},
    "machine": {"processor": "A processor", "cores": 2},
    "created": "2026-11-24T10:00:00+00:00",
}


def row(budget: str, success: float, episodes: int = 50) -> dict[str, Any]:
    scores = {"success": success, "return": -100.0, "latency_ms": 0.5, "episodes": episodes}
    return {"update": 1000, "task": 2, "seed": 0, "budget": budget, **scores}


def text(*rows: dict[str, Any], provenance: dict[str, Any] = PROVENANCE, name: str = "sorl") -> str:
    return card(algorithms.get(name)(), Member(2, 0), 1000, provenance, rows)


def test_it_says_what_it_is_and_where_it_comes_from() -> None:
    found = text(row("4x1", 0.9))
    assert found.startswith('---\nlibrary_name: "sorl"\ntags: ["offline-reinforcement-learning", ')
    for part in (
        "# SORL on cube-single-play-singletask-v0, task 2, seed 0",
        "policy.act(observation, steps=4, best_of=1)",
        "* updates: 1,000",
        "* seed: 0",
        "* data: 1,001,000 rows",
        "* fingerprint of the data: abc123",
        "* machine: A processor, 2",
        "* versions: jax 0.10.2",
        "* `q_loss_coef`: 100.0",
        "* `hidden`: [512, 512, 512, 512]",
    ):
        assert part in found, part
    assert "steps=10, best_of=32" in text(name="idql")


@pytest.mark.parametrize(("successes", "episodes"), [(0, 50), (45, 50), (50, 50), (1, 3)])
def test_the_interval_is_wilsons(successes: int, episodes: int) -> None:
    low, high = binomtest(successes, episodes).proportion_ci(method="wilson")
    share = successes / episodes
    expected = f"| 4x1 | {share:.0%} | {low:.0%} to {high:.0%} | -100.0 | 0.50 |"
    assert expected in text(row("4x1", share, episodes))


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        (["cpu", "cpu"], "Times are of the machine below.\n"),
        (["NVIDIA H200"], "of its processor while the accelerator trained where evaluations ran"),
    ],
)
def test_whose_times_they_are(devices: list[str], told: str) -> None:
    machine = {**PROVENANCE["machine"], "devices": devices}
    assert told in text(row("4x1", 0.9), provenance={**PROVENANCE, "machine": machine})


def test_a_fine_tuned_policy_says_so() -> None:
    assert "from logged data alone and" in text()
    tuned = {"parent": {"update": 600}, "steps": 4000, "budget": "4x2"}
    found = text(provenance={**PROVENANCE, "finetuning": tuned})
    assert "from logged data alone and" not in found
    assert "then from what it did itself in its environment, and" in found
    assert (
        "* of these from logged data alone: 600, after which it was fine-tuned for 4,000 steps in "
        "its environment, acting at 4x2\n"
    ) in found


def test_what_is_not_known_is_not_told() -> None:
    found = text(provenance={})
    assert "# SORL on logged data" in found
    assert "It has not been evaluated in an environment." in found
    assert "machine" not in found
    assert "None" not in found


def test_a_run_writes_the_cards_of_its_policies(finished: Path) -> None:
    rows = Run.open(finished).evaluations()
    found = (finished / "policy" / "task1-seed0" / "README.md").read_text()
    table = re.findall(r"^\| (\d+x\d+) \| (\d+)% ", found, re.MULTILINE)
    last = [r for r in rows if r["update"] == 240]
    assert table == [(r["budget"], f"{100 * float(r['success']):.0f}") for r in last]
    assert "* updates: 240" in found


def test_only_scores_of_this_very_policy_are_told(copied: Path) -> None:
    folder = copied / "policy" / "task1-seed0"
    others = [{"update": 120}, {"task": 2}, {"seed": 1}]
    own = {**row("8x8", 0.5), "update": 240, "task": 1, "seed": 0}
    write_card(folder, [own, *({**own, "budget": "2x2", **other} for other in others)])
    found = (folder / "README.md").read_text()
    assert "| 8x8 | 50% |" in found
    assert "2x2" not in found
    with pytest.raises(InputError, match="There is no"):
        write_card(copied / "none", [])
