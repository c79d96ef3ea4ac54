"""`python -m benchmarks [NAME ...]`: every benchmark, each in its own process, on one page that names the machine."""

import ast
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.common import arguments, names
from facelab import __version__
from facelab.base.files import markdown_table, write_text

HERE = Path(__file__).parent


def machine():
    "What the numbers depend on, as rows of a table."
    info = Path("/proc/cpuinfo")
    models = (
        [
            line.partition(":")[2].strip()
            for line in info.read_text("utf-8").splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [
        ["CPU", models[0] if models else platform.processor() or platform.machine()],
        ["cores", f"{cores}, busy at the start: {os.getloadavg()[0]:.1f}"],
        ["GPU", gpu],
        ["torch", torch.__version__],
        ["Python", platform.python_version()],
        ["facelab", __version__],
        ["date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"],
    ]


def describe(name):
    "The sentence that a benchmark's file begins with: what is compared."
    docstring = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text("utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ")


def measured(name, options):
    "What a benchmark prints, shown as it comes; None and the reason if it fails."
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=errors) as child,
    ):
        lines = []
        for line in child.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
        if child.wait() == 0:
            return "".join(lines).strip(), None
        errors.seek(0)
        return None, errors.read().strip().rpartition("\n")[2] or f"exit status {child.returncode}"


def main():
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default {', '.join(names())}")
    parser.add_argument("--out", type=Path, default=Path("build/bench/bench.md"), help="the page")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(names())):
        parser.error(f"no benchmark is called {unknown[0]!r}: there are {', '.join(names())}")
    title = "# Benchmarks" + " (quick: do they run?)" * args.quick
    options = ["--quick"] * args.quick + [f"--threads={args.threads}"] * bool(args.threads)
    page, failed, wanted = [title, markdown_table(machine(), ["machine", ""])], [], args.names or names()
    print("\n\n".join(page), flush=True)
    for k, name in enumerate(wanted):
        head, began = f"## {name.capitalize()}\n\n{describe(name)}", time.monotonic()
        print(f"\n{head}\n", flush=True)
        table, wrong = measured(name, options)
        page += [head, table or f"n/a: {wrong}"]
        failed += [f"{name}: {wrong}"] * (table is None)
        print(f"[{k + 1} of {len(wanted)}: {name}, {time.monotonic() - began:.0f} s]", file=sys.stderr, flush=True)
    write_text(args.out, "\n\n".join(page) + "\n")
    print(*failed, f"the page is {args.out}", sep="\n", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
