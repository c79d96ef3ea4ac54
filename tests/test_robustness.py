"""Broken and hostile input, full and read-only disks, two processes, Ctrl-C: a result or one sentence.

Nothing is lost, and nothing is written elsewhere.

Every input that is tried is counted: at the end of a run of pytest the counts stand under "inputs tried" (conftest.py).
"""

import contextlib
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import facelab
from conftest import ENV, exchanged_profile
from facelab import FacelabError
from facelab.apps.commands import main
from facelab.apps.files import degrade_files, restore_files
from facelab.base.dice import Dice
from facelab.base.files import write_text
from facelab.base.images import (
    MAX_PIXELS,
    colour_labels,
    open_image,
    picture_size,
    picture_suffixes,
    read_image,
    show,
    to_float,
    to_uint8,
    write_image,
)
from facelab.base.names import build
from facelab.base.params import load_params
from facelab.base.weights import find_weights, load_weights
from facelab.degradations.chain import Chain
from facelab.evaluation.photographs import RECORD, Restorer
from facelab.faces.drawn import draw_set
from facelab.faces.sets import FaceSet, check_faces, main as faces_main
from facelab.faces.shards import check_shards, open_shards, write_shards, main as shards_main
from facelab.faces.tables import read_table
from facelab.fleet.runner import main as runner_main
from facelab.losses.features import make_features
from facelab.training.checkpoints import load_state, save_state
from facelab.training.models import load_model, write_model
from facelab.training.recipes import load_degradations, load_recipes, resolve
from facelab.training.run import Run

LONGEST = 5200  # letters of a sentence that names a path; a path may have 4096


# ------------------------------------------------------------------ what counts as an answer


@pytest.fixture
def tried(record_property):
    """tried(kind, run, *words): calls `run` and counts how it ended: done, or refused.

    It is refused if one sentence holds the words. Anything else is a failure.
    """
    counts = {}
    record_property("tried", counts)  # travels with the test's report to pytest_terminal_summary

    def attempt(kind, run, *words):
        counts.setdefault(kind, [0, 0])
        try:
            out = run()
        except FacelabError as error:
            check_sentence(str(error), *words)
            counts[kind][1] += 1
            return None
        counts[kind][0] += 1
        return out

    attempt.counts = counts
    return attempt


def check_sentence(text, *words):
    assert 10 < len(text) < LONGEST and len(text.splitlines()) == 1, text
    assert "MemoryError" not in text and "Traceback" not in text and "image ()" not in text, text
    for word in words:
        assert str(word) in text, (word, text)


@contextlib.contextmanager
def limited(what, most):
    "At most so much of a resource, for this process and while the block runs."
    before = resource.getrlimit(what)
    resource.setrlimit(what, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def memory(megabytes):
    "At most so much more memory: who asks for more gets a MemoryError at once."
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if sys.platform == "linux"
        else 2**40
    )
    return limited(resource.RLIMIT_AS, used + megabytes * 2**20)


def tree(folder):
    "All that lies in a folder: path -> hash, or where a link leads."
    return {
        str(p.relative_to(folder)): os.readlink(p)
        if p.is_symlink()
        else hashlib.sha256(p.read_bytes()).hexdigest()
        if p.is_file()
        else p.stat().st_mode
        for p in Path(folder).rglob("*")
    }


def results(folder):
    "Names of the results in a folder."
    return {p.name for p in Path(folder).iterdir()} - {RECORD}


def sentences(text):
    return [line for line in text.splitlines() if line]


# ------------------------------------------------------------------ pictures of every kind, and what can happen to them


def picture(mode="RGB", size=(24, 24)):
    y, x = np.mgrid[: size[1], : size[0]]
    grey = (x * 7 + y * 5 + np.random.default_rng(0).integers(0, 40, x.shape)).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(grey.astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(grey.astype(np.float32))
    return Image.fromarray(np.dstack([grey, grey[::-1], grey[:, ::-1]])).convert(mode)


def encoded(suffix, mode="RGB", frames=1, size=(24, 24), **options):
    file, image = io.BytesIO(), picture(mode, size)
    if options.pop("turned", False):
        options["exif"] = Image.Exif()
        options["exif"][274] = 6
    if frames > 1:
        options |= dict(save_all=True, append_images=[picture(mode).rotate(90 * k) for k in range(1, frames)])
    image.save(file, Image.registered_extensions()[suffix], **options)
    return file.getvalue()


def whole_pictures():
    "Name -> bytes, of the suffixes that occur most."
    made = {
        "rgb.jpg": encoded(".jpg"),
        "grey.jpg": encoded(".jpg", "L"),
        "cmyk.jpg": encoded(".jpg", "CMYK"),
        "turned.jpeg": encoded(".jpeg", turned=True, progressive=True),
        "rgb.png": encoded(".png"),
        "palette.png": encoded(".png", "P", transparency=3),
        "alpha.png": encoded(".png", "LA"),
        "deep.png": encoded(".png", "I;16"),
        "bits.png": encoded(".png", "1"),
        "animated.png": encoded(".png", frames=3),
        "turned.png": encoded(".png", "RGBA", turned=True),
        "rgb.bmp": encoded(".bmp"),
        "palette.bmp": encoded(".bmp", "P"),
        "rgb.webp": encoded(".webp"),
        "lossless.webp": encoded(".webp", "RGBA", lossless=True),
        "animated.webp": encoded(".webp", frames=3),
        "rgb.tif": encoded(".tif"),
        "lzw.tif": encoded(".tif", compression="tiff_lzw"),
        "cmyk.tiff": encoded(".tiff", "CMYK"),
        "deep.tiff": encoded(".tiff", "I;16"),
        "float.tif": encoded(".tif", "F"),
        "jpeg.tif": encoded(".tif", compression="jpeg"),
        "pages.tif": encoded(".tif", frames=3),
        "rgb.ppm": encoded(".ppm"),
        "grey.pgm": encoded(".pgm", "L"),
        "deep.pgm": encoded(".pgm", "I;16"),
        "palette.gif": encoded(".gif", "P"),
        "animated.gif": encoded(".gif", frames=3),
        "rgb.jfif": encoded(".jfif"),
        "turned.tif": encoded(".tif", turned=True),
        "rgb.avif": encoded(".avif"),
        "turned.avif": encoded(".avif", turned=True),
        "rgb.jp2": encoded(".jp2"),
        "alpha.tga": encoded(".tga", "RGBA"),
        "profile.png": encoded(".png", icc_profile=exchanged_profile()),
        "profile.jpg": encoded(".jpg", icc_profile=exchanged_profile()),
        "profile.tif": encoded(".tif", icc_profile=exchanged_profile()),
    }
    assert {Path(name).suffix for name in made} <= picture_suffixes()
    return made


def mutations(data, dice, others):
    "What a bad disk, a broken download, an editor or an attacker makes of a file: (how, bytes)."
    n, at = len(data), lambda end=None: dice.randrange(min(end or len(data), len(data)))
    for keep in (0, 1, 7, 30, n // 4, n // 2, n - n // 8, n - 1):
        yield "truncated", data[:keep]
    for reach in (16, 16, 64, 64, 64, None, None, None, None):
        flipped = bytearray(data)
        for _ in range(dice.choice((1, 2, 8))):
            flipped[at(reach)] ^= 1 << dice.randrange(8)
        yield "bits flipped", bytes(flipped)
    for reach in (64, 200, None):
        k = at(reach)
        yield "bytes inserted", data[:k] + dice.randbytes(dice.choice((1, 4, 50))) + data[k:]
        yield "bytes cut out", data[:k] + data[k + dice.choice((1, 4, 50)) :]
    for reach in (32, 64, 200):
        k = at(reach)
        yield (
            "numbers forged",
            data[:k] + dice.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")) + data[k + 4 :],
        )
    other = dice.choice(others)
    yield "header of another", other[:32] + data[32:]
    yield "body of another", data[:32] + other[32:]
    yield "appended", data + dice.randbytes(100)
    yield "garbage", dice.randbytes(n)


def fuzzed(folder, seed, every=1):
    "Write mutated pictures, one in ten with the suffix of another format; their paths and how each came about."
    dice, made, paths = random.Random(seed), whole_pictures(), []
    for name, data in made.items():
        for how, bad in [("whole", data), *mutations(data, dice, list(made.values()))][::every]:
            suffix = (
                dice.choice(sorted({Path(name).suffix for name in made})) if dice.random() < 0.1 else Path(name).suffix
            )
            path = folder / f"{len(paths):04d}_{Path(name).stem}{suffix}"
            path.write_bytes(bad)
            paths.append((path, how))
    return paths


@pytest.mark.filterwarnings("ignore")
def test_fuzzed_pictures_are_read_or_refused(tmp_path, tried):
    with memory(1500):
        for path, how in fuzzed(tmp_path, seed=1):
            x = tried(f"picture: {how}", lambda: read_image(path), path.name)
            assert x is None or x.dtype == torch.uint8 and x.ndim == 3 and x.shape[0] == 3 and x.numel()
            size = tried(f"picture: {how}", lambda: picture_size(path), path.name)
            assert x is None or size == tuple(x.shape[:0:-1]), (path, size)
            grey = tried(f"picture: {how}", lambda: open_image(path, "L"), path.name)
            assert (grey is None) == (x is None) and (
                x is None or grey.mode == "L" and grey.size == tuple(x.shape[:0:-1])
            )
            assert how != "whole" or (x is None) == ("_float" in path.name), path
    assert sum(map(sum, tried.counts.values())) > 1200


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def forged(w, h):
    "Files that say to be so large and hold next to nothing."
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )
    jpg, k = encoded(".jpg"), encoded(".jpg").index(b"\xff\xc0")
    gif, bmp = encoded(".gif", "P"), encoded(".bmp")
    tags = {256: w, 257: h, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: h, 279: min(w * h, 2**32 - 1)}
    tif = (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        + bytes(4)
    )
    return {
        "x.png": png,
        "x.jpg": jpg[: k + 5] + struct.pack(">HH", h, w) + jpg[k + 9 :],
        "x.gif": gif[:6] + struct.pack("<HH", w, h) + gif[10:],
        "x.bmp": bmp[:18] + struct.pack("<ii", w, h) + bmp[26:],
        "x.ppm": b"P6 %d %d 255\n" % (w, h) + bytes(300),
        "x.pgm": b"P5 %d %d 65535\n" % (w, h) + bytes(300),
        "x.tif": tif,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("w, h", [(20000, 20000), (65000, 65000), (9460, 9460), (4000, 4000), (0, 0), (1, 1), (1, 0)])
def test_sizes_that_a_header_only_claims(tmp_path, tried, w, h):
    "20,000 x 20,000 pixels are refused before memory is asked for: 3 bytes each would be 1.2 GB."
    with memory(1000 if w * h > MAX_PIXELS else 2000):
        for name, data in forged(w, h).items():
            (tmp_path / name).write_bytes(data)
            x = tried("picture: forged size", lambda: read_image(tmp_path / name), name)
            assert x is None or x.numel() and w * h <= MAX_PIXELS
    if w * h >= 2**28:
        assert tried.counts["picture: forged size"][0] == 0


def test_files_that_are_no_files(tmp_path, tried, monkeypatch):
    "Pipes and devices never end, links may lead nowhere, and PostScript is a program that Pillow would run."
    os.mkfifo(tmp_path / "pipe.png")
    for name, to in {
        "zero.png": "/dev/zero",
        "loop.png": "loop.png",
        "gone.png": "nowhere",
        "folder.png": ".",
        "shadow.png": "/etc/shadow",
    }.items():
        (tmp_path / name).symlink_to(to)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "program.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
    )
    (tmp_path / "text.png").write_bytes(
        encoded(".png")[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26))) + encoded(".png")[33:]
    )
    (tmp_path / "profile.png").write_bytes(
        encoded(".png")[:33] + chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**26))) + encoded(".png")[33:]
    )
    (tmp_path / "empty.webp").write_bytes(b"")
    with memory(300):
        for path in sorted(tmp_path.iterdir()):
            if path.name != "bin":
                tried("picture: no file", lambda: read_image(path), path.name)
    for name in ("a" * 256 + ".png", "x/" * 2100 + "a.png", "nul\0.png", "text.png/a.png"):
        tried("picture: no file", lambda: read_image(tmp_path / name))
    assert tried.counts["picture: no file"][1] >= 12 and not (tmp_path / "ran").exists()


