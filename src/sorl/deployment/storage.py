"""Released policies on disk: one self-contained folder each.

    policy/task2-seed0/policy.safetensors    the arrays, by their path in the policy
    policy/task2-seed0/policy.json           how to rebuild the policy around them: algorithm with
                                             its hyperparameters, sizes, member, update, digests
    policy/task2-seed0/README.md             for people, see `sorl.deployment.card`

Reading needs neither the dataset nor the environment nor the training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from sorl import algorithms, files, leaves
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy, in_units
from sorl.errors import InputError
from sorl.types import Member, Spec
from sorl.units import USUAL, Units

FORMAT = 1
# Earlier versions would act as if there were no units, so they are told that they cannot read it.
FORMAT_WITH_UNITS = 2
_TENSORS = "policy.safetensors"
_DESCRIPTION = "policy.json"


@dataclasses.dataclass(frozen=True)
class SavedPolicy:
    """What one policy folder holds.

    Attributes:
        module: the policy, for ONE observation.
        algorithm: what trained it.
        spec: sizes of its observations and actions.
        member: the task and the seed it was trained with.
        update: after how many updates it was saved.
        provenance: where it comes from.
    """

    module: AbstractPolicy
    algorithm: AbstractAlgorithm[Any]
    spec: Spec
    member: Member
    update: int
    provenance: dict[str, Any]


def save_policy(
    folder: Path | str,
    policy: AbstractPolicy,
    *,
    algorithm: AbstractAlgorithm[Any],
    spec: Spec,
    member: Member,
    update: int,
    provenance: Mapping[str, Any],
) -> None:
    """Write the policy of one member; an earlier one in `folder` is replaced as a whole.

    Args:
        folder: where to; made when missing.
        policy: what `algorithm.policy` returned, without a members axis; its units are kept.
        algorithm: the algorithm that trained it.
        spec: sizes of its observations and actions.
        member: the task and the seed it was trained with.
        update: after how many updates.
        provenance: where it comes from; whatever JSON can hold.

    Raises:
        InputError: the disk is full or writing is not permitted; the earlier one is untouched.
    """
    import safetensors.numpy

    folder = Path(folder)
    arrays = leaves.named(policy)
    tensors = safetensors.numpy.save({name: leaves.to_host(a) for name, a in arrays.items()})
    description: dict[str, Any] = {
        "format": FORMAT if policy.units == USUAL else FORMAT_WITH_UNITS,
        "algorithm": algorithms.describe(algorithm),
        "spec": spec.describe(),
        "member": member._asdict(),
        "update": update,
        "tensors": {name: leaves.describe(leaf) for name, leaf in arrays.items()},
        "provenance": dict(provenance),
    }
    if policy.units != USUAL:
        description["units"] = policy.units.describe()
    digests = {"tensors": _digest(tensors), "description": _digest(_canonical(description))}
    with files.explained("save the policy", folder), files.new_folder(folder) as new:
        (new / _TENSORS).write_bytes(tensors)
        files.write_json(new / _DESCRIPTION, {**description, "sha256": digests})


def is_policy(folder: Path) -> bool:
    """Whether `folder` is the folder of one policy."""
    return (folder / _DESCRIPTION).is_file()


def policy_folder(run: Path, member: Member) -> Path:
    """Where the run `run` keeps the policy of `member`."""
    return run / "policy" / str(member)


def saved_members(run: Path) -> list[Member]:
    """The members that have a policy in the folder of a run, by task, then by seed.

    Raises:
        InputError: there is none.
    """
    folder = run / "policy"
    members: list[Member] = []
    for path in folder.iterdir() if folder.is_dir() else ():
        task, _, seed = path.name.removeprefix("task").partition("-seed")
        if task.isdecimal() and seed.isdecimal() and path.name == str(Member(int(task), int(seed))):
            members.append(Member(int(task), int(seed)))
    if not members:
        raise InputError(
            f"There is no policy in {run}: give the folder of a policy, or of a run that has saved "
            "one."
        )
    return sorted(members)


def read_policy(folder: Path) -> SavedPolicy:
    """Read the folder of one policy.

    Raises:
        InputError: a file is missing, damaged, of another format, or describes a policy that this
            version cannot build.
    """
    import safetensors
    import safetensors.numpy

    try:
        description, content = _sealed(folder)
    except InputError:  # a training may have replaced the folder between the two files
        description, content = _sealed(folder)
    algorithm, spec, skeleton = _rebuild(description, folder)
    try:
        values = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise InputError(f"{_damaged(folder / _TENSORS)[:-1]} ({error}).") from error
    found = leaves.differences({n: leaves.describe(v) for n, v in values.items()}, skeleton)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InputError(
            f"{folder / _TENSORS} does not fit the policy that {_DESCRIPTION} describes: "
            f"{found[0]}{more}; use the version of sorl that wrote it."
        )
    try:
        member = Member(int(description["member"]["task"]), int(description["member"]["seed"]))
        update, provenance = int(description["update"]), dict(description["provenance"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / _DESCRIPTION} lacks {error}: save the policy anew.") from error
    return SavedPolicy(leaves.fill(skeleton, values), algorithm, spec, member, update, provenance)


def _sealed(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The description and the tensors in `folder`, which match their digests."""
    description = files.read_json(folder / _DESCRIPTION)
    if description.get("format") not in (FORMAT, FORMAT_WITH_UNITS):
        raise InputError(
            f"{folder / _DESCRIPTION} has format {description.get('format')!r} and this version "
            f"reads formats {FORMAT} and {FORMAT_WITH_UNITS}: use the version of sorl that wrote "
            "it."
        )
    digests = description.pop("sha256", None)
    if not isinstance(digests, dict) or digests.get("description") != _digest(
        _canonical(description)
    ):
        raise InputError(_damaged(folder / _DESCRIPTION))
    with files.explained("read", folder / _TENSORS):
        content = (folder / _TENSORS).read_bytes()
    if digests.get("tensors") != _digest(content):
        raise InputError(_damaged(folder / _TENSORS))
    return description, content


def _rebuild(
    description: dict[str, Any], folder: Path
) -> tuple[AbstractAlgorithm[Any], Spec, AbstractPolicy]:
    """The algorithm, the sizes, and the policy with placeholders for its arrays."""
    try:
        algorithm = algorithms.build(description["algorithm"])
        spec = Spec.parse(description["spec"])
        units = Units.parse(description.get("units"))
        units.check_sizes(spec.observation_size, spec.action_size)
        skeleton = eqx.filter_eval_shape(
            lambda key: in_units(algorithm.policy(algorithm.init(spec, key=key)), units),
            jax.random.key(0),
        )
    except InputError as error:
        raise InputError(f"{folder / _DESCRIPTION} cannot be used: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{folder / _DESCRIPTION} describes a policy that this version cannot build "
            f"({reason}): use the version of sorl that wrote it."
        ) from error
    return algorithm, spec, skeleton


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _damaged(path: Path) -> str:
    return f"{path} is damaged (its content does not match its digest): restore it from a copy."
