"""The repository itself: notebooks exported and clean, no large or foreign files, the documents true."""

import configparser
import json
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from conftest import ROOT, copy_project, run

import facelab
from facelab.pipeline.outputs import bytes_of

TRACKED = [
    p
    for p in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True
    ).stdout.split("\n")
    if p and (ROOT / p).is_file()
]
NOTEBOOKS = [p for p in TRACKED if p.endswith(".ipynb")]


def test_export_and_clean_change_nothing(tmp_path):
    project = copy_project(tmp_path / "project")
    for command in ("nbdev_export", "nbdev_clean"):
        done = run(command, project)
        assert done.returncode == 0, done.stdout
        assert run("git status --porcelain", project).stdout == "", command


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebooks_are_small_and_without_runs_metadata(path):
    nb = json.loads((ROOT / path).read_text())
    shows = bytes_of(json.loads((ROOT / path).read_text("utf-8"))) if path.endswith(".ipynb") else 0
    assert (ROOT / path).stat().st_size - shows <= 200_000  # tests/test_outputs.py has the limits of what is shown
    assert "papermill" not in nb["metadata"] and not any("papermill" in c["metadata"] for c in nb["cells"])
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", c["id"]) for c in nb["cells"])


@pytest.mark.parametrize("name", ["train", "restore", "score", "tables", "figures", "architecture"])
def test_the_pipelines_notebooks_take_their_item(name):
    """Without the tag papermill only warns, and the notebook runs for its default item."""
    cells = json.loads((ROOT / "nbs" / "pipeline" / f"{name}.ipynb").read_text())["cells"]
    assert ["item = " in "".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])] == [True]


def test_no_large_files_and_no_machine_paths():
    assert [
        p for p in TRACKED if (ROOT / p).stat().st_size > (8_000_000 if p.startswith("facelab/weights/") else 1_000_000)
    ] == []
    texts = {
        p: (ROOT / p).read_text(errors="ignore")
        for p in TRACKED
        if p.rsplit(".")[-1] in ("py", "ipynb", "md", "yaml", "ini", "toml", "txt", "cff", "dvc")
    }
    words = [chr(47) + w + chr(47) for w in ("work", "farm", "root", "home")]
    assert [(p, w) for p, text in texts.items() for w in words if w in text] == []


def test_every_target_that_readme_and_contributing_name_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        name
        for page in ("README.md", "CONTRIBUTING.md")
        for name in re.findall(r"(?m)(?:^|`)make ([a-z]+)", (ROOT / page).read_text())
    }
    assert {"repro", "test"} <= named <= targets
    listed = run("make help", ROOT).stdout
    assert all(f"make {name}" in listed for name in named)


def test_every_file_that_the_readme_names_exists():
    names = re.findall(
        r"`((?:nbs|recipes|profiles|papers)/[^`*]*)`|\]\(([^)h][^)]*)\)", (ROOT / "README.md").read_text()
    )
    for name in filter(None, (a or b for a, b in names)):
        assert list(ROOT.glob(name + "*")), name


def test_there_is_one_version():
    "settings.ini has it, and nbdev_export copies it into the package, where pyproject.toml reads it."
    version = configparser.ConfigParser(delimiters="=")
    version.read(ROOT / "settings.ini")
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert (
        version["DEFAULT"]["version"]
        == facelab.__version__
        == str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"])
    )
    assert "version" not in about["project"] and about["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "facelab.__version__"
    }


def test_the_changelog_is_one():
    "Keep a Changelog: versions in falling order under an Unreleased that is always there, and known kinds of changes."
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *released = re.findall(r"(?m)^## (.*)", text)
    assert first == "[Unreleased]" and all(
        re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", head) for head in released
    )
    numbers = [[int(n) for n in head[1 : head.index("]")].split(".")] for head in released]
    assert numbers == sorted(numbers, reverse=True)
    assert set(re.findall(r"(?m)^### (.*)", text)) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_workflows_are_what_github_reads():
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        flow = yaml.safe_load(path.read_text())
        assert set(flow) == {"name", True, "permissions", "concurrency", "jobs"} and flow["permissions"] == {
            "contents": "read"
        }, path  # YAML reads `on` as true
        assert flow["concurrency"]["cancel-in-progress"] is True
        steps = [step for job in flow["jobs"].values() for step in job["steps"]]
        assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step), path
        assert all(
            re.search(rf"(?m)^{target}:.*## ", (ROOT / "Makefile").read_text())
            for step in steps
            for target in re.findall(r"make ([a-z]+)", step.get("run", ""))
        )
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert path.stem == "config" or (
            form["name"] and form["description"] and all({"type", "attributes"} <= set(part) for part in form["body"])
        ), path


def test_the_hook_stops_what_is_not_exported(project):
    "And lets a commit through that is."
    shutil.copytree(ROOT / ".githooks", project / ".githooks", dirs_exist_ok=True)
    run(
        "nbdev_export && git add -A && git commit -qm start; git config core.hooksPath .githooks && echo >> README.md",
        project,
    )
    assert run("git commit -qam fine", project).returncode == 0
    notebook = project / "nbs" / "0_base" / "02_dice.ipynb"
    notebook.write_text(
        notebook.read_text().replace("GOLDEN = np.uint64(0x9E3779B97F4A7C15)", "GOLDEN = np.uint64(0x9E3779B97F4A7C17)")
    )
    done = run("git commit -qam unfinished", project)
    assert done.returncode == 1 and "git add and commit again" in done.stdout, done.stdout
    assert (
        run("git commit -qam exported", project).returncode == 0
        and "7C17" in run("git show HEAD:facelab/base/dice.py", project).stdout
    )


def test_real_faces_are_a_frozen_import():
    data = yaml.safe_load((ROOT / "data.dvc").read_text())
    assert data["frozen"] is True and data["outs"][0]["path"] == "data/real"


def test_the_five_papers_are_cited():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert len(cited["references"]) == 5 and {r["year"] for r in cited["references"]} == {2020, 2021, 2022, 2023}


def test_what_is_printed_is_what_the_thesis_prints():
    rows = yaml.safe_load((ROOT / "papers" / "prior_guided_sr.yaml").read_text())["tables"]["table_4_1"]["rows"]
    assert {name: list(row.values()) for name, row in rows.items()} == {
        "bicubic": [20.72, 0.52, 0.5351],
        "srresnet": [24.47, 0.7201, 0.1854],
        "prior_guided_sr": [24.66, 0.723, 0.19],
        "prior_guided_gan": [23.38, 0.6689, 0.1018],
    }


def test_the_python_of_the_readme_runs():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S):
        exec(code, names)
    assert names["masked"].input.shape == (4, 3, 32, 32) and names["masked"].maps["mask"].max() == 1
    assert type(names["net"]).__name__ == "FCSRGAN"
