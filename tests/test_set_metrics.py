"Metrics of sets: as pytorch-fid where it runs without its weights, as loops elsewhere, n/a with a reason."

import hashlib
import itertools
from unittest import mock

import numpy as np
import pytest
import torch

from facelab import FacelabError
from facelab.base.images import write_image, to_uint8
from facelab.base.weights import Unavailable
from facelab.evaluation import set_metrics as module
from facelab.evaluation.set_metrics import (
    frechet_distance,
    inception_features,
    inception_network,
    kid,
    set_features,
    moments,
    set_metrics,
    small_set_caution,
)
from facelab.faces.drawn import draw_faces

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pytorch-fid calls scipy in an old way
torch.set_num_threads(1)


def clouds(n, m, d, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d))
    return rng.normal(size=(n, d)) @ mix, 0.2 + rng.normal(size=(m, d)) @ mix.T


@pytest.fixture
def without_inception(monkeypatch, tmp_path):
    monkeypatch.setenv("FACELAB_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    module.open_inception.cache_clear()
    yield tmp_path
    module.open_inception.cache_clear()


@pytest.mark.parametrize("n, m, d", [(300, 200, 40), (64, 65, 32), (2000, 50, 8)])
def test_equal_to_pytorch_fid(n, m, d):
    from pytorch_fid.fid_score import calculate_frechet_distance

    a, b = clouds(n, m, d)
    assert frechet_distance(a, b) == pytest.approx(calculate_frechet_distance(*moments(a), *moments(b)), rel=1e-8)


def test_with_fewer_faces_than_numbers_nothing_is_added():
    "pytorch-fid roots a singular matrix, to within 1e-3; here the trace is that of the definition, by eigenvalues."
    a, b = clouds(12, 9, 30)
    (ma, ca), (mb, cb) = moments(a), moments(b)
    values, vectors = np.linalg.eigh(ca)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum()
    assert frechet_distance(a, b) == pytest.approx(
        np.square(ma - mb).sum() + np.trace(ca) + np.trace(cb) - 2 * trace, rel=1e-6
    )
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * np.trace(ca))


def test_order_and_direction_do_not_change_the_distance():
    a, b = clouds(50, 40, 10)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(10, 10)))[0]
    for other in ((b, a), (a[::-1], b), (a @ turn, b @ turn), (a + 5, b + 5)):
        assert frechet_distance(*other) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_kid_is_its_formula():
    a, b = clouds(7, 7, 4)
    k = lambda x, y: (float(x @ y) / 4 + 1) ** 3
    within = sum(k(x[i], x[j]) for x in (a, b) for i, j in itertools.permutations(range(7), 2)) / (7 * 6)
    assert kid(a, b) == pytest.approx(within - 2 * np.mean([k(x, y) for x in a for y in b]), rel=1e-9)


def test_kid_of_subsets_is_seeded_and_agrees_with_the_whole():
    a, b = clouds(300, 260, 4)
    some = kid(a, b, subsets=60, size=100, seed=1)
    assert some == kid(a, b, subsets=60, size=100, seed=1) != kid(a, b, subsets=60, size=100, seed=2)
    assert some == pytest.approx(kid(a, b, subsets=20, size=260), rel=0.1)


def test_bad_features():
    for a, b, says in (
        (np.zeros((3, 4)), np.zeros((3, 5)), "of one D"),
        (np.zeros((1, 4)), np.zeros((3, 4)), "at least two faces"),
        (np.full((3, 4), np.nan), np.zeros((3, 4)), "first set are not all finite"),
    ):
        for measure in (frechet_distance, kid):
            with pytest.raises(FacelabError, match=says):
                measure(a, b)


def test_small_sets_get_a_caution():
    assert small_set_caution(2048, 2048, 2048) == ""
    assert "singular" in small_set_caution(100, 2048, 2048)
    assert "singular" not in small_set_caution(2047, 64, 2048)


# ---- Inception


