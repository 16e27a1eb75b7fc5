"""The sections of a report: what each figure is given, and the words around it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from sorl.report import drawing, figures
from sorl.report.off_policy import off_policy_section
from sorl.report.results import LAST, MEDIA, Results
from sorl.report.statistics import CAUTION, FEW_RUNS, Estimate, bootstrap, mean
from sorl.report.tables import events_table, results_table, settings_table
from sorl.types import Budget

_MOST_TOGETHER = len(drawing.SERIES)  # curves in one panel
_LARGEST_MEDIA = 24 * 2**20  # bytes; a page that embeds more opens slowly
_LOSS_RESAMPLES = 500  # bands of training curves are wide of the page's figures: drawn, not read


def all_sections(runs: Sequence[Results]) -> str:
    """Every section of the page, in order."""
    return "\n".join(
        f"<h2>{title}</h2>\n{content}"
        for title, content in (
            ("Success during training", _learning(runs)),
            ("Off-policy evaluation", off_policy_section(runs)),
            ("Compute at test time", _compute(runs)),
            ("Results", _results(runs)),
            ("Rollouts", _media(runs)),
            ("Training metrics", _metrics(runs)),
            ("Settings", settings_table(runs)),
            ("Events", events_table(runs)),
        )
        if content
    )


def interval_notes(runs: Sequence[Results]) -> list[str]:
    """What a reader must know about the intervals of these runs."""
    single = [run.name for run in runs if len(run.evaluations.seeds) == 1]
    few = [run.name for run in runs if 1 < len(run.evaluations.seeds) < FEW_RUNS]
    notes = []
    if len(single) < len(runs):
        notes.append(
            "Bands and square brackets are 95% bootstrap intervals over seeds, stratified over "
            "tasks."
        )
    if single:
        notes.append(f"{_names(single, runs)}One seed only, so no interval is drawn.")
    if few:
        notes.append(f"{_names(few, runs)}{CAUTION}")
    return notes


def _learning(runs: Sequence[Results]) -> str:
    budgets = _budgets(runs)
    if not budgets:
        return _note("No evaluation has been recorded yet, so there is no curve.")
    # A grid evaluated once, at the end, is a heat map and no curve.
    curves = [b for b in budgets if any(len(_moments(run, b)) > 1 for run in runs)] or budgets
    notes = "".join(map(_note, interval_notes(runs)))
    if len(runs) == 1 and len(curves) <= _MOST_TOGETHER:
        run = runs[0]
        panel = [_success_curve(run, b, style) for style, b in enumerate(curves)]
        legend = _legend([str(budget) for budget in curves])
        svg = figures.success_curves(panel, "Success against updates")
        return f'{legend}<div class="figures wide"><figure>{svg}</figure></div>{notes}'
    panels = []
    for budget in curves:
        panel = [
            _success_curve(run, budget, style)
            for style, run in enumerate(runs)
            if len(_moments(run, budget))
        ]
        svg = figures.success_curves(panel, f"Success at {budget} against updates")
        panels.append(_figure(svg, str(budget)))
    legend = _legend([run.name for run in runs]) if len(runs) > 1 else ""
    return f'{legend}<div class="figures">{"".join(panels)}</div>{notes}'


def _compute(runs: Sequence[Results]) -> str:
    if not _budgets(runs):
        return ""
    introduction = _note(
        "A budget is written steps x best-of: 4x8 chooses one of 8 candidates, each sampled in "
        "4 steps. Success and milliseconds are those of the last evaluation of each budget."
    )
    maps, clouds = [], []
    for style, run in enumerate(runs):
        budgets = run.evaluations.budgets
        if not budgets:
            continue
        success, latency = _final(run)
        title = f"{run.name}: " if len(runs) > 1 else ""
        when = _when(run)
        if len(budgets) > 1:
            label = f"Success by steps and best-of, run {style + 1}: {run.name}"
            svg = figures.success_heat_map(budgets, success, label)
            maps.append(_figure(svg, f"{title}success", when))
            if np.isfinite(latency).any():
                label = f"Milliseconds by steps and best-of, run {style + 1}: {run.name}"
                svg = figures.latency_heat_map(budgets, latency, label)
                maps.append(_figure(svg, f"{title}milliseconds per decision", when))
        clouds.append(figures.Cloud(style, [str(b) for b in budgets], latency, success))
    parts = [introduction]
    if maps:
        parts.append(f'<div class="figures">{"".join(maps)}</div>')
    if any(np.isfinite(cloud.milliseconds + cloud.success.value).any() for cloud in clouds):
        svg = figures.success_against_time(clouds, "Success against milliseconds per decision")
        legend = _legend([run.name for run in runs]) if len(runs) > 1 else ""
        caption = (
            "Median time of one decision for one observation, measured on the machine of the run. "
            "Filled points and the line are the Pareto front of a run: none of its budgets is both "
            "as fast and as successful."
        )
        figure = f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
        parts.append(
            f'<h3>Success against time</h3>{legend}<div class="figures wide">{figure}</div>'
        )
    else:
        parts.append(_note("No time per decision has been measured."))
    return "".join(parts)


def _results(runs: Sequence[Results]) -> str:
    if not _budgets(runs):
        return _note("No evaluation has been recorded yet.")
    return results_table(runs) + _note(
        "Success at the last evaluation of each budget, mean over seeds with its interval; beside "
        f"it the mean over the last {LAST} evaluations, where there are as many. In bold the most "
        "successful budget of a run at its last evaluation: a choice made after seeing the scores, "
        "hence a little flattering. Return and length are per episode; ms is the median time of "
        "one decision."
    )


def _media(runs: Sequence[Results]) -> str:
    parts = []
    for run in runs:
        figures_ = []
        for file in run.media:
            size = file.stat().st_size
            caption = escape(file.stem)
            kind = MEDIA[file.suffix.lower()]
            if size > _LARGEST_MEDIA:
                content = f"<p>{caption}: too large to embed ({size / 2**20:.0f} MiB).</p>"
                figures_.append(f"<figure>{content}</figure>")
                continue
            data = f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
            if kind.startswith("video/"):
                content = f'<video src="{data}" controls loop muted playsinline></video>'
            else:
                content = f'<img src="{data}" alt="Rollout {caption}">'
            figures_.append(f"<figure>{content}<figcaption>{caption}</figcaption></figure>")
        if figures_:
            title = f"<h3>{escape(run.name)}</h3>" if len(runs) > 1 else ""
            parts.append(f'{title}<div class="media">{"".join(figures_)}</div>')
    return "".join(parts)


def _metrics(runs: Sequence[Results]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.metrics.columns)
    if not names:
        return _note("No training metric has been recorded yet.")
    panels = []
    for position, name in enumerate(names, start=1):
        panel = [
            figures.Curve(
                style,
                run.metrics.updates,
                bootstrap(run.metrics.columns[name], resamples=_LOSS_RESAMPLES),
            )
            for style, run in enumerate(runs)
            if name in run.metrics.columns
        ]
        svg = figures.metric_curves(panel, f"Training metric {position}: {name}")
        panels.append(_figure(svg, name.replace("_", " ")))
    legend = _legend([run.name for run in runs]) if len(runs) > 1 else ""
    return f'{legend}<div class="figures small">{"".join(panels)}</div>'


def _budgets(runs: Sequence[Results]) -> list[Budget]:
    budgets = {budget for run in runs for budget in run.evaluations.budgets}
    return sorted(budgets, key=lambda budget: (budget.best_of, budget.steps))


def _moments(run: Results, budget: Budget) -> np.ndarray:
    if budget not in run.evaluations.budgets:
        return np.empty(0, dtype=np.intp)
    return run.evaluations.moments(run.evaluations.budgets.index(budget))


def _success_curve(run: Results, budget: Budget, style: int) -> figures.Curve:
    moments = _moments(run, budget)
    position = run.evaluations.budgets.index(budget)
    scores = run.evaluations.measures["success"][moments, position]
    return figures.Curve(style, run.evaluations.updates[moments].astype(float), bootstrap(scores))


def _final(run: Results) -> tuple[Estimate, np.ndarray]:
    """Success with interval and milliseconds of each budget at its last evaluation."""
    evaluations = run.evaluations
    indices = range(len(evaluations.budgets))
    success = bootstrap(np.stack([evaluations.last("success", i) for i in indices]))
    latency = mean(np.stack([evaluations.last("latency_ms", i) for i in indices]))
    return success, latency


def _when(run: Results) -> str:
    known = map(run.evaluations.last_update, range(len(run.evaluations.budgets)))
    updates = sorted({update for update in known if update is not None})
    if not updates:
        return ""
    if len(updates) == 1:
        return f"after {updates[0]:,} updates"
    return f"each budget at its last evaluation, after {updates[0]:,} to {updates[-1]:,} updates"


def _figure(svg: str, title: str, detail: str = "") -> str:
    caption = f"<b>{escape(title)}</b>" + (f", {escape(detail)}" if detail else "")
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _legend(names: Sequence[str]) -> str:
    items = []
    for position, name in enumerate(names):
        style = drawing.Style.of(position)
        look = f"color:var({drawing.VARIABLES[style.color]});border-top-style:{style.dash}"
        marker = f'<i style="{look}" data-marker="{style.marker_text}"></i>'
        items.append(f"<li>{marker}{escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _names(names: Sequence[str], runs: Sequence[Results]) -> str:
    return "" if len(names) == len(runs) else f"{', '.join(names)}: "
