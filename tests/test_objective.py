"""The weighted sums that papers print, on the outputs of their systems: finite, for the right network, or refused."""

import copy
from functools import lru_cache

import pytest
import torch
from conftest import ROOT

from facelab import FacelabError
from facelab.degradations.chain import Chain
from facelab.base.dice import Dice
from facelab.faces.drawn import draw_faces
from facelab.faces.parts import parsing_11, parsing_thesis
from facelab.losses.features import VGG, Features
from facelab.faces.heatmaps import heatmaps
from facelab.training.objective import Objective, Scope, detach_outputs, frozen, names_in, parse
from facelab.training.recipes import check_terms, load_degradations, load_losses, terms_of, terms_table
from facelab.networks.registry import create, example

torch.set_num_threads(1)
SIDE, CHAINS = 64, load_degradations(ROOT)
SMALL = dict(landmarks=81, parts=11, width=8, depth=1)
# paper -> its chain, its generator, the networks that its sums call
PAPERS = {
    "prior_guided_sr": (
        "prior_guided_x8",
        lambda: create("prior_guided_sr", width=8, depth=1, hourglasses=1),
        dict(discriminator=lambda: create("srgan_critic", size=SIDE, width=4)),
    ),
    "jdsr_gan": (
        "jdsr_gan_x4",
        lambda: create("jdsr_gan", **SMALL),
        dict(
            critic=lambda: create("wgan_critic", size=SIDE, width=8),
            identity=lambda: create("jdsr_identity", size=SIDE, width=8, depth=1),
        ),
    ),
    "fcsr_gan": (
        "fcsr_gan_x4",
        lambda: create("fcsr_gan", size=SIDE, width=8, depth=1),
        dict(
            critic=lambda: create("patchgan", width=8), prior=lambda: create("face_prior", width=16, depth=1, blocks=1)
        ),
    ),
    "sr_deblur_gan": (
        "sr_deblur_gan",
        lambda: create("sr_deblur_gan", size=SIDE, width=8, features=8),
        dict(
            critic=lambda: create("deblur_critic", size=SIDE, width=8, condition=8),
            local_critic=lambda: create("deblur_critic", size=SIDE, width=8, condition=0),
        ),
    ),
    "heavy_rain": (
        "heavy_rain_x4",
        lambda: create("heavy_rain", width=8, depth=1),
        dict(
            critic=lambda: create("srgan_critic", size=SIDE, width=4),
            **{
                f"{part}_critic": lambda part=part: create("component_critic", box=part, size=SIDE, width=4)
                for part in ("eyes", "nose", "lips")
            },
        ),
    ),
}
SUMS = {
    name: entry
    for name, entry in load_losses(ROOT).items()
    if entry["paper"] in PAPERS and not name.startswith("rain_removal")
}  # baselines' sums: test_recipes.py
CRITICS = [name for name in SUMS if "_critic" in name]


