"""What a training step costs, and how much of it is data and degradation; on a GPU also beside a plain DataLoader.

On a CPU: each recipe's step (a quarter of the width, or `--width`) as torch has it if one asks for nothing (float32,
tensors one by one, every gradient penalty) beside ours (bf16 where it pays, channels_last, optimisers at once, a
gradient penalty on each fourth step), and the share of reading, mirroring and degrading in ours. On a GPU: images a
second, GPU utilisation, peak memory and the share of the card's rate, in one run for two ways. The one is float32,
eager, fed by a DataLoader that degrades image by image, as the authors' code works. The other is ours: faces and
degradation on the device, bf16, channels_last, compiled.
"""

import statistics
import time

import torch
from torch.utils.data import DataLoader, Dataset

import facelab.training.run as training_run
from benchmarks import common
from benchmarks.networks import best_time
from facelab.base.devices import keep_pages
from facelab.base.dice import Dice
from facelab.base.images import read_image, to_float, write_image
from facelab.base.params import load_params
from facelab.faces.drawn import draw_set
from facelab.training.batches import identities, labels_for_losses, names_in_losses, required_labels
from facelab.training.recipes import load_recipes, resolve
from facelab.training.run import Run, take_step

SYSTEMS = [
    "srresnet",
    "prior_guided_sr",
    "prior_guided_gan",
    "jdsr_gan_x4",
    "fcsr_gan_pconv_fsrnet_x4",
    "sr_deblur_gan",
    "heavy_rain",
]


def recipe_without_helpers(name, recipes, batch, width, **train):
    "A recipe without what needs trained weights: helpers, and the features of perceptual losses."
    params = load_params()
    params["instead"] = {}
    params["train"].update(steps=1000, batch=batch, width=width, depth=width, warmup=0, validate=0, **train)
    recipe = resolve(name, recipes, params)
    for stage in recipe["stages"]:
        stage["losses"] = {
            term: loss
            for term, loss in stage["losses"].items()
            if loss
            and "features" not in (loss.get("with") or {})
            and not any(f"{helper}(" in str(loss) for helper in recipe["helpers"])
        }
    return {**recipe, "begin": {}, "helpers": {}, "stages": recipe["stages"][-1:]}


PENALTY_EVERY = 4  # as the demo has it


def plain_optimisers(recipe):
    "The recipe with optimisers that move one tensor after the other."
    at_once = lambda spec: {"fused": False} if spec["use"].startswith("Adam") else {"foreach": False}
    return {**recipe, "optimisers": {k: {**v, **at_once(v)} for k, v in recipe["optimisers"].items()}}


def cpu_rates(name, recipes, faces, seconds, least=2, **settings):
    "Images a second of a recipe's step as torch has it and as ours, and the share of ours before the network."
    plain = recipe_without_helpers(
        name, recipes, precision="32-true", channels_last=False, penalty_every=None, **settings
    )
    ours = recipe_without_helpers(name, recipes, penalty_every=PENALTY_EVERY, **settings)
    runs = [Run(recipe, faces.subset("train")) for recipe in (plain_optimisers(plain), ours)]
    steps = [lambda run=run: [take_step(run) for _ in range(PENALTY_EVERY)] for run in runs]
    keep_pages()
    took = [best_time(step, seconds, least) / PENALTY_EVERY for step in steps]

    def inputs_alone():
        runs[1].batches = None
        training_run.next_inputs(runs[1])

    alone = best_time(inputs_alone, seconds / 4, least)
    return *(settings["batch"] / t for t in took), alone / took[1]


class OneByOne(Dataset):
    "Faces read from files and degraded one at a time, as a DataLoader's worker does it."

    def __init__(self, folder, faces, recipe, degrade):
        self.folder, self.faces, self.recipe, self.degrade, self.who = folder, faces, recipe, degrade, identities(faces)
        self.labels = required_labels(faces, recipe, degrade)
        for i, image in enumerate(faces.images):
            write_image(folder / f"{i}.png", image)

    def __len__(self):
        return 1_000_000

    def __getitem__(self, i):
        k = i % len(self.faces)
        image = to_float(read_image(self.folder / f"{k}.png"))[None]
        labels = {name: getattr(self.faces, name)[k : k + 1] for name in self.labels}
        out = self.degrade.degrade(image, Dice(0, "degrade", [i]), labels)
        given = {
            **out.maps,
            "input": out.input,
            "target": out.target,
            **labels_for_losses(labels, names_in_losses(self.recipe), image.shape[-1], self.who),
        }
        return {name: x[0] for name, x in given.items()}


