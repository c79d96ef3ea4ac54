"""Features: VGG equals torchvision's, files that lack a layer are refused, nothing is swapped or downloaded."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from facelab import FacelabError
from facelab.base.images import astronaut
from facelab.base.weights import Unavailable, find_weights, load_weights
from facelab.faces.drawn import draw_faces
from facelab.losses import features
from facelab.losses.features import PartsNet, make_features, vgg_layers
from facelab.losses.perceptual import Perceptual
from facelab.losses.pixel import mse

OXFORD = "vgg19_features_conv1-3.safetensors"


@pytest.fixture(scope="module")
def trunk():
    """torchvision's VGG-19 up to conv4_1, random, and its state under torchvision's names."""
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    net = make_layers(cfgs["E"][:12]).requires_grad_(False).eval()
    return net, {f"features.{k}": v for k, v in net.state_dict().items()}


@pytest.fixture
def file(trunk, tmp_path):
    save_file(trunk[1], tmp_path / "vgg.safetensors")
    return tmp_path / "vgg.safetensors"


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("FACELAB_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("went to the network"))
    return tmp_path


def test_every_layer_equals_torchvision(trunk, file):
    net, _ = trunk
    names = vgg_layers("vgg19")[: len(net)]
    ours = make_features("file", file=file, layers=names, scale=1)
    x = torch.rand(2, 3, 32, 32)
    y = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for name, seen in ours(x).items():
        y = net[names.index(name)](y)
        assert torch.equal(seen, y), name


@pytest.mark.parametrize(
    "network, cfg, layers",
    [
        ("vgg16", "D", ["relu1_1", "pool1", "relu2_2", "pool2", "relu3_3", "pool3"]),
        ("vgg19", "E", ["pool1", "pool2", "pool3", "pool4", "conv5_4", "pool5"]),
    ],
)
def test_layers_that_the_papers_name(network, cfg, layers, tmp_path):
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    net = make_layers(cfgs[cfg]).requires_grad_(False).eval()
    save_file({f"features.{k}": v for k, v in net.state_dict().items()}, tmp_path / "vgg.safetensors")
    f = make_features(
        "file", network=network, file=tmp_path / "vgg.safetensors", layers=layers, normalise="none", scale=1
    )
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen = f(x)
    assert [*seen] == layers
    for name, layer in zip(vgg_layers(network), net):
        x = layer(x)
        if name in seen:
            assert torch.equal(seen[name], x), name
    if network == "vgg19":
        assert (seen["conv5_4"] < 0).any() and seen["pool5"].shape == (1, 512, 1, 1)  # before its ReLU


def test_the_name_tells_that_images_are_not_normalised(file):
    plain, raw = (
        make_features("file", file=file, layers=["relu1_1"], scale=1, **more) for more in ({}, dict(normalise="none"))
    )
    x = torch.rand(1, 3, 16, 16)
    ready = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.equal(plain(x)["relu1_1"], raw(ready)["relu1_1"])
    assert not torch.equal(plain(x)["relu1_1"], raw(x)["relu1_1"])
    assert plain.name == "VGG-19 relu1_1 (file vgg.safetensors)"
    assert raw.name == "VGG-19 relu1_1 (file vgg.safetensors, images not normalised)"
    assert make_features("file", file=file, layers=["relu1_1"], normalise="imagenet").name == plain.name


@pytest.mark.parametrize("network, cfg", [("vgg16", "D"), ("vgg19", "E")])
def test_layer_names_follow_torchvision(network, cfg):
    from torchvision.models.vgg import cfgs

    kinds = [k for c in cfgs[cfg] for k in (("pool",) if c == "M" else ("conv", "relu"))]
    assert [n.rstrip("_0123456789") for n in vgg_layers(network)] == kinds


def test_only_the_needed_layers_are_built(file):
    net = make_features("file", file=file, layers=["conv1_1", "conv2_1"]).network
    assert sum(p.numel() for p in net.parameters()) == 3 * 64 * 9 + 64 + 64 * 64 * 9 + 64 + 64 * 128 * 9 + 128


def test_frozen_and_stays_in_evaluation(file):
    f = make_features("file", file=file, layers=["relu2_1"])
    assert not f.train().training
    assert not any(m.training for m in f.modules())
    assert not any(p.requires_grad for p in f.parameters())


def test_random_numbers_of_a_run_are_left_alone(file, parts_file):
    before = torch.random.get_rng_state()
    make_features("file", file=file, layers=["conv1_1"]), make_features("trained", file=parts_file)
    assert torch.equal(before, torch.random.get_rng_state())


def test_scale_makes_a_blurred_face_cost_one(file):
    sharp, blurred = features.reference_faces()
    for scale, check in (
        ("blur", lambda f: mse(f(blurred)["conv1_2"], f(sharp)["conv1_2"])),
        ("unit", lambda f: f(sharp)["conv1_2"].square().mean()),
    ):
        assert check(make_features("file", file=file, layers=["conv1_2"], scale=scale)).item() == pytest.approx(
            1, rel=1e-3
        )
    raw, tenth = (
        make_features("file", file=file, layers=["conv1_2"], scale=s)(sharp)["conv1_2"] for s in (1, {"conv1_2": 10.0})
    )
    torch.testing.assert_close(raw, 10 * tenth)


@pytest.mark.parametrize("scale", ["big", -1, {"conv1_1": 1.0}, {"conv1_2": 0}])
def test_bad_scale(file, scale):
    with pytest.raises(FacelabError, match="scale of features"):
        make_features("file", file=file, layers=["conv1_2"], scale=scale)


def test_missing_layer_names_file_layer_and_what_there_is(file):
    with pytest.raises(
        FacelabError,
        match=r"vgg.safetensors has no weights of conv4_2, needed for relu5_4; it holds conv1_1 to conv4_1",
    ):
        make_features("file", file=file, layers=["relu5_4"])


def test_a_file_of_the_other_vgg_is_refused(file):
    with pytest.raises(FacelabError, match="vgg.safetensors"):
        make_features("file", network="vgg16", file=file, layers=["conv4_1"])


def test_transposed_weights_are_refused(trunk, tmp_path):
    save_file({k: v.transpose(0, -1).contiguous() for k, v in trunk[1].items()}, tmp_path / "t.safetensors")
    with pytest.raises(FacelabError, match="does not fit this VGG"):
        make_features("file", file=tmp_path / "t.safetensors", layers=["conv1_2"])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(source="keras"),
        dict(source="file"),
        dict(source="trained", network="vgg19"),
        dict(source="torchvision", network="parts"),
        dict(source="torchvision", layers=["conv9_1"]),
        dict(source="torchvision", layers=["pool1"], normalise="caffe"),
        dict(source="trained", normalise="none"),
    ],
)
def test_wrong_configurations(wrong):
    with pytest.raises(FacelabError):
        make_features(**wrong)


@pytest.mark.parametrize(
    "source, network", [("torchvision", "vgg19"), ("torchvision", "vgg16"), ("file", None), ("trained", None)]
)
def test_missing_weights_are_unavailable_and_nothing_takes_their_place(nowhere, source, network):
    with pytest.raises(Unavailable, match="FACELAB_WEIGHTS"):
        make_features(source, network=network, file=None if source == "torchvision" else "absent.safetensors")


def test_download_only_when_allowed(nowhere, monkeypatch):
    urls = []

    def refuse(url, path, **k):
        urls.append(url)
        raise OSError("offline")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(Unavailable, match="could not be downloaded"):
        make_features("torchvision", download=True)
    assert urls == ["https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"]


def test_damaged_files(nowhere, monkeypatch):
    (nowhere / "hub/checkpoints").mkdir(parents=True)
    (nowhere / "hub/checkpoints/vgg19-dcbb9e9d.pth").write_bytes(b"half")
    with pytest.raises(FacelabError, match="damaged"):
        make_features("torchvision")
    (nowhere / "cut.safetensors").write_bytes(b"half")
    with pytest.raises(FacelabError, match="cannot be read"):
        make_features("file", file=nowhere / "cut.safetensors")


def test_no_pickled_code_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(FacelabError, match="cannot be read"):
        load_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_where_weights_are_found(nowhere, monkeypatch):
    own, hub = nowhere / "own", nowhere / "hub/checkpoints"
    for folder in (hub, own):
        folder.mkdir(parents=True)
        (folder / "w.safetensors").write_bytes(b"x")
    assert find_weights("w.safetensors") == hub / "w.safetensors"
    monkeypatch.setenv("FACELAB_WEIGHTS", str(own))
    assert find_weights("w.safetensors") == own / "w.safetensors"


# ---- the network of our own


@pytest.fixture
def parts_file(tmp_path):
    torch.manual_seed(0)
    save_file(PartsNet(width=8).state_dict(), tmp_path / "parts.safetensors", metadata={"trained_on": "drawn faces"})
    return tmp_path / "parts.safetensors"


def test_trained_source(parts_file):
    f = make_features("trained", file=parts_file, layers=["stage3"])
    assert f.name == "facelab parts network, stage 3 (trained on drawn faces)"
    assert {k: tuple(v.shape) for k, v in f(torch.rand(2, 3, 64, 64)).items()} == {"stage3": (2, 32, 8, 8)}
    assert make_features("trained", file=parts_file, trained_on="photographs").name.endswith("(trained on photographs)")


def test_without_a_file_the_trained_source_takes_the_network_of_the_pipeline(parts_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(features.PARTS_FILE).parent.mkdir(parents=True)
    parts_file.rename(features.PARTS_FILE)
    assert make_features("trained").name == "facelab parts network, stage 2 (trained on drawn faces)"


def test_vgg_is_no_parts_network_and_the_reverse(file, parts_file):
    with pytest.raises(FacelabError, match="holds no PartsNet"):
        make_features("trained", file=file)
    with pytest.raises(FacelabError, match="holds no layer of this network"):
        make_features("file", file=parts_file)


def test_gradient_reaches_the_image(parts_file):
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    Perceptual(make_features("trained", file=parts_file))(x, torch.rand(1, 3, 64, 64)).backward()
    assert x.grad.abs().max() > 0


def test_every_parameter_of_partsnet_learns():
    net = PartsNet(width=8)
    net(torch.rand(2, 3, 64, 64))["prior"].square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


# ---- the original weights of VGG-19, where somebody has them


@pytest.fixture(scope="module")
def oxford():
    if not (Path(os.environ.get("FACELAB_WEIGHTS", "")) / OXFORD).is_file():
        pytest.skip(f"{OXFORD} is not in the folder that FACELAB_WEIGHTS names")
    layers = [n for n in vgg_layers("vgg19")[:18] if n.startswith("relu")]
    return make_features("file", file=OXFORD, layers=layers, scale=1)


def test_oxford_activations_have_their_known_size(oxford):
    """Means after ReLU on twenty faces at 256x256, known of these weights; one portrait comes within a third."""
    means = [x.mean().item() for x in oxford(astronaut(256)).values()]
    for mean, known in zip(means, (19, 88, 104, 89, 106, 141, 302, 430)):
        assert known / 1.34 < mean < known * 1.34


def test_oxford_weights_tell_blur_from_noise(oxford):
    """Wrongly ordered channels or a missing normalisation change these numbers."""
    f = make_features("file", file=OXFORD, layers=["conv3_4"])
    assert f.name == f"VGG-19 conv3_4 (file {OXFORD})"
    faces = draw_faces(range(20, 24), size=128)["image"]
    blurred = torch.nn.functional.avg_pool2d(faces, 9, 1, 4, count_include_pad=False)
    noisy = faces + torch.randn(faces.shape, generator=torch.Generator().manual_seed(0)) * mse(blurred, faces).sqrt()
    loss = Perceptual(f)
    assert loss(faces, faces) == 0 and loss(faces.roll(1, 0), faces) > loss(blurred, faces) > loss(noisy, faces) > 0
