"""Figures of the papers: what an entry may say, what is drawn for it, and that it is always the same bytes."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch
import yaml

from facelab import FacelabError
from facelab.publication.charts import PALETTE, identification_rates, rank_curve
from facelab.degradations.resample import resize
from facelab.faces.drawn import draw_set
from facelab.publication.figures import Album, check_figure, make_figure, choose_faces, save_figure, write_figure
from facelab.base.images import read_image, to_uint8, write_image
from facelab.evaluation.inputs import write_inputs
from facelab.evaluation.metrics import score
from facelab.publication.tables import PaperScores
from facelab.training.models import write_model
from facelab.training.recipes import load_degradations, load_recipes

ROOT = Path(__file__).resolve().parents[1]
DOWN = {"use": "degradations.resample.Downsample", "scale": 4}
NAMES = ["low", "middle", "high"]


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    "Six drawn test faces, three made-up systems of which each is darker than the next, and a second face set."
    build = tmp_path_factory.mktemp("build")
    faces, unseen = draw_set(0, 0, 6, seed=0), draw_set(0, 0, 3, seed=1)
    inputs = {
        "x4": write_inputs(build / "inputs" / "x4", faces, [DOWN, {"use": "degradations.occlusion.Block"}]),
        "x4@unseen": write_inputs(build / "inputs" / "x4@unseen", unseen, [DOWN]),
    }
    rows = []
    for on, of in (("x4", faces), ("x4@unseen", unseen)):
        for k, name in enumerate(NAMES):
            restored = (resize(inputs[on].images(range(len(of))), 128) * (0.7 + 0.1 * k)).clamp(0, 1)
            for face, x in zip(of.names, restored):
                write_image(build / "restored" / "p" / on / name / f"{Path(face).stem}.png", x)
            rows += [
                {**row, "on": on}
                for row in score(restored, of.batch(range(len(of)), labels=())["image"], of.names, name, lpips=False)
            ]
    recipes = {name: {"label": name.title(), "inputs": "x4", "kind": "recipes", "paper": "p"} for name in NAMES}
    recipes["prior"] = {"label": "Prior", "inputs": "x4", "kind": "helpers", "group": "g", "paper": "p"}
    scores = PaperScores(pd.DataFrame(rows), n=100)
    return Album("p", faces, recipes, {"x4": {}, "x8": {}}, scores, build=build, unseen=unseen)


def views(*shown, **more):
    return {
        "title": "Fig 1",
        "faces": 3,
        **more,
        "views": [v if isinstance(v, dict) else {"show": "restored", "system": v} for v in shown],
    }


@pytest.mark.parametrize(
    "spec, said",
    [
        (views("lwo"), "unknown system 'lwo': did you mean 'low'?"),
        (views({"show": "input", "on": "x44"}), "unknown chain of degradations 'x44': did you mean 'x4'?"),
        (views({"show": "M"}), "does not say what was done to the faces"),
        (views({"show": "input", True: "x4"}), "write it in quotes"),
        (views({"show": "target", "parts": "nose"}), "unknown kind of parts 'nose': there is parsing, landmarks"),
        (
            views({"show": "target", "parts": "parsing", "by": "low"}),
            "unknown finder of parts 'low': there is labels, labelling, prior",
        ),
        (views({"show": "target", "colour": 1}), "unknown parameter 'colour'"),
        (views("low", choose="worst"), "nothing says whose"),
        (views("low", choose="ugly", by="low"), "unknown choice of faces 'ugly': there is worst, best, spread"),
        (views("low", kind="veiws"), "unknown kind of figure 'veiws': did you mean 'views'?"),
        ({"title": "Fig 1", "faces": 3}, "lacks 'views'"),
        ({"title": "Fig 1", "kind": "photographs", "folder": "masked", "faces": 3}, "lacks 'systems'"),
        (
            {"title": "Fig 1", "kind": "bars", "groups": {"a": "x5"}, "systems": ["low"], "measures": ["psnr"]},
            "unknown chain of degradations 'x5'",
        ),
        (
            {"title": "Fig 1", "kind": "bars", "groups": {"a": "x4"}, "systems": ["low"], "measures": ["psn"]},
            "unknown measure 'psn'",
        ),
        ({"title": "Fig 1", "kind": "curve", "along": {1: "x4"}, "x": "size", "measures": ["psnr"]}, "lacks 'system'"),
    ],
)
def test_a_mistake_in_an_entry_is_one_sentence(album, spec, said):
    with pytest.raises(FacelabError) as told:
        make_figure(spec, album)
    assert str(told.value).startswith("Fig 1: ") and said in str(told.value) and "\n" not in str(told.value)


def test_the_entries_of_the_papers_are_right():
    recipes, chains = load_recipes(ROOT), load_degradations(ROOT)
    for path in (ROOT / "papers").glob("*.yaml"):
        says = yaml.safe_load(path.read_text())
        for name, spec in {**(says.get("figures") or {}), **(says.get("samples") or {})}.items():
            check_figure(spec, Album(path.stem, None, recipes, chains), f"{name} in {path.name}")


def test_the_worst_and_the_best_faces_go_by_number(album):
    psnr = album.scores.faces.query("system == 'low' and on == 'x4'").set_index("image").psnr_rgb.sort_values()
    named = lambda how, n: [
        album.faces.names[i] for i in choose_faces(views("low", choose=how, by="low"), album, album.faces, n)[0]
    ]
    assert named("worst", 3) == list(psnr.index[:3]) and named("best", 2) == list(psnr.index[:-3:-1])
    assert (
        named("spread", 3)[0] == psnr.index[0]
        and named("spread", 3)[2] == psnr.index[-1]
        and len(named("spread", 99)) == 6
    )
    fig = make_figure(views("low", choose="worst", by="low", across="views"), album)
    assert [f"{v:.2f} dB" for v in psnr[:3]] == [t.get_text() for t in fig.texts if t.get_text().endswith("dB")]


def test_faces_of_the_second_set_are_chosen_by_their_own_scores(album):
    spec = views({"show": "restored", "system": "low", "on": "x4@unseen"}, {"show": "target"}, choose="worst", by="low")
    psnr = album.scores.faces.query("system == 'low' and on == 'x4@unseen'").set_index("image").psnr_rgb
    fig = make_figure(spec, album)
    assert [t.get_text() for t in fig.texts if t.get_text().endswith("dB")] == [f"{v:.2f} dB" for v in sorted(psnr)]
    truth = album.unseen.batch([album.unseen.names.index(psnr.idxmin())], labels=())["image"][0]
    assert np.array_equal(fig.axes[3].images[0].get_array(), to_uint8(truth).permute(1, 2, 0).numpy())


def test_the_zoom_box_is_framed_and_enlarged_pixel_by_pixel(album):
    fig = make_figure(views("low", {"show": "target"}, across="views", zoom=[0.25, 0.375, 0.75, 0.875]), album)
    assert len(fig.axes) == 12 and [len(ax.patches) for ax in fig.axes] == [1, 0] * 6
    assert fig.axes[2].patches[0].get_bbox().bounds == (32, 48, 64, 64)
    whole, cut = (ax.images[0].get_array() for ax in fig.axes[2:4])
    assert np.array_equal(cut[::4, ::4], whole[48:112, 32:96]) and np.array_equal(cut[::4], cut[3::4])
    inside = make_figure(views({"show": "target"}, zoom=[0.25, 0.25, 0.5, 0.5], detail="inside"), album)
    whole = inside.axes[0].images[0].get_array()
    assert [len(ax.patches) for ax in inside.axes] == [2] * 3 and np.array_equal(
        whole[64::2, 64::2], whole[32:64, 32:64]
    )
    with pytest.raises(FacelabError, match="is empty"):
        make_figure(views("low", zoom=[0.5, 0.5, 0.5, 0.9]), album)


def test_texts_keep_apart_and_inside(album):
    "No title is cut or lies over another one, however long it is and however the rows are broken."
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    long = [{"show": "target", "title": f"longer than a face is wide {k}"} for k in range(4)]
    bars = {
        "kind": "bars",
        "groups": {"a place with a long name": "x4", "b": "x4"},
        "systems": NAMES,
        "measures": ["psnr", "ssim"],
    }
    for spec in (
        views(*long, across="views", columns=2, faces=2),
        views(*long[:2], choose="best", by="low", columns=2),
        bars,
    ):
        fig = make_figure(spec, album)
        renderer = FigureCanvasAgg(fig).get_renderer()
        fig.draw(renderer)
        boxes = [t.get_window_extent(renderer) for t in fig.texts] + [
            legend.get_window_extent(renderer) for legend in fig.legends
        ]
        areas = [ax.get_window_extent(renderer) for ax in fig.axes]
        assert all(
            b.x0 >= -1 and b.y0 >= -1 and b.x1 <= fig.bbox.width + 1 and b.y1 <= fig.bbox.height + 1 for b in boxes
        )
        assert not any(a.padded(-1).overlaps(b.padded(-1)) for i, a in enumerate(boxes) for b in boxes[:i] + areas)


def test_equal_figures_are_equal_bytes(album, tmp_path):
    specs = {
        "views": views(
            {"show": "input", "on": "x4"},
            "low",
            {"show": "target", "parts": "landmarks"},
            {"show": "target", "parts": "parsing"},
            choose="worst",
            by="low",
            faces=1,
        ),
        "bars": {"kind": "bars", "groups": {"a": "x4", "b": "x8"}, "systems": NAMES, "measures": ["psnr", "ssim"]},
    }
    for run in ("one", "two"):
        for name, spec in specs.items():
            save_figure(make_figure(spec, album), tmp_path / run / name, dpi=60)
        time.sleep(1 if run == "one" else 0)  # a date would differ
    for name in specs:
        for kind in ("png", "pdf"):
            first = (tmp_path / "one" / f"{name}.{kind}").read_bytes()
            assert (
                first == (tmp_path / "two" / f"{name}.{kind}").read_bytes()
                and b"matplotlib" not in first.lower()
                and b"CreationDate" not in first
            )
        assert b"CIDFontType2" in (tmp_path / "one" / f"{name}.pdf").read_bytes()  # letters, not pictures of letters


def test_pixels_of_pictures_cover_whole_pixels(album, tmp_path):
    save_figure(make_figure(views("low"), album), tmp_path / "one", dpi=150)
    x = read_image(tmp_path / "one.png")
    truth = read_image(album.build / "restored" / "p" / "x4" / "low" / f"{Path(album.faces.names[2]).stem}.png")
    assert torch.equal(x[:, 8:264, -264:-8], truth.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_what_is_not_there_is_a_line_and_a_file(album, tmp_path):
    figure = tmp_path / "figure"
    assert write_figure(views("low"), album, figure, 60).axes and (tmp_path / "figure.png").exists()
    for spec, said in (
        (views({"show": "target", "parts": "parsing", "by": "prior"}), "no trained model in"),
        (views({"show": "input", "on": "x8"}), "no test inputs in"),
        ({"kind": "ranks", "series": {"true": "truth"}, "ranks": 5}, "identification.csv"),
        (views({"show": "restored", "system": "low", "on": "x8"}), "is missing"),
    ):
        text = write_figure(spec, album, figure, 60)
        assert text.startswith("n/a: ") and said in text and (tmp_path / "figure.txt").read_text() == text + "\n"
        assert not (tmp_path / "figure.png").exists() and not (tmp_path / "figure.pdf").exists()
    with pytest.raises(FacelabError, match="unknown system"):
        write_figure(views("nobody"), album, figure)
    with pytest.raises(TypeError):  # a mistake of the program is not a figure that is not available
        write_figure(views("low"), Album("p", None, album.recipes, album.chains, build=album.build), figure)
    assert write_figure(views("low"), album, figure, 60).axes and not (tmp_path / "figure.txt").exists()


def write_low(build):
    "A trained model of the system `low`: bicubic enlargement."
    write_model(
        Path(build) / "models" / "p" / "low",
        {"generator": {}},
        {
            "name": "low",
            "label": "Low",
            "kind": "recipes",
            "degradation": [DOWN],
            "generator": {"use": "networks.bicubic.Bicubic", "scale": 4},
            "critics": {},
        },
    )


def test_photographs_are_restored_there_and_then(album, tmp_path):
    spec = {"title": "Fig 1", "kind": "photographs", "folder": "masked", "faces": 3, "systems": ["low"]}
    assert "let figures.photos in params.yaml name a folder with aligned faces in its folder masked" in write_figure(
        spec, album, tmp_path / "none"
    )
    write_low(album.build)
    for name, image in zip("abcd", album.faces.batch(range(4), labels=())["image"]):
        write_image(tmp_path / "photos" / "masked" / f"{name}.png", image)
    fig = make_figure(spec, replace(album, photos=tmp_path / "photos"))
    shown = [ax.images[0].get_array() for ax in fig.axes]
    assert len(shown) == 6 and all(
        np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(shown[::2], shown[1::2])
    )  # bicubic: the system makes what is shown as its input


def test_masks_beside_the_photographs_hide_a_part_of_them(album, tmp_path):
    """Cai et al., Fig 12 (b): an occlusion is introduced into small photographs."""
    spec = {"title": "Fig 12", "kind": "photographs", "folder": "small", "hidden": "small_masks"}
    spec |= {"faces": 1, "systems": ["low"]}
    write_low(album.build)
    photos, face = tmp_path / "photos", album.faces.batch([0], labels=())["image"][0]
    mask = torch.zeros_like(face)
    mask[:, 64:] = 1
    write_image(photos / "small" / "a.png", face)
    album = replace(album, photos=photos)
    assert "small_masks has no mask for" in write_figure(spec, album, tmp_path / "none")
    write_image(photos / "small_masks" / "a.png", mask)
    given, hidden, _ = (ax.images[0].get_array().astype(int) for ax in make_figure(spec, album).axes)
    assert hidden[72:].max() == 0 and np.array_equal(hidden[:56], given[:56]) and given[72:].max() > 0


def test_true_faces_beside_the_photographs_are_shown_last_if_there_are_any(album, tmp_path):
    spec = {"title": "Fig 1", "kind": "photographs", "folder": "masked", "faces": 2, "systems": ["low"]}
    write_low(album.build)
    photos, faces = tmp_path / "photos", album.faces.batch(range(4), labels=())["image"]
    album = replace(album, photos=photos)
    for name, image in zip("ab", faces):
        write_image(photos / "masked" / f"{name}.png", image)
    asked = {**spec, "truth": "masked_truth"}
    assert len(make_figure(asked, album).axes) == len(make_figure(spec, album).axes) == 4
    for name, image in zip("ab", faces[2:]):
        write_image(photos / "masked_truth" / f"{name}.png", image)
    fig = make_figure(asked, album)
    shown = np.stack([ax.images[0].get_array() for ax in fig.axes[2::3]])
    assert len(fig.axes) == 6 and np.array_equal(shown, to_uint8(faces[2:]).permute(0, 2, 3, 1))
    (photos / "masked_truth" / "b.png").unlink()
    assert "masked_truth has no true face for" in write_figure(asked, album, tmp_path / "one")
    assert len(make_figure(spec, album).axes) == 4


def test_a_frame_is_shown_whole_with_the_face_that_is_found_in_it(album, tmp_path):
    """Without a folder of frames it is the astronaut; the square lies around her face, at (224, 115) of 512."""
    spec = {"title": "Fig 1", "kind": "frames", "folder": "frames", "faces": 1, "systems": ["low"]}
    write_low(album.build)
    fig = make_figure(spec, album)
    whole, small, restored = (ax.images[0].get_array() for ax in fig.axes)
    assert whole.shape == (256, 256, 3) and small.shape == (32, 32, 3) and restored.shape == (128, 128, 3)
    square = fig.axes[0].patches[-1].get_xy()[:4] * 2
    assert np.abs(square.mean(0) - [224, 115]).max() < 40 and 100 < np.linalg.norm(square[1] - square[0]) < 300
    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1) / 255
    write_image(tmp_path / "photos" / "frames" / "wide.png", torch.cat([photo, 0 * photo], 2))
    fig = make_figure(spec, replace(album, photos=tmp_path / "photos"))
    assert fig.axes[0].images[0].get_array().shape == (256, 512, 3) and len(fig.axes) == 3
    assert np.abs(fig.axes[0].patches[-1].get_xy()[:4] - square / 2).max() < 20


def test_charts_show_the_means_of_the_scores(album):
    fig = make_figure(
        {"kind": "bars", "groups": {"a": "x4", "b": "x8"}, "systems": NAMES, "measures": ["psnr", "ssim"]}, album
    )
    means = album.scores.faces.query("on == 'x4'").groupby("system")[["psnr_rgb", "ssim_rgb"]].mean()
    for ax, column in zip(fig.axes, means):
        assert [c[0].get_xdata()[0] for c in ax.containers] == pytest.approx([means[column][name] for name in NAMES])
        assert [t.get_text() for t in ax.texts] == ["n/a"] * 3  # nothing was measured on x8
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["Low", "Middle", "High"]


def test_identification_grows_with_the_rank():
    rng = np.random.default_rng(0)
    found = pd.concat(
        [
            pd.DataFrame({"kind": kind, "image": range(100), "rank": rng.geometric(p, 100)})
            for kind, p in (("true", 0.6), ("degraded", 0.2))
        ]
    )
    lines = rank_curve({"series": {"true": "truth", "degraded": "degraded"}, "ranks": 5}, found, n=100).axes[0].lines
    for kind, line in zip(("true", "degraded"), lines):
        middle, low, high = identification_rates(found, kind, 5, n=100)
        assert (
            (np.diff(middle) >= 0).all()
            and (low <= middle).all()
            and (middle <= high).all()
            and np.array_equal(line.get_ydata(), middle)
        )
    assert lines[0].get_ydata()[0] == 100 * (found[found.kind == "true"]["rank"] == 1).mean()


def test_colours_stay_apart_without_green_cones():
    x = torch.tensor([[int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in PALETTE]) ** 2.2
    seen = (x @ torch.tensor([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]).T).clamp(0, 1) ** (
        1 / 2.2
    )
    assert torch.pdist(seen).min() > 0.08
