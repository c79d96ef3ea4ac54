"""Many machines, with Ray: recipes trained side by side, and face sets of any size restored or scored shard by shard.

    python -m facelab.fleet.cluster train --faces PACK --out DIR --profile real --gpus 0.5
    python -m facelab.fleet.cluster restore --faces s3://bucket/faces --model build/models/PAPER/NAME --out s3://bucket/restored --gpus 0.25
    python -m facelab.fleet.cluster score --faces s3://bucket/faces --model build/models/PAPER/NAME --out s3://bucket/scores --gpus 0.25

Ray comes with `pip install 'facelab[cluster]'`. It takes the cluster that RAY_ADDRESS names, or this machine; DIR and the model lie on a disk that all machines share. A machine computes with the
functions that one machine uses alone; Ray decides where, and does it again elsewhere when a machine is lost. A file is written whole or not at all, and left alone if it is there.
"""

import argparse
import csv
import hashlib
import json
import logging
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from tqdm import tqdm

from facelab import FacelabError
from facelab.degradations.chain import Chain
from facelab.degradations.core import wanted_labels
from facelab.devices import pick_device
from facelab.dice import Dice
from facelab.engine.text import replacing
from facelab.faces import FaceSet
from facelab.fleet.grid import fingerprint, locked, make, sha256
from facelab.fleet.runner import arguments, asked_for, summary
from facelab.folders import Files
from facelab.images import to_float, to_uint8
from facelab.inputs import packed, unpacked
from facelab.metrics import score, write_scores
from facelab.models import load_model, maps_taken, restore
from facelab.shards import FORMAT, _members_of, _write_shard, open_shards


def started():
    "Ray, connected."
    try:
        import ray
    except ImportError:
        raise FacelabError("Ray is not installed here: pip install 'facelab[cluster]'") from None
    if not ray.is_initialized():
        ray.init()
    return ray


def make_locked(grid, name, *before):
    "A recipe on a worker; `before` are the recipes that Ray has waited for."
    with locked(grid.lock(name), wait=True):
        make(grid, name, progress=False)


def train_grid(grid, names, cpus=1, gpus=0, retries=5):
    "Make recipes, each as a task that waits for what it needs and is started again when its worker dies; what failed, and why."
    ray, refs, failed = started(), {}, {}
    task, shared = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(make_locked), ray.put(grid)
    for name in grid.order(names):
        refs[name] = task.options(name=name).remote(shared, name, *(refs[needed] for needed in grid.needs(name)))
    for name, ref in tqdm(refs.items(), desc="recipes", unit="recipe"):
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            broken = [needed for needed in grid.needs(name) if needed in failed]
            failed[name] = f"it needs {broken[0]}" if broken else str(told(error))
    return failed


@dataclass
class Job:
    "What is to be done to the shards of a face set; plain data."

    what: str  # restore, or score: degrade as the model learned it, restore, compare with the truth
    source: str  # address of shards
    model: str  # folder of a trained model
    out: str  # address of what is made, one file a shard
    split: str = None  # only this part
    degrade: bool = False  # restore: degrade first; else the pictures are degraded already
    batch: int = 64
    device: str = "auto"
    threads: int = 1


class Restored(Files):
    "Faces that are restored when they are asked for."

    def take(self, indices):
        return Restored(self.read, self.item_shape, self.index[indices])

    def __getitem__(self, indices):
        return self.read(self.index[indices])


