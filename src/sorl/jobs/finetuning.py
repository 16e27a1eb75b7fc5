"""What fine-tuning does, and how its settings stand in a run's config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from sorl.collection import Episodes
from sorl.data.replay import Replay
from sorl.data.sources import Source
from sorl.environments import Sizes
from sorl.errors import InputError
from sorl.jobs.job import Job, job_of
from sorl.members import TrainingState, initial_state, members_of
from sorl.online import Online, Plan
from sorl.platform import memory
from sorl.types import Budget, Spec

FINETUNING = "finetuning"
"""Where the settings of fine-tuning stand in config.json; only runs of it have them."""


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """How to learn on from a run by acting, and when to evaluate it. None takes the run's value.

    Args:
        steps: steps of every task and seed in its environments, at least 1. Every checkpoint has
            room for all of their rows, and that of every evaluation is kept.
        environment: OGBench name, `minari:NAME` or `gym:ID`; needed for a run without one.
        data: the run's data, which may have moved; their content must be the same.
        act_budget: test-time compute of the acting; None means the algorithm's own.
        environments: environments of every task and seed.
        updates_per_step: updates for each step.
        start_steps: steps before the first update.
        offline_share: None draws uniformly from logged and own rows; a number is the probability of
            each row of a batch to be a logged one, 0 to 1.
        noise: standard deviation of normal noise added to actions in [-1, 1], 0 or more.
        batch_size: rows of one batch.
        log_every: steps between two rows of metrics.csv; also the unit of stopping.
        evaluate_every: steps between two evaluations, counted from the first update; the state
            before the first step and that after the last are always evaluated.
        budgets: budgets of every evaluation.
        episodes: episodes for each budget, task and seed.
        evaluation_seed: seed of the episodes' starts and of the sampling noise.
        workers: processes that step environments; None means one a core.
        checkpoint_seconds: least time between two checkpoints that no evaluation asks for.
        tensorboard: None means where tensorboardX is installed.
        wandb: send to Weights & Biases too.

    Raises:
        InputError: a number is out of its range, or numbers of steps do not divide as told.
    """

    steps: int
    environment: str | None = None
    data: Source | tuple[Source, ...] | None = None
    act_budget: Budget | None = None
    environments: int = 1
    updates_per_step: int = 1
    start_steps: int = 0
    offline_share: float | None = None
    noise: float = 0.0
    batch_size: int | None = None
    log_every: int = 200
    evaluate_every: int = 10_000
    budgets: tuple[Budget, ...] | None = None
    episodes: int | None = None
    evaluation_seed: int | None = None
    workers: int | None = None
    checkpoint_seconds: float = 60.0
    tensorboard: bool | None = None
    wandb: bool = False

    def __post_init__(self) -> None:
        """Check numbers before anything is read or written; `Job` checks the others."""
        self.plan(Budget(1, 1))
        for name in ("log_every", "evaluate_every"):
            value = getattr(self, name)
            if value < 1 or value % self.environments:
                raise InputError(
                    f"{name}={value} is not possible: give a multiple of "
                    f"environments={self.environments}, since all of them step together."
                )
        if self.evaluate_every % self.log_every:
            raise InputError(
                f"evaluate_every={self.evaluate_every} must be a multiple of log_every="
                f"{self.log_every}, since training pauses at those steps only."
            )

    def plan(self, own_budget: Budget) -> Plan:
        """How to learn, with the algorithm's own budget where no other is wanted."""
        return Plan(
            steps=self.steps,
            budget=own_budget if self.act_budget is None else self.act_budget,
            environments=self.environments,
            updates_per_step=self.updates_per_step,
            start_steps=self.start_steps,
            offline_share=self.offline_share,
            noise=self.noise,
        )

    def job(self, parent: Job, first: int, plan: Plan, usual: tuple[Budget, ...]) -> Job:
        """The same as a job whose updates begin after `first`, with a parent's settings.

        `usual` are the budgets of evaluations where neither this nor the parent names any.
        """
        own = {
            "environment": self.environment or parent.environment,
            "data": parent.data if self.data is None else self.data,
            "updates": first + plan.updates,
            "log_every": self.log_every * self.updates_per_step,
            "evaluate_every": self.evaluate_every * self.updates_per_step,
            "budgets": self.budgets or (parent.budgets if parent.environment else usual),
            "held_out": 0.0,
            "batch_devices": 1,  # the rows of one batch are not shared here
        }
        for name in ("batch_size", "episodes", "evaluation_seed"):
            if getattr(self, name) is not None:
                own[name] = getattr(self, name)
        for name in ("workers", "checkpoint_seconds", "tensorboard", "wandb"):
            own[name] = getattr(self, name)
        return dataclasses.replace(parent, **own)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a fine-tuned run comes from.

    Attributes:
        path: folder of the parent.
        update: its update that fine-tuning began with.
        checkpoint: SHA-256 over the digests of that checkpoint's files.
        environment: the parent's environment, by which its data are looked up and labelled.
        acted: steps that each member made in fine-tunings before, whose starts and noise are not
            drawn again.
    """

    path: str
    update: int
    checkpoint: str
    environment: str | None
    acted: int = 0


def section_of(plan: Plan, origin: Origin, sizes: Sizes) -> dict[str, Any]:
    """What config.json holds besides the settings of a job."""
    return {
        "parent": dataclasses.asdict(origin),
        **dataclasses.asdict(plan),
        "budget": str(plan.budget),
        "max_episode_steps": sizes.max_episode_steps,
    }


def read_section(config: Mapping[str, Any]) -> tuple[Plan, Origin, Sizes]:
    """The inverse of `section_of`, with the sizes as far as the config tells them.

    Raises:
        InputError: a setting is missing or makes no sense.
    """
    try:
        section = dict(config[FINETUNING])
        origin = Origin(**section.pop("parent"))
        longest = int(section.pop("max_episode_steps"))
        plan = Plan(**{**section, "budget": Budget.parse(section["budget"])})
        spec = Spec.parse(config["spec"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"a setting is missing or garbled ({error})") from error
    return plan, origin, Sizes(spec.observation_size, spec.action_size, longest)


def like_of(config: Mapping[str, Any]) -> TrainingState:
    """Names and shapes of what a run's checkpoints hold.

    Raises:
        InputError: a setting is missing or makes no sense.
    """
    _, algorithm, _ = job_of(config)
    spec, members = Spec.parse(config["spec"]), members_of(config["tasks"], config["seeds"])
    state = eqx.filter_eval_shape(lambda: initial_state(algorithm, spec, members))
    if FINETUNING not in config:
        return state
    plan, _, sizes = read_section(config)
    replay = eqx.filter_eval_shape(lambda: _empty_replay(spec, plan, len(members)))
    return state._replace(online=Online(replay, _no_episodes(sizes, plan, len(members))))


def begun(state: TrainingState, spec: Spec, plan: Plan, episodes: Episodes) -> TrainingState:
    """The state that fine-tuning begins with: a parent's, no rows, and the first episodes."""
    replay = _empty_replay(spec, plan, state.alive.shape[0])
    return state._replace(online=Online(replay, episodes))


def check_room(spec: Spec, plan: Plan, members: int) -> None:
    """Raise `InputError` where the rows that are to be made do not fit into the memory."""
    wanted = Replay.bytes_of(spec, members=members, capacity=plan.steps)
    devices = jax.local_devices()
    own = devices[0].memory_stats()  # None of a CPU, whose devices share the machine's memory
    room = len(devices) * own["bytes_limit"] if own else memory()
    if room is not None and wanted > room:
        raise InputError(
            f"{plan.steps:,} steps of {members} tasks and seeds take {wanted / 1e9:,.0f} GB, and "
            f"there are {room / 1e9:,.0f} GB of memory: make fewer steps, or fine-tune fewer tasks "
            "and seeds at a time."
        )


def absolute(path: Path | str) -> str:
    """A run's folder as other folders know it."""
    return str(Path(path).expanduser().absolute())


def _empty_replay(spec: Spec, plan: Plan, members: int) -> Replay:
    return Replay.empty(spec, members=members, capacity=plan.steps, environments=plan.environments)


def _no_episodes(sizes: Sizes, plan: Plan, members: int) -> Episodes:
    return Episodes.none(sizes, members=members, environments=plan.environments)
