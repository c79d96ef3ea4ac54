"""Face masks against one picture at a time with NumPy and OpenCV.

The usual way (as in mask-wearing tools): a template picture for each kind, rendered once; per face a thin-plate
spline from landmarks, `cv2.remap` of the template inside the box around the lower face, light from the face's own
pixels, alpha compositing. Templates and formulas are ours, so that results can be compared; the spline is solved and
evaluated with NumPy at every pixel of the box. The difference that is left comes from our coarse grid of the spline
and from the 5-bit weights of `cv2.remap`.
"""

from functools import lru_cache

import cv2
import numpy as np
import torch

from benchmarks.common import Case, main
from facelab.degradations.mask_template import HALVINGS, LARGEST, LEFT, SHAPES, SIDE, STYLES, TOP, tile
from facelab.degradations.masks import ANCHORS, CHEEKS, FaceMask

REST = ANCHORS.numpy()
CHEEK_WEIGHTS = CHEEKS.numpy()
WORN = []  # top, chin, half a width and distance from the mouth of each kind
for shape in SHAPES.values():
    curves = ((shape.top, 0.0), (shape.bottom, 0.0), (shape.side, 0.6))
    WORN.append((*(float(f(torch.tensor(at))) for f, at in curves), shape.out))


@lru_cache(None)
def template(style, level):
    "A flat mask in two pictures of 4 and 3 channels, halved `level` times."
    kind, texture, valve = STYLES[style]
    flat = tile(kind, texture, valve, LARGEST).permute(1, 2, 0).numpy()
    size = LARGEST >> level
    halved = [cv2.resize(some, (size, size), interpolation=cv2.INTER_AREA) for some in (flat[..., :4], flat[..., 4:])]
    return tuple(np.ascontiguousarray(channels) for channels in halved)


def resample_line(line, count):
    "`count` points at even steps along a polyline."
    walked = np.r_[0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))]
    at = np.linspace(0, walked[-1], count)
    return np.stack([np.interp(at, walked, line[:, k]) for k in (0, 1)], 1)


def face_anchors(p):
    "15 anchors of 68 landmarks in upright coordinates, and the similarity (a, b) as complex numbers."
    eyes = p[36:42].mean(0), p[42:48].mean(0)
    mouth = (p[48] + p[54]) / 2
    z, rest = (np.array(q) @ (1, 1j) for q in ((*eyes, mouth), REST[[11, 12, 14]]))
    off = z - z.mean()
    a = (off.conj() * (rest - rest.mean())).sum() / (np.abs(off) ** 2).sum()
    b = rest.mean() - a * z.mean()
    points = np.concatenate(
        [resample_line(p[:9], 5), resample_line(p[8:17], 5)[1:], p[[27, 33]], [*eyes], p[30:31], [mouth]]
    )
    w = a * (points @ (1, 1j)) + b
    return points, np.stack([w.real, w.imag], 1), a, b


def plate_kernel(r2):
    r2 = np.maximum(r2, 1e-9)
    return 0.5 * r2 * np.log(r2)


def fit_thin_plate(source, target, stiff=0.05):
    "Weights of the thin-plate spline from source to target."
    k = len(source)
    affine = np.c_[np.ones(k), source]
    system = np.zeros((k + 3, k + 3))
    system[:k, :k] = plate_kernel(((source[:, None] - source[None]) ** 2).sum(2)) + stiff * np.eye(k)
    system[:k, k:], system[k:, :k] = affine, affine.T
    return np.linalg.solve(system, np.r_[target - source, np.zeros((3, 2))])


def apply_thin_plate(at, source, weights):
    "The spline at points (M, 2), float32."
    at, source, weights = (q.astype(np.float32) for q in (at, source, weights))
    r2 = (at[:, :1] - source[:, 0]) ** 2 + (at[:, 1:] - source[:, 1]) ** 2
    k = len(source)
    return at + plate_kernel(r2) @ weights[:k] + weights[k] + at @ weights[k + 1 :]


