"""The section about runs without an environment: what their data say, and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from sorl.report.results import Results, Row, number

CAVEATS = (
    "These numbers come from logged data alone; no policy has acted. Losses and errors of held-out "
    "episodes show whether training generalises or memorises, not whether the policy succeeds: a "
    "policy that improves on the data is bound to differ from their actions.",
    "The critic's value of the policy's own actions is optimistic, because the policy was made to "
    "please it; a gap to its value of the logged actions that keeps growing is a warning.",
    "Fitted Q evaluation is a separate estimate of the discounted return. Look first at how well "
    "it does on the data themselves: where fitted_q/data is far from return/data, do not believe "
    "fitted_q/policy either (but the return of a truncated episode stops where the log does, and "
    "the estimate goes on). Where the policy leaves the data the estimate is extrapolation and may "
    "be wrong by any amount. Try a policy carefully before trusting it.",
)

_COORDINATES = ("update", "task", "seed", "budget", "held_out_episodes")


def off_policy_section(runs: Sequence[Results]) -> str:
    """Tables of the last off-policy evaluation of each run, and the caveats; empty without any."""
    tables = [_table(run, titled=len(runs) > 1) for run in runs if run.off_policy]
    if not tables:
        return ""
    notes = "".join(f'<p class="note">{escape(caveat)}</p>' for caveat in CAVEATS)
    return "".join(tables) + notes


def _table(run: Results, *, titled: bool) -> str:
    last = max(number(row.get("update")) for row in run.off_policy)
    rows = [row for row in run.off_policy if number(row.get("update")) == last]
    names = dict.fromkeys(name for row in rows for name in row if name not in _COORDINATES)
    members = [f"task {_whole(row, 'task')}, seed {_whole(row, 'seed')}" for row in rows]
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in ["", *members, "mean"])
    lines = []
    for name in names:
        values = [number(row.get(name)) for row in rows]
        known = [value for value in values if not np.isnan(value)]
        mean = float(np.mean(known)) if known else float("nan")
        cells = "".join(f"<td>{_text(value)}</td>" for value in [*values, mean])
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    title = f"<h3>{escape(run.name)}</h3>" if titled else ""
    held = _whole(rows[0], "held_out_episodes")
    budget = escape(str(rows[0].get("budget", "")))
    return (
        f"{title}<p>After {last:,.0f} updates, at {budget}; {held} episodes were held out.</p>"
        f'<div class="scroll"><table class="results"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _whole(row: Row, name: str) -> str:
    value = number(row.get(name))
    return "?" if np.isnan(value) else f"{value:.0f}"


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"
