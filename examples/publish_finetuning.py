"""Keep what fine-tuning reached beside learning on offline: settings, scores, a table, one figure.

    python examples/publish_finetuning.py results/NAME offline=RUN uniform=RUN balanced=RUN

Every run is kept in a folder of its name; one that has not come to the end of its steps is kept as
far as it came. `table.md` and `success.png` are made of these files, so they can be made again from
the repository alone:

    python examples/publish_finetuning.py results/NAME offline uniform balanced
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from publish_results import copy, description, publish_run, success_curve

from sorl import files
from sorl.report.drawing import Style
from sorl.report.results import Results, read
from sorl.report.statistics import bootstrap
from sorl.runs import Run


def main() -> None:
    """Copy, tabulate and draw."""
    target, names = Path(sys.argv[1]), []
    for argument in sys.argv[2:]:
        name, _, source = argument.partition("=")
        names.append(name)
        if source:
            publish_run(Path(source), target / name)
            copy(Path(source) / "timing.csv", target / name / "timing.csv")
    runs = dict(zip(names, read([target / name for name in names]), strict=True))
    # All begin with the state that the fine-tuned ones were made of.
    first = max(
        run.config.get("finetuning", {}).get("parent", {"update": 0})["update"]
        for run in runs.values()
    )
    files.write_text(target / "table.md", table(runs, first, target))
    draw(runs, first).savefig(target / "success.png", dpi=110)
    print(f"wrote {target}")


def table(runs: Mapping[str, Results], first: int, target: Path) -> str:
    """Success of every run, update and budget, and the time that learning took."""
    budgets = next(iter(runs.values())).evaluations.budgets
    lines = [
        f"| run | updates | {' | '.join(map(str, budgets))} | minutes so far |",
        f"| --- | --- | {'--- | ' * len(budgets)}--- |",
    ]
    for name, run in runs.items():
        timing = Run.open(target / name).timing()
        for place, update in enumerate(run.evaluations.updates):
            if update < first:
                continue
            cells = []
            for index in range(len(budgets)):
                scores = run.evaluations.measures["success"][place, index]
                value, low, high = (float(it) for it in bootstrap(scores))
                each = " ".join(f"{100 * score:.0f}" for score in np.sort(scores.ravel()))
                cells.append(f"{value:.0%} [{low:.0%}, {high:.0%}] ({each})")
            done = [row for row in timing if first < float(row["update"]) <= update]
            seconds = [float(row["seconds"]) for row in done]
            lines.append(f"| {name} | {update:,} | {' | '.join(cells)} | {sum(seconds) / 60:.1f} |")
    return "\n".join(lines) + "\n"


def draw(runs: Mapping[str, Results], first: int) -> Figure:
    """Success against updates, a panel a budget, with 95% bootstrap intervals over seeds."""
    budgets = next(iter(runs.values())).evaluations.budgets
    figure = Figure(figsize=(8.2, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    for index, (budget, axes) in enumerate(zip(budgets, panels, strict=True)):
        for place, (name, run) in enumerate(runs.items()):
            success_curve(axes, run, index, Style.of(place), name, first=first)
        axes.set(title=str(budget), xlabel="thousand updates", ylim=(-2, 102))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    panels[0].set_ylabel("success, %")
    panels[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(description(next(iter(runs.values())).config), fontsize=8.5, x=0.01, ha="left")
    return figure


if __name__ == "__main__":
    main()
