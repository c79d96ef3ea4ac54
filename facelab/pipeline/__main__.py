"""`python -m facelab.pipeline check | sources | grid [PAPER] | recipes | navigation | docs | inventory | publish NAME | ship NAME | run STAGE [ITEM] | profile NAME`: what the Makefile and dvc.yaml call."""

import argparse
import sys

from facelab import FacelabError
from facelab.base.params import choose_profile, project_root


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m facelab.pipeline", description=__doc__)
    todo = parser.add_subparsers(dest="todo", required=True)
    todo.add_parser("check", help="are parameters, recipes and faces fit for `dvc repro`?")
    todo.add_parser("sources", help="write the fingerprints that the stages depend on")
    grid = todo.add_parser(
        "grid", help="write the stages that are out of date as a makefile, build/grid.mk, and print how many they are"
    )
    grid.add_argument("paper", nargs="?", help="only what this paper shows")
    todo.add_parser("inventory", help="every table and figure of the papers, and the file in build/ that holds it")
    todo.add_parser(
        "recipes",
        help=(
            "write docs/recipes.md, all recipes and where their values come from, and docs/deviations.md, what papers"
            " left open"
        ),
    )
    todo.add_parser(
        "navigation", help="write the last lines of every notebook (before, contents, next) and nbs/contents.ipynb"
    )
    todo.add_parser("docs", help="write the site, build/site/html")
    todo.add_parser(
        "publish",
        help="copy tables and verdicts of a finished run that is no demo to results/NAME, with its provenance",
    ).add_argument("name")
    ship = todo.add_parser("ship", help="put a small trained model among those that come with the package, with a card")
    ship.add_argument("name", help="of its recipe")
    ship.add_argument("--run", required=True, help="the folder of the run that trained it")
    ship.add_argument("--test", required=True, nargs="+", help="face sets whose test parts it is measured on")
    stage = todo.add_parser("run", help="run one notebook of nbs/pipeline")
    stage.add_argument("stage")
    stage.add_argument("item", nargs="?", help="the recipe or paper, for stages that have one")
    todo.add_parser("profile", help="choose demo, real or paper: writes params.yaml").add_argument("name")
    args = parser.parse_args(argv)
    try:
        root = project_root()
        if args.todo == "run":
            from facelab.pipeline.notebooks import run

            run(args.stage, args.item, root)
        elif args.todo == "profile":
            choose_profile(args.name, root)
        elif args.todo == "grid":
            from facelab.pipeline.schedule import write_grid

            print(write_grid(root, args.paper))
        elif args.todo == "inventory":
            from facelab.pipeline.inventory import main as inventory

            return min(1, inventory(root))
        elif args.todo == "recipes":
            from facelab.publication.deviations import project_deviations
            from facelab.base.files import write_text
            from facelab.training.recipes import recipes_page

            write_text(root / "docs" / "recipes.md", recipes_page(root))
            write_text(root / "docs" / "deviations.md", project_deviations(root))
        elif args.todo == "navigation":
            from facelab.pipeline.navigation import write_navigation

            print(f"{len(write_navigation(root))} notebooks were brought up to date")
        elif args.todo == "docs":
            from facelab.pipeline.site import build

            print(f"{len(build(root))} pages in {root / 'build' / 'site' / 'html'}")
        elif args.todo == "publish":
            from facelab.pipeline.publish import publish

            print(publish(root, args.name))
        elif args.todo == "ship":
            from facelab.publication.shipping import ship

            print(ship(args.name, args.run, args.test))
        else:
            from facelab.pipeline.sources import check_chains, write_sources

            (check_chains if args.todo == "check" else write_sources)(root)
    except FacelabError as error:
        print(f"facelab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
