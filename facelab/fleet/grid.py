"""One recipe after another, or many at once: what each is made from, whether it is made, and making it.

`runner` and `cluster` share this.
"""

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from facelab import FacelabError
from facelab.base.names import check_keys
from facelab.base.params import load_params, merge, project_root, read_yaml
from facelab.base.schema import check_params
from facelab.pipeline.sizes import beside, sides_of
from facelab.pipeline.sources import closure, paper_sources, recipe_sources, modules_in
from facelab.base.files import sha256, record_matches, write_record, write_text
from facelab.training.recipes import folder_of, in_order, load_degradations, load_recipes, needed_by, resolve


@dataclass
class Grid:
    "What recipes are made from and where to: plain data, so that it can travel to other machines."

    faces: str  # the packed face set
    faces_sha256: str
    out: Path  # what takes the place of `build`
    params: dict
    recipes: dict  # as `load_recipes` returns them
    sources: dict  # fingerprints of code, as the pipeline has them in build/sources
    inputs: str = None  # degraded test faces that exist already; None: they are made
    restored: bool = False  # keep the restored faces
    sides: dict = field(default_factory=dict)  # chain -> side of its faces, where it is another than `data.size`
    hashes: dict = field(default_factory=dict)  # side -> hash of the pack of these faces

    def folder(self, name):
        "Where a recipe's networks lie."
        return self.out / folder_of(name, self.recipes[name])

    def weights(self, name):
        "Hash of a recipe's weights; None if there are none."
        return sha256(self.folder(name) / "generator.safetensors")

    def needs(self, name):
        "What has to be trained before: helpers, and the features network if a loss asks for it."
        return needed_by(name, self.recipes, self.params)

    def order(self, names):
        "These recipes and what they need, each once and after what it needs."
        return in_order(names, self.recipes, self.params)

    def lock(self, what):
        "The lock file of a recipe, or of test inputs."
        return self.out / "state" / f"{what}.lock"

    def record(self, what):
        "The record of what something was made from."
        return self.out / "state" / f"{what}.json"

    def hash_of_faces(self, chain):
        "Hash of the pack that a chain degrades."
        return self.hashes.get(self.sides.get(chain), self.faces_sha256)

    def open_faces(self, name):
        "The faces of the side that a recipe asks for; `FacelabError` if the pack has none."
        side = self.sides.get(self.recipes[name]["inputs"])
        faces = open_pack(pack_at(self.faces, side))
        if side and faces.size != side:
            raise FacelabError(
                f"recipe {name} learns from faces of {side} pixels, but those in {self.faces} have {faces.size}: pack"
                f" the same faces with --size {side} beside them, as {pack_beside(self.faces, side)}, or set"
                " data.paper_sizes to false"
            )
        if self.recipes[name]["kind"] == "recipes":
            self.conventions(faces.size)
        return faces

    def conventions(self, size=None):
        "Under which PSNR and SSIM are measured; `FacelabError` if faces of this side are too small for one."
        from facelab.evaluation.metrics import scored_conventions

        return scored_conventions(self.params["evaluate"]["convention"], size)

    def training(self, name):
        "What a recipe's weights depend on."
        return {
            "source": self.sources[f"train@{name}"],
            "faces": self.hash_of_faces(self.recipes[name]["inputs"]),
            "weights": {helper: self.weights(helper) for helper in self.needs(name)},
        }

    def inputs_from(self, chain):
        "What the degraded test faces of a chain depend on."
        given = self.inputs and sha256(Path(self.inputs) / chain / "manifest.json")
        return {
            "source": self.sources[f"inputs@{chain}"],
            "faces": self.hash_of_faces(chain),
            "seed": self.params["seed"],
            "given": given,
        }

    def scoring(self, name):
        "What a recipe's scores depend on."
        recipe = self.recipes[name]
        code = {stage: self.sources[f"{stage}@{recipe['paper']}"]["modules"] for stage in ("restore", "score")}
        return {
            "weights": self.weights(name),
            "inputs": self.inputs_from(recipe["inputs"]),
            "code": code,
            "restored": self.restored,
            "conventions": list(self.conventions()),
        }

    def is_trained(self, name):
        "Are the weights there, and made from what they would be made from now?"
        return record_matches(self.record(name), self.training(name)) and (self.folder(name) / "recipe.json").exists()

    def is_done(self, name):
        "Is a recipe trained and, if a table has it, scored?"
        row = self.recipes[name]["kind"] == "recipes"
        return self.is_trained(name) and (not row or record_matches(self.record(f"{name}.scores"), self.scoring(name)))

    def unfinished(self, names, failed):
        "Of these recipes and what they need, those that are to be done and have not failed."
        return [name for name in self.order(names) if name not in failed and not self.is_done(name)]


