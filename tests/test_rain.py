"Heavy rain: Equation 2 exactly, and rain that looks like rain, in numbers."

import math

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import norm

from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.degradations.rain import HeavyRain, drops, normal_tail, recompose, streaks, transmission
from facelab.degradations.resample import Downsample, resize
from facelab.faces.drawn import draw_faces

SETTINGS = dict(
    default={},
    dense=dict(amount=4, strength=1, length=0.5),
    layers=dict(layers=3),
    relief=dict(relief=4.0),
    calm=dict(amount=0, beta=0),
    level=dict(angle=(0, 180)),
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def black(n, side):
    return torch.zeros(n, 3, side, side)


@pytest.fixture(scope="module")
def drawn():
    d = draw_faces(range(5), size=64)
    return d["image"], d["depth"]


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("rows", [64, 40])
def test_the_maps_give_the_picture_exactly(drawn, given, rows):
    x, depth = drawn[0][:, :, :rows], drawn[1][:, :rows]
    out = HeavyRain(**given)(x, Dice(1, "d", range(5)), depth=depth)
    m = out.maps
    assert torch.equal(recompose(m), out.input) and torch.equal(m["J"], x)
    by_numpy = m["T"].double() * (m["J"].double() + m["S"]) + (1 - m["T"].double()) * m["A"]
    assert (by_numpy - out.input).abs().max() < 1e-6
    assert m["S"].shape == x.shape and m["T"].shape == m["A"].shape == (5, 1, rows, 64)
    assert out.input.min() >= 0 and out.input.max() <= 1 and m["S"].min() >= 0 and (m["J"] + m["S"]).max() <= 1


def test_no_rain_and_no_distance_is_the_picture(drawn):
    x, _ = drawn
    assert torch.equal(HeavyRain(beta=0, amount=0)(x).input, x)
    only_veil = HeavyRain(beta=5, amount=0, light=0.7)(x).input
    assert (only_veil - (math.exp(-5) * x + (1 - math.exp(-5)) * 0.7)).abs().max() < 1e-6


def test_white_stays_below_white():
    out = HeavyRain(light=1, amount=4, strength=1, length=0.5)(torch.ones(3, 3, 33, 47))
    assert out.input.max() == 1 and out.maps["S"].max() == 0


def test_transmission_is_exponential_in_the_distance(drawn):
    x, depth = drawn
    flat = HeavyRain()(x).maps
    assert torch.allclose(flat["T"][:, 0, 0, 0], (-flat["beta"]).exp()) and torch.equal(
        flat["T"].amax((2, 3)), flat["T"].amin((2, 3))
    )
    m = HeavyRain(relief=2.0)(x, depth=depth).maps
    d = -m["T"][:, 0].double().log() / m["beta"].double()[:, None, None]
    assert torch.allclose(d.amin((1, 2)), numbers(1, 1, 1, 1, 1), atol=1e-5)  # the nearest point
    assert torch.allclose(d.float(), 1 + 2 * (depth.amax((1, 2), keepdim=True) - depth), atol=1e-4)  # farther behind
    assert torch.equal(
        transmission(torch.full((5, 1, 1, 1), 0.5), depth, 0), torch.full((5, 1, 1, 1), -0.5).exp().expand(5, 1, 64, 64)
    )


@pytest.mark.parametrize("chance", [0.001, 0.02, 0.2, 0.5])
def test_threshold_and_excess_are_those_of_the_normal_distribution(chance):
    threshold, excess = [float(v[0]) for v in normal_tail(numbers(chance))]
    assert abs(norm.sf(threshold) - chance) < 1e-9
    assert abs(norm.expect(lambda z: z - threshold, lb=threshold, conditional=True) - excess) < 1e-6
    even = torch.arange(1, 1000) / 1000
    ours = drops(even, torch.tensor(threshold)).numpy() * 2**0.5
    theirs = np.maximum(norm.ppf(even.double().numpy()) - threshold, 0)
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("length, angle", [(9.0, 90.0), (20.0, 75.0), (15.0, 120.0), (12.0, 0.0)])
def test_a_layer_is_thresholded_noise_filtered_by_motion(length, angle):
    "The same even numbers through scipy's normal distribution and OpenCV's filter."
    margin, side, amount = 12, 48, 0.3
    given = [numbers(v) for v in (length, angle, amount, 0.4)]
    ours = streaks(Dice(0, "d", [0]), *given, (side, side), (margin, margin))[0, 0].numpy()
    even = Dice(0, "d", [0]).even_field(side + 2 * margin, side + 2 * margin)[0].double().numpy()
    threshold = norm.isf(amount / length)
    seeds = np.maximum(norm.ppf(even.clip(1e-9)) - threshold, 0) / (norm.pdf(threshold) / (amount / length) - threshold)
    kernel = np.zeros((2 * margin + 1, 2 * margin + 1))
    for t in (np.arange(4 * margin + 1) + 0.5) / (4 * margin + 1) - 0.5:
        x, y = t * length * np.cos(np.radians(angle)), -t * length * np.sin(np.radians(angle))
        near = lambda s: (1 - abs(np.arange(-margin, margin + 1) - s)).clip(0)
        kernel += np.outer(near(y), near(x))
    theirs = cv2.filter2D(seeds, -1, kernel / kernel.sum() * length * 0.4)[margin:-margin, margin:-margin]
    assert np.abs(ours - theirs).max() < 1e-3


def test_mean_brightness_is_amount_times_strength():
    out = HeavyRain(amount=0.4, strength=0.05, length=0.2)(black(40, 64), Dice(0, "d", range(40)))
    assert abs(out.maps["S"].mean() - 0.02) < 0.002


def test_streaks_reach_the_border():
    S = HeavyRain(amount=0.5, strength=0.05, length=0.3)(black(120, 48), Dice(0, "d", range(120))).maps["S"]
    middle = S[..., 12:36, 12:36].mean()
    for edge in (S[..., :3, :], S[..., -3:, :], S[..., :3], S[..., -3:]):
        assert abs(edge.mean() / middle - 1) < 0.1


@pytest.mark.parametrize("angle", [60, 75, 90, 105, 120])
@pytest.mark.parametrize("side", [32, 128])
def test_streaks_point_where_they_should(angle, side):
    "The layer's correlation with itself is a ridge along its streaks; its main axis is their direction."
    rain = HeavyRain(angle=angle, strength=0.05, length=0.25, amount=0.3)
    S = rain(black(32, side), Dice(0, "d", range(32))).maps["S"].mean(1)
    power = torch.fft.rfft2(S - S.mean(), s=(2 * side, 2 * side)).abs().square().mean(0)
    ridge = torch.fft.fftshift(torch.fft.irfft2(power))
    reach = side // 5
    ridge = ridge[side - reach : side + reach + 1, side - reach : side + reach + 1] / ridge[side, side]
    yy, xx = torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")
    ridge = torch.where((torch.hypot(xx, yy) <= reach) & (ridge > 0.1), ridge, 0)
    a, b, c = [(ridge * m).sum() for m in (xx * xx, yy * yy, -xx * yy)]
    assert abs(math.degrees(0.5 * math.atan2(2 * c, a - b)) % 180 - angle) < 4
    along, across = (a + b) / 2 + torch.hypot((a - b) / 2, c), (a + b) / 2 - torch.hypot((a - b) / 2, c)
    assert along > (5 if side == 32 else 40) * across  # streaks, not blobs


@pytest.mark.parametrize("length", [0.1, 0.2, 0.3])
def test_streaks_have_their_length_and_are_thin(length):
    "A box of length l correlates with itself, d pixels along it, by 1 - d/l; across it, not at all."
    rain = HeavyRain(angle=90, length=length, strength=0.05, amount=0.3)
    S = rain(black(32, 128), Dice(0, "d", range(32))).maps["S"].mean(1)
    S = S - S.mean()
    along = lambda d: float((S[:, d:] * S[:, :-d]).mean() / S.square().mean())
    for share in (0.25, 0.5, 0.75):
        assert abs(along(round(share * length * 128)) - (1 - share)) < 0.06
    assert abs(along(round(1.3 * length * 128))) < 0.03
    assert abs(float((S[..., 2:] * S[..., :-2]).mean() / S.square().mean())) < 0.03


def test_layers_add_and_leave_each_other_alone():
    x = black(6, 40)
    one, two = [HeavyRain(layers=m, strength=0.05, amount=0.3)(x, Dice(0, "d", range(6))).maps for m in (1, 2)]
    assert torch.equal(one["length"], two["length"]) and not torch.equal(two["length"], two["length_2"])
    second = two["S"] - one["S"]
    assert second.min() >= -1e-6 and abs(second.mean() / one["S"].mean() - 1) < 0.3


@pytest.mark.parametrize("given", SETTINGS.values(), ids=SETTINGS)
def test_a_face_is_the_same_in_any_batch(drawn, given):
    x, depth = drawn
    together = HeavyRain(**given)(x, Dice(3, "d", range(5)), depth=depth)
    assert torch.equal(together.input, HeavyRain(**given)(x, Dice(3, "d", range(5)), depth=depth).input)
    for rows in ([0], [4], [2, 0, 3]):
        some = HeavyRain(**given)(x[rows], Dice(3, "d", rows), depth=depth[rows])
        assert (some.input - together.input[rows]).abs().max() < 1e-6
        assert all(torch.allclose(v, together.maps[k][rows], atol=1e-6) for k, v in some.maps.items())


def test_more_faces_than_are_filtered_together():
    x, rain = black(37, 40), HeavyRain(length=(0, 0.5), angle=(0, 180))
    together = rain(x, Dice(3, "d", range(37)))
    for i in (0, 7, 18, 36):
        alone = rain(x[i : i + 1], Dice(3, "d", [i]))
        assert (alone.input - together.input[i : i + 1]).abs().max() < 1e-6


def test_published_ranges_can_be_given():
    "Li et al. (2019), distance of the face .25 of the farthest."
    for beta, light in (((3, 4.2), (0.3, 0.9)), ((2.6, 4.6), (0.25, 0.95))):
        rain = HeavyRain(beta=(beta[0] / 4, beta[1] / 4), light=light, length=(21 / 480, 60 / 480), angle=(80, 100))
        m = rain(black(200, 16), Dice(0, "d", range(200))).maps
        for name, (low, high) in dict(beta=rain.beta, light=light, length=rain.length, angle=(80, 100)).items():
            assert low <= m[name].min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < m[name].max() <= high


def test_how_hard_the_default_is():
    x = draw_faces(range(24), size=128)["image"]
    low = HeavyRain()(Downsample(4)(x).input, Dice(0, "d", range(24))).input
    psnr = -10 * (resize(low, 128).clamp(0, 1) - x).square().mean((1, 2, 3)).log10()
    assert 7 < psnr.mean() < 13


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(beta=-1), "beta"),
        (dict(light=(0.9, 0.2)), "light"),
        (dict(layers=0), "layers"),
        (dict(layers=1.5), "layers"),
        (dict(length=0.8), "[0, 0.5]"),
        (dict(angle=200), "angle"),
        (dict(relief=1.0), "HeavyRain needs depth"),
    ],
)
def test_bad_parameters_and_labels_get_one_sentence(drawn, given, message):
    with pytest.raises(FacelabError) as error:
        HeavyRain(**given)(drawn[0])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_equation_has_the_numbers(drawn):
    rain = HeavyRain(beta=1, light=0.8, length=0.25, angle=90)
    first, second = rain.latex(rain(drawn[0]).maps, 3).split("\n")
    assert first == r"I = 0.37\,(J + S) + 0.63\cdot0.80" and r"16.0\,\mathrm{px}" in second and r"90^\circ" in second
