"""Keep results in the repository: tables, settings, one figure.

    python examples/publish_results.py RUN results/NAME
    python examples/publish_results.py COMPARISON results/NAME

Of a run: `evaluations.csv`, `config.json` (without the local path of the data) and, where there is
more than one evaluation, `success.png`. Of a folder of runs that `sorl compare` made: the same for
each of its runs, in a folder of its own, `compare.csv`, and one figure of all. The figure is drawn
from these files, so it can be drawn again from the repository alone:

    python examples/publish_results.py results/NAME results/NAME

With `--metrics` behind it, a run's `metrics.csv` and `timing.csv` are kept too: for short runs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sorl import algorithms, files
from sorl.report.drawing import Style
from sorl.report.results import Results, read
from sorl.report.statistics import bootstrap, mean
from sorl.runs import Run


def main() -> None:
    """Copy and draw."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    if (source / "config.json").exists():
        publish_run(source, target)
        if "--metrics" in sys.argv[3:]:
            copy(source / "metrics.csv", target / "metrics.csv")
            copy(source / "timing.csv", target / "timing.csv")
        (results,) = read([target])
        figure = draw_budgets(results) if len(results.evaluations.updates) > 1 else None
    else:
        runs = sorted(path.parent for path in source.glob("*/config.json"))
        for run in runs:
            publish_run(run, target / run.name)
        copy(source / "compare.csv", target / "compare.csv")
        figure = draw_algorithms(read([target / run.name for run in runs]))
    if figure is not None:
        figure.savefig(target / "success.png", dpi=110)
    print(f"wrote {target}")


def publish_run(source: Path, target: Path) -> None:
    """Keep one run's settings and scores."""
    target.mkdir(parents=True, exist_ok=True)
    config = dict(Run.open(source).config)
    config["dataset"] = {**config["dataset"], "path": None}
    if "finetuning" in config:
        parent = {**config["finetuning"]["parent"], "path": None}
        config["finetuning"] = {**config["finetuning"], "parent": parent}
    files.write_json(target / "config.json", config)
    copy(source / "evaluations.csv", target / "evaluations.csv")


def copy(source: Path, target: Path) -> None:
    """Copy a file, unless it is there already because only the figure is drawn anew."""
    if source.resolve() != target.resolve():
        shutil.copy(source, target)


def draw_budgets(results: Results) -> Figure:
    """Success against updates, one line a budget, and what it took on one line below."""
    figure, axes = panel()
    evaluations = results.evaluations
    success = mean(evaluations.measures["success"])
    steps = sorted({budget.steps for budget in evaluations.budgets})
    best_of = sorted({budget.best_of for budget in evaluations.budgets})
    for index, budget in enumerate(evaluations.budgets):
        known = success[:, index] == success[:, index]
        # A budget tried at few updates has points and no curve.
        style = "-" if known.mean() > 0.5 else "none"
        axes.plot(
            evaluations.updates[known] / 1000,
            100 * success[known, index],
            color=f"C{steps.index(budget.steps)}",
            marker="os^Dv*"[best_of.index(budget.best_of) % 6],
            markersize=4.5,
            linestyle=style,
            label=str(budget),
        )
    legend(axes, "steps x best of")
    axes.set_title(description(results.config), fontsize=8.5, loc="left")
    return figure


def success_curve(
    axes: Axes, run: Results, index: int, style: Style, label: str, *, first: int = 0
) -> None:
    """Success in per cent at one budget from update `first` on, with 95% bootstrap intervals."""
    evaluations = run.evaluations
    shown = [i for i in evaluations.moments(index) if evaluations.updates[i] >= first]
    updates = evaluations.updates[shown] / 1000
    scores = evaluations.measures["success"][shown, index]
    value, low, high = (100 * np.asarray(values) for values in bootstrap(scores))
    axes.fill_between(updates, low, high, color=style.color, alpha=0.1, linewidth=0)
    axes.plot(
        updates,
        value,
        color=style.color,
        marker=style.marker,
        linestyle=style.dash,
        markersize=4,
        label=label,
    )


def draw_algorithms(runs: list[Results]) -> Figure:
    """Success against updates, one line an algorithm at its own budget, with 95% intervals."""
    figure, axes = panel()
    for place, run in enumerate(runs):
        budget = algorithms.build(run.config["algorithm"]).own_budget
        index = run.evaluations.budgets.index(budget)
        label = f"{run.config['algorithm']['name']}  {budget}"
        success_curve(axes, run, index, Style.of(place), label)
    legend(axes, "steps x best of")
    axes.set_title(description(runs[0].config), fontsize=8.5, loc="left")
    return figure


def panel() -> tuple[Figure, Axes]:
    """An empty figure of success against updates."""
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlabel="thousand updates", ylabel="success, %", ylim=(-2, 102))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def legend(axes: Axes, title: str) -> None:
    """What the lines are, beside the panel."""
    axes.legend(title=title, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def description(config: Mapping[str, Any]) -> str:
    """What the figure's runs took, in two lines."""
    hidden = " x ".join(map(str, config["algorithm"]["hidden"]))
    cores = config["machine"]["cores"]
    return (
        f"{config['environment']}: {len(config['seeds'])} seeds, {hidden} units, "
        f"{config['training']['episodes']} episodes a point\n{cores} CPU core{'s'[: cores != 1]} "
        f"a run, {config['created'][:10]}, data generated here (small-scale)"
    )


if __name__ == "__main__":
    main()
