"""Which tables and figures of the five papers this run has made, and where they are."""

from pathlib import Path

from facelab.base.files import markdown_table

SUFFIXES = {"tables": ".md", "figures": ".png", "samples": ".png", "architecture": ".png"}

# What a paper prints -> where it stands under build/: kind/name means build/<kind>/<paper>/<name> with the suffix of its kind, unless it has one.
EXPECTED = {
    "jdsr_gan": {
        "Table 1": "architecture/table_1.md",
        "Table 2": "tables/table_2",
        "Table 3": "tables/table_3 tables/table_3_x8",
        "Section 4.5, Helen": "tables/unseen",
        "Fig 1": "figures/figure_1",
        "Fig 2": "architecture/figure_2",
        "Fig 3": "architecture/figure_3",
        "Fig 4": "architecture/figure_4 architecture/figure_4_critic",
        "Fig 5": "samples/figure_5",
        "Fig 6": "figures/figure_6 tables/denoising",
        "Fig 7": "figures/figure_7",
        "Fig 8": "figures/figure_8",
        "Fig 9": "figures/figure_9",
        "Fig 10": "figures/figure_10",
    },
    "fcsr_gan": {
        "Table 3": "tables/table_3",
        "Table 4": "tables/table_4",
        "Table 5": "tables/table_5",
        "Table 6": "tables/table_6 tables/table_6_x8",
        "Section 4.3.5, Helen": "tables/unseen",
        "Fig 1": "figures/figure_1",
        "Fig 2": "architecture/figure_2 architecture/figure_2_critic architecture/figure_2_prior",
        "Fig 3": "figures/figure_3",
        "Fig 4": "figures/figure_4",
        "Fig 5": "figures/figure_5",
        "Fig 6": "figures/figure_6 figures/figure_6_x8",
        "Fig 7": "figures/figure_7 figures/figure_7_faces",
        "Fig 8a": "figures/figure_8a",
        "Fig 8b": "figures/figure_8b",
        "Fig 8c": "figures/figure_8c",
        "Fig 9": "figures/figure_9",
        "Fig 10": "figures/figure_10",
        "Fig 11": "figures/figure_11",
        "Fig 12": "figures/figure_12",
        "Fig 13": "figures/figure_13",
    },
    "sr_deblur_gan": {
        "Table 1": "tables/table_1",
        "Table 2": "tables/table_2",
        "Table 3": "tables/table_3",
        "Fig 2": (
            "architecture/figure_2 architecture/figure_2_cnn architecture/figure_2_branches"
            " architecture/figure_2_critic"
        ),
        "Fig 3": "samples/figure_3",
        "Fig 4": "figures/figure_4",
        "Fig 5": "figures/figure_5",
        "Fig 6": "figures/figure_6",
        "Fig 7": "figures/figure_7 tables/alignment_and_parsing",
        "Fig 8": "figures/figure_8",
        "Fig 9": "figures/figure_9",
    },
    "prior_guided_sr": {
        "Table 3.1": "architecture/table_3_1.md",
        "Table 3.2 (lost; ours)": "architecture/figure_3_5.csv",
        "Table 3.3": "architecture/table_3_3.md",
        "Table 3.4": "architecture/table_3_4.md",
        "Table 4.1": "tables/table_4_1",
        "Fig 2.5": "architecture/figure_2_5",
        "Fig 3.1": "architecture/figure_3_1",
        "Fig 3.2": "architecture/figure_3_2",
        "Fig 3.3": "architecture/figure_3_3",
        "Fig 3.5": "architecture/figure_3_5",
        "Fig 3.6": "architecture/figure_3_6",
        "Fig 3.7": "architecture/figure_3_7",
        "Fig 3.8": "architecture/figure_3_8",
        "Fig 3.9": "architecture/figure_3_9",
        "Fig 4.1": "figures/figure_4_1",
        "Fig 4.2": "figures/figure_4_2",
        "Fig 4.3": "figures/figure_4_3",
        "Fig 4.4": "figures/figure_4_4",
    },
    "heavy_rain": {
        "Table 1, notation": "tables/table_1_notation",
        "Table 1, results": "tables/table_1",
        "Fig 1": "samples/figure_1",
        "Fig 3": (
            "architecture/figure_3 architecture/figure_3_hrrm architecture/figure_3_fpm architecture/figure_3_generator"
            " architecture/figure_3_critic architecture/figure_3_local_critic"
        ),
        "Fig 4": "samples/figure_4",
        "Fig 5": "samples/figure_5",
        "Fig 6": "figures/figure_6",
        "Fig 7": "figures/figure_7",
        "Fig 8": "figures/figure_8",
    },
    "combined": {"all systems, all degradations": "tables/all figures/all_x4 figures/all_x8"},
}


def places(paper, item):
    "Paths below `build` that together hold a table or figure of a paper."
    for place in EXPECTED[paper][item].split():
        kind, name = place.split("/")
        yield Path(kind, paper, name if "." in name else name + SUFFIXES[kind])


def state(file):
    "What is known of a file that is not there: a figure that could not be made leaves a text with the reason."
    why = file.with_suffix(".txt")
    return f"{file.name}: {why.read_text().strip()}" if why.exists() else f"missing: {file.name}"


def main(root):
    "Print what there is of every table and figure; returns how many are missing, wholly or in part."
    build, rows = Path(root) / "build", []
    for paper, items in EXPECTED.items():
        for item in items:
            files = list(places(paper, item))
            absent = [file for file in files if not (build / file).exists()]
            rows.append(
                (
                    paper,
                    item,
                    ", ".join(f"`build/{file}`" for file in files),
                    ", ".join(state(build / file) for file in absent) or "there",
                )
            )
    missing = sum(row[-1] != "there" for row in rows)
    print(markdown_table(rows, ("paper", "item", "files", "state")))
    print(
        f"\n{len(rows) - missing} of {len(rows)} tables and figures are there."
        + (" `make repro` makes the others." if missing else "")
    )
    return missing
