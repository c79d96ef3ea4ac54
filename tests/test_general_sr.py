"""RCAN, ESRGAN, SRFBN and DRN.

Each is held against its equations written out, its released count, and the bugs of published code.
"""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from facelab import FacelabError
from facelab.degradations.resample import resize
from facelab.networks.drawing import count_parameters
from facelab.networks.drn import DRN, PLANS, DualRegression
from facelab.networks.rcan import RCAB, RCAN, AddMean, ChannelGate, ResidualGroup, SubMean
from facelab.networks.registry import find
from facelab.networks.rrdb import RRDB, DenseBlock, RRDBNet, VGGCritic, conv_norm
from facelab.networks.srfbn import SRFBN, FeedbackBlock, projection

MEAN = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make, *args, seed=0, **given):
    torch.manual_seed(seed)
    return make(*args, **given).eval()


class Weights:
    "The parameters of a network by name, and the layers as functions."

    def __init__(self, net):
        self.of = dict(net.named_parameters())

    def conv(self, name, x, stride=1):
        weight = self.of[name + ".weight"]
        return F.conv2d(x, weight, self.of.get(name + ".bias"), stride, weight.shape[-1] // 2)

    def rcab(self, name, x):
        y = self.conv(f"{name}.conv2", F.relu(self.conv(f"{name}.conv1", x)))
        z = y.flatten(2).mean(2)[..., None, None]
        return x + y * torch.sigmoid(self.conv(f"{name}.gate.W_U", F.relu(self.conv(f"{name}.gate.W_D", z))))


def close(a, b, atol=1e-5):
    return torch.allclose(a, b, atol=atol)


# counts, from the layers alone


def conv(n_in, n_out, k=3, bias=True):
    return n_in * n_out * k * k + n_out * bias


def rcab(w):
    return 2 * conv(w, w) + conv(w, max(4, w // 16), 1) + conv(max(4, w // 16), w, 1)


def rcan_count(scale, w, depth, groups):
    return (
        conv(3, w)
        + groups * (depth * rcab(w) + conv(w, w))
        + conv(w, w)
        + (scale.bit_length() - 1) * conv(w, 4 * w)
        + conv(w, 3)
    )


def rrdb_count(scale, w, depth):
    dense = sum(conv(w + i * w // 2, w // 2) for i in range(4)) + conv(3 * w, w)
    return conv(3, w) + 3 * depth * dense + (scale.bit_length() + 1) * conv(w, w) + conv(w, 3)


def srfbn_count(scale, w, groups):
    block = (
        conv(2 * w, w, 1)
        + conv(groups * w, w, 1)
        + 2
        + 2 * groups * (conv(w, w, scale + 4) + 1)
        + 2 * sum(conv(g * w, w, 1) + 1 for g in range(2, groups + 1))
    )
    return conv(3, 4 * w) + 1 + conv(4 * w, w, 1) + 1 + block + conv(w, w, scale + 4) + 1 + conv(w, 3)


def drn_count(scale, w, depth):
    levels = scale.bit_length() - 1
    down = sum(
        conv(w * 2**p, w * 2**p, bias=False) + conv(w * 2**p, w * 2 ** (p + 1), bias=False) for p in range(levels)
    )
    bodies = [w * 2**levels] + [w * 2**p for p in range(levels, 1, -1)]
    ups = sum(depth * rcab(b) + conv(b, 4 * b) + conv(b, w * 2 ** (levels - 1 - k), 1) for k, b in enumerate(bodies))
    return conv(3, w) + down + ups + conv(w * 2**levels, 3) + sum(conv(w * 2**p, 3) for p in range(levels, 0, -1))


@pytest.mark.parametrize(
    "net, expected",
    [
        (RCAN(8, width=16, depth=3, groups=2), rcan_count(8, 16, 3, 2)),
        (RRDBNet(8, width=12, depth=1), rrdb_count(8, 12, 1)),
        (SRFBN(8, width=8, groups=1), srfbn_count(8, 8, 1)),
        (SRFBN(4, width=12, groups=3), srfbn_count(4, 12, 3)),
        (DRN(8, width=8, depth=1), drn_count(8, 8, 1)),
    ],
)
def test_counts_follow_from_the_layers(net, expected):
    assert count_parameters(net) == expected


@pytest.mark.parametrize(
    "name, expected, printed",
    [
        ("rcan", rcan_count(4, 64, 20, 10), "15.59"),
        ("esrgan", rrdb_count(4, 64, 23), "16.70"),
        ("srfbn", srfbn_count(4, 64, 6), "3.63"),
        ("drn", drn_count(4, 16, 30), "4.80"),
        ("drn_dual", 54 * 16, "0.00"),
    ],
)
def test_registered_counts_follow_from_the_layers_too(name, expected, printed):
    published = find(name).published
    assert published["parameters"] == expected
    assert count_parameters(find(name).make(**published["args"])) == expected
    assert f"{expected / 1e6:.2f}" == printed


@pytest.mark.parametrize(
    "variant, scale, printed", [("S", 4, "4.8"), ("S", 8, "5.4"), ("L", 4, "9.8"), ("L", 8, "10.0")]
)
def test_every_drn_has_its_printed_count(variant, scale, printed):
    assert f"{count_parameters(DRN(scale, variant)) / 1e6:.1f}" == printed


BLOCKS = {RCAN: "groups", RRDBNet: "trunk", SRFBN: "block.up", DRN: "up.0.0"}


@pytest.mark.parametrize("make", BLOCKS)
def test_a_block_repeated_by_list_multiplication_would_be_noticed(make):
    net = make(4, width=8, **({"groups": 2} if make is SRFBN else {"depth": 2}))
    whole, blocks = count_parameters(net), net.get_submodule(BLOCKS[make])
    addresses = [p.data_ptr() for p in net.parameters()]
    assert len(set(addresses)) == len(addresses) == len(list(net.named_parameters(remove_duplicate=False)))
    blocks[1] = blocks[0]
    assert count_parameters(net) < whole


# the mean colour


def plain_tensors(net):
    return [f"{type(m).__name__}.{k}" for m in net.modules() for k, v in vars(m).items() if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("make", [RCAN, SRFBN, DRN])
def test_the_mean_moves_and_is_saved(make):
    net = make(4, width=8)
    assert plain_tensors(net) == [] and {"sub_mean.mean", "add_mean.mean"} <= set(net.state_dict())
    assert all(t.device.type == "meta" for t in net.to("meta").state_dict().values())


def test_a_mean_as_a_plain_tensor_would_be_noticed():
    net = RCAN(4, width=8, depth=1, groups=1)
    del net.sub_mean.mean
    net.sub_mean.mean = MEAN
    assert plain_tensors(net) == ["SubMean.mean"] and "sub_mean.mean" not in net.state_dict()
    assert net.to("meta").head.weight.device.type == "meta" and net.sub_mean.mean.device.type == "cpu"


def test_a_saved_mean_comes_back():
    net, other = seeded(RCAN, 4, width=8, depth=1, groups=1), RCAN(4, width=8, depth=1, groups=1)
    net.sub_mean.mean += 0.1
    other.load_state_dict(net.state_dict())
    x, fresh = images(1, 3, 8, 8), seeded(RCAN, 4, width=8, depth=1, groups=1)
    assert torch.equal(net(x), other.eval()(x))
    assert not close(net(x), fresh(x), 1e-3)


def test_the_mean_has_no_trainable_numbers():
    "The released code means to freeze its mean shifts, but sets the flag on the module, where it does nothing."

    class MeanShift(nn.Conv2d):
        def __init__(self):
            super().__init__(3, 3, 1)
            self.requires_grad = False

    assert count_parameters(SubMean()) + count_parameters(AddMean()) == 0
    assert sum(p.numel() for p in MeanShift().parameters() if p.requires_grad) == 12


# RCAN


@pytest.mark.parametrize("width, hidden", [(8, 4), (64, 4), (80, 5), (128, 8)])
def test_the_gate_is_the_equations(width, hidden):
    gate, x = seeded(ChannelGate, width), images(2, width, 5, 7)
    assert gate.W_D.out_channels == hidden
    expected = torch.zeros_like(x)
    W_D, W_U = gate.W_D.weight[:, :, 0, 0], gate.W_U.weight[:, :, 0, 0]
    for n in range(2):
        z = torch.stack([x[n, c].sum() / 35 for c in range(width)])
        s = 1 / (1 + torch.exp(-(W_U @ (W_D @ z + gate.W_D.bias).clamp(min=0) + gate.W_U.bias)))
        for c in range(width):
            expected[n, c] = s[c] * x[n, c]
    assert close(gate(x), expected, 1e-6)


def test_the_gate_is_a_sigmoid_not_a_softmax():
    s = seeded(ChannelGate, 64).weights(images(2, 64, 4, 4))
    assert s.shape == (2, 64, 1, 1) and (s.sum(1) > 10).all() and (s > 0).all() and (s < 1).all()


@pytest.mark.parametrize("width", [8, 64, 80])
def test_no_gate_starts_silent_whatever_the_face(width):
    "With torch's independent weights, gates of four silent ReLUs appear; with opposite pairs they cannot."
    faces = [size * images(1, width, 1, 1, seed=1) for size in (-100, 1e-3, 100)]

    def count_silent(make):
        return sum(not make(k)(z).relu().any() for k in range(40) for z in faces)

    def opposite_pairs(k):
        return seeded(ChannelGate, width, seed=k).W_D

    def independent(k):
        W_D = seeded(ChannelGate, width, seed=k).W_D
        W_D.reset_parameters()
        return W_D

    assert count_silent(opposite_pairs) == 0
    assert count_silent(independent) > 0


def test_rcan_is_its_equations():
    net, x = seeded(RCAN, 4, width=8, depth=2, groups=2), images(2, 3, 8, 6)
    W = Weights(net)
    head = y = W.conv("head", 255 * (x - MEAN))
    for g in range(2):
        inside = y
        for b in range(2):
            inside = W.rcab(f"groups.{g}.blocks.{b}", inside)
        y = y + W.conv(f"groups.{g}.conv", inside)
    y = head + W.conv("conv", y)
    for k in range(2):
        y = F.pixel_shuffle(W.conv(f"up.{k}.0", y), 2)
    assert close(net(x), W.conv("tail", y) / 255 + MEAN)


@pytest.mark.parametrize("make", [RCAB, ResidualGroup])
def test_branches_that_end_in_zeros_leave_their_input(make):
    block, x = make(8), images(1, 8, 6, 6)
    last = block.get_submodule(block.closing[0])
    nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
    assert torch.equal(block(x), x)


# ESRGAN


def test_the_dense_block_is_its_equations():
    block, x = seeded(DenseBlock, 8, 4), images(2, 8, 6, 6)
    for p in block.parameters():
        nn.init.normal_(p, std=0.1)
    c, act = block.convs, lambda t: torch.where(t > 0, t, 0.2 * t)
    x1 = act(c[0](x))
    x2 = act(c[1](torch.cat([x, x1], 1)))
    x3 = act(c[2](torch.cat([x, x1, x2], 1)))
    x4 = act(c[3](torch.cat([x, x1, x2, x3], 1)))
    assert close(block(x), x + 0.2 * c[4](torch.cat([x, x1, x2, x3, x4], 1)))


def test_the_residual_is_scaled_at_both_levels():
    block, x = seeded(RRDB, 8, 4), images(1, 8, 6, 6)
    y = x
    for dense in block.dense:
        y = dense(y)
    assert close(block(x), x + 0.2 * y)
    outer, inner = deepcopy(block), deepcopy(block)
    outer.beta = inner.dense[1].beta = 1
    for unscaled in (outer, inner):
        assert not close(unscaled(x), block(x), 1e-3)


def test_dense_convolutions_start_at_a_tenth_of_he():
    net = seeded(RRDBNet, 4, width=32, depth=2)
    for block in (m for m in net.modules() if isinstance(m, DenseBlock)):
        for conv in block.convs:
            he = (2 / (9 * conv.in_channels)) ** 0.5
            assert conv.weight.std().item() == pytest.approx(0.1 * he, rel=0.1)
            assert not conv.bias.any()
    assert net.trunk_conv.bias.any()


def test_rrdbnet_is_its_equations():
    net, x = seeded(RRDBNet, 8, width=8, depth=2), images(1, 3, 4, 6)
    W, act = Weights(net), lambda t: F.leaky_relu(t, 0.2)
    first = W.conv("conv_first", x)
    y = first + W.conv("trunk_conv", net.trunk[1](net.trunk[0](first)))
    for k in range(3):
        y = act(W.conv(f"up.{k}.1", y.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    assert close(net(x), W.conv("conv_last", act(W.conv("conv_hr", y))), 1e-6)


@pytest.mark.parametrize(
    "size, channels",
    [
        (64, [1, 1, 2, 2, 4, 4, 8, 8]),
        (128, [1, 1, 2, 2, 4, 4, 8, 8, 8, 8]),
        (256, [1, 1, 2, 2, 4, 4, 8, 8, 8, 8, 8, 8]),
    ],
)
def test_the_critic_alternates_and_ends_at_4_pixels(size, channels):
    critic, x = seeded(VGGCritic, size, width=8), images(1, 3, size, size)
    convs = [m for m in critic.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels // 8 for c in convs] == channels
    assert [(c.kernel_size[0], c.stride[0]) for c in convs] == [(3, 1), (4, 2)] * (len(convs) // 2)
    assert [c.bias is not None for c in convs] == [True] + [False] * (len(convs) - 1)
    assert critic.blocks(critic.conv_first(x)).shape == (1, channels[-1] * 8, 4, 4) and critic(x).shape == (1, 1)


def test_the_critic_gives_logits():
    critic, x = seeded(VGGCritic, 64, width=8), images(2, 3, 64, 64)
    with torch.no_grad():
        before = critic(x)
        critic.dense[-1].bias += 7
        assert close(critic(x), before + 7)


def test_critic_layers_normalise_before_the_relu():
    layer, x = conv_norm(4, 8, 4).train(), images(4, 4, 8, 8)
    y = layer[0](x)
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert close(layer(x), F.leaky_relu(y, 0.2))


# SRFBN


@pytest.mark.parametrize("scale, printed", [(2, (6, 2, 2)), (3, (7, 3, 2)), (4, (8, 4, 2)), (8, (12, 8, 2))])
def test_projections_are_as_printed_and_fit(scale, printed):
    assert tuple(projection(scale).values()) == printed
    x = torch.rand(1, 2, 5, 7)
    large = nn.ConvTranspose2d(2, 2, **projection(scale))(x)
    assert large.shape[2:] == (5 * scale, 7 * scale)
    assert nn.Conv2d(2, 2, **projection(scale))(large).shape == x.shape


def test_the_feedback_block_is_its_equations():
    block, x, hidden = seeded(FeedbackBlock, 4, 8, 3), images(2, 8, 6, 6), images(2, 8, 6, 6, seed=1)
    cat = lambda *maps: torch.cat(maps, 1)
    L0 = block.compress_in(cat(x, hidden))
    H1 = block.up[0](L0)
    L1 = block.down[0](H1)
    H2 = block.up[1](block.before_up[1](cat(L0, L1)))
    L2 = block.down[1](block.before_down[1](cat(H1, H2)))
    H3 = block.up[2](block.before_up[2](cat(L0, L1, L2)))
    L3 = block.down[2](block.before_down[2](cat(H1, H2, H3)))
    assert close(block(x, hidden), block.compress_out(cat(L1, L2, L3)), 1e-6)


def test_srfbn_is_its_equations():
    net, x = seeded(SRFBN, 4, width=8, groups=2, steps=3), images(2, 3, 8, 6)
    F_in = net.feat_in(net.conv_in(255 * (x - MEAN)))
    bilinear = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    F_out, out = F_in, net(x)
    for t in (1, 2, 3):
        F_out = net.block(F_in, F_out)
        assert close(out[f"sr_{t}"], bilinear + net.conv_out(net.out(F_out)) / 255)
    assert [*out] == ["sr_1", "sr_2", "sr_3", "restored"] and torch.equal(out["restored"], out["sr_3"])


def test_srfbn_starts_as_released():
    net = seeded(SRFBN, 4, width=32, groups=2)
    assert all(m.weight.item() == pytest.approx(0.2) for m in net.modules() if isinstance(m, nn.PReLU))
    for conv in (m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)):
        assert conv.weight.std().item() == pytest.approx((2 / conv.weight[0].numel()) ** 0.5, rel=0.1)
        assert not conv.bias.any()


def test_more_steps_continue_fewer():
    two, four = seeded(SRFBN, 4, width=8, groups=2, steps=2), seeded(SRFBN, 4, width=8, groups=2, steps=4)
    x = images(1, 3, 8, 8)
    a, b = two(x), four(x)
    assert torch.equal(a["sr_1"], b["sr_1"]) and torch.equal(a["sr_2"], b["sr_2"])
    assert not torch.equal(b["sr_2"], b["sr_4"])


class Keeping(FeedbackBlock):
    "The published bug: the hidden state is an attribute, here without its reset."

    last = None

    def forward(self, F_in, F_out):
        self.last = super().forward(F_in, F_in if self.last is None else self.last)
        return self.last


def remembers(net):
    "Does a batch change the answer to another?"
    x, other = images(2, 3, 8, 8), images(2, 3, 8, 8, seed=1)
    before = net(x)["restored"]
    net(other)
    return not torch.equal(net(x)["restored"], before)


def test_no_state_stays_between_batches():
    net = seeded(SRFBN, 4, width=8, groups=2)
    assert not remembers(net) and net(images(3, 3, 4, 6))["restored"].shape == (3, 3, 16, 24)
    net.block = seeded(Keeping, 4, 8, 2)
    assert remembers(net)


def test_every_step_trains_the_one_block():
    net, x = seeded(SRFBN, 4, width=8, groups=2), images(1, 3, 8, 8)
    for name in ("sr_1", "sr_2", "sr_3", "sr_4"):
        net.zero_grad()
        net(x)[name].sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.block.parameters())


# DRN


@pytest.mark.parametrize("scale", [4, 8])
def test_drn_is_its_equations(scale):
    net, x = seeded(DRN, scale, width=8, depth=2), images(1, 3, 4, 6)
    W, levels = Weights(net), {4: 2, 8: 3}[scale]
    halve = lambda name, y: W.conv(f"{name}.2", F.leaky_relu(W.conv(f"{name}.0", y, 2), 0.2))
    grid = [W.conv("head", 255 * (resize(x, (4 * scale, 6 * scale)) - MEAN))]
    for k in range(levels):
        grid.append(halve(f"down.{k}", grid[-1]))
    y, faces = grid[-1], [W.conv("tail.0", grid[-1])]
    for k in range(levels):
        for b in range(2):
            y = W.rcab(f"up.{k}.0.{b}", y)
        y = W.conv(f"up.{k}.2", F.pixel_shuffle(W.conv(f"up.{k}.1.0", y), 2))
        y = torch.cat([grid[levels - 1 - k], y], 1)
        faces.append(W.conv(f"tail.{k + 1}", y))
    out = net(x)
    assert [*out] == [f"sr_x{2**k}" for k in range(levels)] + ["restored"]
    assert all(close(a, b / 255 + MEAN) for a, b in zip(out.values(), faces))
    assert [tuple(a.shape[2:]) for a in out.values()] == [(4 * 2**k, 6 * 2**k) for k in range(levels + 1)]


def without_gradient(net):
    return [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("scale", [4, 8])
def test_the_gradient_of_each_output_reaches_its_tail_and_no_other(scale):
    net, x = seeded(DRN, scale, width=8, depth=1), images(1, 3, 8, 8)
    for k, name in enumerate(net(x)):
        net.zero_grad()
        net(x)[name].square().sum().backward()
        taught = [tail.weight.grad is not None and bool(tail.weight.grad.abs().sum() > 0) for tail in net.tail]
        assert taught == [i == k for i in range(len(net.tail))]


def test_an_unsupervised_output_would_be_noticed():
    net, x = seeded(DRN, 4, width=8, depth=1), images(1, 3, 8, 8)
    net(x)["restored"].square().sum().backward()
    assert without_gradient(net) == ["tail.0.weight", "tail.0.bias", "tail.1.weight", "tail.1.bias"]


def test_the_way_down_stands_first_so_that_dirac_kernels_pass_the_bicubic_face():
    net, x = seeded(DRN, 4, width=8, depth=1), images(2, 3, 8, 8)
    for layer in (net.head, net.tail[-1]):
        nn.init.dirac_(layer.weight), nn.init.zeros_(layer.bias)
    assert close(net(x)["restored"], resize(x, 32))


def test_the_dual_network_is_its_equations():
    net, x = seeded(DualRegression, 16), images(2, 3, 8, 12)
    a, b = net.halving[0].weight, net.halving[2].weight
    assert close(net(x), F.conv2d(F.leaky_relu(F.conv2d(x, a, stride=2, padding=1), 0.2), b, padding=1), 1e-6)
    assert count_parameters(net) == 54 * 16 and net(x).shape == (2, 3, 4, 6)


# what is refused


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: RCAN(3), "scale is 3"),
        (lambda: RRDBNet(6), "scale is 6"),
        (lambda: SRFBN(5), "scale is 5"),
        (lambda: DRN(2), "no DRN-S for x2"),
        (lambda: DRN(4, "XL"), "no DRN-XL for x4"),
        (lambda: VGGCritic(96), "not 96"),
        (lambda: VGGCritic(64, 8)(images(1, 3, 32, 32)), "built for x of 64 pixels, not 32×32"),
        (lambda: DualRegression()(images(1, 3, 7, 8)), "divide by 2, not 7×8"),
        (lambda: RCAN(4, 8, 1, 1)(images(1, 1, 8, 8)), "not (1, 1, 8, 8)"),
        (lambda: RRDBNet(4, 8, 1)(images(3, 8, 8)), "(N,3,H,W)"),
        (lambda: SRFBN(4, 8, 1)(images(1, 4, 8, 8)), "(N,3,H,W)"),
        (lambda: DRN(4, width=8, depth=1)(images(1, 4, 8, 8)), "(N,3,H,W)"),
    ],
)
def test_bad_settings_and_inputs_get_one_sentence(make, message):
    with pytest.raises(FacelabError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_plans_are_the_released_ones():
    assert PLANS == {("S", 4): (16, 30), ("S", 8): (8, 30), ("L", 4): (20, 40), ("L", 8): (10, 36)}
    assert count_parameters(DRN(4, "L", width=8, depth=1)) == count_parameters(DRN(4, "S", width=8, depth=1))
