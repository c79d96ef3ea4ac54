"""Heat maps, FSRNet, DIC, SICNN: literal formulations, and the faults of published code planted.

test_registry.py tests what every network must do.
"""

import math

import pytest
import torch
from torch import nn

from facelab import FacelabError
from facelab.faces.drawn import draw_faces
from facelab.faces.heatmaps import DIC_MAPS, FSRNET_MAPS, heatmaps, merge_parts, part_matrix, points
from facelab.faces.parts import LANDMARK_SCHEMES, MIRROR_11, mirror, parsing_11, scheme
from facelab.networks.dic import DIC, AttentiveFusion, DICCritic, FeedbackHourglass, PlainBottleneck
from facelab.networks.fsrnet import FSRNet, coarse_network
from facelab.networks.hourglass import Bottleneck, BottleneckHourglass, FSRBlock, PriorNet
from facelab.networks.sicnn import SICNN, GrowingBlock, SphereFace20

torch.set_num_threads(1)
FACES = draw_faces(range(4))


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make, *args, **given):
    torch.manual_seed(0)
    return make(*args, **given).eval()


def count_once(net):
    "Parameters, shared ones once."
    return sum(p.numel() for p in net.parameters())


def count_every_use(net):
    "Parameters, shared ones as often as they are used."
    return sum(p.numel() for _, p in net.named_parameters(remove_duplicate=False))


def literal_heatmap(x, y, side, size, sigma, window, exact):
    "One map, pixel by pixel."
    out, px, py = torch.zeros(size, size), x * size / side, y * size / side
    i0, j0 = math.floor(px), math.floor(py)
    if not (0 <= i0 < size and 0 <= j0 < size):
        return out
    cx, cy = (px, py) if exact else (i0 + 0.5, j0 + 0.5)
    for j in range(size):
        for i in range(size):
            near = not window or max(abs(i - i0), abs(j - j0)) <= window // 2
            out[j, i] = near * math.exp(-((i + 0.5 - cx) ** 2 + (j + 0.5 - cy) ** 2) / (2 * sigma**2))
    return out


@pytest.mark.parametrize(
    "how",
    [
        dict(size=16, sigma=1.75, window=7),
        dict(size=16, sigma=1.0, window=None, exact=True),
        dict(size=8, sigma=0.7, window=3),
    ],
)
def test_heatmaps_are_the_formula_pixel_by_pixel(how):
    at = images(2, 6, 2) * 40 - 4  # some outside of 32
    settings = how["size"], how["sigma"], how["window"], how.get("exact", False)
    expected = [torch.stack([literal_heatmap(*p.tolist(), 32, *settings) for p in face]) for face in at]
    assert torch.allclose(heatmaps(at, 32, **how), torch.stack(expected), atol=1e-5)


def test_released_setting_is_the_window_of_fcsr_gan():
    maps = heatmaps(torch.tensor([[[60.0, 40.0]]]), 128, **FSRNET_MAPS)
    value = lambda i, j: math.exp(-(((i - 3) / 1.75) ** 2 + ((j - 3) / 1.75) ** 2) / 2)
    kernel = torch.tensor([[value(i, j) for i in range(7)] for j in range(7)])
    assert maps.shape == (1, 1, 64, 64) and (maps > 0).sum() == 49
    assert torch.allclose(maps[0, 0, 17:24, 27:34], kernel, atol=1e-6)


def test_a_face_in_a_batch_has_the_maps_it_has_alone():
    landmarks = FACES["landmarks_81"]
    assert torch.equal(heatmaps(landmarks, 128)[2:3], heatmaps(landmarks[2:3], 128))


@pytest.mark.parametrize("point", [(0.01, 0.01), (127.9, 127.9), (0.0, 64.0), (64.0, 127.99), (3.0, 100.0)])
def test_points_at_the_border_come_back(point):
    p = torch.tensor([[point]])
    assert (points(heatmaps(p, 128), 128) - p).abs().max() <= 1 + 1e-4  # half a map pixel


