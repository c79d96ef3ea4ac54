"""The side of the faces belongs to a chain of degradations, because each paper's faces have a side of their own.

A chain may say `size`. Where `data.paper_sizes` is true its faces have that side, all others `data.size`. A set lies in
a folder: the faces of `data.size` in `faces.safetensors`, those of another side in a file beside it, such as
`faces_256.safetensors`. They are the same faces, with the same names in the same splits.
"""

from pathlib import Path

from facelab import FacelabError


def side_of(chain, data):
    "The side of a chain's faces in pixels, or None for `data.size`; `data` is the section of the parameters."
    side = chain.get("size") if data["paper_sizes"] else None
    return None if side == data["size"] else side


def sides_of(chains, data):
    "Chain -> side, of the chains whose faces do not have `data.size`; `chains` as `load_degradations` returns them."
    return {name: side for name, chain in chains.items() if (side := side_of(chain, data))}


def side_on(on, sides):
    "The side of the faces of a folder of inputs, such as `x8` or `x8@unseen`; `sides` as `sides_of` returns them."
    return sides.get(on.partition("@")[0])


def more_sides(sides, unseen=None):
    """The sides besides `data.size`, rising; with `unseen`, those that the second set must have.

    `sides` as `sides_of` returns them, `unseen` as `unseen_inputs` returns it."""
    return sorted(set(sides.values()) if unseen is None else {side_on(on, sides) for on in unseen} - {None})


def beside(path, side):
    "The file of the same faces at another side, or without `side` the file itself."
    path = Path(path)
    return path.with_name(f"{path.stem}_{side}{path.suffix}") if side else path


def faces_at(folder, side=None):
    "The `FaceSet` of a folder of the pipeline at a side, None for `data.size`; `FacelabError` if it is not there."
    from facelab.faces.sets import FaceSet

    whole, other = Path(folder) / "faces.safetensors", beside(Path(folder) / "faces.safetensors", side)
    faces = FaceSet.load(other if other.exists() else whole)
    if side and faces.size != side:
        raise FacelabError(f"{folder} has no faces of {side} pixels: make them with `dvc repro faces`")
    return faces


def faces_for(folder, recipe, data):
    """The `FaceSet` that a resolved recipe learns from, and the recipe.

    With `data.paper_sizes` it says the side: a helper later sees pictures at the side that it learned from."""
    faces = faces_at(folder, recipe.get("size"))
    return faces, {**recipe, "size": faces.size} if data["paper_sizes"] else recipe


def open_faces_at(path, side, names, split="set", part=None):
    """The faces of a folder that the user names, at another side; `names` are those of its faces at `data.size`.

    `split` as for `open_faces`; `part` takes some of the faces, such as `test_part`.

    No picture is enlarged. `FacelabError` if the folder has no such faces, or other ones."""
    from facelab.faces.sets import FaceSet, find_set_file, open_faces

    saved = find_set_file(path)
    try:
        if saved and (other := beside(saved, side)).exists():
            faces = FaceSet.load(other)
        else:
            faces = open_faces(path, side, max_enlargement=1, split=split)
        faces = part(faces) if part else faces
        if (faces.size, list(faces.names)) != (side, list(names)):
            raise FacelabError(f"{faces.name} has other faces there than at data.size")
    except FacelabError as error:
        raise FacelabError(
            f"a chain in recipes/ has faces of {side} pixels, which {path} cannot give"
            f" ({str(error).partition(': ')[0]}): set data.paper_sizes to false in params.yaml, or use a set with"
            " larger pictures"
        ) from None
    return faces


class TrueFaces(dict):
    """The true faces of each folder of inputs, such as `x8` (of the test split) or `x8@unseen`, opened when asked for.

    `true["test"]` has `data.size`."""

    def __init__(self, sides, build="build"):
        super().__init__()
        self.sides, self.build = sides, Path(build)

    def __missing__(self, on):
        "The faces of `on`; chains of one side share them."
        side, unseen = side_on(on, self.sides), on.endswith("@unseen")
        if (side, unseen) not in self:
            faces = faces_at(self.build / ("unseen" if unseen else "faces"), side)
            self[side, unseen] = faces if unseen else faces.subset("test")
        return self[side, unseen]
