"""Recognisers and the WGAN-GP critic: known counts, equations written out, bugs planted and caught.

The trained MobileFaceNet runs on photographs, where its file and photographs are at hand."""

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from facelab import FacelabError
from facelab.base.weights import Unavailable, find_weights
from facelab.faces.drawn import draw_faces
from facelab.faces.parts import five_points, transform_landmarks
from facelab.faces.sets import open_faces
from facelab.networks import inception_resnet
from facelab.networks.drawing import compare_layers, count_parameters, layer_table, read_printed_table
from facelab.networks.inception_resnet import Block35, CrossBlock, InceptionResnetV1, load_inception_resnet
from facelab.networks.jdsr_identity import JDSRIdentity
from facelab.networks.lightcnn import LightCNN9, LightCNN9Body, Luma, blocks_per_stage, mfm
from facelab.networks.mobilefacenet import TEMPLATE, MobileFaceNet, crops, load_mobilefacenet, template_similarity
from facelab.networks.wgan_critic import WGANCritic

LAYERS = Path(__file__).parent.parent / "papers" / "jdsr_gan_layers.yaml"
FILE = "mobilefacenet.safetensors"
SMALL = {
    LightCNN9: dict(size=32, width=8, embedding=16),
    JDSRIdentity: dict(size=32, width=8, depth=1, embedding=16),
    InceptionResnetV1: dict(width=8, depth=1, embedding=16),
    MobileFaceNet: dict(width=8, depth=1, embedding=16),
}
SIDE = {LightCNN9: (32, 32), JDSRIdentity: (32, 32), InceptionResnetV1: (75, 75), MobileFaceNet: (112, 96)}


def seeded(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small(make, **more):
    torch.manual_seed(0)
    return make(**{**SMALL[make], **more}).eval()


# ---- what recognisers share


@pytest.mark.parametrize("make", SMALL)
def test_the_head_is_for_training_only(make):
    plain, trained, x = small(make), small(make, identities=7), seeded(2, 3, *SIDE[make])
    assert trained.state_dict().keys() - plain.state_dict().keys() == {"logits.weight", "logits.bias"}
    assert trained(x).shape == (2, 16) and trained.classify(x).shape == (2, 7)
    assert torch.allclose(trained.embed(x).norm(dim=1), torch.ones(2), atol=1e-5)
    with pytest.raises(FacelabError, match="identities="):
        plain.classify(x)


@pytest.mark.parametrize("make", SMALL)
def test_every_parameter_learns_from_the_logits(make):
    net = small(make, identities=7)
    F.cross_entropy(net.classify(seeded(2, 3, *SIDE[make])), torch.tensor([1, 3])).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_dropout_changes_logits_and_no_embedding():
    net, x = small(LightCNN9, identities=7).train(), seeded(2, 3, 32, 32)
    assert torch.equal(net(x), net(x)) and not torch.equal(net.classify(x), net.classify(x))


@pytest.mark.parametrize(
    "depth, plan, blocks",
    [
        (20, (5, 10, 5), [5, 10, 5]),
        (15, (5, 1, 6, 1, 2), [5, 1, 6, 1, 2]),
        (1, (5, 10, 5), [1, 1, 1]),
        (8, (2, 4, 8, 2), [1, 2, 4, 1]),
    ],
)
def test_depth_is_shared_out_among_the_stages(depth, plan, blocks):
    assert blocks_per_stage(depth, plan) == blocks


# ---- LightCNN-9


def test_mfm_pairs_a_channel_with_the_one_half_way_on():
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 2)).astype(np.float32)
    literal = np.empty((2, 3, 3, 2), np.float32)
    for n, k, i, j in np.ndindex(literal.shape):
        literal[n, k, i, j] = max(x[n, k, i, j], x[n, k + 3, i, j])
    # the slip that the formula's k + N rules out
    neighbours = torch.maximum(torch.tensor(x[:, ::2]), torch.tensor(x[:, 1::2]))
    assert torch.equal(mfm(torch.tensor(x)), torch.tensor(literal))
    assert not torch.equal(mfm(torch.tensor(x)), neighbours)
    assert (mfm(-torch.ones(1, 2, 1, 1)) == -1).all()  # no ReLU


