"""Every recipe of every table trains: helpers first, then what is made of them, a step in each stage, very small."""

import math

import pytest
import torch
from conftest import ROOT

from facelab import FacelabError
from facelab.training.batches import required_labels
from facelab.degradations.chain import Chain
from facelab.faces.drawn import draw_set
from facelab.base.params import load_params, read_yaml
from facelab.training.models import load_model, restore
from facelab.publication.deviations import project_deviations
from facelab.training.recipes import (
    check_helpers,
    folder_of,
    load_recipes,
    helpers_used,
    recipes_page,
    recipes_table,
    resolve,
)
from facelab.training.loop import train, validation_inputs

torch.set_num_threads(1)
RECIPES = load_recipes(ROOT)


def in_order():
    "Names of all recipes, each behind the helpers that it uses."
    out = sorted(RECIPES, key=lambda name: ("priors", "helpers", "recipes").index(RECIPES[name]["kind"]))
    for name in list(out):
        for helper in helpers_used(RECIPES[name]):
            if out.index(helper) > out.index(name):
                out.remove(helper)
                out.insert(out.index(name), helper)
    return out


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def faces():
    return draw_set(8, 2, 0, seed=0)


def tiny(name):
    params = load_params(ROOT)
    params["instead"] = {}
    params["train"].update(
        steps=8, batch=2, width=0.05, depth=0.05, warmup=0, log_every=1, threads=1, validate=0, lr=1e-4
    )
    return resolve(name, RECIPES, params)


@pytest.mark.parametrize("name", in_order())
def test_every_recipe_trains(name, project, faces, monkeypatch):
    monkeypatch.chdir(project)  # where the features of perceptual losses are looked for
    recipe = {**tiny(name), "batch": 2}
    recipe["stages"] = [{**stage, "steps": 1} for stage in recipe["stages"]]
    run = train(recipe, faces, f"build/{folder_of(name, recipe)}", helpers="build/helpers", progress=False)
    assert [row["stage"] for row in run.history] == [stage["name"] for stage in recipe["stages"]]
    for row, stage in zip(run.history, recipe["stages"]):
        assert set(row) - {"step", "stage"} == {*stage["losses"], *stage["critics"]}
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
    net, _ = load_model(f"build/{folder_of(name, recipe)}")
    if RECIPES[name]["kind"] == "recipes":
        given = validation_inputs(run, faces.subset("val"))
        restored = restore(net, given["input"], given)
        assert restored.shape == given["target"].shape and torch.isfinite(restored).all()


