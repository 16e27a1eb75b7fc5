"""Fine-tuning: what a run of it holds, kills and interrupts, what members see, what it learns."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import probes
import sorl.collection
import tiny_environments
from compilations import compilations
from finished_run import evaluations_without_clock, tree
from local_environments import LocalEnvironments
from sorl import algorithms, checkpoint, cli, jobs
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy
from sorl.algorithms.bc import BC
from sorl.algorithms.rebrac import ReBRAC
from sorl.algorithms.sorl import SORL
from sorl.collection import Collector, Ended, Episodes
from sorl.data.origin import Origin, encode
from sorl.data.replay import Replay, Rows
from sorl.data.sources import load_dataset
from sorl.deployment.policy import load_stacked
from sorl.errors import InputError
from sorl.evaluation import Evaluation, Evaluator
from sorl.inference import act
from sorl.jobs.finetuning import begun, like_of
from sorl.jobs.job import config_of
from sorl.jobs.outcome import stopped_members
from sorl.members import Snapshot, TrainingState, initial_state, members_of
from sorl.online import Plan, learn_online
from sorl.report.page import write_report
from sorl.runs import Run
from sorl.training import train
from sorl.types import Budget, Spec

pytestmark = pytest.mark.optimised

pytest_plugins = ("run_fixtures",)

TINY_SORL = SORL(hidden=(8,), discretization=2, backprop_steps=1)
REACH = "gym:tiny_environments:Reach-v0"
MAZE = "pointmaze-medium-navigate-singletask-v0"
FIRST = 4
LAST = FIRST + 24


class Killed(BaseException):
    """Nothing in the library may catch it but to clean up."""


def write_data(path: Path, rows: int = 40, size: int = 3) -> Path:
    generator = np.random.default_rng(3)
    terminals = np.zeros(rows, np.float32)
    terminals[[rows // 2 - 1, rows - 1]] = 1
    np.savez(
        path,
        allow_pickle=False,
        observations=generator.normal(size=(rows, size)).astype(np.float32),
        actions=generator.uniform(-0.9, 0.9, (rows, 2)).astype(np.float32),
        terminals=terminals,
        rewards=-np.ones(rows, np.float32),
        masks=np.ones(rows, np.float32),
    )
    return path


def untrained(out: Path, algorithm: AbstractAlgorithm[Any], data: Path, **changes: Any) -> Path:
    """A run that looks like one of `FIRST` updates, without the time to compile any."""
    settings: dict[str, Any] = {
        "environment": REACH,
        "data": data,
        "seeds": (0, 1),
        "updates": FIRST,
        "batch_size": 8,
        "log_every": 2,
        "evaluate_every": 4,
        "budgets": (Budget(1, 1),),
        "episodes": 2,
        "workers": 1,
        "tensorboard": False,
        **changes,
    }
    job = jobs.Job(**settings)
    dataset = load_dataset(job.environment, data=job.data)
    run = Run.create(out, config_of(algorithm, job, dataset))
    state = initial_state(algorithm, dataset.spec, members_of(dataset.tasks, job.seeds))
    checkpoint.save(run.checkpoints, FIRST, state, {}, milestone=True)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "reach.npz")


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Iterator[Callable[..., Any]]:
    """The class of the algorithm `tiny`, which discovery finds; the same for all tests here."""
    algorithms.__path__.append(str(tiny_folder))
    algorithms.get.cache_clear()
    try:
        yield algorithms.get("tiny")
    finally:
        algorithms.__path__.remove(str(tiny_folder))
        algorithms.get.cache_clear()


@pytest.fixture(scope="module")
def parent(tiny: Callable[..., Any], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("parents") / "tiny", tiny(), data)


def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments in this process, and scores that depend on the policies alone."""
    monkeypatch.setattr(sorl.collection, "VectorEnvironment", LocalEnvironments)

    def evaluate(
        evaluator: Evaluator, policies: Any, members: Any, *, budgets: Any, **_: Any
    ) -> list[Evaluation]:
        weights = np.asarray(jax.tree.leaves(policies)[0])
        return [
            Evaluation(member, budget, 2, float(np.cos(weights[i].sum()) ** 2), 0, 1, 1, 1, 1)
            for i, member in enumerate(members)
            for budget in budgets
        ]

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch)