def put_on(u, v, kind, height, shift, tilt, turn):
    "Face coordinates to mask coordinates, and where straps and shadow are seen."
    top, chin, wide, out = WORN[kind]
    far = turn * u
    v = chin - (chin - v) * np.float32((chin - top) / (chin + 0.01 - 0.57 * height))
    u, v = u - shift - tilt * (v - 1), v + tilt * u
    u = u * (1 - min(max(5 - 4.6 * wide, 0), 0.7) * np.clip(far, 0, 0.25)) - 1.7 * out * turn * np.exp(
        -((u / 0.7) ** 2) - ((v - 1) / 0.6) ** 2
    )
    return (
        u + 0.012 * np.sin(3.1 * v + 40 * shift),
        v + 0.012 * np.sin(3.7 * u + 80 * shift),
        np.clip(1.5 - far / 0.08, 0, 1),
    )


def estimate_light(hr, points):
    "Colour of the light, and how far it comes from the right."
    h, w = hr.shape[:2]
    patches = cv2.resize(hr, (16, 16), interpolation=cv2.INTER_AREA)
    at = (CHEEK_WEIGHTS @ points * 16 / (w, h) - 0.5).astype(np.float32)
    skin = (
        cv2.remap(patches, at[:, 0], at[:, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).reshape(4, 3).mean(1)
    )
    lamp = patches.max((0, 1))
    lamp = 0.5 * lamp + 0.5 * lamp.mean()
    left, right = skin[:2].mean(), skin[2:].mean()
    return np.clip((np.sqrt(skin.mean() * lamp) / 0.72) ** 0.7, 0.25, 1.12), 1.2 * np.clip(
        (right - left) / (right + left + 0.1), -0.5, 0.5
    )


def unpack_rgb(number):
    return np.array([number >> s & 255 for s in (16, 8, 0)], np.float32) / 255


def masked(hr, i, maps, labels):
    "One face, one mask."
    h, w = hr.shape[:2]
    points, source, a, b = face_anchors(labels["landmarks"].astype(np.float64))
    unit = 1 / abs(a)
    x0, y0 = np.maximum(np.floor(points[:9].min(0) - 0.5 * unit), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(points[:9].max(0) + 0.6 * unit), (w, h)).astype(int)
    x, y = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
    z = a * (x + 1j * y) + b
    u, v = apply_thin_plate(
        np.stack([z.real.ravel(), z.imag.ravel()], 1), source, fit_thin_plate(source, REST)
    ).T.reshape(2, *x.shape)
    u, v, seen = put_on(
        u,
        v,
        int(maps["kind"]),
        float(maps["height"]),
        np.float32(maps["shift"]),
        np.float32(maps["tilt"]),
        np.float32(source[13, 0]),
    )
    level = int(np.clip(np.round(np.log2(LARGEST / (unit * SIDE))), 0, HALVINGS))
    scale = (LARGEST >> level) / SIDE
    mx, my = ((u - LEFT) * scale - 0.5).astype(np.float32), ((v - TOP) * scale - 0.5).astype(np.float32)
    first, second = (
        cv2.remap(t, mx, my, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        for t in template(int(maps["style"]), level)
    )
    strap, dark = second[..., 2:] * seen[..., None], first[..., 1:2] * seen[..., None]
    cover = first[..., :1] + strap
    light, lean = estimate_light(hr, points)
    fabric, ink, trim = (unpack_rgb(int(maps[k])) * light for k in ("colour", "second", "trim"))
    layer = (first[..., 2:3] * fabric + first[..., 3:] * ink + (second[..., :1] + 0.9 * strap) * trim) * (
        1 + lean * second[..., 1:2]
    )
    out = hr.copy()
    out[y0:y1, x0:x1] = out[y0:y1, x0:x1] * (1 - cover) * (1 - dark) + np.minimum(layer, cover)
    return out


CASES = [Case("face masks", FaceMask(), masked), Case("surgical masks only", FaceMask(kind="surgical"), masked)]

if __name__ == "__main__":
    main(CASES)
