"""The notebooks, executed, as a site that needs no server and no network: Sphinx with MyST-NB and Furo; `make docs` calls it."""

import importlib
import inspect
import io
import json
import os
import posixpath
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from facelab import FacelabError
from facelab.moved import NOTEBOOKS
from facelab.pipeline.sources import closure, imports, notebook_code
from facelab.base.files import was_made, write_record

SECTIONS = {  # folder of nbs -> its title, in reading order; guides and the notebooks that are in no folder come first
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
GUIDES = "README docs/tour docs/own_faces docs/new_degradation docs/new_system docs/gpu docs/recipes docs/deviations results/README"
ORDER = (  # of notebooks without numbers; stages as in dvc.yaml
    "prior_guided_sr jdsr_gan fcsr_gan sr_deblur_gan heavy_rain "
    "draw faces synthesize samples train restore score tables figures architecture claims"
).split()
CONTENTS = Path("nbs/contents.ipynb")
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass
class Page:
    "One page of the site."

    source: Path  # notebook or Markdown file, relative to the project
    section: str


def pages_of(root):
    "All pages in reading order."
    guides = [Page(Path(f"{name}.md"), "") for name in GUIDES.split() if (root / f"{name}.md").exists()]
    found = [p.relative_to(root) for p in sorted((root / "nbs").glob("**/*.ipynb")) if p.parent.name[0] != "."]
    books = [Page(path, "/".join(path.parts[1:-1])) for path in found]
    unknown = {page.section for page in books} - set(SECTIONS)
    if unknown:
        raise FacelabError(
            f"nbs/{min(unknown)} is in no section of the site: add it to SECTIONS in facelab/pipeline/site.py"
        )
    place = {name: i for i, name in enumerate(ORDER)}
    return guides + sorted(books, key=lambda p: (list(SECTIONS).index(p.section), place.get(p.source.stem, len(place))))


def executed(root, source):
    """The notebook with its outputs: executed when its code, or a module that it uses, has changed since.

    Notebooks of stages are as the last run left them.
    """
    if source.parts[1] == "pipeline":
        done = sorted((root / "build" / "notebooks").glob(f"{source.stem}*.ipynb"))
        return json.loads((done[0] if done else root / source).read_text())
    import papermill

    code = notebook_code(root / source)
    used = closure(imports(re.sub(r"(?m)^\s*[%!].*$", "", code)), root)
    made_from, out = {"code": code, "modules": used}, root / "build" / "site" / "executed" / source.relative_to("nbs")
    record, half = out.with_suffix(".json"), out.with_suffix(".half.ipynb")
    if not (out.exists() and was_made(record, made_from)):
        out.parent.mkdir(parents=True, exist_ok=True)
        quiet = {"progress_bar": False, "log_output": False, "extra_arguments": ["--log-level=40"]}
        papermill.execute_notebook(root / source, half, kernel_name="python3", cwd=(root / source).parent, **quiet)
        half.replace(out)
        write_record(record, made_from)
    book = json.loads((root / source).read_text())  # its words may be newer
    code_cells = ([c for c in b["cells"] if c["cell_type"] == "code"] for b in (book, json.loads(out.read_text())))
    for cell, done in zip(*code_cells, strict=True):
        cell["outputs"] = done["outputs"]
    return book


def public_names(module):
    "What a module exports, in MyST: signatures, docstrings, and what is said of each argument."
    from fastcore.docments import docments

    loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", []):
        thing = getattr(loaded, name)
        if callable(thing) and getattr(thing, "__module__", module) == module:
            kind = "class" if isinstance(thing, type) else "function"
            signature = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))
            said = "".join(f"- `{arg}`: {words}\n" for arg, words in docments(thing).items() if words)
            yield f"``````{{py:{kind}}} {module}.{name}{signature}\n{inspect.getdoc(thing) or ''}\n\n{said}``````\n"


