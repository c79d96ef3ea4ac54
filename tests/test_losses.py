"""Losses: values by independent formulas in NumPy, the optimum, who gets a gradient, and bugs of published code."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from facelab import FacelabError
from facelab.losses.adversarial import (
    gradient_penalty,
    linear,
    linear_critic,
    lsgan,
    lsgan_critic,
    random_points,
    relativistic,
    relativistic_critic,
    vanilla,
    vanilla_critic,
    wasserstein,
    wasserstein_critic,
)
from facelab.losses.noise import asymmetric, total_variation
from facelab.losses.perceptual import Perceptual, Style, gram
from facelab.losses.pixel import differences, l1, mse, smooth
from facelab.losses.prior import face_prior, identity, parsing_cross_entropy
from facelab.losses.regions import composite, hole, masked, recomposed, shrunk


class Doubled(nn.Module):
    name = "twice the image"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, x):
        return {"a": self.weight * x, "b": x}


# ---- each equation once more, in NumPy: a and b are (N,C,H,W)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def np_smooth(x):
    "Eq 12 as printed, pixel by pixel, with the L1 norm over the colours"
    _, h, w = x.shape
    norm = lambda i, j, k, m: np.abs(x[:, i, j] - x[:, k, m]).sum()
    return sum(norm(i, j + 1, i, j) for i in range(h) for j in range(w - 1)) + sum(
        norm(i + 1, j, i, j) for i in range(h - 1) for j in range(w)
    )


def np_tv(x):
    return np.mean((x[:, 1:] - x[:, :-1]) ** 2) + np.mean((x[:, :, 1:] - x[:, :, :-1]) ** 2)


def np_gram(x):
    phi = x.reshape(len(x), -1).T  # one row a pixel, one column a channel
    return phi.T @ phi / x.size


def np_asymmetric(e, t, alpha=0.3):
    return np.mean([abs(alpha - (1 if p < q else 0)) * (p - q) ** 2 for p, q in zip(e.ravel(), t.ravel())])


def np_norm(a, b):
    return np.mean([math.sqrt(((x - y) ** 2).sum()) for x, y in zip(a, b)])


def np_unit(a):
    return np.stack([x / np.sqrt((x**2).sum()) for x in a])


def np_cross_entropy(z, p):
    "-sum over the parts of P log softmax(z)"
    return np.mean(-(p * np.log(np.exp(z) / np.exp(z).sum(1, keepdims=True))).sum(1))


def np_relativistic(high, low):
    return np.mean(-np.log(sigmoid(high - low.mean()))) + np.mean(-np.log(1 - sigmoid(low - high.mean())))


COMPARED = {  # output and truth
    "mse": (mse, lambda a, b: ((a - b) ** 2).mean()),
    "mse, channels added": (
        partial(mse, channels="sum"),
        lambda a, b: np.mean([((x - y) ** 2).sum(0).mean() for x, y in zip(a, b)]),
    ),
    "l1": (l1, lambda a, b: np.abs(a - b).mean()),
    "l1, channels added": (
        partial(l1, channels="sum"),
        lambda a, b: np.mean([np.abs(x - y).sum(0).mean() for x, y in zip(a, b)]),
    ),
    "perceptual": (Perceptual(Doubled()), lambda a, b: ((2 * a - 2 * b) ** 2).mean() + ((a - b) ** 2).mean()),
    "perceptual, l1, added": (Perceptual(Doubled(), "l1", "sum"), lambda a, b: 3 * a.shape[1] * np.abs(a - b).mean()),
    "style": (
        Style(Doubled()),
        lambda a, b: 5 * np.mean([np.abs(np_gram(x) - np_gram(y)).mean() for x, y in zip(a, b)]),
    ),
    "style, added": (
        Style(Doubled(), "sum"),
        lambda a, b: 5 * np.mean([np.abs(np_gram(x) - np_gram(y)).sum() for x, y in zip(a, b)]),
    ),
    "asymmetric": (asymmetric, np_asymmetric),
    "asymmetric, alpha .1": (partial(asymmetric, alpha=0.1), partial(np_asymmetric, alpha=0.1)),
    "asymmetric, code": (partial(asymmetric, variant="code"), lambda e, t: np_asymmetric(t, e)),
    "face prior": (
        lambda a, b: face_prior(a, 2 * a, b, 2 * b),
        lambda a, b: ((a - b) ** 2).mean() + 0.1 * ((2 * a - 2 * b) ** 2).mean(),
    ),
    "face prior, norm": (
        lambda a, b: face_prior(a, 2 * a, b, 2 * b, mu=0.5, nu=3, distance="norm"),
        lambda a, b: 0.5 * np_norm(a, b) + 3 * np_norm(2 * a, 2 * b),
    ),
    "identity": (lambda a, b: identity(a.flatten(1), b.flatten(1)), lambda a, b: ((a - b) ** 2).mean()),
    "identity of feature maps": (identity, lambda a, b: ((a - b) ** 2).mean()),
    "identity, length": (partial(identity, distance="l2"), np_norm),
    "identity, length on the sphere": (
        partial(identity, distance="l2", normalise=True),
        lambda a, b: np_norm(np_unit(a), np_unit(b)),
    ),
    "identity, squared length on the sphere": (
        partial(identity, distance="squared", normalise=True),
        lambda a, b: np.mean(((np_unit(a) - np_unit(b)) ** 2).reshape(len(a), -1).sum(1)),
    ),
    "identity, l1": (partial(identity, distance="l1"), lambda a, b: np.abs(a - b).mean()),
}
ALONE = {
    "smooth": (smooth, lambda x: np.abs(x[:, :, 1:] - x[:, :, :-1]).mean() + np.abs(x[..., 1:] - x[..., :-1]).mean()),
    "smooth, added": (partial(smooth, reduction="sum"), lambda x: np.mean([np_smooth(i) for i in x])),
    "total variation": (total_variation, lambda x: np.mean([np_tv(i) for i in x])),
}
GENERATOR = {  # fake, real
    "vanilla": (lambda f, r: vanilla(f), lambda f, r: np.mean(-np.log(sigmoid(f)))),
    "lsgan": (lambda f, r: lsgan(f), lambda f, r: np.mean((f - 1) ** 2)),
    "wasserstein": (lambda f, r: wasserstein(f), lambda f, r: -np.mean(f)),
    "relativistic": (relativistic, np_relativistic),
    "linear": (lambda f, r: linear(f), lambda f, r: np.mean(1 - sigmoid(f))),
}
CRITIC = {
    "vanilla": (vanilla_critic, lambda f, r: np.mean(-np.log(sigmoid(r))) + np.mean(-np.log(1 - sigmoid(f)))),
    "lsgan": (lsgan_critic, lambda f, r: np.mean((r - 1) ** 2) + np.mean(f**2)),
    "wasserstein": (wasserstein_critic, lambda f, r: np.mean(f) - np.mean(r)),
    "relativistic": (relativistic_critic, lambda f, r: np_relativistic(r, f)),
    "linear": (linear_critic, lambda f, r: 1 - np.mean(sigmoid(r)) + np.mean(sigmoid(f))),
}
ALL = {
    **COMPARED,
    **{k: (lambda a, b, f=f: f(a), lambda a, b, g=g: g(a)) for k, (f, g) in ALONE.items()},
    **{f"{k}, generator": v for k, v in GENERATOR.items()},
    **{f"{k}, critic": v for k, v in CRITIC.items()},
}
every = pytest.mark.parametrize("name", ALL)


def pair(seed=0, shape=(2, 3, 4, 5), dtype=torch.float32):
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@every
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), shape=st.tuples(*[st.integers(low, 5) for low in (1, 1, 2, 2)]))
def test_value_is_that_of_the_equation(name, seed, shape):
    loss, formula = ALL[name]
    a, b = pair(seed, shape, torch.float64)
    assert loss(a, b).item() == pytest.approx(formula(a.numpy(), b.numpy()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", COMPARED)
def test_nothing_to_pay_at_the_optimum(name):
    assert COMPARED[name][0](pair()[0], pair()[0]).item() == 0


@every
def test_a_weight_means_the_same_for_a_larger_batch(name):
    a, b = pair()
    assert ALL[name][0](a.repeat(3, 1, 1, 1), b.repeat(3, 1, 1, 1)).item() == pytest.approx(
        ALL[name][0](a, b).item(), rel=1e-5
    )


@every
def test_gradient_agrees_with_finite_differences(name):
    a, b = pair(1, (2, 2, 2, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda a: ALL[name][0](a, b), a.requires_grad_())


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_float32_out(name, dtype):
    a, b = pair(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = ALL[name][0](a, b)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(ALL[name][0](a.float(), b.float()).item(), rel=1e-5)
    # the inputs themselves were rounded
    assert narrow.item() == pytest.approx(ALL[name][0](*pair()).item(), rel=0.02, abs=2e-3)


@pytest.mark.parametrize("name", COMPARED)
def test_the_truth_gets_no_gradient(name):
    a, b = (x.requires_grad_() for x in pair().unbind())
    COMPARED[name][0](a, b).backward()
    assert a.grad.abs().max() > 0 and b.grad is None


@pytest.mark.parametrize(
    "loss",
    [
        mse,
        l1,
        asymmetric,
        parsing_cross_entropy,
        identity,
        Perceptual(Doubled()),
        Style(Doubled()),
        lambda a, b: face_prior(a, a, b, a),
    ],
)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8), (1, 3, 8, 8)])
def test_nothing_is_broadcast(loss, shape):
    with pytest.raises(FacelabError, match="one shape"):
        loss(torch.rand(2, 3, 8, 8), torch.rand(shape))


@pytest.mark.parametrize("loss", [mse, l1, asymmetric, gradient_penalty])
def test_bytes_are_refused(loss):
    pictures = [(255 * p).to(torch.uint8) for p in pair()]
    with pytest.raises(FacelabError, match="to_float"):
        loss(nn.Flatten(), *pictures) if loss is gradient_penalty else loss(*pictures)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: mse(a, a, channels="max"),
        lambda a: smooth(a, "max"),
        lambda a: Perceptual(Doubled(), "cosine"),
        lambda a: Style(Doubled(), "max"),
        lambda a: asymmetric(a, a, alpha=0),
        lambda a: asymmetric(a, a, alpha=0.5),
        lambda a: asymmetric(a, a, variant="port"),
        lambda a: identity(a, a, distance="cosine"),
        lambda a: face_prior(a, a, a, a, distance="l1"),
        lambda a: gradient_penalty(nn.Flatten(), a, a, norm="HWC"),
        lambda a: differences(a[..., :1]),
    ],
)
def test_unknown_choices_are_refused(wrong):
    with pytest.raises(FacelabError):
        wrong(torch.rand(2, 3, 4, 4))


def test_parsing_cross_entropy():
    z = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft = pair(3, (2, 5, 3, 4), torch.float64)[0].softmax(1)
    assert parsing_cross_entropy(z, soft).item() == pytest.approx(np_cross_entropy(z.numpy(), soft.numpy()), rel=1e-9)
    truth = nn.functional.one_hot(torch.arange(11), 11).T.reshape(1, 11, 1, 11).float()
    assert parsing_cross_entropy(50 * truth, truth).item() == pytest.approx(0, abs=1e-6)
    assert parsing_cross_entropy(50 * truth.roll(1, 1), truth).item() == pytest.approx(50, rel=1e-5)
    assert parsing_cross_entropy(z.bfloat16(), soft.bfloat16()).dtype == torch.float32


# ---- features


def test_the_name_of_the_features_is_the_name_of_the_loss():
    assert Perceptual(Doubled()).name == Style(Doubled()).name == "twice the image"
    assert Perceptual(nn.Identity()).name == "Identity"


@pytest.mark.parametrize("make", [Perceptual, Style])
def test_frozen_features_get_no_gradient_and_the_truth_is_seen_without_a_graph(make):
    class Watched(Doubled):
        def forward(self, x):
            graphs.append(torch.is_grad_enabled())
            return super().forward(x)

    graphs = []
    loss = make(Watched())
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    loss(x, torch.rand(1, 3, 4, 4)).backward()
    assert sorted(graphs) == [False, True] and loss.features.weight.grad is None and x.grad.abs().max() > 0


def test_gram_matrices_stay_finite_and_exact_under_autocast():
    x = 3 * torch.rand(1, 4, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = gram(x)
    assert torch.equal(inside, gram(x)) and gram(3e2 * torch.ones(1, 2, 64, 64).half()).isfinite().all()


def test_style_does_not_see_where_things_are():
    x = pair()[0]
    assert Style(Doubled())(x.roll((1, 2), (2, 3)), x) < 1e-6 and Style(Doubled())(x.roll(1, 1), x) > 1e-3


# ---- who learns


def networks():
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten())


def teaches(loss, network):
    grads = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
    return [g is not None and bool(g.abs().max() > 0) for g in grads]


@pytest.mark.parametrize("name", GENERATOR)
def test_generators_step_teaches_the_generator_and_leaves_a_frozen_critic(name):
    generator, critic = networks()
    low, high = pair()
    critic.requires_grad_(False)
    GENERATOR[name][0](critic(generator(low)), critic(high)).backward()
    assert all(p.grad.abs().max() > 0 for p in generator.parameters())
    assert all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize("name", GENERATOR)
def test_bug_adversarial_path_detached(name):
    """A released heavy-rain network detaches the restored image in the generator's step as well."""
    generator, critic = networks()
    low, high = pair()
    taught = teaches(GENERATOR[name][0](critic(generator(low)), critic(high)), generator)
    as_published = teaches(GENERATOR[name][0](critic(generator(low).detach()), critic(high)), generator)
    assert all(taught) and not any(as_published)


