"""Motion blur against a line kernel and cv2.filter2D for each picture; a roll against one cv2.warpAffine a moment."""

import cv2
import numpy as np

from benchmarks.common import Case, main
from facelab.degradations.degradation import FACE
from facelab.degradations.motion import MotionBlur


def line(length, angle, spacing=0.5):
    "Points of a straight path of this length, centred; pixels to the right and down."
    t = np.linspace(-0.5, 0.5, int(np.ceil(length / spacing)) + 2)[1:-1, None]
    return t * length * [np.cos(np.radians(angle)), -np.sin(np.radians(angle))]


def wander(length, angle, bend):
    "A path of its own for a shaking hand."
    t, k = np.linspace(0, 1, int(2 * length) + 3), np.arange(1, 4)
    heading = np.radians(angle + bend * (np.random.normal(size=3) / k) @ np.cos(np.pi * k[:, None] * t))
    path = np.cumsum(np.stack([np.cos(heading), -np.sin(heading)], 1), 0) * length / len(t)
    return path - path.mean(0)


def kernel_of(path):
    "The path as an antialiased kernel for cv2.filter2D."
    r = int(np.ceil(np.abs(path).max())) + 1
    kernel = np.zeros((2 * r + 1, 2 * r + 1), np.float32)
    x, y = r - path.T  # filter2D correlates
    j, i = np.floor(x).astype(int), np.floor(y).astype(int)
    b, a = x - j, y - i
    for di, dj, weight in ((0, 0, (1 - a) * (1 - b)), (0, 1, (1 - a) * b), (1, 0, a * (1 - b)), (1, 1, a * b)):
        np.add.at(kernel, (i + di, j + dj), weight)
    return kernel / len(path)


def soft_face(labels):
    face = np.isin(labels["parsing"], FACE).astype(np.float32)
    return cv2.blur(cv2.dilate(face, np.ones((3, 3))), (3, 3), borderType=cv2.BORDER_REPLICATE)


def slide(hr, i, maps, labels):
    length, angle, bend = maps["length"] * min(hr.shape[:2]), maps["angle"], maps["bend"]
    path = maps["path"] if "path" in maps else wander(length, angle, bend) if bend else line(length, angle)
    kernel, a = kernel_of(path), soft_face(labels)[..., None]
    whole, face = [cv2.filter2D(v, -1, kernel, borderType=cv2.BORDER_REPLICATE) for v in (hr, hr * a)]
    alpha = cv2.filter2D(a, -1, kernel, borderType=cv2.BORDER_REPLICATE)[..., None]
    return np.clip(a * whole + (1 - a) * (face + (1 - alpha) * hr), 0, 1)


def roll(hr, i, maps, labels):
    a, (h, w) = soft_face(labels), hr.shape[:2]
    m = cv2.moments(a)
    centre = m["m10"] / m["m00"], m["m01"] / m["m00"]
    steps = int(np.ceil(np.radians(maps["turn"]) * min(h, w) / 2)) + 1
    layer, out, seen = np.dstack([hr, a]), np.zeros_like(hr), np.zeros_like(a)
    for t in (np.arange(steps) + 0.5) / steps - 0.5:
        moved = cv2.warpAffine(
            layer, cv2.getRotationMatrix2D(centre, float(maps["turn"]) * t, 1), (w, h), borderMode=cv2.BORDER_REPLICATE
        )
        here = 1 - (1 - a) * (1 - moved[..., 3])
        out += here[..., None] * moved[..., :3]
        seen += here
    return np.clip(out / steps + (1 - seen / steps)[..., None] * hr, 0, 1)


CASES = [
    Case("motion, straight, 2 to 10 %", MotionBlur(), slide),
    Case("motion, straight, 2 to 14 %", MotionBlur(length=(0.02, 0.14)), slide),
    Case("motion, shake", MotionBlur(length=(0.05, 0.2), bend=60), slide),
    Case("motion, roll, 5 to 15°", MotionBlur(length=0, turn=(5, 15)), roll),
]

if __name__ == "__main__":
    main(CASES)
