"""A list of recipes on a bare machine: everything once, in order, in time, with the pipeline's bytes."""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ENV, ROOT, SMALL_RUN, copy_project, packed, run, shrink

from facelab import FacelabError
from facelab.training.checkpoints import open_state
from facelab.evaluation.restore import Restoration, update_restored
from facelab.faces.sets import FaceSet
from facelab.fleet.grid import effective_params, make_recipe, open_grid
from facelab.fleet.runner import claim_recipes, main, make_all
from facelab.evaluation.inputs import write_inputs
from facelab.evaluation.judges import Judges
from facelab.evaluation.metrics import write_scores
from facelab.training.recipes import resolve
from facelab.evaluation.scores import score_faces
from facelab.training.loop import train

ROWS = [
    "bicubic",
    "srresnet",
    "prior_guided_gan",
]  # a row without training, a plain one, and one that needs the features network
BARE = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions

there = {"torch", "functorch", "torchgen", "safetensors", "numpy", "PIL", "yaml", "_yaml", "tqdm"}
there |= {"lightning_fabric", "facelab"}
there |= {"lightning_utilities", "packaging", "typing_extensions", "fsspec", "sympy", "mpmath"}  # what these need
there |= {"networkx", "jinja2", "markupsafe", "filelock", "setuptools", "_distutils_hack", "triton"}
hidden = set(packages_distributions()) - there

class Bare:
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
from facelab.fleet.runner import main

code = main(sys.argv[1:])
print(f"hidden: {len(hidden)} packages, loaded: {sorted(hidden & sys.modules.keys())}")
sys.exit(code)
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    "A face set, packed in the two ways, and small parameters."
    return packed(tmp_path_factory.mktemp("pack"), 6, 6, SMALL_RUN)


def command(pack, out, *more, faces="faces.safetensors", recipes=ROWS):
    return [
        "--faces",
        str(pack / faces),
        "--out",
        str(out),
        "--params",
        str(pack / "small.yaml"),
        "--recipes",
        *recipes,
        *more,
    ]


