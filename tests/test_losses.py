"""Losses: values by hand, the optimum, who gets a gradient, and the bugs that published code had."""

import math

import pytest
import torch
from torch import nn

from facelab.images import FacelabError
from facelab.losses import Perceptual, adversarial, discriminate, l1, mse, parsing_cross_entropy

PIXEL = [mse, l1]


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 8, 8, generator=g), torch.rand(2, 3, 8, 8, generator=g)


@pytest.mark.parametrize("loss, value", [(mse, .04), (l1, .2)])
def test_by_hand_and_at_the_optimum(loss, value, pair):
    x, _ = pair
    assert loss(x + .2, x).item() == pytest.approx(value, rel=1e-5)
    assert loss(x, x).item() == 0


def test_printed_sum_over_channels_is_three_times_the_mean(pair):
    assert mse(*pair, channels="sum").item() == pytest.approx(3 * mse(*pair).item(), rel=1e-6)
    assert mse(*pair, channels="sum").item() == pytest.approx(((pair[0] - pair[1]) ** 2).sum(1).mean().item(), rel=1e-6)


@pytest.mark.parametrize("loss", PIXEL)
def test_gradient_agrees_with_finite_differences(loss, pair):
    x, y = (p[:1, :, :2, :2].double() for p in pair)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_())


@pytest.mark.parametrize("loss", PIXEL + [parsing_cross_entropy])
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8), (1, 3, 8, 8)])
def test_nothing_is_broadcast(loss, shape, pair):
    with pytest.raises(FacelabError, match="one shape"):
        loss(pair[0], torch.rand(shape))


@pytest.mark.parametrize("loss", PIXEL)
def test_bytes_are_refused(loss, pair):
    with pytest.raises(FacelabError, match="to_float"):
        loss(*[(255 * p).to(torch.uint8) for p in pair])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype, pair):
    x, y = (p.to(dtype) for p in pair)
    for loss in PIXEL:
        assert loss(x, y).dtype == torch.float32 and loss(x, y) == loss(x.float(), y.float())
    assert adversarial(x).dtype == discriminate(x, y).dtype == torch.float32


def test_parsing_cross_entropy():
    truth = nn.functional.one_hot(torch.arange(11), 11).T.reshape(1, 11, 1, 11).float()
    assert parsing_cross_entropy(torch.zeros(1, 11, 1, 11), truth).item() == pytest.approx(math.log(11))
    assert parsing_cross_entropy(50 * truth, truth).item() == pytest.approx(0, abs=1e-6)
    assert parsing_cross_entropy(50 * truth.roll(1, 1), truth).item() == pytest.approx(50, rel=1e-5)


# ---- perceptual

class Doubled(nn.Module):
    name = "twice the image"
    def __init__(self): super().__init__(); self.weight = nn.Parameter(torch.tensor(2.), requires_grad=False)
    def forward(self, x): return {"a": self.weight * x, "b": x}


def test_perceptual_adds_layers_and_names_its_network(pair):
    loss = Perceptual(Doubled())
    assert loss.name == "twice the image"
    assert loss(*pair).item() == pytest.approx(5 * mse(*pair).item(), rel=1e-6)
    assert loss(pair[0], pair[0]).item() == 0


def test_perceptual_teaches_the_output_alone(pair):
    x, y = (p.clone().requires_grad_() for p in pair)
    loss = Perceptual(Doubled())
    loss(x, y).backward()
    assert x.grad.abs().min() > 0 and y.grad is None and loss.features.weight.grad is None


# ---- adversarial

def networks():
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.Conv2d(3, 1, 8), nn.Flatten())


def teaches(loss, network):
    grads = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
    return all(g is not None and g.abs().max() > 0 for g in grads)


def test_values_and_limits():
    z = torch.tensor([[3.], [-3.]])
    d = z.sigmoid()
    assert adversarial(z).item() == pytest.approx((-d.log()).mean().item(), rel=1e-6)
    assert discriminate(z, z).item() == pytest.approx((-d.log() - (1 - d).log()).mean().item(), rel=1e-6)
    assert discriminate(0 * z, 0 * z).item() == pytest.approx(2 * math.log(2))
    assert math.isfinite(adversarial(torch.full((1, 1), -1e4))) and math.isfinite(discriminate(torch.full((1, 1), -1e4), torch.full((1, 1), 1e4)))


def test_mean_over_the_batch_not_sum():
    z = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
    assert adversarial(z.repeat(8, 1)).item() == pytest.approx(adversarial(z).item(), rel=1e-6)


def test_undecided_critic_is_the_minimum_when_real_and_fake_look_alike():
    logits = torch.linspace(-3, 3, 61)
    values = [discriminate(z, z).item() for z in logits]
    assert logits[values.index(min(values))].item() == pytest.approx(0, abs=1e-6)


def test_each_step_teaches_its_own_network(pair):
    generator, critic = networks()
    fake = generator(pair[0])
    assert teaches(adversarial(critic(fake)), generator)
    step = discriminate(critic(pair[1]), critic(fake.detach()))
    assert teaches(step, critic) and not teaches(step, generator)


def test_the_published_detach_is_caught(pair):
    """A released heavy-rain network detaches the restored image in the generator's step as well."""
    generator, critic = networks()
    assert not teaches(adversarial(critic(generator(pair[0]).detach())), generator)


def test_signs():
    """A step downhill makes the generator's fakes look more real, and the critic tell them apart better."""
    for loss, sign in [(adversarial, 1), (lambda z: discriminate(torch.zeros(1), z), -1), (lambda z: discriminate(z, torch.zeros(1)), 1)]:
        z = torch.zeros(1, requires_grad=True)
        loss(z).backward()
        assert -z.grad.item() * sign > 0
