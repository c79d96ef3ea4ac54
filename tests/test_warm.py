"""Stages that are forks of a warm process: the same as by themselves, and no worse when something goes wrong."""

import os
import signal
import subprocess
import time

import pytest
from conftest import ENV, run

from facelab.pipeline import warm

STAGE = """import os, sys, time
from pathlib import Path

from facelab import FacelabError


def run(stage, item=None, root=None):
    print("stage", stage, item, Path.cwd(), os.environ["COLOUR"])
    print("beside", file=sys.stderr)
    Path("pid").write_text(str(os.getpid()))
    if stage == "wrong":
        raise FacelabError("no such face")
    if stage == "crash":
        os._exit(3)
    if stage == "long":
        time.sleep(600)
"""


@pytest.fixture
def place(project):
    "A project whose stages only say where they are."
    (project / "facelab" / "pipeline" / "notebooks.py").write_text(STAGE)
    return project


def stage(place, *words, **more):
    return run(["python", "-m", "facelab.pipeline", "run", *words], place, COLOUR="blue", **more)


def test_a_stage_has_its_own_folder_code_environment_and_output(place, warm_stages):
    warmed = stage(place, "draw", "me")
    alone = stage(place, "draw", "me", FACELAB_WARM="")
    assert warmed.stdout == alone.stdout and f"stage draw me {place} blue" in warmed.stdout
    assert "beside" in warmed.stdout and (warmed.returncode, alone.returncode) == (0, 0)


def test_a_refusal_is_one_sentence(place, warm_stages):
    done = stage(place, "wrong")
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "facelab: no such face"


def test_a_stage_that_dies_says_so(place, warm_stages):
    done = stage(place, "crash")
    assert done.returncode == 1 and "facelab: run crash was killed" in done.stdout


def test_a_stage_ends_with_the_one_who_asked(place, warm_stages):
    asked = subprocess.Popen(
        ["python", "-m", "facelab.pipeline", "run", "long"], cwd=place, env={**ENV, "COLOUR": ""}, text=True
    )
    limit = time.monotonic() + 60
    while not (place / "pid").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    pid = int((place / "pid").read_text())
    os.kill(pid, 0)  # it is there, and is another process
    assert pid != asked.pid
    asked.send_signal(signal.SIGKILL)
    asked.wait()
    while os.path.exists(f"/proc/{pid}") and "Z" not in state(pid) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}") or "Z" in state(pid)


def state(pid):
    "The state of a process, Z for one that has ended."
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def test_without_the_warm_process_a_stage_runs_by_itself(place, tmp_path):
    done = stage(place, "draw", FACELAB_WARM=str(tmp_path / "gone"))
    assert done.returncode == 0 and "stage draw" in done.stdout


def test_where_a_fork_would_not_do_stages_run_by_themselves(place, monkeypatch):
    monkeypatch.setattr(warm, "import_shared", lambda: time.sleep(2))  # they ask before they are told no
    monkeypatch.setattr(os, "environ", {**ENV, "COLOUR": "red"})
    monkeypatch.chdir(place)
    assert warm.warm(["python", "-m", "facelab.pipeline", "run", "draw"]) == 0 and (place / "pid").exists()


def test_the_status_is_the_commands(place, monkeypatch):
    monkeypatch.setattr(warm, "import_shared", lambda: False)
    assert warm.warm(["sh", "-c", "exit 7"]) == 7 and warm.warm(["sh", "-c", "kill -9 $$"]) == 137
    done = run(["python", "-m", "facelab.pipeline", "warm", "no-such-command"], place)
    assert done.returncode == 1 and "facelab: warm: cannot run no-such-command" in done.stdout
