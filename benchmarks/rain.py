"""Heavy rain against np.random.normal, a threshold, cv2.filter2D and NumPy arithmetic for each picture."""

from statistics import NormalDist

import cv2
import numpy as np

from benchmarks.common import Case, main
from benchmarks.motion import kernel_of, line
from facelab.degradations.rain import HeavyRain

NORMAL = NormalDist()


def layer(shape, length, angle, amount, strength):
    "Thresholded Gaussian noise, filtered by a line: one layer of streaks."
    chance = min(amount / length, 0.5)
    threshold = NORMAL.inv_cdf(1 - chance)
    excess = NORMAL.pdf(threshold) / chance - threshold
    noise = np.random.normal(size=shape).astype(np.float32)
    return cv2.filter2D(
        np.maximum(noise - threshold, 0),
        -1,
        kernel_of(line(length, angle)) * (length * strength / excess),
        borderType=cv2.BORDER_REFLECT,
    )


def rain(J, i, maps, labels, layers=1, relief=0):
    (h, w), side = J.shape[:2], min(J.shape[:2])
    if "S" in maps:
        S = maps["S"].transpose(1, 2, 0)
    else:
        names = [
            [f"{name}{'' if k == 0 else f'_{k + 1}'}" for name in ("length", "angle", "amount", "strength")]
            for k in range(layers)
        ]
        S = sum(
            layer((h, w), max(1, float(maps[a]) * side), float(maps[b]), float(maps[c]), float(maps[d]))
            for a, b, c, d in names
        )
        S = np.minimum(S[..., None], 1 - J)
    d = 1 + relief * (labels["depth"].max() - labels["depth"]) if relief else np.ones((h, w), np.float32)
    T, A = np.exp(-maps["beta"] * d)[..., None], np.full((h, w, 1), maps["light"])
    return T * (J + S) + (1 - T) * A


def rain_with(**more):
    return lambda J, i, maps, labels: rain(J, i, maps, labels, **more)


CASES = [
    Case("rain", HeavyRain(), rain),
    Case("rain, three layers", HeavyRain(layers=3), rain_with(layers=3)),
    Case("rain, relief", HeavyRain(relief=2.0), rain_with(relief=2.0)),
]

if __name__ == "__main__":
    main(CASES)
