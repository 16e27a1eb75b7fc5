"""Calibrate a run: measure every budget of its policies and keep the table beside each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sorl import inference, provenance
from sorl.choices import OWN, Choice
from sorl.data.archive import ArchiveReader
from sorl.data.mixtures import split_weight
from sorl.data.names import EnvironmentName
from sorl.data.shards import is_shards, open_shards
from sorl.data.sources import DEFAULT_FOLDER, load_dataset
from sorl.deployment.calibration import Calibration, Measured, read_calibration, write_calibration
from sorl.deployment.measuring import belief, latencies
from sorl.deployment.policy import Policy, load_stacked
from sorl.deployment.storage import policy_folder, read_policy
from sorl.errors import InputError
from sorl.evaluation import Evaluator
from sorl.inference import Strategy
from sorl.jobs.job import IMAGES, settings_in
from sorl.own_names import is_own
from sorl.runs import Run
from sorl.samplers import Sampler
from sorl.types import MAX_SEED, Budget, Member
from sorl.verifiers import Verifier

USUAL_BUDGETS = tuple(Budget(steps, n) for steps in (1, 2, 4, 8) for n in (1, 8, 32))
"""What is measured where nothing else is asked for, as far as the policy can serve it."""

USUAL_CHOICES = (Choice("central"), Choice("typical", 2), Choice("best"))
"""How several candidates are chosen among, likewise."""

OnProgress = Callable[[int, int], None]
Progress = Callable[[str], AbstractContextManager[OnProgress]]
"""From what is being done to whom to tell how much of it is done and how much there is."""


def calibrate(
    run: Run,
    *,
    budgets: Sequence[Budget] | None,
    choices: Sequence[Choice],
    sampler: Sampler,
    verifier: Verifier,
    rows: Sequence[int],
    calls: int,
    episodes: int,
    observations: Float[np.ndarray, "states observation_size"] | None,
    seed: int,
    workers: int | None,
    progress: Progress,
) -> dict[Member, Calibration]:
    """Measure and write.

    All members cost the same, so the first one's latencies are those of all. Rollouts are pooled
    over the seeds of a task: a deadline should choose what is good for the method, not what luck
    favoured in one seed. Without rollouts the successes stay that the calibrations there have found
    of the same budgets, spent in the same ways, and without held-out states what the critic
    believes: neither depends on the machine.

    Args:
        run: the run.
        budgets: budgets to measure; None means `USUAL_BUDGETS` that can be served.
        choices: each is tried at every budget of several candidates.
        sampler: how candidates are drawn.
        verifier: how the critic's heads are combined.
        rows: numbers of observations of one call; 1 is measured besides.
        calls: timed calls for each budget and number of rows, at least 100 for a 99th percentile.
        episodes: rollouts for each budget and member; 0 for none, which keeps the successes that
            are there.
        observations: held-out states in the user's units; None for none, which keeps the beliefs
            that are there.
        seed: seed of the rollouts.
        workers: processes that step environments; None means one a core.
        progress: where to show it.

    Raises:
        InputError: a number is out of range, the run has no policy or cannot serve a budget,
            nothing would be measured or nothing of it could ever be bought, the held-out states are
            none or not finite or of another size than the run's, or rollouts are asked of a run
            without an environment or in one that never tells success.
        WorkerError: a worker process died.
    """
    _check_seed(seed)
    environment = run.config.get("environment")
    if calls < 100 or episodes < 0 or not rows or min(rows) < 1:
        raise InputError(
            f"A calibration with calls={calls}, episodes={episodes} and rows={tuple(rows)} is not "
            "possible: give at least 100 calls, 0 or more episodes, and rows of at least 1."
        )
    if episodes and environment is None:
        raise InputError(
            f"{run.path} was trained without an environment: there is none for rollouts; give "
            "--episodes 0."
        )
    stacked, members = load_stacked(run.path)
    folders = [policy_folder(run.path, member) for member in members]
    # Without the calibration that is there, which may be damaged: that is what a new one is for.
    policies = [Policy(read_policy(folder), random_seed=0) for folder in folders]
    size = policies[0].spec.observation_size
    if observations is not None and observations.shape[1:] != (size,):
        raise InputError(
            f"The held-out states have shape {list(observations.shape)}, but the policies of "
            f"{run.path} take [..., {size}]: give --data with observations of the run's kind."
        )
    if observations is not None and not (len(observations) and np.isfinite(observations).all()):
        raise InputError(
            "There are no held-out states, or some that are not finite: give --data with "
            "observations that are finite numbers."
        )
    ways = [
        (budget, Strategy(sampler, verifier, choice))
        for budget in dict.fromkeys(USUAL_BUDGETS if budgets is None else budgets)
        for choice in (dict.fromkeys(choices) if budget.best_of > 1 else (OWN,))
    ]
    if budgets is None:
        ways = [way for way in ways if inference.serves(stacked, *way)]
    for way in ways:
        inference.check(stacked, *way)
    if not ways or not choices:
        raise InputError(
            "There is nothing to measure: give at least one budget, such as 4x1, and one choice, "
            "such as best."
        )
    kept = [_kept(folder) for folder in folders]
    known = all(way in earlier and earlier[way].episodes for earlier, _ in kept for way in ways)
    if not (episodes or known) and all(budget.best_of > 1 for budget, _ in ways):
        raise InputError(
            "Without rollouts a deadline never buys several candidates, and none of these budgets "
            "is of one: give --episodes 1 or more, or also a budget such as 4x1."
        )
    rows = sorted({1, *rows})  # what a server offers to deadlines is told by the calls of one
    with progress("timing") as on_progress:
        taken = latencies(policies[0], ways, rows, calls=calls, on_progress=on_progress)
    succeeded: dict[tuple[int, Budget, Strategy], list[float]] = {}
    told = False
    if episodes:
        assert environment is not None  # checked above
        with (
            progress("evaluating") as on_progress,
            Evaluator(environment, workers=workers) as evaluator,
        ):
            for place, (budget, strategy) in enumerate(ways):
                results = evaluator.evaluate(
                    stacked,
                    members,
                    budgets=[budget],
                    strategy=strategy,
                    episodes=episodes,
                    seed=seed,
                    on_progress=lambda done, total, before=place: on_progress(
                        before * total + done, len(ways) * total
                    ),
                )
                for result in results:
                    key = result.member.task, budget, strategy
                    succeeded.setdefault(key, []).append(result.success)
                    told |= result.success_told
        if not told:  # a deadline would buy the cheapest budget always, for all succeed equally
            raise InputError(
                f"The environment {environment} never tells info['success'], so rollouts cannot "
                "choose a budget: give --episodes 0."
            )
    made = provenance.provenance()
    found = {}
    for member, policy, (earlier, origin) in zip(members, policies, kept, strict=True):
        measured = []
        for i, (budget, strategy) in enumerate(ways):
            believed, (won, of) = (None, None), (0, 0)
            if (before := earlier.get((budget, strategy))) is not None:
                believed = before.gain, before.spread
                won, of = before.successes, before.episodes
            if observations is not None:
                believed = belief(policy, budget, observations, strategy)
            if episodes:
                shares = succeeded[member.task, budget, strategy]
                won, of = round(sum(shares) * episodes), len(shares) * episodes
            p50, p99 = np.percentile(taken[i], [50, 99], axis=-1)
            measured.append(
                Measured(
                    budget=budget,
                    choice=strategy.choice,
                    p50_ms=tuple(map(float, p50)),
                    p99_ms=tuple(map(float, p99)),
                    gain=believed[0],
                    spread=believed[1],
                    successes=won,
                    episodes=of,
                )
            )
        found[member] = Calibration(
            tuple(measured),
            tuple(rows),
            sampler,
            verifier,
            made["machine"],
            made["created"],
            origin if not episodes and any(entry.episodes for entry in measured) else None,
        )
    for member, calibration in found.items():
        write_calibration(policy_folder(run.path, member), calibration)
    return found


def _kept(
    folder: Path,
) -> tuple[dict[tuple[Budget, Strategy], Measured], Mapping[str, Any] | None]:
    """What was measured of the policy in `folder`, and which calibration rolled it out."""
    try:
        found = read_calibration(folder)
    except InputError:  # it is damaged, and is made anew
        found = None
    if found is None:
        return {}, None
    origin = found.successes_from or {"created": found.created, "machine": found.machine}
    return {(entry.budget, found.strategy(entry)): entry for entry in found.measured}, origin


def held_out_file(run: Run) -> Path | None:
    """Where held-out states are: the run's validation data, else its training data, if there."""
    path = run.config["dataset"]["path"]
    environment = run.config.get("environment")
    if isinstance(path, list):
        path = split_weight(path[0])[0]  # of a mixture
    if path is not None:
        training = Path(path)
    elif environment is not None and not is_own(environment):
        name = EnvironmentName.parse(environment)
        training = DEFAULT_FOLDER.expanduser() / f"{name.dataset}.npz"
    else:
        return None
    files = (training.with_name(f"{training.stem}-val{training.suffix}"), training)
    return next((file for file in files if file.is_file() or is_shards(file)), None)