# ------------------------------------------------------------------ folders of bad pictures through the command


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    "A folder with an untrained small system that enlarges x8."
    folder = tmp_path_factory.mktemp("model") / "srresnet"
    recipe = resolve("srresnet", load_recipes(), load_params())
    spec = {k: 128 if v == "faces.size" else v for k, v in recipe["generator"].items()} | {"width": 8, "depth": 1}
    torch.manual_seed(0)
    write_model(
        folder, {"generator": build(spec).state_dict()}, {**recipe, "generator": spec, "critics": {}, "faces": "drawn"}
    )
    return folder


def restoring(system, pictures, out, *more):
    return ["restore", *map(str, pictures), "--system", str(system), "--out", str(out), "--quiet", *map(str, more)]


def output_lines(capfd):
    "Lines of stdout, and those of stderr that are ours."
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err, err
    return out.splitlines(), [line for line in err.splitlines() if line.startswith("facelab: ")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["restore", "degrade"])
def test_a_folder_of_bad_files(tmp_path, tried, system, capfd, command):
    bad, out = tmp_path / "album", tmp_path / "out"
    bad.mkdir()
    paths = [path for path, _ in fuzzed(bad, seed=2, every=8 if command == "restore" else 4)]
    before = tree(bad)
    words = (
        restoring(system, [bad], out)
        if command == "restore"
        else ["degrade", str(bad), "--chain", "prior_guided_x8", "--out", str(out), "--quiet"]
    )
    assert main(words) == 1
    written, failed = output_lines(capfd)
    names = {Path(line).name for line in written}
    for sentence in failed:
        check_sentence(sentence)
    made = {p for p in out.iterdir() if p.name != RECORD}
    assert names == {p.name for p in made} and all(read_image(p).numel() for p in made)
    for path in paths:
        assert (f"{path.stem}.png" in names) != any(path.name in sentence for sentence in failed), path
    assert tree(bad) == before and {p.name for p in tmp_path.iterdir()} == {"album", "out"}
    tried.counts[f"{command}: bad folder"] = [len(names), len(failed)]


NAMES = [
    "plain.png",
    "with space.png",
    "-dash.png",
    "--out.png",
    "zażółć.png",
    "顔.png",
    "🙂.png",
    "*.png",
    "a[1].png",
    "%s{0}.png",
    "..png",
    "a.b.c.png",
    "quote'\".png",
    "tab\t.png",
    "\x1b[31mred.png",
    "n" * 251 + ".png",
    "é" * 125 + ".png",
]


def awkward(folder):
    "Pictures with awkward names, as far as the disk takes them."
    folder.mkdir()
    for name in NAMES:
        with contextlib.suppress(OSError):
            shutil.copy(small_picture(folder), folder / name)
    return sorted(folder.iterdir())


def small_picture(folder):
    "A picture of 16 x 16 pixels beside the folder."
    path = folder.parent / "small.png"
    if not path.exists():
        write_image(path, torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)))
    return path


def test_awkward_names(tmp_path, tried, system, capfd):
    paths = awkward(tmp_path / "in")
    assert main(restoring(system, [tmp_path / "in"], tmp_path / "out")) == 0
    written, failed = output_lines(capfd)
    shown = {p.name for p in paths if not p.name.startswith(".")}
    assert len(written) == len(shown) and not failed and results(tmp_path / "out") == shown
    deep = tmp_path
    while len(str(deep)) < 4500:
        deep = deep / ("d" * 200)
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(21):  # a place whose whole path is longer than the system takes
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        shutil.copy(tmp_path / "small.png", "far.png")
        assert main(restoring(system, ["far.png"], "out")) == (0 if Path("out/far.png").exists() else 1)
    finally:
        os.chdir(here)
    output_lines(capfd)
    for words in (
        restoring(system, [deep / "far.png"], tmp_path / "out2"),
        restoring(system, [tmp_path / "small.png"], deep),
        restoring(deep, [tmp_path / "small.png"], tmp_path / "out2"),
        restoring(system, ["x" * 300 + ".png"], tmp_path / "out2"),
        restoring(system, [tmp_path / "small.png"], tmp_path / ("x" * 300)),
        ["faces", "check", str(deep)],
        ["faces", "check", "x" * 300],
        restoring(system, [tmp_path / "small.png"], tmp_path / "out2", "--landmarks", "x" * 300),
        restoring(system, [tmp_path / "small.png"], tmp_path / "out2", "--landmarks", tmp_path),
    ):
        assert main(words) == 1, words
        assert not output_lines(capfd)[0] and not (tmp_path / "out2").exists()
    tried.counts["restore: names"] = [len(paths) + 1, 9]