@pytest.mark.parametrize("name", CRITIC)
def test_critics_step_teaches_the_critic_alone(name):
    generator, critic = networks()
    low, high = pair()
    loss = CRITIC[name][0](critic(generator(low).detach()), critic(high))
    assert teaches(loss, critic)[0] and not any(teaches(loss, generator))


@pytest.mark.parametrize("name", GENERATOR)
def test_signs(name):
    """A step downhill makes fakes look more real to the critic, and lets the critic tell them apart better."""
    fake, real = torch.zeros(2, 1, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
    GENERATOR[name][0](fake, real).backward()
    assert (fake.grad < 0).all() and real.grad is None
    fake.grad = None
    CRITIC[name][0](fake, real + 0.5).backward()
    assert (fake.grad >= 0).all() and (real.grad < 0).all()


@pytest.mark.parametrize("name", GENERATOR)
@pytest.mark.parametrize("z", [-1e4, 1e4])
def test_sure_critics_give_finite_losses_and_gradients(name, z):
    for loss in (GENERATOR[name][0], CRITIC[name][0]):
        fake, real = torch.full((2, 1), z, requires_grad=True), torch.full((2, 1), -z)
        value = loss(fake, real)
        value.backward()
        assert value.isfinite() and fake.grad.isfinite().all()


@pytest.mark.parametrize("name", CRITIC)
def test_argument_order_is_fake_then_real(name):
    low, high = torch.full((2, 1), -2.0), torch.full((2, 1), 3.0)
    assert CRITIC[name][0](low, high) < CRITIC[name][0](high, low)


def test_undecided_critic_is_the_minimum_when_real_and_fake_look_alike():
    logits = torch.linspace(-3, 3, 61)
    values = [vanilla_critic(z, z).item() for z in logits]
    assert logits[values.index(min(values))].item() == pytest.approx(0, abs=1e-6)


# ---- gradient penalty


def critic_of(w):
    return lambda x: (w * x).flatten(1).sum(1)


@settings(max_examples=20, deadline=None)
@given(length=st.floats(0, 20), seed=st.integers(0, 999))
def test_penalty_of_a_critic_whose_gradient_is_known(length, seed):
    w = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w *= length / w.norm()
    assert gradient_penalty(critic_of(w), *pair(dtype=torch.float64)).item() == pytest.approx(
        (length - 1) ** 2, abs=1e-9
    )


def test_bug_penalty_per_pixel():
    """BasicSR and MMagic take the norm over the channels at each pixel: a critic at the optimum still pays there."""
    w = torch.full((3, 8, 8), 192**-0.5)
    fake, real = pair(shape=(2, 3, 8, 8))
    assert gradient_penalty(critic_of(w), fake, real).item() == pytest.approx(0, abs=1e-9)
    assert gradient_penalty(critic_of(w), fake, real, norm="pixel").item() == pytest.approx((1 / 8 - 1) ** 2, rel=1e-4)


def test_penalty_of_a_map_is_that_of_its_sum_over_each_sample():
    patches = nn.Conv2d(3, 2, 3, padding=1)
    torch.manual_seed(0)
    mapped = gradient_penalty(patches, *pair())
    torch.manual_seed(0)
    assert mapped.item() == pytest.approx(
        gradient_penalty(lambda x: patches(x).sum((1, 2, 3)), *pair()).item(), rel=1e-5
    )


def test_penalty_of_a_curved_critic_one_sample_at_a_time():
    """The literal equation: for each sample its own gradient, at its own point between the two."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 1)).double()
    fake, real = pair(dtype=torch.float64)
    torch.manual_seed(1)
    value = gradient_penalty(critic, fake, real).item()
    torch.manual_seed(1)
    terms = []
    for x in random_points(fake, real):
        x = x[None].requires_grad_()
        (g,) = torch.autograd.grad(critic(x), x)
        terms.append((math.sqrt((g.numpy() ** 2).sum()) - 1) ** 2)
    assert value == pytest.approx(np.mean(terms), rel=1e-9)


def test_points_lie_between_each_with_its_own_share_of_torchs_random_numbers():
    zeros, ones = torch.zeros(64, 3, 2, 2), torch.ones(64, 3, 2, 2)
    torch.manual_seed(0)
    first, second = random_points(zeros, ones), random_points(zeros, ones)
    torch.manual_seed(0)
    share = first.flatten(1)
    assert torch.equal(random_points(zeros, ones), first) and not torch.equal(first, second)
    assert torch.equal(share, share[:, :1].expand_as(share)) and len(share[:, 0].unique()) == 64
    assert share.min() >= 0 and share.max() <= 1 and 0.3 < share.mean() < 0.7


def test_penalty_teaches_the_critic_through_its_gradient_and_nobody_else():
    generator = networks()[0]
    # its gradient depends on where it is taken, so a leak would show
    curved = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh())
    loss = gradient_penalty(curved, generator(pair()[0]), pair()[1])
    assert all(teaches(loss, curved)) and not any(teaches(loss, generator))


def test_penalty_lets_a_flat_critic_start():
    w = torch.zeros(3, 4, 5, requires_grad=True)
    loss = gradient_penalty(critic_of(w), *pair())
    loss.backward()
    assert loss.item() == 1 and w.grad.isfinite().all()


def test_penalty_passes_conditions_on():
    seen = []

    def critic(x, small, label):
        seen.append((x.shape, small, label))
        return x.sum((1, 2, 3))

    small, label = pair(5, (2, 3, 2, 2), torch.bfloat16)
    gradient_penalty(critic, *pair(), small, label)
    assert torch.equal(seen[0][1], small.float()) and torch.equal(seen[0][2], label.float())


def test_penalty_is_computed_in_float32_under_autocast():
    critic = networks()[1]
    values = []
    for enabled in (True, False):
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values.append(gradient_penalty(critic, *pair()))
    assert values[0].dtype == torch.float32 and values[0] == values[1]


# ---- noise maps and priors


def test_bug_asymmetric_sign():
    """CBDNet: too low an estimate is the harmful one. The port compares the other way round, and punishes the other."""
    truth, error = torch.full((1, 1, 4, 4), 0.5), 0.2
    low, high = asymmetric(truth - error, truth), asymmetric(truth + error, truth)
    assert low.item() == pytest.approx(0.7 * 0.04, rel=1e-5) and high.item() == pytest.approx(0.3 * 0.04, rel=1e-5)
    assert asymmetric(truth - error, truth, variant="code") < asymmetric(truth + error, truth, variant="code")


def test_face_prior_weighs_landmarks_and_parts_apart():
    a, b = pair()
    small = pair(3, (2, 5, 2, 2))
    assert face_prior(a, small[0], b, small[0], mu=2).item() == pytest.approx(2 * mse(a, b).item())
    assert face_prior(a, small[0], a, small[1], nu=0.5).item() == pytest.approx(0.5 * mse(*small).item())


def test_a_face_that_is_right_already_gets_no_nan():
    x = torch.ones(2, 8, requires_grad=True)
    (
        identity(x, x.detach(), distance="l2")
        + identity(x, x.detach(), normalise=True, distance="l2")
        + face_prior(x, x, x.detach(), x.detach(), distance="norm")
    ).backward()
    assert torch.equal(x.grad, torch.zeros(2, 8))


# ---- regions


def test_composite_takes_the_input_where_it_is_visible_and_gradients_from_the_hole_alone():
    raw, input = (x.requires_grad_() for x in pair())
    M = torch.zeros(2, 1, 4, 5)
    M[..., :2] = 1
    out = composite(raw, input, M)
    assert torch.equal(out[..., :2], input[..., :2]) and torch.equal(out[..., 2:], raw[..., 2:])
    out.sum().backward()
    assert raw.grad[..., :2].abs().max() == 0 and raw.grad[..., 2:].min() == 1


def test_region_and_hole_are_the_whole():
    a, b = pair()
    M = (torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    assert torch.equal(masked(a, M) + hole(a, M), a)
    assert (l1(masked(a, M), masked(b, M)) + l1(hole(a, M), hole(b, M))).item() == pytest.approx(
        l1(a, b).item(), rel=1e-5
    )


@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 1, 4, 5), (2, 3, 4, 5), (2, 1, 5, 4), (4, 5)])
def test_masks_of_another_shape_are_refused(shape):
    for region in (masked, hole, lambda x, M: composite(x, x, M)):
        with pytest.raises(FacelabError, match=r"is \(N,1,H,W\)"):
            region(pair()[0], torch.ones(shape))


def test_recomposed_is_equation_19():
    S, T, A, J = pair(0, (4, 3, 2, 2))[0]
    assert torch.allclose(recomposed(S, T, A, J), T * (J + S) + (1 - T) * A)


def test_shrunk_maps_are_block_means():
    x = pair(shape=(2, 3, 8, 4))[0]
    blocks = x.numpy().reshape(2, 3, 4, 2, 2, 2).mean((3, 5))
    np.testing.assert_allclose(shrunk(x, torch.empty(9, 1, 4, 2)).numpy(), blocks, rtol=1e-5)
    with pytest.raises(FacelabError, match="cannot be shrunk"):
        shrunk(x, torch.empty(1, 1, 16, 2))
