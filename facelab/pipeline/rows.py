"""Which recipes a set of faces allows, known before anything is trained."""

import json
import re
import sys
from types import SimpleNamespace

from facelab.base.files import print_line
from facelab.faces.layouts import survey
from facelab.faces.sets import LABEL_SOURCES, LABELS, FaceSet, find_set_file
from facelab.training.recipes import needed_by, resolve

FACTS = {"landmarks": "landmarks", "identities": "identity", "eyes": "parsing", "nose": "parsing", "lips": "parsing"}


def labels_needed(recipe):
    "The labels that a resolved recipe asks for: for its degradation, its losses, or to make its networks."
    from facelab.degradations.chain import Chain
    from facelab.training.batches import MADE_FROM, names_in_losses

    words = re.findall(r"faces\.(\w+)", json.dumps([recipe["generator"], recipe["critics"]]))
    losses = names_in_losses(recipe)
    needs = [*Chain(recipe["degradation"]).needs, *(MADE_FROM[k] for k in sorted(losses & MADE_FROM.keys()))]
    return list(dict.fromkeys([*needs, *(FACTS[w] for w in words if w in FACTS)]))


def lacking(names, recipes, params, have):
    """Recipe -> (label, helper): what faces with the labels `have` lack for it, and for which helper of it (or None).

    Only recipes that lack something are in the result."""
    found = {}

    def look(name):
        if name not in found:
            recipe = resolve(name, recipes, params)
            missing = [n for n in labels_needed(recipe) if not set(n.split("|")) & set(have)]
            found[name] = (missing[0].split("|")[-1], None) if missing else None
            for helper in () if missing else needed_by(name, recipes, params):
                if look(helper):
                    found[name] = found[helper][0], helper
                    break
        return found[name]

    return {name: found[name] for name in names if look(name)}


def remedy(label):
    "What to do where faces lack a label."
    predict = f"set data.{label} to predicted in params.yaml (docs/own_faces.md), or " * (
        label in ("parsing", "landmarks")
    )
    return f"{predict}use {LABEL_SOURCES[label]}"


def refusals(names, recipes, params, faces):
    "Recipe -> one sentence, for those that a `FaceSet` does not allow."
    out = {}
    for name, (label, helper) in lacking(names, recipes, params, faces.labels).items():
        who = f"{name} needs {helper}, which needs" if helper else f"{name} needs"
        out[name] = f"{who} {label}, which set {faces.name} lacks: {remedy(label)}"
    return out


def check_labels(root, params, recipes):
    """Say on stderr which rows the faces of data.source do not allow, a line for each label that they lack.

    `FacelabError` if a label is to be predicted and no model is there that does it."""
    from facelab.evaluation.labelling import labeller_of, labels_to_make

    data, folder = params["data"], root / "data" / params["data"]["source"]
    faces = labels_in(folder)
    made = labels_to_make(faces, data)
    for what in made:
        if data[what] == "predicted":
            labeller_of({**data, "labeller": data["labeller"] and root / data["labeller"]}, what)
    rows = [name for name, recipe in recipes.items() if recipe["kind"] == "recipes"]
    missing = {}
    for name, (label, _) in lacking(rows, recipes, params, {*faces.labels, *made}).items():
        missing.setdefault(label, []).append(name)
    for label, names in missing.items():
        few = ", ".join(names[:3]) + f" and {len(names) - 3} others" * (len(names) > 3)
        print_line(f"{folder} lacks {label}, so {few} will not be made: {remedy(label)}", sys.stderr)


def labels_in(folder):
    "The labels and landmarks that are in a folder, found without a look at its pictures."
    if saved := find_set_file(folder):
        return FaceSet.load(saved)
    found = survey(folder)
    there = [what for what in LABELS if getattr(found, what, None) is not None]
    return SimpleNamespace(labels=there, landmarks=found.landmarks)
