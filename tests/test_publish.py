"""What is copied to results/, and what is not; which stages one paper needs; the list of all tables and figures."""

import json

import pytest
from conftest import ROOT, run

from facelab import FacelabError
from facelab.pipeline.schedule import stages_of_paper
from facelab.pipeline.inventory import inventory, main, paths, printed_files
from facelab.base.params import choose_profile, load_params
from facelab.pipeline.publish import publish
from facelab.pipeline.sources import paper_sources
from facelab.training.recipes import load_recipes


def printed_tables(project):
    return [file for file in printed_files(project) if file.parts[0] == "tables"]


@pytest.fixture
def finished(project):
    "A project whose build looks like that of a finished run of the profile `real`."
    choose_profile("real", project)
    build = project / "build"
    for name, text in {
        "tables/jdsr_gan/table_3.csv": "a,b\n",
        "tables/jdsr_gan/table_3.md": "| a |\n",
        "tables/jdsr_gan/table_3.tex": "x",
        "claims/claims.csv": "paper,claim\n",
        "claims/claims.md": "# Claims\n",
        "faces.json": json.dumps(dict(name="celeba", sha256="0123", test=100)),
        "runs/srresnet.json": json.dumps(
            dict(
                recipe={},
                faces_sha256="0123",
                revision="abc",
                python="3.12",
                torch="2.11",
                device="a card",
                processes=1,
                threads=4,
                steps=10,
                seconds=120.0,
                images_per_second=5,
                peak_memory_gib=1.0,
            )
        ),
    }.items():
        (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / name).write_text(text)
    for file in printed_tables(project):
        (build / file).parent.mkdir(parents=True, exist_ok=True)
        (build / file).write_text("| b |\n")
    return project


def publish_as(profile, project):
    choose_profile(profile, project)
    return publish(project, "first")


def test_numbers_are_published_with_their_provenance(finished):
    out = publish(finished, "first")
    there = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert there == {"claims.csv", "claims.md", "run.json", "tables/jdsr_gan/table_3.csv"} | set(
        map(str, printed_tables(finished))
    )
    said = json.loads((out / "run.json").read_text())
    assert (
        said["profile"],
        said["faces"],
        said["device"],
        said["training_minutes"],
        said["params"]["train"]["width"],
    ) == ("real", "celeba", "a card", 2.0, 1)


def test_tables_of_a_demo_depend_on_what_is_published_of_their_paper(finished):
    def about(profile):
        choose_profile(profile, finished)
        sources = dict(paper_sources(finished, load_recipes(finished), load_params(finished)))
        return {name: source["about"] for name, source in sources.items()}

    before = about("demo")
    publish_as("real", finished)
    demo, real = about("demo"), about("real")
    files = {"first/run.json", "first/tables/jdsr_gan/table_3.csv"}
    assert set(demo["tables@jdsr_gan"].pop("published")) == files
    assert set(demo["tables@fcsr_gan"]["published"]) == {"first/run.json"}
    assert demo["tables@jdsr_gan"] == before["tables@jdsr_gan"]
    assert demo["figures@jdsr_gan"] == before["figures@jdsr_gan"] and "published" not in real["tables@jdsr_gan"]


def test_a_demo_is_not_published(project):
    with pytest.raises(FacelabError, match="profile 'demo', whose numbers are no results"):
        publish(project, "demo")
    done = run("python -m facelab.pipeline publish demo", project)
    assert done.returncode == 1 and "Traceback" not in done.stdout and not (project / "results" / "demo").exists()


def test_half_a_run_is_not_published(finished):
    (finished / "build" / "claims" / "claims.csv").unlink()
    with pytest.raises(FacelabError, match="claims.csv is missing: finish the run"):
        publish(finished, "half")
    (finished / "build" / "claims" / "claims.csv").write_text("paper,claim\n")
    (finished / "build" / "tables" / "heavy_rain" / "table_1.md").unlink()
    with pytest.raises(FacelabError, match="heavy_rain/table_1.md is missing: finish the run"):
        publish(finished, "half")
    assert [p.name for p in (finished / "results").iterdir()] == ["README.md"]


@pytest.mark.parametrize("what, other", [("revision", "def"), ("faces_sha256", "4567")])
def test_a_mixed_run_is_not_published(finished, what, other):
    runs = finished / "build" / "runs"
    said = json.loads((runs / "srresnet.json").read_text())
    (runs / "vdsr.json").write_text(json.dumps(said | {"recipe": {"size": 256}, "faces_sha256": "89ab"}))
    publish(finished, "first")  # faces of another size are other faces
    (runs / "drn.json").write_text(json.dumps(said | {what: other}))
    with pytest.raises(
        FacelabError, match=f"the run is mixed: drn was trained with .* {other}, srresnet with {said[what]}"
    ):
        publish(finished, "mixed")
    assert not (finished / "results" / "mixed").exists()


STAGES = {
    "tables@a": ["score@a"],
    "score@a": ["train@x"],
    "train@x": [],
    "tables@b": ["train@y"],
    "train@y": [],
    "figures@a": ["score@a"],
}


def test_one_paper_needs_its_own_stages_only():
    assert set(stages_of_paper(STAGES, "a", ["a", "b"])) == {"tables@a", "figures@a", "score@a", "train@x"}
    assert set(stages_of_paper(STAGES, "b", ["a", "b"])) == {"tables@b", "train@y"}
    with pytest.raises(FacelabError, match="there is no paper 'c'"):
        stages_of_paper(STAGES, "c", ["a", "b"])


def test_the_list_says_what_is_there_and_what_is_missing(tmp_path, capsys):
    (tmp_path / "papers").symlink_to(ROOT / "papers")
    found = inventory(tmp_path)
    whole = sum(len(items) for items in found.values())
    assert main(tmp_path) == whole
    for path in paths("jdsr_gan", found["jdsr_gan"]["Table 3"]):
        (tmp_path / "build" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "build" / path).write_text("")
    assert main(tmp_path) == whole - 1
    assert "Table 3" in capsys.readouterr().out
