"""The networks of the thesis: printed tables, equations, counts; the drawings.

test_registry.py tests what every network must do.
"""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import nn

from facelab import FacelabError
from facelab.networks.bicubic import Bicubic
from facelab.networks.drawing import (
    compare_layers,
    count_macs,
    count_parameters,
    draw_graph,
    layer_table,
    merge_chains,
    read_printed_table,
    trace,
)
from facelab.networks.prior_guided import BasicBlock, ChannelAttention, FusingModule, Hourglass, PriorBranch, SRBranch
from facelab.networks.srgan import Discriminator
from facelab.networks.srresnet import SRResNet
from facelab.systems.prior_guided_sr import PriorGuidedSR

LAYERS = Path(__file__).parent.parent / "papers" / "prior_guided_sr_layers.yaml"


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "net, blocks",
    [(SRResNet(8, 8, 3), "blocks"), (SRBranch(8, 8, 3), "basic_blocks"), (PriorBranch(8, 8), "hourglasses")],
)
def test_changing_one_block_leaves_the_others(net, blocks):
    first, *others = getattr(net, blocks)
    before = [deepcopy(block.state_dict()) for block in others]
    with torch.no_grad():
        for p in first.parameters():
            p.add_(1)
    assert all(torch.equal(old[k], new) for block, old in zip(others, before) for k, new in block.state_dict().items())


def test_parameter_counts():
    counts = {
        "SRResNet x4": SRResNet(4),
        "SRResNet x8": SRResNet(8),
        "BasicBlock": BasicBlock(),
        "SRBranch x8": SRBranch(8),
        "PriorBranch x8": PriorBranch(8),
        "Hourglass": Hourglass(),
        "FusingModule": FusingModule(),
        "PriorGuidedSR x8": PriorGuidedSR(8),
        "Discriminator": Discriminator(),
        "bicubic": Bicubic(),
    }
    assert {name: count_parameters(net) for name, net in counts.items()} == {
        "SRResNet x4": 1_549_462,
        "SRResNet x8": 1_697_175,
        "BasicBlock": 111_364,
        "SRBranch x8": 2_293_191,
        "PriorBranch x8": 2_090_471,
        "Hourglass": 741_130,
        "FusingModule": 83_716,
        "PriorGuidedSR x8": 4_467_378,
        "Discriminator": 38_245_569,
        "bicubic": 0,
    }


def test_depth_and_width_do_what_they_say():
    per_block = count_parameters(SRBranch(8, 64, 5)) - count_parameters(SRBranch(8, 64, 4))
    assert per_block == count_parameters(BasicBlock(64))
    assert len(SRResNet(8, 8, 5).blocks) == 5 and SRResNet(8, 24, 1).tail.in_channels == 24


@pytest.mark.parametrize(
    "table, net, inputs, expand, differences",
    [
        ("Table 3.1", SRBranch(), (1, 3, 16, 16), "up", ["conv2: printed 128×128×11, ours 128×128×3"]),
        ("Table 3.3", FusingModule(), ((1, 3, 128, 128), (1, 11, 128, 128)), (), []),
        ("Table 3.4", Discriminator(), (1, 3, 128, 128), "blocks", []),
    ],
)
def test_printed_tables(table, net, inputs, expand, differences):
    ours = layer_table(net, inputs, expand, call=getattr(net, "probability", None))
    assert compare_layers(read_printed_table(LAYERS, table), ours).differences == differences
    assert ours.total_parameters == count_parameters(net)


def test_a_wrong_stride_would_be_noticed():
    net = Discriminator(width=4)
    net.blocks.conv_block2[0].stride = (2, 2)
    net.blocks.conv_block3[0].stride = (1, 1)
    ours = layer_table(net, (1, 3, 128, 128), "blocks", call=net.probability)
    shapes = [row.output.rsplit("×", 1)[0] for row in ours.rows]
    assert shapes != [row.output.rsplit("×", 1)[0] for row in read_printed_table(LAYERS, "Table 3.4")]


def test_an_error_names_the_table_that_is_missing():
    with pytest.raises(FacelabError, match="holds no Table 3.2"):
        read_printed_table(LAYERS, "Table 3.2")


