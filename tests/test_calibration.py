"""Calibration: what a deadline buys, what adaptive spending reads, what is kept and measured."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import given

from compilations import compilations
from sorl import cli, inference, provenance
from sorl.algorithms.bc import BC
from sorl.algorithms.sorl import SORL
from sorl.choices import Choice
from sorl.deployment import measuring
from sorl.deployment.calibration import (
    CALIBRATION,
    Calibration,
    Measured,
    NothingFitsError,
    OtherMachineWarning,
    read_calibration,
    write_calibration,
)
from sorl.deployment.policy import Policy, load_stacked, save_policy
from sorl.deployment.storage import policy_folder
from sorl.errors import InputError
from sorl.evaluation import Evaluation
from sorl.inference import Strategy
from sorl.jobs.calibration import held_out_file, states_of
from sorl.runs import Run
from sorl.types import Budget, Member, Spec
from sorl.verifiers import Verifier

pytest_plugins = ("run_fixtures",)

SPEC = Spec(observation_size=3, action_size=2)
BUDGETS = [Budget(1, 1), Budget(4, 1), Budget(4, 8), Budget(8, 1)]


def table(
    *entries: tuple[str, float, tuple[int, int]], rows: tuple[int, ...] = (1,)
) -> Calibration:
    """From budget, 99th percentile and (successes, episodes)."""
    measured = tuple(
        Measured(
            Budget.parse(budget),
            Choice("typical", 2) if "x1" not in budget else Choice(),
            p50_ms=tuple(0.5 * p99 * (1 + i) for i in range(len(rows))),
            p99_ms=tuple(p99 * (1 + i) for i in range(len(rows))),
            gain=0.25,
            spread=0.1 * Budget.parse(budget).best_of if "x1" not in budget else None,
            successes=successes,
            episodes=episodes,
        )
        for budget, p99, (successes, episodes) in entries
    )
    created = "2026-01-01T00:00:00+00:00"
    return Calibration(
        measured, rows, "independent", Verifier("min"), provenance.machine(), created
    )


@given(
    entries=st.lists(
        st.tuples(
            st.builds(Budget, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 8])),
            st.floats(0.1, 10),
            st.integers(0, 20),
        ),
        min_size=1,
        unique_by=lambda entry: entry[0],
    ),
    deadline=st.floats(0.01, 12),
    rolled_out=st.booleans(),
)
def test_a_deadline_buys_the_best_that_fits(
    entries: list[tuple[Budget, float, int]], deadline: float, rolled_out: bool
) -> None:
    calibration = table(
        *((str(b), p99, (wins, 20) if rolled_out else (0, 0)) for b, p99, wins in entries)
    )
    allowed = [e for e in entries if e[1] <= deadline and (rolled_out or e[0].best_of == 1)]
    if not any(rolled_out or budget.best_of == 1 for budget, _, _ in entries):
        with pytest.raises(NothingFitsError, match=r"only after rollouts .* run `sorl calibrate`"):
            calibration.best_within(deadline)
        assert calibration.worth_having() == []
        return
    if not allowed:
        with pytest.raises(InputError, match="No budget fits"):
            calibration.best_within(deadline)
        return
    chosen = calibration.best_within(deadline).budget
    [(_, p99, wins)] = [e for e in allowed if e[0] == chosen]
    if rolled_out:
        assert wins == max(e[2] for e in allowed)
        assert p99 == min(e[1] for e in allowed if e[2] == wins)
    else:
        assert chosen.steps == max(e[0].steps for e in allowed)


def test_candidates_that_harm_are_told_and_never_bought() -> None:
    calibration = table(
        ("8x1", 1.0, (90, 100)), ("8x8", 2.0, (60, 100)), ("4x1", 0.5, (50, 100)),
        ("4x8", 1.5, (49, 100)),
    )  # fmt: skip
    assert calibration.best_within(100.0).budget == Budget(8, 1)
    [sentence] = calibration.harmful()
    assert sentence.startswith("8 candidates and the choice typical-2 make things worse at 8")
    assert "60% of 100 episodes succeed against 90% of 100" in sentence
    # The chance itself, summed by hand: of 150 successes among 200, at most 60 fall on 8x8.
    chance = sum(math.comb(100, k) * math.comb(100, 150 - k) for k in range(50, 61))
    assert f"p = {chance / math.comb(200, 150):.2g}" in sentence
    assert table(("8x1", 1.0, (2, 3)), ("8x8", 2.0, (1, 3))).harmful() == [], "too few to tell"
    assert table(("8x1", 1.0, (0, 0)), ("8x8", 2.0, (0, 0))).harmful() == []


def test_worth_having_is_what_some_deadline_buys() -> None:
    calibration = table(
        ("1x1", 1.0, (2, 9)), ("2x1", 3.0, (1, 9)), ("4x1", 2.0, (2, 9)), ("8x1", 4.0, (5, 9)),
        ("8x8", 9.0, (4, 9)),
    )  # fmt: skip
    found = [str(entry.budget) for entry in calibration.worth_having()]
    assert found == ["1x1", "8x1"]


def test_more_rows_take_the_next_measured_number() -> None:
    calibration = table(("1x1", 1.0, (1, 2)), ("8x1", 3.0, (2, 2)), rows=(1, 8))
    assert calibration.best_within(3.0).budget == Budget(8, 1)
    assert calibration.best_within(3.0, rows=2).budget == Budget(1, 1), "8 rows of 8x1 take 6 ms"
    assert calibration.best_within(6.0, rows=8).budget == Budget(8, 1)
    with pytest.raises(InputError, match=r"9 observations .* up to 8; run .* --rows 9"):
        calibration.best_within(6.0, rows=9)


def test_thresholds_are_those_of_the_nearest_budget() -> None:
    calibration = table(*((budget, 1.0, (0, 0)) for budget in ("4x1", "4x2", "4x8", "8x1", "8x32")))
    assert calibration.threshold(Budget(4, 2)) == pytest.approx(0.2)
    assert calibration.threshold(Budget(4, 16)) == pytest.approx(0.8)
    assert calibration.threshold(Budget(8, 4)) == pytest.approx(3.2)
    with pytest.raises(InputError, match=r"2 steps: run `sorl calibrate` with .* 2x8"):
        calibration.threshold(Budget(2, 8))
    unseen = tuple(dataclasses.replace(entry, spread=None) for entry in calibration.measured)
    with pytest.raises(InputError, match=r"4 steps: run `sorl calibrate` with --data FILE"):
        dataclasses.replace(calibration, measured=unseen).threshold(Budget(4, 8))


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    calibration = table(("1x1", 1.0, (1, 2)), ("8x8", 3.5, (2, 2)), rows=(1, 4))
    assert read_calibration(tmp_path) is None
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration
    origin = {"created": "2025-01-01", "machine": {"processor": "another", "cores": 8}}
    calibration = dataclasses.replace(calibration, successes_from=origin)
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration
    path = tmp_path / CALIBRATION
    content = json.loads(path.read_text())
    del content["successes_from"]  # as earlier versions wrote it
    path.write_text(json.dumps(content))
    assert read_calibration(tmp_path) == dataclasses.replace(calibration, successes_from=None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 2}, "format 2"),
        ({"measured": []}, "damaged"),
        ({"measured": [{"budget": "4x"}]}, "damaged"),
        ({"rows": [4, 1]}, "damaged"),
        ({"rows": []}, "damaged"),
        ({"rows": [1, 2]}, "damaged"),
        ({"verifier": "worst"}, "damaged"),
        ({"sampler": None}, "sampler"),
        ({"machine": 3}, "damaged"),
        ({"rows": [float("inf")]}, "damaged"),
        ({"successes_from": {"machine": {}}}, "damaged"),
        ({"measured": [{"choice": 3}]}, "damaged"),
    ],
)
def test_a_damaged_file_is_told(
    tmp_path: Path, change: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Users have nothing that checks types before.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    write_calibration(tmp_path, table(("1x1", 1.0, (1, 2))))
    path = tmp_path / CALIBRATION
    content = json.loads(path.read_text())
    if entries := change.get("measured"):
        change = {"measured": [{**content["measured"][0], **entries[0]}]}
    path.write_text(json.dumps({**content, **change}))
    with pytest.raises(InputError, match=expected) as caught:
        read_calibration(tmp_path)
    assert "calibrate" in str(caught.value)
    assert "\n" not in str(caught.value)


# The policy --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "task1-seed0"
    release(path, SORL(hidden=(8, 8)))
    entries = table(("1x1", 1.0, (1, 9)), ("4x1", 2.0, (5, 9)), ("4x8", 4.0, (8, 9)))
    write_calibration(path, entries)
    return path


def release(path: Path, algorithm: Any) -> None:
    state = algorithm.init(SPEC, key=jax.random.key(0))
    save_policy(
        path,
        algorithm.policy(state),
        algorithm=algorithm,
        spec=SPEC,
        member=Member(1, 0),
        update=0,
        provenance={},
    )


def test_a_deadline_is_the_budget_it_buys_spent_as_calibrated(folder: Path) -> None:
    policy = Policy.load(folder)
    policy.prepare()
    for rows in ((3,), (1, 3)):
        observation = np.full(rows, 0.5)
        for deadline, (steps, best_of) in {1.5: (1, 1), 3.0: (4, 1), 1e6: (4, 8)}.items():
            np.testing.assert_array_equal(
                policy.act(observation, deadline_ms=deadline, key=5),
                policy.act(
                    observation,
                    steps=steps,
                    best_of=best_of,
                    verifier="min",
                    choice="typical-2",
                    key=5,
                ),
            )
    info = policy.act_info(np.zeros(3), deadline_ms=5.0, key=1)
    assert info.scores.shape == (8,)


@pytest.mark.parametrize("rows", [1, 4])
def test_after_preparing_no_call_with_a_deadline_compiles(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "task1-seed0"
    release(path, SORL(hidden=(8, 8)))
    entries = [("1x1", 1.0, (1, 10)), ("4x8", 3.0, (9, 10))]
    write_calibration(path, table(*entries, rows=(1, 4)))
    policy = Policy.load(path)
    unused = Policy.load(path)
    jax.clear_caches()  # what other tests compiled must not help
    policy.prepare(rows=rows)
    shapes = [(3,), (1, 3)] if rows == 1 else [(4, 3), (2, 2, 3)]
    key = jax.random.key(7)
    keys = jax.random.split(key, rows)
    with compilations() as compiled:
        for shape in shapes:
            for deadline in (5.0, 1e6):
                policy.act(np.zeros(shape), deadline_ms=deadline)
                policy.act(np.zeros(shape), deadline_ms=deadline, key=7)
                policy.act(np.zeros(shape), deadline_ms=deadline, key=key)
            policy.act(np.zeros((rows, 3)), deadline_ms=deadline, key=keys)
    assert compiled == []
    first = Policy.load(path)
    first.prepare(rows=rows)
    np.testing.assert_array_equal(
        first.act(np.zeros(shapes[0]), deadline_ms=1e6),
        unused.act(np.zeros(shapes[0]), deadline_ms=1e6),
        err_msg="preparing drew from the policy's own stream",
    )


def test_what_a_deadline_refuses(folder: Path, tmp_path: Path) -> None:
    policy = Policy.load(folder)
    zeros = np.zeros(3)
    others: list[Any] = [{"steps": 4}, {"best_of": 2}, {"choice": "best"}, {"adaptive": True}]
    for more in others:
        with pytest.raises(InputError, match="A deadline chooses the budget"):
            policy.act(zeros, deadline_ms=3.0, **more)
    with pytest.raises(InputError, match=r"No budget fits into 0.5 ms .* 1x1, takes 1.00 ms"):
        policy.act(zeros, deadline_ms=0.5)
    for deadline in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="deadline_ms"):
            policy.act(zeros, deadline_ms=deadline)
    release(tmp_path / "task1-seed0", SORL(hidden=(8, 8)))
    bare = Policy.load(tmp_path / "task1-seed0")
    for call in (
        lambda: bare.act(zeros, deadline_ms=3.0),
        lambda: bare.act(zeros, best_of=8, adaptive=True),
        bare.prepare,
    ):
        with pytest.raises(InputError, match="run `sorl calibrate`"):
            call()


def test_another_machines_latencies_are_told_once(folder: Path) -> None:
    policy = Policy.load(folder)
    assert policy.calibration is not None
    elsewhere = {**provenance.machine(), "cores": 10_000}
    policy.calibration = dataclasses.replace(policy.calibration, machine=elsewhere)
    with pytest.warns(OtherMachineWarning, match=r"another machine .*10000"):
        policy.act(np.zeros(3), deadline_ms=3.0)
    policy.act(np.zeros(3), deadline_ms=3.0)


def test_adaptive_spending_takes_the_calibrated_threshold(folder: Path) -> None:
    policy = Policy.load(folder)
    seen: list[Strategy] = []
    act = inference.act

    def spy(policy: Any, observation: Any, **how: Any) -> Any:
        seen.append(how["strategy"])
        return act(policy, observation, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sorl.deployment.policy.inference.act", spy)
        policy.act(np.zeros(3), steps=4, best_of=8, adaptive=True)
    assert seen[0].adaptive is not None
    assert seen[0].adaptive.threshold == pytest.approx(0.8)
    # It was found with other scores.
    with pytest.raises(InputError, match="the sampler independent and the verifier min: leave"):
        policy.act(np.zeros(3), steps=4, best_of=8, adaptive=True, verifier="own")
    policy.act(np.zeros(3), steps=4, best_of=8, adaptive=True, verifier="min")


def test_a_policy_saved_anew_has_no_calibration(tmp_path: Path) -> None:
    path = tmp_path / "task1-seed0"
    release(path, BC(hidden=(8,)))
    write_calibration(path, table(("1x1", 1.0, (1, 2))))
    assert Policy.load(path).calibration is not None
    release(path, BC(hidden=(8,)))
    assert Policy.load(path).calibration is None, "it was measured with another policy"


# Measuring ---------------------------------------------------------------------------------


def test_latencies_take_turns_and_leave_compiling_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(folder)
    called: list[tuple[int, int, tuple[int, ...]]] = []
    seeds: list[int] = []
    clock = [0.0]

    def act(observation: np.ndarray, **how: Any) -> np.ndarray:
        called.append((how["steps"], how["best_of"], observation.shape))
        seeds.append(how["key"])
        compiling = 1000.0 if len(called) <= 4 else 0.0
        clock[0] += compiling + 0.001 * how["steps"] * how["best_of"] * observation.size
        return observation

    monkeypatch.setattr(policy, "act", act)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    done = []
    taken = measuring.latencies(
        policy,
        [(Budget(1, 1), Strategy()), (Budget(4, 8), Strategy())],
        [1, 5],
        calls=3,
        on_progress=lambda *progress: done.append(progress),
    )
    expected = np.array([[3, 15], [96, 480]])[..., None] * np.ones(3)
    np.testing.assert_allclose(taken, expected)
    # With an axis and a seed, which cost more than without.
    turn = [(1, 1, (1, 3)), (1, 1, (5, 3)), (4, 8, (1, 3)), (4, 8, (5, 3))]
    assert called == turn * 4
    assert set(seeds) == {0, 1, 2, 3}
    assert done[-1] == (3, 3)


def test_beliefs_are_those_of_the_scores(folder: Path) -> None:
    policy = Policy.load(folder)
    states = np.random.default_rng(0).normal(size=(20, 3))
    strategy = Strategy(choice=Choice("central"), verifier=Verifier("min"))
    gain, spread = measuring.belief(policy, Budget(4, 8), states, strategy)
    found = policy.act_info(states, steps=4, best_of=8, verifier="min", choice="central", key=0)
    gains = [s[c] - np.mean(s) for s, c in zip(found.scores, found.chosen, strict=True)]
    assert gain == pytest.approx(np.mean(gains), abs=1e-6)
    assert spread == pytest.approx(np.median([np.std(s[:2]) for s in found.scores]), abs=1e-6)
    assert measuring.belief(policy, Budget(4, 1), states, strategy) == (0.0, None)
    with pytest.MonkeyPatch.context() as patch:
        asked: list[int] = []
        act_info = policy.act_info
        patch.setattr(measuring, "_CANDIDATES_AT_ONCE", 60)
        patch.setattr(policy, "act_info", lambda s, **h: asked.append(len(s)) or act_info(s, **h))
        in_parts = measuring.belief(policy, Budget(4, 8), states, strategy)
    assert asked == [7, 7, 6], "at most 60 candidates at once"
    assert in_parts == pytest.approx((gain, spread), abs=1e-6)
    best, _ = measuring.belief(policy, Budget(4, 8), states, Strategy(choice=Choice("best")))
    assert best is not None
    assert gain is not None
    assert best > max(gain, 0)


# The command -------------------------------------------------------------------------------


def calibrate(*arguments: object) -> int:
    return cli.run(["calibrate", *map(str, arguments)])


def test_a_run_is_calibrated_and_its_policies_keep_deadlines(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    few = ("--budgets", "1x1", "2x1", "2x2", "--choices", "central", "best", "--calls", 100)
    assert calibrate(copied, *few, "--episodes", 1, "--workers", 1, "--rows", 1, 3) == 0
    shown = capsys.readouterr().out
    for word in ("2x2", "central", "p50, p99 ms for 3", "0% of 1", "+0."):
        assert word in shown
    [folder] = (copied / "policy").iterdir()
    found = read_calibration(folder)
    assert found is not None
    assert [(str(e.budget), str(e.choice)) for e in found.measured] == [
        ("1x1", "own"), ("2x1", "own"), ("2x2", "central"), ("2x2", "best"),
    ]  # fmt: skip
    assert found.rows == (1, 3)
    for entry in found.measured:
        assert all(0 < p50 <= p99 for p50, p99 in zip(entry.p50_ms, entry.p99_ms, strict=True))
    assert all(entry.episodes == 1 for entry in found.measured)
    best, one = found.measured[3], found.measured[1]
    assert best.gain is not None and best.gain > 0 == one.gain  # noqa: PT018
    policy = Policy.load(copied)
    assert policy.act(np.zeros(policy.spec.observation_size), deadline_ms=1e4).shape == (2,)

    assert calibrate(copied, "--budgets", "1x1", "4x1", "--calls", 100, "--episodes", 0) == 0
    found = read_calibration(folder)
    assert found is not None
    assert found.best_within(1e4).budget == Budget(4, 1), "without all rollouts the most steps"


def rollouts(evaluate: Callable[[Member, Budget, int], Evaluation]) -> type:
    """A stand-in for `Evaluator`, which knows the results."""

    class Rollouts:
        def __init__(self, environment: str, *, workers: int | None) -> None:
            pass

        def __enter__(self) -> Rollouts:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def evaluate(
            self, policies: Any, members: Any, *, budgets: Any, episodes: int, **_: Any
        ) -> list[Evaluation]:
            [budget] = budgets
            return [evaluate(member, budget, episodes) for member in members]

    return Rollouts


@pytest.mark.parametrize("told_at", [(), (2,)])
def test_an_environment_that_never_tells_success_chooses_no_budget(
    copied: Path,
    told_at: tuple[int, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def evaluate(member: Member, budget: Budget, episodes: int) -> Evaluation:
        told = budget.steps in told_at
        return Evaluation(member, budget, episodes, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, told)

    monkeypatch.setattr("sorl.jobs.calibration.Evaluator", rollouts(evaluate))
    code = calibrate(copied, "--budgets", "1x1", "2x1", "--calls", 100, "--episodes", 4)
    [folder] = (copied / "policy").iterdir()
    if told_at:  # some tell nothing but successes, which better budgets reach
        assert code == 0
        return
    assert code == 2
    message = capsys.readouterr().err
    assert "never tells info['success'], so rollouts cannot choose a budget: give --epi" in message
    assert message.count("\n") == 1
    assert read_calibration(folder) is None


def test_percentiles_are_of_all_calls_and_rollouts_are_pooled_over_the_seeds_of_a_task(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first] = (copied / "policy").iterdir()
    stacked, [known] = load_stacked(copied)
    everyone = [known, Member(known.task, known.seed + 1), Member(known.task + 1, known.seed)]
    for member in everyone[1:]:
        shutil.copytree(first, policy_folder(copied, member))
    monkeypatch.setattr("sorl.jobs.calibration.load_stacked", lambda path: (stacked, everyone))
    ramp = np.arange(1.0, 101.0)  # percentiles of 1 to 100, evenly: 50.5 and 99.01

    def latencies(policy: Policy, ways: Any, rows: Any, **_: Any) -> np.ndarray:
        return np.array([[ramp * (1 + i) * count for count in rows] for i in range(len(ways))])

    shares = {everyone[0]: 0.25, everyone[1]: 0.75, everyone[2]: 1.0}

    def evaluate(member: Member, budget: Budget, episodes: int) -> Evaluation:
        success = shares[member] - 0.25 * (budget.steps - 1)
        return Evaluation(member, budget, episodes, success, 0.0, 1.0, 1.0, 1.0, 1.0)

    monkeypatch.setattr("sorl.jobs.calibration.latencies", latencies)
    monkeypatch.setattr("sorl.jobs.calibration.Evaluator", rollouts(evaluate))
    budgets = ("--budgets", "1x1", "2x1", "--rows", 2, 1, "--calls", 100, "--states", 1)
    assert calibrate(copied, *budgets, "--episodes", 4) == 0
    for member in everyone:
        found = read_calibration(policy_folder(copied, member))
        assert found is not None
        assert found.rows == (1, 2)
        for i, entry in enumerate(found.measured):
            np.testing.assert_allclose(entry.p50_ms, [50.5 * (1 + i), 101.0 * (1 + i)])
            np.testing.assert_allclose(entry.p99_ms, [99.01 * (1 + i), 198.02 * (1 + i)])
        of = 8 if member.task == known.task else 4
        lost = of // 4
        assert [(e.successes, e.episodes) for e in found.measured] == [(4, of), (4 - lost, of)]


def test_without_rollouts_the_successes_of_the_same_ways_stay(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [folder] = (copied / "policy").iterdir()
    before = table(("1x1", 1.0, (3, 9)), ("2x1", 1.0, (4, 9)), ("2x2", 2.0, (8, 9)))
    machine = {"processor": "a workstation", "cores": 64, "devices": ["a GPU"]}
    before = dataclasses.replace(before, machine=machine)
    origin = {"created": before.created, "machine": machine}
    write_calibration(folder, before)

    def anew(*more: object) -> Calibration:
        assert calibrate(copied, "--calls", 100, "--episodes", 0, *more) == 0
        found = read_calibration(folder)
        assert found is not None
        return found

    same = ("--verifier", "min", "--choices", "typical-2", "typical-2")
    budgets = ("--budgets", "1x1", "2x2")
    for _ in range(2):
        found = anew(*same, *budgets)
        told = (
            "those of the calibration of 2026-01-01T00:00:00+00:00 on a workstation, 64, ['a GPU'"
        )
        assert capsys.readouterr().out.count(told) == 1
        assert [(e.successes, e.episodes) for e in found.measured] == [(3, 9), (8, 9)]
        assert found.successes_from == origin
        assert found.machine == provenance.machine()
        assert found.best_within(1e4).budget == Budget(2, 2), "a deadline buys candidates"
    found = anew(*same, *budgets, "4x2")
    assert [entry.episodes for entry in found.measured] == [9, 9, 0]
    assert found.best_within(1e4).budget == Budget(1, 1)
    found = anew("--verifier", "min", "--choices", "best", *budgets)
    assert [entry.episodes for entry in found.measured] == [9, 0]
    found = anew("--choices", "typical-2", *budgets)
    assert [entry.episodes for entry in found.measured] == [0, 0], "by another verifier"
    assert found.successes_from is None
    assert anew(*same, *budgets).measured[1].episodes == 0

    # What is known needs no budget of one candidate; what is damaged is made anew.
    write_calibration(folder, before)
    assert len(anew(*same, "--budgets", "2x2").measured) == 1
    (folder / CALIBRATION).write_text('{"format": 2}')
    assert [entry.episodes for entry in anew(*same, *budgets).measured] == [0, 0]


def test_without_data_the_beliefs_of_the_same_ways_stay(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [folder] = (copied / "policy").iterdir()
    way = ("--verifier", "min", "--choices", "typical-2", "--calls", 100)
    held_out = held_out_file(Run.open(copied))
    assert held_out is not None
    config = copied / "config.json"
    config.write_text(config.read_text().replace(str(held_out.parent), str(tmp_path)))
    before = table(("1x1", 1.0, (3, 9)), ("2x1", 1.0, (4, 9)), ("2x2", 2.0, (8, 9)))
    write_calibration(folder, before)
    stays = "what the critic believes stays as the last calibration found it, if it did"

    def anew(*more: object) -> list[tuple[float | None, float | None]]:
        assert calibrate(copied, *way, "--budgets", "1x1", "2x2", *more) == 0
        found = read_calibration(folder)
        assert found is not None
        return [(entry.gain, entry.spread) for entry in found.measured]

    for _ in range(2):
        assert anew("--episodes", 0) == [(0.25, None), (0.25, pytest.approx(0.2))]
        assert stays in capsys.readouterr().out
    policy = Policy.load(copied)
    zeros = np.zeros(policy.spec.observation_size)
    assert policy.act(zeros, steps=2, best_of=2, adaptive=True).shape == (2,)
    assert anew("--episodes", 1, "--workers", 1) == [(0.25, None), (0.25, pytest.approx(0.2))]
    capsys.readouterr()
    assert anew("--episodes", 0, "--data", held_out) != [(0.25, None), (0.25, pytest.approx(0.2))]
    assert stays not in capsys.readouterr().out
    write_calibration(folder, before)
    assert anew("--episodes", 0, "--verifier", "own") == [(None, None)] * 2, "by other scores"


def test_states_are_held_out_and_what_is_missing_is_told(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(copied)
    file = held_out_file(run)
    assert file is not None
    assert file.name.endswith("-val.npz")
    states = states_of(run, file, 50, seed=1)
    assert states.shape == (50, run.config["spec"]["observation_size"])
    assert states.dtype == np.float32
    with np.load(file) as data:
        rows = {row.tobytes() for row in data["observations"].astype(np.float32)}
    assert {row.tobytes() for row in states} <= rows
    assert len({row.tobytes() for row in states}) == 50, "no state twice"
    np.testing.assert_array_equal(states, states_of(run, file, 50, seed=1))

    run.config["dataset"]["path"] = str(tmp_path / "moved.npz")
    assert held_out_file(run) is None
    config = copied / "config.json"
    config.write_text(config.read_text().replace(str(file.parent), str(tmp_path)))
    few = ("--budgets", "1x1", "2x2", "--choices", "best", "--calls", 100, "--episodes", 0)
    assert calibrate(copied, *few) == 0
    assert "No data are there" in capsys.readouterr().out
    [folder] = (copied / "policy").iterdir()
    found = read_calibration(folder)
    assert found is not None
    assert [entry.gain for entry in found.measured] == [None, None]


def test_a_call_of_one_observation_is_always_measured(copied: Path) -> None:
    few = ("--budgets", "1x1", "--calls", 100, "--episodes", 0)
    assert calibrate(copied, *few, "--rows", 4) == 0
    [folder] = (copied / "policy").iterdir()
    found = read_calibration(folder)
    assert found is not None
    assert found.rows == (1, 4)
    assert len(found.measured[0].p99_ms) == 2


def test_a_calibration_that_cannot_be_is_refused_and_leaves_nothing(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, expected in (
        (("--calls", 10), "at least 100 calls"),
        (("--episodes", -1), "0 or more episodes"),
        (("--rows", 0), "rows of at least 1"),
        (("--budgets", "3x1"), "3 sampling steps"),
        (("--budgets",), "at least one budget"),
        (("--choices",), "one choice"),
        (("--budgets", "2x2", "--episodes", 0), "also a budget such as 4x1"),
        (("--budgets", "2by1"), "cannot be read"),
        (("--choices", "worst"), "cannot be read"),
        (("--states", 0), "0 held-out states"),
        (("--seed", -1), "seed=-1 is not possible"),
        (("--data", copied / "nothing.npz"), "nothing.npz"),
    ):
        assert calibrate(copied, *arguments) == 2
        message = capsys.readouterr().err
        assert expected in message
        assert message.count("\n") == 1
    [folder] = (copied / "policy").iterdir()
    assert read_calibration(folder) is None


def test_states_of_another_size_and_a_seed_below_0_are_refused_before_anything_is_timed(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def latencies(*_: Any, **__: Any) -> None:
        raise AssertionError("timed")

    monkeypatch.setattr("sorl.jobs.calibration.latencies", latencies)
    size = Run.open(copied).config["spec"]["observation_size"]
    np.savez(tmp_path / "other.npz", observations=np.zeros((9, size + 1), np.float32))
    assert calibrate(copied, "--data", tmp_path / "other.npz") == 2
    message = capsys.readouterr().err
    assert f"have shape [9, {size + 1}], but the policies of {copied} take [..., {size}]" in message
    assert message.count("\n") == 1
    for states in (np.full((9, size), np.nan), np.zeros((0, size))):
        np.savez(tmp_path / "wrong.npz", observations=states.astype(np.float32))
        assert calibrate(copied, "--data", tmp_path / "wrong.npz") == 2
        message = capsys.readouterr().err
        assert "no held-out states, or some that are not finite: give --data" in message
    for arguments in ((), ("--data", tmp_path / "other.npz")):
        assert calibrate(copied, *arguments, "--seed", -1) == 2
        assert "seed=-1 is not possible" in capsys.readouterr().err
