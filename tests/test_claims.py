"""Claims: verdicts on scores that are made so that the answer is known, and the pages of claims and deviations."""

import csv
import io
import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest

from facelab import FacelabError
from facelab.publication.claims import (
    Names,
    Verdict,
    cell_values,
    claims_figure,
    claims_page,
    claims_table,
    inequalities,
    printed_numbers,
    published_verdicts,
    read_all_scores,
    read_claims,
    resampled_means,
    resamples,
    verdict,
    withhold,
)
from facelab.publication.deviations import deviations_page
from facelab.publication.figures import save_figure
from facelab.publication.tables import PaperScores

SYSTEMS = ("ours", "old", "twin", "older", "noisy")
RECIPES = {s: {"label": s.capitalize(), "inputs": "x4", "paper": "p"} for s in SYSTEMS}
CHAINS = {name: {"label": name} for name in ("x4", "left", "right", "nose", "s1", "s2", "s3")}
NAMES = Names(RECIPES, CHAINS)
LEVEL = np.random.default_rng(0).normal(24, 3, 80)


def rows(system, on, psnr):
    return pd.DataFrame(
        dict(
            system=system,
            on=on,
            image=[f"{on[-6:] if '@' in on else ''}{i:03}.png" for i in range(len(psnr))],
            psnr_rgb=psnr,
            ssim_rgb=psnr / 50,
            lpips_alex=np.nan,
            hidden_error=60 - psnr,
        )
    )