class Worker:
    "Does a job to one shard after another."

    def __init__(self, job):
        torch.set_num_threads(job.threads)
        self.job, self.device, every = job, pick_device(job.device), open_shards(job.source)
        self.net, self.recipe = load_model(job.model, self.device)
        self.faces = every.part(job.split) if job.split else every
        self.shards = [row for row in every.shards.rows if job.split in (None, row["split"])]
        self.ends = torch.tensor([row["faces"] for row in self.shards]).cumsum(0)
        self.chain = Chain(self.recipe["degradation"]) if job.degrade or job.what == "score" else None
        if not self.shards:
            raise FacelabError(f"{job.source} has no faces in the part {job.split!r}: choose another")
        self.shape = self.restored(torch.tensor([0])).shape[1:]

    def given(self, rows):
        "What the network gets: faces degraded and stored as the pipeline does it with test faces, or the pictures as they are."
        if not self.chain:
            return {"input": self.faces.batch(rows, device=self.device, labels=())["image"]}
        batch = self.faces.batch(rows, device=self.device, labels=wanted_labels(self.chain.needs, self.faces.labels, self.recipe["name"]))
        out = self.chain(batch.pop("image"), Dice(self.recipe["seed"], "test", rows.tolist()), **batch)
        maps = {name: unpacked(packed(out.maps[name])).to(self.device) for name in maps_taken(self.net) if name in out.maps}
        return {**maps, "input": to_float(to_uint8(out.input))}

    def restored(self, rows):
        "Rows of the set, restored: uint8 (N, 3, H, W)."
        given = map(self.given, rows.split(self.job.batch))
        return torch.cat([to_uint8(restore(self.net, g["input"], g)).cpu() for g in given])

    def restore(self, path, rows):
        "A shard of restored faces."
        faces = FaceSet(self.faces.name, Restored(self.restored, self.shape, torch.arange(len(self.faces))), self.faces.names, self.faces.split)
        _write_shard(path, faces, rows, None, tqdm(disable=True))

    def score(self, path, rows):
        "A table with one row a face."
        table = []
        for some in rows.split(self.job.batch):
            truth = self.faces.batch(some, device=self.device, labels=())["image"]
            table += score(to_float(self.restored(some)).to(self.device), truth, [self.faces.names[i] for i in some.tolist()], self.recipe["name"])
        write_scores(path, table)

    def sound(self, data, row):
        "Is this file what one of this shard must be?"
        try:
            return data is not None and (len(data.splitlines()) == row["faces"] + 1 if self.job.what == "score" else bool(_members_of(data, row["file"], row["faces"], ["picture", "json"])))
        except FacelabError:
            return False

    def make(self, s):
        "The file of shard `s`, unless it is there: what the index says about it."
        row, end = self.shards[s], int(self.ends[s])
        name = row["file"] if self.job.what == "restore" else f"{Path(row['file']).stem}.csv"
        data = read_file(self.job.out, name)
        if new := not self.sound(data, row):
            with tempfile.TemporaryDirectory() as folder:
                getattr(self, self.job.what)(Path(folder) / name, torch.arange(end - row["faces"], end))
                data = (Path(folder) / name).read_bytes()
            write_file(self.job.out, name, data)
        return {"shard": s, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "new": new}

    def __call__(self, batch):
        made = [self.make(int(s)) for s in batch["shard"]]
        return {key: [row[key] for row in made] for key in made[0]}


def place(address):
    "The file system of an address, and the path there."
    return fsspec.core.url_to_fs(str(address).rstrip("/"))


def read_file(address, name):
    "The bytes of a file, or None."
    files, root = place(address)
    try:
        return files.cat_file(f"{root}/{name}")
    except FileNotFoundError:
        return None


def write_file(address, name, data):
    "A file, whole or not at all: an object store takes it so, on a disk it is moved into place."
    files, root = place(address)
    if not isinstance(files, LocalFileSystem):
        return files.pipe_file(f"{root}/{name}", data)
    with replacing(Path(root) / name) as half:
        half.write_bytes(data)


