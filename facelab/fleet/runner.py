"""Train and score a list of recipes on a machine that has torch and little else, as far as the time goes.

    python -m facelab.fleet.runner --faces PACK --out DIR --profile real --seconds 540

PACK is a folder of shards (`facelab.faces.shards` packs one) or a `faces.safetensors`; where recipes ask for faces of
another side (`data.paper_sizes`), the same faces lie beside it, as PACK_256 or `faces_256.safetensors`. DIR becomes
what `build` is in the pipeline: models, helpers, history, runs, scores. Helpers come before what is made of them. Run
it again and it goes on: what is finished is left alone, what was stopped or killed continues from its checkpoint.
Started several times on one DIR, on one GPU or on machines that share a disk, the processes share the list. Started by
`torchrun`, all processes train each recipe together. Exit status: 0 all finished, 1 something failed, 2 time was up.
"""

import argparse
import importlib.util
import itertools
import os
import sys
import time
import traceback

from facelab import FacelabError
from facelab.base.names import near
from facelab.base.params import project_root
from facelab.base.files import run_command, print_line
from facelab.fleet.grid import effective_params, try_lock, make_recipe, open_grid, open_pack


def claim_recipes(grid, names, failed, deadline=None):
    """Yields the recipes that this process is to make, one after the other, each locked meanwhile.

    `failed` maps those that failed to the reason."""
    todo = grid.order(names)
    while todo and not (deadline and time.monotonic() >= deadline):
        for name in list(todo):
            missing = [n for n in grid.needs(name) if not grid.is_trained(n)]
            if broken := set(missing) & failed.keys():
                failed[name] = f"it needs {min(broken)}"
                todo.remove(name)
            elif not missing and grid.is_done(name):
                todo.remove(name)
            elif not missing:
                with try_lock(grid.lock(name)) as ours:
                    if ours and not grid.is_done(name):
                        yield name
                        todo.remove(name)
                        break
        else:
            time.sleep(0.5 if todo else 0)  # another process makes what is left


def make_all(grid, names, deadline=None):
    """Make a list of recipes; returns what failed and what is left.

    Those that the faces do not allow fail first, before anything is trained."""
    processes, first = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)) == 0
    failed, agree = refused(grid, names), lambda name: name
    names = [name for name in names if name not in failed]
    if processes > 1:
        from facelab.base.devices import make_fabric

        agree = make_fabric(grid.params["train"]["device"]).broadcast
    mine = claim_recipes(grid, names, failed, deadline) if first else itertools.repeat(None)
    while (name := agree(next(mine, None))) is not None:
        began = time.monotonic()
        try:
            if make_recipe(grid, name, deadline) and first:
                print(f"{name}: finished in {time.monotonic() - began:.1f} s", flush=True)
        except Exception as error:
            if processes > 1:
                raise  # the other processes would wait for ever
            failed[name] = str(error) or type(error).__name__
            if not isinstance(error, (FacelabError, OSError)):
                traceback.print_exc()
    return failed, grid.unfinished(names, failed)


def refused(grid, names):
    "Recipe -> one sentence, for those that the labels of the faces do not allow."
    from facelab.pipeline.rows import refusals

    return refusals(names, grid.recipes, grid.params, open_pack(grid.faces))


def arguments(parser):
    "The options of a command about faces, parameters and recipes."
    parser.add_argument("--faces", required=True, help="a folder of shards, or a faces.safetensors")
    parser.add_argument("--out", required=True, help="folder for everything that is made; laid out as build")
    parser.add_argument("--params", help="a YAML file with parameters that differ from params.yaml")
    parser.add_argument("--profile", help="a profile to put over params.yaml, such as real")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="only these, and the helpers that they need")
    parser.add_argument("--papers", nargs="+", metavar="NAME", help="only the recipes of these papers")
    parser.add_argument("--inputs", help="degraded test faces that exist already, such as build/inputs")
    parser.add_argument("--restored", action="store_true", help="keep the restored test faces, too")
    return parser


def selected_recipes(args):
    "The grid, and the names of the recipes that a command names."
    root = project_root()
    grid = open_grid(
        args.faces,
        args.out,
        effective_params(root, args.profile, args.params),
        root,
        inputs=args.inputs,
        restored=args.restored,
    )
    rows = {name: r["paper"] for name, r in grid.recipes.items() if r["kind"] == "recipes"}
    for paper in args.papers or ():
        if paper not in rows.values():
            raise FacelabError(f"unknown paper {paper!r}: {near(paper, sorted(set(rows.values())))}")
    return grid, args.recipes or [name for name, paper in rows.items() if paper in (args.papers or rows.values())]


def describe_grid(grid, names, failed, left):
    "Print how far it came; returns the exit status."
    done = [name for name in grid.order(names) if name not in failed and grid.is_done(name)]
    print(
        f"{len(done)} of {len({*done, *failed, *left})} recipes are finished"
        + f"; to go on with: {', '.join(left)}" * bool(left)
    )
    for name, why in failed.items():
        print_line(f"failed: {name}: {why}", sys.stderr)
    return 1 if failed else 2 if left else 0


def main(argv=None):
    "The command line; returns the exit status."
    began = time.monotonic()
    parser = arguments(
        argparse.ArgumentParser(
            prog="python -m facelab.fleet.runner",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    parser.add_argument(
        "--seconds", type=float, help="time for the whole list; what is not finished then keeps its checkpoint"
    )
    args = parser.parse_args(argv)

    def run():
        if importlib.util.find_spec("lightning_fabric") is None:
            raise FacelabError(
                "lightning_fabric, which places networks on devices, is missing on this machine: pip install"
                " lightning-fabric"
            )
        grid, names = selected_recipes(args)
        failed, left = make_all(grid, names, args.seconds and began + args.seconds)
        return describe_grid(grid, names, failed, left) if int(os.environ.get("RANK", 0)) == 0 else 0

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
