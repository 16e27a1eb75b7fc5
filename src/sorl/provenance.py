"""Where a result comes from: versions of the libraries, and the machine."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path
from typing import Any

from sorl.platform import cores, memory

LIBRARIES = (
    "sorl",
    "jax",
    "jaxlib",
    "equinox",
    "optax",
    "numpy",
    "orbax-checkpoint",
    "safetensors",
    "gymnasium",
    "mujoco",
    "ogbench",
)


def provenance() -> dict[str, Any]:
    """`versions`, `machine` and `created`, as a run's config.json holds them."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "machine": machine(), "created": now}


def versions() -> dict[str, str]:
    """Versions of Python, sorl, its `source`, and the installed libraries that decide results."""
    found = {"python": platform.python_version(), "sorl source": source()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def source() -> str:
    """Twelve digits that tell apart the code of one version: SHA-256 over sorl's Python files."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GiB, and JAX's devices."""
    import jax

    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "devices": [device.device_kind for device in jax.devices()],
    }


def processor() -> str:
    """What this machine's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory_gib() -> float | None:
    size = memory()
    return None if size is None else round(size / 2**30, 1)
