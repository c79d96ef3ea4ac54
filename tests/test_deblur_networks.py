"""The networks of Yun et al. 2020.

What the two branches share, what each skip and I_f do, seven convolutions, noise only where it is
switched on, and no interpolation.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from facelab import FacelabError
from facelab.networks.bicubic import Bicubic
from facelab.networks.drawing import count_parameters
from facelab.networks.registry import example
from facelab.networks.two_branch import DeblurCritic, FiveLayerCNN, Noise, TwoBranchUNet
from facelab.systems.sr_deblur_gan import SRDeblurGAN

torch.set_num_threads(1)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def unet(size=32, **more):
    torch.manual_seed(0)
    return TwoBranchUNet(4, width=8, size=size, **more).eval()


def system(seed=0, **more):
    torch.manual_seed(seed)
    return SRDeblurGAN(**{**dict(width=8, size=64, features=8), **more}).eval()


def convolutions(net):
    return [m for m in net.modules() if isinstance(m, CONVOLUTIONS)]


def modules_reached(net, loss):
    "Names of the submodules that get a gradient."
    net.zero_grad(set_to_none=True)
    loss.backward()
    moved = [name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    return {name.split(".")[0] for name in moved}


# two branches


def literal(net, x):
    "The two U-Nets written out, with nothing but torch.cat and the stages of `net`; 32 pixels, five stages."
    down = {**net.shared_encoder.stages, **net.lower_encoder.stages}
    e1 = down["down1"](x)
    e2 = down["down2"](e1)
    e3 = down["down3"](e2)
    e4 = down["down4"](e3)
    e5 = down["down5"](e4)
    up = net.upper_decoder.stages
    I_f = up["up4"](e4)
    for name, skip in (("up3", e3), ("up2", e2), ("up1", e1)):
        I_f = up[name](torch.cat([I_f, skip], 1))
    up = net.lower_decoder.stages
    d = up["up5"](e5)
    for name, skip in (("up4", e4), ("up3", e3), ("up2", e2), ("up1", e1)):
        d = up[name](torch.cat([d, skip], 1))
    return dict(blurred=net.upper_last(I_f), restored=net.lower_last(torch.cat([d, I_f], 1)))


def test_forward_is_the_two_u_nets_written_out():
    net, x = unet(), images(2, 4, 32, 32)
    with torch.no_grad():
        ours, theirs = net(x), literal(net, x)
    assert all(torch.equal(ours[k], theirs[k]) for k in ("blurred", "restored"))


def test_both_faces_teach_the_first_four_stages_and_only_the_sharp_one_the_lower_branch():
    net, x = unet(), images(2, 4, 32, 32)
    assert list(net.shared_encoder.stages) == ["down1", "down2", "down3", "down4"]
    assert modules_reached(net, net(x)["blurred"].square().mean()) == {"shared_encoder", "upper_decoder", "upper_last"}
    assert modules_reached(net, net(x)["restored"].square().mean()) == {
        "shared_encoder",
        "lower_encoder",
        "upper_decoder",
        "lower_decoder",
        "lower_last",
    }


def test_the_unified_network_is_the_lower_branch_alone():
    """Section III-A: no upper decoder, so no blurred face; the rest with the same weights gives the same last map."""
    whole, unified, x = unet(), unet(upper=False), images(2, 4, 32, 32)
    with torch.no_grad():
        whole.lower_last.conv.weight[:, 8:] = 0  # nothing from I_f
        state = whole.state_dict()
        state["lower_last.conv.weight"] = state["lower_last.conv.weight"][:, :8]
        unified.load_state_dict({k: v for k, v in state.items() if not k.startswith("upper_")})
        out = unified(x)
        assert list(out) == ["restored"] and torch.allclose(out["restored"], whole(x)["restored"], atol=1e-6)


def test_the_shared_stages_run_once():
    net, calls = unet(), []
    for stage in net.shared_encoder.stages.values():
        stage.register_forward_hook(lambda *_: calls.append(1))
    net(images(1, 4, 32, 32))
    assert len(calls) == 4


@pytest.mark.parametrize(
    "branch, skips, size", [("upper", 3, 256), ("lower", 7, 256), ("upper", 3, 64), ("lower", 5, 64)]
)
def test_number_of_skips_and_each_one_matters(branch, skips, size):
    net, x, seen, face = unet(size), images(1, 4, size, size), [], dict(upper="blurred", lower="restored")[branch]
    decoder = getattr(net, f"{branch}_decoder")
    decoder.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    with torch.no_grad():
        whole = net(x)[face]
        assert seen == [skips + 1]
        for i in range(skips):
            hook = decoder.register_forward_pre_hook(lambda m, args: ([t * (k != i) for k, t in enumerate(args[0])],))
            assert not torch.equal(net(x)[face], whole)
            hook.remove()
        assert torch.equal(net(x)[face], whole)


def test_I_f_is_what_the_upper_last_convolution_sees_and_the_lower_last_one_too():
    net, seen = unet(), {}
    for name in ("upper_last", "lower_last"):
        getattr(net, name).register_forward_pre_hook(lambda m, args, name=name: seen.update({name: args[0]}))
    net(images(1, 4, 32, 32))
    assert seen["upper_last"].shape == (1, 8, 32, 32)
    assert torch.equal(seen["lower_last"][:, 8:], seen["upper_last"])
    assert not torch.equal(seen["lower_last"][:, :8], seen["upper_last"])


def test_without_the_weights_on_I_f_the_upper_decoder_is_out():
    net, x = unet(), images(1, 4, 32, 32)
    with torch.no_grad():
        net.lower_last.conv.weight[:, 8:] = 0
    assert "upper_decoder" not in modules_reached(net, net(x)["restored"].square().mean())


def test_a_detached_I_f_would_be_noticed():
    net = unet()
    net.upper_decoder.register_forward_hook(lambda m, args, out: out.detach())
    assert "upper_decoder" not in modules_reached(net, net(images(1, 4, 32, 32))["restored"].square().mean())


@pytest.mark.parametrize("size, stages", [(32, 5), (64, 6), (128, 7), (256, 8)])
def test_the_innermost_map_is_one_pixel(size, stages):
    net, seen = unet(size), []
    net.lower_encoder.register_forward_hook(lambda m, args, out: seen.append(out[-1].shape))
    with torch.no_grad():
        net(images(1, 4, size, size))
    assert len(net.shared_encoder.stages) + len(net.lower_encoder.stages) == len(net.lower_decoder.stages) == stages
    assert seen == [(1, 64, 1, 1)]


def test_batch_norm_is_everywhere_but_on_the_first_and_the_innermost_stage():
    net = unet(256)
    down = {**net.shared_encoder.stages, **net.lower_encoder.stages}
    assert [name for name, stage in down.items() if not hasattr(stage, "norm")] == ["down1", "down8"]
    for decoder in (net.upper_decoder, net.lower_decoder):
        assert all(hasattr(stage, "norm") for stage in decoder.stages.values())


# five-layer CNN


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_five_layers_at_every_scale(scale):
    net = FiveLayerCNN(scale, width=8, features=5)
    assert len(convolutions(net)) == 5 and sum(c.stride == (2, 2) for c in convolutions(net)) == scale.bit_length() - 1
    assert net(images(2, 3, 6, 4)).shape == (2, 5, 6 * scale, 4 * scale)


def test_the_five_layer_cnn_is_five_convolutions_and_nothing_else():
    net, x = FiveLayerCNN(width=8, features=5), images(2, 3, 6, 6)
    weights = list(net.parameters())
    y = F.conv2d(x, *weights[:2], padding=1)
    for i in (2, 4, 6):
        y = F.conv_transpose2d(F.leaky_relu(y, 0.2), *weights[i : i + 2], stride=2, padding=1)
    y = F.conv2d(F.leaky_relu(y, 0.2), *weights[8:], padding=1)
    assert torch.allclose(net(x), y, atol=1e-6)


def test_only_model_1_interpolates(monkeypatch):
    def refuse(*args, **more):
        raise AssertionError("interpolated")

    monkeypatch.setattr(F, "interpolate", refuse)
    system()(images(1, 3, 8, 8))
    with pytest.raises(AssertionError, match="interpolated"):
        system(five_layer=False)(images(1, 3, 8, 8))


# system


@pytest.mark.parametrize("scale, side, size", [(8, 8, 64), (8, 16, 128), (8, 32, 256), (4, 16, 64), (2, 32, 64)])
@pytest.mark.parametrize("width", [8, 12])
def test_three_results_on_the_large_grid(scale, side, size, width):
    with torch.no_grad():
        out = system(scale=scale, size=size, width=width)(images(1, 3, side, side))
    assert {k: tuple(v.shape[1:]) for k, v in out.items()} == dict(
        features=(8, size, size), blurred=(3, size, size), restored=(3, size, size)
    )


def test_model_1_feeds_the_bicubic_face_to_both_branches_and_learns():
    net, x = system(five_layer=False), images(2, 3, 8, 8)
    out = net(x)
    assert torch.equal(out["features"], Bicubic(8)(x))
    (out["blurred"].square().mean() + out["restored"].square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert not [m for m in net.modules() if isinstance(m, FiveLayerCNN)]


def test_the_features_are_those_that_the_u_net_sees():
    net, x, seen = system(), images(1, 3, 8, 8), []
    net.two_branch_unet.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    assert net(x)["features"] is seen[0]


def weights_of(plan):
    "Parameters of layers (kernel, channels in, channels out, batch norm?), counted by hand."
    return sum(k * k * n_in * n_out + n_out + 2 * n_out * norm for k, n_in, n_out, norm in plan)


def test_counts_at_full_width():
    cnn = [(3, 3, 64, 0), *[(4, 64, 64, 0)] * 3, (3, 64, 64, 0)]
    down = [
        (4, 64, 64, 0),
        (4, 64, 128, 1),
        (4, 128, 256, 1),
        (4, 256, 512, 1),
        *[(4, 512, 512, 1)] * 3,
        (4, 512, 512, 0),
    ]
    upper = [(4, 512, 256, 1), (4, 512, 128, 1), (4, 256, 64, 1), (4, 128, 64, 1), (3, 64, 3, 0)]
    lower = [
        (4, 512, 512, 1),
        *[(4, 1024, 512, 1)] * 3,
        (4, 1024, 256, 1),
        (4, 512, 128, 1),
        (4, 256, 64, 1),
        (4, 128, 64, 1),
        (3, 128, 3, 0),
    ]
    critic = [
        (4, 67, 64, 0),
        (4, 64, 128, 1),
        (4, 128, 256, 1),
        (4, 256, 512, 1),
        (4, 512, 512, 1),
        (4, 512, 512, 1),
        (4, 512, 1, 0),
    ]
    with torch.device("meta"):
        nets = SRDeblurGAN(), SRDeblurGAN(size=128), DeblurCritic(), DeblurCritic(0)
    ours = list(map(count_parameters, nets))
    assert ours[0] == weights_of(cnn + down + upper + lower) == 58_388_230
    assert ours[0] - ours[1] == weights_of([(4, 512, 512, 1), (4, 1024, 512, 1)])
    with torch.device("meta"):
        unified = count_parameters(SRDeblurGAN(upper=False))
    assert unified == weights_of(cnn + down + lower[:-1] + [(3, 64, 3, 0)])
    assert ours[2] == weights_of(critic) and ours[2] - ours[3] == 64 * 64 * 16


# critics


@pytest.mark.parametrize("condition", [64, 3, 0])
@pytest.mark.parametrize("size", [64, 128, 192, 256])
def test_seven_convolutions_down_to_one_number(size, condition):
    net = DeblurCritic(condition, size, width=8)
    assert len(convolutions(net)) == 7
    given = (images(2, condition, size, size, seed=1),) if condition else ()
    with torch.no_grad():
        assert net(images(2, 3, size, size), *given).shape == (2, 1)


def test_the_last_layer_is_a_convolution_without_sigmoid():
    net = DeblurCritic(0, 64, width=8).eval()
    assert isinstance(net.convs[-1], nn.Conv2d)
    with torch.no_grad():
        before = net(images(2, 3, 64, 64))
        net.convs.conv7.bias += 5
        assert torch.allclose(net(images(2, 3, 64, 64)), before + 5, atol=1e-5)


def test_the_global_critic_sees_image_and_condition():
    net, x = DeblurCritic(4, 64, width=8).eval(), images(1, 3, 64, 64).requires_grad_()
    condition = images(1, 4, 64, 64, seed=1).requires_grad_()
    net(x, condition).sum().backward()
    assert x.grad.abs().sum() > 0 and condition.grad.abs().sum() > 0


def test_global_and_local_differ_in_the_first_convolution_only():
    of_global, of_local = (
        {k: v.shape for k, v in DeblurCritic(condition, 64, width=8).state_dict().items()} for condition in (4, 0)
    )
    assert of_global.keys() == of_local.keys()
    assert [k for k in of_global if of_global[k] != of_local[k]] == ["convs.conv1.conv.weight"]


def test_the_local_critic_makes_no_mask_of_its_own():
    net = DeblurCritic(0, 64, width=8).eval()
    x = images(1, 3, 64, 64).requires_grad_()
    net(x).sum().backward()
    assert (x.grad.abs().sum(1) > 0).float().mean() > 0.99


# noise


def restore(net, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    with torch.no_grad():
        return net(images(2, 3, 8, 8))


@pytest.mark.parametrize(
    "noise, seed, same", [(0.05, None, False), (0.05, 3, True), (0, None, True), (False, None, True)]
)
def test_noise_differs_from_call_to_call_unless_seeded(noise, seed, same):
    net = system(noise=noise)
    first, second = restore(net, seed), restore(net, seed)
    assert all(torch.equal(first[k], second[k]) == same for k in first)


def test_noise_differs_from_face_to_face():
    net = system(noise=0.05)
    with torch.no_grad():
        out = net(images(1, 3, 8, 8).expand(2, -1, -1, -1))["restored"]
    assert not torch.allclose(out[0], out[1], atol=1e-4)


def test_noise_follows_every_convolution_directly():
    net = system(noise=0.05, size=256)
    pairs = [pair for m in net.modules() if isinstance(m, nn.Sequential) for pair in zip(m, list(m)[1:])]
    directly = sum(isinstance(first, CONVOLUTIONS) and isinstance(second, Noise) for first, second in pairs)
    assert directly == len(convolutions(net)) == sum(isinstance(m, Noise) for m in net.modules()) == 5 + 8 + 4 + 8 + 2


def test_noise_is_white_gaussian_and_as_strong_as_its_setting():
    torch.manual_seed(0)
    x = 1 + 3 * torch.randn(2, 4, 64, 64)
    n = (Noise(0.1)(x) - x) / (0.1 * x.std((1, 2, 3), keepdim=True))
    assert n.mean().abs() < 0.02 and (n.std() - 1).abs() < 0.02 and (n.pow(4).mean() - 3).abs() < 0.2
    for shifted in (n.roll(1, 3), n.roll(1, 2), n.roll(1, 1), n.roll(1, 0)):
        assert (n * shifted).mean().abs() < 0.02


def test_larger_weights_do_not_drown_the_noise():
    x = images(1, 4, 16, 16)

    def share(gain):
        torch.manual_seed(0)
        return (Noise(0.1)(gain * x) - gain * x).std() / (gain * x).std()

    assert torch.allclose(share(1), share(1000), atol=1e-4)


def test_weights_fit_with_and_without_noise():
    quiet, noisy = system(seed=0), system(seed=1, noise=0.05)
    noisy.load_state_dict(quiet.state_dict())
    for m in noisy.modules():
        if isinstance(m, Noise):
            m.strength = 0.0
    first, second = restore(quiet), restore(noisy)
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[k], second[k], atol=1e-6) for k in first)


def test_without_noise_nothing_random_is_drawn(monkeypatch):
    monkeypatch.setattr(torch, "randn", None)
    restore(system())
    with pytest.raises(TypeError):
        restore(system(noise=0.05))


# bad input


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SRDeblurGAN(scale=3, width=8), "scale is 3"),
        (lambda: SRDeblurGAN(scale=3, width=8, five_layer=False), "scale is 3"),
        (lambda: FiveLayerCNN(16, width=8), "three of five layers can double"),
        (lambda: TwoBranchUNet(width=8, size=96), "size is 96"),
        (lambda: TwoBranchUNet(width=8, size=16), "size is 16"),
        (lambda: DeblurCritic(size=100), "multiple of 64, not 100"),
        (lambda: DeblurCritic(size=0), "not 0"),
        (lambda: system()(images(1, 3, 8, 12)), "divide by 8, not 8×12"),
        (lambda: system()(images(1, 1, 8, 8)), "(N,3,H,W), not (1, 1, 8, 8)"),
        (lambda: unet()(images(1, 3, 32, 32)), "takes I_LRf as (N,4,H,W)"),
        (lambda: DeblurCritic(4, 64, 8)(images(1, 3, 128, 128)), "built for x of 64 pixels"),
        (lambda: DeblurCritic(4, 64, 8)(images(1, 3, 64, 64)), "needs condition (N,4,H,W)"),
        (
            lambda: DeblurCritic(4, 64, 8)(images(1, 3, 64, 64), images(1, 4, 8, 8)),
            "needs condition of the size of the picture",
        ),
        (lambda: DeblurCritic(0, 64, 8)(images(1, 3, 64, 64), images(1, 4, 64, 64)), "built without a condition"),
    ],
)
def test_bad_settings_and_inputs_get_one_sentence(make, message):
    with pytest.raises(FacelabError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("given", [dict(five_layer=False), dict(noise=0.05)])
def test_ablations_compile_export_and_stay_close_in_bf16(given):
    net, inputs = example("sr_deblur_gan", **given)
    net.eval()

    def run(f):
        torch.manual_seed(1)
        with torch.no_grad():
            return f(**inputs)

    exact = run(net)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    exported = torch.export.export(net, (), inputs).module()
    for other in (compiled, exported):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(exact.values(), run(other).values(), strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(net)
    for a, b in zip(exact.values(), rough.values(), strict=True):
        assert (a - b.float()).square().mean().sqrt() < 0.05 * (a.square().mean().sqrt() + 0.1)
