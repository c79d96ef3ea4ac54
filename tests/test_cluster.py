"""Two Ray workers on this machine: the bytes of one machine, also when a worker is killed; nothing lost or twice."""

import hashlib
import json
import os
import secrets
import shutil
import signal
import threading
import time

import fsspec
import psutil
import pytest
from conftest import ROOT, SMALL_RUN, packed

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'facelab[cluster]'")

from facelab import FacelabError
from facelab.training.checkpoints import open_state
from facelab.faces.drawn import draw_set
from facelab.evaluation.restore import read_restored, restore_set
from facelab.faces.sets import FaceSet
from facelab.fleet.cluster import averages, main, restore_shards, score_shards, train_grid
from facelab.fleet.grid import effective_params, open_grid
from facelab.fleet.runner import make_all
from facelab.fleet.sets import Job, Worker
from facelab.evaluation.inputs import Inputs
from facelab.base.images import to_float, to_uint8
from facelab.training.models import load_model, restore, write_model
from facelab.base.names import build
from facelab.faces.shards import check_shards, open_shards, write_shards

ROWS, MODEL = ["bicubic", "srresnet", "prior_guided_gan"], "out/models/prior_guided_sr/srresnet"


@pytest.fixture(scope="module")
def two_workers():
    os.environ |= {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }  # no file in the user's home
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200_000_000,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    "A face set, in a file and in shards of four, and recipes that one process made of it."
    folder = packed(tmp_path_factory.mktemp("there"), 12, 4, SMALL_RUN + "evaluate: {batch: 4}\n")
    assert make_all(grid(folder, folder / "out"), ROWS) == ({}, [])
    return folder


def grid(there, out):
    return open_grid(there / "faces.safetensors", out, effective_params(ROOT, path=there / "small.yaml"), ROOT)


def made(out, *folders):
    "The hash of each file: pytest would compare two unequal files byte by byte, for hours."
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for folder in folders
        for p in sorted((out / folder).rglob("*"))
        if p.is_file()
    }


def kill_when(ready, title):
    "A thread that kills one worker process with this title in time; returns it and a list of what `ready` returned."

    def wait():
        while not (said := ready()):
            time.sleep(0.005)
        worker = next(
            p for p in psutil.Process().children(recursive=True) if any(title in word for word in p.cmdline())
        )
        worker.send_signal(signal.SIGKILL)
        killed.append(said)

    killed, thread = [], threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, killed


def test_a_grid_is_trained_although_a_worker_is_killed(two_workers, there, tmp_path):
    state, steps = tmp_path / "state/prior_guided_gan.safetensors", []

    def trains():
        try:
            return open_state(state)[0]["step"]
        except Exception:
            return None  # not there, or just replaced

    def watch():
        while not (tmp_path / "runs/prior_guided_gan.json").exists():
            if step := trains():
                steps.append(step)
            time.sleep(0.005)

    watching = threading.Thread(target=watch, daemon=True)
    thread, killed = kill_when(lambda: (trains() or 0) >= 4 and trains(), "ray::prior_guided_gan")
    watching.start()
    assert train_grid(grid(there, tmp_path), ROWS) == {}
    thread.join(1), watching.join(5)
    assert len(killed) == 1 and steps == sorted(steps) and steps[-1] > killed[0]
    a, b = (made(folder, "models", "history", "scores", "inputs") for folder in (there / "out", tmp_path))
    assert a == b
    runs = {p.stem: json.loads(p.read_text())["steps"] for p in (tmp_path / "runs").iterdir()}
    assert runs == {"bicubic": 0, "features": 12, "srresnet": 12, "prior_guided_gan": 12}
    print(
        f"worker killed at step {killed[0]} of 12; checkpoints seen afterwards:"
        f" {sorted({s for s in steps if s >= killed[0]})}; {len(b)} files with the bytes of one process"
    )


def test_what_fails_is_told_and_what_needs_it_is_not_tried(two_workers, there, tmp_path, capsys):
    whole = FaceSet.load(there / "faces.safetensors")
    FaceSet("bare", whole.images, whole.names, whole.split).save(tmp_path / "faces.safetensors")
    args = [
        "train",
        "--faces",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--params",
        str(there / "small.yaml"),
        "--recipes",
        "prior_guided_gan",
        "bicubic",
    ]
    assert main(args) == 1
    said = capsys.readouterr()
    assert (
        "1 of 2 recipes are finished" in said.out
        and "prior_guided_gan needs parsing, which set bare lacks" in said.err
        and "set data.parsing to predicted" in said.err
    )


def written(out):
    "When each shard in a folder was written."
    return {p.name: p.stat().st_mtime_ns for p in sorted(out.glob("[!.]*.tar"))}


@pytest.fixture(scope="module")
def restored(two_workers, there):
    "The set degraded and restored by two processes, one of which is killed; what happened."

    def some():
        return now if len(now := written(out)) >= 3 else None

    out = there / "restored"
    _, killed = kill_when(some, "ray::MapWorker")
    return out, restore_shards(there / "shards", there / MODEL, out, workers=2, degrade=True, batch=4), killed


def test_a_set_is_restored_although_a_worker_is_killed(restored, there):
    out, rows, killed = restored
    assert len(killed) == 1 and 3 <= len(killed[0]) < 10
    assert killed[0].items() <= written(out).items()  # what was written then was not written again
    assert [row["file"] for row in rows] == [row["file"] for row in open_shards(there / "shards").shards.rows] and sum(
        row["new"] for row in rows
    ) >= 9
    assert sum(row["faces"] for row in rows) == 40 == len(open_shards(out)) and "every hash right" in check_shards(
        out, progress=False
    )
    assert list(written(out)) == sorted(row["file"] for row in rows)
    alone = Worker(
        Job("restore", str(there / "shards"), str(there / MODEL), str(there / "alone"), degrade=True, batch=4)
    )
    assert all(alone.make(s)["new"] for s in range(10))
    assert made(there, "alone") == {
        f"alone/{name}": digest for name, digest in made(out, "").items() if name.endswith(".tar")
    }
    print(
        f"killed when {len(killed[0])} of 10 shards were written; 40 faces in 10 shards, each reported once and written"
        " once, all with the bytes of one process"
    )


