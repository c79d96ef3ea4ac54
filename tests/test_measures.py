"""Measures: one record each; one that is added in one place appears everywhere; names that do not exist are refused."""

import ast
import json
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
import torch
from conftest import ENV, ROOT

from facelab import FacelabError
from facelab.base.names import build
from facelab.base.weights import Unavailable
from facelab.evaluation import measures as module
from facelab.evaluation.inputs import write_inputs
from facelab.evaluation.judges import Judges
from facelab.evaluation.measures import axis_text, measure, measure_in, measure_of, measures
from facelab.evaluation.metrics import read_scores, score, summarise, write_scores
from facelab.evaluation.restore import Restoration, update_restored
from facelab.evaluation.scores import score_all
from facelab.evaluation.set_metrics import set_metrics
from facelab.evaluation.summary import face_values, judge_of, read_judges, read_paper_scores, read_set_scores, summary
from facelab.faces.drawn import draw_set
from facelab.training.models import write_model

torch.set_num_threads(1)
NEEDS = {"face": ("", "judges", "gallery"), "set": ("", "inception", "face")}

MODULES = ("metrics", "judges", "set_metrics", "identification")  # that register measures


@pytest.fixture
def new_measure(monkeypatch):
    "The decorator, for measures that are forgotten after the test."
    measures()  # all modules are imported
    monkeypatch.setattr(module, "_MEASURES", dict(module._MEASURES))
    return measure


