"""What cells show is kept in the notebooks: of today's code, small, and the same on every machine."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from facelab import FacelabError
from facelab.pipeline import outputs

KEEPING = [Path(name) for name in outputs.read_record(ROOT)]
NOTEBOOKS = [p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
ALL = 20_000_000  # bytes
OF_A_MACHINE = re.compile(
    r"(?<![\w.])/(?:root|home|tmp|work|Users|private|var)/|at 0x[0-9a-f]{6}|\b\d+(?:\.\d+)? ?(?:ms|µs)\b"
)


def cells(path):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def kept_bytes(path):
    return outputs.bytes_of(json.loads((ROOT / path).read_text("utf-8")))


def faults(path):
    "What may not be kept of a notebook."
    for cell in cells(path):
        for out in cell["outputs"]:
            text = json.dumps({k: v for k, v in out.get("data", out).items() if "image/" not in k}, ensure_ascii=False)
            if found := OF_A_MACHINE.search(text):
                yield f"{cell['id']} shows {text[max(0, found.start() - 60) : found.end() + 20]}"
            if out.get("metadata") or out.get("execution_count") or out.get("name") == "stderr":
                yield f"{cell['id']} keeps more than what is shown"
            if any("widget" in form for form in out.get("data", ())) or out["output_type"] == "error":
                yield f"{cell['id']} keeps a widget or an error"


@pytest.mark.parametrize("path", KEEPING, ids=lambda path: "/".join(path.parts[1:]))
def test_what_is_kept_is_of_todays_code_small_and_of_no_machine(path):
    code, record = outputs.made_from(ROOT, path)["code"], outputs.read_record(ROOT)[path.as_posix()]
    assert code == record["code"], f"the code of {path} is newer than what it shows: python -m facelab.pipeline outputs"
    assert list(faults(ROOT / path)) == []
    assert kept_bytes(path) <= (outputs.LARGEST_PAGE if path.parts[1] == "papers" else outputs.LARGEST)


def test_every_notebook_but_the_stages_keeps_what_it_shows():
    assert {p for p in NOTEBOOKS if not p.is_relative_to(outputs.STAGES)} == set(KEEPING)
    assert not any(cell["outputs"] for p in NOTEBOOKS if p not in KEEPING for cell in cells(ROOT / p))
    total = sum(map(kept_bytes, KEEPING))
    assert total <= ALL
    showing = sum(bool(cell["outputs"]) for p in KEEPING for cell in cells(ROOT / p))
    print(f"{showing} cells of {len(KEEPING)} notebooks show something, {total / 1e6:.1f} MB")


# ------------------------------------------------------------------ how they are kept


def markdown(text):
    return {"cell_type": "markdown", "source": [text], "metadata": {}, "id": "words"}


def code(text, *tags, **more):
    cell = {"cell_type": "code", "source": text.splitlines(True), "metadata": {}, "id": f"c{len(text)}", "outputs": []}
    return cell | ({"metadata": {"tags": list(tags)}} if tags else {}) | {"execution_count": None, **more}


def notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    book = {"cells": list(cells), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book))


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode() + "\n"


def test_what_is_shown_is_kept_and_nothing_else():
    stream = lambda name, text: {"output_type": "stream", "name": name, "text": text}
    data = lambda kind, **forms: {
        "output_type": kind,
        "metadata": {"needs_background": "light"},
        "data": {k.replace("_", "/"): v for k, v in forms.items()},
        **({"execution_count": 7} if kind == "execute_result" else {}),
    }
    box = {"text/plain": "VBox()", outputs.WIDGET: {"model_id": "1"}}
    out = outputs.kept(
        [
            stream("stdout", "a\n"),
            stream("stderr", "slow\n"),
            stream("stdout", ["/var/folders/x1/tmpab_12xyz/b\n"]),
            data("execute_result", text_html="<b>x</b>", text_plain="x"),
            {**data("display_data"), "data": box},
            data("display_data", image_png=png(Image.new("RGB", (4, 4), "red")), text_plain="<Figure>"),
        ]
    )
    assert out[0] == {"name": "stdout", "output_type": "stream", "text": ["a\n", ".../b\n"]}
    assert out[1] == {
        "data": {"text/html": ["<b>x</b>"]},
        "metadata": {},
        "output_type": "execute_result",
        "execution_count": None,
    }
    assert out[2]["data"] == {"text/markdown": "*A widget: run the notebook to use it.*"}
    assert list(out[3]["data"]) == ["image/png"] and out[3]["metadata"] == {} and len(out) == 4


def test_pictures_are_small_and_nearly_the_same():
    y, x = np.mgrid[:96, :96]
    smooth = np.stack([2 * x, 2 * y, 255 - x - y], 2).astype(np.uint8)
    noisy = (smooth + np.random.default_rng(0).integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    flat = np.zeros((96, 96, 4), np.uint8)
    flat[20:40, 30:60] = (200, 30, 10, 255)
    for pixels, error in ((smooth, 1), (noisy, 12), (flat, 0)):
        given = png(Image.fromarray(pixels))
        kind, small = outputs.small_picture(given)
        assert len(small) < len(given)
        image = Image.open(io.BytesIO(base64.b64decode(small)))
        white = pixels if pixels.shape[2] == 3 else np.where(pixels[..., 3:], pixels[..., :3], 255)
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - white).mean() <= error
        assert kind == f"image/{image.format.lower()}" and outputs.small_picture(given) == (kind, small)
    half = Image.open(io.BytesIO(base64.b64decode(outputs.small_picture(png(Image.fromarray(noisy)), 0.5)[1])))
    assert half.size == (48, 48)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "facelab").symlink_to(ROOT / "facelab")
    picture = "from facelab.base.images import show\nimport torch\nshow([torch.zeros(3, 8, 8)])"
    shows = [code("1 + 1"), code("import time\ntime.time()", outputs.MACHINE), code(picture)]
    notebook(tmp_path / "nbs/0_base/01_sum.ipynb", markdown("# Sum\n\n> It is two."), *shows)
    notebook(tmp_path / "nbs/pipeline/train.ipynb", markdown("# Train\n\n> A stage."), code("1 / 0"))
    return tmp_path


def test_one_command_executes_what_has_changed(project):
    path = project / "nbs/0_base/01_sum.ipynb"
    with pytest.raises(FacelabError, match="02_sum.ipynb is no notebook that keeps its outputs"):
        outputs.store(project, [project / "nbs/0_base/02_sum.ipynb"], progress=False)
    assert outputs.store(project, [path], progress=False) == [Path("nbs/0_base/01_sum.ipynb")]
    two, machine, picture = (cell["outputs"] for cell in cells(path))
    assert two[0]["data"] == {"text/plain": ["2"]} and machine == [] and "image/png" in picture[0]["data"]
    first = path.read_bytes()
    assert outputs.store(project, progress=False) == [] and path.read_bytes() == first
    book = json.loads(first)
    book["cells"][0]["source"] = ["# Sum, corrected\n\n> It is two."]
    path.write_text(json.dumps(book))
    assert outputs.store(project, progress=False) == []
    book["cells"][1]["source"] = ["1 + 2"]
    path.write_text(json.dumps(book))
    assert outputs.executed(project, path.relative_to(project))["cells"][1]["outputs"][0]["data"]["text/plain"] == ["3"]
    assert json.loads(path.read_text())["cells"][1]["outputs"][0]["data"]["text/plain"] == ["2"]  # until it is stored
    assert outputs.store(project, progress=False) and outputs.store(project, progress=False) == []
    book["cells"][1]["source"] = ["1 / 0"]
    path.write_text(json.dumps(book))
    with pytest.raises(Exception, match="ZeroDivisionError"):
        outputs.store(project, progress=False)


def test_words_may_be_newer_than_outputs(project):
    "What was executed is not executed again for a corrected sentence, and the page has the sentence."
    path, source = project / "nbs/0_base/01_sum.ipynb", Path("nbs/0_base/01_sum.ipynb")
    first = outputs.executed(project, source)
    book = json.loads(path.read_text())
    book["cells"][0]["source"] = "# Sum, corrected"
    path.write_text(json.dumps(book))
    done = project / "build/site/executed/0_base/01_sum.ipynb"
    stamp = done.stat().st_mtime_ns
    again = outputs.executed(project, source)
    shown = [[cell.get("outputs") for cell in book["cells"]] for book in (first, again)]
    assert again["cells"][0]["source"] == "# Sum, corrected" and shown[0] == shown[1]
    assert "2" in json.dumps(shown) and done.stat().st_mtime_ns == stamp


def test_many_pictures_become_smaller_until_they_fit(project, monkeypatch):
    monkeypatch.setattr(outputs, "LARGEST", 4_000)
    noise = "from facelab.base.images import show\nimport torch\nshow([torch.rand(3, 64, 64)])"
    path = project / "nbs/0_base/01_sum.ipynb"
    notebook(path, markdown("# Sum\n\n> Noise."), code(noise))
    outputs.store(project, progress=False)
    assert 500 < outputs.bytes_of(json.loads(path.read_text())) <= 4_000


def test_a_stage_that_failed_is_not_shown():
    error = {"output_type": "error", "ename": "ZeroDivisionError", "evalue": "division by zero"}
    with pytest.raises(FacelabError, match="nbs/x.ipynb, executed, ends with an error: ZeroDivisionError"):
        outputs.refuse_errors("nbs/x.ipynb", {"cells": [code("1/0", outputs=[error])]})


def test_a_stage_shows_its_last_run(project):
    "With the words of today, unless its code is newer."
    source, printed = Path("nbs/pipeline/train.ipynb"), {"name": "stdout", "output_type": "stream", "text": ["1"]}
    given = code("x = 1", "injected-parameters")
    notebook(project / source, markdown("# New"), code("x"))
    assert outputs.executed(project, source)["cells"][1]["outputs"] == []
    notebook(project / "build/notebooks/train@a.ipynb", markdown("# Old"), given, code("x", outputs=[printed]))
    assert outputs.executed(project, source)["cells"] == [markdown("# New"), code("x", outputs=[printed])]
    notebook(project / source, markdown("# New"), code("x + 1"))
    assert outputs.executed(project, source)["cells"] == [markdown("# Old"), given, code("x", outputs=[printed])]
