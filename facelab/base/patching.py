"""Methods in cells of their own: a long class is taught method by method.

fastcore has the same decorator; facelab trains on machines with torch and little else, so the few lines are here.
"""


def patch(method=None, *, as_prop=False, cls_method=False):
    """Add a function to the class that annotates its first argument: `def take(self: FaceSet, indices)`.

    `as_prop` makes it a property, `cls_method` a class method. The name stays free in the module.
    """
    if method is None:
        return lambda method: patch(method, as_prop=as_prop, cls_method=cls_method)
    owner = next(iter(method.__annotations__.values()))
    method.__qualname__ = f"{owner.__name__}.{method.__name__}"
    setattr(owner, method.__name__, property(method) if as_prop else classmethod(method) if cls_method else method)
    return method.__globals__.get(method.__name__)
