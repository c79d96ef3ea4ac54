"""What the cells of a notebook show, kept in it: a reader of a code host sees it without running a cell.

`python -m facelab.pipeline outputs` executes the notebooks whose code, or a module that they use, has changed since,
and stores their outputs: text, tables, and small pictures. nbs/outputs.json says what each was made from.
A cell with the tag `machine` shows what another machine would show otherwise (times, folders); its output is not kept.
"""

import base64
import hashlib
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from facelab import FacelabError
from facelab.base.files import record_matches, write_record, write_text
from facelab.pipeline.sources import closure, imports, notebook_code

RECORD = Path("nbs/outputs.json")
MACHINE = "machine"  # tag of a cell
LARGEST, LARGEST_PAGE = 400_000, 1_000_000  # bytes that a notebook may show, and the page of a paper
SCALES = (1, 0.8, 0.65, 0.5)  # of its pictures, until they fit
SCRATCH = re.compile(r"(?:/[\w.-]+)*/tmp\w{8}\b")  # folders that tempfile makes
WIDGET = "application/vnd.jupyter.widget-view+json"
STAGES, PAGES = "nbs/pipeline", "nbs/papers"
RUN = Path("build/claims/claims.csv")  # the last thing that a run makes


def made_from(root, source):
    """What the outputs of a notebook depend on, as hashes: its own code, and all modules that it uses.

    Recipes and papers count if it names them, and the run in build, which the pages of the papers show."""
    code = notebook_code(root / source)
    used = closure(imports(re.sub(r"(?m)^\s*[%!].*$", "", code)), root)
    parts = {"code": code, "modules": json.dumps(used)}
    if re.search("recipes|papers|degradations|Page", code):
        data = sorted(path for folder in ("recipes", "papers") for path in (root / folder).glob("*.yaml"))
        parts["data"] = "\n".join(path.read_text("utf-8") for path in data)
    if source.is_relative_to(PAGES) and (root / RUN).exists():
        parts["run"] = (root / RUN).read_text("utf-8")
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in parts.items()}


def read_record(root):
    "Notebook -> what its outputs were made from."
    path = root / RECORD
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def executed(root, source):
    """A notebook with its outputs: those that it keeps if they are of today, or else it is executed.

    Stages show what their last run left."""
    book = json.loads((root / source).read_text("utf-8"))  # its words may be newer than its outputs
    if source.is_relative_to(STAGES):
        out = next(iter(sorted((root / "build" / "notebooks").glob(f"{source.stem}*.ipynb"))), root / source)
    elif read_record(root).get(source.as_posix()) == (about := made_from(root, source)):
        return book
    else:
        out = root / "build" / "site" / "executed" / source.relative_to("nbs")
        execute(root, source, out, about)
    done = json.loads(out.read_text("utf-8"))
    refuse_errors(source, done)
    ours, theirs = ([c for c in b["cells"] if c["cell_type"] == "code" and not injected(c)] for b in (book, done))
    if ["".join(cell["source"]) for cell in ours] != ["".join(cell["source"]) for cell in theirs]:
        book, ours = done, theirs  # a stage whose code is newer
    for cell, other in zip(ours, theirs):
        cell["outputs"] = kept(other["outputs"])
    return book


def to_store(book, limit):
    "A notebook whose outputs are of no machine, its pictures so small that they fit."
    for scale in SCALES:
        cells = [
            {**cell, "outputs": [] if MACHINE in cell["metadata"].get("tags", []) else kept(cell["outputs"], scale)}
            if cell["cell_type"] == "code"
            else cell
            for cell in book["cells"]
        ]
        if bytes_of(small := {**book, "cells": cells}) <= limit:
            break
    return small


def bytes_of(book):
    "Bytes that the outputs of a notebook take."
    return sum(len(json.dumps(cell["outputs"], ensure_ascii=False)) for cell in book["cells"] if cell.get("outputs"))


def injected(cell):
    "Did papermill write this cell?"
    return "injected-parameters" in cell["metadata"].get("tags", [])