def test_every_row_of_every_table_is_there():
    """The rows that the papers' tables print, by their labels."""
    labels = {
        paper: sorted(r["label"] for r in RECIPES.values() if r["paper"] == paper and r["kind"] == "recipes")
        for paper in ("jdsr_gan", "fcsr_gan", "sr_deblur_gan", "prior_guided_sr", "heavy_rain")
    }
    found = {paper: " | ".join(names).lower() for paper, names in labels.items()}
    wanted = {
        "jdsr_gan": [
            "cbd+drn",
            "cbd+srfbn",
            "cbd+sicnn",
            "cbd+fsrgan",
            "cbd+dicgan",
            "jdsr-gan",
            "style",
            "perceptual",
            "identity",
            "smooth",
            "attention",
        ],
        "fcsr_gan": [
            "gfc+srresnet",
            "pconv+srresnet",
            "gfc+fsrnet",
            "pconv+fsrnet",
            "together",
            "smooth",
            "perceptual",
            "prior",
        ],
        "sr_deblur_gan": [
            "bicubic",
            "srresnet",
            "srgan",
            "pix2pix",
            "esrgan",
            "rcan",
            "fsrnet",
            "fsrgan",
            "srfbn",
            "dicgan",
            "model 1",
            "model 2",
            "model 3",
            "w/n",
            "unified",
        ],
        "prior_guided_sr": ["bicubic", "srresnet", "proposed method 1", "proposed method 2"],
        "heavy_rain": [
            "heavy-rain-removal",
            "pix2pix",
            "srgan",
            "face sr",
            "esrgan",
            "hrrm+fpm+srgan",
            "hrrm+fpm+fcg-gan",
        ],
    }
    assert [(paper, row) for paper, rows in wanted.items() for row in rows if row not in found[paper]] == []
    scales = {
        name: r["inputs"]
        for name, r in RECIPES.items()
        if r["kind"] == "recipes" and r["paper"] in ("jdsr_gan", "fcsr_gan")
    }
    assert (
        sum("x8" in chain for chain in scales.values()) >= 4 + 4
        and sum("x4" in chain for chain in scales.values()) >= 11 + 4
    )
    print({paper: len(names) for paper, names in labels.items()}, "rows of", len(RECIPES), "recipes and helpers")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_choice_has_its_source(path):
    """What a recipe writes down itself (network, critics, optimiser, batch, length) says where it comes from."""
    lacking = []
    for kind in ("priors", "helpers", "recipes"):
        for name, entry in (read_yaml(path).get(kind) or {}).items():
            said = " ".join(entry.get("sources") or {})
            own = {"generator", "critics", "optimiser", "batch", "stages", "sequence", "without"} & entry.keys()
            every = "training" in said
            lacking += [
                (name, field)
                for field in sorted(own)
                if field not in said
                and not (every and field in ("optimiser", "batch", "stages"))
                and not (field == "stages" and not entry["stages"])
            ]
    assert lacking == []


def test_a_part_that_does_not_exist_or_is_not_waited_for_is_named():
    recipe = {**RECIPES["srresnet"], "begin": {"generator": "jdsr_gan_cbdnet_x4"}}
    with pytest.raises(
        FacelabError,
        match=(
            "recipe 'mine' in mine.yaml uses the helper 'jdsr_gan_cbdnet_x4' but needs faces.json: say `needs:"
            " helpers/jdsr_gan`"
        ),
    ):
        check_helpers("mine", recipe, RECIPES, "mine.yaml")
    with pytest.raises(
        FacelabError, match="uses the helper 'jdsr_gan_cbdnet', which does not exist: did you mean 'jdsr_gan_cbdnet_x"
    ):
        check_helpers("mine", {**recipe, "begin": {"generator": "jdsr_gan_cbdnet"}}, RECIPES, "mine.yaml")


def test_the_pipeline_reads_every_file_with_recipes():
    """dvc.yaml names the files itself; one that it forgets would never be trained."""
    named = {v.removeprefix("recipes/") for v in read_yaml(ROOT / "dvc.yaml")["vars"]}
    assert {
        p.name for p in (ROOT / "recipes").glob("*.yaml") if read_yaml(p).keys() & {"priors", "helpers", "recipes"}
    } == named


def test_the_table_lists_every_recipe_of_a_paper():
    for paper in {r["paper"] for r in RECIPES.values()}:
        table = recipes_table(RECIPES, paper)
        assert all(f"| `{name}` |" in table for name, r in RECIPES.items() if r["paper"] == paper)


def test_the_page_of_recipes_is_up_to_date():
    assert (ROOT / "docs" / "recipes.md").read_text() == recipes_page(ROOT), (
        "write it again: python -m facelab.pipeline recipes"
    )
    assert (ROOT / "docs" / "deviations.md").read_text() == project_deviations(ROOT), (
        "write it again: python -m facelab.pipeline recipes"
    )


def test_labels_are_those_that_losses_and_degradation_ask_for(faces):
    recipe = tiny("jdsr_gan_x4")
    assert set(required_labels(faces, recipe, Chain(recipe["degradation"]))) == {"landmarks", "parsing"}
    recipe = tiny("jdsr_identity")
    assert required_labels(faces, recipe, Chain([])) == ("identity",)
