"""Blur, noise, grey and JPEG against OpenCV, NumPy and Pillow."""

import io

import cv2
import numpy as np
from PIL import Image

from benchmarks.common import Case, main
from facelab.degradations.camera import JPEG, GaussianBlur, GaussianNoise, Greyscale


def blur(hr, i, maps, labels):
    return cv2.GaussianBlur(hr, (0, 0), float(maps["sigma"]), borderType=cv2.BORDER_REPLICATE)


def noise(hr, i, maps, labels):
    n = maps["n"].transpose(1, 2, 0) if "n" in maps else np.random.normal(size=hr.shape).astype(np.float32)
    return np.clip(hr + maps["sigma"] * n, 0, 1)


def shot(hr, i, maps, labels):
    n = maps["n"].transpose(1, 2, 0) if "n" in maps else np.random.normal(size=hr.shape).astype(np.float32)
    return np.clip(hr + np.sqrt(maps["sigma"] ** 2 + maps["shot"] ** 2 * hr) * n, 0, 1)


def grey(hr, i, maps, labels):
    return cv2.cvtColor(cv2.cvtColor(hr, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def jpeg(subsampling):
    def reference(hr, i, maps, labels):
        file = io.BytesIO()
        Image.fromarray(np.rint(hr * 255).astype(np.uint8)).save(
            file, "JPEG", quality=int(maps["quality"]), subsampling=subsampling
        )
        return np.asarray(Image.open(file), dtype=np.float32) / 255

    return reference


CASES = [
    Case("blur, sigma .5 to 3", GaussianBlur(), blur),
    Case("noise", GaussianNoise(), noise),
    Case("noise and shot noise", GaussianNoise(shot=(0, 0.1)), shot),
    Case("grey", Greyscale(), grey),
    Case("JPEG 4:2:0", JPEG(), jpeg(2)),
    Case("JPEG 4:4:4", JPEG(colours="4:4:4"), jpeg(0)),
]

if __name__ == "__main__":
    main(CASES)
