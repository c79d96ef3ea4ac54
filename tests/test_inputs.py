"""Test inputs on disk: whole or absent, the same bytes, refused when touched."""

import json

import pytest
import torch

from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.degradations.chain import Chain
from facelab.evaluation.inputs import FACES_PER_FILE, Inputs, write_inputs, write_missing
from facelab.faces.drawn import draw_set

STEPS = [dict(use="degradations.occlusion.Block"), dict(use="degradations.resample.Downsample", scale=4)]


@pytest.fixture(scope="module")
def faces():
    return draw_set(2, 2, 5, size=64).subset("test")


def test_every_face_is_there_once_and_is_what_the_chain_gives(faces, tmp_path):
    inputs = write_inputs(tmp_path / "x", faces, STEPS, seed=3)
    written = sorted(p.stem for p in (tmp_path / "x" / "input").iterdir())
    assert inputs.names == list(faces.names) and written == sorted(n.rsplit(".")[0] for n in faces.names)
    alone = Chain(STEPS)(faces.batch([4])["image"], Dice(3, "test", [4]))
    assert torch.allclose(inputs.images([4]), alone.input, atol=0.5 / 255 + 1e-6)
    assert torch.allclose(inputs.maps([4], "gamma")["gamma"], alone.maps["gamma"], atol=0.5 / 255 + 1e-6)


def test_twice_the_same_bytes(faces, tmp_path):
    for k in "ab":
        write_inputs(tmp_path / k, faces, STEPS)
    files = [p.relative_to(tmp_path / "a") for p in sorted((tmp_path / "a").rglob("*")) if p.is_file()]
    assert len(files) == len(faces) + 2
    assert [f for f in files if (tmp_path / "a" / f).read_bytes() != (tmp_path / "b" / f).read_bytes()] == []


def test_more_faces_than_a_file_of_maps_holds(faces, tmp_path, monkeypatch):
    monkeypatch.setattr("facelab.evaluation.inputs.FACES_PER_FILE", 2)
    inputs = write_inputs(tmp_path / "x", faces, STEPS)
    assert len(list((tmp_path / "x" / "maps").iterdir())) == 3 and FACES_PER_FILE == 256
    whole = Chain(STEPS)(faces.batch(range(5))["image"], Dice(0, "test", range(5)))
    assert torch.allclose(inputs.maps(range(5), "M")["M"], whole.maps["M"], atol=1e-3)


def test_what_was_touched_or_lost_is_refused_in_a_sentence(faces, tmp_path):
    inputs = write_inputs(tmp_path / "x", faces, STEPS)
    one, maps = sorted((tmp_path / "x" / "input").iterdir())[0], next((tmp_path / "x" / "maps").iterdir())
    one.write_bytes(one.read_bytes()[:-3])
    with pytest.raises(FacelabError, match="not the picture that was made"):
        inputs.images([0])
    maps.write_bytes(maps.read_bytes()[:100])
    with pytest.raises(FacelabError, match="damaged or missing"):
        inputs.maps([0], "M")
    (tmp_path / "x" / "manifest.json").write_text("{")
    with pytest.raises(FacelabError, match="is damaged"):
        Inputs(tmp_path / "x")


def test_a_failure_leaves_the_old_folder_and_no_half(faces, tmp_path, monkeypatch):
    write_inputs(tmp_path / "x", faces, STEPS)
    before = (tmp_path / "x" / "manifest.json").read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("facelab.evaluation.inputs.write_image", fail)
    with pytest.raises(OSError):
        write_inputs(tmp_path / "x", faces, STEPS, seed=9)
    assert (tmp_path / "x" / "manifest.json").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_set_without_the_labels_says_why(faces, tmp_path):
    faces = draw_set(1, 1, 2, size=64).subset("test")
    faces.landmarks = None
    with pytest.raises(FacelabError, match="mouth needs landmarks"):
        write_inputs(tmp_path / "mouth", faces, [dict(use="degradations.occlusion.Part", part="mouth")])
    write_missing(tmp_path / "mouth", "the faces lack landmarks")
    assert list(json.loads((tmp_path / "mouth" / "manifest.json").read_text())) == ["missing"]
    with pytest.raises(FacelabError, match="could not be made: the faces lack landmarks"):
        Inputs(tmp_path / "mouth")
