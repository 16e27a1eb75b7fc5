"""Comparing algorithms: what is refused, what reaches the runs, the queue, table and report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finished_run import ENVIRONMENT, tree
from scripted_world import World
from sorl import algorithms, cli, jobs, tables
from sorl.algorithms.bc import BC
from sorl.algorithms.fql import FQL
from sorl.algorithms.ifql import IFQL
from sorl.algorithms.sorl import SORL
from sorl.cli.compare import _print as print_comparison
from sorl.errors import InputError
from sorl.jobs.comparison import Score, compare
from sorl.jobs.grid import Point, points_of_algorithms
from sorl.report.statistics import bootstrap
from sorl.runs import Run
from sorl.types import Budget

pytest_plugins = ("run_fixtures",)


def run(*arguments: object) -> int:
    return cli.run(["compare", *map(str, arguments)])


# The points.


def test_a_point_for_each_algorithm_at_its_own_budget_and_those_it_can_serve() -> None:
    chosen = [BC(), FQL(), IFQL(), SORL()]
    points = points_of_algorithms(chosen, [Budget(1, 1), Budget(6, 1), Budget(2, 3)])
    assert [point.name for point in points] == ["bc", "fql", "ifql", "sorl"]
    assert [point.algorithm for point in points] == chosen
    assert [point.budgets for point in points] == [
        (Budget(1, 1),),
        (Budget(1, 1),),  # FQL acts in one pass
        (Budget(1, 1), Budget(2, 3), Budget(6, 1), Budget(10, 32)),
        (Budget(1, 1), Budget(2, 3), Budget(4, 1)),
    ]
    assert [point.budgets for point in points_of_algorithms([IFQL()])] == [(Budget(10, 32),)]


def test_impossible_choices_of_algorithms() -> None:
    with pytest.raises(InputError, match="fql is named twice"):
        points_of_algorithms([FQL(), BC(), FQL(discount=0.9)])
    with pytest.raises(InputError, match="name at least one"):
        points_of_algorithms([])


# The command line.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", "name at least one algorithm"),
        ("sorl fqll", "There is no algorithm 'fqll': choose one of"),
        ("sorl sorl", "sorl is named twice"),
        ("bc --set fql.discount=0.9", "'fql' is not compared here"),
        ("bc --set bc.discount=0.9", "bc has no hyperparameter 'discount', it has hidden"),
        ("bc --set bc.presets=1", "bc has no hyperparameter 'presets'"),
        ("bc --set learning_rate=1", "'learning_rate=1' cannot be read"),
        ("bc --set bc.learning_rate", "'bc.learning_rate' cannot be read"),
        ("bc --set bc.learning_rate=", "'bc.learning_rate=' cannot be read"),
        ("bc --set bc.learning_rate=x", "learning_rate: 'x' is not possible, give a number"),
        ("bc --set bc.hidden=8 --set bc.hidden=9", "--set names bc.hidden twice"),
        ("sorl --set sorl.discount=1", "SORL discount=1.0 must be in [0, 1)"),
        ("sorl --learning-rate -1", "SORL learning_rate=-1.0 must be"),
        ("sorl --budgets 4x", "Budget '4x' cannot be read"),
        ("sorl --seeds 0", "--seeds 0"),
        ("sorl --updates 0", "updates=0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(
    options: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--env", ENVIRONMENT, "--data", tmp_path / "none.npz", "--out", tmp_path / "out"]
    assert run(*options.split(), *common) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sorl compare: ")
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_what_all_share_every_algorithm_must_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bc", "tiny", "--hidden", 8, "--env", ENVIRONMENT, "--out", tmp_path / "out"]
    assert run(*command) == 2
    assert "tiny has no hyperparameter 'hidden', which all shall share" in capsys.readouterr().err


def test_presets_shared_and_own_values_reach_the_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued: list[tuple[Path, Sequence[Point], jobs.Job]] = []

    def queue(out: Path, points: Sequence[Point], job: jobs.Job) -> list[Point]:
        queued.append((out, points, job))
        return []

    monkeypatch.setattr("sorl.cli.compare.run_queue", queue)
    command = "sorl fql bc --env cube-double-play-singletask-task3-v0 --seeds 3 --updates 500"
    assert run(*command.split(), "--out", tmp_path) == 0
    [(out, points, job)] = queued
    assert out == tmp_path
    assert [point.algorithm for point in points] == [
        SORL(q_loss_coef=50.0),
        FQL(distillation_coef=300.0),
        BC(),
    ]
    assert (job.environment, job.seeds, job.updates) == (
        "cube-double-play-singletask-task3-v0",
        (0, 1, 2),
        500,
    )
    # An environment of the user's has no published values.
    own_environment = ["--env", "gym:tiny_environments:Push-v0", "--data", "mine.npz"]
    assert run("sorl", "bc", *own_environment, "--out", tmp_path) == 0
    assert [point.algorithm for point in queued.pop()[1]] == [SORL(), BC()]
    shared = "--hidden 8 8 --learning-rate 1e-3 --budgets 1x1 8x2 --tasks 1 2"
    own = "--set fql.distillation-coef=10 --set sorl.learning_rate=0.5 --set sorl.hidden=4x5"
    assert run(*command.split(), *shared.split(), *own.split(), "--out", tmp_path) == 0
    _, points, job = queued[1]
    assert [point.algorithm for point in points] == [
        SORL(q_loss_coef=50.0, hidden=(4, 5), learning_rate=0.5),
        FQL(distillation_coef=10.0, hidden=(8, 8), learning_rate=1e-3),
        BC(hidden=(8, 8), learning_rate=1e-3),
    ]
    assert [point.job(job).budgets for point in points] == [
        (Budget(1, 1), Budget(4, 1), Budget(8, 2)),
        (Budget(1, 1),),
        (Budget(1, 1),),
    ]
    assert job.tasks == (1, 2)
    assert run("all", "--env", ENVIRONMENT, "--out", tmp_path) == 0
    assert [point.name for point in queued[2][1]] == algorithms.names()


# The whole. Training and files are real; data and episodes are stand-ins.

OPTIONS = "--updates 6 --log-every 1 --evaluate-every 2 --batch-size 8 --tensorboard False"


def test_the_command_ends_with_a_table_a_file_and_a_report(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = iter([(0.0, -9.0), (0.25, -8.0), (0.5, -7.0), (0.5, -6.0), (0.75, -6.0), (1.0, -9)])
    world.on_evaluation = lambda: next(scripted)
    out = tmp_path / "out"
    command = ["bc", "tiny", "--env", ENVIRONMENT, "--tasks", 1, 2, "--seeds", 2, "--episodes", 10]
    command += ["--set", "bc.hidden=4", "--budgets", "2x1", *OPTIONS.split()]
    assert run(*command, "--out", out) == 0
    first = capsys.readouterr().out
    assert "Point 1 of 2: bc\n" in first
    assert "Point 2 of 2: tiny\n" in first
    table = first[first.rindex("  algorithm ") :]
    assert [" ".join(line.split()) for line in table.splitlines() if "──" not in line] == [
        "algorithm budget success mean of last 3 95% interval return ms",
        "bc 1x1 * 50% 25% 25% to 25% -7.0 1.00",
        "tiny 1x1 * 100% 75% 75% to 75% -9.0 1.00",
        "tiny 2x1 100% 75% 75% to 75% -9.0 1.00",
        "",
        "small-scale: 2 seed(s), 2 task(s), 6 updates, 40 episodes in one evaluation of a budget.",
        "* the algorithm's own budget. The interval is a bootstrap over seeds of the mean of last "
        "3.",
        f"wrote {out / 'compare.csv'} and {out / 'report.html'}",
    ]
    rows = tables.read_rows(out / "compare.csv")
    assert [(row["point"], row["budget"], row["own_budget"]) for row in rows] == [
        ("bc", "1x1", 1.0),
        ("tiny", "1x1", 1.0),
        ("tiny", "2x1", 0.0),
    ]
    assert [row["success_of_last_3"] for row in rows] == [0.25, 0.75, 0.75]
    page = (out / "report.html").read_text()
    assert ">bc<" in page
    assert ">tiny<" in page
    assert Run.open(out / "bc").config["training"]["budgets"] == ["1x1"]
    assert Run.open(out / "tiny").config["training"]["budgets"] == ["1x1", "2x1"]

    before = tree(out)
    assert run(*command, "--out", out) == 0
    assert capsys.readouterr().out.strip() == table.strip(), "nothing was left to do"
    after = tree(out)
    assert {name for name in after if before[name] != after[name]} <= {"report.html"}


def test_the_table_of_a_comparison_that_was_stopped_and_of_one_that_diverged(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        if (tmp_path / "bc").exists():
            raise KeyboardInterrupt

    world.on_evaluation = stop
    command = ["tiny", "bc", "--env", ENVIRONMENT, "--set", "tiny.risk=1", "--set", "bc.hidden=4"]
    assert run(*command, *OPTIONS.split(), "--episodes", 2, "--out", tmp_path) == 130
    world.on_evaluation = lambda: None
    assert run("tiny", *command[2:6], *OPTIONS.split(), "--episodes", 2, "--out", tmp_path) == 0
    out = capsys.readouterr().out
    table = [" ".join(line.split()) for line in out[out.rindex("  algorithm ") :].splitlines()]
    assert table[2] == "tiny 1x1 * - - - -"
    assert "Diverged before the end, so without a score: tiny (2)." in table
    assert "scored by their last good state" not in out
    assert run(*command, *OPTIONS.split(), "--episodes", 2, "--out", tmp_path) == 0
    assert len(tables.read_rows(tmp_path / "compare.csv")) == 2


def test_a_diverged_algorithm_changes_nothing_for_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bc, fql = points_of_algorithms([BC(), FQL()])
    common: dict[str, Any] = {"tasks": 1, "seeds": 2, "updates": 9, "episodes": 4, "stopped": 0}
    nothing = {"success": math.nan, "success_of_last": math.nan, "mean_return": math.nan}
    nothing |= {"return_of_last": math.nan}
    healthy = {"success": 0.5, "success_of_last": 0.25, "mean_return": -9.0}
    healthy |= {"return_of_last": -8.0}
    scores = [
        Score(bc, Budget(1, 1), **healthy, **common, low=0.125, high=0.375),
        Score(fql, Budget(1, 1), **nothing, **{**common, "stopped": 2}),
    ]
    print_comparison(scores)
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "algorithm budget success mean of last 3 95% interval return ms" in lines
    assert "bc 1x1 * 50% 25% 12% to 38% -9.0 -" in lines
    assert "fql 1x1 * - - - - -" in lines
    assert "a bootstrap over seeds of the mean of last 3." in out


def test_the_interval_is_that_of_the_seeds(tmp_path: Path, rng: np.random.Generator) -> None:
    [point] = points_of_algorithms([BC()])
    scores = rng.uniform(size=(4, 3))  # evaluations, seeds
    opened = Run.create(tmp_path / "bc", {"tasks": [1], "seeds": [0, 1, 2]})
    opened.append_evaluations(
        {
            "update": 4 * (evaluation + 1),
            "task": 1,
            "seed": seed,
            "budget": "1x1",
            "success": scores[evaluation, seed],
            "latency_ms": 2.0,
        }
        for evaluation, seed in np.ndindex(4, 3)
    )

    def found(updates: int) -> Score:
        job = jobs.Job(environment=ENVIRONMENT, seeds=(0, 1, 2), updates=updates)
        [score] = compare(tmp_path, [point], job)
        return score

    _, low, high = bootstrap(scores[1:].mean(axis=0)[:, None])
    score = found(16)
    assert (score.low, score.high, score.latency_ms) == (pytest.approx(low), pytest.approx(high), 2)
    assert score.low < score.success_of_last < score.high
    assert score.own
    assert np.isnan(found(20).low), "its training did not get to the end"
