"""Son and Jeong 2022 as recipes: one thing more a row, the printed method beside ours, the baselines' own training."""

import pytest
import torch
from conftest import ROOT

from facelab.base.params import load_params, read_yaml
from facelab.degradations.chain import Chain
from facelab.losses.pixel import differences, gradient_l1
from facelab.networks.fcg import FaceSR
from facelab.pipeline.inventory import inventory
from facelab.systems.heavy_rain import FaceEnlargement, HeavyRainFace, UnifiedFramework
from facelab.training.models import begin_with, write_model
from facelab.training.recipes import load_degradations, load_losses, load_recipes, resolve

torch.set_num_threads(1)
RECIPES, CHAINS, SUMS = load_recipes(ROOT), load_degradations(ROOT), load_losses(ROOT)
PAPER = read_yaml(ROOT / "papers" / "heavy_rain.yaml")
LADDER = ["rain_srgan", "rain_face_sr", "rain_hrrm_fpm_srgan", "heavy_rain"]
FACE = ("pixel", "vgg", "adversarial")  # Eq 25 with the global critic


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def terms(name, stage=0):
    return RECIPES[name]["stages"][stage]["losses"]


def test_from_srgan_to_the_full_method_one_thing_is_added_at_a_time():
    for name in LADDER:
        recipe = RECIPES[name]
        assert {k: terms(name)[k] for k in FACE} == {k: terms("heavy_rain")[k] for k in FACE}
        assert [(s["name"], s["steps"]) for s in recipe["stages"]] == [("joint", 90000)]
        assert recipe["stages"][0]["critics"]["critic"] == RECIPES["heavy_rain"]["stages"][0]["critics"]["critic"]
        for field in ("batch", "optimiser", "inputs"):
            assert recipe[field] == RECIPES["heavy_rain"][field], (name, field)
    added = [terms(b).keys() - terms(a).keys() for a, b in zip(LADDER, LADDER[1:])]
    rain = {"derained", "rained", "streaks", "transmission", "light"}
    assert added == [{"parsing"}, rain, {f"adversarial_{part}" for part in ("eyes", "nose", "lips")}]
    assert all(terms(a).keys() <= terms(b).keys() for a, b in zip(LADDER, LADDER[1:]))


def test_both_parsing_modules_are_trained_alone_first_and_as_long():
    alone, system = RECIPES["rain_parsing"], RECIPES["rain_parts"]
    assert RECIPES["rain_face_sr"]["begin"] == {"generator.parsing": "rain_parsing.parsing"}
    assert alone["generator"] == RECIPES["rain_face_sr"]["generator"] and alone["call"] == "analyse"
    assert alone["stages"][0]["losses"] == system["stages"][1]["losses"]
    for field in ("batch", "optimiser"):
        assert alone[field] == system[field]
    assert alone["stages"][0]["steps"] == system["stages"][1]["steps"] == 56250


def test_face_sr_begins_with_the_parsing_that_was_trained(tmp_path):
    small = dict(width=8, depth=1)
    trained, net = FaceSR(**small), FaceSR(**small)
    write_model(tmp_path / "heavy_rain" / "rain_parsing", {"generator": trained.state_dict()}, {"name": "rain_parsing"})
    begin = resolve("rain_face_sr", RECIPES, load_params(ROOT))["begin"]
    begin_with({"generator": net}, begin, tmp_path)
    x = images(2, 3, 16, 16)
    found = trained.eval().analyse(x)
    assert list(found) == ["parsing_maps"]
    assert torch.equal(net.eval().analyse(x)["parsing_maps"], found["parsing_maps"])
    assert not torch.equal(net.head[0].weight, trained.head[0].weight)  # the rest is its own
    assert torch.equal(net(x)["parsing_maps"], found["parsing_maps"])


