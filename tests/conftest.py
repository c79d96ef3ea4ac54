"""What several test files need: a copy of the project to work on, and the smallest parameters that run everything."""

import atexit
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ENV = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "DVC_NO_ANALYTICS": "1",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "user.name",
    "GIT_CONFIG_VALUE_0": "test",
    "GIT_CONFIG_KEY_1": "user.email",
    "GIT_CONFIG_VALUE_1": "test@example.org",
}
TINY = {
    "train: 800": "train: 24",
    "val: 40": "val: 4",
    "test: 80": "test: 6",
    "unseen: 40": "unseen: 4",
    "size: 64 ": "size: 128 ",  # of an eighth of 64 pixels no SSIM can be measured
    "steps: 300 ": "steps: 8 ",
    "batch: 8 ": "batch: 4 ",
    "statistics: 200 ": "statistics: 16 ",
    "depth: 0.125": "depth: 0.05",
    "log_every: 20": "log_every: 2",
    "checkpoint_seconds: 10": "checkpoint_seconds: 0",
    "  features: {steps: 600}.*(\n  .*)*": "  cbd_drn_x8: {width: 0.125}",
    "faces: 6": "faces: 2",
    "dpi: 150": "dpi: 60",
    "bootstrap: 2000": "bootstrap: 50",
}

RECIPES = {
    "jdsr_gan": ["jdsr_gan_cbdnet_x8", "jdsr_gan_drn_x8", "cbd_drn_x8"],
    "recognisers": ["lightcnn9_rgb", "inception_resnet_v1"],
    "labelling": ["parser", "landmarker"],
}  # that `shrink` keeps beside the rows of Table 4.1 of prior_guided_sr; all are tried in test_recipes.py
SHORTENED = [
    "combined",
    "fcsr_gan",
    "heavy_rain",
    "jdsr_gan",
    "labelling",
    "recognisers",
    "sr_deblur_gan",
]  # files of recipes that it rewrites
CHAINS = [
    "clean",
    "prior_guided_x8",
    "prior_guided_x8_aliased",
    "jdsr_gan_x4",
    "jdsr_gan_x8",
    "fcsr_gan_x4_2x2",
    "sr_deblur_gan",
    "heavy_rain_x4",
]  # that `shrink` keeps; all are tried in test_degradations.py
SAMPLES = {"jdsr_gan": ["inputs"], "fcsr_gan": ["figure_8a"], "sr_deblur_gan": ["figure_3"], "heavy_rain": ["figure_5"]}

EVALUATED = [
    "prior_guided_sr",
    "jdsr_gan",
]  # papers that `shrink` lets be restored, scored and reported, the second by so much:
JDSR = {
    "evaluate": [
        {"systems": ["cbd_drn_x8"], "on": ["jdsr_gan_x8@unseen"]},
        {"systems": ["jdsr_gan_cbdnet_x8"], "on": ["jdsr_gan_x8"], "output": "denoised", "truth": "clean"},
    ],
    "tables": {
        "unseen": {
            "title": "Unseen",
            "columns": {"psnr": "PSNR", "ssim": "SSIM"},
            "better": {"psnr": "higher", "ssim": "higher"},
            "rows": {"cbd_drn_x8": {"psnr": 23.61}, "elsewhere": {"system": "cbd_drn_x8", "on": "jdsr_gan_x8@unseen"}},
        }
    },
    "figures": {
        "figure_8": {
            "title": "Fig 8",
            "kind": "views",
            "faces": 2,
            "views": [
                {"show": "input", "on": "jdsr_gan_x8"},
                {"show": "restored", "system": "cbd_drn_x8"},
                {"show": "restored", "system": "jdsr_gan_cbdnet_x8.denoised", "on": "jdsr_gan_x8"},
                {"show": "target"},
            ],
        }
    },
}

SMALL_RUN = (  # what the runner and Ray train with
    "train: {steps: 12, batch: 2, width: 0.125, depth: 0.05, statistics: 16, threads: 1, log_every: 2, validate: 2,"
    " checkpoint_seconds: 0}\ninstead: {}\n"
)


def run(command, cwd, **more):
    "Run a command and return it, its output as text, stdout and stderr together."
    return subprocess.run(
        command,
        cwd=cwd,
        env={**ENV, **more},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        shell=isinstance(command, str),
    )


@cache
def fresh_repository():
    "The working tree (tracked files and new ones that git does not ignore) as a fresh repository, made once."
    kept = tempfile.TemporaryDirectory()
    atexit.register(kept.cleanup)
    folder = Path(kept.name) / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True, capture_output=True, check=True
    ).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    done = run("git init -q && git add -A && git commit -qm start", folder)
    assert done.returncode == 0, done.stdout
    return folder


def copy_project(to):
    "The working tree as a fresh repository, in a folder that is empty or not there yet."
    return Path(shutil.copytree(fresh_repository(), to, symlinks=True, dirs_exist_ok=True))