@pytest.fixture(scope="module")
def scored():
    """Scores of five systems whose order is known.

    `old` is 0.5 dB below `ours`, `twin` the same, `older` 1 dB above, `noisy` equal on average. Places differ by known
    steps, and the unseen set is 0.5 dB worse."""
    noise = lambda s, seed: np.random.default_rng(seed).normal(0, s, 80)
    zero = noise(2, 5) - noise(2, 5).mean()
    faces = [
        rows("ours", "x4", LEVEL),
        rows("old", "x4", LEVEL - 0.5 + noise(0.2, 1)),
        rows("twin", "x4", LEVEL),
        rows("older", "x4", LEVEL + 1 + noise(0.2, 2)),
        rows("noisy", "x4", LEVEL + zero),
    ]
    faces += [
        rows("ours", on, LEVEL - d + noise(0.05, k))
        for k, (on, d) in enumerate(dict(left=1.5, right=1.0, nose=1.1, s1=0.2, s2=0.4, s3=0.9).items(), 10)
    ]
    faces += [rows("ours", "x4@unseen", np.random.default_rng(3).normal(24, 3, 60) - 0.5)]
    sets = pd.DataFrame(dict(system=["ours", "old"], on="x4", n=80, fid=[15.3, 33.5]))
    ranks = pd.concat(
        [
            pd.DataFrame(dict(kind=kind, image=[f"{i}.png" for i in range(80)], rank=1 + (np.arange(80) * k) // 40))
            for kind, k in (("true", 1), ("restored", 4), ("degraded", 12))
        ]
    )
    judges = {"lpips_alex": {"by": "", "missing": "AlexNet's weights are not at hand"}}
    return PaperScores(pd.concat(faces), "rgb", sets, judges, n=500, ranks=ranks, folder="made up")


def found(scored, *holds, printed=()):
    return verdict("p", "a", {"text": "t", "source": "s", "holds": list(holds)}, scored, NAMES, printed)


def beats(b, *others, measures=("psnr",), **more):
    return {"beats": [b], "others": list(others), "in": list(measures), **more}


# ---- verdicts on known scores


@pytest.mark.parametrize(
    "entry, word",
    [
        (
            beats("ours", "old", measures=("psnr", "ssim", "hidden_error")),
            "reproduced",
        ),  # clear win, whichever way is better
        (beats("ours", "older"), "not reproduced"),  # clear loss
        (beats("ours", "twin"), "undecided"),  # the same numbers: an interval of no width at 0
        (beats("ours", "noisy"), "undecided"),  # tie on average
        (beats("ours", "old", "older"), "not reproduced"),  # one loss is enough
        (beats("ours", "old", "twin"), "undecided"),
        (beats("ours", "old", measures=("lpips_alex",)), "n/a"),
        (beats("ours", "old", measures=("psnr", "lpips_alex")), "undecided"),  # half of it could not be measured
        (beats("ours", "old", measures=("fid",)), "undecided"),
        ({"last": "old", "among": ["ours", "old", "older"], "in": ["psnr"]}, "reproduced"),
        ({"last": "ours", "among": ["old", "older"], "in": ["psnr"]}, "not reproduced"),
        (
            {"hardest": ["left"], "among": ["left", "right", "nose"], "system": "ours", "in": ["psnr", "ssim"]},
            "reproduced",
        ),
        (
            {"hardest": ["right"], "among": ["left", "right", "nose"], "system": "ours", "in": ["psnr"]},
            "not reproduced",
        ),
        ({"spread": ["left", "right", "nose"], "system": "ours", "in": ["psnr"], "below": 0.3}, "reproduced"),
        ({"spread": ["left", "right", "nose"], "system": "ours", "in": ["psnr"], "below": 0.2}, "not reproduced"),
        ({"falls": ["x4", "s1", "s2", "s3"], "system": "ours", "in": ["psnr", "hidden_error"]}, "reproduced"),
        ({"falls": ["s1", "s3", "s2"], "system": "ours", "in": ["psnr"]}, "not reproduced"),
        ({"drop": ["x4", "x4@unseen"], "system": "ours", "in": ["psnr"], "below": 3.0}, "reproduced"),
        ({"drop": ["x4", "x4@unseen"], "system": "ours", "in": ["psnr"], "below": 0.5}, "undecided"),
        ({"order": ["true", "restored", "degraded"], "ranks": [1, 2, 3]}, "reproduced"),
        ({"order": ["degraded", "true"], "ranks": [1]}, "not reproduced"),
    ],
)
def test_verdicts(scored, entry, word):
    assert found(scored, entry).word == word


def test_numbers_of_a_clear_win(scored):
    f = found(scored, beats("ours", "old")).findings[0]
    psnr = {s: cell_values(scored, s, "x4", "psnr") for s in ("ours", "old")}
    assert f.margin == pytest.approx((psnr["ours"] - psnr["old"]).mean()) and f.low < f.margin < f.high
    assert f.high - f.low == pytest.approx(
        2 * 1.96 * 0.2 / 80**0.5, rel=0.3
    )  # of the differences; that of the levels is 15 times wider
    assert found(scored, beats("old", "ours")).findings[0].margin == -f.margin


def test_identical_scores_have_no_interval(scored):
    f = found(scored, beats("ours", "twin")).findings[0]
    assert f.margin == 0 and np.isnan([f.low, f.high, *f.units()]).all()
    assert f.word == "undecided" and f.reason == "one test face, or equal differences on all, give no interval"


def test_other_faces_are_drawn_on_their_own(scored):
    values = [cell_values(scored, "ours", on, "psnr") for on in ("x4", "x4@unseen")]
    means, again = resampled_means(values, [0, 1], lambda v: v.mean(-1), 2000, 0)
    assert means == pytest.approx([v.mean() for v in values]) and abs(np.corrcoef(again)[0, 1]) < 0.1
    assert again.std(1) == pytest.approx([v.std() / len(v) ** 0.5 for v in values], rel=0.1)
    assert (resamples(80, 10, 0, 0) == resamples(80, 10, 0, 0)).all() and (
        resamples(80, 10, 0, 0) != resamples(80, 10, 0, 1)
    ).any()


def test_faces_that_one_lacks_are_left_out_of_both(scored):
    a, b = cell_values(scored, "ours", "x4", "psnr"), cell_values(scored, "old", "x4", "psnr").copy()
    b.iloc[:40] = np.nan
    means, _ = resampled_means([a, b], [0, 0], lambda v: v.mean(-1), 10, 0)
    assert means == pytest.approx([a[40:].mean(), b[40:].mean()])
    with pytest.raises(FacelabError, match="no face was scored"):
        resampled_means([a, b.iloc[:40]], [0, 0], lambda v: v.mean(-1), 10, 0)


def test_the_reason_for_what_is_missing_is_given(scored):
    for entry, says in (
        (beats("ours", "old", measures=("lpips_alex",)), "LPIPS: AlexNet's weights are not at hand"),
        (beats("ours", "old", on="left"), "no scores of 'old' on 'left', but of 'old' on x4"),
        (beats("ours", "older", measures=("fid",)), "no scores of 'older' on 'x4'"),
        ({"order": ["true", "blurred"], "ranks": [1]}, "no faces of the kind 'blurred'"),
    ):
        f = found(scored, entry).findings[0]
        assert f.word == "n/a" and says in f.reason and "\n" not in f.reason
    nothing = read_all_scores("nowhere", "rgb")
    f = found(nothing, beats("ours", "old")).findings[0]
    assert (f.word, f.reason) == ("n/a", "there are no scores in nowhere")
    assert "one number a set" in found(scored, beats("ours", "old", measures=("fid",))).findings[0].reason


def test_the_papers_own_margin(scored):
    paper = {
        "tables": {
            "t1": {"title": "T1", "columns": {"psnr": "P"}, "rows": {"ours": {"psnr": 26.28}, "twin": {"psnr": 26.0}}},
            "t2": {"title": "T2", "columns": {"psnr": "P"}, "rows": {"ours": {"psnr": 29.18}, "old": {"psnr": 28.28}}},
            "t3": {
                "title": "T3",
                "columns": {"psnr": "P"},
                "rows": {
                    f"block {i}": {"system": "ours", "on": on, "psnr": v}
                    for i, (on, v) in enumerate(dict(left=25.43, right=25.67, nose=25.24, s1=25.62).items())
                },
            },
            "words": {"title": "W", "columns": ["a"], "text": [["b"]]},
        }
    }
    printed = printed_numbers(paper, RECIPES)
    margins = [
        f.printed
        for f in found(
            scored,
            beats("ours", "old", "twin", "older"),
            {"spread": ["left", "right", "nose", "s1"], "system": "ours", "in": ["psnr"], "below": 0.3},
            beats("twin", "old"),
            printed=printed,
        ).findings
    ]
    assert (
        margins[:2] == pytest.approx([0.9, 0.28])
        and np.isnan(margins[2])
        and margins[3] == pytest.approx(0.3 - 0.197, abs=0.002)
    )  # Cai et al. 2020, Table 3
    assert margins[4] == pytest.approx(26 - 28.28)  # no table has both


def test_the_weakest_comparison_stands_for_the_claim(scored):
    v = found(scored, beats("ours", "old", "noisy", measures=("psnr", "ssim", "lpips_alex")))
    assert v.weakest.text == "Ours beats Noisy" and v.word == "undecided"
    row = v.row()
    assert (
        row[0] == "(a) t (s)"
        and re.search(r"Ours beats Noisy, (PSNR|SSIM): [+-]0\.\d+( dB)? \[-0\.\d+, \+0\.\d+\]", row[1])
        and row[2] == "2 of 6"
        and row[4] == "? undecided"
    )
    assert found(scored, beats("ours", "old", measures=("fid",))).weakest.compared() == "Ours beats Old, FID: +18.20"


# ---- the file of claims


@pytest.mark.parametrize(
    "text, says",
    [
        ("{p: {a: {text: t, source: s}}}", r"p \(a\) lacks 'holds'"),
        ("{p: {a: {text: t, source: s, holds: [{beat: [x]}]}}}", "is none of them"),
        ("{p: {a: {text: t, source: s, holds: [{beats: [x], last: y, others: [z], in: [psnr]}]}}}", "several of them"),
        ("{p: {a: {text: t, source: s, holds: [{beats: [x], in: [psnr]}]}}}", "lacks 'others'"),
        ("{p: {a: {text: t, source: s, holds: [{beats: [x], others: [y], in: [psrn]}]}}}", "did you mean 'psnr'"),
        ("{p: {a: {text: t, source: s, holds: [{beats: [x], others: [y], in: [psnr], on: z}]}}}", 'write "on"'),
        ("{p: {a: {text: t, source: s, hold: [1]}}}", "did you mean 'holds'"),
    ],
)
def test_a_wrong_claim_gets_one_sentence(tmp_path, text, says):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(FacelabError, match=says) as e:
        read_claims(tmp_path / "claims.yaml")
    assert "\n" not in str(e.value)


def test_unknown_names_and_empty_sets(scored):
    for entry, says in (
        (beats("our", "old"), r"claim \(a\) of p: unknown system 'our': did you mean 'ours'"),
        (beats("ours", "old", on="lefd"), "did you mean 'left'"),
        ({"hardest": ["left"], "among": ["left"], "system": "ours", "in": ["psnr"]}, "some, but not all"),
    ):
        with pytest.raises(FacelabError, match=says):
            found(scored, entry)


def test_several_places_and_sweeps_are_named():
    names = Names(RECIPES, {f"b_{i}": {"label": f"blocks, x4: {i}"} for i in (1, 2, 3)} | {"x4": {"label": "x4"}})
    q = inequalities(
        {
            "holds": [
                beats("ours", "old", on=["b_1", "x4"]),
                {"hardest": ["b_1", "b_2"], "among": ["b_1", "b_2", "b_3"], "system": "ours", "in": ["psnr"]},
            ]
        },
        names,
    )
    assert [x.text for x in q] == [
        "Ours beats Old on [blocks, x4: 1]",
        "Ours beats Old on [x4]",
        "Ours is worst on [blocks, x4: 1, 2]",
    ]
    assert names.describe_chains("x4@unseen") == "[x4, unseen faces]"


# ---- pages


@pytest.fixture(scope="module")
def verdicts(scored):
    entries = {
        "a": beats("ours", "old"),
        "b": beats("ours", "older", "old"),
        "c": beats("ours", "noisy"),
        "d": beats("ours", "old", measures=("lpips_alex",)),
        "e": beats("ours", "old", measures=("fid",)),
    }
    return [
        verdict("p", k, {"text": f"claim {k}", "source": "Table 1", "holds": [entry]}, scored, NAMES)
        for k, entry in entries.items()
    ]


def page(verdicts, scored, results, profile="demo"):
    return claims_page(verdicts, {"p": {"title": "A paper"}}, {"p": scored}, profile, "a set", results)


def test_the_page_at_a_glance(verdicts, scored, tmp_path):
    text = page(verdicts, scored, tmp_path, "real")
    assert (
        "| `p` | ✔ reproduced | ✘ not reproduced | ? undecided | – n/a | ? undecided |" in text
        and "1 reproduced, 1 not reproduced, 2 undecided, 1 n/a" in text
    )
    assert "no evidence" not in text and text.endswith("## Published results\n\nNot run.\n")
    assert (
        "- (d) n/a: LPIPS: AlexNet's weights are not at hand." in text
        and "80 test faces and 60 unseen faces of another set; PSNR and SSIM: RGB, 8 bit" in text
    )
    assert text.index("| `p` |") < text.index("## A paper")


def test_the_demo_has_numbers_and_no_verdicts(verdicts, scored, tmp_path):
    demo, real = page(list(map(withhold, verdicts)), scored, tmp_path), page(verdicts, scored, tmp_path, "real")
    assert "no evidence about the papers" in demo and "1 n/a, 4 not judged" in demo
    assert not any(mark in demo for mark in "✔✘")
    mixed = dataclasses.replace(verdicts[0], findings=[f for v in verdicts for f in v.findings])
    assert withhold(mixed).word == "not judged" and mixed.word == "not reproduced"
    margins = lambda text: re.findall(r"[+-][0-9.]+ dB \[.*?\]", text)
    assert margins(demo) == margins(real) != []


def test_published_runs_say_where_they_come_from(verdicts, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "claims.csv").write_text(claims_table(verdicts).csv())
    with pytest.raises(FacelabError, match="does not say what it came from"):
        published_verdicts(tmp_path)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"profile": "real", "faces": "CelebA", "params": {}}))
    text = published_verdicts(tmp_path)
    assert "### run\n\nprofile real, faces CelebA.\n" in text and "| `p` | ✔ reproduced | ✘ not reproduced |" in text


