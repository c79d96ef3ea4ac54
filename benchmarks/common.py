"""What a case of a benchmark is, and how it is compared and timed."""

import argparse
import importlib
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from facelab.base.dice import Dice


class Case(NamedTuple):
    "One operation, done by facelab for a batch and in the usual way for one image at a time."

    name: str  # as the table shows it
    degradation: object  # ours
    reference: Callable  # (hr (H, W, 3) float32, i, maps of face i, labels of face i) -> (H, W, 3) float32
    tolerance: float = 0.5  # largest mean difference, grey levels of 255


def names():
    "Every benchmark: the other files of this folder."
    return sorted(
        p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "__main__", "common")
    )


def all_cases():
    "The cases of all benchmarks of degradations."
    return [case for name in names() for case in getattr(importlib.import_module(f"benchmarks.{name}"), "CASES", ())]


def arguments(what=None):
    "A parser with the options of every benchmark."
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small pictures, one round, one thread: does it run? Its numbers mean nothing",
    )
    parser.add_argument("--threads", type=int, help="of ours, 2 by default; the usual way has what its library takes")
    return parser


def asked(parser):
    "The options that were given, with the number of threads filled in."
    args = parser.parse_args()
    args.threads = args.threads or (1 if args.quick else 2)
    return args


def hwc(x):
    "A batch as a list of contiguous (H, W, 3) arrays, as files and cameras give them."
    return [np.ascontiguousarray(a) for a in x.permute(0, 2, 3, 1).numpy()]


def rows(tensors, i, keep=lambda v: True):
    "Row i of every tensor, as numpy."
    return {k: v[i].numpy() for k, v in tensors.items() if v is not None and keep(v)}


def difference(case, x, labels):
    "Mean absolute difference between ours and the usual way, given the same random numbers; grey levels of 255."
    ours = case.degradation(x, Dice(0, "benchmark", range(len(x))), **labels)
    theirs = [case.reference(hr, i, rows(ours.maps, i), rows(labels, i)) for i, hr in enumerate(hwc(x))]
    return float(np.mean([np.abs(a - b).mean() for a, b in zip(theirs, hwc(ours.input))]) * 255)


def rates(case, x, labels, seconds=2.0, least=3):
    "Images a second, the best round of each: ours, the usual way until the batch is a tensor, and its images alone."
    ours = case.degradation(x, Dice(0, "benchmark", range(len(x))), **labels)
    images = hwc(x)
    # the usual way is given drawn numbers, not fields
    given = [(rows(ours.maps, i, lambda v: v.dim() == 1), rows(labels, i)) for i in range(len(x))]

    def batch(k):
        return case.degradation(x, Dice(k, "benchmark", range(len(x))), **labels)

    def each(k):
        return [case.reference(hr, i, maps, label) for i, (hr, (maps, label)) in enumerate(zip(images, given))]

    def collated(k):
        return torch.from_numpy(np.stack(each(k))).permute(0, 3, 1, 2).contiguous()

    best, end, k = dict.fromkeys((batch, collated, each), 1e9), time.perf_counter() + seconds, 0
    while k < least or time.perf_counter() < end:
        for way in best:
            start = time.perf_counter()
            way(k)
            best[way] = min(best[way], time.perf_counter() - start)
        k += 1
    return [len(x) / t for t in best.values()]


def in_child(measure):
    "What `measure()` returns (numbers), computed in a child process, which starts with nothing allocated of its own."
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, json.dumps(measure()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(os.read(read, 200))


def added_memory(step):
    "Largest memory of one call above what there was before, MB."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory(case, x, labels):
    "Memory of one degradation of the batch, MB, on one thread."

    def measure():
        torch.set_num_threads(1)
        return added_memory(lambda: case.degradation(x, Dice(0, "benchmark", range(len(x))), **labels))

    return in_child(measure)


def main(cases):
    "Compare, then time: one row a case, as Markdown."
    from facelab.faces.drawn import draw_faces

    args = asked(arguments())
    size, batch, spent = (96, 4, dict(seconds=0.0, least=1)) if args.quick else (128, 64, {})
    drawn = draw_faces(range(batch), size=size)
    labels = dict(
        landmarks=drawn["landmarks_68"], parsing=drawn["parsing"], foreground=drawn["foreground"], depth=drawn["depth"]
    )
    # before threads are started, since they do not survive a fork
    used = {case.name: memory(case, drawn["image"], labels) for case in cases}
    torch.set_num_threads(args.threads)
    print(
        f"{size}x{size}, batch {batch}, threads: {args.threads}; the batch itself has"
        f" {drawn['image'].nbytes / 2**20:.0f} MB\n"
    )
    print(
        "| degradation | ours, img/s | usual way, batch as tensor | ratio | usual way, images alone | difference, grey"
        " levels | memory, MB |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for case in cases:
        off = difference(case, drawn["image"], labels)
        assert off <= case.tolerance, (
            f"{case.name}: ours and the usual way differ by {off:.3f} grey levels, allowed are {case.tolerance}"
        )
        ours, theirs, alone = rates(case, drawn["image"], labels, **spent)
        print(
            f"| {case.name} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f} | {alone:,.0f} | {off:.3f} |"
            f" {used[case.name]:.0f} |",
            flush=True,
        )