# ------------------------------------------------------------------ disks


@contextlib.contextmanager
def as_nobody():
    "Root may write everywhere; another user may not."
    if os.geteuid():
        yield
    else:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)


@pytest.fixture
def open_place():
    "A folder that every user may enter (pytest's is private)."
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def writers(system, source):
    "What writes: name -> function of a folder that makes one file or several in it."
    faces = draw_set(4, 2, 2, seed=0, size=32)
    net = load_model(system)
    return {
        "restore": lambda out: main(restoring(system, [source], out)),
        "degrade": lambda out: main(
            ["degrade", str(source), "--chain", "prior_guided_x8", "--out", str(out), "--quiet"]
        ),
        "sheet": lambda out: main(restoring(system, [source], out, "--sheet")),
        "pack": lambda out: shards_main(["pack", str(source), str(out), "--size", "16"]),
        "runner": lambda out: runner_main(
            ["--faces", str(source / "faces.safetensors"), "--out", str(out), "--recipes", "bicubic"]
        ),
        "write_image": lambda out: write_image(out / "a.png", torch.rand(3, 64, 64)),
        "save": lambda out: faces.save(out / "faces.safetensors"),
        "write_shards": lambda out: write_shards(faces, out, progress=False),
        "write_model": lambda out: write_model(out, {"generator": net[0].state_dict()}, net[1]),
        "write_text": lambda out: write_text(out / "a.txt", "word " * 2000),
    }


def refuses(name, write, out, capfd):
    "It fails with a sentence or with the system's error, of which the commands print one line."
    try:
        status = write(out)
    except FacelabError as error:
        return check_sentence(str(error))
    except OSError:
        return None
    assert isinstance(status, int) and status, f"{name} did not notice"
    out, err = capfd.readouterr()
    assert "Traceback" not in err and len(sentences(err)) >= 1, err
    for line in sentences(err):
        check_sentence(line)


def test_read_only_and_impossible_places(open_place, tried, system, capfd):
    source, closed, file = open_place / "in", open_place / "closed", open_place / "file"
    source.mkdir()
    for i in range(2):
        write_image(source / f"{i}.png", torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)))

    file.write_text("here first")
    closed.mkdir(mode=0o555)
    shutil.copytree(system, open_place / "model")
    before = tree(open_place)
    for name, write in writers(open_place / "model", source).items():
        for out in (closed, closed / "new", file, file / "below", Path("/dev/null/out"), Path("/proc/out"))[
            :: 3 if name == "runner" else 1
        ]:
            with as_nobody():
                refuses(name, write, out, capfd)
            tried.counts.setdefault("disk: read-only", [0, 0])[1] += 1
    assert tree(open_place) == before


@pytest.mark.parametrize("left", [0, 100])
def test_a_full_disk(tmp_path, tried, system, capfd, left):
    "The largest file that a process may write stands for the free space: old files stay, no file is half-written."
    source = tmp_path / "in"
    for i in range(2):
        write_image(source / f"{i}.png", torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)))
    for name, write in writers(system, source).items():
        out = tmp_path / name
        again = left and name not in ("pack", "write_shards", "runner")  # these leave old files alone
        if again:
            write(out)
        capfd.readouterr()
        before = tree(out) if again else {}
        with limited(resource.RLIMIT_FSIZE, left):
            refuses(name, write, out, capfd)
        after = tree(out) if out.exists() else {}
        assert not [p for p in after if Path(p).name.startswith(".")], after
        # a model without a recipe is none: half of one is never loaded
        assert before.items() - after.items() <= {("recipe.json", before.get("recipe.json"))}
        tried.counts.setdefault("disk: full", [0, 0])[1] += 1


# ------------------------------------------------------------------ Ctrl-C, and two at once


def stopped_at(n, run):
    "Call `run`, with a KeyboardInterrupt at the n-th line of facelab's own code that it reaches."
    left, package = n, str(Path(facelab.__file__).parent)

    def line(frame, event, _):
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return line

    try:
        sys.settrace(
            lambda frame, event, _: line if left > 0 and frame.f_code.co_filename.startswith(package) else None
        )
        return run()
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("what", ["restore", "degrade", "write_model", "save", "write_shards"])
def test_stopped_at_any_line(tmp_path, tried, system, what):
    """At every line up to the thirtieth, then at every eighth or so, until it gets through.

    Every file is whole, none is temporary, and a second run ends as if nothing had happened.
    """
    source = tmp_path / "in"
    for i in range(2):
        write_image(source / f"{i}.png", torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)))
    faces, net, restorer = draw_set(2, 1, 1, seed=0, size=32), load_model(system), Restorer(system)
    chain = Chain(
        load_degradations()["plain_x4"]["steps"]
        if "plain_x4" in load_degradations()
        else [{"use": "degradations.resample.Downsample", "scale": 4}]
    )
    do = {
        "restore": lambda out: restore_files([source], [restorer], out, progress=False),
        "degrade": lambda out: degrade_files([source], chain, out, progress=False),
        "write_model": lambda out: write_model(out, {"generator": net[0].state_dict()}, net[1]),
        "save": lambda out: faces.save(out / "faces.safetensors"),
        "write_shards": lambda out: write_shards(faces, out, per_shard=2, progress=False),
    }[what]
    do(tmp_path / "whole")
    whole, dice, n, stops = tree(tmp_path / "whole"), random.Random(3), 0, 0
    while True:
        n += 1 if n < 30 else dice.randint(1, 16)
        out = tmp_path / f"{n}"
        try:
            stopped_at(n, lambda: do(out))
            break
        except KeyboardInterrupt:
            stops += 1
        made = tree(out) if out.exists() else {}
        assert not [p for p in made if Path(p).name.startswith(".")], (n, made)
        assert {k: v for k, v in made.items() if k not in ("packing.json", RECORD)}.items() <= whole.items(), n
        do(out)
        assert tree(out) == whole, n
        shutil.rmtree(out)
    assert stops > 10
    tried.counts["Ctrl-C: any line"] = [1, stops]


def run_in_process(words, log, environment=()):
    "The command in a process of its own: its output goes into a file."
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    open(f"{log}.begun", "w").close()
    status = main(words)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.flush()
    os._exit(status)


@pytest.fixture(scope="module")
def server():
    "Starts processes that have imported torch already."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "facelab.evaluation.photographs",
            "facelab.faces.sets",
            "facelab.fleet.runner",
            "facelab.networks.srresnet",
            __name__,
        ]
    )
    return context


def start(server, words, log, **environment):
    process = server.Process(target=run_in_process, args=(list(words), str(log), environment))
    process.start()
    return process


@pytest.fixture
def album(tmp_path):
    for i in range(24):
        write_image(
            tmp_path / "album" / f"{i:02d}.png", torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i))
        )
    return tmp_path / "album"


def test_ctrl_c_at_any_moment(tmp_path, tried, system, album, server):
    "SIGINT after delays that grow by shares of the whole, until the command gets through."
    words, dice, statuses = restoring(system, [album], tmp_path / "whole"), random.Random(4), []
    first, began = start(server, words, tmp_path / "log"), time.monotonic()
    first.join(60)
    whole, step = tree(tmp_path / "whole"), (time.monotonic() - began) / 15
    assert first.exitcode == 0 and len(whole) == 25  # and the record
    out, delay = tmp_path / "out", 0.0
    while not statuses or statuses[-1] != 0:
        log = tmp_path / f"log{len(statuses)}"
        process = start(server, restoring(system, [album], out), log)
        while not Path(f"{log}.begun").exists():
            time.sleep(0.001)
        time.sleep(delay := delay + dice.uniform(0.1, 0.9) * step)
        if process.is_alive():
            os.kill(process.pid, signal.SIGINT)
        process.join(60)
        statuses.append(process.exitcode)
        text = log.read_text()
        assert process.exitcode in (0, 130) and "Traceback" not in text, text
        assert process.exitcode == 0 or sentences(text)[-1] == "facelab: stopped; what was finished is kept"
        made = {name: of for name, of in (tree(out) if out.exists() else {}).items() if name != RECORD}
        assert made.items() <= whole.items(), made
        assert len(statuses) < 200
    assert tree(out) == whole and len(statuses) > 2
    tried.counts["Ctrl-C: any moment"] = [1, len(statuses) - 1]


