"""The networks that papers compare themselves with: each loss by hand, and each source's own fall of the rate."""

import math

import pytest
import torch
from conftest import ROOT
from torch import nn

from facelab.degradations.resample import resize
from facelab.losses.features import VGG, Features
from facelab.losses.pixel import l1
from facelab.networks.dic import DIC, DICHourglass
from facelab.networks.lightcnn import LightCNN9
from facelab.networks.pix2pix import Pix2Pix
from facelab.networks.sicnn import SphereFace20
from facelab.training.models import begin_with, load_helper, write_model
from facelab.training.objective import Objective
from facelab.training.recipes import load_losses, load_recipes, read_schedule
from facelab.training.run import lr_factor

torch.set_num_threads(1)
SUMS, RECIPES = load_losses(ROOT), load_recipes(ROOT)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---- losses by hand

TARGET, INPUT = rand(2, 3, 32, 32), rand(2, 3, 4, 4, seed=1)
HEAT, PARTS = rand(2, 5, 8, 8, seed=2), rand(2, 11, 16, 16, seed=3)
GIVEN = dict(
    target=TARGET, input=INPUT, clean=TARGET, heatmaps=PARTS[:, :5], heatmaps_quarter=HEAT, parsing=PARTS, gamma=TARGET
)
LOG2 = math.log(2)
SMALLER = {side: resize(TARGET, side) for side in (8, 16)}
STEPS = {f"sr_{t}": TARGET + 0.1 * t for t in range(1, 5)} | {f"heatmaps_{t}": HEAT + 0.1 * t for t in range(1, 5)}
SIZES = dict(sr_x1=INPUT + 0.1, sr_x2=SMALLER[8] + 0.2, sr_x4=SMALLER[16] + 0.3, restored=TARGET - 0.4)
FACE = dict(
    coarse=TARGET + 0.2,
    restored=TARGET + 0.3,
    landmark_maps=PARTS[:, :5] + 0.1,
    parsing_maps=PARTS - 0.5,
)
UNDECIDED = dict(critic=lambda x, *condition: torch.zeros(len(x), 1))
DUAL = dict(
    dual_x1=lambda x: INPUT + 0.5,
    dual_x2=lambda x: SMALLER[8] + (0.6 if x.shape[-1] == 32 else 0.7),
    dual_x4=lambda x: SMALLER[16] + 0.8,
)
MAPS = dict(lightcnn=lambda x: 3 * x[:, :, ::4, ::4])
MOVED = dict(restored=TARGET + 0.2)
BY_HAND = {  # sum -> outputs, networks, what it is
    "srresnet": (MOVED, {}, 0.2**2),
    "srgan": (MOVED, UNDECIDED, 0.006 * 0.2**2 + 0.001 * LOG2),
    "srgan_critic": (MOVED, UNDECIDED, 2 * LOG2),
    "rcan": (MOVED, {}, 0.2),
    "esrgan_pixel": (MOVED, {}, 0.2),
    "esrgan": (MOVED, UNDECIDED, 0.01 * 0.2 + 0.2 + 5e-3 * (LOG2 + LOG2) / 2),
    "esrgan_critic": (MOVED, UNDECIDED, (LOG2 + LOG2) / 2),
    "srfbn": (STEPS, {}, 0.1 + 0.2 + 0.3 + 0.4),
    "drn": (SIZES, DUAL, 0.1 + 0.2 + 0.4 + 0.1 * (0.5 + 0.6)),
    "drn_dual": (SIZES, DUAL, 0.5 + 0.6),
    "drn_x8": (SIZES, DUAL, 0.1 + 0.2 + 0.3 + 0.4 + 0.1 * (0.5 + 0.7 + 0.8)),
    "drn_x8_dual": (SIZES, DUAL, 0.5 + 0.7 + 0.8),
    "pix2pix": (MOVED, UNDECIDED, LOG2 + 100 * (2 * 0.2)),  # of images in [-1,1]
    "pix2pix_critic": (MOVED, UNDECIDED, (LOG2 + LOG2) / 2),
    "fsrnet": (FACE, {}, 0.2**2 + 0.3**2 + 0.1**2 + 0.5**2),
    "fsrgan": (FACE, UNDECIDED, 0.2**2 + 0.3**2 + 0.1**2 + 0.5**2 + 0.1 * 0.3**2 + 0.001 * LOG2),
    "fsrgan_critic": (FACE, UNDECIDED, 2 * LOG2),
    "dic": (STEPS, {}, 1.0 + 0.1 * (0.1**2 + 0.2**2 + 0.3**2 + 0.4**2)),
    "dic_hourglass": (STEPS, {}, 0.1**2 + 0.2**2 + 0.3**2 + 0.4**2),
    "dicgan": (STEPS | MOVED, UNDECIDED | MAPS, 1.0 + 0.1 * 0.3 + 0.1 * (3 * 0.2) + 0.005 * LOG2),
    "dicgan_critic": (MOVED, UNDECIDED, 2 * LOG2),
    "cbdnet": (
        MOVED | dict(noise_map=TARGET - 0.1),  # too low: weight 1 - alpha
        {},
        0.2**2 + 0.5 * 0.7 * 0.1**2 + 0.05 * sum(TARGET.diff(dim=d).square().mean().item() for d in (2, 3)),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_sum_is_what_its_source_prints(name, monkeypatch):
    class Picture(nn.Module):
        def forward(self, x):
            return {"picture": x}

    monkeypatch.setattr("facelab.losses.features.make_features", lambda **wish: Picture())
    outputs, networks, expected = BY_HAND[name]
    terms = {k: {**t, "with": dict(t.get("with") or {})} for k, t in SUMS[name]["terms"].items()}
    for term in terms.values():
        if term["with"].get("features") == "perceptual":
            term["with"]["features"] = {}
    total, _ = Objective(terms)(outputs, GIVEN, networks)
    assert total.item() == pytest.approx(expected, rel=1e-4)


def test_all_sums_of_baselines_are_tried():
    papers = {"srresnet", "rcan", "esrgan", "srfbn", "drn", "pix2pix", "fsrnet", "dic", "sicnn", "cbdnet"}
    assert {name for name, entry in SUMS.items() if entry["paper"] in papers} == BY_HAND.keys() | {"sicnn"}


def test_the_share_of_sicnns_identity_is_that_of_its_caffe_definition():
    """0.001/2 of the squares of 112x96x3 values in units of 1/128, 0.01/2 of the squared distance of unit vectors."""
    torch.manual_seed(0)
    net = SphereFace20((112, 96), 8, 1, 16).requires_grad_(False)
    a, b = rand(3, 3, 112, 96), rand(3, 3, 112, 96, seed=1)
    _, values = Objective(SUMS["sicnn"]["terms"])(dict(restored=a), dict(target=b), dict(sphereface=net))
    pixels = 0.001 / 2 * (255 / 128 * (a - b)).square().flatten(1).sum(1).mean()
    unit = lambda x: net(x) / net(x).norm(dim=1, keepdim=True)
    people = 0.01 / 2 * (unit(a) - unit(b)).square().sum(1).mean()
    weight = SUMS["sicnn"]["terms"]["identity"]["weight"]
    assert (weight * values["identity"] / values["pixel"]).item() == pytest.approx((people / pixels).item(), rel=0.01)
    assert 8 / (112 * 96 * 3 * (255 / 128) ** 2) == pytest.approx(weight, rel=0.25)  # Algorithm 1, alpha 8


def test_srgan_sees_features_after_the_activation_and_esrgan_before():
    layers = {name: SUMS[name]["terms"]["vgg"]["with"]["features"]["layers"] for name in ("srgan", "esrgan")}
    assert layers == dict(srgan=["relu5_4"], esrgan=["conv5_4"])
    torch.manual_seed(0)
    net = Features(VGG("vgg19", [*layers["srgan"], *layers["esrgan"]]), "random", 1)
    before, after = (net(rand(1, 3, 32, 32))[layer] for layer in ("conv5_4", "relu5_4"))
    assert before.min() < 0 and torch.equal(before.relu(), after)


@pytest.mark.parametrize("name", ["deblur_srgan", "deblur_srgan_16"])
def test_srgan_with_its_features_alone_is_one_word_away(name):
    stage = RECIPES[name]["stages"][1]
    assert stage["losses"].keys() == SUMS["srresnet"]["terms"].keys() | SUMS["srgan"]["terms"].keys()
    assert SUMS["srgan"]["terms"].keys() == {"vgg", "adversarial"}


# ---- DICGAN's helpers

DICGAN = [name for name, r in RECIPES.items() if (r.get("generator") or {}).get("use") == "networks.dic.DIC"]


@pytest.mark.parametrize("name", DICGAN)
def test_dicgan_begins_with_a_trained_hourglass_and_compares_maps(name):
    recipe = RECIPES[name]
    assert recipe["begin"] == {"generator.hourglass": "dic_hourglass.hourglass"}
    assert recipe["helpers"] == {"lightcnn": "lightcnn9_rgb.body"}
    assert [stage.get("freeze") for stage in recipe["stages"]] == [["hourglass"], None, ["hourglass"]]
    assert sum(stage["steps"] for stage in recipe["stages"][:2]) == 150_000 and recipe["stages"][0]["steps"] == 2000


@pytest.mark.parametrize("side", [64, 128])
def test_the_maps_of_lightcnn_are_those_before_its_dense_layer(tmp_path, side):
    """Also of faces twice as large as those that it learned from, which it sees at its own side."""
    about = dict(use="networks.lightcnn.LightCNN9", size=64, width=12, channels=3, embedding=16)
    torch.manual_seed(0)
    net = LightCNN9(64, 12, 3, 16)
    recipe = dict(name="people", kind="helpers", generator=about, critics={}, size=64)
    write_model(tmp_path / "recognisers" / "lightcnn9_rgb", {"generator": net.state_dict()}, recipe)
    maps, face = load_helper("recognisers/lightcnn9_rgb.body", tmp_path), rand(2, 3, side, side)
    assert maps(face).shape == (2, 32, 4, 4)
    assert torch.allclose(maps(face), net.body(face if side == 64 else resize(face, 64)), atol=1e-6)
    terms = {"identity": SUMS["dicgan"]["terms"]["identity"]}
    total, _ = Objective(terms)(dict(restored=face), dict(target=1 - face), dict(lightcnn=maps))
    assert total.item() == pytest.approx(0.1 * (maps(face) - maps(1 - face)).abs().mean().item(), rel=1e-5)


def test_dic_looks_with_the_hourglass_that_learned_alone(tmp_path):
    torch.manual_seed(0)
    alone, dic = DICHourglass(8, 2, hourglass_width=16), DIC(8, 8, 1, 2, fusion=1, hourglass_width=16)
    recipe = dict(name="dic_hourglass", generator=dict(use="networks.dic.DICHourglass"), critics={})
    write_model(tmp_path / "recognisers" / "dic_hourglass", {"generator": alone.state_dict()}, recipe)
    address = RECIPES["deblur_dicgan"]["begin"]["generator.hourglass"]
    begin_with({"generator": dic}, {"generator.hourglass": f"recognisers/{address}"}, tmp_path)
    with torch.no_grad():
        out = dic(rand(2, 3, 8, 8))
        assert torch.allclose(alone(out["sr_1"])["heatmaps_1"], out["heatmaps_1"], atol=1e-5)
        _, memory = alone.hourglass(alone.sub_mean(out["sr_1"]))
        assert torch.allclose(alone.hourglass(alone.sub_mean(out["sr_2"]), memory)[0], out["heatmaps_2"], atol=1e-5)


def test_the_hourglass_alone_learns_its_memory():
    """Half of its output is the memory; a single look would teach it nothing."""
    torch.manual_seed(0)
    net = DICHourglass(8, 2, hourglass_width=16)
    maps, last = net(rand(1, 3, 64, 64)), net.hourglass.hourglass.across[-1].conv3.weight

    def memory_gradient(look):
        return torch.autograd.grad(maps[f"heatmaps_{look}"].square().mean(), last, retain_graph=True)[0][16:]

    assert memory_gradient(1).abs().max() == 0 < memory_gradient(2).abs().max()


# ---- pix2pix, tested as Isola et al. tested it


def test_pix2pix_as_published_has_each_faces_own_statistics_and_its_dropout():
    torch.manual_seed(0)
    published, fixed = (Pix2Pix(4, 8, 32, as_published=wish).requires_grad_(False) for wish in (True, False))
    assert published.state_dict().keys() == fixed.state_dict().keys()
    face = rand(1, 3, 8, 8)
    trained = published(face)  # one face: batch norm with the statistics of the batch
    both = torch.cat([face, rand(1, 3, 8, 8, seed=1)])
    assert torch.allclose(published.eval()(both)[:1], trained, atol=1e-5)  # whoever is beside it
    assert l1(fixed.eval()(face), fixed.train()(face)) > 1e-3
    deep = Pix2Pix(8, 8, 64, as_published=True).requires_grad_(False).eval()
    assert not torch.equal(deep(face), deep(face))


# ---- falls of the learning rate


def at(factor, *shares):
    return dict(use="milestones", factor=factor, at=list(shares))


CONSTANT, FIFTHS = dict(use="constant"), (0.2, 0.4, 0.6, 0.8)
TENTHS = [0.1 * k for k in range(1, 10)]
FALLS = {  # generator -> of each stage, as its source has it, in shares of its steps
    "networks.rcan.RCAN": [at(0.5, *FIFTHS)],
    "networks.srfbn.SRFBN": [at(0.5, *FIFTHS)],
    "networks.drn.DRN": [dict(use="cosine", to=1e-7 / 1e-4)],
    "networks.pix2pix.Pix2Pix": [dict(use="linear", **{"from": 0.5})],
    "networks.rrdb.RRDBNet": [at(0.5, *FIFTHS), at(0.5, 0.125, 0.25, 0.5, 0.75)],
    "networks.dic.DIC": [CONSTANT, at(0.5, *((n - 2) / 148 for n in (10, 20, 40, 80))), at(0.5, 0.125, 0.25, 0.5)],
    "networks.cbdnet.CBDNet": [at(0.5, 0.5)],
    "networks.rain_removal.HeavyRainRemoval": [at(0.5, *TENTHS), at(0.5, *(k * 10 / 76 for k in range(1, 8)))],
    "networks.gfc.GFC": [dict(use="linear", **{"from": 5 / 6})],
    "networks.pconv.PConvUNet": [dict(use="linear", **{"from": 5 / 6})],
}
FALLING = {
    name: FALLS[r["generator"]["use"]] for name, r in RECIPES.items() if r.get("generator", {}).get("use") in FALLS
}
FALLING |= {name: [CONSTANT, at(0.1, 0.5)] for name in ("deblur_srgan", "deblur_srgan_16")}


def schedules(recipe):
    "Of each stage; a recipe with one stage may say it for the whole run."
    whole = recipe.get("schedule", "constant")
    assert whole == "constant" or len(recipe["stages"]) == 1
    return [read_schedule(stage.get("schedule", whole), stage["steps"], "here") for stage in recipe["stages"]]


@pytest.mark.parametrize("name", FALLING)
def test_a_recipe_has_the_fall_of_its_source(name):
    found = schedules(RECIPES[name])
    assert [s["use"] for s in found] == [s["use"] for s in FALLING[name]]
    for ours, source in zip(found, FALLING[name]):
        for key in source.keys() - {"use"}:
            assert ours[key] == pytest.approx(source[key], abs=1e-4), key


def test_the_list_of_falls_has_every_baseline():
    wanted = "RCAN SRFBN DRN Pix2Pix RRDBNet DIC CBDNet HeavyRainRemoval GFC PConvUNet".split()
    assert [use.rpartition(".")[2] for use in FALLS] == wanted
    assert {RECIPES[name]["generator"]["use"] for name in FALLING} >= FALLS.keys()


@pytest.mark.parametrize(
    "name, stage, step, rate",
    [
        ("deblur_esrgan", 0, 0, 2e-4),
        ("deblur_esrgan", 0, 385_713, 2e-4 / 16),
        ("deblur_esrgan", 1, 0, 1e-4),
        ("deblur_esrgan", 1, 77_143, 1e-4 / 8),
        ("deblur_rcan", 0, 216_000, 1e-4 / 4),
        ("deblur_srgan", 1, 44_999, 1e-4),
        ("deblur_srgan", 1, 45_000, 1e-5),
        ("deblur_pix2pix", 0, 2_880_000, 2e-4),
        ("deblur_pix2pix", 0, 4_320_000, 1e-4),
        ("jdsr_gan_drn_x4", 0, 203_463, 1e-7),
        ("jdsr_gan_cbdnet_x4", 0, 101_731, 1e-3),
        ("jdsr_gan_cbdnet_x4", 0, 101_732, 5e-4),
        ("jdsr_gan_dicgan_x8", 0, 1_999, 1e-4),
        ("jdsr_gan_dicgan_x8", 1, 8_000, 5e-5),  # step 10,000 of the released code
        ("jdsr_gan_dicgan_x8", 1, 147_999, 1e-4 / 16),
        ("jdsr_gan_dicgan_x8", 2, 0, 1e-4),
        ("jdsr_gan_dicgan_x8", 2, 79_999, 1e-4 / 8),
        ("rain_removal", 0, 51_135, 2e-3 / 512),
        ("rain_removal", 1, 0, 2e-3),
    ],
)
def test_the_rate_of_a_step_is_that_of_the_source(name, stage, step, rate):
    recipe = RECIPES[name]
    own = recipe["stages"][stage]
    factor = lr_factor(schedules(recipe)[stage], step / own["steps"])
    assert own.get("lr", recipe["optimiser"]["lr"]) * factor == pytest.approx(rate, rel=1e-3)
