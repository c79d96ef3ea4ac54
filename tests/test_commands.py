"The command `facelab`, as a user types it."

import json
import re
import shlex
import subprocess
import sys
from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, copy_project, shrink
from PIL import Image
from published import helen

from facelab.apps.commands import main, pack_faces
from facelab.base.images import read_image, to_float, write_image
from facelab.base.names import build
from facelab.base.params import load_params
from facelab.faces.drawn import draw_faces, draw_set
from facelab.faces.sets import FaceSet
from facelab.networks.identity_start import start_as_identity
from facelab.publication.shipping import LIMIT, measure_model
from facelab.training.models import write_model
from facelab.training.recipes import load_recipes, resolve
from facelab.training.zoo import SHIPPED, find_models


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Two pictures with landmarks, a mask, and systems that enlarge."
    folder = tmp_path_factory.mktemp("commands")
    drawn, recipes, params = draw_faces(range(2)), load_recipes(), load_params()
    (folder / "photos").mkdir()
    rows = []
    for i, (image, points) in enumerate(zip(drawn["image"], drawn["landmarks_68"])):
        scene = torch.nn.functional.pad(image, (10, 30, 20, 40), value=0.5)
        write_image(folder / "photos" / f"face{i}.png", scene)
        rows.append(
            f"face{i}.png," + ",".join(f"{v:.2f}" for v in (points + torch.tensor([10.0, 20.0])).flatten().tolist())
        )
    (folder / "points.csv").write_text("\n".join(rows) + "\n")
    write_image(folder / "grey.png", torch.full((3, 90, 120), 0.5))
    for name in ("srresnet", "fcsr_gan_pconv_srresnet_x4"):
        recipe = resolve(name, recipes, params)
        spec = {k: 128 if v == "faces.size" else v for k, v in recipe["generator"].items()} | {"width": 8}
        net = build(spec)
        start_as_identity(net if name == "srresnet" else net.sr)
        write_model(
            folder / "models" / name,
            {"generator": net.state_dict()},
            {**recipe, "generator": spec, "critics": {}, "faces": "drawn"},
        )
    return folder


def lines(capsys):
    "What was printed: lines of stdout, lines of stderr."
    printed = capsys.readouterr()
    return printed.out.splitlines(), printed.err.splitlines()


def with_landmarks(place, command):
    "A command with the pictures of the place and their landmarks, without a bar."
    return [command, str(place / "photos"), "--landmarks", str(place / "points.csv"), "--quiet"]


def enlarger(place):
    "The option that names a system that only enlarges."
    return ["--system", str(place / "models" / "srresnet")]


