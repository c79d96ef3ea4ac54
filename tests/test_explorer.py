"""The explorer: its pure half for every degradation and preset, bad input, saving; its widgets without a browser."""

import json
import math
import os
import shutil
import struct
import threading
import tomllib
import zlib
from dataclasses import dataclass, fields, replace
from datetime import datetime
from io import BytesIO

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facelab import FacelabError
from facelab.apps import explorer as explorer_module
from facelab.apps.explorer import (
    Source,
    State,
    astronaut_landmarks,
    degradation_classes,
    describe_view,
    map_pictures,
    models_for,
    nice_ceiling,
    open_face,
    preset_sheet,
    presets,
    render,
    save,
    scalar_picture,
    vector_picture,
    with_restored,
)
from facelab.apps.widgets import POINTS, Control, Explorer, Gallery, first_sentence, png, slider_step
from facelab.base.images import astronaut, read_image, to_uint8
from facelab.degradations.chain import Chain
from facelab.degradations.degradation import Degradation, between, colour, number, one_of, switch
from facelab.evaluation.inputs import write_inputs
from facelab.evaluation.metrics import psnr
from facelab.faces.drawn import draw_set
from facelab.faces.parts import five_points
from facelab.training import zoo
from facelab.training.loop import train
from facelab.training.recipes import load_degradations

torch.set_num_threads(1)
PRESETS, CLASSES = presets(ROOT), degradation_classes()
X4 = dict(use="degradations.resample.Downsample", scale=4)
BLOCK = dict(use="degradations.occlusion.Block")
MASK = dict(use="degradations.masks.FaceMask")


@pytest.fixture(scope="module", autouse=True)
def shipped(tmp_path_factory):
    "No model but those that a test puts here comes with facelab."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "SHIPPED", tmp_path_factory.mktemp("shipped"))
        patch.delenv("FACELAB_WEIGHTS", raising=False)
        yield zoo.SHIPPED


def encoded(picture, name="face.png", **kwargs):
    "A PIL picture as an upload."
    file = BytesIO()
    picture.save(file, name.rsplit(".")[-1].replace("jpg", "jpeg"), **kwargs)
    return Source("picture", name, file.getvalue())