@pytest.fixture(scope="module")
def state():
    "Random weights under the names of pytorch-fid's file."
    from pytorch_fid import inception

    torch.manual_seed(0)
    with (
        mock.patch.object(inception, "load_state_dict_from_url", lambda *_, **__: {}),
        mock.patch.object(torch.nn.Module, "load_state_dict"),
    ):
        net = inception.fid_inception_v3()
    for m in net.modules():
        if isinstance(m, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(m.weight)
    return net.state_dict()


@pytest.fixture
def at_hand(without_inception, state, monkeypatch):
    torch.save(state, without_inception / "w.pth")
    name = f"inception-{hashlib.sha256((without_inception / 'w.pth').read_bytes()).hexdigest()[:8]}.pth"
    (without_inception / "w.pth").rename(without_inception / name)
    monkeypatch.setattr(module, "INCEPTION", name)
    return without_inception


def test_the_whole_way_is_pytorch_fids(at_hand, state, tmp_path):
    from pytorch_fid.fid_score import get_activations

    faces = [draw_faces(range(i, i + 3), size=64)["image"] for i in (0, 3)]
    files = [[tmp_path / f"{k}{i}.png" for i in range(3)] for k in "ab"]
    for paths, images in zip(files, faces):
        for path, image in zip(paths, to_uint8(images)):
            write_image(path, image)
    theirs = [get_activations(paths, inception_network(state), batch_size=3, num_workers=0) for paths in files]
    seen = [inception_features((to_uint8(x) / 255).split(2)) for x in faces]
    assert seen[0].shape == (3, 2048)
    for x, y in zip(seen, theirs):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * np.abs(y).max())
    scores = set_metrics(*[dict(n=3, inception=x, face="no recogniser") for x in seen])
    assert (
        scores["fid"] == pytest.approx(frechet_distance(*theirs), rel=1e-3)
        and scores["kid"] == pytest.approx(kid(*theirs), rel=1e-3)
        and scores["frechet_face"] is None
    )
    assert "from 3 faces, fewer than the 2,048" in scores["notes"]["fid"]
    assert scores["notes"]["kid"] == "all 3 faces at once"


def test_missing_weights_give_a_reason_not_a_substitute(without_inception):
    x = torch.rand(4, 3, 32, 32)
    with pytest.raises(Unavailable, match="FACELAB_WEIGHTS"):
        inception_features(x)
    scores = set_metrics(x, x)
    assert [scores[k] for k in ("n", "fid", "kid", "frechet_face")] == [4, None, None, None]
    assert module.INCEPTION in scores["notes"]["fid"]
    assert scores["notes"]["frechet_face"] == "no recogniser was given"
    assert str(without_inception) not in str(scores)


def test_foreign_and_damaged_weights_are_errors(without_inception):
    with pytest.raises(FacelabError, match="do not fit"):
        inception_network({"a": torch.zeros(1)})
    (without_inception / module.INCEPTION).write_bytes(b"half")
    with pytest.raises(FacelabError, match="damaged"):
        set_metrics(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32))


# ---- a set


class MeanColours:
    "A recogniser whose embeddings are mean colours."

    def embed(self, images):
        return images.mean((2, 3))


def test_batches_and_features_that_were_computed_before_give_the_same(without_inception):
    a, b = torch.rand(2, 40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = set_metrics(a, b, MeanColours())
    assert whole["frechet_face"] == pytest.approx(frechet_distance(a.mean((2, 3)), b.mean((2, 3))))
    assert whole["notes"]["frechet_face"] == ""
    assert set_metrics(iter(a.split(7)), set_features(b, MeanColours()), MeanColours())[
        "frechet_face"
    ] == pytest.approx(whole["frechet_face"], rel=1e-6)
    assert "singular" in set_metrics(a[:3], b[:3], MeanColours())["notes"]["frechet_face"]
    one = set_metrics(a[:1], b[:1], MeanColours())
    assert one["frechet_face"] is None and one["notes"]["frechet_face"] == "a set of one face"
