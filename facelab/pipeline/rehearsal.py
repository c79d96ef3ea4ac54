"""A step or two in every stage of every recipe, very small: what cannot start says so before a night is spent on it."""

import tempfile
import time
from functools import cache
from pathlib import Path

from facelab import FacelabError
from facelab.networks.registry import entries
from facelab.training.recipes import folder_of, in_order, load_recipes, resolve

AS_A_GPU = {"precision": "bf16-mixed", "channels_last": True, "compile": True, "backend": "aot_eager"}
REPEATED = ("groups", "blocks", "fusion", "hourglasses", "halvings")  # arguments that say how often a part comes again
SMALL = {"width": 0.05, "depth": 0.05, "batch": 2, "validate": 0, "log_every": 1, "threads": 1, "statistics": 2}


def rehearsed(name, recipes, params, steps=1):
    "The recipe under these parameters, with networks of a few channels and a few steps in each stage."
    small = {**params, "instead": {}, "train": {**params["train"], **SMALL, "seconds": None}}
    recipe = resolve(name, recipes, small)
    recipe["stages"] = [{**stage, "steps": steps} for stage in recipe["stages"]]
    recipe |= {key: repeat_less(recipe[key]) for key in ("generator", "critics")}
    return {**recipe, "batch": min(SMALL["batch"], recipe.get("batch") or 1)}


@cache
def repeats():
    "Address of a network -> how often its small one repeats its parts."
    less = lambda small: {k: small[k] for k in REPEATED if k in small}
    return {f"{e.make.__module__}.{e.make.__qualname__}": less(e.small) for e in entries().values()}


def repeat_less(spec):
    "A network's specification, or several, in which no part comes again more often than in its small one."
    if isinstance(spec, list):
        return [repeat_less(one) for one in spec]
    if not isinstance(spec, dict):
        return spec
    return {k: repeat_less(v) for k, v in spec.items()} | repeats().get(f"facelab.{spec.get('use')}", {})


def rehearse(names, recipes, params, faces, folder=None, steps=1, tell=print):
    """Train these of the recipes (None: all) and what they need, a few steps a stage.

    `recipes`: as `load_recipes` returns them. `faces`: a face set, or a function of the side that a recipe works at
    (None: the run's own). `folder`: where the models lie, in its build; helpers that are there stay. None: a folder
    that is deleted. Returns {recipe: seconds}; `FacelabError` names the first recipe that cannot be trained.
    """
    import torch

    from facelab.training.loop import train

    took = {}
    with tempfile.TemporaryDirectory(prefix="facelab-rehearsal-") as own:
        build = Path(folder or own) / "build"
        places = dict(helpers=build / "helpers", features=build / "models" / "features")
        for name in in_order(names or recipes, recipes, params):
            recipe, began = rehearsed(name, recipes, params, steps), time.monotonic()
            place, history = build / folder_of(name, recipe), build / "history" / f"{name}.csv"
            if name not in (names or recipes) and place.exists():
                continue
            try:
                seen = faces(recipe["size"]) if callable(faces) else faces
                train(recipe, seen, place, history, **places, device="cpu", progress=False)
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
    took = rehearse(args.recipes, load_recipes(root), params, faces, steps=args.steps)
    return f"{len(took)} recipes took {args.steps} step(s) in each stage, {sum(took.values()):.0f} s"
