"""The floors of CONTRIBUTING.md: a file imports only from its own and from those below."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import sorl

ROOT = Path(sorl.__file__).parent
CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"


def floors() -> dict[str, int]:
    """The floor of every file and folder of the package, as the table has them."""
    found = {}
    for line in CONTRIBUTING.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| (ground|[0-9]+) \| (.*) \|", line):
            floor = 0 if match[1] == "ground" else int(match[1])
            for name in re.findall(r"`(\w+)/?`", match[2]):
                if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file():
                    found[name] = floor
    return found


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("sorl.")}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_part_has_a_floor() -> None:
    parts = {part_of(path) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert parts == set(floors())


def test_nothing_imports_from_a_floor_above() -> None:
    floor = floors()
    upward = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
        for name in imported(path) & set(floor)
        if floor[name] > floor[part_of(path)]
    }
    assert upward == set()


def test_algorithms_see_no_environment_and_deployment_no_training() -> None:
    forbidden = {
        "algorithms": {"environments", "environment_worker", "rollouts", "files", "cli", "runs"},
        "deployment": {"training", "members", "data", "environments", "environment_worker"},
    }
    for part, names in forbidden.items():
        for path in (ROOT / part).rglob("*.py"):
            assert not imported(path) & names, path
