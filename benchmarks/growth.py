"""How the cost of training grows: time and memory against seeds, tasks, batch, width, M^BTT, rows.

    python -m benchmarks.growth [--out benchmarks/results/growth]

SORL, one seed, 3 x 256 units and batches of 256 unless the axis says otherwise. It writes
`growth.json`, `growth.png` and `table.md`; what they show is told in its README.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import tyro

from benchmarks.case import Case, measure
from sorl.files import write_json

matplotlib.use("Agg")

BASE = Case(hidden=(256,) * 3, peak=False)
AXES: Mapping[str, tuple[int, ...]] = {
    "seeds": (1, 2, 4, 8, 16),
    "tasks": (1, 2, 5),
    "batch size": (64, 128, 256, 512, 1024),
    "width": (64, 128, 256, 512, 1024),
    "backprop_steps": (1, 2, 4, 8),
    "rows": (10_000, 100_000, 1_000_000, 4_000_000),
}


def case_of(axis: str, value: int) -> Case:
    """The usual case, but for one axis."""
    if axis == "width":
        return dataclasses.replace(BASE, hidden=(value,) * len(BASE.hidden))
    if axis == "backprop_steps":
        return dataclasses.replace(BASE, values={"backprop_steps": value})
    return dataclasses.replace(BASE, **{axis.replace(" ", "_"): value})


def run() -> list[dict[str, Any]]:
    """Measure every point of every axis."""
    rows: list[dict[str, Any]] = []
    for axis, values in AXES.items():
        for value in values:
            cost = measure(case_of(axis, value))
            rows.append({"axis": axis, "value": value, **dataclasses.asdict(cost)})
            print(f"{axis} {value}: {1000 / cost.updates_per_second:.1f} ms", flush=True)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A column an axis: milliseconds of an update of all members above, memory below."""
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(
        2, len(AXES), figsize=(2.6 * len(AXES), 5), layout="constrained", squeeze=False
    )
    for column, axis in enumerate(AXES):
        points = [row for row in rows if row["axis"] == axis]
        values = [row["value"] for row in points]
        times = [1000 / row["updates_per_second"] for row in points]
        upper, lower = axes[:, column]
        upper.plot(values, times, "o-")
        # In proportion to the work, from the last point down: where both part, something else
        # takes the time.
        work = [row["flops"] * row["members"] for row in points]
        upper.plot(values, [times[-1] * w / work[-1] for w in work], ":", label="as the FLOPs")
        lower.plot(values, [row["memory_mib"] for row in points], "o-")
        upper.set(xscale="log", yscale="log", title=axis, ylim=(min(times) / 2, max(times) * 2))
        lower.set(xscale="log", ylim=(0, None))
        labels = [f"{value / 1000:g}k" if value >= 10_000 else str(value) for value in values]
        for below in (upper, lower):
            below.set_xticks(values, labels, fontsize=7)
            below.xaxis.set_minor_locator(ticker.NullLocator())
        upper.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes[0, 0].set_ylabel("ms an update, all members")
    axes[1, 0].set_ylabel("memory of the process, MiB")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| axis | value | ms an update | times the first | FLOPs times the first | memory, MiB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for axis in AXES:
        points = [row for row in rows if row["axis"] == axis]
        first = points[0]
        for row in points:
            slower = first["updates_per_second"] / row["updates_per_second"]
            work = row["flops"] * row["members"] / (first["flops"] * first["members"])
            lines.append(
                f"| {axis} | {row['value']:,} | {1000 / row['updates_per_second']:.2f} | "
                f"{slower:.2f} | {work:.2f} | {row['memory_mib']:.0f} |"
            )
    return lines


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Where to write."""

    out: Path = Path("benchmarks/results/growth")
    redraw: bool = False
    """Draw again from the growth.json that is there."""


def main() -> None:
    """Measure, write and draw."""
    from sorl.provenance import provenance

    arguments = tyro.cli(Arguments, description=__doc__)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "growth.json"
    if not arguments.redraw:
        write_json(path, {**provenance(), "rows": run()})
    found = json.loads(path.read_text())
    draw(found["rows"], arguments.out / "growth.png")
    machine = found["machine"]
    (arguments.out / "table.md").write_text(
        "\n".join(
            [
                f"{machine['processor']}, {machine['cores']} cores, {found['created'][:10]}, jax "
                f"{found['versions']['jax']}: SORL, batch {BASE.batch_size}, {BASE.network}, "
                "one seed unless the axis says otherwise; random data.",
                "",
                *table(found["rows"]),
                "",
            ]
        )
    )


if __name__ == "__main__":
    main()