def shown(book):
    "A notebook as readers see it: nothing hidden, no steps of its own, and at the end what its module exports."
    cells, names = [], ""
    for cell in book["cells"]:
        text, tags = "".join(cell["source"]), cell["metadata"].get("tags", [])
        if module := re.search(r"(?m)^#\|\s*default_exp\s+(\S+)", text):
            names = "\n".join(public_names(f"facelab.{module[1]}"))
        if "injected-parameters" in tags or re.search(r"(?m)^#\|\s*(hide|default_exp)", text):
            continue
        text = text.rpartition("\n\n")[0] if "navigation" in tags else text
        text = re.sub(r"(?m)^#\|.*\n?", "", text) if cell["cell_type"] == "code" else text
        for data in (out["data"] for out in cell.get("outputs", []) if "data" in out):
            if WIDGET in data:
                data.clear()
                data["text/markdown"] = "*A widget: run the notebook to use it.*"
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
        source[0] = json.dumps(shown(executed(root, Path(f"{name}.ipynb"))))
    if name == "README":
        for section, title in SECTIONS.items():
            inside = [str(p.source.with_suffix("")) for p in pages_of(root)[1:] if p.section == section]
            source[0] += "\n".join(["\n\n```{toctree}", ":hidden:", f":caption: {title}", *inside, "```"]) if inside else ""


def equation(writer, node):
    "Write an equation as MathML, which browsers show without a library."
    from docutils.nodes import SkipNode, math_block
    from sphinx.util.logging import getLogger

    text = mathml(node.astext(), isinstance(node, math_block))
    if left := re.search(r"\\[a-zA-Z]+", text):
        getLogger(__name__).warning("nothing turns %s into MathML", left[0], location=node)
    writer.body.append(text)
    raise SkipNode


def mathml(text, block):
    from latex2mathml.converter import convert

    return convert(text.replace(r"\arg", r"\operatorname{arg}"), display="block" if block else "inline")


def slug(heading):
    "The anchor of a heading, as Jupyter writes it."
    return heading.replace(" ", "-")


def fault(said, root):
    "The first thing that Sphinx warns of, in words that say what to do."
    said = re.sub(r"\x1b\[[0-9;]*m", "", said).replace(f"{root}/", "").strip().splitlines()[0]
    found = re.match(r"(\S+?\.(?:md|ipynb)).*target not found: '?([^\s']+)'?", said)
    if not found:
        return said
    page, link = found.groups()
    old = posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
    new = NOTEBOOKS.get(old.removeprefix("nbs/").removesuffix(".ipynb"))
    return f"{page} links to {link}, which " + (f"has moved: it is nbs/{new}.ipynb" if new else "is not there")


def build(root, jobs=2, progress=True):
    "Write the site to build/site/html, and refuse whatever Sphinx warns of, such as a dead link; returns the pages."
    from sphinx.application import Sphinx
    from tqdm import tqdm

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    root, pages, warnings = Path(root).resolve(), pages_of(root), io.StringIO()
    books = [page.source for page in pages if page.source.suffix == ".ipynb"]
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(lambda source: executed(root, source), books)
        list(tqdm(done, total=len(books), desc="notebooks", unit="notebook", disable=not progress))
    used = {page.source.parts[0] for page in pages}
    moved = {f"nbs/{old}": posixpath.relpath(f"{new}.html", posixpath.dirname(old)) for old, new in NOTEBOOKS.items()}
    settings = {
        "project": "facelab",
        "html_title": "facelab",
        "html_theme": "furo",
        "pygments_dark_style": "github-dark",
        "root_doc": "README",
        "extensions": ["myst_nb", "sphinx_reredirects", __name__],
        "include_patterns": [page.source.as_posix() for page in pages],
        "exclude_patterns": [path.name for path in root.iterdir() if path.name not in used],
        "redirects": {"index": "README.html", **moved},
        "add_module_names": False,
        "html_math_renderer": "mathml",
        "html_show_search_summary": False,  # it fetches pages, which needs a server
        "html_show_copyright": False,
        "html_copy_source": False,
        "myst_enable_extensions": ["dollarmath"],
        "myst_dmath_allow_space": False,
        "myst_dmath_allow_digits": False,
        "myst_heading_anchors": 4,
        "myst_heading_slug_func": f"{__name__}.slug",
        "nb_execution_mode": "off",
        "nb_output_stderr": "remove",
        "nb_render_markdown_format": "myst",
    }
    folder = root / "build" / "site"
    shutil.rmtree(folder / "html", ignore_errors=True)
    app = Sphinx(
        root, None, folder / "html", folder / "doctrees", "html", settings, None, warnings, freshenv=True, parallel=jobs
    )
    app.build()
    if warnings.getvalue().strip():
        raise FacelabError(fault(warnings.getvalue(), root))
    return pages
