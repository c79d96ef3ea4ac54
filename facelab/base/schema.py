"""The names and kinds of all parameters.

This decides only what is refused, never what is made, so no stage of the pipeline depends on it.
"""

import re

from facelab import FacelabError
from facelab.base.names import check_keys

NUMBER = int | float
SECTIONS = {
    "profile": str,
    "seed": int,
    "data": {
        "source": str,
        "split": str,
        "size": int,
        "paper_sizes": bool,
        "unseen": str,
        "parsing": str,
        "landmarks": str,
        "labeller": str | None,
    },
    "draw": {"train": int, "val": int, "test": int, "unseen": int},
    "train": {
        "steps": int | None,
        "seconds": NUMBER | None,
        "min_steps": int,
        "batch": int | None,
        "width": NUMBER,
        "depth": NUMBER,
        "optimiser": str | None,
        "lr": NUMBER | None,
        "warmup": int | None,
        "schedule": str | dict | None,
        "start": str,
        "critics_from": NUMBER,
        "penalty_every": int | None,
        "from_parts": bool,
        "clip": NUMBER | None,
        "ema": NUMBER,
        "statistics": int,
        "validate": int,
        "threads": int,
        "device": str,
        "precision": str,
        "compile": bool,
        "backend": str,
        "channels_last": bool | None,
        "checkpoint_seconds": NUMBER,
        "log_every": int,
    },
    "instead": dict,
    "perceptual": {
        "source": str,
        "network": str,
        "layers": list,
        "file": str | None,
        "scale": NUMBER | str | dict | None,
    },
    "evaluate": {"batch": int, "more": int | None, "bootstrap": int, "convention": str | None},
    "figures": {"faces": int, "dpi": int, "photos": str | None},
}


def check_params(params, where):
    """The same parameters, if they are complete and each is of its kind.

    A missing or unknown one, or one of another kind, raises `FacelabError` that names `where` it stands.
    """
    check_keys(params, SECTIONS, where)
    for section, known in SECTIONS.items():
        if section not in params:
            raise FacelabError(f"{where} lacks the section {section!r}: compare it with `git show HEAD:params.yaml`")
        if not isinstance(known, dict):
            check_kind(params[section], known, f"{where}: {section}")
            continue
        check_section(params[section], known, f"{where}: {section}")
        missing = [k for k in known if k not in params[section]]
        if missing:
            raise FacelabError(f"{where}: {section} lacks {missing[0]!r}: compare it with `git show HEAD:params.yaml`")
    for name, change in params["instead"].items():
        check_section(change, SECTIONS["train"], f"{where}: instead: {name}")
    return params


def check_section(values, known, where):
    "Raise `FacelabError` if a parameter of a section has an unknown name or another kind."
    check_kind(values, dict, where)
    check_keys(values, known, where)
    for name, value in values.items():
        check_kind(value, known[name], f"{where}: {name}")


KIND_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}


def check_kind(value, kind, where):
    """Refuse a value of another kind: the text "false" would count as true, and YAML reads 1e-3 as text."""
    kinds = getattr(kind, "__args__", (kind,))
    if isinstance(value, kind) and (bool in kinds or not isinstance(value, bool)):
        return
    wanted = [KIND_NAMES[k] for k in kinds if not (k is int and float in kinds)]
    hint = ": write 0.001 for 1e-3" if isinstance(value, str) and re.fullmatch(r"-?\d+e-?\d+", value) else ""
    raise FacelabError(f"{where} must be {' or '.join(wanted)}, not {value!r}{hint}")
