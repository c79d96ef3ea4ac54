"""`python -m benchmarks.networks [NAME ...]`: every network at full width, faces of 128 pixels, batch 16: size, multiply-adds, time and memory; on a GPU also training."""

import contextlib
import sys
import time

import torch

from benchmarks.common import added_memory, in_child
from facelab.architecture import count_macs, count_parameters
from facelab.registry import entries, example


def sizes(name, scale):
    "Parameters, and multiply-adds for one face; on the meta device, which computes nothing."
    with torch.device("meta"):
        net, inputs = example(name, scale, batch=1, small=False)
        return count_parameters(net), count_macs(net, tuple(inputs.values()))


def best_time(step, seconds, least=2):
    "Seconds of the fastest of several calls, after a first one that warms up."
    step()
    best, end, k = float("inf"), time.perf_counter() + seconds, 0
    while k < least or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        best, k = min(best, time.perf_counter() - start), k + 1
    return best


def on_cpu(name, scale, batch=16, threads=2, seconds=1.):
    "Milliseconds a face and the largest memory above that of the weights (MB), measured in a process of its own."
    def measure():
        torch.set_num_threads(threads)
        net, inputs = example(name, scale, batch=batch, small=False)
        net.eval()
        with torch.inference_mode():
            peak = added_memory(lambda: net(**inputs))
            return 1e3 * best_time(lambda: net(**inputs), seconds) / batch, peak

    return in_child(measure)


def training(name, scale, fast, batch=64, seconds=3.):
    "Faces a second of a training step on a GPU: float32 as written, or bf16, channels_last and compiled; and its largest memory (MB)."
    torch.cuda.reset_peak_memory_stats()
    layout = torch.channels_last if fast else torch.contiguous_format
    with torch.device("cuda"):
        net, inputs = example(name, scale, batch=batch, small=False)
    net, inputs = net.to(memory_format=layout), {k: v.to(memory_format=layout) for k, v in inputs.items()}
    optimiser, run = torch.optim.Adam(net.parameters(), fused=fast), torch.compile(net) if fast else net

    def step():
        with torch.autocast("cuda", torch.bfloat16) if fast else contextlib.nullcontext():
            out = run(**inputs)
        loss = sum(t.float().square().mean() for t in (out.values() if isinstance(out, dict) else [out]))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        torch.cuda.synchronize()

    return batch / best_time(step, seconds), torch.cuda.max_memory_allocated() / 2**20


def main(names=()):
    "One row a network and scale, as Markdown."
    gpu = torch.cuda.is_available()
    head = ["network", "scale", "parameters", "multiply-adds a face, G", "CPU, ms a face", "CPU memory, MB"] + ["GPU training float32, img/s", "bf16 + channels_last + compile", "ratio", "memory, MB"] * gpu
    print(f"faces of 128 pixels (256 for sr_deblur_gan), batch 16, 2 threads{', ' + torch.cuda.get_device_name() if gpu else ''}\n")
    print("| " + " | ".join(head) + " |\n| --- " + "| ---: " * (len(head) - 1) + "|")
    for entry in entries().values():
        if names and entry.name not in names: continue
        for scale in entry.scales:
            parameters, macs = sizes(entry.name, scale)
            ms, peak = on_cpu(entry.name, scale)   # before a GPU is used: CUDA does not survive a fork
            row = [entry.name, scale, f"{parameters:,}", f"{macs / 1e9:.2f}", f"{ms:.1f}", f"{peak:.0f}"]
            if gpu and parameters:
                (plain, _), (fast, memory) = training(entry.name, scale, False), training(entry.name, scale, True)
                row += [f"{plain:,.0f}", f"{fast:,.0f}", f"{fast / plain:.1f}", f"{memory:,.0f}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
