"""Fingerprints of code: what a stage depends on, free of everything that does not change its result.

A pipeline stage must run again when the code of its notebook, a module that this notebook imports (directly or
through others), its recipe, or the numbers that a paper reports change, and must not run again for a comment, a
docstring, an executed output or a cell id. `write_sources` puts one small JSON file per stage into
`build/sources`; DVC watches those files. The diff of such a file names what changed.
"""

import ast
import hashlib
import json
import re
from functools import lru_cache, reduce
from operator import getitem
from pathlib import Path

from facelab import FacelabError
from facelab.base.params import load_params, read_yaml
from facelab.base.names import near
from facelab.base.files import sha256, write_text
from facelab.pipeline.sizes import more_sides, sides_of
from facelab.training.recipes import unseen_inputs, load_degradations, load_recipes, resolve


def _without_docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


@lru_cache(maxsize=None)
def digest(code):
    "SHA-256 of Python code without comments, docstrings, layout and position."
    return hashlib.sha256(ast.unparse(_without_docstrings(ast.parse(code))).encode()).hexdigest()[:16]


def notebook_code(path):
    "The code cells of a notebook, in order, joined; outputs, ids, metadata and prose do not count."
    try:
        cells = json.loads(Path(path).read_text("utf-8"))["cells"]
    except FileNotFoundError:
        raise FacelabError(f"the pipeline notebook {path} does not exist: restore it with git") from None
    except (json.JSONDecodeError, KeyError) as error:
        raise FacelabError(f"{path} is not a notebook ({error}): restore it with git") from None
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@lru_cache(maxsize=None)
def imports(code, module=""):
    "Names of the facelab modules that this code imports, anywhere in it; `module` is its own name."
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in found if name.split(".")[0] == "facelab")


