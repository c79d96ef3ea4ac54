"""The user's settings of other programs, which must not change what a notebook makes, stay outside."""

import importlib.util
import os
from pathlib import Path


def leave_user_settings(folder):
    """Let kernels be those of this Python, with the defaults of IPython and matplotlib.

    JUPYTER_PATH and the user's own folders may hold another `python3`; an IPython profile and a matplotlibrc would
    change what notebooks do. `folder` is where IPython may keep what it keeps.
    """
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["IPYTHONDIR"] = str(folder / ".ipython")
    matplotlib = importlib.util.find_spec("matplotlib")
    os.environ["MATPLOTLIBRC"] = str(Path(matplotlib.origin).parent / "mpl-data" / "matplotlibrc")