def test_two_processes_in_one_folder(tmp_path, tried, system, album, server):
    "Both end well, and leave what one alone leaves."
    for kind in ("restore", "degrade"):
        words = lambda out: (
            restoring(system, [album], out)
            if kind == "restore"
            else ["degrade", str(album), "--chain", "prior_guided_x8", "--size", "64", "--out", str(out), "--quiet"]
        )
        together = [start(server, words(tmp_path / f"{kind}2"), tmp_path / f"{kind}{i}.log") for i in range(3)]
        for process in together:
            process.join(60)
        assert [p.exitcode for p in together] == [0, 0, 0], (tmp_path / f"{kind}0.log").read_text()
        assert main(words(tmp_path / f"{kind}1")) == 0 and tree(tmp_path / f"{kind}1") == tree(tmp_path / f"{kind}2")
    faces = draw_set(12, 4, 4, seed=0, size=32)
    faces.save(tmp_path / "set" / "faces.safetensors")
    together = [server.Process(target=packing, args=(tmp_path / "set", tmp_path / "shards2")) for _ in range(3)]
    for process in together:
        process.start()
    for process in together:
        process.join(60)
    assert [p.exitcode for p in together] == [0, 0, 0]
    write_shards(faces, tmp_path / "shards1", per_shard=4, progress=False)
    assert tree(tmp_path / "shards1") == tree(tmp_path / "shards2")
    tried.counts["two processes"] = [3, 0]


def packing(source, out):
    sys.stdout = sys.stderr = open(os.devnull, "w")
    sys.exit(shards_main(["pack", str(source), str(out), "--size", "32", "--per-shard", "4"]))


# ------------------------------------------------------------------ weights and recipes


@pytest.fixture
def model(system, tmp_path):
    return Path(shutil.copytree(system, tmp_path / "model"))


