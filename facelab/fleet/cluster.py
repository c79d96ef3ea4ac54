"""Many machines, with Ray: recipes trained side by side, and face sets of any size restored or scored by shards.

    python -m facelab.fleet.cluster train --faces PACK --out DIR --profile real --gpus 0.5
    python -m facelab.fleet.cluster restore --faces s3://bucket/faces --model build/models/PAPER/NAME \\
        --out s3://bucket/restored --gpus 0.25
    python -m facelab.fleet.cluster score --faces s3://bucket/faces --model build/models/PAPER/NAME \\
        --out s3://bucket/scores --gpus 0.25

Ray comes with `pip install 'facelab[cluster]'`. It takes the cluster that RAY_ADDRESS names, or this machine; DIR and
the model lie on a disk that all machines share. A machine computes with the functions that one machine uses alone;
Ray decides where, and does it again elsewhere when a machine is lost. A file is written whole or not at all, and left
alone if it is there.
"""

import argparse
import csv
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from facelab import FacelabError
from facelab.base.files import run_command, sha256
from facelab.fleet.grid import fingerprint, try_lock, make_recipe
from facelab.fleet.runner import arguments, selected_recipes, describe_grid, refused
from facelab.fleet.sets import Job, Worker, read_file, write_file
from facelab.faces.shards import FORMAT


def start_ray():
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
    with try_lock(grid.lock(name), wait=True):
        make_recipe(grid, name, progress=False)


def train_grid(grid, names, cpus=1, gpus=0, retries=5):
    """Make recipes, each as a task that waits for what it needs; returns what failed, and why.

    A task is started again when its worker dies."""
    ray, refs, failed = start_ray(), {}, {}
    task, shared = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(make_locked), ray.put(grid)
    for name in grid.order(names):
        refs[name] = task.options(name=name).remote(shared, name, *(refs[needed] for needed in grid.needs(name)))
    for name, ref in tqdm(refs.items(), desc="recipes", unit="recipe"):
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            broken = [needed for needed in grid.needs(name) if needed in failed]
            failed[name] = f"it needs {broken[0]}" if broken else str(getattr(error, "cause", error))
    return failed


def map_shards(job, workers=None, cpus=1, gpus=0):
    "Do a job to every shard of a set; returns what was made, one row a shard, in order."
    here = check_job(job)
    n = len(here.shards)
    start_ray()
    from ray.data import ActorPoolStrategy, DataContext, from_items

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False  # there is one below
    pool = ActorPoolStrategy(size=workers) if workers else ActorPoolStrategy(min_size=1, max_size=n)
    work = from_items([{"shard": s} for s in range(n)], override_num_blocks=n).map_batches(
        Worker, fn_constructor_args=(job,), batch_size=1, compute=pool, num_cpus=cpus, num_gpus=gpus
    )
    made = sorted(tqdm(work.iter_rows(), total=n, desc=job.what, unit="shard"), key=lambda row: row["shard"])
    if problems := [row["problem"] for row in made if row["problem"]]:
        raise FacelabError(f"{len(problems)} of {n} shards could not be made: {problems[0]}")
    if [row["shard"] for row in made] != list(range(n)):
        raise FacelabError(f"{len(made)} of {n} shards were reported: run the command again, and it goes on")
    made = [
        {**{k: row[k] for k in ("file", "split", "faces", "names")}, **{k: more[k] for k in ("bytes", "sha256", "new")}}
        for row, more in zip(here.shards, made)
    ]
    if job.what == "restore":
        write_index(job.out, here, made)
    return made


def check_job(job):
    "A worker for the job; `FacelabError` if it cannot be done, or if its folder holds what another job made."
    here = Worker(replace(job, device="cpu"))  # what cannot work is refused before anything starts
    made_from = {"what": job.what, "split": job.split, "degrade": job.degrade, "faces": fingerprint(job.source)}
    made_from["weights"] = sha256(Path(job.model) / "generator.safetensors")
    if json.loads(read_file(job.out, "made_from.json") or json.dumps(made_from)) != made_from:
        raise FacelabError(
            f"{job.out} holds what was made of other faces or by another model: choose another folder, or remove"
            " this one"
        )
    write_file(job.out, "made_from.json", json.dumps(made_from).encode())
    return here


def write_index(out, worker, made):
    "The index of restored shards, which makes them a face set."
    rows = [{k: v for k, v in row.items() if k != "new"} for row in made]
    index = dict(format=FORMAT, name=worker.faces.name, size=worker.shape[-1], labels={}, quality=None)
    index |= dict(per_shard=max(row["faces"] for row in rows), notes=[], shards=rows)
    write_file(out, "index.json", json.dumps(index).encode())


def absolute(address):
    "The address as every machine understands it."
    return str(address) if "://" in str(address) else str(Path(address).resolve())


def restore_shards(source, model, out, workers=None, cpus=1, gpus=0, **more):
    "Restore a set of any size into shards; `more` as in `Job`."
    return map_shards(Job("restore", *map(absolute, (source, model, out)), **more), workers, cpus, gpus)


def score_shards(source, model, out, workers=None, cpus=1, gpus=0, split="test", **more):
    "Score a model on a set of any size, into one table a shard; `more` as in `Job`."
    return map_shards(Job("score", *map(absolute, (source, model, out)), split, **more), workers, cpus, gpus)


def averages(out, made):
    "Means of all measures over the tables of `score_shards`."
    rows = [
        row
        for shard in made
        for row in csv.DictReader(read_file(out, f"{Path(shard['file']).stem}.csv").decode().splitlines())
    ]
    columns = {name: [float(row[name]) for row in rows if row[name]] for name in list(rows[0])[2:]}
    return {name: sum(values) / len(values) for name, values in columns.items() if values}


def main(argv=None):
    "The command line; returns the exit status."
    parser = argparse.ArgumentParser(
        prog="python -m facelab.fleet.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    commands.choices["restore"].add_argument(
        "--degrade",
        action="store_true",
        help="degrade first, as the model learned it; else the pictures are degraded already",
    )
    for command in commands.choices.values():
        command.add_argument("--cpus", type=int, default=1, help="of a worker (1)")
        command.add_argument("--gpus", type=float, default=0, help="of a worker; .25 puts four on one")
    args = parser.parse_args(argv)

    def run():
        if args.command == "train":
            grid, names = selected_recipes(args)
            failed = refused(grid, names)
            names = [name for name in names if name not in failed]
            failed |= train_grid(grid, names, args.cpus, args.gpus)
            return describe_grid(grid, names, failed, grid.unfinished(names, failed))
        job = Job(
            args.command,
            *map(absolute, (args.faces, args.model, args.out)),
            args.split,
            getattr(args, "degrade", False),
            args.batch,
            threads=args.cpus,
        )
        made = map_shards(job, args.workers, args.cpus, args.gpus)
        print(
            f"{sum(row['faces'] for row in made):,} faces in {len(made)} shards, {sum(row['new'] for row in made)} of"
            " them made now"
        )
        if args.command == "score":
            print(", ".join(f"{name} {value:.4f}" for name, value in averages(args.out, made).items()))
        return 0

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
