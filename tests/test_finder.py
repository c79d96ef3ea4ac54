"""Faces in photographs: upright and turned, large and small, several, cut by the border, and none."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from facelab import FacelabError
from facelab.apps.explorer import astronaut_landmarks
from facelab.base.dice import Dice
from facelab.base.images import to_float, to_uint8
from facelab.degradations.masks import FaceMask
from facelab.degradations.occlusion import Worn
from facelab.evaluation import finder
from facelab.evaluation.finder import (
    TURNS,
    are_faces,
    copies,
    find_faces,
    load_detector,
    separate,
    set_upright,
    turn_back,
)
from facelab.faces.drawn import draw_set
from facelab.faces.parts import five_points
from facelab.training.models import load_model
from facelab.training.zoo import SHIPPED

SCENE = (90, 110, 100)
EYES = five_points(astronaut_landmarks(176) + torch.tensor([136.0, 19]))[0, :2]  # of the whole astronaut


def pil(image):
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def landmarker():
    return load_model(SHIPPED / "landmarker")[0]


@pytest.fixture(scope="module")
def astronaut():
    return Image.open(files("skimage") / "data" / "astronaut.png").convert("RGB")


@pytest.fixture(scope="module")
def drawn():
    "Drawn faces with their points: one a person."
    return draw_set(8, 0, 0, size=256, seed=3, pictures_each=1)


@pytest.fixture(params=["landmarker", "detector", "both"])
def find(request, landmarker):
    "`find_faces` with each set of tools."
    detector = load_detector() if request.param != "landmarker" else None
    if request.param != "landmarker" and detector is None:
        pytest.skip("facelab[finder] is not installed")
    return lambda picture: find_faces(picture, None if request.param == "detector" else landmarker, detector)


@pytest.fixture
def find_any(landmarker):
    "`find_faces` with all tools that are installed: the landmarker looks where the detector finds nothing."
    return lambda picture: find_faces(picture, landmarker, load_detector())


def place(heads, places, size):
    "A picture with heads, each (picture, landmarks, side), at places; and their five points."
    scene, marks = Image.new("RGB", size, SCENE), []
    for (head, points, side), at in zip(heads, places):
        scene.paste(head.resize((side, side), Image.LANCZOS), at)
        marks.append(five_points(points[None])[0] * side / head.width + torch.tensor(at))
    return scene, torch.stack(marks)


def head(drawn, i, side):
    return Image.fromarray(drawn.images[i].permute(1, 2, 0).numpy()), drawn.landmarks[i], side


def errors(faces, truth):
    "Distance of the eyes' centres from the truth, of each face in order of the truth, in distances of the eyes."
    found = torch.stack([five_points(face.points[None])[0] for face in faces])
    nearest = torch.cdist(truth.mean(1).double(), found.mean(1)).argmin(1)
    apart = (truth[:, 1] - truth[:, 0]).norm(dim=1)
    return (found[nearest, :2] - truth[:, :2]).norm(dim=2).mean(1) / apart


@pytest.mark.parametrize("turn", TURNS)
def test_the_astronaut_is_found_whichever_way_up(find, astronaut, turn):
    (face,) = find(astronaut.rotate(turn, expand=True))
    assert face.turn == turn and 0.5 < face.score <= 1
    assert face.points.dtype == torch.float64
    eyes = turn_back(EYES, turn, astronaut.size)
    assert (face.points[:2] - eyes).norm(dim=1).max() < 0.15 * (eyes[1] - eyes[0]).norm()


@pytest.mark.parametrize("side", [64, 128, 256, 600])
@pytest.mark.parametrize("turn", [0, 90])
def test_drawn_faces_of_any_size_are_found_where_they_are(find, drawn, side, turn):
    scene, truth = place([head(drawn, 0, side)], [(side // 2, side // 3)], (2 * side + 100, side + side // 2))
    faces = find(scene.rotate(turn, expand=True))
    assert [face.turn for face in faces] == [turn]
    assert errors(faces, turn_back(truth, turn, scene.size)).max() < 0.15


def test_several_faces_are_all_found_the_largest_first(find, drawn):
    heads = [head(drawn, i, side) for i, side in enumerate((240, 180, 130))]
    scene, truth = place(heads, [(40, 300), (350, 60), (720, 330)], (900, 600))
    faces = find(scene)
    assert len(faces) == 3 and errors(faces, truth).median() < 0.06
    assert [face.side for face in faces] == sorted((face.side for face in faces), reverse=True)


def test_small_faces_in_a_large_photograph_need_the_detector(astronaut, landmarker):
    detector = load_detector()
    if detector is None:
        pytest.skip("facelab[finder] is not installed")
    scene, small = Image.new("RGB", (4000, 3000), SCENE), astronaut.resize((228, 228), Image.LANCZOS)  # faces of 40
    places = [(200, 300), (2000, 1500), (3500, 2500)]
    for at in places:
        scene.paste(small, at)
    faces = find_faces(scene, landmarker, detector)
    middles = sorted(tuple(face.points.mean(0).tolist()) for face in faces)
    assert len(middles) == 3
    for (x, y), (left, top) in zip(middles, places):
        assert abs(x - left - 224 * 228 / 512) < 6 and abs(y - top - 130 * 228 / 512) < 8


@pytest.mark.parametrize("width", [24, 40, 150, 1000])
def test_a_head_that_fills_its_picture(find, astronaut, width):
    (face,) = find(astronaut.crop((150, 0, 300, 190)).resize((width, round(width * 190 / 150)), Image.LANCZOS))
    assert face.turn == 0 and abs(face.side / width - 43 / 150) < 0.05


@pytest.mark.parametrize("box", [(222, 0, 512, 512), (0, 118, 512, 512), (0, 0, 226, 512), (0, 0, 512, 126)])
def test_half_a_face_at_the_border_is_none(find_any, astronaut, box):
    assert find_any(astronaut.crop(box)) == []


def test_masks_and_dark_glasses(find, drawn):
    found = []
    for kind, step in (("mask", FaceMask()), ("glasses", Worn(kind="sunglasses"))):
        for i in range(4):
            labels = {"landmarks": drawn.landmarks[i : i + 1]}
            hidden = step.degrade(to_float(drawn.images[i : i + 1]), Dice(0, kind, [i]), labels).input[0]
            scene = Image.new("RGB", (400, 300), SCENE)
            scene.paste(pil(hidden).resize((200, 200), Image.LANCZOS), (90, 40))
            found.append([face.turn for face in find(scene)])
    assert found.count([0]) >= 6 and all(turns in ([0], []) for turns in found), found


def things():
    rng = np.random.default_rng(0)
    for name in ("chelsea", "coffee", "rocket", "brick", "coins", "page", "gravel", "text"):
        yield name, Image.open(files("skimage") / "data" / f"{name}.{'jpg' if name == 'rocket' else 'png'}")
    for side in (4, 32, 256):
        noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        yield f"noise of {side}", Image.fromarray(noise).resize((400, 300), Image.BICUBIC)
    ramp = np.broadcast_to(np.linspace(0, 255, 300)[None, :, None], (200, 300, 3))
    yield "gradient", Image.fromarray(ramp.astype(np.uint8))
    yield "one pixel", Image.new("RGB", (1, 1))
    yield "a line", Image.new("RGB", (3000, 2))


@pytest.mark.parametrize("name, picture", list(things()), ids=lambda x: x if isinstance(x, str) else "")
def test_nothing_is_found_where_nobody_is(find_any, name, picture):
    assert find_any(picture.convert("RGB")) == []


def test_points_are_put_right_by_the_landmarker(astronaut, landmarker):
    detector = load_detector()
    if detector is None:
        pytest.skip("facelab[finder] is not installed")
    alone, both = (find_faces(astronaut, net, detector)[0] for net in (None, landmarker))
    off = [(face.points[:2] - EYES).norm(dim=1).mean() for face in (alone, both)]
    assert off[1] < off[0] and both.how == alone.how == "CenterFace"


def test_turning_there_and_back():
    size, points = (70, 40), torch.tensor([[3.0, 5], [60, 30]])
    for turn in TURNS:
        turned = set_upright(Image.new("L", size), turn)
        there = turn_back(points, -turn % 360, size)
        assert torch.equal(turn_back(there, turn, turned.size), points)


FACE = torch.tensor([[[40.0, 50], [70, 50], [55, 66], [43, 84], [67, 84]]])


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p[:, [1, 0, 2, 3, 4]],  # eyes exchanged
        lambda p: p[:, [0, 1, 2, 4, 3]],  # corners of the mouth exchanged
        lambda p: p[:, [3, 4, 2, 0, 1]],  # mouth above the eyes
        lambda p: p * torch.tensor([1, -1]) + torch.tensor([0, 120]),
        lambda p: p / 8,
        lambda p: p - torch.tensor([55, 0]),
        lambda p: p * torch.nan,
        lambda p: p * 0 + 50,
    ],
)
def test_points_that_are_no_face_are_refused(change):
    assert are_faces(FACE, (110, 120)).all()
    assert not are_faces(change(FACE), (110, 120)).any()


def test_of_two_on_one_face_the_better_stays():
    marks = torch.cat([FACE, FACE + 3, FACE + torch.tensor([80, 0])])
    assert separate(marks, torch.tensor([0.5, 0.9, 0.7])) == [1, 2]


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (40, 4000), (4000, 3000), (171, 128), (9000, 9000)])
def test_copies_stay_small(size):
    made = [(copy.size, scale) for copy, scale in copies(Image.new("RGB", size))]
    assert made and all(max(copy) <= finder.WIDEST and min(copy) <= finder.COPIES[-1] for copy, _ in made)
    assert all(scale > 0.6 for _, scale in made[1:])


def test_without_a_tool_it_says_so(astronaut):
    with pytest.raises(FacelabError, match="nothing to find faces with"):
        find_faces(astronaut)


def test_without_the_extra_there_is_no_detector(monkeypatch):
    monkeypatch.setattr(finder, "find_spec", lambda name: None)
    assert load_detector() is None


def test_a_detector_that_does_not_load_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(finder, "find_spec", lambda name: True)
    monkeypatch.setattr(finder, "files", lambda name: tmp_path)
    with pytest.raises(FacelabError, match=r"the detector of facelab\[finder\] does not load"):
        load_detector()


def test_a_landmarker_of_68_points_finds_faces_too(astronaut, landmarker):
    class Many(torch.nn.Module):
        "The five maps of another, each as often as 68 points ask for."

        def forward(self, x):
            maps = landmarker(x)["landmark_maps"]
            order = [2] * 68
            for k, some in ((0, range(36, 42)), (1, range(42, 48)), (3, [48]), (4, [54])):
                order = [k if i in some else was for i, was in enumerate(order)]
            return dict(landmark_maps=maps[:, order])

    (face,) = find_faces(astronaut, Many().eval())
    assert face.points.shape == (68, 2) and (five_points(face.points[None])[0, :2] - EYES).norm(dim=1).max() < 6
