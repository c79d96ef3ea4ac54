"""The ground: pictures, random numbers, devices, names, files, parameters."""

from facelab.base.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "images": ["astronaut", "read_image", "show", "write_image"],
        "dice": ["Dice"],
        "devices": ["pick_device"],
    },
)
