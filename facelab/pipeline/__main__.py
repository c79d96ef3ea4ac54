"""`python -m facelab.pipeline COMMAND`: what the Makefile and dvc.yaml call. `--help` lists the commands."""

import argparse
import sys

from facelab import FacelabError
from facelab.base.files import speak_any_encoding
from facelab.base.params import choose_profile, project_root


def check(root, args):
    "Are parameters, recipes and faces fit for `dvc repro`?"
    from facelab.pipeline.dvc_settings import allow_no_git
    from facelab.pipeline.rows import check_labels
    from facelab.pipeline.sources import check_chains

    allow_no_git(root)
    params, recipes = check_chains(root)
    if params["data"]["source"] == "real":
        check_labels(root, params, recipes)


def adopt(root, args):
    "Check a set of faces and make it the one that the data source `real` reads (`make faces`)."
    from facelab.pipeline.dvc_settings import adopt

    return adopt(root, args.folder)


def sources(root, args):
    "Write the fingerprints that the stages depend on."
    from facelab.pipeline.sources import write_sources

    write_sources(root)


def schedule(root, args):
    "Write the stages that are out of date as a makefile, build/schedule.mk, and print how many they are."
    from facelab.pipeline.schedule import write_schedule

    print(write_schedule(root, args.paper))


def inventory(root, args):
    "Every table and figure of the papers, and the file in build/ that holds it."
    from facelab.pipeline.inventory import main

    return min(1, main(root))


def recipes(root, args):
    "Write docs/recipes.md, docs/deviations.md, and the list of recipe files in dvc.yaml."
    from facelab.base.files import write_text
    from facelab.pipeline.sources import list_recipe_files
    from facelab.publication.deviations import project_deviations
    from facelab.training.recipes import recipes_page

    list_recipe_files(root)
    write_text(root / "docs" / "recipes.md", recipes_page(root))
    write_text(root / "docs" / "deviations.md", project_deviations(root))


def losses(root, args):
    "Measure what each loss of each recipe weighs and how hard it pulls, and write it into docs/losses.md."
    from facelab.pipeline.losses import write_losses

    print(write_losses(root, args))


def rehearse(root, args):
    "Take a step in each stage of every recipe, very small: what cannot start says so."
    from facelab.pipeline.rehearsal import main

    print(main(root, args))


def estimate(root, args):
    "Time a few steps in each stage of every recipe: how long the whole grid will train here."
    from facelab.pipeline.estimate import main

    print(main(root, args))


def navigation(root, args):
    "Write the last lines of every notebook (before, contents, next) and nbs/contents.ipynb."
    from facelab.pipeline.navigation import write_navigation

    print(f"{len(write_navigation(root))} notebooks were brought up to date")


def outputs(root, args):
    "Execute the notebooks that have changed, or that use what has, and keep in them what their cells show."
    from facelab.pipeline.outputs import store

    print(f"{len(store(root, args.notebooks, args.jobs))} notebooks were executed")


def notebooks(root, args):
    "Execute every notebook, as nbdev_test does, in one process."
    from facelab.pipeline.notebooks import test_all

    return test_all()


def docs(root, args):
    "Write the site, build/site/html."
    from facelab.pipeline.site import build

    print(f"{len(build(root))} pages in {root / 'build' / 'site' / 'html'}")


def publish(root, args):
    "Copy tables and verdicts of a finished run that is no demo to results/NAME, with its provenance."
    from facelab.pipeline.publish import publish

    print(publish(root, args.name))


def ship(root, args):
    "Put a small trained model among those that come with the package, with a card."
    from facelab.publication.shipping import ship

    print(ship(args.name, args.run, args.test, on=args.on, called=args.called))


def run(root, args):
    "Run one notebook of nbs/pipeline."
    from facelab.pipeline.warm import ask

    status = ask(["run", args.stage, *[args.item] * bool(args.item)])
    if status is None:
        from facelab.pipeline.notebooks import run

        return run(args.stage, args.item, root)
    return status


def warm(root, args):
    "Run a command whose stages start in no time: each is a fork of one process that has imported what they need."
    from facelab.pipeline.warm import warm

    return warm(args.words)


def profile(root, args):
    "Choose demo, laptop, real or paper: writes params.yaml."
    choose_profile(args.name, root)


COMMANDS = (
    check,
    adopt,
    sources,
    schedule,
    inventory,
    recipes,
    losses,
    rehearse,
    estimate,
    navigation,
    outputs,
    notebooks,
    docs,
    publish,
    ship,
    run,
    warm,
    profile,
)


def parser():
    "The commands and their arguments."
    out = argparse.ArgumentParser(prog="python -m facelab.pipeline", description=__doc__)
    known = out.add_subparsers(required=True, metavar="COMMAND")
    added = {}
    for command in COMMANDS:
        added[command] = known.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        added[command].set_defaults(command=command)
    added[adopt].add_argument("folder", help="of the faces, as they were published or an album of your own")
    added[schedule].add_argument("paper", nargs="?", help="only what this paper shows")
    added[losses].add_argument("--faces", help="folder of a face set; faces drawn for it, if it is left out")
    added[losses].add_argument("--size", type=int, default=128, help="side of the faces (128)")
    added[losses].add_argument("--recipes", nargs="+", help="only these")
    added[losses].add_argument("--perceptual", help="profile whose perceptual features are used, such as real")
    added[losses].add_argument("--run", help="build of a finished run, with its helpers; else they are trained briefly")
    added[losses].add_argument("--critic-steps", type=int, default=10, help="of each critic before it is asked")
    added[losses].add_argument("--out", help="the page; docs/losses.md, if it is left out")
    added[rehearse].add_argument("recipes", nargs="*", help="only these, and what they need")
    added[rehearse].add_argument("--faces", help="a face set; 16 drawn faces, if it is left out")
    added[rehearse].add_argument(
        "--as-gpu", action="store_true", help="as a GPU computes: bf16, channels_last, compiled"
    )
    added[rehearse].add_argument("--steps", type=int, default=1, help="in each stage")
    added[estimate].add_argument("recipes", nargs="*", help="only these, and what they need")
    added[estimate].add_argument("--jobs", type=int, default=2, help="stages that will run side by side (2)")
    added[outputs].add_argument("notebooks", nargs="*", help="only these")
    added[outputs].add_argument("--jobs", type=int, default=2, help="notebooks that are executed side by side (2)")
    added[publish].add_argument("name", help="of the folder in results/")
    added[ship].add_argument("name", help="of its recipe")
    added[ship].add_argument("--run", required=True, help="the folder of the run that trained it")
    added[ship].add_argument("--test", required=True, nargs="+", help="face sets on whose test splits it is measured")
    added[ship].add_argument("--called", help="another recipe, whose name and label it takes")
    added[ship].add_argument("--on", nargs="+", default=[], help="degradations that it is measured on (its own)")
    added[run].add_argument("stage", help="of dvc.yaml")
    added[run].add_argument("item", nargs="?", help="the recipe or paper, for stages that have one")
    added[warm].add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="such as: dvc repro")
    added[profile].add_argument("name")
    return out


def main(argv=None):
    "The command line; returns the exit status."
    args = parser().parse_args(argv)
    speak_any_encoding()
    try:
        return args.command(project_root(), args) or 0
    except FacelabError as error:
        print(f"facelab: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