@pytest.fixture(scope="module")
def scene():
    "For each paper: its small generator, its other networks, and everything that its losses may compare with."
    faces, out = draw_faces(range(2), size=SIDE), {}
    for paper, (chain, generator, others) in PAPERS.items():
        torch.manual_seed(0)
        degraded = Chain(CHAINS[chain]["steps"])(
            faces["image"],
            Dice(0, "test", range(2)),
            landmarks=faces["landmarks_68"],
            parsing=faces["parsing"],
            foreground=faces["foreground"],
            depth=faces["depth"],
        )
        given = {
            **degraded.maps,
            "input": degraded.input,
            "target": degraded.target,
            "parsing": parsing_11(faces["parsing"]),
            "parsing_thesis": parsing_thesis(faces["parsing"]),
            "heatmaps": heatmaps(faces["landmarks_81"], SIDE, size=SIDE // 2),
        }
        out[paper] = generator(), {name: make() for name, make in others.items()}, given
    return out


@lru_cache
def random_vgg(network, layers, normalise):
    torch.manual_seed(1)
    return Features(VGG(network, layers, normalise=normalise), "random", "unit")


@pytest.fixture(autouse=True)
def random_features(monkeypatch):
    "VGG with random weights: the papers' layers, and no file."

    def make_features(network="vgg16", layers=("pool2",), normalise="imagenet"):
        return random_vgg(network, tuple(layers), normalise)

    monkeypatch.setattr("facelab.losses.features.make_features", make_features)


def terms(name):
    "The terms of a weighted sum; the profile's own features are those of VGG-16."
    out = copy.deepcopy(SUMS[name]["terms"])
    for term in out.values():
        if (term.get("with") or {}).get("features") == "perceptual":
            term["with"]["features"] = {}
    return out


def restored(scene, name):
    generator, networks, given = scene[SUMS[name]["paper"]]
    wanted = {"x": given["input"], **({"M": given["M"]} if "M" in given else {})}
    return generator, networks, given, generator(**wanted)


def gradient(net):
    return sum(p.grad.abs().sum().item() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", [n for n in SUMS if n not in CRITICS])
def test_a_generators_sum_teaches_the_generator_and_only_it(scene, name):
    generator, networks, given, out = restored(scene, name)
    for net in (generator, *networks.values()):
        net.zero_grad()
    with frozen(networks.values()):
        total, values = Objective(terms(name))(out, given, networks)
        total.backward()
    assert values.keys() == SUMS[name]["terms"].keys() and all(v.isfinite() and v.dim() == 0 for v in values.values())
    assert gradient(generator) > 0
    assert all(gradient(net) == 0 and all(p.requires_grad for p in net.parameters()) for net in networks.values())
    assert total.item() == pytest.approx(
        sum(SUMS[name]["terms"][k].get("weight", 1) * v.item() for k, v in values.items()), rel=1e-5
    )


@pytest.mark.parametrize("name", [n for n in SUMS if n not in CRITICS])
def test_every_term_alone_reaches_the_generator(scene, name):
    """Above all the adversarial terms: a published rain trainer detaches the restored face, and nothing learns."""
    generator, networks, given, out = restored(scene, name)
    for term, spec in terms(name).items():
        generator.zero_grad()
        with frozen(networks.values()):
            Objective({term: spec})(out, given, networks)[0].backward(retain_graph=True)
        assert gradient(generator) > 0, term
        if "critic" in str(spec["of"]) or "discriminator" in str(spec["of"]):
            with pytest.raises(RuntimeError, match="does not require grad"), frozen(networks.values()):
                Objective({term: spec})(detach_outputs(out), given, networks)[0].backward()


@pytest.mark.parametrize("name", CRITICS)
def test_a_critics_sum_teaches_the_critic_and_not_the_generator(scene, name):
    generator, networks, given, out = restored(scene, name)
    for net in (generator, *networks.values()):
        net.zero_grad()
    total, _ = Objective(terms(name))(detach_outputs(out), given, networks)
    total.backward()
    called = {
        n for spec in SUMS[name]["terms"].values() for n in names_in(spec["of"]) | names_in(spec.get("to"))
    } & networks.keys()
    assert len(called) == 1 and gradient(generator) == 0
    assert {n for n, net in networks.items() if gradient(net) > 0} == called


def test_a_network_is_asked_once():
    calls = []

    def prior(x):
        calls.append(1)
        return dict(a=x, b=2 * x)

    value = Objective(
        dict(
            one=dict(use="losses.pixel.l1", of="prior(restored).a", to="target"),
            two=dict(use="losses.pixel.l1", of="prior(restored).b", to="target"),
        )
    )
    value(dict(restored=torch.ones(1, 3, 2, 2)), dict(target=torch.zeros(1, 3, 2, 2)), dict(prior=prior))
    assert len(calls) == 1


def test_each_step_of_a_recurrent_network_is_compared_with_its_own_output():
    """DICGAN's released trainer compares the last output again for every step."""
    torch.manual_seed(0)
    net, inputs = example("srfbn", 4)
    out, target = net(**inputs), torch.zeros(2, 3, *net(**inputs)["restored"].shape[-2:])
    steps = [k for k in out if k.startswith("sr_")]
    total, values = Objective({k: dict(use="losses.pixel.l1", of=k, to="target") for k in steps})(
        out, dict(target=target)
    )
    last = (out["restored"] - target).abs().mean()
    assert len(steps) > 1 and values[steps[-1]].item() == pytest.approx(last.item())
    assert abs(total.item() - len(steps) * last.item()) > 1e-4


@pytest.mark.parametrize(
    "expression",
    [
        "restored + 1",
        "f(x)(y)",
        "f(x, k=2)",
        "x[0]",
        "lambda: 0",
        "(a, b)",
        "'text'",
        "1",
        "",
        "f(*x)",
        "a if b else c",
    ],
)
def test_nothing_but_names_calls_and_fields(expression):
    with pytest.raises(FacelabError, match="give a name"):
        parse(expression)


@pytest.mark.parametrize(
    "spec, said",
    [
        (
            dict(use="losses.pixel.l1", of="restred", to="target"),
            "names 'restred', which does not exist: did you mean 'restored'",
        ),
        (
            dict(use="losses.pixel.l1", of="critc(restored)", to="target"),
            "names 'critc', which does not exist: did you mean 'critic'",
        ),
        (
            dict(use="losses.pixel.l1", of="critic(restored).scor", to="target"),
            "names 'scor', which does not exist: did you mean 'score'",
        ),
        (dict(use="losses.pixel.l2", of="restored", to="target"), "facelab.losses.pixel has no 'l2'"),
        (dict(use="losses.pixel.l1", of="restored", to="target.x"), "the output 'x' of something that has only one"),
        (dict(use="losses.pixel.l1", of="given.nothing", to="target"), "names 'nothing', which does not exist"),
        (
            dict(
                use="losses.perceptual.Perceptual",
                of="restored",
                to="target",
                **{"with": dict(features={}, distanz="l1")},
            ),
            "did you mean 'distance'",
        ),
        (dict(use="losses.noise.asymmetric", of="restored", to="target", **{"with": dict(alpha=0.7)}), "alpha"),
        (
            dict(use="losses.noise.asymmetric", of="restored", to="target", **{"with": dict(alfa=0.3)}),
            "did you mean 'alpha'",
        ),
        (dict(use="losses.pixel.l1", of="masked(restored, mask)", to="target"), "mask"),
    ],
)
def test_mistakes_of_a_term_get_one_sentence(spec, said):
    outputs = dict(restored=torch.rand(1, 3, 64, 64))
    given = dict(target=torch.rand(1, 3, 64, 64), mask=torch.ones(1, 64, 64))
    with pytest.raises(FacelabError, match=said) as error:
        Objective(dict(term=spec))(outputs, given, dict(critic=lambda x: dict(score=x)))
    assert "\n" not in str(error.value)


def test_given_and_outputs_of_one_name_are_told_apart():
    scope = Scope(dict(J=1), dict(J=2), {})
    assert [scope.value("J"), scope.value("J", "given"), scope.value("given.J")] == [1, 2, 2]
    assert names_in(["recomposed(S, T, A, given.J)", "prior(x).maps"]) == {
        "recomposed",
        "S",
        "T",
        "A",
        "J",
        "prior",
        "x",
    }


def test_sums_are_data_with_the_papers_weights():
    weights = {
        name: {term: spec.get("weight", 1) for term, spec in entry["terms"].items()} for name, entry in SUMS.items()
    }
    assert weights["jdsr_gan_denoising"] == dict(
        asymmetric=0.5, tv=0.05, style=10, perceptual_lr=0.1, pixel_lr=1, smooth_lr=1
    )
    assert weights["jdsr_gan_sr"] == dict(
        face_prior=1, perceptual=0.1, pixel=1, smooth=0.01, identity=1, adversarial=1e-3
    )
    assert weights["fcsr_gan_completion"] == dict(
        style_raw=10, style_completed=10, perceptual_raw=0.1, perceptual_completed=0.1, pixel_lr=0.1, smooth_lr=1
    )
    assert weights["fcsr_gan_sr"] == dict(adversarial=1e-3, face_prior=1, perceptual=0.01, pixel=1, smooth=0.01)
    assert weights["fcsr_gan_fsrnet"] == dict(coarse=1, landmark_maps=1, parsing_maps=0.1)
    assert weights["sr_deblur_gan"] == dict(adversarial=1, pixel_blurred=100, pixel=100, pixel_face=100, vgg=10)
    assert weights["heavy_rain_generator"] | weights["heavy_rain_components"] == dict(
        pixel=1, vgg=1e-3, adversarial=1e-3, adversarial_eyes=1e-4, adversarial_nose=1e-4, adversarial_lips=1e-4
    )
    assert weights["heavy_rain_removal_vgg"] == dict(derained_vgg=0.1, rained_vgg=0.1)
    assert [weights[f"jdsr_gan_critic{kind}"] for kind in ("", "_as_printed")] == [
        dict(adversarial=1, penalty=10),
        dict(adversarial=1, penalty=0.1),
    ]
    assert len(terms_of(["jdsr_gan_denoising", "jdsr_gan_sr"], SUMS, "Eq 18")) == 12
    assert all(
        entry["paper"] in PAPERS and entry["equation"] for entry in SUMS.values()
    ) and "`losses.prior.identity`" in terms_table(SUMS, "jdsr_gan")


def test_jdsr_gan_takes_convolutions_ahead_of_pools_and_an_averaged_identity():
    """Gao et al., Eq 11 ("convolution layer ahead of the i-th max pooling layer"); Eq 15 beside averaged pixels."""
    terms = terms_of(["jdsr_gan_denoising", "jdsr_gan_sr", "jdsr_gan_coarse"], SUMS, "Eq 18")
    convolutions = {"network": "vgg16", "layers": ["conv1_2", "conv2_2", "conv3_3"]}
    seen = [name for name, t in terms.items() if (t.get("with") or {}).get("features") == convolutions]
    assert seen == ["style", "perceptual_lr", "perceptual"]
    assert terms["identity"]["with"] == {"distance": "mse"} and terms["coarse"]["of"] == "coarse"
    assert SUMS["fcsr_gan_sr"]["terms"]["perceptual"]["with"]["features"]["layers"] == ["pool1", "pool2", "pool3"]


def test_no_critic_teaches_the_generator_through_its_condition(scene):
    """Yun et al. condition on the generator's own features: LSGAN's gradient comes through the judged face alone."""
    generator, others, given = scene["sr_deblur_gan"]
    adversarial = {"adversarial": SUMS["sr_deblur_gan"]["terms"]["adversarial"]}
    out = {name: x.detach().requires_grad_() for name, x in generator(given["input"]).items()}
    loss, values = Objective(adversarial)(out, given, others)
    assert values["adversarial"] == (others["critic"](out["restored"], out["features"]) - 1).square().mean()
    loss.backward()
    assert out["features"].grad is None and out["restored"].grad.abs().max() > 0


def test_a_term_with_an_unknown_field_is_refused():
    with pytest.raises(FacelabError, match="unknown parameter 'weigth' in mine, loss pixel: did you mean 'weight'"):
        check_terms(dict(pixel=dict(use="losses.pixel.l1", weigth=2)), "mine")
