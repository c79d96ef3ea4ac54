"""How long all recipes will train here: a few steps in each stage of each, timed."""

import tempfile
import time
from pathlib import Path

from facelab.training.recipes import folder_of, in_order, load_recipes, resolve

STEPS = 4  # that are timed in each stage: on the fourth, too, a critic's penalty may be computed
FACES = 64  # that are drawn for it


def time_stages(recipe, faces, folder, device="cpu", steps=STEPS):
    """Seconds that each stage of a resolved recipe will take on these faces, validation left out.

    What was learned meanwhile is written to `folder`, for the recipes that begin from it.
    """
    import torch

    from facelab.training.loop import write_results
    from facelab.training.run import Run, take_step

    torch.set_num_threads(recipe["threads"])
    recipe = {**recipe, "statistics": 1, "seconds": None}
    places = dict(helpers=folder / "helpers", features=folder / "models" / "features")
    run, out = Run(recipe, faces.subset("train"), device, **places), []
    for k, stage in enumerate(run.recipe["stages"]):
        run.stage, run.stage_step = k, 0
        take_step(run)
        began = time.monotonic()
        losses = [take_step(run) for _ in range(steps)]
        float(sum(losses[-1].values()))  # a GPU has finished when a number is asked for
        out.append((time.monotonic() - began) / steps * stage["steps"])
    write_results(run, faces.name, folder / folder_of(recipe["name"], recipe))
    return out


def estimate(names, recipes, params, faces, device="cpu", tell=print):
    """Recipe -> seconds of its training, for these (None: all) and what they need.

    `faces`: a function of the side that a recipe works at, None for the run's own, that returns a face set.
    """
    took = {}
    with tempfile.TemporaryDirectory(prefix="facelab-estimate-") as folder:
        for name in in_order(names or recipes, recipes, params):
            recipe = resolve(name, recipes, params)
            if not recipe["stages"]:
                continue
            took[name] = sum(time_stages(recipe, faces(recipe["size"]), Path(folder), device))
            tell(f"{took[name]:8,.0f} s  {name}")
    return took


def main(root, args):
    "The command `estimate`: how long, in words."
    from functools import lru_cache

    from facelab.base.params import load_params
    from facelab.faces.drawn import draw_set

    params = load_params(root)
    side = params["data"]["size"]
    faces = lru_cache(lambda size: draw_set(FACES, 0, 0, seed=params["seed"], size=size or side))
    took = estimate(args.recipes, load_recipes(root), params, faces, params["train"]["device"])
    total = sum(took.values())
    return (
        f"{len(took)} recipes will train for {in_words(total)} together, {in_words(total / args.jobs)} with"
        f" {args.jobs} side by side; validation, restoring and scoring come on top"
    )


def in_words(seconds):
    "A duration as one reads it."
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
