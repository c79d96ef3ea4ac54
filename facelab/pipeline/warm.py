"""A warm process: what takes seconds to import is imported once, and every stage of a run is a fork of it.

`python -m facelab.pipeline warm COMMAND` runs a command such as `make` or `dvc repro`. A stage that it starts asks the
warm process, through the socket that FACELAB_WARM names, to run it: with the stage's own folder, environment and
output, in a fork, whose kernel is a fork, too. Only other people's modules are shared; facelab's are read anew by every
stage. Without the warm process, or when it is gone, a stage starts by itself, and makes the same.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from pathlib import Path

from facelab import FacelabError
from facelab.pipeline.surroundings import leave_user_settings

WHERE = "FACELAB_WARM"  # in the environment: the socket of the warm process
SHARED = """numpy scipy.ndimage scipy.signal pandas yaml tqdm.auto PIL.Image torch torch.utils.data safetensors.torch
lightning_fabric matplotlib.pyplot seaborn lpips dvclive IPython ipykernel.kernelapp ipykernel.zmqshell
matplotlib_inline.config ipywidgets papermill papermill.engines nbclient jupyter_client.provisioning""".split()
INLINE = "module://matplotlib_inline.backend_inline"  # matplotlib's backend in a kernel, which it reads when imported


def warm(command):
    "Run a command, its stages forked from this process; returns its exit status."
    with tempfile.TemporaryDirectory(prefix="facelab-warm-") as folder, socket.socket(socket.AF_UNIX) as door:
        address = f"{folder}/socket"
        door.bind(address)
        door.listen(64)
        door.settimeout(0.2)
        try:
            run = subprocess.Popen(command, env={**os.environ, WHERE: address})
        except (OSError, IndexError) as error:
            raise FacelabError(f"warm: cannot run {' '.join(command) or 'no command'}: {error}") from None
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command has its own, and ends this
        try:
            leave_user_settings(Path(folder))
            if import_shared():
                serve(door, run)
        finally:
            door.close()
            status = run.wait()
            signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status


def import_shared():
    "Import what stages share; false where a fork would not do: CUDA and Apple's libraries do not survive one."
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks the driver, and does not begin CUDA
    os.environ.setdefault("MPLBACKEND", INLINE)
    sys.modules.setdefault("rfc3987_syntax", None)  # as facelab.pipeline.notebooks says
    if sys.platform != "linux":
        return False
    import torch

    if torch.cuda.is_available():
        return False
    with warnings.catch_warnings(action="ignore"):
        for name in SHARED:
            importlib.import_module(name)
    return threading.active_count() == 1  # others would be lost, and what they hold locked would stay so


def serve(door, run):
    "Fork a stage for everyone who asks, until the command has ended."
    stages = set()
    while run.poll() is None:
        stages = {pid for pid in stages if os.waitpid(pid, os.WNOHANG) == (0, 0)}
        with suppress(TimeoutError):
            asked, _ = door.accept()
            stages.add(os.fork() or fork_stage(asked, door))
            asked.close()


def fork_stage(asked, door):
    "In the fork: run the stage as it would run by itself, answer with its exit status, and end."
    status = 1
    try:
        door.close()
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _, (out, error), *_ = socket.recv_fds(asked, 1, 2)
        asked.sendall(b"!")
        wish = json.loads(asked.makefile().readline())
        os.dup2(out, 1)
        os.dup2(error, 2)
        become(wish["cwd"], wish["env"])
        kernel = WaitingKernel()
        threading.Thread(target=end_with, args=(asked, kernel), daemon=True).start()
        use_kernel(kernel)
        from facelab.pipeline.__main__ import main

        status = main(wish["argv"])
    except BaseException:  # as Python does when a program ends with one
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        asked.sendall(bytes([status]))
        os._exit(status)


def become(folder, environment):
    "Stand in a folder, with an environment, and forget facelab: a project may have its own."
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0] = folder
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "facelab"]:
        del sys.modules[name]


def end_with(asked, kernel):
    "When the one who asked is gone, so is the stage with its kernel."
    if asked.recv(1) == b"":
        for group in (kernel.pid, os.getpid()):
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


class WaitingKernel:
    "A fork that becomes a notebook's kernel once it is told how; as the `Popen` that Jupyter expects."

    stdin = stdout = stderr = None

    def __init__(self):
        self.told, self.tell = os.pipe()
        self.pid, self.returncode = os.fork(), None
        if not self.pid:
            self._become_kernel()
        os.close(self.told)

    def _become_kernel(self):
        os.setsid()
        os.close(self.tell)
        try:
            with open(self.told, encoding="utf-8") as told:
                line = told.readline()
            if line:
                wish = json.loads(line)
                become(wish["cwd"], wish["env"])
                del sys.path[0]  # IPython puts the working folder there
                sys.argv = ["ipykernel_launcher", *wish["argv"]]
                from ipykernel.kernelapp import launch_new_instance

                launch_new_instance()
        finally:
            os._exit(0)

    def start(self, argv, cwd, env):
        "Tell the fork the arguments of `ipykernel_launcher`, its folder and its environment."
        argv = [*argv, f"--IPKernelApp.parent_handle={os.getpid()}"]  # it dies with this one
        wish = {"argv": argv, "cwd": str(cwd), "env": env}
        with open(self.tell, "w", encoding="utf-8") as tell:
            tell.write(json.dumps(wish) + "\n")

    def poll(self):
        "Its exit status, None while it runs."
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self):
        "Its exit status, once it has ended."
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number):
        "Send it a signal."
        os.kill(self.pid, number)


def use_kernel(kernel):
    "Let Jupyter take the fork that waits where it would start a kernel."
    from importlib.metadata import EntryPoint

    from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

    class Forked(LocalProvisioner):
        async def launch_kernel(self, cmd, **about):
            kernel.start(cmd[cmd.index("-m") + 2 :], about.get("cwd") or os.getcwd(), about["env"])
            self.process, self.pid, self.pgid, self.cwd = kernel, kernel.pid, kernel.pid, about.get("cwd")
            return self.connection_info

    class Here(EntryPoint):
        def load(self):
            return Forked

    factory = KernelProvisionerFactory.instance()
    factory.provisioners["forked"] = Here("forked", "forked", factory.GROUP_NAME)
    factory.default_provisioner_name = "forked"


def ask(argv):
    "The exit status of a stage that the warm process ran; None where there is none, so that it must run here."
    if not os.environ.get(WHERE):
        return None
    wish = {"argv": argv, "cwd": os.getcwd(), "env": {k: v for k, v in os.environ.items() if k != WHERE}}
    with socket.socket(socket.AF_UNIX) as warm:
        taken = b""
        with suppress(OSError):  # it is gone
            warm.connect(os.environ[WHERE])
            socket.send_fds(warm, [b"?"], [1, 2])
            warm.sendall(json.dumps(wish).encode() + b"\n")
            taken = warm.recv(1)
        answer = warm.recv(1) if taken else b""
    if taken and not answer:
        print(f"facelab: {' '.join(argv)} was killed, perhaps because memory ran out", file=sys.stderr)
    return answer[0] if answer else 1 if taken else None
