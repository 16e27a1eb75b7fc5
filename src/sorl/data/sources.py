"""Where data come from: an OGBench name, looked up locally and then downloaded; a file; Minari.

OGBench's files hold no rewards; `sorl.data.relabel` computes them for each task. Other files may
hold their own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sorl.data.archive import ArchiveReader
from sorl.data.dataset import Dataset
from sorl.data.download import download
from sorl.data.minari_names import SCHEME
from sorl.data.minari_sets import load_minari
from sorl.data.mixtures import mix, split_weight
from sorl.data.names import EnvironmentName
from sorl.data.origin import ARRAY, read_origin
from sorl.data.relabel import Relabeller
from sorl.data.shards import Shards, is_shards, open_shards
from sorl.errors import InputError
from sorl.own_names import is_own
from sorl.units import USUAL

Source = Path | str
"""An `.npz` file or `minari:NAME`, with `:WEIGHT` behind it or not."""

DEFAULT_FOLDER = Path("~/.ogbench/data")
"""Where ogbench itself keeps its data."""


def source_of(text: str) -> Source:
    """A source as a path where it is one."""
    return text if text.startswith(SCHEME) else Path(text)


def load_dataset(
    environment: str | None = None,
    *,
    data: Source | Sequence[Source] | None = None,
    tasks: Sequence[int] | None = None,
    validation: bool = False,
    folder: Path | None = None,
) -> Dataset:
    """Load a data set with the rewards of one or several tasks.

    Args:
        environment: OGBench name such as `cube-single-play-singletask-v0`; or `minari:NAME` or
            `gym:ID`, see `sorl.own_environments`. May be left out where `data` hold rewards and
            masks themselves.
        data: exactly this `.npz` file, or `minari:NAME`. Several are mixed by their numbers of
            transitions, or by weights as in `a.npz:0.7`. Without it, `NAME.npz` is looked for in
            `folder` and downloaded to it if it is missing.
        tasks: numbers of the tasks whose rewards are wanted; by default the one that
            `environment` names.
        validation: load OGBench's validation set, `NAME-val.npz`, instead of the training set.
        folder: OGBench's data folder, by default `~/.ogbench/data`.

    Returns:
        The data on the default device. A file with its own `rewards` and `masks` (each
        `[rows]`, r(s, a) and 0 on success) that lacks `qpos`, or is loaded without an
        environment, keeps them; its only task is the environment's, or 0 without one.

    Raises:
        InputError: unknown name or task, missing, unreadable or damaged file, arrays that fail
            `Dataset.from_arrays`, or data that do not belong to the environment.
    """
    own = environment is not None and is_own(environment)
    name = None if environment is None or own else EnvironmentName.parse(environment)
    numbers = task_numbers(name, tasks)
    if data is None and environment is not None and environment.startswith(SCHEME):
        data = environment
    if data is not None:
        if validation:
            raise InputError(
                "The validation set is found by its name, not beside a file: leave out the file, "
                f"or give the validation file itself instead of {data}."
            )
        sources = [data] if isinstance(data, str | Path) else list(data)
        parts = [split_weight(str(source)) for source in sources]
        loaded = [_load(source, name, numbers) for source, _ in parts]
        if len(loaded) == 1:
            return loaded[0]
        if not loaded:
            raise InputError("Name at least one source of data.")
        return mix(loaded, [weight for _, weight in parts], [source for source, _ in parts])
    if own:
        raise InputError(
            f"No data are known to belong to {environment}: name them, for example --data mine.npz."
        )
    if name is not None:
        path = locate(name.dataset, validation=validation, folder=folder)
    else:
        raise InputError("Give the name of an environment, a data file, or both.")

    return _load(str(path), name, numbers)


def _load(source: str, name: EnvironmentName | None, numbers: tuple[int, ...]) -> Dataset:
    """One source."""
    if source.startswith(SCHEME):
        if name is not None or numbers != (0,):
            raise InputError(
                f"{source}: a Minari data set has one task, 0, and its own environment: leave out "
                f"the tasks, and write --env {source}."
            )
        return load_minari(source)
    path = Path(source).expanduser()
    if is_shards(path):
        raise InputError(
            f"{path} holds shards, which are streamed while training on them alone: they cannot be "
            "mixed, fine-tuned on or loaded."
        )
    reader = ArchiveReader(path)
    reader.require("observations", "actions", "terminals")
    if _keeps_rewards(reader, name):
        return _load_with_own_rewards(reader, name, numbers)
    if name is None:
        raise InputError(
            f"{path}: holds no rewards and masks; name the environment whose tasks shall give them."
        )
    return _load_with_task_rewards(reader, name, numbers)


def open_stream(
    environment: str | None, path: Path | str, tasks: Sequence[int] | None = None
) -> Shards:
    """Open a folder of shards for training in an environment.

    Args:
        environment: as for `load_dataset`.
        path: the folder.
        tasks: numbers of the tasks whose rewards are wanted; by default the one that
            `environment` names.

    Raises:
        InputError: no environment, one that the data do not belong to, a task that they do not
            hold, or see `open_shards`.
    """
    if environment is None:
        raise InputError(
            f"{path} is streamed from the disk, and without an environment data are judged by what "
            "lies on the device: name an environment with --env."
        )
    name = None if is_own(environment) else EnvironmentName.parse(environment)
    numbers, shards = task_numbers(name, tasks), open_shards(path)
    if name is not None and shards.environment != name.dataset:
        raise InputError(
            f"{path} was made of {shards.environment or 'data without an environment'}, not of "
            f"{name.dataset}: make shards with --env {environment}, or name their environment."
        )
    return shards.select_tasks(numbers)


def task_numbers(name: EnvironmentName | None, tasks: Sequence[int] | None) -> tuple[int, ...]:
    """Which tasks are wanted, checked before anything is downloaded or read."""
    if tasks is None:
        return (0 if name is None else name.task,)
    numbers = tuple(tasks) if name is None else tuple(name.with_task(task).task for task in tasks)
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"Tasks {numbers} are not possible: name at least one, and each once.")
    return numbers


def locate(dataset: str, *, validation: bool = False, folder: Path | None = None) -> Path:
    """The published file of a data set in a local folder, downloaded if it is not there.

    Args:
        dataset: for example `cube-single-play-v0`.
        validation: its validation set instead.
        folder: the folder; None means `DEFAULT_FOLDER`.

    Raises:
        InputError: it is not there and cannot be downloaded.
    """
    import ogbench.utils

    from sorl.data.generate.protocols import PROTOCOLS

    home = (DEFAULT_FOLDER if folder is None else Path(folder)).expanduser()
    path = home / f"{dataset}{'-val' if validation else ''}.npz"
    if os.path.exists(path):  # unlike Path.exists, False where the folder is closed to us
        return path
    try:
        download(f"{ogbench.utils.DATASET_URL}/{path.name}", path)
    except InputError as error:
        remedy = f"put {path.name} into {home}"
        if dataset in PROTOCOLS:
            remedy = f"make it with `sorl generate {dataset} --out {home}`, or {remedy}"
        raise InputError(
            f"{path} does not exist and could not be downloaded: {remedy}. The download said: "
            f"{error}"
        ) from None
    return path


def rules_of_kept_rewards(
    environment: str | None, data: Source | Sequence[Source] | None
) -> dict[str, str | None]:
    """By which rule of `sorl.data.episodes` those sources came by their rewards that keep them.

    Args:
        environment: as for `load_dataset`.
        data: likewise.

    Returns:
        The rule of each source whose rewards `load_dataset` does not compute; None where a file
        does not tell.

    Raises:
        InputError: a file cannot be read.
    """
    own = environment is not None and is_own(environment)
    name = None if environment is None or own else EnvironmentName.parse(environment)
    if data is None and name is not None:
        data = locate(name.dataset)
    elif data is None:
        data = environment
    sources = [data] if isinstance(data, str | Path) else list(data or ())
    rules: dict[str, str | None] = {}
    for source in (split_weight(str(source))[0] for source in sources):
        if source.startswith(SCHEME):
            rules[source] = "logged"
            continue
        reader = ArchiveReader(Path(source).expanduser())
        if _keeps_rewards(reader, name):
            rules[source] = read_origin(reader).rewards if ARRAY in reader.names else None
    return rules


def _keeps_rewards(reader: ArchiveReader, name: EnvironmentName | None) -> bool:
    own = "rewards" in reader.names and "masks" in reader.names
    return own and (name is None or "qpos" not in reader.names)


def _load_with_own_rewards(
    reader: ArchiveReader, name: EnvironmentName | None, tasks: tuple[int, ...]
) -> Dataset:
    own = 0 if name is None else name.task
    if tasks != (own,):
        raise InputError(
            f"{reader.path}: holds the rewards of one task, which counts as task {own}; task(s) "
            f"{', '.join(map(str, tasks))} cannot be had from it."
        )
    if "next_observations" in reader.names and ARRAY not in reader.names:
        raise InputError(
            f"{reader.path}: has next_observations, so its episodes lack the last row that data "
            f"sets of sorl have: make one by `sorl import {reader.path} --out NAME`."
        )
    observations, actions = reader.read("observations"), reader.read("actions")
    if name is not None:
        with Relabeller(name) as relabeller:
            relabeller.check_sizes(reader.path, observations, actions)
    units = read_origin(reader).units
    if units != USUAL and observations.ndim == actions.ndim == 2:  # else refused below
        units.check_sizes(observations.shape[1], actions.shape[1])
        observations = units.network_observations(observations)
    if "images" in reader.names:
        observations = {"image": reader.read("images"), "state": observations}
    dataset = Dataset.from_arrays(
        observations,
        actions,
        reader.read("terminals"),
        np.expand_dims(reader.read("rewards"), 0),
        np.expand_dims(reader.read("masks"), 0),
        tasks,
        units=units,
        source=str(reader.path),
    )
    _check_masks(reader.path, dataset)
    return dataset


def _check_masks(path: Path, dataset: Dataset) -> None:
    """Refuse masks of which every 0 stands on the last row of an episode, which is never drawn."""
    over, ends = ~np.asarray(dataset.masks), np.asarray(dataset.ends)
    if over.any() and not (over & ~ends).any():
        raise InputError(
            f"{path}: masks are 0 on the last rows of episodes alone, where no transition begins: "
            "if those rows are transitions, add next_observations and use `sorl import`; if not, "
            "set these masks to 1."
        )


def _load_with_task_rewards(
    reader: ArchiveReader, name: EnvironmentName, tasks: tuple[int, ...]
) -> Dataset:
    observations, actions = reader.read("observations"), reader.read("actions")
    with Relabeller(name) as relabeller:
        relabeller.check_sizes(reader.path, observations, actions)
        rewards, masks = relabeller.label(reader, len(observations), tasks)
    return Dataset.from_arrays(
        observations,
        actions,
        reader.read("terminals"),
        rewards,
        masks,
        tasks,
        source=str(reader.path),
    )
