"Tables of landmarks as tools write them: read by their contents, given to their pictures, checked against a face."

import itertools
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import points_194

from facelab import FacelabError
from facelab.faces.drawn import draw_faces
from facelab.faces.layouts import survey
from facelab.faces.parts import LANDMARK_SCHEMES, order_194, scheme
from facelab.faces.sets import check_faces, open_faces
from facelab.faces.tables import (
    FROM_MESH,
    FROM_WFLW,
    Table,
    check_landmarks,
    landmarks_of_row,
    match_rows,
    read_table,
    read_text,
    rows_for,
    unlike_a_face,
    why_no_row,
)

FIVE = [60.5, 70.25, 100.5, 71, 80, 95, 65, 115.5, 97, 116]


def written(folder, text, name="points.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def numbers(table):
    return {name: row.tolist() for name, row in table.items()}


# ------------------------------------------------------------------ reading

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "blanks": "  "}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252")


@pytest.mark.parametrize("name", ["a.png", "0001", "my photo 2.jpg", "Zoë.JPG", "x/y/a.png"])
@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_encodings_separators_quotes_and_line_ends(tmp_path, separator, quoted, name):
    mark, between = '"' if quoted else "", SEPARATORS[separator]
    for encoding, end, comma in itertools.product(ENCODINGS, ("\n", "\r\n", "\r"), (False, True)):
        if comma and separator == "comma":
            continue
        values = [f"{v:g}".replace(".", ",") if comma else f"{v:g}" for v in FIVE]
        lines = [between.join([mark + n + mark, *values]) for n in (name, "b.png")]
        table = read_table(written(tmp_path, end.join(lines) + end, encoding=encoding))
        assert numbers(table) == {name: FIVE, "b.png": FIVE}, (encoding, end, comma)


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".txt", ".dat", ""])
def test_the_suffix_says_nothing(tmp_path, suffix):
    for between in SEPARATORS.values():
        table = read_table(written(tmp_path, f"a.png{between}1{between}2\n", f"points{suffix}"))
        assert numbers(table) == {"a.png": [1, 2]}


TWO = "a.png,1,2,3,4\nb.png,5,6,7,8\n"
AS_TWO = {
    "no header": TWO,
    "header": "file,x0,y0,x1,y1\n" + TWO,
    "short header": ",file,x1,y1\n0,a.png,1,2,3,4\n1,b.png,5,6,7,8\n",
    "count and header": "2\nleft_x left_y right_x right_y\na.png  1  2  3  4\nb.png  5  6  7  8\n",
    "pandas": ",0,1,2,3\na.png,1,2,3,4\nb.png,5,6,7,8\n",
    "pandas with names": ",file,0,1,2,3\n0,a.png,1,2,3,4\n1,b.png,5,6,7,8\n",
    "index of R": '"","file","x1","y1","x2","y2"\n"1","a.png",1,2,3,4\n"2","b.png",5,6,7,8\n',
    "for Excel": "sep=;\na.png;1,0;2;3;4\nb.png;5,0;6;7;8\n",
    "padded": "file,x,y,,,,,\na.png,1,2,3,4,,,\nb.png,5,6,7,8,,,\n",
    "name last": "1 2 3 4 a.png\n5 6 7 8 b.png\n",
    "x first": "file,x_0,x_1,y_0,y_1\na.png,1,3,2,4\nb.png,5,7,6,8\n",
    "other columns": "file,confidence,x_0,x_1,y_0,y_1,X_0,Y_0\na.png,.9,1,3,2,4,9,9\nb.png,.9,5,7,6,8,9,9\n",
    "x, y and z": "file,x0,y0,z0,x1,y1,z1\na.png,1,2,9,3,4,9\nb.png,5,6,9,7,8,9\n",
    "upwards": "file,x_1,y_1,x_0,y_0\na.png,3,4,1,2\nb.png,7,8,5,6\n",
    "parts by name": "file,left_x,right_x,left_y,right_y\na.png,1,3,2,4\nb.png,5,7,6,8\n",
    "text beside": "file,tool,x_0,y_0,x_1,y_1\na.png,dlib,1,2,3,4\nb.png,dlib,5,6,7,8\n",
    "empty lines": "\n\na.png,1,2,3,4\n\n,,,,\nb.png,5,6,7,8\n\n",
    "backslashes": ".\\a.png,1,2,3,4\n./b.png,5,6,7,8\n",
}


