"Pictures as users have them: several faces, masks of any kind, grey, transparent, in folders; told and written down."

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facelab import FacelabError
from facelab.apps.commands import main
from facelab.apps.files import Done, FaceFinder, Masks, Shot, open_shot, restore_files, restore_shots
from facelab.base.images import read_picture, to_uint8, write_image
from facelab.base.names import build
from facelab.base.params import load_params
from facelab.evaluation.photographs import (
    RECORD,
    Restorer,
    find_pictures,
    left_out,
    open_photograph,
    put_back,
    read_mask,
    result_names,
    tone_of,
)
from facelab.faces.drawn import draw_faces
from facelab.faces.tables import read_table
from facelab.networks.identity_start import start_as_identity
from facelab.training.models import write_model
from facelab.training.recipes import load_recipes, resolve

FACES = draw_faces(range(3))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Two systems that only enlarge; the second takes a mask."
    folder, recipes, params = tmp_path_factory.mktemp("models"), load_recipes(), load_params()
    for name in ("srresnet", "fcsr_gan_pconv_srresnet_x4"):
        recipe = resolve(name, recipes, params)
        spec = {k: 128 if v == "faces.size" else v for k, v in recipe["generator"].items()} | {"width": 8}
        net = build(spec)
        start_as_identity(net if name == "srresnet" else net.sr)
        recipe = {**recipe, "generator": spec, "critics": {}, "faces": "drawn"}
        write_model(folder / name, {"generator": net.state_dict()}, recipe)
    return folder


@pytest.fixture
def restorer(models):
    return Restorer(models / "srresnet")


def scene(size=(420, 260), faces=((0, 40, 60), (1, 240, 80))):
    "A grey wall with drawn faces of 128 pixels, and their points."
    canvas = Image.new("RGB", size, (90, 110, 130))
    points = []
    for k, x, y in faces:
        canvas.paste(Image.fromarray(to_uint8(FACES["image"][k]).permute(1, 2, 0).numpy()), (x, y))
        points.append(FACES["landmarks_68"][k] + torch.tensor([x, y]))
    return canvas, points


def row(name, points):
    return f"{name}," + ",".join(f"{v:.2f}" for v in points.flatten().tolist()) + "\n"


def album(folder, name="photo.png", mode="RGB", **more):
    "A picture with one face in a folder, and a finder that knows it."
    canvas, points = scene(**{"faces": ((0, 40, 60),)} | more)
    folder.mkdir(parents=True, exist_ok=True)
    canvas.convert(mode).save(folder / name)
    (folder / "points.csv").write_text(row(name, points[0]))
    return folder / name, FaceFinder(read_table(folder / "points.csv"))


# --- names and folders


@pytest.mark.parametrize(
    "given, names",
    [
        (["a/1.jpg", "b/2.jpg"], ["1", "2"]),
        (["a/1.jpg", "b/1.jpg"], ["a/1", "b/1"]),
        (["a/1.jpg", "a/1.png"], ["1.jpg", "1.png"]),
        (["a/1.jpg", "a/1.JPG", "b/1.png"], ["a/1.jpg", "a/1.JPG", "b/1"]),
        (["a/Ü.jpg", "b/Ü.jpg"], ["a/Ü", "b/Ü"]),
    ],
)
def test_results_of_different_pictures_never_meet(tmp_path, given, names):
    assert result_names([tmp_path / g for g in given]) == names


def test_equal_names_in_two_folders_are_both_restored(tmp_path, restorer):
    for folder, k in (("1931", 0), ("1932/summer", 1)):
        write_image(tmp_path / folder / "scan001.png", FACES["image"][k])
    done = restore_files([tmp_path / "1931", tmp_path / "1932/summer"], [restorer], tmp_path / "out", progress=False)
    assert [p.relative_to(tmp_path).as_posix() for p in done.written] == [
        "out/1931/scan001.png",
        "out/1932/summer/scan001.png",
    ]
    assert not done.failed and done.written[0].read_bytes() != done.written[1].read_bytes()


def test_sub_folders_are_named_with_a_pattern_that_works(tmp_path):
    for folder in ("1931", "1932/summer"):
        write_image(tmp_path / folder / "scan001.png", FACES["image"][0])
    with pytest.raises(FacelabError, match="its folders 1931, 1932/summer do") as error:
        find_pictures([tmp_path])
    pattern = str(error.value).split("'")[1]
    assert len(find_pictures([pattern])) == 2
    write_image(tmp_path / "top.png", FACES["image"][0])
    assert "1931, 1932/summer are not looked at" in " ".join(left_out([tmp_path]))