def test_attention_is_a_softmax_over_the_channels():
    x = torch.randn(3, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    softmax, sigmoid = ChannelAttention(32), ChannelAttention(32, "sigmoid")
    assert torch.allclose(softmax(x).sum(1), torch.ones(3, 1, 1), atol=1e-6)
    assert not torch.allclose(sigmoid(x).sum(1), torch.ones(3, 1, 1), atol=0.5)
    with pytest.raises(FacelabError):
        ChannelAttention(32, "relu")


@pytest.mark.parametrize("rescale, gain", [(False, 1), (True, 8)])
def test_basic_block_is_the_equations(rescale, gain):
    block, x = BasicBlock(8, rescale=rescale), images(2, 8, 12, 12)
    F_sum = block.conv3x3(x) + block.conv5x5(x)
    z = F_sum.mean((2, 3))
    F_scale = torch.softmax(block.attention.dense2(block.attention.dense1(z)), 1) * gain
    expected = x + block.conv(torch.relu(F_sum * F_scale[..., None, None]))
    assert torch.allclose(block(x), expected, atol=1e-6)


@pytest.mark.parametrize("name, size", [("conv3x3", 3), ("conv5x5", 5)])
def test_field_of_view(name, size):
    x = torch.zeros(1, 4, 15, 15, requires_grad=True)
    getattr(BasicBlock(4), name)(x)[..., 7, 7].sum().backward()
    rows = (x.grad.abs().sum((0, 1, 3)) > 0).nonzero()
    assert rows.max() - rows.min() + 1 == size


def test_discriminator_gives_logits_and_probabilities():
    net, x = Discriminator(64, width=4).eval(), images(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(net.probability(x), net(x).sigmoid())
    with torch.no_grad():
        net.dense2.bias.fill_(5.0)
        assert (net(x) > 1).all() and (net.probability(x) < 1).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SRResNet(3), "scale is 3"),
        (lambda: SRResNet(1), "scale is 1"),
        (lambda: PriorGuidedSR(6), "scale is 6"),
        (lambda: SRResNet(2.5), "scale is 2.5"),
        (lambda: Discriminator(100), "multiple of 16, not 100"),
        (lambda: Discriminator(0), "not 0"),
    ],
)
def test_bad_settings_get_one_sentence(make, message):
    with pytest.raises(FacelabError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


class Everything(nn.Module):
    "A network with a shared layer, a parameter-free step, a second output and a branch that is used late."

    def __init__(self):
        super().__init__()
        self.shared, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.ModuleList([nn.Conv2d(6, 2, 1)])

    def forward(self, x, late):
        y = self.shared(self.shared(x)) - x
        return dict(early=y, restored=self.last[0](torch.cat([y[:, :3], late.flatten(1).view(1, 3, 8, 8)], 1)))


def test_trace_follows_the_data():
    net, x = Everything(), (images(1, 3, 8, 8), images(1, 3, 8, 8, seed=1))
    t = trace(net, x)
    assert [s.operation for s in t.steps] == ["conv 3×3", "conv 3×3", "−", "concat", "conv 1×1"]
    assert [s.sources for s in t.steps] == [(-1,), (0,), (1, -1), (2, -2), (3,)]
    assert t.outputs == [("early", 2), ("restored", 4)] and t.inputs == [("x", "8×8×3"), ("late", "8×8×3")]
    assert sum(s.parameters for s in t.steps) == count_parameters(net)
    assert sum(s.macs for s in t.steps) == count_macs(net, x) == 2 * 81 * 64 + 12 * 64
    assert [s.operation for s in merge_chains(t).steps][0] == "conv 3×3 ×2"


@pytest.mark.parametrize(
    "net, inputs, expand",
    [
        (SRBranch(8, 8, 2), (1, 3, 16, 16), "up"),
        (BasicBlock(8), (1, 8, 16, 16), "attention"),
        (Hourglass(8), (1, 8, 16, 16), Hourglass),
        (PriorGuidedSR(8, 8, 2), (1, 3, 16, 16), ()),
        (Everything(), ((1, 3, 8, 8), (1, 3, 8, 8)), ()),
        (Discriminator(32, 4), (1, 3, 32, 32), "blocks"),
    ],
)
def test_drawings_keep_every_label_on_the_page_and_apart(net, inputs, expand):
    fig = draw_graph(net, inputs, expand)
    FigureCanvasAgg(fig).draw()
    page, boxes = fig.bbox, [text.get_window_extent() for text in fig.axes[0].texts if text.get_text()]
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in boxes[:i])
    assert draw_graph(net, inputs, expand)._repr_png_() == fig._repr_png_()
