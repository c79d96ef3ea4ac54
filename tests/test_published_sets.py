"CelebA, CelebAMask-HQ and Helen as they are published: what each gives, and what the documented setting adds."

import json
import shutil

import pytest
import torch
import yaml
from conftest import ROOT
from published import celeba, celebamask, drawn, helen

from facelab import FacelabError
from facelab.apps.commands import main
from facelab.base.params import load_params
from facelab.evaluation.judges import predict_labels
from facelab.evaluation.labelling import complete_labels, labels_to_make, open_labelled
from facelab.faces import layouts
from facelab.faces.parts import five_points, parsing_11
from facelab.faces.sets import FaceSet, open_faces, test_part as part_for_tests
from facelab.pipeline.rows import check_labels, lacking
from facelab.training.models import load_model
from facelab.training.recipes import load_recipes

torch.set_num_threads(1)
SMALL = dict(
    train=dict(
        steps=12, batch=2, width=0.125, depth=0.05, threads=1, validate=0, log_every=2, checkpoint_seconds=0, warmup=1
    ),
    instead={},
)
MAKERS = dict(celeba=celeba, celebamask=celebamask, helen=helen)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    "The three sets, as published, and the drawn faces that they show."
    folder = tmp_path_factory.mktemp("published")
    for name, make in MAKERS.items():
        make(folder / name, 10)
    return folder


def small(folder, **data):
    "A file of parameters: few steps of small networks, and this section `data`."
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL | dict(data=data)))
    return str(folder / "small.yaml")


@pytest.fixture(scope="module")
def labeller(sets):
    "As the guide says: the parser learns on Helen, the landmarker on drawn faces, each with one command."
    drawn(10, 64).save(sets / "drawn" / "faces.safetensors")
    common = ["--out", str(sets / "labeller"), "--params", small(sets)]
    assert main(["train", "parser", "--faces", str(sets / "helen"), "--size", "64", *common]) == 0
    shutil.rmtree(sets / "labeller" / "faces")
    assert main(["train", "landmarker", "--faces", str(sets / "drawn"), *common]) == 0
    return sets / "labeller"


def wish(labeller=None, **more):
    "The section `data` of the profile `paper`, at 64 pixels."
    data = yaml.safe_load((ROOT / "profiles" / "paper.yaml").read_text())["data"]
    paper = load_params(ROOT)["data"] | data
    return paper | dict(size=64, split="set", labeller=labeller and str(labeller)) | more


def notes(faces, what):
    return [" ".join(row[1:]) for row in faces.notes if row[0] == what]


def test_each_set_opens_with_what_it_publishes(sets):
    truth = drawn(10, 128)
    faces = {name: open_faces(sets / name, 128) for name in MAKERS}
    labels = dict(celeba=("landmarks", "identity"), celebamask=("parsing", "identity"), helen=("landmarks", "parsing"))
    assert {name: some.labels for name, some in faces.items()} == labels
    assert faces["celeba"].split.equal(truth.split) and faces["celebamask"].split.equal(truth.split)
    assert faces["helen"].counts == dict(train=6, val=0, test=4)  # tuning and testing
    for name in ("celeba", "celebamask"):
        assert faces[name].identity.equal(truth.identity + 1)
    for name in ("celeba", "helen"):  # the same faces at the same place, whatever they were published as
        error = five_points(faces[name].landmarks) - five_points(truth.landmarks)
        assert error[:, :2].norm(dim=2).mean() < 3, name
        assert (faces[name].images[:].float() - truth.images.float()).abs().mean() < 16, name
    parts = [parsing_11(some.parsing[:]) for some in (truth, faces["celebamask"], faces["helen"])]
    for maps, least in ((parts[1], 0.99), (parts[2], 0.9)):
        assert (maps.argmax(1) == parts[0].argmax(1)).float().mean() > least
    assert "of another cut" in notes(faces["celebamask"], "landmarks")[0]


@pytest.mark.parametrize("name", MAKERS)
def test_the_documented_setting_completes_each_set(sets, labeller, name):
    published, faces = open_faces(sets / name, 64), open_labelled(sets / name, wish(labeller))
    assert faces.landmarks.shape[1] == (194 if name == "helen" else 81)
    assert {"landmarks", "parsing", *published.labels} == set(faces.labels)
    assert faces.split.equal(published.split) and faces.images[:].equal(published.images[:])
    assert labels_to_make(faces, wish(labeller)) == [] and labels_to_make(published, wish(parsing="labels")) == (
        [] if name == "helen" else ["landmarks"]
    )
    if name == "celeba":
        assert "in place of the set's own 5 points" in notes(faces, "landmarks")[0]
        assert faces.name == "celeba, landmarks predicted by landmarker, parsing predicted by parser"
    else:
        assert "predicted" not in notes(faces, "parsing")[0]


