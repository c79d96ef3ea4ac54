"""The loss ledger: no term drowns the pixel term without a reason, live and on the committed page."""

import copy
import dataclasses
import json
import re

import pytest
import torch
from conftest import ROOT

from facelab import FacelabError
from facelab.base.params import load_params
from facelab.faces.drawn import draw_set
from facelab.pipeline import __main__ as commands
from facelab.pipeline.losses import INTRODUCTION, ledger_faces, measure, with_section
from facelab.training.loss_ledger import QUALITIES, pull_reasons, restores, too_hard
from facelab.training.pulls import LIMIT
from facelab.training.recipes import load_losses, load_recipes

torch.set_num_threads(1)
RECIPES = load_recipes(ROOT)
NAMES = [name for name, recipe in RECIPES.items() if recipe["kind"] != "priors" and restores(recipe)]
REASONS = pull_reasons(RECIPES, load_losses(ROOT))
SUMS = {json.dumps([(s["losses"], s["critics"]) for s in RECIPES[name]["stages"]]): name for name in reversed(NAMES)}
DISTINCT = sorted(SUMS.values(), key=NAMES.index)  # the others learn from the same sums, of other networks and inputs


def tiny_params():
    "The smallest networks; helpers and features learn for eight steps."
    params = {**load_params(ROOT), "instead": {}}
    small = dict(steps=8, batch=2, width=0.05, depth=0.05, warmup=0, threads=1, validate=0, lr=1e-3)
    params["train"] = {**params["train"], **small}
    return params


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def faces():
    return {size: draw_set(16, 2, 0, size=size) for size in (64, 128)}


@pytest.fixture(scope="module")
def ledger(folder, faces):
    "The first recipe of each objective, on two faces."
    entries, left_out = measure(DISTINCT, RECIPES, tiny_params(), faces[64], folder, critic_steps=3, n=2)
    assert left_out == {}
    return entries


def test_every_term_is_measured(ledger):
    measured = {(e.recipe, e.stage, e.term) for e in ledger}
    assert measured == {(n, s["name"], t) for n in DISTINCT for s in RECIPES[n]["stages"] for t in s["losses"]}
    assert all(len(e.values) == len(e.pulls) == len(QUALITIES) for e in ledger)
    assert all(v == v and abs(v) < 1e6 for e in ledger for v in (*e.values, *e.pulls))


def test_no_term_pulls_30_times_as_hard_as_the_pixel_term_without_a_reason(ledger):
    assert LIMIT == 30
    hard = [f"{e.recipe} ({e.stage}): {e.term} {e.hardest:.0f} times" for e in too_hard(ledger, REASONS)]
    print("\n".join(hard))
    assert hard == [], "weigh these terms less, or give their sums or recipes a source `<term>.pull` that says why"


@pytest.mark.parametrize(
    "recipe, term, change",
    [
        ("jdsr_gan_x4", "identity", {"weight": 512, "with": {"distance": "l2"}}),  # a length that nothing averages
        ("prior_guided_gan", "vgg", {"weight": 6}),
    ],
)
def test_a_term_that_drowns_the_others_is_found(recipe, term, change, folder, faces):
    changed = copy.deepcopy(RECIPES)
    changed[recipe]["stages"][-1]["losses"][term] |= change
    entries, left_out = measure([recipe], changed, tiny_params(), faces[64], folder, critic_steps=0, n=2)
    found = {e.term: e.hardest for e in too_hard(entries, pull_reasons(changed, {}))}
    print(found)
    assert term in found and left_out == {}


def sections():
    "Titles and texts of the committed page."
    page = (ROOT / "docs" / "losses.md").read_text()
    return dict(re.findall(r"(?ms)^## ([^\n]*)\n(.*?)(?=^## |\Z)", page))


def rows_of(text):
    "(recipe, stage, term, weight) -> times the pixel term, of the tables of a section."
    out = {}
    for part in re.split(r"(?m)^### ", text):
        names = re.findall(r"`(\w+)` \(([^)]*)\)", part.partition("| term |")[0])
        for line in re.findall(r"(?m)^\| (\w+ \| `\w+` \| .*) \|$", part):
            term, _, weight, *_, times = line.split(" | ")
            numbers = [float(x) for x in times.split(" / ") if x.strip()]
            for recipe, stage in names:
                out.setdefault((recipe, stage, term, weight), []).extend(numbers)
    return out


def terms_of_recipes():
    "(recipe, stage, term, weight) of all that is measured."
    return {
        (name, stage["name"], term, f"{loss.get('weight', 1):g}")
        for name in NAMES
        for stage in RECIPES[name]["stages"]
        for term, loss in stage["losses"].items()
        if loss
    }


def test_the_page_has_every_term_with_its_weight():
    lacking = sorted(terms_of_recipes() - rows_of(sections()["Drawn faces"]).keys())
    assert lacking == [], "measure again: python -m facelab.pipeline losses"


def test_the_page_has_a_reason_for_every_hard_pull():
    for text in sections().values():
        rows = rows_of(text)
        hard = {key[:3] for key in terms_of_recipes() & rows.keys() if max(rows[key], default=0) > LIMIT}
        assert [key for key in sorted(hard) if key not in REASONS] == []


def test_a_section_is_replaced_and_others_stay():
    page = with_section("", "A", "## A\n\n111\n")
    page = with_section(page, "B", "## B\n\n222\n")
    assert page == INTRODUCTION + "\n## A\n\n111\n\n## B\n\n222\n"
    assert with_section(page, "A", "## A\n\n333\n") == page.replace("111", "333")
    assert with_section(page, "B", "## B\n\n222\n") == page


def test_the_command(tmp_path, capsys, faces):
    "A folder of faces, one recipe; a name that restores nothing is refused."
    faces[128].save(tmp_path / "faces.safetensors")
    out = tmp_path / "losses.md"
    chosen = ["losses", "--faces", str(tmp_path / "faces.safetensors"), "--out", str(out), "--recipes"]
    assert commands.main([*chosen, "srresnet"]) == 0
    text = out.read_text()
    assert "| fine | `restored` | 1 |" in text and "## Drawn faces" not in text
    assert commands.main([*chosen, "srresnt"]) == 1
    assert "'srresnt' is no recipe that restores faces: did you mean 'srresnet'" in capsys.readouterr().err


def test_faces_with_68_points_and_no_parsing_get_parsing(tmp_path, faces):
    bare = dataclasses.replace(faces[64], parsing=None)
    bare.save(tmp_path / "faces.safetensors")
    _, completed = ledger_faces(tmp_path / "faces.safetensors", load_params(ROOT), 64)
    assert "parsing" not in bare.labels and "parsing" in completed.labels


def test_a_reason_names_a_term_that_is_there():
    with pytest.raises(FacelabError, match="has the source 'styl.pull' but no term 'styl'"):
        pull_reasons({}, {"one": {"terms": {"style": {}}, "sources": {"styl.pull": "ours: why"}}})