def test_lightcnn_has_the_layers_of_the_official_code():
    convs = [
        (m.in_channels, m.out_channels, m.kernel_size[0]) for m in LightCNN9().modules() if isinstance(m, nn.Conv2d)
    ]
    assert convs == [
        (1, 96, 5),
        (48, 96, 1),
        (48, 192, 3),
        (96, 192, 1),
        (96, 384, 3),
        (192, 384, 1),
        (192, 256, 3),
        (128, 256, 1),
        (128, 256, 3),
    ]
    by_hand = sum(i * o * k * k + o for i, o, k in convs) + 512 * (128 * 8 * 8 + 1)
    assert count_parameters(LightCNN9()) == by_hand == 5_480_864


def test_lightcnn_reads_luma_of_bt601():
    net, x = small(LightCNN9), seeded(1, 3, 32, 32)
    grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
    assert torch.allclose(Luma()(x), grey, atol=1e-6)
    assert torch.allclose(net(x), net(grey.expand(-1, 3, -1, -1)), atol=1e-6)
    assert not torch.allclose(net(x), net(x.flip(1)), atol=1e-4)
    coloured = small(LightCNN9, channels=3)
    assert not torch.allclose(coloured(x), coloured(grey.expand(-1, 3, -1, -1)), atol=1e-4)


@pytest.mark.parametrize("side, left", [(128, 8), (100, 7), (97, 7), (17, 2)])
def test_lightcnn_pools_round_up(side, left):
    assert LightCNN9Body(width=4)(torch.rand(1, 1, side, side)).shape[-2:] == (left, left)


# ---- Inception-ResNet-v1


def test_inception_resnet_has_the_published_counts():
    with torch.device("meta"):
        assert [count_parameters(InceptionResnetV1(identities=n)) for n in (None, 8631)] == [23_482_624, 27_910_327]


def test_inception_resnet_has_the_names_of_facenet_pytorch():
    parts = lambda n: [f".{i}" for i in range(n)] if n > 1 else [""]
    block = lambda name, branches: [f"{name}.branch{b}{part}" for b, n in enumerate(branches) for part in parts(n)]
    stages = dict(repeat_1=(5, (1, 2, 3)), repeat_2=(10, (1, 3)), repeat_3=(5, (1, 3)))
    convs = [f"conv2d_{n}" for n in ("1a", "2a", "2b", "3b", "4a", "4b")]
    convs += [c for stage, (n, branches) in stages.items() for i in range(n) for c in block(f"{stage}.{i}", branches)]
    convs += block("mixed_6a", (1, 3)) + block("mixed_7a", (2, 2, 3)) + block("block8", (1, 3))
    sums = [f"{stage}.{i}" for stage, (n, _) in stages.items() for i in range(n)] + ["block8"]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = (
        [f"{c}.conv.weight" for c in convs]
        + [f"{c}.bn.{k}" for c in convs for k in norm]
        + [f"{s}.conv2d.{k}" for s in sums for k in ("weight", "bias")]
    )
    names += ["last_linear.weight", *[f"last_bn.{k}" for k in norm], "logits.weight", "logits.bias"]
    with torch.device("meta"):
        assert set(InceptionResnetV1(identities=8631).state_dict()) == set(names)


def test_inception_resnet_adds_the_printed_shares():
    with torch.device("meta"):
        net = InceptionResnetV1()
    assert [[b.scale for b in stage] for stage in (net.repeat_2, net.repeat_3)] == [[0.1] * 10, [0.2] * 5]
    assert {m.eps for m in net.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d))} == {0.001}
    assert net.last_linear.bias is None
    block, x = Block35(4).eval(), seeded(1, 32, 5, 5) + 0.5
    nn.init.zeros_(block.conv2d.weight)
    nn.init.constant_(block.conv2d.bias, -1.0)
    assert torch.allclose(block(x), x - 0.17)


