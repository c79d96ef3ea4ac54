"Predicted labels: maps become labels, the set records it, and what would mislead is refused."

from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from torch import nn

from facelab import FacelabError
from facelab.base.params import load_params
from facelab.evaluation.labelling import complete_labels, label, labels_19
from facelab.faces.drawn import draw_set
from facelab.faces.heatmaps import heatmaps
from facelab.faces.layouts import Files
from facelab.faces.parts import five_points, parsing_11
from facelab.faces.sets import FaceSet
from facelab.losses.prior import balanced_cross_entropy
from facelab.networks.gfc import GFCParser
from facelab.networks.hourglass import PriorNet
from facelab.training.loop import train
from facelab.training.models import load_model, write_model
from facelab.training.recipes import load_recipes, resolve
from facelab.training.run import Run, take_step

torch.set_num_threads(1)
QUIET = dict(progress=False, device="cpu")


class TrueMaps(nn.Module):
    "Makes maps from the true labels of the face that it is given."

    def __init__(self, faces, half=True, lose=()):
        super().__init__()
        self.images, side, step = faces.batch(range(len(faces)), labels=())["image"], faces.size, 1 + half
        self.maps = dict(
            parsing_maps=parsing_11(faces.parsing)[..., ::step, ::step],
            landmark_maps=heatmaps(faces.landmarks, side, side // 2, exact=True, window=None),
        )
        self.maps["landmark_maps"][list(lose)] = 0

    def forward(self, x):
        which = (x[:, None] == self.images).flatten(2).all(2).int().argmax(1)
        return {k: maps[which] for k, maps in self.maps.items()}


@pytest.fixture(scope="module")
def faces():
    return draw_set(8, 0, 4, size=64)


@pytest.fixture(scope="module")
def bare(faces):
    return replace(
        faces, name="bare", parsing=None, landmarks=None, notes=[("layout", "hand-made", ""), ("parsing", "absent", "")]
    )


@pytest.fixture(scope="module")
def models(faces, tmp_path_factory):
    "Both models, trained for two steps: their form is tested, not their skill."
    folder, params = tmp_path_factory.mktemp("labelling"), load_params(ROOT)
    params["train"].update(steps=2, batch=2, width=0.125, depth=0.05, threads=1, validate=0, log_every=2, statistics=4)
    params["instead"] = {}
    for name in ("parser", "landmarker"):
        train(resolve(name, load_recipes(ROOT), params), replace(faces, name="celeb"), folder / name, progress=False)
    return folder


def message_of(call):
    with pytest.raises(FacelabError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "form", [lambda m: m, lambda m: 5 * m - 2, lambda m: 0.9 * m + 0.1 / 11], ids=["one-hot", "logits", "shares"]
)
def test_parts_survive_the_way_over_classes(faces, form):
    maps = parsing_11(faces.parsing)
    assert torch.equal(parsing_11(labels_19(form(maps))), maps) and labels_19(maps).dtype == torch.uint8
    each = torch.eye(11)[:, :, None, None]
    assert torch.equal(parsing_11(labels_19(each)), each)  # rare parts too


def test_a_network_with_true_maps_gives_the_true_labels(faces, bare):
    seen = label(
        label(bare, TrueMaps(faces, half=False), "parsing", batch=5, **QUIET),
        TrueMaps(faces),
        "landmarks",
        batch=5,
        **QUIET,
    )
    assert torch.equal(parsing_11(seen.parsing), parsing_11(faces.parsing)) and seen.parsing.dtype == torch.uint8
    inside = ((faces.landmarks > 2) & (faces.landmarks < 62)).all(2)
    assert seen.landmarks.shape == faces.landmarks.shape
    assert (seen.landmarks - faces.landmarks).abs()[inside].max() < 0.1
    assert torch.equal(seen.images, bare.images) and seen.names == bare.names and bare.parsing is None


def test_maps_of_half_size_are_enlarged(faces, bare):
    seen = label(bare, TrueMaps(faces), "parsing", **QUIET).parsing
    assert seen.shape == faces.parsing.shape and (labels_19(parsing_11(faces.parsing)) == seen).float().mean() > 0.95


def test_a_streamed_set_gets_the_same_labels(faces, bare):
    lazy = replace(bare, images=Files(lambda i: bare.images[i], (3, 64, 64), torch.arange(len(bare))))
    assert torch.equal(
        label(lazy, TrueMaps(faces), "parsing", batch=5, **QUIET).parsing,
        label(bare, TrueMaps(faces), "parsing", **QUIET).parsing,
    )


def test_name_and_notes_tell_the_origin_and_are_saved(models, bare, tmp_path):
    seen = label(label(bare, models / "parser", "parsing", **QUIET), models / "landmarker", "landmarks", **QUIET)
    assert seen.name == "bare, parsing predicted by parser, landmarks predicted by landmarker"
    assert seen.notes == [
        ("layout", "hand-made", ""),
        ("parsing", "predicted", f"by parser in {models / 'parser'}, trained on celeb"),
        ("landmarks", "predicted", f"by landmarker in {models / 'landmarker'}, trained on celeb"),
    ]
    again = FaceSet.load(seen.save(tmp_path / "a.safetensors"))
    assert (again.name, again.notes) == (seen.name, seen.notes) and torch.equal(again.landmarks, seen.landmarks)


def test_the_landmarker_of_a_folder_is_the_one_that_was_trained(models, bare):
    net = load_model(models / "landmarker")[0]
    assert isinstance(net, PriorNet)
    ours, theirs = (label(bare, model, "landmarks", **QUIET) for model in (models / "landmarker", net))
    assert torch.equal(ours.landmarks, theirs.landmarks)


def test_landmark_maps_begin_empty_and_do_not_saturate(faces):
    # A squared error behind a saturated sigmoid has no gradient: the first steps must do better than empty maps.
    params = load_params(ROOT)
    params["train"].update(steps=24, batch=4, width=0.125, depth=0.05, threads=1, validate=0)
    run = Run(resolve("landmarker", load_recipes(ROOT), params), faces.subset("train"))
    errors = [take_step(run)["points"].item() for _ in range(24)]
    empty = heatmaps(faces.landmarks, 64, 32).square().mean().item()
    assert min(errors[-4:]) < empty < errors[0] * 1.2
    assert run.bare["generator"](torch.rand(1, 3, 64, 64))["landmark_maps"].max() < 0.99


def test_a_small_part_counts_more_than_its_area():
    truth = torch.zeros(1, 2, 8, 8)
    truth[:, 0], truth[:, 0, 0, 0], truth[:, 1, 0, 0] = 1, 0, 1
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    balanced_cross_entropy(logits, truth).backward()
    small, large = logits.grad[0, 1, 0, 0].abs(), logits.grad[0, 0, 1:].abs().mean()
    assert torch.isclose(small / large, torch.tensor(63.0) ** 0.5)
    half = balanced_cross_entropy(logits.detach().bfloat16(), truth)
    assert half.dtype == torch.float32 and torch.isclose(half, torch.tensor(2.0).log())


def test_what_would_mislead_is_refused(models, faces, bare, tmp_path):
    assert "set drawn has parsing already: say replace=True" in message_of(
        lambda: label(faces, models / "parser", "parsing", **QUIET)
    )
    replaced = label(faces, TrueMaps(faces), "parsing", replace=True, **QUIET)
    assert replaced.name == "drawn, parsing predicted by TrueMaps"
    assert "no trained model in" in message_of(lambda: label(bare, tmp_path, "parsing", **QUIET))
    assert "PriorNet makes landmark_maps (81, 32, 32), parsing_maps (1, 32, 32) of a face and no parsing" in message_of(
        lambda: label(bare, models / "landmarker", "parsing", **QUIET)
    )
    assert "PriorNet makes" in message_of(
        lambda: label(bare, models / "parser", "landmarks", **QUIET)
    )  # its one idle landmark map is no landmark scheme
    assert "'depth' cannot be predicted" in message_of(lambda: label(bare, models / "parser", "depth", **QUIET))
    assert "finds not all landmarks in 1 of 12 faces of set bare (first train-000003)" in message_of(
        lambda: label(bare, TrueMaps(faces, lose=[3]), "landmarks", **QUIET)
    )
    net, recipe = load_model(models / "parser")
    write_model(
        tmp_path / "parser", {"generator": net.state_dict()}, {**recipe, "faces": "celeb, parsing predicted by parser"}
    )
    assert "learned from predicted parsing" in message_of(lambda: label(bare, tmp_path / "parser", "parsing", **QUIET))
    assert label(bare, GFCParser(8), "parsing", **QUIET).name == "bare, parsing predicted by GFCParser"


def test_parameters_decide_what_a_set_gets(models, faces, bare):
    wish = dict(landmarks="labels", parsing="labels", labeller=str(models))
    assert complete_labels(bare, wish) is bare
    assert complete_labels(faces, dict(wish, parsing="predicted", landmarks="predicted")) is faces
    both = complete_labels(bare, dict(wish, parsing="landmarks", landmarks="predicted"))
    assert both.name == "bare, landmarks predicted by landmarker, parsing from landmarks"
    assert complete_labels(bare, dict(wish, parsing="predicted")).labels == (
        "parsing",
        "identity",
        "depth",
        "foreground",
    )
    for labeller in ("nowhere", None):
        assert f"data.labeller ({labeller}) holds no landmarker: train it on a set that has landmarks" in message_of(
            lambda: complete_labels(bare, dict(wish, landmarks="predicted", labeller=labeller))
        )
    five = replace(faces, name="five", landmarks=five_points(faces.landmarks).float())
    more = complete_labels(five, dict(wish, landmarks="predicted"))
    assert more.landmarks.shape[1] == 81 and "in place of the set's own 5 points" in more.notes[-1][2]
    assert complete_labels(five, wish) is five
    assert "unknown data.landmarks 'landmarks'" in message_of(
        lambda: complete_labels(bare, dict(wish, landmarks="landmarks"))
    )
    assert "0 landmarks" in message_of(lambda: complete_labels(bare, dict(wish, parsing="landmarks")))
