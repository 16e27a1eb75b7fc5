"""The GPUs that this process may use, told without starting JAX, which would take their memory."""

from __future__ import annotations

import os
import shutil
import subprocess


def visible() -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` may be set to for each of them: a number, or what it says now."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu not in ("", "-1")]
    return _asked("index")


def names() -> list[str]:
    """What each of them is, such as `NVIDIA H200`; where the driver does not tell, its number."""
    wanted = visible()
    return (_asked("name", wanted) or wanted) if wanted else []


def _asked(field: str, gpus: list[str] | None = None) -> list[str]:
    """What the driver's tool says of these GPUs, or of all; nothing where it says nothing."""
    if shutil.which("nvidia-smi") is None:
        return []
    chosen = [] if gpus is None else [f"--id={','.join(gpus)}"]
    told = subprocess.run(
        ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", *chosen],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.splitlines() if told.returncode == 0 else []
