"""Small copies of CelebA, CelebAMask-HQ and Helen, laid out as they are published, of drawn faces."""

import numpy as np
from PIL import Image, ImageDraw

from facelab.faces.drawn import draw_set
from facelab.faces.layouts import FROM_HELEN
from facelab.faces.parts import CLASSES_19, five_points

GAP = 37  # CelebA-HQ's picture k is CelebA's picture number GAP * k + 5


def drawn(n, size):
    "n drawn faces: 60 % to train, 20 % each to validate and test, each part with at least one."
    test = max(1, n // 5)
    return draw_set(n - 2 * test, test, test, size=size, seed=5)


def on_canvas(picture, width, height, x, y):
    "A picture (3, S, S) at (x, y) of a canvas, its border repeated; what is outside is cut off. (H, W, 3)."
    S = picture.shape[-1]
    rows, columns = (np.clip(np.arange(n) - at, 0, S - 1) for n, at in ((height, y), (width, x)))
    return picture[:, rows][:, :, columns].transpose(1, 2, 0)


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def celeba(folder, n=20):
    "CelebA: img_align_celeba of 178x218 pixels, five whole-numbered points, partition, identities."
    faces = drawn(n, 160)  # eyes 39 pixels apart, as CelebA's
    pictures, names = folder / "img_align_celeba", [f"{i + 1:06}.jpg" for i in range(n)]
    pictures.mkdir(parents=True)
    five = (five_points(faces.landmarks).numpy() + [9, 36]).astype(int)
    for name, picture in zip(names, faces.images.numpy()):
        Image.fromarray(on_canvas(picture, 178, 218, 9, 36)).save(pictures / name, quality=95)
    head = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    rows = [name + "".join(f" {v:4}" for v in p.ravel()) for name, p in zip(names, five)]
    write_lines(folder / "list_landmarks_align_celeba.txt", [n, f"{head} ", *rows])
    write_lines(folder / "list_eval_partition.txt", [f"{a} {b}" for a, b in zip(names, faces.split.tolist())])
    write_lines(folder / "identity_CelebA.txt", [f"{a} {b + 1}" for a, b in zip(names, faces.identity.tolist())])
    return folder


def celebamask(folder, n=20, lists=True):
    "CelebAMask-HQ: pictures of 1024 pixels, a mask of 512 a part; the mapping file, and CelebA's lists beside it."
    faces = drawn(n, 256)
    pictures, masks = folder / "CelebA-HQ-img", folder / "CelebAMask-HQ-mask-anno" / "0"
    for place in (pictures, masks):
        place.mkdir(parents=True)
    for i, (picture, labels) in enumerate(zip(faces.images.numpy(), faces.parsing.numpy())):
        image = Image.fromarray(picture.transpose(1, 2, 0)).resize((1024, 1024), Image.BICUBIC)
        image.save(pictures / f"{i}.jpg", quality=90)
        for k in np.unique(labels)[1:]:
            mask = Image.fromarray(np.uint8(labels == k) * 255).resize((512, 512), Image.NEAREST)
            mask.save(masks / f"{i:05}_{CLASSES_19[k]}.png", compress_level=1)
    original = [GAP * i + 5 for i in range(n)]
    rows = [f"{i:<12}{k - 1:<12}{k:06}.jpg" for i, k in enumerate(original)]
    write_lines(folder / "CelebA-HQ-to-CelebA-mapping.txt", [f"{'idx':<12}{'orig_idx':<12}orig_file", *rows])
    if lists:  # of all of CelebA, as they are published
        every = range(1, original[-1] + 10)
        known = {k: (s, who + 1) for k, s, who in zip(original, faces.split.tolist(), faces.identity.tolist())}
        rows = [(f"{k:06}.jpg", *known.get(k, (0, 100000 + k))) for k in every]
        write_lines(folder / "list_eval_partition.txt", [f"{name} {split}" for name, split, _ in rows])
        write_lines(folder / "identity_CelebA.txt", [f"{name} {who}" for name, _, who in rows])
    return folder


def helen(folder, n=20, labels=True, annotation=True):
    "Helen: Smith and others' images, eleven label maps a face and lists; 194 points a face in the folder annotation."
    faces = drawn(n, 160)
    names, shifts = (
        [f"{100032540 + 977 * i}_1" for i in range(n)],
        [(20 + 3 * (i % 8), 70 - 4 * (i % 9)) for i in range(n)],
    )
    lists = {"exemplars": [], "tuning": [], "testing": []}
    (folder / "images").mkdir(parents=True)
    for i, (name, (x, y)) in enumerate(zip(names, shifts)):
        image = on_canvas(faces.images[i].numpy(), 240, 280, x, y)
        Image.fromarray(image).save(folder / "images" / f"{name}.jpg", quality=95)
        lists[list(lists)[int(faces.split[i])]].append(name)
        if labels:
            write_maps(folder / "labels" / name, faces.parsing[i].numpy(), faces.landmarks[i], x, y)
        if annotation:
            points = points_194(faces.landmarks[i].numpy()) + [x, y]
            write_lines(folder / "annotation" / f"{i + 1}.txt", [name, *(f"{a:.6f} , {b:.6f}" for a, b in points)])
    for list_, some in lists.items():
        write_lines(folder / f"{list_}.txt", [f"{k} , {name}" for k, name in enumerate(some, 1)])
    return folder


def write_maps(folder, labels, points, x, y):
    "A face's eleven probability maps; its eyes have labels behind glasses, too."
    folder.mkdir(parents=True)
    seen = Image.fromarray(np.where(labels == CLASSES_19.index("eye_g"), np.uint8(CLASSES_19.index("skin")), labels))
    for eye, first in (("r_eye", 36), ("l_eye", 42)):
        ImageDraw.Draw(seen).polygon(points[first : first + 6].flatten().tolist(), fill=CLASSES_19.index(eye))
    maps = [np.asarray(seen) == k for k in FROM_HELEN]
    maps[0] = ~np.any(maps[1:], 0)  # ears, neck and all else
    for k, part in enumerate(maps):
        shown = on_canvas(np.uint8(part)[None] * 255, 240, 280, x, y)[..., 0]
        Image.fromarray(shown).save(folder / f"{folder.name}_lbl{k:02}.png", compress_level=1)


RUNS_194 = (  # Helen's order, from points of 81: jaw, nose, lips outside and inside, eyes and brows; closed ones return
    ((*range(17),), 41),
    ((27, 31, 32, 33, 34, 35, 27), 17),
    ((54, 53, 52, 51, 50, 49, 48), 14),
    ((54, 55, 56, 57, 58, 59, 48), 14),
    ((64, 63, 62, 61, 60), 14),
    ((64, 65, 66, 67, 60), 14),
    ((36, 37, 38, 39, 40, 41, 36), 20),
    ((42, 43, 44, 45, 46, 47, 42), 20),
    ((17, 18, 19, 20, 21, 19, 17), 20),
    ((22, 23, 24, 25, 26, 24, 22), 20),
)


def points_194(points):
    "194 points in the order of Helen's files from 81: evenly spread on lines through them, (194, 2)."
    out = []
    for corners, count in RUNS_194:
        line = points[list(corners)]
        steps = np.r_[0, np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()]
        at = np.linspace(0, steps[-1], count, endpoint=corners[0] != corners[-1])
        out.append(np.stack([np.interp(at, steps, line[:, k]) for k in (0, 1)], 1))
    return np.concatenate(out)