def start(*args, program=(sys.executable, "-m", "facelab.fleet.runner"), cwd=ROOT, **env):
    return subprocess.Popen(
        [*program, *args],
        cwd=cwd,
        env={**ENV, "PYTHONPATH": str(cwd), **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(process):
    "Exit status, names of the recipes that this process made, and what it said."
    said = process.communicate()[0]
    return process.returncode, re.findall(r"^(\w+): finished in", said, re.M), said


def results(out, *folders):
    return {
        str(p.relative_to(out)): p.read_bytes()
        for folder in folders or ("models", "history", "scores", "inputs")
        for p in sorted((out / folder).rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def bare(pack, tmp_path_factory):
    "What one command makes on a machine that has nothing but what it must have, and not even git."
    out = tmp_path_factory.mktemp("bare")
    return out, *finished(start(*command(pack, out), program=(sys.executable, "-c", BARE), PATH="/nowhere"))


def test_one_command_on_a_bare_machine(bare):
    out, code, made, said = bare
    assert code == 0, said[-3000:]
    assert made == ["bicubic", "srresnet", "features", "prior_guided_gan"] and "4 of 4 recipes are finished" in said
    hidden = int(re.search(r"hidden: (\d+) packages, loaded: \[\]", said)[1])
    assert hidden > 100
    there = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert {
        "models/features/generator.safetensors",
        "models/prior_guided_sr/prior_guided_gan/discriminator.safetensors",
        "history/srresnet.csv",
        "runs/srresnet.json",
        "scores/prior_guided_sr/prior_guided_x8_aliased/bicubic.csv",
        "inputs/prior_guided_x8_aliased/manifest.json",
    } <= there
    assert not list((out / "restored").rglob("srresnet"))
    print(f"{len(made)} recipes made, {len(there)} files, without {hidden} packages that are installed here")


def test_it_makes_what_the_pipelines_functions_make(bare, pack, tmp_path):
    out, params = bare[0], effective_params(ROOT, path=pack / "small.yaml")
    faces = FaceSet.load(pack / "faces.safetensors")
    recipe = resolve("srresnet", open_grid(pack / "faces.safetensors", tmp_path, params, ROOT).recipes, params)
    train(
        recipe, faces, tmp_path / "models/prior_guided_sr/srresnet", tmp_path / "history/srresnet.csv", progress=False
    )
    write_inputs(tmp_path / "inputs" / recipe["inputs"], faces.subset("test"), recipe["degradation"], params["seed"])
    torch.set_num_threads(1)
    what = Restoration("srresnet", "srresnet", "prior_guided_x8_aliased")
    test = faces.subset("test")
    batch = params["evaluate"]["batch"]
    update_restored(
        what,
        tmp_path / "models/prior_guided_sr/srresnet",
        tmp_path / "inputs",
        test.names,
        tmp_path / "restored",
        batch=batch,
    )
    judges = Judges(
        tmp_path / "helpers", tmp_path / "models" / "features"
    )  # srresnet was scored before there was a features network
    write_scores(
        tmp_path / "scores/prior_guided_sr/prior_guided_x8_aliased/srresnet.csv",
        score_faces(what, test, tmp_path / "inputs", tmp_path / "restored", judges, batch=batch),
    )
    here, there = results(tmp_path), results(out)
    assert len(here) == 13 and all(there[name] == data for name, data in here.items())
    print(f"{len(here)} files with the same bytes")


def test_what_is_finished_is_left_alone_and_what_changed_is_not(bare, pack, tmp_path):
    out, params = tmp_path / "out", effective_params(ROOT, path=pack / "small.yaml")
    shutil.copytree(bare[0], out)
    grid = open_grid(pack / "faces.safetensors", out, params, ROOT)
    assert list(claim_recipes(grid, ROWS, {})) == []
    grid.recipes["srresnet"]["label"] = grid.recipes["prior_guided_gan"]["label"] = "another name in a table"
    assert list(claim_recipes(grid, ROWS, {})) == []
    params["train"]["ema"] = 0.5
    changed = open_grid(pack / "faces.safetensors", out, params, ROOT)
    assert [name for name in ROWS if not changed.is_done(name)] == ROWS
    (out / "models/features/generator.safetensors").write_bytes(b"other weights")
    assert [name for name in ROWS if not grid.is_done(name)] == ["prior_guided_gan"]
    assert make_all(grid, ["bicubic"]) == ({}, [])


def test_killed_and_stopped_it_ends_with_the_same_bytes(bare, pack, tmp_path):
    """SIGKILL in the middle of a recipe, then a second of time for the list, then in peace."""
    out, state = tmp_path / "out", tmp_path / "out/state/prior_guided_gan.safetensors"
    killed = start(*command(pack, out))
    while killed.poll() is None and not state.exists():
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    before = finished(killed)[1]
    at = open_state(state)[0]["step"]
    kept = {name: (out / name).stat().st_mtime_ns for name in results(out)}
    code, none, said = finished(start(*command(pack, out, "--seconds", "0.1")))
    assert code == 2 and none == [] and "3 of 4 recipes are finished; to go on with: prior_guided_gan" in said, said
    grid = open_grid(pack / "faces.safetensors", out, effective_params(ROOT, path=pack / "small.yaml"), ROOT)
    assert (
        not make_recipe(grid, "prior_guided_gan", deadline=time.monotonic()) and open_state(state)[0]["step"] == at + 2
    )  # one window of steps
    code, after, said = finished(start(*command(pack, out)))
    assert code == 0 and before == ["bicubic", "srresnet", "features"] and after == ["prior_guided_gan"], said
    assert kept.items() <= {name: (out / name).stat().st_mtime_ns for name in results(out)}.items()
    assert results(out) == results(bare[0])
    print(
        f"killed at step {at} of 12, stopped at {at + 2}: {len(before) + len(after)} recipes made in all, {len(kept)}"
        f" files kept, {len(results(out))} files with the same bytes"
    )


def test_processes_side_by_side_share_the_list(bare, pack, tmp_path):
    two = [start(*command(pack, tmp_path)) for _ in range(2)]
    (one, a, said), (other, b, more) = map(finished, two)
    assert one == other == 0, said + more
    assert sorted(a + b) == sorted([*ROWS, "features"]) and a and b
    assert results(tmp_path) == results(bare[0])
    print(f"made by one {a}, by the other {b}: nothing twice")


def test_the_pipeline_adopts_what_came_home(tmp_path):
    """Copied over build/ and committed to DVC, nothing is trained again, and evaluation finds its restored faces."""
    project = shrink(copy_project(tmp_path / "project"))
    assert run("dvc repro -q faces", project).returncode == 0
    code, made, said = finished(
        start("--faces", "build/faces", "--out", "home", "--recipes", "features", "srresnet", "--restored", cwd=project)
    )
    assert code == 0 and made == ["features", "srresnet"], said[-3000:]
    done = run(
        "cp -r home/models home/history home/restored home/scores build/ && dvc commit -q -f features train@srresnet &&"
        " dvc repro --dry features train@srresnet",
        project,
    )
    assert (
        done.returncode == 0
        and "Stage 'train@srresnet' didn't change" in done.stdout
        and "Running stage" not in done.stdout
    ), done.stdout
    source = json.loads((project / "build/sources/restore@prior_guided_sr.json").read_text())
    about = json.loads(
        (project / "build/restored/prior_guided_sr/prior_guided_x8_aliased/srresnet/made_from.json").read_text()
    )
    assert about["code"] == source["modules"]


def test_torchrun_trains_each_recipe_on_all_processes(pack, tmp_path):
    program = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "facelab.fleet.runner",
    )
    code, made, said = finished(start(*command(pack, tmp_path, recipes=["bicubic", "srresnet"]), program=program))
    assert code == 0 and made == ["bicubic", "srresnet"], said[-3000:]
    assert json.loads((tmp_path / "runs/srresnet.json").read_text())["processes"] == 2
    assert len((tmp_path / "scores/prior_guided_sr/prior_guided_x8_aliased/srresnet.csv").read_text().splitlines()) == 7


def test_a_recipe_that_cannot_be_made_does_not_stop_the_others(pack, tmp_path, capsys):
    """No parsing: the features network cannot learn, nor can what is made of it; the plain network can."""
    whole = FaceSet.load(pack / "faces.safetensors")
    FaceSet("bare", whole.images, whole.names, whole.split).save(tmp_path / "faces.safetensors")
    grid = open_grid(tmp_path, tmp_path / "out", effective_params(ROOT, path=pack / "small.yaml"), ROOT)
    failed, left = make_all(grid, ["prior_guided_gan", "srresnet"])
    assert (
        left == []
        and failed["prior_guided_gan"].startswith("prior_guided_gan needs parsing, which set bare lacks")
        and "set data.parsing to predicted" in failed["prior_guided_gan"]
    )
    assert grid.is_done("srresnet") and set(failed) == {"prior_guided_gan"}


def test_shards_give_what_a_file_gives(pack, tmp_path):
    """The test faces are the same; training takes them in another order."""
    code, made, said = finished(start(*command(pack, tmp_path, "--restored", faces="shards", recipes=["bicubic"])))
    assert code == 0 and made == ["bicubic"], said
    assert len(list((tmp_path / "restored/prior_guided_sr/prior_guided_x8_aliased/bicubic").glob("*.png"))) == 6
    again = open_grid(pack / "shards", tmp_path, effective_params(ROOT, path=pack / "small.yaml"), ROOT, restored=True)
    assert again.is_done("bicubic") and len(again.faces_sha256) == 16


def test_every_recipe_comes_after_what_it_needs(pack, tmp_path):
    grid = open_grid(pack / "faces.safetensors", tmp_path, effective_params(ROOT), ROOT)
    order = grid.order([name for name, r in grid.recipes.items() if r["kind"] == "recipes"])
    needs = [(name, needed) for name in order for needed in grid.needs(name)]
    assert (
        len(order) == len(set(order))
        and needs
        and all(order.index(needed) < order.index(name) for name, needed in needs)
    )
    print(f"{len(order)} recipes, {len(needs)} needs, all met in order")


@pytest.mark.parametrize(
    "args, said",
    [
        (["--recipes", "srresnett"], "unknown recipe 'srresnett': did you mean 'srresnet'?"),
        (["--papers", "prior_guided"], "unknown paper 'prior_guided': did you mean 'prior_guided_sr'?"),
        (["--faces", "nowhere"], "nowhere has no index.json: there is no such folder"),
        (["--profile", "reel"], "reel.yaml does not exist"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(pack, tmp_path, capsys, args, said):
    given = {"--faces": [str(pack / "faces.safetensors")], "--out": [str(tmp_path / "out")], args[0]: args[1:]}
    assert main([word for flag, values in given.items() for word in (flag, *values)]) == 1
    assert said in (text := capsys.readouterr().err) and text.startswith("facelab: ") and text.count("\n") == 1


@pytest.mark.parametrize(
    "text, said",
    [
        ("train: {lr: 1e-3}", "train: lr must be a number or null, not '1e-3': write 0.001 for 1e-3"),
        ("train: {step: 3}", "unknown parameter 'step'.* did you mean 'steps'"),
        ("instead: {srresnet: {steps: many}}", "instead: srresnet: steps must be a whole number or null, not 'many'"),
    ],
)
def test_wrong_parameters_are_told(tmp_path, text, said):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(FacelabError, match=said):
        effective_params(ROOT, path=tmp_path / "own.yaml")


def test_without_lightning_fabric_it_says_so(pack, tmp_path, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lightning_fabric" else found(name, *more)
    )
    assert main(command(pack, tmp_path)) == 1
    assert "lightning_fabric, which places networks on devices, is missing" in capsys.readouterr().err
