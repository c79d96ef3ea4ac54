"""The networks of heavy rain: filter and physics against their formulas, released counts, boxes and parsed faces.

Gradients show which modules learn from a verdict; published slips are planted, and found."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.degradations.rain import HeavyRain, recompose
from facelab.faces.drawn import draw_faces
from facelab.faces.parts import PARTS_11, parsing_11
from facelab.losses.adversarial import linear
from facelab.networks.drawing import count_parameters, trace
from facelab.networks.fcg import BOXES, ComponentCritic, FaceSR, FCGGenerator, average_boxes
from facelab.networks.fpm import FaceParsing
from facelab.networks.hrrm import HRRM, DenseEncoder, dense_block
from facelab.networks.rain_removal import (
    Decomposition,
    DepthGuidedCritic,
    HeavyRainRemoval,
    Inversion,
    StreakBranch,
    UNet,
    guided_filter,
    residue,
)
from facelab.systems.heavy_rain import HeavyRainFace

torch.set_num_threads(1)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def literal_guided_filter(guide, x, radius, eps):
    "Windows one by one, in float64: fit x = a g + b in each, then average the lines of all windows that hold a pixel."
    guide, x = guide.double().numpy(), x.double().numpy()
    n, c, h, w = x.shape
    out = np.zeros_like(x)

    def window(i, j):
        return slice(max(i - radius, 0), i + radius + 1), slice(max(j - radius, 0), j + radius + 1)

    for k in range(n):
        for ch in range(c):
            a, b = np.zeros((h, w)), np.zeros((h, w))
            for i in range(h):
                for j in range(w):
                    g, p = guide[k, 0][window(i, j)], x[k, ch][window(i, j)]
                    a[i, j] = ((g - g.mean()) * (p - p.mean())).mean() / (g.var() + eps)
                    b[i, j] = p.mean() - a[i, j] * g.mean()
            for i in range(h):
                for j in range(w):
                    out[k, ch, i, j] = a[window(i, j)].mean() * guide[k, 0, i, j] + b[window(i, j)].mean()
    return out


@pytest.mark.parametrize("radius, eps", [(1, 0.001), (2, 0.0001), (4, 0.001), (32, 0.0001)])
def test_guided_filter_is_the_formula(radius, eps):
    x = images(2, 3, 9, 12)
    ours = guided_filter(residue(x), x, radius, eps).numpy()
    assert np.abs(ours - literal_guided_filter(residue(x), x, radius, eps)).max() < 2e-5


def test_guided_filter_can_be_differentiated():
    x, guide, dx, dg, weights = [images(1, c, 5, 6, seed=i).double() for i, c in enumerate((2, 1, 2, 1, 2))]

    def f(t):
        return (guided_filter(guide + t * dg, x + t * dx, 2, 0.01) * weights).sum()

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(f(t), t)
    assert torch.allclose(slope, (f(1e-6) - f(-1e-6)) / 2e-6, rtol=1e-6) and slope.abs() > 0.1


def test_the_33_channels_are_the_picture_and_five_radii_times_two_eps():
    x = images(1, 3, 16, 16)
    low, high = Decomposition()(x)
    assert low.shape == high.shape == (1, 33, 16, 16) and torch.equal(low[:, :3], x) and torch.equal(high[:, :3], x)
    wanted = [guided_filter(residue(x), x, r, e) for r in (2, 4, 8, 16, 32) for e in (0.001, 0.0001)]
    assert torch.equal(low[:, 3:], torch.cat(wanted, 1))
    assert torch.allclose(high[:, 3:], x.repeat(1, 10, 1, 1) - low[:, 3:])


def test_a_flat_picture_is_all_low_frequency():
    low, high = Decomposition()(torch.full((1, 3, 16, 16), 0.4))
    assert torch.allclose(low, torch.tensor(0.4), atol=1e-5) and high[:, 3:].abs().max() < 1e-5


def test_true_maps_give_the_true_picture():
    maps = HeavyRain(relief=0.0)(images(3, 3, 24, 20), Dice(0, "degrade", range(3))).maps
    S, T, A = (maps[k] for k in "STA")
    I = recompose(maps)
    assert torch.allclose(Inversion(0)(I, S, T, A), maps["J"], atol=1e-5)
    J = Inversion()(I, S, T, A)
    assert torch.allclose(J, (maps["J"] + S) * T / (T + 0.001) - S, atol=1e-5)
    assert 0 < (J - maps["J"]).abs().max() < 0.004
    assert not torch.allclose(Inversion()(I, S, 1 - T, A), maps["J"], atol=0.1)


def test_j_is_the_physics_of_the_other_outputs_and_a_is_one_colour():
    net, x = HeavyRainRemoval(width=8, depth=1).eval(), images(2, 3, 16, 32)
    with torch.no_grad():
        out = net(x)
        enlarged = torch.nn.functional.interpolate(x, (64, 128), mode="bicubic", antialias=True)
    expected = (enlarged - (1 - out["T"]) * out["A"]) / (out["T"] + 0.001) - out["S"]
    assert torch.allclose(out["J"], expected, atol=1e-5) and out["restored"].shape == (2, 3, 64, 128)
    assert torch.equal(out["A"], out["A"][..., :1, :1].expand_as(out["A"]))
    assert not torch.equal(out["A"][0], out["A"][1])


def conv(n_in, n_out, k, bias=True):
    return n_in * n_out * k * k + n_out * bias


def test_counts_of_the_released_layers():
    def double(a, b):
        return conv(a, b, 3) + conv(b, b, 3)

    def unet(n_in, n_out, inner=0):
        down = ((n_in, 64), (64, 128), (128, 256), (256, 512), (512, 512))
        up = ((1024 + inner, 256), (512, 128), (256, 64), (128, 64))
        return sum(double(*c) for c in down + up) + conv(64, n_out, 1)

    transmission = conv(33, 33, 1) + unet(33, 1)
    trunk = conv(33, 64, 4) + sum(
        conv(a, b, 4, False) + 2 * b for a, b in ((64, 128), (128, 256), (256, 512), (512, 512), (512, 512))
    )
    light = conv(33, 33, 1) + trunk + conv(512, 1024, 1) + conv(1024, 3, 1)
    streaks = (
        conv(33, 33, 1)
        + conv(33, 64, 5)
        + 2 * conv(64, 64, 3)
        + 2 * conv(64, 256, 3)
        + 2 * (conv(256, 64, 3) + conv(64, 64, 3) + conv(64, 256, 3))
        + conv(256, 256, 3)
        + conv(256, 128, 3)
        + conv(128, 64, 3)
        + conv(320, 1, 3)
    )
    refinement = unet(3, 3, 32) + conv(3, 16, 2) + conv(16, 32, 2)
    net, critic = HeavyRainRemoval(), DepthGuidedCritic(256)
    ours = [count_parameters(module) for module in (net.transmission, net.light, net.streaks, net.refinement)]
    assert ours == [transmission, light, streaks, refinement]
    fives = ((6, 8), (8, 16), (16, 64), (64, 128), (128, 128), (128, 128), (128, 1), (128, 64), (64, 32))
    assert count_parameters(critic) == sum(conv(a, b, 5) for a, b in fives) + 32 * 16 * 16 * 1024 + 1024 + 1025


def test_the_middle_of_the_unet_takes_extra_maps():
    net, x = UNet(3, 2, width=8, inner=4).eval(), images(1, 3, 32, 48)
    with torch.no_grad():
        plain, moved = net(x, torch.zeros(1, 4, 2, 3)), net(x, torch.ones(1, 4, 2, 3))
    assert plain.shape == (1, 2, 32, 48) and not torch.allclose(plain, moved)


def silent(net, loss):
    "Parameters that a loss does not reach."
    net.zero_grad()
    loss.backward()
    return [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


class Detached(nn.Module):
    "The published slip: the critic gets a detached picture in the generator's step."

    def __init__(self, critic):
        super().__init__()
        self.critic = critic

    def forward(self, x, *more):
        return self.critic(x.detach().requires_grad_(), *more)


@pytest.mark.parametrize("box", [*BOXES, (0.1, 0.1, 0.9, 0.35)])
def test_the_verdict_on_a_part_reaches_the_whole_generator(box):
    torch.manual_seed(0)
    net = HeavyRainFace(width=8, depth=1).eval()
    critic = ComponentCritic(box, size=64, width=8).eval()
    x = images(2, 3, 16, 16)
    rain_only = tuple(f"hrrm.decoders.{k}" for k in "STA")  # the face does not depend on these three maps
    of_the_face = {name for name, _ in net.named_parameters() if not name.startswith(rain_only)}

    def out_of_reach(critic):
        return of_the_face & set(silent(net, linear(critic(net(x)["restored"]))))

    assert out_of_reach(critic) == set()
    assert out_of_reach(Detached(critic)) == of_the_face


@pytest.mark.parametrize("field", ["score", "depth"])
def test_both_answers_of_the_depth_guided_critic_reach_the_generator(field):
    torch.manual_seed(0)
    net = HeavyRainRemoval(width=8, depth=1).eval()
    critic = DepthGuidedCritic(64, width=64).eval()
    x = images(2, 3, 16, 16)

    def out_of_reach(critic):
        return len(silent(net, critic(net(x)["restored"], x)[field].square().mean()))

    assert out_of_reach(critic) == 0
    assert out_of_reach(Detached(critic)) == len(list(net.parameters()))


@pytest.mark.parametrize("size", [64, 100, 128])
@pytest.mark.parametrize("box", [*BOXES, (0.0, 0.5, 1.0, 1.0), (0.25, 0.125, 0.5, 0.75)])
def test_crops_land_where_boxes_say(box, size):
    critic = ComponentCritic(box, size, width=4)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    crop = critic.crop(torch.stack([x, y, x]).float()[None])[0]
    edges = torch.stack([crop[0].amin(), crop[1].amin(), crop[0].amax() + 1, crop[1].amax() + 1])
    share = torch.tensor(BOXES[box] if isinstance(box, str) else box)
    assert (edges / size - share).abs().max() <= 0.5 / size + 1e-6
    assert critic.eval()(images(2, 3, size, size)).shape == (2, 1) and critic.size == tuple(crop.shape[1:])


def test_a_local_critic_sees_nothing_outside_its_box():
    critic, face = ComponentCritic("nose", 64, width=4).eval(), images(1, 3, 64, 64)
    other = face.clone()
    critic.crop(other).zero_()
    inside, outside = other, images(1, 3, 64, 64, seed=1)
    critic.crop(outside).copy_(critic.crop(face))
    with torch.no_grad():
        assert torch.equal(critic(face), critic(outside)) and not torch.equal(critic(face), critic(inside))


def parsed_face_enters(net):
    "Whether the last thing that joins the features before the first PixelShuffle is F, followed by its convolution."
    t = trace(net, ((1, 3, 8, 8), (1, 3, 8, 8), (1, 11, 8, 8)), expand=("up", "up.0", "up.1"))
    first = next(i for i, s in enumerate(t.steps) if s.operation == "PixelShuffle 2")
    assert t.inputs[2][0] == "F"
    entrances = [i for i, s in enumerate(t.steps) if -3 in s.sources]
    return entrances == [first - 2] and t.steps[first - 1].operation == "conv 3×3"


class Late(FCGGenerator):
    "A generator that reads F one stage too late."

    def __init__(self):
        super().__init__(width=8, depth=1)
        self.up[0][0], self.up[1][0] = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(19, 32, 3, padding=1)

    def forward(self, x, J=None, F=None):
        head = self.head(torch.cat([J, x], 1))
        up = self.up[0](head + self.body_end(self.blocks(head)))
        return self.tail(self.up[1](torch.cat([up, nn.functional.interpolate(F, scale_factor=2)], 1)))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_parsed_face_enters_before_the_first_pixel_shuffle(scale):
    net = FCGGenerator(scale, width=8, depth=1).eval()
    F = images(1, 11, 8, 8).requires_grad_()
    out = net(images(1, 3, 8, 8), images(1, 3, 8, 8, seed=1), F)
    out.square().sum().backward()
    assert out.shape == (1, 3, 8 * scale, 8 * scale)
    assert (F.grad.abs().sum((0, 2, 3)) > 0).all()
    assert parsed_face_enters(net)
    assert not parsed_face_enters(Late().eval())


def test_face_sr_reads_the_parsed_face_at_its_input_and_estimates_it_without_j():
    net, x = FaceSR(width=8, depth=1).eval(), images(1, 3, 16, 16)
    steps = trace(net, x).steps
    assert [s.operation for s in steps[:3]] == ["FaceParsing", "concat", "conv 9×9 · PReLU"]
    assert steps[2].inputs == ("16×16×14",)
    assert silent(net, net(x)["restored"].square().mean()) == []


def literal_boxes(maps, margin):
    "Face by face, part by part."
    parts = dict(eyes=("left eye", "right eye"), nose=("nose",), lips=("upper lip", "inner mouth", "lower lip"))
    boxes = {}
    for name, of in parts.items():
        found = []
        for face in maps:
            mask = sum(face[PARTS_11.index(p)].numpy() for p in of) > 0.5
            (h, w), (rows, columns) = mask.shape, np.nonzero(mask)
            if len(rows):
                found.append((columns.min() / w, rows.min() / h, (columns.max() + 1) / w, (rows.max() + 1) / h))
        boxes[name] = np.clip(np.mean(found, 0) + margin * np.array([-1, -1, 1, 1]), 0, 1)
    return boxes


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.4])
def test_average_boxes_are_the_means_of_the_faces_boxes(margin):
    faces = draw_faces(range(6), size=64)
    maps = parsing_11(faces["parsing"])
    maps[2, PARTS_11.index("nose")] = 0  # a face without a nose does not count for noses
    maps = torch.nn.functional.avg_pool2d(maps, (1, 2))  # and faces need not be square
    ours = average_boxes(maps, margin=margin)
    assert all(np.abs(np.array(ours[name]) - box).max() < 6e-4 for name, box in literal_boxes(maps, margin).items())


def test_landmarks_and_labels_give_the_same_boxes():
    faces = draw_faces(range(32), size=128)
    by_labels, by_maps = average_boxes(faces["parsing"]), average_boxes(parsing_11(faces["parsing"]))
    by_points = [average_boxes(faces[f"landmarks_{k}"], size=128) for k in (68, 81)]
    assert by_labels == by_maps and by_points[0] == by_points[1]
    assert all(abs(a - b) < 0.02 for name in BOXES for a, b in zip(by_labels[name], by_points[0][name], strict=True))
    assert all(abs(a - b) < 0.01 for name in BOXES for a, b in zip(by_labels[name], BOXES[name], strict=True))


def test_dense_layers_keep_what_was_there_and_add_growth():
    block, x = dense_block(6, 3, growth=4).eval(), images(2, 6, 8, 8)
    with torch.no_grad():
        out, two = block(x), block[:2](x)
    assert out.shape == (2, 18, 8, 8) and torch.equal(out[:, :6], x) and torch.equal(out[:, :14], two)


@pytest.mark.parametrize("width, depth", [(8, 1), (12, 2), (4, 3)])
def test_the_encoder_keeps_the_small_face_at_full_resolution(width, depth):
    encoder = DenseEncoder(width, depth).eval()
    features = encoder(images(1, 3, 32, 32))
    shapes = [(c, side, side) for c, side in zip(encoder.channels, (32, 16, 8), strict=True)]
    assert [tuple(f.shape[1:]) for f in features] == shapes
    assert [len(block) for block in encoder.blocks] == [depth, 2 * depth, 4 * depth]


def test_shares_and_light_stay_between_0_and_1_and_the_rest_is_not_clamped():
    torch.manual_seed(0)
    net = HRRM(width=8, depth=1).eval()
    with torch.no_grad():
        for decoder in net.decoders.values():
            decoder.out[2].bias.fill_(9.0)
        out = net(images(2, 3, 16, 24))
    assert all(0 < out[k].min() and out[k].max() <= 1 for k in "TA") and all(out[k].min() > 1 for k in "SJ")
    assert {k: v.shape[1] for k, v in out.items()} == dict(S=3, T=1, A=1, J=3)
    assert recompose(out).shape == (2, 3, 16, 24)


@pytest.mark.parametrize(
    "part, result, cut", [("hrrm", "restored", "hrrm"), ("fpm", "restored", "fpm"), ("hrrm", "parsing_maps", "hrrm")]
)
def test_a_detached_module_of_the_system_is_found(part, result, cut):
    net, x = HeavyRainFace(width=8, depth=1).eval(), images(1, 3, 16, 16)
    learns = lambda: any(p.grad is not None and p.grad.abs().sum() > 0 for p in getattr(net, cut).parameters())
    net(x)[result].square().mean().backward()
    assert learns()

    def detach(module, args, out):
        return {k: v.detach() for k, v in out.items()} if isinstance(out, dict) else out.detach()

    getattr(net, part).register_forward_hook(detach)
    net.zero_grad()
    net(x)[result].square().mean().backward()
    assert not learns()


def test_the_system_is_its_three_modules_in_a_row():
    torch.manual_seed(0)
    net, x = HeavyRainFace(width=8, depth=1).eval(), images(2, 3, 16, 32)
    with torch.no_grad():
        out, rain = net(x), net.hrrm(x)
        F = net.fpm(x, rain["J"])
        assert torch.equal(out["restored"], net.generator(x, rain["J"], F)) and torch.equal(out["parsing_maps"], F)
    assert list(out) == ["S", "T", "A", "J", "parsing_maps", "restored"] and out["restored"].shape == (2, 3, 64, 128)


@pytest.mark.parametrize(
    "make, side",
    [
        (HeavyRainFace, 16),
        (HeavyRainRemoval, 16),
        (HRRM, 8),
        (FaceSR, 16),
        (partial(FaceParsing, derained=False), 8),
        (partial(StreakBranch, 3), 8),
    ],
)
@pytest.mark.parametrize("width, depth", [(8, 1), (12, 3)])
def test_any_width_and_depth(make, side, width, depth):
    out = make(width=width, depth=depth).eval()(images(1, 3, side, side))
    assert all(len(t) == 1 for t in (out.values() if isinstance(out, dict) else [out]))


def test_depth_adds_the_blocks_that_it_says():
    assert len(FaceParsing(width=8, depth=3).up) == 3
    assert len(FCGGenerator(width=8, depth=5).blocks) == 5
    assert len(StreakBranch(width=8, depth=4).blocks) == 5
    encoder = HeavyRainFace(width=8).hrrm.encoder
    assert [len(block) for block in encoder.blocks] == [6, 12, 24]
    assert encoder.channels == [32, 64, 128]  # a growth of 4 instead of 32


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: ComponentCritic("ears"), "'ears': give eyes, nose, lips"),
        (lambda: ComponentCritic((0.5, 0.2, 0.5, 0.4)), "is empty"),
        (lambda: ComponentCritic((0.5, 0.2, 1.5, 0.4)), "leaves the face of 128"),
        (lambda: DepthGuidedCritic(8), "not 8"),
        (lambda: HeavyRainRemoval(3), "scale is 3"),
        (lambda: average_boxes(torch.rand(2, 5, 2), size=64), "5 points"),
        (lambda: average_boxes(torch.zeros(2, 11, 8, 8)), "no eyes and no nose and no lips in 2 faces"),
        (lambda: FaceParsing(width=8)(images(1, 3, 16, 16), images(2, 3, 16, 16)), "in a batch of 1"),
        (lambda: HeavyRainFace(width=8, depth=1)(images(1, 3, 24, 24)), "divide by 16"),
    ],
)
def test_bad_settings_get_one_sentence(make, said):
    with pytest.raises(FacelabError) as error:
        make()
    assert said in str(error.value) and "\n" not in str(error.value)