def over_shards(job, workers=None, cpus=1, gpus=0):
    "Do a job to every shard of a set; what was made, one row a shard, in order."
    here = Worker(replace(job, device="cpu"))  # what cannot work is refused before anything starts
    made_from = {"what": job.what, "split": job.split, "degrade": job.degrade, "faces": fingerprint(job.source), "weights": sha256(Path(job.model) / "generator.safetensors")}
    if json.loads(read_file(job.out, "made_from.json") or json.dumps(made_from)) != made_from:
        raise FacelabError(f"{job.out} holds what was made of other faces or by another model: choose another folder, or remove this one")
    write_file(job.out, "made_from.json", json.dumps(made_from).encode())
    ray, n = started(), len(here.shards)
    from ray.data import ActorPoolStrategy, DataContext, from_items

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False  # there is one below
    pool = ActorPoolStrategy(size=workers) if workers else ActorPoolStrategy(min_size=1, max_size=n)
    work = from_items([{"shard": s} for s in range(n)], override_num_blocks=n).map_batches(Worker, fn_constructor_args=(job,), batch_size=1, compute=pool, num_cpus=cpus, num_gpus=gpus)
    try:
        made = sorted(tqdm(work.iter_rows(), total=n, desc=job.what, unit="shard"), key=lambda row: row["shard"])
    except ray.exceptions.RayError as error:
        raise told(error) from None
    if [row["shard"] for row in made] != list(range(n)):
        raise FacelabError(f"{len(made)} of {n} shards were reported: run the command again, and it goes on")
    made = [{**{k: row[k] for k in ("file", "split", "faces", "names")}, **more} for row, more in zip(here.shards, made)]
    if job.what == "restore":
        rows = [{k: v for k, v in row.items() if k not in ("shard", "new")} for row in made]
        write_file(job.out, "index.json", json.dumps(dict(format=FORMAT, name=here.faces.name, size=here.shape[-1], labels={}, quality=None,
                                                          per_shard=max(row["faces"] for row in rows), notes=[], shards=rows)).encode())
    return made


def told(error):
    "The user's mistake inside an error of Ray, or the error."
    inside = error
    while inside is not None and not type(inside) is FacelabError:
        inside = getattr(inside, "cause", None) or inside.__cause__
    return inside or error


def restore_shards(source, model, out, workers=None, cpus=1, gpus=0, **more):
    "Restore a set of any size into shards; `more` as in `Job`."
    return over_shards(Job("restore", str(source), str(model), str(out), **more), workers, cpus, gpus)


def score_shards(source, model, out, workers=None, cpus=1, gpus=0, split="test", **more):
    "Score a model on a set of any size, into one table a shard; `more` as in `Job`."
    return over_shards(Job("score", str(source), str(model), str(out), split, **more), workers, cpus, gpus)


def averages(out, made):
    "Means of all measures over the tables of `score_shards`."
    rows = [row for part in made for row in csv.DictReader(read_file(out, f"{Path(part['file']).stem}.csv").decode().splitlines())]
    columns = {name: [float(row[name]) for row in rows if row[name]] for name in list(rows[0])[2:]}
    return {name: sum(values) / len(values) for name, values in columns.items() if values}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m facelab.fleet.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command", metavar="train | restore | score")
    arguments(commands.add_parser("train", help="train and score recipes"))
    for name, what in (("restore", "restore a set of faces"), ("score", "score a model on a set of faces")):
        command = commands.add_parser(name, help=what)
        command.add_argument("--faces", required=True, help="shards: a folder, or an address such as s3://bucket/faces")
        command.add_argument("--model", required=True, help="folder of a trained model")
        command.add_argument("--out", required=True, help="a folder, or an address")
        command.add_argument("--split", default="test" if name == "score" else None, help="only train, val or test")
        command.add_argument("--batch", type=int, default=64)
        command.add_argument("--workers", type=int, help="how many (as many as there is room for)")
    commands.choices["restore"].add_argument("--degrade", action="store_true", help="degrade first, as the model learned it; otherwise the pictures are degraded already")
    for command in commands.choices.values():
        command.add_argument("--cpus", type=int, default=1, help="of a worker (1)")
        command.add_argument("--gpus", type=float, default=0, help="of a worker; .25 puts four on one")
    args = parser.parse_args(argv)
    try:
        if args.command == "train":
            grid, names = asked_for(args)
            failed = train_grid(grid, names, args.cpus, args.gpus)
            return summary(grid, names, failed, [name for name in grid.order(names) if name not in failed and not grid.is_done(name)])
        job = Job(args.command, args.faces, str(Path(args.model).resolve()), args.out if "://" in args.out else str(Path(args.out).resolve()), args.split,
                  getattr(args, "degrade", False), args.batch, threads=args.cpus)
        made = over_shards(job, args.workers, args.cpus, args.gpus)
    except FacelabError as error:
        print(f"facelab: {error}", file=sys.stderr)
        return 1
    print(f"{sum(row['faces'] for row in made):,} faces in {len(made)} shards, {sum(row['new'] for row in made)} of them made now")
    if args.command == "score":
        print(", ".join(f"{name} {value:.4f}" for name, value in averages(args.out, made).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
