"""Pages of papers: what they read from build/, when it is there and when it is not."""

import copy
from functools import cache

import pytest
from conftest import ROOT

from facelab import FacelabError
from facelab.publication.claims import Finding, Names, Verdict, claims_table, inequalities, read_claims
from facelab.publication.paper_page import Page, read_verdicts, describe_value, describe_recipe
from facelab.evaluation.measures import measure_of

CLAIMS = read_claims(ROOT / "papers" / "claims.yaml")
each_paper = pytest.mark.parametrize("paper", CLAIMS)


@cache
def page_of(paper):
    return Page(paper, ROOT)


def page_at(paper, place):
    "The same page in a project that has no build/, or one of its own."
    page = copy.copy(page_of(paper))
    page.root = place
    return page


@pytest.fixture
def place(tmp_path):
    "A project without a build/."
    (tmp_path / "papers").symlink_to(ROOT / "papers")
    return tmp_path


def made_up(paper):
    "Verdicts on a paper's claims as the pipeline would write them: every comparison holds, but what has no interval."
    names = Names(page_of(paper).all_recipes, page_of(paper).chains)
    finding = lambda q: (
        Finding(q.text, q.measure, "undecided", 1.0)
        if measure_of(q.measure).of == "set"
        else Finding(q.text, q.measure, "reproduced", 0.5, 0.25, 0.75, 0.3)
    )
    return [
        Verdict(paper, letter, claim["text"], claim["source"], [finding(q) for q in inequalities(claim, names)])
        for letter, claim in CLAIMS[paper].items()
    ]


@each_paper
def test_page_without_build(paper, place):
    page = page_at(paper, place)
    shown = [
        *(page.table(name) for name in [*page.paper["tables"], "conventions"]),
        *(page.figure(name) for name in page.paper["figures"]),
        *(page.sample(name) for name in page.paper.get("samples", {})),
        *(page.drawing(name) for name in page.paper["architecture"]),
    ]
    assert all(part.data.endswith("is not there: `make repro` makes it.") for part in shown)
    assert page.verdict().data.endswith("`make repro` makes it.")


@each_paper
def test_deviations_and_verdict(paper, place):
    (place / "build" / "claims").mkdir(parents=True)
    (place / "build" / "claims" / "claims.csv").write_text(claims_table([v for p in CLAIMS for v in made_up(p)]).csv())
    (place / "build" / "claims" / "claims.md").write_text("# Claims\n\nProfile `demo`, faces `drawn`: 1 reproduced.\n")
    page, verdicts = page_at(paper, place), made_up(paper)
    shown = page.verdict().data
    assert (
        shown.startswith("Profile `demo`, faces `drawn`. There are no scores in build/scores/")
        and str(place) not in shown
    )
    assert [line for line in shown.splitlines() if line.startswith("| (")] == [
        f"| {' | '.join(v.row())} |" for v in verdicts
    ]
    lines = page.deviations().data.splitlines()
    assert lines[0] == "| what | switch | ours |" and len(lines) > 2 + len(page.paper["deviations"])


@each_paper
def test_recipes_and_sources(paper):
    page = page_of(paper)
    rows = [r["label"] for r in page.recipes.values() if r["kind"] == "recipes"]
    head, _, *fields = page.recipe_table().data.splitlines()
    assert [cell.strip() for cell in head.split("|")[2:-1]] == rows and any(": steps |" in line for line in fields)
    assert page.sources().data.count("\n") > len(page.recipes) / 2
    assert page.claims().data.count("- **(") == len(CLAIMS[paper])


def test_what_was_made_is_shown(place):
    page = page_at("jdsr_gan", place)
    for kind, name, text in (
        ("tables", "table_3.md", "| a table |"),
        ("figures", "figure_9.txt", "n/a: the face set has no landmarks"),
    ):
        (place / "build" / kind / "jdsr_gan").mkdir(parents=True)
        (place / "build" / kind / "jdsr_gan" / name).write_text(text)
    assert (
        page.table("table_3").data == "| a table |"
        and page.figure("figure_9").data == "n/a: the face set has no landmarks"
    )


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda page: Page("jdsr"), "unknown paper 'jdsr': did you mean 'jdsr_gan'"),
        (lambda page: page.table("tabel_3"), "the paper has no table 'tabel_3': did you mean 'table_3'"),
        (lambda page: page.figure("figure_99"), "the paper has no figure"),
        (lambda page: page.tiny("jdsr_gan_x4", step=3), "unknown parameter 'step'"),
        (lambda page: page.recipe_table("jdsr_gan_x5"), "unknown recipe 'jdsr_gan_x5'"),
        (lambda page: page.switches({"width": "systems.jdsr_gan.JDSRGAN(widht)"}), "did you mean 'width'"),
    ],
)
def test_misspelt(ask, message):
    with pytest.raises(FacelabError) as error:
        ask(page_of("jdsr_gan"))
    assert message in str(error.value)


def test_an_ablation_is_told():
    page = page_of("jdsr_gan")
    table = page.recipe_table("jdsr_gan_x4", "jdsr_gan_x4_without_attention", "jdsr_gan_x4_without_style").data
    assert table.count("attention=False") == 1
    assert (
        "| joint: style | 10 Style(denoised, clean; features=(source=torchvision, network=vgg16, layers=[conv1_2,"
        " conv2_2, conv3_3])) | 10 Style(" in table
    )
    assert describe_value({"use": "a.B", "x": 0, "y": None, "z": [1, 2]}) == "B(x=0, z=[1, 2])"
    assert describe_recipe({"stages": [], "inputs": "x4", "generator": {"use": "a.B"}, "batch": 3}) == {
        "inputs": "x4",
        "generator": "B()",
    }


def test_verdicts_survive_the_file(tmp_path):
    verdicts = made_up("sr_deblur_gan")
    (tmp_path / "claims.csv").write_text(claims_table(verdicts).csv())
    again = read_verdicts(tmp_path / "claims.csv", "sr_deblur_gan", CLAIMS["sr_deblur_gan"])
    assert [v.row() for v in again] == [v.row() for v in verdicts] and [v.word for v in again] == [
        v.word for v in verdicts
    ]
