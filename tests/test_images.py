"Reading, writing and showing images: every kind of file that a folder of faces has been seen to hold."

import io

import numpy as np
import pytest
import torch
from conftest import exchanged_profile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageCms

from facelab import FacelabError
from facelab.base.files import replacing
from facelab.base.images import (
    astronaut,
    colour_labels,
    is_picture,
    list_pictures,
    open_image,
    picture_size,
    read_image,
    read_picture,
    show,
    to_float,
    to_uint8,
    write_image,
)

RAMP = np.add.outer(np.arange(0, 96, 4), np.arange(0, 160, 4)).astype(np.uint8)  # 24 x 40
GREY = torch.from_numpy(RAMP).expand(3, -1, -1)


@pytest.mark.parametrize(
    "mode, suffix",
    [
        ("L", "png"),
        ("RGB", "png"),
        ("P", "png"),
        ("RGBA", "png"),
        ("LA", "png"),
        ("RGB", "bmp"),
        ("L", "tif"),
        ("CMYK", "tif"),
        ("P", "gif"),
    ],
)
def test_every_mode_reads_as_the_same_rgb(tmp_path, mode, suffix):
    Image.fromarray(RAMP).convert(mode).save(tmp_path / f"a.{suffix}")
    assert torch.equal(read_image(tmp_path / f"a.{suffix}", (24, 40)), GREY)


def test_sixteen_bits_are_rounded_not_cut(tmp_path):
    deep = np.array([[0, 128, 129, 257, 32767, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, 0].tolist() == np.round(deep[0] / 257).astype(int).tolist()


def test_transparent_pixels_are_white_whatever_colour_they_hide(tmp_path):
    picture = np.dstack([np.full((2, 2, 3), 10, np.uint8), np.array([[0, 255], [0, 255]], np.uint8)])
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255, 10], [255, 10]]
    Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P").save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png")[0, 0, 0] == 255


@pytest.mark.parametrize(
    "orientation, back",
    [
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a, 1)),
        (2, lambda a: a[:, ::-1]),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, back):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(RAMP).save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "phone.png")[0].numpy(), back(RAMP))


@pytest.mark.parametrize(
    "suffix, more",
    [("jpg", {}), ("png", {}), ("webp", {}), ("avif", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})],
)
@pytest.mark.parametrize("tag", [*range(10), 400])
def test_one_opinion_on_which_way_up(tmp_path, suffix, more, tag):
    if more and not 1 <= tag <= 8:
        more = {}  # libtiff writes no such tag
    exif = Image.Exif()
    exif[274] = tag
    Image.fromarray(RAMP).convert("RGB").save(tmp_path / f"a.{suffix}", exif=exif, **more)
    opened = read_picture(tmp_path / f"a.{suffix}")
    assert (
        opened.colours.size == picture_size(tmp_path / f"a.{suffix}") == ((24, 40) if tag in (5, 6, 7, 8) else (40, 24))
    )
    corner = np.asarray(opened.colours.resize((2, 2)))[..., 0].argmax()  # the bright one of the ramp, bottom right
    where = {2: (1, 0), 3: (0, 0), 4: (0, 1), 5: (1, 1), 6: (1, 0), 7: (0, 0), 8: (0, 1)}.get(tag, (1, 1))
    assert divmod(corner, 2) == where


def test_damaged_exif_turns_nothing(tmp_path):
    for name, exif in {
        "short": b"Exif\0\0MM",
        "wild": b"Exif\0\0II*\0\xff\xff\xff\x7f",
        "text": b"Exif\0\0none",
    }.items():
        for suffix in ("jpg", "png", "webp"):
            Image.fromarray(RAMP).convert("RGB").save(tmp_path / f"{name}.{suffix}", exif=exif)
            assert (
                open_image(tmp_path / f"{name}.{suffix}").size
                == picture_size(tmp_path / f"{name}.{suffix}")
                == (40, 24)
            )


