"Face sets: every layout that is read, and every way in which a folder has been seen to be incomplete."

import json
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from facelab import FacelabError
from facelab.base.images import to_float
from facelab.faces import layouts as folders, parts, sets as F
from facelab.faces.drawn import draw_faces
from facelab.faces.layouts import Files, hash_split
from facelab.faces.parts import (
    CLASSES_19,
    LANDMARK_SCHEMES,
    MIRROR_11,
    MIRROR_19,
    align,
    correct_sides,
    five_points,
    mirror,
    order_194,
    parsing_11,
    parsing_from_landmarks,
    similarity,
)
from facelab.faces.sets import FaceSet, check_faces, open_faces

IDS = {name: k for k, name in enumerate(CLASSES_19)}
POINTS = np.array(
    [[69, 111], [108, 111], [88, 136], [73, 152], [105, 152]]
)  # about where CelebA's aligned pictures have them


def picture(k, wide=178, high=218, mode="RGB"):
    "A face-like picture: bright eyes and mouth at POINTS, a shade of its own."
    image = Image.new("RGB", (wide, high), (40 + 3 * k, 90, 120))
    draw = ImageDraw.Draw(image)
    draw.ellipse([40, 50, 138, 190], fill=(220, 170, 140))
    for x, y in POINTS:
        draw.ellipse([x - 5, y - 5, x + 5, y + 5], fill=(255, 255, 255))
    return image.convert(mode)


def celeba(path, n=6, suffix="jpg", **leave):
    folder = path / "img_align_celeba"
    folder.mkdir(parents=True)
    names = [f"{i + 1:06}.{suffix}" for i in range(n)]
    for i, name in enumerate(names):
        picture(i).save(folder / name)
    rows = [f"{name}  " + "  ".join(map(str, POINTS.ravel())) for name in names]
    (path / "list_landmarks_align_celeba.txt").write_text(
        f"{n}\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x"
        " rightmouth_y\n" + "\n".join(rows) + "\n"
    )
    (path / "list_eval_partition.txt").write_text("".join(f"{name} {min(i // 2, 2)}\n" for i, name in enumerate(names)))
    (path / "identity_CelebA.txt").write_text("".join(f"{name} {100 + i // 3}\n" for i, name in enumerate(names)))
    return path


def refusal(path, size=64, **kw):
    "The one sentence that opening (and reading) the set ends with."
    with pytest.raises(FacelabError) as error:
        faces = open_faces(path, size, **kw)
        faces.batch(range(len(faces)))
    text = str(error.value)
    assert "\n" not in text and ": " in text, text
    return text


# ------------------------------------------------------------------ CelebA


def test_celeba_is_aligned_by_its_points(tmp_path):
    faces = open_faces(celeba(tmp_path), 128)
    assert faces.counts == dict(train=2, val=2, test=2) and faces.labels == ("landmarks", "identity")
    assert faces.identity.tolist() == [100] * 3 + [101] * 3
    batch = faces.batch(range(6))
    assert batch["image"].shape == (6, 3, 128, 128) and batch["image"].dtype == torch.float32
    eyes = five_points(batch["landmarks"])[:, :2] / 128
    assert torch.allclose(eyes, torch.tensor([[0.377, 0.470], [0.623, 0.470]]), atol=0.015)
    for x, y in batch["landmarks"][0].round().long():
        assert batch["image"][0, :, y, x].min() > 0.9  # the white dots moved along


def test_celeba_points_are_pixel_indices(tmp_path):
    celeba(tmp_path)
    assert torch.equal(folders.survey(tmp_path).landmarks[0], torch.tensor(POINTS + 0.5))


def test_landmarks_68_win_over_the_5(tmp_path):
    celeba(tmp_path)
    points = draw_faces(range(6))["landmarks_68"] + torch.tensor([25.5, 40])
    rows = [f"{i + 1:06}.jpg" + "".join(f",{v:.1f}" for v in p.flatten()) for i, p in enumerate(points)]
    head = "file," + ",".join(f"x{k},y{k}" for k in range(68))
    (tmp_path / "list_landmarks_68.csv").write_text("\n".join([head, *rows]))
    assert open_faces(tmp_path, 64).landmarks.shape == (6, 68, 2)


def test_kaggle_csv_and_nested_folder(tmp_path):
    celeba(tmp_path)
    (tmp_path / "img_align_celeba").rename(tmp_path / "inner")
    (tmp_path / "img_align_celeba").mkdir()
    (tmp_path / "inner").rename(tmp_path / "img_align_celeba" / "img_align_celeba")
    for name, head in (
        ("list_eval_partition", "image_id,partition"),
        ("list_landmarks_align_celeba", "image_id,lefteye_x,lefteye_y"),
    ):
        lines = (tmp_path / f"{name}.txt").read_text().splitlines()[2 if "landmarks" in name else 0 :]
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *[",".join(line.split()) for line in lines]]))
        (tmp_path / f"{name}.txt").unlink()
    faces = open_faces(tmp_path, 64)
    assert faces.counts == dict(train=2, val=2, test=2) and faces.landmarks.shape == (6, 5, 2)


