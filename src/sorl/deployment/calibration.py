"""What each budget costs on this machine and what it buys: a table kept beside the policy.

    policy/task2-seed0/calibration.json

`sorl calibrate` makes it (`sorl.deployment.measuring`); `Policy.act(deadline_ms=...)` reads it.
What a budget buys is the success of rollouts, where there were any. The critic's own opinion of
what it chose is told too, but never trusted: by the arg max it rises with the number of candidates
whether or not the actions get better.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from sorl import files, provenance
from sorl.choices import Choice
from sorl.errors import InputError
from sorl.inference import Strategy
from sorl.samplers import Sampler
from sorl.types import Budget
from sorl.verifiers import Verifier

FORMAT = 1
_DECISIVE = ("processor", "cores", "devices")
CALIBRATION = "calibration.json"


class NothingFitsError(InputError):
    """The fastest budget takes longer than the deadline, or a deadline could buy none."""


class OtherMachineWarning(UserWarning):
    """Latencies were measured on a machine other than this one."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One budget, spent in one way.

    Attributes:
        budget: test-time compute of each decision.
        choice: which candidate acted; `own` where there is one candidate.
        p50_ms: median milliseconds of `Policy.act`, for each of `Calibration.rows`.
        p99_ms: the 99th percentile likewise.
        gain: mean over held-out states of the critic's score of the chosen candidate, less the
            mean score of all of them: what the critic believes, 0 with one candidate. None without
            a critic, or where there never were held-out states.
        spread: median over held-out states of the standard deviation of the scores of the first
            candidates, see `sorl.inference.Adaptive`. None likewise, and with one candidate.
        successes: number of rollouts that succeeded.
        episodes: number of rollouts, of this or of an earlier calibration, see
            `Calibration.successes_from`; 0 where there were none.
    """

    budget: Budget
    choice: Choice
    p50_ms: tuple[float, ...]
    p99_ms: tuple[float, ...]
    gain: float | None = None
    spread: float | None = None
    successes: int = 0
    episodes: int = 0

    @property
    def success(self) -> float:
        """Share of the rollouts that succeeded; NaN where there were none."""
        return self.successes / self.episodes if self.episodes else float("nan")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Budgets of one policy, measured on one machine.

    Attributes:
        measured: the budgets, those of several candidates by one or more choices.
        rows: numbers of observations of one call that latencies were measured for, rising.
        sampler: how candidates were drawn.
        verifier: how the critic's heads were combined.
        machine: on which machine, see `sorl.provenance.machine`.
        created: when, ISO 8601.
        successes_from: `created` and `machine` of the calibration that rolled out, where it is an
            earlier one: success does not depend on the machine.
    """

    measured: tuple[Measured, ...]
    rows: tuple[int, ...]
    sampler: Sampler
    verifier: Verifier
    machine: Mapping[str, Any]
    created: str
    successes_from: Mapping[str, Any] | None = None

    def strategy(self, measured: Measured) -> Strategy:
        """How the budget of `measured` was spent."""
        return Strategy(self.sampler, self.verifier, measured.choice)

    def best_within(self, deadline_ms: float, *, rows: int = 1) -> Measured:
        """What to spend, and by which choice, when a decision may take `deadline_ms` milliseconds.

        Of the budgets whose 99th percentile fits: where all were rolled out, the one with the
        highest success, and of equals the fastest; so candidates that make things worse are never
        bought. Where they were not, one candidate in the most steps, since nothing but rollouts
        tells whether the critic's choice helps.

        Args:
            deadline_ms: milliseconds from the call of `Policy.act` to its return.
            rows: observations of the call; the latencies of the next larger measured number count.

        Raises:
            NothingFitsError: no budget fits, or without rollouts there is none of one candidate.
            InputError: the deadline is not above 0, or more rows than were measured.
        """
        place = next((i for i, measured in enumerate(self.rows) if measured >= rows), None)
        if place is None:
            raise InputError(
                f"A deadline for {rows} observations in one call is not possible: latencies were "
                f"measured for up to {self.rows[-1]}; run `sorl calibrate` with --rows {rows}."
            )
        if not deadline_ms > 0:
            raise InputError(f"deadline_ms={deadline_ms} is not possible: give more than 0.")
        rolled_out = all(entry.episodes for entry in self.measured)
        open_to_choice = [e for e in self.measured if rolled_out or e.budget.best_of == 1]
        if not open_to_choice:
            raise NothingFitsError(
                "A deadline buys several candidates only after rollouts of every budget, and no "
                "budget of one candidate was measured: run `sorl calibrate` with --episodes 20, or "
                "with a budget such as 4x1."
            )
        fitting = [entry for entry in open_to_choice if entry.p99_ms[place] <= deadline_ms]
        if not fitting:
            fastest = min(open_to_choice, key=lambda entry: entry.p99_ms[place])
            raise NothingFitsError(
                f"No budget fits into {deadline_ms:g} ms for {rows} observation(s): the fastest, "
                f"{fastest.budget}, takes {fastest.p99_ms[place]:.2f} ms at the 99th percentile; "
                "allow more time or train a smaller network."
            )
        if rolled_out:
            return max(fitting, key=lambda e: (e.success, -e.p99_ms[place]))
        return max(fitting, key=lambda e: e.budget.steps)

    def worth_having(self, *, rows: int = 1) -> list[Measured]:
        """What some deadline would buy for `rows` observations, the fastest first.

        Raises:
            InputError: more rows than were measured.
        """
        times = sorted({time for entry in self.measured for time in entry.p99_ms})
        bought = []
        for deadline_ms in times:
            try:
                best = self.best_within(deadline_ms, rows=rows)
            except NothingFitsError:
                continue
            if best not in bought:
                bought.append(best)
        return bought

    def warn_elsewhere(self) -> None:
        """Warn with `OtherMachineWarning` where this is not the machine that was measured."""
        here = provenance.machine()
        if any(self.machine.get(name) != here[name] for name in _DECISIVE):
            warnings.warn(
                f"Latencies were measured on another machine ({named(self.machine)}) than this one "
                f"({named(here)}): deadlines may be missed; run `sorl calibrate` here (with "
                "--episodes 0 the success rates stay).",
                OtherMachineWarning,
                stacklevel=3,
            )

    def threshold(self, budget: Budget) -> float:
        """The spread of scores that half of the held-out states exceed, for adaptive spending.

        That of the budget itself, or else of the measured one with as many steps and the nearest
        number of candidates.

        Raises:
            InputError: no budget of as many steps and several candidates was measured, or none on
                held-out states.
        """
        several = [
            e for e in self.measured if e.budget.steps == budget.steps and e.budget.best_of > 1
        ]
        near = [entry for entry in several if entry.spread is not None]
        if not near:
            missing = "--data FILE" if several else f"a budget such as {budget.steps}x8"
            raise InputError(
                f"Nothing is known of how scores differ at {budget.steps} steps: run `sorl "
                f"calibrate` with {missing}."
            )
        nearest = min(near, key=lambda e: abs(e.budget.best_of - budget.best_of))
        assert nearest.spread is not None
        return nearest.spread

    def harmful(self) -> list[str]:
        """One sentence for every number of candidates that rollouts show to make things worse.

        Worse means: below one candidate in as many steps, by Fisher's exact test at 5% (one-sided).
        """
        from scipy.stats import hypergeom

        alone = {e.budget.steps: e for e in self.measured if e.budget.best_of == 1}
        sentences = []
        for entry in self.measured:
            one = alone.get(entry.budget.steps)
            if entry.budget.best_of == 1 or one is None or not (entry.episodes and one.episodes):
                continue
            chance = float(
                hypergeom.cdf(
                    entry.successes,
                    entry.episodes + one.episodes,
                    entry.successes + one.successes,
                    entry.episodes,
                )
            )
            if chance < 0.05:
                sentences.append(
                    f"{entry.budget.best_of} candidates and the choice {entry.choice} make things "
                    f"worse at {entry.budget.steps} steps: {entry.success:.0%} of {entry.episodes} "
                    f"episodes succeed against {one.success:.0%} of {one.episodes} with one "
                    f"(p = {chance:.2g}); a deadline does not buy them."
                )
        return sentences


