"""The notebooks with their outputs, as a site that needs neither a server nor a network; `make docs` calls it.

Sphinx with MyST-NB and Furo makes it: search, light and dark, narrow screens, contents, and a list of what is wrong.
Ours are the order of pages, what is shown of a notebook, the names that its module exports, and equations as MathML.
"""

import importlib
import inspect
import io
import json
import os
import posixpath
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from facelab import FacelabError
from facelab.moved import NOTEBOOKS
from facelab.pipeline.outputs import executed, injected

SECTIONS = {  # folder of nbs -> its title, in reading order; guides and the contents come first
    "": "Guides",
    "papers": "Papers",
    "0_base": "Base",
    "1_faces": "Faces",
    "2_degradations": "Degradations",
    "3_networks": "Networks",
    "4_losses": "Losses",
    "5_systems": "Systems",
    "6_training": "Training",
    "7_evaluation": "Evaluation",
    "8_publication": "Publication",
    "9_apps": "Apps",
    "pipeline": "Pipeline",
}
GUIDES = (
    "README docs/tour docs/own_faces docs/new_degradation docs/new_system docs/gpu docs/recipes docs/deviations "
    "docs/losses results/README"
).split()
ORDER = (  # of notebooks without numbers; stages as in dvc.yaml
    "prior_guided_sr jdsr_gan fcsr_gan sr_deblur_gan heavy_rain "
    "draw faces synthesize samples train restore score tables figures claims architecture"
).split()
TOP = {"explore": "9_apps", "scale": "9_apps"}  # notebooks that lie beside the folders -> where they are read
CONTENTS = Path("nbs/contents.ipynb")


@dataclass
class Page:
    "One page of the site."

    source: Path  # notebook or Markdown file, relative to the project
    section: str


def pages_of(root):
    "All pages in reading order."
    guides = [Page(Path(f"{name}.md"), "") for name in GUIDES if (root / f"{name}.md").exists()]
    found = [p.relative_to(root) for p in sorted((root / "nbs").glob("**/*.ipynb")) if p.parent.name[0] != "."]
    books = [Page(path, "/".join(path.parts[1:-1]) or TOP.get(path.stem, "")) for path in found]
    unknown = {page.section for page in books} - set(SECTIONS)
    if unknown:
        raise FacelabError(
            f"nbs/{min(unknown)} is in no section of the site: add it to SECTIONS in facelab/pipeline/site.py"
        )
    place = {name: i for i, name in enumerate(ORDER)}
    return guides + sorted(books, key=lambda p: (list(SECTIONS).index(p.section), place.get(p.source.stem, len(place))))


def public_names(module):
    "What a module exports, in MyST: signatures, docstrings, and the comment on each argument."
    from fastcore.docments import docments

    loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", []):
        thing = getattr(loaded, name)
        if callable(thing) and getattr(thing, "__module__", module) == module:
            kind, signature = "class" if isinstance(thing, type) else "function", ""
            with suppress(ValueError):  # exceptions have none
                signature = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))
            listed = "".join(f"- `{arg}`: {words}\n" for arg, words in docments(thing).items() if words)
            yield f"``````{{py:{kind}}} {module}.{name}{signature}\n{inspect.getdoc(thing) or ''}\n\n{listed}``````\n"


def reader_view(book):
    "A notebook as readers see it: nothing hidden, no steps of its own, and at the end what its module exports."
    cells, names = [], ""
    for cell in book["cells"]:
        text, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if module := re.search(r"(?m)^#\|\s*default_exp\s+(\S+)", text):
            names = "\n".join(public_names(f"facelab.{module[1]}"))
        if injected(cell) or re.search(r"(?m)^#\|\s*(hide|default_exp)", text):
            continue
        text = text.rpartition("\n\n")[0] if "navigation" in tags else text
        text = re.sub(r"(?m)^#\|.*\n?", "", text) if cell["cell_type"] == "code" else text
        for data in (out["data"] for out in cell.get("outputs", []) if "data" in out):
            if "text/markdown" in data:  # its links are those of another page
                data["text/markdown"] = re.sub(r"(?<!!)\[([^]]*)\]\([^)]*\)", r"\1", "".join(data["text/markdown"]))
        cells.append({**cell, "source": text})
    if names:
        cells.append({"cell_type": "markdown", "id": "names", "metadata": {}, "source": f"## Public names\n\n{names}"})
    return {**book, "cells": cells}


