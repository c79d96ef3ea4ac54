"""Random numbers that depend on seed, name and index only."""

import numpy as np
import torch

from facelab.base.dice import Dice, seed_of

PINNED = {
    "uniform": [0.8371047269698104, 0.1662554517062692],
    "seed": 62418137068473534,
    "field": [
        0.1710677146911621,
        0.9150832891464233,
        0.5886843204498291,
        0.5579721927642822,
        0.9354907274246216,
        0.9867212176322937,
        0.5163446068763733,
        0.3285578489303589,
    ],
}


def test_values_are_pinned():
    "Drawn faces and every published number hang on these."
    d = Dice(0, "test", [0, 7])
    np.testing.assert_allclose(d.named("length").uniform().numpy(), PINNED["uniform"], rtol=0, atol=1e-15)
    assert d.named("noise").even_field(2, 2).flatten().tolist() == PINNED["field"]
    assert seed_of(0, "order", 3) == PINNED["seed"]


def test_a_row_is_the_same_in_any_company_and_order():
    some, other = Dice(3, "x", range(50)), Dice(3, "x", [41, 7])
    for throw in (
        lambda d: d.named("a").uniform(2, 5),
        lambda d: d.named("a").normal(),
        lambda d: d.named("f").even_field(3, 5),
        lambda d: d.named("f").normal_field(7),
    ):
        assert torch.equal(throw(some)[[41, 7]], throw(other))


def test_fields_larger_than_a_piece_are_whole():
    d = Dice(1, "x", range(3))
    large = d.named("f").even_field(300, 300)
    assert torch.equal(large[1], Dice(1, "x", [1]).named("f").even_field(300, 300)[0])
    assert large.unique().numel() > 0.98 * large.numel()
    assert abs(float(large.mean()) - 0.5) < 0.005


def test_names_seeds_and_streams_do_not_meet():
    fields = [Dice(s, t, [0]).named(n).even_field(4096) for s in (0, 1) for t in ("train", "test") for n in ("a", "b")]
    for i, a in enumerate(fields):
        for b in fields[:i]:
            assert abs(float(torch.corrcoef(torch.stack([a[0], b[0]]))[0, 1])) < 0.06


def test_odd_shapes_and_the_tails_of_normal_fields():
    x = Dice(0, "x", range(40)).normal_field(3, 33, 5)
    assert x.shape == (40, 3, 33, 5) and x.isfinite().all() and 3.2 < float(x.abs().max()) < 6