def test_own_results_are_no_pictures_and_others_are_counted(tmp_path, restorer):
    Image.fromarray(to_uint8(FACES["image"][0]).permute(1, 2, 0).numpy()).save(tmp_path / "me.jpg", quality=95)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._me.jpg").write_bytes(b"\0\5\x16\7")
    once = restore_files([tmp_path], [restorer], tmp_path, sheet=True, progress=False)
    bytes_once = [p.read_bytes() for p in once.written]
    assert (
        [p.name for p in find_pictures([tmp_path])] == ["me.jpg"] == [p.name for p in find_pictures([tmp_path / "*"])]
    )
    twice = restore_files([tmp_path], [restorer], tmp_path, sheet=True, progress=False)
    assert [p.read_bytes() for p in twice.written] == bytes_once and not twice.failed
    said = " ".join(left_out([tmp_path]))
    assert "results of facelab, left out: 2" in said and "no pictures, left out: 1 (first notes.txt)" in said
    other = tmp_path / "results"
    restore_files([tmp_path], [restorer], other, progress=False)
    assert [p.name for p in find_pictures([other])] == ["me.png"]  # where all are results, they are what is meant


def test_the_record_keeps_what_earlier_runs_made(tmp_path, restorer):
    for k in range(2):
        write_image(tmp_path / "in" / f"{k}.png", FACES["image"][k])
        restore_files([tmp_path / "in" / f"{k}.png"], [restorer], tmp_path / "out", progress=False)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["files"] == ["0.png", "1.png"] and len(record["pictures"]) == 2
    (tmp_path / "out" / RECORD).write_text("[")
    assert len(find_pictures([tmp_path / "out"])) == 2


# --- what a picture is comes back


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_outside_of_the_face_no_byte_changes_and_grey_stays_grey(tmp_path, mode):
    path, finder = album(tmp_path, mode=mode)
    finder.look_up([path])
    photos, _, _ = finder(path, 128)
    red = FACES["image"][1] * torch.tensor([1, 0.4, 0.2])[:, None, None]
    before, after = np.asarray(photos[0].picture).astype(int), np.asarray(put_back(photos, [red])).astype(int)
    reach = photos[0].side / 2 * 1.5
    x, y = photos[0].centre
    far = np.hypot(*(np.indices(before.shape[:2])[::-1] + 0.5 - np.array([x, y])[:, None, None])) > reach
    assert photos[0].side >= 128 and np.array_equal(before[far], after[far]) and not np.array_equal(before, after)
    assert (np.ptp(after, axis=2).max() <= 2) == (mode == "L")


def test_sepia_stays_sepia_and_colours_are_no_tone():
    grey = Image.fromarray(to_uint8(FACES["image"][0]).permute(1, 2, 0).numpy()).convert("L")
    from PIL import ImageOps

    sepia = ImageOps.colorize(grey, "#20140a", "#f4e6c8")
    light = np.asarray(sepia.convert("L"))
    assert np.abs(tone_of(sepia)[light].astype(int) - np.asarray(sepia)).max() <= 3
    assert tone_of(Image.fromarray(to_uint8(FACES["image"][0]).permute(1, 2, 0).numpy())) is None
    assert np.array_equal(tone_of(grey.convert("RGB"))[:, 0], np.arange(256))


def test_transparency_is_kept(tmp_path, restorer):
    path, finder = album(tmp_path, mode="RGBA")
    picture = Image.open(path)
    alpha = np.tile(np.linspace(0, 255, picture.width).astype(np.uint8), (picture.height, 1))
    picture.putalpha(Image.fromarray(alpha))
    picture.save(path)
    done = restore_files([path], [restorer], tmp_path / "out", finder, progress=False)
    assert np.array_equal(np.asarray(Image.open(done.written[0]))[..., 3], alpha)
    assert "its transparency is kept" in done.told[0]["notes"]
    small = Image.fromarray(np.dstack([np.full((16, 16, 3), 90, np.uint8), np.eye(16, dtype=np.uint8) * 255]))
    small.save(tmp_path / "small.png")
    done = restore_files([tmp_path / "small.png"], [restorer], tmp_path / "out", progress=False)
    assert Image.open(done.written[0]).mode == "RGBA"


