"""What a log says of the ends of its episodes, by the names of the arrays that say it.

    masks               beside an array that marks every end, as much JAX code dumps them: 0 where
                        the task is over; the other ends are truncations
    dones, next.done    as old Gym had them: true also where time ran out, which only an array of
                        truncations tells apart

All other names mean what they say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sorl.data.columns import Columns

MASKS = "masks"
DONES = ("dones", "done", "next.done")
EVERY_END = ("terminals", "dones_float", *DONES)
"""What marks every end where there are masks beside it."""


def with_meaning(
    columns: Columns, mapped: Mapping[str, Sequence[str]], given: Mapping[str, Sequence[str]]
) -> Columns:
    """The same columns, terminations and truncations as the names of their arrays mean them.

    Args:
        columns: truth values as they are logged.
        mapped: the names of the arrays of each role.
        given: the roles that the user told; an array that the user calls terminations is that.
    """
    if "terminations" in given or columns.terminations is None:
        return columns
    (name,) = mapped["terminations"]
    if name != MASKS:
        return columns._replace(done=name in DONES)
    over, stopped = ~columns.terminations, columns.truncations
    if stopped is not None and "truncations" not in given and mapped["truncations"][0] in EVERY_END:
        stopped = stopped & ~over
    return columns._replace(terminations=over, truncations=stopped)