def open_grid(faces, out, params, root=None, **more):
    "The grid of the project's recipes."
    root, out = Path(root or project_root()), Path(out).resolve()
    faces = str(faces) if "://" in str(faces) else str(Path(faces).resolve())
    recipes = load_recipes(root)
    check_keys(params["instead"], [*recipes, *{r["paper"] for r in recipes.values()}], "instead")
    sources = dict(recipe_sources(root, recipes, params)) | dict(paper_sources(root, recipes, params))
    sources |= {
        f"inputs@{r['inputs']}": {
            "steps": r["degradation"],
            "modules": closure(modules_in(r["degradation"]) | {"facelab.evaluation.inputs"}, root),
        }
        for r in recipes.values()
    }
    (out / "state").mkdir(parents=True, exist_ok=True)
    sides = sides_of(load_degradations(root), params["data"])
    hashes = {side: fingerprint(pack_at(faces, side)) for side in sorted(set(sides.values()))}
    return Grid(faces, fingerprint(faces), out, params, recipes, sources, sides=sides, hashes=hashes, **more)


def effective_params(root, profile=None, path=None):
    "`params.yaml` under a profile, and under a file of other differences; names and kinds checked."
    params = load_params(root)
    if profile == params["profile"]:
        profile = None
    if profile and params["profile"] != "demo":
        raise FacelabError(
            f"params.yaml holds the profile {params['profile']!r}: leave --profile out, or go back with `make profile"
            " PROFILE=demo` first"
        )
    for file in filter(None, (profile and Path(root) / "profiles" / f"{profile}.yaml", path)):
        params = check_params(merge(params, read_yaml(file), file), file)
    return {**params, "profile": profile or params["profile"]}


def fingerprint(pack):
    "What identifies a face set: the hash of its file, or of the list of its shards."
    from facelab.faces.sets import find_set_file

    if file := find_set_file(pack):
        return sha256(file)
    return hashlib.sha256(json.dumps(open_pack(pack).shards.rows).encode()).hexdigest()[:16]


def pack_beside(pack, side):
    "Where the pack of the same faces at another side lies: its name ends in the side."
    from facelab.faces.sets import find_set_file

    file = find_set_file(pack)
    return str(beside(file, side)) if file else f"{str(pack).rstrip('/')}_{side}"


def pack_at(pack, side=None):
    "The pack of the same faces at a side if it lies beside `pack`, else `pack` itself."
    from facelab.fleet.sets import read_file

    if not side:
        return pack
    other = pack_beside(pack, side)
    there = Path(other).is_file() if other.endswith(".safetensors") else read_file(other, "index.json")
    return other if there else pack


@lru_cache(maxsize=2)
def open_pack(pack):
    "The face set of a pack, opened once a process."
    from facelab.faces.sets import FaceSet, find_set_file

    if file := find_set_file(pack):
        return FaceSet.load(file)
    from facelab.faces.shards import open_shards

    return open_shards(pack)


