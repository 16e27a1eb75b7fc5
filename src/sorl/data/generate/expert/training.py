"""Training of an expert: one update for every step of the environment, resumable to the bit."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sorl import tables
from sorl.data.generate.expert.environment import make_expert_environment, seed_expert_episode
from sorl.data.generate.expert.folder import ExpertFolder, Position, find_folder
from sorl.data.generate.expert.replay import Replay
from sorl.data.generate.expert.sac import SAC, SACState, act
from sorl.data.generate.parts import hold
from sorl.data.generate.protocols import ExpertProtocol
from sorl.errors import InputError
from sorl.interruption import Interruption
from sorl.types import Spec

SAVE_EVERY = 5_000


@dataclass
class _Episodes:
    """What has happened since the last row of the table."""

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    falls: int = 0


def train_expert(
    root: Path,
    protocol: ExpertProtocol,
    *,
    steps: int,
    seed: int,
    recipe: SAC | None = None,
    on_step: Callable[[int], object] = lambda steps: None,
    on_stopping: Callable[[], object] = lambda: None,
    save_every: int = SAVE_EVERY,
) -> Path:
    """Train the expert, or go on with its training, or find it trained.

    Everything random in an episode follows from the seed and the episode's number, so that a
    training which goes on from the end of an episode is the one that was never stopped, bit for
    bit. Ctrl-C stops at the end of the episode under way; a kill loses at most `save_every` steps
    and an episode.

    Args:
        root: folder of all experts.
        protocol: environment and its settings.
        steps: steps of the environment, at least 1.
        seed: at least 0.
        recipe: hyperparameters; the published ones by default, with a shorter warm-up where it
            would be more than a tenth of the steps.
        on_step: hears, at the start and after each step, how many steps have been made.
        on_stopping: is called when Ctrl-C has asked to stop.
        save_every: a checkpoint is made at the first end of an episode so many steps after the
            last.

    Returns:
        The policy's file.

    Raises:
        InputError: another process trains it; the folder is damaged or cannot be written; the
            training diverged.
        KeyboardInterrupt: after Ctrl-C, with a sentence that says what is kept.
    """
    if recipe is None:
        recipe = SAC(warm_up=min(SAC.warm_up, steps // 10))
    folder = find_folder(root, protocol, steps=steps, seed=seed, recipe=recipe)
    if folder.is_finished():
        # There still if a kill came between the last two things that a training does.
        shutil.rmtree(folder.training, ignore_errors=True)
        return folder.actor
    folder.create()
    with hold(folder.path, f"Another process is training {folder.path}"):
        if not folder.is_finished():
            with _own_global_generator():
                _train(folder, protocol, steps, seed, recipe, on_step, on_stopping, save_every)
            shutil.rmtree(folder.training)
    return folder.actor


def _train(
    folder: ExpertFolder,
    protocol: ExpertProtocol,
    steps: int,
    seed: int,
    recipe: SAC,
    on_step: Callable[[int], object],
    on_stopping: Callable[[], object],
    save_every: int,
) -> None:
    environment = make_expert_environment(protocol)
    spec = Spec(_size(environment.observation_space), _size(environment.action_space))
    # JAX's seeds are bounded, and ours are not.
    key = jax.random.key(seed % 2**32)
    state = recipe.init(spec, key=jax.random.fold_in(key, 0))
    replay = Replay(spec, min(recipe.replay, steps))
    state, position = folder.load(state, replay)
    start, saved = time.perf_counter() - position.seconds, position.steps
    episodes, metrics = _Episodes(), {}
    on_step(replay.added)
    stop = Interruption(
        on_stopping,
        f"Stopped at once; up to {save_every:,} steps of the expert's training are lost, and the "
        "same command goes on from what was saved.",
    )
    with stop.handled():
        for episode in itertools.count(position.episodes):
            environment_seed, generator = seed_expert_episode(seed, episode)
            observation, _ = environment.reset(seed=environment_seed)
            done = False
            episodes.returns.append(0.0)
            episodes.lengths.append(0)
            while not done and replay.added < steps:
                warm = replay.added < recipe.warm_up
                action = _choose(state, observation, generator, spec, uniform=warm)
                next_observation, reward, ended, truncated, _ = environment.step(action)
                mask = 0.0 if ended else 1.0
                replay.add(observation, action, float(reward), mask, next_observation)
                observation, done = next_observation, ended or truncated
                episodes.returns[-1] += float(reward)
                episodes.lengths[-1] += 1
                episodes.falls += ended
                if not warm:
                    batch = replay.sample(generator, recipe.batch_size)
                    # 0 made the networks.
                    step_key = jax.random.fold_in(key, replay.added)
                    state, metrics = recipe.update(state, batch, step_key)
                on_step(replay.added)
            position = Position(replay.added, episode + 1, time.perf_counter() - start)
            finished = replay.added == steps
            if finished or stop.requested or replay.added - saved >= save_every:
                row = _row(position, episodes, metrics)
                tables.append_rows(folder.returns, [row])
                if not all(map(math.isfinite, row.values())):
                    raise InputError(
                        f"The expert's training diverged before step {replay.added:,}, see "
                        f"{folder.returns}: try another seed."
                    )
                episodes, saved = _Episodes(), replay.added
                if finished:
                    folder.save_actor(state, steps)
                    return
                with stop.unbroken():
                    folder.save(state, replay, position)
            if stop.requested:
                raise KeyboardInterrupt(
                    f"Stopped; the expert's first {replay.added:,} steps are kept in {folder.path},"
                    " and the same command goes on from there."
                )


def _choose(
    state: SACState,
    observation: np.ndarray,
    generator: np.random.Generator,
    spec: Spec,
    *,
    uniform: bool,
) -> np.ndarray:
    """An action, float32: of the policy, or uniform in [-1, 1]."""
    if uniform:
        return generator.uniform(-1.0, 1.0, spec.action_size).astype(np.float32)
    noise = generator.standard_normal(spec.action_size, np.float32)
    observation = observation.astype(np.float32)
    return np.asarray(act(state.actor, jnp.asarray(observation), jnp.asarray(noise)))


def _row(position: Position, episodes: _Episodes, metrics: Any) -> dict[str, float]:
    """A row of the table: means over the episodes since the last, metrics of the last batch."""
    return {
        "steps": position.steps,
        "episodes": position.episodes,
        "return": float(np.mean(episodes.returns)),
        "length": float(np.mean(episodes.lengths)),
        "falls": episodes.falls,
        **{name: float(value) for name, value in metrics.items()},
        "seconds": round(position.seconds, 1),
    }


def _size(space: Any) -> int:
    return int(np.prod(space.shape))


@contextmanager
def _own_global_generator() -> Iterator[None]:
    """Leave the caller's global generator as it was: ogbench draws from it."""
    before = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
