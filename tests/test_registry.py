"""Every registered network passes the same tests.

Sizes, gradients, determinism, sharing, saving, bf16, compile, export, bad input.
"""

import inspect
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from facelab import FacelabError
from facelab.base.names import call
from facelab.networks.drawing import count_parameters
from facelab.networks.registry import ROLES, create, entries, example, find, network

torch.set_num_threads(1)
ENTRIES = entries()
CASES = {
    f"{e.name} x{scale}" if scale > 1 else e.name: (e.name, scale, {}) for e in ENTRIES.values() for scale in e.scales
}
VARIANTS = {f"{e.name} {variant}": (e.name, e.scales[0], variant) for e in ENTRIES.values() for variant in e.variants}
LEARNING = [case for case in CASES | VARIANTS if not case.startswith("bicubic")]
BASELINES = [
    "Bicubic",
    "SRResNet",
    "SRGAN",
    "Pix2Pix",
    "ESRGAN",
    "RCAN",
    "FSRNet",
    "FSRGAN",
    "SRFBN",
    "DIC",
    "DICGAN",
    "DRN",
    "SICNN",
    "CBDNet",
    "GFC",
    "PConv",
    "Heavy-Rain-Removal",
    "Face SR",
]
SYSTEMS = ["JDSR-GAN", "FCSR-GAN", "SR-deblur-GAN", "prior_guided_sr", "prior_guided_gan", "heavy_rain", "FCG-GAN"]

each = pytest.mark.parametrize("case", CASES | VARIANTS)
each_learning = pytest.mark.parametrize("case", LEARNING)
each_entry = pytest.mark.parametrize("name", ENTRIES)
without_noise = pytest.mark.parametrize(
    "case", [case for case, (_, _, variant) in (CASES | VARIANTS).items() if "noise" not in variant]
)


def small_network(case, seed=0):
    "The small network of a case in evaluation mode, and its inputs."
    name, scale, variant = (CASES | VARIANTS)[case]
    torch.manual_seed(seed)
    net, inputs = example(name, scale, **variant)
    return net.eval(), inputs


def small_network_of(name):
    "The small network of an entry at the first of its scales, and its inputs."
    return small_network(next(case for case, (n, *_) in CASES.items() if n == name))


def outputs(net, inputs):
    "The tensors that a network gives; a network that draws noise draws the same."
    torch.manual_seed(1)
    out = net(**inputs)
    return list(out.values()) if isinstance(out, dict) else [out]


def assert_close(ours, others):
    assert len(ours) == len(others)
    for a, b in zip(ours, others, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@each
def test_forward_keeps_the_batch_and_is_finite_and_repeats_itself(case):
    net, inputs = small_network(case)
    with torch.no_grad():
        out, again = outputs(net, inputs), outputs(*small_network(case))
    assert all(len(t) == 2 and t.isfinite().all() for t in out)
    assert all(torch.equal(a, b) for a, b in zip(out, again, strict=True))


@without_noise  # whose draws depend on the batch
def test_faces_of_a_batch_do_not_mix(case):
    net, inputs = small_network(case)
    with torch.no_grad():
        together, alone = outputs(net, inputs), outputs(net, {k: v[:1] for k, v in inputs.items()})
    assert all(torch.allclose(t[:1], a, atol=1e-4 * (1 + a.abs().max())) for t, a in zip(together, alone, strict=True))


@each_entry
def test_full_width_gives_the_size_that_is_declared(name):
    """On the meta device, which computes shapes and nothing else."""
    entry = ENTRIES[name]
    sides = entry.side if isinstance(entry.side, tuple) else (entry.side, entry.side)
    for scale in entry.scales:
        with torch.device("meta"), torch.no_grad():
            net, inputs = example(name, scale, batch=2, small=False)
            out = net.eval()(**inputs)
        if entry.role in ("generator", "completion", "denoiser"):
            face = out["restored"] if isinstance(out, dict) else out
            assert tuple(face.shape) == (2, 3, *sides)
        else:
            assert all(len(t) == 2 for t in (out.values() if isinstance(out, dict) else [out]))


@each_learning
def test_another_seed_another_output(case):
    with torch.no_grad():
        first, second = outputs(*small_network(case)), outputs(small_network(case, seed=1)[0], small_network(case)[1])
    # Landmark maps begin empty, whatever the seed.
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.min() < a.max()]
    assert pairs and not any(torch.equal(a, b) for a, b in pairs)


