"""Which graphics library MuJoCo draws with, for processes that are about to start.

MuJoCo reads `MUJOCO_GL` while it is imported, and a driver that is missing can end the process, so
whether one works is found out in a process of its own. Never imports JAX.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

from sorl.errors import InputError

_SECONDS = 120.0
_PROBE = (
    "import mujoco; model = mujoco.MjModel.from_xml_string('<mujoco/>'); "
    "renderer = mujoco.Renderer(model, 8, 8); "
    "renderer.update_scene(mujoco.MjData(model)); renderer.render()"
)


def ways() -> list[dict[str, str]]:
    """Settings to try, in this order; what the user has set is not questioned.

    Where `MUJOCO_GL` is not set, a screen is used if there is one, else EGL, else OSMesa.
    """
    if os.environ.get("MUJOCO_GL"):
        return [{}]
    headless = [{"MUJOCO_GL": "egl"}, {"MUJOCO_GL": "osmesa"}]
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return [{}, *headless] if screen else headless


def working() -> dict[str, str]:
    """Environment variables with which MuJoCo draws here; found out once in a process.

    Raises:
        InputError: nothing draws on this machine.
    """
    return dict(_working(os.environ.get("MUJOCO_GL")))


@functools.cache
def _working(_chosen: str | None) -> tuple[tuple[str, str], ...]:
    problems = []
    for variables in ways():
        way = variables.get("MUJOCO_GL", os.environ.get("MUJOCO_GL", "the screen"))
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", _PROBE],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            problems.append(f"{way}: no answer in {_SECONDS:.0f} s")
            continue
        if done.returncode == 0:
            return tuple(variables.items())
        problems.append(f"{way}: {(done.stderr.strip().splitlines() or ['it crashed'])[-1]}")
    raise InputError(
        f"Pictures cannot be drawn on this machine ({'; '.join(problems)}): install a driver for "
        "EGL or OSMesa (such as libegl1 or libosmesa6), and set MUJOCO_GL if it is not found."
    )