def shrink(project):
    "The demo's parameters, as small as they can be."
    path = project / "params.yaml"
    text = path.read_text()
    for old, new in TINY.items():
        assert re.search(old, text), f"params.yaml has no {old!r} any more: adapt TINY"
        text = re.sub(old, new, text)
    path.write_text(text)
    keep_some(project / "recipes" / "degradations.yaml", "degradations", CHAINS)
    shorten_recipes(project / "recipes")
    leave_rows_of_table_4_1(project)
    for paper, figures in SAMPLES.items():
        keep_some(project / "papers" / f"{paper}.yaml", "samples", figures)
        rewrite(
            project / "papers" / f"{paper}.yaml",
            lambda says: says | (JDSR if paper == "jdsr_gan" else {"evaluate": [], "tables": {}, "figures": {}}),
        )
    keep_some(project / "recipes" / "combined.yaml", "evaluated", EVALUATED)
    rewrite(project / "papers" / "claims.yaml", lambda claims: {"prior_guided_sr": claims["prior_guided_sr"]})
    rewrite(project / "papers" / "combined.yaml", lambda says: says | {"evaluate": [], "tables": {}, "figures": {}})
    return project


def rewrite(path, change):
    "Put a YAML file's data through a function."
    path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text())), sort_keys=False))


def leave_rows_of_table_4_1(project):
    "Take the variants of prior_guided_sr out; what stays keeps its text, which tests edit."
    path = project / "recipes" / "prior_guided_sr.yaml"
    text, cuts = re.subn(r"\n  # --- the same rows.*?(?=\npriors:)", "", path.read_text(), flags=re.S)
    assert cuts == 1, f"{path} has no variants any more: adapt this function"
    path.write_text(text)
    keep_some(project / "papers" / "prior_guided_sr.yaml", "tables", ["table_4_1"])


def keep_some(path, section, names):
    "Leave only these entries in a section of a YAML file."
    rewrite(path, lambda data: data | {section: {name: data[section][name] for name in names}})


def shorten_recipes(folder):
    "Leave only the recipes that `RECIPES` names, each standing alone."
    everything = [yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")]
    all_of = {
        name: entry
        for data in everything
        for kind in ("helpers", "recipes")
        for name, entry in (data.get(kind) or {}).items()
    }
    for path in (folder / f"{name}.yaml" for name in SHORTENED):
        data, keep = yaml.safe_load(path.read_text()), RECIPES.get(path.stem, [])
        for kind in ("helpers", "recipes"):
            data[kind] = {name: standing_alone(name, all_of) for name in data.get(kind) or {} if name in keep}
        if path.stem not in EVALUATED:
            data["papers"] = {}
        path.write_text(yaml.safe_dump(data, sort_keys=False))


def standing_alone(name, all_of):
    "A recipe without `like`."
    from facelab.training.recipes import OWN, merge_fields

    entry = dict(all_of[name])
    like = entry.pop("like", None)
    return (
        entry
        if like is None
        else merge_fields({k: v for k, v in standing_alone(like, all_of).items() if k not in OWN}, entry)
    )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def packed(folder, test, per_shard, params):
    "A drawn set with so many test faces, packed in the two ways, and parameters that are small; the folder."
    from facelab.faces.drawn import draw_set
    from facelab.faces.shards import write_shards

    faces = draw_set(24, 4, test, seed=0)
    faces.save(folder / "faces.safetensors")
    write_shards(faces, folder / "shards", per_shard=per_shard, progress=False)
    (folder / "small.yaml").write_text(params)
    return folder


@pytest.fixture(scope="module")
def warm_stages():
    "Stages that a module's tests start are forks of a process that has imported what they need."
    waits = "import os, sys; print(os.environ['FACELAB_WARM'], flush=True); sys.stdin.read()"
    command = [sys.executable, "-m", "facelab.pipeline", "warm", sys.executable, "-c", waits]
    with subprocess.Popen(command, cwd=ROOT, env=ENV, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as warm:
        ENV["FACELAB_WARM"] = warm.stdout.readline().strip()
        yield warm
        del ENV["FACELAB_WARM"]
        warm.stdin.close()


@pytest.fixture
def project(tmp_path):
    "A copy of the project with the demo's parameters."
    return copy_project(tmp_path / "project")


# A minute or more each: they go first, so that two workers end together.
LONG = """cluster pipeline rehearsal runner recipes robustness training docs sizes commands loss_ledger warm
restoration benchmarks browser engine""".split()


def pytest_collection_modifyitems(items):
    place = {f"test_{name}": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def pytest_terminal_summary(terminalreporter):
    "How many inputs of each kind test_robustness.py tried, and what became of them; workers report theirs."
    total = {}
    for report in (
        r for reports in terminalreporter.stats.values() for r in reports if getattr(r, "when", None) == "call"
    ):
        for kind, (done, refused) in dict(report.user_properties).get("tried", {}).items():
            kind, so_far = kind.partition(":")[0], total.get(kind.partition(":")[0], (0, 0))
            total[kind] = so_far[0] + done, so_far[1] + refused
    if total:
        terminalreporter.section("inputs tried")
        for kind, (done, refused) in total.items():
            terminalreporter.line(
                f"{kind:<24}{done + refused:>6}: {done} done, {refused} refused or stopped, told in one sentence"
            )
        done, refused = map(sum, zip(*total.values()))
        terminalreporter.line(
            f"{'all':<24}{done + refused:>6}: {done} done, {refused} refused or stopped, told in one sentence"
        )


def exchanged_profile():
    "A colour profile like sRGB, whose first channel is green and whose second is red."
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return icc.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
