"""A run's tables and verdicts, copied into `results/` with all that one must know to judge them.

Only numbers are copied, no pictures: those of a run on real faces show people. A demo is not published, because its
numbers prove nothing about a paper.
"""

import json
import shutil
from pathlib import Path

from facelab import FacelabError
from facelab.base.files import write_text
from facelab.base.params import load_params
from facelab.pipeline.inventory import printed_files

COMMON = ("revision", "python", "torch", "device", "processes", "threads")


def reports(root):
    "What each recipe's training said of itself: name -> build/runs/<name>.json."
    folder = root / "build" / "runs"
    runs = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    if not runs:
        raise FacelabError(f"{folder} has no run: train first, with `make repro`")
    return runs


def refuse_unfinished(root):
    "`FacelabError` unless every table of every paper and the claims are there."
    build = root / "build"
    needed = [build / "faces.json", build / "claims" / "claims.csv", build / "claims" / "claims.md"]
    needed += [build / file for file in printed_files(root) if file.parts[0] == "tables"]
    missing = [path for path in needed if not path.exists()]
    if missing:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FacelabError(f"{missing[0]} is missing{more}: finish the run with `make repro` before you publish it")


def refuse_mixed(runs):
    "`FacelabError` unless all recipes were trained by one revision, and on one face set (of each size)."
    first = {}
    for name, run in runs.items():
        told = {"revision": run["revision"], f"faces of size {run['recipe'].get('size')}": run["faces_sha256"]}
        for what, value in told.items():
            other, its = first.setdefault(what, (name, value))
            if its != value:
                raise FacelabError(
                    f"the run is mixed: {other} was trained with {what} {its}, {name} with {value}: remove the models"
                    " of one of them, or build/, and run `make repro` to the end"
                )


def provenance(root, runs):
    "Profile, parameters, faces, revision, versions, device and time of the run in `build`."
    params, faces = load_params(root), json.loads((root / "build" / "faces.json").read_text("utf-8"))
    common = {key: " / ".join(sorted({str(run.get(key)) for run in runs.values()})) for key in COMMON}
    steps = {
        name: {k: run[k] for k in ("steps", "seconds", "images_per_second", "peak_memory_gib")}
        for name, run in runs.items()
        if run["steps"]
    }
    return {
        "profile": params["profile"],
        "faces": faces["name"],
        "faces_sha256": faces["sha256"],
        "test_faces": faces["test"],
        **common,
        "training_minutes": round(sum(s["seconds"] for s in steps.values()) / 60, 1),
        "params": params,
        "recipes": steps,
    }


def publish(root, name):
    "Copy tables and claims of `build` to `results/<name>`, whole or not at all; returns the folder."
    root = Path(root)
    if load_params(root)["profile"] == "demo":
        raise FacelabError(
            "params.yaml holds the profile 'demo', whose numbers are no results: choose another with `make profile"
            " PROFILE=real`, and run it"
        )
    refuse_unfinished(root)
    runs = reports(root)
    refuse_mixed(runs)
    build, out = root / "build", root / "results" / name
    half = out.with_name(f".{name}.half")
    shutil.rmtree(half, ignore_errors=True)
    try:
        shutil.copytree(build / "tables", half / "tables", ignore=shutil.ignore_patterns("*.tex", ".*"))
        for suffix in ("csv", "md"):
            shutil.copy(build / "claims" / f"claims.{suffix}", half)
        write_text(half / "run.json", json.dumps(provenance(root, runs), indent=1) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        half.rename(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return out
