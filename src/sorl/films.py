"""A short film of one episode, kept in a run's folder for its report."""

from __future__ import annotations

import errno
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sorl import files
from sorl.deployment.storage import policy_folder, read_policy, saved_members
from sorl.errors import InputError, WorkerError
from sorl.runs import Run
from sorl.types import Budget

FRAMES_PER_SECOND = 20
MAX_FRAMES = 120
SIZE = 200

_logger = logging.getLogger(__name__)


def film_run(run: Run) -> Path | None:
    """Render the first member's policy as `media/rollout-<budget>-<update>.gif`.

    The budget is the one with the best mean success at the last evaluation. A run without an
    environment, without a policy, in a folder that cannot be written, or on a machine that cannot
    render or make the environment has no film: a report does without, and a warning says why where
    it is the folder or the machine.

    Returns:
        The film's path, or None.
    """
    from sorl.rendering import rollout_frames

    environment = run.config.get("environment")
    if environment is None:
        return None
    try:
        member = saved_members(run.path)[0]
        saved = read_policy(policy_folder(run.path, member))
    except InputError:
        return None
    budget = _best_budget(run)
    if budget is None:
        return None
    path = run.path / "media" / f"rollout-{budget}-{saved.update}.gif"
    if path.exists():
        return path
    try:
        with files.explained("write", path):  # before it is drawn
            if not os.access(path.parent if path.parent.exists() else run.path, os.W_OK):
                raise PermissionError(errno.EACCES, "not permitted")
        frames = rollout_frames(
            saved.module, member, environment, budget, size=SIZE, every=2, most=MAX_FRAMES
        )
        if not frames:
            return None
        with files.explained("write", path):
            path.parent.mkdir(exist_ok=True)
            for old in path.parent.glob("rollout-*.gif"):
                old.unlink()
        files.write_bytes(path, _gif(frames))
    except (InputError, WorkerError) as error:
        _logger.warning("No film of %s: %s", run.path, str(error).splitlines()[-1])
        return None
    return path


def _gif(frames: Sequence[np.ndarray]) -> bytes:
    from PIL import Image

    pictures = [Image.fromarray(frame).quantize(64) for frame in frames]
    content = io.BytesIO()
    pictures[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=1000 // FRAMES_PER_SECOND,
        loop=0,
        optimize=True,
    )
    return content.getvalue()


def _best_budget(run: Run) -> Budget | None:
    rows = run.evaluations()
    if not rows:
        return None
    last = max(float(row["update"]) for row in rows)
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row["update"] == last:
            scores.setdefault(str(row["budget"]), []).append(float(row["success"]))
    best = max(scores, key=lambda name: sum(scores[name]) / len(scores[name]))
    return Budget.parse(best)