def test_the_last_inception_block_adds_its_branches_in_full():
    """facenet-pytorch: Block8(noReLU=True), whose scale is 1.0; here the block written out, with random statistics."""
    net = small(InceptionResnetV1)
    block, x = net.block8, seeded(2, 448, 3, 4) - 0.5
    torch.manual_seed(2)
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.5, 2)
    state = block.state_dict()

    def conv(y, name, padding=0):
        y = F.conv2d(y, state[f"{name}.conv.weight"], padding=padding)
        mean, var, a, b = (state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        a, b, mean, var = (v.view(1, -1, 1, 1) for v in (a, b, mean, var))
        return ((y - mean) / (var + 0.001).sqrt() * a + b).clamp(min=0)

    one = conv(x, "branch0")
    cross = conv(conv(conv(x, "branch1.0"), "branch1.1", (0, 1)), "branch1.2", (1, 0))
    mixed = F.conv2d(torch.cat([one, cross], 1), state["conv2d.weight"], state["conv2d.bias"])
    with torch.no_grad():
        assert torch.allclose(block(x), x + mixed, atol=1e-5)
    assert mixed.abs().mean() > 0.01


def test_released_weights_of_vggface2_load_as_they_are(tmp_path, monkeypatch):
    """The file holds the head of 8,631 people too; here a narrow network in its place."""
    monkeypatch.setattr(inception_resnet, "InceptionResnetV1", partial(InceptionResnetV1, width=4, depth=1))
    torch.manual_seed(3)
    released = inception_resnet.InceptionResnetV1(identities=8631).eval()
    torch.save(released.state_dict(), tmp_path / "20180402-114759-vggface2.pt")
    net = load_inception_resnet(tmp_path / "20180402-114759-vggface2.pt")
    assert net.size == 160 and not net.training
    x = seeded(1, 3, 80, 80)
    with torch.no_grad():
        assert torch.equal(net(x), released(x))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(FacelabError, match="other.pt does not fit Inception-ResNet-v1 with 8,631 people"):
        load_inception_resnet(tmp_path / "other.pt")


def test_only_the_last_inception_block_lets_negative_sums_through():
    with torch.device("meta"):
        net = InceptionResnetV1()
    assert isinstance(net.block8.relu, nn.Identity)
    assert all(isinstance(b.relu, nn.ReLU) for stage in (net.repeat_2, net.repeat_3) for b in stage)
    x = -torch.ones(1, 8, 3, 3)
    assert CrossBlock(8, 4, 3, 0.2)(x).min() >= 0 > CrossBlock(8, 4, 3, 0.2, relu=False)(x).min()


def test_the_inception_head_sees_embeddings_of_any_length():
    net, x = small(InceptionResnetV1, identities=7), seeded(2, 3, 75, 75)
    with torch.no_grad():
        embedding, logits = net(x), net.classify(x) - net.logits.bias
        net.last_bn.weight.mul_(2)
        net.last_bn.bias.mul_(2)
        assert torch.allclose(net(x), embedding, atol=1e-5)
        assert torch.allclose(net.classify(x) - net.logits.bias, 2 * logits, atol=1e-5)


def test_inception_resnet_takes_other_sizes_and_enlarges_small_faces():
    net, x = small(InceptionResnetV1), seeded(1, 3, 96, 48)
    assert net(seeded(1, 3, 96, 75)).shape == (1, 16)
    enlarged = torch.nn.functional.interpolate(x, (96, 75), mode="bicubic", align_corners=False)
    assert torch.equal(net(x), net(enlarged))


# ---- MobileFaceNet and its crop


def test_mobilefacenet_has_the_printed_stages():
    net = MobileFaceNet()
    plan = [
        (b.conv[0].out_channels // b.conv[0].in_channels, b.conv[6].out_channels, b.conv[3].stride[0])
        for b in net.blocks
    ]
    assert plan == [(2, 64, 2), *[(2, 64, 1)] * 4, (4, 128, 2), *[(2, 128, 1)] * 6, (4, 128, 2), *[(2, 128, 1)] * 2]
    assert [b.adds for b in net.blocks] == [s == 1 for _, _, s in plan] and count_parameters(net) == 999_552
    assert not any(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))


def test_mobilefacenet_loads_a_plain_file_whole_or_not_at_all(tmp_path):
    from safetensors.torch import save_file

    net, x = MobileFaceNet().eval(), seeded(1, 3, 112, 96)
    state = {k: v for k, v in net.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "whole.safetensors")
    assert len(state) == 283 and torch.equal(load_mobilefacenet(tmp_path / "whole.safetensors")(x), net(x))
    save_file({k: v for k, v in state.items() if k != "conv2.prelu.weight"}, tmp_path / "part.safetensors")
    with pytest.raises(FacelabError, match="conv2.prelu.weight") as error:
        load_mobilefacenet(tmp_path / "part.safetensors")
    assert "\n" not in str(error.value)


def test_the_crop_is_the_least_squares_similarity():
    points = five_points(draw_faces(range(6), size=128)["landmarks_68"])
    a, b = template_similarity(points)
    for k, p in enumerate(points.double().numpy()):  # q = (u x - v y + s, v x + u y + t), ten equations for u, v, s, t
        rows = np.concatenate(
            [
                np.stack([p[:, 0], -p[:, 1], np.ones(5), np.zeros(5)], 1),
                np.stack([p[:, 1], p[:, 0], np.zeros(5), np.ones(5)], 1),
            ]
        )
        u, v, s, t = np.linalg.lstsq(rows, np.array(TEMPLATE).T.ravel(), rcond=None)[0]
        assert np.allclose([a[k].real, a[k].imag, b[k].real, b[k].imag], [u, v, s, t], atol=1e-4)


def test_a_crop_does_not_depend_on_how_the_face_was_turned():
    faces = draw_faces(range(2), size=128)
    points = five_points(faces["landmarks_68"])
    quarter = torch.tensor([[[0.0, 1, 0], [-1, 0, 128]]]).expand(2, 2, 3)  # rot90: x' = y, y' = 128 - x
    turned = crops(faces["image"].rot90(1, (2, 3)), transform_landmarks(points, quarter))
    assert torch.allclose(turned, crops(faces["image"], points), atol=1e-3)


def test_a_crop_of_a_large_face_averages():
    stripes = (torch.arange(512) % 2).float().expand(1, 3, 512, 512)
    points = torch.tensor(TEMPLATE)[None] * 4.01
    assert crops(stripes, points).std() < 0.12
    assert F.grid_sample(stripes, seeded(1, 40, 40, 2) * 2 - 1, align_corners=False).std() > 0.2


def test_crops_pass_gradients_on():
    faces = draw_faces(range(2), size=128)
    image = faces["image"].requires_grad_()
    crops(image, faces["landmarks_68"]).sum().backward()
    assert (image.grad.flatten(1).abs().sum(1) > 0).all()


def neighbours(e, who):
    "Share of faces whose nearest other face, by cosine, is of the same person."
    s = (e @ e.T).fill_diagonal_(-2)
    return (who[s.argmax(1)] == who).float().mean().item()


def verification(e, who):
    "Mean cosine of pairs of one person and of two, and the equal error rate."
    i, j = torch.triu_indices(len(e), len(e), 1)
    s, same = (e @ e.T)[i, j], who[i] == who[j]
    one, two = s[same].sort().values, s[~same].sort().values
    missed = torch.arange(len(one)) / len(one)
    wrong = 1 - torch.searchsorted(two, one) / len(two)
    return one.mean().item(), two.mean().item(), missed[(missed - wrong).abs().argmin()].item()


def test_the_measures_of_recognition_are_right():
    who, e = torch.tensor([0, 0, 1, 1]), F.normalize(torch.tensor([[1.0, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]]))
    assert neighbours(e, who) == 1 and neighbours(e, who[[0, 2, 1, 3]]) == 0
    same, different, eer = verification(e, who)
    assert same > 0.9 > 0.3 > different and eer == 0
    _, _, chance = verification(
        F.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0))), torch.arange(200) // 4
    )
    assert 0.4 < chance < 0.6


