"""Grids of hyperparameters: what is refused, the queue and its interruptions, the comparison."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finished_run import ENVIRONMENT, evaluations_without_clock, tiny_arrays, tree
from scripted_world import World, make_dataset
from sorl import algorithms, cli, jobs, tables
from sorl.algorithms.sorl import SORL
from sorl.data.dataset import Dataset
from sorl.data.images import ImageSettings
from sorl.errors import InputError
from sorl.jobs import grid
from sorl.jobs.comparison import Score, compare, write_table
from sorl.jobs.grid import MOST_POINTS, Point, points_of, run_queue
from sorl.runs import Run
from sorl.types import Budget

pytest_plugins = ("run_fixtures",)

BUDGETS = (Budget(1, 1), Budget(4, 1))


def run(*arguments: object) -> int:
    return cli.run(["tune", *map(str, arguments)])


# The grid.


@pytest.mark.usefixtures("tiny")
def test_the_points_of_a_grid() -> None:
    algorithm = algorithms.get("tiny")(risk=0.25)  # pyright: ignore[reportCallIssue]
    points = points_of(algorithm, {"rate": [0.1, 10.0, 1e-5], "risk": [0.0, 0.5]})
    assert [point.name for point in points] == [
        "rate=0.1,risk=0",
        "rate=0.1,risk=0.5",
        "rate=10,risk=0",
        "rate=10,risk=0.5",
        "rate=1e-05,risk=0",
        "rate=1e-05,risk=0.5",
    ]
    assert [algorithms.describe(point.algorithm) for point in points] == [
        {"name": "tiny", "rate": rate, "risk": risk}
        for rate in (0.1, 10.0, 1e-5)
        for risk in (0.0, 0.5)
    ]
    [point] = points_of(algorithm, {"rate": [3.0]})
    assert algorithms.describe(point.algorithm) == {"name": "tiny", "rate": 3.0, "risk": 0.25}
    assert len(points_of(algorithm, {"rate": list(map(float, range(MOST_POINTS)))})) == MOST_POINTS


def test_names_of_points_of_every_kind() -> None:
    values = {"hidden": [(256, 256)], "target_aggregation": ["min"], "critic_sees_steps": [False]}
    [point] = points_of(SORL(), values)
    assert point.name == "hidden=256x256,target_aggregation=min,critic_sees_steps=False"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "The grid is empty"),
        ({"rate": []}, "no value of rate"),
        ({"rat": [1.0]}, "Tiny has no hyperparameter 'rat': did you mean 'rate'?"),
        ({"zzz": [1.0]}, "Tiny has no hyperparameter 'zzz': it has rate, risk."),
        ({"rate": [0.1, 1.0, 0.1]}, "rate=0.1 twice"),
        ({"rate": list(range(MOST_POINTS + 1))}, f"65 points, and {MOST_POINTS} are the most"),
        ({"rate": list(range(13)), "risk": list(range(5))}, "65 points"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_impossible_grids(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        points_of(algorithms.get("tiny")(), values)


@pytest.mark.parametrize("word", ["../other", "x" * 300, "\0"])
@pytest.mark.usefixtures("tiny")
def test_points_that_cannot_name_a_folder(word: str) -> None:
    bases = (algorithms.get("tiny"),)
    kind: Any = dataclasses.make_dataclass("Worded", [("word", str, "")], bases=bases, frozen=True)
    assert points_of(kind(), {"word": ["x" * 250]})[0].name == f"word={'x' * 250}"
    with pytest.raises(InputError, match="cannot name a folder"):
        points_of(kind(), {"word": ["fine", word]})


# The command line.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", "The grid is empty"),
        ("--grid alpha=1", "SORL has no hyperparameter 'alpha'"),
        ("--grid presets=1", "SORL has no hyperparameter 'presets'"),
        ("--grid batch_size=1", "SORL has no hyperparameter 'batch_size'"),
        ("--grid q_loss_coef=", "'q_loss_coef=' cannot be read"),
        ("--grid q_loss_coef=1,,2", "'q_loss_coef=1,,2' cannot be read"),
        ("--grid q_loss_coef", "'q_loss_coef' cannot be read"),
        ("--grid =1", "'=1' cannot be read"),
        ("--grid q_loss_coef=1,x", "q_loss_coef: 'x' is not possible, give a number"),
        ("--grid q_loss_coef=--help", "q_loss_coef: '--help' is not possible, give a number"),
        ("--grid backprop_steps=1.5", "backprop_steps: '1.5' is not possible, give a whole number"),
        ("--grid hidden=8x8,8xa", "hidden: '8xa' is not possible, give values joined by x"),
        ("--grid target_aggregation=max", "'max' is not possible, give one of mean, min"),
        ("--grid critic_sees_steps=perhaps", "'perhaps' is not possible, give True or False"),
        ("--grid q-loss-coef=1,1.0", "q_loss_coef=1 twice"),
        ("--grid q_loss_coef=1 --grid q-loss-coef=2", "--grid names q_loss_coef twice"),
        ("--grid q_loss_coef=1 --q-loss-coef 3", "q_loss_coef is given twice"),
        ("--grid q_loss_coef=-1,2", "SORL q_loss_coef=-1.0 must be"),
        ("--grid q_loss_coef=nan", "SORL q_loss_coef=nan must be"),
        ("--grid discount=0.9,1", "SORL discount=1.0 must be in [0, 1)"),
        ("--grid discretization=8,4", "SORL backprop_steps=8 is more than discretization=4"),
        ("--grid discount=0.9 --budgets 4x", "Budget '4x' cannot be read"),
        ("--grid discount=0.9 --budgets 1x1 3x1", "discount=0.9: This policy cannot act in 3"),
        ("--grid discount=0.9 --updates 0", "updates=0"),
        ("--grid discount=0.9 --seeds 0", "--seeds 0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(
    options: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sorl", "--env", ENVIRONMENT, "--data", tmp_path / "none.npz"]
    assert run(*command, "--out", tmp_path / "out", *options.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sorl tune: ")
    assert expected in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_environment_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sorl", "--out", tmp_path / "out", "--grid", "discount=0.9"]
    assert run(*command, "--data", tmp_path / "none.npz") == 2
    assert "name it, --env" in capsys.readouterr().err
    assert run(*command) == 2
    assert "Name what to learn from" in capsys.readouterr().err
    assert run(*command, "--env", ENVIRONMENT, "--data", tmp_path / "none.npz") == 2
    assert "none.npz: there is no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_values_and_presets_reach_the_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued: list[tuple[Path, Sequence[Point], jobs.Job]] = []

    def queue(out: Path, points: Sequence[Point], job: jobs.Job) -> list[Point]:
        queued.append((out, points, job))
        return []

    monkeypatch.setattr("sorl.cli.tune.run_queue", queue)
    command = "sorl --env cube-double-play-singletask-task3-v0 --seeds 3 --tasks 1 2 --updates 500"
    grids = "--grid hidden=8x8,16 --grid target-aggregation=min --grid critic_sees_steps=True,False"
    assert run(*command.split(), *grids.split(), "--out", tmp_path, "--discount", "0.9") == 0
    [(out, points, job)] = queued
    assert out == tmp_path
    assert [point.algorithm for point in points] == [
        SORL(
            q_loss_coef=50.0,  # the preset
            discount=0.9,
            hidden=hidden,
            target_aggregation="min",
            critic_sees_steps=sees,
        )
        for hidden in ((8, 8), (16,))
        for sees in (True, False)
    ]
    assert job == jobs.Job(
        environment="cube-double-play-singletask-task3-v0",
        tasks=(1, 2),
        seeds=(0, 1, 2),
        updates=500,
    )
    # Without --budgets: what every point can serve.
    grids = "--backprop-steps 2 --grid discretization=2,8"
    assert run(*command.split(), *grids.split(), "--out", tmp_path) == 0
    assert queued[1][2].budgets == (Budget(1, 1), Budget(4, 1), Budget(4, 8))
    assert run(*command.split(), *grids.split(), "--out", tmp_path, "--budgets", "2x3", "2x3") == 0
    assert queued[2][2].budgets == (Budget(2, 3),)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert "one after the other" in out
    assert "\n  sorl " in out
    assert run("sorl", "--help") == 0
    out = capsys.readouterr().out
    assert "--grid FIELD=VALUE,VALUE" in out
    assert "constants of the compiled program" in out
    assert "--resume" not in out


# The queue. Training, files and signals are real; only data and episodes are stand-ins.


def tiny_points(**values: Sequence[float]) -> list[Point]:
    return points_of(algorithms.get("tiny")(), values)


def tiny_job(**changes: Any) -> jobs.Job:
    job = jobs.Job(
        environment=ENVIRONMENT,
        tasks=(1, 2),
        updates=6,
        batch_size=8,
        log_every=2,
        evaluate_every=6,
        budgets=BUDGETS,
        episodes=5,
        tensorboard=False,
    )
    return dataclasses.replace(job, **changes)


def outcome(folder: Path) -> tuple[bytes, list[dict[str, str]], dict[str, bytes]]:
    """What a run is made of, apart from clocks."""
    policies = {k: v for k, v in tree(folder / "policy").items() if k.endswith("safetensors")}
    return (folder / "metrics.csv").read_bytes(), evaluations_without_clock(folder), policies


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)
    time.sleep(30)
    pytest.fail("the signal was not heard")


def test_points_are_ordinary_runs_and_are_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, out = tiny_points(rate=[0.1, 0.3]), tmp_path / "a" / "queue"
    assert run_queue(out, points, tiny_job(), quiet=True) == points
    assert world.cleared == 2, "programs of points that have ended take memory for nothing"
    assert sorted(path.name for path in out.iterdir()) == ["rate=0.1", "rate=0.3"]
    for point in points:
        alone = tmp_path / f"alone {point.name}"
        jobs.start(alone, point.algorithm, tiny_job(), quiet=True)
        assert outcome(out / point.name) == outcome(alone)
        assert Run.open(out / point.name).config["algorithm"] == Run.open(alone).config["algorithm"]
    assert outcome(out / "rate=0.1") != outcome(out / "rate=0.3")

    before = tree(out)
    with monkeypatch.context() as patch:
        patch.setattr(grid, "start", lambda *_, **__: pytest.fail("nothing is left to do"))
        assert run_queue(out, points, tiny_job(), quiet=True) == points
        assert run_queue(out, points[1:], tiny_job(workers=7), quiet=True) == points[1:]
    assert tree(out) == before

    # A finished queue can be given more values.
    more = tiny_points(rate=[0.3, 0.5, 0.1])
    assert run_queue(out, more, tiny_job(), quiet=True) == more
    after = tree(out)
    assert {name: after[name] for name in before} == before
    assert any(name.startswith("rate=0.5/") for name in after)


def test_stopped_at_every_evaluation_it_goes_on_to_the_same_runs(
    world: World, tmp_path: Path
) -> None:
    points, job = tiny_points(rate=[0.1, 0.3]), tiny_job(evaluate_every=4)
    run_queue(tmp_path / "whole", points, job, quiet=True)
    out = tmp_path / "stopped"
    begun: set[tuple[str, int]] = set()

    def stop_once() -> None:
        folder = max(out.iterdir())
        update = int(max(row["update"] for row in Run.open(folder).metrics()))
        if (folder.name, update) not in begun:
            begun.add((folder.name, update))
            interrupt()

    world.on_evaluation = stop_once
    ended = [len(run_queue(out, points, job, quiet=True)) for _ in range(5)]
    assert ended == [0, 0, 1, 1, 2]
    assert begun == {(point.name, update) for point in points for update in (4, 6)}
    for point in points:
        assert outcome(out / point.name) == outcome(tmp_path / "whole" / point.name)


def test_stopped_while_data_load(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.on_load = lambda: interrupt(signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    options = "--updates 2 --log-every 1 --evaluate-every 1 --grid rate=1,2 --tensorboard False"
    command = ["tiny", "--env", ENVIRONMENT, "--out", tmp_path / "out", *options.split()]
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert out.endswith("0 of 2 points have ended; the same command goes on.\n")
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert list(tmp_path.iterdir()) == []


def test_other_settings_or_data_are_refused_before_anything_trains(
    world: World, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_queue(out, tiny_points(rate=[0.1]), tiny_job(), quiet=True)
    before = tree(tmp_path)
    points = tiny_points(rate=[0.5, 0.1])
    riskier = points_of(algorithms.get("tiny")(risk=0.1), {"rate": [0.5, 0.1]})  # pyright: ignore[reportCallIssue]
    where = re.escape(str(out / "rate=0.1"))

    def refused(points: list[Point], job: jobs.Job, expected: str) -> None:
        with pytest.raises(InputError, match=expected):
            run_queue(out, points, job, quiet=True)
        assert tree(tmp_path) == before

    refused(points, tiny_job(updates=14), f"{where}: .*training.updates is 6 in the run and 14")
    refused(points, tiny_job(seeds=(0, 1, 2)), r"seeds is \[0\] in the run and \[0, 1, 2\] now")
    refused(points, tiny_job(budgets=(Budget(2, 1),)), r'training.budgets is \["1x1", "4x1"\]')
    refused(riskier, tiny_job(), r"algorithm.risk is 0.0 in the run and 0.1 now")
    world.dataset = make_dataset(shift=1.0)
    refused(points, tiny_job(), r"dataset.fingerprint is ")


def test_a_queue_knows_its_runs_on_images(world: World, tmp_path: Path) -> None:
    states = world.dataset
    shown = np.zeros((states.observations.shape[0], 4, 4, 1), np.uint8)
    arrays = (states.actions, states.ends, states.rewards, states.masks)
    world.dataset = Dataset.from_arrays(shown, *arrays, states.tasks)
    job = tiny_job(images=ImageSettings(frame_stack=2, augment_probability=0.0))
    points = tiny_points(rate=[0.1])
    run_queue(tmp_path / "out", points, job, quiet=True)
    before = tree(tmp_path)
    assert run_queue(tmp_path / "out", points, job, quiet=True) == points
    assert tree(tmp_path) == before
    other = tiny_job(images=dataclasses.replace(job.images, frame_stack=3))
    with pytest.raises(InputError, match=r"images\.frame_stack is 2 in the run and 3 now"):
        run_queue(tmp_path / "out", points, other, quiet=True)


def test_folders_of_something_else_are_refused(world: World, tmp_path: Path) -> None:
    points = tiny_points(rate=[0.1])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.html").write_text("precious")
    (tmp_path / "file").write_text("precious")
    jobs.start(tmp_path / "run", points[0].algorithm, tiny_job(), quiet=True)
    before = tree(tmp_path)
    for name in ("full", "run", "file"):
        with pytest.raises(InputError, match=r"--out|check the path"):
            run_queue(tmp_path / name, points, tiny_job(), quiet=True)
    assert tree(tmp_path) == before


def test_a_point_that_diverges_does_not_end_the_queue(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points, job = tiny_points(risk=[1.0, 0.5, 0.0]), tiny_job(seeds=(0, 1))
    assert run_queue(tmp_path, points, job) == points
    where = tmp_path / "risk=1" / "events.jsonl"
    assert f"risk=1 diverged: every task and seed was stopped, see {where}" in (
        capsys.readouterr().out
    )
    assert run_queue(tmp_path, points, job) == points
    assert capsys.readouterr().out == "", "what has diverged is not tried again"
    scores = compare(tmp_path, points, job)
    stopped = [score.stopped for score in scores if score.budget == BUDGETS[0]]
    assert stopped[0] == 4
    assert 0 < stopped[1] < 4
    assert stopped[2] == 0
    assert [math.isnan(score.success) for score in scores] == [True] * 2 + [False] * 4
    assert [score.episodes for score in scores] == [0] * 2 + [20] * 4
    assert not scores[0].best


def test_a_point_of_which_a_part_diverged_goes_on(world: World, tmp_path: Path) -> None:
    points, job = tiny_points(risk=[0.5]), tiny_job(seeds=(0, 1))
    world.on_evaluation = interrupt
    assert run_queue(tmp_path, points, job, quiet=True) == []
    assert 0 < len(Run.open(tmp_path / "risk=0.5").events()) < 4
    world.on_evaluation = lambda: None
    assert run_queue(tmp_path, points, job, quiet=True) == points
    assert len(Run.open(tmp_path / "risk=0.5").evaluations()) == 4 * len(BUDGETS)


def test_what_else_goes_wrong_ends_the_queue(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = tiny_points(rate=[0.1, 0.3])
    calls: list[Path] = []

    def fail(out: Path, *_: object, **__: object) -> None:
        calls.append(out)
        raise InputError("the disk is full")

    monkeypatch.setattr(grid, "start", fail)
    with pytest.raises(InputError, match="the disk is full"):
        run_queue(tmp_path, points, tiny_job(), quiet=True)
    assert calls == [tmp_path / "rate=0.1"]


# The comparison.


def write_run(folder: Path, scores: np.ndarray, *, episodes: int = 5) -> None:
    """A run of `[measures, evaluations, budgets, seeds, tasks]`, every 4 updates."""
    _, evaluations, budgets, seeds, tasks = scores.shape
    config = {"tasks": list(range(1, tasks + 1)), "seeds": list(range(seeds))}
    opened = Run.create(folder, config)
    opened.append_evaluations(
        {
            "update": 4 * (index[0] + 1),
            "task": index[3] + 1,
            "seed": index[2],
            "budget": str(BUDGETS[index[1]]),
            "success": scores[0, *index],
            "return": scores[1, *index],
            "episodes": episodes,
        }
        for index in np.ndindex(evaluations, budgets, seeds, tasks)
    )


@pytest.mark.usefixtures("tiny")
def test_scores_are_means_over_tasks_seeds_and_evaluations(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    points, job = tiny_points(rate=[0.1, 0.3]), tiny_job(updates=16, seeds=(0, 1, 2))
    scores = rng.uniform(size=(2, 2, 4, 2, 3, 2))  # points, measures, evaluations, budgets, ...
    for point, values in zip(points, scores, strict=True):
        write_run(tmp_path / point.name, values)
    # What `sorl evaluate --save` adds later is no part of the comparison.
    Run.open(tmp_path / "rate=0.1").append_evaluations(
        [{"update": 16, "task": 1, "seed": 0, "budget": "8x8", "success": 1.0, "return": 1.0}]
    )
    found = compare(tmp_path, points, job)
    pairs = [(point, budget) for point in points for budget in BUDGETS]
    assert [(score.point, score.budget) for score in found] == pairs
    for score, (i, j) in zip(found, np.ndindex(2, 2), strict=True):
        for k, (last, of_last) in enumerate(
            ((score.success, score.success_of_last), (score.mean_return, score.return_of_last))
        ):
            of_evaluations = [
                sum(scores[i, k, e, j, seed, task] for seed in range(3) for task in range(2)) / 6
                for e in range(4)
            ]
            assert last == pytest.approx(of_evaluations[3])
            assert of_last == pytest.approx(sum(of_evaluations[1:]) / 3)
        assert (score.tasks, score.seeds, score.updates) == (2, 3, 16)
        assert (score.episodes, score.stopped) == (2 * 3 * 5, 0)
    for budget in range(2):
        best = np.argmax(scores[:, 0, 1:, budget].mean(axis=(1, 2, 3)))
        assert [score.best for score in found[budget::2]] == [i == best for i in range(2)]


@pytest.mark.parametrize(
    ("successes", "returns", "expected"),
    [
        # One row a point, one column an evaluation: the mean of the last three decides ...
        ([[0, 0, 1, 0], [1, 0, 0, 0.5]], [[0] * 4] * 2, [True, False]),
        # ... then the return, ...
        ([[0, 1, 0], [1, 0, 0]], [[-3, -2, -1], [-3, -2, 0]], [False, True]),
        # ... of the last evaluation where there are fewer than three.
        ([[1, 0], [0, 0.5]], [[0, 0], [0, 0]], [False, True]),
        ([[1, 0.5], [0, 0.5]], [[0, -2], [0, -1]], [False, True]),
        # Alike at the top, and alike altogether.
        ([[1], [1], [0]], [[0], [0], [9]], [True, True, False]),
        ([[0], [0]], [[-1], [-1]], [False, False]),
        # Nothing to be better than, as where each method of a comparison has a budget of its own.
        ([[0]], [[-1]], [False]),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_the_best_point(successes: Any, returns: Any, expected: list[bool], tmp_path: Path) -> None:
    points = tiny_points(rate=[0.1, 0.3, 0.5][: len(expected)])
    for point, success, mean_return in zip(points, successes, returns, strict=True):
        values = np.array([success, mean_return], float)[:, :, None, None, None]
        write_run(tmp_path / point.name, values)
    job = tiny_job(updates=4 * len(successes[0]), budgets=BUDGETS[:1])
    assert [score.best for score in compare(tmp_path, points, job)] == expected


@pytest.mark.usefixtures("tiny")
def test_a_point_that_did_not_get_to_the_end_has_no_score(tmp_path: Path) -> None:
    points = tiny_points(rate=[0.1, 0.3])
    write_run(tmp_path / "rate=0.1", np.ones((2, 4, 1, 1, 1)))
    write_run(tmp_path / "rate=0.3", np.zeros((2, 5, 1, 1, 1)))
    scores = compare(tmp_path, points, tiny_job(updates=20, budgets=BUDGETS[:1]))
    assert [math.isnan(score.success) for score in scores] == [True, False]
    assert [math.isnan(score.success_of_last) for score in scores] == [True, False]
    assert [score.best for score in scores] == [False, True]


@pytest.mark.usefixtures("tiny")
def test_the_table_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "tune.csv"
    points = tiny_points(rate=[0.1], risk=[0.0])
    score = Score(points[0], BUDGETS[1], 0.5, math.nan, -3.25, math.nan, 2, 3, 16, 30, 1, True)
    for _ in range(2):  # replaced, not added to
        write_table(path, [score])
    assert tables.read_rows(path) == [
        {
            "point": "rate=0.1,risk=0",
            "rate": 0.1,
            "risk": 0.0,
            "budget": "4x1",
            "success": 0.5,
            "return": -3.25,
            "tasks": 2.0,
            "seeds": 3.0,
            "updates": 16.0,
            "episodes": 30.0,
            "stopped": 1.0,
            "best": 1.0,
            "own_budget": 0.0,
        }
    ]
    assert "success_of_last_3" in path.read_text().splitlines()[0]
    assert [file.name for file in tmp_path.iterdir()] == ["tune.csv"]
    with pytest.raises(InputError, match="Cannot write"):
        write_table(tmp_path / "missing" / "tune.csv", [score])


# The whole.


def test_the_command_ends_with_a_table_a_file_and_a_report(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted = iter([(0.0, -9.0), (0.25, -8.0), (0.5, -7.0), (0.5, -6.0), (0.5, -6.0), (0.25, -9)])
    world.on_evaluation = lambda: next(scripted)
    out = tmp_path / "out"
    options = "--updates 6 --log-every 1 --evaluate-every 2 --batch-size 8 --tensorboard False"
    command = ["tiny", "--env", ENVIRONMENT, "--tasks", 1, 2, "--seeds", 2, "--episodes", 10]
    command += ["--grid", "rate=0.1,0.3", "--budgets", "1x1", "2x1", "4x1", *options.split()]
    assert run(*command, "--out", out) == 0
    first = capsys.readouterr().out
    assert "Point 1 of 2: rate=0.1\n" in first
    assert "Point 2 of 2: rate=0.3\n" in first
    table = first[first.rindex("  rate ") :]
    assert [" ".join(line.split()) for line in table.splitlines() if "──" not in line] == [
        "rate 1x1 success 1x1 return 2x1 success 2x1 return 4x1 success 4x1 return",
        "0.1" + 3 * " 50% (25%) -7.0 (-8.0)",
        "0.3" + 3 * " 25% (42%) * -9.0 (-7.0)",
        "",
        "small-scale: 2 seeds, 6 updates",
        "Means over 2 tasks x 2 seeds after the last update: 40 episodes at each point and budget.",
        "In brackets the mean over the last 3 evaluations.",
        "* best at its budget by success in brackets, then by return: chosen after seeing the "
        "scores, hence a little flattering; confirm it with more seeds.",
        f"wrote {out / 'tune.csv'} and {out / 'report.html'}",
    ]
    assert [row["best"] for row in tables.read_rows(out / "tune.csv")] == 3 * [0] + 3 * [1]
    page = (out / "report.html").read_text()
    assert "rate=0.1" in page
    assert "rate=0.3" in page

    assert run(*command, "--out", out) == 0
    second = capsys.readouterr().out
    assert second.strip() == table.strip()
    assert run(*command, "--out", out, "--risk", 0.5) == 2
    assert "algorithm.risk is 0.0 in the run and 0.5 now" in capsys.readouterr().err


def test_the_table_of_a_queue_that_was_stopped(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop_in_the_third() -> None:
        if (tmp_path / "risk=0,rate=0.3").exists():
            interrupt()

    world.on_evaluation = stop_in_the_third
    options = "--updates 4 --log-every 1 --evaluate-every 4 --batch-size 8 --tensorboard False"
    command = ["tiny", "--env", ENVIRONMENT, "--grid", "risk=1,0", "--grid", "rate=0.1,0.3"]
    assert run(*command, *options.split(), "--budgets", "1x1", "--out", tmp_path) == 0
    out = capsys.readouterr().out
    table = [" ".join(line.split()) for line in out[out.rindex("  risk ") :].splitlines()]
    assert table[0] == "risk rate 1x1 success 1x1 return stopped"
    assert table[2:4] == ["1 0.1 - - 2 of 2", "1 0.3 - - 2 of 2"]
    assert re.fullmatch(r"0 0\.1 [0-9]+% \* -?[0-9.]+ 0 of 2", table[4])
    assert "small-scale: 2 tasks" not in table
    assert any("a smaller --evaluate-every makes more" in line for line in table)
    assert "Stopped: tasks and seeds that diverged, scored by their last good state." in table
    assert table[-1] == "3 of 4 points have ended; the same command goes on."
    assert not (tmp_path / "report.html").exists()
    assert len(tables.read_rows(tmp_path / "tune.csv")) == 3


@pytest.mark.usefixtures("tiny")
def test_real_data_and_real_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays: dict[str, Any] = tiny_arrays()
    arrays["observations"] = arrays["observations"][:, :2]
    data = tmp_path / "data.npz"
    np.savez(data, **arrays)
    out = tmp_path / "out"
    options = "--updates 2 --log-every 1 --evaluate-every 2 --batch-size 8 --tensorboard False"
    command = ["tiny", "--env", ENVIRONMENT, "--data", data, "--grid", "rate=0.1"]
    command += ["--budgets", "1x1", "--episodes", 1, "--workers", 1, *options.split()]
    assert run(*command, "--out", out) == 0
    assert f"wrote {out / 'tune.csv'}" in capsys.readouterr().out
    [row] = Run.open(out / "rate=0.1").evaluations()
    assert (row["task"], row["episodes"]) == (1, 1)