@pytest.mark.parametrize(
    "suffix, mode",
    [("png", "RGB"), ("jpg", "RGB"), ("tif", "RGB"), ("webp", "RGB"), ("avif", "RGB"), ("png", "RGBA"), ("png", "P")],
)
def test_colours_are_those_of_the_profile(tmp_path, suffix, mode):
    red = np.zeros((24, 40, 3), np.uint8) + np.array([200, 80, 30], np.uint8)
    exchanged = Image.fromarray(red[..., [1, 0, 2]])
    exchanged = exchanged.quantize(2) if mode == "P" else exchanged.convert(mode)
    exchanged.save(
        tmp_path / f"a.{suffix}", icc_profile=exchanged_profile(), **({"quality": 95} if suffix != "png" else {})
    )
    opened = read_picture(tmp_path / f"a.{suffix}")
    assert np.abs(np.asarray(opened.picture).astype(int) - red).max() <= 3
    assert "to sRGB" in " ".join(opened.notes)


def test_srgb_profiles_and_useless_ones_change_no_number(tmp_path):
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, icc in {"srgb": srgb, "broken": b"none", "cmyk": srgb.replace(b"RGB XYZ", b"CMYKXYZ", 1)}.items():
        rgb.save(tmp_path / f"{name}.png", icc_profile=icc)
        opened = read_picture(tmp_path / f"{name}.png")
        assert np.array_equal(np.asarray(opened.colours), np.asarray(rgb)) and len(opened.notes) == (name != "srgb")


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_fewer_bits_in_sixteen_are_scaled_and_told(tmp_path, bits, suffix):
    deep = (RAMP.astype(np.float64) / RAMP.max() * (2**bits - 1)).round().astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    opened = read_picture(tmp_path / f"a.{suffix}")
    assert np.abs(np.asarray(opened.colours)[..., 0] - RAMP / RAMP.max() * 255).max() <= 1
    assert (f"{bits} bits" in " ".join(opened.notes)) == (bits < 16)


def test_a_nearly_black_picture_is_told(tmp_path):
    Image.fromarray(RAMP // 20).save(tmp_path / "a.png")
    assert "nearly black" in " ".join(read_picture(tmp_path / "a.png").notes)


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_pages_left_out_are_told(tmp_path, suffix):
    pages = [Image.fromarray(np.full((24, 40, 3), v, np.uint8)) for v in (200, 100, 50)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    opened = read_picture(tmp_path / f"a.{suffix}")
    assert abs(int(np.asarray(opened.colours).mean()) - 200) < 3 and "it has 3" in opened.notes[0]


@pytest.mark.parametrize(
    "marks, sizes, taken",
    [
        ((1, 0), (8, 40), 40),
        ((0, 0), (8, 40), 40),
        ((0, 1), (40, 8), 40),
        ((0, 0), (30, 40), 30),
        ((1, 0), (40, 30), 30),
    ],
)
def test_a_preview_is_not_the_picture(tmp_path, marks, sizes, taken):
    from PIL import TiffImagePlugin

    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), True) as file:
        for mark, side in zip(marks, sizes):
            Image.new("RGB", (side, side)).save(file, "TIFF", tiffinfo={254: mark})
            file.newFrame()
    assert open_image(tmp_path / "a.tif").size == picture_size(tmp_path / "a.tif") == (taken, taken)


def test_previews_alone_are_refused(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.dng", "TIFF", tiffinfo={254: 1})
    with pytest.raises(FacelabError, match="a.dng cannot be read .*nothing but previews: save the photograph as JPEG"):
        open_image(tmp_path / "a.dng")


def test_transparency_is_kept_beside_the_colours(tmp_path):
    alpha = np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (24, 1))
    Image.fromarray(np.dstack([RAMP, RAMP, RAMP, alpha])).save(tmp_path / "a.png")
    opened = read_picture(tmp_path / "a.png")
    assert np.array_equal(np.asarray(opened.alpha), alpha) and np.array_equal(np.asarray(opened.colours)[..., 0], RAMP)
    Image.fromarray(RAMP).convert("RGBA").save(tmp_path / "opaque.png")
    assert read_picture(tmp_path / "opaque.png").alpha is None


