"""Options that may be given again and again, each time with one value or more."""

from __future__ import annotations

from typing import TypeAlias

import tyro

Repeatable: TypeAlias = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]
"""The type of such an option."""
