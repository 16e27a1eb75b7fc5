"""Which arrays of a log mean what: recognised by their names, or told by the user."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sorl.data.columns import NEEDED, ROLES
from sorl.data.importing.ends import DONES, EVERY_END, MASKS
from sorl.data.importing.log import Log
from sorl.errors import InputError

Keys = Mapping[str, tuple[int, ...] | None]
Mapped = dict[str, tuple[str, ...]]
"""The names of the arrays of each role, to be joined in this order."""

NOTHING = "none"

# The first that is there counts: D4RL's and Gymnasium's names, robomimic's, LeRobot's.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "observations": ("observations", "observation", "obs", "observation.state", "states", "state"),
    "actions": ("actions", "action", "act"),
    "rewards": ("rewards", "reward", "next.reward"),
    "terminations": (
        "terminations",
        "terminals",
        "terminated",
        "terminal",
        "next.success",
        *DONES,
    ),
    "truncations": ("truncations", "timeouts", "truncated", "timeout"),
    "episodes": ("episode_index", "episode_id", "episode"),
    "steps": ("frame_index", "step_index", "step", "timestep"),
}
_FURTHER = {"observation.state": ("observation.environment_state",)}
_VECTORS = ("observations", "actions")


def parse_keys(texts: Sequence[str]) -> Mapped:
    """Read `observations=obs/state,obs/goal` and the like; `none` for a role that is not there.

    Raises:
        InputError: a text of another form, an unknown role, or one that is named twice.
    """
    given: Mapped = {}
    for text in texts:
        role, sign, names = text.partition("=")
        role = role.strip()
        parts = tuple(name.strip() for name in names.split(",") if name.strip())
        if not sign or not parts:
            raise InputError(
                f"--key {text!r} cannot be read: write a role and the names of its arrays, such as "
                "observations=obs/state,obs/goal."
            )
        if role not in ROLES:
            raise InputError(f"--key {text!r}: there is no role {role!r}: use {', '.join(ROLES)}.")
        if role in given:
            raise InputError(f"--key names the role {role} twice: join the names by commas.")
        given[role] = parts
    return given


def assign_alike(logs: Sequence[Log], given: Mapping[str, Sequence[str]]) -> Mapped:
    """The arrays of each role, which are the same in every file, in the same order.

    Args:
        logs: the files, at least one.
        given: as for `assign`.

    Raises:
        InputError: they are not, or see `assign`.
    """
    mapped = assign(logs[0].path, logs[0].keys, given)
    for log in logs[1:]:
        other = assign(log.path, log.keys, given)
        for role in ROLES:
            here, there = (", ".join(it.get(role, (NOTHING,))) for it in (other, mapped))
            if here != there:
                raise InputError(
                    f"{log.path}: the {role} are {here}, but those of {logs[0].path} are {there}: "
                    "name them by --key, or import files of different layouts apart (the later "
                    "ones with --like)."
                )
    return mapped


def assign(path: Path, keys: Keys, given: Mapping[str, Sequence[str]]) -> Mapped:
    """The arrays of each role in one file.

    Args:
        path: the file, for messages.
        keys: what it holds.
        given: what the user says, patterns such as `obs_*` among it; it comes before any guess,
            and no array that is named there is guessed to mean something else.

    Raises:
        InputError: a name that is not there, or no observations or actions found.
    """
    mapped: Mapped = {}
    for role, names in given.items():
        if tuple(names) != (NOTHING,):
            mapped[role] = tuple(key for name in names for key in _matching(path, keys, name))
    taken = {key for names in mapped.values() for key in names}
    free = {key: shape for key, shape in keys.items() if key not in taken}
    every_end = [name for name in EVERY_END if name in free]
    if "terminations" not in given and every_end and free.get(MASKS, (0,)) in ((), (1,), None):
        mapped["terminations"] = (MASKS,)
        if "truncations" not in given:
            mapped["truncations"] = _recognised("truncations", free) or tuple(every_end[:1])
    for role in _NAMES:
        if role not in given and role not in mapped and (found := _recognised(role, free)):
            mapped[role] = found
            free = {key: shape for key, shape in free.items() if key not in found}
    missing = [role for role in NEEDED if role not in mapped]
    if missing:
        raise InputError(
            f"{path}: cannot tell which arrays are the {' and the '.join(missing)}; say so, for "
            f"example --key {missing[0]}=NAME,NAME. The file holds {_listed(keys)}."
        )
    if "next_observations" not in given:
        for prefix in ("next_", "next."):
            following = tuple(f"{prefix}{key}" for key in mapped["observations"])
            if all(key in free for key in following):
                mapped["next_observations"] = following
                break
    return mapped


def _recognised(role: str, keys: Keys) -> tuple[str, ...]:
    for name in _NAMES[role]:
        if name in keys:
            return (name, *(key for key in _FURTHER.get(name, ()) if key in keys))
        if role not in _VECTORS:
            continue
        singular = re.escape(name.removesuffix("s"))
        inside = [key for key in keys if key.startswith(f"{name}/")]
        states = tuple(key for key in inside if len(keys[key] or ()) < 2)  # others are images
        numbered = [
            (int(match[1]), key)
            for key in keys
            if (match := re.fullmatch(rf"{singular}s?[_.\[/]?([0-9]+)\]?", key))
        ]
        if states:
            return tuple(sorted(states, key=_by_number))
        if numbered:
            return tuple(key for _, key in sorted(numbered))
    return ()


def _matching(path: Path, keys: Keys, name: str) -> list[str]:
    if name in keys:
        return [name]
    found = fnmatch.filter(keys, name)
    if not found:
        raise InputError(f"{path}: there is no array {name!r}; the file holds {_listed(keys)}.")
    return sorted(found, key=_by_number)


def _by_number(name: str) -> list[str | int]:
    """Sorts names with their numbers as numbers: joint_2 before joint_10."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _listed(keys: Keys) -> str:
    return ", ".join(keys) if keys else "no arrays of numbers"