def test_which_files_are_pictures(tmp_path):
    yes = "a.jpg b.JPG c.jfif d.jpe e.avif f.heic g.jp2 h.webp i.TIFF j.png k10.png k9.png".split()
    no = "._a.jpg .hidden.png Thumbs.db notes.txt film.mpg page.eps labels.csv".split()
    for name in (*yes, *no):
        (tmp_path / name).touch()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "a.jpg").touch()
    assert [p.name for p in list_pictures(tmp_path)] == [*yes[:-2], "k9.png", "k10.png"]
    assert not is_picture(tmp_path / "__MACOSX" / "a.jpg") and list_pictures(tmp_path / "none") == []


def broken(folder):
    "File name -> words that the error must hold."
    good = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(good, "JPEG")
    png = io.BytesIO()
    Image.fromarray(RAMP).save(png, "PNG")
    (folder / "cut.jpg").write_bytes(good.getvalue()[:-500])
    (folder / "cut.png").write_bytes(png.getvalue()[:60])
    (folder / "flipped.png").write_bytes(png.getvalue()[:50] + bytes([png.getvalue()[50] ^ 255]) + png.getvalue()[51:])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("<html>quota exceeded</html>")
    (folder / "folder.png").mkdir()
    Image.new("1", (10000, 9000)).save(folder / "huge.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    Image.fromarray(RAMP.astype(np.float32)).save(folder / "float.tif")
    return {
        "cut.jpg": "truncated",
        "cut.png": "cannot be read",
        "flipped.png": "cannot be read",
        "empty.png": "not an image",
        "text.jpg": "not an image",
        "folder.png": "is a folder",
        "huge.png": "make it smaller",
        "bomb.png": "cannot be read",
        "float.tif": "floating-point",
        "missing.png": "does not exist",
    }


def test_bad_files_get_one_sentence_that_names_them(tmp_path):
    for name, words in broken(tmp_path).items():
        with pytest.raises(FacelabError) as error:
            read_image(tmp_path / name)
        text = str(error.value)
        assert name in text and words in text and "\n" not in text and ": " in text, text
        assert error.value.__cause__ is None and error.value.__suppress_context__


def test_wrong_size_names_both(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    with pytest.raises(FacelabError, match=r"a\.png is 40x24 .* but 128x128"):
        read_image(tmp_path / "a.png", 128)
    assert read_image(tmp_path / "a.png", (24, 40)).shape == (3, 24, 40)


def test_masks_open_as_grey(tmp_path):
    Image.fromarray(RAMP).convert("RGB").save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "mask.png", "L")), RAMP)


def test_replacing_is_all_or_nothing(tmp_path):
    target = tmp_path / "deep" / "down" / "a.txt"
    with replacing(target) as p:
        assert p.parent == target.parent and p.suffix == ".txt"
        p.write_text("one")
    for stop in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(stop):
            with replacing(target) as p:
                p.write_text("half")
                raise stop
    assert target.read_text() == "one" and [f.name for f in target.parent.iterdir()] == ["a.txt"]


def test_written_pixels_come_back_and_bytes_repeat(tmp_path):
    x = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2
    write_image(tmp_path / "a.png", x)
    write_image(tmp_path / "b.png", to_uint8(x))
    assert torch.equal(read_image(tmp_path / "a.png"), to_uint8(x))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").info == {"srgb": 0}