def test_again_makes_only_what_is_missing(restored, there, capsys):
    out, rows, _ = restored
    (out / rows[4]["file"]).unlink()
    (out / rows[7]["file"]).write_bytes((out / rows[7]["file"]).read_bytes()[:700])
    args = [
        "restore",
        "--faces",
        str(there / "shards"),
        "--model",
        str(there / MODEL),
        "--out",
        str(out),
        "--batch",
        "4",
        "--workers",
        "1",
    ]
    assert main([*args, "--degrade"]) == 0
    assert "40 faces in 10 shards, 2 of them made now" in capsys.readouterr().out
    assert "every hash right" in check_shards(out, progress=False)
    assert main(args) == 1 and "holds what was made of other faces or by another model" in capsys.readouterr().err


def test_addresses_and_the_pixels_of_the_pipeline(there, tmp_path):
    """From and to an object store (in memory here): the pipeline's pictures, the tar files of one packing."""
    memory = fsspec.filesystem("memory")
    memory.put(str(there / "shards"), "/faces", recursive=True)
    worker = Worker(
        Job("restore", "memory://faces", str(there / MODEL), "memory://test", "test", degrade=True, batch=4)
    )
    assert [worker.make(s)["new"] for s in range(3)] == [True] * 3 and [worker.make(s)["new"] for s in range(3)] == [
        False
    ] * 3
    inputs = Inputs(there / "out/inputs/prior_guided_x8_aliased")
    restore_set(load_model(there / MODEL)[0], inputs, tmp_path / "png", "cpu", batch=4)
    whole = FaceSet(worker.faces.name, read_restored(tmp_path / "png", inputs.names), inputs.names, worker.faces.split)
    write_shards(whole, tmp_path / "shards", per_shard=4, progress=False)
    tars = {p.name: p.read_bytes() for p in (tmp_path / "shards").glob("*.tar")}
    assert tars == {name: memory.cat_file(f"/test/{name}") for name in tars} and len(tars) == 3
    print(f"12 faces in {len(tars)} shards: the same bytes")


def test_scores_are_those_of_the_pipeline(two_workers, there, tmp_path):
    rows = score_shards(there / "shards", there / MODEL, tmp_path, workers=1, batch=4)
    tables = [(tmp_path / f"test-{i:06d}.csv").read_text().splitlines() for i in range(3)]
    assert [row["faces"] for row in rows] == [4] * 3 and [row["new"] for row in rows] == [True] * 3
    whole = (
        (there / "out/scores/prior_guided_sr/prior_guided_x8_aliased/srresnet.csv").read_text().splitlines()
    )  # and what judges say, behind
    assert [tables[0][0], *(line for table in tables for line in table[1:])] == [
        ",".join(line.split(",")[: len(tables[0][0].split(","))]) for line in whole
    ]
    print(f"12 rows in 3 tables, those of the pipeline; {averages(tmp_path, rows)}")


def test_pictures_that_are_degraded_already(there, tmp_path):
    low = draw_set(0, 0, 4, size=32, seed=1)
    write_shards(FaceSet("low", low.images, low.names, low.split), tmp_path / "low", progress=False)
    worker = Worker(Job("restore", str(tmp_path / "low"), str(there / MODEL), str(tmp_path / "high")))
    worker.make(0)
    alone = to_uint8(restore(load_model(there / MODEL)[0], to_float(low.images)))
    assert worker.shape == (3, 256, 256)
    write_shards(FaceSet("low", alone, low.names, low.split), tmp_path / "packed", progress=False)
    assert (tmp_path / "high/test-000000.tar").read_bytes() == (tmp_path / "packed/test-000000.tar").read_bytes()
    spec = {"use": "systems.fcsr_gan.FCSRGAN", "scale": 8, "width": 8, "depth": 1}
    write_model(
        tmp_path / "model",
        {"generator": build(spec).state_dict()},
        {"generator": spec, "critics": {}, "degradation": []},
    )
    with pytest.raises(FacelabError, match="FCSRGAN needs M .* but it was not given"):
        Worker(Job("restore", str(tmp_path / "low"), str(tmp_path / "model"), str(tmp_path / "out")))


def test_what_cannot_work_is_refused_before_anything_starts(there, tmp_path):
    with pytest.raises(FacelabError, match="there is no trained model in"):
        restore_shards(there / "shards", tmp_path, tmp_path / "out")
    with pytest.raises(FacelabError, match="has no index.json"):
        restore_shards(tmp_path, there / MODEL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_is_told_in_a_sentence(two_workers, there, tmp_path):
    shutil.copytree(there / "shards", tmp_path / "shards")
    (tmp_path / "shards/test-000002.tar").write_bytes(b"damaged")
    with pytest.raises(
        FacelabError,
        match=r"^1 of 3 shards could not be made: .*test-000002.tar has 7 bytes instead of [\d,]+: copy it again",
    ):
        score_shards(tmp_path / "shards", there / MODEL, tmp_path / "out", workers=1, batch=4)
    shutil.copy(there / "shards/test-000002.tar", tmp_path / "shards")
    rows = score_shards(tmp_path / "shards", there / MODEL, tmp_path / "out", workers=1, batch=4)
    assert [row["new"] for row in rows] == [False, False, True]
