"""What papers/*.yaml hold of the five papers: they name nothing that does not exist and leave out nothing reported."""

import inspect
import re
from functools import cache
from statistics import mean, stdev

import pytest
import torch
import yaml
from conftest import ROOT

from facelab.publication.claims import IDENTIFICATION, Names, inequalities, printed_margin, printed_numbers, read_claims
from facelab.degradations.chain import Chain
from facelab.faces.drawn import draw_faces
from facelab.pipeline.inventory import inventory, main, paths
from facelab.base.schema import SECTIONS
from facelab.publication.deviations import read_papers
from facelab.publication.figures import Album, chain_of, check_figure
from facelab.evaluation.metrics import CONVENTIONS
from facelab.training.recipes import load_degradations, load_recipes
from facelab.base.names import locate
from facelab.evaluation.measures import measure_of
from facelab.publication.tables import scale_of, table_rows

RECIPES, CHAINS = load_recipes(ROOT), load_degradations(ROOT)
PAPERS = read_papers(ROOT)
CLAIMS = read_claims(ROOT / "papers" / "claims.yaml")

each_paper = pytest.mark.parametrize("paper", PAPERS)


class Strict(yaml.SafeLoader):
    "Refuses a key that stands twice, and one that YAML takes for a truth value."

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        wrong = [key for key in keys if keys.count(key) > 1 or isinstance(key, bool)]
        assert not wrong, f"{wrong[0]!r}{node.start_mark}: stands twice, or needs quotes"
        return super().construct_mapping(node, deep)


@cache
def outputs(recipe):
    "What the network of a recipe makes of a face."
    with torch.device("meta"):  # shapes without numbers
        net, x = locate(RECIPES[recipe]["generator"]["use"])().eval(), torch.zeros(1, 3, 32, 32)
        return set(net(x, **{name: x[:, :1] for name in inspect.signature(net.forward).parameters if name == "M"}))


@cache
def maps_of(on):
    "The maps that a chain keeps."
    drawn = draw_faces([0, 1], size=64)
    chain = Chain(CHAINS[on.removesuffix("@unseen")]["steps"])
    return set(
        chain(
            drawn["image"], landmarks=drawn["landmarks_68"], **{k: drawn[k] for k in ("parsing", "foreground", "depth")}
        ).maps
    )


def evaluated(paper):
    "The (system, on) that the pipeline scores for a paper."
    pairs = {
        (name, recipe["inputs"])
        for name, recipe in RECIPES.items()
        if recipe["paper"] == paper and recipe["kind"] == "recipes"
    }
    for entry in PAPERS[paper]["evaluate"]:
        for system in entry["systems"]:
            named = (
                [f"{system}.{entry['output']}"]
                if "output" in entry
                else [system, *(f"{system}~{k}" for k in range(entry.get("draws", 0)))]
            )
            pairs |= {(name, on) for name in named for on in entry["on"]}
    return pairs


def test_the_paper_that_identifies_people_says_who_with_what():
    wish = PAPERS["fcsr_gan"]["identification"]
    assert {wish["recogniser"], wish["restorer"]} <= RECIPES.keys() and RECIPES[wish["restorer"]]["inputs"] == wish[
        "on"
    ] in CHAINS


def table_cells(spec):
    "(system, on) of each row of a table."
    if spec.get("kind") == "matrix":
        chain_of = lambda on, system: on.get(f"x{scale_of(system, RECIPES)}") if isinstance(on, dict) else on
        cells = [(s, chain_of(on, s)) for s in spec["rows"].values() for on in spec["columns"].values()]
        return [(system, on) for system, on in cells if on]
    return [(system, on) for _, system, on, _ in table_rows(spec, RECIPES)]


def figure_cells(spec):
    "(system, on) of what a figure shows or charts."
    systems = spec.get("systems") or ([spec["system"]] if "system" in spec else [])
    chart = [(system, on) for system in systems for on in {**spec.get("groups", {}), **spec.get("along", {})}.values()]
    return chart + [(v["system"], chain_of(v, RECIPES)) for v in spec.get("views", []) if v["show"] == "restored"]


