"""Two Ray workers on this machine: the bytes of one machine, also when a worker is killed in the middle; nothing lost, nothing twice."""

import json
import os
import signal
import threading
import time

import psutil
import pytest
from conftest import ENV, ROOT

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'facelab[cluster]'")

from facelab import FacelabError  # noqa: E402
from facelab.checkpoints import open_state  # noqa: E402
from facelab.drawn import draw_set  # noqa: E402
from facelab.faces import FaceSet  # noqa: E402
from facelab.fleet.cluster import Job, Worker, averages, main, restore_shards, score_shards, train_grid  # noqa: E402
from facelab.fleet.grid import effective_params, open_grid  # noqa: E402
from facelab.fleet.runner import make_all  # noqa: E402
from facelab.images import to_uint8  # noqa: E402
from facelab.models import load_model, restore  # noqa: E402
from facelab.shards import check_shards, open_shards, write_shards  # noqa: E402

ROWS = ["bicubic", "srresnet", "prior_guided_gan"]
SMALL = "train: {steps: 12, batch: 2, width: 0.125, depth: 0.05, threads: 1, log_every: 2, validate: 2, checkpoint_seconds: 0}\ninstead: {}\n"


@pytest.fixture(scope="module")
def two_workers():
    os.environ |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=200_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    "A face set, in a file and in shards of three, and recipes that one process made of it."
    folder = tmp_path_factory.mktemp("there")
    faces = draw_set(24, 3, 12, seed=0)
    faces.save(folder / "faces.safetensors")
    write_shards(faces, folder / "shards", per_shard=3, progress=False)
    (folder / "small.yaml").write_text(SMALL)
    assert make_all(grid(folder, folder / "out"), ROWS) == ({}, [])
    return folder


def grid(there, out):
    return open_grid(there / "faces.safetensors", out, effective_params(ROOT, path=there / "small.yaml"), ROOT)


def made(out, *folders):
    return {str(p.relative_to(out)): p.read_bytes() for folder in folders for p in sorted((out / folder).rglob("*")) if p.is_file()}


def kill_when(ready, title):
    "A thread that kills one worker process with this title when it is time; returns it and a list for what `ready` said."
    def wait():
        while not (said := ready()):
            time.sleep(.005)
        worker = next(p for p in psutil.Process().children(recursive=True) if any(title in word for word in p.cmdline()))
        worker.send_signal(signal.SIGKILL)
        killed.append(said)

    killed, thread = [], threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, killed


def test_a_grid_is_trained_although_a_worker_is_killed(two_workers, there, tmp_path):
    state, steps = tmp_path / "state/prior_guided_gan.safetensors", []

    def trains():
        try: return open_state(state)[0]["step"]
        except Exception: return None   # not there, or just replaced

    def watch():
        while not (tmp_path / "runs/prior_guided_gan.json").exists():
            if step := trains(): steps.append(step)
            time.sleep(.005)

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
    print(f"worker killed at step {killed[0]} of 12; checkpoints seen afterwards: {sorted(set(s for s in steps if s >= killed[0]))}; {len(b)} files with the bytes of one process")


def test_what_fails_is_told_and_what_needs_it_is_not_tried(two_workers, there, tmp_path):
    whole = FaceSet.load(there / "faces.safetensors")
    FaceSet("bare", whole.images, whole.names, whole.split).save(tmp_path / "faces.safetensors")
    failed = train_grid(grid(tmp_path, tmp_path / "out") if (tmp_path / "small.yaml").write_text(SMALL) else None, ["prior_guided_gan", "bicubic"])
    assert failed["prior_guided_gan"] == "it needs features" and "needs parsing, which the faces lack" in failed["features"] and len(failed) == 2