def bad_weights(good):
    "Kind -> bytes of a .safetensors file, made from whole ones."
    tensors, data = dict(good), file_bytes(good)
    first = next(k for k, v in tensors.items() if v.ndim == 4)
    head = struct.unpack("<Q", data[:8])[0]
    changed = lambda **new: file_bytes({**tensors, **{first if k == "first" else k: v for k, v in new.items()}})
    out = {f"cut at {k}": data[:k] for k in (0, 1, 7, 8, 9, 100, 8 + head, len(data) // 2, len(data) - 1)}
    out |= {
        "longer": data + b"x",
        "huge header": struct.pack("<Q", 2**63) + data[8:],
        "large header": struct.pack("<Q", 2**30) + data[8:],
        "header of nothing": struct.pack("<Q", 0) + data[8:],
        "not finite": changed(first=tensors[first] * torch.nan),
        "infinite": changed(first=torch.full_like(tensors[first], torch.inf)),
        "another shape": changed(first=tensors[first].flatten()),
        "a dimension more": changed(first=tensors[first][None]),
        "empty": changed(first=tensors[first][:0]),
        "one tensor more": changed(more=torch.ones(3)),
        "one tensor less": file_bytes({k: v for k, v in tensors.items() if k != first}),
        "no tensors": file_bytes({}),
        "other names": file_bytes({f"x.{k}": v for k, v in tensors.items()}),
        "a pickle": pickle.dumps(tensors),
        "a zip": b"PK" + data,
        "text": b"{}" * 50,
        "deep": struct.pack("<Q", 200000) + b"[" * 200000,
    }
    dice = random.Random(5)
    for i in range(12):
        k = dice.randrange(8 + head)
        out[f"header bit {i}"] = data[:k] + bytes([data[k] ^ 1 << dice.randrange(8)]) + data[k + 1 :]
    return out


def file_bytes(tensors):
    from safetensors.torch import save

    return save({k: v.contiguous() for k, v in tensors.items()})


def test_weights_that_are_damaged_or_foreign(model, tmp_path, tried):
    path = model / "generator.safetensors"
    for kind, data in bad_weights(load_file(path)).items():
        path.write_bytes(data)
        with memory(3000):
            out = tried("weights", lambda: load_model(model), path)
        assert out is None or kind.startswith("header bit"), kind
    path.unlink()
    path.mkdir()
    tried("weights", lambda: load_model(model), path)
    assert tried.counts["weights"][1] > 30


class Touches:
    "Pickled, it makes a folder when it is read."

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickles_are_refused(tmp_path, tried):
    ran, good = tmp_path / "ran", {"a": torch.ones(3)}
    files = {
        "plain.pth": pickle.dumps(Touches(ran)),
        "old.pth": pickle.dumps({"state_dict": Touches(ran)}, protocol=2),
        "empty.pth": b"",
        "zeros.pth": bytes(1000),
        "text.pth": b"weights",
    }
    torch.save({"a": Touches(ran)}, tmp_path / "new.pth")
    torch.save({"a": Touches(ran)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save([torch.ones(3)], tmp_path / "list.pth")
    torch.save({"a": torch.ones(3), "b": "words"}, tmp_path / "words.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    torch.save(good, tmp_path / "good.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    files |= {f"cut{k}.pth": whole[:k] for k in (1, 4, 60, len(whole) // 2, len(whole) - 1)}
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps(Touches(ran), protocol=2))
        z.writestr("archive/version", "3")
        z.writestr("../../outside", "x")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for path in sorted(tmp_path.glob("*.pth")):
        out = tried("weights: pickle", lambda: load_weights(path), path.name)
        assert (out is not None) == (path.name == "good.pth"), path.name
    (tmp_path / "x-0123abcd.pth").write_bytes(whole)
    tried("weights: hash", lambda: find_weights(tmp_path / "x-0123abcd.pth"), "damaged")
    (tmp_path / "parts.safetensors").write_bytes(
        file_bytes({"stages.0.0.weight": torch.tensor(1.0), "heads.0.weight": torch.ones(3)})
    )
    tried("weights", lambda: make_features("trained", file=tmp_path / "parts.safetensors"), "parts.safetensors")
    assert not ran.exists() and tried.counts["weights: pickle"][0] == 1 and "outside" not in str(tree(tmp_path))


# what a recipe from elsewhere could try to call: all of these exist, and none is a network
CALLABLE = [
    "facelab.base.files.write_text",
    "facelab.base.images.write_image",
    "facelab.base.names.build",
    "facelab.faces.shards.write_text",
    "facelab.training.models.write_tensors",
    "facelab.training.zoo.fetch_model",
    "facelab.evaluation.photographs.Path",
    "facelab.fleet.sets.write_file",
    "facelab.base.weights.fetch_weights",
    "facelab.networks.srresnet.nn",
    "facelab.networks.drawing.torch",
]
WRITE_TEXT = "faces.shards.write_text"


@pytest.mark.parametrize("name", CALLABLE)
def test_what_recipes_must_not_call_exists(name):
    "An address of a module that was renamed would be refused for the wrong reason."
    module, _, function = name.rpartition(".")
    assert hasattr(importlib.import_module(module), function)


def bad_recipes(good, outside):
    "Texts of a recipe.json."
    spec = good["generator"]
    writing = {"use": WRITE_TEXT, "path": str(outside), "text": "x"}
    with_spec = lambda **new: json.dumps({**good, "generator": {**spec, **new}})
    uses = [
        "os.system",
        "../../x",
        "/etc/passwd",
        "subprocess.run",
        "builtins.eval",
        *(name.removeprefix("facelab.") for name in CALLABLE),
        "networks.srresnet",
        "",
        ".",
        "networks..",
        "networks.srresnet.__doc__",
        7,
        None,
        ["a"],
        {"use": "x"},
    ]
    out = [with_spec(use=use) for use in uses]
    out += [
        json.dumps({**good, "generator": writing}),
        json.dumps({**good, "generator": {"use": "systems.sequence.Sequence", "parts": [spec, writing]}}),
    ]
    out += [
        with_spec(**{k: v})
        for k in ("width", "depth", "scale", "nonsense")
        for v in (-1, 0, "wide", None, [], 1e400, {"a": 1})
    ] + [with_spec(width=10**9)]
    out += ["", "{", "[]", "null", "7", '"text"', "{}", "[" * 100000, '{"a":' * 100000, "\0", "\ufeff{}", "NaN"]
    out += [
        json.dumps({k: v for k, v in good.items() if k != field})
        for field in ("generator", "critics", "kind", "name", "label", "degradation")
    ]
    out += [
        json.dumps({**good, field: value})
        for field in ("generator", "critics", "name", "label", "degradation")
        for value in (None, 7, "text", [], {}, ["a"])
    ]
    out += [
        json.dumps({**good, "name": name})
        for name in ("../../outside", "/outside", "..", ".", "", "a/b", "a\0b", "a\nb", "x" * 5000)
    ]
    out += [
        json.dumps({**good, "degradation": [step]})
        for step in (
            {"use": "os.system", "command": "true"},
            writing,
            {"use": "degradations.resample.Downsample", "scale": 10**9},
            {},
            7,
        )
    ]
    return out


def test_recipes_that_came_from_elsewhere(model, tmp_path, tried, system):
    """A recipe.json may come from any address.

    It can name networks and nothing else of the package, and its name cannot lead out of a folder.
    """
    path, outside, given = model / "recipe.json", tmp_path / "outside", torch.rand(1, 3, 16, 16)
    good, before = json.loads(path.read_text()), tree(tmp_path)
    for text in bad_recipes(good, outside):
        path.write_text(text)
        with memory(3000):
            restorer = tried("recipe", lambda: Restorer(model))
        if restorer is None:
            continue
        out = tried("recipe", lambda: restorer(given))
        assert "/" not in restorer.name and (out is None or out.isfinite().all())
    path.write_bytes(b"\xff\xfe{}")
    tried("recipe", lambda: load_model(model), path)
    path.unlink()
    assert (
        tree(tmp_path).items() == before.items() - {("model/recipe.json", before["model/recipe.json"])}
        and tried.counts["recipe"][1] > 90
    )


# ------------------------------------------------------------------ archives and face sets


def tar_of(*members):
    "A tar file: members are a name and bytes, or fields of a TarInfo."
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
            else:
                info.type, info.linkname = what
            tar.addfile(info, io.BytesIO(what) if isinstance(what, bytes) else None)
    return file.getvalue()


@pytest.fixture(scope="module")
def packed_faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    write_shards(draw_set(4, 1, 1, seed=0, size=32), folder, per_shard=4, progress=False)
    return folder


@pytest.fixture
def shards(packed_faces, tmp_path):
    return Path(shutil.copytree(packed_faces, tmp_path / "deep" / "shards"))


def adopt(folder, data, name="train-000000.tar", **fields):
    "A shard of these bytes, with an index that agrees."
    (folder / name).write_bytes(data)
    about = json.loads((folder / "index.json").read_text())
    next(row for row in about["shards"] if row["file"] == name).update(
        bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), **fields
    )
    (folder / "index.json").write_text(json.dumps(about))


def read_all(folder):
    check_shards(folder, progress=False)
    return open_shards(folder).batch(range(6))


def test_archives_that_lead_elsewhere(shards, tmp_path, tried):
    "Members are never unpacked, and names that would lead out of a folder are refused all the same."
    whole = (shards / "train-000000.tar").read_bytes()
    before = {k: v for k, v in tree(tmp_path).items() if "shards/" not in k}
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
    kinds = {
        "link": (tarfile.SYMTYPE, "/etc/passwd"),
        "link up": (tarfile.SYMTYPE, "../../outside"),
        "hard": (tarfile.LNKTYPE, "/etc/passwd"),
        "hard here": (tarfile.LNKTYPE, members[0][0]),
        "device": (tarfile.CHRTYPE, ""),
        "block": (tarfile.BLKTYPE, ""),
        "pipe": (tarfile.FIFOTYPE, ""),
        "folder": (tarfile.DIRTYPE, ""),
    }
    for name, what in [
        *(
            (name, b"x")
            for name in (
                "../outside.webp",
                "/tmp/outside.webp",
                "a/../../outside.webp",
                "..",
                "\n.webp",
                "C:\\x.webp",
                "~/.bashrc",
                "x" * 300 + "/y.webp",
            )
        ),
        *(("00000000.webp", kind) for kind in kinds.values()),
        *(("extra", kind) for kind in kinds.values()),
    ]:
        for at in (0, len(members)):
            adopt(shards, tar_of(*members[:at], (name, what), *members[at:]))
            assert tried("archive: member", lambda: read_all(shards), "train-000000.tar") is None, (name, what)
    touching = Touches(tmp_path / "outside")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,), }".ljust(117) + b"\n"
    contents = [
        b"",
        b"PK",
        b"0",
        b"[" * 100000,
        b"\x93NUMPY\x01\x00\xff\xff",
        np.lib.format.magic(1, 0) + struct.pack("<H", 118) + header,
        pickle.dumps(touching),
        npz(np.array([touching], object)),
        npz(np.zeros((32, 32), np.complex64)),
        npz(np.full((32, 32), "x")),
        npz(np.zeros(2**22)),
        json.dumps({"name": "../x", "split": "train"}).encode(),
        forged(6000, 6000)["x.png"],
    ]
    for name in (m for m, _ in members[:5]):  # each member of a face replaced
        for data in contents:
            adopt(shards, tar_of(*((m, data if m == name else old) for m, old in members)))
            with memory(1500):
                assert tried("archive: content", lambda: read_all(shards), "train-000000.tar") is None, (
                    name,
                    data[:40],
                )
    dice = random.Random(6)
    for how, data in [m for _ in range(2) for m in mutations(whole, dice, [encoded(".png"), whole[512:]])]:
        adopt(shards, data)
        with memory(1500):
            out = tried(f"archive: {how}", lambda: read_all(shards), "shards/")
        assert out is None or out["image"].shape == (6, 3, 32, 32)
    assert {k: v for k, v in tree(tmp_path).items() if "shards/" not in k} == before


def npz(array):
    np.savez_compressed(file := io.BytesIO(), depth=array, foreground=array)
    return file.getvalue()


def test_indexes_that_lie(shards, tried):
    text = (shards / "index.json").read_text()
    about = json.loads(text)

    def change(where, value):
        new = json.loads(text)
        *path, last = where
        inner = new
        for key in path:
            inner = inner[key]
        inner[last] = value
        (shards / "index.json").write_text(json.dumps(new))
        with memory(1500):
            return tried("archive: index", lambda: read_all(shards), "shards")

    odd = [None, -1, 0, 10**12, 1e400, "", "../x", "/etc/passwd", [], {}, [[]], True, "x" * 10000]
    places = (
        [(k,) for k in about]
        + [("labels", k) for k in about["labels"]]
        + [
            ("labels", "extra"),
            ("labels", "images"),
            ("labels", "device"),
            ("labels", "landmarks", 0),
            ("labels", "parsing", 0),
        ]
        + [("shards", 0, k) for k in about["shards"][0]]
    )
    for where in places:
        for value in odd:
            change(where, value)
    change(("shards",), about["shards"][:1] * 2)
    for data in (b"[" * 100000, b"\xff\xfe", b"", b"{}", b"NaN", b'{"format": "facelab shards 1"}'):
        (shards / "index.json").write_bytes(data)
        assert tried("archive: index", lambda: read_all(shards), "index.json") is None
    assert tried.counts["archive: index"][1] > 200


def test_face_sets_in_a_file(tmp_path, tried):
    faces, path = draw_set(4, 1, 1, seed=0, size=32), tmp_path / "faces.safetensors"
    faces.save(path)
    whole, columns = path.read_bytes(), load_file(path)
    about = dict(format="facelab faces 1", name="x", names=list("abcdef"), notes=[])

    def attempt():
        "The set that is loaded from the file, or None; checking it must come to the same end."
        with memory(1500):
            out = tried("face set", lambda: FaceSet.load(path), path)
            batch = None if out is None else tried("face set", lambda: out.batch(range(len(out))))
            report = check_faces(path, 32)
        assert report.usable == (batch is not None), report.problem
        return out

    def attempt_with(about=about, **new):
        "The same with other columns or another header; a column that is None is left out."
        changed = {k: v for k, v in {**columns, **new}.items() if v is not None}
        save_file(changed, path, {"facelab": about if isinstance(about, str) else json.dumps(about)})
        return attempt()

    assert attempt_with() is not None
    for k in columns:
        assert (attempt_with(**{k: None}) is None) == (k in ("images", "split"))
    for k, x in columns.items():
        for bad in (x[:-1], x[None, :6], x[None], x.double() if x.is_floating_point() else x.float(), torch.zeros(0)):
            assert attempt_with(**{k: bad.clone()}) is None, (k, bad.shape, bad.dtype)
        if x.is_floating_point():
            for value in (torch.nan, torch.inf):
                assert attempt_with(**{k: torch.full_like(x, value)}) is None
    assert (
        attempt_with(split=columns["split"] + 200) is None
        and attempt_with(parsing=columns["parsing"] + 30) is None
        and attempt_with(images=columns["images"][..., :-1].clone()) is None
    )
    for k in ("device", "name", "notes", "extra", "__class__"):
        assert attempt_with(**{k: torch.ones(6)}) is None
    for bad in (
        "",
        "{",
        "[]",
        "7",
        "[" * 100000,
        {},
        {"format": "facelab faces 1"},
        {**about, "names": 7},
        {**about, "names": ["a"]},
        {**about, "notes": 7},
        {**about, "notes": [7]},
        {**about, "format": "facelab faces 2"},
    ):
        assert attempt_with(about=bad) is None, bad
    dice = random.Random(7)
    for k in (0, 7, 8, 100, 1000, len(whole) - 1):
        path.write_bytes(whole[:k])
        attempt()
    for _ in range(40):
        at = dice.randrange(700)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << dice.randrange(8)]) + whole[at + 1 :])
        attempt()
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir()
    tried("face set", lambda: FaceSet.load(path), path)


