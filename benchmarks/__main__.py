"""`python -m benchmarks [NAME ...]`: every degradation beside the usual way of doing it, in one run."""

import importlib
import sys
from pathlib import Path

from benchmarks.common import main

known = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "__main__", "common"))
main([case for name in sys.argv[1:] or known for case in importlib.import_module(f"benchmarks.{name}").CASES])
