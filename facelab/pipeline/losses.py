"""The loss ledger of all recipes, docs/losses.md; `python -m facelab.pipeline losses` writes it."""

import re
import tempfile
from contextlib import nullcontext
from pathlib import Path

from facelab import FacelabError
from facelab.base.files import write_text
from facelab.base.names import near
from facelab.base.params import load_params, merge, read_yaml
from facelab.training.recipes import folder_of, helpers_used, load_losses, load_recipes, needs_features, resolve

FACES = 4  # that are measured
SIDE = 128  # of them, in pixels, as most of the papers have
BRIEFLY = 40  # steps that helpers learn for the page
INTRODUCTION = """# Loss ledger

Made by `python -m facelab.pipeline losses`; [how it is measured](../nbs/6_training/10_loss_ledger.ipynb).

For each term of each recipe, in three numbers: at a face as bad as its degraded input, enlarged bicubically; half-way
between that and the truth; and 20 dB closer to the truth. The weighted value is the term's share of the sum. The pull
is the norm of its weighted gradient with respect to the output in the column `of` (L2 over the values of a face, mean
over faces). The last column holds it against the pixel term of that output; it is empty where there is none. Recipes
whose numbers agree share a table. An adversarial term is one of a critic that has taken few steps: its scale, not its
end.
"""


def ledger_faces(path, params, side=SIDE):
    "The faces of a folder with the labels that they can have, or faces drawn for the purpose: title, set."
    from facelab.evaluation.labelling import complete_labels
    from facelab.faces.drawn import draw_set
    from facelab.faces.sets import open_faces

    data = params["data"]
    if path is None:
        return "Drawn faces", draw_set(64, 4, 0, size=side, seed=params["seed"])
    faces = open_faces(path, size=side)
    many = "landmarks" in faces.labels and faces.batch([0], labels=("landmarks",))["landmarks"].shape[1] >= 68
    if many and "parsing" not in faces.labels and data["parsing"] == "labels":
        data = {**data, "parsing": "landmarks"}
    faces = complete_labels(faces, data)
    return faces.name, faces


def train_missing(name, recipes, params, faces, folder):
    "Train a helper or the features network into a folder such as `build`, unless it is there; what it needs, first."
    from facelab.training.loop import train

    where = folder / folder_of(name, recipes[name])
    if (where / "recipe.json").exists():
        return
    for helper in helpers_used(recipes[name]):
        train_missing(helper, recipes, params, faces, folder)
    places = dict(helpers=folder / "helpers", features=folder / "models" / "features")
    train(resolve(name, recipes, params), faces, where, **places, device=params["train"]["device"], progress=False)


def measure(names, recipes, params, faces, folder, critic_steps, n=FACES, say=lambda name: None):
    "The entries of recipes on `n` faces; by name why others were left out. Trains what is missing in `folder`."
    from facelab.training.loss_ledger import ledger_of

    entries, left_out = [], {}
    brief = {"steps": min(params["train"]["steps"] or BRIEFLY, BRIEFLY), "precision": "32-true"}
    params = {**params, "train": {**params["train"], **brief}, "instead": {}}
    own = dict.fromkeys("optimiser lr schedule warmup steps penalty_every".split())  # critics learn as a recipe says
    printed = {**params, "train": {**params["train"], **own, "critics_from": 0}}
    for name in names:
        say(name)
        recipe = {**resolve(name, recipes, printed), "batch": n}
        features = ["features"] if needs_features(recipe) else []
        try:
            for helper in [*features, *helpers_used({"helpers": recipes[name].get("helpers", {})})]:
                train_missing(helper, recipes, params, faces, folder)
            places = folder / "helpers", folder / "models" / "features"
            steps = min(critic_steps, *(stage["steps"] for stage in recipe["stages"]))
            entries += ledger_of(recipe, faces, *places, steps, params["train"]["device"])
        except FacelabError as error:
            left_out[name] = str(error)
    return entries, left_out


def with_section(page, title, section):
    "The page with its section of this title replaced, or one more; its introduction is written anew."
    old = [part.strip() for part in re.split(r"(?m)^(?=## )", page)[1:]]
    new = [part for part in old if not part.startswith(f"## {title}\n")]
    new.insert(min([i for i, part in enumerate(old) if part not in new], default=len(new)), section.strip())
    return "\n\n".join([INTRODUCTION.strip(), *new]) + "\n"


def write_losses(root, args):
    "Measure one face set and put its section into the page."
    from tqdm import tqdm

    from facelab.training.loss_ledger import ledger_section, pull_reasons, restores

    params, recipes = load_params(root), load_recipes(root)
    if args.perceptual:
        profile = read_yaml(root / "profiles" / f"{args.perceptual}.yaml")
        params = merge(params, {"perceptual": profile.get("perceptual", {})})
    known = [name for name, recipe in recipes.items() if recipe["kind"] != "priors" and restores(recipe)]
    for name in args.recipes or ():
        if name not in known:
            raise FacelabError(f"{name!r} is no recipe that restores faces: {near(name, known)}")
    title, faces = ledger_faces(args.faces, params, args.size)
    bar = tqdm(args.recipes or known, "recipes")
    with nullcontext(args.run) if args.run else tempfile.TemporaryDirectory() as folder:
        found = measure(bar, recipes, params, faces, Path(folder), args.critic_steps, say=bar.set_postfix_str)
    how = (
        f"{FACES} faces of {faces.size} pixels. Features of perceptual losses: {described(params['perceptual'])}."
        f" Critics took {args.critic_steps} steps, fewer in short stages. Networks are as wide as params.yaml says;"
        f" helpers were trained {'by a run' if args.run else f'on these faces for this page, {BRIEFLY} steps'}."
    )
    out, reasons = Path(args.out or root / "docs" / "losses.md"), pull_reasons(recipes, load_losses(root))
    section = ledger_section(title, how, found[0], reasons, found[1])
    write_text(out, with_section(out.read_text("utf-8") if out.exists() else "", title, section))
    return out


def described(perceptual):
    "The section of the parameters in words."
    return ", ".join(f"{k} {v}" for k, v in perceptual.items() if v)
