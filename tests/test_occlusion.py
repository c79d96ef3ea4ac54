"Occlusion: only what M says is touched, the right places are hidden, and a face looks the same in every company."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facelab import FacelabError
from facelab.base.dice import Dice
from facelab.degradations.occlusion import (
    FILLS,
    STYLES,
    Block,
    Part,
    Worn,
    byte_noise,
    part_boxes,
    sample_drawing,
    sprite_sheet,
)
from facelab.degradations.resample import Downsample
from facelab.faces.drawn import draw_faces
from facelab.faces.parts import five_points

DRAWN = draw_faces(range(6), size=64)
FACES, POINTS = DRAWN["image"], DRAWN["landmarks_68"]


def numbers(n, start=0):
    return Dice(3, "degrade", range(start, start + n))


def five(h, w, n):
    "Five points of a face that fills most of an h x w picture, a little different for each."
    p = torch.tensor([[0.36, 0.42], [0.64, 0.42], [0.5, 0.6], [0.4, 0.74], [0.6, 0.74]]) * torch.tensor([w, h])
    return p + torch.arange(n)[:, None, None] * 0.2


ALL = (
    [Block(fill=f) for f in FILLS]
    + [Block(place="3x3", fill="noise"), Block(place="centre", share=0.1)]
    + [Part(fill=f) for f in FILLS]
    + [Worn(fill="black"), Worn(), Worn(reduced=2)]
    + [Block(share=(0.01, 0.6), fill=f) for f in FILLS]
)


@settings(max_examples=25, deadline=None)
@given(
    which=st.sampled_from(range(len(ALL))),
    h=st.integers(16, 70),
    w=st.integers(16, 70),
    n=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_any_shape(which, h, w, n, seed):
    degradation, x = ALL[which], torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))
    dice = Dice(seed, "degrade", range(n))
    out, again = (degradation(x, dice, landmarks=five(h, w, n)) for _ in range(2))
    M = out.maps["M"]
    assert out.input.shape == x.shape and out.input.dtype == M.dtype == torch.float32 and M.shape == (n, 1, h, w)
    assert 0 <= out.input.min() and out.input.max() <= 1 and 0 <= M.min() and M.max() <= 1
    assert torch.equal(out.input, again.input) and out.target is x
    assert torch.equal(torch.where(M == 1, out.input, 0.0), torch.where(M == 1, x, 0.0))
    last = degradation(x[-1:], Dice(seed, "degrade", [n - 1]), landmarks=five(h, w, n)[-1:])
    assert (last.input - out.input[-1:]).abs().max() <= 1e-6 and (last.maps["M"] - M[-1:]).abs().max() <= 1e-6


@pytest.mark.parametrize("fill", FILLS)
def test_block_by_slicing(fill):
    "The usual way, one face at a time."
    out = Block(fill=fill)(FACES, numbers(6))
    for i, (top, left, bottom, right) in enumerate(out.maps["box"].tolist()):
        a = FACES[i].numpy().copy()
        if fill == "noise":
            a[:, top:bottom, left:right] = out.maps["noise"][i].numpy()
        else:
            a[:, top:bottom, left:right] = a.mean((1, 2), keepdims=True) if fill == "mean" else 0
        np.testing.assert_allclose(out.input[i], a, atol=1e-6)
        assert (bottom - top, right - left) == (32, 32) and top >= 0 and left >= 0 and bottom <= 64 and right <= 64


def test_random_blocks_reach_every_edge():
    box = Block()(torch.zeros(3000, 3, 16, 16), Dice(0, "degrade", range(3000))).maps["box"]
    assert box[:, :2].amin(0).tolist() == [0, 0] and box[:, 2:].amax(0).tolist() == [16, 16]
    counts = torch.bincount(box[:, 0] * 9 + box[:, 1], minlength=81)
    assert len(counts) == 81 and counts.min() > 15 and counts.max() < 65  # 37 expected


