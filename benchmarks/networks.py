"""Size, multiply-adds, time and memory of every network at full width.

On a GPU also training: float32 as written beside bf16, channels_last and compiled.
"""

import contextlib
import time

import torch

from benchmarks.common import added_memory, arguments, asked, in_child
from facelab.networks.drawing import count_macs, count_parameters
from facelab.networks.registry import entries, example, find


def sizes(name, scale, small=False):
    "Parameters, and multiply-adds for one face; on the meta device, which computes nothing."
    with torch.device("meta"):
        net, inputs = example(name, scale, batch=1, small=small)
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


def on_cpu(name, scale, batch=4, threads=2, seconds=1.0, small=False):
    "Milliseconds a face and the largest memory above that of the weights (MB), measured in a process of its own."

    def measure():
        torch.set_num_threads(threads)
        net, inputs = example(name, scale, batch=batch, small=small)
        net.eval()
        with torch.inference_mode():
            peak = added_memory(lambda: net(**inputs))
            return 1e3 * best_time(lambda: net(**inputs), seconds) / batch, peak

    return in_child(measure)


def training(name, scale, fast, batch=64, seconds=3.0):
    """Faces a second of a training step on a GPU, and its largest memory (MB).

    float32 as written, or `fast`: bf16, channels_last and compiled.
    """
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


def main():
    "One row a network and scale, as Markdown."
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    args, gpu = asked(parser), torch.cuda.is_available()
    batch, small, seconds = (1, True, 0.0) if args.quick else (4, False, 1.0)
    one_a_role = {entry.role: entry.name for entry in entries().values()}
    names = args.names or (list(one_a_role.values()) if args.quick else list(entries()))
    head = ["network", "scale", "parameters", "multiply-adds a face, G", "CPU, ms a face", "CPU memory, MB"]
    if gpu:
        head += ["GPU training float32, img/s", "bf16 + channels_last + compile", "ratio", "memory, MB"]
    print(
        f"faces of 128 pixels (256 for sr_deblur_gan), batch {batch}, threads: {args.threads}; GPU training:"
        f" {torch.cuda.get_device_name() if gpu else 'n/a, there is no GPU'}\n"
    )
    print("| " + " | ".join(head) + " |\n| --- " + "| ---: " * (len(head) - 1) + "|")
    for entry in map(find, names):
        for scale in entry.scales[: 1 if args.quick else None]:
            parameters, macs = sizes(entry.name, scale, small)
            # Before a GPU is used: CUDA does not survive a fork.
            ms, peak = on_cpu(entry.name, scale, batch, args.threads, seconds, small)
            row = [entry.name, scale, f"{parameters:,}", f"{macs / 1e9:.2f}", f"{ms:.1f}", f"{peak:.0f}"]
            if gpu and parameters and not args.quick:
                (plain, _), (fast, memory) = training(entry.name, scale, False), training(entry.name, scale, True)
                row += [f"{plain:,.0f}", f"{fast:,.0f}", f"{fast / plain:.1f}", f"{memory:,.0f}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