@pytest.mark.parametrize("kind", AS_TWO)
def test_headers_indices_and_orders_of_columns(tmp_path, kind):
    assert numbers(read_table(written(tmp_path, AS_TWO[kind]))) == {"a.png": [1, 2, 3, 4], "b.png": [5, 6, 7, 8]}


def test_columns_of_any_order_are_sorted_by_their_header(tmp_path):
    dice = np.random.default_rng(0)
    titles = [f"{letter}_{k}" for letter in "xy" for k in range(68)] + ["confidence", "success"]
    for _ in range(5):
        order = dice.permutation(len(titles))
        values = [2 * int(t[2:]) + (t[0] == "y") if t[1] == "_" else 0.5 for t in titles]
        head, row = ([str(words[k]) for k in order] for words in (titles, values))
        table = read_table(written(tmp_path, f"file,{','.join(head)}\na.png,{','.join(row)}\n"))
        assert numbers(table) == {"a.png": list(range(136))} and set(table.unused) == {"confidence", "success"}


def test_a_table_of_one_picture_without_its_name_is_named_after_the_file(tmp_path):
    text = "frame, confidence, x_0, x_1, y_0, y_1\n1, 0.98, 1, 3, 2, 4\n"
    assert numbers(read_table(written(tmp_path, text, "photo.v2.csv"))) == {"photo.v2": [1, 2, 3, 4]}
    with pytest.raises(FacelabError, match="two rows of photo, on lines 2 and 3"):
        read_table(written(tmp_path, text + "2, 0.98, 1, 3, 2, 4\n", "photo.csv"))


@pytest.mark.parametrize("empty", ["a.png", "a.png,,,,", "a.png,nan,NaN,NA,null", "0,a.png,,,,", '"a.png","","","",""'])
def test_empty_rows_say_that_no_face_was_found(tmp_path, empty):
    index = empty.startswith("0")
    row = "1,b.png,5,6,7,8" if index else "b.png,5,6,7,8"
    for text in (f"{empty}\n{row}\n", f"{row}\n{empty}\n", f"{'i,' * index}file,x0,y0,x1,y1\n{empty}\n{row}\n"):
        table = read_table(written(tmp_path, text))
        assert numbers(table) == {"a.png": [], "b.png": [5, 6, 7, 8]}
        assert len(rows_for(table, ["a.png"])[0]) == 0 and "is empty" in why_no_row(table, "a.png")
    assert numbers(read_table(written(tmp_path, f"{empty}\n"))) == {"a.png": []}
    many = [empty.replace("a.png", f"a{k}.png") for k in range(300)]
    table = read_table(written(tmp_path, "\n".join([*many, row])))
    assert len(table) == 301 and numbers(table)["b.png"] == [5, 6, 7, 8]


def test_pts_of_ibug_count_centres_of_pixels_from_one(tmp_path):
    lines = "\n".join(f"{x + 0.5} {y + 0.5}" for x, y in zip(FIVE[::2], FIVE[1::2]))
    for end in ("\n", "\r\n"):
        text = f"version: 1\nn_points:  5\n{{\n{lines}\n}}\n".replace("\n", end)
        table = read_table(written(tmp_path, text, "me.v2.pts"))
        assert numbers(table) == {"me.v2": FIVE} and rows_for(table, ["in/me.v2.jpg"])[0].tolist() == FIVE
    for bad in (text.replace("5", "6", 1), text[:40], text.replace("61", "x")):
        with pytest.raises(FacelabError, match="begins as a .pts file but is not"):
            read_table(written(tmp_path, bad, "me.pts"))


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "holds no rows of numbers: give"),
        ("hello\nworld\n", "holds no rows of numbers (its first line is 'hello')"),
        ("a.png,1,2\nb.png,3\n", "line 2 holds 2 cells ('b.png', '3', between commas): give"),
        ("a.png;1;2\nb.png;3;x\n", "line 2 holds 3 cells ('b.png', '3', 'x', between semicolons)"),
        ("a.png\t1\t2\nb.png\t3\t4\t5\n", "('b.png', '3', '4', ..., between tabs)"),
        ("a.png 1 2\n 3 4\n", "line 2 holds 2 cells ('3', '4', between blanks)"),
        ("a.png,1,2\n,3,4\n", "line 2 holds 3 cells ('', '3', '4'"),
        ("a.png,1,2\nb.png,nan,2\n", "numbers that are finite, as on line 1: 3 cells"),
        ("a.png,1,2\nb.png,1,1e999\n", "numbers that are finite"),
        ("a.png,1,2\nb.png,1_0,2\n", "'1_0'"),
        ("one\ntwo\nthree\na.png,1,2\nb.png,1,2\n", "line 3 holds 1 cells ('three'"),
        ("a.png,1,2\nb.png,1,2\n./a.png,1,3\n", "two rows of a.png, on lines 1 and 3: keep the row"),
    ],
)
def test_what_cannot_be_read_says_what_was_seen(tmp_path, text, said):
    with pytest.raises(FacelabError) as error:
        read_table(written(tmp_path, text))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0", b"\xff\xfea", b"ab\0c", b"a.png,\x81\x8d"])
