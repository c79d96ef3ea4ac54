"""What `make check` checks besides tests: lint, and types of the package as its callers see them."""

import re
import shutil
import subprocess

import pytest
from conftest import ENV, ROOT

needs = {
    name: pytest.mark.skipif(
        not shutil.which(name, path=ENV["PATH"]), reason=f"{name} is not installed: pip install -e '.[test]'"
    )
    for name in ("ruff", "mypy")
}


def told(*command, says=""):
    "Exit status and what was said."
    done = subprocess.run(command, cwd=ROOT, env=ENV, text=True, capture_output=True, input=says)
    return done.returncode, done.stdout + done.stderr


@needs["ruff"]
def test_the_code_is_without_findings():
    status, said = told("ruff", "check")
    assert status == 0, said


@needs["ruff"]
def test_a_finding_is_found():
    status, said = told(
        "ruff", "check", "--stdin-filename", "facelab/bad.py", "-", says="import math\n\n\ndef f(): return undefined\n"
    )
    assert status == 1 and "unused-import" in said and "undefined-name" in said, said


@needs["mypy"]
def test_the_package_agrees_with_its_types():
    status, said = told("mypy")
    assert status == 0, said


@needs["mypy"]
def test_the_python_of_the_guides_agrees_with_the_types(tmp_path):
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        if code := re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
            (tmp_path / f"guide_{path.stem}.py").write_text("\n".join(code))
    assert len(list(tmp_path.iterdir())) >= 4
    _, said = told("mypy", str(tmp_path))
    assert "guide_" not in said and "source files" in said, said


WRONG = {  # a call -> what is said about it
    "draw_faces(range(4), sise=64)": 'Unexpected keyword argument "sise"',
    "draw_faces(range(4), size='64')": 'incompatible type "str"; expected "int"',
    "Dice('0', 'mine', range(4))": 'incompatible type "str"; expected "int"',
    "Dice(0, 'mine', range(4)).uniform(lo=1)": 'Unexpected keyword argument "lo"',
    "Chain(8)": 'incompatible type "int"; expected "Sequence',
    "HeavyRain(beta='much')": 'incompatible type "str"; expected "float | Sequence[float]"',
    "Chain([])(faces).imput": '"Degraded" has no attribute "imput"',
    "find(3)": 'incompatible type "int"; expected "str"',
    "find('ESRGAN').sauce": '"Entry" has no attribute "sauce"',
    "psnr(faces, faces)": 'Missing positional argument "convention"',
    "psnr('a.png', 'b.png', 'rgb')": 'incompatible type "str"; expected "Tensor"',
    "Convention('mine', border='8')": 'incompatible type "str"; expected "int"',
}
IMPORTS = """
from facelab.degradations.chain import Chain
from facelab.degradations.rain import HeavyRain
from facelab.base.dice import Dice
from facelab.faces.drawn import draw_faces
from facelab.evaluation.metrics import Convention, psnr
from facelab.networks.registry import find
faces = draw_faces(range(4))["image"]
"""


@needs["mypy"]
def test_wrong_calls_are_caught(tmp_path):
    (tmp_path / "wrong.py").write_text(IMPORTS + "\n".join(WRONG))
    _, said = told("mypy", str(tmp_path / "wrong.py"))
    first = IMPORTS.count("\n") + 1
    found = {int(line): text for line, text in re.findall(r"wrong.py:(\d+): error: (.*)", said)}
    for k, (call, reason) in enumerate(WRONG.items()):
        assert reason in found.pop(first + k, ""), (call, said)
    assert not found, said
