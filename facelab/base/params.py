"""Where the project is, its parameters, and how a profile changes them."""

import copy
import io
import subprocess
from pathlib import Path

import yaml

from facelab import FacelabError
from facelab.base.files import write_text
from facelab.base.names import check_keys, near


def project_root(start="."):
    "The folder that holds `params.yaml` and `dvc.yaml`: `start` or the nearest of its parents."
    here = Path(start).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").exists() and (folder / "params.yaml").exists():
            return folder
    raise FacelabError(
        f"no facelab project at {here} or above it (dvc.yaml and params.yaml are missing): run this inside a clone"
    )


LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where PyYAML was built with it


def read_yaml(path):
    "A YAML file as a dict; `FacelabError` for a file that is missing, malformed, or not a mapping."
    path = Path(path)
    try:
        data = yaml.load(path.read_text("utf-8"), LOADER)
    except FileNotFoundError:
        raise FacelabError(f"{path} does not exist: restore it with `git checkout {path.name}`") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise FacelabError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from None
    if not isinstance(data, dict):
        raise FacelabError(f"{path} must hold a mapping, not {type(data).__name__}")
    return data


WHOLE = ("instead",)  # a profile replaces these; of other sections it changes single values


def merge(base, change, where="profile"):
    "`base` with the leaves of `change` put in; a key that `base` lacks is an error, not an addition."
    out = copy.deepcopy(base)
    check_keys(change, base, where)
    for key, value in change.items():
        nested = isinstance(value, dict) and isinstance(base[key], dict) and base[key] and key not in WHOLE
        out[key] = merge(base[key], value, f"{where}: {key}") if nested else value
    return out


def git(root, *words):
    "What a git command prints; None without git or a repository, and where git refuses or hangs."
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def load_params(root=None):
    "The effective parameters (`params.yaml`), checked against `facelab.base.schema`."
    from facelab.base.schema import check_params

    path = Path(root or project_root()) / "params.yaml"
    return check_params(read_yaml(path), path)


KEPT = ".params.demo.yaml"  # the demo's params.yaml while another profile is chosen, where git keeps none


def choose_profile(name, root=None):
    "Put `profiles/<name>.yaml` into `params.yaml` (comments stay); `demo` restores the committed file."
    from ruamel.yaml import YAML

    root = Path(root or project_root())
    known = ["demo", *sorted(p.stem for p in (root / "profiles").glob("*.yaml"))]
    if name not in known:
        raise FacelabError(f"unknown profile {name!r}: {near(name, known)}")
    committed = committed_params(root)
    if name == "demo":
        return write_text(root / "params.yaml", committed)
    if git(root, "show", "HEAD:./params.yaml") is None:
        write_text(root / KEPT, committed)
    text = YAML()
    text.preserve_quotes, text.width = True, 120
    text.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    params, change = text.load(committed), read_yaml(root / "profiles" / f"{name}.yaml")
    merge(params, change, f"profiles/{name}.yaml")  # refuses unknown names before anything is written

    def put(into, values):
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(into[key], dict) and key not in WHOLE:
                put(into[key], value)
            else:
                into[key] = value

    put(params, {**change, "profile": name})
    out = io.StringIO()
    text.dump(params, out)
    write_text(root / "params.yaml", out.getvalue())


def committed_params(root):
    "The text of the demo's `params.yaml`: git's, else the present one, else the copy that `choose_profile` kept."
    if (committed := git(root, "show", "HEAD:./params.yaml")) is not None:
        return committed
    for path in (root / "params.yaml", root / KEPT):
        if path.exists() and yaml.safe_load(text := path.read_text("utf-8")).get("profile") == "demo":
            return text
    raise FacelabError(
        f"params.yaml is not the demo's, and neither git nor {KEPT} has that: unpack params.yaml again from where"
        " this project comes from"
    )