def test_points_finds_every_subpixel_place_of_an_uncut_gaussian():
    at = 8 + 112 * images(1, 50, 2)
    assert (points(heatmaps(at, 128, **DIC_MAPS), 128) - at).abs().max() < 0.02
    coarse = heatmaps(at, 128, **DIC_MAPS).flatten(2).argmax(2)
    whole = torch.stack([coarse % 32 + 0.5, coarse // 32 + 0.5], 2) * 4
    assert (whole - at).abs().max() > 1  # what the arg-max alone would give


def test_points_ignores_a_map_without_a_peak_and_survives_ties_and_negative_values():
    flat, negative = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), -0.1)
    negative[0, 0, 2, 5] = 3.0
    assert points(flat, 64).isnan().all() and points(negative, 64).tolist() == [[[44.0, 20.0]]]
    assert points(flat + 1, 64).isfinite().all()


@pytest.mark.parametrize("count", [5, 49, 68, 81, 194])
@pytest.mark.parametrize("how", [FSRNET_MAPS, DIC_MAPS])
def test_flipped_maps_need_their_channels_swapped(count, how):
    """FCSR-GAN's released loader flips without swapping: a right eye in the left eye's channel."""
    landmarks = FACES[f"landmarks_{count}"] if count in (68, 81) else 8 + 112 * images(4, count, 2)
    maps, swap = heatmaps(landmarks, 128, **how), list(scheme(count).mirror)
    mirrored = heatmaps(mirror(dict(image=FACES["image"], landmarks=landmarks))["landmarks"], 128, **how)
    assert torch.allclose(maps.flip(-1)[:, swap], mirrored, atol=1e-4)
    assert (maps.flip(-1) - mirrored).abs().max() > 0.5


def test_flipped_parsing_needs_its_channels_swapped_too():
    labels = FACES["parsing"]
    flipped = mirror(dict(image=FACES["image"], parsing=labels))["parsing"]
    maps = parsing_11(labels)
    assert torch.equal(parsing_11(flipped), maps.flip(-1)[:, list(MIRROR_11)])
    assert not torch.equal(parsing_11(flipped), maps.flip(-1))


def test_five_parts_are_sums_of_scaled_maps():
    maps = torch.cat([heatmaps(FACES["landmarks_68"], 128, **DIC_MAPS) * s for s in (0.5, 0.01)])
    five = merge_parts(maps, part_matrix(68))
    mouth = sum(m / max(m.max().item(), 0.05) for m in maps[0, 48:68])
    assert torch.allclose(five[0, 3], mouth, atol=1e-5)
    assert five[4:].max() < 0.3 * five[:4].max()  # hills lower than .05 are no hills


def test_five_parts_change_places_in_a_mirror():
    for count in (68, 81, 194):
        swapped = part_matrix(count)[[1, 0, 2, 3, 4]][:, list(LANDMARK_SCHEMES[count].mirror)]
        assert torch.equal(swapped, part_matrix(count))


def test_bad_landmarks_get_one_sentence():
    with pytest.raises(FacelabError, match=r"\(N,K,2\), not \(4, 2, 68\)"):
        heatmaps(FACES["landmarks_68"].mT, 128)
    with pytest.raises(FacelabError, match="49 landmarks are not known: give 68, 81, 194"):
        part_matrix(49)


@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(*[FSRBlock(8)] * 3), lambda: nn.Sequential(*[Bottleneck(8)] * 2)]
)
def test_blocks_made_by_list_multiplication_are_one_block(make):
    """The fault of an FSRNet port, planted: the test below would find it in our networks."""
    assert count_once(make()) < count_every_use(make())


@pytest.mark.parametrize(
    "net, rows",
    [
        (
            FSRNet(4, 8, 12, landmarks=5, parts=3),
            {
                "coarse_network.residual_blocks": 3,
                "encoder.residual_blocks": 12,
                "decoder.residual_blocks": 3,
                "prior.residual_blocks": 3,
                "prior.hourglasses": 2,
                "prior.hourglasses.0.across": 4,
            },
        ),
        (DIC(8, 8, 2, 2, fusion=3, hourglass_width=16), {"block.compress_in.blocks": 3, "block.up": 2}),
        (SICNN(8, 8, 2), {"up": 3, "tail.more": 2}),
        (SphereFace20(32, 8, 8, 16), {"stages": 4}),
    ],
)
def test_no_block_is_another_block(net, rows):
    assert count_once(net) == count_every_use(net)
    for name, length in rows.items():
        row = list(net.get_submodule(name))
        own = [p for block in row for p in block.parameters()]
        assert len(row) == length and len({id(p) for p in own}) == len(own)


# Parameters, counted from the lists of layers.