def test_every_face_of_a_picture_is_put_back(tmp_path, restorer):
    canvas, points = scene()
    canvas.save(tmp_path / "two.png")
    opened = read_picture(tmp_path / "two.png")
    photos = [open_photograph(tmp_path / "two.png", 128, p, opened) for p in points]
    shot = Shot(tmp_path / "two.png", "two", photos, "found", [])
    made, failed = restore_shots([shot], [restorer], batch=1)
    assert not failed and made[shot.path][0][1].shape == (2, 3, 128, 128)
    together = np.asarray(put_back(photos, list(made[shot.path][0][1]))).astype(int)
    changed = np.abs(together - np.asarray(canvas.resize(together.shape[1::-1], Image.BICUBIC))).max(2)
    for photo in photos:
        x, y = (round(v * together.shape[1] / canvas.width) for v in photo.centre)
        assert changed[y - 20 : y + 20, x - 20 : x + 20].max() > 5


def test_a_picture_that_fails_fails_alone(tmp_path, models):
    class Picky(Restorer):
        def __call__(self, faces, hidden=None):
            if (faces > 0.99).flatten(1).all(1).any():
                raise FacelabError("too bright")
            return super().__call__(faces, hidden)

    for k in range(3):
        write_image(tmp_path / "in" / f"{k}.png", torch.ones(3, 64, 64) if k == 1 else FACES["image"][k])
    done = restore_files([tmp_path / "in"], [Picky(models / "srresnet")], tmp_path / "out", progress=False)
    assert [p.name for p in done.written] == ["0.png", "2.png"] and len(done.failed) == 1
    assert "1.png: too bright" in done.failed[0]


