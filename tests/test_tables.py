"""Tables: from files of scores to texts, LaTeX that can be typeset, one sentence for what is missing."""

import csv
import io
import json
import re

import numpy as np
import pandas as pd
import pytest

from facelab import FacelabError
from facelab.publication.tables import (
    PaperScores,
    Table,
    convention_table,
    latex_text,
    make_table,
    scale_of,
    write_table,
)
from facelab.evaluation.summary import label_of, read_judges, read_paper_scores, read_set_scores, summary

FACES = [f"{i:04}.png" for i in range(40)]
RECIPES = {
    "small_x4": {
        "label": "Small_net, x4",
        "inputs": "rain_x4",
        "degradation": [{"use": "a"}, {"use": "b", "scale": 4}],
    },
    "large_x4": {"label": "Large & net, x4", "inputs": "rain_x4", "degradation": [{"scale": 4}]},
    "small_x8": {"label": "Small net, x8", "inputs": "rain_x8", "degradation": [{"scale": 2}, {"scale": 4}]},
}


def rows(system, psnr, faces=FACES, **more):
    return pd.DataFrame(
        {
            "system": system,
            "image": faces,
            "psnr_rgb": psnr,
            "ssim_rgb": np.array(psnr) / 50,
            "psnr_y": np.array(psnr) + 1,
            "ssim_y": np.array(psnr) / 49,
            "lpips_alex": "",
            **more,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the stage score leaves: two systems of x4 on two degradations, one of x8, another output, an unseen set."""
    folder, level = tmp_path_factory.mktemp("scores"), np.random.default_rng(0).normal(22, 2, 40)
    for on, system, psnr in (
        ("rain_x4", "small_x4", level),
        ("rain_x4", "large_x4", level + 1),
        ("mask_x4", "small_x4", level - 1),
        ("mask_x4", "large_x4", level - 3),
        ("rain_x8", "small_x8", level - 4),
        ("mask_x8", "small_x8", level - 5),
        ("rain_x4", "large_x4.clean", level + 2),
        ("rain_x4", "large_x4~0", level),
    ):
        (folder / on).mkdir(exist_ok=True)
        more = {} if "." in system else {"nearest_l1": np.linspace(0.5, 0.9, 40), "nearest_right": [1, 0] * 20}
        rows(system, psnr, **more).to_csv(folder / on / f"{system}.csv", index=False)
    (folder / "rain_x4@unseen").mkdir()
    rows("small_x4", level[:30] - 2, [f"new{i}.png" for i in range(30)]).to_csv(
        folder / "rain_x4@unseen" / "small_x4.csv", index=False
    )
    pd.DataFrame(
        {"system": ["small_x4", "large_x4"], "on": "rain_x4", "n": 40, "fid": [33.48, 15.3], "kid": ""}
    ).to_csv(folder / "sets.csv", index=False)
    (folder / "judges.json").write_text(
        json.dumps(
            {
                "lpips_alex": {"by": "", "missing": "AlexNet's weights are not at hand"},
                "nearest_l1": {"by": "LightCNN-9 trained by this run", "missing": ""},
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def make(folder):
    scores, sets, judges = read_paper_scores(folder), read_set_scores(folder), read_judges(folder)

    def table(spec, convention="rgb", profile="real"):
        return make_table(spec, PaperScores(scores, convention, sets, judges, n=200), RECIPES, profile, "a set")

    return table


SPEC = {
    "title": "Table 1: 50 % of_it",
    "columns": {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips_alex": "LPIPS", "fid": "FID"},
    "better": {"psnr": "higher"},
    "rows": {
        "small_x4": {"psnr": 25.0, "ssim": 0.75, "lpips_alex": 0.2, "fid": 30.0},
        "large_x4": {"psnr": 24.5, "fid": 16.0},
    },
}


def test_every_score_is_read_with_its_place(folder):
    scores = read_paper_scores(folder)
    assert list(scores.columns[:3]) == ["system", "on", "image"] and len(scores) == 8 * 40 + 30
    assert (
        set(scores["on"]) == {"rain_x4", "mask_x4", "rain_x8", "mask_x8", "rain_x4@unseen"}
        and scores.lpips_alex.isna().all()
    )
    assert read_set_scores(folder).kid.isna().all()


def test_papers_numbers_beside_ours(make):
    table = make(SPEC)
    assert table.columns == [
        "Method",
        *(h for m in ("PSNR (dB)", "SSIM", "LPIPS", "FID") for h in (f"{m} paper", f"{m} ours", "gap")),
    ]
    first, second = table.rows
    assert (
        first[:2] == ["Small_net, x4", "25.00"]
        and re.fullmatch(r"2\d\.\d\d ± 0\.\d\d", first[2])
        and float(first[3]) == pytest.approx(float(first[2][:5]) - 25, abs=0.011)
    )
    assert first[7:10] == ["0.2000", "n/a", ""] and second[7:10] == ["n/a", "n/a", ""]
    assert second[10:] == ["16.00", "15.30", "-0.70"]  # a measure of sets has no interval
    assert table.best == {(0, 1), (1, 2), (0, 4), (1, 5), (0, 7), (1, 10), (1, 11)}
    assert (
        "LPIPS n/a: AlexNet's weights are not at hand." in table.notes
        and "40 test faces of the set `a set`" in table.notes[0]
        and "RGB, 8 bit" in table.notes[0]
    )


def test_another_convention_moves_ours_alone(make):
    rgb, y = make(SPEC), make(SPEC, "y")
    assert (
        float(y.rows[0][2][:5]) == pytest.approx(float(rgb.rows[0][2][:5]) + 1, abs=0.011)
        and y.rows[0][1] == rgb.rows[0][1]
        and "Y of BT.601" in y.notes[0]
    )
    with pytest.raises(FacelabError, match="No metric convention is called 'matlab'"):
        make(SPEC, "matlab")
    with pytest.raises(FacelabError, match="no column 'psnr_y_border8'"):
        make(SPEC, "y_border8")


def test_rows_with_labels_places_and_a_mean(make):
    spec = {
        "title": "Places",
        "columns": {"psnr": "PSNR"},
        "mean": {"psnr": 24.2, "psnr_std": 0.35},
        "rows": {
            "rain": {"system": "small_x4", "psnr": 25.0},
            "mask": {"system": "small_x4", "on": "mask_x4", "psnr": 24.0},
            "new": {"system": "small_x4", "on": "rain_x4@unseen"},
        },
    }
    table = make(spec)
    assert [r[0] for r in table.rows] == ["rain", "mask", "new", "mean ± std over rows"] and table.best == set()
    ours = [float(r[2].split(" ± ")[0]) for r in table.rows]
    mean, std = table.rows[3][2].split(" ± ")
    assert (
        float(mean) == pytest.approx(np.mean(ours[:3]), abs=0.01)
        and float(std) == pytest.approx(np.std(ours[:3], ddof=1), abs=0.01)
        and table.rows[3][1] == "24.20 ± 0.350"
    )
    assert any(note.startswith("Unseen: 30 faces") for note in table.notes)


def test_outputs_draws_and_thresholds(make):
    spec = {
        "title": "T",
        "columns": {"recognised_0.6": "0.6", "recognised_0.95": "0.95"},
        "rows": {"small_x4": {"recognised_0.6": 30}, "large_x4.clean": {}, "large_x4~0": {}},
    }
    table = make(spec)
    assert [r[0] for r in table.rows] == ["Small_net, x4", "Large & net, x4: clean", "Large & net, x4: draw 1"]
    assert (
        table.rows[0][2].startswith("12.50 ±") and table.rows[0][5].startswith("50.00 ±") and table.rows[1][2] == "n/a"
    )  # 10 faces of 40 are near, every second is right
    assert (
        "recognised 0.6, recognised 0.95: judged by LightCNN-9 trained by this run." in table.notes
        and "recognised 0.6 n/a: not measured there." in table.notes
    )
    assert label_of("small_x8.restored", RECIPES) == "Small net, x8"


def test_a_matrix_compares_within_a_scale(make):
    spec = {
        "title": "All",
        "kind": "matrix",
        "rows": list(RECIPES),
        "measures": {"psnr": "PSNR"},
        "columns": {"rain": {"x4": "rain_x4", "x8": "rain_x8"}, "mask": {"x4": "mask_x4"}},
    }
    table = make(spec)
    assert [scale_of(s, RECIPES) for s in RECIPES] == [4, 4, 8]
    assert table.columns == ["Method", "rain: PSNR", "mask: PSNR"] and table.rows[2][2] == "n/a"
    assert table.best == {(1, 1), (2, 1), (0, 2)} and "one scale" in table.notes[-1]


def test_a_table_of_text(make):
    table = make({"title": "Notation", "columns": ["Symbol", "Meaning"], "text": [["M", "what is seen"], ["s", 4]]})
    assert table.rows == [["M", "what is seen"], ["s", "4"]] and not table.best and "| s | 4 |" in table.markdown()


def test_a_narrow_table(make):
    narrow = make(SPEC).ours()
    assert (
        narrow.columns == ["Method", "PSNR (dB)", "SSIM", "LPIPS", "FID"]
        and narrow.best == {(1, 1), (1, 2), (1, 4)}
        and len(narrow.rows[0]) == 5
    )


@pytest.mark.parametrize(
    "change, says",
    [
        ({"columns": {"psrn": "PSNR"}, "rows": {"small_x4": {}}}, "unknown measure 'psrn': did you mean 'psnr'"),
        ({"columns": {"identity": "ID"}, "rows": {"small_x4": {}}}, "Table 1: .* no column 'identity'"),
        ({"columns": {"frechet_face": "F"}, "rows": {"small_x4": {}}}, "the scores of sets have no 'frechet_face'"),
        ({"rows": {"smal_x4": {}}}, "unknown system 'smal_x4': did you mean 'small_x4'"),
        (
            {"rows": {"small_x4": {"on": "mask_x8"}}},
            "no scores of 'small_x4' on 'mask_x8', but of 'small_x4' on mask_x4, rain_x4, rain_x4@unseen: add it",
        ),
        ({"rows": {"small_x8": {"on": "rain_x4"}}}, "no scores of 'small_x8' on 'rain_x4'"),
        ({"rows": {"small_x4": {True: "mask_x4"}}}, 'write "on"'),
        ({"rows": {"large_x4~first": {}}}, "names no draw"),
        ({"kind": "pie"}, "unknown kind 'pie'"),
        ({"better": {"psnr": "more"}}, "write higher or lower"),
    ],
)
def test_mistakes_get_one_sentence(make, change, says):
    with pytest.raises(FacelabError, match=says) as e:
        make({**SPEC, **change})
    assert "\n" not in str(e.value)


def test_missing_files_get_one_sentence(tmp_path):
    for read in (read_paper_scores, read_set_scores, read_judges):
        with pytest.raises(FacelabError, match="run `dvc repro` first"):
            read(tmp_path)
    (tmp_path / "sets.csv").write_text("system,n\na,3\n")
    with pytest.raises(FacelabError, match="no file of sets' scores"):
        read_set_scores(tmp_path)


def test_the_demo_says_so(make):
    assert any(
        "compare its rows with each other, not with the paper's" in n for n in make(SPEC, profile="demo").notes
    ) and not any("demo" in n.lower() for n in make(SPEC).notes)


def test_latex_is_balanced_and_escaped(make):
    hard = Table(
        "50 % of {a_b} & c",
        ["method", "α ± β"],
        [["a_1 & b", "1 ± 2"], ["c#$^~\\", "<3>"]],
        best={(0, 1)},
        notes=["10 %"],
    )
    for text in (hard.latex(), make(SPEC).latex()):
        bare = re.sub(r"\\[{}%&_#$]", "", text)  # escaped letters
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0 and not re.search(r"[%#±×−]", bare)
        body = text.split("\\midrule\n")[1].split("\\bottomrule")[0].strip().splitlines()
        spec = re.search(r"\\begin\{tabular\}\{(l*r*)\}", text)[1]
        assert all(line.endswith(r" \\") and len(re.findall(r"(?<!\\)&", line)) == len(spec) - 1 for line in body)
        assert [text.count(rf"\{side}{{{name}}}") for name in ("table", "tabular") for side in ("begin", "end")] == [
            1
        ] * 4
    assert r"\textbf{1 $\pm$ 2}" in hard.latex() and latex_text("a\\b") == r"a\textbackslash{}b"


def test_csv_can_be_read_back(make):
    table = make(SPEC)
    assert list(csv.reader(io.StringIO(table.csv()))) == [table.columns, *table.rows]


def test_equal_scores_equal_bytes(make, tmp_path):
    for name in ("a", "b"):
        write_table(make(SPEC), tmp_path / name / "table_4.1")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [f"table_4.1.{kind}" for kind in ("csv", "md", "tex")]
    assert all(p.read_bytes() == (tmp_path / "b" / p.name).read_bytes() for p in (tmp_path / "a").iterdir())


def test_conventions_are_pooled_as_they_say(folder):
    scores = read_paper_scores(folder).assign(
        psnr_rgb_pooled=lambda s: s.psnr_rgb, ssim_rgb_pooled=lambda s: s.ssim_rgb
    )
    table = convention_table(PaperScores(scores), RECIPES)
    assert [r[0] for r in table.rows] == ["Small_net, x4", "Large & net, x4", "Small net, x8"] and table.columns[
        1::2
    ] == ["PSNR rgb", "PSNR y", "PSNR rgb_pooled"]
    assert float(table.rows[0][5]) < float(table.rows[0][1])  # the mean error weighs bad faces more
    mean, half = summary(scores, None, "small_x4", "rain_x4", "psnr", "rgb_pooled", n=200)
    assert mean == pytest.approx(float(table.rows[0][5]), abs=0.006) and half > 0