def gpu_rate(recipe, faces, seconds, folder=None):
    "Images a second, share of time that the GPU was busy, peak GiB, TFLOP/s; with a folder, fed by a DataLoader."
    from torch.utils.flop_counter import FlopCounterMode

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run = Run(recipe, faces.subset("train"), "cuda")
    own_inputs = training_run.next_inputs
    try:
        if folder:
            torch.set_num_threads(1)
            loader = iter(
                DataLoader(
                    OneByOne(folder, faces.subset("train"), run.recipe, run.degrade),
                    recipe["batch"],
                    num_workers=12,
                    pin_memory=True,
                    persistent_workers=True,
                )
            )
            training_run.next_inputs = lambda run: {
                name: x.to("cuda", non_blocking=True) for name, x in next(loader).items()
            }
        for _ in range(10):
            take_step(run)
        torch.cuda.synchronize()
        began, steps, busy = time.perf_counter(), 0, []
        while time.perf_counter() < began + seconds:
            take_step(run)
            steps += 1
            if steps % 16 == 0:
                busy.append(torch.cuda.utilization())
        torch.cuda.synchronize()
        took = time.perf_counter() - began
        with FlopCounterMode(display=False) as counter:
            eager = {name: run.bare[name] for name in run.bare}
            run.nets, compiled = eager, run.nets
            take_step(run)
            run.nets = compiled
        rate = steps / took
        return (
            rate * recipe["batch"],
            sum(busy) / max(1, len(busy)) / 100,
            torch.cuda.max_memory_allocated() / 2**30,
            rate * counter.get_total_flops() / 1e12,
        )
    finally:
        training_run.next_inputs = own_inputs


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("recipes", nargs="*", help=f"by default {', '.join(SYSTEMS)}; all: every one")
    parser.add_argument("--batch", type=int, help="faces a step: 8 on a CPU, 64 on a GPU by default")
    parser.add_argument(
        "--width", type=float, help="share of the paper's channels and blocks: 0.25 on a CPU, 1 on a GPU by default"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument(
        "--peak", type=float, default=785.0, help="TFLOP/s of bf16 products that the card was measured to reach"
    )
    args = common.asked(parser)
    gpu = torch.cuda.is_available() and not args.quick
    seconds = 0.0 if args.quick else args.seconds
    recipes, faces = load_recipes(), draw_set(16 if args.quick else 256, 0, 0, seed=0)
    names = args.recipes or SYSTEMS[: 1 if args.quick else None]
    names = [n for n, r in recipes.items() if r.get("stages")] if names == ["all"] else names
    settings = dict(batch=args.batch or (64 if gpu else 8), width=args.width or (1.0 if gpu else 0.25))
    where = (
        torch.cuda.get_device_name()
        if gpu
        else f"threads: {args.threads}; the comparison with a DataLoader: n/a, it is one of a GPU"
    )
    print(
        f"faces of 128 pixels, batch {settings['batch']}, {settings['width']:g} of the width, without perceptual losses"
        f" and trained helpers; {where}\n"
    )
    if gpu:
        import tempfile
        from pathlib import Path

        print(
            "| recipe | float32 eager, DataLoader, img/s | ours | ratio | GPU busy | memory, GiB | TFLOP/s | share of"
            " the card |\n| --- " + "| ---: " * 7 + "|"
        )
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                plain = gpu_rate(
                    recipe_without_helpers(name, recipes, precision="32-true", compile=False, **settings),
                    faces,
                    seconds,
                    Path(folder),
                )
            fast = gpu_rate(
                recipe_without_helpers(name, recipes, precision="bf16-mixed", compile=True, **settings), faces, seconds
            )
            print(
                f"| {name} | {plain[0]:,.0f} | {fast[0]:,.0f} | {fast[0] / plain[0]:.1f} | {fast[1]:.0%} |"
                f" {fast[2]:.1f} | {fast[3]:.1f} | {fast[3] / args.peak:.1%} |",
                flush=True,
            )
    else:
        print("| recipe | plain, img/s | ours, img/s | ratio | data and degradation |\n| --- " + "| ---: " * 4 + "|")
        ratios = []
        for name in names:
            plain, ours, share = cpu_rates(name, recipes, faces, seconds, threads=args.threads, **settings)
            ratios.append(ours / plain)
            print(f"| {name} | {plain:,.1f} | {ours:,.1f} | {ratios[-1]:.2f} | {share:.1%} |", flush=True)
        print(f"\nMedian of the ratios: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