def test_no_memory_is_told_as_such(restorer, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("facelab.evaluation.photographs.call_network", full)
    with pytest.raises(FacelabError, match="no memory is left: give a smaller --batch"):
        restorer(torch.zeros(2, 3, 128, 128))


# --- masks


def drawn_mask(shape, kind, where):
    "A mask of a kind, as a picture."
    grey = np.where(where, 255, 0).astype(np.uint8)
    if kind == "palette":
        picture = Image.fromarray(where.astype(np.uint8)).convert("P")
        picture.putpalette([0, 0, 0, 128, 0, 0])
        return picture
    return {
        "grey": lambda: Image.fromarray(grey),
        "colour": lambda: Image.fromarray(np.dstack([grey] * 3)),
        "bits": lambda: Image.fromarray(where),
        "ones": lambda: Image.fromarray(where.astype(np.uint8)),
        "sixteen": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "white on nothing": lambda: Image.fromarray(np.dstack([grey] * 4)),
        "black on nothing": lambda: Image.fromarray(np.dstack([grey * 0] * 3 + [grey])),
        "opaque": lambda: Image.fromarray(np.dstack([grey] * 3 + [grey * 0 + 255])),
        "larger": lambda: Image.fromarray(grey).resize((2 * shape[1], 2 * shape[0]), Image.NEAREST),
    }[kind]()


KINDS = "palette grey colour bits ones sixteen opaque larger".split() + ["white on nothing", "black on nothing"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inverted", [False, True])
def test_masks_of_every_kind_hide_the_same(tmp_path, kind, inverted):
    path, finder = album(tmp_path)
    finder.look_up([path])
    photo = finder(path, 128)[0][0]
    where = np.zeros(photo.picture.size[::-1], bool)
    where[120:] = True
    if kind.endswith("nothing") and inverted:
        where = ~where
    (tmp_path / "masks").mkdir()
    shown = where if not inverted or kind.endswith("nothing") else ~where
    drawn_mask(where.shape, kind, shown).save(tmp_path / "masks" / "PHOTO.png")
    mask = read_mask(path, tmp_path / "masks", photo, inverted)
    hidden = open_photograph(path, 128, photo.landmarks, photo.opened)
    assert mask.shape == (1, 1, 128, 128) and set(mask.unique().tolist()) == {0, 1}
    y = photo.centre[1]
    assert mask[..., -8:, :].min() == 1 and mask[..., :8, :].max() == 0 and hidden.side == photo.side and 90 < y < 150


def test_a_mask_of_most_of_the_face_asks_first(tmp_path):
    path, finder = album(tmp_path)
    finder.look_up([path])
    (tmp_path / "masks").mkdir()
    Image.new("L", Image.open(path).size, 255).save(tmp_path / "masks" / "photo.png")
    with pytest.raises(FacelabError, match="hides 100% of a face: give --yes"):
        open_shot(path, "photo", 128, finder, Masks(tmp_path / "masks"))
    shot = open_shot(path, "photo", 128, finder, Masks(tmp_path / "masks", sure=True))
    assert "100% of the face are hidden" in shot.notes
    shot = open_shot(path, "photo", 128, finder, Masks(tmp_path / "masks", inverted=True))
    assert "0% of the face are hidden" in shot.notes


def test_masks_that_do_not_fit_are_refused(tmp_path):
    path, finder = album(tmp_path)
    finder.look_up([path])
    photo, masks = finder(path, 128)[0][0], tmp_path / "masks"
    masks.mkdir()
    with pytest.raises(FacelabError, match="has no mask for .*photo.png: add photo.png"):
        read_mask(path, masks, photo)
    Image.new("L", (100, 100)).save(masks / "photo.png")
    with pytest.raises(FacelabError, match="the size or the shape of its picture"):
        read_mask(path, masks, photo)
    for suffix in ("jpg", "bmp"):
        Image.new("L", photo.picture.size).save(masks / f"photo.{suffix}")
    (masks / "photo.png").unlink()
    with pytest.raises(FacelabError, match="are both a mask for"):
        read_mask(path, masks, photo)


def test_a_mask_is_of_one_picture(tmp_path):
    masks = Masks(tmp_path / "masks")
    for folder in ("a", "b"):
        write_image(tmp_path / folder / "me.png", FACES["image"][0])
    write_image(tmp_path / "masks" / "me.png", torch.zeros(3, 128, 128))
    open_shot(tmp_path / "a" / "me.png", "a/me", 128, FaceFinder(), masks)
    with pytest.raises(FacelabError, match="fits two pictures, .*a/me.png and .*b/me.png"):
        open_shot(tmp_path / "b" / "me.png", "b/me", 128, FaceFinder(), masks)
    write_image(tmp_path / "masks" / "b" / "me.png", torch.zeros(3, 128, 128))
    assert open_shot(tmp_path / "b" / "me.png", "b/me", 128, FaceFinder(), masks).masks.max() == 0


def test_systems_that_take_no_mask_say_so(tmp_path, models, capsys):
    path, _ = album(tmp_path)
    (tmp_path / "masks").mkdir()
    Image.new("L", Image.open(path).size).save(tmp_path / "masks" / "photo.png")
    words = ["restore", str(path), "--landmarks", str(tmp_path / "points.csv"), "--hidden", str(tmp_path / "masks")]
    systems = ["--system", str(models / "srresnet"), str(models / "fcsr_gan_pconv_srresnet_x4")]
    assert main([*words, *systems, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "srresnet takes no mask" in said and "fcsr_gan_pconv_srresnet_x4 takes no mask" not in said


# --- which faces


def test_tables_that_say_nothing_of_a_picture_are_told(tmp_path):
    path, _ = album(tmp_path)
    (tmp_path / "others.csv").write_text(row("another.png", scene()[1][0]))
    finder = FaceFinder(read_table(tmp_path / "others.csv"))
    finder.look_up([path])
    _, how, notes = finder(path, 128)
    assert "no row of" in notes[0] and "another.png" in notes[0] and how.startswith("taken as")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_table_of_no_use_is_told_even_quietly(tmp_path, models, capsys, quiet):
    path, _ = album(tmp_path / "in", "wide.png")
    write_image(tmp_path / "in" / "square.png", FACES["image"][0])
    words = ["restore", str(tmp_path / "in"), "--landmarks", str(tmp_path / "in" / "points.csv"), "--cut-out"]
    path.with_name("points.csv").write_text("wide.png" + "," * 10 + "\n" + row("other.png", scene()[1][0]))
    assert main([*words, "--system", str(models / "srresnet"), "--out", str(tmp_path / "out"), *quiet]) == 0
    said = capsys.readouterr().err
    assert "the row of wide.png in" in said and "is empty" in said and "no row of" in said


def test_points_of_the_stored_pixels_are_told(tmp_path):
    canvas, points = scene(faces=((0, 40, 60),))
    exif = Image.Exif()
    exif[274] = 6
    canvas.rotate(90, expand=True).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    x, y = points[0].T
    stored = torch.stack([y, canvas.width - x], 1)
    for marks, words in ((points[0], None), (stored, "before its EXIF tag turns it")):
        (tmp_path / "points.csv").write_text(row("phone.jpg", marks))
        finder = FaceFinder(read_table(tmp_path / "points.csv"))
        finder.look_up([tmp_path / "phone.jpg"])
        if words:
            with pytest.raises(FacelabError, match=words):
                finder(tmp_path / "phone.jpg", 128)
        else:
            assert finder(tmp_path / "phone.jpg", 128)[1] == "by its landmarks"


class Found:
    def __init__(self, points, turn=0):
        self.points, self.turn, self.how, self.score = points, turn, "a test", 1.0


@pytest.mark.parametrize(
    "which, faces, notes",
    [("all", 2, []), ("largest", 1, ["1 other faces"]), (2, 1, ["1 other faces"]), (3, None, "no number 3")],
)
def test_all_faces_or_those_that_are_asked_for(tmp_path, monkeypatch, which, faces, notes):
    canvas, points = scene()
    canvas.save(tmp_path / "two.png")
    monkeypatch.setattr("facelab.apps.files.find_faces", lambda *_: [Found(p) for p in points])
    finder = FaceFinder(landmarker=object(), which=which)
    if faces is None:
        with pytest.raises(FacelabError, match=notes):
            finder(tmp_path / "two.png", 128)
        return
    photos, how, said = finder(tmp_path / "two.png", 128)
    assert len(photos) == faces and how == "found by a test"
    assert [note[: len(n)] for note, n in zip(said, notes)] == notes and len(said) == len(notes)
    assert which != 2 or photos[0].centre[0] > 240


@pytest.mark.parametrize(
    "size, side, options, how",
    [
        ((16, 16), None, {}, "cut out"),
        ((16, 20), None, {}, "cut out"),
        ((22, 27), None, {}, "cut out"),
        ((128, 128), None, {}, "cut out"),
        ((200, 200), None, {}, "no face was found in it: taken as"),
        ((200, 200), None, {"find": True}, None),
        ((200, 300), None, {}, None),
        ((200, 300), None, {"cut_out": True}, "cut out"),
        ((512, 512), None, {}, None),
        ((200, 200), 180, {}, "cut out"),
        ((200, 200), 180, {"find": True}, "found by"),
        ((512, 512), 100, {}, "found by"),
        ((200, 300), 180, {}, "found by"),
    ],
)
def test_what_is_a_face_and_what_is_a_photograph(tmp_path, monkeypatch, size, side, options, how):
    Image.new("RGB", size, (80, 120, 160)).save(tmp_path / "a.png")
    five = torch.tensor([[-0.123, -0.03], [0.123, -0.03], [0, 0.09], [-0.1, 0.22], [0.1, 0.22]]) * (side or 1)
    found = [Found(five + torch.tensor(size) / 2)] if side else []
    monkeypatch.setattr("facelab.apps.files.find_faces", lambda *_: found)
    finder = FaceFinder(landmarker=object(), **options)
    if how is None:
        with pytest.raises(FacelabError, match="no face was found in .*--cut-out"):
            finder(tmp_path / "a.png", 128)
        return
    photos, said, _ = finder(tmp_path / "a.png", 128)
    assert how in said and len(photos) == 1


def test_what_was_done_is_told_in_one_line_a_picture(tmp_path, models, capsys):
    path, _ = album(tmp_path, mode="L")
    words = ["restore", str(path), "--landmarks", str(tmp_path / "points.csv"), "--system", str(models / "srresnet")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    line = next(line for line in err.splitlines() if line.startswith(str(path)))
    assert "1 face of" in line and "by its landmarks, by srresnet" in line and "in one tone" in line
    assert Path(out.strip()).name == "photo.png"
    told = json.loads((tmp_path / "out" / RECORD).read_text())["pictures"][0]
    assert told["found"] == "by its landmarks" and told["systems"] == ["srresnet"] and len(told["faces"]) == 1
    assert isinstance(Done().told, list)