def test_checkpoints(system, tmp_path, tried):
    "A checkpoint that is damaged is refused before the run is touched."
    faces, params = draw_set(8, 0, 0, seed=0, size=128), load_params()
    params["train"].update(steps=2, batch=2, width=0.125, depth=0.05)
    run, path = Run(resolve("srresnet", load_recipes(), params), faces), tmp_path / "state.safetensors"
    save_state(run, path, {"a": 1})
    assert load_state(run, path, {"a": 1})
    tensors = load_file(path)
    whole = path.read_bytes()
    weights = {k: v.clone() for k, v in run.bare["generator"].state_dict().items()}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        head = json.loads(file.metadata()["facelab"])
    net = next(k for k in tensors if k.startswith("net/"))

    def refused():
        out = tried("checkpoint", lambda: load_state(run, path, {"a": 1}), path)
        assert all(torch.equal(v, weights[k]) for k, v in run.bare["generator"].state_dict().items())
        return out is None

    for text in (
        "",
        "{",
        "[]",
        "null",
        "[" * 100000,
        *(json.dumps({k: v for k, v in head.items() if k != gone}) for gone in head),
        *(json.dumps({**head, k: "x"}) for k in head),
    ):
        save_file(tensors, path, {"facelab": text})
        assert refused(), text[:100]
    for new in (
        {k: v for k, v in tensors.items() if k != net},
        {**tensors, net: tensors[net].flatten()[:1]},
        {**tensors, "optimiser/generator/x/step": torch.ones(1)},
        {**tensors, "optimiser/nobody/0/step": torch.ones(1)},
        {"a": torch.ones(1)},
    ):
        save_file(new, path, {"facelab": json.dumps(head)})
        assert refused()
    for data in (whole[: len(whole) // 2], b"", bytes(1000)):
        path.write_bytes(data)
        assert refused()


# ------------------------------------------------------------------ tables and the layouts of face sets

ROWS = b"0.png,3,4,20,4,12,9,6,18,17,18\n1.png,3,4,20,4,12,9,6,18,17,18\n"


def test_tables(tmp_path, tried):
    dice = random.Random(8)
    cases = [
        data for _ in range(8) for _, data in mutations(ROWS, dice, [b"file split\n0.png,train\n", encoded(".png")])
    ]
    cases += [
        ROWS.replace(b"12", word)
        for word in (b"nan", b"inf", b"-inf", b"1e999", b"", b" ", b"0x10", b"1_0", "١٢".encode(), b"12;13", b"\0")
    ] + [
        b"\xef\xbb\xbf" + ROWS,
        ROWS.replace(b"\n", b"\r\n"),
        ROWS.decode().encode("utf-16"),
        ROWS * 2,
        b"\n" * 1000,
        b"," * 5000,
        b"x," + b"9" * 5000,
    ]
    for i, data in enumerate(cases):
        path = tmp_path / f"points{i}{dice.choice(('.csv', '.txt'))}"
        path.write_bytes(data)
        rows = tried("table", lambda: read_table(path), path.name)
        assert rows is None or rows and all(np.isfinite(row).all() for row in rows.values())
    assert min(tried.counts["table"]) > 20


def layouts(folder):
    "Face sets of every layout, two pictures each, as their text files: place -> text."
    points = {f"{i}.png": [18, 20, 46, 20, 32, 34, 22, 44, 42, 44] for i in range(2)}
    csv = "".join(f"{name},{','.join(map(str, p))}\n" for name, p in points.items())
    txt = "".join(f"{name} {' '.join(map(str, p))}\n" for name, p in points.items())
    sets = {
        "plain": {"landmarks_5.csv": csv, "split.csv": "file,split\n0.png,train\n1.png,test\n"},
        "celeba": {
            "list_landmarks_align_celeba.txt": f"2\nlefteye_x lefteye_y\n{txt}",
            "list_eval_partition.txt": "0.png 0\n1.png 2\n",
            "identity_CelebA.txt": "0.png 7\n1.png 8\n",
        },
        "helen": {
            "exemplars.txt": "1 , 0\n",
            "testing.txt": "2 , 1\n",
            "annotation/1.txt": "0\n" + "3 , 4\n" * 194,
            "annotation/2.txt": "1\n" + "3 , 4\n" * 194,
        },
        "mask": {
            "list_eval_partition.txt": "000001.jpg 0\n000002.jpg 2\n",
            "CelebA-HQ-to-CelebA-mapping.txt": "idx orig_idx orig_file\n0 1 000001.jpg\n1 2 000002.jpg\n",
        },
    }
    pictures = {
        "plain": "{}.png",
        "celeba": "img_align_celeba/{}.png",
        "helen": "images/{}.png",
        "mask": "CelebA-HQ-img/{}.png",
    }
    for name, place in pictures.items():
        for i in range(2):
            write_image(
                folder / name / place.format(i), torch.rand(3, 64, 60, generator=torch.Generator().manual_seed(i))
            )
        if name == "mask":
            for part in ("skin", "l_eye", "r_eye", "mouth"):
                for i in range(2):
                    masks = folder / name / "CelebAMask-HQ-mask-anno" / "0"
                    write_image(masks / f"{i:05d}_{part}.png", torch.ones(3, 64, 64))
        for file, text in sets[name].items():
            (folder / name / file).parent.mkdir(exist_ok=True)
            (folder / name / file).write_text(text)
    return {folder / name / file: text.encode() for name, files in sets.items() for file, text in files.items()}


@pytest.mark.filterwarnings("ignore")
def test_layouts_with_damaged_lists_and_pictures(tmp_path, tried, capfd):
    "`faces check` never raises: a set is usable, or the report says why not."
    dice = random.Random(9)
    for path, text in layouts(tmp_path).items():
        root = tmp_path / path.relative_to(tmp_path).parts[0]
        numbers = [
            text.replace(word, new)
            for word in (b"0", b"2", b"18", b"46")
            if word in text
            for new in (b"nan", b"1e999", b"-7", b"1e12", b"1e-9", b"0.5", b"")
        ]
        for data in [
            text,
            *(data for _, data in mutations(text, dice, [ROWS, encoded(".png")])),
            *numbers,
            b"\xff\xfe" + text,
        ]:
            path.write_bytes(data)
            with memory(1500):
                report = tried("layout: list", lambda: check_faces(root, 32))
            if not report.usable:
                check_sentence(report.problem)
                tried.counts["layout: list"][0] -= 1
                tried.counts["layout: list"][1] += 1
        path.write_bytes(text)
    for path in (p for p in tmp_path.rglob("*.png") if p.stem != "1"):
        whole = path.read_bytes()
        for _, data in list(mutations(whole, dice, [encoded(".gif", "P")]))[::4]:
            path.write_bytes(data)
            assert faces_main(["check", str(tmp_path / path.relative_to(tmp_path).parts[0]), "--size", "32"]) in (0, 1)
            out, err = capfd.readouterr()
            assert "Traceback" not in err and out + err
            tried.counts.setdefault("layout: picture", [0, 0])[not out] += 1
        path.write_bytes(whole)
    for size in (0, -5, 10**9):
        assert faces_main(["check", str(tmp_path / "plain"), "--size", str(size)]) == 1, size
    assert "Traceback" not in capfd.readouterr().err and min(tried.counts["layout: list"]) > 20


# ------------------------------------------------------------------ arrays

VALUES = st.sampled_from([torch.nan, torch.inf, -torch.inf, -1.0, 0.0, 0.5, 1.0, 2.0, 255.0, 1e30])
DTYPES = st.sampled_from(
    [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.uint8,
        torch.int8,
        torch.int64,
        torch.bool,
        torch.complex64,
    ]
)


@st.composite
def arrays(draw):
    shape = draw(
        st.one_of(
            st.sampled_from([(3, 8, 8), (1, 3, 16, 16), (2, 3, 16, 16)]),
            st.lists(st.integers(0, 9), max_size=5).map(tuple),
        )
    )
    x = torch.full(shape, draw(st.sampled_from([0.5, 0.0, 1.0])))
    if x.numel() and draw(st.booleans()):
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(VALUES)
    return x.to(draw(DTYPES))


@pytest.mark.filterwarnings("ignore")
def test_arrays(tmp_path, tried):
    "NaN, infinities, whole numbers, wrong shapes, nothing at all: a valid result, or one sentence."
    chain = Chain(
        [
            {"use": "degradations.resample.Downsample", "scale": 2},
            {"use": "degradations.camera.GaussianNoise", "sigma": 0.02},
        ]
    )

    @settings(max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(arrays())
    def all_of_them(x):
        out = tried("array: to_uint8", lambda: to_uint8(x))
        assert out is None or out.dtype == torch.uint8 and out.shape == x.shape
        out = tried("array: to_float", lambda: to_float(x))
        assert out is None or not out.numel() or 0 <= out.min() and out.max() <= 1
        out = tried("array: write_image", lambda: write_image(tmp_path / "out.png", x), "out.png")
        assert (out is None) == (not (tmp_path / "out.png").exists())
        if out:
            assert read_image(out).shape == x.shape
            out.unlink()
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()  # torch resizes no half precision on a CPU
        out = tried("array: chain", lambda: chain(x, Dice(0, "degrade", range(len(x)) if x.ndim else [0])))
        assert out is None or out.input.isfinite().all() and 0 <= out.input.min() <= out.input.max() <= 1
        if x.ndim and x.shape[0] < 3:
            tried("array: show", lambda: show(x))
        out = tried("array: colours", lambda: colour_labels(x, 5))
        assert out is None or out.shape[1] == 3

    all_of_them()
    for image in (None, 7, "text", [[1.0]], np.zeros((3, 4, 4), np.float32)):
        tried("array: write_image", lambda: write_image(tmp_path / "out.png", image), "out.png")
    assert min(map(sum, tried.counts.values())) > 50 and not list(tmp_path.iterdir())


# ------------------------------------------------------------------ the runner


def test_the_runner(tmp_path, tried, capfd):
    draw_set(4, 2, 2, seed=0, size=32).save(tmp_path / "faces.safetensors")
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "faces.safetensors").read_bytes()[:5000])
    save_file({"images": torch.ones(3)}, tmp_path / "foreign.safetensors", {"facelab": '{"format": "facelab faces 1"}'})
    before = tree(tmp_path)
    yamls = {
        "empty": b"",
        "list": b"[1]",
        "text": b"words",
        "unknown": b"trian: {steps: 3}",
        "kind": b"train: {steps: many}",
        "open": b"train: {",
        "tab": b"train:\n\tsteps: 3",
        "code": b"train: !!python/object/apply:os.mkdir [ran]",
        "tag": b"!x y",
        "none": b"train:",
        "bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 110)),
        "negative": b"train: {batch: -1}",
        "inf": b"train: {steps: .inf}",
    }
    (tmp_path / "params").mkdir()
    for name, text in yamls.items():
        (tmp_path / "params" / f"{name}.yaml").write_bytes(text)
    asks = [["--params", str(tmp_path / "params" / f"{name}.yaml"), "--seconds", "0"] for name in yamls] + [
        ["--params", "nowhere.yaml"],
        ["--profile", "../params"],
        ["--profile", ""],
        ["--recipes", "../x"],
        ["--recipes", "a" * 300],
        ["--inputs", "nowhere"],
    ]
    asks += [
        ["--faces", str(tmp_path / name)]
        for name in ("bad.safetensors", "foreign.safetensors", "nowhere", "params", "params/list.yaml")
    ]
    for ask in asks:
        given_ = {
            "--faces": str(tmp_path / "faces.safetensors"),
            "--out": str(tmp_path / "out"),
            "--recipes": "bicubic",
            **dict(zip(ask[::2], ask[1::2])),
        }
        status = runner_main([word for pair in given_.items() for word in pair])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err, (ask, err)
        assert status in (0, 2) or (lines := sentences(err)) and [check_sentence(line) for line in lines], ask
        tried.counts.setdefault("runner", [0, 0])[status == 1] += 1
        assert (
            not (tmp_path / "ran").exists()
            and {k: v for k, v in tree(tmp_path).items() if not k.startswith(("out", "params"))} == before
        )
    assert tried.counts["runner"][1] > 15


# ------------------------------------------------------------------ as a user types it


def test_as_it_is_typed(tmp_path, tried, system):
    """One real process, without a home and with a locked cache: bad files, good ones, awkward names.

    There is one sentence for each bad file, nothing is lost, and nothing lies elsewhere.
    """
    (tmp_path / "album").mkdir()
    good = awkward(tmp_path / "in")
    bad = [path for path, _ in fuzzed(tmp_path / "album", seed=10, every=9)]
    for path in good:
        path.rename(tmp_path / "album" / path.name)
    (tmp_path / "in").rmdir()
    before = tree(tmp_path / "album")
    env = {k: v for k, v in ENV.items() if k not in ("HOME", "FACELAB_WEIGHTS")} | {
        "XDG_CACHE_HOME": "/proc/nowhere",
        "XDG_CONFIG_HOME": "/proc/nowhere",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    (tmp_path / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "facelab.apps.commands", *restoring(system, [tmp_path / "album"], tmp_path / "out")],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    refused = [line for line in done.stderr.splitlines() if line.startswith("facelab: ")]
    made = {Path(name).stem for name in results(tmp_path / "out")}
    good = [p for p in good if not p.name.startswith(".")]
    for line in refused:
        check_sentence(line)
    assert (
        {p.stem for p in good} <= made
        and made | {p.stem for p in bad} == {p.stem for p in [*good, *bad]}
        and len(refused) == len({p.stem for p in bad} - made) > 20
    )
    assert tree(tmp_path / "album") == before and {p.name for p in tmp_path.iterdir()} <= {
        "album",
        "out",
        "tmp",
        "small.png",
    }
    tried.counts["typed"] = [len(made), len(refused)]


def test_interrupted_as_it_is_typed(tmp_path, tried, system, album):
    "A real process that gets SIGINT as soon as its first picture is there."
    process = subprocess.Popen(
        [sys.executable, "-m", "facelab.apps.commands", *restoring(system, [album], tmp_path / "out")],
        env=ENV,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (tmp_path / "out").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (
        process.returncode in (0, 130)
        and "Traceback" not in out + err
        and (process.returncode == 0 or err == "facelab: stopped; what was finished is kept\n")
    ), err
    made = results(tmp_path / "out")
    assert all(read_image(tmp_path / "out" / name).shape == (3, 128, 128) and name[0] != "." for name in made)
    tried.counts["Ctrl-C: typed"] = [0, 1]


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "/nonexistent"},
        {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"},
        {"XDG_CACHE_HOME": "/proc/nowhere", "TORCH_HOME": "/proc/nowhere"},
        {"FACELAB_WEIGHTS": "/nonexistent"},
        {"FACELAB_WEIGHTS": "/dev/null"},
        {"PYTHONIOENCODING": "ascii"},
        {"COLUMNS": "1"},
    ],
)
def test_odd_surroundings(tmp_path, tried, system, capfd, monkeypatch, environment):
    write_image(tmp_path / "small.png", torch.rand(3, 16, 16))
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    if environment.get("HOME") is None:
        monkeypatch.delenv("HOME")
    assert main(restoring(system, [tmp_path / "small.png"], tmp_path / "out")) == 0 and main(["weights"]) == 0
    assert main(restoring("file:///nowhere", [tmp_path / "small.png"], tmp_path / "out2")) == 1
    output_lines(capfd)
    tried.counts["surroundings"] = [2, 1]


def impossible_requests(tmp_path, system):
    "Points and options that cannot be: name -> words."
    write_image(tmp_path / "photo.png", torch.rand(3, 120, 100, generator=torch.Generator().manual_seed(0)))
    write_image(tmp_path / "small.png", torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)))
    right = [35, 50, 65, 50, 50, 65, 38, 80, 62, 80]
    tables = {
        "odd": right[:9],
        "three": right[:6],
        "none": [1],
        "one point": [50] * 10,
        "one line": [50, 50, 51, 50, 52, 50, 53, 50, 54, 50],
        "tiny": [50 + v / 1e6 for v in right],
        "small": [50 + v / 300 for v in right],
        "huge": [v * 1e6 for v in right],
        "large": [v * 40 for v in right],
        "far": [v + 1e7 for v in right],
        "negative": [-v for v in right],
        "enormous": [v * 1e300 for v in right],
        "upside down": [100 - v for v in right],
    }
    out = {}
    for name, row in tables.items():
        (tmp_path / f"{name}.csv").write_text("photo.png," + ",".join(map(str, row)) + "\n")
        out[f"restore {name}"] = restoring(
            system, [tmp_path / "photo.png"], tmp_path / "out", "--landmarks", tmp_path / f"{name}.csv"
        )
        out[f"degrade {name}"] = [
            "degrade",
            str(tmp_path / "photo.png"),
            "--chain",
            "jdsr_gan_x4",
            "--out",
            str(tmp_path / "out"),
            "--quiet",
            "--landmarks",
            str(tmp_path / f"{name}.csv"),
        ]
    for size in ("0", "-8", "1", "7", "100", "1000000"):
        out[f"restore size {size}"] = restoring(system, [tmp_path / "small.png"], tmp_path / "out", "--size", size)
        out[f"degrade size {size}"] = [
            "degrade",
            str(tmp_path / "small.png"),
            "--chain",
            "prior_guided_x8",
            "--out",
            str(tmp_path / "out"),
            "--quiet",
            "--size",
            size,
        ]
    for seed in ("-1", str(2**64), str(10**30)):
        out[f"seed {seed}"] = [
            "degrade",
            str(tmp_path / "small.png"),
            "--chain",
            "prior_guided_x8",
            "--out",
            str(tmp_path / "out"),
            "--quiet",
            "--seed",
            seed,
        ]
    for pattern in ("a**b", "**", "[", "*" * 50, "", "/", "//", "~", "\n*"):
        out[f"pattern {pattern!r}"] = restoring(
            system, [tmp_path / pattern if pattern.strip("/~") else pattern], tmp_path / "out"
        )
    return out


