"""Reproducing figures and tables: cells, rows, cost, every figure on known scores, the command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from finished_run import ENVIRONMENT, tree
from scripted_world import World
from sorl import algorithms, cli, provenance, tables
from sorl.algorithms.bc import BC
from sorl.algorithms.rebrac import ReBRAC
from sorl.algorithms.sorl import SORL
from sorl.choices import Choice
from sorl.data.names import EnvironmentName
from sorl.data.sources import load_dataset
from sorl.errors import InputError
from sorl.experiments import (
    TARGETS,
    cost,
    experiment,
    figure1,
    figure2,
    figure3,
    figure4,
    figure5,
    results,
    table1,
    table2,
    tables3to5,
    trained_data,
)
from sorl.experiments import rows as rows_module
from sorl.experiments.cells import Cell, cell, merged
from sorl.experiments.experiment import Experiment, Measurement
from sorl.experiments.reproduce import Reproduction, chosen, redraw, reproduce
from sorl.experiments.rows import Rows, collect
from sorl.experiments.scales import PAPER_ENVIRONMENTS, SCALES, Scale, scale
from sorl.jobs.scoring import Scoring
from sorl.launch.progress import Standing
from sorl.launch.work import Work
from sorl.report import statistics
from sorl.runs import Run, locked
from sorl.types import Budget, Spec

pytest_plugins = ("run_fixtures",)

LAPTOP = scale("laptop")
CUBE = "cube-single-play-v0"


# Cells.


def test_a_cell_takes_the_published_values_then_the_scale_s_then_the_experiment_s() -> None:
    made = cell(scale("paper"), "cube-double-play-v0", (1, 2), "sorl", backprop_steps=2)
    assert made.algorithm == SORL(q_loss_coef=50.0, backprop_steps=2)
    assert (made.job(None).updates, made.job(None).seeds) == (1_000_000, tuple(range(8)))
    small = cell(LAPTOP, CUBE, (2,), "rebrac", policy_delay=1)
    assert small.algorithm == ReBRAC(
        actor_penalty=0.3, critic_penalty=0.0, hidden=(256, 256), learning_rate=1e-3, policy_delay=1
    )


def test_cells_share_a_folder_exactly_where_all_that_decides_the_run_is_equal() -> None:
    base = cell(LAPTOP, CUBE, (2,), "bc")
    same = dataclasses.replace(base, scorings=(Scoring((Budget(1, 1),)),))
    others = [
        dataclasses.replace(base, tasks=(1,)),
        dataclasses.replace(base, dataset="cube-double-play-v0"),
        dataclasses.replace(base, seeds=2),
        dataclasses.replace(base, algorithm=BC(hidden=(256, 256), learning_rate=2e-3)),
        *(
            dataclasses.replace(base, scale=dataclasses.replace(LAPTOP, **{name: value}))
            for name, value in {
                "updates": 36_000,
                "evaluate_every": 3_000,
                "batch_size": 64,
                "episodes": 10,
                "generated": 10,
                "arithmetic": "bfloat16",
            }.items()
        ),
    ]
    assert same.name == base.name
    names = [one.name for one in (base, *others)]
    assert len(set(names)) == len(names)


def test_what_tells_a_cell_from_the_usual_one() -> None:
    assert cell(LAPTOP, CUBE, (2,), "sorl").varied == ""
    made = cell(LAPTOP, CUBE, (2,), "sorl", backprop_steps=2, actor_hidden=(32, 32))
    assert made.varied == "backprop_steps=2 actor_hidden=32x32"


def test_a_run_of_two_experiments_is_one_with_the_scorings_of_both() -> None:
    first = [*figure1.cells(LAPTOP), *figure4.cells(LAPTOP)]
    both = merged([*first, *figure2.cells(LAPTOP)])
    assert [algorithms.describe(one.algorithm)["backprop_steps"] for one in both] == [8, 1, 2, 4]
    full = both[0].scorings
    assert full.count(figure1.one_candidate(LAPTOP)) == 1
    assert {scoring.choice for scoring in full} >= {Choice("best"), Choice("typical", 2)}


def test_the_paper_s_scale_is_the_paper_s() -> None:
    paper = scale("paper")
    assert {e: len(tasks) for e, tasks in paper.table_environments.items()} == dict.fromkeys(
        PAPER_ENVIRONMENTS, 5
    )
    every = merged(table1.cells(paper))
    assert len(every) == 8 * 11
    assert all(one.seeds == 8 and one.scale.updates == 1_000_000 for one in every)
    assert all(algorithms.describe(one.algorithm)["hidden"] == (512,) * 4 for one in every)
    assert sorted(table1.METHODS) == algorithms.names()
    assert all(one.seeds == 5 for one in figure5.cells(paper))


def test_a_scale_narrowed_to_some_data_sets_makes_their_runs_alone_and_the_same() -> None:
    some = LAPTOP.narrowed([CUBE])
    assert some.only == (CUBE,)
    assert [one.name for one in figure1.cells(some)] == [one.name for one in figure1.cells(LAPTOP)]
    whole = [one.name for one in table1.cells(LAPTOP) if one.dataset == CUBE]
    assert [one.name for one in table1.cells(some)] == whole
    assert 0 < len(whole) < len(table1.cells(LAPTOP))
    assert LAPTOP.narrowed([]) is LAPTOP
    with pytest.raises(InputError, match="Scale laptop has no data set 'cube': choose of cube-sin"):
        LAPTOP.narrowed([CUBE, "cube"])


def test_a_run_multiplies_in_the_numbers_of_its_scale_and_the_figure_names_them() -> None:
    hour = scale("gpu-hour")
    assert {one.job(None).arithmetic for one in figure1.cells(hour)} == {"bfloat16"}
    assert "products in bfloat16" in hour.describe()
    assert "bfloat16 in training and float32 in decisions" in figure3.size(hour)
    for exact in (LAPTOP, scale("paper")):
        assert {one.job(None).arithmetic for one in figure1.cells(exact)} == {"float32"}
        assert "float" not in exact.describe() + figure3.size(exact)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_possible_runs_at_every_scale(target: str, name: str) -> None:
    for one in experiment(target).cells(scale(name)):
        assert one.job(None).evaluate_every % one.job(None).log_every == 0
        for scoring in one.scorings:
            assert len(scoring.updates(one.job(None))) == scoring.milestones


# Rows.


def made_rows(
    success: Any,
    *,
    methods: Sequence[str] = ("sorl",),
    trained: Sequence[int] = (8,),
    widths: Sequence[int] = (256,),
    budgets: Sequence[tuple[int, int, str]],
    environment: str = "cube-single-play",
    tasks: Sequence[int] = (2,),
    seeds: int = 3,
) -> Rows:
    """Rows whose success is a function of the other columns."""
    found = []
    for method, t, width, budget, task, seed, update in itertools.product(
        methods, trained, widths, budgets, tasks, range(seeds), (1, 2, 3)
    ):
        row: dict[str, Any] = {
            "method": method,
            "environment": environment,
            "backprop_steps": t,
            "actor_width": width,
            "steps": budget[0],
            "best_of": budget[1],
            "choice": budget[2],
            "task": task,
            "seed": seed,
            "update": update,
            "stopped": 0,
        }
        found.append(row | {"success": success(row)})
    return Rows(found)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_scores_equal_a_slow_mean(seeds: int, tasks: int, updates: int, number: int) -> None:
    generator = np.random.default_rng(number)
    values = generator.uniform(size=(seeds, tasks, updates))
    table = [
        {"environment": "e", "seed": s, "task": t, "update": u, "success": values[s, t, u]}
        for s, t, u in np.ndindex(values.shape)
    ]
    generator.shuffle(table)  # pyright: ignore[reportArgumentType] - a list of rows
    rows = Rows(table)
    np.testing.assert_allclose(rows.scores(), values.mean(axis=2))
    gone = Rows(table[1:])
    if len(gone.values("update")) == updates and len(gone.rows) > 1:
        first = table[0]
        if any(r["seed"] == first["seed"] and r["task"] == first["task"] for r in gone.rows):
            scores = gone.where(seed=first["seed"], task=first["task"]).scores()
            whole = len(gone.where(seed=first["seed"], task=first["task"]).rows) == updates
            assert whole or updates > 1
            assert scores.shape == (1, 1)
            everyone = gone.scores()
            assert np.isnan(everyone).sum() == 1, "a member that lacks an update has no score"


def test_tasks_of_two_environments_are_two_tasks() -> None:
    rows = [
        {"environment": e, "seed": s, "task": 1, "update": 1, "success": s + 10 * (e == "b")}
        for e in "ab"
        for s in (0, 1)
    ]
    np.testing.assert_array_equal(Rows(rows).scores(), [[0, 10], [1, 11]])


def test_a_method_that_diverged_in_one_environment_keeps_its_scores() -> None:
    def rows(environment: str, updates: Sequence[int], success: float) -> list[dict[str, Any]]:
        return [
            {"environment": environment, "seed": s, "task": 1, "update": u, "success": success}
            for s in (0, 1)
            for u in updates
        ]

    early = Rows([*rows("a", (6, 12, 18), 0.5), *rows("b", (18, 24, 30), 1.0)])
    np.testing.assert_array_equal(early.scores(), [[0.5, 1.0], [0.5, 1.0]])
    whole = Rows([*rows("b", (18, 24, 30), 0.5), *rows("a", (18, 24, 30), 0.25)])
    assert float(early.better_than(whole).value) == 1
    # One that diverged before its first evaluation lacks a task: nothing is compared.
    assert math.isnan(whole.better_than(Rows(rows("b", (18, 24, 30), 0.5))).value)


def test_what_is_collected_is_what_the_last_three_evaluations_of_the_run_say(
    tmp_path: Path,
) -> None:
    run = Run.create(tmp_path / "run", {"tasks": [2], "seeds": [0, 1]})
    common = {"episodes": 5, "return": -1.0, "length": 9.0, "latency_ms": 1.0, "act_ms": 1.0}
    values = np.random.default_rng(0).uniform(size=(5, 2))
    run.append_evaluations(
        {"update": u, "task": 2, "seed": s, "budget": "1x1", "steps": 1, "best_of": 1}
        | common
        | {"success": values[u - 1, s]}
        for u, s in itertools.product(range(1, 6), (0, 1))
    )
    tables.append_rows(
        run.path / "scores.csv",
        (
            {"update": u, "task": 2, "seed": s, "budget": "1x8", "steps": 1, "best_of": 8}
            | common
            | {"success": 0.5, "choice": choice, "evaluation_seed": 0}
            for u, s, choice in itertools.product((3, 4, 5), (0, 1), ("best", "typical-2"))
        ),
    )
    found = collect([(cell(LAPTOP, CUBE, (2,), "bc", seeds=2), run.path)])
    single = found.where(best_of=1)
    assert sorted(single.values("update")) == [3, 4, 5]
    np.testing.assert_allclose(single.scores()[:, 0], values[2:].mean(axis=0))
    assert found.where(best_of=8).values("choice") == ["best", "typical-2"]
    assert found.values("method") == ["bc"]
    rows_module.write(tmp_path / "rows.csv", found)
    assert rows_module.read(tmp_path / "rows.csv") == found


# What a run costs.


def products(*sizes: int) -> int:
    return sum(a * b for a, b in itertools.pairwise(sizes))


def test_flops_equal_the_count_by_hand() -> None:
    spec, batch = Spec(28, 5), 64
    # Forward, and backward for the weights of every layer and the inputs of all but the first.
    layers = (28, 16, 16, 5)
    by_hand = 2 * batch * (3 * products(*layers) - 28 * 16)
    assert cost.flops_of_update(BC(hidden=(16, 16)), spec, batch) == by_hand
    # SORL as benchmarks/training.py counts it, with one step, to the first layers' share.
    small = SORL(hidden=(64, 64), backprop_steps=1)
    actor = products(28 + 5 + 2, 64, 64, 5)
    critic = 2 * products(28 + 5 + 1, 64, 64, 1)
    by_hand = 2 * batch * (actor * (1 + 8 + 3) + critic * 6)
    assert cost.flops_of_update(small, spec, batch) == pytest.approx(by_hand, rel=0.15)


def test_a_drawn_branch_counts_as_the_mean_of_its_alternatives() -> None:
    spec = Spec(28, 5)

    def flops(trained: int) -> float:
        return cost.flops_of_update(SORL(hidden=(32, 32), backprop_steps=trained), spec, 32)

    # Each further alternative k adds as much as the k of the ones before, and one more.
    one, two, four, eight = map(flops, (1, 2, 4, 8))
    step = (two - one) / (1.5 - 1)
    assert (four - one) / (7 / 3 - 1) == pytest.approx(step, rel=0.02)
    assert (eight - one) / (15 / 4 - 1) == pytest.approx(step, rel=0.02)


def test_the_cost_of_a_run_is_that_of_its_updates_seeds_and_tasks() -> None:
    made = dataclasses.replace(cell(LAPTOP, CUBE, (1, 2), "bc"), seeds=3)
    update = cost.flops_of_update(made.algorithm, Spec(28, 5), 128)
    assert cost.flops_of_run(made) == update * 30_000 * 6
    assert cost.readable(1.5e12) == "1.5 TFLOP"
    assert cost.readable(2e16) == "20 PFLOP"
    assert cost.duration(3725.4) == "1:02:05"


# Every figure and table, on scores that are known.

SINGLE = [(k, 1, "own") for k in figure1.STEPS]


def test_figure_1_says_whether_success_rises() -> None:
    rising = made_rows(lambda row: row["steps"] / 10 + row["seed"] / 100, budgets=SINGLE)
    [sentence] = figure1.findings(rising, LAPTOP)
    assert "11% [10, 12], 21% [20, 22], 41% [40, 42], 81% [80, 82]" in sentence
    assert "rises at 3 of 3 doublings" in sentence
    assert "with probability 100% [100, 100]" in sentence
    late = made_rows(lambda row: float(row["update"] == 3), budgets=SINGLE)
    assert (
        "(the last evaluation alone: 100%, 100%, 100%, 100%)" in figure1.findings(late, LAPTOP)[0]
    )
    falling = made_rows(lambda row: 1 / row["steps"], budgets=SINGLE)
    assert "rises at 0 of 3" in figure1.findings(falling, LAPTOP)[0]


def test_figure_2_says_what_best_of_8_adds() -> None:
    stars = [(k, 8, name) for k in figure1.STEPS for name in ("best", "typical-2")]

    def success(row: dict[str, Any]) -> float:
        return {"own": 0.4, "best": 0.3, "typical-2": 0.9}[row["choice"]]

    rows = made_rows(success, trained=figure2.TRAINED, budgets=[*SINGLE, *stars])
    sentences = figure2.findings(rows, LAPTOP)
    assert len(sentences) == 8
    assert "M^BTT = 1, one candidate in 1, 2, 4, 8 steps: 40% [40, 40], 40%" in sentences[0]
    assert "one candidate 40% [40, 40], best of 8 30% [30, 30], typical-2 of 8 90%" in sentences[1]
    assert "M^BTT = 8 reaches 40% [40, 40] with one. Best-of-8 beats one" in sentences[1]
    assert "with probability 0% [0, 0]" in sentences[1]
    assert "reaches" not in sentences[7]


def test_figure_4_compares_one_step_with_as_many_as_were_trained() -> None:
    def success(row: dict[str, Any]) -> float:
        return 0.05 * row["backprop_steps"] if row["steps"] == 1 else 0.1 * row["steps"]

    rows = made_rows(success, trained=figure2.TRAINED, budgets=SINGLE)
    one, own = figure4.findings(rows, LAPTOP)
    assert "5% [5, 5], 10% [10, 10], 20% [20, 20], 40% [40, 40]" in one
    assert "5% [5, 5], 20% [20, 20], 40% [40, 40], 80% [80, 80]" in own


def test_figure_5_compares_each_method_at_its_own_budget() -> None:
    def success(row: dict[str, Any]) -> float:
        own = row["steps"] == (4 if row["method"] == "sorl" else 1)
        return row["actor_width"] / 1000 * (2 if row["method"] == "sorl" else 1) if own else 1.0

    rows = made_rows(success, methods=("sorl", "fql"), widths=(64, 256), budgets=SINGLE)
    sentences = figure5.findings(rows, LAPTOP)
    assert "SORL: 12.8% [12.8, 12.8], 51.2% [51.2, 51.2] with 64, 256 units" in sentences[0]
    assert "FQL: 6.4% [6.4, 6.4], 25.6%" in sentences[1]
    assert all("SORL beats FQL with probability 100%" in sentence for sentence in sentences[2:])


def keep_figure_5(folder: Path) -> None:
    """Results of figure 5 from two seeds, where its scale has three."""
    rows = made_rows(lambda row: 0.5, methods=("sorl", "fql"), budgets=SINGLE, seeds=2)
    machine = {"cores": 2, "devices": ["cpu"], "processor": "a processor"}
    config = {"machine": machine, "versions": {}, "created": "2026-11-24"}
    origin = results.origin_of(figure5.EXPERIMENT, LAPTOP, rows, [config])
    results.keep(folder, rows, origin)


def test_the_page_tells_the_seeds_of_its_rows_which_may_be_fewer_than_the_scale_s(
    tmp_path: Path,
) -> None:
    keep_figure_5(tmp_path)
    # What the rows were made at, whatever the scale of this name has become.
    since = dataclasses.replace(LAPTOP, updates=1, episodes=1)
    results.draw(tmp_path, "figure5", figure5.EXPERIMENT, since)
    assert LAPTOP.seeds == 3
    page = (tmp_path / "README.md").read_text()
    assert " 2 seeds, 20 episodes for each budget" in page
    assert "30,000 updates" in page
    assert statistics.CAUTION in page


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "rows.csv").unlink(), "holds 0 rows where origin.json tells of"),
        (
            lambda folder: (folder / "rows.csv").write_text(
                "".join((folder / "rows.csv").read_text().splitlines(keepends=True)[:-1])
            ),
            "rows where origin.json tells of",
        ),
        (lambda folder: _replace(folder / "rows.csv", "success", "won"), "KeyError: 'success'"),
        (lambda folder: _replace(folder / "origin.json", '"cores": 2', '"cores": null'), "TypeErr"),
    ],
)
def test_damaged_results_are_refused_in_one_sentence(
    damage: Callable[[Path], Any], expected: str, tmp_path: Path
) -> None:
    keep_figure_5(tmp_path)
    damage(tmp_path)
    with pytest.raises(InputError, match=expected):
        results.draw(tmp_path, "figure5", figure5.EXPERIMENT, LAPTOP)


def _replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def table_rows(tasks: Sequence[int]) -> Rows:
    found: list[dict[str, Any]] = []
    for place, method in enumerate(table1.METHODS):
        own = algorithms.get(method).default_budget
        found += made_rows(
            lambda row, place=place: place / 20,
            methods=[method],
            budgets=[(own.steps, own.best_of, "own"), (3, 3, "best")],
            tasks=tasks,
        ).rows
    return Rows(found)


def test_table_1_never_mixes_default_tasks_with_means_of_five() -> None:
    one = table1.table(table_rows((2,)), LAPTOP)
    lines = one.splitlines()
    assert lines[2].startswith("| **cube-single-play**, default task (2) | 0% [0, 0] | 5% [5, 5] |")
    assert lines[3].startswith("| cube-single-play, default task (2), *published* |  | 85 |")
    assert lines[4].startswith("| cube-single-play, mean of five tasks, *published* | 5 | 83 |")
    five = table1.table(table_rows((1, 2, 3, 4, 5)), scale("paper")).splitlines()
    assert "mean of five tasks | 0% [0, 0]" in five[2]
    assert five[3].startswith("| cube-single-play, mean of five tasks, *published* | 5 | 83 | 91 |")
    assert five[3].endswith("| 96 | 97 ± 1 |")
    other = table1.table(table_rows((5,)), LAPTOP).splitlines()
    assert "**cube-single-play**, task 5 |" in other[2]
    assert "mean of five tasks, *published*" in other[3]


def test_table_1_orders_the_methods_and_says_how_sure_it_is() -> None:
    order, same, five, means, chances = table1.findings(table_rows((2,)), LAPTOP)
    assert order.startswith("cube-single-play, default task (2): SORL 50%, FQL 45%")
    assert same.startswith("cube-single-play, default task (2), published: FQL 97, IQL 85")
    assert five.startswith("cube-single-play, mean of five tasks, published: SORL 97 ± 1, FQL 96")
    assert "SORL 50% [50, 50]" in means
    assert chances.count("100% [100, 100]") == 10


def test_table_1_has_no_statistic_over_fewer_tasks_than_the_others() -> None:
    cube = table_rows((2,)).rows
    elsewhere = [{**r, "environment": "scene-play"} for r in cube if r["method"] != "sorl"]
    *_, means, left_out = table1.findings(Rows([*cube, *elsewhere]), LAPTOP)
    assert means.startswith("Interquartile means over all runs and tasks: BC 0%")
    assert "FQL 45%" in means
    assert "SORL" not in means
    assert left_out.endswith("left out of what is over all tasks: SORL on scene-play.")
    figure = table1.draw(Rows([*cube, *elsewhere]), "note")
    assert len(figure.axes[-1].lines) == len(table1.METHODS) - 1
    assert len(figure.axes[-1].collections) == 1, "the best of the others has a band"


def test_table_1_has_sorl_at_every_budget_that_was_scored() -> None:
    [made] = [one for one in table1.cells(LAPTOP) if one.name.startswith("sorl-cube")]
    budgets = {str(b) + str(s.choice) for s in made.scorings for b in s.budgets}
    assert budgets == {"1x1own", "2x1own", "4x1own", "8x1own", "8x8best", "8x8typical-2"}
    ways = [*SINGLE, (8, 8, "best"), (8, 8, "typical-2")]
    rows = made_rows(
        lambda row: (row["steps"] + 50 * (row["choice"] == "best")) / 100, budgets=ways
    )
    text = table1.table(rows, LAPTOP)
    [head] = [line for line in text.splitlines() if line.startswith("| SORL |")]
    assert head == "| SORL | 1x1 | 2x1 | 4x1 | 8x1 | 8x8, best | 8x8, typical-2 |"
    values = "1% [1, 1] | 2% [2, 2] | 4% [4, 4] | 8% [8, 8] | 58% [58, 58] | 8% [8, 8] |"
    assert f"| cube-single-play, default task (2) | {values}" in text


def test_table_2_has_a_line_for_each_task() -> None:
    text = table2.table(table_rows((1, 4)), LAPTOP)
    assert [line.split(" | ")[0] for line in text.splitlines()[2:4]] == [
        "| cube-single-play, task 1",
        "| cube-single-play, task 4",
    ]
    assert "40 in the paper" in text


@pytest.mark.parametrize("name", SCALES)
def test_tables_3_to_5_hold_what_the_runs_use(name: str) -> None:
    text = tables3to5.table(Rows([]), scale(name))
    used = cell(scale(name), PAPER_ENVIRONMENTS[0], (1,), "sorl").algorithm
    assert isinstance(used, SORL)
    for field in dataclasses.fields(SORL):
        assert field.name in text
    assert f"| learning_rate | {used.learning_rate:g} |" in text
    [line] = [line for line in text.splitlines() if line.startswith("| antmaze-giant-navigate |")]
    assert "0.995" in line
    assert "500" in line


def figure_rows(target: str) -> Rows:
    stars = [(k, 8, name) for k in figure1.STEPS for name in ("best", "typical-2")]
    if target == "table1":
        return table_rows((2,))
    return made_rows(
        lambda row: (row["steps"] + row["seed"]) / 20,
        methods=("sorl", "fql"),
        trained=figure2.TRAINED,
        widths=(32, 64),
        budgets=[*SINGLE, *stars],
    )


@pytest.mark.parametrize("target", ["figure1", "figure2", "figure4", "figure5", "table1"])
def test_a_figure_is_drawn_with_the_note_that_names_its_scale(target: str) -> None:
    draw = experiment(target).draw
    assert draw is not None
    figure = draw(figure_rows(target), "scale laptop")
    texts = figure.findobj(match=Text)
    assert "scale laptop" in [text.get_text() for text in texts if isinstance(text, Text)]
    figure.draw_without_rendering()


@pytest.mark.parametrize("target", ["figure1", "figure2", "figure4", "figure5", "table1", "table2"])
def test_every_page_tells_of_members_that_diverged(target: str, tmp_path: Path) -> None:
    found = figure_rows("table1" if target == "table2" else target)
    for row in found.rows:
        row["stopped"] = int(row["method"] == "sorl" and row["seed"] == 1)
    origin = results.origin_of(experiment(target), LAPTOP, found, [provenance.provenance()])
    results.keep(tmp_path, found, origin)
    results.draw(tmp_path, target, experiment(target), LAPTOP)
    [told] = [
        line for line in (tmp_path / "README.md").read_text().splitlines() if "iverged" in line
    ]
    one = "sorl on cube-single-play (task 2, seed 1"
    assert told.startswith(f"Diverged, and scored by their last good state: {one}")
    # As many as the method has runs here: 4 of M^BTT times 2 of units, or one.
    assert told.count(one) == (1 if target.startswith("table") else 8)
    assert ("M^BTT 4, units 64)" in told) == target.startswith("figure")


def test_a_page_tells_after_how_many_updates_a_run_was_scored_that_ended_early(
    tmp_path: Path,
) -> None:
    found = table_rows((2,))
    ended = [row for row in found.rows if row["method"] == "sorl"]
    early = min(row["update"] for row in ended)
    end = max(row["update"] for row in found.rows)
    kept = [row for row in found.rows if row not in ended or row["update"] == early]
    for row in kept:
        row["stopped"] = int(row["method"] in ("sorl", "bc"))
    rows = Rows(kept)
    origin = results.origin_of(table1.EXPERIMENT, LAPTOP, rows, [provenance.provenance()])
    results.keep(tmp_path, rows, origin)
    results.draw(tmp_path, "table1", table1.EXPERIMENT, LAPTOP)
    page = (tmp_path / "README.md").read_text()
    where = f"last evaluated after {early:,} of {end:,} updates)"
    assert f"sorl on cube-single-play (task 2, seed 0, {where}" in page
    assert "bc on cube-single-play (task 2, seed 0);" in page


@pytest.mark.parametrize("target", ["figure1", "figure2", "figure4", "figure5", "table1", "table2"])
def test_a_page_of_runs_that_all_diverged_before_an_evaluation(target: str, tmp_path: Path) -> None:
    origin = results.origin_of(experiment(target), LAPTOP, Rows([]), [provenance.provenance()])
    results.keep(tmp_path, Rows([]), origin)
    (tmp_path / "figure.png").touch()  # of what was there before
    results.draw(tmp_path, target, experiment(target), LAPTOP)
    page = (tmp_path / "README.md").read_text()
    assert "Every run diverged before its first evaluation" in page
    assert "![" not in page
    assert not (tmp_path / "figure.png").exists()


def test_a_page_that_cannot_be_written_is_told_as_that(tmp_path: Path) -> None:
    keep_figure_5(tmp_path)
    (tmp_path / "README.md").mkdir()
    with pytest.raises(InputError, match=r"^Cannot write .*README\.md: Is a directory"):
        results.draw(tmp_path, "figure5", figure5.EXPERIMENT, LAPTOP)


MAZE = "pointmaze-medium-navigate-v0"


@pytest.mark.parametrize("name", ["figure1", "figure2", "figure4", "figure5"])
def test_a_target_of_none_of_the_chosen_data_sets_is_refused_and_nothing_is_lost(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_figure_5(tmp_path / "results" / name)
    before = tree(tmp_path)
    options = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert cli.run(["reproduce", name, *options, "--environments", MAZE]) == 2
    message = f"{name} uses none of {MAZE} at scale laptop: it is of {CUBE}."
    assert message in capsys.readouterr().err
    assert tree(tmp_path) == before
    narrow = LAPTOP.narrowed([MAZE])
    left = chosen(["all"], narrow)
    assert name not in left
    assert {"table1", "table2", "figure3", "tables3-5", "theorem2"} == set(left)
    assert set(chosen(["all"], LAPTOP)) == set(TARGETS)


def test_the_plan_of_targets_without_runs_of_the_chosen_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sorl.experiments.cost.seconds_per_flop", lambda cell: 1e-11)
    command = ["reproduce", "figure3", "tables3-5", "--plan", "--out", str(tmp_path)]
    assert cli.run([*command, "--environments", MAZE]) == 0
    assert "figure3: 0 of 1 measurements made" in capsys.readouterr().out


def test_results_of_some_data_sets_do_not_take_the_place_of_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = LAPTOP.narrowed([CUBE, MAZE])
    for scale_of_rows, told in ((LAPTOP, "all data sets"), (both, f"{CUBE}, {MAZE}")):
        rows, folder = table_rows((2,)), tmp_path / "results" / "table1"
        made = [provenance.provenance()]
        results.keep(folder, rows, results.origin_of(table1.EXPERIMENT, scale_of_rows, rows, made))
        with pytest.raises(InputError, match=f"are of {told}, and those of {CUBE} alone would"):
            results.check_room(folder, LAPTOP.narrowed([CUBE]))
        options = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
        before = tree(tmp_path / "results")
        assert cli.run(["reproduce", "table1", *options, "--environments", CUBE]) == 2
        assert "name another --results" in capsys.readouterr().err
        assert not (tmp_path / "out" / "data").exists(), "before anything is made"
        # Nor is what is there drawn as another thing.
        redraw = ["reproduce", "table1", "--redraw", "--results", str(tmp_path / "results")]
        assert cli.run([*redraw, "--environments", CUBE]) == 2
        assert f"are of {told}, not of {CUBE}: leave out" in capsys.readouterr().err
        assert tree(tmp_path / "results") == before
    results.check_room(tmp_path / "results" / "table1", both)
    results.check_room(tmp_path / "results" / "table1", LAPTOP)


# The whole. Training and files are real; data and episodes are stand-ins.


@dataclasses.dataclass(frozen=True)
class Knob:
    """What the measurement of these tests measures."""

    value: int


@pytest.fixture
def target(world: World, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A target of two runs and one measurement in place of figure1; gives what was measured."""
    name = EnvironmentName.parse(ENVIRONMENT)
    measured: list[int] = []

    def cells(scale: Scale) -> list[Cell]:
        tiny = algorithms.get("tiny")
        scorings = (Scoring((Budget(3, 1),), milestones=2, episodes=2),)
        return [
            Cell(scale, name.dataset, (name.task, 2), tiny(rate=rate), 2, scorings)  # pyright: ignore[reportCallIssue]
            for rate in (0.1, 0.2)
        ]

    def measure(setting: Any, on_progress: Any, folder: Path) -> list[dict[str, Any]]:
        measured.append(setting.value)
        on_progress(1, 1)
        return [{"environment": "none", "task": 0, "seed": 0, "update": 0, "value": setting.value}]

    made = Experiment(
        title="A figure",
        published="It rises.",
        cells=cells,
        measurement=Measurement(lambda scale: [Knob(7)], measure, lambda setting: 1e9),
        draw=lambda rows, note: figure1.draw(rows.where(steps=3.0), note),
        findings=lambda rows, scale: [f"{len(rows.rows)} rows"],
    )
    for module in ("sorl.experiments", "sorl.experiments.reproduce"):
        monkeypatch.setattr(f"{module}.experiment", lambda target: made)
    small = dataclasses.replace(
        LAPTOP, updates=6, evaluate_every=2, batch_size=8, episodes=2, generated=None
    )
    monkeypatch.setattr("sorl.experiments.scales.SCALES", {"laptop": small})
    monkeypatch.setattr("sorl.experiments.reproduce.locate", lambda name, *, folder: None)

    def launch(works: Sequence[Work], **_: Any) -> list[Standing]:
        for work in works:
            work.write()
            Work.read(work.folder).perform()
        return [Standing(work, "done" if work.done() else "stopped") for work in works]

    monkeypatch.setattr("sorl.launch.local.launch", launch)
    return measured