# --- what Sphinx calls -----------------------------------------------------------------------------------------------


def setup(app):
    "This module is an extension of Sphinx: it hands over notebooks and contents, and writes equations as MathML."
    app.connect("source-read", read)
    app.add_html_math_renderer("mathml", (equation, None), (equation, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def read(app, name, source):
    "Put in place of a page's text what the site shows."
    root = Path(app.srcdir)
    if name.startswith("nbs/"):
        source[0] = json.dumps(reader_view(executed(root, Path(f"{name}.ipynb"))))
    if name == "README":
        for section, title in SECTIONS.items():
            inside = [str(page.source.with_suffix("")) for page in pages_of(root)[1:] if page.section == section]
            if inside:
                source[0] += "\n".join(["\n\n```{toctree}", ":hidden:", f":caption: {title}", *inside, "```"])


def equation(writer, node):
    "Write an equation as MathML, which browsers show without a library."
    from docutils.nodes import SkipNode, math_block
    from latex2mathml.converter import convert

    block = "block" if isinstance(node, math_block) else "inline"
    text = convert(node.astext().replace(r"\arg", r"\operatorname{arg}"), display=block)
    if left := re.search(r"\\[a-zA-Z]+", text):
        writer.document.reporter.warning(f"nothing turns {left[0]} into MathML", base_node=node)
    writer.body.append(text)
    raise SkipNode


def slug(heading):
    "The anchor of a heading, as Jupyter writes it."
    return heading.replace(" ", "-")


def first_fault(warnings, root):
    "The first thing that Sphinx warns of, in words that say what to do."
    line = re.sub(r"\x1b\[[0-9;]*m", "", warnings).replace(f"{root}/", "").strip().splitlines()[0]
    found = re.match(r"(\S+?\.(?:md|ipynb)):.* '([^']+)' \[myst\.xref_missing\]", line)
    if not found:
        return line
    page, link = found.groups()
    old = posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
    new = NOTEBOOKS.get(old.removeprefix("nbs/").removesuffix(".ipynb"))
    return f"{page} links to {link}, which " + (f"is now nbs/{new}.ipynb" if new else "is not on the site")


def build(root, jobs=2, progress=True):
    "Write the site to build/site/html, and refuse whatever Sphinx warns of, such as a dead link; returns the pages."
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace
    from tqdm import tqdm

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root, pages, warnings = Path(root).resolve(), pages_of(root), io.StringIO()
    books = [page.source for page in pages if page.source.suffix == ".ipynb"]
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(lambda source: executed(root, source), books)
        list(tqdm(done, "notebooks", len(books), disable=not progress))
    moved = {f"nbs/{old}": posixpath.relpath(f"{new}.html", posixpath.dirname(old)) for old, new in NOTEBOOKS.items()}
    settings = {
        "root_doc": "README",
        "include_patterns": [page.source.as_posix() for page in pages],
        "exclude_patterns": list({path.name for path in root.iterdir()} - {page.source.parts[0] for page in pages}),
        "extensions": ["myst_nb", "sphinx_reredirects", __name__],
        "redirects": {"index": "README.html", **moved},
        "html_theme": "furo",
        "html_title": "facelab",
        "html_math_renderer": "mathml",
        "html_show_search_summary": False,  # it fetches pages, which needs a server
        "html_show_copyright": False,
        "html_copy_source": False,
        "myst_enable_extensions": ["dollarmath"],
        "myst_dmath_allow_space": False,
        "myst_heading_anchors": 4,
        "myst_heading_slug_func": f"{__name__}.slug",
        "nb_execution_mode": "off",
        "nb_ipywidgets_js": {},  # from other servers
        "nb_output_stderr": "remove",
        "nb_render_markdown_format": "myst",
    }
    html, kept, status = root / "build/site/html", root / "build/site/doctrees", sys.stdout if progress else None
    shutil.rmtree(html, ignore_errors=True)
    with docutils_namespace():
        Sphinx(root, None, html, kept, "html", settings, status, warnings, freshenv=True, parallel=jobs).build()
    if warnings.getvalue().strip():
        raise FacelabError(first_fault(warnings.getvalue(), root))
    return pages
