"""Calibration: what a deadline buys, what adaptive spending reads, what is kept and measured."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given

from sorl import inference
from sorl.algorithms.bc import BC
from sorl.algorithms.sorl import SORL
from sorl.choices import Choice
from sorl.deployment import measuring
from sorl.deployment.calibration import (
    CALIBRATION,
    Calibration,
    Measured,
    read_calibration,
    write_calibration,
)
from sorl.deployment.policy import Policy, save_policy
from sorl.errors import InputError
from sorl.inference import Strategy
from sorl.types import Budget, Member, Spec
from sorl.verifiers import Verifier

SPEC = Spec(observation_size=3, action_size=2)
BUDGETS = [Budget(1, 1), Budget(4, 1), Budget(4, 8), Budget(8, 1)]


def table(
    *entries: tuple[str, float, tuple[int, int]], rows: tuple[int, ...] = (1,)
) -> Calibration:
    """From budget, 99th percentile and (successes, episodes)."""
    measured = tuple(
        Measured(
            Budget.parse(budget),
            p50_ms=tuple(0.5 * p99 * (1 + i) for i in range(len(rows))),
            p99_ms=tuple(p99 * (1 + i) for i in range(len(rows))),
            gain=0.25,
            spread=0.1 * Budget.parse(budget).best_of if "x1" not in budget else None,
            successes=successes,
            episodes=episodes,
        )
        for budget, p99, (successes, episodes) in entries
    )
    strategy = Strategy("spread", Verifier("min"), Choice("typical", 0.5))
    return Calibration(measured, rows, strategy, {"cores": 2}, "2026-01-01T00:00:00+00:00")


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
        return
    if not allowed:
        with pytest.raises(InputError, match="No budget fits"):
            calibration.best_within(deadline)
        return
    chosen = calibration.best_within(deadline)
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
    assert calibration.best_within(100.0) == Budget(8, 1)
    [sentence] = calibration.warnings()
    assert sentence.startswith("8 candidates make things worse at 8 steps: 60% of 100")
    assert "90% of 100" in sentence
    # The chance itself, summed by hand: of 150 successes among 200, at most 60 fall on 8x8.
    chance = sum(math.comb(100, k) * math.comb(100, 150 - k) for k in range(50, 61))
    assert f"p = {chance / math.comb(200, 150):.2g}" in sentence
    assert table(("8x1", 1.0, (2, 3)), ("8x8", 2.0, (1, 3))).warnings() == [], "too few to tell"
    assert table(("8x1", 1.0, (0, 0)), ("8x8", 2.0, (0, 0))).warnings() == []


def test_more_rows_take_the_next_measured_number() -> None:
    calibration = table(("1x1", 1.0, (1, 2)), ("8x1", 3.0, (2, 2)), rows=(1, 8))
    assert calibration.best_within(3.0) == Budget(8, 1)
    assert calibration.best_within(3.0, rows=2) == Budget(1, 1), "8 rows of 8x1 take 6 ms"
    assert calibration.best_within(6.0, rows=8) == Budget(8, 1)
    with pytest.raises(InputError, match=r"9 observations .* up to 8; run .* --rows 9"):
        calibration.best_within(6.0, rows=9)


def test_thresholds_are_those_of_the_nearest_budget() -> None:
    calibration = table(*((budget, 1.0, (0, 0)) for budget in ("4x1", "4x2", "4x8", "8x1", "8x32")))
    assert calibration.threshold(Budget(4, 2)) == pytest.approx(0.2)
    assert calibration.threshold(Budget(4, 16)) == pytest.approx(0.8)
    assert calibration.threshold(Budget(8, 4)) == pytest.approx(3.2)
    with pytest.raises(InputError, match=r"2 steps: run `sorl calibrate` with .* 2x8"):
        calibration.threshold(Budget(2, 8))


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    calibration = table(("1x1", 1.0, (1, 2)), ("8x8", 3.5, (2, 2)), rows=(1, 4))
    assert read_calibration(tmp_path) is None
    write_calibration(tmp_path, calibration)
    assert read_calibration(tmp_path) == calibration


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 2}, "format 2"),
        ({"measured": []}, "damaged"),
        ({"measured": [{"budget": "4x"}]}, "damaged"),
        ({"rows": [4, 1]}, "damaged"),
        ({"rows": []}, "damaged"),
        ({"rows": [1, 2]}, "damaged"),
        ({"choice": "worst"}, "damaged"),
        ({"sampler": None}, "sampler"),
        ({"machine": 3}, "damaged"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    write_calibration(tmp_path, table(("1x1", 1.0, (1, 2))))
    path = tmp_path / CALIBRATION
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=expected) as caught:
        read_calibration(tmp_path)
    assert "calibrate" in str(caught.value)
    assert "\n" not in str(caught.value)


# The policy --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "task1-seed0"
    release(path, SORL(hidden=(8, 8)))
    write_calibration(path, dataclasses.replace(
        table(("1x1", 1.0, (1, 9)), ("4x1", 2.0, (5, 9)), ("4x8", 4.0, (8, 9))),
        strategy=Strategy(verifier=Verifier("min"), choice=Choice("best")),
    ))  # fmt: skip
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
                    observation, steps=steps, best_of=best_of, verifier="min", choice="best", key=5
                ),
            )
    info = policy.act_info(np.zeros(3), deadline_ms=5.0, key=1)
    assert info.scores.shape == (8,)


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
    clock = [0.0]

    def act(observation: np.ndarray, **how: Any) -> np.ndarray:
        called.append((how["steps"], how["best_of"], observation.shape))
        compiling = 1000.0 if len(called) <= 4 else 0.0
        clock[0] += compiling + 0.001 * how["steps"] * how["best_of"] * observation.size
        return observation

    monkeypatch.setattr(policy, "act", act)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    done = []
    taken = measuring.latencies(
        policy,
        [Budget(1, 1), Budget(4, 8)],
        [1, 5],
        Strategy(),
        calls=3,
        on_progress=lambda *progress: done.append(progress),
    )
    expected = np.array([[3, 15], [96, 480]])[..., None] * np.ones(3)
    np.testing.assert_allclose(taken, expected)
    turn = [(1, 1, (3,)), (1, 1, (5, 3)), (4, 8, (3,)), (4, 8, (5, 3))]
    assert called == turn * 4
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
    best, _ = measuring.belief(policy, Budget(4, 8), states, Strategy(choice=Choice("best")))
    assert best is not None
    assert gain is not None
    assert best > max(gain, 0)
