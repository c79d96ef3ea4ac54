"Shards: the faces of the set in memory, packed whole or not at all, read with bounded memory, refused if damaged."

import hashlib
import io
import json
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from facelab import FacelabError
from facelab.base.images import write_image
from facelab.faces import shards as S
from facelab.faces.drawn import draw_set
from facelab.faces.layouts import Files
from facelab.faces.sets import FaceSet, open_faces
from facelab.faces.shards import check_shards, main, open_shards, write_shards

ORDER = torch.randperm(22, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def faces():
    "22 drawn faces with all labels, their splits mixed."
    return draw_set(14, 5, 3, size=32).take(ORDER)


@pytest.fixture
def folder(faces, tmp_path):
    write_shards(faces, tmp_path / "shards", per_shard=4, progress=False)
    return tmp_path / "shards"


@pytest.fixture(scope="module")
def many():
    "640 faces of 8 x 8, distinct by their first pixel, in 20 shards of 32; and what was packed."
    images = torch.zeros(640, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 1, 0, 0] = torch.arange(640) // 256, torch.arange(640) % 256
    return FaceSet("many", images, [f"{i}.png" for i in range(640)], torch.zeros(640, dtype=torch.uint8))


@pytest.fixture(scope="module")
def packed_many(many, tmp_path_factory):
    return write_shards(many, tmp_path_factory.mktemp("many"), per_shard=32, progress=False).shards.address


def who(batch):
    return (batch["image"][:, :2, 0, 0] * 255).round().long() @ torch.tensor([256, 1])


def same(a, b):
    "Two batches are equal, types and all."
    assert a.keys() == b.keys()
    for k in a:
        assert a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]), k


def refusal(call):
    "The one sentence that a call ends with."
    with pytest.raises(FacelabError) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and ": " in text, text
    return text


def read_all(path):
    return open_shards(path).batch(range(len(open_shards(path))))


# ------------------------------------------------------------------ the same faces


def test_every_label_comes_back(faces, folder):
    packed = open_shards(folder)
    assert packed.labels == ("landmarks", "parsing", "identity", "depth", "foreground") == faces.labels
    assert (packed.name, packed.size, len(packed), packed.counts, packed.nbytes) == (
        faces.name,
        32,
        22,
        dict(train=14, val=5, test=3),
        faces.nbytes,
    )
    for split in ("train", "val", "test"):
        a, b = faces.subset(split), packed.subset(split)
        assert a.names == b.names
        same(a.batch(range(len(a))), b.batch(range(len(b))))
        same(a.batch([2, 0, 2], labels=("parsing",)), b.batch([2, 0, 2], labels=("parsing",)))
        same(a.batch(1), b.batch(1))


def test_a_batch_does_not_depend_on_its_other_faces(folder):
    packed = open_shards(folder)
    whole = packed.batch(range(22))
    for i in (21, 0, 13):
        same({k: v[i : i + 1] for k, v in whole.items()}, packed.batch([i]))
    for rows in ORDER.split(7):
        same({k: v[rows] for k, v in whole.items()}, packed.batch(rows))


def test_messages_are_those_of_a_face_set(folder, many, packed_many):
    packed = open_shards(packed_many)
    assert "set many has no identity" in refusal(lambda: packed.batch([0], labels=("identity",)))
    assert "holds no faces" in refusal(lambda: packed.subset("val").batch([0]))
    assert "lower train.batch" in refusal(lambda: packed.order(641, 0, 0))
    assert "choose one of train, val, test" in refusal(lambda: packed.subset("dev"))


def test_it_stays_on_disk_wherever_batches_go(folder):
    packed = open_shards(folder).to("cuda")
    assert (
        not packed.resident
        and packed.device == packed.subset("val").device == "cuda"
        and packed.batch([0], device="cpu")["depth"].device.type == "cpu"
    )
    assert "streamed from disk" in packed._repr_markdown_() and "lossless" in packed._repr_markdown_()


def test_faces_that_are_read_from_files_are_packed(faces, tmp_path):
    for i, image in enumerate(faces.images[:6]):
        write_image(tmp_path / "faces" / f"{i}.png", image)
    (tmp_path / "faces" / "landmarks_68.csv").write_text(
        "file\n"
        + "\n".join(
            f"{i}.png," + ",".join(f"{v:.3f}" for v in faces.landmarks[i, :68].flatten().tolist()) for i in range(6)
        )
    )
    files = open_faces(tmp_path / "faces", 32)
    assert isinstance(files.images, Files)
    packed = write_shards(files, tmp_path / "shards", per_shard=4, progress=False)
    for split in ("train", "val", "test"):
        if n := files.counts[split]:
            same(files.subset(split).batch(range(n)), packed.subset(split).batch(range(n)))
    again = write_shards(packed, tmp_path / "again", per_shard=4, progress=False)
    same(packed.batch(range(6)), again.batch(range(6)))


