"""Benchmarks compare like with like: the usual way and ours give the same pixels. One page has all benchmarks."""

import re
import sys

import pytest
from benchmarks.common import all_cases, difference, names
from conftest import ROOT, run

from facelab.faces.drawn import draw_faces


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_the_usual_way_gives_the_same_pixels(case):
    drawn = draw_faces(range(5), size=96)
    labels = dict(
        landmarks=drawn["landmarks_68"], parsing=drawn["parsing"], foreground=drawn["foreground"], depth=drawn["depth"]
    )
    assert difference(case, drawn["image"], labels) <= case.tolerance


def test_one_page_has_every_benchmark(tmp_path):
    done = run([sys.executable, "-m", "benchmarks", "--quick", "--out", str(tmp_path / "bench.md")], ROOT)
    assert done.returncode == 0, done.stdout
    page = (tmp_path / "bench.md").read_text()
    head, *sections = re.split(r"(?m)^## ", page)
    assert all(f"| {what} |" in head for what in ("CPU", "cores", "GPU", "torch", "date")) and "quick" in head
    assert [section.partition("\n")[0].lower() for section in sections] == names()
    for section in sections:
        _, sentence, _, *table = section.split("\n\n")
        assert sentence.endswith(".") and len(table[0].strip().splitlines()) >= 3, section
        assert "n/a:" not in sentence + table[0]
    assert sum(case.name in page for case in all_cases()) == len(all_cases())


def test_a_benchmark_that_fails_says_so_and_the_page_goes_on(tmp_path, monkeypatch):
    from benchmarks import __main__ as page

    def failing_rain(name, options):
        return (None, "out of memory") if name == "rain" else ("| a |", None)

    monkeypatch.setattr(page, "measured", failing_rain)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "motion", "rain", "--out", str(tmp_path / "bench.md")])
    assert page.main() == 1
    text = (tmp_path / "bench.md").read_text()
    assert text.endswith("n/a: out of memory\n") and "| a |" in text


def test_an_unknown_benchmark_is_refused():
    done = run([sys.executable, "-m", "benchmarks", "rein"], ROOT)
    assert done.returncode == 2 and "no benchmark is called 'rein'" in done.stdout
