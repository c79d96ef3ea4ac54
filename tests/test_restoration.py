"""CBDNet, partial convolutions, GFC, pix2pix and critics: equations written out, bugs planted, counts by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from facelab import FacelabError
from facelab.degradations.resample import resize
from facelab.networks.cbdnet import CBDNet, NoiseEstimator
from facelab.networks.drawing import count_parameters
from facelab.networks.gfc import GFC, GFCParser, gfc_global_critic, gfc_local_critic, pool_stages, unpool_stages
from facelab.networks.pconv import PartialBlock, PartialConv2d, PConvUNet
from facelab.networks.pix2pix import PatchGAN, Pix2Pix, StarGANCritic

torch.set_num_threads(1)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def conv(n_in, n_out, k=3, bias=True):
    "Weights of one convolution, by hand."
    return n_in * n_out * k * k + n_out * bias


def holes(n, side, seed=0):
    "M (n,1,side,side) with a hole in every face, and a few stray pixels."
    M = (images(n, 1, side, side, seed=seed) > 0.1).float()
    M[:, :, side // 4 : side // 2, side // 4 : 3 * side // 4] = 0
    return M


# Partial convolution


def partial_by_hand(x, M, weight, bias, stride, missing_factor=False):
    "Liu et al. 2018, Eq. 1 and 2, window by window; M has a channel for each of x."
    n, (out, c, k, _), pad = len(x), weight.shape, weight.shape[-1] // 2
    x, M = F.pad(x * M, [pad] * 4), F.pad(M, [pad] * 4)
    side = (x.shape[-1] - k) // stride + 1
    y, m = torch.zeros(n, out, side, side), torch.zeros(n, 1, side, side)
    for b in range(n):
        for i in range(side):
            for j in range(side):
                at = slice(i * stride, i * stride + k), slice(j * stride, j * stride + k)
                visible = float(M[b, :, at[0], at[1]].sum())
                if visible > 0:
                    factor = (1 if missing_factor else c * k * k) / visible
                    y[b, :, i, j] = (weight * x[b, :, at[0], at[1]]).sum((1, 2, 3)) * factor + bias
                    m[b, 0, i, j] = 1
    return y, m


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 2), (7, 2)])
@pytest.mark.parametrize("one_mask", [True, False])
def test_partial_convolution_is_the_equation_window_by_window(kernel, stride, one_mask):
    torch.manual_seed(0)
    layer = PartialConv2d(4, 3, kernel, stride, bias=True).requires_grad_(False)
    x, M = torch.randn(2, 4, 12, 12), holes(2, 12)
    if not one_mask:
        M = torch.cat([M.expand(-1, 2, -1, -1), holes(2, 12, seed=1).expand(-1, 2, -1, -1)], 1)  # as in the decoder
    y, m = partial_by_hand(x, M.expand_as(x), layer.weight, layer.bias, stride)
    ours, seen = layer(x, M)
    assert torch.allclose(ours, y, atol=1e-5) and torch.equal(seen, m)
    assert not torch.allclose(ours, F.conv2d(x * M, layer.weight, layer.bias, stride, kernel // 2), atol=1e-2)


def test_the_missing_window_factor_is_the_variant_code_and_no_other():
    torch.manual_seed(0)
    paper = PartialConv2d(4, 3, bias=True).requires_grad_(False)
    code = PartialConv2d(4, 3, bias=True, variant="code").requires_grad_(False)
    code.load_state_dict(paper.state_dict())
    x, M = torch.randn(2, 4, 8, 8), holes(2, 8)
    slip = partial_by_hand(x, M.expand_as(x), paper.weight, paper.bias, 1, missing_factor=True)[0]
    assert torch.allclose(code(x, M)[0], slip, atol=1e-6)
    assert not torch.allclose(paper(x, M)[0], slip, atol=0.1)


def test_batch_norm_hides_the_missing_factor_and_the_first_layer_shows_it():
    torch.manual_seed(0)
    x, M = 1000 * images(4, 4, 16, 16), holes(4, 16)  # large, so that batch norm's epsilon plays no part
    for norm in (True, False):
        paper, code = PartialBlock(4, 8, norm=norm), PartialBlock(4, 8, norm=norm, variant="code")
        code.load_state_dict(paper.state_dict())
        a, b = paper(x, M)[0].detach(), code(x, M)[0].detach()
        assert torch.allclose(a, (1 if norm else 4 * 9) * b, rtol=1e-3, atol=1e-3)
        assert norm or a.mean() > 30 * b.mean()


@pytest.mark.parametrize("size, levels", [(128, 7), (32, 5), (16, 4), (48, 4), (256, 7)])
def test_as_many_levels_as_the_side_allows(size, levels):
    net = PConvUNet(8, size=size).eval().requires_grad_(False)
    x, M = images(1, 3, size, size), holes(1, size)
    assert net.levels == levels and net(x, M).shape == x.shape
    assert torch.equal(net(x, M), net(torch.where(M > 0, x, 7.0), M))
    assert not torch.equal(net(x, M), net(x * 0.9, M))


def test_every_pixel_of_the_hole_is_painted():
    "Where the hole ends inside the network, no mask is left to multiply the output by zero."
    net, M = PConvUNet(8, size=32).eval().requires_grad_(False), holes(1, 32)
    out = net(images(1, 3, 32, 32), M)
    assert (out != 0).all()


def test_the_published_layers_sum_to_the_published_counts():
    def unet(levels):
        n = [3, 64, 128, 256, *[512] * 5][: levels + 1]
        kernels = [7, 5, 5, 3, 3, 3, 3, 3]
        down = sum(conv(a, b, k, bias=False) for a, b, k in zip(n, n[1:], kernels)) + 2 * sum(n[2:])
        return down + sum(conv(a + b, b, bias=False) for a, b in zip(n[2:], n[1:])) + 2 * sum(n[1:-1]) + conv(64 + 3, 3)

    with torch.device("meta"):
        assert [count_parameters(PConvUNet(levels=k)) for k in (8, 7, 5)] == [unet(8), unet(7), unet(5)]
    assert unet(8) == 32_859_732


def test_frozen_norms_of_the_encoder_stay_frozen_and_thaw():
    net, x, M = PConvUNet(8, size=16), images(2, 3, 16, 16), holes(2, 16)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.freeze_encoder_norms().train()(x, M)
    moved = {k for k, v in net.state_dict().items() if "running" in k and not torch.equal(v, before[k])}
    assert moved and all(k.startswith("decoder") for k in moved)
    net.freeze_encoder_norms(False)(x, M)
    running = {k: v for k, v in net.state_dict().items() if k.startswith("encoder") and "running" in k}
    assert any(not torch.equal(v, before[k]) for k, v in running.items())


# Skips of the three U-Nets


def through_the_skip(net, inputs, outer, inner):
    "Gradient of the output at the module `outer` when all that goes on through the module `inner` is cut off."
    kept = []

    def keep(module, args, out):
        kept.append(out[0] if isinstance(out, tuple) else out)
        kept[0].retain_grad()

    def cut(module, args, out):
        return (torch.zeros_like(out[0]), out[1]) if isinstance(out, tuple) else torch.zeros_like(out)

    handles = outer.register_forward_hook(keep), inner.register_forward_hook(cut)
    out = net(*inputs)
    (out["restored"] if isinstance(out, dict) else out).square().sum().backward()
    for handle in handles:
        handle.remove()
    return 0.0 if kept[0].grad is None else float(kept[0].grad.abs().sum())


def u_nets():
    torch.manual_seed(0)
    p, c, u = PConvUNet(8, size=32).eval(), CBDNet(8).eval(), Pix2Pix(4, 8, size=32).eval()
    face, small = images(2, 3, 32, 32), images(2, 3, 8, 8)
    blocks = [c.CNN_D.block1, c.CNN_D.block2, c.CNN_D.block3]
    return [
        *[("pconv", p, (face, holes(2, 32)), a, b) for a, b in zip(p.encoder, p.encoder[1:])],
        *[("cbdnet", c, (face,), a, b) for a, b in zip(blocks, blocks[1:])],
        *[("pix2pix", u, (small,), a, b) for a, b in zip(u.down, u.down[1:])],
    ]


def test_every_skip_of_every_u_net_is_used():
    cases = u_nets()
    assert [sum(name == case[0] for case in cases) for name in ("pconv", "cbdnet", "pix2pix")] == [4, 2, 4]
    assert [(case[0], i) for i, case in enumerate(cases) if not through_the_skip(*case[1:]) > 0] == []


def test_a_skip_that_is_stacked_and_ignored_is_found():
    net, small = Pix2Pix(4, 8, size=32).eval(), images(2, 3, 8, 8)
    with torch.no_grad():
        net.last[1].weight[:8] = 0  # the skip comes first
    assert through_the_skip(net, (small,), net.down[0], net.down[1]) == 0


# CBDNet


def test_the_residual_is_on_the_input_and_gamma_comes_first():
    torch.manual_seed(0)
    net, x = CBDNet(8).eval().requires_grad_(False), images(2, 3, 16, 16)
    out = net(x)
    assert torch.equal(out["restored"], net.CNN_D(out["noise_map"], x) + x)
    assert torch.equal(out["noise_map"], net.CNN_E(x)) and out["noise_map"].min() >= 0
    seen = []
    net.CNN_D.block1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(x)
    assert torch.equal(seen[0], torch.cat([out["noise_map"], x], 1))


def gamma_matters(net, x):
    "Does a loss on the restored face alone reach the noise estimator?"
    net.zero_grad()
    net(x)["restored"].square().sum().backward()
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.CNN_E.parameters())


def test_gamma_feeds_the_denoiser_and_a_blind_one_is_found():
    torch.manual_seed(0)
    net, x = CBDNet(8), images(2, 3, 16, 16)
    assert gamma_matters(net, x)
    net.CNN_D.register_forward_pre_hook(lambda module, args: (args[1], args[1]))  # the face twice
    assert not gamma_matters(net, x)


@pytest.mark.parametrize("width", [4, 32])
def test_no_channel_of_the_noise_map_is_silent_from_the_start_and_usual_weights_are(width):
    x, silent = images(2, 3, 16, 16), dict(ours=0, usual=0)
    for seed in range(60):
        torch.manual_seed(seed)
        net = NoiseEstimator(width).requires_grad_(False)
        silent["ours"] += int((net(x).amax((0, 2, 3)) == 0).sum())
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.reset_parameters()
        silent["usual"] += int((net(x).amax((0, 2, 3)) == 0).sum())
    assert silent["ours"] == 0 and silent["usual"] > 30


def test_attention_is_six_gates_and_nothing_else():
    plain, gated, x = CBDNet(8), CBDNet(8, attention=True), images(2, 3, 16, 16)
    gates = [m for m in gated.modules() if type(m).__name__ == "ChannelGate"]
    for gate in gates:
        nn.init.constant_(gate.W_U.bias, 100)  # wide open
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if k in plain.state_dict()})
    assert len(gates) == 6 and torch.allclose(plain(x)["restored"], gated(x)["restored"], atol=1e-6)
    for gate in gates:
        nn.init.constant_(gate.W_U.bias, 0)
    assert not torch.allclose(plain(x)["restored"], gated(x)["restored"], atol=1e-4)


def test_cbdnet_by_hand():
    estimator = conv(3, 32) + 3 * conv(32, 32) + conv(32, 3)
    unet = conv(6, 64) + conv(64, 64) + conv(64, 128) + 2 * conv(128, 128) + conv(128, 256) + 5 * conv(256, 256)
    unet += conv(256, 128, 2) + 3 * conv(128, 128) + conv(128, 64, 2) + 2 * conv(64, 64) + conv(64, 3, 1)
    with torch.device("meta"):
        assert count_parameters(CBDNet()) == estimator + unet == 4_365_382


# GFC


def test_un_pooling_puts_each_maximum_back_where_it_was():
    x, keep = torch.randn(2, 3, 8, 12), [nn.Identity()]
    small, places = pool_stages(keep, x)
    back = torch.zeros_like(x)
    for b in range(2):
        for c in range(3):
            for i in range(0, 8, 2):
                for j in range(0, 12, 2):
                    window = x[b, c, i : i + 2, j : j + 2]
                    back[b, c, i : i + 2, j : j + 2] = torch.where(window == window.max(), window, 0)
    assert torch.equal(unpool_stages(keep, small, places), back)


@pytest.mark.parametrize("size, stages", [(128, 4), (64, 3), (32, 2), (16, 1)])
def test_gfc_keeps_its_dense_layers_at_every_size(size, stages):
    torch.manual_seed(0)
    net, x = GFC(size, width=4), images(1, 3, size, size)
    inner = []
    net.fc.register_forward_pre_hook(lambda module, args: inner.append(tuple(args[0].shape)))
    assert net(x).shape == x.shape and inner == [(1, 32, 8, 8)]
    assert len(net.encoder) == len(net.decoder) == stages and count_parameters(net.fc) == 2048 * 512 * 2 + 512 + 2048
    x.requires_grad_()
    net(x)[0, :, :4, :4].square().sum().backward()
    assert (x.grad[0].abs().sum(0) > 0).float().mean() > 0.5  # a corner depends on the whole face


def test_gfc_and_its_critics_work_on_minus_one_to_one():
    x, seen = images(2, 3, 32, 32), []
    for net, first in (
        (GFC(32, 4), "encoder.0"),
        (gfc_local_critic(32, 4), "pairs"),
        (GFCParser(8), "encoder.0"),
        (PatchGAN(8), "layers"),
    ):
        net.get_submodule(first).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        net(x)
    assert len(seen) == 4 and all(torch.equal(s, 2 * x - 1) for s in seen)


def test_gfc_by_hand():
    encoder = conv(3, 32) + conv(32, 32) + conv(32, 64) + conv(64, 64)
    encoder += conv(64, 128) + conv(128, 128) + conv(128, 256) + 3 * conv(256, 256)
    decoder = conv(256, 64) + 2 * conv(64, 64) + conv(64, 128) + conv(128, 64) + 2 * conv(64, 64)
    decoder += conv(64, 32) + 2 * conv(32, 32) + conv(32, 3)
    dense = conv(16384, 4096, 1) + conv(4096, 16384, 1)
    critic = lambda *n: sum(conv(a, b) + conv(b, b, 4) for a, b in zip((3, *n), n)) + conv(n[-1], 1, 4)
    groups = ((3, 64, 2), (64, 128, 2), (128, 256, 4), (256, 512, 4), (512, 512, 4))
    vgg19 = sum(conv(a, b) + (depth - 1) * conv(b, b) for a, b, depth in groups)
    parser = vgg19 + conv(512, 512) + conv(512, 256) + conv(256, 128) + conv(128, 64) + conv(64, 32) + conv(32, 11)
    with torch.device("meta"):
        ours = [count_parameters(make()) for make in (GFC, gfc_local_critic, gfc_global_critic, GFCParser)]
    assert ours == [encoder + dense + decoder, critic(64, 128, 256, 512), critic(32, 64, 128, 256, 512), parser]
    assert vgg19 == 20_024_384  # torchvision's, without its dense layers


# pix2pix and the patch critics


def test_dropout_is_off_in_evaluation_mode_and_on_in_training():
    with torch.no_grad():
        for net, x in ((Pix2Pix(8, 8, size=64), images(2, 3, 8, 8)), (GFCParser(8), images(2, 3, 32, 32))):
            answers = lambda: [out["parsing_maps"] if isinstance(out, dict) else out for out in (net(x), net(x))]
            for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
                norm.momentum = 0.0
            assert not torch.equal(*answers())
            net.eval()
            assert torch.equal(*answers())


@pytest.mark.parametrize("size, levels, dropouts", [(256, 8, 3), (128, 7, 2), (64, 6, 1), (32, 5, 0)])
def test_a_level_for_every_halving_and_dropout_in_the_widest(size, levels, dropouts):
    with torch.device("meta"):
        net = Pix2Pix(size=size)
    kinds = [[type(layer).__name__ for layer in block] for block in (*net.down, *net.up)]
    assert len(net.down) == levels and sum("Dropout" in kind for kind in kinds) == dropouts
    assert ["BatchNorm2d" in kind for kind in kinds] == [False, *[True] * (levels - 2), False, *[True] * (levels - 1)]
    assert "Dropout" not in kinds[levels]  # innermost


@pytest.mark.parametrize("scale", [4, 8])
def test_pix2pix_sees_the_face_enlarged_bicubically(scale):
    net, x, seen = Pix2Pix(scale, 8, size=32), images(2, 3, 32 // scale, 64 // scale), []
    net.down[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    out = net(x)
    assert torch.equal(seen[0], 2 * resize(x, (32, 64)) - 1)
    assert out.shape == (2, 3, 32, 64) and 0 <= out.min() and out.max() <= 1


def seen_by(critic, x, at):
    "Rows and columns of the input that reach one verdict: first and last."
    x = x.clone().requires_grad_()
    critic(x)[0, 0, at[0], at[1]].backward()
    reached = x.grad[0].abs().sum(0) > 0
    return [(int(line.nonzero().min()), int(line.nonzero().max())) for line in (reached.any(1), reached.any(0))]


def test_each_verdict_of_patchgan_sees_70_by_70_pixels_8_apart():
    critic, x = PatchGAN(8).eval(), images(1, 3, 128, 128)
    fields = [seen_by(critic, x, (i, i + 1)) for i in (5, 6)]
    assert [b - a + 1 for field in fields for a, b in field] == [70] * 4
    assert fields[1][0][0] - fields[0][0][0] == 8
    r = 1
    for layer in reversed([m for m in critic.modules() if isinstance(m, nn.Conv2d)]):
        r = layer.stride[0] * (r - 1) + layer.kernel_size[0]
    assert r == 70


def test_patchgan_judges_the_condition_too():
    critic, x = PatchGAN(8, condition=3).eval().requires_grad_(False), images(1, 3, 64, 64)
    assert not torch.equal(critic(x, x), critic(x, 1 - x))
    assert not torch.equal(critic(x, x), critic(1 - x, x))


def test_stargan_critic_judges_every_face_by_itself_in_training_too_and_patchgan_does_not():
    x = images(3, 3, 64, 64)
    star, patch = StarGANCritic(8).requires_grad_(False), PatchGAN(8).requires_grad_(False)
    assert torch.allclose(star(x)[:1], star(x[:1]), atol=1e-6)
    assert not torch.allclose(patch(x)[:1], patch(x[:1]), atol=1e-3)
    assert seen_by(StarGANCritic(2), images(1, 3, 128, 128), (0, 0)) == [(0, 127)] * 2


def test_pix2pix_and_critics_by_hand():
    n = [64, 128, 256, *[512] * 5]
    norms = 2 * (sum(n[1:-1]) + sum(n[:-1]))
    generator = sum(conv(a, b, 4, False) for a, b in zip([3, *n], n)) + conv(512, 512, 4, False)
    generator += norms + conv(128, 3, 4)
    generator += sum(conv(2 * b, a, 4, False) for a, b in zip(n[:-2], n[1:-1]))
    patch = conv(6, 64, 4) + sum(conv(a, 2 * a, 4, False) + 4 * a for a in (64, 128, 256)) + conv(512, 1, 4)
    star = conv(3, 64, 4) + sum(conv(64 * 2**i, 128 * 2**i, 4) for i in range(5)) + conv(2048, 1, bias=False)
    with torch.device("meta"):
        ours = [count_parameters(net) for net in (Pix2Pix(size=256), PatchGAN(condition=3), StarGANCritic())]
    assert ours == [generator, patch, star]
    assert [f"{count / 1e6:.3f}" for count in ours[:2]] == ["54.414", "2.769"]  # as the authors' code prints them


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: PConvUNet(size=33), "must be even, not 33"),
        (lambda: PartialConv2d(3, 3, variant="nvidia"), "variant is 'nvidia'"),
        (lambda: GFC(20), "not 20"),
        (lambda: gfc_local_critic(4), "not 4"),
        (lambda: gfc_global_critic(48), "not 48"),
        (lambda: Pix2Pix(size=6), "multiple of 4, not 6"),
        (lambda: Pix2Pix(8, 8)(images(1, 3, 12, 12)), "divide by 16, not 12×12"),
        (lambda: PatchGAN(8)(images(1, 3, 60, 60)), "divide by 8, not 60×60"),
        (lambda: CBDNet(8)(images(1, 3, 30, 32)), "divide by 4, not 30×32"),
        (lambda: GFCParser(8)(images(1, 3, 48, 64)), "divide by 32, not 48×64"),
        (lambda: PatchGAN(8, 3)(images(1, 3, 64, 64), images(1, 3, 32, 32)), "needs condition of the size"),
        (lambda: PConvUNet(8, size=32)(images(1, 3, 32, 32), images(2, 1, 32, 32)), "batch of 1"),
    ],
)
def test_bad_input_gets_one_sentence(make, said):
    with pytest.raises(FacelabError) as error:
        make()
    assert said in str(error.value) and "\n" not in str(error.value)
