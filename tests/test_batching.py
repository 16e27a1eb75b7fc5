"""Micro-batching: batched equals alone, bounds hold, nobody waits for somebody else's program."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from served import OBSERVATION, small_policy
from sorl.choices import Choice
from sorl.deployment.calibration import Calibration, Measured
from sorl.deployment.policy import Policy
from sorl.deployment.serving.batching import (
    Batch,
    Batcher,
    LateError,
    Offer,
    Order,
    Outcome,
    OverloadedError,
    Plan,
    StoppingError,
    UnpreparedError,
    offers_of,
)
from sorl.errors import InputError
from sorl.inference import USUAL, Strategy
from sorl.types import Budget
from sorl.verifiers import Verifier

ONE, FOUR, BEST = Budget(1, 1), Budget(4, 1), Budget(2, 4)
PESSIMISTIC = Strategy("spread", Verifier("min"), Choice("best"))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return small_policy(tmp_path_factory.mktemp("policies") / "policy")


def order(
    rows: int = 1,
    seed: int = 0,
    budget: Budget | None = ONE,
    deadline_ms: float | None = None,
    waited: float = 0.0,
    strategy: Strategy = USUAL,
    info: bool = False,
) -> Order:
    """An order whose observations follow from its seed and that arrived `waited` seconds ago."""
    return Order(
        np.random.default_rng(seed).normal(size=(rows, OBSERVATION)).astype(np.float32),
        Plan(budget, strategy, info),
        seed,
        time.monotonic() - waited,
        deadline_ms,
    )


def alone(policy: Policy, one: Order, budget: Budget) -> np.ndarray:
    return policy.act(
        one.observations,
        steps=budget.steps,
        best_of=budget.best_of,
        sampler=one.plan.strategy.sampler,
        verifier=one.plan.strategy.verifier,
        choice=one.plan.strategy.choice,
        key=one.seed,
    )


def served(
    policy: Policy, use: Callable[[Batcher], Awaitable[Any]], **options: Any
) -> tuple[Any, list[Batch]]:
    """What `use` returns of a batcher, and the batches it made."""
    batches: list[Batch] = []

    async def main() -> Any:
        batcher = Batcher(policy, on_batch=batches.append, **{"max_batch": 4, **options})
        try:
            return await use(batcher)
        finally:
            await batcher.close(10)

    return asyncio.run(main()), batches


def all_of(*orders: Order) -> Callable[[Batcher], Awaitable[list[Any]]]:
    """Give all orders at once; errors take the place of outcomes."""

    async def use(batcher: Batcher) -> list[Any]:
        return await asyncio.gather(*map(batcher.act, orders), return_exceptions=True)

    return use


@contextlib.contextmanager
def held(policy: Policy, monkeypatch: pytest.MonkeyPatch, steps: int) -> Iterator[threading.Event]:
    """Calls of the policy in `steps` steps last until the event is set."""
    release, act = threading.Event(), policy.act

    def slow(*arguments: Any, **options: Any) -> np.ndarray:
        if options["steps"] == steps:
            assert release.wait(20)
        return act(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(policy, "act", slow)
        try:
            yield release
        finally:
            release.set()


plans = st.sampled_from(
    [
        {"budget": ONE},
        {"budget": BEST},
        {"budget": BEST, "strategy": PESSIMISTIC, "info": True},
    ]
)
orders = st.builds(
    lambda plan, rows, seed: order(rows, seed, **plan),
    plans,
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)


@given(st.lists(orders, min_size=1, max_size=12))
def test_batched_equals_one_by_one(policy: Policy, mix: list[Order]) -> None:
    outcomes, batches = served(policy, all_of(*mix))
    for one, outcome in zip(mix, outcomes, strict=True):
        assert isinstance(outcome, Outcome), outcome
        budget = one.plan.budget
        assert budget is not None
        assert outcome.budget == budget
        np.testing.assert_allclose(outcome.actions, alone(policy, one, budget), atol=1e-5)
        assert (outcome.decision is not None) == one.plan.info
        if outcome.decision is not None:
            assert outcome.decision.candidates.shape == (one.rows, budget.best_of, 2)
            chosen = outcome.decision.candidates[np.arange(one.rows), outcome.decision.chosen]
            assert (chosen == outcome.actions).all()
    assert sum(batch.orders for batch in batches) == len(mix)
    assert sum(batch.rows for batch in batches) == sum(one.rows for one in mix)
    for batch in batches:
        assert batch.rows <= batch.size <= 4
        assert batch.size < 2 * batch.rows


def test_company_is_waited_for_and_not_longer(policy: Policy) -> None:
    async def use(batcher: Batcher) -> float:
        batcher.warm_up([Plan(ONE)])
        began = time.monotonic()
        first = asyncio.ensure_future(batcher.act(order(seed=1)))
        await asyncio.sleep(0.05)
        assert not first.done()
        await asyncio.gather(first, batcher.act(order(seed=2)))
        return time.monotonic() - began

    # Long beside what a busy machine may take between two lines.
    seconds, batches = served(policy, use, max_wait_ms=1000)
    assert [batch.orders for batch in batches] == [2]
    assert 1 <= seconds < 10
    # A full batch goes at once, though none of its orders is due before a minute is over.
    full = [order(seed=seed, waited=-60) for seed in range(4)]
    began = time.monotonic()
    outcomes, batches = served(policy, all_of(*full), max_wait_ms=1000)
    assert time.monotonic() - began < 50
    assert [batch.orders for batch in batches] == [4]
    assert len(outcomes) == 4


def test_nothing_compiles_after_the_warm_up(policy: Policy) -> None:
    ticks: list[tuple[int, int]] = []

    async def use(batcher: Batcher) -> None:
        batcher.warm_up([Plan(ONE), Plan(BEST)], lambda done, total: ticks.append((done, total)))
        compiled: Any = policy._act
        before = compiled._cache_size()
        mix = [order(1 + seed % 3, seed, ONE if seed % 2 else BEST) for seed in range(20)]
        await all_of(*mix)(batcher)
        assert compiled._cache_size() == before
        assert batcher.budgets == [ONE, BEST]

    _, batches = served(policy, use)
    assert ticks == [(done, 6) for done in range(7)]
    assert not any(batch.cold for batch in batches)


def test_only_what_is_on_offer_is_timed_and_progress_counts_it(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks: list[tuple[int, int]] = []
    asked: list[int] = []
    act = policy.act

    def spy(*arguments: Any, **options: Any) -> np.ndarray:
        asked.append(options["steps"])
        return act(*arguments, **options)

    async def use(batcher: Batcher) -> None:
        batcher.warm_up([Plan(ONE), Plan(FOUR)], lambda done, total: ticks.append((done, total)))

    monkeypatch.setattr(policy, "act", spy)
    served(policy, use)
    assert asked == [1, 1, 1, 4, 4, 4], "each size once, to compile it"
    ticks.clear()
    asked.clear()
    served(policy, use, offers=[Offer(1.0, Plan(FOUR))])
    assert asked == [1, 1, 1, *[4] * 33]
    assert ticks == [(done, 36) for done in range(37)]


def test_a_cold_program_delays_only_its_own_plan(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(batcher: Batcher) -> None:
        batcher.warm_up([Plan(ONE)])
        with held(policy, monkeypatch, steps=4) as release:
            cold = [asyncio.ensure_future(batcher.act(order(seed=s, budget=FOUR))) for s in (1, 2)]
            await asyncio.sleep(0.05)
            for seed in range(5):
                await asyncio.wait_for(batcher.act(order(seed=seed)), 10)
            assert not any(task.done() for task in cold)
            release.set()
            await asyncio.gather(*cold)

    _, batches = served(policy, use)
    assert [batch.plan.budget for batch in batches if batch.cold] == [FOUR]


def test_a_full_queue_refuses_and_recovers(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(batcher: Batcher) -> None:
        batcher.warm_up([Plan(FOUR)])
        with held(policy, monkeypatch, steps=4) as release:
            running = asyncio.ensure_future(batcher.act(order(budget=FOUR)))
            await asyncio.sleep(0.05)
            queued = [asyncio.ensure_future(batcher.act(order(budget=FOUR))) for _ in range(3)]
            await asyncio.sleep(0)
            assert batcher.waiting == 3
            with pytest.raises(OverloadedError, match="3 requests are waiting"):
                await batcher.act(order(budget=FOUR))
            # Who gives up leaves the queue.
            queued.pop().cancel()
            await asyncio.sleep(0)
            assert batcher.waiting == 2
            queued.append(asyncio.ensure_future(batcher.act(order(budget=FOUR))))
            await asyncio.sleep(0)
            release.set()
            await asyncio.gather(running, *queued)
        assert batcher.waiting == 0

    served(policy, use, max_queue=3)


def test_a_refused_order_takes_no_place_among_the_plans_and_asked_is_not_compiled(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(batcher: Batcher) -> None:
        batcher.warm_up([Plan(ONE)])
        with held(policy, monkeypatch, steps=4) as release:
            running = asyncio.ensure_future(batcher.act(order(budget=FOUR)))
            await asyncio.sleep(0.05)
            assert batcher.budgets == [ONE], "it is being compiled"
            queued = asyncio.ensure_future(batcher.act(order(budget=FOUR)))
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError):
                await batcher.act(order(budget=BEST))
            release.set()
            await asyncio.gather(running, queued)
        assert batcher.budgets == [ONE, FOUR]
        await batcher.act(order(budget=Budget(2, 1)))  # the third

    served(policy, use, max_queue=1, max_plans=3)


def test_what_the_policy_cannot_do_takes_no_place_among_the_plans(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = small_policy(tmp_path / "policy", "bc")

    async def tell(batcher: Batcher) -> None:
        with pytest.raises(InputError, match="no critic, so there are no scores to tell"):
            await batcher.act(order(info=True))
        await batcher.act(order())

    _, batches = served(blind, tell, max_plans=1)
    assert [batch.plan for batch in batches] == [Plan(ONE)], "refused before anything was computed"

    def refuse(*arguments: Any, **options: Any) -> np.ndarray:
        raise InputError("not this one")

    async def compute(batcher: Batcher) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(policy, "act", refuse)
            with pytest.raises(InputError, match="not this one"):
                await batcher.act(order(budget=FOUR))
        await batcher.act(order())
        # What has been compiled stays.
        with monkeypatch.context() as patch:
            patch.setattr(policy, "act", refuse)
            with pytest.raises(InputError, match="not this one"):
                await batcher.act(order())
        with pytest.raises(UnpreparedError):
            await batcher.act(order(budget=FOUR))

    served(policy, compute, max_plans=1)


def test_closing_answers_what_waits(policy: Policy) -> None:
    async def use(batcher: Batcher) -> None:
        batcher.warm_up([Plan(ONE)])
        waiting = [asyncio.ensure_future(batcher.act(order(seed=seed))) for seed in range(6)]
        await asyncio.sleep(0)
        began = time.monotonic()
        await batcher.close(10)
        assert time.monotonic() - began < 0.9
        assert all(isinstance(outcome, Outcome) for outcome in await asyncio.gather(*waiting))
        with pytest.raises(StoppingError, match="stopping"):
            await batcher.act(order())

    served(policy, use, max_wait_ms=1000)


def test_closing_is_bounded(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(batcher: Batcher) -> None:
        batcher.warm_up([Plan(FOUR)])
        with held(policy, monkeypatch, steps=4):
            running = asyncio.ensure_future(batcher.act(order(budget=FOUR)))
            await asyncio.sleep(0.05)
            queued = asyncio.ensure_future(batcher.act(order(budget=FOUR)))
            await asyncio.sleep(0)
            await batcher.close(0.1)
            with pytest.raises(StoppingError, match="before this request's turn"):
                await queued
        await running

    served(policy, use)


def test_a_failure_is_everyones_in_the_batch_and_nobody_elses(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> np.ndarray:
        raise ArithmeticError("out of memory")

    async def use(batcher: Batcher) -> None:
        batcher.warm_up([Plan(ONE)])
        with monkeypatch.context() as patch:
            patch.setattr(policy, "act", broken)
            outcomes = await all_of(order(seed=1), order(seed=2))(batcher)
        assert [type(outcome) for outcome in outcomes] == [ArithmeticError] * 2
        assert isinstance(await batcher.act(order()), Outcome)

    served(policy, use)


@pytest.mark.parametrize("info", [False, True])
def test_an_observation_too_far_away_is_nobody_elses(policy: Policy, info: bool) -> None:
    far = order(seed=1, info=info)
    far.observations[:] = np.finfo(np.float32).max
    near = order(seed=2, info=info)
    (unsound, sound), batches = served(policy, all_of(far, near), max_batch=2, max_wait_ms=1000)
    assert [batch.orders for batch in batches] == [2]
    assert np.isnan(unsound.actions).any()
    assert np.isfinite(sound.actions).all()


# Deadlines.


# No slowness of a test changes what is chosen.
GENEROUS = [Offer(1e5, Plan(ONE)), Offer(1e6, Plan(FOUR))]


def test_the_budget_is_chosen_by_what_is_left(policy: Policy) -> None:
    minute = 60_000
    mix = [
        order(budget=None, deadline_ms=100 * minute),
        order(budget=None, deadline_ms=10 * minute),
        order(budget=None, deadline_ms=1 * minute),
        # Waiting is taken off: 95 of 100 minutes are over.
        order(budget=None, deadline_ms=100 * minute, waited=95 * 60.0),
    ]
    outcomes, _ = served(policy, all_of(*mix), offers=GENEROUS)
    long, short, late, waited = outcomes
    assert (long.budget, short.budget, waited.budget) == (FOUR, ONE, ONE)
    np.testing.assert_allclose(long.actions, alone(policy, mix[0], FOUR), atol=1e-5)
    assert isinstance(late, LateError)
    assert "60000 ms cannot be met" in str(late)


def test_a_large_batch_leaves_less_for_the_budget(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(batcher: Batcher) -> list[Outcome]:
        with held(policy, monkeypatch, steps=2) as release:
            tasks = [asyncio.ensure_future(batcher.act(order(budget=Budget(2, 1))))]
            await asyncio.sleep(0.05)
            for seed in range(2):
                mine = order(rows=2, seed=seed, budget=None, deadline_ms=3e6)
                tasks.append(asyncio.ensure_future(batcher.act(mine)))
            await asyncio.sleep(0)
            release.set()
            return list(await asyncio.gather(*tasks))[1:]

    # Nothing was measured, so four rows are taken to last four times as long as one.
    outcomes, batches = served(policy, use, offers=GENEROUS)
    assert [outcome.budget for outcome in outcomes] == [ONE, ONE]
    assert [batch.rows for batch in batches] == [1, 4]
    alone, _ = served(
        policy, all_of(order(budget=None, deadline_ms=3e6)), offers=GENEROUS, max_batch=4
    )
    assert alone[0].budget == FOUR


def test_orders_with_the_same_choice_share_a_batch(policy: Policy) -> None:
    async def use(batcher: Batcher) -> list[Outcome]:
        with held(policy, monkeypatch, steps=2) as release:
            busy = asyncio.ensure_future(batcher.act(order(budget=Budget(2, 1))))
            await asyncio.sleep(0.05)
            mix = [order(seed=s, budget=None, deadline_ms=1e8 if s % 2 else 7e5) for s in range(4)]
            tasks = [asyncio.ensure_future(batcher.act(one)) for one in mix]
            await asyncio.sleep(0.05)
            release.set()
            return list(await asyncio.gather(*tasks, busy))[:-1]

    with pytest.MonkeyPatch.context() as monkeypatch:
        outcomes, batches = served(policy, use, offers=GENEROUS)
    assert [outcome.budget for outcome in outcomes] == [ONE, FOUR, ONE, FOUR]
    assert sorted(batch.orders for batch in batches) == [1, 2, 2]


def test_a_crowd_shares_what_the_most_urgent_can_have(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(batcher: Batcher) -> list[Outcome]:
        with held(policy, monkeypatch, steps=2) as release:
            busy = asyncio.ensure_future(batcher.act(order(budget=Budget(2, 1))))
            await asyncio.sleep(0.05)
            mix = [order(seed=s, budget=None, deadline_ms=1e8 + s) for s in range(5)]
            mix.append(order(budget=None, deadline_ms=7e5))
            tasks = [asyncio.ensure_future(batcher.act(one)) for one in mix]
            await asyncio.sleep(0.05)
            release.set()
            return list(await asyncio.gather(*tasks, busy))[:-1]

    # Six wait and a batch holds four: the first three go with the urgent one.
    outcomes, batches = served(policy, use, offers=GENEROUS)
    assert [outcome.budget for outcome in outcomes] == [ONE, ONE, ONE, FOUR, FOUR, ONE]
    assert sorted(batch.orders for batch in batches) == [1, 2, 4]


def test_a_patient_deadline_does_not_let_hasty_ones_pass_those_without(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    async def use(batcher: Batcher) -> None:
        batcher.warm_up([Plan(ONE), Plan(FOUR), Plan(Budget(2, 1))])

        async def ask(name: str, **how: Any) -> None:
            await batcher.act(order(**how))
            done.append(name)

        with held(policy, monkeypatch, steps=2) as release:
            tasks = [asyncio.ensure_future(ask("held", budget=Budget(2, 1)))]
            await asyncio.sleep(0.05)
            for name, how in (
                ("patient", {"budget": None, "deadline_ms": 1e8}),
                ("none", {"budget": FOUR}),
                ("hasty", {"budget": None, "deadline_ms": 7e5}),
            ):
                tasks.append(asyncio.ensure_future(ask(name, **how)))
                await asyncio.sleep(0.01)
            release.set()
            await asyncio.gather(*tasks)

    # The hasty one goes alone, since for the patient one more would be bought.
    offers = [Offer(1e5, Plan(ONE)), Offer(1e6, Plan(Budget(2, 1)))]
    served(policy, use, offers=offers)
    assert done.index("none") < done.index("hasty")


def test_a_deadline_that_passes_in_the_queue_fails_at_once(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(batcher: Batcher) -> None:
        with held(policy, monkeypatch, steps=4):
            running = asyncio.ensure_future(batcher.act(order(budget=FOUR)))
            await asyncio.sleep(0.05)
            began = time.monotonic()
            with pytest.raises(LateError, match="150 ms cannot be met"):
                await asyncio.wait_for(batcher.act(order(budget=None, deadline_ms=150)), 10)
            assert 0.1 < time.monotonic() - began < 5
        await running

    served(policy, use, offers=[Offer(0, Plan(FOUR))])


def test_late_answers_are_counted(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(batcher: Batcher) -> None:
        with held(policy, monkeypatch, steps=4) as release:
            task = asyncio.ensure_future(batcher.act(order(budget=None, deadline_ms=500)))
            await asyncio.sleep(0.7)
            release.set()
            await task

    _, batches = served(policy, use, offers=[Offer(0, Plan(FOUR))])
    assert [batch.late for batch in batches] == [1]


# What is refused.


@pytest.mark.parametrize(
    ("bad", "kind", "expected"),
    [
        (order(budget=Budget(3, 1)), InputError, "3 sampling steps"),
        (order(rows=5), InputError, r"shape \[5, 3\]: give 1 to 4 of 3 numbers"),
        (order(rows=0), InputError, r"shape \[0, 3\]"),
        (order(budget=Budget(1, 2), strategy=Strategy("renoise")), InputError, "even number"),
        (order(budget=None, deadline_ms=5), UnpreparedError, "sorl calibrate"),
    ],
)
def test_what_cannot_be_served(
    policy: Policy, bad: Order, kind: type[Exception], expected: str
) -> None:
    (error,), batches = served(policy, all_of(bad))
    assert type(error) is kind
    with pytest.raises(kind, match=expected):
        raise error
    assert not batches


def test_nothing_that_is_not_finite(policy: Policy) -> None:
    bad = Order(np.full((1, OBSERVATION), np.nan, np.float32), Plan(ONE), 0, time.monotonic())
    (error,), _ = served(policy, all_of(bad))
    assert isinstance(error, InputError)


def test_plans_are_bounded(policy: Policy) -> None:
    async def use(batcher: Batcher) -> None:
        for budget in (ONE, FOUR, ONE):
            await batcher.act(order(budget=budget))
        with pytest.raises(UnpreparedError, match=r"takes no new one.*budgets 1x1, 4x1"):
            await batcher.act(order(budget=BEST))
        await batcher.act(order(budget=FOUR))

    served(policy, use, max_plans=2)


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 3},
        {"max_batch": 0},
        {"max_batch": 2048},
        {"max_wait_ms": -1.0},
        {"max_wait_ms": float("nan")},
        {"max_queue": 0},
        {"max_plans": 0},
    ],
)
def test_impossible_settings(policy: Policy, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"{name}=.* is not possible"):
        Batcher(policy, **options)


def test_a_calibration_makes_offers() -> None:
    def measured(budget: Budget, p99: float, wins: int, choice: str = "own") -> Measured:
        return Measured(budget, Choice.parse(choice), (p99,), (p99,), None, None, wins, 10)

    entries = (
        measured(ONE, 1.0, 4),
        measured(FOUR, 2.0, 3),
        measured(BEST, 4.0, 9, "best"),
        measured(BEST, 5.0, 9, "central"),
    )
    calibration = Calibration(entries, (1,), "independent", Verifier("min"), {}, "")
    first = Plan(ONE)  # its verifier has nothing to say
    dearest = Plan(BEST, Strategy(verifier=Verifier("min"), choice=Choice("best")))
    # The others are never bought.
    assert offers_of(calibration) == [Offer(1.0, first), Offer(4.0, dearest)]
    # What the largest keeps from being bought is bought where the largest is not possible.
    for limits in ({"max_best_of": 3}, {"max_steps": 1}):
        assert offers_of(calibration, **limits) == [Offer(1.0, first)]
    better = dataclasses.replace(entries[1], successes=8, p99_ms=(6.0,))
    calibration = dataclasses.replace(calibration, measured=(entries[0], better, *entries[2:]))
    assert offers_of(calibration) == [Offer(1.0, first), Offer(4.0, dearest)]
    assert offers_of(calibration, max_best_of=1) == [Offer(1.0, first), Offer(6.0, Plan(FOUR))]
    # Of a calibration without calls of one row nobody knows what one row needs.
    assert offers_of(dataclasses.replace(calibration, rows=(16,))) == []