@pytest.mark.parametrize(
    ("printed", "ours"), [("rain_parts_as_printed", "rain_parts"), ("heavy_rain_as_printed", "heavy_rain")]
)
def test_the_printed_method_differs_by_the_true_maps_alone(printed, ours):
    maps = set(SUMS["heavy_rain_maps"]["terms"])
    for a, b in zip(RECIPES[printed]["stages"], RECIPES[ours]["stages"], strict=True):
        left = {k: v for k, v in a["losses"].items() if v}
        assert left == {k: v for k, v in b["losses"].items() if k not in maps}
        assert {k: v for k, v in a.items() if k != "losses"} == {k: v for k, v in b.items() if k != "losses"}
    same = ("generator", "critics", "batch", "optimiser", "identity_start", "call", "inputs")
    assert {k: RECIPES[printed].get(k) for k in same} == {k: RECIPES[ours].get(k) for k in same}
    starts = RECIPES[ours].get("begin", {}).items()
    assert RECIPES[printed].get("begin", {}) == {k: v.replace("rain_parts", "rain_parts_as_printed") for k, v in starts}


def test_a_table_shows_what_the_true_maps_cost_the_small_face():
    assert list(PAPER["tables"]["as_printed"]["rows"]) == ["heavy_rain", "heavy_rain_as_printed"]
    assert list(PAPER["tables"]["as_printed_derained"]["rows"]) == ["heavy_rain.J", "heavy_rain_as_printed.J"]
    assert {
        "systems": ["heavy_rain", "heavy_rain_as_printed"],
        "on": ["heavy_rain_x4"],
        "output": "J",
        "truth": "J",
    } in (PAPER["evaluate"])


def test_the_unified_framework_is_the_system_in_two_steps():
    assert PAPER["architecture"]["figure_2"]["use"] == "systems.heavy_rain.UnifiedFramework"
    assert inventory(ROOT)["heavy_rain"]["Fig 2"] == "architecture/figure_2"
    torch.manual_seed(0)
    whole = HeavyRainFace(width=8, depth=1).eval()
    torch.manual_seed(0)
    steps = UnifiedFramework(width=8, depth=1).eval()
    x = images(2, 3, 16, 16)
    assert [name for name, _ in steps.named_children()] == ["undo_rain", "enlarge"]
    with torch.no_grad():
        assert torch.equal(steps(x), whole(x)["restored"])
        assert torch.equal(FaceEnlargement(whole)(x, whole.hrrm(x)["J"]), whole(x)["restored"])


def test_equation_1_is_one_model_of_three_tasks():
    x = images(1, 3, 64, 64)
    sides = {
        name.removeprefix("heavy_rain_equation_1"): Chain(CHAINS[name]["steps"])(x).input.shape[-1]
        for name in CHAINS
        if name.startswith("heavy_rain_equation_1")
    }
    assert sides == {"": 16, "_denoising": 64, "_deblurring": 64}
    assert inventory(ROOT)["heavy_rain"]["Eq 1"] == "samples/equation_1"


def test_the_gradient_loss_is_that_of_the_released_code():
    x, y = images(2, 3, 8, 9, seed=1), images(2, 3, 8, 9, seed=2)
    literal = sum((a - b).abs().mean() for a, b in zip(differences(x), differences(y)))
    assert gradient_l1(x, y) == pytest.approx(literal.item(), abs=1e-6)
    assert gradient_l1(x + 0.2, x) == pytest.approx(0, abs=1e-6)  # brightness is the squared error's part


def test_heavy_rain_removal_learns_as_its_released_code():
    recipe, refinement = RECIPES["rain_removal"], SUMS["rain_removal_refinement"]["terms"]
    assert recipe["optimiser"] == {"use": "Adam", "lr": 0.002}
    for stage, epochs in zip(recipe["stages"], (100, 76), strict=True):
        fall = stage["schedule"]
        tenth = 10 * stage["steps"] / epochs
        assert (fall["use"], fall["factor"]) == ("milestones", 0.5)
        assert fall["at"] == [round(tenth * k) for k in range(1, -(-epochs // 10))]
    assert {name: loss.get("weight", 1) for name, loss in refinement.items()} == dict(
        pixel=1, gradients=1, vgg=2, adversarial=0.01
    )
    assert refinement["vgg"]["with"]["features"] == dict(network="vgg16", layers=["relu2_1"], normalise="none", scale=1)
