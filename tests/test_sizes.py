"""The side of the faces belongs to a chain: faces, inputs, training, restored faces, scores and figures agree on it."""

import json

import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, SMALL_RUN, copy_project, keep_some, rewrite, run, shrink

from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.base.files import sha256
from facelab.base.images import read_image, to_float, write_image
from facelab.degradations.chain import Chain
from facelab.evaluation.inputs import Inputs
from facelab.evaluation.restore import read_restored
from facelab.faces.drawn import draw_faces, draw_set
from facelab.faces.sets import FaceSet, open_faces
from facelab.fleet.runner import main
from facelab.networks.lightcnn import LightCNN9
from facelab.pipeline.sizes import TrueFaces, faces_at, more_sides, open_faces_at, side_of, sides_of
from facelab.pipeline.sources import write_sources
from facelab.training.models import load_model, write_model
from facelab.training.recipes import load_degradations

LARGE, SMALL = "prior_guided_x8_aliased", "prior_guided_x8"  # of 64 and of 32 pixels
FIGURE = {
    "title": "both sides",
    "kind": "views",
    "faces": 2,
    "views": [
        {"show": "input", "on": SMALL},
        {"show": "restored", "system": "srresnet", "on": SMALL},
        {"show": "restored", "system": "srresnet"},
        {"show": "target", "parts": "landmarks"},
    ],
}


