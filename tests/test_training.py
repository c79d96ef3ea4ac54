"""Training: killed anywhere it ends with the same bytes; the bugs of published trainers; bad input."""

import hashlib
import json
import math
import multiprocessing
import random
import resource
import subprocess
import sys
import time

import pytest
import torch
from conftest import ENV, ROOT, free_port
from safetensors.torch import load_file

from facelab import FacelabError
from facelab.training.batches import fill_in, required_labels, step_inputs
from facelab.training.checkpoints import describe_differences, load_state, open_state, save_state, state_tensors
from facelab.degradations.chain import Chain
from facelab.base.dice import seed_of
from facelab.faces.drawn import draw_set
from facelab.base.params import load_params
from facelab.faces.parts import PARTS_THESIS
from facelab.faces.sets import FaceSet
from facelab.training.models import load_model, write_model
from facelab.base.names import build
from facelab.training.recipes import load_recipes, read_schedule, resolve
from facelab.training.run import Run, lr_factor, take_step
from facelab.training.loop import train

torch.set_num_threads(1)


def small(name="prior_guided_gan", steps=24, **train_params):
    "A recipe that trains in seconds; the perceptual term, which needs trained features, is left out."
    params = {**load_params(ROOT), "instead": {}}
    params["train"].update(
        {**dict(steps=steps, batch=2, width=0.125, depth=0.05, log_every=2, threads=1, validate=2), **train_params}
    )
    recipe = resolve(name, load_recipes(ROOT), params)
    for stage in recipe["stages"]:
        stage["losses"].pop("vgg", None)
    return recipe


@pytest.fixture(scope="module")
def faces():
    return draw_set(12, 2, 2, seed=0)


FORKS = multiprocessing.get_context(
    "forkserver"
)  # children are killed; a server that has torch already makes them at once
FORKS.set_forkserver_preload(["facelab.training.loop"])


def train_in(folder):
    "Train what `prepared` put into a folder; runs in a process of its own."
    torch.set_num_threads(1)
    train(
        json.loads((folder / "recipe.json").read_text()),
        FaceSet.load(folder / "faces.safetensors"),
        folder / "model",
        folder / "history.csv",
        folder / "state.safetensors",
        checkpoint_seconds=0,
        progress=False,
    )


def prepared(folder, faces, recipe):
    "A folder for `train_in`."
    folder.mkdir()
    faces.save(folder / "faces.safetensors")
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


def start(folder):
    process = FORKS.Process(target=train_in, args=(folder,))
    process.start()
    return process


def result(folder):
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in (
            "model/generator.safetensors",
            "model/best.safetensors",
            "model/discriminator.safetensors",
            "history.csv",
        )
    }


def kill_in_training(folder, seconds):
    "Start training, kill it some time after a new checkpoint; the step of the last checkpoint, None if it had ended."
    state = folder / "state.safetensors"
    before = state.stat().st_mtime_ns if state.exists() else 0
    process = start(folder)
    while process.is_alive() and not (state.exists() and state.stat().st_mtime_ns > before):
        time.sleep(0.01)
    time.sleep(seconds)
    alive = process.is_alive()
    process.kill()
    process.join()
    return open_state(state)[0]["step"] if alive and state.exists() else None


def test_killed_ten_times_ends_with_the_same_bytes(tmp_path):
    """A recipe with two stages and a critic; SIGKILL at random moments, also while a checkpoint is being written."""
    recipe, faces = small(steps=48, log_every=1), draw_set(12, 2, 2, size=64, seed=0)
    undisturbed, killed = (prepared(tmp_path / name, faces, recipe) for name in ("undisturbed", "killed"))
    beside = start(undisturbed)
    points = [random.uniform(0, 0.12) for _ in range(10)]
    steps = [kill_in_training(killed, seconds) for seconds in points]
    print(f"killed {points} s after a checkpoint; the checkpoints left behind are of steps {steps} of 48")
    last = start(killed)
    for process in (beside, last):
        process.join()
    assert (beside.exitcode, last.exitcode) == (0, 0)
    assert sum(step is not None for step in steps) == 10, "training ended before the tenth kill: raise its steps"
    assert result(killed) == result(undisturbed)
    assert not (killed / "state.safetensors").exists()


