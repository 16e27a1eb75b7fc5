"""One self-contained HTML page about one run or several side by side.

The page needs no network and no script: figures are inline SVG, films are embedded, and a content
policy within it forbids anything else. The same runs give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

from sorl import files
from sorl.errors import InputError
from sorl.report.drawing import percent
from sorl.report.results import Evaluations, Results, read
from sorl.report.sections import all_sections
from sorl.report.statistics import bootstrap
from sorl.report.tables import best_budget


def write_report(runs: Path | str | Sequence[Path | str], out: Path | str) -> Path:
    """Write the report of some runs to one HTML file, replacing an earlier one in one step.

    Args:
        runs: a run's folder, or several, which are compared in the same figures.
        out: the file to write; its folder is made if it is missing.

    Returns:
        `out`.

    Raises:
        InputError: a path is no run, there is none, or `out` cannot be written.
    """
    out = Path(out)
    page = render(read([Path(runs)] if isinstance(runs, Path | str) else list(map(Path, runs))))
    if out.is_dir():
        raise InputError(f"{out} is a folder: give the name of a file, such as {out}/report.html.")
    with files.explained("write", out):
        out.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(out, page)
    return out


def render(runs: Sequence[Results]) -> str:
    """The page as text."""
    sentences = [_sentence(run) for run in runs]
    if len(runs) == 1:
        summary = f'<p class="summary">{escape(sentences[0])}</p>'
    else:
        items = "".join(
            f'<p class="summary"><b>{escape(run.name)}</b>: {escape(sentence)}</p>'
            for run, sentence in zip(runs, sentences, strict=True)
        )
        summary = items + _differences(runs)
    template = Template((resources.files("sorl.report") / "page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(_title(runs)), summary=summary, sections=all_sections(runs)
    )
    # A folder's name may hold bytes that are no text; they cannot be written.
    return page.encode("utf-8", "replace").decode("utf-8")


def _title(runs: Sequence[Results]) -> str:
    subjects = list(dict.fromkeys(f"{run.algorithm} on {run.environment}" for run in runs))
    return subjects[0] if len(subjects) == 1 else f"Comparison of {len(runs)} runs"


def _sentence(run: Results) -> str:
    """What came out, in one sentence."""
    evaluations = run.evaluations
    subject = f"{run.algorithm} on {run.environment}, {_tasks(evaluations)}"
    best = best_budget(evaluations)
    if best is None and run.off_policy:
        return (
            f"{subject}: trained without an environment, so no success is known; what the data say "
            "stands below."
        )
    if best is None:
        return f"{subject}: not evaluated on every task yet."
    scores = evaluations.last("success", best)
    estimate = bootstrap(scores)
    interval = ""
    if not math.isnan(float(estimate.low)):
        low, high = percent(float(estimate.low)), percent(float(estimate.high))
        interval = f" (95% bootstrap interval {low} to {high})"
    last = evaluations.measures["success"][-1]  # [budgets, seeds, tasks]
    among = int((~np.isnan(last)).any(axis=(1, 2)).sum())
    choice = f", the best of {among} budgets," if among > 1 else ""
    seeds = _plural(len(evaluations.seeds), "seed")
    scored = int((~np.isnan(scores)).sum(axis=0).min())
    if scored < len(evaluations.seeds):
        seeds = f"{scored} of {seeds}"
    return (
        f"{subject}: {percent(float(estimate.value))} success{interval} at "
        f"{evaluations.budgets[best]}{choice} after {evaluations.last_update(best):,} updates, "
        f"{seeds}{_episodes(evaluations, best)}."
    )


def _episodes(evaluations: Evaluations, budget: int) -> str:
    episodes = evaluations.last("episodes", budget)
    counts = sorted({int(count) for count in episodes[~np.isnan(episodes)]})
    if len(counts) != 1:
        return ""
    return f", {_plural(counts[0], 'episode')} each"


def _tasks(evaluations: Evaluations) -> str:
    tasks = evaluations.tasks
    if len(tasks) == 1:
        return f"task {tasks[0]}"
    if tasks == tuple(range(tasks[0], tasks[-1] + 1)):
        return f"tasks {tasks[0]} to {tasks[-1]}"
    return f"tasks {', '.join(map(str, tasks))}"


def _differences(runs: Sequence[Results]) -> str:
    """A warning where runs cannot be compared one to one."""
    warnings = []
    if len({(run.environment, run.evaluations.tasks) for run in runs}) > 1:
        warnings.append("These runs solve different tasks: their scores are not comparable.")
    if len({str(run.config.get("machine")) for run in runs}) > 1:
        warnings.append("They ran on different machines: their times are not comparable.")
    return f'<p class="note">{escape(" ".join(warnings))}</p>' if warnings else ""


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