def two_sides(project):
    "A tiny project: two chains, the second with faces twice as large, and a recipe on the second."
    shrink(project)
    path = project / "params.yaml"
    text = path.read_text().replace("  size: 128", "  size: 32").replace("paper_sizes: false", "paper_sizes: true")
    path.write_text(text)
    chains = yaml.safe_load((project / "recipes" / "degradations.yaml").read_text())["degradations"]
    chains = {"clean": chains["clean"], SMALL: chains[SMALL], LARGE: {**chains[LARGE], "size": 64}}
    rewrite(project / "recipes" / "degradations.yaml", lambda data: {"degradations": chains})
    for name in ("jdsr_gan", "recognisers", "labelling"):
        rewrite(project / "recipes" / f"{name}.yaml", lambda data: data | {"helpers": {}, "recipes": {}, "papers": {}})
    rewrite(path, lambda params: params | {"instead": {}})
    keep_some(project / "recipes" / "prior_guided_sr.yaml", "recipes", ["srresnet"])
    keep_some(project / "recipes" / "combined.yaml", "evaluated", ["prior_guided_sr"])
    for paper in ("jdsr_gan", "fcsr_gan", "sr_deblur_gan", "heavy_rain", "combined"):
        rewrite(
            project / "papers" / f"{paper}.yaml",
            lambda says: says | {"evaluate": [], "tables": {}, "figures": {}, "samples": {}},
        )
    rows = {"srresnet": {}, "small": {"system": "srresnet", "on": SMALL}}
    table = {"title": "t", "columns": {"psnr": "PSNR"}, "better": {"psnr": "higher"}, "rows": rows}
    rewrite(
        project / "papers" / "prior_guided_sr.yaml",
        lambda says: (
            says
            | {"evaluate": [{"systems": ["srresnet"], "on": [SMALL, f"{LARGE}@unseen"]}]}
            | {
                "tables": {"both": table},
                "figures": {"both": FIGURE},
                "samples": {"both": {**FIGURE, "views": FIGURE["views"][:1]}},
            }
        ),
    )
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory, warm_stages):
    "All stages of the tiny project but drawings and claims."
    project = two_sides(copy_project(tmp_path_factory.mktemp("sizes") / "project"))
    stages = ["draw", "faces", "synthesize", "samples", "train srresnet"]
    stages += [f"{stage} prior_guided_sr" for stage in ("restore", "score", "tables", "figures")]
    commands = ["sources", *(f"run {stage}" for stage in stages)]
    done = run(
        "set -e; " + "; ".join(f"python -m facelab.pipeline {c}" for c in commands), project, PYTHONPATH=str(project)
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return project


def test_the_same_faces_lie_there_at_both_sides(project):
    for folder in ("faces", "unseen"):
        small, large = (faces_at(project / "build" / folder, side) for side in (None, 64))
        assert (small.size, large.size) == (32, 64)
        assert small.names == large.names and small.split.equal(large.split) and small.identity.equal(large.identity)
        assert torch.allclose(2 * small.landmarks, large.landmarks, atol=0.01)
    with pytest.raises(FacelabError, match="no faces of 96 pixels"):
        faces_at(project / "build" / "faces", 96)


def test_inputs_are_made_from_faces_of_the_chains_side(project):
    true = TrueFaces({LARGE: 64}, project / "build")
    for on, side in ((SMALL, 4), (LARGE, 8), (f"{LARGE}@unseen", 8)):
        inputs = Inputs(project / "build" / "inputs" / on)
        own = Chain(inputs.steps)(true[on].batch([1], labels=())["image"], Dice(0, "test", [1]))
        assert inputs.names == list(true[on].names) and inputs.images([0]).shape[-1] == side
        assert torch.allclose(inputs.images([1]), own.input, atol=0.5 / 255 + 1e-6)


def test_a_recipe_learns_from_faces_of_its_chain(project):
    made = json.loads((project / "build" / "models" / "prior_guided_sr" / "srresnet" / "recipe.json").read_text())
    report = json.loads((project / "build" / "runs" / "srresnet.json").read_text())
    assert made["size"] == 64
    assert sha256(project / "build" / "faces" / "faces_64.safetensors") in json.dumps(report)


def test_scores_compare_with_true_faces_of_the_same_side(project):
    true, build = TrueFaces({LARGE: 64}, project / "build"), project / "build"
    for on, side in ((SMALL, 32), (LARGE, 64), (f"{LARGE}@unseen", 64)):
        restored = read_restored(build / "restored" / "prior_guided_sr" / on / "srresnet", true[on].names)
        assert restored.shape[-1] == side
        error = (to_float(restored) - true[on].batch(range(len(true[on])), labels=())["image"]).square().mean((1, 2, 3))
        scored = pd.read_csv(build / "scores" / "prior_guided_sr" / on / "srresnet.csv")["psnr_rgb"]
        assert scored.tolist() == pytest.approx((-10 * error.log10()).tolist(), abs=1e-3)


def test_figures_and_tables_show_both_sides(project):
    build = project / "build"
    one, figure = (build / folder / "prior_guided_sr" / "both.png" for folder in ("samples", "figures"))
    assert "32 and 64 pixels" in (build / "tables" / "prior_guided_sr" / "both.md").read_text()
    assert read_image(figure).shape[-2] > 4 * 64 and read_image(one).shape[-2] < 2 * 64


def test_a_run_of_one_side_depends_on_no_sides(project):
    sources = {p.stem: json.loads(p.read_text()) for p in (project / "build" / "sources").glob("*.json")}
    assert sources["faces"]["about"] == {"first": [64], "unseen": [64]}
    assert {name for name, s in sources.items() if "sides" in (s["about"] or ())} == {
        "synthesize",
        "samples",
        *(f"{stage}@prior_guided_sr" for stage in ("score", "tables", "figures")),
    }
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("paper_sizes: true", "paper_sizes: false"))
    try:
        write_sources(project)
        after = {p.stem: json.loads(p.read_text()) for p in (project / "build" / "sources").glob("*.json")}
    finally:
        (project / "params.yaml").write_text(text)
        write_sources(project)
    assert after["faces"]["about"] is None and after["train@srresnet"]["about"]["size"] is None
    assert not any("sides" in (s["about"] or ()) for s in after.values())


def test_a_chain_has_a_side_only_where_papers_have_their_sizes():
    data = {"paper_sizes": True, "size": 128}
    assert [side_of({"size": s}, data) for s in (256, 128, None)] == [256, None, None]
    assert side_of({"size": 256}, data | {"paper_sizes": False}) is None
    sides = sides_of(load_degradations(ROOT), data)
    assert set(sides.values()) == {256} and {"sr_deblur_gan", "sr_deblur_gan_shake"} <= sides.keys()
    assert more_sides({"a": 256, "b": 64}) == [64, 256] and more_sides({"a": 256}, ["a@unseen", "c@unseen"]) == [256]


