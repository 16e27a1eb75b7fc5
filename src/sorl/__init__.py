"""Offline reinforcement learning whose compute is dialled at run time.

The public names load on first use: worker processes and `sorl --help` import this package too and
must not pay for JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sorl.algorithms.sorl import SORL
    from sorl.data.dataset import Dataset
    from sorl.data.generate import generate
    from sorl.data.sharding import make_shards
    from sorl.data.shards import open_shards
    from sorl.data.sources import load_dataset
    from sorl.deployment.policy import Policy, load_stacked
    from sorl.errors import InputError
    from sorl.evaluation import evaluate
    from sorl.inference import Strategy
    from sorl.jobs.finetuning import Finetuning
    from sorl.jobs.job import Job
    from sorl.jobs.online_work import finetune
    from sorl.report.page import write_report
    from sorl.runs import Run
    from sorl.training import train
    from sorl.types import Budget, Member, Spec, Transition
    from sorl.units import Units
    from sorl.verifiers import Verifier

__version__ = "0.1.0"

_HOMES = {
    "SORL": "sorl.algorithms.sorl",
    "Budget": "sorl.types",
    "Dataset": "sorl.data.dataset",
    "Finetuning": "sorl.jobs.finetuning",
    "InputError": "sorl.errors",
    "Job": "sorl.jobs.job",
    "Member": "sorl.types",
    "Policy": "sorl.deployment.policy",
    "Run": "sorl.runs",
    "Spec": "sorl.types",
    "Strategy": "sorl.inference",
    "Transition": "sorl.types",
    "Units": "sorl.units",
    "Verifier": "sorl.verifiers",
    "evaluate": "sorl.evaluation",
    "finetune": "sorl.jobs.online_work",
    "generate": "sorl.data.generate",
    "load_dataset": "sorl.data.sources",
    "load_stacked": "sorl.deployment.policy",
    "make_shards": "sorl.data.sharding",
    "open_shards": "sorl.data.shards",
    "train": "sorl.training",
    "write_report": "sorl.report.page",
}

__all__ = [
    "SORL",
    "Budget",
    "Dataset",
    "Finetuning",
    "InputError",
    "Job",
    "Member",
    "Policy",
    "Run",
    "Spec",
    "Strategy",
    "Transition",
    "Units",
    "Verifier",
    "__version__",
    "evaluate",
    "finetune",
    "generate",
    "load_dataset",
    "load_stacked",
    "make_shards",
    "open_shards",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sorl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
