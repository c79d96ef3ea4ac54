"""The pipeline as a reader runs it, very small: to the end, again, after a change, killed, and on broken input."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from conftest import ENV, EVALUATED, SAMPLES, SHORTENED, copy_project, run, shrink

from facelab.training.recipes import load_degradations

STAGES = [
    "sources",
    "draw",
    "faces",
    "synthesize",
    "samples",
    "features@features",
    *(
        f"helper@{p}"
        for p in (
            "jdsr_gan_cbdnet_x8",
            "jdsr_gan_drn_x8",
            "lightcnn9_rgb",
            "inception_resnet_v1",
            "parser",
            "landmarker",
        )
    ),
    *(f"train@{r}" for r in ("bicubic", "srresnet", "prior_guided_sr", "prior_guided_gan", "cbd_drn_x8")),
    "claims",
    *(f"{s}@{p}" for s in ("restore", "score", "tables", "figures", "architecture") for p in EVALUATED),
]

KILLED = "train@srresnet"  # what the killed run makes


def repro(project, *targets):
    "`dvc repro`, and the stages that it ran."
    done = run(["dvc", "repro", *targets], project)
    return done, re.findall(r"Running stage '([^']+)'", done.stdout)


def edit(path, old, new):
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


def results(project):
    "Every table, score, figure and weight, byte for byte."
    return {
        str(p.relative_to(project)): p.read_bytes()
        for folder in (
            "tables",
            "scores",
            "figures",
            "claims",
            "samples",
            "architecture",
            "models",
            "history",
            "restored",
            "inputs",
        )
        for p in sorted((project / "build" / folder).rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory, warm_stages):
    """Two fresh runs side by side: an undisturbed one, and one of a recipe that is killed and started again.

    The stages of the first begin warm, those of the second by themselves."""
    cold = {k: v for k, v in ENV.items() if k != "FACELAB_WARM"}
    peace, killed = (shrink(copy_project(tmp_path_factory.mktemp(name) / "project")) for name in ("peace", "killed"))
    first = subprocess.Popen(
        ["dvc", "repro"], cwd=peace, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    second = subprocess.Popen(
        ["dvc", "repro", KILLED],
        cwd=killed,
        env=cold,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    state, limit = killed / "build" / "state" / "srresnet.safetensors", time.monotonic() + 300
    while second.poll() is None and not state.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    was_running = second.poll() is None
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
    time.sleep(2)  # a kernel whose parent died ends by itself
    again = run(["dvc", "repro", KILLED], killed, FACELAB_WARM="")
    output = first.communicate()[0]
    return dict(peace=peace, killed=killed, first=(first.returncode, output), again=again, was_running=was_running)


def test_one_command_makes_every_table_and_figure(pair):
    code, output = pair["first"]
    assert code == 0, output[-3000:]
    assert sorted(re.findall(r"Running stage '([^']+)'", output)) == sorted(STAGES)
    made = results(pair["peace"])
    for name in (
        "tables/prior_guided_sr/table_4_1.csv",
        "tables/prior_guided_sr/table_4_1.md",
        "tables/prior_guided_sr/table_4_1.tex",
        *(f"figures/prior_guided_sr/figure_4_{k}.{kind}" for k in range(1, 5) for kind in ("png", "pdf")),
        *(f"architecture/prior_guided_sr/figure_3_{k}.png" for k in (1, 2, 3, 5, 6, 7, 8, 9)),
        "architecture/prior_guided_sr/table_3_4.md",
    ):
        assert f"build/{name}" in made
    table = made["build/tables/prior_guided_sr/table_4_1.md"].decode()
    for name in (
        "tables/jdsr_gan/unseen.csv",
        "figures/jdsr_gan/figure_8.png",
        "scores/prior_guided_sr/judges.json",
        "scores/jdsr_gan/sets.csv",
        "claims/claims.md",
        "claims/claims.csv",
    ):
        assert f"build/{name}" in made
    scores = made["build/scores/prior_guided_sr/prior_guided_x8_aliased/srresnet.csv"].decode().splitlines()
    assert (
        scores[0].split(",")[:2] == ["system", "image"]
        and len(scores) == 7
        and {"identity", "nearest_l1", "landmark_error", "parsing_error"} <= set(scores[0].split(","))
    )
    assert "profile `demo`" in table and "24.66" in table and "RGB" in table and "LPIPS" in table


def test_killed_and_run_again_gives_the_same_bytes(pair):
    assert pair["was_running"], "the pipeline ended before it could be killed"
    assert pair["again"].returncode == 0, pair["again"].stdout[-3000:]
    a, b = results(pair["peace"]), results(pair["killed"])
    assert b.keys() <= a.keys() and len(b) > 5 and len(a) > 100
    assert {f"build/models/prior_guided_sr/srresnet/{name}.safetensors" for name in ("generator", "best")} | {
        "build/history/srresnet.csv"
    } <= b.keys()
    assert [name for name in b if a[name] != b[name]] == []


def test_inputs_go_on_where_they_were_killed(pair):
    """Stopped between two chains: what is made stays, the rest follows, and all is as in the undisturbed run."""
    folder = pair["killed"] / "build" / "inputs"
    shutil.rmtree(folder, ignore_errors=True)
    command = ["python", "-m", "facelab.pipeline", "run", "synthesize"]
    stopped = subprocess.Popen(
        command,
        cwd=pair["killed"],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    limit = time.monotonic() + 120
    while not (folder / "made.json").exists() and stopped.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(stopped.pid, signal.SIGKILL)
    stopped.wait()
    time.sleep(2)
    made = json.loads((folder / "made.json").read_text())["chains"]
    before = {name: (folder / name / "manifest.json").stat().st_mtime_ns for name in made}
    done = run(command, pair["killed"])
    assert done.returncode == 0, done.stdout
    assert len(before) < len(load_degradations(pair["killed"])) and all(
        (folder / name / "manifest.json").stat().st_mtime_ns == t for name, t in before.items()
    )
    files = {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    peace = pair["peace"] / "build" / "inputs"
    assert files == {p.relative_to(peace): p.read_bytes() for p in sorted(peace.rglob("*")) if p.is_file()}
    assert len(files) > 50


def test_a_second_run_runs_nothing(pair):
    done, ran = repro(pair["peace"])
    assert done.returncode == 0 and ran == []


def test_the_tree_stays_clean(pair):
    """Only what was made tiny for this test differs; what the pipeline writes is ignored or is dvc.lock."""
    lines = run("git status --porcelain", pair["peace"]).stdout.split("\n")
    assert set(filter(None, lines)) == {
        *(
            f" M {name}"
            for name in (
                "params.yaml",
                "recipes/degradations.yaml",
                *(f"recipes/{name}.yaml" for name in SHORTENED),
                *(f"papers/{p}.yaml" for p in (*SAMPLES, "combined", "claims")),
                *(f"{folder}/prior_guided_sr.yaml" for folder in ("papers", "recipes")),
            )
        ),
        "?? dvc.lock",
    }


def test_a_plotting_cell_reruns_only_the_figures(pair):
    edit(pair["peace"] / "nbs" / "pipeline" / "figures.ipynb", "display(Markdown(f", "plot = 1; display(Markdown(f")
    done, ran = repro(pair["peace"])
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(ran) == {"sources", *(f"figures@{p}" for p in EVALUATED)}


def test_prose_and_outputs_rerun_nothing(pair):
    edit(pair["peace"] / "nbs" / "pipeline" / "train.ipynb", "Train one recipe", "Train a recipe")
    done, ran = repro(pair["peace"])
    assert done.returncode == 0 and ran == ["sources"]


def test_one_recipe_reruns_only_its_own_stages(pair):
    before = {
        name: (
            pair["peace"]
            / "build"
            / "restored"
            / "prior_guided_sr"
            / "prior_guided_x8_aliased"
            / name
            / "made_from.json"
        )
        .stat()
        .st_mtime_ns
        for name in ("bicubic", "srresnet", "prior_guided_sr")
    }
    edit(
        pair["peace"] / "recipes" / "prior_guided_sr.yaml",
        "fine: {use: losses.pixel.mse, of: restored, to: target}\n",
        "fine: {use: losses.pixel.l1, of: restored, to: target}\n",
    )
    done, ran = repro(pair["peace"])
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(ran) == {
        "sources",
        "train@srresnet",
        *(f"{s}@prior_guided_sr" for s in ("restore", "score", "tables", "figures")),
        "claims",
    }
    assert {
        name: (
            pair["peace"]
            / "build"
            / "restored"
            / "prior_guided_sr"
            / "prior_guided_x8_aliased"
            / name
            / "made_from.json"
        )
        .stat()
        .st_mtime_ns
        == t
        for name, t in before.items()
    } == {name: name != "srresnet" for name in before}  # the other systems were not restored again


def broken(pair, tmp_path):
    "A copy of the finished project, to break."
    return shutil.copytree(pair["killed"], tmp_path / "project", symlinks=True)


def test_real_faces_that_are_missing_or_broken_get_one_sentence_and_leave_nothing(pair, tmp_path):
    project, faces = broken(pair, tmp_path), tmp_path / "faces"
    edit(project / "params.yaml", "source: drawn", "source: real")
    done = run(["python", "-m", "facelab.pipeline", "check"], project)
    assert done.returncode == 1 and "make faces FROM=" in done.stdout and "Traceback" not in done.stdout, done.stdout
    done, ran = repro(project)
    assert done.returncode != 0 and ran == [] and "data/real" in done.stdout, done.stdout
    faces.mkdir()
    (faces / "a.jpg").write_bytes(b"no image")
    brought = run(f"dvc remote modify --local faces url {faces} && dvc update data.dvc", project)
    assert brought.returncode == 0, brought.stdout
    shutil.rmtree(project / "build" / "faces")
    done, ran = repro(project)
    assert ran[-1] == "faces" and done.returncode != 0
    assert "facelab: " in done.stdout and "a.jpg" in done.stdout and "Traceback" not in done.stdout, done.stdout
    assert not list((project / "build").glob("faces/*"))


def test_an_unknown_recipe_gets_one_sentence(pair):
    done = run(["python", "-m", "facelab.pipeline", "run", "train", "srresnt"], pair["killed"])
    assert (
        done.returncode == 1
        and "unknown recipe 'srresnt': did you mean 'srresnet'?" in done.stdout
        and "Traceback" not in done.stdout
    ), done.stdout
    assert not (pair["killed"] / "build" / "models" / "prior_guided_sr" / "srresnt").exists()


def test_a_failing_notebook_names_the_cell(pair):
    edit(
        pair["killed"] / "nbs" / "pipeline" / "tables.ipynb",
        "params, recipes = load_params(), load_recipes()",
        "params, recipes = 1 / 0, load_recipes()",
    )
    done = run(["python", "-m", "facelab.pipeline", "run", "tables", "prior_guided_sr"], pair["killed"])
    assert done.returncode == 1 and re.search(
        r"facelab: cell \d+ of .*tables@prior_guided_sr.ipynb failed with ZeroDivisionError", done.stdout
    ), done.stdout