def test_lossy_pictures_are_close_and_labels_exact(faces, tmp_path):
    a = faces.subset("train").batch(range(14))
    b = write_shards(faces, tmp_path, quality=90, progress=False).subset("train").batch(range(14))
    assert 0 < (a.pop("image") - b.pop("image")).abs().mean() < 0.03
    same(a, b)


def test_png_and_jpg_are_read_too(folder):
    before = read_all(folder)["image"]

    def to_png(members):
        return {
            name.replace(".webp", ".png"): as_png(data) if name.endswith(".webp") else data
            for name, data in members.items()
        }

    rewrite(folder, to_png)
    assert torch.equal(read_all(folder)["image"], before)


# ------------------------------------------------------------------ the files


def test_a_shard_is_a_plain_tar_of_one_split(folder):
    about = json.loads((folder / "index.json").read_text())
    assert [(r["file"], r["faces"]) for r in about["shards"]][2:6] == [
        ("train-000002.tar", 4),
        ("train-000003.tar", 2),
        ("val-000000.tar", 4),
        ("val-000001.tar", 1),
    ]
    for row in about["shards"]:
        assert hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest() == row["sha256"]
        with tarfile.open(folder / row["file"]) as tar:
            names = tar.getnames()
            assert {n.partition(".")[2] for n in names} == {"webp", "json", "landmarks.npy", "parsing.png", "npz"}
            members = [json.load(tar.extractfile(n)) for n in names if n.endswith(".json")]
        assert (
            [m["name"] for m in members] == row["names"]
            and {m["split"] for m in members} == {row["split"]}
            and [m["identity"] for m in members] == row["identity"]
        )


def test_webdataset_reads_it(folder):
    wds = pytest.importorskip(
        "webdataset", reason="webdataset is not installed: pip install webdataset to read shards with it too"
    )
    packed = open_shards(folder).subset("train")
    samples = list(
        wds.WebDataset([str(p) for p in sorted(folder.glob("train-*.tar"))], shardshuffle=False).decode("rgb8")
    )
    assert [s["json"]["name"] for s in samples] == packed.names
    for i in (0, 13):
        face = packed.batch([i])
        assert np.array_equal(samples[i]["webp"].transpose(2, 0, 1) / np.float32(255), face["image"][0].numpy())
        assert np.array_equal(samples[i]["landmarks.npy"], face["landmarks"][0].numpy()) and np.array_equal(
            samples[i]["npz"]["depth"], face["depth"][0].numpy()
        )


def test_equal_faces_give_equal_bytes(faces, folder, tmp_path):
    assert (
        write_shards(faces, tmp_path / "b", per_shard=4, progress=False).shards.rows == open_shards(folder).shards.rows
    )


def test_a_run_that_stopped_goes_on(faces, folder, tmp_path, monkeypatch):
    half, real, made = tmp_path / "half", S.encode_members, []

    def stops(columns, names, quality, i):
        made.append(names[i])
        if len(made) == 11:
            raise OSError("no space left")
        return real(columns, names, quality, i)

    monkeypatch.setattr(S, "encode_members", stops)
    monkeypatch.setattr(S, "reader_threads", lambda: SimpleNamespace(map=map))  # one after another
    with pytest.raises(OSError):
        write_shards(faces, half, per_shard=4, progress=False)
    assert sorted(p.name for p in half.iterdir()) == ["packing.json", "train-000000.tar", "train-000001.tar"]
    assert "run the same command again" in refusal(lambda: open_shards(half))
    (half / ".train-000002-0123.tar").write_bytes(b"what a kill leaves")
    (half / "train-000001.tar").write_bytes(
        (half / "train-000001.tar").read_bytes()[:3000]
    )  # what a crash of the machine leaves
    made.clear()
    monkeypatch.setattr(S, "encode_members", lambda *a: made.append(0) or real(*a))
    packed = write_shards(faces, half, per_shard=4, progress=False)
    assert len(made) == 22 - 4 and packed.shards.rows == open_shards(folder).shards.rows
    assert sorted(p.name for p in half.iterdir()) == sorted(p.name for p in folder.iterdir())
    made.clear()
    write_shards(faces, half, per_shard=4, progress=False)
    assert not made