def test_what_is_no_text_is_refused(tmp_path, data):
    (tmp_path / "points.csv").write_bytes(data)
    with pytest.raises(FacelabError, match="points.csv is no text in UTF-8, UTF-16 or Windows-1252"):
        read_text(tmp_path / "points.csv")


# ------------------------------------------------------------------ matching

ACCENT = {form: unicodedata.normalize(form, "Zoë.jpg") for form in ("NFC", "NFD")}


@pytest.mark.parametrize(
    "row, picture",
    [
        ("a.png", "a.png"),
        ("a.png", "/pictures/me/a.png"),
        ("/data/set/a.png", "a.png"),
        ("scans\\a.png", "scans/a.png"),
        ("./scans/a.png", "other/a.png"),
        ("C:\\photos\\a.png", "photos/a.png"),
        ("LOUD.jpg", "LOUD.JPG"),
        ("Ann/A.PNG", "ann/a.png"),
        ("a.jpg", "a.png"),
        ("a", "a.png"),
        ("a.v2", "a.v2.png"),
        (ACCENT["NFC"], ACCENT["NFD"]),
        (ACCENT["NFD"], f"x/{ACCENT['NFC'].upper()}"),
    ],
)
def test_a_row_finds_its_picture(row, picture):
    table = read_table_of(row, "other.png")
    assert match_rows(table, ["nothing.png", picture]) == {picture: table_name(row)}
    found = rows_for(table, [Path(picture), Path("nothing.png")])
    assert found[0] == 0 and found[1] is None
    assert (
        why_no_row(table, Path("x/nothing.png"))
        == f"no row of t.csv is of nothing.png (its first is {table_name(row)})"
    )


def read_table_of(*rows):
    return Table("t.csv", {table_name(row): k for k, row in enumerate(rows)})


def table_name(row):
    return row.replace("\\", "/").removeprefix("./")


@pytest.mark.parametrize("row, picture", [("a.v2.png", "a.png"), ("a", "ab"), ("b/a", "b"), ("a.png.txt", "a.png")])
def test_other_names_are_not_alike(row, picture):
    assert match_rows(read_table_of(row), [picture]) == {}


def test_the_closest_row_wins():
    table = read_table_of("a.jpg", "A.PNG", "x/a.png", "a.png", "y/x/a.png")
    assert rows_for(table, ["a.png"]) == [3] and rows_for(table, ["z/y/x/a.png", "q/x/a.png", "a.jpg"]) == [4, 2, 0]
    lone = Table("t.csv", {"test0.jpg": [1, 2]})
    assert rows_for(lone, ["test0.jpg", "test0.png"]) == [[1, 2], None]
    assert why_no_row(lone, "test0.png").startswith("no row of t.csv is of test0.png")
    twins = read_table_of("test0.jpg", "test0.png")
    assert rows_for(twins, ["test0.png", "test0.jpg"]) == [1, 0]
    assert rows_for(twins, ["1/test0.png", "1/test0.jpg"]) == [1, 0]


