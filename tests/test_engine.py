"""The plumbing: parameters, profiles, fingerprints of code, the command line."""

import json
import sys

import pytest
import yaml
from conftest import ROOT, run

from facelab import FacelabError
from facelab.pipeline.schedule import bundle, needed_for
from facelab.base.params import choose_profile, load_params, merge, project_root, read_yaml
from facelab.pipeline.sources import (
    check_project,
    closure,
    digest,
    evaluated_papers,
    imports,
    notebook_code,
    modules_in,
    write_sources,
)
from facelab.training.recipes import load_recipes, resolve

CODE = '"""Module."""\n\ndef f(x):\n    "Doc."\n    return x + 1  # add\n'


@pytest.mark.parametrize(
    "same",
    ["def f(x): return x + 1\n", '"""Other."""\n# comment\n\n\ndef f(x):\n\n    """New doc."""\n    return (x + 1)\n'],
)
def test_fingerprint_ignores_prose_and_layout(same):
    assert digest(same) == digest(CODE)


@pytest.mark.parametrize(
    "other", ["def f(x): return x + 2\n", "def g(x): return x + 1\n", "def f(x, y=0): return x + 1\n"]
)
def test_fingerprint_sees_code(other):
    assert digest(other) != digest(CODE)


def test_notebook_code_ignores_ids_outputs_and_prose(tmp_path):
    def write(name, cell_id, output, prose):
        cells = [
            {"cell_type": "markdown", "id": "m", "metadata": {}, "source": [prose]},
            {
                "cell_type": "code",
                "id": cell_id,
                "metadata": {},
                "execution_count": 3,
                "outputs": output,
                "source": ["x = 1\n", "x"],
            },
        ]
        (tmp_path / name).write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        return notebook_code(tmp_path / name)

    assert (
        write("a", "1", [], "one")
        == write("b", "2", [{"output_type": "stream", "name": "stdout", "text": ["1"]}], "two")
        == "x = 1\nx"
    )


def test_imports_follow_relative_and_inner_ones():
    lines = ["from .. import FacelabError", "from ..base.images import show", "def f():"]
    code = "\n".join([*lines, "    from facelab.networks import srgan", "    import numpy"])
    found = imports(code, "facelab.training.loop")
    assert {"facelab.base.images", "facelab.networks.srgan"} <= found and not any(
        name.startswith("numpy") for name in found
    )


def test_a_module_counts_for_the_stages_that_reach_it():
    seen = closure({"facelab.training.loop"}, ROOT)
    assert {"facelab.training.loop", "facelab.training.recipes", "facelab.base.images", "facelab.faces.parts"} <= set(
        seen
    )
    assert "facelab.publication.tables" not in seen and "facelab.networks.srgan" not in seen


def test_a_recipe_counts_for_the_modules_it_names():
    full = resolve("prior_guided_gan", load_recipes(ROOT), load_params(ROOT))
    assert modules_in(full) == {
        f"facelab.{m}"
        for m in (
            "degradations.resample",
            "systems.prior_guided_sr",
            "networks.srgan",
            "losses.pixel",
            "losses.perceptual",
            "losses.adversarial",
        )
    }


def edit(path, old, new):
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


def changed(project, *edits):
    "Which stages' sources differ after the edits."
    write_sources(project)
    before = {p.stem: p.read_text() for p in (project / "build" / "sources").glob("*.json")}
    for path, old, new in edits:
        edit(project / path, old, new)
    closure.__globals__["module_code"].cache_clear()
    write_sources(project)
    return {p.stem for p in (project / "build" / "sources").glob("*.json") if p.read_text() != before.get(p.stem)}


def test_what_an_edit_reaches(project):
    shown = {f"{stage}@{paper}" for stage in ("tables", "figures") for paper in evaluated_papers(project)} | {"claims"}
    assert changed(project, ("recipes/prior_guided_sr.yaml", "label: SRResNet", "label: SRResNet (BN)")) == shown
    assert changed(project, ("facelab/training/loop.py", "def train(", "# a comment\ndef train(")) == set()
    assert changed(project, ("facelab/networks/srresnet.py", "self.scale = scale", "self.scale = int(scale)")) >= {
        "train@srresnet",
        "restore@prior_guided_sr",
    }
    table = ("facelab/publication/tables.py", "return self.markdown()", "return str(self.markdown())")
    drawn = {f"architecture@{paper}" for paper in evaluated_papers(project) if paper != "combined"}
    assert changed(project, table) == shown | {"samples"} | drawn
    assert changed(
        project,
        (
            "recipes/prior_guided_sr.yaml",
            "scale: 8, width: 64, depth: 16}\n    batch: 16",
            "scale: 8, width: 96, depth: 16}\n    batch: 16",
        ),
    ) == {"train@srresnet", "train@srresnet_antialiased", "restore@prior_guided_sr"}


def test_one_recipe_is_one_recipe(project):
    """Method 2 is like method 1, so a change of method 1 reaches both; nothing else of the paper's trains again."""
    touched = changed(
        project, ("recipes/losses.yaml", "coarse: {use: losses.pixel.mse,", "coarse: {use: losses.pixel.l1,")
    )
    like = ["prior_guided_sr", "prior_guided_gan", "prior_guided_sr_norm"]
    like += ["prior_guided_sr_antialiased", "prior_guided_gan_antialiased"]
    assert touched == {f"train@{name}" for name in like}