def test_other_faces_are_not_mixed_in(faces, folder):
    assert "different: quality)" in refusal(
        lambda: write_shards(faces, folder, per_shard=4, quality=80, progress=False)
    )
    assert "different: per_shard, shards)" in refusal(lambda: write_shards(faces, folder, per_shard=5, progress=False))
    assert "different: shards)" in refusal(
        lambda: write_shards(faces.take(range(10)), folder, per_shard=4, progress=False)
    )
    (folder / "index.json").write_text("{")
    assert "remove" in refusal(lambda: write_shards(faces, folder, per_shard=4, progress=False))


def test_what_cannot_be_packed(faces, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("s3://bucket/faces", tmp_path / "file"):
        assert "pack into a local folder" in refusal(lambda: write_shards(faces, folder))
    assert "quality from 0 to 100" in refusal(lambda: write_shards(faces, tmp_path, quality=101))
    assert "at least 1 face" in refusal(lambda: write_shards(faces, tmp_path, per_shard=0))
    assert "holds no faces" in refusal(lambda: write_shards(faces.take([]), tmp_path))


# ------------------------------------------------------------------ order


def test_every_epoch_has_every_face_once_in_an_order_of_its_own(packed_many):
    packed = open_shards(packed_many, window=4)
    epochs = [torch.cat([packed.order(16, step, seed=1) for step in range(40 * e, 40 * e + 40)]) for e in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort()[0], torch.arange(640))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(open_shards(packed_many, window=4).order(16, 97, seed=1), epochs[2][17 * 16 : 18 * 16])
    assert not torch.equal(packed.order(16, 0, seed=2), epochs[0][:16])


@pytest.mark.parametrize("window", [1, 4, 19, 20, 50])
def test_no_more_shards_are_open_than_the_window(packed_many, window):
    packed = open_shards(packed_many, window=window)
    shard = torch.cat([packed.order(16, step, seed=3) for step in range(40)]) // 32
    spans = [(shard == s).nonzero() for s in range(20)]
    at = torch.arange(640)
    opened = sum((at >= span.min()) & (at <= span.max()) for span in spans)
    assert opened.max() <= window
    assert opened.float().mean() > 0.8 * min(window, 20)  # and they are mixed


def test_an_incomplete_batch_is_left_out_and_parts_have_orders(faces, folder):
    train = open_shards(folder, window=2).subset("train")
    epoch = torch.cat([train.order(4, step, seed=0) for step in range(3)])
    assert len(epoch.unique()) == 12 and epoch.max() < 14
    assert train.order(4, 3, seed=0).shape == (4,)  # the next epoch
    some = train.take([13, 1, 7, 4])
    assert sorted(some.order(4, 0, seed=0).tolist()) == [0, 1, 2, 3]
    assert (
        len(torch.cat([open_shards(folder).order(11, step, seed=0) for step in range(2)]).unique()) == 22
    )  # val and test too


# ------------------------------------------------------------------ memory


def counted(path, window):
    packed = open_shards(path, window)
    packed.shards.loads, load = [], packed.shards.load
    packed.shards.load = lambda s: packed.shards.loads.append(s) or load(s)
    return packed


def test_an_epoch_loads_each_shard_once_and_holds_few(many, packed_many):
    packed = counted(packed_many, 3)
    order, held = [packed.order(8, step, seed=0) for step in range(160)], []
    for indices, batch in zip(order, packed.stream(order), strict=True):
        assert torch.equal(who(batch), indices)
        held.append(len(packed.shards.held))
    assert max(held) == 5
    assert (
        40 - 3 <= len(packed.shards.loads) <= 40
    )  # two epochs; what is still there when the second begins is not loaded again


def test_random_batches_never_hold_more(packed_many):
    packed = counted(packed_many, 2)
    order = torch.randperm(640, generator=torch.Generator().manual_seed(0)).split(40)[:4]
    for indices, batch in zip(order, packed.stream(order), strict=True):
        assert torch.equal(who(batch), indices) and len(packed.shards.held) <= 4


def test_shards_are_there_before_they_are_due(packed_many):
    packed = counted(packed_many, 2)
    next(packed.stream(packed.order(8, step, seed=0) for step in range(80)))
    first = {int(i) // 32 for step in range(3) for i in packed.order(8, step, seed=0)}
    assert len(first) <= 3
    for future in list(packed.shards.held.values()):
        future.result()
    assert len(set(packed.shards.loads)) == 4 > len(first)


def test_streams_take_any_iterable_and_end(packed_many):
    packed = open_shards(packed_many)
    assert [who(b).tolist() for b in packed.stream(iter([range(2), [639, 0]]))] == [[0, 1], [639, 0]]
    endless = packed.stream(packed.order(8, step, seed=0) for step in iter(int, 1))
    assert len(next(endless)["image"]) == 8
    endless.close()


def test_a_read_that_failed_is_tried_again(folder):
    packed = open_shards(folder)
    kept = (folder / "test-000000.tar").read_bytes()
    (folder / "test-000000.tar").unlink()
    assert "has no test-000000.tar" in refusal(lambda: packed.subset("test").batch([0]))
    (folder / "test-000000.tar").write_bytes(kept)
    assert len(packed.subset("test").batch([0])["image"]) == 1


# ------------------------------------------------------------------ addresses


def test_a_remote_address(folder):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (it comes with dvc)")
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/bucket/faces/{path.name}", path.read_bytes())
    remote = open_shards("memory://bucket/faces/")
    same(remote.batch(range(22)), read_all(folder))
    assert check_shards("memory://bucket/faces", progress=False).startswith(
        "memory://bucket/faces: 22 faces of 32x32 in 7 shards"
    )
    memory.rm("/bucket/faces/val-000000.tar")
    assert "memory://bucket/faces has no val-000000.tar" in refusal(lambda: check_shards("memory://bucket/faces"))
    assert "index.json" in refusal(lambda: open_shards("memory://bucket/nothing"))
    assert "no address that fsspec can open" in refusal(lambda: open_shards("nonsense://bucket/faces"))


def test_a_folder_needs_no_fsspec(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert len(open_shards(folder).batch([0])["image"]) == 1
    assert "no address that fsspec can open" in refusal(lambda: open_shards("memory://bucket/faces"))


# ------------------------------------------------------------------ damaged


def as_png(data):
    Image.open(io.BytesIO(data)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def rewrite(folder, change, name="train-000000.tar", index=True):
    "Write a shard anew with changed members (name -> bytes); the index follows, unless `index` is false."
    with tarfile.open(folder / name) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    with tarfile.open(folder / name, "w") as tar:
        for member, data in change(members).items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if index:
        adopt(folder, name)


def adopt(folder, name="train-000000.tar"):
    "Put a shard's present size and hash into the index."
    data = (folder / name).read_bytes()
    change_row(folder, name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def change_row(folder, name="train-000000.tar", **fields):
    about = json.loads((folder / "index.json").read_text())
    next(row for row in about["shards"] if row["file"] == name).update(fields)
    (folder / "index.json").write_text(json.dumps(about))


def test_missing_truncated_and_foreign_shards(folder):
    shard = folder / "train-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1000])
    assert f"has {len(whole) - 1000:,} bytes instead of {len(whole):,}" in refusal(lambda: read_all(folder))
    shard.write_bytes(whole[:1000] + b"x" + whole[1001:])
    assert "its SHA-256 differs" in refusal(lambda: read_all(folder)) and "its SHA-256 differs" in refusal(
        lambda: check_shards(folder)
    )
    shard.unlink()
    assert "has no train-000000.tar: copy this shard there" in refusal(lambda: read_all(folder))
    shard.mkdir()
    assert "cannot be read" in refusal(lambda: read_all(folder))


def test_a_truncated_shard_that_the_index_believes(folder):
    shard = folder / "train-000000.tar"
    whole = shard.read_bytes()
    for data in (b"", b"no tar at all", whole[:3000], whole[: whole.rindex(b"PK")], bytes(5) + whole):
        shard.write_bytes(data)
        adopt(folder)
        assert "not a whole tar file" in refusal(lambda: read_all(folder))


@pytest.mark.parametrize(
    "name",
    ["../evil.webp", "/etc/evil.webp", "a/../../evil.webp", "folder/evil.webp", ".webp", "evil", "..\\evil.webp"],
)
def test_unsafe_names_are_refused(folder, name):
    rewrite(folder, lambda members: {**members, name: b"x"})
    assert f"a member {name!r}, which is not a plain file name" in refusal(lambda: read_all(folder))


def test_links_are_refused(folder):
    with tarfile.open(folder / "train-000000.tar", "a") as tar:
        link = tarfile.TarInfo("99.webp")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    adopt(folder)
    assert "'99.webp', which is not a plain file name" in refusal(lambda: read_all(folder))


@pytest.mark.parametrize(
    "ending,words",
    [
        ("webp", "picture"),
        ("json", "json"),
        ("landmarks.npy", "landmarks.npy"),
        ("parsing.png", "parsing.png"),
        ("npz", "npz"),
    ],
)
def test_a_missing_member_is_named(folder, ending, words):
    lost = []

    def without(members):
        lost.append(min(members)[:8])
        return {k: v for k, v in members.items() if k != f"{lost[0]}.{ending}"}

    rewrite(folder, without)
    assert f"has no member {lost[0]}.{words}: pack the faces again" in refusal(lambda: read_all(folder))


def test_members_that_cannot_be_decoded(folder):
    def spoilt(ending, data):
        return lambda members: {k: data if k.partition(".")[2] == ending else v for k, v in members.items()}

    Image.new("RGB", (16, 16)).save(small := io.BytesIO(), "WEBP")
    np.save(points := io.BytesIO(), np.zeros((5, 2), np.float32))
    np.savez(lacking := io.BytesIO(), depth=np.zeros((32, 32), np.float32))
    np.save(pickled := io.BytesIO(), np.array([{}], dtype=object), allow_pickle=True)
    before = (folder / "train-000000.tar").read_bytes()
    for ending, data, words in (
        ("webp", b"RIFF", "picture"),
        ("webp", small.getvalue(), "picture that cannot be read (16x16 instead of 32x32)"),
        ("landmarks.npy", points.getvalue(), "(5, 2) instead of (81, 2)"),
        ("landmarks.npy", pickled.getvalue(), "landmarks.npy that cannot be read"),
        ("npz", lacking.getvalue(), "npz that cannot be read"),
        ("parsing.png", b"", "parsing.png that cannot be read"),
    ):
        rewrite(folder, spoilt(ending, data))
        assert words in refusal(lambda: read_all(folder)) and "train-000000.tar" in refusal(lambda: read_all(folder))
        (folder / "train-000000.tar").write_bytes(before)


def test_counts_and_names_must_be_those_of_the_index(folder):
    before = (folder / "train-000000.tar").read_bytes()
    rewrite(folder, lambda members: {k: v for k, v in members.items() if k[:8] != max(members)[:8]})
    assert "holds 3 faces, but the index says 4" in refusal(lambda: read_all(folder))
    (folder / "train-000000.tar").write_bytes(before)
    rewrite(folder, lambda members: {k: v.replace(b"train-", b"other-") for k, v in members.items()})
    assert "names other faces than the index" in refusal(lambda: check_shards(folder))
    rewrite(folder, lambda members: {k: b"{" if k.endswith("json") else v for k, v in members.items()})
    assert "names other faces than the index" in refusal(lambda: check_shards(folder))


def test_no_index(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "there are no shards" in refusal(lambda: open_shards(tmp_path / "empty"))
    assert "no such folder" in refusal(lambda: open_shards(tmp_path / "nowhere"))
    (folder / "index.json").unlink()
    assert "packing did not end" in refusal(lambda: open_shards(folder))
    assert "at least 1" in refusal(lambda: open_shards(folder, window=0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "facelab shards 1"}',
        '{"format": "facelab shards 1", "shards": 3, "labels": {}}',
    ],
)
def test_a_damaged_index(folder, text):
    (folder / "index.json").write_text(text)
    assert "index.json is damaged" in refusal(lambda: open_shards(folder))


@pytest.mark.parametrize(
    "field,value",
    [
        ("file", "../train-000000.tar"),
        ("file", None),
        ("names", ["a"]),
        ("faces", "4"),
        ("identity", [1]),
        ("split", "dev"),
        ("sha256", None),
        ("bytes", "many"),
    ],
)
def test_a_row_of_the_index_that_cannot_be(folder, field, value):
    change_row(folder, **{field: value})
    assert "index.json is damaged" in refusal(lambda: open_shards(folder))


def test_an_index_of_another_version(folder):
    (folder / "index.json").write_text(
        (folder / "index.json").read_text().replace("facelab shards 1", "facelab shards 2")
    )
    assert "another version ('facelab shards 2' instead of 'facelab shards 1')" in refusal(lambda: open_shards(folder))


# ------------------------------------------------------------------ the command


def test_pack_and_check_from_the_command_line(faces, tmp_path, capsys):
    for i, image in enumerate(faces.images[:5]):
        write_image(tmp_path / "faces" / f"{i}.png", image)
    arguments = [
        "pack",
        str(tmp_path / "faces"),
        str(tmp_path / "out"),
        "--size",
        "32",
        "--per-shard",
        "2",
        "--quality",
        "80",
    ]
    assert main(arguments) == 0 and "5 faces of 32x32 in" in capsys.readouterr().out
    assert main(arguments[:-2]) == 1 and "packed in another way" in capsys.readouterr().err
    next((tmp_path / "out").glob("*.tar")).unlink()
    assert main(["check", str(tmp_path / "out")]) == 1 and "copy this shard there" in capsys.readouterr().err
    assert main(arguments) == 0 and main(["check", str(tmp_path / "out")]) == 0
    assert (
        main(["pack", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 1
        and "does not exist" in capsys.readouterr().err
    )
