"""Training: killed anywhere it ends with the same bytes; the bugs of published trainers; bad input."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from conftest import ENV, ROOT

from facelab import FacelabError
from facelab.degradations.chain import Chain
from facelab.drawn import draw_set
from facelab.engine.params import load_params
from facelab.faces import PARTS_11, FaceSet
from facelab.recipes import load_recipes, resolve
from facelab.training import Run, load_model, lr_factor, open_state, save_state, state_tensors, step_inputs, take_step, train

torch.set_num_threads(1)


def small(name="prior_guided_gan", steps=24, **train_params):
    "A recipe that trains in seconds; the perceptual term, which needs trained features, is left out."
    params = load_params(ROOT)
    params["train"].update(steps=steps, batch=2, width=.125, depth=.05, log_every=2, threads=1, **train_params)
    recipe = resolve(name, load_recipes(ROOT), params)
    for stage in recipe["stages"]:
        stage["losses"].pop("vgg", None)
    return recipe


@pytest.fixture(scope="module")
def faces():
    return draw_set(12, 2, 2, seed=0)


SCRIPT = """
    import json, sys
    from facelab.faces import FaceSet
    from facelab.training import train
    folder = sys.argv[1]
    train(json.load(open(f"{folder}/recipe.json")), FaceSet.load(f"{folder}/faces.safetensors"), f"{folder}/model", f"{folder}/history.csv",
          f"{folder}/state.safetensors", checkpoint_seconds=0, progress=False)
