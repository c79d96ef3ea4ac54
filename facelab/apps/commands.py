"""The command `facelab`: restore and degrade pictures, check faces, train, evaluate, and say which models and weights there are."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from facelab import FacelabError, __version__
from facelab.base.names import near
from facelab.base.params import project_root
from facelab.base.files import run_command, print_line


def home():
    "The project: the one we are in, else the one that this package is part of; None if there is neither."
    for start in (".", Path(__file__).resolve().parents[2]):
        try:
            return project_root(start)
        except FacelabError:
            pass
    return None


def the_project():
    root = home()
    if root is None:
        raise FacelabError("this needs the project's recipes: run it inside a clone of facelab")
    return root


def restore(args):
    from facelab.base.devices import pick_device
    from facelab.evaluation.photographs import Restorer
    from facelab.training.zoo import model_folder
    from facelab.apps.files import restore_files

    device = pick_device(args.device)
    restorers = [Restorer(model_folder(name, home()), device, args.size) for name in args.system]
    written, failed = restore_files(
        args.pictures,
        restorers,
        args.out,
        **where_faces_are(args),
        hidden=args.hidden,
        sheet=args.sheet,
        batch=args.batch,
        progress=not args.quiet,
    )
    return told(written, failed)


def where_faces_are(args):
    "Landmarks from a table, and what finds them where there are none."
    from facelab.faces.layouts import read_table
    from facelab.training.models import load_model
    from facelab.training.zoo import find_models, model_folder

    name = args.finder or ("landmarker" if args.find or "landmarker" in find_models(kind="helpers") else None)
    return {
        "landmarks": args.landmarks and read_table(args.landmarks),
        "finder": name and load_model(model_folder(name, home(), "helpers"))[0],
        "always": args.find,
    }


def degrade(args):
    from facelab.degradations.chain import Chain
    from facelab.apps.files import degrade_files
    from facelab.training.recipes import load_degradations

    chains = load_degradations(the_project())
    if args.chain not in chains:
        raise FacelabError(f"unknown chain of degradations {args.chain!r}: {near(args.chain, chains)}")
    written, failed = degrade_files(
        args.pictures,
        Chain(chains[args.chain]["steps"]),
        args.out,
        **where_faces_are(args),
        seed=args.seed,
        size=args.size,
        progress=not args.quiet,
    )
    return told(written, failed)


def told(written, failed):
    "Print what was written, and sentences about what failed; the exit status."
    for path in written:
        print_line(path)
    for sentence in failed:
        print_line(f"facelab: {sentence}", sys.stderr)
    return 1 if failed else 0


def faces(args):
    from facelab.faces.sets import main as check

    return check(["check", args.path, "--size", str(args.size), *["--all"] * args.all])


def grid(args, recipes):
    "What `train` and `evaluate` make: the runner's work, with the faces packed first where they are a folder of pictures."
    from facelab.faces.sets import open_faces
    from facelab.fleet.runner import main as runner

    pack = args.faces
    if pack.is_dir() and not (pack / "faces.safetensors").exists() and not list(pack.glob("*.tar")):
        pack = args.out / "faces" / "faces.safetensors"
        if not pack.exists():
            open_faces(args.faces, args.size).save(pack)
    more = [f"--{key}={getattr(args, key)}" for key in ("profile", "params", "seconds") if getattr(args, key)]
    os.chdir(the_project())
    return runner(["--faces", str(pack), "--out", str(args.out), *more, "--recipes", *recipes])


def asked(args):
    "The recipes that are asked for, by name."
    from facelab.training.recipes import load_recipes

    recipes = load_recipes(the_project())
    for name in args.recipes:
        if name not in recipes:
            raise FacelabError(f"unknown recipe {name!r}: {near(name, recipes)}")
    return {name: recipes[name] for name in args.recipes}


def train(args):
    return grid(args, asked(args))


def evaluate(args):
    import pandas as pd

    from facelab.evaluation.metrics import read_scores

    recipes, rows = asked(args), {}
    status = grid(args, recipes)
    for name, recipe in recipes.items():
        path = args.out / "scores" / recipe["paper"] / recipe["inputs"] / f"{name}.csv"
        if path.exists():
            rows[name] = read_scores(path).mean(numeric_only=True)
    if rows:
        print(pd.DataFrame(rows).T.dropna(axis=1, how="all").to_string(float_format="%.4g"))
    return status


def models(args):
    from facelab.base.files import markdown_table
    from facelab.training.zoo import describe_models, find_models

    rows = describe_models(find_models(home()))
    print(
        markdown_table(rows, ("name", "system", "restores", "trained on", "PSNR, dB", "MB", "where"))
        if rows
        else "no trained system is here: `make repro` trains them"
    )
    return 0


def weights(args):
    from facelab.base.files import markdown_table
    from facelab.training.zoo import describe_weights

    print(f"FACELAB_WEIGHTS is {os.environ.get('FACELAB_WEIGHTS') or 'not set'}\n")
    print(markdown_table(describe_weights(), ("file", "what for", "found", "SHA-256", "how to get it")))
    return 0


def completion(args):
    import shtab

    print(shtab.complete(parser(), shell=args.shell))
    return 0


def parser():
    main = argparse.ArgumentParser(
        prog="facelab", description=__doc__, epilog="`facelab COMMAND --help` tells more about one of them."
    )
    main.add_argument("--version", action="version", version=f"facelab {__version__}")
    todo = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, run, about, **more):
        sub = todo.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **more,
        )
        sub.set_defaults(run=run)
        return sub

    def place(path):
        return Path(path).resolve()

    def positive(text):
        if (number := int(text)) < 1:
            raise ValueError
        return number

    def files(sub):
        sub.add_argument(
            "pictures",
            nargs="+",
            help="files, folders, patterns such as 'faces/*.jpg', or the word astronaut, an example",
        )
        sub.add_argument("--out", required=True, help="folder for the results")
        sub.add_argument(
            "--landmarks",
            metavar="FILE",
            help=(
                "a table (.csv or .txt): file name, then x and y of 5, 68, 81 or 194 points; faces are cut out and"
                " aligned by them"
            ),
        )
        sub.add_argument(
            "--find",
            action="store_true",
            help=(
                "look for the face in every picture without landmarks; else only in those that are not square, as"
                " square ones may be faces that are cut out already"
            ),
        )
        sub.add_argument(
            "--finder",
            metavar="MODEL",
            help="the landmarker that looks for faces, if not the one that comes with facelab",
        )
        sub.add_argument("--size", type=int, default=128, help="side of a face in pixels (128)")
        sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = add(
        "restore",
        restore,
        "restore the faces in pictures",
        epilog=(
            "examples:\n  facelab restore astronaut --find --out restored --sheet\n  facelab restore small/ --system"
            " prior_guided_sr srresnet --out restored --sheet"
        ),
    )
    files(sub)
    sub.add_argument(
        "--system",
        nargs="+",
        default=["prior_guided_sr"],
        metavar="NAME",
        help="trained systems (see `facelab models`), folders, or addresses of folders (prior_guided_sr)",
    )
    sub.add_argument(
        "--hidden",
        metavar="FOLDER",
        help="masks named as the pictures, white where something is in front of the face (for fcsr_gan)",
    )
    sub.add_argument(
        "--sheet",
        action="store_true",
        help="also write NAME_sheet.png: the face, its input and what each system made of it",
    )
    sub.add_argument("--batch", type=positive, default=8, help="pictures at once (8)")
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")

    sub = add("degrade", degrade, "degrade the faces in pictures, as a paper does")
    files(sub)
    sub.add_argument("--chain", required=True, help="a chain of recipes/degradations.yaml, such as prior_guided_x8")
    sub.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")

    sub = add("faces", faces, "check a set of faces before it is used")
    sub.add_argument("todo", choices=["check"])
    sub.add_argument("path")
    sub.add_argument("--size", type=int, default=128, help="side of the faces wanted (128)")
    sub.add_argument("--all", action="store_true", help="read every picture, not 64 of them")

    for name, run, about in (
        ("train", train, "train recipes, and the helpers that they need"),
        ("evaluate", evaluate, "train what is not trained yet, restore the test faces, and print mean scores"),
    ):
        sub = add(name, run, about)
        sub.add_argument("recipes", nargs="+", metavar="RECIPE", help="rows of docs/recipes.md")
        sub.add_argument(
            "--faces", required=True, type=place, help="a folder of pictures, of shards, or a faces.safetensors"
        )
        sub.add_argument(
            "--out", required=True, type=place, help="folder for everything that is made; a second run goes on there"
        )
        sub.add_argument("--profile", help="demo, real or paper")
        sub.add_argument(
            "--params", metavar="FILE", type=place, help="a YAML file with parameters that differ from params.yaml"
        )
        sub.add_argument(
            "--seconds", type=float, help="time for the whole list; what is not finished then keeps its checkpoint"
        )
        sub.add_argument("--size", type=int, default=128, help="side of the faces (128)")

    add(
        "models",
        models,
        "list the trained systems that are here: what each restores, what it was trained on, its score",
    )
    add("weights", weights, "list the pretrained weights of other networks: where they are looked for, what is found")
    add(
        "completion", completion, "print what makes the Tab key complete commands: facelab completion bash >> ~/.bashrc"
    ).add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return main


def stoppable(args):
    "What a command does; Ctrl-C ends it as such, also where a library took it for an error of its own."
    came = []

    def stop(*_):
        came.append(True)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, stop) if ours else None
    try:
        status = args.run(args)
    except FacelabError:
        if not came:
            raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
    return status


def main(argv=None):
    args = parser().parse_args(argv)
    return run_command(lambda: stoppable(args))


if __name__ == "__main__":
    sys.exit(main())