@lru_cache(maxsize=None)
def module_code(name, root):
    "Source of one facelab module, or None if `name` is not a module (but, say, a function in one)."
    base = Path(root, *name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path.read_text("utf-8")
    return None


# modules that can stop a stage, but not change what it makes
REFUSING = {"facelab.base.schema", "facelab.moved"}


def closure(names, root):
    "All facelab modules reached from `names` through imports, with the fingerprint of each."
    seen, todo = {}, sorted(names)
    while todo:
        name = todo.pop()
        code = None if name in seen or name in REFUSING else module_code(name, str(root))
        if code is not None:
            seen[name] = digest(code)
            todo += sorted(imports(code, name))
    return dict(sorted(seen.items()))


def modules_in(recipe):
    "Modules that are named in `use:` fields, anywhere in a recipe."
    if isinstance(recipe, dict):  # "networks.srresnet.SRResNet" stands in facelab.networks.srresnet
        own = {"facelab." + recipe["use"].rpartition(".")[0]} if "." in str(recipe.get("use", "")) else set()
        return own.union(*(modules_in(value) for value in recipe.values()))
    return set().union(*map(modules_in, recipe)) if isinstance(recipe, list) else set()


PARAMETERS = {  # stage -> what it reads of params.yaml; of a recipe's parameters, `train` sees the result
    "draw": ("draw", "seed", "data.size"),
    "faces": ("data",),
    "synthesize": ("seed",),
    "samples": ("figures.dpi",),
    "restore": ("evaluate.more",),
    "score": ("evaluate.more", "evaluate.convention", "seed"),
    "tables": ("profile", "seed", "evaluate"),
    "figures": ("profile", "seed", "evaluate", "figures"),
    "claims": ("profile", "seed", "evaluate", "figures.dpi"),
    "architecture": ("figures.dpi",),
}


def stage_source(root, notebook, params, about=None):
    "What one stage depends on besides data: code, parameters, and the recipe or paper that it is `about`."
    code = notebook_code(root / "nbs" / "pipeline" / f"{notebook}.ipynb")
    modules = closure(imports(code) | modules_in(about) | {"facelab.pipeline.notebooks"}, root)
    values = {name: reduce(getitem, name.split("."), params) for name in PARAMETERS.get(notebook, ())}
    return {"notebook": digest(code), "modules": modules, "parameters": values, "about": about}


def recipe_sources(root, recipes, params):
    "Training depends on the whole recipe, but not on its name in a table."
    for name in recipes:
        full = resolve(name, recipes, params)
        about = {k: v for k, v in full.items() if k not in ("label", "needs")}
        yield f"train@{name}", stage_source(root, "train", params, about)


def networks(names, recipes, params):
    "What restoring depends on besides weights: the networks, and which inputs they are given."
    return {
        name: {k: v for k, v in resolve(name, recipes, params).items() if k in ("inputs", "generator")}
        for name in names
    }


def paper_sources(root, recipes, params):
    """Restoring depends on which systems are given which inputs and on their networks, not on how they were trained;
    scores depend on which systems there are; tables, figures and drawings on what the paper reports and on the names
    of rows; claims on all papers."""
    papers, sides = read_papers(root), of_sides(sides_of(load_degradations(root), params["data"]))
    rows = {name: r for name, r in recipes.items() if r["kind"] == "recipes"}
    labels = {name: r["label"] for name, r in rows.items()}
    for paper in evaluated_papers(root):
        says = papers.get(paper, {})
        wanted = says.get("evaluate") or []
        names = {name for name, r in rows.items() if r["paper"] == paper}
        names |= {name for entry in wanted for name in entry["systems"]} & recipes.keys()
        asked = {"evaluate": wanted, "systems": sorted(names), "identification": says.get("identification")}
        depends = {
            "restore": {"evaluate": wanted, **networks(sorted(names), recipes, params)},
            "score": asked | sides,
        }
        for stage in ("tables", "figures"):
            for field in ("convention", stage):
                if field not in says:
                    raise FacelabError(
                        f"{root / 'papers' / paper}.yaml lacks {field!r}, which the stage {stage} needs: add it"
                    )
            depends[stage] = {"labels": labels, "convention": says["convention"], stage: says[stage], **sides}
        if published := published_numbers(root, paper, params):
            depends["tables"]["published"] = published
        if "architecture" in says:
            depends["architecture"] = {field: says.get(field) for field in ("architecture", "layers")}
        for stage, about in depends.items():
            yield f"{stage}@{paper}", stage_source(root, stage, params, about)
    about = {"labels": labels, "claims": papers["claims"]}
    for paper, says in papers.items():
        about[paper] = {field: says.get(field) for field in ("tables", "convention", "deviations")}
    yield "claims", stage_source(root, "claims", params, about)


def published_numbers(root, paper, params):
    "Hashes of what tables of a demo show of published runs, by their files."
    results = root / "results"
    if params["profile"] != "demo":
        return {}
    paths = sorted([*results.glob("*/run.json"), *results.glob(f"*/tables/{paper}/*.csv")])
    return {str(path.relative_to(results)): sha256(path) for path in paths}


def labeller_hashes(folder, root="."):
    "Hashes of the models that predict labels, by their paths; none, where data.labeller names no folder."
    paths = sorted((Path(root) / folder).rglob("generator.safetensors")) if folder else []
    return {str(path.relative_to(Path(root) / folder)): sha256(path) for path in paths}


def of_sides(sides):
    "Which chains have faces of another side than `data.size`, as a stage depends on it; nothing, if none has."
    return {"sides": sides} if sides else {}


def read_papers(root):
    "What `papers/*.yaml` say, by the names of the files."
    return {path.stem: read_yaml(path) for path in sorted((root / "papers").glob("*.yaml"))}


def evaluated_papers(root):
    "The papers whose systems are restored and scored, as dvc.yaml has them."
    found = [read_yaml(path).get("evaluated") or {} for path in sorted((root / "recipes").glob("*.yaml"))]
    return list(dict.fromkeys(paper for some in found for paper in some))


VARS = re.compile(r"(?m)^vars:\n((?:  - .*\n)+)")
HEADINGS = {"evaluated", "helpers", "papers", "priors", "recipes"}  # that dvc.yaml makes stages of


def recipe_files(root):
    "The files of recipes/ that dvc.yaml reads."
    return [p.name for p in sorted((root / "recipes").glob("*.yaml")) if read_yaml(p).keys() & HEADINGS]


def list_recipe_files(root):
    "Bring the list `vars` of dvc.yaml up to date with the folder recipes/."
    path = root / "dvc.yaml"
    lines = "".join(f"  - recipes/{name}\n" for name in recipe_files(root))
    text = path.read_text("utf-8")
    if VARS.search(text)[1] != lines:
        write_text(path, VARS.sub(lambda _: "vars:\n" + lines, text, count=1))


def check_project(root):
    "Parameters and recipes, read and checked; the real faces must be there if they are asked for."
    params, recipes = load_params(root), load_recipes(root)
    if params["data"]["source"] not in ("drawn", "real"):
        raise FacelabError(f"unknown data.source {params['data']['source']!r} in params.yaml: choose drawn or real")
    if params["data"]["source"] == "real" and not (root / "data" / "real").exists():
        raise FacelabError(
            "data.source in params.yaml is `real`, but data/real does not exist: bring your faces with `make faces"
            " FROM=/path/to/folder`"
        )
    known = [*recipes, *{r["paper"] for r in recipes.values()}]
    for name in params["instead"]:
        if name not in known:
            raise FacelabError(
                f"instead of params.yaml names {name!r}, which is no paper and no recipe: {near(name, known)}"
            )
    for name in recipes:
        resolve(name, recipes, params)
    missing = [name for name in recipe_files(root) if f"recipes/{name}\n" not in (root / "dvc.yaml").read_text("utf-8")]
    if missing:
        raise FacelabError(
            f"dvc.yaml does not read recipes/{missing[0]}: list it with `python -m facelab.pipeline recipes`"
        )
    return params, recipes


def check_chains(root):
    "`check_project`, and every chain of degradations built, which imports torch; the parameters and recipes."
    checked = check_project(root)
    from facelab.degradations.chain import Chain

    for name, chain in load_degradations(root).items():
        try:
            Chain(chain["steps"])
        except FacelabError as error:
            raise FacelabError(f"the degradation {name!r} of recipes/: {error}") from None
    return checked


def write_sources(root):
    "Write `build/sources/<stage>.json` for every stage; files whose content is unchanged are left alone."
    params, recipes = check_project(root)
    papers, chains = read_papers(root), load_degradations(root)
    sides, unseen = sides_of(chains, params["data"]), unseen_inputs(papers)
    faces = {"first": more_sides(sides), "unseen": more_sides(sides, unseen)} if sides else None
    out = {name: stage_source(root, name, params, faces) for name in ("draw", "faces")}
    if models := labeller_hashes(params["data"]["labeller"], root):
        out["faces"]["labeller"] = models
    steps = {name: chain["steps"] for name, chain in chains.items()}
    out["synthesize"] = stage_source(root, "synthesize", params, {**steps, "unseen": unseen, **of_sides(sides)})
    samples = {paper: says.get("samples", {}) for paper, says in papers.items()}
    out["samples"] = stage_source(root, "samples", params, {**samples, **of_sides(sides)})
    out |= dict(recipe_sources(root, recipes, params)) | dict(paper_sources(root, recipes, params))
    folder = root / "build" / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        if path.stem not in out:
            path.unlink()
    for name, source in out.items():
        path, text = folder / f"{name}.json", json.dumps(source, indent=1, sort_keys=True) + "\n"
        if not path.exists() or path.read_text("utf-8") != text:
            write_text(path, text)
    return sorted(out)