@pytest.mark.parametrize(
    "rows, pictures, said",
    [
        (["a.jpg", "a.gif"], ["a.png"], "t.csv has rows a.jpg and a.gif, which both fit a.png: keep one"),
        (["x/a.png", "y/a.png"], ["a.png"], "rows x/a.png and y/a.png, which both fit a.png"),
        (["A.png", "a.PNG"], ["a.png"], "rows A.png and a.PNG, which both fit a.png"),
        (["a.png"], ["x/a.png", "y/a.png"], "the row a.png of t.csv fits x/a.png and y/a.png: write the folder"),
        (["a.gif"], ["a.png", "a.jpg"], "the row a.gif of t.csv fits a.png and a.jpg"),
    ],
)
def test_what_fits_twice_is_refused_with_both_names(rows, pictures, said):
    with pytest.raises(FacelabError) as error:
        match_rows(read_table_of(*rows), pictures)
    assert said in str(error.value)


# ------------------------------------------------------------------ schemes

# mean faces of two public sets, in one frame: 68 points of iBUG, 98 of WFLW
IBUG = """
    14.0 32.1  14.3 43.4  15.7 54.6  18.2 65.5  22.7 75.6  29.6 84.3  37.9 91.6  47.2 97.4  57.5 98.8  67.7 96.8
    76.6 90.8  84.8 83.4  91.3 74.6  95.6 64.3  97.8 53.3  98.8 42.1  99.0 30.9  21.4 23.6  26.7 18.7  34.3 17.3
    42.1 18.3  49.1 21.4  62.5 20.8  69.9 17.6  77.7 16.5  85.2 17.9  90.4 22.6  56.2 29.8  56.3 37.1  56.4 44.3
    56.5 51.7  47.6 56.7  52.0 58.3  56.5 59.5  61.0 58.2  65.1 56.7  30.1 31.1  34.8 28.3  40.3 28.4  45.1 32.0
    40.2 33.0  34.6 33.0  67.0 31.6  71.9 27.8  77.4 27.8  82.0 30.4  77.9 32.3  72.5 32.5  40.2 70.5  46.3 67.8
    52.5 66.5  56.5 67.6  61.0 66.4  67.2 67.7  73.2 69.9  67.5 75.9  61.6 78.6  56.7 79.2  52.3 78.8  46.3 76.3
    42.7 70.7  52.4 70.2  56.5 70.5  61.1 70.0  70.7 70.3  61.2 73.1  56.6 73.7  52.4 73.3
"""
WFLW = """
    14.6 29.3  14.9 35.0  15.2 40.6  15.6 46.3  16.4 51.9  17.3 57.5  18.8 62.9  20.7 68.2  23.2 73.3  26.3 78.0
    29.7 82.3  33.6 86.4  37.7 90.1  42.1 93.3  46.8 96.0  52.1 97.7  57.6 98.2  63.1 97.5  68.1 95.6  72.7 92.8
    77.0 89.4  81.0 85.7  84.6 81.6  87.9 77.2  90.8 72.5  93.1 67.4  94.9 62.2  96.3 56.7  97.2 51.2  97.8 45.7
    98.1 40.1  98.4 34.5  98.6 28.9  25.3 23.9  31.2 18.8  37.3 18.3  43.4 19.0  48.8 20.5  48.5 24.2  42.8 23.0
    37.0 22.3  31.1 22.6  64.3 20.1  70.5 18.5  76.6 17.7  82.4 18.2  87.8 23.0  82.3 21.9  76.2 21.8  70.3 22.6
    64.2 23.8  56.3 30.7  56.3 38.2  56.4 45.7  56.6 52.8  47.4 56.5  52.1 57.5  56.9 58.3  61.3 57.3  65.7 56.2
    30.9 31.3  34.4 29.1  38.4 28.3  42.8 29.1  46.3 31.8  42.5 33.1  38.4 33.5  34.4 32.9  66.2 31.6  69.9 28.6
    74.7 27.9  78.5 28.8  81.8 30.8  78.5 32.4  75.0 33.1  70.5 32.8  40.6 69.4  46.7 66.7  53.9 65.7  57.0 65.7
    60.2 65.6  67.0 66.5  72.8 69.0  68.8 73.6  63.5 77.1  57.1 78.4  50.5 77.4  44.8 74.1  41.8 69.7  49.2 68.7
    57.1 68.7  64.6 68.5  71.7 69.2  64.9 72.3  57.0 73.7  48.9 72.6  38.8 30.9  74.4 30.5
"""
# where the left half of MediaPipe's canonical face has its points, in thousandths of its width and height
MESH = """
162 58 319  234 8 481  93 14 560  58 67 730  172 128 792  136 198 832  149 319 898  148 431 944  152 500 954
71 173 279  63 277 272  105 327 257  66 383 256  107 442 262  168 500 352  197 500 440  5 500 498  4 500 527
75 445 580  97 468 602  2 500 602  33 280 376  160 319 358  158 366 356  133 419 387  153 366 399  144 319 396
61 382 695  39 440 657  37 472 650  0 500 653  17 500 737  84 472 736  181 445 731  78 404 694  82 475 692
13 500 692  87 473 695  14 500 695
"""
TWINS = """
162 389  234 454  93 323  58 288  172 397  136 365  149 378  148 377  71 301  63 293  105 334  66 296  107 336  75 305
97 326  33 263  160 387  158 385  133 362  153 380  144 373  61 291  39 269  37 267  84 314  181 405  78 308  82 312
87 317
"""