def test_points_and_options_that_cannot_be(tmp_path, tried, system, capfd):
    wrong = {}
    for name, words in impossible_requests(tmp_path, system).items():
        try:
            with memory(1500), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                status = main(words)
        except SystemExit as error:
            status = error.code
        except BaseException as error:
            status = repr(error)
        err = capfd.readouterr().err
        tried.counts.setdefault("option", [0, 0])[status != 0] += 1
        if status not in (0, 1, 2) or "Traceback" in err or "Memory" in err:
            wrong[name] = (status, err[-200:])
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert not wrong, "\n".join(f"{k}: {v}" for k, v in wrong.items())


def test_pictures_are_never_written_over(tmp_path, tried, system, capfd):
    "Results into the pictures' own folder, sheets that have a picture's name."
    for name in ("in/a.png", "in/b.png", "sheets/a.png", "sheets/a_sheet.png"):
        write_image(tmp_path / name, torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(len(name))))
    (tmp_path / "link").symlink_to("in")
    before, wrong = tree(tmp_path), []
    degrading = lambda source, out: [
        "degrade",
        str(source),
        "--chain",
        "prior_guided_x8",
        "--size",
        "64",
        "--out",
        str(out),
        "--quiet",
    ]
    for words in (
        restoring(system, [tmp_path / "in"], tmp_path / "in"),
        degrading(tmp_path / "in", tmp_path / "in"),
        restoring(system, [tmp_path / "in"], tmp_path / "link"),
        degrading(tmp_path / "in", tmp_path / "in" / ".." / "in"),
        restoring(system, [tmp_path / "in" / "a.png"], tmp_path / "in"),
        restoring(system, [tmp_path / "sheets"], tmp_path / "out", "--sheet"),
        [
            "restore",
            str(tmp_path / "in"),
            "--system",
            str(system),
            str(system),
            "--out",
            str(tmp_path / "out"),
            "--quiet",
        ],
    ):
        status = main(words)
        if status != 1 or {k: v for k, v in tree(tmp_path).items() if k.split("/")[0] != "out"} != before:
            wrong.append(words)
        tried.counts.setdefault("overwriting", [0, 0])[1] += 1
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        for name in ("in/a.png", "in/b.png"):
            write_image(tmp_path / name, torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(len(name))))
    output_lines(capfd)
    assert not wrong, "\n".join(map(str, wrong))