@pytest.mark.parametrize("profile", ["real", "paper"])
def test_every_profile_resolves_every_recipe(profile):
    params = merge(load_params(ROOT), read_yaml(ROOT / "profiles" / f"{profile}.yaml"))
    recipes = load_recipes(ROOT)
    full = {name: resolve(name, recipes, params) for name in recipes}
    assert full["srresnet"]["generator"]["width"] == 64 and full["srresnet"]["generator"]["depth"] == 16
    assert full["prior_guided_gan"]["critics"]["discriminator"]["width"] == 64
    assert full["prior_guided_sr"]["optimisers"]["generator"]["use"] == "RMSprop"


def test_a_profile_and_back(project):
    text = (project / "params.yaml").read_text()
    choose_profile("real", project)
    real = load_params(project)
    assert real["profile"] == "real" and real["data"]["source"] == "real" and real["train"]["width"] == 1
    assert "# of each recipe, all its stages together" in (project / "params.yaml").read_text()
    choose_profile("demo", project)
    assert load_params(project) == yaml.safe_load(text)
    assert run("git status --porcelain params.yaml", project).stdout == ""


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("  steps:", "  stepz:", "unknown parameter 'stepz' in .*params.yaml: train: did you mean 'steps'?"),
        ("seed: 0", "sead: 0", "did you mean 'seed'?"),
        ("seed: 0", "seed: [0", "is not valid YAML at line"),
        ("  threads: 1", "#", "train lacks 'threads'"),
        (
            "compile: false",
            "compile: 'false'",
            "train: compile must be true or false, not 'false'",
        ),  # a released trainer reads any text as true
        ("lr: 0.002 ", "lr: 3e-3 ", "train: lr must be a number or null, not '3e-3': write 0.001 for 1e-3"),
        (
            "  prior_guided_sr: {steps: 600}",
            "  prior_guided_sr: {stepz: 600}",
            "instead: prior_guided_sr: did you mean 'steps'?",
        ),
        (
            "  prior_guided_sr: {steps: 600}",
            "  prior_guided_sr: {steps: many}",
            "instead: prior_guided_sr: steps must be a whole number or null, not 'many'",
        ),
        ("seed: 0", "seed: true", "seed must be a whole number, not True"),
    ],
)
def test_bad_parameters_get_one_sentence(project, old, new, said):
    edit(project / "params.yaml", old, new)
    with pytest.raises(FacelabError, match=said):
        load_params(project)


def test_what_can_only_refuse_is_in_no_fingerprint():
    found = closure({"facelab.base.params"}, ROOT)
    assert "facelab.base.params" in found and "facelab.base.schema" not in found


def test_stages_that_need_the_same_are_bundled():
    stages = {
        **{f"train@{k}": ["faces"] for k in "abcd"},
        "train@x": ["faces", "helper@p"],
        "helper@p": ["faces"],
        "faces": [],
    }
    assert bundle(stages, {"train@b"}) == [
        ["train@a", "train@c", "train@d"],
        ["train@b"],
        ["train@x"],
        ["helper@p"],
        ["faces"],
    ]
    assert needed_for(["train@x"], stages).keys() == {"train@x", "helper@p", "faces"}


def test_a_name_in_instead_must_be_known(project):
    edit(project / "params.yaml", "  prior_guided_sr: {steps: 600}", "  prior_guided: {steps: 600}")
    with pytest.raises(
        FacelabError,
        match=(
            "instead of params.yaml names 'prior_guided', which is no paper and no recipe: did you mean 'prior_guided_"
        ),
    ):
        check_project(project)


def test_no_project_here(tmp_path):
    with pytest.raises(FacelabError, match="no facelab project"):
        project_root(tmp_path)


@pytest.mark.parametrize(
    "command, said",
    [
        ("profile laptp", "unknown profile 'laptp': did you mean 'laptop'"),
        ("run tarin srresnet", "unknown stage 'tarin': did you mean 'train'?"),
    ],
)
def test_command_line_mistakes(command, said, project):
    done = run(f"{sys.executable} -m facelab.pipeline {command}", project)
    assert done.returncode == 1 and said in done.stdout and "Traceback" not in done.stdout, done.stdout


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("  srresnet:\n    paper:", "  srresnet:\n    peper:", "unknown parameter 'peper'"),
        ("    like: prior_guided_sr", "    like: prior_guided", "did you mean 'prior_guided_sr'?"),
        ("    like: prior_guided_sr", "    like: prior_guided_gan", "in a circle"),
        (
            "losses: [prior_guided_content, prior_guided_realism]",
            "losses: [prior_guided_content, prior_guided_realizm]",
            "did you mean 'prior_guided_realism'?",
        ),
        (
            "losses: [prior_guided_content, prior_guided_realism]",
            "losses: [prior_guided_content, prior_guided_content]",
            "both have a term",
        ),
        ("  srresnet:\n    paper: prior_guided_sr", "  srresnet:", "lacks 'paper'"),
        (
            "of: coarse_sr",
            "oof: coarse_sr",
            "unknown parameter 'oof' in losses.yaml: prior_guided_content, loss coarse: did you mean 'of'?",
        ),
        (
            "  jdsr_gan_critic:\n    paper: jdsr_gan\n",
            "  jdsr_gan_critic:\n    paper: jdsr_gan\n    like: jdsr_gan_crit\n",
            "did you mean 'jdsr_gan_critic'?",
        ),
    ],
)
def test_bad_recipes_get_one_sentence(project, old, new, said):
    path = next(p for p in (project / "recipes").glob("*.yaml") if old in p.read_text())
    edit(path, old, new)
    done = run(f"{sys.executable} -m facelab.pipeline sources", project)
    assert done.returncode == 1 and said in done.stdout and "Traceback" not in done.stdout, done.stdout
    assert not (project / "build" / "sources").exists()