def test_the_command_makes_what_is_missing_and_draws_from_rows_alone(
    target: list[int], world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 0

    def evaluated() -> None:
        nonlocal count
        count += 1

    world.on_evaluation = evaluated
    out = tmp_path / "out"
    command = ["reproduce", "figure1", "--out", str(out)]
    assert cli.run(command) == 0
    page = out / "laptop" / "figure1" / "README.md"
    assert capsys.readouterr().out.strip() == f"wrote {page.parent}"
    # Two runs of three evaluations, and two scored updates each.
    assert (count, target) == (2 * 3 + 2 * 2, [7])
    text = page.read_text()
    assert "scale laptop (small-scale)" in text
    assert "**The paper.** It rises." in text
    # 2 runs x 2 tasks x 2 seeds: 3 updates at 1x1 and the last 2 at 3x1; and the measurement.
    assert f"* {2 * 4 * (3 + 2) + 1} rows" in text

    before = tree(out)
    assert cli.run(command) == 0
    assert (count, target) == (10, [7]), "nothing was left to do"
    after = tree(out)
    assert before == after, "and the same rows give the same page and the same picture"

    page.unlink()
    (page.parent / "figure.png").unlink()
    assert cli.run([*command, "--redraw"]) == 0
    assert tree(out) == before

    with locked(out):
        assert cli.run(command) == 2
    assert "wait for it to end" in capsys.readouterr().err

    # The plan tells the same without making anything.
    capsys.readouterr()
    assert cli.run([*command, "--plan"]) == 0
    told = capsys.readouterr().out
    assert [" done " in line for line in told.splitlines() if line.startswith("  tiny-")] == [
        True
    ] * 2
    assert "figure1: 1 of 1 measurements made; the others take 0 GFLOP, 0:00:00" in told
    # Two runs of three evaluations, two tasks and two seeds; a member is a number and its update.
    assert "Their checkpoints take 0.0 GB" in told
    assert tree(out) == before


def test_results_of_some_data_sets_tell_the_command_that_made_them(
    target: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "figure1", "--out", str(tmp_path), "--environments"]
    assert cli.run([*command, CUBE]) == 0
    page = tmp_path / "laptop" / "figure1" / "README.md"
    made = f"`sorl reproduce figure1 --scale laptop --environments {CUBE}`"
    assert made in page.read_text()
    page.unlink()
    redraw = ["--redraw", "--results", str(tmp_path / "laptop")]
    assert cli.run(["reproduce", "figure1", *redraw]) == 0, "the results know what they are of"
    assert made in page.read_text()
    assert cli.run([*command, "cube"]) == 2
    assert "has no data set 'cube'" in capsys.readouterr().err


def test_published_data_are_fetched_before_any_run_into_the_folder_that_is_named(
    target: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path]] = []

    def locate(name: str, *, folder: Path) -> None:
        asked.append((name, folder))

    monkeypatch.setattr("sorl.experiments.reproduce.locate", locate)
    launched: list[Work] = []

    def launch(works: Sequence[Work], **_: Any) -> list[Standing]:
        launched.extend(works)
        return [Standing(work, "stopped") for work in works]

    monkeypatch.setattr("sorl.launch.local.launch", launch)
    data = tmp_path / "published"
    command = ["reproduce", "figure1", "--out", str(tmp_path / "out")]
    assert cli.run([*command, "--data", str(data)]) == 0
    name = EnvironmentName.parse(ENVIRONMENT).dataset
    assert asked == [(name, data)]
    assert {work.job.data for work in launched} == {data / f"{name}.npz"}
    monkeypatch.setattr("sorl.data.sources.DEFAULT_FOLDER", Path("~/usual"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.run(command) == 0
    assert asked[1:] == [(name, tmp_path / "usual")]


def test_what_a_measurement_lacks_is_said_before_any_run(
    target: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    theorem = experiment("theorem2").measurement
    assert theorem is not None
    made = dataclasses.replace(experiment("figure1"), measurement=theorem)
    monkeypatch.setattr("sorl.experiments.reproduce.experiment", lambda target: made)
    task = Reproduction(("figure1",), LAPTOP, tmp_path, tmp_path, tmp_path)
    with pytest.raises(InputError, match=r"install sorl\[reproduce\]"):
        reproduce(task, lambda works: pytest.fail("was launched"), lambda doing: nullcontext())  # pyright: ignore[reportArgumentType]


def test_runs_of_other_data_are_not_drawn_as_those_of_the_folder_that_is_named(
    target: list[int],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sorl.jobs.work.load_dataset", load_dataset)
    small = dataclasses.replace(scale("laptop"), generated=2)
    monkeypatch.setattr("sorl.experiments.scales.SCALES", {"laptop": small})
    command = ["reproduce", "figure1", "--out", str(tmp_path / "out"), "--data"]
    assert cli.run([*command, str(data.parent)]) == 0
    before = tree(tmp_path / "out")
    asked: list[Sequence[str]] = []
    fingerprint = trained_data._fingerprint

    def counted(arguments: Sequence[str]) -> str:
        asked.append(arguments)
        return fingerprint(arguments)

    monkeypatch.setattr(trained_data, "_fingerprint", counted)
    assert cli.run([*command, str(data.parent)]) == 0
    assert len(asked) == 1, "two runs, one file"

    with np.load(data) as file:
        arrays = dict(file)
    episode = len(arrays["terminals"]) // 2
    others = {
        "other": arrays | {"actions": arrays["actions"] / 2},
        "short": {name: array[:episode] for name, array in arrays.items()},
    }
    for name, content in others.items():
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / data.name, allow_pickle=False, **content)
    for name, expected in (
        ("other", "was trained on other data (fingerprint"),
        (
            "short",
            "short/pointmaze-medium-navigate-v0.npz holds 1 episodes, but scale laptop takes",
        ),
    ):
        capsys.readouterr()
        assert cli.run([*command, str(tmp_path / name)]) == 2
        told = capsys.readouterr().err
        assert expected in told
        assert told.count("\n") == 1
    assert tree(tmp_path / "out") == before
    # What is damaged is said by the process that loads it.
    (tmp_path / "other" / data.name).write_bytes(
        data.read_bytes().replace(b"observations", b"n" * 12)
    )
    assert cli.run([*command, str(tmp_path / "other")]) == 2
    assert "lacks observations" in capsys.readouterr().err


def test_a_target_whose_run_is_missing_is_not_drawn(
    target: list[int], world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Reproduction(
        ("figure1",), scale("laptop"), tmp_path, tmp_path / "data", tmp_path / "results"
    )

    def launch(works: Sequence[Work]) -> list[Standing]:
        works[0].perform()
        return [Standing(works[0], "done"), Standing(works[1], "failed", message="no luck")]

    standings, drawn = reproduce(task, launch, lambda doing: nullcontext(lambda *_: None))
    assert [standing.state for standing in standings] == ["done", "failed"]
    assert (drawn, target) == ([], [7]), "what needs no run is measured all the same"
    assert not task.results.exists()
    with pytest.raises(InputError, match="holds no results of figure1"):
        redraw(task, "figure1")


def test_the_results_of_one_scale_are_not_drawn_as_another(
    target: list[int], tmp_path: Path
) -> None:
    assert cli.run(["reproduce", "figure1", "--out", str(tmp_path)]) == 0
    paper = dataclasses.replace(LAPTOP, name="paper")
    task = Reproduction(("figure1",), paper, tmp_path, tmp_path, tmp_path / "laptop")
    with pytest.raises(InputError, match="are of scale laptop, not paper"):
        redraw(task, "figure1")


KEPT = Path(__file__).parents[1] / "results"


@pytest.mark.parametrize(
    "page",
    sorted(path.parent for path in KEPT.glob("*/*/origin.json")),
    ids=lambda page: str(page.relative_to(KEPT)),
)
def test_the_pages_in_the_repository_are_those_that_their_rows_make(
    page: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(page, tmp_path / page.name))
    origin = json.loads((page / "origin.json").read_text())
    size = scale(origin["scale"]).narrowed(tuple(origin.get("only", ())))
    results.draw(copied, page.name, experiment(page.name), size)
    assert (copied / "README.md").read_text() == (page / "README.md").read_text()


def test_results_of_one_scale_do_not_take_the_place_of_another_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("figure5", "theorem2", "tables3-5"):
        folder = tmp_path / "results" / name
        results.keep(folder, Rows([]), {"scale": "gpu-hour", "rows": 0})
        before = tree(folder)
        options = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
        assert cli.run(["reproduce", name, *options]) == 2
        assert "are of scale gpu-hour, and those of laptop would" in capsys.readouterr().err
        assert tree(folder) == before


def test_where_runs_are_made_is_chosen_at_the_command_line(
    target: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["reproduce", "figure1", "--out", str(tmp_path / "out"), "--launch"]
    options = ["--sbatch=--gres=gpu:1", "--sbatch=--time=1:00:00"]
    assert cli.run([*command, "slurm", *options]) == 0
    script = tmp_path / "out" / "array.sbatch"
    text = script.read_text()
    assert "--array=0-1" in text
    assert "--gres=gpu:1" in text
    assert "--time=1:00:00" in text
    folders = shlex.split(text[text.index("folders=(") + 9 : text.index("\n)\n")])
    read = [Work.read(folder) for folder in folders]
    assert [work.name for work in read] == [
        f"{Path(folder).name} {varied}".strip()
        for folder, varied in zip(folders, ("", "rate=0.2"), strict=True)
    ]

    asked: list[str] = []

    def launch(works: Sequence[Work], *, address: str) -> list[Standing]:
        asked.append(address)
        return [Standing(work, "failed", message="no luck.") for work in works]

    monkeypatch.setattr("sorl.launch.ray_cluster.launch", launch)
    assert cli.run([*command, "ray", "--address", "head:6379"]) == 2
    assert asked == ["head:6379"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "Name what to reproduce"),
        ("figure6", "There is no 'figure6' to reproduce"),
        ("figure1 --redraw", "holds no results of figure1"),
    ],
)
def test_impossible_commands(
    arguments: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["reproduce", *arguments.split(), "--out", str(tmp_path / "none")]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_all_means_every_target() -> None:
    assert chosen(["figure1", "all"], LAPTOP) == tuple(TARGETS)
    assert chosen(["table1", "figure1", "table1"], LAPTOP) == ("table1", "figure1")
    with pytest.raises(InputError, match="There is no scale 'huge'"):
        scale("huge")


def test_times_of_another_machine_or_version_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sorl import provenance
    from sorl.experiments import figure3

    def pieces() -> Path:
        task = Reproduction(("figure3",), LAPTOP, tmp_path, tmp_path, tmp_path)
        [piece] = task.pieces("figure3")
        return piece.path

    here = pieces()
    assert pieces() == here
    monkeypatch.setattr(provenance, "processor", lambda: "another")
    there = pieces()
    monkeypatch.setattr(figure3, "cores", lambda: 1000)
    monkeypatch.setattr(provenance, "versions", dict)
    assert len({here, there, pieces()}) == 3
    # A GPU is told by its name, wherever it stands in its machine.
    tool = tmp_path / "nvidia-smi"
    names = "*=name*--id=0) echo H200;; *=name*--id=1) echo L4;;"
    tool.write_text(f'#!/bin/sh\ncase "$*" in {names} esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    of_gpus = []
    for visible in ("", "0", "1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        of_gpus.append(pieces())
    assert len(set(of_gpus)) == 3


def test_flops_of_figure_3_are_those_of_its_updates() -> None:
    from sorl.experiments import figure3

    setting = figure3.Setting((4,), 4, seeds=2, updates=3, turns=5, calls=2)
    methods = dict(figure3._methods(setting))  # SORL's last is that of the largest M^BTT
    one = cost.flops_of_update(methods["sorl"], Spec(28, 5), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure3, "_methods", lambda setting: [("sorl", methods["sorl"])])
        assert figure3.flops(setting) == 3 * 2 * 6 * one


def test_figure_3_times_what_it_says() -> None:
    from sorl.experiments import figure3

    small = figure3.Setting((4,), 4, seeds=1, updates=1, turns=1, calls=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure3, "METHODS", ("sorl", "bc"))
        patch.setattr(figure3, "TRAINED", (1, 2))
        patch.setattr(figure3, "STEPS", (1, 2))
        seen: list[tuple[int, int]] = []
        rows = Rows(
            figure3.measure(small, lambda done, total: seen.append((done, total)), Path("none"))
        )
        assert seen[-1][0] == seen[-1][1] == len(seen)
        training = rows.where(phase="training")
        assert [(r["method"], r["backprop_steps"]) for r in training.rows] == [
            ("sorl", 1),
            ("sorl", 2),
            ("bc", 0),
        ]
        inference = rows.where(phase="inference")
        assert [(r["method"], r["steps"], r["best_of"]) for r in inference.rows] == [
            ("sorl", 1, 1),
            ("sorl", 2, 1),
            ("bc", 1, 1),
        ]
        assert all(0 < r["low"] <= r["median"] <= r["high"] < math.inf for r in rows.rows)
        assert len(figure3.findings(rows, LAPTOP)) == 4
        figure3.draw(rows, "note").draw_without_rendering()