def states_of(
    run: Run, file: Path, count: int, seed: int
) -> Float[np.ndarray, "states observation_size"]:
    """`count` observations of a data file, drawn without replacement (all of a smaller file).

    They are in the user's units, as `Policy` takes them. Of shards, observations of transitions,
    drawn with replacement; of images, those of transitions, stacked as the run reads them.

    Raises:
        InputError: the file cannot be read, `count` is below 1, or `seed` is not 0 to `MAX_SEED`.
    """
    _check_seed(seed)
    if count < 1:
        raise InputError(f"{count} held-out states are not possible: give at least 1.")
    if IMAGES in run.config:
        job, _, _ = settings_in(run)
        dataset = load_dataset(job.environment, data=file, tasks=job.tasks)
        rows = np.random.default_rng(seed).permutation(np.asarray(dataset.valid_rows))[:count]
        return np.asarray(dataset.reading_images(job.images).observed(jnp.asarray(rows)))
    if is_shards(file):
        shards = open_shards(file)
        numbers = np.random.default_rng(seed).integers(shards.transitions, size=count)
        drawn = shards.read(numbers, np.zeros(1, int)).observation
        return shards.units.user_observations(np.asarray(drawn))
    reader = ArchiveReader(file)
    reader.require("observations")
    observations = reader.read("observations")
    drawn = np.random.default_rng(seed).permutation(len(observations))[:count]
    return np.asarray(observations[np.sort(drawn)], np.float32)


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed={seed} is not possible: give 0 to {MAX_SEED}.")