def portrait(size=(128, 128)):
    return Image.fromarray((astronaut(128)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).resize(size)


def all_bytes(view):
    return {name: (png(p.pixels), p.colours, p.low, p.high) for name, p in view.pictures.items()}


# --- the pure half


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_renders_and_its_recipe_loads_back(name, tmp_path):
    view = render(State(index=5, steps=tuple(PRESETS[name]["steps"]), name="again"))
    assert view.error == "" and {"face", "degraded", "difference"} <= set(view.pictures)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(view.recipe)
    assert Chain(load_degradations(tmp_path)["again"]["steps"]) == Chain(PRESETS[name]["steps"])
    assert len(view.equation) >= (1 if PRESETS[name]["steps"] else 0) and all(
        "\n" not in line for line in view.equation
    )


@pytest.mark.parametrize("use", CLASSES)
@pytest.mark.parametrize("source", [Source(), Source("astronaut")], ids=lambda s: s.kind)
def test_every_degradation_renders_by_itself_with_a_true_difference(use, source):
    view = render(State(source, index=2, size=96, steps=(dict(use=use),)))
    assert view.error == ""
    assert torch.isfinite(view.degraded).all() and view.face.image.shape == (1, 3, 96, 96)
    assert all(p.pixels.dtype == np.uint8 and p.pixels.shape[2] == 3 for p in view.pictures.values())
    assert first_sentence(CLASSES[use]).strip(".") and "(N," not in first_sentence(CLASSES[use])
    difference = view.pictures["difference"]
    assert difference.high == nice_ceiling((view.enlarged - view.face.image[0]).abs().mean(0).max().item())


def test_equal_states_give_equal_bytes_whatever_was_looked_at_between():
    state = State(index=7, steps=(MASK, X4, dict(use="degradations.camera.GaussianNoise")), seed=3)
    first = all_bytes(render(state))
    for index in range(3):
        render(replace(state, index=index, seed=index))
    explorer_module._open.cache_clear()
    assert all_bytes(render(state)) == first
    assert all_bytes(render(replace(state, seed=4)))["degraded"] != first["degraded"]
    assert all_bytes(render(replace(state, index=8)))["degraded"] != first["degraded"]


def test_the_explorer_shows_what_the_pipeline_evaluates(tmp_path):
    faces = draw_set(2, 0, 3, size=64)
    faces.save(tmp_path / "faces.safetensors")
    inputs = write_inputs(tmp_path / "inputs", faces.subset("test"), [MASK, X4], seed=7)
    for i in range(3):
        view = render(State(Source("set", str(tmp_path), split="test"), index=i, size=64, seed=7, steps=(MASK, X4)))
        assert torch.equal(to_uint8(view.degraded), to_uint8(inputs.images([i])[0]))


def test_psnr_is_of_the_enlarged_picture_under_the_named_convention():
    view = render(State(index=1, steps=(X4,)))
    by_hand = 10 * math.log10(
        1 / ((to_uint8(view.enlarged).double() - to_uint8(view.face.image[0]).double()) / 255).square().mean().item()
    )
    assert view.numbers["psnr"] == pytest.approx(by_hand)
    assert render(State(index=1, steps=(X4,), convention="y")).numbers["psnr"] > by_hand + 0.5
    assert "No metric convention" in render(State(index=1, steps=(X4,), convention="z")).error


def test_a_scale_that_does_not_divide_the_side_takes_a_slightly_smaller_face():
    view = render(State(index=1, steps=(dict(X4, scale=3),)))
    assert view.error == "" and view.face.image.shape[-1] == 126 and view.degraded.shape[-1] == 42
    assert "does not divide" in render(State(Source("astronaut"), size=16, steps=(dict(X4, scale=32),))).error


# --- faces


def test_the_astronaut_has_its_eyes_where_the_landmarks_say():
    points, face = five_points(astronaut_landmarks(176))[0], (astronaut(176)[0].mean(0))
    for x, y in points[:2].long().tolist():  # pupils are darker than the cheeks below them
        assert face[y - 2 : y + 3, x - 4 : x + 5].min() < 0.25 < face[y + 14 : y + 20, x - 4 : x + 5].min()
    assert torch.equal(astronaut_landmarks(88) * 2, astronaut_landmarks(176))


def test_pictures_of_all_modes_and_shapes():
    plain = portrait()
    same = open_face(encoded(plain)).image
    rotated = plain.transpose(Image.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees to the left
    assert torch.equal(open_face(encoded(rotated, exif=exif)).image, same)
    assert open_face(encoded(plain.convert("L"))).image.shape == (1, 3, 128, 128)
    assert torch.equal(open_face(encoded(plain.convert("RGBA"))).image, same)
    assert open_face(encoded(plain.quantize(16))).image.shape == (1, 3, 128, 128)
    assert open_face(encoded(plain.convert("CMYK"), "face.jpg")).image.shape == (1, 3, 128, 128)
    wide = Image.new("RGB", (228, 128))
    wide.paste(plain, (50, 0))
    assert torch.equal(open_face(encoded(wide)).image, same)


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "face.png"
    portrait().save(path)
    first = open_face(Source("picture", str(path))).image
    portrait().transpose(Image.FLIP_LEFT_RIGHT).save(path)
    os.utime(path, ns=(1, 1))
    assert not torch.equal(open_face(Source("picture", str(path))).image, first)


def broken():
    whole = encoded(portrait(), "whole.jpg").content
    header = encoded(Image.new("1", (8, 8)), "huge.png").content
    ihdr = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    huge = (
        header[:8]
        + struct.pack(">I", 13)
        + b"IHDR"
        + ihdr
        + struct.pack(">I", zlib.crc32(b"IHDR" + ihdr))
        + header[33:]
    )
    return {"half.jpg": whole[: len(whole) // 2], "huge.png": huge, "words.png": b"not a picture", "none.png": b"\x00"}


@pytest.mark.parametrize("name", broken())
def test_broken_uploads_are_refused_by_name_in_one_sentence(name):
    error = render(State(Source("picture", name, broken()[name]), steps=(X4,))).error
    assert name in error and "\n" not in error and "Traceback" not in error


def test_what_is_missing_gives_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    draw_set(1, 0, 2, size=64).save(tmp_path / "faces.safetensors")
    of_set = lambda **kwargs: State(
        Source("set", str(tmp_path), split=kwargs.pop("split", "")), **{"size": 64, **kwargs}
    )
    for state, words in (
        (State(Source("picture")), "no picture yet"),
        (State(Source("picture", str(tmp_path / "no.png"))), "no.png does not exist"),
        (State(Source("picture", str(tmp_path / "empty"))), "is a folder"),
        (State(Source("set", str(tmp_path / "empty"))), "empty"),
        (of_set(index=9), "from 0 to 2"),
        (of_set(index=-1), "from 0 to 2"),
        (of_set(size=32), "size=64"),
        (of_set(split="val"), "there are no faces in the split val"),
        (of_set(split="all"), "'all' is not known"),
        (State(Source("webcam")), "'webcam' is not known"),
        (State(steps=(dict(use="degradations.rain.HevyRain"),)), "did you mean"),
        (State(steps=(dict(BLOCK, share=2),)), "share"),
        (State(steps=({},)), "a step of a chain"),
    ):
        view = render(state)
        assert words in view.error and "\n" not in view.error and view.degraded is None, view.error


def test_a_picture_without_landmarks_needs_five_points():
    source = encoded(portrait())
    assert (
        "landmarks" in render(State(source, steps=(MASK,))).error
        and "point at its eyes" in render(State(source, steps=(MASK,))).error
    )
    five = five_points(astronaut_landmarks(1))[0]
    view = render(State(replace(source, points=tuple(map(tuple, five.tolist()))), steps=(MASK,)))
    covered = view.maps["mask"].view(128, 128) > 0.5
    mouth = (five[3:].mean(0) * 128).long()
    assert view.error == "" and covered[mouth[1], mouth[0]] and not covered[:60].any()


# --- pictures of maps


def test_maps_of_every_shape_become_pictures():
    maps = dict(
        n=torch.tensor(2.0),
        k=torch.rand(5),
        M=torch.ones(1, 8, 8),
        T=torch.full((8, 8), 0.03),
        w=torch.randn(8, 8),
        u=torch.zeros(8, 8),
        v=torch.full((8, 8), -3.0),
        J=torch.rand(3, 8, 8),
        dark=torch.rand(3, 8, 8) * 0.1,
        n3=torch.randn(3, 8, 8),
        S=torch.rand(6, 1, 8, 8),
        way=torch.randn(20, 2),
        b=torch.ones(8, 8, dtype=torch.bool),
    )
    seen = map_pictures(maps)
    assert list(seen) == ["M", "T", "w", "u, v", "J", "dark", "n3", "S 1", "S 2", "S 3", "S 4", "way", "b"]
    assert (
        (seen["T"].low, seen["T"].high) == (0, 0.05)
        and seen["w"].low == -seen["w"].high
        and seen["u, v"].high == 5
        and seen["dark"].high == 0.1
    )
    assert seen["J"].colours == "" and np.array_equal(seen["J"].pixels, to_uint8(maps["J"]).permute(1, 2, 0).numpy())


def test_colours_stand_for_the_values_they_claim():
    x = np.linspace(0, 0.5, 256, dtype=np.float32)[None].repeat(2, 0)
    assert np.array_equal(scalar_picture(x).pixels[0], explorer_module.palette("viridis"))
    assert (vector_picture(np.zeros((2, 2)), np.zeros((2, 2))).pixels == 255).all()  # no motion is white
    right = vector_picture(np.ones((1, 1)), np.zeros((1, 1))).pixels[0, 0]
    down = vector_picture(np.zeros((1, 1)), np.ones((1, 1))).pixels[0, 0]
    assert (
        right.tolist() == [255, 0, 0] and down[2] > 230 > 140 > down[0] > down[1]
    )  # the wheel of the caption: red to the right, violet down


@given(st.floats(1e-6, 1e6))
def test_ceiling_is_the_next_nice_number(value):
    high = nice_ceiling(value)
    assert value <= high * (1 + 1e-6) <= 2.5 * value * (1 + 1e-5) and f"{high:.0e}"[0] in "125"


# --- keeping


def test_save_never_touches_an_earlier_pair_even_when_several_save_at_once(tmp_path):
    view = render(State(index=4, steps=(MASK, X4)))
    first = save(view, tmp_path)
    before = {p: p.read_bytes() for p in first.rglob("*.*")}
    threads = [threading.Thread(target=save, args=(view, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0001", "0002", "0003", "0004", "0005"]
    assert {p: p.read_bytes() for p in first.rglob("*.*")} == before
    assert {p.name: p.read_bytes() for p in (tmp_path / "0005").rglob("*.*")} == {p.name: b for p, b in before.items()}


def test_a_saved_pair_is_what_was_seen(tmp_path):
    from safetensors.torch import load_file

    view = render(State(index=4, steps=(MASK, X4)))
    folder = save(view, tmp_path / "deep" / "down")
    assert torch.equal(read_image(folder / "hr.png"), to_uint8(view.face.image[0])) and torch.equal(
        read_image(folder / "degraded.png"), to_uint8(view.degraded)
    )
    assert {p.stem for p in (folder / "pictures").iterdir()} == set(view.pictures)
    maps = load_file(folder / "maps.safetensors")
    assert maps.keys() == view.maps.keys() and all(torch.equal(maps[k], view.maps[k]) for k in maps)
    assert (folder / "recipe.yaml").read_text() == view.recipe
    assert json.loads((folder / "numbers.json").read_text()) == describe_view(view)


def test_identical_pictures_have_no_number_for_psnr(tmp_path):
    view = render(State(index=4))
    assert view.numbers["psnr"] == math.inf and describe_view(view)["numbers"]["psnr"] is None
    json.loads(
        (save(view, tmp_path) / "numbers.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON")
    )


def test_a_pair_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    view = render(State(index=4, steps=(X4,)))
    calls = []

    def full_disk(view):
        calls.append(view)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(explorer_module, "describe_view", full_disk)
    with pytest.raises(FacelabError, match="No space left"):
        save(view, tmp_path)
    assert calls and list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FacelabError, match="cannot be written"):
        save(view, tmp_path / "file")
    with pytest.raises(FacelabError, match="nothing to save: there is no picture yet"):
        save(render(State(Source("picture"))), tmp_path)


# --- trained models


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project with two small trained models, one damaged one and one that is no restorer."
    root = tmp_path_factory.mktemp("project")
    (root / "recipes").mkdir()
    (root / "recipes" / "degradations.yaml").write_bytes((ROOT / "recipes" / "degradations.yaml").read_bytes())
    recipe = dict(
        name="x",
        kind="recipes",
        seconds=None,
        clip=None,
        validate=0,
        seed=0,
        batch=2,
        threads=1,
        start="identity",
        critics={},
        warmup=1,
        schedule=dict(use="constant"),
        ema=0.5,
        statistics=4,
        precision="auto",
        compile=False,
        channels_last=None,
        log_every=2,
        generator=dict(use="networks.srresnet.SRResNet", scale=4, width=8, depth=1),
        optimisers=dict(generator=dict(use="Adam", lr=0.001)),
        stages=[
            dict(name="content", steps=2, losses=dict(fine=dict(use="losses.pixel.mse", of="restored", to="target")))
        ],
    )
    faces, models = draw_set(4, 0, 0, size=64), root / "build" / "models"
    for name, steps in (("a_block", [BLOCK, X4]), ("b_plain", [X4]), ("c_damaged", [X4])):
        train(
            {**recipe, "label": f"Model {name[0].upper()}", "degradation": steps}, faces, models / name, progress=False
        )
    weights = models / "c_damaged" / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    for name, change in (("d_part", dict(kind="helpers")), ("e_baseline", dict(stages=[]))):
        (models / name).mkdir()
        (models / name / "recipe.json").write_text(json.dumps({**recipe, "label": name, "degradation": [X4], **change}))
    (models / "f_torn").mkdir()
    (models / "f_torn" / "recipe.json").write_text("{")
    return root


def test_models_for_this_chain_come_before_others_of_its_scale(project):
    found = models_for(Chain([X4]), project)
    assert [(m.name, m.fits) for m in found] == [("b_plain", True), ("c_damaged", True), ("a_block", False)]
    assert "Block" in found[2].learned
    assert [(m.name, m.fits) for m in models_for(Chain([X4, BLOCK]), project)] == [
        ("a_block", False),
        ("b_plain", False),
        ("c_damaged", False),
    ]  # another order is another chain
    assert models_for(Chain([dict(X4, scale=8)]), project) == [] == models_for(Chain([X4]), project / "nowhere")


def rewritten(path, steps):
    "Let a model have learned for so many steps."
    recipe = json.loads(path.read_text())
    recipe["stages"][0]["steps"] = steps
    path.write_text(json.dumps(recipe))


def test_shipped_models_restore_right_after_the_install_and_yours_go_first(project, shipped, tmp_path, monkeypatch):
    for name in ("a_block", "z_shipped"):
        shutil.copytree(project / "build" / "models" / "b_plain", shipped / name)
    rewritten(shipped / "a_block" / "recipe.json", steps=1)
    rewritten(project / "build" / "models" / "a_block" / "recipe.json", steps=2)
    try:
        ours = {m.name: m for m in models_for(Chain([X4]), project)}
        assert {name: m.shipped for name, m in ours.items()} == dict(
            b_plain=False, c_damaged=False, z_shipped=True, a_block=False
        )  # a_block is both, and ours learned longer
        assert ours["z_shipped"].faces == ours["b_plain"].faces == "drawn"
        monkeypatch.chdir(tmp_path)  # no project
        assert [(m.name, m.shipped) for m in models_for(Chain([X4]))] == [("a_block", True), ("z_shipped", True)]
        page = Explorer("plain_x4", index=1, size=64, root=project)
        assert (
            page.chips["z_shipped"].value
            and "(<code>z_shipped</code>, shipped) was trained for this chain, on drawn" in page.about_models.value
            and "(<code>b_plain</code>, yours)" in page.about_models.value
        )
        assert len(page.first.box.children) == 1 and "dB" in page.first.slots["restored"].children[0].value
        assert page.first.slots["restored"].children[1].value == page.restored.slots["b_plain"].children[1].value
    finally:
        for name in ("a_block", "z_shipped"):
            shutil.rmtree(shipped / name)


def test_restorations_are_measured_and_failures_have_a_message(project):
    view = with_restored(render(State(index=1, steps=(X4,), models=("b_plain", "c_damaged"))), project)
    good, bad = view.restored
    assert (
        good.image.shape == (3, 128, 128)
        and good.psnr == psnr(good.image[None], view.face.image, "rgb").item() != view.numbers["psnr"]
    )
    assert (
        bad.image is None
        and "Model C cannot restore this picture" in bad.problem
        and "damaged" in bad.problem
        and "\n" not in bad.problem
    )
    assert [r["model"] for r in describe_view(view)["restored"]] == ["b_plain"]


# --- the widgets


@dataclass(frozen=True)
class Everything(Degradation):
    "One parameter of each kind: hr (N,3,H,W)."

    level: float = number(0.5, 0, 2, "how much <of> it", "sides")
    times: int = number(3, 1, 9, "how often")
    angle: tuple = between((0, 90), -180, 180, "direction", "°")
    share: tuple = between((0.3, 0.35), 0, 1, "share")
    fill: str = one_of("black", ("black", "mean"), "what fills the hole")
    count: int = one_of(1, (1, 2, 4), "how many")
    kinds: tuple = one_of(("cloth",), ("cloth", "surgical"), "which masks")
    shade: str = colour("#102030", "colour of the cloth")
    dye: str = colour("random", "another colour")
    soft: bool = switch(True, "soften the edge")


def other_values(widget):
    "Two values that a widget may be moved to."
    import ipywidgets as w

    if isinstance(widget, (w.Checkbox, w.ToggleButton)):
        return [not widget.value, widget.value]
    if isinstance(widget, w.Dropdown):
        return [v for _, v in widget.options if v != widget.value][:2] or [widget.value]
    if isinstance(widget, w.ColorPicker):
        return ["#ff0000", "#00ff00"]
    if isinstance(widget.value, tuple):
        return [(widget.min, widget.max), (widget.max, widget.max)]
    return [widget.max, widget.min]


def on_step(control):
    "Does a browser leave the slider where it is? It moves one that stands between steps."
    slider = control.widgets[0]
    if control.about["kind"] not in ("number", "between"):
        return True
    return all(
        abs((v - slider.min) / slider.step - round((v - slider.min) / slider.step)) < 1e-6
        for v in np.atleast_1d(slider.value)
    )


def test_one_control_of_each_kind_gives_its_value_back():
    controls = {f.name: Control(f, getattr(Everything(), f.name)) for f in fields(Everything)}
    assert Everything(**{name: c.value for name, c in controls.items()}) == Everything()
    assert {name: type(c.widgets[0]).__name__ for name, c in controls.items()} == dict(
        level="FloatSlider",
        times="IntSlider",
        angle="IntRangeSlider",
        share="FloatRangeSlider",
        fill="Dropdown",
        count="Dropdown",
        kinds="ToggleButton",
        shade="ColorPicker",
        dye="ColorPicker",
        soft="Checkbox",
    )
    assert "&lt;of&gt;" in controls["level"].box.description and "(sides)" in controls["level"].box.description
    for c in controls.values():
        for widget in c.widgets:
            for value in other_values(widget):
                widget.value = value
        if c.about["kind"] != "several":
            Everything(**{c.name: c.value})  # within its range
    controls["dye"].widgets[1].value = False
    assert controls["dye"].value == "#00ff00"


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([(0.0, 1.0), (0.0, 5.0), (-45.0, 45.0), (1.0, 100.0), (0.3, 2.0)]),
    st.floats(0, 1).map(lambda v: round(v, 3)),
)
def test_slider_steps_hit_the_values_of_recipes(span, share):
    low, high = span
    value = round(low + share * (high - low), 3)
    step = slider_step(low, high, value)
    assert (
        abs(round((value - low) / step) * step + low - value) < 1e-6 * (high - low) and 50 <= (high - low) / step <= 2e5
    )


@pytest.mark.parametrize("use", CLASSES)
def test_controls_hold_the_defaults_of_every_degradation(use):
    cls = CLASSES[use]
    controls = [Control(f, getattr(cls(), f.name)) for f in fields(cls)]
    assert cls(**{c.name: c.value for c in controls}) == cls()
    assert [c.name for c in controls if not on_step(c)] == []


@pytest.fixture(scope="module")
def page():
    return Explorer("prior_guided_x8", index=1, size=64, root=ROOT)


def degraded(page):
    return page.main.slots["degraded"].children[1].value


@pytest.mark.parametrize("use", CLASSES)
def test_every_control_of_every_degradation_can_be_moved(page, use):
    page.chain.steps = [dict(use=use)]
    changes, start = {}, degraded(page)
    for control in page.chain.boxes[0].controls:
        for widget in control.widgets:
            before = widget.value
            for value in other_values(widget):
                widget.value = value
                assert page.view.error == page.error.value == "" or control.about["kind"] == "several", (
                    control.name,
                    value,
                    page.view.error,
                )
                if not page.view.error:
                    changes.setdefault(control.name, set()).add(degraded(page))
                    steps = yaml.safe_load(page.keep.code.value)["degradations"]["my_chain"]["steps"]
                    assert Chain(steps) == Chain(page.chain.steps) == page.view.chain
            widget.value = before
        assert page.view.error == "" and degraded(page) == start, control.name
    moved = {name for name, seen in changes.items() if seen - {start}}
    assert len(moved) >= 0.5 * len(changes), f"only {moved} of {list(changes)} change the picture"


def test_steps_can_be_added_moved_and_taken_away(page):
    page.chain.steps = [X4]
    page.chain.choice.value = BLOCK["use"]
    page.chain.add.click()
    assert [type(s).__name__ for s in page.view.chain.steps] == [
        "Downsample",
        "Block",
    ] and page.chain.accordion.selected_index == 1
    assert (
        page.chain.accordion.titles == ("1  Downsample", "2  Block")
        and page.chain.boxes[1].down.disabled
        and not page.chain.boxes[1].up.disabled
    )
    late = degraded(page)
    page.chain.boxes[1].up.click()
    assert [type(s).__name__ for s in page.view.chain.steps] == ["Block", "Downsample"] and degraded(page) != late
    assert "maps" not in page.view.error and [
        slot for slot in page.maps.slots if page.maps.slots[slot] in page.maps.box.children
    ] == ["M", "clean", "gamma"]
    page.chain.boxes[0].remove.click()
    page.chain.boxes[0].remove.click()
    assert (
        page.view.chain.steps == ()
        and page.maps_title.layout.display == "none"
        and page.main.slots["degraded"].children[1].value == page.main.slots["face"].children[1].value
    )
    page.again.click()
    assert page.view.chain == Chain(PRESETS["prior_guided_x8"]["steps"])


def test_seed_face_size_and_convention_do_what_they_say(page):
    page.chain.steps = [dict(use="degradations.camera.GaussianNoise")]
    before = degraded(page)
    page.seed.value = 5
    assert degraded(page) != before
    page.seed.value = 0
    assert degraded(page) == before
    face = page.main.slots["face"].children[1].value
    page.face.index.value = 9
    assert page.main.slots["face"].children[1].value != face
    page.face.size.value = 96
    assert page.view.face.image.shape[-1] == 96 and "96×96" in page.main.slots["face"].children[0].value
    rgb = page.numbers.value
    page.convention.value = "y"
    assert page.numbers.value != rgb and "BT.601" in page.about_convention.value
    page.convention.value, page.face.size.value, page.face.index.value = "rgb", 64, 1


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_chosen(page, name):
    page.preset.value = name
    page.load()
    assert page.error.value == "" and page.view.chain == Chain(PRESETS[name]["steps"])
    assert page.equation.value.count("displaystyle") == len(page.view.equation)
    assert [c.name for box in page.chain.boxes for c in box.controls if not on_step(c)] == []


def test_faces_of_every_kind(page, tmp_path):
    page.preset.value = "jdsr_gan_x4"
    box = page.face
    box.kind.value = "astronaut"
    assert page.view.error == "" and page.view.face.name == "astronaut" and box.index.layout.display == "none"
    box.kind.value = "upload"
    assert "no picture yet" in page.error.value and box.upload.layout.display is None and page.main.box.children == ()
    box.upload.value = (
        {
            "name": "me.png",
            "type": "image/png",
            "size": 1,
            "content": memoryview(encoded(portrait()).content),
            "last_modified": datetime.now(),
        },
    )
    assert "point at its eyes" in page.error.value and list(page.view.pictures) == ["face"]
    box.point.value = True
    assert page.error.value == "" and page.view.face.name == "me.png" and box.source.points == tuple(POINTS.values())
    before = page.main.slots["face"].children[1].value, degraded(page)
    box.points[9].value += 0.05
    assert before[0] != page.main.slots["face"].children[1].value and before[1] != degraded(
        page
    )  # the cross and the mask move
    draw_set(1, 0, 3, size=64).save(tmp_path / "faces.safetensors")
    box.kind.value, box.path.value = "path", str(tmp_path)
    assert (
        page.error.value == ""
        and box.index.max == 3
        and box.split.layout.display is None
        and box.point.layout.display == "none"
    )
    box.index.value = 3
    box.split.value = "test"
    assert box.index.max == 2 and page.view.error == ""
    box.path.value = str(tmp_path / "gone.png")
    assert "gone.png does not exist" in page.error.value
    box.kind.value = "drawn"
    assert page.error.value == "" and box.index.max >= 199


def test_copy_and_save(page, tmp_path):
    page.preset.value = "fcsr_gan_x4"
    page.keep.copy.click()
    assert page.keep.yaml.layout.display is None
    page.keep.name.value = "occluded"
    assert list(yaml.safe_load(page.keep.code.value)["degradations"]) == ["occluded"]
    page.keep.folder.value = str(tmp_path)
    page.keep.save.click()
    assert (
        "saved in" in page.keep.message.value
        and (tmp_path / "0001" / "recipe.yaml").read_text() == page.keep.code.value
    )
    page.keep.folder.value = str(tmp_path / "0001" / "hr.png")
    page.keep.save.click()
    assert "fl-error" in page.keep.message.value


def test_models_are_offered_and_restore(project):
    page = Explorer("fcsr_gan_x4", index=1, size=64, root=project)
    assert "for another one" in page.about_models.value and len(page.chips) == 3 and len(page.view.restored) == 1
    page.chain.steps = [X4]
    assert (
        page.chips["b_plain"].value
        and "was trained for this chain" in page.about_models.value
        and "Model C cannot restore" in page.about_models.value
    )
    assert list(page.restored.slots) and bytes(page.restored.box.children[-1].children[1].value).startswith(b"\x89PNG")
    page.chips["b_plain"].value = page.chips["c_damaged"].value = False
    assert "No model is chosen" in page.about_models.value and page.restored.box.children == ()
    page.chain.steps = [dict(X4, scale=8)]
    assert "No trained model" in page.about_models.value and page.models.children == ()


def test_a_preset_that_cannot_be_made_gives_a_message(project):
    page = Explorer("fcsr_gan_x4", root=project)
    page.presets["fcsr_gan_x4"]["steps"] = [dict(use="degradations.occlusion.Blok")]
    page.again.click()
    assert "did you mean" in page.error.value and page.chain.steps == ()
    with pytest.raises(FacelabError, match="there is no preset 'x9'"):
        Explorer("x9", root=project)


def test_a_gallery_only_sends_what_changed():
    gallery, sent = Gallery(), []
    gallery.show({"a": (b"1", ""), "b": (b"2", "")})
    for name in "ab":
        gallery.slots[name].children[1].observe(lambda change, name=name: sent.append(name), "value")
    gallery.box.observe(lambda change: sent.append("children"), "children")
    gallery.show({"a": (b"1", ""), "b": (b"3", "")})
    assert sent == ["b"]


def test_the_sheet_has_a_cell_for_every_family_of_presets():
    families = {entry.get("one_of", name) for name, entry in PRESETS.items() if entry["steps"]}
    assert len(preset_sheet(size=32, root=ROOT).axes) == 1 + len(families)


def test_style_and_script_are_package_data():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["facelab"]
    packed = {path for pattern in settings for path in (ROOT / "facelab").glob(pattern)}
    assert {ROOT / "facelab" / "apps" / f"widgets.{kind}" for kind in ("css", "js")} <= packed