@contextmanager
def try_lock(path, wait=False):
    "True inside `with` if the lock is ours; the system takes it from a process that dies."
    try:
        import fcntl
    except ImportError:
        raise FacelabError("training locks what it makes, which works on Linux and macOS: use one of these") from None
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def make_recipe(grid, name, deadline=None, progress=True):
    """Train one recipe and score it, as far as that is not done; False if time was up before.

    The caller holds the recipe's lock."""
    first = int(os.environ.get("RANK", 0)) == 0
    recipe = resolve(name, grid.recipes, grid.params)
    if not grid.is_trained(name) and (first or recipe["stages"]):
        run = train_recipe(grid, name, recipe, deadline, progress)
        if not run.done:
            return False
    if first and not grid.is_done(name):
        score(grid, name)
    return True


def train_recipe(grid, name, recipe, deadline=None, progress=True):
    "Train one recipe where the grid keeps it, and report it."
    import torch

    from facelab.training.loop import run_report, train

    if recipe["compile"]:
        torch.compiler.reset()  # what other recipes compiled would count towards torch's limit
    settings, made_from, faces = grid.params["train"], grid.training(name), grid.open_faces(name)
    if grid.params["data"]["paper_sizes"]:
        recipe = {**recipe, "size": faces.size}

    def finish(run):
        report = json.dumps(run_report(run, made_from["faces"]), indent=1) + "\n"
        write_text(grid.out / "runs" / f"{name}.json", report)
        write_record(grid.record(name), made_from)

    return train(
        recipe,
        faces,
        grid.folder(name),
        grid.out / "history" / f"{name}.csv",
        grid.out / "state" / f"{name}.safetensors",
        {"code": made_from["source"]["modules"], "faces": made_from["faces"]},
        device=settings["device"],
        checkpoint_seconds=settings["checkpoint_seconds"],
        helpers=grid.out / "helpers",
        features=grid.out / "models" / "features",
        progress=progress,
        deadline=deadline,
        finish=finish,
    )


def score(grid, name):
    "Restore the test faces and score them, with the functions and in the places of the pipeline."
    import torch

    from facelab.base.devices import pick_device
    from facelab.evaluation.restore import Restoration, update_restored
    from facelab.evaluation.judges import Judges
    from facelab.evaluation.metrics import write_scores
    from facelab.evaluation.scores import score_faces

    recipe, made_from = grid.recipes[name], grid.scoring(name)
    faces, device = grid.open_faces(name).subset("test"), pick_device(grid.params["train"]["device"])
    torch.set_num_threads(grid.params["train"]["threads"])
    what, batch = Restoration(name, name, recipe["inputs"]), grid.params["evaluate"]["batch"]
    inputs = write_test_inputs(grid, recipe, faces, device).parent
    restored, scores = (grid.out / folder / recipe["paper"] for folder in ("restored", "scores"))
    update_restored(
        what, grid.folder(name), inputs, faces.names, restored, device, batch, {"code": made_from["code"]["restore"]}
    )
    judges = Judges(grid.out / "helpers", grid.out / "models" / "features", device)
    rows = score_faces(what, faces, inputs, restored, judges, grid.conventions(), batch)
    write_scores(scores / f"{what.where}.csv", rows)
    if not grid.restored:
        shutil.rmtree(restored / what.where)
    write_record(grid.record(f"{name}.scores"), made_from)


def write_test_inputs(grid, recipe, faces, device):
    "The folder of the degraded test faces of a recipe, which are made if they are not there."
    from facelab.evaluation.inputs import write_inputs

    if grid.inputs:
        return Path(grid.inputs) / recipe["inputs"]
    folder, what = grid.out / "inputs" / recipe["inputs"], f"inputs@{recipe['inputs']}"
    made_from = grid.inputs_from(recipe["inputs"])
    with try_lock(grid.lock(what), wait=True):
        if not (record_matches(grid.record(what), made_from) and (folder / "manifest.json").exists()):
            write_inputs(folder, faces, recipe["degradation"], grid.params["seed"], device)
            write_record(grid.record(what), made_from)
    return folder
