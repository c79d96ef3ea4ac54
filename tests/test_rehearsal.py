"""What a GPU runs, run on the CPU: bf16, channels_last and compiled graphs, a step in each stage."""

from functools import lru_cache
from itertools import chain

import pytest
import torch
from conftest import ROOT

from facelab import FacelabError
from facelab.base.params import load_params
from facelab.faces.drawn import draw_set
from facelab.networks.registry import entries, example
from facelab.pipeline.rehearsal import AS_A_GPU, rehearse, rehearsed
from facelab.training.recipes import in_order, load_recipes

RECIPES = load_recipes(ROOT)


def kinds(recipe):
    "The networks and losses that a recipe trains with, by their addresses."
    if not recipe["stages"]:
        return set()
    networks = [recipe["generator"], *recipe.get("critics", {}).values()]
    terms = [
        loss
        for stage in recipe["stages"]
        for terms in (stage["losses"], *stage.get("critics", {}).values())
        for loss in terms.values()
        if loss
    ]
    return {entry["use"] for entry in (*networks, *terms)}


@lru_cache(maxsize=None)
def parts():
    "Of each registered network by its address: itself, and those that it is made of."
    address = lambda net: f"{type(net).__module__}.{type(net).__qualname__}".removeprefix("facelab.")
    out = {}
    for name, entry in entries().items():
        nets = [example(name, scale)[0].modules() for scale in entry.scales]
        out[f"{entry.make.__module__}.{entry.make.__qualname__}".removeprefix("facelab.")] = set(
            map(address, chain(*nets))
        )
    return out


def covers(recipe):
    "What a step of a recipe tries: `kinds`, and what its networks are made of."
    return set().union(*({kind, *parts().get(kind, ())} for kind in kinds(recipe)))


@lru_cache
def chosen():
    "Few recipes that have every kind of network, critic and loss among them."
    missing, out = set().union(*map(kinds, RECIPES.values())), []
    while missing:
        out.append(max(RECIPES, key=lambda name: len(covers(RECIPES[name]) & missing)))
        missing -= covers(RECIPES[out[-1]])
    return out


@lru_cache
def faces_for(name):
    "Faces of 64 pixels, larger ones for the network that takes no smaller ones."
    return draw_set(16, 2, 0, size=80 if name == "inception_resnet_v1" else 64, seed=0)


@pytest.fixture(scope="module")
def faces():
    return faces_for(None)


@pytest.fixture(scope="module")
def helpers(faces, tmp_path_factory):
    "A folder in which all that the chosen recipes are made of has been trained for a step."
    folder, params = tmp_path_factory.mktemp("rehearsal"), load_params(ROOT)
    needed = [name for name in in_order(chosen(), RECIPES, params) if RECIPES[name]["kind"] != "recipes"]
    for name in needed:
        rehearse([name], RECIPES, params, faces_for(name), folder, tell=lambda text: None)
    return folder


@pytest.mark.parametrize("name", chosen())
def test_a_recipe_takes_its_steps_as_a_gpu_would(name, helpers):
    params = load_params(ROOT)
    params["train"] |= AS_A_GPU
    rehearse([name], RECIPES, params, faces_for(name), helpers, tell=print)


def test_every_kind_is_among_the_chosen():
    every = set().union(*map(kinds, RECIPES.values()))
    assert every <= set().union(*(covers(RECIPES[name]) for name in chosen()))
    assert covers(RECIPES["jdsr_gan_x4"]) & every > kinds(RECIPES["jdsr_gan_x4"])
    print(len(chosen()), "of", len(RECIPES), "recipes have every kind of network, critic and loss")


def test_a_compiled_step_is_the_step(faces, helpers):
    "A compiled critic with a gradient penalty learns what a bare one does."
    from facelab.training.run import Run, take_step

    losses = {}
    for compile in (False, "aot_eager"):
        params = load_params(ROOT)
        params["train"] |= {"compile": bool(compile), "backend": str(compile)}
        recipe = rehearsed("jdsr_gan_x4", RECIPES, params, steps=2)
        run = Run(recipe, faces.subset("train"), "cpu", helpers / "build/helpers", helpers / "build/models/features")
        losses[compile] = [take_step(run) for _ in range(2)][-1]
    for term, value in losses[False].items():
        torch.testing.assert_close(losses["aot_eager"][term], value, rtol=1e-3, atol=1e-5, msg=lambda m: f"{term}: {m}")


def test_what_cannot_start_is_named(faces, tmp_path):
    params = load_params(ROOT)
    params["train"] |= {"compile": True, "backend": "aot_eagr"}
    with pytest.raises(FacelabError, match="recipe 'srresnet' cannot be trained: .*aot_eagr.*did you mean 'aot_eager'"):
        rehearse(["srresnet"], RECIPES, params, faces, tmp_path, tell=print)
    with pytest.raises(FacelabError, match="unknown recipe 'srresnett': did you mean 'srresnet'"):
        rehearse(["srresnett"], RECIPES, params, faces, tmp_path)


def test_a_compiled_runs_clock_does_not_count_compiling(faces, tmp_path):
    from facelab.training.loop import COMPILING, train

    params = load_params(ROOT)
    params["train"] |= AS_A_GPU
    recipe = rehearsed("srresnet", RECIPES, params, steps=COMPILING + 2)
    run = train(recipe, faces, tmp_path / "model", progress=False)
    assert run.compile_seconds > 0 and run.seconds > 0
    bare = train({**recipe, "compile": False}, faces, tmp_path / "bare", progress=False)
    assert bare.compile_seconds == 0


def test_a_time_limit_leaves_every_recipe_its_least_steps(faces, tmp_path):
    from facelab.training.loop import train

    params = load_params(ROOT)
    recipe = {**rehearsed("srresnet", RECIPES, params, steps=400), "seconds": 1e-6, "log_every": 1000}
    ends = {
        least: train({**recipe, "min_steps": least}, faces, tmp_path / str(least), progress=False).step
        for least in (0, 7)
    }
    assert ends == {0: 1, 7: 7}