def test_blocks_of_a_range_have_every_size_and_reach_every_edge():
    """The released code: each side evenly among whole pixels, here 3 to 24 of 32."""
    box = Block(share=(0.0088, 0.5625))(torch.zeros(5000, 3, 32, 32), Dice(0, "degrade", range(5000))).maps["box"]
    sides = box[:, 2:] - box[:, :2]
    for axis in (0, 1):
        counts = torch.bincount(sides[:, axis], minlength=25)
        assert counts[:3].sum() == 0 and len(counts) == 25 and counts[3:].min() > 160 and counts[3:].max() < 300
    assert (sides[:, 0] != sides[:, 1]).float().mean() > 0.9
    assert box[:, :2].amin(0).tolist() == [0, 0] and box[:, 2:].amax(0).tolist() == [32, 32]
    one, same = (Block(share=s)(FACES, numbers(6)).maps["box"] for s in (0.25, (0.25, 0.25)))
    assert torch.equal(one, same) and Block(share=(0.1, 0.2)).spec["share"] == [0.1, 0.2]


def test_a_thing_before_a_small_face_is_reduced_with_it():
    """Fig 13 shows photographs that were reduced with what people wear; M has the size of the small face."""
    small = lambda x: Downsample(4)(x).input
    whole = small(Worn()(FACES, numbers(6), landmarks=POINTS).input)
    x = small(FACES)
    off = {
        k: (Worn(reduced=k)(x, numbers(6), landmarks=POINTS / 4).input - whole).abs().mean().item() for k in (1, 2, 4)
    }
    assert off[4] < off[2] < off[1] and off[4] < 0.5 * off[1], off
    marked = Worn(reduced=4, fill="black")(x, numbers(6), landmarks=POINTS / 4)
    assert marked.maps["M"].shape == (6, 1, 16, 16) and set(marked.maps["M"].unique().tolist()) == {0, 1}


