"Blur against OpenCV, noise against its statistics, JPEG against Pillow."

import io

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.base.images import to_uint8
from facelab.degradations.camera import (
    JPEG,
    GaussianBlur,
    GaussianNoise,
    Greyscale,
    filter_separably,
    gaussian,
    jpeg,
    quantisation_steps,
)
from facelab.faces.drawn import draw_faces

FACES = draw_faces(range(6), size=64)["image"]
LARGE = draw_faces(range(4), size=128)["image"]
ALL = [
    GaussianBlur(),
    GaussianBlur(edges="reflect"),
    GaussianNoise(),
    GaussianNoise(shot=(0, 0.2)),
    Greyscale(),
    JPEG(),
    JPEG(colours="4:4:4"),
]


def numbers(n, start=0):
    return Dice(3, "degrade", range(start, start + n))


def hwc(x):
    return np.ascontiguousarray(x.permute(1, 2, 0).numpy())


@settings(max_examples=30, deadline=None)
@given(
    which=st.sampled_from(range(len(ALL))),
    h=st.integers(16, 60),
    w=st.integers(16, 60),
    n=st.integers(1, 10),
    seed=st.integers(0, 999),
)
def test_any_shape(which, h, w, n, seed):
    degradation, x = ALL[which], torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))
    out, again = (degradation(x, Dice(seed, "degrade", range(n))) for _ in range(2))
    assert out.input.shape == x.shape and out.input.dtype == torch.float32 and out.target is x
    assert 0 <= out.input.min() and out.input.max() <= 1
    assert torch.equal(out.input, again.input)
    alone = degradation(x[-1:], Dice(seed, "degrade", [n - 1])).input
    off = (alone - out.input[-1:]).abs()
    most = 1 / 255 if isinstance(degradation, JPEG) else 0  # a rounding may fall to the other side
    assert off.max() <= most + 1e-6 and off.mean() < 1e-5


@pytest.mark.parametrize("edges, border", [("replicate", cv2.BORDER_REPLICATE), ("reflect", cv2.BORDER_REFLECT_101)])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5, 5.0])
def test_blur_is_opencvs(edges, border, sigma):
    side = 2 * int(np.ceil(3 * sigma)) + 1
    out = GaussianBlur(sigma=sigma, edges=edges)(FACES).input
    for x, y in zip(FACES, out):
        assert np.abs(cv2.GaussianBlur(hwc(x), (side, side), sigma, borderType=border) - hwc(y)).max() < 2e-4


def test_blur_of_a_point_is_the_kernel():
    "Each face its own, the same along both axes, energy kept."
    x = torch.zeros(3, 3, 65, 65)
    x[:, :, 32, 32] = 1
    out = GaussianBlur(sigma=(0.5, 4))(x, numbers(3))
    r = out.maps["K"].shape[1] // 2
    for y, k in zip(out.input, out.maps["K"]):
        assert (y[0, 32 - r : 33 + r, 32 - r : 33 + r] - torch.outer(k, k)).abs().max() < 1e-6
        assert abs(float(y[0].sum()) - 1) < 1e-5
    second_moment = (out.maps["K"] * torch.arange(-r, r + 1) ** 2).sum(1)
    assert ((second_moment.sqrt() - out.maps["sigma"]).abs() / out.maps["sigma"]).max() < 0.03


def test_blur_of_zero_and_of_a_flat_picture_change_nothing():
    assert torch.equal(GaussianBlur(sigma=0)(FACES).input, FACES)
    flat = torch.full((2, 3, 20, 20), 0.37)
    assert (GaussianBlur(sigma=20)(flat).input - flat).abs().max() < 1e-5


def test_gaussian_has_no_subnormal_numbers():
    k = gaussian(torch.linspace(0.01, 6, 500), 18).float()
    assert ((k == 0) | (k > 1e-6)).all() and torch.allclose(k.sum(1), torch.ones(500), atol=1e-5)


