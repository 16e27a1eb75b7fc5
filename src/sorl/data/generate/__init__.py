"""Data sets of OGBench's published kind, collected anew with the oracles that ogbench ships."""

from sorl.data.generate.display import show_progress
from sorl.data.generate.engine import GenerationReport, OnProgress, Progress, generate
from sorl.data.generate.protocols import PROTOCOLS
from sorl.data.generate.statistics import Description, TaskSuccess, describe

__all__ = [
    "PROTOCOLS",
    "Description",
    "GenerationReport",
    "OnProgress",
    "Progress",
    "TaskSuccess",
    "describe",
    "generate",
    "show_progress",
]