def test_labels_that_are_not_there_stay_absent(tmp_path):
    celeba(tmp_path)
    for name in ("identity_CelebA.txt", "list_landmarks_align_celeba.txt", "list_eval_partition.txt"):
        (tmp_path / name).unlink()
    faces = open_faces(tmp_path, 64)
    assert faces.labels == () and torch.equal(faces.split, hash_split(faces.names))
    assert "ours, by hash" in faces._repr_markdown_() and "centre crop" in faces._repr_markdown_()
    with pytest.raises(FacelabError, match="has no identity .*images only.*CelebA"):
        faces.batch([0], labels=("identity",))
    assert "crop='centre'" in refusal(tmp_path, crop=None)


def test_a_list_may_name_more_pictures_than_there_are_but_not_fewer(tmp_path):
    celeba(tmp_path)
    (tmp_path / "img_align_celeba" / "000003.jpg").unlink()
    (tmp_path / "img_align_celeba" / "000005.jpg").unlink()
    for name in ("identity_CelebA.txt", "list_landmarks_align_celeba.txt"):
        (tmp_path / name).unlink()
    faces = open_faces(tmp_path, 64)
    said = "of list_eval_partition.txt name pictures that are not here (first 000003.jpg)"
    assert faces.split.tolist() == [0, 0, 1, 2] and ("not used", "2 of 6 rows", said) in faces.notes
    picture(0).save(tmp_path / "img_align_celeba" / "000009.jpg")
    assert "has no line for 1 (first 000009.jpg) of 5 pictures in set" in refusal(tmp_path)


def test_half_present_celeba(tmp_path):
    celeba(tmp_path / "a")
    for f in (tmp_path / "a" / "img_align_celeba").iterdir():
        f.unlink()
    assert "unpack img_align_celeba.zip" in refusal(tmp_path / "a")
    celeba(tmp_path / "b")
    table = tmp_path / "b" / "list_landmarks_align_celeba.txt"
    table.write_text(table.read_text()[:-40])
    assert "list_landmarks_align_celeba.txt line 8" in refusal(tmp_path / "b")
    table.write_text("")
    assert "holds no rows" in refusal(tmp_path / "b")
    celeba(tmp_path / "c")
    (tmp_path / "c" / "list_eval_partition.txt").write_text("".join(f"{i + 1:06}.jpg 3\n" for i in range(6)))
    assert "partition 3" in refusal(tmp_path / "c")


def test_broken_and_odd_pictures_are_named(tmp_path):
    celeba(tmp_path)
    file = tmp_path / "img_align_celeba" / "000004.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "000004.jpg cannot be read" in refusal(tmp_path)
    file.write_bytes(b"")
    assert "000004.jpg is not an image" in refusal(tmp_path)
    report = check_faces(tmp_path, 64)
    assert not report.usable and "000004.jpg" in str(report) and "000004.jpg" in report._repr_markdown_()
    file.write_bytes(whole)
    assert check_faces(tmp_path, 64).usable


# ------------------------------------------------------------------ a plain folder