@pytest.fixture(scope="module")
def restored(two_workers, there):
    "The set degraded and restored, in two processes one of which is killed; what happened."
    out = there / "restored"
    ready = lambda: [p.name for p in out.glob("*.tar")] if len(list(out.glob("*.tar"))) >= 3 else None
    thread, killed = kill_when(ready, "ray::MapWorker")
    return out, restore_shards(there / "shards", there / "out/models/prior_guided_sr/srresnet", out, workers=2, degrade=True, batch=2), killed


def test_a_set_is_restored_although_a_worker_is_killed(restored, there):
    out, rows, killed = restored
    assert len(killed) == 1 and 3 <= len(killed[0]) < 13
    assert [row["file"] for row in rows] == [row["file"] for row in open_shards(there / "shards").shards.rows]
    assert sum(row["faces"] for row in rows) == 39 == len(open_shards(out)) and "every hash right" in check_shards(out, progress=False)
    assert sum(row["new"] for row in rows) in (12, 13) and sorted(p.name for p in out.iterdir()) == sorted([*(row["file"] for row in rows), "index.json", "made_from.json"])
    one = Worker(Job("restore", str(there / "shards"), str(there / "out/models/prior_guided_sr/srresnet"), str(there / "alone"), degrade=True, batch=2))
    assert all(one.make(s)["new"] for s in range(13))
    assert made(there, "alone") == {f"alone/{row['file']}": (out / row["file"]).read_bytes() for row in rows}
    print(f"killed when {len(killed[0])} of 13 shards were written; 39 faces in 13 shards, each reported once, all with the bytes of one process")


def test_what_is_restored_is_what_the_pipeline_restores(restored, there, tmp_path):
    """Against the pipeline's own files, and against packing the whole set at once."""
    from facelab.evaluation import restore_set
    from facelab.inputs import Inputs
    from facelab.images import read_image

    test, inputs = open_shards(restored[0]).part("test"), Inputs(there / "out/inputs/prior_guided_x8")
    net = load_model(there / "out/models/prior_guided_sr/srresnet")[0]
    alone = restore_shards_of_test(there, tmp_path)
    restore_set(net, inputs, tmp_path / "png", "cpu", batch=2)
    assert all((alone.images[[i]][0] == read_image(tmp_path / "png" / f"{name}.png")).all() for i, name in enumerate(test.names)) and len(test) == 12
    print("12 test faces: the pixels of the pipeline's PNG files")


def restore_shards_of_test(there, to):
    restore_shards(there / "shards", there / "out/models/prior_guided_sr/srresnet", to / "test", workers=1, degrade=True, batch=2, split="test")
    return open_shards(to / "test")


def test_again_makes_only_what_is_missing(restored, there, capsys):
    out, rows, _ = restored
    (out / rows[4]["file"]).unlink()
    (out / rows[7]["file"]).write_bytes((out / rows[7]["file"]).read_bytes()[:700])
    args = ["restore", "--faces", str(there / "shards"), "--model", str(there / "out/models/prior_guided_sr/srresnet"), "--out", str(out), "--batch", "2", "--workers", "2"]
    assert main([*args, "--degrade"]) == 0
    assert "39 faces in 13 shards, 2 of them made now" in capsys.readouterr().out
    assert "every hash right" in check_shards(out, progress=False)
    assert main(args) == 1 and "holds what was made of other faces or by another model" in capsys.readouterr().err


def test_scores_are_those_of_the_pipeline(two_workers, there, tmp_path):
    model = there / "out/models/prior_guided_sr/srresnet"
    rows = score_shards(there / "shards", model, tmp_path, workers=2, batch=1)
    tables = [(tmp_path / f"test-{i:06d}.csv").read_text().splitlines() for i in range(4)]
    assert [row["faces"] for row in rows] == [3] * 4 and [row["new"] for row in rows] == [True] * 4
    joined = "\n".join([tables[0][0], *(line for table in tables for line in table[1:])]) + "\n"
    assert joined == (there / "out/scores/prior_guided_sr/srresnet.csv").read_text()
    print(f"12 rows in 4 tables, joined the same bytes as the pipeline's; {averages(tmp_path, rows)}")