@pytest.fixture(scope="module")
def photographs():
    "Up to 500 test photographs of people with two or more, as crops, and who they are."
    try:
        find_weights(FILE)
    except Unavailable:
        pytest.skip(f"{FILE} is not in the folder that FACELAB_WEIGHTS names")
    folder = os.environ.get("FACELAB_FACES")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FACELAB_FACES names no folder of photographs (CelebA's layout)")
    faces = open_faces(folder, 128).subset("test")
    if faces.identity is None or faces.landmarks is None:
        pytest.skip("the photographs in FACELAB_FACES have no identities or landmarks")
    who, counts = faces.identity.unique(return_counts=True)
    who, counts = who[counts > 1], counts[counts > 1]
    chosen = torch.isin(faces.identity, who[counts.cumsum(0) <= 500]).nonzero()[:, 0]
    batch = faces.batch(chosen, labels=["identity", "landmarks"])
    return crops(batch["image"], batch["landmarks"]), batch["identity"]


@torch.no_grad()
def test_the_trained_mobilefacenet_recognises_photographs(photographs):
    "Known for 483 photographs of 28 people: all nearest neighbours right, cosines .62 and .01, equal error rate 1.7 %."
    faces, who = photographs
    net = load_mobilefacenet()
    e = torch.cat([net.embed(x) for x in faces.split(16)])
    rank1, (same, different, eer) = neighbours(e, who), verification(e, who)
    print(
        f"{len(who)} photographs of {len(who.unique())} people: rank-1 {rank1:.4f}, cosine {same:.3f} /"
        f" {different:.3f}, equal error rate {eer:.4f}"
    )
    if (len(who), len(who.unique())) == (483, 28):
        # equal error rate with red and blue exchanged: .0242; half the range: .0218; crop off by two pixels: .0212
        assert rank1 == 1 and abs(eer - 0.017) < 0.001
        assert abs(same - 0.62) < 0.01 and abs(different - 0.01) < 0.01
    else:
        assert rank1 > 0.95 and eer < 0.05


# ---- the identity network of JDSR-GAN


def test_table_1_of_jdsr_gan_is_met():
    with torch.device("meta"):
        ours = layer_table(JDSRIdentity(), (1, 3, 128, 128))
    printed = read_printed_table(LAYERS, "Table 1")
    assert compare_layers(printed, ours).differences == [] and len(printed) == 13
    assert all(a.output == b.input for a, b in zip(printed, printed[1:]))
    blocks = [int(re.search(r"×(\d)", row.operation)[1]) for row in ours.rows if row.name.startswith("residual")]
    assert blocks == [2, 4, 8, 2]


def test_table_1_written_out_gives_the_same_features():
    net, x = small(JDSRIdentity, depth=16), seeded(2, 3, 32, 32)
    w = net.state_dict()
    conv = lambda y, name: F.prelu(
        F.conv2d(y, w[f"{name}.0.weight"], w[f"{name}.0.bias"], padding=1), w[f"{name}.1.weight"]
    )
    y = 2 * x - 1
    for stage, blocks in enumerate((2, 4, 8, 2), 1):
        y = conv(y, f"conv{stage}")
        inside = F.pad(torch.ones_like(y), (1, 1, 1, 1))
        y = F.avg_pool2d(F.pad(y, (1, 1, 1, 1)), 3, 2) / F.avg_pool2d(inside, 3, 2)
        for i in range(blocks):
            y = y + conv(conv(y, f"residual_block{stage}.{i}.conv1"), f"residual_block{stage}.{i}.conv2")
    assert torch.allclose(net(x), F.linear(y.flatten(1), w["fc1.1.weight"], w["fc1.1.bias"]), atol=1e-6)


def test_every_convolution_of_cnn_e_is_followed_by_prelu_and_nothing_else():
    with torch.device("meta"):
        net = JDSRIdentity()
    kinds = [type(m) for m in net.modules() if not list(m.children())]
    after = [b for a, b in zip(kinds, kinds[1:]) if a is nn.Conv2d]
    assert after == [nn.PReLU] * 36
    assert set(kinds) == {
        nn.Conv2d,
        nn.PReLU,
        nn.AvgPool2d,
        nn.Flatten,
        nn.Linear,
        nn.Dropout,
    }


# ---- the critic of WGAN-GP


class WithBatchNorm(WGANCritic):
    "The slip of ports in wide use, planted."

    def __init__(self, **given):
        super().__init__(**given)
        for block in self.blocks:
            block.norm1, block.norm2 = nn.BatchNorm2d(block.conv1.in_channels), nn.BatchNorm2d(block.conv2.in_channels)


def mixes_samples(make):
    "Does the score of one picture in training mode change with the others in its batch?"
    torch.manual_seed(0)
    critic, x, other = make(size=16, width=8).train(), seeded(3, 3, 16, 16), seeded(3, 3, 16, 16, seed=1)
    return not torch.allclose(critic(x)[:1], critic(torch.cat([x[:1], other[1:]]))[:1], atol=1e-5)


def test_the_critic_has_no_batch_norm_and_judges_each_sample_alone():
    with torch.device("meta"):
        kinds = {type(m) for m in WGANCritic().modules() if not list(m.children())}
    assert kinds == {nn.Conv2d, nn.GroupNorm, nn.ReLU, nn.AvgPool2d, nn.Flatten, nn.Linear}
    assert not mixes_samples(WGANCritic) and mixes_samples(WithBatchNorm)


def test_the_critics_norm_is_over_a_whole_sample():
    critic = WGANCritic(size=16, width=8)
    x = seeded(2, 8, 16, 16) * 5
    mean, var = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), keepdim=True, unbiased=False)
    assert torch.allclose(critic.blocks[0].norm1(x), (x - mean) / (var + 1e-5).sqrt(), atol=1e-5)
    assert all(
        m.num_groups == 1 and m.weight.shape == (m.num_channels,)
        for m in critic.modules()
        if isinstance(m, nn.GroupNorm)
    )


