"""The tables of a report: results, settings and events, as HTML and as text to copy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from sorl.report import drawing
from sorl.report.results import LAST, Evaluations, Results
from sorl.report.statistics import Estimate, bootstrap, mean


def results_table(runs: Sequence[Results]) -> str:
    """Scores of every run and budget: over tasks, last and mean of the last three, and per task."""
    tasks = sorted({task for run in runs for task in run.evaluations.tasks})
    head = ["budget", "all tasks" if len(tasks) > 1 else f"task {tasks[0]}"]
    head += [f"mean of last {LAST}"]
    head += [f"task {task}" for task in tasks] if len(tasks) > 1 else []
    head += ["ms", "return", "length", "updates", "seeds", "episodes"]
    groups = []
    lines = [["run", *head], ["---"] * (len(head) + 1)]
    for run in runs:
        budgets = range(len(run.evaluations.budgets))
        rows = [_result(run, budget, tasks) for budget in budgets]
        lines += [[run.name, *row] for row in rows]
        best = best_budget(run.evaluations)
        title = ""
        if len(runs) > 1:
            name = f'<span class="stay">{escape(run.name)}</span>'
            title = f'<tr><th scope="rowgroup" colspan="{len(head)}">{name}</th></tr>'
        groups.append(
            f"<tbody>{title}"
            + "".join(_row(row, chosen=budget == best) for budget, row in enumerate(rows))
            + "</tbody>"
        )
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    return (
        f'<div class="scroll"><table class="results"><thead><tr>{heads}</tr></thead>'
        f"{''.join(groups)}</table></div>"
        "<details><summary>The same as Markdown, to copy</summary>"
        f"<pre>{escape(_markdown(lines))}</pre></details>"
    )


def best_budget(evaluations: Evaluations) -> int | None:
    """Index of the budget with the highest success at the last evaluated update, if any."""
    if not len(evaluations.updates):
        return None
    scores = mean(evaluations.measures["success"][-1])
    return None if np.isnan(scores).all() else int(np.nanargmax(scores))


def settings_table(runs: Sequence[Results]) -> str:
    """Every setting of every run, grouped as in `config.json`; settings that differ stand out."""
    flat = [_flatten(run.config) | _progress(run) for run in runs]
    groups: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for settings in flat for key in settings):
        group, _, _ = key.rpartition(".")
        groups.setdefault(group.partition(".")[0] or "run", []).append(key)
    blocks = []
    for group, keys in groups.items():
        rows = []
        for key in keys:
            values = [settings.get(key, drawing.MISSING) for settings in flat]
            name = key.removeprefix(f"{group}.")
            differs = ' class="differs"' if len(set(values)) > 1 else ""
            cells = "".join(f"<td>{escape(value)}</td>" for value in values)
            rows.append(f'<tr{differs}><th scope="row">{escape(name)}</th>{cells}</tr>')
        heads = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
        head = f"<thead><tr><th></th>{heads}</tr></thead>" if len(runs) > 1 else ""
        blocks.append(
            f'<section><h3>{escape(group)}</h3><div class="scroll"><table class="settings">{head}'
            f"<tbody>{''.join(rows)}</tbody></table></div></section>"
        )
    arrangement = "columns" if len(runs) == 1 else "compared"
    return f'<div class="{arrangement}">{"".join(blocks)}</div>'


def events_table(runs: Sequence[Results]) -> str:
    """What happened in the runs apart from training, such as stopped seeds."""
    names = ("update", "task", "seed", "message")
    rows = "".join(
        f'<tr><th scope="row">{escape(run.name)}</th>'
        + "".join(f"<td>{escape(_text(event.get(name, drawing.MISSING)))}</td>" for name in names)
        + "</tr>"
        for run in runs
        for event in run.events
    )
    if not rows:
        return '<p class="note">None: no seed was stopped.</p>'
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("run", *names))
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _result(run: Results, budget: int, tasks: Sequence[int]) -> list[str]:
    evaluations = run.evaluations
    success = evaluations.last("success", budget)  # [seeds, tasks]
    row = [str(evaluations.budgets[budget]), _interval(success)]
    row.append(_interval(evaluations.mean_of_last("success", budget)))
    for task in tasks if len(tasks) > 1 else ():
        if task in evaluations.tasks:
            column = evaluations.tasks.index(task)
            row.append(_interval(success[:, column, None]))
        else:
            row.append(drawing.MISSING)
    row.append(drawing.milliseconds(float(mean(evaluations.last("latency_ms", budget)))))
    for measure in ("return", "length"):
        value = float(mean(evaluations.last(measure, budget)))
        row.append(drawing.MISSING if math.isnan(value) else f"{value:.1f}")
    update = evaluations.last_update(budget)
    row.append(drawing.MISSING if update is None else f"{update:,}")
    row.append(_range((~np.isnan(success)).sum(axis=0)))
    episodes = evaluations.last("episodes", budget)
    row.append(_range(episodes[~np.isnan(episodes)]))
    return row


def _interval(scores: np.ndarray) -> str:
    return drawing.percent_interval(Estimate(*map(np.asarray, bootstrap(scores))))


def _range(values: np.ndarray) -> str:
    if not len(values):
        return drawing.MISSING
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _row(row: Sequence[str], *, chosen: bool) -> str:
    budget, *others = map(escape, row)
    cells = "".join(
        f"<td>{cell.replace('[', '<small>[').replace(']', ']</small>')}</td>" for cell in others
    )
    kind = "best" if chosen else "other"
    return f'<tr class="{kind}"><th scope="row">{budget}</th>{cells}</tr>'


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    escaped = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            flat |= _flatten(entry, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _text(entry)
    return flat


def _progress(run: Results) -> dict[str, str]:
    """What the run's other files say about how far it came and how fast."""
    updates = [*run.metrics.updates[-1:], *run.evaluations.updates[-1:]]
    progress = {"last recorded update": f"{max(updates):,.0f}" if updates else drawing.MISSING}
    speed = run.updates_per_second
    progress["updates per second (median)"] = (
        drawing.MISSING if math.isnan(speed) else f"{speed:.3g}"
    )
    return progress


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
