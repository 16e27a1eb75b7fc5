"""The report: right numbers, a page that parses and reaches for nothing, and no run it fails on."""

from __future__ import annotations

import base64
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sorl.errors import InputError
from sorl.report import drawing, figures, results
from sorl.report.page import write_report
from sorl.report.statistics import Estimate
from sorl.runs import Run

VOID = {"meta", "br", "img", "link"}
Row = dict[str, Any]


class Page(HTMLParser):
    """Reads a page and checks on the way that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def figures(self) -> list[str]:
        return re.findall(r"<svg.*?</svg>", self.raw, flags=re.DOTALL)


def evaluation(update: int, budget: str, success: float, **others: Any) -> Row:
    steps, best_of = budget.split("x")
    row = {"update": update, "task": 2, "seed": 0, "budget": budget, "steps": int(steps),
           "best_of": int(best_of), "episodes": 50, "success": success, "return": -100.0,
           "length": 120.0, "latency_ms": 0.5 * int(steps), "act_ms": 0.1}  # fmt: skip
    return row | others


def curve(seeds: Sequence[int] = (0, 1), budgets: Sequence[str] = ("1x1", "4x1")) -> Iterator[Row]:
    for update in (1000, 2000, 3000, 4000):
        for budget in budgets:
            for seed in seeds:
                success = update / 5000 * (0.5 if budget == "1x1" else 1.0) + 0.1 * seed
                yield evaluation(update, budget, success, seed=seed)


def make_run(
    path: Path,
    evaluations: Sequence[Row] | None = None,
    metrics: Sequence[Row] | None = None,
    **config: Any,
) -> Path:
    run = Run.create(
        path,
        {
            "algorithm": {"name": "sorl", "hidden": [256, 256], "q_loss_coef": 10.0},
            "environment": "cube-single-play-singletask-v0",
            "tasks": [2],
            "seeds": [0, 1],
            "dataset": {"fingerprint": "sha256:abc123", "rows": 1000},
            "machine": {"cores": 2},
            "created": "2026-01-01T00:00:00",
        }
        | config,
    )
    if metrics is None:
        metrics = [
            {"update": update, "task": 2, "seed": seed, "critic_loss": 10.0 / update + seed}
            for update in range(100, 4100, 100)
            for seed in (0, 1)
        ]
    run.append_metrics(metrics)
    run.append_timing([{"update": 100, "seconds": 4.0, "updates_per_second": 25.0}])
    run.append_evaluations(list(curve()) if evaluations is None else evaluations)
    return path


def page_of(*runs: Path) -> Page:
    out = runs[0].parent / "report.html"
    assert write_report(runs, out) == out
    return Page(out.read_text(encoding="utf-8"))


def check_self_contained(page: Page) -> None:
    assert not re.search(r"https?:", page.raw)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", page.raw))


def check_figures(page: Page) -> None:
    names: list[str] = []
    for figure in page.figures:
        ElementTree.fromstring(figure)
        own = re.findall(r'\bid="(.*?)"', figure)
        used = re.findall(r'url\(#(.*?)\)|href="#(.*?)"', figure)
        assert {first or second for first, second in used} <= set(own)
        names += own
    assert len(names) == len(set(names))


def test_a_whole_page(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "a"))
    check_self_contained(page)
    check_figures(page)
    # One panel of curves, two heat maps, success against time, one metric.
    assert len(page.figures) == 5
    assert (
        "SORL on cube-single-play, task 2: 85% success (95% bootstrap interval 80% to 90%) at 4x1, "
        "the best of 2 budgets, after 4,000 updates, 2 seeds, 50 episodes each." in page.text
    )
    for expected in ("sha256:abc123", "[256, 256]", "2026-01-01T00:00:00", "no seed was stopped"):
        assert expected in page.text
    assert re.search(r"updates per second \(median\) 25\b", page.text)


def test_numbers_of_the_results_table(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "a"))
    # 1x1: 0.1, 0.2, 0.3, 0.4 for seed 0 and 0.1 more for seed 1; 4x1: 0.2, 0.4, 0.6, 0.8.
    assert "| a | 1x1 | 45% [40, 50] | 35% [30, 40] | 0.50 | -100.0 | 120.0 | 4,000 | 2 | 50 |" in (
        page.text
    )
    assert "| a | 4x1 | 85% [80, 90] | 65% [60, 70] | 2.0 | -100.0 | 120.0 | 4,000 | 2 | 50 |" in (
        page.text
    )
    best = re.findall(r'<tr class="best"><th scope="row">(.*?)</th>', page.raw)
    assert best == ["4x1"]


def test_heat_maps_show_the_last_evaluation(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "a"))
    success, latency = page.figures[1:3]
    assert re.findall(r">(\d+%)<", success) == ["45%", "85%"]
    assert re.findall(r">(\d+ to \d+)<", success) == ["40 to 50", "80 to 90"]
    assert re.findall(r">(\d\.\d+)<", latency) == ["0.50", "2.0"]


def test_tasks_are_averaged_and_listed(tmp_path: Path) -> None:
    rows = [
        evaluation(1000, "4x1", 0.2 * task + 0.1 * seed, task=task, seed=seed)
        for task in (1, 2, 3)
        for seed in (0, 1)
    ]
    page = page_of(make_run(tmp_path / "a", rows, tasks=[1, 2, 3]))
    assert "tasks 1 to 3: 45% success" in page.text
    assert re.search(
        r"\| a \| 4x1 \| 45% \[[\d., ]+\] \| — \| 25% \[20, 30\] \| 45% \[40, 50\] \| 65%",
        page.text,
    )


def test_a_single_seed_has_no_band_and_says_so(tmp_path: Path) -> None:
    band = "fill-opacity: 0.16"
    single = page_of(make_run(tmp_path / "a", list(curve(seeds=[0])), [], seeds=[0]))
    assert "One seed only, so no interval is drawn." in single.text
    assert "bootstrap" not in single.text
    assert band not in single.raw
    pair = page_of(make_run(tmp_path / "b"))
    assert band in pair.raw
    assert "Fewer than five seeds" in pair.text


def test_several_runs_share_the_figures(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first")
    second = make_run(tmp_path / "second", environment="scene-play-singletask-v0")
    page = page_of(first, second)
    check_self_contained(page)
    check_figures(page)
    # Two budgets, two heat maps a run, success against time, one metric.
    assert len(page.figures) == 2 + 4 + 1 + 1
    assert "These runs solve different tasks" in page.text
    assert "different machines" not in page.text
    assert page.raw.count('data-marker="') == 3 * 2
    assert '<tr class="differs"><th scope="row">environment' in page.raw


def test_a_metric_s_point_without_a_neighbour_is_seen() -> None:
    """A line of one point is nothing; a run of fewer updates than are logged at a time has one."""

    def marks(values: list[float]) -> int:
        value = np.array(values)
        nothing = np.full_like(value, np.nan)
        one = figures.Curve(0, np.arange(float(len(value))), Estimate(value, nothing, nothing))
        return figures.metric_curves([one], "a metric").count("<use")

    nothing = marks([np.nan])
    assert marks([0.5]) == nothing + 1
    assert marks([0.5, np.nan, 0.7, np.nan, 0.1]) - marks([0.5, 0.6, 0.7, 0.4, 0.1]) == 3


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are text there")
def test_a_name_that_is_no_text_is_told_as_far_as_it_is(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "odd\udcff"))
    check_figures(page)
    assert "odd?" in page.text


def test_odd_names_are_escaped(tmp_path: Path) -> None:
    odd = '<script>alert(1)<b>&amp;"$x$ | 日本\n'
    run = make_run(
        tmp_path / odd,
        None,
        [{"update": 1, "task": 2, "seed": 0, "<i>$loss": 1.0}],
        environment="<u>maze",
        note="</table><img src=x>",
    )
    Run.open(run).append_event(3, "stopped </td><script>", task=2, seed=0)
    page = page_of(run, make_run(tmp_path / "b"))
    check_self_contained(page)
    check_figures(page)
    assert not {"script", "u", "img"} & {tag for tag, _ in page.tags}
    assert " ".join(odd.split()) in page.text
    for text in ("<i>$loss", "on <u>maze", "</table><img src=x>", "stopped </td><script>"):
        assert text in page.text


ODD_RUNS: dict[str, dict[str, Any]] = {
    "nothing recorded": {"evaluations": [], "metrics": []},
    "no evaluation": {"evaluations": []},
    "no metric": {"metrics": []},
    "one cell": {"evaluations": [evaluation(10, "1x1", 0.5)], "seeds": [0]},
    "one budget": {"evaluations": list(curve(budgets=["4x1"]))},
    "nan cells": {
        "evaluations": [
            evaluation(10, "1x1", math.nan, latency_ms=math.nan),
            evaluation(10, "4x1", 0.5, latency_ms=math.nan, episodes=math.nan),
            evaluation(20, "4x1", math.nan, latency_ms=math.inf),
        ],
        "metrics": [{"update": 1, "task": 2, "seed": 0, "loss": math.nan, "other": math.inf}],
    },
    "all zero": {"evaluations": [evaluation(10, b, 0.0, latency_ms=0.0) for b in ("1x1", "2x1")]},
    "a seed that stopped": {
        "evaluations": [row for row in curve() if row["update"] * row["seed"] < 3000],
    },
    "a task never evaluated": {"tasks": [1, 2]},
    "rows without meaning": {
        "evaluations": [{"update": 1, "task": 2, "seed": 0, "budget": "often", "success": 0.5}],
        "metrics": [{"update": 1, "task": 2, "seed": 0, "loss": "high"}],
    },
    "no environment": {"environment": None, "tasks": [0], "algorithm": {}},
    "odd settings": {"tasks": None, "seeds": "all", "algorithm": "sorl", "dataset": None},
    "ten budgets": {
        "evaluations": [
            evaluation(update, f"{2**i}x1", 0.05 * i, seed=seed)
            for update in (10, 20) for i in range(10) for seed in (0, 1)
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_RUNS)
def test_no_run_is_too_odd(name: str, tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "odd", **ODD_RUNS[name]))
    check_self_contained(page)
    check_figures(page)
    assert "nan" not in page.text.lower().replace("nan cells", "")


def test_odd_runs_side_by_side(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, **options) for name, options in ODD_RUNS.items()]
    page = page_of(*runs)
    check_self_contained(page)
    check_figures(page)
    assert all(name in page.text for name in ODD_RUNS)


CELLS = st.one_of(st.floats(0.0, 1.0), st.just(math.nan))
ROWS = st.lists(
    st.builds(
        evaluation,
        st.sampled_from([1, 10, 20]),
        st.sampled_from(["1x1", "4x1", "4x8", "8x64"]),
        CELLS,
        task=st.integers(1, 2),
        seed=st.integers(0, 2),
        latency_ms=st.one_of(st.floats(0.0, 1e4), st.just(math.nan)),
    ),
    max_size=12,
)


@settings(max_examples=8, deadline=None)
@given(rows=ROWS)
def test_any_scattered_evaluations_give_a_page(
    rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    page = page_of(make_run(tmp_path_factory.mktemp("any") / "run", rows, []))
    check_self_contained(page)
    check_figures(page)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    import matplotlib

    run = make_run(tmp_path / "a")
    first = page_of(run).raw
    with matplotlib.rc_context({"xtick.major.size": 9.0, "svg.fonttype": "path"}):
        assert page_of(run).raw == first
        assert matplotlib.rcParams["xtick.major.size"] == 9.0


def test_figures_take_their_colours_from_the_page(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "a"))
    drawn = "".join(page.figures)
    assert not [color for color in drawing.VARIABLES if color in drawn]
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", page.raw))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", page.raw))


def test_media_are_embedded_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    media = run / "media"
    media.mkdir()
    contents = {"rollout-4x1.gif": b"GIF89a-one", "b.MP4": b"film", "c.png": b"\x89PNG"}
    for name, content in contents.items():
        (media / name).write_bytes(content)
    (media / "danger.svg").write_text("<svg onload='x'>")
    page = page_of(run)
    check_self_contained(page)
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag in ("img", "video")]
    assert [source.partition(";")[0] for source in sources] == [
        "data:video/mp4", "data:image/png", "data:image/gif",
    ]  # fmt: skip
    assert {base64.b64decode(source.partition(",")[2]) for source in sources} == set(
        contents.values()
    )
    assert "danger" not in page.raw


def test_media_too_large_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "media").mkdir()
    with (run / "media" / "long.mp4").open("wb") as file:
        file.truncate(25 * 2**20)
    page = page_of(run)
    assert "long: too large to embed (25 MiB)." in page.text
    assert len(page.raw) < 2**20


def test_events_are_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    Run.open(run).append_event(1500, "The critic exploded.", task=2, seed=1)
    assert "a 1500 2 1 The critic exploded." in page_of(run).text


def test_what_is_no_run_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("earlier")
    (tmp_path / "empty").mkdir()
    for paths in ([tmp_path / "absent"], [tmp_path / "empty"], [], [make_run(tmp_path / "a"), out]):
        with pytest.raises(InputError, match="run"):
            write_report(paths, out)
    assert out.read_text() == "earlier"


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "evaluations.csv").write_bytes(b"update,task\n1,2,3,4\n")
    with pytest.raises(InputError, match=r"evaluations\.csv"):
        page_of(run)


def test_the_page_goes_to_a_file_in_a_new_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    out = write_report(str(run), str(tmp_path / "new" / "folder" / "page.html"))
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    with pytest.raises(InputError, match="is a folder"):
        write_report([run], tmp_path / "new")
    with pytest.raises(InputError, match="Cannot write"):
        write_report([run], out / "below-a-file.html")


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / parent / "run") for parent in ("one", "two")]
    paths += [make_run(tmp_path / "other")]
    assert [run.name for run in results.read(paths)] == ["one/run", "two/run", "other"]
    assert len({run.name for run in results.read([paths[0], paths[0], paths[1]])}) == 3


def test_evaluations_as_arrays(tmp_path: Path) -> None:
    rows = list(curve())
    rows += [evaluation(4000, "4x1", 0.0, seed=1), evaluation(9000, "1x1", 0.33)]
    evaluations = results.read([make_run(tmp_path / "a", rows)])[0].evaluations
    assert evaluations.updates.tolist() == [1000, 2000, 3000, 4000, 9000]
    assert [str(budget) for budget in evaluations.budgets] == ["1x1", "4x1"]
    # A repeated evaluation replaces the earlier one.
    np.testing.assert_allclose(evaluations.last("success", 1), [[0.8], [0.0]])
    # Each budget has its own last update; a seed that is not in it has no score.
    np.testing.assert_allclose(evaluations.last("success", 0), [[0.33], [np.nan]])
    assert (evaluations.last_update(0), evaluations.last_update(1)) == (9000, 4000)
    expected = [[(0.4 + 0.6 + 0.8) / 3], [(0.5 + 0.7 + 0.0) / 3]]
    np.testing.assert_allclose(evaluations.mean_of_last("success", 1), expected)


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 400), seed=st.integers(0, 99))
def test_long_metrics_are_merged_without_bias(
    length: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = np.random.default_rng(seed).normal(size=length)
    rows = [
        {"update": 7 * (i + 1), "task": 2, "seed": 0, "loss": float(value)}
        for i, value in enumerate(values)
    ]
    run = make_run(tmp_path_factory.mktemp("long") / "run", [], rows)
    metrics = results.read([run])[0].metrics
    points = metrics.columns["loss"][:, 0, 0]
    assert len(points) == len(metrics.updates) == min(length, 150)
    assert (np.diff(metrics.updates) > 0).all()
    parts = np.array_split(np.arange(length), [math.ceil(k * length / 150) for k in range(1, 150)])
    parts = [part for part in parts if len(part)] if length > 150 else [[i] for i in range(length)]
    np.testing.assert_allclose(points, [values[part].mean() for part in parts], atol=1e-12)


NUMBERS = st.one_of(st.integers(0, 6).map(float), st.just(math.nan))


@given(arrays.arrays(np.float64, st.tuples(st.just(2), st.integers(0, 8)), elements=NUMBERS))
def test_pareto_front_equals_the_slow_one(points: np.ndarray) -> None:
    cost, value = points
    expected = []
    for c, v in zip(cost, value, strict=True):
        beaten = any(
            (c2 <= c and v2 >= v) and (c2 < c or v2 > v) for c2, v2 in zip(cost, value, strict=True)
        )
        expected.append(bool(np.isfinite(c) and np.isfinite(v) and not beaten))
    assert figures.pareto_front(cost, value).tolist() == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(150_000, "150k"), (1.5e6, "1.5M"), (0.0, "0"), (0.002, "0.002"), (-1.005, "-1.005")],
)
def test_numbers_under_ticks(value: float, text: str) -> None:
    assert drawing.short(value) == text


def test_importing_the_report_is_light() -> None:
    heavy = ("jax", "matplotlib", "mujoco", "ogbench")
    code = f"import sys, sorl.report.page; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
