"""Drawn faces: reproducible, independent of the batch, labelled where they are drawn."""

import pytest
import torch
import torch.nn.functional as F

from facelab import FacelabError
from facelab.faces.drawn import draw_faces, draw_set
from facelab.faces.parts import CLASSES_19

L_EYE, R_EYE, NOSE, GLASSES = (CLASSES_19.index(name) for name in ("l_eye", "r_eye", "nose", "eye_g"))
LIPS = [CLASSES_19.index(name) for name in ("mouth", "u_lip", "l_lip")]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "The arrays are small: a second thread costs more than it gives."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def faces():
    return draw_faces(range(48))


def boxed(points, margin):
    "(N,S,S) masks of the boxes around (N,K,2) points."
    at = torch.arange(128) + 0.5
    low, high = points.amin(1) - margin, points.amax(1) + margin
    across = (at > low[:, :1]) & (at < high[:, :1])
    along = (at > low[:, 1:]) & (at < high[:, 1:])
    return along[:, :, None] & across[:, None, :]


def test_shapes_and_ranges(faces):
    assert faces["image"].shape == (48, 3, 128, 128) and faces["image"].dtype == torch.float32
    assert (
        faces["parsing"].shape == (48, 128, 128)
        and faces["parsing"].dtype == torch.uint8
        and faces["parsing"].max() <= 18
    )
    assert faces["landmarks_81"].shape == (48, 81, 2) and torch.equal(
        faces["landmarks_68"], faces["landmarks_81"][:, :68]
    )
    for name in ("image", "foreground"):
        assert 0 <= faces[name].min() and faces[name].max() <= 1
    assert all(torch.isfinite(x).all() for x in faces.values() if x.is_floating_point())


def test_same_call_same_bytes(faces):
    again = draw_faces(range(48))
    assert all(torch.equal(again[name], faces[name]) for name in faces)


@pytest.mark.parametrize("indices", [[5], [40, 3], list(range(7, 27))])
def test_a_face_does_not_depend_on_its_batch(faces, indices):
    few = draw_faces(indices)
    assert all(torch.equal(few[name], faces[name][indices]) for name in faces)


def test_seed_and_index_change_the_face(faces):
    assert (draw_faces([3], seed=1)["image"] - faces["image"][3:4]).abs().mean() > 0.05
    assert (faces["image"][:-1] - faces["image"][1:]).abs().mean((1, 2, 3)).min() > 0.02


def test_one_person_in_many_pictures():
    same, others = draw_faces(range(6), identity=[9] * 6), draw_faces(range(6))
    assert torch.equal(same["identity"], torch.full((6,), 9))
    spread = lambda faces: faces["image"][:, :, 30:40, 50:78].mean((2, 3)).std(0).mean()
    assert (same["image"][0] - same["image"][1]).abs().mean() > 0.02
    assert not torch.equal(same["image"], others["image"]) and spread(same) > 0


def test_landmarks_enclose_their_labels(faces):
    worn = (faces["parsing"] == GLASSES).flatten(1).any(1)
    for first, last, classes in ((36, 42, [R_EYE]), (42, 48, [L_EYE]), (48, 60, LIPS), (27, 36, [NOSE])):
        labelled = torch.isin(faces["parsing"], torch.tensor(classes))
        within = boxed(faces["landmarks_81"][:, first:last], 1.0 if classes != [NOSE] else 4.0)
        assert (labelled & within).sum() > 0.97 * labelled.sum(), classes
        assert labelled.flatten(1).any(1)[~worn].all(), classes


def test_lips_and_eyes_are_centred_on_their_landmarks(faces):
    at = torch.arange(128) + 0.5
    for first, last, classes in ((36, 42, [R_EYE]), (42, 48, [L_EYE]), (48, 60, LIPS)):
        mask = torch.isin(faces["parsing"], torch.tensor(classes)).float()
        area = mask.sum((1, 2))
        keep = area > 12
        centre = torch.stack([(mask.sum(1) * at).sum(1), (mask.sum(2) * at).sum(1)], 1)[keep] / area[keep, None]
        box = faces["landmarks_81"][keep, first:last]
        middle = (box.amin(1) + box.amax(1)) / 2
        assert (centre - middle).norm(dim=1).mean() < 1.5, classes


def test_left_is_the_persons_left(faces):
    across = torch.arange(128.0).expand_as(faces["parsing"])
    assert across[faces["parsing"] == L_EYE].min() > 60 and across[faces["parsing"] == R_EYE].max() < 68


def test_framing(faces):
    eyes = torch.stack([faces["landmarks_81"][:, 36:42].mean(1), faces["landmarks_81"][:, 42:48].mean(1)], 1) / 128
    mouth = faces["landmarks_81"][:, [48, 54]].mean(1) / 128
    assert (eyes.mean(0) - torch.tensor([[0.377, 0.470], [0.623, 0.470]])).abs().max() < 0.01
    assert (mouth.mean(0) - torch.tensor([0.5, 0.72])).abs().max() < 0.015


def test_depth_and_foreground_agree_with_the_labels(faces):
    thing = faces["parsing"] > 0
    assert torch.equal(faces["depth"] > 0, thing)
    assert (faces["foreground"][thing] > 0.5).all()
    assert ((faces["foreground"] > 0.5) == thing).float().mean() > 0.999
    tip = faces["landmarks_81"][:, 30].round().long()
    rows = torch.arange(48)
    assert (faces["depth"][rows, tip[:, 1], tip[:, 0]] > faces["depth"][rows, :, :].flatten(1).median(1).values).all()


def test_every_class_is_drawn():
    counts = torch.bincount(draw_faces(range(1000, 1160))["parsing"].flatten().long(), minlength=19)
    assert len(counts) == 19 and (counts > 0).all()


def test_256_reduced_is_128(faces):
    big = draw_faces(range(6), size=256)
    assert big["image"].shape == (6, 3, 256, 256)
    assert (F.avg_pool2d(big["image"], 2) - faces["image"][:6]).abs().mean() < 0.02
    assert (big["landmarks_81"] / 2 - faces["landmarks_81"][:6]).abs().max() < 1e-3
    assert (big["parsing"][:, ::2, ::2] == faces["parsing"][:6]).float().mean() > 0.96


def test_people_of_the_splits_never_meet():
    small, large = draw_set(6, 5, 3), draw_set(9, 5, 4)
    people = [set(large.identity[large.split == k].tolist()) for k in range(3)]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    assert not set(small.identity[small.split == 2].tolist()) & set(large.identity[large.split != 2].tolist())
    assert torch.equal(small.subset("val").images, large.subset("val").images)
    assert large.images.dtype == torch.uint8 and large.landmarks.shape == (18, 81, 2) and len(set(large.names)) == 18


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: draw_faces([0], size=8), "32 to 1024 pixels"),
        (lambda: draw_faces([0], size=128.0), "32 to 1024 pixels"),
        (lambda: draw_faces([-1]), "whole numbers from 0 up"),
        (lambda: draw_faces([]), "whole numbers from 0 up"),
        (lambda: draw_faces([0.5]), "whole numbers from 0 up"),
        (lambda: draw_faces([0, 1], identity=[0]), "one identity for each index"),
        (lambda: draw_set(0, 0, 0), "at least one above 0"),
    ],
)
def test_a_wrong_request_is_one_sentence(call, words):
    with pytest.raises(FacelabError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