def test_every_kind_of_picture_in_one_folder(tmp_path):
    square = picture(0).crop((20, 50, 148, 178))
    for mode in ("RGB", "L", "RGBA", "P", "CMYK"):
        square.convert(mode).save(tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    Image.fromarray(np.asarray(square.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    faces = open_faces(tmp_path, 128)
    images = dict(zip(faces.names, faces.images[:]))
    assert len(faces) == 6 and torch.equal(images["deep.png"], images["L.png"])
    for name in ("RGBA.png", "CMYK.tif"):
        assert torch.equal(images[name], images["RGB.png"])


def test_split_from_folders_or_a_table(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for i in range(3):
            picture(i, 200, 200).save(tmp_path / part / f"{part}{i}.png")
    assert open_faces(tmp_path, 128).counts == dict(train=3, val=0, test=3)
    flat = tmp_path / "train"
    (flat / "split.csv").write_text("file,split\ntrain0.png,val\ntrain1.png,test\ntrain2.png,train\n")
    assert open_faces(flat, 128).split.tolist() == [1, 2, 0]
    (flat / "split.csv").write_text("file,split\ntrain0.png,val\ntrain1.png,tset\ntrain2.png,train\n")
    assert "split.csv line 3" in refusal(flat)


def test_hash_split_is_pinned_and_does_not_move():
    names = [f"{i:06}.jpg" for i in range(1000)]
    split = hash_split(names)
    assert split[:12].tolist() == hash_split([n.replace("jpg", "png") for n in names[:12]]).tolist()
    folders = hash_split([f"{k}/000001.jpg" for k in range(1000)])
    assert len(folders.unique()) == 3 and torch.equal(folders, hash_split([f"{k}/000001.png" for k in range(1000)]))
    assert torch.equal(hash_split(names[::7]), split[::7])
    assert [int((split == k).sum()) for k in range(3)] == PINNED


PINNED = [777, 107, 116]


def test_nothing_to_open(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    for name in (".cache", "__MACOSX", "deep"):
        (tmp_path / name).mkdir()
    for hidden in (".cache/a.png", "__MACOSX/a.png", "deep/._a.png", ".b.png"):
        picture(0).save(tmp_path / hidden)
    assert "and its folders hold no pictures" in refusal(tmp_path)
    picture(0).save(tmp_path / "a.png")
    assert "is a file" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize(
    "names, said",
    [
        (["00000/00000.png", "00000/00001.png", "01000/00000.png"], "2 folders"),
        (["Ann/a/1.png", "Ann/b/1.png", "Bob Jr/1.png"], "3 folders"),
        (["people/2.png", "people/10.png"], "1 folder"),
    ],
)
def test_folders_without_pictures_beside_them_are_one_set(tmp_path, names, said):
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i, 200, 200).save(tmp_path / name)
    (tmp_path / "split.csv").write_text("".join(f"{name},{F.SPLITS[i]}\n" for i, name in enumerate(names)))
    faces = open_faces(tmp_path, 128)
    assert faces.names == names and faces.split.tolist() == list(range(len(names)))
    assert ("folders", said, "one set, its names are paths") in faces.notes
    shades = faces.images[:][:, 0, 0, 0].int() - 40
    assert (shades - torch.arange(len(names)) * 3).abs().max() <= 1  # each name has its own picture
    if names[0].startswith("00"):
        (tmp_path / "split.csv").write_text("00000.png,train\n00001.png,val\n")
        assert "the row 00000.png of" in refusal(tmp_path) and "fits 00000/00000.png and 01000" in refusal(tmp_path)


def test_parts_may_have_folders_of_their_own_and_equal_names(tmp_path):
    for name in ("train/Ann/1.png", "train/Bob/1.png", "test/1.png", "other/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0, 200, 200).save(tmp_path / name)
    faces = open_faces(tmp_path, 128)
    assert faces.names == ["train/Ann/1.png", "train/Bob/1.png", "test/1.png"]
    assert faces.counts == dict(train=2, val=0, test=1)
    assert ("left out", "1 folder") in [note[:2] for note in faces.notes]


def test_what_is_not_used_is_said(tmp_path):
    picture(0, 200, 200).save(tmp_path / "a.png")
    for name in ("b.cr2", "c.MOV", "notes.txt", ".d.cr2"):
        (tmp_path / name).write_bytes(b"no picture")
    notes = open_faces(tmp_path, 128).notes
    assert ("left out", "2 files", "no pictures that can be read (first b.cr2)") in notes


def test_the_check_says_what_reading_changes(tmp_path):
    square = picture(0).crop((20, 50, 148, 178))
    square.convert("L").save(tmp_path / "grey.png")
    square.putalpha(100)
    square.save(tmp_path / "glass.png")
    rows = check_faces(tmp_path, 64).rows
    assert ("pictures", "2 looked at", "1 grey, taken as RGB; 1 transparent, laid over white") in rows
    (tmp_path / "plain").mkdir()
    picture(0, 128, 128).save(tmp_path / "plain" / "a.png")
    assert not [row for row in check_faces(tmp_path / "plain", 64).rows if row[0] == "pictures"]


def test_pictures_too_small_are_refused_or_left_out(tmp_path):
    for i, side in enumerate((64, 200, 50, 128)):
        picture(i, 200, 200).resize((side, side)).save(tmp_path / f"{i}.png")
    text = refusal(tmp_path, 128)
    assert "2 of 4 pictures" in text and "0.png" in text and "size=83 or less" in text
    assert open_faces(tmp_path, 83).images[:].shape == (4, 3, 83, 83)
    faces = open_faces(tmp_path, 128, too_small="leave out")
    assert (
        faces.names == ["1.png", "3.png"]
        and "left out" in faces._repr_markdown_()
        and faces.images[:].shape == (2, 3, 128, 128)
    )
    assert len(open_faces(tmp_path, 128, max_enlargement=3)) == 4


def test_squares_keep_pixels_and_resized_squares_move_landmarks(tmp_path):
    same = picture(0, 218, 218)
    same.save(tmp_path / "a.png")
    (tmp_path / "landmarks_5.csv").write_text("file\na.png," + ",".join(map(str, POINTS.ravel())))
    faces = open_faces(tmp_path, 218)
    assert torch.equal(faces.images[:][0], torch.from_numpy(np.array(same)).permute(2, 0, 1)) and torch.equal(
        faces.landmarks[0], torch.tensor(POINTS).float()
    )
    half = open_faces(tmp_path, 109)
    assert torch.allclose(half.landmarks, faces.landmarks / 2) and half.images[:].shape[-1] == 109
    (tmp_path / "landmarks_5.csv").write_text("file\na.png,1,2,3,4,5,6\n")
    assert "5, 49, 68, 81 or 194" in refusal(tmp_path, 109)


def test_names_are_in_natural_order(tmp_path):
    for i in (10, 9, 100, 1):
        picture(0, 200, 200).save(tmp_path / f"{i}.png")
    assert open_faces(tmp_path, 128).names == ["1.png", "9.png", "10.png", "100.png"]


# ------------------------------------------------------------------ CelebAMask-HQ


def celebamask(path, n=4, side=128, masks=64):
    (path / "CelebA-HQ-img").mkdir(parents=True)
    for i in range(n):
        anno = path / "CelebAMask-HQ-mask-anno" / str(i // 2)
        anno.mkdir(parents=True, exist_ok=True)
        picture(i, 218, 218).resize((side, side)).save(path / "CelebA-HQ-img" / f"{i}.jpg")
        for name, box in dict(
            skin=(10, 10, 54, 60),
            hair=(10, 4, 54, 20),
            nose=(28, 28, 36, 44),
            l_eye=(38, 22, 48, 28),
            r_eye=(16, 22, 26, 28),
            l_ear=(54, 24, 58, 36),
        ).items():
            mask = Image.new("L", (masks, masks))
            ImageDraw.Draw(mask).rectangle([(v + (k > 1)) * masks // 64 - (k > 1) for k, v in enumerate(box)], fill=255)
            mask.save(anno / f"{i:05}_{name}.png")
    return path


def test_celebamask_paints_later_classes_over_earlier_ones(tmp_path):
    faces = open_faces(celebamask(tmp_path), 64)
    label = faces.batch([2])["parsing"][0]
    assert faces.labels == ("parsing",) and label.dtype == torch.uint8
    assert (
        label[15, 30] == IDS["hair"]
        and label[40, 30] == IDS["nose"]
        and label[50, 30] == IDS["skin"]
        and label[2, 2] == 0
    )


def test_masks_of_another_size_than_the_pictures_still_fit(tmp_path):
    fine = open_faces(celebamask(tmp_path / "a", masks=128), 64)
    coarse = open_faces(celebamask(tmp_path / "b", masks=64), 64)
    assert torch.equal(fine.parsing[[0]], coarse.parsing[[0]])


def test_wrong_sides_are_named_by_side(tmp_path):
    celebamask(tmp_path)
    anno = tmp_path / "CelebAMask-HQ-mask-anno" / "0"
    right = open_faces(tmp_path, 64).parsing[[1]]
    for part in ("eye", "ear"):
        for old, new in (("l", "x"), ("r", "l"), ("x", "r")):
            if (f := anno / f"00001_{old}_{part}.png").exists():
                f.rename(anno / f"00001_{new}_{part}.png")
    assert torch.equal(open_faces(tmp_path, 64).parsing[[1]], right)
    assert not torch.equal(open_faces(tmp_path, 64, sides=False).parsing[[1]], right)


def test_an_empty_skin_mask_is_told(tmp_path):
    celebamask(tmp_path)
    assert not [row for row in check_faces(tmp_path, 64).rows if "skin" in row[2]]
    Image.new("L", (64, 64)).save(tmp_path / "CelebAMask-HQ-mask-anno" / "1" / "00002_skin.png")
    assert ("parsing", "1 of 4 read", "without any skin (first 2.jpg)") in check_faces(tmp_path, 64).rows


def test_half_present_celebamask(tmp_path):
    celebamask(tmp_path / "a")
    for f in (tmp_path / "a" / "CelebAMask-HQ-mask-anno" / "1").iterdir():
        f.unlink()
    text = refusal(tmp_path / "a")
    assert "2 of 4 pictures" in text and "2.jpg" in text
    celebamask(tmp_path / "b")
    for f in (tmp_path / "b" / "CelebA-HQ-img").iterdir():
        f.unlink()
    assert "no pictures in CelebA-HQ-img" in refusal(tmp_path / "b")
    celebamask(tmp_path / "c")
    (tmp_path / "c" / "CelebAMask-HQ-mask-anno").rename(tmp_path / "elsewhere")
    faces = open_faces(tmp_path / "c", 64)
    assert faces.labels == () and "unpack CelebAMask-HQ.zip" in faces._repr_markdown_()
    celebamask(tmp_path / "d")
    Image.new("L", (10, 10)).save(tmp_path / "d" / "CelebAMask-HQ-mask-anno" / "0" / "00001_nose.png")
    assert "00001_nose.png is 10x10" in refusal(tmp_path / "d")


def test_celebamask_takes_celebas_partition_through_the_mapping(tmp_path):
    celebamask(tmp_path)
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx orig_idx orig_file\n" + "".join(f"{i} {i + 50} {i + 51:06}.jpg\n" for i in range(4))
    )
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{i:06}.jpg {i % 3}\n" for i in range(100)))
    assert open_faces(tmp_path, 64).split.tolist() == [(i + 51) % 3 for i in range(4)]


# ------------------------------------------------------------------ Helen

HELEN = ["100032540_1", "232194_1", "30844800_1"]


def helen(path, labels=True):
    (path / "images").mkdir(parents=True)
    for k, name in enumerate(HELEN):
        shifted = Image.new("RGB", (300, 260), (0, 0, 0))
        shifted.paste(picture(k), (30 * k, 10))
        shifted.save(path / "images" / f"{name}.jpg", quality=95)
        if not labels:
            continue
        (path / "labels" / name).mkdir(parents=True)
        boxes = {
            1: (40, 50, 138, 190),
            4: (64, 106, 74, 116),
            5: (103, 106, 113, 116),
            6: (83, 126, 93, 141),
            7: (73, 147, 105, 150),
            8: (73, 151, 105, 153),
            9: (73, 154, 105, 157),
        }
        maps = np.zeros((11, 260, 300), np.uint8)
        for label, (x0, y0, x1, y1) in boxes.items():
            maps[label, y0 + 10 : y1 + 11, x0 + 30 * k : x1 + 30 * k + 1] = 255 if label != 1 else 200
        maps[0] = 255 - maps.max(0)
        for label in range(11):
            Image.fromarray(maps[label]).save(path / "labels" / name / f"{name}_lbl{label:02}.png")
    for list_, name in zip(("exemplars", "tuning", "testing"), HELEN):
        (path / f"{list_}.txt").write_text(f"1 , {name}\n")
    return path


def test_helen_is_aligned_by_its_labels(tmp_path):
    faces = open_faces(helen(tmp_path), 128)
    assert faces.split.tolist() == [0, 2, 2] and faces.labels == ("parsing",)
    batch = faces.batch(range(3))
    assert set(batch["parsing"].unique().tolist()) == {
        IDS[c] for c in "background skin l_eye r_eye nose u_lip mouth l_lip".split()
    }
    for label in batch["parsing"]:
        y, x = (label == IDS["r_eye"]).nonzero().float().mean(0) / 128
        assert (
            abs(x - 0.377) < 0.02 and abs(y - 0.47) < 0.03
        )  # the person's right eye is left in the picture, though the file calls it left
    assert (batch["image"][0] - batch["image"][2]).abs().mean() < 0.03  # shifted photographs, the same aligned face


def test_helen_annotation_gives_194_points(tmp_path):
    helen(tmp_path, labels=False)
    (tmp_path / "annotation").mkdir()
    shape = np.zeros((194, 2))
    for first, n, (x, y) in (
        (114, 20, POINTS[0]),
        (134, 20, POINTS[1]),
        (154, 20, POINTS[0] - [0, 15]),
        (174, 20, POINTS[1] - [0, 15]),
    ):
        turn = np.arange(n) * 2 * np.pi / n
        shape[first : first + n] = np.stack([x + 6 * np.cos(turn), y + 3 * np.sin(turn)], 1)
    for first, last in parts._RUNS_194:
        shape[first : last + 1] = np.stack([np.linspace(105, 73, last + 1 - first), np.full(last + 1 - first, 152)], 1)
    for k, name in enumerate(HELEN):
        lines = [name, *[f"{x + 30 * k} , {y + 10}" for x, y in shape]]
        (tmp_path / "annotation" / f"{k + 1}.txt").write_text("\r\n".join(lines))
    faces = open_faces(tmp_path, 128)
    five = five_points(faces.landmarks) / 128
    assert faces.landmarks.shape == (3, 194, 2) and torch.allclose(
        five[:, :2], torch.tensor([[0.377, 0.47], [0.623, 0.47]]), atol=0.02
    )
    assert (five[:, 3, 0] < five[:, 4, 0]).all()  # corners from left to right, though the file runs the other way
    (tmp_path / "annotation" / "2.txt").write_text(HELEN[1] + "\n1 , 2\n")
    assert "2.txt holds 1 points" in refusal(tmp_path)


def test_half_present_helen(tmp_path):
    helen(tmp_path / "a")
    (tmp_path / "a" / "labels" / HELEN[1] / f"{HELEN[1]}_lbl10.png").unlink()
    assert f"no label maps for {HELEN[1]}.jpg" in refusal(tmp_path / "a")
    helen(tmp_path / "b")
    (tmp_path / "b" / "images" / f"{HELEN[2]}.jpg").unlink()
    notes = open_faces(tmp_path / "b", 64).notes
    assert ("not used", "1 of 3 rows") in {note[:2] for note in notes} and f"(first {HELEN[2]})" in str(notes)
    helen(tmp_path / "c")
    (tmp_path / "c" / "tuning.txt").unlink()
    assert f"exemplars.txt, testing.txt has no line for 1 (first {HELEN[1]}.jpg)" in refusal(tmp_path / "c")
    helen(tmp_path / "d")
    for f in (tmp_path / "d" / "images").iterdir():
        f.unlink()
    assert "no pictures in images" in refusal(tmp_path / "d")


# ------------------------------------------------------------------ the set


def random_set(n=20, size=16, seed=0, **more):
    g = torch.Generator().manual_seed(seed)
    columns = (
        dict(
            landmarks=torch.rand(n, 68, 2, generator=g) * size,
            parsing=torch.randint(0, 19, (n, size, size), generator=g).to(torch.uint8),
            identity=torch.arange(n) // 2,
            depth=torch.rand(n, size, size, generator=g),
            foreground=torch.rand(n, size, size, generator=g),
        )
        | more
    )
    images = torch.randint(0, 256, (n, 3, size, size), generator=g).to(torch.uint8)
    return FaceSet(
        "random",
        images,
        [f"{i}.png" for i in range(n)],
        (torch.arange(n) % 4 // 2 + torch.arange(n) % 2).clamp(max=2).to(torch.uint8),
        **columns,
    )


def lazily(faces, reads=None):
    def read(i):
        if reads is not None:
            reads.append(i)
        return faces.images[i]

    return replace(faces, images=Files(read, faces.images.shape[1:], torch.arange(len(faces))))


def test_parts_and_takes_keep_rows_together():
    faces = random_set()
    part = faces.subset("val")
    rows = [int(n.split(".")[0]) for n in part.names]
    assert (
        torch.equal(part.images, faces.images[rows])
        and torch.equal(part.identity, faces.identity[rows])
        and torch.equal(part.landmarks, faces.landmarks[rows])
    )
    assert faces.take([5, 2]).take([1]).names == ["2.png"] and torch.equal(
        lazily(faces).take([5, 2]).images[[1]][0], faces.images[2]
    )
    assert sum(len(faces.subset(s)) for s in ("train", "val", "test")) == 20


def test_an_empty_part_gives_no_batch():
    none = random_set().take(slice(0, 0))
    assert len(none) == 0 and none.subset("val").names == []
    with pytest.raises(FacelabError, match="holds no faces"):
        none.batch([])


def test_batches_hold_what_was_asked_for():
    faces = random_set()
    assert set(faces.batch([0])) == {"image", "landmarks", "parsing", "identity", "depth", "foreground"}
    assert set(faces.batch([0], labels=())) == {"image"}
    batch = faces.batch(torch.tensor([3, 3, 1]), "cpu", ("identity", "parsing"))
    assert list(batch) == ["image", "identity", "parsing"] and batch["identity"].tolist() == [1, 1, 0]
    assert torch.equal(batch["image"], to_float(faces.images[[3, 3, 1]]))
    with pytest.raises(FacelabError, match="label 'pose' is not known"):
        faces.batch([0], labels=("pose",))
    with pytest.raises(FacelabError, match="set random has no depth .*drawn faces"):
        replace(faces, depth=None).batch([0], labels=("depth",))


def test_columns_must_fit():
    with pytest.raises(FacelabError, match="different lengths"):
        random_set(identity=torch.arange(3))
    with pytest.raises(FacelabError, match="uint8"):
        FaceSet("x", torch.zeros(1, 3, 4, 4), ["a"], torch.zeros(1, dtype=torch.uint8))


def test_streaming_gives_the_same_values_and_reads_ahead():
    faces, reads = random_set(), []
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3)).split(4)
    lazy = lazily(faces, reads)
    for a, b in zip(faces.stream(order), lazy.stream(order), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)
    ahead, started = threading.Event(), []
    slow = replace(
        faces,
        images=Files(
            lambda i: (started.append(i), ahead.set() if i >= 4 else None, faces.images[i])[-1],
            (3, 16, 16),
            torch.arange(20),
        ),
    )
    stream = slow.stream(torch.arange(20).split(4))
    next(stream)
    assert ahead.wait(5)  # the second batch is being read though only the first was asked for
    stream.close()
    assert len(started) <= 16


def test_an_error_while_streaming_reaches_the_reader():
    def read(i):
        if i == 6:
            raise FacelabError("6.png cannot be read: remove it")
        return torch.zeros(3, 16, 16, dtype=torch.uint8)

    faces = replace(random_set(), images=Files(read, (3, 16, 16), torch.arange(20)))
    seen = []
    with pytest.raises(FacelabError, match="6.png"):
        for batch in faces.stream(torch.arange(20).split(2)):
            seen.append(batch)
    assert len(seen) == 3


def test_to_fits_or_streams():
    faces = lazily(random_set())
    assert not faces.to("cpu", budget=faces.nbytes - 1).resident
    here = faces.to("cpu", budget=faces.nbytes)
    assert here.resident and torch.equal(here.images, random_set().images)
    assert F.free_bytes("cpu") > 2**20


def test_saved_sets_are_equal_byte_by_byte_and_keep_absences(tmp_path):
    faces = replace(random_set(), depth=None, notes=[("a", "b", "c")])
    one, two = faces.save(tmp_path / "deep" / "one.safetensors"), lazily(faces).save(tmp_path / "two.safetensors")
    assert one.read_bytes() == two.read_bytes()
    again = FaceSet.load(one)
    assert (
        again.labels == faces.labels
        and again.names == faces.names
        and again.notes == faces.notes
        and again.name == "random"
    )
    for k in ("images", "split", *faces.labels):
        assert torch.equal(getattr(again, k), getattr(faces, k)) and getattr(again, k).dtype == getattr(faces, k).dtype
    two.rename(tmp_path / "faces.safetensors")
    assert open_faces(tmp_path, 16).names == faces.names and "size=16" in refusal(tmp_path, 128)


def test_saving_leaves_nothing_half_written(tmp_path):
    def read(i):
        raise FacelabError("broken")

    faces = replace(random_set(), images=Files(read, (3, 16, 16), torch.arange(20)))
    with pytest.raises(FacelabError):
        faces.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_face_sets(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, tmp_path / "weights.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(random_set().save(tmp_path / "a.safetensors").read_bytes()[:-10])
    for name, words in (("weights", "was not written by"), ("cut", "not a whole"), ("nowhere", "does not exist")):
        with pytest.raises(FacelabError, match=words):
            FaceSet.load(tmp_path / f"{name}.safetensors")


# ------------------------------------------------------------------ geometry and mirrors


def test_similarity_is_the_least_squares_fit():
    points = torch.tensor(np.random.default_rng(0).normal(60, 20, (3, 5, 2)))
    for p, m in zip(points, similarity(points, 128)):
        p3 = torch.stack([p[0], p[1], (p[3] + p[4]) / 2]).numpy()
        a = np.concatenate([[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in p3])
        s, t, u, v = np.linalg.lstsq(a, (np.array(parts.TEMPLATES["celeba_hq"]) * 128).ravel(), rcond=None)[0]
        assert np.allclose(m, [[s, -t, u], [t, s, v]])
    with pytest.raises(FacelabError, match="ffhq"):
        similarity(points, 128, "ffhq")


def test_align_is_batched_and_agrees_with_the_reader():
    images = torch.stack([torch.from_numpy(np.array(picture(k, 178, 218))).permute(2, 0, 1) for k in range(3)])
    points = torch.tensor(POINTS + 0.5).float() + torch.tensor([[[0.0, 0.0]], [[6.0, 3.0]], [[-4.0, 8.0]]])
    together, moved = align(to_float(images), points, 96)
    alone, _ = align(to_float(images[1:2]), points[1:2], 96)
    assert torch.allclose(together[1:2], alone, atol=1e-5) and moved.shape == (3, 5, 2)
    read = folders.align_picture(picture(1), similarity(points, 96)[1].numpy(), 96)
    assert (torch.from_numpy(np.array(read)).permute(2, 0, 1) / 255 - together[1]).abs().mean() < 0.006


@pytest.mark.parametrize("count", LANDMARK_SCHEMES)
def test_mirror_twice_is_nothing_and_once_swaps_sides(count):
    g = torch.Generator().manual_seed(count)
    batch = dict(
        image=torch.rand(2, 3, 8, 8, generator=g),
        landmarks=torch.rand(2, count, 2, generator=g) * 8,
        parsing=torch.randint(0, 19, (2, 8, 8), generator=g).to(torch.uint8),
        identity=torch.tensor([1, 2]),
        depth=torch.rand(2, 8, 8, generator=g),
    )
    once, twice = mirror(batch), mirror(mirror(batch))
    for k in batch:
        assert torch.allclose(twice[k].double(), batch[k].double(), atol=1e-5) and twice[k].dtype == batch[k].dtype
    a, b = five_points(batch["landmarks"]), five_points(once["landmarks"])
    for k, other in enumerate((1, 0, 2, 4, 3)):
        assert torch.allclose(b[:, k], torch.tensor([8.0, 0]) + a[:, other] * torch.tensor([-1.0, 1]), atol=1e-5)


def test_mirrored_labels_follow_the_person():
    for name, k in IDS.items():
        assert CLASSES_19[MIRROR_19[k]] == (
            {"l": "r", "r": "l"}[name[0]] + name[1:] if name[2:] in ("eye", "brow", "ear") else name
        )
    assert (
        IDS["l_lip"] == MIRROR_19[IDS["l_lip"]]
        and IDS["neck_l"] == MIRROR_19[IDS["neck_l"]]
        and IDS["ear_r"] == MIRROR_19[IDS["ear_r"]]
    )
    labels = torch.randint(0, 19, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    image = torch.zeros(2, 3, 8, 8)
    seen = mirror(dict(image=image, parsing=labels))["parsing"]
    assert torch.equal(mirror(dict(image=image, parsing=parsing_11(labels)))["parsing"], parsing_11(seen))
    one_hot = torch.nn.functional.one_hot(labels, 19).permute(0, 3, 1, 2).float()
    assert torch.equal(mirror(dict(image=image, parsing=one_hot))["parsing"].argmax(1), seen)
    with pytest.raises(FacelabError, match="7 parsing maps"):
        mirror(dict(image=image, parsing=torch.rand(2, 7, 8, 8)))
    with pytest.raises(FacelabError, match="'flow'"):
        mirror(dict(image=image, flow=image))
    assert sorted(MIRROR_11) == list(range(11))


def test_a_lone_ear_is_named_by_its_side_of_the_nose():
    labels = torch.zeros(1, 8, 16, dtype=torch.uint8)
    labels[:, 3:5, 7:9], labels[:, 3, 14] = IDS["nose"], IDS["r_ear"]
    assert correct_sides(labels)[0, 3, 14] == IDS["l_ear"]
    labels[:, 3, 14], labels[:, 3, 1] = 0, IDS["r_ear"]
    assert torch.equal(correct_sides(labels), labels)


def test_order_194_keeps_points_and_is_idempotent():
    points = torch.rand(4, 194, 2, generator=torch.Generator().manual_seed(0)) * 100
    once = order_194(points)
    assert torch.equal(once.sort(1).values, points.sort(1).values) and torch.equal(order_194(once), once)


def test_parsing_from_landmarks_says_so_and_puts_parts_at_their_points():
    from facelab.faces.drawn import draw_faces

    drawn = draw_faces(range(4), size=128)
    faces = FaceSet(
        "drawn",
        (drawn["image"] * 255).to(torch.uint8),
        list("abcd"),
        torch.zeros(4, dtype=torch.uint8),
        landmarks=drawn["landmarks_81"],
    )
    made = parsing_from_landmarks(faces)
    assert (
        "parsing from landmarks" in made.name
        and "hair, ears and neck" in made._repr_markdown_()
        and faces.parsing is None
    )
    true = drawn["parsing"].long()
    for part, least in (("skin", 0.6), ("nose", 0.4), ("l_eye", 0.5), ("r_eye", 0.5), ("u_lip", 0.4), ("l_lip", 0.4)):
        a, b = made.parsing == IDS[part], true == IDS[part]
        assert (a & b).sum() / (a | b).sum() > least, part
    with pytest.raises(FacelabError, match="5 landmarks"):
        parsing_from_landmarks(replace(faces, landmarks=five_points(faces.landmarks)))


def test_eleven_maps():
    labels = torch.arange(19).view(1, 1, 19)
    maps = parsing_11(labels)[0, :, 0]
    assert maps.sum(0).tolist() == [1] * 19 and maps.argmax(0).tolist() == list(parts.TO_11)
    neck = parsing_11(labels, "neck")[0, :, 0].argmax(0).tolist()
    assert neck[IDS["neck"]] == 10 and neck[IDS["hair"]] == 0
    with pytest.raises(FacelabError, match="reach 19"):
        parsing_11(labels + 1)
    with pytest.raises(FacelabError, match="eleventh='beard'"):
        parsing_11(labels, "beard")


# ------------------------------------------------------------------ command line


def run(*args):
    return subprocess.run([sys.executable, "-m", "facelab.faces", *map(str, args)], capture_output=True, text=True)


def test_command_line(tmp_path):
    good = run("check", celeba(tmp_path / "good"), "--size", 64, "--all")
    assert (
        good.returncode == 0 and "6 of 6 faces" in good.stdout and "parsing | absent" in good.stdout and not good.stderr
    )
    bad = run("check", tmp_path / "nowhere")
    assert (
        bad.returncode == 1
        and "does not exist" in bad.stderr
        and "Traceback" not in bad.stderr
        and bad.stderr.count("\n") == 1
    )


def test_reports_do_not_name_this_machine(tmp_path):
    faces = open_faces(celeba(tmp_path), 64)
    assert str(tmp_path) not in json.dumps([faces.notes, faces.name.replace(tmp_path.name, "")])