def test_pictures_are_not_enlarged_for_a_side(tmp_path):
    for i, x in enumerate(draw_faces(range(3), size=48)["image"]):
        write_image(tmp_path / "set" / f"{i}.png", x)
    faces = open_faces(tmp_path / "set", 32)
    assert open_faces_at(tmp_path / "set", 48, faces.names).size == 48
    with pytest.raises(FacelabError, match="of 64 pixels, which .* cannot give .*: set data.paper_sizes to false"):
        open_faces_at(tmp_path / "set", 64, faces.names)
    with pytest.raises(FacelabError, match="other faces there"):
        open_faces_at(tmp_path / "set", 48, faces.names[1:])
    draw_set(2, 1, 1, size=32).save(tmp_path / "saved" / "faces.safetensors")
    with pytest.raises(FacelabError, match="holds 32-pixel faces"):
        open_faces_at(tmp_path / "saved", 64, faces.names)


def test_a_helper_sees_faces_at_the_side_that_it_learned_from(tmp_path):
    spec = {"use": "networks.lightcnn.LightCNN9", "size": 32, "width": 8, "embedding": 16}
    torch.manual_seed(0)
    net, about = LightCNN9(size=32, width=8, embedding=16), {"name": "known", "generator": spec, "critics": {}}
    for kind, size in (("helpers", 32), ("helpers", None), ("recipes", 32)):
        recipe = about | {"kind": kind, "size": size, "label": "known", "degradation": []}
        write_model(tmp_path / f"{kind}{size}", {"generator": net.state_dict()}, recipe)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    large = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    helper = load_model(tmp_path / "helpers32")[0]
    assert helper(x).equal(net.eval()(x)) and helper(large).shape == (2, 16)
    assert torch.cosine_similarity(helper(large), helper(x)).min() > 0.98
    for other in ("helpersNone", "recipes32"):
        with pytest.raises(FacelabError, match="32"):
            load_model(tmp_path / other)[0](large)


def test_the_fleet_finds_the_pack_of_the_side(tmp_path, capsys):
    "With the pack of 256 pixels beside that of 128, a row of Yun et al. is scored at 256; without it, one sentence."
    pack, params = tmp_path / "faces.safetensors", tmp_path / "small.yaml"
    draw_set(4, 1, 2, size=128).save(pack)
    params.write_text(SMALL_RUN + "data: {paper_sizes: true}\n")
    command = ["--faces", str(pack), "--out", str(tmp_path / "out"), "--params", str(params), "--restored"]
    assert main([*command, "--recipes", "deblur_bicubic"]) == 1
    assert "pack the same faces with --size 256 beside them, as" in capsys.readouterr().err
    large = draw_set(4, 1, 2, size=256)
    large.save(tmp_path / "faces_256.safetensors")
    assert main([*command, "--recipes", "deblur_bicubic", "bicubic"]) == 0
    out = tmp_path / "out"
    made = {name: next((out / "restored").rglob(f"{name}/*.png")) for name in ("deblur_bicubic", "bicubic")}
    assert {name: read_image(path).shape[-1] for name, path in made.items()} == {"deblur_bicubic": 256, "bicubic": 128}
    restored = read_restored(
        made["deblur_bicubic"].parent, FaceSet.load(tmp_path / "faces_256.safetensors").subset("test").names
    )
    error = (to_float(restored) - large.subset("test").batch(range(2), labels=())["image"]).square().mean((1, 2, 3))
    scored = pd.read_csv(out / "scores" / "sr_deblur_gan" / "sr_deblur_gan" / "deblur_bicubic.csv")["psnr_rgb"]
    assert scored.tolist() == pytest.approx((-10 * error.log10()).tolist(), abs=1e-3)
