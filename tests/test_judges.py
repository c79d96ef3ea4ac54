"Judges: known errors by hand, the protocol of recognition, and that nobody judges under another's name."

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from facelab import FacelabError
from facelab.base.names import build
from facelab.base.weights import Unavailable
from facelab.degradations.resample import resize
from facelab.evaluation import judges as module
from facelab.evaluation.judges import Judges, hidden_error, landmark_error, nearest, parsing_error
from facelab.evaluation.labelling import predict_labels
from facelab.faces.drawn import draw_set
from facelab.faces.parts import five_points
from facelab.losses.features import PartsNet
from facelab.networks import inception_resnet
from facelab.networks.inception_resnet import VGGFACE2, InceptionResnetV1
from facelab.networks.mobilefacenet import MobileFaceNet, crops
from facelab.training.models import write_model, write_tensors

torch.set_num_threads(1)
SPECS = {
    "recognisers/lightcnn9_rgb": dict(
        use="networks.lightcnn.LightCNN9", size=64, width=8, channels=3, embedding=16, identities=5
    ),
    "recognisers/inception_resnet_v1": dict(
        use="networks.inception_resnet.InceptionResnetV1", width=8, depth=1, embedding=16, identities=5
    ),
    "labelling/parser": dict(use="networks.hourglass.PriorNet", landmarks=1, parts=11, width=8, depth=1),
    "labelling/landmarker": dict(use="networks.hourglass.PriorNet", landmarks=81, parts=1, width=8, depth=1),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run's folder with small judges of random weights."
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    for address, spec in SPECS.items():
        recipe = dict(name=address.split("/")[1], generator=spec, critics={}, faces="drawn")
        write_model(folder / "helpers" / address, {"generator": build(spec).state_dict()}, recipe)
    write_tensors(folder / "features" / "generator.safetensors", PartsNet(4).state_dict())
    return folder


@pytest.fixture
def judges(run, monkeypatch, tmp_path):
    monkeypatch.setenv("FACELAB_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return Judges(run / "helpers", run / "features")


@pytest.fixture(scope="module")
def batch():
    faces = draw_set(0, 0, 6, size=96)
    return replace(faces, identity=torch.tensor([0, 0, 1, 1, 2, 2])).batch(range(6))


@pytest.fixture(scope="module")
def restored(batch):
    return resize(resize(batch["image"], 24), 96).clamp(0, 1)


def test_every_column_has_a_number_and_a_judge(judges, batch, restored):
    scores = judges.judge(restored, batch["image"], batch, torch.ones(6, 1, 24, 24)) | judges.recognise(
        restored, batch["image"], batch["identity"]
    )
    report = json.loads(json.dumps(judges.report()))
    assert set(scores) == set(report)
    for column, values in scores.items():
        assert len(values) == 6 and all(isinstance(x, float) for x in values), column
        assert report[column]["by"] and report[column]["missing"] == "", column
    assert report["identity"]["by"] == "LightCNN9 (helper lightcnn9_rgb, trained by this run on drawn)"
    assert "InceptionResnetV1" in report["nearest_right"]["by"]


def test_batches_and_single_faces_agree(judges, batch, restored):
    hidden = torch.ones(6, 1, 96, 96)
    whole = judges.judge(restored, batch["image"], batch, hidden)
    for i in range(6):
        single = {k: v[i : i + 1] for k, v in batch.items()}
        one = judges.judge(restored[i : i + 1], single["image"], single, hidden[:1])
        for column, values in one.items():
            assert values == pytest.approx(whole[column][i : i + 1], abs=1e-4), column
    embedded = judges.embed(restored.split(4))
    assert torch.allclose(embedded, judges.embed(restored), atol=1e-5) and embedded.device.type == "cpu"


def test_each_judge_is_the_network_in_its_folder(judges, batch, restored):
    scores = judges.judge(restored, batch["image"], batch)
    network = lambda column: judges.open_judge(column)[0]
    points = predict_labels(network("landmark_error"), restored, "landmarks")
    assert scores["landmark_error"] == pytest.approx(landmark_error(points, batch["landmarks"]).tolist(), abs=1e-5)
    parsing = predict_labels(network("parsing_error"), restored, "parsing")
    assert scores["parsing_error"] == pytest.approx(parsing_error(parsing, batch["parsing"]).tolist(), abs=1e-6)
    light = network("identity")
    a, b = (light(resize(x, 64).clamp(0, 1)) for x in (restored, batch["image"]))  # it is built for 64 pixels
    assert scores["identity"] == pytest.approx(F.cosine_similarity(a, b).tolist(), abs=1e-5)
    assert not any(p.requires_grad for judge in judges.opened.values() for p in judge[0].parameters())


def test_the_truth_is_perfect(judges, batch):
    x = batch["image"]
    scores = judges.judge(x, x, batch, torch.ones(6, 1, 96, 96)) | judges.recognise(x, x, batch["identity"])
    for column, value in dict(vgg_distance=0, identity=1, hidden_error=0, nearest_l1=0, nearest_right=1).items():
        assert scores[column] == pytest.approx([value] * 6, abs=1e-5), column


def test_nothing_stands_in_for_what_is_missing(judges, batch, restored, tmp_path):
    nobody = Judges(tmp_path, tmp_path)
    assert set(nobody.judge(restored, batch["image"], batch).values()) == {None}
    assert nobody.recognise(restored, batch["image"], batch["identity"]) == dict(nearest_l1=None, nearest_right=None)
    report = nobody.report()
    assert all(r["missing"] and "\n" not in r["missing"] for r in report.values())
    assert "recognisers/lightcnn9_rgb" in report["identity"]["missing"]
    assert "inception_resnet_v1" in report["nearest_l1"]["missing"]
    scores = judges.judge(restored, batch["image"], {"landmarks": None})
    assert {c for c, v in scores.items() if v is None} == {"landmark_error", "parsing_error", "hidden_error"}
    assert judges.recognise(restored, batch["image"])["nearest_right"] is None
    missing = {c: r["missing"] for c, r in judges.report().items() if r["missing"]}
    assert "no landmarks" in missing["landmark_error"]
    assert "no parsing" in missing["parsing_error"]
    assert "no identity" in missing["nearest_right"]
    assert "nearest_l1" not in missing
    with pytest.raises(Unavailable, match="inception_resnet_v1"):
        nobody.embed(restored)


def test_other_landmarks_than_the_landmarkers_are_refused(judges, batch, restored):
    scores = judges.judge(restored, batch["image"], {"landmarks": five_points(batch["landmarks"])})
    assert scores["landmark_error"] is None
    assert "sees 81 points but the face set has 5" in judges.report()["landmark_error"]["missing"]


def test_a_damaged_judge_is_an_error_not_a_gap(run, batch, restored, tmp_path):
    import shutil

    shutil.copytree(run / "helpers", tmp_path / "helpers")
    (tmp_path / "helpers/labelling/parser/generator.safetensors").write_bytes(b"half")
    with pytest.raises(FacelabError, match="damaged"):
        Judges(tmp_path / "helpers", run / "features", folder=tmp_path).judge(restored, batch["image"], batch)


def test_mobilefacenet_judges_where_its_file_is(judges, batch, restored, tmp_path):
    torch.manual_seed(1)
    net = MobileFaceNet().eval()
    write_tensors(tmp_path / module.MOBILEFACENET, net.state_dict())
    got = judges.judge(restored, batch["image"], batch)["identity"]
    with torch.no_grad():
        wanted = (
            net.embed(crops(restored, batch["landmarks"])) * net.embed(crops(batch["image"], batch["landmarks"]))
        ).sum(1)
    assert got == pytest.approx(wanted.tolist(), abs=1e-5)
    assert judges.report()["identity"]["by"] == "MobileFaceNet (file mobilefacenet.safetensors)"
    assert judges.judge(restored, batch["image"], {})["identity"] is None  # it cannot crop, and nobody takes its place


def test_the_papers_recogniser_searches_where_its_file_is(judges, batch, restored, tmp_path, monkeypatch):
    monkeypatch.setattr(inception_resnet, "InceptionResnetV1", partial(InceptionResnetV1, width=4, depth=1))
    torch.manual_seed(1)
    net = inception_resnet.InceptionResnetV1(identities=8631).eval()
    torch.save(net.state_dict(), tmp_path / VGGFACE2)
    got = judges.recognise(restored, batch["image"], batch["identity"])
    with torch.no_grad():
        probes, gallery = (net.embed(resize(x, 160).clamp(0, 1)) for x in (restored, batch["image"]))
    wanted = nearest(probes, gallery, batch["identity"])
    assert got["nearest_l1"] == pytest.approx(wanted[0].tolist(), abs=1e-5)
    assert got["nearest_right"] == wanted[1].tolist()
    assert judges.report()["nearest_l1"]["by"] == "InceptionResnetV1 (file 20180402-114759-vggface2.pt)"


def test_features_of_the_parameters(judges, run, batch, restored):
    section = dict(
        source="trained",
        network="parts",
        layers=["stage1", "stage3"],
        file=str(run / "features/generator.safetensors"),
        scale=2.0,
    )
    other = Judges(run / "helpers", section)
    scores = other.judge(restored, batch["image"])["vgg_distance"]
    net = other.opened["vgg_distance"][0].network
    a, b = net.features(restored), net.features(batch["image"])
    assert scores == pytest.approx(
        sum(((a[k] - b[k]) / 2).square().mean((1, 2, 3)) for k in ("stage1", "stage3")).tolist(), rel=1e-4
    )
    assert "stage 1, stage 3" in other.report()["vgg_distance"]["by"]


# ---- by hand


def test_recognition_is_the_loop_of_its_definition():
    z, people = torch.randn(2, 23, 7, generator=torch.Generator().manual_seed(0)), torch.arange(23) // 3
    share = lambda v: v / v.abs().sum()
    for own in (True, False):
        l1, right = nearest(z[0], z[1], people, own, batch=5)
        for i in range(23):
            d = [(share(z[0, i]) - share(z[1, j])).abs().sum().item() for j in range(23)]
            if not own:
                d[i] = float("inf")
            assert l1[i].item() == pytest.approx(min(d), abs=1e-6)
            assert right[i] == (people[d.index(min(d))] == people[i])
    assert nearest(z[0], z[1])[1] is None
    with pytest.raises(FacelabError, match="as many restored as true"):
        nearest(z[0, :3], z[1])


def test_iou_of_known_parts():
    true = torch.zeros(1, 8, 8, dtype=torch.uint8)
    true[:, :, 4:] = 1  # half face, half background
    found = true.clone()
    found[:, :, 6:] = 2  # a nose where face is: 16 of 32 left
    assert parsing_error(found, true).item() == pytest.approx(1 - (1 + 0.5) / 2)
    assert parsing_error(true, found).item() == pytest.approx(1 - (1 + 0.5 + 0) / 3)


def test_the_hidden_part_alone_counts():
    x, hidden = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 4, 4)
    hidden[0, :, 1:3, 1:3] = 1
    y = x + F.interpolate(hidden, 8) * 10 / 255
    assert hidden_error(y, x, hidden)[0] == pytest.approx(10, abs=1e-4)
    assert hidden_error(x, x + 0.5 - 0.5 * F.interpolate(hidden, 8), hidden)[0] == 0
    assert hidden_error(y, x, hidden)[1].isnan()


def test_faces_without_a_number_are_none(judges, batch, restored):
    hidden = torch.ones(6, 1, 96, 96)
    hidden[2] = 0
    scores = judges.judge(restored, batch["image"], {}, hidden)["hidden_error"]
    assert scores[2] is None and all(isinstance(v, float) for i, v in enumerate(scores) if i != 2)
    with pytest.raises(FacelabError, match="one shape"):
        judges.judge(restored, batch["image"][..., :48], batch)
