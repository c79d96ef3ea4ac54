"Face masks: where they sit, what they touch, and what they are made of, against SciPy, OpenCV and geometry."

import sys
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RBFInterpolator

from conftest import ROOT
from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.degradations.mask_template import (
    HALVINGS,
    KINDS,
    LARGEST,
    LEFT,
    SIDE,
    STYLES,
    TEXTURES,
    TOP,
    mask_atlas,
    tile,
    tile_position,
)
from facelab.degradations.masks import (
    ANCHORS,
    FaceMask,
    anchors,
    apply_similarity,
    apply_thin_plate,
    estimate_light,
    fit_thin_plate,
    mask_window,
    node_coordinates,
    node_weights,
    pack_rgb,
    resample_line,
    similarity_to_rest,
    unpack_rgb,
)
from facelab.faces.drawn import draw_faces
from facelab.faces.parts import CLASSES_19, five_points, scheme

TURNED = [44, 103, 50, 47, 73, 102, 68, 21, 67, 38]  # noses up to .28 eye distances off the middle: about 33 degrees
STRAIGHT = [0, 1, 3, 4, 5, 7]
INNER = [k for k in range(17, 68) if k not in (60, 64)]
COUNTS = (5, 49, 68, 81, 194)


@lru_cache(None)
def faces(size=128):
    return draw_faces(TURNED + STRAIGHT, size=size)


def helen(p):
    "194 points that agree with 68: the jaw at every step of 1/40, parts at the places that the scheme names."
    out = p[:, 30:31].repeat(1, 194, 1)
    at = torch.linspace(0, 16, 41)
    low = at.floor().long().clamp(max=15)
    out[:, :41] = p[:, low] + (at - low)[:, None] * (p[:, low + 1] - p[:, low])
    s, five = scheme(194), five_points(p)
    for k, where in enumerate((s.left_eye, s.right_eye, (s.nose,), s.corners[:1], s.corners[1:])):
        out[:, list(where)] = five[:, k : k + 1]
    return out


def points(count, size=128):
    "The drawn faces' landmarks in a scheme."
    f = faces(size)
    p = f["landmarks_68"]
    return {5: five_points(p), 49: p[:, INNER], 68: p, 81: f["landmarks_81"], 194: helen(p)}[count]


def masked(mask, x, p, seed=0):
    return mask(x, Dice(seed, "mask", range(len(x))), landmarks=p)


def read(maps, p):
    "A map (N,1,S,S) at points (N,K,2)."
    return F.grid_sample(maps, p[:, None] / (maps.shape[-1] / 2) - 1, align_corners=False)[:, 0, 0]


def rolled(degrees, size=128):
    "The drawn faces turned in the picture around its middle, with their 68 points."
    t = np.radians(degrees)
    turn = torch.tensor([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]).float()
    grid = F.affine_grid(
        F.pad(turn.T, (0, 1)).expand(len(faces(size)["image"]), -1, -1),
        list(faces(size)["image"].shape),
        align_corners=False,
    )
    x = F.grid_sample(faces(size)["image"], grid, padding_mode="border", align_corners=False)
    return x.clamp(0, 1), (points(68, size) - size / 2) @ turn.T + size / 2


# where it sits


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_covers_nose_mouth_and_chin_and_leaves_the_eyes(kind, count):
    p = points(68)
    out = masked(FaceMask(kind=kind), faces()["image"], points(count))
    chin = 0.2 * p[:, 57:58] + 0.8 * p[:, 8:9]
    must = torch.cat([p[:, [30, 33, 48, 54, 51, 57]], chin], 1)
    assert read(out.maps["mask"], must).min() > 0.98
    assert read(out.maps["mask"], p[:, 36:48]).max() == 0
    assert read(out.maps["mask"], p[:, 17:27]).max() == 0
    if count > 49:
        assert read(out.maps["mask"], p[:, 8:9]).min() > 0.9


@pytest.mark.parametrize("degrees", [-90, -25, 25, 180])
def test_follows_roll(degrees):
    x, p = rolled(degrees)
    m = masked(FaceMask(), x, p).maps["mask"]
    assert read(m, p[:, [30, 33, 48, 54, 57, 8]]).min() > 0.9
    assert read(m, p[:, 36:48]).max() == 0