def test_a_full_disk_is_told_and_the_checkpoint_stays(faces, tmp_path):
    """The largest file that the process may write stands for the space that is left."""
    recipe = small("srresnet", steps=8)
    run = Run(recipe, faces.subset("train"))
    take_step(run)
    path = tmp_path / "state.safetensors"
    save_state(run, path, {})
    whole, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
    try:
        with pytest.raises(
            FacelabError,
            match=(
                r"state.safetensors could not be written .*: is the disk full\? What was there before is untouched;"
                r" free some space"
            ),
        ):
            save_state(run, path, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole and [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_checkpoint_of_another_recipe_is_refused_and_the_difference_named(faces, tmp_path, capsys):
    recipe, path = small("srresnet", steps=4), tmp_path / "state.safetensors"
    run = Run(recipe, faces.subset("train"))
    take_step(run)
    save_state(run, path, {"recipe": run.recipe, "code": {"facelab.training.run": "1"}, "faces": "a", "helpers": {}})
    with pytest.raises(
        FacelabError,
        match=(
            r"made under another recipe, code or data \(recipe.batch: 2 then, 4 now; code.facelab.training.run: \"1\""
            r" then, \"2\" now\)"
        ),
    ):
        load_state(
            run,
            path,
            {"recipe": {**run.recipe, "batch": 4}, "code": {"facelab.training.run": "2"}, "faces": "a", "helpers": {}},
        )
    fresh = train(
        recipe,
        faces,
        tmp_path / "model",
        state=path,
        progress=False,
        about={"code": {"facelab.training.run": "1"}, "faces": "b"},
    )
    assert 'faces: "a" then, "b" now' in (said := capsys.readouterr().out) and "training starts anew" in said
    assert (tmp_path / "state.refused.safetensors").exists() and not path.exists()
    assert torch.equal(
        fresh.average["tail.weight"], train(recipe, faces, tmp_path / "other", progress=False).average["tail.weight"]
    )


def test_differences_of_anything():
    assert describe_differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == []
    assert describe_differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}], "c": None}) == [
        "a[1].b: 2 then, 3 now",
        'c: "nothing" then, null now',
    ]


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_a_truncated_checkpoint_is_named(faces, tmp_path, keep):
    recipe, path = small("srresnet", steps=4), tmp_path / "state.safetensors"
    run = Run(recipe, faces.subset("train"))
    save_state(run, path, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 or keep == 0 else keep * len(whole))])
    with pytest.raises(
        FacelabError, match=r"the checkpoint .*state.safetensors is damaged .*: delete it to train from the start"
    ):
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
    recipe["stages"] = [
        {**adversarial, "steps": 2, "losses": {"adversarial": adversarial["losses"]["adversarial"]}, "critics": {}}
    ]
    run = Run(recipe, faces.subset("train"))
    before = {k: v.clone() for k, v in state_tensors(run).items() if k.startswith("net/")}
    take_step(run)
    moved = {
        k.split("/")[1]
        for k, v in state_tensors(run).items()
        if k in before and "running" not in k and "num_batches" not in k and not torch.equal(v, before[k])
    }
    assert moved == {"generator"}


def test_the_critic_learns_from_its_own_loss(faces):
    run = Run(small(steps=20), faces.subset("train"))
    run.stage = 1
    before = {k: v.clone() for k, v in run.bare["discriminator"].named_parameters()}
    seen = take_step(run)
    assert set(seen) == {"discriminator", "coarse", "prior", "fine", "adversarial"}
    assert all(
        not torch.equal(v, before[k])
        for k, v in run.bare["discriminator"].named_parameters()
        if v.grad is not None and v.grad.abs().max() > 0
    )
    assert all(p.requires_grad for p in run.bare["discriminator"].parameters())


def test_the_learning_rate_is_never_negative():
    wishes = [
        "constant",
        "cosine",
        {"use": "linear", "from": 0.3},
        {"use": "milestones", "at": [10, 90], "factor": 0.1},
    ]
    for schedule in (read_schedule(wish, 100, "here") for wish in wishes):
        assert all(0 <= lr_factor(schedule, step / 100, step, warmup) <= 1 for step in range(120) for warmup in (0, 20))


