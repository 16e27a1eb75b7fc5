"""What a target leaves: rows, figure, and a page that says what they show and where they come from.

    rows.csv         everything the figure and the findings are made of
    origin.json      scale, its size, machines, dates, versions
    figure.png       where the target has a figure
    README.md        the page

The page and the figure are made of the other two alone, so they can be made again without any run,
and tell the sizes that the rows were made at, also when a scale's have changed since. Tables 3 to 5
have no rows: they are of the code as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sorl import files
from sorl.errors import InputError
from sorl.experiments import rows as rows_module
from sorl.experiments.experiment import Experiment
from sorl.experiments.rows import Rows
from sorl.experiments.scales import Scale
from sorl.report.statistics import CAUTION, FEW_RUNS

ROWS, ORIGIN, FIGURE, PAGE = "rows.csv", "origin.json", "figure.png", "README.md"


def keep(folder: Path, rows: Rows, origin: Mapping[str, Any]) -> None:
    """Write rows and origin, from which `draw` makes the rest.

    Raises:
        InputError: the folder cannot be written.
    """
    with files.explained("create", folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows_module.write(folder / ROWS, rows)
    files.write_json(folder / ORIGIN, dict(origin))


def draw(folder: Path, target: str, experiment: Experiment, scale: Scale) -> None:
    """Make figure and page from the kept rows and origin.

    Raises:
        InputError: they are not there, damaged, of another version or of another scale.
    """
    if not (folder / ORIGIN).exists():
        raise InputError(
            f"{folder} holds no results of {target}: make them with `sorl reproduce {target}` "
            "without --redraw."
        )
    origin = files.read_json(folder / ORIGIN)
    if origin.get("scale") != scale.name:
        raise InputError(
            f"The results in {folder} are of scale {origin.get('scale')}, not {scale.name}: name "
            "that scale, or another --results."
        )
    kept = tuple(origin.get("only", ()))
    if scale.only and set(scale.only) != set(kept):
        raise InputError(
            f"The results in {folder} are of {', '.join(kept) or 'all data sets'}, not of "
            f"{', '.join(scale.only)}: leave out --environments, or name another --results."
        )
    rows = rows_module.read(folder / ROWS)
    if origin.get("rows") != len(rows.rows):
        raise InputError(
            f"{folder / ROWS} holds {len(rows.rows)} rows where {ORIGIN} tells of "
            f"{origin.get('rows')}: make them anew without --redraw."
        )
    try:
        _draw(folder, target, experiment, scale.narrowed(kept), origin, rows)
    except InputError:  # a sentence of its own, and a ValueError too
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"The results in {folder} are damaged or of another version ({type(error).__name__}: "
            f"{error}): make them anew without --redraw."
        ) from error


def _draw(
    folder: Path,
    target: str,
    experiment: Experiment,
    scale: Scale,
    origin: Mapping[str, Any],
    rows: Rows,
) -> None:
    parts = [f"# {experiment.title}", _note(experiment, origin, rows)]
    if origin["parts"] and not rows:
        parts.append("Every run diverged before its first evaluation, so nothing was scored.")
        with files.explained("write", folder / FIGURE):
            (folder / FIGURE).unlink(missing_ok=True)
        files.write_text(folder / PAGE, "\n\n".join(parts) + "\n")
        return
    if experiment.draw is not None:
        figure = experiment.draw(rows, "\n".join((experiment.title, _short_note(origin))))
        temporary = folder / f".saving-{FIGURE}"
        with files.explained("write", folder / FIGURE):
            figure.savefig(temporary, format="png", dpi=110)
            temporary.replace(folder / FIGURE)
        parts.append(f"![{experiment.title}]({FIGURE})")
    if experiment.table is not None:
        parts.append(experiment.table(rows, scale))
    parts.append(f"**The paper.** {experiment.published}")
    if experiment.findings is not None:
        found = "\n".join(f"* {sentence}" for sentence in experiment.findings(rows, scale))
        parts.append(f"**Here.**\n\n{found}")
    if stopped := _stopped(rows):
        parts.append(f"Diverged, and scored by their last good state: {'; '.join(stopped)}.")
    command = f"sorl reproduce {target} --scale {scale.name}"
    if only := origin.get("only"):
        command += f" --environments {' '.join(only)}"
    parts.append(
        f"Made by `{command}`; drawn again from {ROWS} by `{command} --redraw --results FOLDER`, "
        "the folder that this one lies in."
    )
    files.write_text(folder / PAGE, "\n\n".join(parts) + "\n")


def _stopped(rows: Rows) -> list[str]:
    """The members that diverged, told apart by what their method's runs differ in.

    Where a whole run did, its last evaluation came before those of the others.
    """
    found = []
    stopped = rows.where(stopped=1).rows
    end = max(row["update"] for row in rows.rows) if stopped else 0  # measurements have no updates
    for row in stopped:
        mine = rows.where(method=row["method"])
        places = {"task": "task", "seed": "seed"}
        for column, word in (("backprop_steps", "M^BTT"), ("actor_width", "units")):
            if len(mine.values(column)) > 1:
                places[column] = word
        where = ", ".join(f"{word} {row[column]:g}" for column, word in places.items())
        last = max(
            other["update"] for other in mine.rows if all(other[c] == row[c] for c in places)
        )
        if last < end:
            where += f", last evaluated after {last:,.0f} of {end:,.0f} updates"
        found.append(f"{row['method']} on {row['environment']} ({where})")
    return list(dict.fromkeys(found))


def check_room(folder: Path, scale: Scale) -> None:
    """Results must not take the place of another scale's, nor those of some data sets of more.

    Raises:
        InputError: they would.
    """
    if not (folder / ORIGIN).exists():
        return
    before = files.read_json(folder / ORIGIN)
    if before.get("scale") != scale.name:
        raise InputError(
            f"The results in {folder} are of scale {before.get('scale')}, and those of "
            f"{scale.name} would take their place: name another --results."
        )
    if not scale.only:
        return
    kept = before.get("only")
    if kept is None or not set(kept) <= set(scale.only):
        raise InputError(
            f"The results in {folder} are of {', '.join(kept or ['all data sets'])}, and those of "
            f"{', '.join(scale.only)} alone would take their place: name another --results."
        )


def origin_of(
    experiment: Experiment, scale: Scale, rows: Rows, configs: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Where rows come from: sizes, and the machines, dates and versions of what they stand on.

    Args:
        experiment: whose rows they are.
        scale: the scale that they were made at.
        rows: the rows.
        configs: of every run or measurement what `provenance` said.
    """
    configs = list(configs)
    machines = [config["machine"] for config in configs]
    versions = [config["versions"] for config in configs]
    dates = sorted(str(config["created"]) for config in configs)
    return {
        "scale": scale.name,
        "size": experiment.size(scale),
        **({"only": list(scale.only)} if scale.only and experiment.cells(scale) else {}),
        "episodes": scale.episodes,
        "rows": len(rows.rows),
        "machines": [one for place, one in enumerate(machines) if one not in machines[:place]],
        "versions": [one for place, one in enumerate(versions) if one not in versions[:place]],
        "begun": dates[0] if dates else None,
        "last_begun": dates[-1] if dates else None,
        "parts": len(configs),
    }