def points_of(text, columns=2):
    return np.array(text.split(), float).reshape(-1, columns)


def mesh():
    "MediaPipe's canonical face (468, 2); points that are not needed are nan."
    points = np.full((468, 2), np.nan)
    for k, x, y in points_of(MESH, 3):
        points[int(k)] = x, y
    for left, right in points_of(TWINS).astype(int):
        points[right] = [1000, 0] + points[left] * [-1, 1]
    return points


def five_of(points):
    s = scheme(len(points))
    five = [points[list(k)].mean(0) for k in (s.left_eye, s.right_eye, [s.nose], s.corners[:1], s.corners[1:])]
    return (np.array(five) - (five[0] + five[1]) / 2) / np.linalg.norm(five[1] - five[0])


def test_wflw_lies_on_ibug():
    ibug, wflw = points_of(IBUG), points_of(WFLW)
    box = [*range(10)]
    for row in (wflw.ravel(), [*wflw.ravel(), *box]):
        found = landmarks_of_row(row)
        apart = np.linalg.norm(found - ibug, axis=1) / np.linalg.norm(ibug[36:42].mean(0) - ibug[42:48].mean(0))
        assert apart.mean() < 0.05 and apart.max() < 0.125
        assert unlike_a_face(found) == ""
    wrong = list(FROM_WFLW)
    wrong[17:22] = wrong[17:22][::-1]
    assert "the brows do not run" in unlike_a_face(wflw[wrong])


@pytest.mark.parametrize("count", [468, 478])
@pytest.mark.parametrize("z", [False, True])
def test_mediapipes_mesh_lies_on_ibug(count, z):
    row = np.full((count, 2 + z), np.nan)
    row[:468, :2] = mesh()
    found = landmarks_of_row(row.ravel())
    assert np.isfinite(found).all() and unlike_a_face(found, (1000, 1000)) == ""
    assert np.abs(five_of(found) - five_of(points_of(IBUG))).max() < 0.12
    mirror = np.array(scheme(68).mirror)  # the mesh's twins are ours
    twins = {tuple(pair) for pair in points_of(TWINS).astype(int)} | {(k, k) for k in FROM_MESH}
    assert all((a, b) in twins or (b, a) in twins for a, b in zip(FROM_MESH, np.array(FROM_MESH)[mirror]))


@pytest.mark.parametrize("count", [5, 49, 68, 81, 194])
def test_counts_that_are_known(count):
    row = np.arange(2 * count)
    assert landmarks_of_row(row).tolist() == row.reshape(-1, 2).tolist()
    assert landmarks_of_row(np.stack([row] * 3)).shape == (3, count, 2)


@pytest.mark.parametrize("count", [0, 1, 9, 11, 12, 134, 204, 1000])
def test_counts_that_are_not_known(count):
    with pytest.raises(FacelabError, match=f"{count} numbers a face are no .*: give 5, 49, 68, 81 or 194 points"):
        landmarks_of_row(range(count))


# ------------------------------------------------------------------ is it a face