def named(machine: Mapping[str, Any]) -> str:
    """A machine in a few words: what latencies depend on."""
    return ", ".join(str(machine.get(name)) for name in _DECISIVE)


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Keep `calibration` beside the policy in `folder`, in one step.

    Raises:
        InputError: it cannot be written.
    """
    files.write_json(
        folder / CALIBRATION,
        {
            "format": FORMAT,
            "created": calibration.created,
            "machine": dict(calibration.machine),
            "successes_from": calibration.successes_from,
            "rows": list(calibration.rows),
            "sampler": calibration.sampler,
            "verifier": str(calibration.verifier),
            "measured": [
                {
                    **dataclasses.asdict(entry),
                    "budget": str(entry.budget),
                    "choice": str(entry.choice),
                }
                for entry in calibration.measured
            ],
        },
    )


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration beside the policy in `folder`; None where there is none.

    Raises:
        InputError: the file is damaged or of another format.
    """
    path = folder / CALIBRATION
    if not path.exists():
        return None
    content = files.read_json(path)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {content.get('format')!r} and this version reads format {FORMAT}: "
            "run `sorl calibrate` anew."
        )
    try:
        rows = tuple(int(count) for count in content["rows"])
        measured = tuple(_measured(entry, len(rows)) for entry in content["measured"])
        if not measured or not rows or list(rows) != sorted(rows):
            raise ValueError("nothing was measured")
        if content["sampler"] not in get_args(Sampler):
            raise ValueError(f"there is no sampler {content['sampler']!r}")
        return Calibration(
            measured=measured,
            rows=rows,
            sampler=content["sampler"],
            verifier=Verifier.parse(content["verifier"]),
            machine=dict(content["machine"]),
            created=str(content["created"]),
            successes_from=_origin(content.get("successes_from")),
        )
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}): run `sorl calibrate` anew."
        ) from error


def _measured(entry: Mapping[str, Any], rows: int) -> Measured:
    p50, p99 = (_milliseconds(entry[name], rows) for name in ("p50_ms", "p99_ms"))
    return Measured(
        budget=Budget.parse(entry["budget"]),
        choice=Choice.parse(entry["choice"]),
        p50_ms=p50,
        p99_ms=p99,
        gain=None if entry["gain"] is None else float(entry["gain"]),
        spread=None if entry["spread"] is None else float(entry["spread"]),
        successes=int(entry["successes"]),
        episodes=int(entry["episodes"]),
    )


def _origin(entry: Any) -> dict[str, Any] | None:
    """`Calibration.successes_from`; files of earlier versions have none."""
    if entry is None:
        return None
    return {"created": str(entry["created"]), "machine": dict(entry["machine"])}


def _milliseconds(values: Sequence[Any], rows: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != rows or not all(0 < number < float("inf") for number in numbers):
        raise ValueError("latencies must be positive, one for each number of rows")
    return numbers