def silent(net, inputs):
    "Names of the parameters without gradient; in evaluation mode batch norm does not cancel the bias before it."
    sum((t - 0.3).square().mean() for t in outputs(net, inputs)).backward()
    return [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@each_learning
def test_every_parameter_receives_a_gradient(case):
    """From one of several starts: the four ReLUs of a small channel gate can all begin at rest."""
    never = silent(*small_network(case))
    for seed in range(1, 6):
        never = never and [n for n in never if n in silent(*small_network(case, seed))]
    assert never == []


@each_learning
def test_no_weights_are_shared_and_training_mode_runs(case):
    net, inputs = small_network(case)
    assert sum(p.numel() for _, p in net.named_parameters(remove_duplicate=False)) == count_parameters(net)
    addresses = [p.data_ptr() for p in net.parameters()]
    assert len(set(addresses)) == len(addresses)
    assert all(t.isfinite().all() for t in outputs(net.train(), inputs))


@each_learning
def test_saved_and_loaded_it_is_the_same(case, tmp_path):
    net, inputs = small_network(case)
    outputs(net.train(), inputs)  # running means move
    other = small_network(case, seed=1)[0]
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    with torch.no_grad():
        saved, loaded = outputs(net.eval(), inputs), outputs(other.eval(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(saved, loaded, strict=True))


@each
def test_bf16_autocast_stays_close(case):
    net, inputs = small_network(case)
    with torch.no_grad():
        exact = outputs(net, inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rough = outputs(net, inputs)
    for a, b in zip(exact, rough, strict=True):
        assert b.isfinite().all() and (a - b.float()).square().mean().sqrt() < 0.05 * (a.square().mean().sqrt() + 0.1)


@each_entry
def test_compiles_in_one_piece(name):
    """No graph break, so nothing is left to Python; that what is compiled learns the same is tried once, below."""
    net, inputs = small_network_of(name)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_close(outputs(net, inputs), outputs(compiled, inputs))


def test_compiled_it_learns_the_same():
    net, inputs = small_network("srresnet x4")
    torch.compiler.reset()
    gradients = []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        sum(t.square().mean() for t in outputs(run, inputs)).backward()
        gradients.append([p.grad.clone() for p in net.parameters()])
    assert_close(*gradients)


@each_entry
def test_exports(name):
    net, inputs = small_network_of(name)
    exported = torch.export.export(net, (), inputs).module()
    with torch.no_grad():
        assert_close(outputs(net, inputs), outputs(exported, inputs))


@pytest.mark.parametrize("name", [e.name for e in ENTRIES.values() if e.published])
def test_published_counts(name):
    published = ENTRIES[name].published
    with torch.device("meta"):
        ours = count_parameters(create(name, **published["args"]))
    assert abs(ours / published["parameters"] - 1) < 0.01, (
        f"{ours:,} parameters, published {published['parameters']:,} ({published['source']})"
    )


@each_entry
def test_an_error_about_wrong_channels_names_the_shape(name):
    net, inputs = small_network_of(name)
    for arg, x in inputs.items():
        with pytest.raises(FacelabError, match=r"takes .* not \(2, 7,") as error:
            net(**{**inputs, arg: x[:, :1].expand(-1, 7, -1, -1)})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, arg", [(e.name, arg) for e in ENTRIES.values() for arg in list(e.inputs)[1:]])
def test_an_error_about_a_missing_map_names_it(name, arg):
    net, inputs = small_network_of(name)
    with pytest.raises(FacelabError, match=rf"needs {arg} \(N,"):
        net(**{k: v for k, v in inputs.items() if k != arg})


def named_options():
    "(network, option) where an option is one of several words."
    for entry in ENTRIES.values():
        parameters = inspect.signature(entry.make).parameters
        for option in ("variant", "attention"):
            if option in parameters and isinstance(parameters[option].default, str):
                yield entry.name, option


@pytest.mark.parametrize("name, option", list(named_options()))
def test_an_unknown_variant_is_refused(name, option):
    with pytest.raises(FacelabError, match="nonsense") as error:
        create(name, **{**ENTRIES[name].small, option: "nonsense"})
    assert "\n" not in str(error.value)


ENLARGING = [e.name for e in ENTRIES.values() if max(e.scales) > 1 and e.name != "bicubic"]  # which takes any factor


@pytest.mark.parametrize("name", ENLARGING)
def test_an_impossible_scale_is_refused(name):
    with pytest.raises(FacelabError, match="scale.* 5|x5"):
        create(name, **{**ENTRIES[name].small, "scale": 5})


def test_every_baseline_and_system_builds_by_name():
    for name in BASELINES + SYSTEMS:
        entry = find(name)
        assert isinstance(create(name, **entry.small), torch.nn.Module) and entry.role in ROLES, name


def test_names_that_do_not_exist_or_are_taken_are_refused():
    with pytest.raises(FacelabError, match="unknown network 'srfbm': did you mean 'srfbn'"):
        find("srfbm")
    with pytest.raises(FacelabError, match="unknown parameter 'widht' in rcan: did you mean 'width'"):
        create("rcan", widht=8)
    with pytest.raises(FacelabError, match="unknown role 'net'"):
        network("x", "net", "nowhere")
    with pytest.raises(FacelabError, match="belongs to SRResNet already"):
        network("SRGAN", "generator", "nowhere")(torch.nn.Identity)
    assert call(lambda **given: given, dict(a=1), "anything") == dict(a=1)


def test_importing_facelab_imports_no_network_and_importing_the_registry_no_torch():
    code = (
        "import sys, facelab, facelab.networks.registry; print([m for m in sys.modules if"
        " m.startswith(('facelab.networks', 'facelab.systems', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "['facelab.networks', 'facelab.networks.registry']", done.stdout + done.stderr


def test_planted_faults_are_found():
    """The tests above can fail: a detached branch, a shared block."""
    net, inputs = small_network("prior_guided_sr x8")
    net.prior_branch.register_forward_hook(lambda m, args, out: out.detach())
    missing = silent(net, inputs)
    assert missing and all(n.startswith("prior_branch") for n in missing)
    shared = torch.nn.Sequential(*[torch.nn.Conv2d(3, 3, 1)] * 3)
    assert sum(p.numel() for _, p in shared.named_parameters(remove_duplicate=False)) != count_parameters(shared)
