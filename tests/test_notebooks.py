"""One hand: how every notebook is built, and that every public name says what it is."""

import ast
import importlib
import inspect
import json
import re
import shutil

import pytest
from conftest import ROOT, copy_project, run

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
LONGEST_CELL, WIDEST_PROSE = 40, 120
MODULES = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in (ROOT / "facelab").rglob("*.py")
    if not p.name.startswith("_")
)


def read(path):
    "(kind, text) of the cells, and their tags."
    for cell in json.loads(path.read_text())["cells"]:
        yield cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])


def prose(text):
    "Lines of a Markdown cell that can be wrapped: no code, tables, formulas, links alone or pictures."
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    text = re.sub(r"(?s)\$\$.*?\$\$", "", text)
    for line in text.split("\n"):
        words = re.sub(r"!?\[[^]]*\]\([^)]*\)|`[^`]*`|\$[^$]*\$|<[^>]*>", "x", line)
        if not line.lstrip().startswith(("|", "#", "<")) and " " in words.strip():
            yield line


def findings(path):
    "What the rules say against a notebook."
    cells = list(read(path))
    exports = any("#| default_exp" in text for kind, text, _ in cells if kind == "code")
    if not re.match(r"# .+(\n\n|$)", cells[0][1]):
        yield "the first cell is no title with an empty line below it"
    if exports and not (cells[1][0] == "code" and cells[1][1].startswith("#| default_exp")):
        yield "the second cell is not `#| default_exp`"
    for n, (kind, text, tags) in enumerate(cells):
        if kind == "code":
            if text.count("\n") >= LONGEST_CELL:
                yield f"cell {n} has {text.count(chr(10)) + 1} lines"
            if re.search(r"^from fastcore.test import", text, re.M) and not text.startswith("#| hide"):
                yield f"cell {n} imports what tests need, but is not hidden"
            if re.search(r"test_eq\(.*, (True|False)\)$", text, re.M):
                yield f"cell {n} compares with True: assert says more"
        elif "navigation" not in tags:
            if re.search(
                r"(?m)^#{1,6} ", re.sub(r"(?ms)^```.*?^```", "", text.split("\n", 1)[-1] if "\n" in text else "")
            ):
                yield f"cell {n} has a heading in its middle"
            if re.search(r"(?<!\*)\*Choice", text):
                yield f"cell {n} writes *Choice* instead of **Choice:**"
            if path.name != "contents.ipynb":
                wide = [line for line in prose(text) if len(line) > WIDEST_PROSE]
                if wide:
                    yield f"cell {n} has prose of {len(wide[0])} characters a line"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_a_notebook_is_built_as_all_are(path):
    assert list(findings(path)) == []


@pytest.mark.parametrize(
    "cell, said",
    [
        (("code", "\n".join(["x = 1"] * 41)), "41 lines"),
        (("code", "from fastcore.test import *"), "not hidden"),
        (("code", "test_eq(a < b, True)"), "assert says more"),
        (("markdown", "words\n\n## Heading"), "heading in its middle"),
        (("markdown", "*Choice:* this"), "instead of **Choice:**"),
        (("markdown", "word " * 30), "prose of 150 characters"),
    ],
)
def test_a_breach_is_found(tmp_path, cell, said):
    cells = [("markdown", "# Title\n\n> claim"), cell]
    book = {"cells": [{"cell_type": k, "source": t.splitlines(True), "metadata": {}} for k, t in cells]}
    (tmp_path / "a.ipynb").write_text(json.dumps(book))
    (found,) = findings(tmp_path / "a.ipynb")
    assert said in found


def undocumented(module):
    "Public names of a module, and public methods of its classes, about which nothing is said."
    tree = ast.parse(inspect.getsource(module))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            thing = getattr(module, node.name)
            if not ast.get_docstring(node):
                yield node.name
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    if not inspect.getdoc(inspect.getattr_static(thing, method.name)) and not inspect.getdoc(
                        getattr(thing, method.name)
                    ):
                        yield f"{node.name}.{method.name}"


@pytest.mark.parametrize("name", MODULES)
def test_public_names_say_what_they_are(name):
    assert list(undocumented(importlib.import_module(name))) == []


def test_prose_of_guides_is_wrapped():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("[gnot]*.md")):
        wide = [line for line in prose(path.read_text()) if len(line) > WIDEST_PROSE]
        assert wide == [], path


def test_a_cell_that_fails_fails_the_command(tmp_path):
    project = copy_project(tmp_path / "project")
    shutil.rmtree(project / "nbs")
    for name, code in {"a": "import matplotlib.pyplot as plt\nplt.plot([1, 2])", "b": "assert 1 == 2"}.items():
        cell = dict(cell_type="code", id=name, metadata={}, execution_count=None, outputs=[], source=code)
        (project / "nbs").mkdir(exist_ok=True)
        kernel = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
        book = dict(cells=[cell], metadata=kernel, nbformat=4, nbformat_minor=5)
        (project / "nbs" / f"{name}.ipynb").write_text(json.dumps(book))
    done = run("python -m facelab.pipeline notebooks", project)
    assert done.returncode == 1 and "assert 1 == 2" in done.stdout
    assert re.findall(r"\w+\.ipynb", done.stdout.split("Following Notebooks")[1]) == ["b.ipynb"]
    (project / "nbs" / "b.ipynb").unlink()
    assert run("python -m facelab.pipeline notebooks", project).returncode == 0