def registrations():
    "(module, name of the measure) of every call of the decorator in the package."
    for path in sorted((ROOT / "facelab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "measure":
                if isinstance(node.args[0], ast.Constant):  # others call a function of their own by this name
                    yield path.stem, node.args[0].value


# ---- the records


def test_every_measure_is_registered_once_in_a_module_that_is_imported():
    count = Counter(name for _, name in registrations())
    assert set(count) == set(measures())
    assert [name for name, n in count.items() if n > 1] == []
    assert {place for place, _ in registrations()} == set(MODULES)


@pytest.mark.parametrize("name", measures())
def test_a_record_has_what_tables_and_charts_need(name):
    m = measures()[name]
    assert m.name == name and m.label and 0 <= m.digits <= m.stored
    assert m.better == ("higher" if m.higher else "lower")
    assert m.needs in NEEDS[m.of]
    assert ("{colour}" in m.axis) == m.conventions
    if m.of == "set":  # it has no interval over faces, so no chart
        assert m.axis == "" and not m.conventions and not m.threshold
    elif name != "rank":  # which has a chart of its own
        assert m.axis
    assert all(column in measures() for column in m.columns)


def test_the_order_does_not_depend_on_who_is_imported_first():
    code = "from facelab.evaluation import set_metrics, measures; print(*measures.measures())"
    fresh = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENV, capture_output=True, text=True, check=True)
    assert fresh.stdout.split() == list(measures())
    assert list(measures(of="set")) == ["fid", "kid", "frechet_face", "diversity"]  # the columns of sets.csv
    assert list(measures(needs="judges")) == [
        "vgg_distance",
        "identity",
        "landmark_error",
        "parsing_error",
        "hidden_error",
    ]


# ---- names


@pytest.mark.parametrize(
    "name, says",
    [
        ("psrn", "unknown measure 'psrn': did you mean 'psnr'?"),
        ("psnr_rgb", "unknown measure 'psnr_rgb'"),  # a column, not a measure
        ("recognized_0.6", "unknown measure 'recognized_0.6'"),
        ("recognised_high", "unknown measure 'recognised_high'"),
        ("psnr_0.6", "unknown measure 'psnr_0.6'"),  # no threshold makes sense here
        ("recognised", "'recognised' lacks its threshold"),
        ("rank", "'rank' lacks its threshold"),
    ],
)
def test_a_name_that_is_no_measure_is_refused(name, says):
    for use in (measure_of, axis_text):
        with pytest.raises(FacelabError, match=says):
            use(name)


def test_a_threshold_stands_in_the_label():
    assert measure_of("recognised_0.6").label == "recognised 0.6"
    assert measure_of("rank_5").label == "rank 5"
    assert measure_of("recognised_0.6").digits == measures()["recognised"].digits


def test_a_threshold_decides_who_is_recognised():
    scores = pd.DataFrame(
        dict(image=list("dcba"), nearest_l1=[0.5, 0.7, 0.5, None], nearest_right=[1.0, 1.0, 0.0, None])
    )
    found = face_values(scores, "recognised_0.6", "rgb")
    assert list(found.index) == list("abcd") and found.isna().tolist() == [True, False, False, False]
    assert found.dropna().tolist() == [0, 0, 100]
    assert face_values(scores, "recognised_0.8", "rgb").dropna().tolist() == [0, 100, 100]


@pytest.mark.parametrize(
    "column, name",
    [("psnr_rgb", "psnr"), ("ssim_y_border8", "ssim"), ("lpips_alex", "lpips_alex"), ("kid", "kid")],
)
def test_a_column_belongs_to_its_measure(column, name):
    assert measure_in(column).name == name


@pytest.mark.parametrize("column", ["image", "lpips_rgb", "psnrrgb", "identity_rgb"])
def test_other_columns_belong_to_none(column):
    assert measure_in(column) is None


# ---- one that is added appears everywhere


def test_a_new_column_of_the_judges(new_measure, tmp_path):
    @new_measure("too_red", "redness", 1, False, axis="too much red (grey levels)", needs="judges", by="arithmetic")
    def too_red(judges, restored, target, labels, hidden):
        return 255 * (restored - target)[:, 0].mean((1, 2))

    judges, true = Judges(tmp_path, tmp_path, folder=tmp_path), torch.full((3, 3, 32, 32), 0.5)
    red = true.clone()
    red[:, 0] += 10 / 255
    assert judges.judge(red, true)["too_red"] == pytest.approx([10] * 3, abs=1e-3)
    assert judges.report()["too_red"] == dict(by="arithmetic", missing="")
    assert (measure_of("too_red").label, measure_of("too_red").digits) == ("redness", 1)
    assert axis_text("too_red") == "too much red (grey levels), lower is better"
    rows = [dict(system="s", image=str(i), too_red=10.0 + i) for i in range(3)]
    write_scores(tmp_path / "s.csv", rows)
    assert face_values(read_scores(tmp_path / "s.csv"), "too_red", "rgb").tolist() == [10, 11, 12]


def test_a_new_column_without_its_judge_says_why(new_measure, tmp_path):
    @new_measure("beauty", "beauty", 2, True, axis="beauty", needs="judges")
    def beauty(judges, restored, target, labels, hidden):
        raise Unavailable("it lies in the eye of the beholder")

    judges = Judges(tmp_path, tmp_path, folder=tmp_path)
    assert judges.judge(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))["beauty"] is None
    assert judges.report()["beauty"] == dict(by="", missing="it lies in the eye of the beholder")


def test_a_new_column_of_recognition(new_measure, tmp_path):
    @new_measure("nearest_twice", "nearest, twice", 2, False, axis="twice the distance", needs="gallery")
    def nearest_twice(search):
        return 2 * search.nearest[0]

    found = Judges(tmp_path, tmp_path).recognise(torch.eye(3), torch.eye(3).flip(0), torch.arange(3), own=False)
    assert found["nearest_twice"] == pytest.approx([2 * x for x in found["nearest_l1"]])


def test_a_new_measure_with_conventions(new_measure, tmp_path):
    @new_measure("most_off", "largest error", 0, False, axis="largest error on {colour}", conventions=True, stored=1)
    def most_off(both, c):
        return both[1].abs().amax((1, 2, 3)).double()

    true = torch.full((2, 3, 32, 32), 100 / 255)
    rows = score(true + 20 / 255, true, ["a", "b"], "s", lpips=False)
    assert [r["most_off_rgb"] for r in rows] == pytest.approx([20, 20])
    assert "most_off_y" in rows[0] and axis_text("most_off", "y") == "largest error on Y, lower is better"
    write_scores(tmp_path / "s.csv", rows)
    assert ",20.0," in (tmp_path / "s.csv").read_text()
    assert summarise(rows, ["most_off_rgb"])["most_off_rgb"][0] == pytest.approx(20)
    assert face_values(read_scores(tmp_path / "s.csv"), "most_off", "rgb").tolist() == [20, 20]


