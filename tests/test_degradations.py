"""What every degradation must do, for all of them: hypothesis chooses parameters, shapes, batches and seeds."""

import importlib
import pkgutil
from dataclasses import fields
from functools import lru_cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import facelab.degradations
from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.degradations.camera import JPEG, GaussianBlur
from facelab.degradations.chain import Chain
from facelab.degradations.degradation import Degradation
from facelab.degradations.masks import FaceMask
from facelab.degradations.resample import Downsample
from facelab.faces.drawn import draw_faces
from facelab.training.recipes import load_degradations

MODULES = [
    importlib.import_module(f"facelab.degradations.{m.name}")
    for m in pkgutil.iter_modules(facelab.degradations.__path__)
]
CLASSES = sorted(
    {
        c
        for m in MODULES
        for c in vars(m).values()
        if isinstance(c, type)
        and issubclass(c, Degradation)
        and c not in (Degradation, Chain)
        and c.__module__ == m.__name__
    },
    key=lambda c: c.__name__,
)
CHAINS = {name: chain["steps"] for name, chain in load_degradations().items()}
SOME = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


def values(field):
    "Allowed values of one parameter, from what it says of itself."
    m = field.metadata
    if m["kind"] == "number":
        return st.integers(m["low"], m["high"]) if isinstance(field.default, int) else st.floats(m["low"], m["high"])
    if m["kind"] == "between":
        return st.tuples(*[st.floats(m["low"], m["high"])] * 2).map(lambda ab: tuple(sorted(ab)))
    if m["kind"] == "one":
        return st.sampled_from(m["options"])
    if m["kind"] == "several":
        return st.lists(st.sampled_from(m["options"]), min_size=1, max_size=3).map(tuple)
    if m["kind"] == "colour":
        return st.sampled_from(["random", "#000000", "#3060a0", "#ffffff"])
    if m["kind"] == "chains":
        steps = st.sampled_from([Downsample(4), GaussianBlur(), FaceMask(), JPEG()])
        return st.tuples(*[st.lists(steps, max_size=2, unique_by=type)] * 2)
    if m["kind"] == "weights":
        return st.sampled_from([(), (0, 1), (2, 3.5)])
    assert m["kind"] == "switch"
    return st.booleans()


def build(cls, given):
    "None for a combination that the class itself refuses in a sentence: it is not tried."
    try:
        return cls(**given)
    except FacelabError:
        return None


def degradations(cls):
    "Degradations of a class with any allowed parameters."
    parameters = st.fixed_dictionaries({f.name: values(f) for f in fields(cls)})
    return parameters.map(lambda given: build(cls, given)).filter(bool)


@lru_cache(maxsize=None)
def drawn(size):
    return draw_faces(range(6), size=size)


def faces(size, rows, count, first=0):
    "Some drawn faces, cropped to an oblong picture, with all their labels."
    d, some = drawn(size), slice(first, first + count)
    labels = {k: d[k][some, :rows] for k in ("parsing", "foreground", "depth")}
    return d["image"][some, :, :rows].contiguous(), dict(landmarks=d["landmarks_68"][some], **labels)


# The spline of a mask is evaluated in float32, where a product of one face may round otherwise than one of two;
# that moves a mask on 32 pixels by up to 3e-5, a hundredth of a grey level.
ROUNDING = {"FaceMask": 1e-4}


def check(degradation, size, rows, count, seed):
    "Range, type, shapes, determinism, independence of the batch; CPU and GPU alike where there is one."
    x, labels = faces(size, rows, count)
    before = x.clone()
    out = degradation(x, Dice(seed, "test", range(count)), **labels)
    assert torch.equal(x, before) and torch.equal(out.target, x), "the clean picture was changed"
    assert (
        out.input.dtype == torch.float32
        and out.input.isfinite().all()
        and out.input.min() >= 0
        and out.input.max() <= 1
    )
    assert out.input.shape[:2] == (count, 3) and all(len(v) == count and v.isfinite().all() for v in out.maps.values())
    again = degradation(x, Dice(seed, "test", range(count)), **labels)
    assert torch.equal(out.input, again.input) and all(torch.equal(v, again.maps[k]) for k, v in out.maps.items())
    last = degradation(x[-1:], Dice(seed, "test", [count - 1]), **{k: v[-1:] for k, v in labels.items()})
    atol = ROUNDING.get(type(degradation).__name__, 1e-6)
    assert torch.allclose(out.input[-1:], last.input, atol=atol), "a face depends on the others in its batch"
    for k, v in out.maps.items():
        assert torch.allclose(v[-1:].float(), last.maps[k].float(), atol=1e-4), (
            f"{k} of a face depends on the others in its batch"
        )
    if torch.cuda.is_available():
        there = degradation(x.cuda(), Dice(seed, "test", range(count)), **{k: v.cuda() for k, v in labels.items()})
        assert torch.allclose(out.input, there.input.cpu(), atol=1e-4)
    return out


