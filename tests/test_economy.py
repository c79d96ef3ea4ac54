"""On what, in what and how long a run trains: devices, memory, precision, critics that save time, estimates."""

import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from facelab import FacelabError
from facelab.base import devices
from facelab.base.devices import fault_of, memory_told, pick_device, pick_precision
from facelab.base.params import load_params
from facelab.evaluation import restore
from facelab.training.recipes import load_recipes, resolve

RECIPES = load_recipes(ROOT)


@pytest.fixture(autouse=True)
def forgotten():
    "What was found out of devices counts for one test."
    fault_of.cache_clear()
    devices.bfloat16_pays.cache_clear()
    yield
    fault_of.cache_clear()
    devices.bfloat16_pays.cache_clear()


def broken(*_, **__):
    raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")


def test_a_gpu_that_cannot_be_used_is_passed_over_with_a_word(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices.torch, "ones", broken)
    assert pick_device("auto").type == "cpu"
    said = capsys.readouterr().out
    assert "no kernel image" in said and "the CPU is used" in said and "more lines" not in said
    with pytest.raises(FacelabError, match="train.device is cuda, but .*no kernel image.*choose auto or cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("kind, module", [("cuda", torch.cuda), ("mps", torch.backends.mps)])
def test_auto_takes_the_gpu_that_is_there(monkeypatch, kind, module):
    for other in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(other, "is_available", lambda other=other: other is module)
    monkeypatch.setattr(devices, "fault_of", lambda asked: None)
    assert pick_device("auto").type == kind


def test_a_build_without_it_is_named(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(FacelabError, match="is without CUDA: install one with it, or choose auto or cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    with pytest.raises(FacelabError, match="is without Apple's GPU"):
        pick_device("mps")


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate",
        "MPS backend out of memory",
        "DefaultCPUAllocator: can't allocate memory: you",
    ],
)
def test_full_memory_is_one_sentence(words):
    with pytest.raises(FacelabError, match="^recipe srresnet, 64 faces a step: no memory is left: make train.batch"):
        with memory_told("recipe srresnet, 64 faces a step"):
            raise RuntimeError(words)
    with pytest.raises(ValueError), memory_told("recipe srresnet"):
        raise ValueError("another fault")


def test_restoring_without_memory_names_its_own_batch(monkeypatch, tmp_path):
    def full(*options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    (tmp_path / "recipe.json").write_text("{}")
    monkeypatch.setattr(restore, "sha256", lambda path: "")
    monkeypatch.setattr(restore, "Inputs", lambda folder: SimpleNamespace(names=["a.png"]))
    monkeypatch.setattr(restore, "load_model", lambda folder, device: (None, {}))
    monkeypatch.setattr(restore, "restore_set", full)
    what = restore.Restoration("srresnet", "srresnet", "plain_x4")
    with pytest.raises(FacelabError, match="^restoring 16 faces at a time: no memory is left: make evaluate.batch"):
        restore.update_restored(what, tmp_path, tmp_path, ["a.png"], tmp_path)
    assert not (tmp_path / what.where / "made_from.json").exists()


@pytest.mark.parametrize("times, precision", [(0.6, "bf16-mixed"), (0.9, "32-true"), (20, "32-true")])
def test_bfloat16_is_used_where_it_is_faster(monkeypatch, times, precision):
    measured = []

    def seconds(dtype):
        measured.append(dtype)
        return 0.03 * (times if dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(devices, "convolution_seconds", seconds)
    assert pick_precision("cpu") == pick_precision("cpu") == precision
    assert len(measured) == (2 if times > 4 else 8)  # once a process, and not on where it is hopeless
    assert pick_precision("cpu", "32-true") == "32-true"


def test_what_else_the_machine_does_is_not_measured(monkeypatch):
    conv2d = torch.nn.functional.conv2d

    def kept_waiting(*args, **more):
        time.sleep(0.5)
        return conv2d(*args, **more)

    monkeypatch.setattr(torch.nn.functional, "conv2d", kept_waiting)
    assert devices.convolution_seconds(torch.float32, channels=8) < 0.4


def resolved(name, **train):
    params = load_params(ROOT)
    params["instead"] = {}
    params["train"] |= dict(steps=100, critics_from=0, penalty_every=None, from_parts=False) | train
    return resolve(name, RECIPES, params)


def test_penalties_on_some_steps_only():
    penalty = lambda recipe: recipe["stages"][-1]["critics"]["critic"]["penalty"]
    assert "every" not in penalty(resolved("jdsr_gan_x4"))
    assert penalty(resolved("jdsr_gan_x4", penalty_every=4))["every"] == 4


def test_critics_join_later():
    whole, late = resolved("jdsr_gan_x4"), resolved("jdsr_gan_x4", critics_from=0.8)
    assert [s["steps"] for s in late["stages"]] == [80, 20]
    alone, joint = late["stages"]
    assert alone["critics"] == {} and joint["losses"] == whole["stages"][0]["losses"]
    assert joint["losses"].keys() - alone["losses"].keys() == {"adversarial"}
    for name in ("jdsr_gan_drn_x4", "prior_guided_gan", "srresnet"):  # a dual network, a later critic, none
        assert resolved(name, critics_from=0.8)["stages"] == resolved(name)["stages"]
    assert len(resolved("jdsr_gan_x4", critics_from=0.8, steps=1)["stages"]) == 1


def test_systems_begin_from_parts_where_the_profile_says_so():
    assert resolved("jdsr_gan_x4")["begin"] == {}
    assert resolved("jdsr_gan_x4", from_parts=True)["begin"] == {
        "generator.denoising": "jdsr_gan/jdsr_gan_cbdnet_x4",
        "generator.super_resolution": "jdsr_gan/jdsr_gan_fsrnet_x4",
    }
    assert resolved("jdsr_gan_x4")["parts"] == {} == resolved("srresnet", from_parts=True)["parts"]


def test_what_a_system_has_besides_its_parts_begins_as_it_is(tmp_path):
    from facelab.networks.cbdnet import CBDNet
    from facelab.training.models import begin_with, write_tensors

    plain, gated = CBDNet(8), CBDNet(8, attention=True)
    before = {k: v.clone() for k, v in gated.state_dict().items()}
    write_tensors(tmp_path / "denoiser" / "generator.safetensors", plain.state_dict())
    with pytest.raises(FacelabError, match="are of another network"):
        begin_with({"generator": gated}, {"generator": "denoiser"}, tmp_path)
    begin_with({"generator": gated}, {"generator": "denoiser"}, tmp_path, parts=["generator"])
    after, given = gated.state_dict(), plain.state_dict()
    assert after.keys() > given.keys()
    assert all(torch.equal(v, given.get(k, before[k])) for k, v in after.items())
    write_tensors(tmp_path / "gated" / "generator.safetensors", before)
    with pytest.raises(FacelabError, match="are of another network"):
        begin_with({"generator": plain}, {"generator": "gated"}, tmp_path, parts=["generator"])


def test_an_estimate_times_every_stage_of_what_is_needed():
    from facelab.faces.drawn import draw_set
    from facelab.pipeline.estimate import estimate, in_words

    params = load_params(ROOT)
    params["train"] |= dict(steps=1000, batch=2, width=0.05, depth=0.05)
    faces, said = draw_set(16, 0, 0, size=64), []
    took = estimate(["jdsr_gan_x4"], RECIPES, {**params, "instead": {}}, lambda size: faces, tell=said.append)
    needed = ["jdsr_identity", "jdsr_gan_cbdnet_x4", "jdsr_gan_fsrnet_x4", "features", "jdsr_gan_x4"]
    assert list(took) == needed and len(said) == 5 and min(took.values()) > 0
    assert took["jdsr_gan_x4"] > took["jdsr_gan_cbdnet_x4"], "it contains it"
    assert [in_words(s) for s in (59.6, 600, 9000)] == ["60 seconds", "10 minutes", "2.5 hours"]


def test_under_laptop_every_row_of_a_table_sees_equally_many_faces():
    from facelab.base.params import merge, read_yaml

    params = merge(load_params(ROOT), read_yaml(ROOT / "profiles" / "laptop.yaml"))
    seen = {}
    for name, recipe in RECIPES.items():
        full = resolve(name, RECIPES, params)
        if full["stages"] and recipe["kind"] != "priors":
            seen.setdefault(recipe["paper"], set()).add(sum(s["steps"] for s in full["stages"]) * full["batch"])
    assert seen.pop("sr_deblur_gan") == {6000} and set().union(*seen.values()) == {12000}