def test_a_new_measure_of_sets(new_measure, tmp_path):
    @new_measure("apart", "distance", 2, False, of="set", needs="face", caution=lambda n, d: f"{n} faces")
    def apart(a, b):
        return float(abs(a.mean() - b.mean()))

    class MeanColours:
        def embed(self, images):
            return images.mean((2, 3))

    found = set_metrics(torch.full((2, 3, 8, 8), 0.75), torch.full((2, 3, 8, 8), 0.5), MeanColours())
    assert found["apart"] == pytest.approx(0.25) and found["notes"]["apart"] == "2 faces"
    sets = pd.DataFrame([dict(system="s", on="x4", n=2, apart=0.25)])
    assert summary(None, sets, "s", "x4", "apart", "rgb") == (0.25, None)
    with pytest.raises(FacelabError, match="one number a set of faces"):
        axis_text("apart")

    @new_measure("nearer", "nearer", 2, False, of="set", needs="face")  # nothing to beware of
    def nearer(a, b):
        return 0.0

    assert set_metrics(*torch.rand(2, 2, 3, 8, 8), MeanColours())["notes"]["nearer"] == ""


def test_a_new_measure_made_from_other_columns(new_measure):
    @new_measure("both_right", "right", 0, True, axis="right", columns=("identity", "nearest_right"))
    def both_right(identity, right):
        return identity * right

    scores = pd.DataFrame(dict(image=["a", "b"], identity=[0.5, 0.5], nearest_right=[0.0, 1.0]))
    assert face_values(scores, "both_right", "rgb").tolist() == [0, 0.5]
    judges = dict(identity=dict(by="", missing="no judge"), nearest_right=dict(by="X", missing=""))
    assert judge_of("both_right", judges) == dict(by="X", missing="no judge")


# ---- a real run


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    "Scores of a system that needs no training, as the pipeline writes them."
    folder, faces = tmp_path_factory.mktemp("run"), draw_set(0, 0, 3, size=64)
    steps = [dict(use="degradations.resample.Downsample", scale=4), dict(use="degradations.occlusion.Block")]
    write_inputs(folder / "inputs" / "hidden", faces, steps)
    spec = dict(use="networks.bicubic.Bicubic", scale=4)
    recipe = dict(name="bicubic", generator=spec, critics={})
    write_model(folder / "bicubic", {"generator": build(spec).state_dict()}, recipe)
    what = Restoration("bicubic", "bicubic", "hidden")
    update_restored(what, folder / "bicubic", folder / "inputs", faces.names, folder / "restored")
    judges = Judges(folder / "helpers", folder / "features", folder=folder)
    score_all([what], {what.on: faces}, folder / "inputs", folder / "restored", folder / "scores", judges)
    return folder / "scores"


def test_every_column_of_a_run_is_that_of_a_measure(scored):
    columns = [*read_paper_scores(scored).columns[3:], *read_set_scores(scored).columns[3:]]
    assert [column for column in columns if measure_in(column) is None] == []
    assert [c for c in json.loads((scored / "judges.json").read_text()) if measure_in(c) is None] == []


def test_every_measure_that_is_stored_has_a_column_and_a_judge(scored):
    columns = [*read_paper_scores(scored).columns[3:], *read_set_scores(scored).columns[3:]]
    elsewhere = {"rank"}  # identification.csv
    assert {measure_in(c).name for c in columns} == {n for n, m in measures().items() if not m.columns} - elsewhere
    by_networks = {n for n, m in measures().items() if m.needs or m.by}
    assert set(read_judges(scored)) == by_networks


def test_the_columns_stand_in_their_order(scored):
    head = (scored / "hidden" / "bicubic.csv").read_text().split("\n")[0]
    assert head == (
        "system,image,psnr_rgb,ssim_rgb,psnr_y,ssim_y,lpips_alex,vgg_distance,identity,landmark_error,parsing_error,"
        "hidden_error,nearest_l1,nearest_right"
    )
    assert (scored / "sets.csv").read_text().split("\n")[0] == "system,on,n,fid,kid,frechet_face,diversity"