def test_equal_scores_equal_bytes(scored, verdicts, tmp_path):
    again = [
        verdict("p", v.letter, {"text": v.text, "source": v.source, "holds": [e]}, scored, NAMES)
        for v, e in zip(
            verdicts,
            (
                beats("ours", "old"),
                beats("ours", "older", "old"),
                beats("ours", "noisy"),
                beats("ours", "old", measures=("lpips_alex",)),
                beats("ours", "old", measures=("fid",)),
            ),
        )
    ]
    assert claims_table(again).csv() == claims_table(verdicts).csv() and page(again, scored, tmp_path) == page(
        verdicts, scored, tmp_path
    )
    for name, some in (("a", again), ("b", verdicts)):
        save_figure(claims_figure(some), tmp_path / name, 60)
    assert all(
        (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes() for kind in ("png", "pdf")
    )


def test_every_inequality_has_a_row_and_a_line(verdicts):
    table = list(csv.DictReader(io.StringIO(claims_table(verdicts).csv())))
    assert (
        len(table) == 6
        and [r["verdict"] for r in table]
        == ["reproduced", "not reproduced", "reproduced", "undecided", "n/a", "undecided"]
        and table[0]["paper_margin"] == ""
    )
    more = [Verdict("another", v.letter, v.text, v.source, v.findings) for v in verdicts[:1]]
    fig = claims_figure(verdicts + more)
    assert [len(ax.get_yticks()) for ax in fig.axes] == [6, 1] and [ax.get_title(loc="left") for ax in fig.axes] == [
        "p",
        "another",
    ]
    assert {"n/a", "+18.20, one number a set"} <= {t.get_text().strip() for t in fig.axes[0].texts}


# ---- deviations


def test_deviations_are_made_from_both_places():
    recipes = {
        "a": {"paper": "p", "label": "A", "sources": {"batch": "ours: 16", "lr": "Table 2"}},
        "b": {"paper": "p", "label": "B", "sources": {"stages": "released code: 5; ours: 7"}},
    }
    chains = {
        f"s_{i}": {"paper": "p", "label": f"share: {i}", "one_of": "s", "sources": {"share": "ours: a half"}}
        for i in (1, 2)
    }
    losses = {"w": {"paper": "lent", "equation": "Eq 1", "sources": {"weights": "ours: 1"}}}
    papers = {
        "p": {
            "title": "A paper",
            "deviations": [{"what": "Eq 3 has a slip", "ours": "as the text", "switch": "losses.f(x)"}],
        },
        "q": {"title": "Another"},
    }
    text = deviations_page(recipes, losses, chains, papers)
    assert (
        text.count("| share | `s: share` | a half |") == 1
        and "| A | `a: batch` | 16 |" in text
        and "Table 2" not in text
        and "`b: stages` | released code: 5; ours: 7 |" in text
    )
    assert (
        "| Eq 3 has a slip | `losses.f(x)` | as the text |" in text
        and "## Another (`q`)\n\nNothing." in text
        and text.index("Shared by several papers") < text.index("`w: weights`")
    )
    with pytest.raises(FacelabError, match="deviation 1 needs what, ours and switch"):
        deviations_page(recipes, losses, chains, {"p": {"title": "A", "deviations": [{"what": "x"}]}})
