"""Face sets of any size, one shard after another: restored, or scored. A worker alone does what many do."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from tqdm import tqdm

from facelab import FacelabError
from facelab.degradations.chain import Chain
from facelab.degradations.degradation import select_labels
from facelab.base.devices import pick_device
from facelab.base.dice import Dice
from facelab.base.files import replacing
from facelab.faces.sets import FaceSet
from facelab.faces.layouts import Files
from facelab.base.images import to_float, to_uint8
from facelab.evaluation.inputs import encode_map, decode_map
from facelab.evaluation.metrics import score, write_scores
from facelab.training.models import load_model, extra_inputs, restore
from facelab.faces.shards import parse_members, write_shard, open_shards


@dataclass
class Job:
    "What is to be done to the shards of a face set; plain data."

    what: str  # restore, or score: degrade as the model learned it, restore, compare with the truth
    source: str  # address of shards
    model: str  # folder of a trained model
    out: str  # address of what is made, one file a shard
    split: str = None  # only this split
    degrade: bool = False  # restore: degrade first; else the pictures are degraded already
    batch: int = 64
    device: str = "auto"
    threads: int = 1


class Restored(Files):
    "Faces that are restored when they are asked for."

    def take(self, indices):
        "Those at some indices."
        return Restored(self.read, self.item_shape, self.index[indices])

    def __getitem__(self, indices):
        return self.read(self.index[indices])


class Worker:
    "Does a job to one shard after another."

    def __init__(self, job):
        torch.set_num_threads(job.threads)
        self.job, self.device, every = job, pick_device(job.device), open_shards(job.source)
        self.net, self.recipe = load_model(job.model, self.device)
        self.faces = every.subset(job.split) if job.split else every
        self.shards = [row for row in every.shards.rows if job.split in (None, row["split"])]
        self.ends = torch.tensor([row["faces"] for row in self.shards]).cumsum(0)
        self.chain = Chain(self.recipe["degradation"]) if job.degrade or job.what == "score" else None
        if not self.shards:
            raise FacelabError(f"{job.source} has no faces in the split {job.split!r}: choose another")
        self.shape = self.restored(torch.tensor([0])).shape[1:]

    def given(self, rows):
        """Input and maps of some rows, for the network.

        Faces are degraded and stored as the pipeline does it with test faces, or taken as they are."""
        if not self.chain:
            return {"input": self.faces.batch(rows, device=self.device, labels=())["image"]}
        batch = self.faces.batch(
            rows, device=self.device, labels=select_labels(self.chain.needs, self.faces.labels, self.recipe["name"])
        )
        out = self.chain(batch.pop("image"), Dice(self.recipe["seed"], "test", rows.tolist()), **batch)
        maps = {
            name: decode_map(encode_map(out.maps[name])).to(self.device)
            for name in extra_inputs(self.net)
            if name in out.maps
        }
        return {**maps, "input": to_float(to_uint8(out.input))}

    def restored(self, rows):
        "Rows of the set, restored: uint8 (N, 3, H, W)."
        given = map(self.given, rows.split(self.job.batch))
        return torch.cat([to_uint8(restore(self.net, g["input"], g)).cpu() for g in given])

    def restore(self, path, rows):
        "A shard of restored faces."
        faces = FaceSet(
            self.faces.name,
            Restored(self.restored, self.shape, torch.arange(len(self.faces))),
            self.faces.names,
            self.faces.split,
        )
        write_shard(path, faces, rows, None, tqdm(disable=True))

    def score(self, path, rows):
        "A table with one row a face."
        table = []
        for some in rows.split(self.job.batch):
            truth = self.faces.batch(some, device=self.device, labels=())["image"]
            table += score(
                to_float(self.restored(some)).to(self.device),
                truth,
                [self.faces.names[i] for i in some.tolist()],
                self.recipe["name"],
            )
        write_scores(path, table)

    def is_whole(self, data, row):
        "Is this file what one of this shard must be?"
        if data is None or self.job.what == "score":
            return data is not None and len(data.splitlines()) == row["faces"] + 1
        try:
            return bool(parse_members(data, row["file"], row["faces"], ["picture", "json"]))
        except FacelabError:
            return False

    def make(self, s):
        "The file of shard `s`, unless it is there: what the index says about it."
        row, end = self.shards[s], int(self.ends[s])
        name = row["file"] if self.job.what == "restore" else f"{Path(row['file']).stem}.csv"
        data = read_file(self.job.out, name)
        if new := not self.is_whole(data, row):
            with tempfile.TemporaryDirectory() as folder:
                getattr(self, self.job.what)(Path(folder) / name, torch.arange(end - row["faces"], end))
                data = (Path(folder) / name).read_bytes()
            write_file(self.job.out, name, data)
        return {"shard": s, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "new": new}

    def __call__(self, batch):
        "The shards of one batch of Ray Data. A user's mistake is a row, because an exception would not arrive whole."
        made = [self.try_shard(int(s)) for s in batch["shard"]]
        return {key: [row[key] for row in made] for key in made[0]}

    def try_shard(self, s):
        "What `make` returns, and the problem if there is one."
        try:
            return {**self.make(s), "problem": ""}
        except FacelabError as error:
            return {"shard": s, "bytes": 0, "sha256": "", "new": False, "problem": str(error)}


def file_system(address):
    "The file system of an address, and the path there."
    return fsspec.core.url_to_fs(str(address).rstrip("/"))


def read_file(address, name):
    "The bytes of a file, or None."
    files, root = file_system(address)
    try:
        return files.cat_file(f"{root}/{name}")
    except FileNotFoundError:
        return None


def write_file(address, name, data):
    "Write a file, whole or not at all: an object store takes it so, on a disk it is moved into place."
    files, root = file_system(address)
    if not isinstance(files, LocalFileSystem):
        return files.pipe_file(f"{root}/{name}", data)
    with replacing(Path(root) / name) as half:
        half.write_bytes(data)
