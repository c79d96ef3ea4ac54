"Resampling against PIL and OpenCV, and against planted faults."

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from facelab import FacelabError
from facelab.degradations.degradation import Degraded
from facelab.degradations.resample import Downsample, cubic_kernel, resize


def smooth_noise(seed, low=0.1, high=0.9, side=128):
    "Random bytes (side,side,3) with detail at all scales, away from black and white: nothing is clipped."
    rng = np.random.default_rng(seed)
    layers = [np.kron(rng.random((side // k, side // k, 3)), np.ones((k, k, 1))) for k in (1, 4, 16)]
    picture = sum(layers) / len(layers)
    return (255 * (low + (high - low) * picture)).round().astype(np.uint8)


def ours(picture, side, antialias):
    x = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    return (resize(x, side, antialias)[0].permute(1, 2, 0).clamp(0, 1) * 255).round().numpy().astype(int)


def pil(picture, side):
    return np.array(Image.fromarray(picture).resize((side, side), Image.BICUBIC)).astype(int)


def opencv(picture, side):
    return cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC).astype(int)


@pytest.mark.parametrize("side", [16, 32, 256, 512])
@pytest.mark.parametrize("antialias, reference", [(True, pil), (False, opencv)])
def test_within_one_grey_level(side, antialias, reference):
    for seed in range(3):
        picture = smooth_noise(seed)
        assert np.abs(ours(picture, side, antialias) - reference(picture, side)).max() <= 1


@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("antialias, reference", [(False, pil), (True, opencv)])
def test_the_wrong_switch_is_far_off(side, antialias, reference):
    picture = smooth_noise(0)
    assert np.abs(ours(picture, side, antialias) - reference(picture, side)).max() > 10


@pytest.mark.parametrize("antialias, a", [(True, -0.5), (False, -0.75)])
def test_kernel_is_the_one_in_use(antialias, a):
    "Enlarging an impulse by 8 draws the kernel; half-pixel centres put the samples at odd sixteenths."
    impulse = torch.zeros(1, 1, 1, 9)
    impulse[..., 4] = 1
    drawn = resize(impulse.expand(1, 1, 9, 9), (9, 72), antialias)[0, 0, 4]
    distance = (torch.arange(72) + 0.5) / 8 - 4.5
    assert torch.allclose(drawn, cubic_kernel(distance, a), atol=1e-5)


@pytest.mark.parametrize("scale", [4, 8])
@pytest.mark.parametrize("antialias", [True, False])
def test_downsample(scale, antialias):
    hr = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    out = Downsample(scale, antialias)(hr)
    assert isinstance(out, Degraded) and out.target is hr and out.maps == {}
    assert out.input.shape == (3, 3, 64 // scale, 96 // scale) and 0 <= out.input.min() and out.input.max() <= 1
    assert torch.equal(out.input, Downsample(scale, antialias)(hr).input)
    alone = torch.cat([Downsample(scale, antialias)(x[None]).input for x in hr])
    assert torch.allclose(out.input, alone, atol=1e-6)


def test_default_is_antialiased():
    hr = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Downsample(8)(hr).input, Downsample(8, antialias=True)(hr).input)
    assert not torch.allclose(Downsample(8)(hr).input, Downsample(8, antialias=False)(hr).input, atol=0.05)


@pytest.mark.parametrize(
    "bad, message",
    [
        (torch.rand(1, 3, 100, 128), "does not divide by 8"),
        (torch.rand(3, 128, 128), "should be a float tensor"),
        (torch.zeros(1, 3, 128, 128, dtype=torch.uint8), "torch.uint8"),
        (torch.rand(1, 1, 128, 128), "(1, 1, 128, 128)"),
        (torch.rand(1, 3, 128, 128) * 255, "divide bytes by 255"),
        (torch.full((1, 3, 128, 128), float("nan")), "should lie in [0, 1]"),
        (torch.rand(0, 3, 128, 128), "empty batch"),
        ("a face", "is str"),
    ],
)
def test_bad_input_gets_one_sentence(bad, message):
    with pytest.raises(FacelabError) as error:
        Downsample(8)(bad)
    assert message in str(error.value) and "\n" not in str(error.value)
