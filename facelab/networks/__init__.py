"""Every network by its name, one file each; `create` builds one."""

from facelab.base.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "registry": ["create", "entries", "example", "find"],
    },
)
