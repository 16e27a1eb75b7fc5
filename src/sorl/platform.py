"""The cores of this machine, and settings of XLA that make the best of them.

The settings count only if they are made before JAX starts. The command line makes them for its
own process; a script that wants them calls `prepare` first.
"""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

from sorl.errors import InputError

# XLA aborts on flags it does not know, so they are set only for the versions they were tried with.
_TRIED_JAXLIB = ("0.10.", "0.11.")
_FLAGS = {
    # Measured on two cores (benchmarks/): sums over rows or features are faster as plain loops than
    # as calls of the library that does the matrix products, and a schedule without concurrency
    # between operations leaves the cores to the members.
    "xla_cpu_experimental_ynn_fusion_type": "-reduce",
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
    # Measured on an H200 with 8 seeds of 4 x 512: products by cuBLAS as it chooses itself are 5
    # times as fast as those of kernels that XLA makes and has not tuned. With tuning no program was
    # ready within 110 s, four being made at once; how fast they would have been is not known.
    "xla_gpu_enable_triton_gemm": "false",
    "xla_gpu_autotune_level": "0",
    # Loops and branches are launched from the GPU. The measurements were made so; what it brings
    # by itself was not measured.
    "xla_gpu_enable_command_buffer": "+WHILE,+CONDITIONAL,+DYNAMIC_SLICE_FUSION",
    "xla_gpu_graph_min_graph_size": "1",
    # Kernels that do not wait for each other run at the same time, which fills the GPU while few
    # seeds train: 755 updates a second in place of 626 (bfloat16, the same 8 seeds, the same
    # states bit by bit), 199 in place of 190 with 40 seeds. It takes half as much memory again.
    "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
}


def cores() -> int:
    """How many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux tells which cores a process may use
        return os.cpu_count() or 1


def memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def cpu() -> Any:
    """The device of JAX that this machine's processor is.

    Raises:
        InputError: `JAX_PLATFORMS` leaves it out.
    """
    import jax

    try:
        return jax.devices("cpu")[0]
    except RuntimeError as error:
        raise InputError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} leaves out the CPU, which has "
            "its part in training and exporting: add it, as in JAX_PLATFORMS=cuda,cpu."
        ) from error


def prepare() -> None:
    """Let JAX see every core as a device and set XLA's flags; what the user set already stays.

    A list of platforms is completed by the CPU, which evaluates while others train.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        os.environ["JAX_PLATFORMS"] = f"{platforms},cpu"
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cores()))
    if not importlib.metadata.version("jaxlib").startswith(_TRIED_JAXLIB):
        return
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [f"--{name}={value}" for name, value in _FLAGS.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([*flags.split(), *missing])