DRAWN = draw_faces(range(8), size=64)
P81 = DRAWN["landmarks_81"].double().numpy()
KEPT_49 = [k for k in range(17, 68) if k not in (60, 64)]
P194 = order_194(torch.tensor(np.stack([points_194(p) for p in P81]))).numpy()
FACES = {
    5: np.stack([[p[36:42].mean(0), p[42:48].mean(0), p[30], p[48], p[54]] for p in P81]),
    49: P81[:, KEPT_49],
    68: P81[:, :68],
    81: P81,
    194: P194,
}


def turned(points, degrees):
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    return (points - 32) @ np.array([[c, s], [-s, c]]) + 32


@pytest.mark.parametrize("count", LANDMARK_SCHEMES)
def test_faces_pass_tilted_turned_far_and_near(count):
    for p in FACES[count]:
        for degrees in range(-180, 180, 30):
            assert unlike_a_face(turned(p, degrees), (64, 64)) == ""
        for narrow in (0.55, 1.3):  # a head that looks aside, or a wide one
            assert unlike_a_face(p * [narrow, 1]) == unlike_a_face(p * 40 + 1000) == ""
        assert unlike_a_face(p, (64, 64), turned=True) == ""
        assert "before its EXIF tag turns it" in unlike_a_face(turned(p, 90), (64, 64), turned=True)
        assert "before its EXIF tag turns it" in unlike_a_face(turned(p, 180), turned=True)


READINGS = {
    "all x come before all y": lambda p: p.T.reshape(-1, 2),
    "y comes before x": lambda p: p[:, ::-1],
    "y counts upwards": lambda p: [0, 64] + p * [1, -1],
    "left and right are those of the person": lambda p: p[list(scheme(len(p)).mirror)],
}


@pytest.mark.parametrize("count", LANDMARK_SCHEMES)
@pytest.mark.parametrize("how", READINGS)
def test_another_order_is_named(count, how):
    for p in FACES[count]:
        said = unlike_a_face(READINGS[how](p), (64, 64))
        assert said.startswith(f"the points are a face if {how}: "), said


@pytest.mark.parametrize("count", sorted(set(LANDMARK_SCHEMES) - {5}))
def test_parts_that_run_the_other_way_are_named(count):
    for part in {part for part, _ in scheme(count).runs}:
        points = [k for name, some in scheme(count).runs if name == part for k in some]
        p = FACES[count][0].copy()
        p[points] = p[np.array(scheme(count).mirror)[points]]
        named = part not in ("eyes", "mouth")  # of which the five points are
        assert unlike_a_face(p) and (not named or f"the {part} do" in unlike_a_face(p)), part
    shuffled = FACES[count][0][np.random.default_rng(count).permutation(count)]
    assert f"no face in the order of {count} that is known here" in unlike_a_face(shuffled)


def test_another_hairline_of_81_points_is_told():
    order = [77, 75, 76, 68, 69, 70, 71, 80, 72, 73, 79, 74, 78]  # of a public predictor, from left to right
    p = P81[0].copy()
    p[order] = P81[0][68:]
    assert "the hairline does not run from left to right" in unlike_a_face(p)


@pytest.mark.parametrize("count", LANDMARK_SCHEMES)
def test_lost_points_shares_and_other_pictures(count):
    p = FACES[count][0]
    for value in (0, -1, 0.5):
        lost = np.where(np.isin(np.arange(count), (3, 4))[:, None], value, p)
        assert unlike_a_face(lost, (64, 64)).startswith(f"points 4 and 5 lie at ({int(value)}, {int(value)}), as tools")
    lost = np.where(np.arange(count)[:, None] == 1, 0, p)
    assert unlike_a_face(lost).startswith("point 2 lies at (0, 0)")
    assert "points 1, 2, 3, 4 and others lie at (0, 0)" in unlike_a_face(p * 0)
    assert "as shares of width and height do: give pixels" in unlike_a_face(p / 64, (64, 64))
    assert f"of {count} points lie outside of the picture of 64x64 (first (" in unlike_a_face(p + 64, (64, 64))
    assert "before its EXIF" in unlike_a_face(p + 64, (64, 64), turned=True)
    assert unlike_a_face(p - [3, 2], (64, 64)) == unlike_a_face(p + 64) == ""


# ------------------------------------------------------------------ sets