def test_restored_faces_are_put_back_where_they_were(place, tmp_path, capsys):
    words = [*with_landmarks(place, "restore"), *enlarger(place), "--out", str(tmp_path), "--sheet"]
    assert main(words) == 0
    names = ["face0.png", "face0_sheet.png", "face1.png", "face1_sheet.png", "restored.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert len(lines(capsys)[0]) == 4
    before, after = read_image(place / "photos" / "face0.png").float(), read_image(tmp_path / "face0.png").float()
    assert before.shape[1] / before.shape[2] == pytest.approx(after.shape[1] / after.shape[2], abs=0.01)
    change = torch.nn.functional.interpolate(after[None], before.shape[1:], mode="area")[0] - before
    assert change[:, :8].abs().mean() < 2  # grey stays
    assert change[:, 40:120, 40:100].abs().mean() > 2  # the face is that of the system


def test_a_square_picture_of_the_right_size_is_taken_as_it_is(place, tmp_path, capsys):
    words = [*with_landmarks(place, "degrade"), "--chain", "prior_guided_x8", "--out", str(tmp_path / "small")]
    assert main(words) == 0
    assert read_image(tmp_path / "small" / "face1.png").shape == (3, 16, 16)
    words = ["restore", str(tmp_path / "small" / "*.png"), *enlarger(place), "--out", str(tmp_path / "large")]
    assert main([*words, "--quiet"]) == 0
    assert read_image(tmp_path / "large" / "face1.png").shape == (3, 128, 128)


def test_a_mask_says_what_is_hidden(place, tmp_path, capsys):
    for i in range(2):
        mask = torch.zeros(3, 188, 168)
        mask[:, 80:130, 60:110] = 1
        write_image(tmp_path / "masks" / f"face{i}.png", mask)
    words = [*with_landmarks(place, "restore"), "--system", str(place / "models" / "fcsr_gan_pconv_srresnet_x4")]
    assert main([*words, "--out", str(tmp_path / "all"), "--hidden", str(tmp_path / "masks")]) == 0
    assert main([*words, "--out", str(tmp_path / "none")]) == 0
    assert not torch.equal(read_image(tmp_path / "all" / "face0.png"), read_image(tmp_path / "none" / "face0.png"))
    (tmp_path / "masks" / "face1.png").unlink()
    assert main([*words, "--out", str(tmp_path / "some"), "--hidden", str(tmp_path / "masks")]) == 1
    assert "has no mask for" in lines(capsys)[1][-1] and (tmp_path / "some" / "face0.png").exists()


def test_what_cannot_be_read_gives_a_line_and_the_rest_is_done(place, tmp_path, capsys):
    write_image(tmp_path / "in" / "good.png", draw_faces([5])["image"][0])
    (tmp_path / "in" / "bad.jpg").write_bytes(b"\xff\xd8 nothing")
    words = ["restore", str(tmp_path / "in"), *enlarger(place), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 1
    out, err = lines(capsys)
    assert [line.rsplit("/")[-1] for line in out] == ["good.png"]
    assert len(err) == 1 and "bad.jpg is not an image" in err[0]


@pytest.mark.parametrize(
    "words, message",
    [
        (["restore", "nowhere.png", "--system", "MODEL", "--out", "OUT"], "nowhere.png does not exist: check the path"),
        (["restore", "PHOTOS/*.gif", "--system", "MODEL", "--out", "OUT"], "holds no picture: give a file"),
        (["restore", "PHOTOS", "--system", "srresnot", "--out", "OUT"], "there is no trained system 'srresnot'"),
        (["restore", "PHOTOS", "--system", "file:///nowhere", "--out", "OUT"], "cannot be fetched"),
        (["restore", "PHOTOS", "--system", "MODEL", "--out", "OUT", "--landmarks", "nowhere.csv"], "nowhere.csv"),
        (["degrade", "PHOTOS", "--chain", "prior_guided_x88", "--out", "OUT"], "did you mean 'prior_guided_x8'?"),
        (["degrade", "GREY", "--chain", "jdsr_gan_x4", "--out", "OUT"], "no face was found in"),
        (["restore", "GREY", "--system", "MODEL", "--find", "--out", "OUT"], "no face was found in"),
        (["faces", "check", "nowhere"], "nowhere"),
        (["evaluate", "srresnot", "--faces", "PHOTOS", "--out", "OUT"], "unknown recipe 'srresnot'"),
    ],
)
def test_a_users_mistake_gets_one_sentence(place, tmp_path, capsys, words, message):
    put = {
        "MODEL": str(place / "models" / "srresnet"),
        "OUT": str(tmp_path / "out"),
        "PHOTOS": str(place / "photos"),
        "GREY": str(place / "grey.png"),
    }
    for name, path in put.items():
        words = [word.replace(name, path) for word in words]
    assert main([*words, *["--quiet"] * (words[0] in ("restore", "degrade"))]) == 1
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed and not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["nothing", "another folder", "one more", "one less", "one other", "size"])
def test_faces_are_packed_anew_when_they_have_changed(tmp_path, monkeypatch, capsys, change):
    monkeypatch.chdir(ROOT)
    for name, some in (("a", range(4)), ("b", range(4, 8))):
        for k in some:
            write_image(tmp_path / name / f"{k % 4}.png", to_float(faces_of_32().images[k]))

    def packed(folder, size=32):
        args = SimpleNamespace(faces=tmp_path / folder, out=tmp_path / "out", profile=None, params=None, size=size)
        pack = pack_faces(args, {})
        return FaceSet.load(pack).images, pack.stat().st_mtime_ns

    before = packed("a")
    capsys.readouterr()
    folder, size = "a", 32
    if change == "another folder":
        folder = "b"
    if change == "one more":
        write_image(tmp_path / "a" / "4.png", to_float(faces_of_32().images[4]))
    if change == "one less":
        (tmp_path / "a" / "3.png").unlink()
    if change == "one other":
        write_image(tmp_path / "a" / "3.png", to_float(faces_of_32().images[5]))
    if change == "size":
        size = 16
    after = packed(folder, size)
    assert (before[1] == after[1]) == (change == "nothing")
    assert ("packed anew" in capsys.readouterr().err) == (change != "nothing")
    assert change == "nothing" or before[0].shape != after[0].shape or not torch.equal(before[0], after[0])


@lru_cache
def faces_of_32():
    return draw_set(8, 0, 0, size=32)


def test_models_and_weights_are_listed(place, monkeypatch, capsys):
    monkeypatch.setenv("FACELAB_WEIGHTS", str(place / "models"))
    assert main(["models"]) == 0 and main(["weights"]) == 0
    out = "\n".join(lines(capsys)[0])
    assert "| fcsr_gan_pconv_srresnet_x4 |" in out and "mobilefacenet.safetensors" in out
    assert f"FACELAB_WEIGHTS is {place / 'models'}" in out


def run(*words):
    "A Python with these words."
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def test_it_is_installed_and_helps():
    facelab = ("-m", "facelab.apps.commands")
    assert "restore" in run(*facelab, "--help").stdout and run(*facelab, "--help").returncode == 0
    assert run(*facelab, "restore").returncode == 2 and "--system" in run(*facelab, "restore").stderr
    assert "facelab" in run(*facelab, "completion", "bash").stdout


def test_the_parser_needs_no_torch():
    code = "import sys, facelab.apps.commands as c; c.parser(); print('torch' in sys.modules)"
    assert run("-c", code).stdout == "False\n"


GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TYPED = [
    (path.stem, line.partition("#")[0].strip())
    for path in GUIDES
    for block in re.findall(r"(?ms)^```sh\n(.*?)^```", path.read_text())
    for line in block.splitlines()
    if line.startswith("facelab ")
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    "A reader's project, small, with the pictures that the guides speak of."
    project = shrink(copy_project(tmp_path_factory.mktemp("reader")))
    faces = draw_set(16, 4, 4, size=128, seed=3)
    scene = torch.nn.functional.pad(faces.images[0], (20, 20, 10, 60), value=128)
    Image.fromarray(scene.permute(1, 2, 0).numpy()).save(project / "me.jpg")
    for i, image in enumerate(faces.images):
        write_image(project / "album" / f"{i}.png", image)
        write_image(project / "small" / f"{i}.png", torch.nn.functional.avg_pool2d(image.float(), 8).round().byte())
    helen(project / "helen", 20)
    (project / "points.csv").write_text(
        "".join(
            f"{i}.png,{','.join(f'{v:.2f}' for v in p[:68].flatten().tolist())}\n"
            for i, p in enumerate(faces.landmarks)
        )
    )
    return project


@pytest.mark.parametrize("guide, command", TYPED, ids=[f"{guide}: {command[:60]}" for guide, command in TYPED])
def test_what_the_guides_show_runs(reader, monkeypatch, capsys, guide, command):
    monkeypatch.chdir(reader)

    def files():
        return {(path, path.stat().st_mtime_ns) for path in reader.rglob("*") if path.is_file()}

    before = files()
    assert main(shlex.split(command)[1:]) == 0, lines(capsys)[1]
    made = {path for path, _ in files() - before}
    assert bool(made) == ("--out" in command)
    out = reader / shlex.split(command.partition("--out ")[2])[0] if made else None
    assert all(out in path.parents or path.suffix == ".pyc" for path in made)


@pytest.mark.parametrize("counts, part", [((8, 2, 0), "test"), ((0, 2, 8), "train")])
def test_a_set_without_faces_to_test_on_is_told_before_training(tmp_path, capsys, counts, part):
    draw_set(*counts, size=64, seed=0).save(tmp_path / "faces.safetensors")
    faces, out = str(tmp_path / "faces.safetensors"), tmp_path / "out"
    assert main(["evaluate", "srresnet", "--faces", faces, "--out", str(out)]) == 1
    told = f"facelab: {faces}: no face is left for the part {part} (10 in all): add faces, or write split.csv"
    assert lines(capsys)[1][-1].startswith(told) and not (out / "models").exists()
    main(["faces", "check", faces, "--size", "64"])
    assert f"no face is left for the part {part}" in capsys.readouterr().out


def test_evaluate_measures_under_the_convention_that_is_asked_for(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("evaluate: {convention: y_border8}\n")
    faces, own = tmp_path / "faces", ["--params", str(tmp_path / "own.yaml")]
    drawn = draw_set(4, 2, 4, size=64, seed=0)
    drawn.save(faces / "64.safetensors")
    small = torch.nn.functional.avg_pool2d(drawn.images.float(), 4).byte()
    FaceSet("small", small, drawn.names, drawn.split).save(faces / "16.safetensors")
    words = ["--faces", str(faces / "64.safetensors"), "--out", str(tmp_path / "64")]
    assert main(["evaluate", "bicubic", *words, *own]) == 0 and "psnr_y_border8" in capsys.readouterr().out
    words = ["--faces", str(faces / "16.safetensors"), "--out", str(tmp_path / "16")]
    assert main(["evaluate", "srresnet", *words, *own]) == 1 and not (tmp_path / "16/models").exists()
    told = "Images of 16x16 leave less than one 11x11 window under the convention 'y_border8': take larger ones"
    assert told in capsys.readouterr().err


SHIPS = {**find_models(), **find_models(kind="helpers")} if SHIPPED.exists() else {}
SHIPS = {name: folder for name, folder in SHIPS.items() if folder.parent == SHIPPED}


def test_models_ship():
    assert {"prior_guided_sr", "landmarker"} <= SHIPS.keys()


@pytest.mark.parametrize("name", SHIPS)
def test_a_model_that_ships_is_small_has_a_card_and_does_better_than_bicubic(name):
    folder = SHIPS[name]
    card, run = (folder / "card.md").read_text(), json.loads((folder / "run.json").read_text())
    assert (folder / "generator.safetensors").stat().st_size <= LIMIT
    assert json.loads((folder / "recipe.json").read_text())["name"] == name
    assert all(f"**{heading}" in card for heading in ("Data", "Schedule", "Scores", "Intended use", "Limits"))
    assert run["scores"] and all(str(value) in card for row in run["scores"] for value in row.values())
    rows = measure_model(folder, draw_set(0, 0, 4, seed=70), "drawn")
    if "PSNR, dB" in rows[0]:
        assert float(rows[1]["PSNR, dB"]) > float(rows[0]["PSNR, dB"]) + 0.3, rows
    else:
        assert float(list(rows[0].values())[-1]) < 0.1, rows


def test_the_face_of_an_astronaut_is_found_and_restored(tmp_path, monkeypatch):
    monkeypatch.delenv("FACELAB_WEIGHTS", raising=False)
    words = ["restore", "astronaut", "--find", "--system", str(SHIPPED / "prior_guided_sr"), "--out", str(tmp_path)]
    assert main([*words, "--sheet", "--quiet"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"astronaut.png", "astronaut_sheet.png", "restored.json"}


@pytest.mark.parametrize("steps, wins", [(1, False), (10**6, True)])
def test_of_two_models_of_a_name_the_one_that_learned_longer_is_taken(tmp_path, monkeypatch, steps, wins):
    monkeypatch.delenv("FACELAB_WEIGHTS", raising=False)
    write_model(
        tmp_path / "build" / "models" / "prior_guided_sr" / "prior_guided_sr",
        {},
        {"kind": "recipes", "stages": [{"steps": steps}]},
    )
    assert (find_models(tmp_path)["prior_guided_sr"].parent != SHIPPED) == wins