def test_a_quarter_turn_turns_the_mask():
    "The mask is a function of the landmarks: turn the picture and they turn along."
    x, p = faces()["image"], points(68)
    q = torch.stack([p[..., 1], 128 - p[..., 0]], 2)  # rot90 counter-clockwise
    straight, turned = masked(FaceMask(), x, p).maps, masked(FaceMask(), x.rot90(1, (2, 3)), q).maps
    for name in ("mask", "shadow"):
        assert (straight[name].rot90(1, (2, 3)) - turned[name]).abs().max() < 5e-4


@pytest.mark.parametrize("kind", KINDS)
def test_does_not_float_off_the_cheeks(kind):
    "Above the chin, next to no background is covered; the parsing of drawn faces says what is background."
    x, p = faces()["image"], points(68)
    parsing = faces()["parsing"]
    behind = parsing == CLASSES_19.index("background")
    rows = torch.arange(128)[None, :, None] + 0.5
    above = behind & (rows < p[:, 54, 1][:, None, None]) & (rows > p[:, 33, 1][:, None, None])
    m = masked(FaceMask(kind=kind, askew=0.0), x, p).maps["mask"][:, 0]
    widest = (m * above).sum(2).amax(1) / 31.5
    assert widest.max() < 0.12, widest  # eye distances: what stands off the face may show


@pytest.mark.parametrize("kind", ["surgical", "cloth"])
def test_hugs_the_jaw_on_the_far_side(kind):
    "On the far side of a turned head no strip of cheek wider than a tenth of the eye distance is left."
    x, p = faces()["image"], points(68)
    m = masked(FaceMask(kind=kind, askew=0.0), x, p).maps["mask"]
    turn = anchors(p)[2]
    far = torch.where(turn[:, None, None] > 0, p[:, 13:14], p[:, 3:4])
    mouth = p[:, [48, 54]].mean(1, keepdim=True)
    inside = far + (mouth - far) * 0.1 * 31.5 / (mouth - far).norm(dim=2, keepdim=True)
    assert read(m, inside)[turn.abs() > 0.2].min() > 0.9


@settings(max_examples=15, deadline=None, derandomize=True)
@given(height=st.floats(0, 1))
def test_height_moves_the_upper_edge(height):
    p = points(68)
    m = masked(FaceMask(kind="n95", height=height, askew=0.0), faces()["image"], p).maps["mask"]
    nose = p[:, 27:28] + torch.linspace(0, 1.4, 57)[None, :, None] * (p[:, 30:31] - p[:, 27:28])
    edge = (read(m, nose) < 0.5).float().sum(1) / 40  # share of the way from bridge to tip
    assert (edge - height).abs().max() < 0.35 and (edge - height).abs().mean() < 0.12


def test_lowered_masks_leave_the_nose_free():
    p = points(68)
    m = masked(FaceMask(lowered=1.0), faces()["image"], p).maps
    assert m["lowered"].min() == 1 and read(m["mask"], p[:, 28:31]).max() == 0
    assert read(m["mask"], p[:, [57]]).min() > 0.98


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), askew=st.floats(0, 0.15))
def test_drawn_numbers_stay_in_their_ranges(seed, askew):
    m = FaceMask(askew=askew, height=(0.3, 0.5)).draw_numbers(Dice(seed, "mask", range(64)))
    assert m["shift"].abs().max() <= askew and m["tilt"].abs().max() <= askew
    assert m["height"].min() >= 0.3 and m["height"].max() <= 0.5
    assert (m["valve"][m["kind"] == 0] == 0).all() and (m["texture"][m["kind"] != 1] == 0).all()
    for k, t, v, s in zip(*(m[n].tolist() for n in ("kind", "texture", "valve", "style"))):
        assert STYLES[s] == (KINDS[k], TEXTURES[t], bool(v))


# what it touches


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([32, 48, 128]),
    shadow=st.floats(0, 2),
    count=st.sampled_from(COUNTS),
)
def test_the_maps_give_the_picture(seed, size, shadow, count):
    x = faces(size)["image"]
    out = masked(FaceMask(shadow=shadow, valve=0.5), x, points(count, size), seed)
    m, s, layer, gamma = (out.maps[k] for k in ("mask", "shadow", "layer", "gamma"))
    assert m.shape == s.shape == (len(x), 1, size, size) and layer.shape == gamma.shape == x.shape and out.target is x
    assert torch.equal(gamma, (out.input - x).abs())
    assert torch.allclose(out.input, (1 - m) * (1 - s) * x + layer, atol=1e-6)
    untouched = ((m == 0) & (s == 0)).expand_as(x)
    assert torch.equal(out.input[untouched], x[untouched]) and untouched.float().mean() > 0.3
    assert m.min() >= 0 and m.max() <= 1 and s.min() >= 0 and s.max() <= 1 and layer.min() >= 0 and (layer <= m).all()
    assert out.input.min() >= 0 and out.input.max() <= 1 and out.input.dtype == torch.float32