def execute(root, source, out, about):
    "Execute a notebook, unless it was made from the same."
    import papermill

    from facelab.pipeline.surroundings import leave_user_settings

    record, half = out.with_suffix(".json"), out.with_suffix(".half.ipynb")
    if not (out.exists() and record_matches(record, about)):
        out.parent.mkdir(parents=True, exist_ok=True)
        quiet = {"progress_bar": False, "log_output": False, "extra_arguments": ["--log-level=40"]}
        leave_user_settings(root / "build" / "site")
        papermill.execute_notebook(root / source, half, kernel_name="python3", cwd=(root / source).parent, **quiet)
        half.replace(out)
        write_record(record, about)


def refuse_errors(source, book):
    "A stage that failed has left a notebook with an error in it."
    for out in (out for cell in book["cells"] for out in cell.get("outputs", [])):
        if out["output_type"] == "error":
            raise FacelabError(f"{source}, executed, ends with an error: {out['ename']}: {out['evalue']}")


def kept(outputs, scale=None):
    """Of the outputs of a cell what readers see: no warnings and progress, no state of widgets.

    Pictures are made small, in a scale; None: they stay as they are."""
    out = []
    for given in outputs:
        if given["output_type"] == "stream":
            text = SCRATCH.sub("...", "".join(given["text"]))
            if given["name"] == "stderr":
                continue
            if out and out[-1]["output_type"] == "stream":
                text = "".join(out.pop()["text"]) + text
            out.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
        elif data := shown(given["data"], scale):
            more = {"execution_count": None} if given["output_type"] == "execute_result" else {}
            out.append({"data": data, "metadata": {}, "output_type": given["output_type"], **more})
    return out


def shown(data, scale=None):
    "Of the forms of an output the one that is shown."
    if WIDGET in data:
        return {"text/markdown": "*A widget: run the notebook to use it.*"}
    if "image/png" in data:
        return {"image/png": data["image/png"]} if scale is None else dict([small_picture(data["image/png"], scale)])
    for form in ("image/svg+xml", "text/html", "text/markdown", "text/latex", "text/plain"):
        if form in data:
            return {form: SCRATCH.sub("...", "".join(data[form])).splitlines(keepends=True)}
    return {}


def small_picture(text, scale=1):
    "The smallest file (kind, base64) of a picture: PNG as it is or with 256 colours, or JPEG, as viewers show both."
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode("".join(text))))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    whole = image.convert("RGB")
    if scale != 1:
        whole = whole.resize([round(side * scale) for side in whole.size], Image.Resampling.LANCZOS)
    few = whole.quantize(256, Image.Quantize.MEDIANCUT)
    files = []
    for form, kind, more in ((whole, "png", {}), (few, "png", {}), (whole, "jpeg", {"quality": 80})):
        file = io.BytesIO()
        form.save(file, kind, optimize=True, **more)
        files.append((f"image/{kind}", base64.b64encode(file.getvalue()).decode()))
    return min(files, key=lambda kind_and_text: len(kind_and_text[1]))


def store(root, only=(), jobs=2, progress=True):
    "Bring the outputs of these notebooks up to date, or of all; returns those that were executed."
    from tqdm import tqdm

    from facelab.pipeline.navigation import dump
    from facelab.pipeline.site import pages_of

    root = Path(root)
    if (root / RUN).exists():
        raise FacelabError(
            "the pages of the papers would keep what your own run shows: do this in a clone without build/claims"
        )
    books = [page.source for page in pages_of(root) if page.source.suffix == ".ipynb"]
    books = [source for source in books if not source.is_relative_to(STAGES)]
    new, old = {source.as_posix(): made_from(root, source) for source in books}, read_record(root)
    names = {(Path.cwd() / name).resolve() for name in only}
    if unknown := names - {(root / source).resolve() for source in books}:
        raise FacelabError(f"{min(unknown)} is no notebook that keeps its outputs: give one below nbs, but no stage")
    wanted = [source for source in books if not only or (root / source).resolve() in names]
    changed = [source for source in wanted if old.get(source.as_posix()) != new[source.as_posix()]]
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(lambda source: executed(root, source), changed)
        for source, book in zip(changed, tqdm(done, "notebooks", len(changed), disable=not progress)):
            limit = LARGEST_PAGE if source.is_relative_to(PAGES) else LARGEST
            write_text(root / source, dump(to_store(book, limit)))
            old[source.as_posix()] = new[source.as_posix()]
            write_text(root / RECORD, json.dumps({k: v for k, v in sorted(old.items()) if k in new}, indent=1) + "\n")
    return changed
