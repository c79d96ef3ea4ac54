"""What DVC must know of this machine, in .dvc/config.local: where the faces of `real` lie, that git is missing."""

import os
import subprocess
import sys
from pathlib import Path

from facelab import FacelabError
from facelab.base.files import write_text


def dvc(root, *words):
    "Run DVC in the project; `FacelabError` with its last words if it fails."
    command = [sys.executable, "-m", "dvc", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "no reason")
        raise FacelabError(f"dvc {' '.join(words)} failed: {reason.removeprefix('ERROR: ')}")


def put(root, section, name, value):
    "Write one setting into .dvc/config.local as UTF-8, which `dvc config` does not; None removes it."
    from configobj import ConfigObj

    local = Path(root) / ".dvc" / "config.local"
    lines = local.read_text("utf-8").splitlines() if local.exists() else []
    config = ConfigObj(lines, encoding="utf-8", interpolation=False)
    if value is None:
        config.get(section, {}).pop(name, None)
    else:
        config.setdefault(section, {})[name] = value
    write_text(local, "\n".join(line.decode() for line in config.write()) + "\n")


def allow_no_git(root):
    "Let DVC work in a folder that git knows nothing of, such as an unpacked archive, and again with git once it does."
    root = Path(root).resolve()
    local, without = root / ".dvc" / "config.local", not any((d / ".git").exists() for d in (root, *root.parents))
    known = local.exists() and "no_scm = true" in local.read_text("utf-8")
    if without != known:
        put(root, "core", "no_scm", "true" if without else None)


def adopt(root, folder):
    "Check a set of faces and make it the one that the data source `real` reads; 1 if it cannot be used."
    from facelab.faces.sets import main as faces

    root, folder = Path(root), os.path.abspath(os.path.expanduser(folder))
    if status := faces(["check", folder]):
        return status
    allow_no_git(root)
    local = root / ".dvc" / "config.local"
    before = local.read_text("utf-8") if local.exists() else None
    try:
        put(root, 'remote "faces"', "url", folder)
        dvc(root, "update", "data.dvc")
    except BaseException:
        local.unlink(missing_ok=True) if before is None else write_text(local, before)
        raise
    print(f"data.dvc is the set in {folder}; with `source: real` in params.yaml, `make repro` learns from it")
    return 0
