"""facelab: five papers on restoring degraded face images, side by side and reproducible."""

__version__ = "0.1.0"


class FacelabError(ValueError):
    "A user's problem in one sentence: what is wrong, where, and what to do."
