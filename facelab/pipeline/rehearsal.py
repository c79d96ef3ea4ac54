"""A step or two in every stage of every recipe, very small: what cannot start says so before a night is spent on it."""

import os
import tempfile
import time
from contextlib import contextmanager

from facelab import FacelabError
from facelab.base.names import near
from facelab.training.recipes import KINDS, folder_of, helpers_used, load_recipes, needs_features, resolve

AS_A_GPU = {"precision": "bf16-mixed", "channels_last": True, "compile": True, "backend": "aot_eager"}
SMALL = {"width": 0.05, "depth": 0.05, "batch": 2, "validate": 0, "log_every": 1, "threads": 1, "statistics": 2}


def with_helpers(names, recipes, params):
    "These recipes and all that they are made of, each behind what it needs."
    out = []

    def add(name):
        if name not in recipes:
            raise FacelabError(f"unknown recipe {name!r}: {near(name, recipes)}")
        for helper in helpers_used(recipes[name]):
            add(helper)
        if needs_features(resolve(name, recipes, params)):
            add("features")
        if name not in out:
            out.append(name)

    for name in sorted(names, key=lambda name: KINDS.index(recipes[name]["kind"]) if name in recipes else -1):
        add(name)
    return out


def rehearsed(name, recipes, params, steps=1):
    "The recipe under these parameters, with networks of a few channels and a few steps in each stage."
    small = {**params, "instead": {}, "train": {**params["train"], **SMALL, "seconds": None}}
    recipe = resolve(name, recipes, small)
    recipe["stages"] = [{**stage, "steps": steps} for stage in recipe["stages"]]
    return {**recipe, "batch": min(SMALL["batch"], recipe["batch"] or 1)}


@contextmanager
def inside(folder):
    "The working folder is this one meanwhile."
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def rehearse(names, params, faces, root=None, folder=None, steps=1, tell=print):
    """Train these recipes (None: all) and what they need, a few steps a stage, in a folder of their own.

    `faces`: a face set, or a function of the side that a recipe works at (None: the run's own). Returns
    {recipe: seconds}; `FacelabError` names the first recipe that cannot be trained.
    """
    import torch

    from facelab.training.loop import train

    recipes, took = load_recipes(root), {}
    with tempfile.TemporaryDirectory(prefix="facelab-rehearsal-") as own, inside(folder or own):
        for name in with_helpers(names or recipes, recipes, params):
            recipe, began = rehearsed(name, recipes, params, steps), time.monotonic()
            try:
                seen = faces(recipe["size"]) if callable(faces) else faces
                train(recipe, seen, f"build/{folder_of(name, recipe)}", device="cpu", progress=False)
            except Exception as error:
                raise FacelabError(f"recipe {name!r} cannot be trained: {type(error).__name__}: {error}") from error
            took[name] = time.monotonic() - began
            tell(f"{took[name]:6.1f} s  {name}")
            torch._dynamo.reset()
    return took


def main(root, args):
    "The command `rehearse`."
    from facelab.base.params import load_params
    from facelab.faces.drawn import draw_set
    from facelab.faces.sets import open_faces

    params = load_params(root)
    if args.as_gpu:
        params["train"] |= AS_A_GPU
    if args.faces:
        faces = lambda size: open_faces(args.faces, size or params["data"]["size"])
    else:
        faces = draw_set(16, 2, 0, seed=params["seed"])
    took = rehearse(args.recipes, params, faces, root, steps=args.steps)
    return f"{len(took)} recipes took {args.steps} step(s) in each stage, {sum(took.values()):.0f} s"