def test_predicted_landmarks_are_the_landmarkers(sets, labeller):
    faces = open_labelled(sets / "celeba", wish(labeller, parsing="labels"))
    assert faces.labels == ("landmarks", "identity")
    net, recipe = load_model(labeller / "helpers" / "labelling" / "landmarker")
    with torch.no_grad():
        own = predict_labels(net, faces.batch(range(10), labels=())["image"], "landmarks", recipe.get("call"))
    assert torch.allclose(faces.landmarks, own, atol=1e-3)


def test_a_landmarker_of_five_points_cannot_take_the_place_of_five(sets, labeller, tmp_path):
    five = drawn(10, 64)
    five.landmarks = five_points(five.landmarks).float()
    five.save(tmp_path / "faces.safetensors")
    common = ["--out", str(tmp_path / "few"), "--params", small(tmp_path)]
    assert main(["train", "landmarker", "--faces", str(tmp_path), *common]) == 0
    with pytest.raises(FacelabError, match="has 5 landmarks a face, and the landmarker in .* makes 5: train one"):
        open_labelled(sets / "celeba", wish(tmp_path / "few"))


def test_without_a_labeller_the_command_is_told(sets):
    for folder in (None, "nowhere"):
        with pytest.raises(FacelabError, match="facelab train landmarker --faces FOLDER --out data/labeller"):
            open_labelled(sets / "celeba", wish(folder))


@pytest.mark.parametrize("name", MAKERS)
def test_a_table_of_landmarks_serves_every_layout(sets, tmp_path, name):
    folder = shutil.copytree(sets / name, tmp_path / name)
    five = open_faces(folder, 128).landmarks
    files = layouts.survey(folder).files
    points = drawn(10, 160).landmarks[:, :68].flatten(1).tolist()
    rows = [f.name + "".join(f",{v:.1f}" for v in p) for f, p in zip(files, points)]
    (folder / "landmarks_68.csv").write_text("\n".join(["file", *rows]))
    assert open_faces(folder, 32).landmarks.shape == (10, 68, 2) and (five is None or five.shape[1] in (5, 194))


def test_celebamask_without_the_mapping_or_the_lists_has_no_identities(tmp_path):
    faces = open_faces(celebamask(tmp_path / "hq", 5, lists=False), 32)
    assert faces.labels == ("parsing",)
    assert "put CelebA-HQ-to-CelebA-mapping.txt and identity_CelebA.txt here" in faces._repr_markdown_()
    assert "ours, by hash" in notes(faces, "split")[0] and len(part_for_tests(faces)) == 5
    (tmp_path / "hq" / "identity_CelebA.txt").write_text("000001.jpg 7\n")
    with pytest.raises(FacelabError, match="0.jpg has no entry in .*mapping.txt and .*identity_CelebA.txt"):
        open_faces(tmp_path / "hq", 32)


def test_helen_with_labels_alone_is_aligned_by_them(tmp_path):
    faces = open_faces(helen(tmp_path / "helen", 10, annotation=False), 128)
    assert faces.labels == ("parsing",) and len(part_for_tests(faces)) == 4
    assert (faces.images[:].float() - drawn(10, 128).images.float()).abs().mean() < 20


def test_a_papers_split_takes_the_first_faces(sets, monkeypatch):
    monkeypatch.setitem(layouts.PAPER_SPLITS, "rain", (5, 2, 1))
    faces, whole = open_faces(sets / "celebamask", 32, split="rain"), open_faces(sets / "celebamask", 32)
    assert faces.counts == dict(train=5, val=2, test=1) and faces.names == [f"{i}.jpg" for i in range(8)]
    for what in ("images", "parsing"):
        assert getattr(faces, what)[:].equal(getattr(whole, what)[:8])
    assert faces.identity.equal(whole.identity[:8]) and "counts of 'rain'" in notes(faces, "split")[0]
    assert open_faces(sets / "celeba", 32, split="rain").counts == dict(train=6, val=2, test=2)  # it has its own
    with pytest.raises(FacelabError, match="'thesis' takes 28,000 . 1,000 . 1,000 faces, but set celebamask has 10"):
        open_faces(sets / "celebamask", 32, split="thesis")
    with pytest.raises(FacelabError, match="unknown split 'liu': choose set, thesis, yun, rain"):
        open_faces(sets / "celebamask", 32, split="liu")


def test_the_papers_counts():
    papers = dict(prior_guided_sr="thesis", sr_deblur_gan="yun", heavy_rain="rain")
    counts = {paper: layouts.PAPER_SPLITS[name] for paper, name in papers.items()}
    assert counts["prior_guided_sr"][0] == 28000 and counts["prior_guided_sr"][2] == 1000
    assert counts["sr_deblur_gan"] == (28800, 0, 1200) and counts["heavy_rain"] == (18000, 1800, 100)
    assert all(sum(some) <= 30000 for some in counts.values())


