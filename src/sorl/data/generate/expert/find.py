"""The expert that a data set needs: given by the user, found where it was trained, or trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from sorl.data.generate.expert.actor import read_expert
from sorl.data.generate.protocols import EXPERTS, NavigateProtocol, Protocol, SoccerProtocol
from sorl.errors import InputError

OnStep: TypeAlias = Callable[[int, int, int], object]
"""Hears steps made, those of them that an earlier try had made, and steps in all."""


def find_expert(
    name: str,
    protocol: Protocol,
    *,
    root: Path,
    given: Path | None,
    steps: int | None,
    seed: int,
    on_step: OnStep,
    on_stopping: Callable[[], object],
) -> Path | None:
    """The file of the expert with which the data set `name` is collected; None if it needs none.

    Args:
        name: name of the set.
        protocol: its protocol.
        root: folder of the experts trained here.
        given: file of a trained expert, or its folder.
        steps: of the training, where one is wanted that is not the published one.
        seed: of the training.
        on_step: hears of the training's progress.
        on_stopping: is called once Ctrl-C has asked the training to stop.

    Raises:
        InputError: an expert is given to a set that needs none, or one that does not fit; or as in
            `train_expert`.
        KeyboardInterrupt: as in `train_expert`.
    """
    kind = protocol.expert if isinstance(protocol, NavigateProtocol | SoccerProtocol) else None
    if kind is None:
        if given is not None or steps is not None:
            raise InputError(f"{name} is made without an expert: leave out what is said of one.")
        return None
    recipe = EXPERTS[kind]
    if given is None:
        # JAX is loaded only where it is needed.
        from sorl.data.generate.expert.training import train_expert

        total = recipe.steps if steps is None else steps
        found: list[int] = []

        def on_training_step(done: int) -> None:
            found[:] = found or [done]
            on_step(done, found[0], total)

        return train_expert(
            root,
            recipe,
            steps=total,
            seed=seed,
            on_step=on_training_step,
            on_stopping=on_stopping,
        )
    if steps is not None:
        raise InputError(
            "An expert is given and steps of its training as well: leave out one of the two."
        )
    if given.is_dir():
        given = given / "actor.safetensors"
    origin = read_expert(given).origin
    if origin.environment != recipe.environment:
        raise InputError(
            f"{given} was trained in {origin.environment}, but {name} needs an expert of "
            f"{recipe.environment}: give another one."
        )
    return given