def test_nothing_is_lost_at_the_border_of_the_window():
    "The window of the CPU against the whole picture, which a GPU computes."
    p = points(68)
    source, (a, b), _ = anchors(p)
    u, v = node_coordinates(128, 128, source, a, b)
    top, bottom, left, right = mask_window(u, v, 128, 128)
    spread = node_weights(128)[1]
    inside = ((spread @ u @ spread.T).abs() < 1.24) & (spread @ v @ spread.T > -0.05) & (spread @ v @ spread.T < 2.15)
    rows, columns = inside.any(0).any(1).nonzero().flatten(), inside.any(0).any(0).nonzero().flatten()
    assert top <= rows[0] and rows[-1] < bottom and left <= columns[0] and columns[-1] < right
    assert (bottom - top) * (right - left) < 0.8 * 128**2


def test_shadow_off():
    out = masked(FaceMask(shadow=0.0), faces()["image"], points(68))
    assert out.maps["shadow"].max() == 0
    assert masked(FaceMask(), faces()["image"], points(68)).maps["shadow"].max() > 0.2


def test_covers_what_lies_under():
    "Where the mask is opaque, another face under it gives the same picture, if the light is the same."
    x, p = faces()["image"], points(68)
    out = masked(FaceMask(), x, p)
    opaque = out.maps["mask"] == 1
    assert opaque.float().mean() > 0.1
    assert torch.equal(out.input[opaque.expand_as(x)], out.maps["layer"][opaque.expand_as(x)])


# same face, same mask


@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), some=st.lists(st.integers(0, 15), min_size=1, max_size=6))
def test_batch_independence(seed, some):
    x, p = faces()["image"], points(68)
    all_of_them = masked(FaceMask(), x, p, seed)
    few = FaceMask()(x[some], Dice(seed, "mask", some), landmarks=p[some])
    assert torch.allclose(few.input, all_of_them.input[some], atol=1e-6)
    for name, value in few.maps.items():
        assert torch.allclose(value.double(), all_of_them.maps[name][some].double(), atol=1e-6), name


def test_same_call_same_bytes():
    x, p = faces()["image"], points(68)
    assert torch.equal(masked(FaceMask(), x, p).input, masked(FaceMask(), x, p).input)
    assert not torch.equal(masked(FaceMask(), x, p, 1).input, masked(FaceMask(), x, p, 2).input)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CPU = GPU is not compared")
def test_gpu_agrees():
    x, p = faces()["image"], points(68)
    there = FaceMask()(x.cuda(), Dice(0, "mask", range(len(x))), landmarks=p.cuda())
    assert (there.input.cpu() - masked(FaceMask(), x, p).input).abs().max() < 1e-3 and there.maps["gamma"].is_cuda