def test_there_are_degradations_for_all_five_papers():
    assert {
        "Block",
        "Downsample",
        "FaceMask",
        "GaussianBlur",
        "GaussianNoise",
        "Greyscale",
        "HeavyRain",
        "JPEG",
        "MotionBlur",
        "Part",
        "Worn",
    } <= {c.__name__ for c in CLASSES}
    assert {
        "jdsr_gan_x4",
        "jdsr_gan_x8",
        "fcsr_gan_x4",
        "fcsr_gan_x8",
        "sr_deblur_gan",
        "prior_guided_x8",
        "heavy_rain_x4",
    } <= set(CHAINS)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_any_parameters_any_shape_any_seed(cls):
    @SOME
    @given(st.data())
    def tried(data):
        degradation = data.draw(degradations(cls))
        enlarged = getattr(degradation, "reduced", 1)  # it works at so many times the side
        size = data.draw(st.sampled_from([s for s in (32, 64, 96) if s * enlarged <= 256]))
        if size % degradation.multiple == 0:
            sides = [s for s in (size, size * 7 // 8) if s % degradation.multiple == 0]
            rows, count = data.draw(st.sampled_from(sides)), data.draw(st.integers(1, 4))
            check(degradation, size, rows, count, seed=data.draw(st.integers(0, 2**40)))

    tried()


@pytest.mark.parametrize("name", CHAINS)
def test_every_chain_of_the_recipes(name):
    chain = Chain(CHAINS[name])
    out = check(chain, 96, 96, 3, seed=5)
    assert Chain(chain.spec) == chain
    if "gamma" in out.maps:
        assert torch.equal(out.maps["gamma"], (out.input - out.maps["clean"]).abs())
        assert out.maps["clean"].shape == out.input.shape


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_parameter_explains_itself_and_refuses_what_it_cannot_do(cls):
    for name, *_, what in cls.parameters():
        assert len(what) > 3 and not what.endswith("."), (name, what)
        with pytest.raises(FacelabError, match=name):
            cls(**{name: "no such value"})
        about = cls.__dataclass_fields__[name].metadata
        if "high" in about:
            with pytest.raises(FacelabError, match=f"{name}.*{about['high']}"):
                cls(**{name: about["high"] + 1})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_bad_images_and_labels_get_one_sentence(cls):
    x, labels = faces(64, 64, 2)
    degradation = cls()
    for bad, message in (
        (x * 255, "0, 1"),
        (x[0], "N, 3, H, W"),
        (x * float("nan"), "0, 1"),
        (x[:0], "empty"),
        ([x[0], x[1, :, :8]], "2 sizes"),
        (x.to(torch.uint8), "float"),
    ):
        with pytest.raises(FacelabError, match=message):
            degradation(bad, **labels)
    for need in degradation.needs:
        with pytest.raises(FacelabError, match=f"{cls.__name__} needs"):
            degradation(x, **{k: v for k, v in labels.items() if k not in need.split("|")})
    if "landmarks" in degradation.needs:
        with pytest.raises(FacelabError, match="outside its 64x64 picture"):
            degradation(x, landmarks=labels["landmarks"] + 70)
        with pytest.raises(FacelabError, match="give"):
            degradation(x, landmarks=labels["landmarks"][:1])


def test_a_chain_is_its_steps_in_the_order_that_they_are_written():
    """Yun et al. blur first and reduce then; the other order gives other pixels."""
    x, labels = faces(96, 96, 2)
    blur, small = (Chain(CHAINS["sr_deblur_gan"]).steps[k] for k in (0, 1))
    dice = Dice(0, "test", range(2))
    out = Chain([blur, small])(x, dice, **labels)
    blurred = blur(x, dice.named("MotionBlur"), **labels)
    assert torch.equal(out.maps["blurred"], blurred.input) and torch.equal(out.input, small(blurred.input).input)
    assert torch.equal(out.maps["clean"], small(x).input) and torch.equal(out.target, x)
    other = Chain([small, blur])(x, dice, **labels)
    assert other.input.shape == out.input.shape and (other.input - out.input).abs().max() > 0.01


def test_labels_follow_the_picture_through_a_chain():
    """A part that is hidden after x4 is the part that is hidden before it, a quarter of the size."""
    x, labels = faces(96, 96, 2)
    part = dict(use="degradations.occlusion.Part", part="mouth")
    before = Chain([part])(x, Dice(0, "test", range(2)), **labels).maps["M"]
    after = Chain([dict(use="degradations.resample.Downsample", scale=4), part])(
        x, Dice(0, "test", range(2)), **labels
    ).maps["M"]
    assert after.shape == (2, 1, 24, 24)
    hidden = torch.nn.functional.avg_pool2d(1 - before, 4)
    assert ((1 - after) * hidden).sum() > 0.7 * hidden.sum() and (1 - after).sum() < 2 * hidden.sum()