@pytest.mark.parametrize("path", sorted((ROOT / "papers").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_key_stands_twice_or_is_read_as_a_truth_value(path):
    yaml.load(path.read_text(), Strict)


def test_every_file_is_read_here():
    assert {p.stem for p in (ROOT / "papers").glob("*.yaml")} == {
        *PAPERS,
        "claims",
        "jdsr_gan_layers",
        "prior_guided_sr_layers",
    }


@each_paper
def test_what_is_evaluated_exists(paper):
    assert PAPERS[paper]["title"] and PAPERS[paper]["convention"] in CONVENTIONS
    for entry in PAPERS[paper]["evaluate"]:
        assert entry.keys() <= {"systems", "on", "draws", "output", "truth"} and ("output" in entry) == (
            "truth" in entry
        )
        for system in entry["systems"]:
            assert system in RECIPES
            assert "output" not in entry or entry["output"] in outputs(system)
        for on in entry["on"]:
            assert on.removesuffix("@unseen") in CHAINS
            assert "truth" not in entry or entry["truth"] in maps_of(on)


@each_paper
def test_tables_are_of_known_systems_and_measures(paper):
    scored = evaluated(paper)
    for name, spec in PAPERS[paper]["tables"].items():
        assert spec.keys() <= {"title", "kind", "columns", "better", "rows", "mean", "text", "measures"}, name
        if "text" in spec:
            assert all(len(row) == len(spec["columns"]) for row in spec["text"]), name
            continue
        measures = spec.get("measures", spec["columns"])
        assert all(map(measure_of, measures)) and ("kind" in spec or spec["better"].keys() == measures.keys()), name
        for cell in table_cells(spec):
            assert cell in scored, f"{name}: {cell} is not in `evaluate`"
        for *_, printed in [] if "kind" in spec else table_rows(spec, RECIPES):
            assert printed.keys() <= {"system", "on", *measures} and all(
                isinstance(v, float) for k, v in printed.items() if k in measures
            ), name


@each_paper
def test_figures_are_of_known_systems_and_views(paper):
    scored = evaluated(paper)
    for name, spec in PAPERS[paper]["figures"].items():
        check_figure(spec, Album(paper, None, RECIPES, CHAINS), name)
        for cell in figure_cells(spec):
            assert cell in scored, f"{name}: {cell} is not in `evaluate`"
        for v in spec.get("views", []):
            assert v["show"] in ("input", "restored", "target") or v["show"] in maps_of(v["on"]), (
                f"{name}: {v['on']} has no map {v['show']}"
            )
    for name, spec in PAPERS[paper].get("samples", {}).items():
        assert all(v.get("chain", "clean") in CHAINS for v in spec["views"]), name


@each_paper
def test_everything_that_a_paper_reports_has_an_entry(paper):
    says = PAPERS[paper]
    printed = {
        spec["table"].lower().replace(" ", "_").replace(".", "_")
        for spec in says.get("architecture", {}).values()
        if "table" in spec
    }
    for item, places in says["inventory"].items():
        for path in paths(paper, places):
            kind, name = path.parts[0], path.stem
            assert name in says[kind] or kind == "architecture" and name in printed, (
                f"{item} of {paper}: papers/{paper}.yaml has no {kind}: {name}"
            )


def numbered(kind, last):
    "Fig 1, Fig 2 and so on."
    return [f"{kind} {i}" for i in range(1, last + 1)]


PRINTED = dict(  # tables and figures by the papers' own numbers; Tables 1 and 2 of fcsr_gan list the work of others
    prior_guided_sr=[f"Table {n}" for n in ("3.1", "3.2", "3.3", "3.4", "4.1")]
    + [f"Fig {n}" for n in ("3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8", "3.9", "4.1", "4.2", "4.3", "4.4")],
    jdsr_gan=numbered("Table", 3) + numbered("Fig", 10),
    fcsr_gan=numbered("Table", 6)[2:] + numbered("Fig", 13),
    sr_deblur_gan=numbered("Table", 3) + numbered("Fig", 9),
    heavy_rain=numbered("Table", 1) + numbered("Fig", 8),
)


@pytest.mark.parametrize(("paper", "number"), [(paper, number) for paper in PRINTED for number in PRINTED[paper]])
def test_every_table_and_figure_that_a_paper_prints_has_a_place(paper, number):
    assert any(re.match(rf"{re.escape(number)}(?![.\d])", item) for item in PAPERS[paper]["inventory"])


def test_both_halves_of_fig_6_of_yun_et_al_show_the_same_methods_at_their_own_sizes():
    """Rows 1 to 4: 16x16 to 128; 5 to 9: 32x32 to 256; "the network should be retrained"."""
    large, small = (PAPERS["sr_deblur_gan"]["figures"][name]["views"] for name in ("figure_6", "figure_6_16"))
    assert [v["title"] for v in large] == [v["title"] for v in small]
    for views, side in ((large, 256), (small, 128)):
        assert {CHAINS[on]["size"] for on in (chain_of(v, RECIPES) for v in views) if on} == {side}
    for ours, retrained in zip(large, small):
        if retrained["show"] == "restored":
            a, b = RECIPES[ours["system"]], RECIPES[retrained["system"]]
            assert retrained["system"] == ours["system"] + "_16" and a["generator"] == b["generator"]
            assert a["stages"] == b["stages"] and a.get("critics") == b.get("critics") and a["batch"] == b["batch"]
    sides = {name: c.get("size") for name, c in CHAINS.items() if c.get("paper") == "sr_deblur_gan"}
    assert {name for name, side in sides.items() if side != 256} == {"sr_deblur_gan_16"}


@each_paper
def test_every_table_and_figure_is_in_the_inventory(paper):
    listed = {(p.parts[0], p.stem) for places in PAPERS[paper]["inventory"].values() for p in paths(paper, places)}
    made = {
        (kind, name)
        for kind in ("tables", "figures")
        for name, spec in PAPERS[paper][kind].items()
        if spec.get("kind") != "photographs"  # those need a folder of photographs
    }
    assert made <= listed


def test_printed_means_are_those_of_the_printed_rows():
    """Of eight numbers the paper has one wrong: the nine values of Table 4 deviate by 0.201, not 0.212."""
    slips = []
    for name in ("table_3", "table_4"):
        spec = PAPERS["fcsr_gan"]["tables"][name]
        for measure, digits in (("psnr", 2), ("ssim", 3)):
            values = [row[measure] for row in spec["rows"].values()]
            assert spec["mean"][measure] == pytest.approx(mean(values), abs=0.51 * 10**-digits)
            if abs(spec["mean"][f"{measure}_std"] - stdev(values)) > 0.00101:
                slips.append((name, measure, round(stdev(values), 3)))
    assert slips == [("table_4", "psnr", 0.201)]


def test_all_claims_are_there():
    assert {paper: "".join(claims) for paper, claims in CLAIMS.items()} == dict(
        jdsr_gan="abcde", fcsr_gan="abcdefghi", sr_deblur_gan="abcdefghi", prior_guided_sr="ab", heavy_rain="abcd"
    )


@pytest.mark.parametrize(
    ("paper", "letter"), [(paper, letter) for paper, claims in CLAIMS.items() for letter in claims]
)
def test_claims_are_of_what_is_scored_and_hold_in_the_printed_numbers(paper, letter):
    scored, printed = evaluated(paper), printed_numbers(PAPERS[paper], RECIPES)
    kinds = {(kind, IDENTIFICATION) for spec in PAPERS[paper]["figures"].values() for kind in spec.get("series", {})}
    margins = []
    for q in inequalities(CLAIMS[paper][letter], Names(RECIPES, CHAINS)):
        assert set(q.cells) <= scored | kinds, f"{q.text}: not in `evaluate`"
        margins.append(printed_margin(q, printed))
    assert margins and not any(margin <= 0 for margin in margins)
    not_printed = {
        ("jdsr_gan", "e"),
        ("fcsr_gan", "a"),
        ("fcsr_gan", "d"),
        ("fcsr_gan", "i"),
        *(("sr_deblur_gan", letter) for letter in "eghi"),
    }  # pictures, curves, bars
    assert (paper, letter) in not_printed or any(margin > 0 for margin in margins)


def test_jdsr_gan_is_taught_and_compared_as_its_text_says():
    """WGAN-GP's critic has WGAN-GP's Adam; Fig 1 (b) is FSRNet; section 4.5 prints DICGAN's distances."""
    recipe, about = RECIPES["jdsr_gan_x4"], PAPERS["jdsr_gan"]
    assert recipe["optimisers"]["critic"] == {"use": "Adam", "lr": 0.0001, "betas": [0.0, 0.9]}
    assert all(isinstance(beta, float) for beta in recipe["optimisers"]["critic"]["betas"])  # as torch wants them
    second = about["figures"]["figure_1"]["views"][1]["system"]
    assert RECIPES[RECIPES[second]["sequence"][1]]["generator"]["use"] == "networks.fsrnet.FSRNet"
    assert not RECIPES[RECIPES[second]["sequence"][1]].get("critics")
    dicgan, ours = about["tables"]["unseen"]["rows"].values()
    assert (ours["psnr"] - dicgan["psnr"], ours["ssim"] - dicgan["ssim"]) == pytest.approx((1.6, 0.07))
    assert about["figures"]["figure_10_photographs"]["truth"] == "masked_truth"


@each_paper
def test_deviations_have_switches_that_exist(paper):
    for d in PAPERS[paper]["deviations"]:
        assert d.keys() == {"what", "ours", "switch"} and d["what"] and d["ours"]
        if d["switch"]:
            if "(" not in d["switch"]:  # a parameter
                section, name = d["switch"].split(".")
                assert name in SECTIONS[section], d["switch"]
                continue
            use, argument = re.fullmatch(r"([\w.]+)\((\w+)\)", d["switch"]).groups()
            assert argument in inspect.signature(locate(use)).parameters, d["switch"]


def test_papers_have_one_order():
    order = ["prior_guided_sr", "jdsr_gan", "fcsr_gan", "sr_deblur_gan", "heavy_rain", "combined"]
    assert list(PAPERS) == order and list(inventory(ROOT)) == order


def test_the_inventory_tells_what_is_missing(tmp_path, capsys):
    (tmp_path / "papers").symlink_to(ROOT / "papers")
    found = inventory(tmp_path)
    items = sum(map(len, found.values()))
    assert main(tmp_path) == items
    table, x8 = paths("jdsr_gan", found["jdsr_gan"]["Table 3"])
    picture, numbers = paths("jdsr_gan", found["jdsr_gan"]["Fig 6"])
    for file, text in ((table, ""), (x8, ""), (numbers, ""), (picture.with_suffix(".txt"), "n/a: no faces\n")):
        (tmp_path / "build" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "build" / file).write_text(text)
    capsys.readouterr()
    assert main(tmp_path) == items - 1
    said = capsys.readouterr().out
    assert re.search(r"\| jdsr_gan \| Table 3 \| .* \| there \|", said) and re.search(
        r"\| jdsr_gan \| Fig 6 \| .* \| figure_6.png: n/a: no faces \|", said
    )
    assert (
        re.search(r"\| jdsr_gan \| Fig 7 \| .* \| missing: figure_7.png \|", said)
        and f"1 of {items} tables and figures are there" in said
    )