def conv(n_in, n_out, k):
    return n_in * n_out * k * k + n_out


def residual(w, norm=0):
    return 2 * (conv(w, w, 3) + 2 * norm * w)


def bottleneck(w):
    return 2 * w + 2 * w + conv(w, w // 2, 1) + conv(w // 2, w // 2, 3) + conv(w // 2, w, 1)


def prior(norm):
    heads = conv(256, 128, 1) + conv(128, 81, 1) + conv(128, 11, 1)
    return (
        conv(3, 64, 7)
        + 2 * 64
        + conv(64, 256, 3)
        + 2 * 256
        + 3 * residual(256, norm)
        + 2 * 13 * 4 * bottleneck(256)
        + heads
    )


def fsrnet(norm, up):
    coarse = conv(3, 64, 3) + 128 + 3 * residual(64, norm) + conv(64, 3, 3)
    encoder = conv(3, 64, 3) + 128 + 12 * residual(64, norm) + conv(64, 64, 3)
    return coarse + encoder + prior(norm) + conv(156, 64, 3) + 128 + up + 128 + 3 * residual(64, norm) + conv(64, 3, 3)


def plain(n, m):
    return conv(n, m // 2, 1) + conv(m // 2, m // 2, 3) + conv(m // 2, m, 1) + (conv(n, m, 1) if n != m else 0)


def dic():
    block = (
        12 * (conv(48, 48, 12) + 1) + 2 * sum(conv(48 * k, 48, 1) + 1 for k in range(2, 7)) + conv(6 * 48, 48, 1) + 1
    )
    fusion = conv(96, 48, 1) + 1 + conv(48, 240, 1) + 14 * (240 * 48 * 9 + 240)
    stem = conv(3, 64, 7) + plain(64, 128) + plain(128, 128) + plain(128, 256)
    eyes = stem + conv(512, 512, 1) + 13 * plain(512, 512) + plain(256, 256) + conv(256, 256, 1) + conv(256, 68, 1)
    return conv(3, 192, 3) + 1 + 2 * block + conv(48, 48, 1) + 1 + fusion + conv(48, 48, 8) + 1 + conv(48, 3, 3) + eyes


def critic():
    pairs = sum(conv(n, 2 * n, 1) + conv(n, 2 * m, 3) for n, m in ((48, 96), (96, 192), (192, 128), (128, 128)))
    return conv(3, 96, 5) + pairs + 8 * 8 * 128 * 512 + 512 + 256 + 1


def sphere():
    stages = (3, 64, 2), (64, 128, 4), (128, 256, 8), (256, 512, 2)
    return sum(conv(n, m, 3) + m + k * (conv(m, m, 3) + m) for n, m, k in stages) + 7 * 6 * 512 * 512 + 512


GATES = 18 * (conv(64, 4, 1) + conv(4, 64, 1)) + 3 * (conv(256, 16, 1) + conv(16, 256, 1))


@pytest.mark.parametrize(
    "make, expected, published",
    [
        (PriorNet, prior(0), 26_053_980),
        (lambda: FSRNet(variant="code"), fsrnet(0, 0), 27_517_794),
        (FSRNet, fsrnet(1, conv(64, 64, 4)), 27_591_074),
        (lambda: FSRNet(attention=True), fsrnet(1, conv(64, 64, 4)) + GATES, 27_626_906),
        (DIC, dic(), 21_803_849),
        (DICCritic, critic(), 5_485_921),
        (SphereFace20, sphere(), 22_670_656),
    ],
)
def test_counts_are_those_of_the_layer_lists(make, expected, published):
    assert count_once(make()) == expected == published


def literal_hourglass(net, x, block, up):
    "The recursion of Newell's hourglass, on the weights of ours."
    low = nn.functional.max_pool2d(x, 2)
    for b in net.before:
        low = block(b, low)
    if isinstance(net.inner, BottleneckHourglass):
        low = literal_hourglass(net.inner, low, block, up)
    else:
        for b in net.inner:
            low = block(b, low)
    for b in net.after:
        low = block(b, low)
    for b in net.across:
        x = block(b, x)
    return x + up(low)


def pre_activation(b, x):
    def norm(bn, y):
        mean, var, weight, bias = (t.view(-1, 1, 1) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
        return ((y - mean) / (var + bn.eps).sqrt() * weight + bias).clamp(min=0)

    return x + b.conv3(norm(b.before3[0], b.conv2(norm(b.before2[0], b.conv1(norm(b.before1[0], x))))))


def as_released(b, x):
    return x + b.conv3(b.conv2(b.conv1(x).clamp(min=0)))


@pytest.mark.parametrize(
    "block, mode, literal, up",
    [
        (Bottleneck, "nearest", pre_activation, lambda y: y.repeat_interleave(2, 2).repeat_interleave(2, 3)),
        (PlainBottleneck, "bilinear", as_released, nn.UpsamplingBilinear2d(scale_factor=2)),
    ],
)
def test_hourglass_is_the_recursion(block, mode, literal, up):
    net, x = seeded(BottleneckHourglass, 8, 2, 2, block, mode), images(2, 8, 16, 16)
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
        assert torch.allclose(net(x), literal_hourglass(net, x, literal, up), atol=1e-4)


def test_fsrnet_is_equations_3_to_6():
    net, x = seeded(FSRNet, 4, 8, 1, landmarks=5, parts=3), images(2, 3, 16, 16)
    with torch.no_grad():
        out = net(x)
        I_C = net.coarse_network(nn.functional.interpolate(x, scale_factor=4, mode="bicubic", antialias=True))
        I_P = net.prior(I_C)
        I_SR = net.decoder(torch.cat([net.encoder(I_C), I_P["landmark_maps"], I_P["parsing_maps"]], 1))
    for name, expected in dict(coarse=I_C, **I_P, restored=I_SR).items():
        assert torch.allclose(out[name], expected, atol=1e-5), name


def test_the_prior_is_read_off_the_coarse_face_and_trains_it():
    net, x = seeded(FSRNet, 4, 8, 1, landmarks=5, parts=3), images(2, 3, 16, 16)
    nn.init.normal_(net.prior.landmark_head.weight)  # it begins at zero
    net(x)["landmark_maps"].sum().backward()
    moved = [name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert {name.split(".")[0] for name in moved} == {"coarse_network", "prior"}


@pytest.mark.parametrize("variant, norms, up", [("paper", 2, nn.ConvTranspose2d), ("code", 0, nn.Upsample)])
def test_variants_of_fsrnet_differ_in_batch_norm_and_enlargement(variant, norms, up):
    net = FSRNet(8, 8, 4, variant=variant)
    for block in (m for m in net.modules() if isinstance(m, FSRBlock)):
        assert sum(isinstance(m, nn.BatchNorm2d) for m in block.modules()) == norms
    assert isinstance(net.decoder.up[0], up)


def test_attention_is_in_every_residual_block_and_nowhere_else():
    gates = lambda net: [name for name, m in net.named_modules() if type(m).__name__ == "ChannelGate"]
    net = FSRNet(attention=True, width=8, hourglass_width=16)
    assert len(gates(net)) == sum(isinstance(m, FSRBlock) for m in net.modules()) == 21
    assert not gates(FSRNet(width=8, hourglass_width=16))
    block, x = seeded(FSRBlock, 8, attention=True), images(1, 8, 6, 6)
    branch = block.conv2(block.conv1(x).relu())
    assert torch.allclose(block(x), x + branch * block.gate.weights(branch), atol=1e-6)
    assert not torch.allclose(block(x), x + branch, atol=1e-3)


@pytest.mark.parametrize(
    "scale, small, message",
    [
        (8, (12, 20), None),
        (8, (10, 12), "divide by 4, not 10×12"),
        (4, (8, 16), None),
        (4, (12, 16), "divide by 8, not 12×16"),
        (2, (16, 16), None),
    ],
)
def test_fsrnet_takes_sides_that_its_hourglasses_can_halve(scale, small, message):
    net = seeded(FSRNet, scale, 8, 1, landmarks=5, parts=3)
    if message:
        with pytest.raises(FacelabError, match=message):
            net(images(1, 3, *small))
    else:
        assert net(images(1, 3, *small))["restored"].shape[2:] == (scale * small[0], scale * small[1])


def test_full_size_input_is_not_enlarged_again():
    net = seeded(FSRNet, 8, 8, 1, landmarks=5, parts=3, enlarge=False)
    out = net(images(1, 3, 32, 64))
    assert out["restored"].shape == (1, 3, 32, 64) and out["landmark_maps"].shape == (1, 5, 16, 32)
    with pytest.raises(FacelabError, match="divide by 32, not 16×16"):
        net(images(1, 3, 16, 16))


@pytest.mark.parametrize("width, depth", [(8, 1), (12, 2), (20, 3)])
@torch.no_grad()
def test_any_profile_width_and_depth_works(width, depth):
    small, full = images(1, 3, 8, 8), images(1, 3, 64, 64)
    for net in (FSRNet(8, width, depth), DIC(8, width, depth), SICNN(8, width, depth)):
        out = net.eval()(small)
        assert (out["restored"] if isinstance(out, dict) else out).shape == full.shape
    for net, shape in ((SphereFace20(64, width, depth), (1, 512)), (DICCritic(64, width), (1, 1))):
        assert net.eval()(full).shape == shape
    assert PriorNet(width=width, depth=depth).eval()(full)["landmark_maps"].shape == (1, 81, 32, 32)


def small_dic(scale=8, **given):
    return seeded(DIC, scale, 8, 1, fusion=1, hourglass_width=16, **given)


def literal_dic(net, x):
    "DIC's four steps, written out; the hourglass and the projections are tested elsewhere."
    mean = torch.tensor([0.509, 0.424, 0.378]).view(3, 1, 1)
    skip = nn.functional.interpolate(x - mean, scale_factor=net.scale, mode="bilinear", align_corners=False)
    f = net.feat_in(net.conv_in(x - mean))

    def block(b, L0):
        H = b.up[0](L0)
        return b.compress_out(b.down[0](H))

    out, memory, maps, last = {}, None, None, None
    for t in range(1, 5):
        if t == 1:
            last = block(net.first_block, net.first_block.compress_in(f))
        else:
            fuse = net.block.compress_in
            heat = maps / maps.flatten(2).max(2)[0][..., None, None].clamp(min=0.05)
            five = torch.stack([heat[:, a:b].sum(1) for a, b in ((36, 42), (42, 48), (27, 36), (48, 68), (0, 27))], 1)
            experts = fuse.blocks(fuse.expand(fuse.compress(torch.cat([f, last], 1))))
            weights = five.exp() / five.exp().sum(1, keepdim=True)
            last = block(net.block, sum(experts[:, 8 * p : 8 * p + 8] * weights[:, p : p + 1] for p in range(5)))
        sr = skip + net.conv_out(net.out(last))
        maps, memory = net.hourglass(sr, memory)
        out[f"sr_{t}"], out[f"heatmaps_{t}"] = sr + mean, maps
    return out


@pytest.mark.parametrize("scale", [4, 8])
def test_dic_is_its_steps_written_out(scale):
    net, x = small_dic(scale), images(2, 3, 64 // scale, 64 // scale)
    with torch.no_grad():
        out, expected = net(x), literal_dic(net, x)
    for name, t in expected.items():
        assert torch.allclose(out[name], t, atol=1e-5), name
    assert torch.equal(out["restored"], out["sr_4"])


def test_a_loss_at_every_step_is_not_the_last_one_four_times():
    """DICGAN's released solver uses the last face for every step."""
    net, x, hr = small_dic(), images(2, 3, 8, 8), images(2, 3, 64, 64, seed=1)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.5)  # steps that differ visibly
    out = net(x)
    errors = [(out[f"sr_{t}"] - hr).abs().mean() for t in range(1, 5)]
    assert abs(sum(errors) - 4 * errors[-1]) > 1e-3 * sum(errors)
    assert all((out[f"sr_{t}"] - out[f"sr_{t + 1}"]).abs().max() > 1e-3 for t in range(1, 4))


def test_each_step_has_its_own_graph():
    net = small_dic()
    out = net(images(2, 3, 8, 8))

    def gradient(loss, weight):
        return torch.autograd.grad(loss, weight, retain_graph=True, allow_unused=True)[0]

    alone = [gradient(out[f"sr_{t}"].square().mean(), net.conv_out.weight) for t in range(1, 5)]
    assert all(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(alone, alone[1:]))
    for weight in (net.block.up[0][0].weight, net.hourglass.compress.weight):  # what the first face has not met yet
        gradients = [gradient(out[f"sr_{t}"].sum(), weight) for t in range(1, 5)]
        assert [g is not None for g in gradients] == [False, True, True, True]


def test_landmarks_steer_the_restoration():
    net, x = small_dic(), images(1, 3, 8, 8)
    with torch.no_grad():
        before = net(x)
        net.hourglass.head[-1].bias[36:42] += 5.0
        after = net(x)
    assert torch.equal(before["sr_1"], after["sr_1"]) and not torch.allclose(before["sr_2"], after["sr_2"], atol=1e-6)


def test_experts_never_meet():
    fusion, features = seeded(AttentiveFusion, 8, 2), images(1, 16, 6, 6)
    wide = fusion.expand(fusion.compress(features)).detach()
    changed = wide.clone()
    changed[:, 8:16] += 1
    moved = (fusion.blocks(wide) - fusion.blocks(changed)).detach().abs().amax((0, 2, 3)) > 1e-6
    assert moved.tolist() == [False] * 8 + [True] * 8 + [False] * 24


def test_the_hourglass_remembers():
    net, face = seeded(FeedbackHourglass, 16, 68, 2), images(1, 3, 64, 64)
    with torch.no_grad():
        first, memory = net(face)
        assert torch.equal(net(face)[0], first)  # no state between calls
        assert not torch.allclose(net(face, memory)[0], first)


def test_dic_refuses_what_it_cannot_do():
    with pytest.raises(FacelabError, match="scale is 2"):
        DIC(2)
    with pytest.raises(FacelabError, match="steps=1"):
        DIC(steps=1)
    with pytest.raises(FacelabError, match="49 landmarks"):
        DIC(landmarks=49)
    with pytest.raises(FacelabError, match="divide by 8, not 12×16"):
        small_dic()(images(1, 3, 12, 16))


def test_mean_colours_move_with_the_network():
    """A plain tensor would stay behind on `.to()` and be missing from the file."""
    for net in (small_dic(), DICCritic(32, 12, 16)):
        assert net.double().sub_mean.shift.dtype == torch.float64 and "sub_mean.shift" in net.state_dict()
    assert small_dic().double()(images(1, 3, 8, 8).double())["restored"].dtype == torch.float64


def test_growing_block_remembers_everything():
    block, x = seeded(GrowingBlock, 3, 8, 3), images(1, 3, 6, 6)
    with torch.no_grad():
        maps = [block.first(x)]
        for more in block.more:
            maps.append(more(torch.cat(maps, 1)))
        assert torch.allclose(block(x), torch.cat(maps, 1), atol=1e-6)


def test_sicnn_works_between_minus_one_and_one():
    net, x = seeded(SICNN, 4, 8, 1), images(1, 3, 8, 8)
    seen = []
    net.up.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    net.gen.register_forward_hook(lambda m, args, out: seen.append(out))
    out = net(x)
    assert torch.allclose(seen[0], 2 * x - 1) and torch.allclose(out, (seen[1].tanh() + 1) / 2, atol=1e-6)
    for gain in (100.0, -100.0):
        with torch.no_grad():
            net.gen.bias.fill_(gain)
        assert torch.allclose(net(x), torch.full_like(out, float(gain > 0)), atol=1e-6)


def test_sphereface_is_its_stages():
    net, x = seeded(SphereFace20, 32, 8, 8, 16), images(2, 3, 32, 32)
    y = 2 * x - 1
    for stage in net.stages:
        y = stage[1](stage[0](y))
        for block in list(stage)[2:]:
            y = y + block.conv2(block.conv1(y))
    assert torch.allclose(net(x), net.fc5(y.flatten(1)), atol=1e-5)
    assert [len(s) - 2 for s in net.stages] == [1, 2, 4, 1]
    assert SphereFace20((112, 96), 8).fc5.in_features == 64 * 7 * 6
    assert SphereFace20(100, 8).fc5.in_features == 64 * 7 * 7


def test_layers_in_a_python_list_would_be_lost():
    """A port of SICNN's recogniser keeps its blocks in a list; ours are all in the file."""
    net = SphereFace20(32, 8, 8, 16)
    assert sum(name.endswith("conv1.0.weight") for name in net.state_dict()) == 8


def test_an_error_names_an_unknown_variant():
    for make in (FSRNet, SICNN):
        with pytest.raises(FacelabError, match='\'port\': give "paper" or "code"'):
            make(variant="port")


def test_the_coarse_network_keeps_the_size_of_a_face():
    assert coarse_network(8, 2, norm=True, attention=True)(images(1, 3, 8, 8)).shape == (1, 3, 8, 8)
