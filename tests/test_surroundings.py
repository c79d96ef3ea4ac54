"""The user's surroundings stay outside: git, shells and paths, encodings, proxies, styles, kernels, other systems."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import yaml
from conftest import ENV, ROOT, run

from facelab import FacelabError
from facelab.apps import commands
from facelab.apps.commands import parser
from facelab.base import params, weights
from facelab.base.params import choose_profile, load_params
from facelab.base.weights import find_weights
from facelab.faces.drawn import draw_set
from facelab.pipeline import dvc_settings
from facelab.training import zoo

PLAIN = {**ENV, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def git_that(does, folder):
    "A git of its own, before the true one on the PATH."
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\n{does}\n")
    (folder / "git").chmod(0o755)
    return f"{folder}:{ENV['PATH']}"


@pytest.mark.parametrize(
    "does", ["exit 127", "echo 'fatal: detected dubious ownership' >&2; exit 128"], ids=["no git", "another owner"]
)
def test_profiles_need_no_git(project, tmp_path, monkeypatch, does):
    monkeypatch.setenv("PATH", git_that(does, tmp_path / "bin"))
    text = (project / "params.yaml").read_text()
    for name in ("real", "laptop", "demo", "paper", "demo"):
        choose_profile(name, project)
        assert load_params(project)["profile"] == name
    assert (project / "params.yaml").read_text() == text


def test_a_git_that_hangs_is_left_alone(tmp_path, monkeypatch):
    def hang(command, timeout, **more):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(params.subprocess, "run", hang)
    assert params.git(tmp_path, "rev-parse", "HEAD") is None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"profile": "real"}))
    with pytest.raises(FacelabError, match="^params.yaml is not the demo's, and neither git nor .params.demo.yaml has"):
        params.committed_params(tmp_path)


def test_dvc_is_told_that_there_is_no_git_and_that_there_is_again(tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    local = tmp_path / ".dvc" / "config.local"
    dvc_settings.allow_no_git(tmp_path)
    assert "no_scm = true" in local.read_text()
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: 'true'}}\n")
    done = run("dvc repro", tmp_path)
    assert done.returncode == 0, done.stdout
    assert run("git init -q", tmp_path).returncode == 0
    dvc_settings.allow_no_git(tmp_path)
    assert "no_scm" not in local.read_text()


NAMES = ["My Photos", "it's", 'said "so"', "a$b", "x#y, z", "über"]


def test_make_gives_a_path_on_as_it_was_typed():
    show = ["make", "-s", "--eval", 'show:; @echo "$$FACES_FROM"', "show"]
    for name in NAMES:
        assert run([*show, f"FROM=/data/{name}"], ROOT).stdout == f"/data/{name}\n"


def test_faces_may_lie_under_any_name(project, tmp_path, capsys):
    "DVC keeps the path, and a folder that cannot be used changes nothing."
    local, few = project / ".dvc" / "config.local", draw_set(6, 2, 2, seed=0)
    for name in ("My über $x's #1, 2", 'it\'s "so"'):
        few.save(tmp_path / name / "faces.safetensors")
        assert dvc_settings.adopt(project, tmp_path / name) == 0
        assert (project / "data" / "real" / "faces.safetensors").exists() and str(tmp_path / name) in local.read_text(
            "utf-8"
        )
    before = local.read_text("utf-8"), (project / "data.dvc").read_text()
    for wrong in (tmp_path / "nowhere", project / "tests"):
        assert dvc_settings.adopt(project, wrong) == 1
    assert (local.read_text("utf-8"), (project / "data.dvc").read_text()) == before


def test_a_remote_that_dvc_cannot_read_is_not_kept(project, tmp_path, monkeypatch):
    def fail(root, *words):
        if words[0] == "update":
            raise FacelabError("dvc update data.dvc failed: no space left")

    monkeypatch.setattr(dvc_settings, "dvc", fail)
    draw_set(6, 2, 2, seed=0).save(tmp_path / "set" / "faces.safetensors")
    with pytest.raises(FacelabError, match="no space left"):
        dvc_settings.adopt(project, tmp_path / "set")
    assert not (project / ".dvc" / "config.local").exists()


def test_home_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [
        "restore",
        "~/a.png",
        "--out=~/r",
        "--landmarks=~/l.csv",
        "--hidden=~/h",
        "--finder=~/f",
        "--system",
        "~/s",
    ]
    args = parser().parse_args(words)
    given = [*args.pictures, args.out, args.landmarks, args.hidden, args.finder, *args.system]
    assert given == [f"{tmp_path}/{name}" for name in ("a.png", "r", "l.csv", "h", "f", "s")]
    args = parser().parse_args(["train", "srresnet", "--faces=~/f", "--out=~/o", "--params=~/p.yaml"])
    assert [args.faces, args.out, args.params] == [tmp_path / "f", tmp_path / "o", tmp_path / "p.yaml"]
    assert parser().parse_args(["faces", "check", "~/x"]).path == f"{tmp_path}/x"
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine.pth").write_bytes(b"")
    monkeypatch.setenv("FACELAB_WEIGHTS", "~/w")
    assert find_weights("mine.pth") == tmp_path / "w" / "mine.pth"


@pytest.mark.parametrize("words", ["sources", "inventory", "check"])
def test_texts_are_read_and_printed_in_any_locale(project, words):
    done = run([sys.executable, "-m", "facelab.pipeline", words], project, **{**PLAIN, "LANG": ""})
    assert done.returncode in (0, 1) and "Traceback" not in done.stdout, done.stdout
    assert words != "sources" or (project / "build/sources/tables@jdsr_gan.json").exists()


def test_letters_that_a_terminal_lacks_are_escaped():
    code = "from facelab.base.files import speak_any_encoding; speak_any_encoding(); print('1', chr(177), '2')"
    assert run([sys.executable, "-c", code], ROOT, **PLAIN).stdout == "1 \\xb1 2\n"


def test_models_come_through_the_proxy(tmp_path, monkeypatch):
    asked = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_HEAD = do_GET

        def log_message(self, *words):
            "Be quiet."

    server = HTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = zoo.fetch_model("http://models.invalid/m")
    server.shutdown()
    assert "http://models.invalid/m/generator.safetensors" in asked and (folder / "recipe.json").read_text() == "{}"


def test_an_address_without_an_answer_says_why(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        FacelabError, match=r"cannot be fetched \(.*(connect|resolve|resolution).*\): check the address"
    ):
        zoo.fetch_model("http://127.0.0.1:9/m")


def test_windows_has_no_locks_and_train_says_so(tmp_path):
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "from facelab.apps.commands import main\n"
        "assert main(['models']) == 0\n"
        "from facelab.training.loop import peak_memory; assert peak_memory() is None\n"
        "from facelab.fleet.grid import try_lock\n"
        "try:\n    try_lock('x').__enter__()\nexcept Exception as error:\n    print('told:', error)"
    )
    done = run([sys.executable, "-c", code], ROOT)
    assert "told: training locks what it makes, which works on Linux and macOS" in done.stdout, done.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root needs --allow-root")
def test_root_may_start_jupyter():
    assert "--allow-root" in run("make -n lab", ROOT).stdout


def test_a_stage_has_its_own_kernel_and_styles(tmp_path):
    "Another `python3` on JUPYTER_PATH, an IPython profile that breaks every kernel, and a matplotlibrc do not matter."
    own = tmp_path / "own"
    spec = own / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    start = own / "ipython" / "profile_default" / "startup"
    start.mkdir(parents=True)
    (start / "00.py").write_text("import os; os._exit(3)\n")
    (own / "rc").write_text("font.size: 31\ntext.usetex: True\n")
    notebooks = tmp_path / "nbs" / "pipeline"
    notebooks.mkdir(parents=True)
    cell = "import sys, matplotlib\nrc = matplotlib.rcParams\nprint(sys.prefix, rc['font.size'], rc['text.usetex'])"
    cells = [{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": cell}]
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (notebooks / "draw.ipynb").write_text(json.dumps(book))
    code = f"from facelab.pipeline.notebooks import run; run('draw', root={str(tmp_path)!r})"
    surroundings = dict(JUPYTER_PATH=str(own), IPYTHONDIR=str(own / "ipython"), MATPLOTLIBRC=str(own / "rc"))
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(ROOT), **surroundings)
    assert done.returncode == 0, done.stdout[-2000:]
    made = json.loads((tmp_path / "build" / "notebooks" / "draw.ipynb").read_text())["cells"][-1]["outputs"]
    assert "".join(made[0]["text"]) == f"{Path(sys.prefix)} 10.0 False\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        "Be quiet."


@pytest.fixture
def published(tmp_path, monkeypatch):
    "A server on this machine with a file that others publish, whose SHA-256 is known."
    (tmp_path / "served").mkdir()
    data = b"weights" * 1000
    (tmp_path / "served" / "net-0.pth").write_bytes(data)
    (tmp_path / "served" / "model").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        known = weights.Published("net-0.pth", address, 1, hashlib.sha256(data).hexdigest(), "MIT, a test")
        monkeypatch.setitem(weights.PUBLISHED, "net", known)
        monkeypatch.setenv("FACELAB_WEIGHTS", str(tmp_path / "here"))
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield tmp_path, address
        server.shutdown()


def test_weights_are_downloaded_by_name_and_checked(published, capsys):
    folder, _ = published
    assert commands.main(["weights", "get", "net"]) == 0
    out = capsys.readouterr().out
    assert "1 MB, MIT, a test" in out and str(folder / "here" / "net-0.pth") in out
    assert (folder / "here" / "net-0.pth").read_bytes() == (folder / "served" / "net-0.pth").read_bytes()
    (folder / "here" / "net-0.pth").unlink()
    (folder / "served" / "net-0.pth").write_bytes(b"something else")
    assert commands.main(["weights", "get", "net"]) == 1
    assert "invalid hash value" in capsys.readouterr().err and not list((folder / "here").iterdir())
    assert commands.main(["weights", "get", "nett"]) == 1 and "did you mean 'net'" in capsys.readouterr().err
    assert commands.main(["weights", "fetch", "net"]) == 1 and "facelab weights get NAME" in capsys.readouterr().err


def test_a_model_at_an_address_is_the_one_that_is_there_now(published, monkeypatch, capsys):
    folder, address = published
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    model = folder / "served" / "model"
    for turn in ("first", "second"):
        (model / "generator.safetensors").write_text(turn)
        (model / "recipe.json").write_text("{}")
        there = zoo.fetch_model(f"{address}model")
        assert (there / "generator.safetensors").read_text() == turn
    (model / "recipe.json").unlink()  # half of a model: none of it is taken
    (model / "generator.safetensors").write_text("third")
    assert (zoo.fetch_model(f"{address}model") / "generator.safetensors").read_text() == "second"
    assert "the earlier copy in" in capsys.readouterr().err
    assert [p.name for p in (folder / "cache" / "facelab").iterdir()] == [there.name]
