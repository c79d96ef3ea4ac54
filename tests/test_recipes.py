"""Every recipe of every table trains: under each profile, on sets as they are published, very small."""

import itertools
import math
from functools import lru_cache, partial

import pandas as pd
import pytest
import torch
from conftest import ROOT
from published import celeba, celebamask, helen

from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.base.params import load_params, merge, read_yaml
from facelab.base.schema import check_params
from facelab.degradations.chain import Chain
from facelab.degradations.degradation import select_labels
from facelab.evaluation.labelling import complete_labels
from facelab.faces import layouts
from facelab.faces.drawn import draw_set
from facelab.faces.sets import open_faces
from facelab.pipeline.rehearsal import rehearse, rehearsed
from facelab.pipeline.rows import lacking, refusals
from facelab.publication.deviations import project_deviations
from facelab.training.batches import required_labels
from facelab.training.loop import train
from facelab.training.models import load_model, restore
from facelab.training.recipes import (
    check_helpers,
    folder_of,
    in_order,
    load_recipes,
    recipes_page,
    recipes_table,
    resolve,
)

torch.set_num_threads(1)
RECIPES = load_recipes(ROOT)


PROFILES, SETS = ("real", "paper"), {"celeba": celeba, "celebamask": celebamask, "helen": helen}


def dealt():
    "Every recipe under each profile, and the set it learns from: all sets have recipes of all kinds."
    names = in_order(RECIPES, RECIPES, load_params(ROOT))
    lacks_people, out = lacking(names, RECIPES, load_params(ROOT), {"landmarks", "parsing"}), []
    for shift, profile in enumerate(PROFILES):
        for i, name in enumerate(names):
            on = list(SETS)[(i + shift) % len(SETS)]
            out.append((profile, "celeba" if on == "helen" and name in lacks_people else on, name))
    return out


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "The three sets as they are published, ten faces of each, and what predicts the labels that they lack."
    folder = tmp_path_factory.mktemp("published")
    for name, make in SETS.items():
        make(folder / name, 10)
    params, labeller = load_params(ROOT) | {"instead": {}}, folder / "labeller" / "build" / "helpers" / "labelling"
    rehearse(["landmarker"], RECIPES, params, draw_set(8, 2, 0, seed=0), folder / "labeller", tell=lambda text: None)
    params["train"] |= {
        "steps": 150,
        "width": 0.2,
        "depth": 0.05,
        "lr": 0.01,
        "statistics": 16,
        "ema": 0.9,
        "validate": 0,
    }
    parser = resolve("parser", RECIPES, params)  # it has to find eyes, noses and lips, which a step does not teach
    train(parser, draw_set(8, 2, 0, size=32, seed=0), labeller / "parser", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(layouts.PAPER_SPLITS, "thesis", (6, 2, 2))  # of ten faces, not of 30,000
        yield folder


@lru_cache(maxsize=None)
def profile_of(profile, on, folder):
    "The parameters as `make profile` writes them; the features and labels come from networks trained here."
    params = merge(load_params(ROOT), read_yaml(ROOT / "profiles" / f"{profile}.yaml"))
    params["data"] |= {"labeller": str(folder / "labeller" / "build"), "paper_sizes": on != "celeba"}
    params["train"] |= {"compile": False}  # tests/test_rehearsal.py compiles
    return check_params(params | {"perceptual": load_params(ROOT)["perceptual"]}, profile)


@lru_cache(maxsize=None)
def faces_of(profile, on, folder, side):
    "The faces of a set as the stage `faces` makes them, at a side."
    data = profile_of(profile, on, folder)["data"]
    return complete_labels(open_faces(folder / on, side or data["size"], split=data["split"]), data).to("cpu")


@pytest.mark.parametrize("profile, on, name", dealt())
def test_every_recipe_starts_under_every_profile(profile, on, name, published):
    "Two steps, or one in each stage, its networks very small; then it restores faces."
    params, folder = profile_of(profile, on, published), published / f"{on}-run"
    faces, steps = partial(faces_of, profile, on, published), 2 if len(RECIPES[name]["stages"]) == 1 else 1
    rehearse([name], RECIPES, params, faces, folder, steps, tell=lambda text: None)
    recipe = rehearsed(name, RECIPES, params, steps)
    if recipe["stages"]:
        rows = pd.read_csv(folder / "build" / "history" / f"{name}.csv")
        assert rows["stage"].tolist() == [stage["name"] for stage in recipe["stages"] for _ in range(steps)]
        for stage, row in zip(recipe["stages"], rows.iloc[steps - 1 :: steps].to_dict("records")):
            terms = {*stage["losses"], *stage["critics"]}
            assert terms == {k for k, v in row.items() if k not in ("step", "stage") and math.isfinite(v)}
    if recipe["kind"] == "recipes":
        net, _ = load_model(folder / "build" / folder_of(name, recipe))
        seen, degrade = faces(recipe["size"]), Chain(recipe["degradation"])
        batch = seen.batch([0, 1], labels=select_labels(degrade.needs, seen.labels, name))
        given = degrade(batch.pop("image"), Dice(0, "test", [0, 1]), **batch)
        restored = restore(net, given.input, given.maps)
        assert restored.shape == given.target.shape and torch.isfinite(restored).all()


def test_every_recipe_can_be_resolved_for_every_set(published):
    for profile, on in itertools.product(PROFILES, SETS):
        params, faces = profile_of(profile, on, published), faces_of(profile, on, published, None)
        refused = refusals(RECIPES, RECIPES, params, faces)
        assert bool(refused) == (on == "helen") and all("identity, which set" in text for text in refused.values())
        for name in RECIPES.keys() - refused.keys():
            recipe = resolve(name, RECIPES, params)
            assert recipe["size"] in ((None,) if on == "celeba" else (None, 128, 256)), name


def tiny(name):
    params = load_params(ROOT)
    params["instead"] = {}
    params["train"].update(steps=8, batch=2, width=0.05, depth=0.05, warmup=0, statistics=16, threads=1, validate=0)
    return resolve(name, RECIPES, params)


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


def test_labels_are_those_that_losses_and_degradation_ask_for():
    faces = draw_set(4, 1, 0, size=32, seed=0)
    recipe = tiny("jdsr_gan_x4")
    assert set(required_labels(faces, recipe, Chain(recipe["degradation"]))) == {"landmarks", "parsing"}
    recipe = tiny("jdsr_identity")
    assert required_labels(faces, recipe, Chain([])) == ("identity",)
