"""Micro-batching: callers who want the same compute at about the same time share one call.

    order -> the queue of its plan -> a batch when due -> padded to a power of two -> the policy

An order waits for company until its plan's queue fills a batch, at most `max_wait_ms`. While a
batch is computed, what arrives collects by itself. The batch with the order that is due longest
goes first, so no plan starves. Padding only adds rows that nobody reads: every row has a key of its
own, so a row's action depends on its observation and its seed alone (to rounding: programs for
different batch sizes may add up in a different order).

Two threads compute. One runs programs that are compiled; the other runs what has to be compiled
first, one at a time, so that only orders of that very plan wait for it. What they still share is
the cores, and Python's lock while JAX traces.

A deadline is counted from the order's arrival. Its budget is chosen as late as possible, when the
thread is free: the best offer that fits into what is then left to the most urgent order, where an
offer knows how long ONE row takes, and the warm-up how much longer a batch of its plan and of this
size. Other orders join if the same would be chosen for them; where more orders wait than a batch
holds they all join, since whoever waits for something better then keeps others waiting. An order
with a deadline never waits for company; one that nothing on offer can meet any more fails when its
turn comes, at the latest when its deadline passes.

This file knows nothing of HTTP. A `Batcher` belongs to one event loop: its methods are called
there.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt32

from sorl import inference
from sorl.algorithm import AbstractScoredPolicy
from sorl.deployment.calibration import Calibration
from sorl.deployment.policy import Decision, NotFiniteError, Policy
from sorl.errors import InputError
from sorl.inference import USUAL, Strategy
from sorl.types import MAX_BEST_OF, MAX_STEPS, Budget

_TIMINGS = 10
"""How often the programs of an offer are timed, for each size."""


class OverloadedError(RuntimeError):
    """The queue is full."""


class StoppingError(RuntimeError):
    """The batcher takes no more orders."""


class LateError(RuntimeError):
    """No budget can meet the order's deadline any more."""


class UnpreparedError(InputError):
    """The policy, or this batcher, has not been prepared for what was asked."""


class Plan(NamedTuple):
    """What a program is compiled for, besides the number of rows.

    Attributes:
        budget: steps and candidates; None while a deadline has yet to decide.
        strategy: how the budget is spent; a deadline decides that as well.
        info: whether candidates and scores are wanted as well; not together with a deadline.
    """

    budget: Budget | None
    strategy: Strategy = USUAL
    info: bool = False


def plan_of(budget: Budget, strategy: Strategy = USUAL, info: bool = False) -> Plan:
    """The plan of what was asked: of one candidate every way to choose among several is the same.

    Args:
        budget: test-time compute.
        strategy: how it is spent; of one candidate only the verifier has a say, and only where its
            score is told.
        info: whether candidates and scores are wanted as well.
    """
    if budget.best_of == 1:
        strategy = Strategy(verifier=strategy.verifier) if info else USUAL
    return Plan(budget, strategy, info)


class Offer(NamedTuple):
    """What a deadline may buy.

    Attributes:
        needs_ms: milliseconds that one row takes at the 99th percentile.
        plan: the compute.
    """

    needs_ms: float
    plan: Plan


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """What one caller wants.

    Args:
        observations: finite numbers, 1 to `max_batch` rows.
        plan: the compute; its budget is None exactly if there is a deadline.
        seed: 0 to 2**32 - 1. The answer is that of `Policy.act(observations, key=seed)`.
        arrival: seconds of `time.monotonic`, from which waiting and deadline are counted.
        deadline_ms: milliseconds from the arrival within which the action has to be there.
    """

    observations: Float32[np.ndarray, "rows observation_size"]
    plan: Plan
    seed: int
    arrival: float
    deadline_ms: float | None = None

    @property
    def rows(self) -> int:
        """Number of observations."""
        return len(self.observations)

    @property
    def deadline(self) -> float:
        """When the deadline ends, in seconds of `time.monotonic`."""
        return float("inf") if self.deadline_ms is None else self.arrival + self.deadline_ms / 1e3


class Outcome(NamedTuple):
    """The answer to an order.

    Attributes:
        actions: float32 `[rows, action_size]`.
        budget: what was spent on each row.
        decision: what the actions were chosen from, if the plan asked for it.
    """

    actions: Float32[np.ndarray, "rows action_size"]
    budget: Budget
    decision: Decision | None


