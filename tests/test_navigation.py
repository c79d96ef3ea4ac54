"""The last lines of the notebooks and their contents: up to date, whole, and nothing else is touched."""

import json
import re
import shutil

import pytest
from conftest import ROOT

from facelab import FacelabError
from facelab.pipeline.navigation import TAG, title_and_claim, stale, users, with_navigation, write_navigation
from facelab.pipeline.site import CONTENTS


def cells_of(path):
    return json.loads(path.read_text())["cells"]


def others(cells):
    return [cell for cell in cells if TAG not in cell["metadata"].get("tags", [])]


@pytest.fixture
def project(tmp_path):
    "A copy of the notebooks."
    for name in ("settings.ini", "dvc.yaml", "params.yaml", "recipes", "papers", "facelab", "README.md", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return tmp_path


def test_every_notebook_leads_on():
    assert stale(ROOT) == [], "run `python -m facelab.pipeline navigation`"


def test_only_the_last_cell_is_written_and_only_once(project):
    before = {path: path.read_bytes() for path in (project / "nbs").glob("**/*.ipynb")}
    for path in (project / "nbs" / "7_evaluation" / "03_metrics.ipynb", project / "nbs" / "contents.ipynb"):
        path.write_text(
            json.dumps(
                {**json.loads(path.read_text()), "cells": others(cells_of(path))},
                indent=1,
                sort_keys=True,
                ensure_ascii=False,
            )
            + "\n"
        )
    (project / "nbs" / "3_networks" / "30_cbdnet.ipynb").unlink()  # its neighbours lead past it
    changed = write_navigation(project)
    assert {path.stem for path in changed} == {"03_metrics", "contents", "23_sicnn", "31_pconv"}
    assert stale(project) == [] == write_navigation(project)
    for path, content in before.items():
        if path.relative_to(project) not in changed and path.exists():
            assert path.read_bytes() == content
        elif path.exists() and path.stem != "contents":
            assert others(cells_of(path)) == others(json.loads(content)["cells"]) and cells_of(path)[-1]["id"] == TAG
    assert (
        before[project / "nbs" / "7_evaluation" / "03_metrics.ipynb"]
        == (project / "nbs" / "7_evaluation" / "03_metrics.ipynb").read_bytes()
    )
    assert "30_cbdnet" not in (project / CONTENTS).read_text() and "30_cbdnet" in before[project / CONTENTS].decode()


def test_following_next_reads_every_notebook_once():
    texts, at, seen = with_navigation(ROOT), CONTENTS, []
    links = lambda source: dict(
        re.findall(r"\[([^\]]*)\]\(([^)]*)\)", "".join(json.loads(texts[source])["cells"][-1]["source"]))
    )
    while at:
        seen.append(at)
        step = next((target for text, target in links(at).items() if text.endswith("→")), None)
        at = step and (ROOT / at.parent / step).resolve().relative_to(ROOT)
    notebooks = [
        path.relative_to(ROOT)
        for path in (ROOT / "nbs").glob("**/*.ipynb")
        if not {"pipeline", ".ipynb_checkpoints"} & set(path.parts)
    ]
    assert len(seen) == len(set(seen)) and set(seen) == set(notebooks)
    for source in texts:
        inside = [target for target in links(source).values() if "://" not in target]
        assert all((ROOT / source.parent / target).is_file() for target in inside), source


def test_modules_name_the_papers_that_use_them():
    used = users(ROOT)
    assert used["facelab.networks.hrrm"] == {"heavy_rain"} and used["facelab.degradations.masks"] == {
        "jdsr_gan",
        "combined",
    }
    assert used["facelab.networks.gfc"] == {"fcsr_gan"}  # its system imports it
    line = "".join(
        json.loads(with_navigation(ROOT)[CONTENTS.parent / "3_networks" / "52_hrrm.ipynb"])["cells"][-1]["source"]
    )
    assert line.startswith("Used by [Son and Jeong 2022](../papers/heavy_rain.ipynb).\n\n[← ")


def test_titles_and_claims():
    cells = lambda text: [{"cell_type": "markdown", "source": text}]
    assert title_and_claim("x", cells("# Dice\n\n> Numbers of\n> a seed.\n\nMore.")) == ("Dice", "Numbers of a seed.")
    assert title_and_claim("x", cells("# Dice\n\nOne by `one`: so\nthey come, x4.5 at once. More.")) == (
        "Dice",
        "One by `one`: so they come, x4.5 at once.",
    )
    with pytest.raises(FacelabError, match="x does not say what it is about"):
        title_and_claim("x", cells("## Dice"))


def test_last_lines_lead_to_the_site_and_to_binder_by_the_settings(project):
    path = project / "nbs" / "7_evaluation" / "03_metrics.ipynb"
    assert "[on the site](https://example.org/facelab/nbs/7_evaluation/03_metrics.html)" in path.read_text()
    assert "(https://example.org/facelab/README.html)" in (ROOT / "README.md").read_text()
    settings = (ROOT / "settings.ini").read_text().replace("https://example.org", "https://code.example.com")
    (project / "settings.ini").unlink()
    (project / "settings.ini").write_text(settings)
    assert len(write_navigation(project)) > 100
    words = "".join(cells_of(path)[-1]["source"])
    assert "[on the site](https://code.example.com/facelab/nbs/7_evaluation/03_metrics.html)" in words
    binder = "https://mybinder.org/v2/git/https%3A%2F%2Fcode.example.com%2Ffacelab/main"
    assert f"[run it in Binder]({binder}?labpath=nbs/7_evaluation/03_metrics.ipynb)" in words
