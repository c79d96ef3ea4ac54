"""Liu 2023 as the thesis has it: its own eleven maps, its degradation, RMSProp that does no harm, both basic blocks."""

import pytest
import torch
from conftest import ROOT

from facelab import FacelabError
from facelab.base.images import colour_labels
from facelab.base.params import load_params, read_yaml
from facelab.degradations.chain import Chain
from facelab.evaluation.metrics import psnr
from facelab.faces.drawn import draw_faces, draw_set
from facelab.faces.parts import CLASSES_19, PARTS_THESIS, mirror, parsing_thesis, strongest_part
from facelab.networks.bicubic import Bicubic
from facelab.networks.identity_start import start_as_identity
from facelab.networks.prior_guided import BasicBlock, SRBranch
from facelab.publication.figures import overlay_parsing
from facelab.training.batches import required_labels, step_inputs
from facelab.training.models import load_model, restore
from facelab.training.recipes import load_losses, load_recipes, resolve
from facelab.training.zoo import SHIPPED

torch.set_num_threads(1)
RECIPES, SUMS = load_recipes(ROOT), load_losses(ROOT)
PAPER = read_yaml(ROOT / "papers" / "prior_guided_sr.yaml")
ROWS = ("bicubic", "srresnet", "prior_guided_sr", "prior_guided_gan")