"""


def start(folder):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder)], cwd=ROOT, env=ENV)


def result(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model/generator.safetensors", "model/discriminator.safetensors", "history.csv")}


def kill_in_training(folder, seconds):
    "Start training, wait for a new checkpoint, kill it some time later; True if it was still running."
    state = folder / "state.safetensors"
    before = state.stat().st_mtime_ns if state.exists() else 0
    process = start(folder)
    while process.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
        time.sleep(.01)
    time.sleep(seconds)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def test_killed_three_times_ends_with_the_same_bytes(faces, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in (undisturbed, killed):
        folder.mkdir()
        faces.save(folder / "faces.safetensors")
        (folder / "recipe.json").write_text(json.dumps(small(steps=60)))
    began = time.monotonic()
    assert start(undisturbed).wait() == 0
    points = [random.uniform(0, .4) for _ in range(3)]
    alive = [kill_in_training(killed, seconds) for seconds in points]
    print(f"one run {time.monotonic() - began:.1f} s, killed {points} s after a checkpoint, still training then: {alive}")
    assert any(alive), "training ended before every kill: raise its steps"
    assert (killed / "state.safetensors").exists() or not all(alive)
    assert start(killed).wait() == 0
    assert result(killed) == result(undisturbed)
    assert not (killed / "state.safetensors").exists()


def test_a_checkpoint_of_another_recipe_is_left_behind(faces, tmp_path, capsys):
    recipe = small("srresnet", steps=4)
    run = Run(recipe, faces.part("train"))
    take_step(run)
    save_state(run, tmp_path / "state.safetensors", "something else")
    fresh = train(recipe, faces, tmp_path / "model", state=tmp_path / "state.safetensors", progress=False)
    assert "starts anew" in capsys.readouterr().out
    assert torch.equal(fresh.average["tail.weight"], train(recipe, faces, tmp_path / "other", progress=False).average["tail.weight"])


@pytest.mark.parametrize("keep", [0, 7, 100, .5, .999])
def test_a_truncated_checkpoint_is_named(faces, tmp_path, keep):
    recipe, path = small("srresnet", steps=4), tmp_path / "state.safetensors"
    run = Run(recipe, faces.part("train"))
    save_state(run, path, "x")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 or keep == 0 else keep * len(whole))])
    with pytest.raises(FacelabError, match=r"the checkpoint .*state.safetensors is damaged .*: delete it to train from the start"):
        open_state(path)


def test_weights_of_another_network_are_named(faces, tmp_path):
    train(small("srresnet", steps=2), faces, tmp_path / "a", progress=False)
    train(small("prior_guided_sr", steps=2), faces, tmp_path / "b", progress=False)
    (tmp_path / "b" / "generator.safetensors").write_bytes((tmp_path / "a" / "generator.safetensors").read_bytes())
    with pytest.raises(FacelabError, match="are of another network"):
        load_model(tmp_path / "b")


def test_the_adversarial_term_reaches_the_generator_and_only_it(faces):
    """Published trainers detach the generator here, or let its step move the critic."""
    recipe = small(steps=20)
    adversarial = recipe["stages"][1]
    recipe["stages"] = [{**adversarial, "steps": 2, "losses": {"adversarial": adversarial["losses"]["adversarial"]}, "critics": {}}]
    run = Run(recipe, faces.part("train"))
    before = {k: v.clone() for k, v in state_tensors(run).items() if k.startswith("net/")}
    take_step(run)
    moved = {k.split("/")[1] for k, v in state_tensors(run).items() if k in before and "running" not in k and "num_batches" not in k and not torch.equal(v, before[k])}
    assert moved == {"generator"}


def test_the_critic_learns_from_its_own_loss(faces):
    run = Run(small(steps=20), faces.part("train"))
    run.step = run.recipe["stages"][0]["steps"]
    before = {k: v.clone() for k, v in run.bare["discriminator"].named_parameters()}
    seen = take_step(run)
    assert set(seen) == {"discriminator", "coarse", "prior", "fine", "adversarial"}
    assert all(not torch.equal(v, before[k]) for k, v in run.bare["discriminator"].named_parameters() if v.grad is not None and v.grad.abs().max() > 0)
    assert all(p.requires_grad for p in run.bare["discriminator"].parameters())


def test_the_learning_rate_is_never_negative():
    for schedule in ("constant", "cosine"):
        assert all(0 <= lr_factor(schedule, step, 100, warmup) <= 1 for step in range(101) for warmup in (0, 20))


def test_a_loss_that_is_not_finite_stops_with_step_and_seed_and_keeps_the_checkpoint(faces, tmp_path):
    recipe = small("srresnet", steps=40)
    recipe["optimiser"]["lr"], recipe["warmup"] = 1e30, 0
    with pytest.raises(FacelabError, match=r"loss 'fine' of recipe 'srresnet' is not finite between steps \d+ and \d+ \(seed 0\): lower train.lr"):
        train(recipe, faces, tmp_path / "model", state=tmp_path / "state.safetensors", checkpoint_seconds=0, progress=False)
    assert not (tmp_path / "model").exists()


def test_a_mirrored_face_has_mirrored_labels(faces):
    """Published code flips pictures without exchanging left and right labels."""
    recipe = small("prior_guided_sr")
    part = faces.part("train")
    degrade = Chain(recipe["degradation"])
    left, right = PARTS_11.index("left eye"), PARTS_11.index("right eye")
    x = torch.arange(part.size).float()
    seen = 0
    for step in range(6):
        given = step_inputs(part, recipe, degrade, step, "cpu")
        for maps in given["parsing"]:
            if maps[left].sum() and maps[right].sum():
                centre = lambda k: (maps[k].sum(0) * x).sum() / maps[k].sum()
                assert centre(left) > centre(right)   # the person's left is the right side of the picture, mirrored or not
                seen += 1
    assert seen > 6


def test_a_set_without_parsing_says_what_to_do(faces):
    bare = FaceSet(name="bare", images=faces.images, names=faces.names, split=faces.split)
    with pytest.raises(FacelabError, match="recipe prior_guided_sr needs parsing, which the faces lack"):
        Run(small("prior_guided_sr"), bare.part("train"))


def test_a_batch_larger_than_the_set_says_what_to_do(faces):
    recipe = {**small("srresnet"), "batch": 64}
    with pytest.raises(FacelabError, match="lower train.batch"):
        take_step(Run(recipe, faces.part("train")))


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there(faces, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU: nothing to refuse")
    with pytest.raises(FacelabError, match="choose auto"):
        Run(small("srresnet"), faces.part("train"), device)
