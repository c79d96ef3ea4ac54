"""The benchmark compares like with like: the usual way and ours give the same pixels for the same random numbers."""

import importlib
from pathlib import Path

import pytest
from benchmarks.common import difference
from conftest import ROOT

from facelab.drawn import draw_faces

NAMES = sorted(p.stem for p in Path(ROOT, "benchmarks").glob("*.py") if p.stem not in ("__init__", "__main__", "common"))
CASES = [case for name in NAMES for case in importlib.import_module(f"benchmarks.{name}").CASES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_usual_way_gives_the_same_pixels(case):
    drawn = draw_faces(range(5), size=96)
    labels = dict(landmarks=drawn["landmarks_68"], parsing=drawn["parsing"], foreground=drawn["foreground"], depth=drawn["depth"])
    assert difference(case, drawn["image"], labels) <= case.tolerance
