"""Face sets: real ones and drawn ones, their labels, and how they are stored."""

from facelab.base.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "sets": ["FaceSet", "check_faces", "open_faces"],
        "drawn": ["draw_faces", "draw_set"],
        "shards": ["check_shards", "open_shards", "write_shards"],
        "parts": ["align", "parts_table"],
    },
)
