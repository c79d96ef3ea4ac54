"Motion blur against line integrals in NumPy, rigid turns in OpenCV, and what blur must leave alone."

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.degradations.motion import (
    MotionBlur,
    blur_roll,
    blur_slide,
    colour_field,
    filter_each,
    motion_field,
    path_kernels,
    feather,
    trajectory,
)
from facelab.degradations.resample import Downsample
from facelab.faces.drawn import draw_faces

MOTIONS = dict(
    straight=dict(length=0.14),
    shake=dict(length=0.2, bend=70),
    roll=dict(length=0, turn=20),
    everything=dict(length=0.1, bend=40, turn=12),
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def walk(length, angle, bend=0.0, points=61):
    return trajectory(numbers(length), numbers(angle), numbers(bend), numbers(0.9, -1.2, 0.6)[None], points)


@pytest.fixture(scope="module")
def drawn():
    d = draw_faces(range(4), size=64)
    return d["image"], dict(parsing=d["parsing"], landmarks=d["landmarks_68"], foreground=d["foreground"])


def bilinear(picture, x, y):
    "Bilinear interpolation of (H,W) at points."
    j, i = np.floor(x).astype(int), np.floor(y).astype(int)
    b, a = x - j, y - i
    return (
        (1 - a) * (1 - b) * picture[i, j]
        + (1 - a) * b * picture[i, j + 1]
        + a * (1 - b) * picture[i + 1, j]
        + a * b * picture[i + 1, j + 1]
    )


@pytest.mark.parametrize(
    "length, angle, bend", [(13.3, 0, 0), (11, 90, 0), (9.7, 33, 0), (14, 135, 0), (16, 20, 60), (12, 250, 120)]
)
def test_equals_the_direct_line_integral(length, angle, bend):
    picture, path = noise(1, 1, 37, 45), walk(length, angle, bend)
    r = int(path.abs().max().ceil())
    ours = filter_each(picture, path_kernels(path, r, r))[0, 0].numpy()
    yy, xx = np.mgrid[r : 37 - r, r : 45 - r].astype(float)
    theirs = np.mean([bilinear(picture[0, 0].double().numpy(), xx - sx, yy - sy) for sx, sy in path[0].numpy()], 0)
    assert np.abs(ours - theirs).max() < 1e-5


def test_points_are_close_enough():
    "Half a pixel apart, as `MotionBlur` takes them, against twenty times as many."
    picture = noise(1, 1, 40, 40)
    for angle in range(0, 180, 15):
        few, many = [filter_each(picture, path_kernels(walk(12, angle, points=n), 7, 7)) for n in (25, 500)]
        assert (few - many).abs().mean() < 0.003


def test_a_straight_path_has_its_length_and_direction():
    path = walk(20, 30, points=101)[0]
    ends = (path[-1] - path[0]) * 101 / 100
    assert torch.allclose(ends, numbers(20 * math.cos(math.pi / 6), -20 * math.sin(math.pi / 6)))  # up is negative
    assert torch.allclose(path.mean(0), numbers(0, 0), atol=1e-9)


@pytest.mark.parametrize("region", ["face", "person", "picture"])
def test_no_motion_is_the_identity(drawn, region):
    x, labels = drawn
    assert torch.equal(MotionBlur(length=0, region=region)(x, **labels).input, x)
    rolled = MotionBlur(length=0, turn=(0, 45), region=region)(x, **labels)
    still = blur_roll(
        x, rolled.maps["foreground"], torch.zeros(4, 3, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    )[0]
    assert torch.allclose(still, x, atol=2e-5)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("region", ["face", "person", "picture"])
def test_a_flat_picture_stays_flat(drawn, motion, region):
    x, labels = drawn
    for level in (0.0, 0.3, 1.0):
        out = MotionBlur(region=region, **MOTIONS[motion])(torch.full_like(x, level), **labels).input
        assert (out - level).abs().max() < 2e-6


@pytest.mark.parametrize("motion", MOTIONS)
def test_no_rim_is_brighter_or_darker_than_its_surroundings(drawn, motion):
    "A light face before a dark background: the result is exactly the face's share of the time."
    x, labels = drawn
    region = feather(torch.isin(labels["parsing"], torch.arange(1, 14, dtype=torch.uint8)).float()[:, None])
    region = (region > 0.5).float()
    given, picture = MOTIONS[motion], 0.2 + 0.6 * region.expand_as(x)
    path = walk(8, 30, given.get("bend", 0)).expand(4, -1, -1)
    if "turn" in given:
        turn = torch.full((4,), math.radians(given["turn"]), dtype=torch.float64)
        (blurred, alpha), most = blur_roll(picture, region, path, turn), 0.16  # reads picture and region separately
    else:
        (blurred, alpha), most = blur_slide(picture, region, path), 1e-5
    outside = region.expand_as(x) != 1
    assert (blurred - (0.2 + 0.6 * alpha)).abs()[outside].max() < most
    assert blurred.min() > 0.2 - 1e-5 and blurred.max() < 0.8 + 1e-5


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_background_keeps_every_bit(drawn, motion):
    x, labels = drawn
    out = MotionBlur(**MOTIONS[motion])(x, **labels)
    away = ((out.maps["alpha"] == 0) & (out.maps["foreground"] == 0)).expand_as(x)
    assert away.float().mean() > 0.3 and torch.equal(out.input[away], x[away])
    assert (out.input - x).abs()[~away].mean() > 0.005


@pytest.mark.parametrize("motion, loss", [("straight", 1e-5), ("shake", 1e-5), ("roll", 0.02), ("everything", 0.02)])
def test_light_inside_the_face_is_kept(drawn, motion, loss):
    x, labels = drawn
    spot = torch.zeros_like(x)
    spot[:, :, 32:36, 30:34] = noise(4, 3, 4, 4)
    blurred = MotionBlur(**MOTIONS[motion])(spot, **labels).input
    assert (blurred.sum((2, 3)) / spot.sum((2, 3)) - 1).abs().max() < loss


def test_a_roll_is_the_mean_of_turned_pictures():
    side, degrees = 48, 30.0
    smooth = cv2.GaussianBlur(noise(side, side, 3, seed=2).numpy(), (0, 0), 2)
    x = torch.from_numpy(smooth).permute(2, 0, 1)[None]
    everything, still = torch.ones(1, 1, side, side), torch.zeros(1, 3, 2, dtype=torch.float64)
    blurred, _ = blur_roll(x, everything, still, torch.deg2rad(numbers(degrees)))
    ours = blurred[0].permute(1, 2, 0).numpy()
    moments = []
    for t in np.linspace(-0.5, 0.5, 101):
        matrix = cv2.getRotationMatrix2D(((side - 1) / 2,) * 2, degrees * t, 1)
        moments.append(cv2.warpAffine(smooth, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE))
    inner = slice(8, -8)
    assert np.abs(ours - np.mean(moments, 0))[inner, inner].max() < 0.004


def test_a_shift_is_the_same_by_kernels_and_by_steps():
    x, ones = F.avg_pool2d(noise(3, 3, 66, 66), 3, 1), torch.ones(3, 1, 64, 64)
    path = trajectory(numbers(9, 9, 5), numbers(0, 40, 100), numbers(0, 0, 50), noise(3, 3).double(), 41)
    by_kernels, by_steps = blur_slide(x, ones, path)[0], blur_roll(x, ones, path, numbers(0, 0, 0))[0]
    assert (by_kernels - by_steps).abs().max() < 0.02


def test_the_field_of_a_shift_and_of_a_roll(drawn):
    x, labels = drawn
    shift = MotionBlur(length=0.1, angle=30)(x, **labels).maps
    inside = shift["foreground"] == 1
    assert torch.allclose(shift["u"][inside], torch.tensor(6.4 * math.cos(math.pi / 6)), atol=1e-4)
    assert torch.allclose(shift["v"][inside], torch.tensor(-3.2), atol=1e-4)
    assert shift["u"][shift["foreground"] == 0].abs().max() == 0
    u, v = motion_field(torch.ones(1, 1, 64, 64), torch.zeros(1, 3, 2), torch.deg2rad(numbers(20.0)))
    yy, xx = torch.meshgrid(*[torch.arange(64) - 31.5] * 2, indexing="ij")
    assert (u[0, 0] * xx + v[0, 0] * yy).abs().max() < 1e-4  # at right angles to the radius
    assert torch.allclose(torch.hypot(u, v)[0, 0], 2 * math.sin(math.pi / 18) * torch.hypot(xx, yy), atol=1e-4)
    assert u[0, 0, 60, 32] > 0  # counter-clockwise: the chin goes right


def test_colours_of_a_field():
    ring = torch.linspace(0, 2 * math.pi, 25)[:-1]
    colours = colour_field(ring.cos().view(1, 1, 1, -1), -ring.sin().view(1, 1, 1, -1))[0, :, 0]
    for k, colour in ((0, (1, 0, 0)), (8, (0, 1, 0)), (16, (0, 0, 1)), (12, (0, 1, 1))):
        assert torch.allclose(colours[:, k], torch.tensor(colour).float(), atol=1e-5)
    assert torch.equal(colour_field(torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)), torch.ones(2, 3, 3, 3))


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_face_is_the_same_in_any_batch(drawn, motion):
    x, labels = drawn
    blur = MotionBlur(**MOTIONS[motion] | dict(length=(0, 0.2)))
    together = blur(x, Dice(7, "d", range(4)), **labels)
    assert torch.equal(together.input, blur(x, Dice(7, "d", range(4)), **labels).input)
    for i in range(4):
        alone = blur(x[i : i + 1], Dice(7, "d", [i]), **{k: v[i : i + 1] for k, v in labels.items()})
        assert (alone.input - together.input[i : i + 1]).abs().max() < 1e-6
    many = blur(x[[3, 1]], Dice(7, "d", [3, 1]), **{k: v[[3, 1]] for k, v in labels.items()})
    assert (many.input - together.input[[3, 1]]).abs().max() < 1e-6


@pytest.mark.parametrize("motion", ["shake", "everything"])
def test_more_faces_than_are_blurred_together(motion):
    d = draw_faces(range(11), size=128)
    blur = MotionBlur(**MOTIONS[motion] | dict(length=(0, 0.2)))
    together = blur(d["image"], Dice(7, "d", range(11)), parsing=d["parsing"])
    for i in range(11):
        alone = blur(d["image"][i : i + 1], Dice(7, "d", [i]), parsing=d["parsing"][i : i + 1])
        assert (alone.input - together.input[i : i + 1]).abs().max() < 1e-6
        assert all(torch.allclose(v, together.maps[k][i : i + 1], atol=1e-5) for k, v in alone.maps.items())


def test_length_is_a_share_of_the_side():
    spots = {}
    for side in (64, 128):
        x = torch.zeros(1, 3, side, side)
        x[..., side // 2, side // 2] = 1
        spots[side] = (MotionBlur(length=0.25, angle=0, region="picture")(x).input[0, 0] > 1e-4).any(0).sum()
    assert abs(int(spots[64]) - 17) <= 1 and abs(int(spots[128]) - 33) <= 1


def test_blur_comes_before_shrinking(drawn):
    x, _ = drawn
    blur = lambda x: MotionBlur(length=0.2, angle=20, region="picture")(x).input
    first, last = Downsample(4)(blur(x)).input, blur(Downsample(4)(x).input)
    assert first.shape == last.shape and (first - last).abs().max() > 0.01


def test_regions_and_their_labels(drawn):
    x, labels = drawn
    only = lambda k: {k: labels[k]}
    area = {r: MotionBlur(region=r)(x, **labels).maps["foreground"].mean() for r in ("face", "person", "picture")}
    assert 0.1 < area["face"] < area["person"] < area["picture"] == 1
    by_outline = MotionBlur()(x, **only("landmarks")).maps["foreground"].mean()
    assert abs(by_outline - area["face"]) < 0.08
    assert MotionBlur(region="person").needs == ("foreground|parsing",) and MotionBlur(region="picture").needs == ()
    MotionBlur(region="person")(x, **only("parsing"))


@pytest.mark.parametrize(
    "given, labels, message",
    [
        (
            dict(length=0.6),
            ("parsing",),
            "length (way of the face during the exposure) should be a number or a range [a, b] in [0, 0.5]",
        ),
        (dict(turn=(-5, 5)), ("parsing",), "turn"),
        (dict(region="nose"), ("parsing",), "one of face, person, picture"),
        (dict(), ("foreground",), "needs parsing or landmarks"),
        (dict(region="person"), ("landmarks",), "needs foreground or parsing"),
    ],
)
def test_bad_parameters_and_labels_get_one_sentence(drawn, given, labels, message):
    x, have = drawn
    with pytest.raises(FacelabError) as error:
        MotionBlur(**given)(x, **{k: have[k] for k in labels})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_face_without_a_face(drawn):
    x, labels = drawn
    parsing = labels["parsing"].clone()
    parsing[2] = 0
    with pytest.raises(FacelabError, match="face 2 has no face in its labels"):
        MotionBlur()(x, parsing=parsing)
    with pytest.raises(FacelabError, match="68 or 81 landmarks, but there are 5"):
        MotionBlur()(x, landmarks=labels["landmarks"][:, [36, 45, 30, 48, 54]])


def test_the_equation_has_the_numbers(drawn):
    x, labels = drawn
    out = MotionBlur(length=0.125, angle=40)(x, **labels)
    assert r"|s| = 8.0\,\mathrm{px},\ \varphi = 40^\circ" in MotionBlur(length=0.125, angle=40).latex(out.maps, 2)