def test_names_that_no_terminal_shows(tmp_path, tried, system, server):
    "A line end or bytes that are no text, in a name: one line each, in a process with a terminal's encoding."
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "small.png", torch.rand(3, 16, 16))
    names = ["line\nend.png", os.fsdecode(b"bytes\xff.png"), "\x1b[31mred.png", "\u202egnp.exe.png"]
    for name in names:
        shutil.copy(tmp_path / "small.png", tmp_path / "in" / name)
        (tmp_path / "in" / f"bad{name}").write_text("nothing")
    process = start(server, restoring(system, [tmp_path / "in"], tmp_path / "out"), tmp_path / "log")
    process.join(60)
    text = (tmp_path / "log").read_bytes()
    assert (
        process.exitcode == 1
        and b"Traceback" not in text
        and len(text.splitlines()) == 2 * len(names)
        and b"\x1b" not in text
    ), text
    assert results(tmp_path / "out") == set(names)
    tried.counts["restore: names"] = [len(names), len(names)]


def test_masks_are_found_by_name_and_bad_ones_refused(tmp_path, tried, system, capfd):
    write_image(tmp_path / "in" / "a[1].png", torch.rand(3, 16, 16))
    ask = restoring(system, [tmp_path / "in"], tmp_path / "out", "--hidden", tmp_path / "masks")

    def answer():
        return main(ask), output_lines(capfd)[1]

    (tmp_path / "masks").mkdir()
    assert answer()[0] == 1
    (tmp_path / "masks" / "a[1].png").write_bytes(b"\x89PNG")
    status, failed = answer()
    failed = [line for line in failed if "takes no mask" not in line]
    assert status == 1 and len(failed) == 1 and "masks/a[1].png" in failed[0], failed
    write_image(tmp_path / "masks" / "a[1].png", torch.zeros(3, 16, 16))
    status, said = answer()
    assert status == 0 and all("takes no mask" in line for line in said)
    tried.counts["masks"] = [1, 2]


def test_lists_of_models_with_foreign_ones_among_them(tmp_path, tried, system, capfd, monkeypatch):
    monkeypatch.setenv("FACELAB_WEIGHTS", str(tmp_path))
    shutil.copytree(system, tmp_path / "good")
    good = json.loads((system / "recipe.json").read_text())
    texts = [text for text in bad_recipes(good, tmp_path / "outside")[30:] if len(text) < 100000] + [
        json.dumps({"kind": "recipes"}),
        json.dumps({**good, "degradation": 7}),
    ]
    for i, text in enumerate(texts):
        (tmp_path / f"bad{i}").mkdir()
        (tmp_path / f"bad{i}" / "recipe.json").write_text(text)
        (tmp_path / f"bad{i}" / "run.json").write_text(
            random.Random(i).choice(["[]", "{}", '{"best": 7}', '{"best": {}}', "{"])
        )
    assert main(["models"]) == 0
    assert any(line.startswith("| good |") for line in output_lines(capfd)[0])
    tried.counts["recipe: listed"] = [1, len(texts)]


def test_the_reader_of_the_output_leaves(tmp_path, tried, system, album, server):
    "facelab restore ... | head -1"
    read, write = os.pipe()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from facelab.apps.commands import main; sys.exit(main(sys.argv[1:]))",
            *restoring(system, [album], tmp_path / "out"),
        ],
        env=ENV,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(read), os.close(write)
    err = process.communicate(timeout=60)[1]
    assert err == "" and process.returncode in (0, 1, 141), err
    assert len(results(tmp_path / "out")) == 24
    tried.counts["surroundings"] = [1, 0]


@pytest.mark.filterwarnings("ignore")
def test_arrays_for_a_system(tried, system):
    restorer = Restorer(system)

    @settings(max_examples=100, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(arrays())
    def restored(x):
        out = tried("array: restorer", lambda: restorer(x))
        assert out is None or out.shape == (len(x), 3, 128, 128) and 0 <= out.min() <= out.max() <= 1

    restored()
    assert min(tried.counts["array: restorer"]) > 3