@pytest.mark.parametrize("grid, k", [("2x2", 2), ("3x3", 3)])
def test_grid(grid, k):
    x = torch.ones(1, 3, 48, 48)
    for cell in range(1, k * k + 1):
        top, left, bottom, right = Block(place=grid, cell=cell)(x).maps["box"][0].tolist()
        row, column = divmod(cell - 1, k)
        assert (top, left) == (row * 48 // k, column * 48 // k)
        assert bottom - top == right - left == 48 // k
    drawn = Block(place=grid)(x.expand(400, -1, -1, -1), Dice(0, "degrade", range(400))).maps["box"]
    assert len(drawn.unique(dim=0)) == k * k


@pytest.mark.parametrize("side", [16, 33, 50, 127])
def test_grid_leaves_nothing_out(side):
    x = torch.ones(1, 3, side, side)
    for k in (2, 3):
        hidden = sum(1 - Block(place=f"{k}x{k}", cell=c)(x).maps["M"] for c in range(1, k * k + 1))
        assert hidden.min() == 1


def test_share_grows():
    shares = torch.linspace(0, 1, 21).tolist()
    hidden = [1 - float(Block(share=s, place="centre")(FACES[:1]).maps["M"].mean()) for s in shares]
    assert max(abs(a - b) for a, b in zip(shares, hidden)) < 0.02
    assert hidden == sorted(hidden) and hidden[0] == 0 and hidden[-1] == 1


def test_noise_is_even_and_unrelated():
    noise = byte_noise(Dice(1, "noise", range(8)), 64, 64)
    levels = (noise * 255).round()
    assert (noise * 255 - levels).abs().max() < 1e-4
    counts = torch.bincount(levels.flatten().long(), minlength=256)
    assert len(counts) == 256 and (counts - counts.float().mean()).abs().max() < 6 * counts.float().mean() ** 0.5
    assert (torch.corrcoef(noise.transpose(0, 1).flatten(1)) - torch.eye(3)).abs().max() < 0.02


@pytest.mark.parametrize(
    "part, which",
    [
        ("left eye", range(36, 42)),
        ("right eye", range(42, 48)),
        ("both eyes", range(36, 48)),
        ("nose", range(28, 36)),
        ("mouth", range(48, 68)),
    ],
)
def test_part_hides_its_landmarks_only(part, which):
    big = draw_faces(range(40), size=128)
    p = big["landmarks_68"]
    M = Part(part)(big["image"], numbers(40), landmarks=p).maps["M"]
    at = p.long().clamp(0, 127)
    seen = M[torch.arange(40)[:, None], 0, at[..., 1], at[..., 0]]
    assert seen[:, list(which)].mean() < 0.005
    elsewhere = {"left eye": [45], "right eye": [36], "both eyes": [57], "nose": [57, 8], "mouth": [38, 43]}
    others = elsewhere[part]
    assert seen[:, others].min() == 1 and seen[:, :17].mean() > 0.97


@pytest.mark.parametrize("roll", [-30, 30])
def test_both_eyes_when_the_head_is_rolled(roll):
    t = torch.tensor(roll * torch.pi / 180)
    turn = torch.stack([torch.stack([t.cos(), -t.sin()]), torch.stack([t.sin(), t.cos()])])
    p = (five(64, 64, 1) - 32) @ turn.T + 32
    top, left, bottom, right = part_boxes(p)[0, 2]
    assert ((p[0, :2] > torch.stack([left, top])) & (p[0, :2] < torch.stack([right, bottom]))).all()


@pytest.mark.parametrize("kind", list(STYLES))
def test_worn_is_composed(kind):
    out = Worn(kind=kind)(FACES, numbers(6), landmarks=POINTS)
    M, L = out.maps["M"], out.maps["occluder"]
    assert (M * FACES + L - out.input).abs().max() < 1e-6
    assert 0.03 < 1 - M.mean() < 0.6 and M.min() < 1e-3
    white = Worn(kind=kind)(torch.ones_like(FACES), numbers(6), landmarks=POINTS)
    assert white.input.max() <= 1 and torch.equal(white.maps["M"], M)  # M does not depend on the picture


def test_marked_as_hidden():
    "Where the thing is, the picture is black; elsewhere it is itself."
    thing, marked = (Worn(fill=f)(FACES, numbers(6), landmarks=POINTS) for f in ("thing", "black"))
    M = marked.maps["M"]
    assert torch.equal(marked.input, M * FACES) and M.unique().tolist() == [0, 1]
    assert thing.maps["M"][M == 0].max() <= 0.9 < thing.maps["M"][M == 1].min()
    assert marked.maps["occluder"].abs().max() == 0


def hidden_share(M, points):
    at = points.long().clamp(0, 127)
    return 1 - M[torch.arange(len(M))[:, None], 0, at[..., 1], at[..., 0]]


def test_worn_sits_where_it_should():
    big = draw_faces(range(24), size=128)
    p = big["landmarks_68"]
    M = {k: Worn(kind=k)(big["image"], numbers(24), landmarks=p).maps["M"] for k in STYLES}
    eyes, mouth, chin, brow = p[:, 36:48], p[:, 48:68], p[:, 7:10], p[:, 27:28]
    assert hidden_share(M["sunglasses"], eyes).mean() > 0.97 and hidden_share(M["sunglasses"], mouth).max() == 0
    assert hidden_share(M["scarf"], mouth).mean() > 0.97 and hidden_share(M["scarf"], chin).mean() > 0.97
    assert hidden_share(M["scarf"], eyes).max() == 0
    cheeks = torch.stack([p[:, 2:6].mean(1), p[:, 11:15].mean(1)], 1)
    touched = torch.maximum(hidden_share(M["hand"], mouth).mean(1), hidden_share(M["hand"], cheeks).amax(1))
    assert touched.min() > 0.5 and hidden_share(M["hand"], brow).max() < 0.3


def test_worn_follows_the_face():
    "Move, turn and scale the landmarks about: the thing moves along."
    x, p = torch.full((1, 3, 128, 128), 0.5), five(128, 128, 1)
    centre = torch.tensor([64.0, 64])
    glasses = Worn(kind="sunglasses", size=1, tilt=0, lower=0)

    def middle(q):
        hidden = 1 - glasses(x, numbers(1), landmarks=q).maps["M"][0, 0]
        y, x_ = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
        return torch.stack([(hidden * x_).sum(), (hidden * y).sum()]) / hidden.sum(), hidden.sum()

    (at, area), (shifted, same) = middle(p), middle(p + torch.tensor([9.0, -6]))
    assert (shifted - at - torch.tensor([9.0, -6])).abs().max() < 0.1 and abs(same / area - 1) < 0.01
    _, small = middle((p - centre) * 0.7 + centre)
    assert abs(small / area - 0.49) < 0.02
    turn = torch.tensor([[0.8660254, -0.5], [0.5, 0.8660254]])
    turned, same = middle((p - centre) @ turn.T + centre)
    assert (turned - ((at - centre) @ turn.T + centre)).abs().max() < 0.5 and abs(same / area - 1) < 0.02


def test_hand_has_the_colour_of_the_face():
    pale, dark = (torch.tensor(c).view(1, 3, 1, 1).expand(1, 3, 64, 64) for c in ((0.8, 0.6, 0.5), (0.35, 0.22, 0.16)))
    for x in (pale, dark):
        C = Worn(kind="hand")(x, numbers(1), landmarks=five(64, 64, 1)).maps["C"][0, :, 0]
        ratio = C / x[0, :, 0, 0]
        assert (ratio - ratio.mean()).abs().max() < 1e-4 and 1.1 < ratio.mean() < 1.3


def test_dye():
    C = Worn(kind="scarf", dye="#3060a0")(FACES, numbers(6), landmarks=POINTS).maps["C"][:, :, 0]
    assert (C * 255).round().int().tolist() == [[0x30, 0x60, 0xA0]] * 6


def test_drawings_keep_within_the_light():
    maps = sprite_sheet(64)
    assert maps.shape == (4, 11 * 96, 96) and maps.min() >= 0 and maps.max() <= 1
    assert (maps[1:].sum(0) <= maps[0] + 1e-6).all()
    alone = sample_drawing(maps, torch.eye(3)[None, :2].repeat(11, 1, 1) * 2.4, torch.arange(11.0), (96, 96))
    assert all((a[0] == 0).float().mean() > 0.2 and (a[0] > 0.99).float().mean() > 0.02 for a in alone)


@pytest.mark.parametrize("count", [5, 49, 81])
def test_landmark_schemes(count):
    inner = [k for k in range(17, 68) if k not in (60, 64)]
    p = {5: five_points(POINTS), 49: POINTS[:, inner], 81: DRAWN["landmarks_81"]}[count]
    for degradation in (Part(), Worn()):
        a, b = (degradation(FACES, numbers(6), landmarks=q).input for q in (POINTS, p))
        assert (a - b).abs().mean() < 1e-5


def test_coinciding_landmarks_give_finite_pictures():
    out = Worn()(FACES, numbers(6), landmarks=torch.full((6, 5, 2), 32.0))
    assert out.input.isfinite().all() and 0 <= out.input.min() and out.input.max() <= 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Block(share=1.5), "share"),
        (lambda: Block(cell=10), "whole number in [0, 9]"),
        (lambda: Block(fill="blue"), "one of black, mean, noise"),
        (lambda: Part(part="ear"), "one or several of left eye"),
        (lambda: Worn(size=(3, 1)), "a number or a range [a, b] in [0.5, 2]"),
        (lambda: Worn()(FACES), "Worn needs landmarks"),
        (lambda: Part()(FACES, landmarks=POINTS + 200), "lies outside its 64x64 picture"),
        (lambda: Worn()(FACES * 2, landmarks=POINTS), "[0, 1]"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(FacelabError) as error:
        make()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "degradation", [Block(), Block(share=(0.1, 0.3)), Block(place="3x3", cell=5), Part(), Worn(), Worn(fill="black")]
)
def test_latex_and_spec(degradation):
    out = degradation(FACES, numbers(6), landmarks=POINTS)
    text = degradation.latex(out.maps, 2)
    assert text.startswith("I = M") and text.count("{") == text.count("}")
    spec = degradation.spec
    assert type(degradation)(**{k: v for k, v in spec.items() if k != "use"}) == degradation
    assert all(v.shape[0] == 6 for v in out.maps.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CPU = GPU is not compared")
@pytest.mark.parametrize("degradation", ALL)
def test_gpu(degradation):
    a, b = (degradation(FACES.to(d), numbers(6), landmarks=POINTS.to(d)).input.cpu() for d in ("cpu", "cuda"))
    assert (a - b).abs().max() < 1e-4