class Batch(NamedTuple):
    """One call of the policy, for whoever counts them.

    Attributes:
        plan: what was computed.
        orders: how many orders it answered.
        rows: how many observations they had.
        size: rows of the program, padding included.
        seconds: how long it took, compilation included.
        cold: whether it had to be compiled.
        late: how many orders were answered after their deadline.
    """

    plan: Plan
    orders: int
    rows: int
    size: int
    seconds: float
    cold: bool
    late: int


class _Waiting(NamedTuple):
    order: Order
    answer: asyncio.Future[Outcome]
    due: float


class _Lane:
    """One thread, and whether it has something to do."""

    def __init__(self, name: str) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.busy = False


class Batcher:
    """Collects orders and lets the policy answer them in batches.

    Args:
        policy: the policy.
        max_batch: most observations of one call; a power of two.
        max_wait_ms: how long an order waits for company.
        max_queue: most orders that wait at a time.
        max_plans: most plans that are ever compiled; each takes memory for good.
        offers: what deadlines may buy, from the worst to the best, each slower than the last; none
            for a policy that is not calibrated.
        on_batch: called after every call of the policy.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_batch: int = 16,
        max_wait_ms: float = 1.0,
        max_queue: int = 256,
        max_plans: int = 32,
        offers: Sequence[Offer] = (),
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        if not (1 <= max_batch <= 1024 and max_batch.bit_count() == 1):
            raise InputError(f"max_batch={max_batch} is not possible: use a power of two to 1024.")
        if not 0 <= max_wait_ms <= 1000:
            raise InputError(f"max_wait_ms={max_wait_ms} is not possible: use 0 to 1000.")
        for name, value in (("max_queue", max_queue), ("max_plans", max_plans)):
            if value < 1:
                raise InputError(f"{name}={value} is not possible: use 1 or more.")
        self.policy = policy
        self.sizes = [2**power for power in range(max_batch.bit_length())]
        self.max_wait_ms = max_wait_ms
        self.max_queue = max_queue
        self.offers = tuple(offers)
        self._max_plans = max_plans
        self._on_batch = on_batch
        self._queues: dict[Plan, list[_Waiting]] = {}
        self._plans: set[Plan] = set()
        self._warm: set[tuple[Plan, int]] = set()
        self._compiling: set[Plan] = set()
        # How much longer a batch of a size takes than one row, for the plans that were measured.
        self._slowdown: dict[int, dict[Plan, float]] = {size: {} for size in self.sizes}
        self._key_shape = _row_keys(np.uint32(0), 1).shape[1:]
        self._warm_lane, self._cold_lane = _Lane("sorl-act"), _Lane("sorl-compile")
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._idle = asyncio.Event()

    @property
    def max_batch(self) -> int:
        """Most observations of one call."""
        return self.sizes[-1]

    @property
    def waiting(self) -> int:
        """How many orders wait."""
        return sum(map(len, self._queues.values()))

    @property
    def budgets(self) -> list[Budget]:
        """Budgets that are compiled, from the warm-up or since."""
        return sorted({plan.budget for plan, _ in self._warm if plan.budget is not None})

    def warm_up(
        self,
        plans: Iterable[Plan],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Compile the programs of these plans for every batch size, before the loop runs.

        Args:
            plans: what is compiled; with budgets that the policy can serve.
            on_progress: called with how many calls of programs are over and how many there will be:
                one compiles each, more time those that are on offer to deadlines.

        Raises:
            InputError: the policy cannot serve one of them.
        """
        plans = list(dict.fromkeys(plans))
        for plan in plans:
            self._admit(plan)
        for rows in range(1, self.max_batch + 1):
            _row_keys(np.uint32(0), rows)
        programs = list(itertools.product(plans, self.sizes))
        offered = {offer.plan for offer in self.offers}
        timed = [(plan, size) for plan, size in programs if plan in offered]
        total = len(programs) + _TIMINGS * len(timed)
        on_progress(0, total)
        for done, (plan, size) in enumerate(programs, start=1):
            self._time(plan, size)
            self._warm.add((plan, size))
            on_progress(done, total)
        # The least of several, taken in turns: what else this machine does disturbs it the least.
        least = dict.fromkeys(timed, float("inf"))
        for done, program in enumerate(timed * _TIMINGS, start=len(programs) + 1):
            least[program] = min(least[program], self._time(*program))
            on_progress(done, total)
        for plan, size in timed:
            self._slowdown[size][plan] = max(1.0, least[plan, size] / least[plan, 1])

    async def act(self, order: Order) -> Outcome:
        """Answer an order. A caller who gives up cancels, and the order leaves the queue.

        Raises:
            InputError: the policy cannot do what is asked.
            UnpreparedError: there is a deadline and nothing is on offer, or a plan too many.
            OverloadedError: the queue is full.
            StoppingError: `close` was called.
            LateError: the deadline cannot be met any more.
        """
        if self._stopping:
            raise StoppingError("The server is stopping: ask another one.")
        self._check(order)
        if self.waiting >= self.max_queue:
            raise OverloadedError(
                f"{self.max_queue} requests are waiting already: ask again a little later."
            )
        self._admit(order.plan)
        due = order.arrival + (0 if order.deadline_ms is not None else self.max_wait_ms / 1e3)
        waiting = _Waiting(order, asyncio.get_running_loop().create_future(), due)
        self._queues.setdefault(order.plan, []).append(waiting)
        self._dispatch()
        try:
            return await waiting.answer
        finally:
            self._remove([waiting])

    async def close(self, seconds: float) -> None:
        """Take no more orders, answer those that wait within `seconds`, and end the threads."""
        self._stopping = True
        self._dispatch()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.waiting or self._warm_lane.busy or self._cold_lane.busy:
                    self._idle.clear()
                    await self._idle.wait()
        for waiting in [waiting for queue in self._queues.values() for waiting in queue]:
            _fail(waiting, StoppingError("The server stopped before this request's turn came."))
        if self._timer is not None:
            self._timer.cancel()
        for lane in (self._warm_lane, self._cold_lane):
            lane.pool.shutdown(wait=False, cancel_futures=True)

    # What may be asked.

    def _check(self, order: Order) -> None:
        size = self.policy.spec.observation_size
        if order.observations.shape[1] != size or not 1 <= order.rows <= self.max_batch:
            raise InputError(
                f"The observations have shape {list(order.observations.shape)}: give 1 to "
                f"{self.max_batch} of {size} numbers each."
            )
        if not np.isfinite(order.observations).all():
            raise InputError("The observations are not finite: check where they come from.")
        if order.deadline_ms is not None and not self.offers:
            raise UnpreparedError(
                "No calibration tells what a deadline may buy within the limits of this server, so "
                "no budget can be chosen: run `sorl calibrate` and start the server again, or give "
                "steps and best_of."
            )
        if order.deadline_ms is not None and order.plan.info:
            raise InputError(
                "info and deadline_ms do not go together, for no deadline is prepared for the "
                "longer answer: ask again with the budget and the seed of the answer."
            )
        if order.plan.info and not isinstance(self.policy.module, AbstractScoredPolicy):
            raise InputError(
                f"{type(self.policy.module).__name__} has no critic, so there are no scores to "
                "tell: leave out info."
            )

    def _admit(self, plan: Plan) -> None:
        """Check a plan, and count it among those that are compiled once they are needed."""
        if plan.budget is None or plan in self._plans:
            return
        inference.check(self.policy.module, plan.budget, plan.strategy)
        if len(self._plans) >= self._max_plans:
            budgets = {known.budget for known in self._plans if known.budget is not None}
            raise UnpreparedError(
                f"The server has compiled {self._max_plans} combinations of budget, sampler, "
                f"verifier and choice and takes no new one: use one that was used before (budgets "
                f"{', '.join(map(str, sorted(budgets)))})."
            )
        self._plans.add(plan)

    # From queues to batches. Everything here runs in the event loop, one event after the other.

    def _dispatch(self) -> None:
        """Start every batch that is due and whose thread is free, and set the timer for more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        while (batch := self._next(now)) is not None:
            self._start(*batch)
            now = time.monotonic()
        waiting = itertools.chain.from_iterable(self._queues.values())
        times = [when for one in waiting for when in (one.due, one.order.deadline)]
        # What was due at that moment waits for a thread, whose end is an event of its own.
        if later := [when for when in times if now < when < float("inf")]:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(later) - time.monotonic(), self._dispatch)
        self._idle.set()

    def _next(self, now: float) -> tuple[Plan, list[_Waiting]] | None:
        ready = []
        for wanted, queue in list(self._queues.items()):
            if wanted.budget is None:
                batch = self._before_deadline(queue, now)
            else:
                rows = sum(waiting.order.rows for waiting in queue)
                due = queue[0].due <= now or rows >= self.max_batch or self._stopping
                batch = (wanted, _first(queue, self.max_batch)) if due else None
            if batch is None or batch[0] in self._compiling:
                continue
            if not self._lane(*batch).busy:
                ready.append(batch)
        # Not by the heads of the queues: a deadline far off may wait long before its batch comes.
        return min(ready, key=lambda batch: min(one.due for one in batch[1]), default=None)

    def _before_deadline(
        self, queue: list[_Waiting], now: float
    ) -> tuple[Plan, list[_Waiting]] | None:
        """A batch of the orders whose deadlines end first; those that are too late fail."""
        hasty = sorted(queue, key=lambda waiting: waiting.order.deadline)
        for waiting in list(hasty):
            if self._choose(waiting, self._padded(waiting.order.rows), now) is not None:
                break
            hasty.remove(waiting)
            self._remove([waiting])
            _fail(
                waiting,
                LateError(
                    f"The deadline of {waiting.order.deadline_ms:g} ms cannot be met: "
                    f"{1e3 * (now - waiting.order.arrival):.1f} ms went by in the queue, and no "
                    "budget fits into the rest; give it more time."
                ),
            )
        if not hasty:
            return None
        rows = sum(waiting.order.rows for waiting in hasty)
        size = self._padded(min(self.max_batch, rows))
        while (plan := self._choose(hasty[0], size, now)) is None:
            size //= 2
        if rows <= self.max_batch:
            hasty = [one for one in hasty if self._choose(one, size, now) == plan]
        return plan, _first(hasty, size)

    def _choose(self, waiting: _Waiting, size: int, now: float) -> Plan | None:
        """The best plan that fits into what is left to an order in a batch of `size` rows."""
        left_ms = 1e3 * (waiting.order.deadline - now)
        if left_ms <= 0:
            return None
        measured = self._slowdown[size]
        fitting = (
            offer.plan
            for offer in reversed(self.offers)
            if offer.needs_ms * measured.get(offer.plan, float(size)) <= left_ms
        )
        return next(fitting, None)

    def _lane(self, plan: Plan, batch: Sequence[_Waiting]) -> _Lane:
        size = self._padded(sum(waiting.order.rows for waiting in batch))
        return self._warm_lane if (plan, size) in self._warm else self._cold_lane

    def _start(self, plan: Plan, batch: list[_Waiting]) -> None:
        self._remove(batch)
        orders = [waiting.order for waiting in batch]
        size = self._padded(sum(order.rows for order in orders))
        lane = self._lane(plan, batch)
        lane.busy = True
        if lane is self._cold_lane:
            self._compiling.add(plan)
        work = asyncio.get_running_loop().run_in_executor(
            lane.pool, self._compute, plan, orders, size
        )
        work.add_done_callback(functools.partial(self._finish, plan, batch, size, lane))

    def _finish(
        self,
        plan: Plan,
        batch: list[_Waiting],
        size: int,
        lane: _Lane,
        work: asyncio.Future[tuple[list[Outcome], float]],
    ) -> None:
        lane.busy = False
        self._compiling.discard(plan)
        if work.cancelled():
            error: BaseException | None = StoppingError("The server stopped.")
        else:
            error = work.exception()
        if error is not None:
            if isinstance(error, InputError) and all(plan != warm for warm, _ in self._warm):
                self._plans.discard(plan)  # never compiled, it takes no memory
            for waiting in batch:
                _fail(waiting, error)
        else:
            outcomes, seconds = work.result()
            self._warm.add((plan, size))
            for waiting, outcome in zip(batch, outcomes, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(outcome)
            now = time.monotonic()
            self._on_batch(
                Batch(
                    plan=plan,
                    orders=len(batch),
                    rows=sum(waiting.order.rows for waiting in batch),
                    size=size,
                    seconds=seconds,
                    cold=lane is self._cold_lane,
                    late=sum(waiting.order.deadline < now for waiting in batch),
                )
            )
        self._dispatch()

    def _remove(self, waiting: Iterable[_Waiting]) -> None:
        for one in waiting:
            queue = self._queues.get(one.order.plan, [])
            if one in queue:
                queue.remove(one)
            if not queue:
                self._queues.pop(one.order.plan, None)

    def _padded(self, rows: int) -> int:
        return next(size for size in self.sizes if size >= rows)

    # In a thread.

    def _time(self, plan: Plan, size: int) -> float:
        """Seconds of one call of a program."""
        observations = np.zeros((size, self.policy.spec.observation_size), np.float32)
        return self._compute(plan, [Order(observations, plan, 0, 0.0)], size)[1]

    def _compute(
        self, plan: Plan, orders: Sequence[Order], size: int
    ) -> tuple[list[Outcome], float]:
        """Answer a batch with the program for `size` rows; also tells the seconds it took."""
        assert plan.budget is not None
        began = time.perf_counter()
        observations = np.zeros((size, self.policy.spec.observation_size), np.float32)
        keys = np.zeros((size, *self._key_shape), np.uint32)
        ends = list(itertools.accumulate(order.rows for order in orders))
        parts = [slice(end - order.rows, end) for order, end in zip(orders, ends, strict=True)]
        for order, part in zip(orders, parts, strict=True):
            observations[part] = order.observations
            keys[part] = _row_keys(np.uint32(order.seed), order.rows)
        options = {
            "steps": plan.budget.steps,
            "best_of": plan.budget.best_of,
            "sampler": plan.strategy.sampler,
            "verifier": plan.strategy.verifier,
            "choice": plan.strategy.choice,
            "key": _typed(keys),
        }
        act: Callable[..., Any] = self.policy.act_info if plan.info else self.policy.act
        try:
            answer = act(observations, **options)
        except NotFiniteError as error:
            answer = error.answer  # one order's observation must not fail the others
        decision, actions = (answer, answer.action) if plan.info else (None, answer)
        outcomes = [
            Outcome(
                actions[part],
                plan.budget,
                None if decision is None else Decision(*(leaf[part] for leaf in decision)),
            )
            for part in parts
        ]
        return outcomes, time.perf_counter() - began


def offers_of(
    calibration: Calibration, *, max_steps: int = MAX_STEPS, max_best_of: int = MAX_BEST_OF
) -> list[Offer]:
    """What a calibration has to offer to deadlines; nothing if it never timed one row by itself.

    Args:
        calibration: what budgets cost and buy.
        max_steps: most sampling steps of an offer.
        max_best_of: most candidates of an offer.
    """
    if calibration.rows[0] != 1:
        return []
    possible = tuple(
        entry
        for entry in calibration.measured
        if entry.budget.steps <= max_steps and entry.budget.best_of <= max_best_of
    )
    calibration = dataclasses.replace(calibration, measured=possible)
    return [
        Offer(measured.p99_ms[0], plan_of(measured.budget, calibration.strategy(measured)))
        for measured in calibration.worth_having()
    ]


def _first(queue: Iterable[_Waiting], rows: int) -> list[_Waiting]:
    """The head of the queue as far as it has no more than `rows` observations."""
    totals = itertools.accumulate(queue, lambda total, w: total + w.order.rows, initial=0)
    next(totals)
    return [waiting for waiting, total in zip(queue, totals, strict=True) if total <= rows]


def _fail(waiting: _Waiting, error: BaseException) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


@functools.partial(jax.jit, static_argnums=1)
def _row_keys(seed: UInt32[Array, ""], rows: int) -> UInt32[Array, "rows ..."]:
    """The keys that `Policy.act` gives to the rows of a batch, for an integer seed, as numbers."""
    return jax.random.key_data(jax.random.split(jax.random.key(seed), rows))


_typed = jax.jit(jax.random.wrap_key_data)