def test_blur_is_linear_and_composes():
    a, b = torch.rand(2, 1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    k = gaussian(torch.tensor([1.5]), 6)
    assert (
        filter_separably(0.3 * a + 0.7 * b, k) - 0.3 * filter_separably(a, k) - 0.7 * filter_separably(b, k)
    ).abs().max() < 1e-6
    wide = filter_separably(filter_separably(a, k), k)[..., 10:-10, 10:-10]
    assert (wide - filter_separably(a, gaussian(torch.tensor([4.5]).sqrt(), 8))[..., 10:-10, 10:-10]).abs().max() < 5e-3


@pytest.mark.parametrize("sigma, shot", [(0.05, 0), (0, 0.1), (0.04, 0.06)])
def test_noise_has_the_variance_of_the_equation(sigma, shot):
    for level in (0.3, 0.5, 0.7):
        x = torch.full((16, 3, 64, 64), level)
        noise = GaussianNoise(sigma=sigma, shot=shot)(x).input - x
        assert abs(float(noise.var()) / (sigma**2 + shot**2 * level) - 1) < 0.03 and abs(float(noise.mean())) < 1e-3


def test_noise_is_recomposed_from_its_maps():
    out = GaussianNoise(sigma=(0, 0.2), shot=(0, 0.2))(FACES, numbers(6))
    s, k = (out.maps[n].view(-1, 1, 1, 1) for n in ("sigma", "shot"))
    assert (((FACES + (s**2 + k**2 * FACES).sqrt() * out.maps["n"]).clamp(0, 1)) - out.input).abs().max() < 1e-6
    assert torch.equal(GaussianNoise(sigma=0)(FACES).input, FACES)
    assert out.maps["sigma"].unique().numel() == 6


def test_noise_differs_between_faces_and_channels():
    n = GaussianNoise()(torch.full((4, 3, 64, 64), 0.5)).maps["n"].view(12, -1)
    assert (torch.corrcoef(n) - torch.eye(12)).abs().max() < 0.06


def test_grey_is_opencvs():
    out = Greyscale()(FACES).input
    for x, y in zip(FACES, out):
        assert np.abs(cv2.cvtColor(hwc(x), cv2.COLOR_RGB2GRAY) - y[0].numpy()).max() < 1e-6
    assert torch.equal(out[:, 0], out[:, 2])
    assert Greyscale()(torch.ones(1, 3, 16, 16)).input.max() == 1


def by_pillow(x, quality, subsampling):
    out = []
    for a in to_uint8(x):
        file = io.BytesIO()
        Image.fromarray(hwc(a)).save(file, "JPEG", quality=quality, subsampling=subsampling)
        out.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(out).float()


@pytest.mark.parametrize("h, w", [(128, 128), (121, 128), (128, 99), (97, 103), (17, 16)])
@pytest.mark.parametrize("quality", [5, 30, 75, 95, 100])
@pytest.mark.parametrize("colours, subsampling", [("4:2:0", 2), ("4:4:4", 0)])
def test_jpeg_is_pillows(h, w, quality, colours, subsampling):
    x = LARGE[..., :h, :w].contiguous()
    ours, theirs = JPEG(quality=quality, colours=colours)(x).input * 255, by_pillow(x, quality, subsampling)
    off = (ours - theirs).abs()
    assert (ours - ours.round()).abs().max() < 1e-3
    assert off.mean() < 0.25 and (off > 2).float().mean() < 0.02


def test_jpeg_is_not_merely_close_to_the_original():
    "What the last test compares is small beside what JPEG does, and the wrong subsampling would be seen."
    x = FACES
    theirs = {s: by_pillow(x, 30, s) for s in (0, 2)}
    ours = JPEG(quality=30)(x).input * 255
    assert (theirs[2] - x * 255).abs().mean() > 10 * (ours - theirs[2]).abs().mean()
    assert (theirs[0] - ours).abs().mean() > 3 * (ours - theirs[2]).abs().mean()


def test_jpeg_quality_is_a_faces_own():
    quality = torch.tensor([10.0, 90, 50])
    together = jpeg(FACES[:3], quality)
    for i, q in enumerate(quality):
        assert (together[i] - JPEG(quality=int(q))(FACES[i : i + 1]).input[0]).abs().max() < 1e-6
    errors = [float((JPEG(quality=q)(FACES).input - FACES).abs().mean()) for q in (5, 15, 40, 80, 100)]
    assert errors == sorted(errors, reverse=True)
    drawn = JPEG(quality=(20, 30))(torch.zeros(600, 3, 16, 16), Dice(0, "degrade", range(600))).maps["quality"]
    assert drawn.unique().tolist() == list(range(20, 31))


def test_tables_are_pillows():
    for quality in range(1, 101):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
        ours, theirs = quantisation_steps(torch.tensor([quality]))[0], Image.open(file).quantization
        assert [sorted(t.tolist()) for t in ours] == [sorted(theirs[0]), sorted(theirs[1])]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: GaussianBlur(sigma=-1), "sigma (width of the blur)"),
        (lambda: GaussianBlur(edges="wrap"), "one of replicate, reflect"),
        (lambda: GaussianNoise(shot=2), "in [0, 1]"),
        (lambda: JPEG(quality=(50, 120)), "in [1, 100]"),
        (lambda: JPEG(colours="4:1:1"), "one of 4:2:0, 4:4:4"),
        (lambda: JPEG()(FACES * 255), "[0, 1]"),
        (lambda: GaussianBlur()(FACES[0]), "(N, 3, H, W)"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(FacelabError) as error:
        make()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("degradation", ALL)
def test_latex(degradation):
    out = degradation(FACES, numbers(6))
    text = degradation.latex(out.maps, 1)
    assert "=" in text and text.count("{") == text.count("}") and all(len(v) == 6 for v in out.maps.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CPU = GPU is not compared")
@pytest.mark.parametrize("degradation", ALL)
def test_gpu(degradation):
    a, b = (degradation(FACES.to(d), numbers(6)).input.cpu() for d in ("cpu", "cuda"))
    assert (a - b).abs().mean() < 1e-4
