"""Metrics: pinned to scikit-image, the bugs of published code planted and caught, bad input, files."""

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from facelab import FacelabError
from facelab.base.images import astronaut, to_uint8
from facelab.base.weights import Unavailable
from facelab.degradations.resample import resize
from facelab.evaluation import metrics
from facelab.evaluation.metrics import (
    CONVENTIONS,
    Convention,
    bootstrap,
    lpips_alex,
    lpips_network,
    lpips_unavailable,
    luma,
    pool,
    psnr,
    read_scores,
    score,
    ssim,
    summarise,
    write_scores,
)


@pytest.fixture(scope="module")
def pairs():
    """Four crops, 72x56, of the portrait and of its bicubic x8 enlargement."""
    true = astronaut(128)
    blurred = resize(resize(true, 16), 128).clamp(0, 1)
    crops = lambda x: torch.cat([x[:, :, i : i + 72, j : j + 56] for i in (0, 50) for j in (0, 60)])
    return crops(blurred), crops(true)


def by_scikit_image(x, y, c):
    """The same convention, spelt out in numpy with scikit-image's own colour conversion."""
    a, b = (i.permute(1, 2, 0).double().numpy() for i in (x, y))
    if c.quantise:
        a, b = np.round(a * 255) / 255, np.round(b * 255) / 255
    if c.border:
        a, b = (i[c.border : -c.border, c.border : -c.border] for i in (a, b))
    if c.colour == "Y":
        a, b = (rgb2ycbcr(i)[..., :1] / 255 for i in (a, b))
    window = dict(gaussian_weights=True, sigma=c.sigma) if c.sigma else dict(win_size=c.window)
    return (
        peak_signal_noise_ratio(b, a, data_range=1),
        structural_similarity(
            a, b, data_range=1, channel_axis=2, use_sample_covariance=False, K1=c.k1, K2=c.k2, **window
        ),
    )


@pytest.mark.parametrize("c", CONVENTIONS.values(), ids=str)
def test_equal_to_scikit_image(c, pairs):
    ours = torch.stack([psnr(*pairs, c), ssim(*pairs, c)], 1).numpy()
    np.testing.assert_allclose(ours, [by_scikit_image(x, y, c) for x, y in zip(*pairs)], rtol=0, atol=1e-6)


def test_batch_equals_one_by_one_and_is_symmetric(pairs):
    for m in (psnr, ssim):
        one = torch.cat([m(x[None], y[None], "y") for x, y in zip(*pairs)])
        torch.testing.assert_close(m(*pairs, "y"), one, rtol=0, atol=1e-12)
        torch.testing.assert_close(m(*pairs, "y"), m(*pairs[::-1], "y"), rtol=0, atol=1e-12)


def test_autocast_changes_nothing(pairs):
    with torch.autocast("cpu", torch.bfloat16):
        mixed = psnr(*pairs, "y"), ssim(*pairs, "y")
    assert torch.equal(mixed[0], psnr(*pairs, "y")) and torch.equal(mixed[1], ssim(*pairs, "y"))


def test_identical_images(pairs):
    x = pairs[1]
    assert torch.isinf(psnr(x, x, "rgb")).all() and torch.equal(ssim(x, x, "y"), torch.ones(4).double())


# ---- planted bugs: each would pass a test that only looks for a float


def test_bug_squared_error_floored_at_one(pairs):
    """FSRNet's test code: at most 48.13 dB."""
    floored = lambda x, y: 10 * torch.log10(255**2 / ((255 * (x - y)) ** 2).mean((1, 2, 3)).clamp(min=1))
    y = torch.full((1, 3, 32, 32), 100 / 255)
    x = y.clone()
    x[..., :4, :4] += 1 / 255
    right = 10 * np.log10(255**2 / (16 / 1024))
    assert psnr(x, y, "rgb").item() == pytest.approx(right, abs=1e-3)
    assert floored(x, y).item() == pytest.approx(48.13, abs=0.01)
    torch.testing.assert_close(
        floored(*pairs), psnr(*pairs, Convention("plain", quantise=False)).float(), rtol=0, atol=1e-4
    )  # elsewhere it hides


def test_bug_byte_overflow(pairs):
    """DIC's test code multiplies bytes by 255, which wraps to the negative: PSNR is the same, SSIM is not."""
    x, y = (to_uint8(p) for p in pairs)
    with pytest.raises(FacelabError, match="uint8"):
        ssim(x, y, "rgb")
    wrapped = [(p * 255).float() / 255 for p in (x, y)]
    right = [p.float() / 255 for p in (x, y)]
    assert (ssim(*wrapped, "rgb") - ssim(*right, "rgb")).abs().max() > 1e-4
    torch.testing.assert_close(
        (wrapped[0] + right[0])[right[0] > 0], torch.full((int((right[0] > 0).sum()),), 256 / 255)
    )