def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_checkpoint(faces, tmp_path, monkeypatch):
    recipe, path, planted = small("srresnet", steps=40, validate=0), tmp_path / "state.safetensors", 13
    import facelab.training.run as engine

    def step_with_nan(*args, **more):
        given = step_inputs(*args, **more)
        if args[3] == planted:
            given["input"][0, 0, 0, 0] = math.nan
        return given

    monkeypatch.setattr(engine, "step_inputs", step_with_nan)
    seed = seed_of(0, "step", planted)
    with pytest.raises(
        FacelabError,
        match=(
            rf"loss 'fine' of recipe 'srresnet' is not finite at step {planted} \(seed of its batch: {seed}\): lower"
            r" train.lr"
        ),
    ):
        train(recipe, faces, tmp_path / "model", state=path, checkpoint_seconds=0, progress=False)
    head, tensors = open_state(path)
    assert head["step"] == 12 and all(torch.isfinite(t.float()).all() for t in tensors.values())
    assert not (tmp_path / "model").exists()


def test_gradients_are_clipped(faces):
    moved = {}
    for clip in (None, 1e-6):
        run = Run(
            {**small("srresnet", clip=clip), "optimisers": {"generator": {"use": "SGD", "lr": 1.0}}},
            faces.subset("train"),
        )
        before = run.bare["generator"].tail.weight.detach().clone()
        take_step(run)
        moved[clip] = (run.bare["generator"].tail.weight - before).norm().item()
    assert 0 < moved[1e-6] <= 1e-6 < moved[None]


def test_a_time_limit_ends_every_stage(faces, tmp_path):
    recipe = {**small(log_every=1, validate=0), "seconds": 1.0}
    for stage in recipe["stages"]:
        stage["steps"] = 100_000
    began = time.monotonic()
    run = train(recipe, faces, tmp_path / "model", progress=False)
    assert time.monotonic() - began < 60 and run.step < run.steps and run.done
    assert {row["stage"] for row in run.history} == {"content", "adversarial"}