@pytest.mark.parametrize("size", [16, 32, 64, 200, 512])
def test_any_size(size):
    x = F.interpolate(faces()["image"][:3], size=(size, size + size // 4), mode="area")
    p = points(68)[:3] * torch.tensor([1.25 * size / 128, size / 128])
    m = masked(FaceMask(), x, p).maps["mask"]
    assert m.shape[2:] == (size, size + size // 4) and 0.05 < m.mean() < 0.3


def test_size_does_not_change_what_is_worn():
    "The same masks at 64 and, shrunk, at 128 pixels."
    large = masked(FaceMask(kind="surgical"), faces()["image"], points(68)).maps
    small = masked(FaceMask(kind="surgical"), F.avg_pool2d(faces()["image"], 2), points(68) / 2).maps
    assert torch.equal(large["colour"], small["colour"])
    assert (F.avg_pool2d(large["mask"], 2) - small["mask"]).abs().mean() < 0.01


# parameters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("valve", [0.0, 1.0])
def test_every_style(kind, valve):
    for texture in TEXTURES:
        mask = FaceMask(kind=kind, texture=texture, valve=valve, colour="#8090a0")
        out = masked(mask, faces()["image"][:2], points(68)[:2])
        style = (kind, texture if kind == "cloth" else "plain", bool(valve) and kind != "surgical")
        assert out.maps["style"].tolist() == [STYLES.index(style)] * 2


def test_styles_differ():
    flat = [tile(*s, 64) for s in STYLES]
    for i in range(len(flat)):
        for j in range(i):
            assert (flat[i] - flat[j]).abs().max() > 0.05, (STYLES[i], STYLES[j])


def test_fixed_colour():
    "Mean hue of the opaque part is the fabric's; random colours differ from face to face."
    x, p = faces()["image"] * 0 + 0.6, points(68)
    out = masked(FaceMask(kind="surgical", colour="#40a060"), x, p)
    assert set(out.maps["colour"].tolist()) == {0x40A060}
    seen = (out.maps["layer"] * (out.maps["mask"] == 1)).sum((2, 3))
    assert torch.allclose(
        seen / seen.sum(1, keepdim=True),
        (unpack_rgb(torch.tensor([0x40A060])) / unpack_rgb(torch.tensor([0x40A060])).sum()).expand(len(x), -1),
        atol=0.02,
    )
    assert len(set(masked(FaceMask(), x, p).maps["colour"].tolist())) > 8


@settings(max_examples=20, derandomize=True)
@given(st.lists(st.integers(0, 0xFFFFFF), min_size=1, max_size=9))
def test_colours_are_one_number(numbers):
    assert pack_rgb(unpack_rgb(torch.tensor(numbers))).tolist() == numbers


def test_dark_pictures_get_dark_masks():
    x, p = faces()["image"], points(68)
    mask = FaceMask(colour="#f0f0f0")

    def brightness(x):
        maps = masked(mask, x, p).maps
        return maps["layer"].sum((1, 2, 3)) / maps["mask"].sum((1, 2, 3)) / 3

    bright, dark = brightness(x), brightness(0.25 * x)
    assert (dark < 0.55 * bright).all() and (bright > 0.4).all()


def test_light_comes_from_the_brighter_cheek():
    p = points(68)
    ramp = torch.linspace(0.2, 0.9, 128).expand(len(p), 3, 128, 128)
    source, (a, b), _ = anchors(p)
    assert (estimate_light(ramp, source, a, b)[1] > 0.1).all() and (
        estimate_light(ramp.flip(-1), source, a, b)[1] < -0.1
    ).all()


# what they are made of


@pytest.mark.parametrize("stiff", [0.0, 0.05, 1.0])
def test_spline_is_scipys(stiff):
    "SciPy's thin-plate spline has the kernel r^2 log r and the same stiffness."
    source, _, _ = anchors(points(68))
    at = torch.rand(len(source), 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 - 1
    ours = apply_thin_plate(at, source, fit_thin_plate(source, stiff))
    for i in range(len(source)):
        theirs = RBFInterpolator(
            source[i].numpy(), (ANCHORS - source[i]).numpy(), kernel="thin_plate_spline", smoothing=stiff
        )(at[i].numpy())
        assert np.abs(ours[i].numpy() - at[i].numpy() - theirs).max() < 1e-6


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    scale=st.floats(0.3, 3),
    angle=st.floats(-3.1, 3.1),
    dx=st.floats(-50, 50),
    dy=st.floats(-50, 50),
    count=st.sampled_from(COUNTS),
)
def test_anchors_do_not_depend_on_the_pose_in_the_plane(scale, angle, dx, dy, count):
    p = points(count)
    z = torch.view_as_complex(p.double().contiguous()) * scale * np.exp(1j * angle) + complex(dx, dy)
    assert torch.allclose(anchors(torch.view_as_real(z))[0], anchors(p)[0], atol=1e-6)


def test_similarity_to_rest_is_a_least_squares_fit():
    five = five_points(points(68).double())
    a, b = similarity_to_rest(five)
    seen = torch.cat([five[:, :2], five[:, 3:].mean(1, keepdim=True)], 1)
    error = lambda a, b: (apply_similarity(seen, a, b) - ANCHORS[[11, 12, 14]]).square().sum((1, 2))
    for da, db in ((1e-4, 0), (1e-4j, 0), (0, 1e-3), (0, 1e-3j)):
        assert (error(a + da, b + db) > error(a, b)).all() and (error(a - da, b - db) > error(a, b)).all()


def test_even_steps_are_numpys():
    line = torch.rand(5, 9, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for got, want in zip(resample_line(line, 6).numpy(), line.numpy()):
        walked = np.r_[0, np.cumsum(np.linalg.norm(np.diff(want, axis=0), axis=1))]
        at = np.linspace(0, walked[-1], 6)
        assert np.allclose(got, np.stack([np.interp(at, walked, want[:, k]) for k in (0, 1)], 1))


@pytest.mark.parametrize("count, most", [(5, 0.12), (49, 0.12), (81, 0.0), (194, 0.01)])
def test_schemes_agree_with_68_points(count, most):
    "Estimated jaws are within an eighth of the eye distance of the true ones, on average; measured ones are the same."
    off = (anchors(points(count))[0] - anchors(points(68))[0]).norm(dim=2)
    assert off[:, :9].mean() <= most and off[:, 11:].max() < 1e-4


def test_guess_follows_the_turn_of_the_head():
    "The jaw of a turned head is guessed better than by the mean face."
    true, guess = anchors(points(68))[0], anchors(points(5))[0]
    turned = anchors(points(68))[2].abs() > 0.2
    off = lambda q: (q - true)[turned, :9].norm(dim=2).mean()
    assert off(guess) < 0.65 * off(ANCHORS.expand_as(true))


def test_outlines_and_materials():
    "Every flat mask covers nose, mouth and chin at rest, leaves the eyes free, and reflects no light where it is not."
    for style in STYLES:
        t = tile(*style, 100)
        at = lambda u, v: t[0, round((v - TOP) / SIDE * 100 - 0.5), round((u - LEFT) / SIDE * 100 - 0.5)]
        assert min(at(0, 0.56), at(-0.35, 1.016), at(0.35, 1.016), at(0, 1.74)) == 1, style
        assert max(at(-0.5, 0), at(0.5, 0)) == 0, style
        light = t[2:5].sum(0)
        assert light[t[0] == 0].max() == 0 and light.max() < 1.3
        assert t[:5].min() >= 0 and t[[0, 1, 6]].max() <= 1
        assert (t[0] * t[6]).max() <= 0.25  # straps end at the mask


def test_halves_of_a_tile_are_its_means():
    atlas = mask_atlas()
    for style in range(len(STYLES)):
        levels = []
        for k in range(HALVINGS + 1):
            x, y, size = (int(q) for q in tile_position(torch.tensor(style), torch.tensor(k)))
            assert size == LARGEST >> k
            levels.append(atlas[:, :, y : y + size, x : x + size])
        for level in levels:
            border = max(level[:, :, [0, -1]].abs().max(), level[..., [0, -1]].abs().max())
            assert border < 1e-6  # what is outside reads zeros
        for fine, coarse in zip(levels, levels[1:]):
            assert torch.allclose(F.avg_pool2d(fine, 2), coarse, atol=1e-6)
        assert torch.equal(levels[0][0], tile(*STYLES[style], LARGEST))


def test_the_usual_way_gives_the_same_picture():
    "NumPy, OpenCV and a spline at every pixel, as in the benchmark."
    pytest.importorskip("cv2")
    sys.path.append(str(ROOT))
    from benchmarks.common import difference
    from benchmarks.masks import CASES

    for case in CASES:
        assert difference(case, faces()["image"], dict(landmarks=points(68))) < 0.1


# refusals


@pytest.mark.parametrize(
    "parameters, message",
    [
        (dict(kind="scarf"), "surgical, cloth, n95, duckbill"),
        (dict(texture="tartan"), "plain, stripes"),
        (dict(colour="blue"), "'random' or a colour such as"),
        (dict(valve=2.0), "a number in [0, 1]"),
        (dict(height=(0.6, 0.2)), "a range [a, b] in [0, 1]"),
        (dict(lowered=-1.0), "in [0, 1]"),
        (dict(askew=0.5), "in [0, 0.15]"),
        (dict(shadow=3.0), "in [0, 2]"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(FacelabError, match="FaceMask") as error:
        FaceMask(**parameters)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "labels, message",
    [
        (dict(), "needs landmarks"),
        (dict(landmarks=torch.rand(16, 7, 2) * 128), "7 landmarks a face are not handled"),
        (dict(landmarks=torch.rand(3, 68, 2) * 128), "give (16, K, 2)"),
        (dict(landmarks=torch.rand(16, 68, 2) + 200), "outside"),
        (dict(landmarks=torch.full((16, 68, 2), float("nan"))), "outside"),
    ],
)
def test_bad_landmarks(labels, message):
    with pytest.raises(FacelabError) as error:
        FaceMask()(faces()["image"], **labels)
    assert message in str(error.value)


def test_landmarks_in_one_spot_do_no_harm():
    out = FaceMask()(faces()["image"][:2], landmarks=torch.full((2, 68, 2), 60.0))
    assert out.input.isfinite().all() and out.input.min() >= 0 and out.input.max() <= 1
