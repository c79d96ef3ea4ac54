"""Old names are answered with the new ones, for one release; what was trained under them still loads."""

import importlib
import json
import re
import subprocess
import sys

import pytest
from conftest import ENV, ROOT

from facelab import moved
from facelab.base.names import build, locate
from facelab.training.models import load_model, read_recipe, write_model
from facelab.training.zoo import find_models


@pytest.mark.parametrize("old", sorted(moved.MODULES))
def test_an_old_module_is_answered_with_its_new_place(old):
    with pytest.raises(ModuleNotFoundError, match=f"facelab.{re.escape(old)} has moved: look in facelab for ") as told:
        importlib.import_module(f"facelab.{old}")
    places = re.findall(
        r"\b(?:base|faces|degradations|networks|losses|training|evaluation|publication|pipeline|apps)\.\w+",
        str(told.value).partition(" look in ")[2],
    )
    assert places
    for place in places:
        importlib.import_module(f"facelab.{place}")


@pytest.mark.parametrize("package, old", [(p, old) for p, names in moved.NAMES.items() for old in names])
def test_an_old_name_is_answered_with_its_new_place(package, old):
    with pytest.raises(ImportError, match=f"facelab.{package}.{old} has moved: it is now facelab.") as told:
        getattr(importlib.import_module(f"facelab.{package}"), old)
    module, _, name = str(told.value).rpartition("facelab.")[2].rpartition(".")
    assert hasattr(importlib.import_module(f"facelab.{module}"), name)


def test_names_that_people_type_are_lent_by_the_packages():
    for package in ("base", "faces", "degradations", "networks", "training", "evaluation"):
        module = importlib.import_module(f"facelab.{package}")
        assert dir(module) and all(getattr(module, name) is not None for name in dir(module))
        assert not [name for name in dir(module) if (ROOT / "facelab" / package / f"{name}.py").exists()]
    assert not hasattr(importlib.import_module("facelab.faces"), "nothing")
    code = "import sys, facelab, facelab.faces, facelab.evaluation; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True).stdout == "False\n"


def test_a_command_of_an_old_module_ends_with_the_sentence():
    done = subprocess.run([sys.executable, "-m", "facelab.engine", "check"], env=ENV, capture_output=True, text=True)
    assert done.returncode == 1 and "facelab.engine has moved" in done.stderr and len(done.stderr.splitlines()) == 1


def test_old_addresses_of_recipes_still_name_the_same_things():
    for old, new in moved.USES.items():
        name = "" if "." in old and old.split(".")[0] == "labelling" else ".HRRM" if old == "networks.dense" else None
        if name is not None:
            assert locate(old + name) is locate(new + name)
    assert locate("features.PartsNet") is locate("losses.features.PartsNet")


def test_a_helper_that_was_trained_under_the_old_names_still_loads(tmp_path, monkeypatch):
    spec = {"use": "networks.unet_parsing.FaceParsing", "width": 4, "depth": 2}
    recipe = {"name": "fpm", "kind": "parts", "needs": "parts/heavy_rain", "generator": spec, "critics": {}}
    write_model(tmp_path / "fpm", {"generator": build(spec).state_dict()}, recipe)
    assert json.loads((tmp_path / "fpm" / "recipe.json").read_text())["kind"] == "parts"
    assert read_recipe(tmp_path / "fpm")["kind"] == "helpers"
    assert type(load_model(tmp_path / "fpm")[0]).__module__ == "facelab.networks.fpm"
    monkeypatch.setenv("FACELAB_WEIGHTS", str(tmp_path))
    assert find_models(kind="helpers")["fpm"] == tmp_path / "fpm"


def test_every_old_notebook_has_a_new_place():
    for old, new in moved.NOTEBOOKS.items():
        assert (ROOT / "nbs" / f"{new}.ipynb").exists() and not (ROOT / "nbs" / f"{old}.ipynb").exists(), old
