"""The command `facelab`: restore and degrade pictures, check faces, train, evaluate, list models and weights."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from facelab import FacelabError, __version__
from facelab.base.files import print_line, run_command
from facelab.base.names import near
from facelab.base.params import project_root


def find_project():
    "Folder of the project that holds the working directory, else this package; None if there is neither."
    for start in (".", Path(__file__).resolve().parents[2]):
        try:
            return project_root(start)
        except FacelabError:
            pass
    return None


def required_project():
    "Folder of the project; `FacelabError` if there is none."
    root = find_project()
    if root is None:
        raise FacelabError("this needs the project's recipes: run it inside a clone of facelab")
    return root


def restore(args):
    "Restore pictures; 1 if one of them failed, else 0."
    from facelab.apps.files import Masks, restore_files
    from facelab.base.devices import pick_device
    from facelab.evaluation.photographs import Restorer
    from facelab.training.zoo import model_folder

    device = pick_device(args.device, "--device")
    restorers = [Restorer(model_folder(name, find_project()), device, args.size) for name in args.system]
    masks = Masks(Path(args.hidden), args.inverted, args.yes) if args.hidden else None
    for r in restorers if masks else []:
        if not r.takes_mask:
            print_line(f"facelab: {r.name} takes no mask: --hidden changes nothing for it", sys.stderr)
    done = restore_files(
        args.pictures,
        restorers,
        args.out,
        face_finder(args),
        masks,
        sheet=args.sheet,
        batch=args.batch,
        progress=not args.quiet,
    )
    return print_done(args, done)


def face_finder(args):
    "Landmarks from the table that is named; for the other pictures a detector and a landmarker."
    from facelab.apps.files import FaceFinder
    from facelab.evaluation.finder import load_detector
    from facelab.faces.tables import read_table
    from facelab.training.models import load_model
    from facelab.training.zoo import find_models, model_folder

    name = args.finder or ("landmarker" if args.find or "landmarker" in find_models(kind="helpers") else None)
    landmarker = name and load_model(model_folder(name, find_project(), "helpers"))[0]
    table = read_table(args.landmarks) if args.landmarks else None
    return FaceFinder(table, landmarker, load_detector(), args.find, args.cut_out, args.which)


def degrade(args):
    "Degrade pictures by a chain of the recipes; 1 if one of them failed, else 0."
    from facelab.apps.files import degrade_files
    from facelab.degradations.chain import Chain
    from facelab.training.recipes import load_degradations

    chains = load_degradations(required_project())
    if args.chain not in chains:
        raise FacelabError(f"unknown chain of degradations {args.chain!r}: {near(args.chain, chains)}")
    done = degrade_files(
        args.pictures,
        Chain(chains[args.chain]["steps"]),
        args.out,
        face_finder(args),
        seed=args.seed,
        size=args.size,
        progress=not args.quiet,
    )
    return print_done(args, done)


def print_done(args, done):
    """Print the paths that were written, and on stderr what was done, what was left out and what failed.

    1 if something failed, else 0. --quiet leaves out what was done, but not that a table of landmarks was of no use."""
    from facelab.apps.files import one_line
    from facelab.evaluation.photographs import left_out

    for path in done.written:
        print_line(path)
    unused = lambda told: args.landmarks and told["found"] != "by its landmarks"
    said = [one_line(told) for told in done.told if not args.quiet or unused(told)]
    for message in [*said, *left_out(args.pictures), *(f"facelab: {message}" for message in done.failed)]:
        print_line(message, sys.stderr)
    return 1 if done.failed else 0


def faces(args):
    "Check a set of faces and print what was found; the exit status."
    from facelab.faces.sets import main as check

    return check(["check", args.path, "--size", str(args.size), *["--all"] * args.all])


def run_recipes(args, recipes):
    "Train and score recipes with the fleet's runner, on faces that are packed first. The exit status."
    from facelab.faces.sets import empty_parts
    from facelab.fleet.grid import open_pack
    from facelab.fleet.runner import main as runner

    os.chdir(required_project())
    pack = pack_faces(args, recipes)
    if lacking := empty_parts(open_pack(str(pack))):
        raise FacelabError(f"{args.faces}: {lacking}")
    more = [f"--{key}={getattr(args, key)}" for key in ("profile", "params", "seconds") if getattr(args, key)]
    return runner(["--faces", str(pack), "--out", str(args.out), *more, "--recipes", *recipes])


def pack_faces(args, recipes):
    """The pack to learn from: --faces itself, if it is one with the labels that the parameters ask for.

    Else it is made in --out, with the faces at the sides that these recipes ask for beside it, unless that is done."""
    from facelab.evaluation.labelling import labels_to_make
    from facelab.fleet.grid import effective_params, open_pack, pack_at
    from facelab.pipeline.sizes import beside, sides_of
    from facelab.training.recipes import load_degradations

    given, data = args.faces, effective_params(".", args.profile, args.params)["data"]
    data |= {"size": args.size or data["size"]}
    packed = not given.is_dir() or (given / "faces.safetensors").exists() or any(given.glob("*.tar"))
    if packed and not labels_to_make(open_pack(str(given)), data):
        return given
    pack, sides = args.out / "faces" / "faces.safetensors", sides_of(load_degradations("."), data)
    if given in (pack, pack.parent):
        raise FacelabError(f"{given} is where --out keeps its own faces: choose another folder for --out")
    if begin_packing(pack, given, packed, data):
        complete_faces(given, packed, data).save(pack)
        open_pack.cache_clear()
    for side in sorted({sides[r["inputs"]] for r in recipes.values() if r["inputs"] in sides}):
        there = not packed or pack_at(str(given), side) != str(given)
        if there and not beside(pack, side).exists():
            complete_faces(given, packed, data, side, open_pack(str(pack)).names).save(beside(pack, side))
    return pack


def begin_packing(pack, given, packed, data):
    "Must the faces be packed? What was made of other faces or by other parameters is removed."
    from facelab.base.files import listing, record_matches, write_record
    from facelab.fleet.grid import fingerprint
    from facelab.pipeline.sources import labeller_hashes

    names = ("size", "split", "parsing", "landmarks", "labeller")
    is_now = fingerprint(given) if packed else listing(given)
    made_from = {"faces": str(given), "sha256": is_now, "data": {k: data[k] for k in names}}
    made_from["labeller"] = labeller_hashes(data["labeller"])
    if not record_matches(pack.with_name("made_from.json"), made_from):
        if old := list(pack.parent.glob("faces*.safetensors")):
            print_line(f"{pack.parent} is of other faces, or of other parameters: they are packed anew", sys.stderr)
        for file in old:
            file.unlink()
        write_record(pack.with_name("made_from.json"), made_from)
    return not pack.exists()


def complete_faces(given, packed, data, side=None, names=()):
    "The faces of a folder of pictures or of a pack, at data.size or another side, with all labels."
    from facelab.evaluation.labelling import complete_labels, open_labelled
    from facelab.fleet.grid import open_pack, pack_at
    from facelab.pipeline.sizes import open_faces_at

    if packed:
        return complete_labels(open_pack(pack_at(str(given), side)), data)
    if side:
        return complete_labels(open_faces_at(given, side, names, data["split"]), data)
    return open_labelled(given, data)


def chosen_recipes(args):
    "Name -> recipe of those on the command line; `FacelabError` for an unknown name."
    from facelab.training.recipes import load_recipes

    recipes = load_recipes(required_project())
    for name in args.recipes:
        if name not in recipes:
            raise FacelabError(f"unknown recipe {name!r}: {near(name, recipes)}")
    return {name: recipes[name] for name in args.recipes}


def train(args):
    "Train recipes; the exit status."
    return run_recipes(args, chosen_recipes(args))


def evaluate(args):
    "Train and score recipes and print a table of mean scores; the exit status."
    import pandas as pd

    from facelab.evaluation.metrics import read_scores

    recipes, rows = chosen_recipes(args), {}
    status = run_recipes(args, recipes)
    for name, recipe in recipes.items():
        path = args.out / "scores" / recipe["paper"] / recipe["inputs"] / f"{name}.csv"
        if path.exists():
            rows[name] = read_scores(path).mean(numeric_only=True)
    if rows:
        print(pd.DataFrame(rows).T.dropna(axis=1, how="all").to_string(float_format="%.4g"))
    return status


def models(args):
    "Print a table of the trained systems."
    from facelab.base.files import markdown_table
    from facelab.training.zoo import describe_models, find_models

    rows = describe_models(find_models(find_project()))
    print(
        markdown_table(rows, ("name", "system", "restores", "trained on", "PSNR, dB", "MB", "where"))
        if rows
        else "no trained system is here: `make repro` trains them"
    )
    return 0


def weights(args):
    "Print a table of pretrained weights of other networks and where they are looked for, or download some."
    from facelab.base.files import markdown_table
    from facelab.base.weights import PUBLISHED, fetch_weights
    from facelab.training.zoo import describe_weights

    get, *names = args.words or ["get"]
    if get != "get" or (args.words and not names):
        raise FacelabError("say `facelab weights`, or `facelab weights get NAME`")
    for name in names:
        if name not in PUBLISHED:
            raise FacelabError(f"no weights are published as {name!r}: {near(name, PUBLISHED)}")
    for name in names:
        what = PUBLISHED[name]
        print_line(f"{what.address}{what.file}, {what.megabytes} MB, {what.licence}")
        print_line(fetch_weights(name, progress=sys.stderr.isatty()))
    if not names:
        print(f"FACELAB_WEIGHTS is {os.environ.get('FACELAB_WEIGHTS') or 'not set'}\n")
        print(markdown_table(describe_weights(), ("file", "what for", "found", "SHA-256", "how to get it")))
    return 0


def completion(args):
    "Print the completion script of a shell."
    import shtab

    print(shtab.complete(parser(), shell=args.shell))
    return 0


def add_command(commands, name, run, about, **more):
    "A parser for one command, whose arguments go to `run`."
    sub = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )
    sub.set_defaults(run=run)
    return sub


def full_path(text):
    "A path that stays valid when the working directory changes."
    return Path(at_home(text)).resolve()


def at_home(text):
    "A path with the home folder for a `~`, which a shell leaves alone in `--out=~/restored`."
    return os.path.expanduser(text)


def which_faces(text):
    "Which faces of a picture: all, largest, or a number."
    return text if text in ("all", "largest") else positive(text)


def positive(text):
    "A whole number above 0; argparse turns the ValueError into a usage message."
    if (number := int(text)) < 1:
        raise ValueError
    return number


def add_picture_arguments(sub):
    "What `restore` and `degrade` share: pictures, where their faces are, and the folder for the results."
    sub.add_argument(
        "pictures",
        nargs="+",
        type=at_home,
        help="files, folders, patterns such as 'faces/*.jpg', or the word astronaut, an example",
    )
    sub.add_argument("--out", required=True, type=at_home, help="folder for the results")
    sub.add_argument(
        "--landmarks",
        metavar="FILE",
        type=at_home,
        help=(
            "a table: file name, then x and y of 5, 49, 68, 81, 98 (WFLW), 194 or 478 (MediaPipe) points in pixels of"
            " the upright picture, or a .pts file; faces are cut out and aligned by them"
        ),
    )
    taken = sub.add_mutually_exclusive_group()
    taken.add_argument(
        "--find",
        action="store_true",
        help=(
            "take every picture without landmarks as a photograph; else small ones, and square ones that a face"
            " fills, are taken as faces that are cut out already"
        ),
    )
    taken.add_argument(
        "--cut-out", action="store_true", help="take every picture without landmarks as a face: its middle square"
    )
    sub.add_argument(
        "--which",
        metavar="FACES",
        type=which_faces,
        default="all",
        help="of several faces in a picture: all, largest, or a number, 1 for the largest (all)",
    )
    sub.add_argument(
        "--finder",
        metavar="MODEL",
        type=at_home,
        help="the landmarker that looks for faces, if not the one that comes with facelab",
    )
    sub.add_argument("--size", type=int, default=128, help="side of a face in pixels (128)")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def add_restore(commands):
    "`facelab restore`."
    sub = add_command(
        commands,
        "restore",
        restore,
        "restore the faces in pictures",
        epilog=(
            "examples:\n  facelab restore astronaut --find --out restored --sheet\n  facelab restore small/ --system"
            " prior_guided_sr srresnet --out restored --sheet"
        ),
    )
    add_picture_arguments(sub)
    sub.add_argument(
        "--system",
        nargs="+",
        default=["prior_guided_sr"],
        metavar="NAME",
        type=at_home,
        help="trained systems (see `facelab models`), folders, or addresses of folders (prior_guided_sr)",
    )
    sub.add_argument(
        "--hidden",
        metavar="FOLDER",
        type=at_home,
        help=(
            "masks named as the pictures, white where something is in front of the face, for systems that take one"
            " (of FCSR-GAN's paper)"
        ),
    )
    sub.add_argument("--inverted", action="store_true", help="the masks are white where the face is visible")
    sub.add_argument("--yes", action="store_true", help="also masks that hide more than 60 % of a face")
    sub.add_argument(
        "--sheet",
        action="store_true",
        help="also write NAME_sheet.png: the face, its input and what each system made of it",
    )
    sub.add_argument("--batch", type=positive, default=8, help="faces at once (8)")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (auto)")


def add_degrade(commands):
    "`facelab degrade`."
    sub = add_command(commands, "degrade", degrade, "degrade the faces in pictures, as a paper does")
    add_picture_arguments(sub)
    sub.add_argument("--chain", required=True, help="a chain of recipes/degradations.yaml, such as prior_guided_x8")
    sub.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")


def add_faces(commands):
    "`facelab faces check`."
    sub = add_command(commands, "faces", faces, "check a set of faces before it is used")
    sub.add_argument("todo", choices=["check"])
    sub.add_argument("path", type=at_home)
    sub.add_argument("--size", type=int, default=128, help="side of the faces wanted (128)")
    sub.add_argument("--all", action="store_true", help="read every picture, not 64 of them")


def add_run(commands, name, run, about):
    "`facelab train` or `facelab evaluate`."
    sub = add_command(commands, name, run, about)
    sub.add_argument("recipes", nargs="+", metavar="RECIPE", help="rows of docs/recipes.md")
    sub.add_argument(
        "--faces", required=True, type=full_path, help="a folder of pictures, of shards, or a faces.safetensors"
    )
    sub.add_argument(
        "--out", required=True, type=full_path, help="folder for everything that is made; a second run goes on there"
    )
    sub.add_argument("--profile", help="demo, laptop, real or paper")
    sub.add_argument(
        "--params", metavar="FILE", type=full_path, help="a YAML file with parameters that differ from params.yaml"
    )
    sub.add_argument(
        "--seconds", type=float, help="time for the whole list; what is not finished then keeps its checkpoint"
    )
    sub.add_argument("--size", type=int, help="side of the faces of a folder of pictures (data.size)")


def add_lists(commands):
    "`facelab models`, `facelab weights` and `facelab completion`."
    add_command(
        commands,
        "models",
        models,
        "list the trained systems that are here: what each restores, what it was trained on, its score",
    )
    add_command(
        commands,
        "weights",
        weights,
        "list the pretrained weights of other networks: where they are looked for, what is found; or get some",
    ).add_argument(
        "words", nargs="*", metavar="get NAME", help="download these: vgg16, vgg19, alexnet, inception, facenet"
    )
    add_command(
        commands,
        "completion",
        completion,
        "print what makes the Tab key complete commands: facelab completion bash >> ~/.bashrc",
    ).add_argument("shell", choices=["bash", "zsh", "tcsh"])


def parser():
    "The parser of the command `facelab`; quick, as it imports no torch."
    main = argparse.ArgumentParser(
        prog="facelab", description=__doc__, epilog="`facelab COMMAND --help` tells more about one of them."
    )
    main.add_argument("--version", action="version", version=f"facelab {__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_restore(commands)
    add_degrade(commands)
    add_faces(commands)
    add_run(commands, "train", train, "train recipes, and the helpers that they need")
    add_run(
        commands,
        "evaluate",
        evaluate,
        "train what is not trained yet, restore the test faces, and print mean scores",
    )
    add_lists(commands)
    return main


def interruptible(args):
    "Run a command; Ctrl-C raises KeyboardInterrupt even where a library turns it into an error of its own."
    interrupted = []

    def stop(*_):
        interrupted.append(True)
        raise KeyboardInterrupt

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, stop) if main_thread else None
    try:
        status = args.run(args)
    except FacelabError:
        if not interrupted:
            raise
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt
    return status


def main(argv=None):
    "Run `facelab` with these words, by default those of the command line; the exit status."
    args = parser().parse_args(argv)
    return run_command(lambda: interruptible(args))


if __name__ == "__main__":
    sys.exit(main())
