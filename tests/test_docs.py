"What README and guides tell people to type works, and the site is built without a dead link."

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENV, ROOT

from facelab import FacelabError
from facelab.pipeline import site
from facelab.apps.commands import parser
from facelab.base.params import read_yaml
from facelab.training.recipes import load_recipes

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STARTED = {"facelab", "make", "python", "dvc", "source", "torchrun"}


def blocks(path, language):
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", path.read_text())


def commands():
    "Every command in the guides, with its file."
    for path in FILES:
        for block in blocks(path, "sh"):
            for line in block.splitlines():
                for command in re.split(r"&&|;", line.partition("#")[0]):
                    if command.strip():
                        yield pytest.param(command.strip(), id=f"{path.stem}: {command.strip()[:60]}")


@pytest.mark.parametrize("path", [path for path in FILES if blocks(path, "python")], ids=lambda path: path.stem)
def test_python_in_the_guides_runs(path, tmp_path, monkeypatch):
    for name in ("recipes", "papers", "params.yaml", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(path, "python"))
    done = subprocess.run([sys.executable, "-c", code], env={**ENV, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", list(commands()))
def test_commands_in_the_guides_are_understood(command):
    "Small ones are parsed or asked for help; what they do has tests of its own."
    words = shlex.split(command)
    assert words[0] in STARTED, f"nothing here checks {words[0]!r}"
    if words[0] == "facelab":
        assert parser().parse_args(words[1:]).run
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        for word in words[1:]:
            name, value, _ = word.partition("=")
            assert re.search(rf"(?m)^{name}:.*## " if not value else rf"\$\({name}\)", makefile), f"the Makefile has no {name}"
    if words[:2] == ["python", "-m"] or words[0] == "torchrun":
        module = words[words.index("-m") + 1]
        done = subprocess.run([sys.executable, "-m", module, "--help"], env=ENV, cwd=ROOT, text=True, capture_output=True)
        assert done.returncode == 0 and all(word.partition("=")[0] in done.stdout for word in words[words.index("-m") + 2:] if word.startswith("--")), done.stdout + done.stderr
    if words[0] == "dvc":
        assert words[1] == "repro" and all(name.partition("@")[2] in load_recipes(ROOT) and name.partition("@")[0] in read_yaml(ROOT / "dvc.yaml")["stages"] for name in words[2:])
    if words[0] == "source":
        assert words[1] == ".venv/bin/activate"


def small_project(folder, text):
    "Two pages, one with a name of the package and outputs that somebody executed."
    (folder / "nbs").mkdir()
    (folder / "README.md").write_text(text)
    code = lambda source, *outputs: {"cell_type": "code", "source": source, "metadata": {}, "outputs": list(outputs), "execution_count": 1, "id": f"x{len(source)}"}
    cells = [{"cell_type": "markdown", "source": "# Dice\nWhere $x^2$ is.", "metadata": {}, "id": "y"}, code("#| default_exp dice"), code("#| export\nprint(1 < 2)", {"output_type": "stream", "name": "stdout", "text": "True"})]
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "nbs" / "00_dice.ipynb").write_text(json.dumps(book))
    return folder


def test_a_site_has_pages_equations_names_and_search(tmp_path, monkeypatch):
    root = small_project(tmp_path, "# Hello\n\nSee [dice](nbs/00_dice.ipynb) and $a<b$, not `$PATH`.\n")
    monkeypatch.setattr(site, "executed", lambda root, source: json.loads((root / source).read_text()))
    pages = site.build(root, progress=False)
    folder = root / "build" / "site" / "html"
    first, second = ((folder / page.target).read_text() for page in pages)
    assert '<a href="nbs/00_dice.html">dice</a>' in first and "<math" in first and "<code>$PATH</code>" in first
    assert 'id="name-Dice"' in second and "<msup>" in second and "default_exp" not in second and '<pre class="out">True</pre>' in second and 'href="../index.html"' in second
    assert '["Dice", "nbs/00_dice.html#name-Dice"' in (folder / "search.js").read_text()


def test_code_in_the_guides_has_colours_and_the_sites_own_steps_are_the_only_ones():
    assert '<span class="nb">print</span>' in site.markdown("```python\nprint(1 < 2)\n```") and "language-" not in site.markdown("```sh\nls '<x>'\n```")
    cell = lambda text: {"cell_type": "markdown", "source": text, "metadata": {"tags": ["navigation"]}}
    assert site.cell_html(cell("Used by [a](a.ipynb).\n\n[Contents](c.ipynb) | [b →](b.ipynb)")) == '<p>Used by <a href="a.ipynb">a</a>.</p>\n'
    assert site.cell_html(cell("[Contents](c.ipynb) | [b →](b.ipynb)")) == ""


def test_a_widget_is_named_and_its_code_is_not_shown():
    data = {"text/plain": "VBox(children=())", "application/vnd.jupyter.widget-view+json": {}}
    shown = site.output({"output_type": "display_data", "data": data})
    assert "A widget" in shown and "VBox" not in shown


def test_words_may_be_newer_than_outputs(tmp_path):
    "What was executed is not executed again for a corrected sentence, and the page has the sentence."
    root = small_project(tmp_path, "# Hello")
    (root / "facelab").symlink_to(ROOT / "facelab")
    source = Path("nbs/00_dice.ipynb")
    first = site.executed(root, source)
    book = json.loads((root / source).read_text())
    book["cells"][0]["source"] = "# Dice, corrected"
    (root / source).write_text(json.dumps(book))
    stamp = (root / "build" / "site" / "executed" / "00_dice.ipynb").stat().st_mtime_ns
    again = site.executed(root, source)
    assert again["cells"][0]["source"] == "# Dice, corrected" and [c.get("outputs") for c in again["cells"]] == [c.get("outputs") for c in first["cells"]]
    assert "True" in json.dumps(again["cells"][2]["outputs"]) and (root / "build" / "site" / "executed" / "00_dice.ipynb").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("text, told", [("# Hello\n[gone](nbs/gone.ipynb)", "links to nbs/gone.ipynb, which does not exist"), ("# Hello\n[there](#nowhere)", "which is not there")])
def test_a_dead_link_stops_the_site(tmp_path, monkeypatch, text, told):
    monkeypatch.setattr(site, "executed", lambda root, source: json.loads((root / source).read_text()))
    with pytest.raises(FacelabError, match=told):
        site.build(small_project(tmp_path, text), progress=False)


def test_every_equation_of_the_notebooks_becomes_mathml():
    "Every page but its outputs, and every link in it."
    from facelab.pipeline.site import cell_html

    seen = 0
    for path in sorted((ROOT / "nbs").glob("**/*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                shown = cell_html({**cell, "outputs": []})
                seen += shown.count("<math")
                left = re.findall(r"\\[a-zA-Z]+", re.sub(r"<(code|pre).*?</\1>", "", shown, flags=re.S))
                assert not left, f"{path.name}: {left[:5]}"
    print(f"{seen} equations")
    assert seen > 300
