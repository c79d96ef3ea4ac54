"""Which tables and figures of the papers this run has made, and where they are.

What a paper prints is listed under `inventory:` of papers/*.yaml, as item -> places. A place is kind/name and means
build/<kind>/<paper>/<name>, with the suffix of its kind unless it has one; several are divided by spaces.
"""

from pathlib import Path

from facelab.base.files import markdown_table
from facelab.publication.deviations import read_papers

SUFFIXES = {"tables": ".md", "figures": ".png", "samples": ".png", "architecture": ".png"}


def inventory(root=None):
    "What each paper prints: paper -> item -> where it stands, as papers/*.yaml have it."
    return {paper: about["inventory"] for paper, about in read_papers(root).items() if "inventory" in about}


def paths(paper, places):
    "The files below `build` that together hold a table or figure of a paper, from the text of its places."
    for place in places.split():
        kind, name = place.split("/")
        yield Path(kind, paper, name if "." in name else name + SUFFIXES[kind])


def printed_files(root):
    "All that the papers print, as files below `build`."
    for paper, items in inventory(root).items():
        for places in items.values():
            yield from paths(paper, places)


def state(file):
    "Why a file is not there: a figure that could not be made leaves a text with the reason."
    why = file.with_suffix(".txt")
    return f"{file.name}: {why.read_text('utf-8').strip()}" if why.exists() else f"missing: {file.name}"


def inventory_rows(root):
    "A row for each table and figure: paper, item, files, and `there` or what is missing."
    build = Path(root) / "build"
    for paper, items in inventory(root).items():
        for item, places in items.items():
            files = list(paths(paper, places))
            absent = [state(build / file) for file in files if not (build / file).exists()]
            names = ", ".join(f"`build/{file}`" for file in files)
            yield paper, item, names, ", ".join(absent) or "there"


def main(root):
    "Print what there is of every table and figure; returns how many are missing, wholly or in part."
    rows = list(inventory_rows(root))
    missing = sum(row[-1] != "there" for row in rows)
    print(markdown_table(rows, ("paper", "item", "files", "state")))
    print(
        f"\n{len(rows) - missing} of {len(rows)} tables and figures are there."
        + (" `make repro` makes the others." if missing else "")
    )
    return missing