def test_bug_full_range_luma(pairs):
    """Luma over 0-255 instead of 16-235 costs 1.32 dB."""
    full = lambda x: (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    plain = Convention("y", colour="Y", quantise=False)
    mistaken = -10 * (full(pairs[0]) - full(pairs[1])).square().mean((1, 2, 3)).log10()
    torch.testing.assert_close(
        (psnr(*pairs, plain) - mistaken).float(), torch.full((4,), 20 * np.log10(255 / 219)), rtol=0, atol=1e-3
    )


def test_luma_of_known_colours():
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).double().view(5, 3, 1, 1)
    np.testing.assert_allclose(255 * luma(colours).flatten(), [16, 235, 81.481, 144.553, 40.966], atol=1e-9)


# ---- bad input


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda x: x[:, :1], "one shape"),
        (lambda x: x[0], "one shape"),
        (lambda x: x[..., :-1], "one shape"),
        (lambda x: to_uint8(x), "uint8"),
        (lambda x: 255 * x, "clamp or rescale"),
        (lambda x: x - 0.5, "clamp or rescale"),
        (lambda x: x * float("nan"), "nan"),
    ],
)
def test_bad_images(make, says, pairs):
    for measure in (psnr, ssim, lambda x, y, _: lpips_alex(x, y)):
        with pytest.raises(FacelabError, match=says):
            measure(make(pairs[0]), pairs[1], "rgb")


def test_both_grey_is_refused(pairs):
    with pytest.raises(FacelabError, match=r"\(N,3,H,W\)"):
        psnr(pairs[0][:, :1], pairs[1][:, :1], "rgb")


def test_image_smaller_than_the_window():
    x = torch.rand(1, 3, 24, 24)
    assert ssim(x, x, "rgb").item() == 1
    with pytest.raises(FacelabError, match="less than one 11x11 window"):
        ssim(x, x, "rgb_border8")


def test_unknown_conventions():
    with pytest.raises(FacelabError, match="'no_such'; there are rgb, y"):
        psnr(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), "no_such")
    for wrong in (dict(colour="YUV"), dict(border=-1), dict(window=10), dict(average="median")):
        with pytest.raises(FacelabError, match="Convention 'x'"):
            Convention("x", **wrong)


def test_the_line_of_a_table_names_the_whole_convention():
    assert (
        str(CONVENTIONS["y_border8"])
        == "Y of BT.601 (16-235), 8 bit, border 8 cut, peak 255, SSIM Gaussian 11x11, sigma 1.5, K 0.01/0.03, mean over"
        " images"
    )
    assert len({str(c) for c in CONVENTIONS.values()}) == len(CONVENTIONS)


# ---- LPIPS


@pytest.fixture
def trunk():
    from torchvision.models import alexnet

    torch.manual_seed(0)
    return alexnet(weights=None).requires_grad_(False).eval()


def test_lpips_is_its_formula_on_torchvisions_alexnet(trunk, pairs):
    """Unit-length features after each ReLU, squared differences, the package's weights, mean over places."""
    network = lpips_network(trunk.state_dict())
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    features, total = [((2 * p - 1) - shift) / scale for p in pairs], 0
    for i, layer in enumerate(trunk.features[:12]):
        layer.inplace = False
        features = [layer(f) for f in features]
        if i in (1, 4, 7, 9, 11):
            a, b = (f / f.norm(dim=1, keepdim=True) for f in features)
            weights = network.lins[(1, 4, 7, 9, 11).index(i)].model[1].weight.float()
            total = total + (weights * (a - b) ** 2).sum(1).mean((1, 2))
    got = network(*[p.double() for p in pairs], normalize=True).flatten()
    torch.testing.assert_close(got.float(), total, rtol=1e-4, atol=1e-7)
    assert got.min() > 0 and network(*[pairs[0].double()] * 2, normalize=True).abs().max() == 0


