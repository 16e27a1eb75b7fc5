"""Keep a run's results in the repository: its tables, its settings, one figure.

    python examples/publish_results.py RUN results/NAME

Writes `evaluations.csv`, `config.json` (without the local path of the data) and, where there is
more than one evaluation, `success.png`. The figure is drawn from these files, so it can be drawn
again from the repository alone:

    python examples/publish_results.py results/NAME results/NAME
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sorl import files
from sorl.report.results import Results, read
from sorl.report.statistics import mean
from sorl.runs import Run


def main() -> None:
    """Copy and draw."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    config = dict(Run.open(source).config)
    config["dataset"] = {**config["dataset"], "path": None}
    files.write_json(target / "config.json", config)
    if source.resolve() != target.resolve():
        shutil.copy(source / "evaluations.csv", target / "evaluations.csv")
    (results,) = read([target])
    if len(results.evaluations.updates) > 1:
        draw(results, config).savefig(target / "success.png", dpi=110)
    print(f"wrote {target}")


def draw(results: Results, config: dict) -> Figure:
    """Success against updates, one line a budget, and what it took on one line below."""
    evaluations = results.evaluations
    success = mean(evaluations.measures["success"])
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
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
    axes.set(xlabel="thousand updates", ylabel="success, %", ylim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(title="steps x best of", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    hidden = " x ".join(map(str, config["algorithm"]["hidden"]))
    episodes = config["training"]["episodes"]
    axes.set_title(
        f"{config['environment']}: {len(config['seeds'])} seeds, {hidden} units, {episodes} "
        f"episodes a point\n{config['machine']['cores']} CPU cores, "
        f"{config['created'][:10]}, data generated here (small-scale)",
        fontsize=8.5,
        loc="left",
    )
    return figure


if __name__ == "__main__":
    main()
