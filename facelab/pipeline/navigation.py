"""The last lines of every notebook (papers that use it; before, contents, next; site, Binder), and nbs/contents.ipynb.

`python -m facelab.pipeline navigation` writes them.
"""

import json
import posixpath
import re
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import quote

from facelab import FacelabError
from facelab.pipeline.site import CONTENTS, SECTIONS, pages_of
from facelab.pipeline.sources import imports, module_code, modules_in
from facelab.base.files import write_text
from facelab.training.recipes import load_recipes

TAG = "navigation"  # of the cell


def title_and_claim(source, cells):
    "Title and claim of a notebook: its first heading, and the quotation or the sentence below it."
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    found = re.search(r"(?m)^# (.+)\n+(?:((?:>.*\n?)+)|(\w(?:.|\n(?!\n))*?[.!?])(?=\s|$))", text)
    if not found:
        raise FacelabError(
            f"{source} does not say what it is about: let it begin with a line '# Title' and a line '> claim'"
        )
    claim = found[2] or found[3]
    return found[1].strip(), " ".join(line.lstrip("> ").strip() for line in claim.splitlines())


def users(root):
    "Module -> papers whose recipes name it, or name a system that imports it."
    found = {}
    for recipe in load_recipes(root).values():
        for module in modules_in(recipe):
            system = module.startswith("facelab.systems.")
            inside = imports(module_code(module, root) or "", module) if system else ()
            for name in (module, *inside):
                found.setdefault(name, set()).add(recipe["paper"])
    return found


def dump(book):
    "A notebook as nbdev writes it."
    return json.dumps(book, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def markdown_cell(text, name, tags=None):
    "A Markdown cell with an id."
    return {
        "cell_type": "markdown",
        "id": name,
        "metadata": {"tags": tags} if tags else {},
        "source": text.splitlines(keepends=True),
    }


def addresses(root, source):
    "Where a notebook is read on the site, and where it is opened to be run, by settings.ini."
    said = ConfigParser(interpolation=None)
    said.read(Path(root) / "settings.ini", "utf-8")
    says = said["DEFAULT"]
    page = f"{says['doc_host']}{says['doc_baseurl']}/{source.with_suffix('.html').as_posix()}"
    binder = f"https://mybinder.org/v2/git/{quote(says['git_url'], '')}/{says['branch']}?labpath={source.as_posix()}"
    return f"[on the site]({page})", f"[run it in Binder]({binder})"


def with_navigation(root):
    "Path -> text: every notebook that people read, its last lines as they should be, and the contents."
    pages = [page for page in pages_of(root) if page.source.suffix == ".ipynb" and page.source != CONTENTS]
    books = {page.source: json.loads((root / page.source).read_text("utf-8")) for page in pages}
    known = {source: title_and_claim(source, book["cells"]) for source, book in books.items()}
    order = [CONTENTS, *(page.source for page in pages if page.section != "pipeline")]
    titles = {CONTENTS: "Contents"} | {source: title for source, (title, _) in known.items()}
    papers, used = {source.stem: source for source in order if source.parts[1] == "papers"}, users(root)
    books[CONTENTS] = contents(pages, known)
    out = {}
    for i, source in enumerate(order):
        to = lambda target, text, here=source: (
            f"[{text}]({posixpath.relpath(target.as_posix(), here.parent.as_posix())})"
        )
        steps = [
            to(order[i - 1], f"← {titles[order[i - 1]]}") if i > 1 else "",
            to(CONTENTS, "Contents") if i else "",
            to(order[i + 1], f"{titles[order[i + 1]]} →") if i + 1 < len(order) else "",
            *addresses(root, source),
        ]
        book = books[source]
        tagged = [cell["id"] for cell in book["cells"] if TAG in cell["metadata"].get("tags", [])]
        cells = [cell for cell in book["cells"] if cell["id"] not in tagged]
        module = re.search(r"(?m)^#\|\s*default_exp\s+(\S+)", "\n".join("".join(cell["source"]) for cell in cells))
        by = [
            to(path, titles[path].partition(":")[0])
            for name, path in papers.items()
            if module and source.parts[1] in SECTIONS and name in used.get(f"facelab.{module[1]}", ())
        ]
        text = "\n\n".join(filter(None, [f"Used by {', '.join(by)}." if by else "", " | ".join(filter(None, steps))]))
        out[source] = dump({**book, "cells": [*cells, markdown_cell(text, *(tagged[:1] or [TAG]), [TAG])]})
    return out


def contents(pages, known):
    "The notebook of all notebooks."
    head = "# Contents\n\n> Every notebook in reading order, with what it shows."
    cells = [markdown_cell(head, "contents")]
    for section, title in SECTIONS.items():
        inside = [page.source for page in pages if page.section == section]
        lines = [f"- [{known[s][0]}]({s.relative_to('nbs').as_posix()}): {known[s][1]}" for s in inside]
        if inside:
            cells.append(markdown_cell("\n".join([f"## {title}", "", *lines]), section.replace("_", "-")))
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def changes(root):
    "Path -> text of the notebooks whose last lines are not as they should be."
    root = Path(root)
    return {
        source: text
        for source, text in with_navigation(root).items()
        if not (root / source).exists() or (root / source).read_text("utf-8") != text
    }


def stale(root):
    "Notebooks whose last lines are not as they should be."
    return list(changes(root))


def write_navigation(root):
    "Bring all notebooks up to date; returns those that changed."
    changed = changes(root)
    for source, text in changed.items():
        write_text(Path(root) / source, text)
    return list(changed)
