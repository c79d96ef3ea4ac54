"""The order of the package's folders: each imports only from those before it, lazy imports included."""

import pytest

import facelab
from facelab.pipeline.sources import imports
from pathlib import Path

ORDER = [
    "base",
    "faces",
    "degradations",
    "networks",
    "losses",
    "systems",
    "training",
    "evaluation",
    "publication",
    "pipeline",
    "fleet",
    "apps",
]
PACKAGE = Path(facelab.__file__).parent
MODULES = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.glob("*/*.py")}
NEIGHBOURS = {("networks", "losses"), ("losses", "networks")}
BY_NAME = {("facelab.networks.registry", "facelab.systems")}  # asked for all networks, it imports the systems too


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_folder_imports_only_from_those_before_it(module):
    own = module.split(".")[1]
    for name in imports(MODULES[module].read_text(), module):
        room = name.split(".")[1] if name != "facelab" else ORDER[0]
        if room in ORDER and (own, room) not in NEIGHBOURS and (module, name) not in BY_NAME:
            assert ORDER.index(room) <= ORDER.index(own), f"{module} imports {name}"


def test_two_modules_at_most_lie_beside_the_folders():
    assert len([p for p in PACKAGE.glob("*.py") if p.name != "__init__.py"]) <= 2
