"""Short names: a package offers names of its modules, and imports a module when one of its names is used."""

import importlib

from facelab.moved import NAMES


def lazy_names(package, names):
    "`__getattr__` and `__dir__` of a package; `names`: module -> the names that the package offers."
    where = {name: module for module, some in names.items() for name in some}
    moved = NAMES.get(package.partition(".")[2], {})

    def __getattr__(name):
        if name in where:
            return getattr(importlib.import_module(f"{package}.{where[name]}"), name)
        if name in moved:
            raise ImportError(f"{package}.{name} has moved: it is now facelab.{moved[name]}", name=package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__, lambda: sorted(where)
