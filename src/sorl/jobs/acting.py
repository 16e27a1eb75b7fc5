"""Whether the environment of a job is one that policies learnt from its data can act in."""

from __future__ import annotations

from sorl.data.dataset import Dataset
from sorl.data.shards import Shards
from sorl.environments import Sizes, VectorEnvironment
from sorl.errors import InputError
from sorl.jobs.job import Job
from sorl.own_names import is_own
from sorl.rollouts import check_range, environment_id
from sorl.units import USUAL


def check_environment(job: Job, dataset: Dataset | Shards) -> None:
    """Open the environment of a job once, before hours of training.

    One of OGBench's names is not opened, which takes seconds: that it is known, and that data have
    its sizes, was checked when they were loaded. Only units of their own have yet to fit it.

    Raises:
        InputError: the environment is unknown or cannot be used, or the data are not its own.
        WorkerError: its process died.
    """
    if job.environment is None or (not is_own(job.environment) and dataset.units == USUAL):
        return
    image = dataset.spec.image
    names = [environment_id(job.environment, task) for task in dataset.tasks]  # refuses wrong tasks
    frames = 1 if image is None else image.frames
    with VectorEnvironment(names[0], slots=1, workers=1, frames=frames) as environment:
        sizes = environment.sizes
    check_fit(job.environment, sizes, dataset, "the data have")


def check_fit(environment: str, sizes: Sizes, dataset: Dataset | Shards, learnt: str) -> None:
    """Compare an environment with data.

    Args:
        environment: its name.
        sizes: what it has.
        dataset: the data.
        learnt: how the sentence goes on, before the sizes of the data.

    Raises:
        InputError: it shows something else than the data hold, or takes other actions.
    """
    spec = dataset.spec
    shape = () if spec.image is None else spec.image.shape
    if sizes.image != shape:
        there, here = (
            f"images of {'x'.join(map(str, it))}" if it else "states" for it in (sizes.image, shape)
        )
        raise InputError(
            f"{environment} shows {there}, but {learnt} {here} (frames stacked): name the "
            "environment of the data with --env."
        )
    if (sizes.observation_size, sizes.action_size) != (spec.observation_size, spec.action_size):
        raise InputError(
            f"{environment} has observations of {sizes.observation_size} numbers and actions of "
            f"{sizes.action_size}, but {learnt} {spec.observation_size} and {spec.action_size}: "
            "name the environment of the data with --env."
        )
    check_range(dataset.units, sizes)