def _dates(origin: Mapping[str, Any]) -> str:
    first, last = (str(origin.get(name) or "")[:10] for name in ("begun", "last_begun"))
    return first if first == last else f"{first} to {last}"


def _short_note(origin: Mapping[str, Any]) -> str:
    return f"{origin['size']}; {_machines(origin)}; {_dates(origin)}"


def _machines(origin: Mapping[str, Any]) -> str:
    texts = []
    for machine in origin["machines"]:
        cores = int(machine["cores"])
        devices = [one for one in dict.fromkeys(machine["devices"]) if one != "cpu"]
        where = ", ".join(devices) or f"{cores} core{'s'[: cores > 1]} of {machine['processor']}"
        texts.append(where)
    return " and ".join(dict.fromkeys(texts)) or "no machine"


def _note(experiment: Experiment, origin: Mapping[str, Any], rows: Rows) -> str:
    """What it took, for the page."""
    text = f"**{origin['size']}.**"
    if not origin["parts"]:
        return f"{text} Nothing was run for this."
    if experiment.measurement is None:
        seeds = len(rows.values("seed"))  # an experiment may have fewer than its scale
        text += (
            f" {seeds} seeds, {origin['episodes']} episodes for each budget, task and seed in one "
            "evaluation; scores are means over the last three evaluations, with 95% bootstrap "
            f"intervals over seeds. {CAUTION + ' ' if seeds < FEW_RUNS else ''}"
            f"{_count(origin, 'run')},"
        )
    else:
        text += f" {_count(origin, 'measurement')},"
    return f"{text} each on {_machines(origin)}, begun {_dates(origin)}."


def _count(origin: Mapping[str, Any], what: str) -> str:
    return f"{origin['parts']} {what}{'s'[: origin['parts'] != 1]}"