def test_two_processes_with_half_the_batch_equal_one(faces, tmp_path):
    """Gloo on the CPU. No batch norm in this recipe, and a critic with a gradient penalty."""
    recipe = {**small(steps=4, log_every=1, validate=0, batch=4), "precision": "32-true"}
    recipe["generator"] = {"use": "networks.rrdb.RRDBNet", "scale": 8, "width": 8, "depth": 1}
    recipe["optimisers"] = {name: {"use": "SGD", "lr": 0.02} for name in ("generator", "critic")}
    recipe["critics"] = {"critic": {"use": "networks.wgan_critic.WGANCritic", "size": 128, "width": 4}}
    losses = {
        "fine": {"use": "losses.pixel.mse", "of": "restored", "to": "target"},
        "adversarial": {"use": "losses.adversarial.wasserstein", "of": "critic(restored)", "weight": 0.01},
    }
    critic = {
        "adversarial": {
            "use": "losses.adversarial.wasserstein_critic",
            "of": "critic(restored)",
            "to": "critic(target)",
        }
    }
    recipe["stages"] = [{"name": "both", "steps": 4, "losses": losses, "critics": {"critic": critic}}]
    one, two = (prepared(tmp_path / name, faces, recipe) for name in ("one", "two"))
    alone = start(one)
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom pathlib import Path\nfrom test_training import"
        " train_in\ntrain_in(Path(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-addr",
            "127.0.0.1",
            "--master-port",
            str(free_port()),
            str(script),
            str(two),
        ],
        cwd=ROOT,
        env={**ENV, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone.join()
    assert alone.exitcode == 0
    for name in ("generator", "critic"):
        a, b = (load_file(folder / "model" / f"{name}.safetensors") for folder in (one, two))
        worst = max((a[k] - b[k]).abs().max().item() for k in a)
        print(f"{name}: largest difference between one and two processes {worst:.1e}")
        assert worst < 1e-4
    rows = [[line.split(",") for line in (folder / "history.csv").read_text().splitlines()] for folder in (one, two)]
    assert all(abs(float(x) - float(y)) < 1e-4 for a, b in zip(*(r[1:] for r in rows)) for x, y in zip(a[2:], b[2:]))


def test_a_batch_that_two_processes_cannot_share_says_so(faces):
    run = Run({**small("srresnet"), "batch": 3}, faces.subset("train"))
    run.processes = 2
    with pytest.raises(FacelabError, match="make train.batch a multiple of 2"):
        take_step(run)


def test_the_best_weights_are_those_of_the_best_look(faces, tmp_path):
    run = train(small("srresnet", steps=24, validate=6), faces, tmp_path / "model", progress=False)
    looks = {row["step"]: row["psnr"] for row in run.history if "psnr" in row}
    assert len(looks) == 6 and run.best["psnr"] == max(looks.values()) and looks[run.best["step"]] == run.best["psnr"]
    best, last = (load_model(tmp_path / "model", weights=w)[0].state_dict() for w in ("best", "generator"))
    assert torch.equal(best["tail.weight"], run.best["weights"]["tail.weight"])
    assert torch.equal(best["tail.weight"], last["tail.weight"]) == (run.best["step"] == run.step)


def test_parts_begin_and_helpers_judge(faces, tmp_path):
    """A recipe that starts from one helper and asks another: it never learns."""
    spec = {"use": "networks.lightcnn.LightCNN9", "size": 128, "width": 8, "embedding": 16}
    helper = build(spec)
    write_model(
        tmp_path / "helpers" / "people" / "lightcnn",
        {"generator": helper.state_dict()},
        {"generator": spec, "critics": {}},
    )
    srresnet = small("srresnet", steps=4)
    train(srresnet, faces, tmp_path / "helpers" / "group" / "srresnet", progress=False)
    recipe = {**srresnet, "begin": {"generator": "group/srresnet"}, "helpers": {"identity": "people/lightcnn"}}
    recipe["stages"][0]["losses"]["identity"] = {
        "use": "losses.prior.identity",
        "of": "identity(restored)",
        "to": "identity(target)",
    }
    run = Run(recipe, faces.subset("train"), helpers=tmp_path / "helpers")
    begun = load_file(tmp_path / "helpers" / "group" / "srresnet" / "generator.safetensors")
    assert all(torch.equal(v, begun[k]) for k, v in run.bare["generator"].state_dict().items())
    assert set(take_step(run)) == {"fine", "identity"}
    assert all(torch.equal(v, helper.state_dict()[k]) for k, v in run.helpers["identity"].state_dict().items())
    with pytest.raises(
        FacelabError, match="nowhere/group/srresnet/generator.safetensors do not exist: train them first"
    ):
        Run(recipe, faces.subset("train"), helpers=tmp_path / "nowhere")
    with pytest.raises(FacelabError, match="there is no trained model in .*nowhere/people/lightcnn: train it first"):
        Run({**recipe, "begin": {}}, faces.subset("train"), helpers=tmp_path / "nowhere")


def test_words_of_recipes_are_filled_from_the_training_faces(faces):
    part = faces.subset("train")
    assert fill_in(
        {"size": "faces.size", "small": "faces.size/4", "points": "faces.landmarks", "people": "faces.identities"}, part
    ) == {"size": 128, "small": 32, "points": 81, "people": 3}
    for box in ("eyes", "nose", "lips"):
        left, top, right, bottom = fill_in(f"faces.{box}", part)
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    with pytest.raises(FacelabError, match="did you mean 'faces.identities'"):
        fill_in("faces.identitys", part)


def test_a_mirrored_face_has_mirrored_labels(faces):
    """Published code flips pictures without exchanging left and right labels."""
    recipe = small("prior_guided_sr")
    part = faces.subset("train")
    degrade = Chain(recipe["degradation"])
    left, right = PARTS_THESIS.index("l_eye"), PARTS_THESIS.index("r_eye")
    x = torch.arange(part.size).float()
    seen = 0
    for step in range(6):
        given = step_inputs(
            part.batch(part.order(2, step, 0), labels=required_labels(part, recipe, degrade)), recipe, degrade, step
        )
        for maps in given["parsing_thesis"]:
            if maps[left].sum() and maps[right].sum():
                centre = lambda k: (maps[k].sum(0) * x).sum() / maps[k].sum()
                assert centre(left) > centre(
                    right
                )  # the person's left is the right side of the picture, mirrored or not
                seen += 1
    assert seen > 6


def test_a_set_without_parsing_says_what_to_do(faces):
    bare = FaceSet(name="bare", images=faces.images, names=faces.names, split=faces.split)
    with pytest.raises(FacelabError, match="recipe prior_guided_sr needs parsing, which the faces lack"):
        Run(small("prior_guided_sr"), bare.subset("train"))


def test_a_batch_larger_than_the_set_says_what_to_do(faces):
    recipe = {**small("srresnet"), "batch": 64}
    with pytest.raises(FacelabError, match="lower train.batch"):
        take_step(Run(recipe, faces.subset("train")))


@pytest.mark.parametrize("device", ["cuda", "tpu"])
def test_a_device_that_is_not_there(faces, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU: nothing to refuse")
    with pytest.raises(FacelabError, match="choose auto"):
        Run(small("srresnet"), faces.subset("train"), device)
