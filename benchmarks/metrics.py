"""PSNR and SSIM of many faces of 128 pixels beside scikit-image, one face at a time.

Each is given the images that its users have: float tensors, or arrays of bytes.
"""

import time

import numpy as np
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.common import arguments, asked, hwc
from facelab.base.images import to_float, to_uint8
from facelab.degradations.resample import resize
from facelab.evaluation.metrics import as_convention, psnr_ssim
from facelab.faces.drawn import draw_faces

SPEED, DIFFERENCE = 10, 1e-4  # how much faster ours is to be, and how much it may differ


def pairs(different=1024, size=128):
    "Faces and their bicubic x4 enlargements, all different: two uint8 batches."
    faces = torch.cat([draw_faces(range(i, i + 64), size=size)["image"] for i in range(0, different, 64)])
    return to_uint8(resize(resize(faces, size // 4), size)), to_uint8(faces)


def usual(restored, true, colour):
    "PSNR and SSIM of one pair (H, W, 3) of bytes, as scikit-image's documentation does it."
    if colour == "Y":
        restored, true = (rgb2ycbcr(x)[..., 0] for x in (restored, true))
    axis = 2 if colour == "RGB" else None
    return (
        peak_signal_noise_ratio(true, restored, data_range=255),
        structural_similarity(
            true,
            restored,
            data_range=255,
            channel_axis=axis,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        ),
    )


def in_turn(ways, faces, piece):
    "Seconds that each way takes for `faces` faces, and its numbers; the ways take turns, `piece` faces at a time."
    spent, numbers = dict.fromkeys(ways, 0.0), {name: [] for name in ways}
    for first in range(0, faces, piece):
        n = min(piece, faces - first)
        for name, way in ways.items():
            start = time.perf_counter()
            numbers[name].append(way(n))
            spent[name] += time.perf_counter() - start
    return spent, {name: np.concatenate(pieces) for name, pieces in numbers.items()}


def compare(conventions, restored, true, faces, piece=1000):
    "Seconds of ours and of the usual way for so many faces, and the largest difference of any number."
    colours = [as_convention(c).colour for c in conventions]
    arrays, floats = list(zip(hwc(restored), hwc(true))), (to_float(restored), to_float(true))

    def ours(n):
        # every piece is of the first n faces: time depends on how many there are, not on which
        columns = psnr_ssim(floats[0][:n], floats[1][:n], conventions)
        return torch.stack(list(columns.values()), 1).numpy()

    def loop(n):
        return np.array([[v for colour in colours for v in usual(*arrays[i], colour)] for i in range(n)])

    ours(32), loop(2)
    spent, numbers = in_turn(dict(ours=ours, loop=loop), faces, piece)
    return spent["ours"], spent["loop"], float(np.abs(numbers["ours"] - numbers["loop"]).max())


def main():
    parser = arguments(__doc__)
    parser.add_argument("--faces", type=int, help="10,000 by default")
    args = asked(parser)
    faces = args.faces or (64 if args.quick else 10_000)
    torch.set_num_threads(args.threads)
    restored, true = pairs(min(1024, -(-faces // 64) * 64))
    print(
        f"{faces:,} faces of 128 pixels, threads: {args.threads};"
        f" wanted: {SPEED} times as fast, difference at most {DIFFERENCE}\n"
    )
    print(
        "| convention | ours, img/s | scikit-image, one by one, img/s | ratio | largest difference |\n"
        "| --- | ---: | ---: | ---: | ---: |"
    )
    for conventions in (["rgb"], ["rgb", "y"]):
        ours, loop, off = compare(conventions, restored, true, faces)
        print(
            f"| {' and '.join(conventions)} | {faces / ours:,.0f} | {faces / loop:,.0f} | {loop / ours:.1f} |"
            f" {off:.1e} |",
            flush=True,
        )
        assert off <= DIFFERENCE, f"ours and scikit-image differ by {off:.2e}"


if __name__ == "__main__":
    main()
