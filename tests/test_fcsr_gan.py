"""Cai et al. as the text has it: what maps of priors are compared with, which holes are learned from, for how long."""

import pytest
import torch
from conftest import ROOT

from facelab.base.dice import Dice
from facelab.degradations.chain import Chain
from facelab.evaluation.summary import recipe_of
from facelab.faces.drawn import draw_faces
from facelab.faces.heatmaps import heatmaps
from facelab.networks.registry import create
from facelab.publication.deviations import read_papers
from facelab.training.batches import names_in_losses
from facelab.training.objective import Objective
from facelab.training.recipes import load_degradations, load_losses, load_recipes

torch.set_num_threads(1)
CHAINS, SUMS, PAPER = load_degradations(ROOT), load_losses(ROOT), read_papers(ROOT)["fcsr_gan"]
RECIPES = {name: r for name, r in load_recipes(ROOT).items() if r["paper"] == "fcsr_gan"}
COMPLETES = {  # recipes that learn to fill holes
    name: r for name, r in RECIPES.items() if r["stages"] and any("Block" in step["use"] for step in r["degradation"])
}


@pytest.fixture(scope="module")
def faces():
    return draw_faces(range(4), size=64)


def test_a_true_face_costs_nothing_of_what_the_prior_network_sees_in_it(faces):
    """Section 4.2: the trained network's view of the true face is the truth. Labels would leave its own error there."""
    torch.manual_seed(0)
    prior = create("face_prior", width=16, depth=1, blocks=1).eval()
    x = faces["image"].clone().requires_grad_()
    given = dict(target=faces["image"], heatmaps=heatmaps(faces["landmarks_81"], 64, size=32))
    term = {**SUMS["fcsr_gan_sr"]["terms"]["face_prior"], "with": {"mu": 0, "nu": 1}}
    loss, _ = Objective({"parts": term})(dict(restored=x), given, dict(prior=prior))
    loss.backward()
    assert loss.item() == 0 and x.grad.abs().max() == 0
    other, _ = Objective({"parts": term})(dict(restored=x * 0.5), given, dict(prior=prior))
    assert other.item() > 0


def test_stage_2_needs_no_labels_of_parts():
    """CelebA has none; only the face prior network learns from them."""
    needs = {name for name, r in RECIPES.items() if "parsing" in names_in_losses({"critics": {}, **r})}
    assert needs == {"fcsr_gan_face_prior"}


def test_compounds_with_fsrnet_learn_its_own_terms_but_for_the_row_to_the_letter():
    """Released code: coarse 1, landmarks 1, parts 0.1; Eq 11 has none of them."""
    weights = {term: loss["weight"] for term, loss in SUMS["fcsr_gan_fsrnet"]["terms"].items()}
    assert weights == dict(coarse=1, landmark_maps=1, parsing_maps=0.1)
    have = {}
    for name, r in RECIPES.items():
        if r.get("generator", {}).get("sr") == "fsrnet":
            have[name] = [len(weights.keys() & stage["losses"].keys()) for stage in r["stages"]]
    letter = have.pop("fcsr_gan_pconv_fsrnet_x4_eq11")
    assert letter == [0, 0] and len(have) == 4 and set(map(tuple, have.values())) == {(3, 3)}


def test_holes_of_training_have_many_sizes_and_places_and_those_of_tests_are_among_them(faces):
    """No table or figure with a block asks for a place or size that no network has seen."""
    others = {"fcsr_gan_face_prior", "fcsr_gan_srresnet_x4", "lightcnn9"}
    assert COMPLETES.keys() == {name for name, r in RECIPES.items() if r["stages"]} - others
    x, dice = torch.zeros(400, 3, 128, 128), Dice(0, "degrade", range(400))
    seen = {}
    for name in ("fcsr_gan_x4_train", "fcsr_gan_x8_train", "fcsr_gan_full"):
        out = Chain(CHAINS[name]["steps"])(x, dice)
        box, side = out.maps["box"] / out.input.shape[-1], out.input.shape[-1]
        seen[name] = (box[:, 2:] - box[:, :2]).amin().item(), (box[:, 2:] - box[:, :2]).amax().item()
        assert seen[name] == pytest.approx((3 / 32, 24 / 32), abs=0.5 / side)
        assert box[:, :2].amin() == 0 and box[:, 2:].amax() == 1 and len(out.maps["box"].unique(dim=0)) > 200
    assert all(r["degradation"] in [CHAINS[name]["steps"] for name in seen] for r in COMPLETES.values())
    tested = {on.partition("@")[0] for entry in PAPER["evaluate"] for on in entry["on"]}
    tested |= {r["inputs"] for r in RECIPES.values() if r["kind"] == "recipes"}
    for on in sorted(tested):
        out = Chain(CHAINS[on]["steps"])(faces["image"], landmarks=faces["landmarks_68"])
        if "box" in out.maps:
            box = out.maps["box"] / out.input.shape[-1]
            assert (box[:, 2:] - box[:, :2]).amax() <= 0.77, on


def test_the_quarter_is_what_tables_5_and_6_test(faces):
    rows = {row for table in ("table_5", "table_6", "table_6_x8") for row in PAPER["tables"][table]["rows"]}
    for row in rows:
        system = PAPER["tables"]["table_5"]["rows"].get(row, {}).get("system", row)
        inputs = RECIPES[recipe_of(system, RECIPES)[0]]["inputs"]
        assert inputs in ("fcsr_gan_x4", "fcsr_gan_x8")
        hidden = 1 - Chain(CHAINS[inputs]["steps"])(faces["image"]).maps["M"].mean((1, 2, 3))
        assert hidden.tolist() == [0.25] * 4


def test_the_rate_falls_in_the_last_ten_of_sixty_epochs():
    assert {name for name, r in RECIPES.items() if r.get("schedule") == {"use": "linear", "from": 0.8333}} == set(
        COMPLETES
    )
    steps = {name: sum(stage["steps"] for stage in r["stages"]) for name, r in COMPLETES.items()}
    assert steps.pop("fcsr_gan_together_long") == 2 * 60 * 162_770 // 8
    assert set(steps.values()) == {60 * 162_770 // 8}


def test_an_sr_network_makes_as_many_maps_as_the_faces_have_landmarks():
    net = create("fcsr_gan", size=64, width=8, depth=1, landmarks=5)
    out = net.eval()(torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16))
    assert out["landmark_maps"].shape[1] == 5
    assert all(
        r["generator"]["landmarks"] == "faces.landmarks"
        for r in RECIPES.values()
        if r.get("generator", {}).get("sr") == "fsrnet"
    )