@pytest.mark.parametrize(
    "name, image, words",
    [
        ("a.jpg", torch.zeros(3, 4, 4), ".png"),
        ("a.png", torch.zeros(1, 3, 4, 4), "(1, 3, 4, 4)"),
        ("a.png", torch.zeros(1, 4, 4), "(1, 4, 4)"),
        ("a.png", torch.full((3, 4, 4), torch.nan), "not finite"),
    ],
)
def test_unfit_images_are_not_written(tmp_path, name, image, words):
    with pytest.raises(FacelabError) as error:
        write_image(tmp_path / name, image)
    assert words in str(error.value) and not list(tmp_path.iterdir())


def test_float_and_back_is_exact_and_refuses_twice():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(levels)), levels)
    with pytest.raises(FacelabError, match="float32"):
        to_float(to_float(levels))


@pytest.mark.parametrize("options", [{}, {"bbox_inches": "tight"}])
def test_show_is_crisp_even_when_a_viewer_trims(options):
    face, file = astronaut(64), io.BytesIO()
    figure = show(
        [[face, face.flip(3)], torch.nn.functional.avg_pool2d(face, 4)],
        titles=["a title that has to be wrapped into lines", "b"],
        row_titles=["large", "small"],
        zoom=2,
    )
    figure.savefig(file, format="png", **options)
    seen = np.array(Image.open(file).convert("RGB"))
    want = to_uint8(face)[0].permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
    corners = np.argwhere((seen == want[0, 0]).all(-1))
    assert any(
        seen[y : y + 128, x : x + 128].shape == want.shape and (seen[y : y + 128, x : x + 128] == want).all()
        for y, x in corners
    )


def test_nothing_that_show_writes_is_clipped():
    figure = show(
        torch.zeros(3, 3, 40, 40),
        titles=["WWWWWWWWWWWWWWW", "two words", "gypsy"],
        row_titles=["a very long row title that has to be broken into several lines"],
    )
    renderer, page = FigureCanvasAgg(figure).get_renderer(), figure.bbox
    boxes = [t.get_window_extent(renderer) for t in figure.texts]
    assert len(boxes) == 4
    assert all(
        b.x0 >= page.x0 - 0.5 and b.y0 >= page.y0 - 0.5 and b.x1 <= page.x1 + 0.5 and b.y1 <= page.y1 + 0.5
        for b in boxes
    )


def test_show_axes_take_landmarks_as_they_are():
    ax = show(astronaut(64)).axes[0]
    assert ax.get_xlim() == (0, 64) and ax.get_ylim() == (64, 0)


def test_maps_of_a_row_share_their_colours_and_limits_count():
    row = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 0.5)])[:, None]
    pixel = lambda figure, k: tuple(figure.axes[k].images[0].get_array()[0, 0])
    plain, wide = show(row), show(row, limits=(0, 0.5))
    assert pixel(plain, 0) == pixel(wide, 0) and pixel(plain, 1) != pixel(wide, 1)
    with pytest.raises(FacelabError, match=r"shape \(2, 3, 4, 5, 6\)"):
        show(np.zeros((2, 3, 4, 5, 6)))


def test_label_colours_are_distinct_and_out_of_range_is_refused():
    labels = torch.arange(20).view(1, 4, 5)
    colours = colour_labels(labels, 20)
    assert colours.shape == (1, 3, 4, 5) and len(colours.flatten(2)[0].T.unique(dim=0)) == 20
    assert torch.equal(colour_labels(labels.to(torch.uint8), 20), colours)
    with pytest.raises(FacelabError, match=r"0\.\.18"):
        colour_labels(labels, 19)
    with pytest.raises(FacelabError, match="-1"):
        colour_labels(torch.tensor([[[-1]]]), 5)


def test_astronaut_has_her_eyes_where_the_template_has_them():
    face = to_uint8(astronaut(176))[0].float().mean(0)
    eyes = face[70:95]  # the pupils are the darkest things at eye height
    left, right = eyes[:, 50:85], eyes[:, 95:125]
    x = lambda part, x0: x0 + part.min(0).values.argmin().item()
    assert abs(x(left, 50) / 176 - 0.377) < 0.03 and abs(x(right, 95) / 176 - 0.623) < 0.03