def test_a_fault_of_few_is_said_and_of_many_refused():
    points = np.concatenate([FACES[68]] * 13)[:100]
    sizes, names = np.full((100, 2), 64), [f"{k}.png" for k in range(100)]
    assert check_landmarks(points, sizes, names) == ""
    points[[7, 9]] = [READINGS["y comes before x"](p) for p in points[[7, 9]]]
    said = check_landmarks(points, sizes, names)
    assert said.startswith("of 2 of 100 pictures (first 7.png) are doubtful: ") and "if y comes before x" in said
    points[11] = 0
    with pytest.raises(
        FacelabError, match=r"landmarks of 3 of 100 pictures \(first 7.png\) are not those of a face: the"
    ):
        check_landmarks(points, sizes, names)


def album(folder, names, points=None, table="landmarks_68.csv"):
    "A folder of drawn faces of 64 pixels under these names, and a table of their points under others."
    for name, picture in zip(names, DRAWN["image"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    if points:
        rows = [",".join([n, *map(str, p.ravel().round(2))]) for n, p in zip(points, FACES[68])]
        (folder / table).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "names, rows, places",
    [
        (
            [f"{ACCENT['NFD'][:-4]}{k}.png" for k in range(3)],
            [f"{ACCENT['NFC'][:-4]}{k}.png" for k in range(3)],
            [0, 1, 2],
        ),
        (["0.PNG", "1.PNG", "2.PNG"], ["1.png", "0.png", "2.png"], [1, 0, 2]),
        (["0.png", "1.png", "2.png"], ["a\\2.jpg", "a\\1.jpg", "a\\0.jpg"], [2, 1, 0]),
        (["train/0.png", "test/0.png"], ["test/0.png", "train/0.png"], [1, 0]),
        (["Ann/1.png", "Bob/1.png"], ["/x/Bob/1.png", "/x/Ann/1.png"], [1, 0]),
    ],
)
@pytest.mark.parametrize("table", ["landmarks_68.csv", "landmarks_68.txt"])
def test_a_set_finds_its_rows(tmp_path, names, rows, places, table):
    faces = open_faces(album(tmp_path, names, rows, table), 64)
    assert faces.names == names
    assert np.allclose(faces.landmarks, FACES[68][places], atol=0.01)


def test_a_set_says_what_of_its_table_it_does_not_use(tmp_path):
    album(tmp_path, ["0.png", "1.png"], ["0.png", "9.png", "1.png"])
    notes = open_faces(tmp_path, 64).notes
    assert ("not used", "1 of 3 rows", "of landmarks_68.csv name pictures that are not here (first 9.png)") in notes
    titles = ",".join(["file", "confidence", *(f"{a}{k}" for k in range(68) for a in "xy")])
    lines = (tmp_path / "landmarks_68.csv").read_text().splitlines()
    text = "\n".join([titles, *(line.replace(",", ",0.9,", 1) for line in lines)])
    (tmp_path / "landmarks_68.csv").write_text(text)
    assert ("landmarks", "68 points", "from landmarks_68.csv, columns not used: 1 (first confidence)") in open_faces(
        tmp_path, 64
    ).notes


def test_a_set_refuses_pictures_without_numbers_and_points_that_are_no_face(tmp_path):
    album(tmp_path, ["0.png", "1.png", "2.png", "3.png"], ["0.png", "1.png"])
    assert "has no line for 2 (first 2.png, 3.png) of 4 pictures in set" in check_faces(tmp_path, 64).problem
    with open(tmp_path / "landmarks_68.csv", "a") as table:
        table.write("2.png\n3.png,,\n")
    said = check_faces(tmp_path, 64).problem
    assert "has empty rows for 2 (first 2.png, 3.png) of 4 pictures, as if no face had been found" in said
    rows = [f"{k}.png," + ",".join(map(str, FACES[68][k].T.ravel())) for k in range(4)]
    (tmp_path / "landmarks_68.csv").write_text("\n".join(rows))
    said = check_faces(tmp_path, 64).problem
    assert "of 4 of 4 pictures (first 0.png)" in said and "a face if all x come before all y" in said
    (tmp_path / "landmarks_68.csv").write_text("0.png,1,2\n1.png,1,2\n2.png,1,2\n3.png,1,2\n")
    assert "landmarks_68.csv: 2 numbers a face are no x and y" in check_faces(tmp_path, 64).problem


def test_landmarks_lie_beside_the_pictures(tmp_path):
    "A table in each folder, named as there; or a .pts file of each picture, which counts from 1."
    for parts in (("train", "test"), ("a/b", "a/c")):
        root = tmp_path / parts[0][0]
        for part, k in zip(parts, (0, 1)):
            album(root / part, ["1.png", "0.png"][k:], ["1.png", "0.png"][k:])
        found = open_faces(root, 64)
        assert len(found) == 3 and ("landmarks", "68 points", "from landmarks_68.csv") in found.notes
        places = {f"{parts[0]}/1.png": 0, f"{parts[0]}/0.png": 1, f"{parts[1]}/0.png": 0}
        assert np.allclose(found.landmarks, FACES[68][[places[name] for name in found.names]], atol=0.01)
    (root / "a/c/landmarks_68.csv").write_text("0.png,1,2,3,4\n")
    assert "has 136 numbers a face" in (said := check_faces(root, 64).problem) and "give the same" in said
    folder = album(tmp_path / "faces", ["x/1.png", "y/1.png", "y/2.png"])
    for k, name in enumerate(["x/1.pts", "y/1.PTS", "y/2.pts"]):
        points = "\n".join(f"{x + 0.5} {y + 0.5}" for x, y in FACES[68][k])
        (folder / name).write_text(f"version: 1\nn_points: 68\n{{\n{points}\n}}\n")
    (folder / "x/9.pts").write_text((folder / "x/1.pts").read_text())
    found = open_faces(folder, 64)
    assert np.allclose(found.landmarks, FACES[68][:3], atol=0.01)
    assert ("not used", "1 of 4 rows", "of *.pts name pictures that are not here (first x/9)") in found.notes
    (folder / "y/2.pts").unlink()
    assert "has no line for 1 (first y/2.png) of 3 pictures" in check_faces(folder, 64).problem


def test_tables_of_wflw_and_mediapipe_serve_a_set(tmp_path):
    album(tmp_path, ["0.png", "1.png"])
    row = " ".join(map(str, (points_of(WFLW) * 0.5).ravel()))
    (tmp_path / "landmarks_98.txt").write_text("".join(f"{row} 1 2 3 4 0 0 0 0 0 0 a--b/{k}.png\n" for k in range(2)))
    found = survey(tmp_path)
    assert found.landmarks.shape == (2, 68, 2)
    assert ("landmarks", "68 points", "from landmarks_98.txt, of 206 numbers a face") in found.notes
    (tmp_path / "landmarks_98.txt").unlink()
    row = ",".join(map(str, np.nan_to_num(mesh() / 1000, nan=0.5).ravel()))
    (tmp_path / "landmarks_468.csv").write_text(f"0.png,{row}\n1.png,{row}\n")
    assert "as shares of width and height do: give pixels" in check_faces(tmp_path, 64).problem


def test_celebas_lists_serve_its_png_edition(tmp_path):
    names = [f"{k + 1:06}" for k in range(4)]
    album(tmp_path, [f"img_align_celeba_png/{name}.png" for name in names])
    for file, value in (("list_eval_partition.txt", lambda k: k % 3), ("identity_CelebA.txt", lambda k: k + 7)):
        (tmp_path / file).write_text("".join(f"{name}.jpg {value(k)}\n" for k, name in enumerate(names)))
    faces = open_faces(tmp_path, 64)
    assert faces.split.tolist() == [0, 1, 2, 0] and faces.identity.tolist() == [7, 8, 9, 10]
    assert faces.names == [f"{name}.png" for name in names]


@pytest.mark.parametrize(
    "text", ["0.png;train\n1.png;test\n", "file\tsplit\n./0.PNG\ttrain\n1.jpg\ttest\n", ",f,s\n0,0,train\n1,1,test"]
)
def test_split_csv_is_read_as_tables_are(tmp_path, text):
    album(tmp_path, ["0.png", "1.png"])
    for encoding in ENCODINGS:
        written(tmp_path, text, "split.csv", encoding)
        assert open_faces(tmp_path, 64).split.tolist() == [0, 2]
    written(tmp_path, "0.png,train\n0.png,test\n1.png,test\n", "split.csv")
    assert "split.csv line 2 names 0.png again" in check_faces(tmp_path, 64).problem
