"""Short names for people: a package lends names from its modules, which are imported when a name is asked for."""

import importlib

from facelab.moved import NAMES


def lazy_names(package, names):
    "`__getattr__` and `__dir__` of a package; `names`: module -> the names that it lends."
    where = {name: module for module, some in names.items() for name in some}
    moved = NAMES.get(package.partition(".")[2], {})

    def __getattr__(name):
        if name in where:
            return getattr(importlib.import_module(f"{package}.{where[name]}"), name)
        if name in moved:
            raise ImportError(f"{package}.{name} has moved: it is now facelab.{moved[name]}", name=package)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__, lambda: sorted(where)
