"""facelab: five papers on restoring degraded face images, side by side and reproducible."""

from facelab import moved as _moved  # noqa: F401  (old names of modules are answered with the new ones)

__version__ = "0.1.0"


class FacelabError(ValueError):
    "A user's problem in one sentence: what is wrong, where, and what to do."
