"""Every archive is read to its own checksums' satisfaction or refused in one line; nothing in it is believed before."""

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import tarfile
from itertools import islice

import pytest

from fastarat.common.errors import UserError
from fastarat.data.formats import archives as entries
from fastarat.data.formats import cifar, compression, image_folder, shards, webdataset
from fastarat.data.formats.shard_index import indexed_once
from fastarat.data.images.whole_sets import scan
from fastarat.data.open import open_dataset
from fastarat.data.tools.check import check
from tests.helpers.mutants import FEW, MANY, memory_of, outcomes
from tests.helpers.shard_files import example, samples, tar_shard, tfrecord
from tests.helpers.small_sets import cifar_archive, cifar_files, jpeg, one_line, pack

COUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]
PACKED = {".tar.gz": gzip.compress, ".tar.xz": lzma.compress, ".tar.bz2": bz2.compress}


def names(path) -> list[tuple[str, str, bytes]]:
    return [(e.name, e.kind, e.read() if e.kind == "file" else b"") for e in entries.entries(path)]


def refusal(path) -> str:
    with pytest.raises(UserError) as error:
        names(path)
    assert str(path) in one_line(error)
    return one_line(error)


def header(name: str, size: int | bytes, kind: bytes = b"0") -> bytes:
    """A header as GNU tar writes it. `size`: a number, or the bytes of its field."""
    member = tarfile.TarInfo(name)
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT)[-512:])
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(kind: bytes, content: bytes) -> bytes:
    return header("././@X", len(content), kind) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def without_filler(content: bytes) -> bytes:
    """A tar that ends with little more than it must: among many zeros those of a header more are not to be told."""
    blocks = -(-len(content.rstrip(b"\0")) // 512) + 2
    return content.rstrip(b"\0").ljust((blocks + 1 - blocks % 2) * 512, b"\0")


@pytest.fixture
def good(tmp_path) -> bytes:
    """A tar of two files, without the records that fill it up."""
    path = tar_shard(tmp_path / "good.tar", [("train/a/0.jpg", b"first"), ("train/a/1.jpg", b"second")])
    return path.read_bytes()[: 4 * 512 + 1024]


def test_a_bit_of_a_header_is_damage_and_no_end(good, tmp_path):
    path = tmp_path / "bad.tar"
    for at in (1024 + 5, 1024 + 130, 1024 + 150, 1024 + 300):
        bad = bytearray(good)
        bad[at] ^= 1
        path.write_bytes(bad)
        assert "damaged or cut short (a header" in refusal(path)


def test_a_hole_is_damage_and_no_end(good, tmp_path):
    path = tmp_path / "bad.tar"
    path.write_bytes(good[:1024] + bytes(512) + good[1536:])
    assert "something but zeros follows its end" in refusal(path)
    path.write_bytes(good + good)
    assert "something but zeros follows its end" in refusal(path)
    path.write_bytes(good[:1024] + bytes(1 << 20))
    assert "its last 1,048,576 bytes are zeros" in refusal(path)


@pytest.mark.parametrize("record", [512, 10_240, 1 << 20])
def test_an_archive_may_be_filled_up_to_whole_records(good, tmp_path, record):
    (tmp_path / "a.tar").write_bytes(good.ljust(-(-len(good) // record) * record, b"\0"))
    assert len(names(tmp_path / "a.tar")) == 2


SIZES = {
    "negative": b"\xff" * 11 + b"\0",
    "beyond any disk": b"\x80" + b"\0" * 3 + b"\x7f" * 8,
    "no number": b"-0000000001\0",
    "a little too much": b"%011o\0" % 5000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", [".tar", *PACKED])
@pytest.mark.parametrize("size", SIZES)
def test_a_size_is_not_believed_beyond_the_files_own(good, tmp_path, size, suffix):
    content = header("train/a/2.jpg", SIZES[size]) + good
    (tmp_path / f"bad{suffix}").write_bytes(PACKED.get(suffix, bytes)(content))
    with memory_of(1 << 29):
        assert "is damaged or cut short" in refusal(tmp_path / f"bad{suffix}") or "more than any image" in refusal(
            tmp_path / f"bad{suffix}"
        )


STRANGE = {
    "an extended header's size is no number": extension(b"x", b"10 size=x\n"),
    "an extended header that is no list": extension(b"x", b"9 size=12\n"),
    "an extended header of": header("x", 2**30, b"x"),
    "a name with a zero byte": extension(b"x", b"12 path=a\0b\n"),
    "one name for all of its files": extension(b"g", b"11 path=ab\n"),
    "its end is missing": extension(b"L", b"a\0") * 3,
    "is stored with its holes left out": extension(b"x", b"22 GNU.sparse.major=1\n"),
    "a header's size is no number": header("train/a/2.jpg", b"\xf0" * 12),
    "is of a kind ('M')": header("train/a/2.jpg", 0, b"M"),
    "a file without a name": header("./", 0),
}


@pytest.mark.parametrize("reason", STRANGE)
def test_what_an_extended_or_strange_header_says_is_checked(good, tmp_path, reason):
    path = tmp_path / "bad.tar"
    path.write_bytes(STRANGE[reason] + (good if reason != "its end is missing" else b""))
    assert reason in refusal(path)


def test_extended_headers_may_follow_each_other_without_depth(good, tmp_path):
    (tmp_path / "deep.tar").write_bytes(extension(b"L", b"train/a/2.jpg\0") * 2000 + good)
    assert [name for name, *_ in names(tmp_path / "deep.tar")] == ["train/a/2.jpg", "train/a/1.jpg"]
    (tmp_path / "noted.tar").write_bytes(extension(b"g", b"13 comment=a\n") + good)
    assert len(names(tmp_path / "noted.tar")) == 2
    for last in (extension(b"L", b"a\0"), extension(b"x", b"11 mtime=1\n")):
        (tmp_path / "last.tar").write_bytes(good[:-1024] + last + bytes(1024))
        assert "its last header has no file" in refusal(tmp_path / "last.tar")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_gives_the_same_names_and_bytes(tmp_path, form):
    long = "train/" + "ä" * 40 + "/" + "b" * 90 + ".jpg"
    files = {"./train/a//0.jpg": b"first", long: b"second" * 200, "train/\udcff.jpg": b"", "/train/a/1.jpg": b"third"}
    with tarfile.open(tmp_path / "a.tar", "w", format=form, errors="surrogateescape") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    expected = [
        ("train/a/0.jpg", b"first"),
        (long, b"second" * 200),
        ("train/\udcff.jpg", b""),
        ("train/a/1.jpg", b"third"),
    ]
    content = (tmp_path / "a.tar").read_bytes()
    for suffix, packed in {".tar": bytes, **PACKED}.items():
        (tmp_path / f"b{suffix}").write_bytes(packed(content))
        assert [(name, content) for name, _, content in names(tmp_path / f"b{suffix}")] == expected


@pytest.mark.parametrize("suffix", PACKED)
def test_a_compressed_archive_is_compared_with_its_checks_to_the_very_end(good, tmp_path, suffix, monkeypatch):
    path, packed = tmp_path / f"a{suffix}", PACKED[suffix]
    whole = packed(good)
    for fine in (whole + bytes(16), packed(good[:700]) + packed(good[700:]), good):
        path.write_bytes(fine)
        assert len(names(path)) == 2
    ends = [whole[:-n] for n in (1, 4, 8)] + [whole[:-6] + b"\1" + whole[-5:], whole[:-2] + b"\7" + whole[-1:]]
    for bad in (*ends, whole + b"more", whole + bytes(8) + b"more", whole[:3], whole + packed(b"x")[:-3], b""):
        path.write_bytes(bad)
        assert "is damaged or cut short" in refusal(path)
    monkeypatch.setattr(compression, "PIECE", 7)
    path.write_bytes(whole + whole[:0])
    assert len(names(path)) == 2


def test_what_unpacks_to_far_more_than_it_has_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "PIECE", 1 << 12)
    (tmp_path / "bomb.tar.xz").write_bytes(lzma.compress(header("train/a/0.jpg", 2**24) + bytes(2**24), preset=0))
    assert "it unpacks to more than" in refusal(tmp_path / "bomb.tar.xz")


def test_a_compressed_archive_that_is_named_as_a_plain_one_says_so(good, tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(good))
    assert "is compressed, which its name does not say: unpack it" in refusal(tmp_path / "a.tar")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "set/train/cat/0.jpg", "w/train-0.tar", "w/val.tfrecord"])
@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_what_is_no_file_is_never_read(photos, tmp_path, name, kind):
    photos.rename(tmp_path / "set")
    tar_shard(tmp_path / "w/train-0.tar", samples([(jpeg(0), 0)]))
    tfrecord(tmp_path / "w/val.tfrecord", [example(image=jpeg(1), label=0)])
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    for use in (check, open_dataset):
        try:
            (problem,) = use(str(tmp_path / name.split("/")[0]))
        except UserError as e:
            problem = str(e)
        assert "no file" in problem and "\n" not in problem


MAC = ("._0.jpg", ".DS_Store", "__MACOSX/train/cat/._0.jpg", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/0.jpg")


@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.gz"])
def test_known_clutter_is_passed_over_and_counted_once(photos, tmp_path, suffix, root, capsys):
    expected = open_dataset(str(photos)).fingerprint
    for name in (*MAC, "train/cat/.DS_Store", "train/dog/._2.jpg", "._train"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"Mac OS X")
    mode = "w:gz" if suffix == ".tar.gz" else "w"
    source = pack(photos, tmp_path / f"mac{suffix}", mode, "photos/") if suffix else photos
    shutil.rmtree(root)
    capsys.readouterr()
    assert open_dataset(str(source)).fingerprint == expected
    assert capsys.readouterr().err.count("passed over") == 1
    assert check(str(source)) == []


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_hard_link_in_an_archive_is_the_image_that_it_stands_for(photos, tmp_path, suffix):
    for name, of in (("train/cat/9.jpg", "train/dog/1.jpg"), ("train/cat/a.jpg", "train/cat/9.jpg")):
        os.link(photos / of, photos / name)
    archive = pack(photos, tmp_path / f"linked{suffix}", "w:gz" if suffix == ".tar.gz" else "w", "top/")
    assert open_dataset(str(archive)).fingerprint == open_dataset(str(photos)).fingerprint
    if suffix == ".tar":
        parts = (image_folder.stored(source).splits.values() for source in (archive, photos))
        for mine, theirs in zip(*parts, strict=True):
            assert [mine.read(i) for i in range(len(mine))] == [theirs.read(i) for i in range(len(theirs))]


def test_a_hard_link_to_nothing_is_a_stray(photos, tmp_path):
    archive = pack(photos, tmp_path / "linked.tar", "w")
    with tarfile.open(archive, "a") as file:
        member = tarfile.TarInfo("train/cat/9.jpg")
        member.type, member.linkname = tarfile.LNKTYPE, "/etc/passwd"
        file.addfile(member)
    assert "stray hard link train/cat/9.jpg" in check(str(archive))[0]


def test_a_part_that_leads_out_is_no_class(photos, tmp_path):
    archive = pack(photos, tmp_path / "packed.tar", "w")
    with tarfile.open(archive, "a") as file:
        file.addfile(tarfile.TarInfo("train/../0.jpg"), io.BytesIO())
    assert "stray file train/../0.jpg" in check(str(archive))[0]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("suffix", [*PACKED])
@pytest.mark.parametrize("count", COUNTS)
def test_a_mutant_of_a_compressed_archive_of_images_is_the_same_or_refused(photos, tmp_path, suffix, count):
    content = pack(photos, tmp_path / "packed.tar", "w").read_bytes()
    path = tmp_path / f"packed{suffix}"
    found = outcomes(path, PACKED[suffix](content), count, lambda: names(path))
    assert found["refused"] > count / 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", COUNTS)
def test_a_mutant_of_a_tar_of_images_has_all_their_names_or_is_refused(photos, tmp_path, count):
    path = tmp_path / "packed.tar"
    content = without_filler(pack(photos, path, "w").read_bytes())

    def opened():
        layout = image_folder.survey(path)
        return list(layout.places.items()), layout.problems

    found = outcomes(path, content, count, opened)
    assert found["refused"] > count / 4


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_mutant_of_a_cifar_archive_is_the_same_or_refused(tmp_path, name, count):
    path = cifar_archive(tmp_path / "c.tar.gz", name, cifar_files(name, 2))

    def opened():
        return cifar.recognise(path) and cifar.read(path).fingerprint

    found = outcomes(path, path.read_bytes(), count, opened)
    assert found["refused"] > count / 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("kind", ["tar", "tfrecord"])
def test_a_mutant_of_a_shard_has_all_samples_or_is_refused(tmp_path, kind, count):
    images = [(jpeg(i), i % 2) for i in range(6)]
    tar_shard(tmp_path / "w/val.tar", samples(images))
    if kind == "tar":
        path = tar_shard(tmp_path / "w/train.tar", samples(images))
        content = without_filler(path.read_bytes())
    else:
        path = tfrecord(tmp_path / "w/train.tfrecord", [example(image=image, label=label) for image, label in images])
        content = path.read_bytes()

    def opened():
        data = shards.index(tmp_path / "w")
        return data.train.names, data.train.labels.tolist(), data.train.offsets.tolist(), data.classes

    # A class is a file's content, of which a tar has no checksum.
    found = outcomes(path, content, count, opened, may_differ=kind == "tar")
    assert found["refused"] > count / 4 and found["different"] < count / 50


@pytest.mark.parametrize("count", COUNTS)
def test_a_mutant_of_what_is_kept_of_shards_is_never_believed(tmp_path, root, count):
    tar_shard(tmp_path / "w/train.tar", samples([(jpeg(i), i % 2) for i in range(6)]))
    tar_shard(tmp_path / "w/val.tar", samples([(jpeg(i), i % 2) for i in range(3)]))
    train = shards.index(tmp_path / "w").train

    def fingerprint():
        return indexed_once(tmp_path / "w").fingerprint

    def sizes():
        return scan(train, "w").sizes.tolist()

    for opened in (fingerprint, sizes):
        opened()
        (kept,) = (root / "scanned").iterdir()
        assert outcomes(kept, kept.read_bytes(), count // 3, opened)["equal"] == count // 3
        kept.unlink()


def read_shard(path) -> list[str]:
    problems: list[str] = []
    list(webdataset.samples(path, path.name, problems))
    return problems


def forged(seed: int) -> bytes:
    """A tar of images among headers that say anything, with right checksums."""
    draw = random.Random(seed)
    content = b""
    for name in ("train/a/0.jpg", "train/b/0.jpg", "val/a/0.jpg", "val/b/0.jpg"):
        if draw.random() < 0.5:
            body = draw.choice((b"", draw.randbytes(600), b"12 path=a/b\n", b"12 size=999\n", b"a" * 300 + b"\0"))
            size = draw.choice((len(body), 2 ** draw.randrange(33), draw.randbytes(12)))
            kind = draw.choice((b"0", b"1", b"2", b"3", b"5", b"7", b"A", b"D", b"L", b"K", b"S", b"V", b"g", b"x"))
            content += header(draw.choice((name, "x" * 90, "../../x\n", "/a//./c")), size, kind)
            content += body.ljust(-(-len(body) // 512) * 512, b"\0")
        image = jpeg(seed % 3)
        content += header(name, len(image)) + image.ljust(-(-len(image) // 512) * 512, b"\0")
    return content + bytes(1024)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", COUNTS)
def test_forged_headers_with_right_checksums_end_in_one_line(tmp_path, count):
    uses = {".tar": image_folder.problems, ".tar.gz": image_folder.problems, ".shard.tar": read_shard}
    for seed in range(count // 6):
        for suffix, use in uses.items():
            path = tmp_path / f"forged{suffix}"
            path.write_bytes(gzip.compress(forged(seed), 1) if suffix.endswith("gz") else forged(seed))
            try:
                with memory_of(1 << 30):
                    use(path)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 1000


def test_an_archive_that_changes_between_its_two_readings_is_named(photos, tmp_path, monkeypatch):
    archive = pack(photos, tmp_path / "packed.tar", "w")
    count = len(names(archive))
    monkeypatch.setattr(image_folder, "entries", lambda path: islice(entries.entries(path), count - 1))
    for use in (image_folder.stored, lambda path: open_dataset(str(path))):
        with pytest.raises(UserError, match="has changed while it was read"):
            use(archive)


def test_an_index_is_made_again_if_a_shard_changes_in_a_folder_that_is_a_link(tmp_path, root):
    for split in ("train", "val"):
        tar_shard(tmp_path / "elsewhere" / split / "0.tar", samples([(jpeg(i), i % 2) for i in range(4)]))
    (tmp_path / "w").mkdir()
    for split in ("train", "val"):
        (tmp_path / "w" / split).symlink_to(tmp_path / "elsewhere" / split)

    def count():
        return len(indexed_once(tmp_path / "w").train)

    assert count() == 4
    tar_shard(tmp_path / "elsewhere/train/0.tar", samples([(jpeg(i), i % 2) for i in range(6)]))
    assert count() == 6
