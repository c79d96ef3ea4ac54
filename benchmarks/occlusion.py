"""Occlusion against slicing, cv2.rectangle and pasting a drawn picture with cv2.warpAffine."""

import cv2
import numpy as np

from benchmarks.common import Case, main
from facelab.degradations.occlusion import LEFT, SKIN_SPOTS, SPAN, TOP, Block, Part, Worn, sprite_sheet

RNG = np.random.default_rng(0)


def hide(hr, top, left, bottom, right, fill, ours=None):
    "The picture and its map, as a completion network takes them; `ours` is our noise, when results are compared."
    out, visible = hr.copy(), np.ones(hr.shape[:2], np.float32)
    cv2.rectangle(visible, (left, top), (right - 1, bottom - 1), 0, -1)
    if fill == "black":
        cv2.rectangle(out, (left, top), (right - 1, bottom - 1), (0, 0, 0), -1)
    if fill == "mean":
        out[top:bottom, left:right] = hr.mean((0, 1))
    if fill == "noise":
        out[top:bottom, left:right] = np.random.uniform(size=(bottom - top, right - left, 3)) if ours is None else ours
    return out, visible


def block(fill):
    def reference(hr, i, maps, labels):
        h, w = hr.shape[:2]
        top, left = (
            (int(v) for v in maps["box"][:2]) if "box" in maps else (RNG.integers(h // 2 + 1), RNG.integers(w // 2 + 1))
        )
        noise = maps["noise"].transpose(1, 2, 0) if "noise" in maps else None
        return hide(hr, top, left, top + h // 2, left + w // 2, fill, noise)[0]

    return reference


def five(p):
    "Eyes, nose and mouth corners of 68 landmarks."
    return p[36:42].mean(0), p[42:48].mean(0), p[30], p[48], p[54]


def part(fill):
    def reference(hr, i, maps, labels):
        left, right, nose, a, b = five(labels["landmarks"])
        eyes, mouth = (left + right) / 2, (a + b) / 2
        d = max(np.linalg.norm(right - left), np.linalg.norm(mouth - eyes))
        middle, half = [
            (left, (0.36 * d, 0.25 * d)),
            (right, (0.36 * d, 0.25 * d)),
            (eyes, (0.36 * d, 0.25 * d) + abs(right - left) / 2),
            (0.3 * eyes + 0.7 * nose, (0.33 * d, 0.37 * d)),
            (mouth, (0.16 * d, 0.31 * d) + abs(b - a) / 2),
        ][int(maps["part"])]
        (x0, y0), (x1, y1) = np.rint(middle - half).astype(int), np.rint(middle + half).astype(int)
        ours = None
        if "noise" in maps:
            noise = maps["noise"]
            top, left = (max(0, at - (side - n)) for at, side, n in zip((y0, x0), hr.shape, noise.shape[1:]))
            ours = noise[:, top : top + y1 - y0, left : left + x1 - x0].transpose(1, 2, 0)
        return hide(hr, y0, x0, y1, x1, fill, ours)[0]

    return reference


def worn(hr, i, maps, labels):
    "A drawing of our sheet, warped and blended as a sprite with an alpha channel."
    side = SHEET.shape[0] // 11
    drawing = SHEET[int(maps["tile"]) * side :][:side]
    left, right, nose, a, b = five(labels["landmarks"])
    eyes = (left + right) / 2
    x, y = right - left, (a + b) / 2 - eyes
    plain = np.stack([x, y], 1)
    back = np.linalg.inv(
        np.stack([x * max(1, (0.6 if maps["kind"] == 0 else 0.9) * np.linalg.norm(y) / np.linalg.norm(x)), y], 1)
    )
    t, s = np.radians(maps["tilt"]), maps["size"]
    turn = np.array([[np.cos(t) * maps["mirror"], np.sin(t) * maps["mirror"]], [-np.sin(t), np.cos(t)]]) / s
    linear = turn @ back * side / SPAN
    move = turn @ (back @ -eyes - (maps["depth"] * (back @ (nose - eyes))[0], maps["lower"])) - (LEFT, TOP)
    matrix = np.concatenate(
        [linear, move[:, None] * side / SPAN + linear.sum(1, keepdims=True) / 2 - 0.5], 1
    )  # pixel centres at whole numbers
    hidden, first, second, white = cv2.split(
        cv2.warpAffine(
            drawing,
            matrix,
            hr.shape[1::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
    )
    if "C" in maps:
        one, two = maps["C"][:, 0], maps["C"][:, 1]
    else:
        one, two = RNG.random((2, 3), dtype=np.float32)
        spots = np.rint(eyes + SPOTS @ plain.T - 0.5).astype(int).clip(0, hr.shape[0] - 1)
        skin = hr[spots[:, 1], spots[:, 0]].mean(0)
        if maps["kind"] == 1:
            one, two = 1.2 * skin, skin * np.array([0.96, 0.67, 0.58], np.float32)
    return (1 - hidden[..., None]) * hr + first[..., None] * one + second[..., None] * two + white[..., None]


SPOTS = np.array(SKIN_SPOTS)
SHEET = np.ascontiguousarray(sprite_sheet(128).permute(1, 2, 0).numpy())

NAMED = ("left eye", "right eye", "both eyes", "nose", "mouth")

CASES = [
    Case("block, random quarter, black", Block(), block("black")),
    Case("block, random quarter, mean", Block(fill="mean"), block("mean")),
    Case("block, random quarter, noise", Block(fill="noise"), block("noise")),
    Case("part, black", Part(part=NAMED), part("black")),
    Case("part, noise", Part(part=NAMED, fill="noise"), part("noise")),
    Case("worn: glasses, hand, scarf", Worn(), worn),
]

if __name__ == "__main__":
    main(CASES)