def settings(**changes: Any) -> jobs.Finetuning:
    return jobs.Finetuning(
        **{
            "steps": 28,
            "environments": 2,
            "start_steps": 4,
            "log_every": 4,
            "evaluate_every": 12,
            "workers": 1,
            "checkpoint_seconds": 0.0,
            "tensorboard": False,
            **changes,
        }
    )


def same_outcome(
    run: Path, reference: Path, *, evaluations: bool = True, checkpoints: bool = True
) -> None:
    assert (run / "metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes()
    if evaluations:
        assert evaluations_without_clock(run) == evaluations_without_clock(reference)
    if checkpoints:
        kept = checkpoint.updates(reference / "checkpoints")
        assert checkpoint.updates(run / "checkpoints") == kept
    weights = {k: v for k, v in tree(reference / "policy").items() if k.endswith(".safetensors")}
    assert weights
    assert {k: v for k, v in tree(run / "policy").items() if k in weights} == weights
    assert not list(run.rglob(".saving-*"))
    states = [
        checkpoint.restore(path / "checkpoints", like_of(Run.open(path).config))[0]
        for path in (run, reference)
    ]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def whole(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        script(patch)
        before = tree(parent)
        jobs.finetune(parent, out, settings(), quiet=True)
        assert tree(parent) == before
    return out


# What a run holds.


def test_a_fine_tuned_run_is_a_run(whole: Path, parent: Path, tmp_path: Path) -> None:
    run = Run.open(whole)
    section = run.config["finetuning"]
    assert section["parent"]["path"] == str(parent)
    assert section["parent"]["update"] == FIRST
    assert run.config["dataset"] == Run.open(parent).config["dataset"]
    assert [row["update"] for row in run.metrics()[::2]] == [8, 12, 16, 20, 24, 28]
    # Rates count the updates of this run alone.
    for row in run.timing():
        assert float(row["seconds"]) * float(row["updates_per_second"]) == pytest.approx(4)
    # The first evaluation is that of the parent, and every other one is of something else.
    scores = {(row["update"], row["seed"]): row["success"] for row in run.evaluations()}
    assert [update for update, _ in scores][::2] == [FIRST, FIRST + 12, LAST]
    assert len(set(scores.values())) == 6
    known = jobs.restore_policies(Run.open(parent), FIRST)
    for update, policies in ((FIRST, known[0]), (LAST, load_stacked(whole)[0])):
        restored, members = jobs.restore_policies(run, update)
        assert members == known[1]
        for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(policies), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    page = write_report([whole], tmp_path / "report.html").read_text()
    assert ">parent.checkpoint</th>" in page
    assert "online/return" in page


def test_episodes_are_told_once_each(whole: Path) -> None:
    run = Run.open(whole)
    state, _ = checkpoint.restore(run.checkpoints, like_of(run.config))
    begun_before = np.asarray(state.online.episodes.number).sum(axis=1)
    for place, seed in enumerate((0, 1)):
        rows = [row for row in run.metrics() if row["seed"] == seed]
        assert sum(float(row["online/episodes"]) for row in rows) == begun_before[place]
        steps = sum(
            float(row["online/episodes"]) * float(row["online/length"])
            for row in rows
            if row["online/episodes"]
        )
        assert steps + state.online.episodes.length[place].sum() == 28
        rewards = np.asarray(state.online.replay.rewards[place])
        assert rewards.shape == (28,)
        assert set(rewards) <= {-1.0, 0.0}


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("rule", "environment", "told"),
    [
        ("success-at-end", REACH, "(success-at-end)"),
        ("logged", REACH, None),
        (None, REACH, None),
        (None, MAZE, "(whose origin is unknown)"),
        ("logged", MAZE, None),
    ],
)
def test_logged_rewards_that_may_be_others_than_those_of_acting_are_told(
    rule: str | None,
    environment: str,
    told: str | None,
    tiny: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = 3 if environment == REACH else 2
    data = write_data(tmp_path / "own.npz", size=size)
    if rule is not None:
        with np.load(data) as arrays:
            content = {**arrays, "sorl": encode(Origin(rewards=rule))}
        np.savez(data, allow_pickle=False, **content)
    trained = untrained(tmp_path / "parent", tiny(), data, environment=environment, seeds=(0,))
    run = jobs.finetune(trained, tmp_path / "run", settings(steps=4, environments=1, start_steps=0))
    expected = [] if told is None else [f"{data} {told}, and own rows get those of {environment}:"]
    assert [expected[0] in event["message"] for event in run.events()] == [True] * len(expected)
    shown = capsys.readouterr().out
    assert shown.count("Logged rows keep the rewards") == len(expected)
    assert all(sentence in shown for sentence in expected)
    assert shown.find("Logged rows") < shown.find("Training ")


# Kills and interrupts.


@pytest.mark.usefixtures("scripted")
def test_dying_anywhere_and_resuming_gives_the_same_run(
    whole: Path, parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two steps, in an evaluation, or at a call that makes a file final."""
    calls, fatal = 0, -1

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise Killed
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(Collector, "step", counted(Collector.step))
    monkeypatch.setattr(Evaluator, "evaluate", counted(Evaluator.evaluate))
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    jobs.finetune(parent, tmp_path / "counted", settings(), quiet=True)
    same_outcome(tmp_path / "counted", whole)
    total = calls
    run = tmp_path / "killed"
    kills = 0
    for share in (0.03, 0.15, 0.3, 0.45, 0.3, 0.2):
        calls, fatal = 0, max(3, round(share * total))
        try:
            if (run / "config.json").exists():
                jobs.resume(run, quiet=True)
            else:
                jobs.finetune(parent, run, settings(), quiet=True)
        except Killed:
            kills += 1
    assert kills >= 4
    fatal = -1
    jobs.resume(run, quiet=True)
    same_outcome(run, whole)
    before = tree(run)
    jobs.resume(run, quiet=True)  # a finished run stays as it is
    assert tree(run) == before


def test_kill_9_and_resume_gives_the_same_run(
    whole: Path, parent: Path, tiny_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A real process with worker processes, killed while it learns."""
    program = (
        "import sys; from sorl import algorithms, jobs; algorithms.__path__.append(sys.argv[1]);"
        f"jobs.finetune(sys.argv[2], sys.argv[3], jobs.{settings()!r})"
    )
    run = tmp_path / "killed"
    command = [sys.executable, "-c", program, str(tiny_folder), str(parent), str(run)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while not (run / "metrics.csv").exists() or (run / "metrics.csv").stat().st_size < 400:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    reached = checkpoint.latest(run / "checkpoints")
    assert reached is not None
    assert FIRST <= reached < LAST, "the kill came too late to prove anything"
    request.getfixturevalue("scripted")
    jobs.resume(run, quiet=True)
    same_outcome(run, whole, evaluations=False)


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(("at", "reached"), [(1, FIRST), (4, 8)])
def test_an_interrupt_saves_everything(
    at: int,
    reached: int,
    whole: Path,
    parent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the first update, whose steps are made again, or after it."""
    step, steps = Collector.step, 0

    def interrupted(collector: Collector, actions: np.ndarray) -> Rows:
        nonlocal steps
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(collector, actions)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "step", interrupted)
        jobs.finetune(parent, tmp_path / "run", settings(checkpoint_seconds=1e9))
    out = capsys.readouterr().out
    assert f"Stopped after update {reached} with everything saved" in out
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") == reached
    assert steps < 14
    jobs.resume(tmp_path / "run", quiet=True)
    same_outcome(tmp_path / "run", whole, checkpoints=False)


@pytest.mark.usefixtures("scripted")
def test_an_environment_that_does_not_repeat_itself_is_told(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    step, steps = Collector.step, 0

    def fatal(collector: Collector, actions: np.ndarray) -> Rows:
        nonlocal steps
        steps += 1
        if steps == 10:
            raise Killed
        return step(collector, actions)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Collector, "step", fatal)
        wanted = settings(environment="gym:tiny_environments:Moody-v0", environments=1)
        with pytest.raises(Killed):
            jobs.finetune(parent, run, wanted, quiet=True)
    jobs.resume(run)
    sentences = [event["message"] for event in Run.open(run).events()]
    assert len(sentences) == 2
    assert all("does not repeat itself; a new one was started" in text for text in sentences)
    assert sentences[0] in capsys.readouterr().out
    assert not stopped_members(Run.open(run).config, Run.open(run).events())
    state, _ = checkpoint.restore(Run.open(run).checkpoints, like_of(Run.open(run).config))
    assert np.asarray(state.online.replay.ends)[:, 7].all()  # the last of the checkpoint


# Members that diverge.


@pytest.mark.usefixtures("scripted")
def test_a_seed_that_fails_is_told_and_the_others_go_on(
    tiny: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    seeds = (0, 1, 2, 3)
    failing = untrained(tmp_path / "parent", tiny(risk=0.5), data, seeds=seeds)
    jobs.finetune(failing, tmp_path / "run", settings(), quiet=True)
    run = Run.open(tmp_path / "run")
    stopped = {int(event["seed"]) for event in run.events()}
    assert stopped
    assert stopped < set(seeds)
    assert all("between updates 4 and 8: loss became NaN" in e["message"] for e in run.events())
    for row in run.metrics():
        finite = np.isfinite(float(row["loss"]))
        assert finite == (int(row["seed"]) not in stopped)
    first, last = (jobs.restore_policies(run, update)[0] for update in (FIRST, LAST))
    for seed in seeds:
        one, other = (np.asarray(policies.matrix)[seed] for policies in (first, last))  # pyright: ignore[reportAttributeAccessIssue]
        assert np.isfinite(other).all()
        assert np.array_equal(one, other) == (seed in stopped)


@pytest.mark.usefixtures("scripted")
def test_nothing_goes_on_when_every_seed_has_failed(
    tiny: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    failing = untrained(tmp_path / "parent", tiny(risk=1.0), data)
    with pytest.raises(InputError, match=r"Every task and seed of .* was stopped: see events"):
        jobs.finetune(failing, tmp_path / "run", settings(), quiet=True)
    before = tree(tmp_path / "run")
    with pytest.raises(InputError, match=r"Every task and seed of .* was stopped: see events"):
        jobs.resume(tmp_path / "run", quiet=True)
    assert tree(tmp_path / "run") == before, "nothing is done for members that are dead"
    with pytest.raises(InputError, match="there is nothing to learn on from"):
        jobs.finetune(tmp_path / "run", tmp_path / "next", settings(), quiet=True)


# Bad input.


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ("--steps 0", "steps=0 is not possible: give at least 1."),
        ("--steps 9 --environments 2", "steps=9 must be a multiple of environments=2"),
        ("--steps 8 --start-steps 8", "fewer than the 8 steps"),
        ("--steps 8 --offline-share 1.5", "offline_share=1.5 is not possible: use 0 to 1."),
        ("--steps 8 --noise -1", "noise=-1.0 is not possible"),
        ("--steps 8 --environments 3", "steps=8 must be a multiple of environments=3"),
        ("--steps 9 --environments 3", "log_every=200 is not possible: give a multiple of"),
        ("--steps 8 --evaluate-every 300", "evaluate_every=300 must be a multiple of log_every"),
        ("--steps 8 --act-budget 1x4", "TinyPolicy has no critic to choose with"),
        ("--steps 8 --act-budget four", "Budget 'four' cannot be read"),
        ("--steps 8 --budgets 1x2", "TinyPolicy has no critic to choose with"),
        (
            "--steps 8 --env tiny_environments:ReachWide-v0",
            "has observations of 4 numbers and actions of 2, but PARENT was trained on 3 and 2",
        ),
        ("--steps 8 --env tiny_environments:Reach-v9", "There is no environment"),
        ("--steps 8 --data OTHER", "The data of PARENT have changed since it was started"),
        ("--steps 8 --episodes 0", "episodes=0 is not possible"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    changes: str, sentence: str, parent: Path, tmp_path: Path, capsys: Any
) -> None:
    other = write_data(tmp_path / "other.npz", rows=30)
    out = tmp_path / "run"
    words = changes.replace("OTHER", str(other)).split()
    code = cli.run(["finetune", str(parent), "--out", str(out), "--workers", "1", *words])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert sentence.replace("PARENT", str(parent)) in error
    assert not out.exists()


@pytest.mark.usefixtures("scripted")
def test_parents_that_cannot_be_learnt_on_from(
    parent: Path,
    tiny: Callable[..., Any],
    data: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="There is no run in"):
        jobs.finetune(tmp_path / "none", tmp_path / "out", settings())
    bare = Path(shutil.copytree(parent, tmp_path / "bare"))
    shutil.rmtree(bare / "checkpoints")
    with pytest.raises(InputError, match="has no checkpoint to learn on from"):
        jobs.finetune(bare, tmp_path / "out", settings())
    alone = untrained(tmp_path / "alone", tiny(), data, environment=None)
    with pytest.raises(InputError, match="without an environment: name the one to act in with"):
        jobs.finetune(alone, tmp_path / "out", settings())
    with pytest.raises(InputError, match=r"There is a run in .* already"):
        jobs.finetune(parent, whole, settings())
    assert not (tmp_path / "out").exists()
    run = jobs.finetune(alone, tmp_path / "out", settings(environment=REACH), quiet=True)
    assert {row["update"] for row in run.evaluations()} == {FIRST, FIRST + 12, LAST}
    config = {**Run.open(parent).config, "images": {"frame_stack": 2}}
    seeing = Path(shutil.copytree(parent, tmp_path / "seeing"))
    (seeing / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="was trained on images"):
        jobs.finetune(seeing, tmp_path / "none", settings())
    maze = "pointmaze-medium-navigate-singletask"
    config = {**Run.open(parent).config, "environment": f"{maze}-v0", "tasks": [3]}
    other = Path(shutil.copytree(parent, tmp_path / "other"))
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"trained on task\(s\) 3, not on task 2 of"):
        jobs.finetune(other, tmp_path / "none", settings(environment=f"{maze}-task2-v0"))
    # A run of fine-tuning can be fine-tuned again.
    begun_at: list[int] = []
    begin = Collector.begin

    def recorded(collector: Collector, first: int = 0) -> None:
        begun_at.append(first)
        begin(collector, first)

    monkeypatch.setattr(Collector, "begin", recorded)
    again = jobs.finetune(run.path, tmp_path / "again", settings(), quiet=True)
    assert begun_at == [settings().steps]
    once_more = jobs.finetune(again.path, tmp_path / "once more", settings(), quiet=True)
    assert begun_at == [settings().steps, 2 * settings().steps]
    assert once_more.config["finetuning"]["parent"]["acted"] == 2 * settings().steps
    assert {row["update"] for row in again.evaluations()} == {LAST, LAST + 12, LAST + 24}


def test_rows_that_do_not_fit_into_the_memory_are_refused_before_anything_is_written(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = settings().plan(Budget(1, 1))
    replay = Replay.empty(Spec(3, 2), members=2, capacity=plan.steps, environments=1)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(replay))
    assert Replay.bytes_of(Spec(3, 2), members=2, capacity=plan.steps) == size
    monkeypatch.setattr("sorl.jobs.finetuning.memory", lambda: 100)
    with pytest.raises(InputError, match="of memory: make fewer steps"):
        jobs.finetune(parent, tmp_path / "out", settings())
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("scripted")
def test_what_has_changed_since_is_told_when_a_run_is_resumed(whole: Path, tmp_path: Path) -> None:
    lost = Path(shutil.copytree(whole, tmp_path / "lost"))
    shutil.rmtree(lost / "checkpoints")
    text = (lost / "config.json").read_text()
    (lost / "config.json").write_text(text.replace('"update": 4,', '"update": 3,'))
    with pytest.raises(InputError, match="no longer holds the checkpoint of update 3"):
        jobs.resume(lost)
    (lost / "config.json").write_text(text.replace("Reach-v0", "Bandit-v0"))
    with pytest.raises(InputError, match="have at most 1 steps and had 12"):
        jobs.resume(lost)
    (lost / "config.json").write_text(text.replace('"noise": 0.0', '"noise": "loud"'))
    with pytest.raises(InputError, match="garbled"):
        jobs.resume(lost)


# What members see.


class Scripted(Collector):
    """Rewards that tell whose row it is and which: 1000 * (member + 1) + its place."""

    def __init__(self, members: int, environments: int, size: int) -> None:
        self.shape = (members, environments)
        self.size = size
        self.made = 0
        self.acted: list[np.ndarray] = []

    @property
    def observations(self) -> np.ndarray:
        return np.full((*self.shape, self.size), 0.1, np.float32)

    @property
    def episodes(self) -> Episodes:
        return Episodes(*(np.zeros(self.shape),) * 4)

    def step(self, actions: np.ndarray) -> Rows:
        self.acted.append(actions)
        members, environments = self.shape
        place = self.made + np.arange(environments)
        self.made += environments
        off = np.zeros(self.shape, bool)
        reward = 1000.0 * (1 + np.arange(members))[:, None] + place
        seen = self.observations
        return Rows(seen, actions, np.asarray(reward, np.float32), ~off, seen, off)

    def take_ended(self) -> list[Ended]:
        return []


class Tenths(AbstractPolicy):
    """Answers a tenth of its sampling steps, whatever it sees."""

    def noise_shape(self, steps):
        return (2,)

    def from_noise(self, observation, noise, *, steps):
        return jnp.full(2, steps / 10)

    def check_steps(self, steps):
        pass


@dataclasses.dataclass(frozen=True)
class Witness(AbstractAlgorithm[Any]):
    """Learns nothing and tells what it was given."""

    presets: ClassVar = {}
    default_budget: ClassVar = Budget(1, 1)

    def init(self, spec, *, key):
        return BC(hidden=(4,)).init(spec, key=key)

    def update(self, state, batch, update_index, *, key):
        own = batch.reward > 0
        return state, {
            "least": jnp.min(jnp.where(own, batch.reward, 1e9)),
            "most": jnp.max(batch.reward),
            "own": jnp.mean(own),
            "index": update_index.astype(jnp.float32),
        }

    def policy(self, state):
        return Tenths()


def witnessed(
    plan: Plan, chunk: int, batch_size: int = 512, acted: int = 0
) -> tuple[list[Snapshot], Scripted]:
    algorithm = Witness()
    members = members_of((0,), (3, 1, 2))
    dataset = probes.bandit(np.zeros((2 * probes.EPISODES, 2)), np.zeros(2 * probes.EPISODES))
    state = initial_state(algorithm, dataset.spec, members)
    collector = Scripted(3, plan.environments, 3)
    snapshots = learn_online(
        algorithm,
        dataset,
        collector,
        plan,
        members=members,
        first=50,
        acted=acted,
        start=(50, begun(state, dataset.spec, plan, collector.episodes)),
        batch_size=batch_size,
        chunk=chunk,
    )
    return list(snapshots), collector


def test_members_see_their_own_rows_and_all_of_them_so_far() -> None:
    """Also: which updates a round makes, when the first ones come, and that none is compiled."""
    plan = Plan(
        steps=24,
        budget=Budget(1, 1),
        environments=2,
        updates_per_step=3,
        start_steps=4,
        offline_share=0.0,
        noise=0.1,
    )
    witnessed(plan, chunk=6)
    with compilations() as compiled:
        snapshots, collector = witnessed(plan, chunk=6)
    assert not compiled
    assert [snapshot.update for snapshot in snapshots] == list(range(56, 50 + 61, 6))
    for number, snapshot in enumerate(snapshots):
        size = 4 + 2 * (number + 1)
        own = 1000.0 * (1 + np.arange(3))
        np.testing.assert_array_equal(snapshot.metrics["own"], 1)
        np.testing.assert_array_equal(snapshot.metrics["most"], own + size - 1)
        np.testing.assert_array_equal(snapshot.metrics["least"], own)
        np.testing.assert_allclose(snapshot.metrics["index"], 50 + 6 * number + 2.5)
    rewards = np.asarray(snapshots[-1].state.online.replay.rewards)
    np.testing.assert_array_equal(rewards, 1000.0 * (1 + np.arange(3))[:, None] + np.arange(24))
    # No two of a round's actions are the same draw, nor those of two rounds.
    acted = np.stack(collector.acted).reshape(-1, 2)
    assert len(np.unique(acted, axis=0)) == len(acted) == 12 * 3 * 2
    # Nor those of a run that learns on from this one.
    _, later = witnessed(plan, chunk=6, acted=plan.steps)
    both = np.concatenate([acted, np.stack(later.acted).reshape(-1, 2)])
    assert len(np.unique(both, axis=0)) == len(both)


def test_acting_spends_its_budget_and_adds_normal_noise_within_the_range() -> None:
    plan = Plan(steps=400, budget=Budget(4, 1), environments=50, start_steps=400 - 50)
    _, collector = witnessed(plan, chunk=50)
    acted = np.stack(collector.acted)
    np.testing.assert_array_equal(acted, np.full((8, 3, 50, 2), 0.4, np.float32))
    _, collector = witnessed(dataclasses.replace(plan, noise=0.1), chunk=50)
    noise = (np.stack(collector.acted) - 0.4) / 0.1
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 0.01  # keys are fixed
    assert len(np.unique(noise)) > 0.99 * noise.size, "nothing shares a draw"
    _, collector = witnessed(dataclasses.replace(plan, noise=3.0), chunk=50)
    acted = np.stack(collector.acted)
    assert (acted.min(), acted.max()) == (-1, 1)
    # Of 0.4 + 3 z: Φ(-1.4 / 3) of them below the range and Φ(-0.6 / 3) above it.
    for end, z in ((-1, -1.4 / 3), (1, -0.6 / 3)):
        expected = acted.size * scipy.stats.norm.cdf(z)
        assert abs(np.count_nonzero(acted == end) - expected) < 4 * np.sqrt(expected)


# What is learnt.


@pytest.mark.usefixtures("scripted")
def test_a_better_action_than_any_logged_one_is_found() -> None:
    """The logged actions lie on the plain; from them alone nothing tells of the optimum."""
    rng = np.random.default_rng(0)
    plain = tiny_environments.BANDIT_PLAIN
    actions = np.clip(plain + 0.1 * rng.normal(size=(2 * probes.EPISODES, 2)), -1, 1)
    dataset = probes.bandit(actions, tiny_environments.bandit_reward(actions))
    assert set(np.unique(dataset.rewards)) == {-1.5, 0}  # 0 on the last rows, which none draws
    algorithm = ReBRAC(hidden=(32, 32), learning_rate=3e-3, actor_penalty=0.1, target_rate=0.05)
    budget, chunk, members = Budget(1, 1), 400, members_of((0,), (0, 1))
    settings = {"batch_size": 64, "chunk": chunk}
    offline = train(algorithm, dataset, seeds=(0, 1), updates=3 * chunk, **settings)  # pyright: ignore[reportArgumentType]
    state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), next(offline).state)

    def rewards(state: TrainingState) -> np.ndarray:
        """Of both members' actions."""

        def one(own: Any) -> jax.Array:
            seen = jnp.asarray(probes.STATES[0])
            return act(algorithm.policy(own), seen, budget=budget, key=jax.random.key(0))

        return tiny_environments.bandit_reward(np.asarray(jax.vmap(one)(state.algorithm)))

    *_, further = offline
    plan = Plan(steps=2 * chunk, budget=budget, environments=8, offline_share=0.5, noise=0.5)
    collector = Collector("tiny_environments:Bandit-v0", members, environments=8)
    collector.begin()
    *_, last = learn_online(
        algorithm,
        dataset,
        collector,
        plan,
        members=members,
        first=chunk,
        start=(chunk, begun(state, dataset.spec, plan, collector.episodes)),
        **settings,  # pyright: ignore[reportArgumentType]
    )
    assert last.update == further.update == 3 * chunk
    assert (rewards(further.state) < -0.5).all()
    assert (rewards(last.state) > -0.05).all()


@pytest.mark.usefixtures("scripted")
def test_sorl_learns_online(data: Path, tmp_path: Path) -> None:
    parent = untrained(tmp_path / "parent", TINY_SORL, data, seeds=(0,))
    wanted = settings(steps=2, start_steps=0, offline_share=0.5)
    run = jobs.finetune(parent, tmp_path / "run", wanted, quiet=True)
    (row,) = run.metrics()
    assert row["update"] == FIRST + 2
    assert all(np.isfinite(value) for key, value in row.items() if "/loss" in key)
    first, last = (jobs.restore_policies(run, update)[0] for update in (FIRST, FIRST + 2))
    assert any(
        not np.array_equal(one, other)
        for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True)
    )
    short = untrained(tmp_path / "short", TINY_SORL, data, seeds=(0,), arithmetic="bfloat16")
    rounded = jobs.finetune(short, tmp_path / "rounded", wanted, quiet=True)
    assert rounded.config["training"]["arithmetic"] == "bfloat16"
    (other,) = rounded.metrics()
    assert other["critic/loss"] != row["critic/loss"]
    assert other["critic/loss"] == pytest.approx(row["critic/loss"], rel=0.1)


def test_the_command_and_its_run_from_beginning_to_end(
    parent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With worker processes and real episodes."""
    out = tmp_path / "run"
    words = f"finetune {parent} --out {out} --steps 4 --log-every 2 --workers 1 --episodes 1"
    assert cli.run([*words.split(), "--evaluate-every", "4", "--tensorboard", "False"]) == 0
    told = capsys.readouterr().out
    assert f"Fine-tuning {parent}, update {FIRST}: 4 steps of each task and seed" in told
    assert "Done." in told
    assert {row["update"] for row in Run.open(out).evaluations()} == {FIRST, FIRST + 4}
    assert cli.run(["evaluate", str(out), "--budgets", "1x1", "--episodes", "1", "--json"]) == 0
    assert f'"update": {FIRST + 4}' in capsys.readouterr().out
    assert cli.run(["resume", str(out)]) == 0
    assert cli.run(["info", str(out)]) == 0