def test_a_gradient_penalty_reaches_every_weight_of_the_critic():
    torch.manual_seed(0)
    critic, x = WGANCritic(size=16, width=8), seeded(2, 3, 16, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    (gradient.flatten(1).norm(dim=1) - 1).square().mean().backward()
    still = {name for name, p in critic.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert all(name.endswith("bias") for name in still)
    assert all(p.grad.isfinite().all() for p in critic.parameters() if p.grad is not None)


def test_the_critic_written_out_gives_the_same_scores():
    torch.manual_seed(0)
    critic, x = WGANCritic(size=16, width=8), seeded(2, 3, 16, 16)
    norm = lambda y: (
        (y - y.mean((1, 2, 3), keepdim=True)) / (y.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    )
    mean = lambda y: (y[..., ::2, ::2] + y[..., 1::2, ::2] + y[..., ::2, 1::2] + y[..., 1::2, 1::2]) / 4
    y = critic.conv_in(2 * x - 1)
    for b in critic.blocks:
        y = b.shortcut(mean(y)) + mean(b.conv2(norm(b.conv1(norm(y).relu())).relu()))
    assert torch.allclose(critic(x), critic.score(y), atol=1e-5) and (critic(x) + 100 > 1).all()


def test_the_critic_has_the_channels_of_the_authors_code():
    with torch.device("meta"):
        shapes = {size: [b.conv2.out_channels for b in WGANCritic(size).blocks] for size in (64, 128, 256)}
    assert shapes == {64: [128, 256, 512, 512], 128: [128, 256, 512, 512, 512], 256: [128, 256, 512, 512, 512, 512]}


# ---- bad settings


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: LightCNN9(channels=4), "channels is 4"),
        (lambda: JDSRIdentity(size=120), "multiple of 16, not 120"),
        (lambda: JDSRIdentity(size=0), "not 0"),
        (lambda: WGANCritic(100), "not 100"),
        (lambda: WGANCritic(4), "not 4"),
        (lambda: WGANCritic(96), "not 96"),
        (lambda: small(MobileFaceNet)(seeded(1, 3, 128, 128)), "112×96 pixels, not 128×128"),
        (lambda: small(LightCNN9)(seeded(1, 1, 32, 32)), "(N,3,H,W), not (1, 1, 32, 32)"),
        (lambda: LightCNN9Body(3)(seeded(1, 1, 32, 32)), "(N,3,H,W)"),
        (lambda: crops(seeded(1, 3, 64, 64), torch.full((1, 5, 2), float("nan"))), "face 0 of 1"),
        (lambda: crops(seeded(2, 3, 64, 64), torch.tensor(TEMPLATE)[None]), "2 images but landmarks of 1"),
        (lambda: template_similarity(torch.rand(1, 7, 2)), "7 landmarks"),
    ],
)
def test_bad_settings_get_one_sentence(make, said):
    with pytest.raises(FacelabError) as error:
        make()
    assert said in str(error.value) and "\n" not in str(error.value)
