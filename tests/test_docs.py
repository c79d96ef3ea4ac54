"What README and guides tell people to type works, and the site is built without a dead link."

import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import lru_cache

import pytest
from conftest import ENV, ROOT

from facelab import FacelabError
from facelab.apps.commands import parser
from facelab.base.params import read_yaml
from facelab.pipeline import site
from facelab.training.recipes import load_recipes

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.filterwarnings("ignore:.*MystReferenceResolver.app")  # MyST's own
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
    done = subprocess.run(
        [sys.executable, "-c", code], env={**ENV, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr


@lru_cache
def help_of(module):
    "What `python -m MODULE --help` prints."
    words = [sys.executable, "-m", module, "--help"]
    return subprocess.run(words, env=ENV, cwd=ROOT, text=True, capture_output=True, check=True).stdout


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
            assert re.search(rf"(?m)^{name}:.*## " if not value else rf"\$\((value )?{name}\)", makefile), (
                f"the Makefile has no {name}"
            )
    if words[:2] == ["python", "-m"] or words[0] == "torchrun":
        module = words[words.index("-m") + 1]
        options = [word.partition("=")[0] for word in words[words.index("-m") + 2 :] if word.startswith("--")]
        assert [option for option in options if option not in help_of(module)] == []
    if words[0] == "dvc":
        assert words[1] == "repro" and all(
            name.partition("@")[2] in load_recipes(ROOT)
            and name.partition("@")[0] in read_yaml(ROOT / "dvc.yaml")["stages"]
            for name in words[2:]
        )
    if words[0] == "source":
        assert words[1] == ".venv/bin/activate"


def small_project(folder, text):
    "Two pages, one with names of the package and outputs that somebody executed."
    (folder / "nbs").mkdir()
    (folder / "README.md").write_text(text)
    cells = [
        markdown("# Dice\nWhere $x^2$ is."),
        code("#| default_exp base.dice"),
        code("#| hide\nunseen = 1"),
        code("#| export\nprint(1 < 2)", {"output_type": "stream", "name": "stdout", "text": "True"}),
        markdown("## Words of One\n\n[there](#Words-of-One)"),
    ]
    language = {"name": "python", "pygments_lexer": "ipython3"}
    book = {"cells": cells, "metadata": {"language_info": language}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "nbs" / "00_dice.ipynb").write_text(json.dumps(book))
    return folder


def markdown(text, *tags):
    return {"cell_type": "markdown", "source": text, "metadata": {"tags": list(tags)}, "id": f"m{len(text)}"}


def code(text, *outputs):
    kept = {"outputs": list(outputs), "execution_count": 1}
    return {"cell_type": "code", "source": text, "metadata": {}, "id": f"c{len(text)}", **kept}


@pytest.fixture
def as_they_are(monkeypatch):
    "Notebooks are shown with the outputs that they have."
    monkeypatch.setattr(site, "executed", lambda root, source: json.loads((root / source).read_text()))


def test_a_site_has_pages_equations_names_search_and_old_addresses(tmp_path, as_they_are):
    root = small_project(tmp_path, "# Hello\n\nSee [dice](nbs/00_dice.ipynb) and $a<b$, not `$PATH`.\n")
    assert len(site.build(root, progress=False)) == 2
    folder = root / "build" / "site" / "html"
    first, second = (folder / "README.html").read_text(), (folder / "nbs" / "00_dice.html").read_text()
    assert 'href="nbs/00_dice.html"><span class="std std-doc">dice</span></a>' in first
    assert "<math" in first and "$PATH</span>" in first
    assert 'id="facelab.base.dice.Dice"' in second and "<msup>" in second and ">True\n</pre>" in second
    assert "default_exp" not in second and "unseen" not in second
    assert "#words-of-one" in second and 'href="../README.html"' in second
    assert re.search(r'"facelab\.base\.dice":.{,200}"Dice"', (folder / "searchindex.js").read_text())
    assert '"0_base/01_images.html"' in (folder / "nbs" / "00_images.html").read_text()
    assert '"README.html"' in (folder / "index.html").read_text()
    for page in (first, second):
        assert not re.search(r'<(script|link|img)[^>]*(src|href)="(https?:)?//', page), "something comes from elsewhere"


def test_what_is_shown_of_a_notebook():
    cells = [
        code("#| export\nx = 1"),
        code("#|hide\nimport os"),
        {**code("key = 1"), "metadata": {"tags": ["injected-parameters"]}},
        code("page", {"output_type": "display_data", "metadata": {}, "data": {"text/markdown": "[a](b.md) ![c](d)"}}),
        markdown("Used by [a](a.ipynb).\n\n[Contents](c.ipynb) | [b →](b.ipynb)", "navigation"),
    ]
    shown = site.reader_view({"cells": cells})["cells"]
    assert [cell["source"] for cell in shown] == ["x = 1", "page", "Used by [a](a.ipynb)."]
    assert shown[1]["outputs"][0]["data"] == {"text/markdown": "a ![c](d)"}


@pytest.mark.parametrize(
    "link, told",
    [
        ("nbs/gone.ipynb", "README.md links to nbs/gone.ipynb, which is not on the site"),
        ("#nowhere", "README.md links to nowhere, which is not on the site"),
        ("nbs/00_dice.ipynb#Nowhere", "README.md links to Nowhere, which is not on the site"),
        ("nbs/00_images.ipynb", "README.md links to nbs/00_images.ipynb, which is now nbs/0_base/01_images.ipynb"),
    ],
)
def test_a_dead_link_stops_the_site(tmp_path, as_they_are, link, told):
    with pytest.raises(FacelabError, match=f"^{re.escape(told)}$"):
        site.build(small_project(tmp_path, f"# Hello\n[there]({link})"), progress=False)


def test_an_equation_that_would_not_be_read_stops_the_site(tmp_path, as_they_are):
    with pytest.raises(FacelabError, match=r"README.md.*nothing turns .nonsense into MathML"):
        site.build(small_project(tmp_path, "# Hello\n$\\nonsense$"), progress=False)


def test_every_page_is_written_with_its_equations_names_and_links(tmp_path, as_they_are):
    "All but what the cells show."
    for name in ("README.md", "docs", "nbs", "recipes", "results"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    pages = site.build(tmp_path, progress=False)
    texts = [(tmp_path / "build/site/html" / page.source.with_suffix(".html")).read_text() for page in pages]
    assert sum(text.count("<math") for text in texts) > 300
    assert sum(text.count('<dt class="sig sig-object py"') for text in texts) > 300