# ------------------------------------------------------------------ rows


def test_what_recipes_ask_for_is_known_before_training():
    recipes, params = load_recipes(ROOT), load_params(ROOT)
    every = {"landmarks", "parsing", "identity"}
    assert not lacking(recipes, recipes, params, every)
    without = {label: lacking(recipes, recipes, params, every - {label}) for label in every}
    assert without["identity"]["jdsr_gan_x4"] == ("identity", "jdsr_identity")
    assert without["identity"]["lightcnn9"] == ("identity", None) and "srresnet" not in without["identity"]
    assert without["parsing"]["prior_guided_sr"] == ("parsing", None)
    assert without["landmarks"]["cbd_drn_x4"][0] == "landmarks"


def test_make_repro_says_first_which_rows_cannot_be_made(sets, labeller, tmp_path, capsys):
    recipes, params = load_recipes(ROOT), load_params(ROOT)
    (tmp_path / "data").mkdir()
    params["data"] = wish(labeller, source="real")
    (tmp_path / "data" / "real").symlink_to(sets / "helen")
    check_labels(tmp_path, params, recipes)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "data/real lacks identity, so " in said[0] and "use drawn faces, CelebA, or" in said[0]
    (tmp_path / "data" / "real").unlink()
    (tmp_path / "data" / "real").symlink_to(sets / "celeba")
    check_labels(tmp_path, params, recipes)
    assert not capsys.readouterr().err
    params["data"] = wish(None, source="real")
    with pytest.raises(FacelabError, match="data.labeller .None. holds no landmarker: train it"):
        check_labels(tmp_path, params, recipes)
    params["data"] = wish(None, source="real", parsing="labels", landmarks="labels")
    check_labels(tmp_path, params, recipes)
    assert "lacks parsing, so " in capsys.readouterr().err


def test_a_row_without_its_labels_is_refused_before_anything_trains(sets, labeller, tmp_path, capsys):
    words = ["train", "jdsr_gan_x4", "bicubic", "--faces", str(sets / "helen"), "--size", "64"]
    assert main([*words, "--out", str(tmp_path), "--params", small(tmp_path)]) == 1
    wrong = capsys.readouterr().err.splitlines()
    failed = [line for line in wrong if line.startswith("failed")]
    assert failed == [
        "failed: jdsr_gan_x4: jdsr_gan_x4 needs jdsr_identity, which needs identity, which set helen lacks: use drawn"
        " faces, CelebA, or CelebAMask-HQ with CelebA-HQ-to-CelebA-mapping.txt and identity_CelebA.txt"
    ]
    assert not (tmp_path / "helpers").exists() and (tmp_path / "models/prior_guided_sr/bicubic").is_dir()


def test_the_command_line_completes_labels_as_the_pipeline(sets, labeller, tmp_path):
    out, setting = tmp_path / "out", dict(parsing="predicted", landmarks="predicted", labeller=str(labeller))
    words = ["train", "bicubic", "--faces", str(sets / "celeba"), "--size", "64", "--out", str(out), "--params"]
    assert main([*words, small(tmp_path)]) == 0
    assert FaceSet.load(out / "faces/faces.safetensors").labels == ("landmarks", "identity")
    assert main([*words, small(tmp_path, **setting)]) == 0
    packed = FaceSet.load(out / "faces/faces.safetensors")
    piped = open_labelled(sets / "celeba", wish(labeller))
    assert packed.name == piped.name and packed.parsing.equal(piped.parsing)
    assert packed.landmarks.equal(piped.landmarks) and packed.landmarks.shape[1] == 81
    before = (out / "faces/faces.safetensors").stat().st_mtime_ns
    assert main([*words, small(tmp_path, **setting)]) == 0
    assert (out / "faces/faces.safetensors").stat().st_mtime_ns == before


def test_a_pack_that_lacks_labels_is_completed_in_out_and_left_as_it_is(sets, labeller, tmp_path):
    given = open_faces(sets / "celeba", 64).save(tmp_path / "given" / "faces.safetensors")
    whole, words = given.read_bytes(), ["train", "bicubic", "--faces", str(given), "--out", str(tmp_path / "out")]
    assert main([*words, "--params", small(tmp_path)]) == 0 and not (tmp_path / "out/faces").exists()
    setting = dict(landmarks="predicted", labeller=str(labeller))
    assert main([*words, "--params", small(tmp_path, **setting)]) == 0
    assert FaceSet.load(tmp_path / "out/faces/faces.safetensors").landmarks.shape[1] == 81
    assert given.read_bytes() == whole
    report = json.loads((tmp_path / "out/runs/bicubic.json").read_text())
    assert report["faces_sha256"] and "landmarks predicted" in complete_labels(FaceSet.load(given), wish(labeller)).name
