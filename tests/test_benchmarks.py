"""The benchmark compares like with like: the usual way and ours give the same pixels for the same random numbers."""

import pytest
from benchmarks.common import all_cases, difference

from facelab.drawn import draw_faces


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_the_usual_way_gives_the_same_pixels(case):
    drawn = draw_faces(range(5), size=96)
    labels = dict(landmarks=drawn["landmarks_68"], parsing=drawn["parsing"], foreground=drawn["foreground"], depth=drawn["depth"])
    assert difference(case, drawn["image"], labels) <= case.tolerance
