"""Run one pipeline notebook with papermill: parameters in, executed copy under `build/notebooks`, progress shown."""

import os
import re
import sys
from pathlib import Path

from facelab import FacelabError
from facelab.base.names import near
from facelab.base.params import project_root
from facelab.pipeline.surroundings import leave_user_settings

STAGES = ("draw", "faces", "synthesize", "samples", "train", "restore", "score", "tables", "figures")
STAGES += ("architecture", "claims")


def run(stage, item=None, root=None):
    "Execute `nbs/pipeline/<stage>.ipynb`, for one recipe or paper if `item` is given."
    root = Path(root or project_root())
    if stage not in STAGES:
        raise FacelabError(f"unknown stage {stage!r}: {near(stage, STAGES)}")
    # jsonschema would parse the grammar of addresses, most of a second, for a format that notebooks do not have
    sys.modules.setdefault("rfc3987_syntax", None)
    import papermill

    name = f"{stage}@{item}" if item else stage
    folder = root / "build" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    leave_user_settings(folder)
    try:
        papermill.execute_notebook(
            root / "nbs" / "pipeline" / f"{stage}.ipynb",
            folder / f"{name}.ipynb",
            parameters={"item": item} if item else {},
            kernel_name="python3",
            cwd=str(root),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            log_output=False,
            extra_arguments=["--log-level=40"],  # the kernel warns about its transport at every start
        )
    except papermill.PapermillExecutionError as error:
        raise FacelabError(sentence(error, folder / f"{name}.ipynb")) from None


def sentence(error, notebook):
    "One line: the user's mistakes as they were raised, anything else with the executed notebook."
    if error.ename == "FacelabError":
        return re.sub(r"\s+", " ", error.evalue).strip()
    return (
        f"cell {error.exec_count} of {notebook} failed with {error.ename}:"
        f" {error.evalue.splitlines()[0] if error.evalue else ''} (open the notebook to see where)"
    )


def test_all():
    """`nbdev_test` in one process; returns the exit status.

    Its pictures have twice the pixels of a screen on each side, are drawn twice to be cut, and are packed as small as
    can be, which is a third of the time. Here they are drawn once."""
    import nbdev.test
    from execnb.shell import CaptureShell
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    class Shell(CaptureShell):
        def __init__(self, path):
            super().__init__(path)
            set_matplotlib_formats("png", bbox_inches=None, pil_kwargs={"compress_level": 1})

    nbdev.test.CaptureShell = Shell
    try:
        nbdev.test.nbdev_test(n_workers=1)
    except SystemExit as stop:
        return stop.code
    return 0
