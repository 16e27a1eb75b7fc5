"""Does the critic know which of its candidates is better? Each is rolled out to see.

    python examples/candidate_returns.py RUN OUT.csv --budget 8x8 --states 24 --tails 3

One row for every member: Spearman's correlation, among the candidates of a state, of the critic's
score with the return that follows, and of the nearness to the other candidates with it; and what
each choice gains in return over a candidate taken at random. See `sorl.branches`.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from sorl import files, platform
from sorl.algorithm import AbstractScoredPolicy
from sorl.branches import branch, rank_correlation
from sorl.choices import Choice, remoteness
from sorl.console import show_progress
from sorl.deployment.policy import Policy, load_stacked
from sorl.rollouts import select_member
from sorl.runs import Run
from sorl.types import Budget

CHOICES = ("best", "typical-2", "central")


def main(
    run: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    *,
    budget: str = "8x8",
    states: int = 24,
    tails: int = 3,
    seed: int = 3,
) -> None:
    """Branch and compare.

    Args:
        run: folder of the run.
        out: table to make.
        budget: whose candidates are tried.
        states: states of each member.
        tails: times that each candidate's episode is played to its end.
        seed: seed of everything random.
    """
    policies, members = load_stacked(run)
    rows = []
    for index, member in enumerate(members):
        policy = select_member(policies, index)
        assert isinstance(policy, AbstractScoredPolicy)
        with show_progress() as on_episode:
            found = branch(
                policy,
                member,
                Run.open(run).config["environment"],
                budget=Budget.parse(budget),
                states=states,
                tails=tails,
                seed=seed,
                workers=platform.cores(),
                on_episode=on_episode,
            )
        scores = found.values.mean(axis=-1)
        returns = found.returns.mean(axis=-1)
        nearness = -np.asarray(jax.vmap(remoteness)(jnp.asarray(found.actions)))
        row: dict[str, Any] = {
            "update": Policy.load(run, task=member.task, seed=member.seed).update,
            "task": member.task,
            "seed": member.seed,
            "budget": budget,
            "states": states,
            "tails": tails,
            "success": found.success.mean(),
        }
        with_returns = {
            "score": rank_correlation(scores, returns),
            "nearness": rank_correlation(nearness, returns),
            "heads": rank_correlation(found.values[..., 0], found.values[..., 1]),
        }
        for what, values in with_returns.items():
            known = values[~np.isnan(values)]
            row[f"correlation_{what}"] = known.mean()
            row[f"correlation_{what}_error"] = known.std(ddof=1) / np.sqrt(len(known))
        row["ranked_states"] = int(np.isfinite(with_returns["score"]).sum())
        for text in CHOICES:
            choice = Choice.parse(text)
            chosen = np.array(
                [
                    int(choice.choose(jnp.asarray(a), jnp.asarray(s), key=jax.random.key(0)))
                    for a, s in zip(found.actions, scores, strict=True)
                ]
            )
            gains = returns[np.arange(states), chosen] - returns.mean(axis=1)
            row[f"gain_{text}"] = gains.mean()
            row[f"gain_{text}_error"] = gains.std(ddof=1) / np.sqrt(states)
        rows.append(row)
        print(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(out, text.getvalue())
    print(f"wrote {out}")


if __name__ == "__main__":
    tyro.cli(main)
