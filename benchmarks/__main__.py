"""`make bench`: every benchmark in turn, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

for name in ("training", "evaluation", "acting", "exports", "streaming"):
    module = f"benchmarks.{name}"
    print(f"== {module}", flush=True)
    subprocess.run([sys.executable, "-m", module], check=True)