@pytest.fixture
def without_alexnet(monkeypatch, tmp_path):
    monkeypatch.setenv("FACELAB_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    metrics.open_lpips.cache_clear()
    yield tmp_path
    metrics.open_lpips.cache_clear()


def test_missing_lpips_gives_a_reason_not_a_substitute(without_alexnet, pairs):
    with pytest.raises(Unavailable, match="alexnet-owt-7be5be79.pth are not at hand"):
        lpips_alex(*pairs)
    assert "FACELAB_WEIGHTS" in lpips_unavailable() and str(without_alexnet) not in lpips_unavailable()
    assert [r["lpips_alex"] for r in score(*pairs, "abcd", "s")] == [None] * 4


def test_a_damaged_alexnet_is_an_error_not_a_gap(without_alexnet, pairs):
    (without_alexnet / "alexnet-owt-7be5be79.pth").write_bytes(b"half")
    with pytest.raises(FacelabError, match="damaged"):
        score(*pairs, "abcd", "s")


def test_lpips_from_a_folder_once_the_file_is_there(without_alexnet, trunk, pairs, monkeypatch):
    import hashlib

    torch.save(trunk.state_dict(), without_alexnet / "w.pth")
    digest = hashlib.sha256((without_alexnet / "w.pth").read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(metrics, "ALEXNET", f"alexnet-owt-{digest}.pth")
    (without_alexnet / "w.pth").rename(without_alexnet / f"alexnet-owt-{digest}.pth")
    expected = lpips_network(trunk.state_dict())(*[p.double() for p in pairs], normalize=True).flatten()
    assert lpips_unavailable() == "" and torch.equal(lpips_alex(*pairs), expected)
    assert [r["lpips_alex"] for r in score(*pairs, "abcd", "s")] == expected.tolist()


# ---- scores


def test_scores_survive_the_file(pairs, tmp_path):
    names = ["000123", "NA", 'a, "b"', "é"]
    rows = score(*pairs, names, "nan", conventions=("rgb", Convention("y_b4", colour="Y", border=4)), lpips=False)
    write_scores(tmp_path / "s.csv", rows)
    back = read_scores(tmp_path / "s.csv")
    assert list(back.columns) == ["system", "image", "psnr_rgb", "ssim_rgb", "psnr_y_b4", "ssim_y_b4", "lpips_alex"]
    assert list(back.image) == names and set(back.system) == {"nan"} and back.lpips_alex.isna().all()
    np.testing.assert_allclose(back.psnr_rgb, psnr(*pairs, "rgb"), atol=5.1e-5)
    np.testing.assert_allclose(back.ssim_rgb, ssim(*pairs, "rgb"), atol=5.1e-7)


def test_equal_scores_equal_bytes_and_infinity_survives(pairs, tmp_path):
    for name in ("a.csv", "b.csv"):
        write_scores(tmp_path / name, score(pairs[1], pairs[1], "abcd", "truth", lpips=False))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert np.isinf(read_scores(tmp_path / "a.csv").psnr_rgb).all()


def test_rows_that_do_not_fit_leave_the_old_file(pairs, tmp_path):
    rows = score(*pairs, "abcd", "s", lpips=False)
    write_scores(tmp_path / "s.csv", rows)
    before = (tmp_path / "s.csv").read_bytes()
    for bad in ([], rows + [{"system": "s"}], rows + [{**rows[0], "psnr_y": object()}]):
        with pytest.raises((FacelabError, TypeError)):
            write_scores(tmp_path / "s.csv", bad)
    assert (tmp_path / "s.csv").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_unreadable_scores(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    for name, says in (
        ("other.csv", "no file of scores"),
        ("empty.csv", "cannot be read"),
        ("absent.csv", "cannot be read"),
    ):
        with pytest.raises(FacelabError, match=says):
            read_scores(tmp_path / name)


def test_names_must_fit(pairs):
    with pytest.raises(FacelabError, match="4 images .* 2 names"):
        score(*pairs, ["a", "b"], "s")


# ---- averages


def test_bootstrap_of_a_proportion_and_of_nothing():
    mean, low, high = bootstrap([0.0] * 70 + [1.0] * 30, n=4000)
    assert mean == pytest.approx(0.3)
    assert low == pytest.approx(0.3 - 0.09, abs=0.015) and high == pytest.approx(0.3 + 0.09, abs=0.015)
    assert np.isnan(bootstrap([])).all()
    assert bootstrap(range(9), seed=1) == bootstrap(range(9), seed=1) != bootstrap(range(9), seed=2)
    for known in ([5.0], [5.0] * 10, [np.inf] * 3):
        mean, low, high = bootstrap(known)
        assert mean == known[0] and np.isnan([low, high]).all()


def test_pooled_psnr_is_that_of_the_mean_error(pairs):
    error = (torch.stack([to_uint8(p).double() / 255 for p in pairs]).diff(dim=0) ** 2).mean()
    assert pool(psnr(*pairs, "rgb"), "rgb_pooled") == pytest.approx(-10 * error.log10().item(), abs=1e-9)
    rows = score(*pairs, "abcd", "s", conventions=["rgb", "rgb_pooled"], lpips=False)
    s = summarise(rows)
    assert s["psnr_rgb_pooled"][0] == pytest.approx(-10 * error.log10().item(), abs=1e-9)
    assert s["psnr_rgb"][0] > s["psnr_rgb_pooled"][0] + 0.01


def test_summary(pairs):
    rows = score(*pairs, "abcd", "s", lpips=False)
    s = summarise(rows)
    assert list(s) == ["psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y", "lpips_alex"]
    assert s["psnr_rgb"][0] == pytest.approx(psnr(*pairs, "rgb").mean().item()) and s["psnr_rgb"][1] > 0
    assert np.isnan(s["lpips_alex"]).all()
    assert summarise(rows[::-1], ["ssim_y"]) == {"ssim_y": s["ssim_y"]}
    for wrong, columns, says in (
        (rows, ["psnr"], "no column psnr"),
        (rows + [{**rows[0], "system": "t"}], None, "of one system"),
    ):
        with pytest.raises(FacelabError, match=says):
            summarise(wrong, columns)