def test_the_eleven_maps_are_classes_as_they_stand():
    labels = torch.arange(19).view(1, 1, 19)
    maps = parsing_thesis(labels)
    assert maps.shape == (1, 11, 1, 19) and maps.sum() == 11
    assert [CLASSES_19[k] for k in maps[0, :, 0].argmax(1)] == list(PARTS_THESIS)
    none = {CLASSES_19[k] for k in (maps[0, :, 0].sum(0) == 0).nonzero()[:, 0]}
    assert none == {"background", "eye_g", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"}
    assert strongest_part(maps)[0, 0].tolist() == [
        PARTS_THESIS.index(name) + 1 if name in PARTS_THESIS else 0 for name in CLASSES_19
    ]
    with pytest.raises(FacelabError, match="classes 0..18"):
        parsing_thesis(labels + 1)


def test_a_mirror_exchanges_left_and_right_of_the_maps():
    labels = draw_faces(range(3), size=64)["parsing"]
    other = {f"{a}_{part}": f"{b}_{part}" for part in ("brow", "eye", "ear") for a, b in ("lr", "rl")}
    pairs = [PARTS_THESIS.index(other.get(name, name)) for name in PARTS_THESIS]
    seen = mirror({"image": torch.zeros(3, 3, 64, 64), "parsing": labels})["parsing"]
    assert torch.equal(parsing_thesis(seen), parsing_thesis(labels).flip(-1)[:, pairs])
    assert parsing_thesis(labels)[:, -2:].sum() > 0  # drawn faces have ears


def test_the_prior_learns_the_maps_of_the_thesis():
    assert SUMS["prior_guided_content"]["terms"]["prior"]["to"] == "parsing_thesis"
    faces = draw_set(4, 0, 0, size=64)
    recipe = resolve("prior_guided_sr", RECIPES, load_params(ROOT)) | {"batch": 4}
    chain = Chain(recipe["degradation"])
    assert required_labels(faces, recipe, chain) == ("parsing",)
    given = step_inputs(faces.batch(range(4), labels=("parsing",)), recipe, chain, step=0)
    assert given["parsing_thesis"].shape == (4, 11, 64, 64) and "parsing" not in given
    assert (given["parsing_thesis"].sum(1) == 0).any()  # hair and background are in no map


def test_figure_4_1_shows_the_maps_of_the_thesis():
    views = PAPER["figures"]["figure_4_1"]["views"]
    assert [v.get("maps") for v in views] == [None, "thesis"]
    labels = draw_faces(range(2), size=64)["parsing"]
    shown = overlay_parsing(torch.zeros(2, 3, 64, 64), labels, 1, "thesis")
    assert torch.equal(shown, colour_labels(strongest_part(parsing_thesis(labels)), 12))


def test_table_4_1_is_on_the_aliased_chain_and_each_row_has_a_twin():
    assert list(PAPER["tables"]["table_4_1"]["rows"]) == list(ROWS)
    assert list(PAPER["tables"]["table_4_1_antialiased"]["rows"]) == [f"{name}_antialiased" for name in ROWS]
    learning = ("critics", "batch", "optimiser", "optimisers", "warmup", "stages")
    for name in ROWS:
        row, twin = RECIPES[name], RECIPES[f"{name}_antialiased"]
        assert row["inputs"] == "prior_guided_x8_aliased" and twin["inputs"] == "prior_guided_x8"
        assert row["degradation"] == [{**twin["degradation"][0], "antialias": False}]
        assert {k: row.get(k) for k in learning} == {k: twin.get(k) for k in learning}
        if name != "bicubic":
            assert row["generator"] == twin["generator"]
    assert [RECIPES[f"bicubic{end}"]["generator"]["antialias"] for end in ("", "_antialiased")] == [False, True]


def test_other_papers_keep_the_anti_aliased_x8():
    others = {
        n for n, r in RECIPES.items() if r["inputs"] == "prior_guided_x8_aliased" and r["paper"] != "prior_guided_sr"
    }
    assert not others
    combined = read_yaml(ROOT / "papers" / "combined.yaml")
    systems = {s for entry in combined["evaluate"] for s in entry["systems"]}
    assert not systems & set(ROWS) and {f"{n}_antialiased" for n in ROWS if n != "srresnet"} <= systems


def test_rmsprop_is_warmed_up_and_the_critic_has_adam():
    for name in ROWS[1:]:
        assert RECIPES[name]["optimiser"]["use"] == "RMSprop" and RECIPES[name]["warmup"] == 1000
    assert RECIPES["prior_guided_gan"]["optimisers"] == {"discriminator": {"use": "Adam", "lr": 0.0001}}


def test_the_perceptual_loss_has_srgans_layer():
    vgg = SUMS["prior_guided_realism"]["terms"]["vgg"]
    assert vgg["with"]["features"] == {"network": "vgg19", "layers": ["relu5_4"]}


def test_method_2_is_claimed_to_lose_psnr_and_ssim():
    says = read_yaml(ROOT / "papers" / "claims.yaml")["prior_guided_sr"]["b"]
    assert says["holds"][1] == {
        "beats": ["srresnet", "prior_guided_sr"],
        "others": ["prior_guided_gan"],
        "in": ["psnr", "ssim"],
    }


def test_batch_norm_in_a_block_wakes_it():
    """As printed a block adds under a hundredth of its stream at first, and its inner gradients are as faint."""
    torch.manual_seed(0)
    printed, norm = BasicBlock(), BasicBlock(norm=True)
    assert not norm.load_state_dict(printed.state_dict(), strict=False).unexpected_keys
    stream = torch.randn(4, 64, 16, 16)
    share = lambda block: ((block(stream) - stream).std((2, 3)).mean() / stream.std((2, 3)).mean()).item()
    assert share(printed) < 0.01 < 0.3 < share(norm)


def test_the_printed_block_has_the_weights_that_it_had():
    assert not any("norm" in name for name in BasicBlock(8).state_dict())
    assert RECIPES["prior_guided_sr_norm"]["generator"] == RECIPES["prior_guided_sr"]["generator"] | {"norm": True}
    assert "norm" not in RECIPES["prior_guided_sr"]["generator"]


@pytest.mark.parametrize("norm", [False, True])
def test_a_branch_with_or_without_norm_can_begin_as_enlargement(norm):
    torch.manual_seed(0)
    net, x = SRBranch(4, width=16, depth=2, norm=norm), draw_faces(range(2), size=32)["image"]
    start_as_identity(net)
    with torch.no_grad():
        stream = torch.randn(2, 16, 8, 8)
        assert torch.allclose(net.basic_blocks(stream), stream, atol=1e-6)
        assert (net.eval()(x) - Bicubic(4)(x)).abs().mean() < 0.1


def test_the_model_that_ships_was_trained_anti_aliased_and_restores():
    net, recipe = load_model(SHIPPED / "prior_guided_sr")
    assert recipe["degradation"] == RECIPES["prior_guided_sr_antialiased"]["degradation"]
    faces = draw_faces(range(4), size=128, seed=99)["image"]
    small = Chain(recipe["degradation"])(faces).input
    gain = psnr(restore(net, small), faces, "rgb") - psnr(Bicubic(8)(small), faces, "rgb")
    assert gain.mean() > 2, gain
