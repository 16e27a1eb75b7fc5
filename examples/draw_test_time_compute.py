"""Table and figure of what `test_time_compute.py` measured.

    python examples/draw_test_time_compute.py results/test-time-compute

reads every `spent-*.csv` in the folder, one for each run, and writes `table.md` and `success.png`
beside them. Episodes of all seeds are pooled; intervals are Wilson's and so say nothing of how
another seed's training would have turned out: the seeds' own scores stand beside.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import binomtest

from sorl import files, tables
from sorl.types import Budget

COLOURS = {
    "one candidate": "black",
    "best": "tab:red",
    "softmax-1.0": "tab:orange",
    "typical-2": "tab:blue",
    "central": "tab:green",
}
WAY = ("budget", "choice", "sampler", "verifier", "adaptive")


def main() -> None:
    """Draw."""
    folder = Path(sys.argv[1])
    sources = sorted(folder.glob("spent-*.csv"))
    pooled = [pool(list(tables.read_rows(source))) for source in sources]
    files.write_text(folder / "table.md", "\n\n".join(map(table, pooled)) + "\n")
    figure = draw(pooled)
    figure.savefig(folder / "success.png", dpi=110)
    print(f"wrote {folder / 'table.md'} and {folder / 'success.png'}")


def pool(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a way, over its tasks and seeds."""
    ways: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        ways.setdefault(tuple(str(row[name]) for name in WAY), []).append(row)
    found = []
    for way, members in ways.items():
        episodes = sum(round(row["episodes"]) for row in members)
        successes = sum(round(row["episodes"] * row["success"]) for row in members)
        low, high = binomtest(successes, episodes).proportion_ci(method="wilson")
        found.append(
            {
                **dict(zip(WAY, way, strict=True)),
                "update": round(members[0]["update"]),
                "success": successes / episodes,
                "low": low,
                "high": high,
                "seeds": [row["success"] for row in members],
                "episodes": episodes,
                "length": sum(row["length"] for row in members) / len(members),
                "candidates": sum(row["candidates"] for row in members) / len(members),
                "p50_ms": members[0]["p50_ms"],
                "p99_ms": members[0]["p99_ms"],
            }
        )
    return sorted(found, key=order)


def order(row: dict[str, Any]) -> tuple[Any, ...]:
    """By candidates, steps, and how they are spent."""
    budget = Budget.parse(row["budget"])
    return budget.best_of > 1, budget.steps, budget.best_of, row["sampler"], row["choice"]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = [
        f"After {rows[0]['update']:,} updates, {rows[0]['episodes']} episodes a row:",
        "",
        "| budget | how | success | 95% interval | seeds | steps of an episode | candidates | "
        "p50, p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        timed = row["adaptive"] == "no"
        lines.append(
            f"| {row['budget']} | {how(row)} | {row['success']:.0%} | {row['low']:.0%} to "
            f"{row['high']:.0%} | {', '.join(f'{score:.0%}' for score in row['seeds'])} | "
            f"{row['length']:.0f} | {row['candidates']:.1f} | "
            + (f"{row['p50_ms']:.2f}, {row['p99_ms']:.2f} |" if timed else " |")
        )
    return "\n".join(lines)


def how(row: dict[str, Any]) -> str:
    """How a budget was spent, in a few words."""
    if row["budget"].endswith("x1"):
        return "one candidate"
    words = [row["choice"]]
    words += [f"{row['sampler']} sampler"] if row["sampler"] != "independent" else []
    words += [f"verifier {row['verifier']}"] if row["verifier"] != "own" else []
    words += ["adaptive"] if row["adaptive"] == "yes" else []
    return ", ".join(words)


def draw(runs: list[list[dict[str, Any]]]) -> Figure:
    """Success against the median time of a decision, one panel a run."""
    figure = Figure(figsize=(5.5 * len(runs), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
    for panel, rows in zip(axes, runs, strict=True):
        shown = set()
        for row in rows:
            name = how(row)
            if name not in COLOURS:
                continue
            spread = [[row["success"] - row["low"]], [row["high"] - row["success"]]]
            panel.errorbar(
                row["p50_ms"],
                row["success"],
                yerr=spread,
                fmt="o",
                color=COLOURS[name],
                capsize=2,
                label=name if name not in shown else None,
            )
            panel.annotate(
                row["budget"],
                (row["p50_ms"], row["success"]),
                textcoords="offset points",
                xytext=(5, 3),
                fontsize=7,
            )
            shown.add(name)
        panel.set(
            xlabel="milliseconds of a decision (median, one observation)",
            title=f"{rows[0]['update']:,} updates",
            xscale="log",
            ylim=(0, 1),
        )
        for formatted in (panel.xaxis.set_major_formatter, panel.xaxis.set_minor_formatter):
            formatted("{x:g}")
    axes[0].set_ylabel("success")
    axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
