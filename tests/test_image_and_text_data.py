"""CIFAR-10 and WikiText-2 from small stand-ins of the real files, by every way in."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import eoslib.cifar10
import eoslib.data
import eoslib.wikitext2
from eoslib import load_dataset
from eoslib.data import cifar10, wikitext2
from eoslib.downloads import MissingDataError, RemoteFile
from tests.file_server import serving

BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return pixels, random.integers(0, 10, count, dtype=np.uint8)


def binary_batch(seed: int) -> bytes:
    """Six images in the format of the binary version: label, red, green, blue, row by row."""
    records = b""
    for pixels, label in zip(*images(6, seed), strict=True):
        records += bytes([label])
        for channel in range(3):
            for row in range(32):
                records += bytes(pixels[channel, row].tolist())
    return records


@pytest.fixture
def official(monkeypatch, tmp_path_factory):
    """An archive like the official one, of 30 training and 6 test images, and its address."""
    contents = {name: binary_batch(seed) for seed, name in enumerate(BATCHES)}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in {**contents, "readme.html": b"<p>"}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    packed = buffer.getvalue()
    with serving(packed) as server:
        remote = RemoteFile(
            "cifar-10-binary.tar.gz",
            hashlib.sha256(packed).hexdigest(),
            len(packed),
            (server.url("404"), server.url("good")),
        )
        monkeypatch.setattr(eoslib.cifar10, "ARCHIVE", remote)
        monkeypatch.setattr(eoslib.cifar10, "_TRAIN", {n: digests[n] for n in BATCHES[:5]})
        monkeypatch.setattr(eoslib.cifar10, "_TEST", {n: digests[n] for n in BATCHES[5:]})
        folder = tmp_path_factory.mktemp("data")
        monkeypatch.setenv("EOSLIB_DATA", str(folder))
        server.contents, server.folder = contents, folder
        yield server


def train_set() -> tuple[np.ndarray, np.ndarray]:
    parts = [images(6, seed) for seed in range(5)]
    return np.concatenate([p for p, _ in parts]), np.concatenate([y for _, y in parts])


def standardised(pixels: np.ndarray, by: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """As in the paper's code or text: pixels in [0, 1] first, then mean and deviation."""
    pixels, by = pixels / 255, by / 255
    return (pixels - by.mean(axis=axes, keepdims=True)) / by.std(axis=axes, keepdims=True)


# ---- CIFAR-10 --------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "axes"), [("per_pixel", (0,)), ("per_channel", (0, 2, 3))])
def test_downloaded_cifar10_is_the_stored_bytes_standardised(official, how, axes):
    data = cifar10(20, standardisation=how)
    pixels, labels = train_set()
    expected = standardised(pixels[:20], pixels, axes)  # by all images, not by the subset
    assert np.allclose(data.inputs, expected, atol=1e-6)
    assert data.inputs.dtype == data.targets.dtype == torch.float32
    assert data.inputs.shape == (20, 3, 32, 32)
    assert data.labels.tolist() == labels[:20].tolist()
    assert torch.equal(data.targets, torch.nn.functional.one_hot(data.labels, 10).float())
    assert (data.name, data.num_inputs, data.num_outputs) == (f"cifar10-20-{how}", 3072, 10)
    assert official.paths() == ["404", "good"]

    again = load_dataset(data.name)
    assert torch.equal(again.inputs, data.inputs)
    assert again.source == data.source
    assert official.paths() == ["404", "good"]  # it was fetched once


def test_the_two_standardisations_are_two_tasks(official):
    pixel, channel = (cifar10(9, standardisation=s) for s in ("per_pixel", "per_channel"))
    assert not torch.allclose(pixel.inputs, channel.inputs, atol=0.1)
    for call in (lambda: load_dataset("cifar10-5k"), lambda: cifar10(5, standardisation="both")):
        with pytest.raises(ValueError, match=r'standardisation="per_pixel".*or "per_channel"'):
            call()
    with pytest.raises(ValueError, match="says the standardisation already"):
        load_dataset("cifar10-5-per_pixel", standardisation="per_channel")


def test_test_images_are_standardised_by_the_training_images(official):
    data = load_dataset("cifar10-test-per_channel")
    pixels, labels = images(6, 5)
    expected = standardised(pixels, train_set()[0], (0, 2, 3))
    assert np.allclose(data.inputs, expected, atol=1e-6)
    assert data.labels.tolist() == labels.tolist()
    assert data.name == "cifar10-test-per_channel"


def test_folders_and_files_stand_in_for_the_network(official, tmp_path):
    unpacked = tmp_path / "cifar-10-batches-bin"
    unpacked.mkdir()
    for name, content in official.contents.items():
        (unpacked / name).write_bytes(content)
    archive = tmp_path / "elsewhere" / "a.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(official.content)
    pixels, labels = train_set()
    arrays = tmp_path / "arrays" / "cifar10-mine.npz"
    arrays.parent.mkdir()
    np.savez(arrays, x_train=pixels, y_train=labels)
    expected = standardised(pixels, pixels, (0,))
    for path in (unpacked, tmp_path, archive, arrays, arrays.parent, str(arrays)):
        data = cifar10(30, standardisation="per_pixel", path=path)
        assert np.allclose(data.inputs, expected, atol=1e-6)
    assert not official.requests


def test_the_source_tells_what_the_numbers_are(official, tmp_path):
    fetched = cifar10(7, standardisation="per_channel").source
    assert "from cifar-10-binary.tar.gz: the first 7 training images, SHA-256" in fetched
    assert "for each channel, over the file's 30 training images, not over the 50,000" in fetched
    pixels, labels = train_set()
    digest = hashlib.sha256(pixels[:7].tobytes() + labels[:7].tobytes()).hexdigest()
    assert digest[:12] in fetched

    file = tmp_path / "cifar10.npz"
    index = np.r_[0:4, 10_000:10_026]
    for stored, told in [
        ({}, "training images of the file, which does not say which"),
        ({"train_index": index}, "which are not the official first 7"),
    ]:
        np.savez(file, x_train=pixels, y_train=labels, **stored)
        source = cifar10(7, standardisation="per_pixel", path=file).source
        assert told in source
        assert digest[:12] in source  # the same images, the same hash
    # of these images, the first four are the official ones
    assert (
        "the first 4 training images, SHA"
        in cifar10(4, standardisation="per_pixel", path=file).source
    )


def test_a_missing_data_set_says_which_file_belongs_where(official, tmp_path, monkeypatch):
    archive = eoslib.cifar10.ARCHIVE
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            MissingDataError, match=r"put it at .*cifar-10-binary\.tar\.gz"
        ) as caught:
            cifar10(5, standardisation="per_pixel", path=path)
        assert archive.sha256 in str(caught.value)
    monkeypatch.setattr(
        eoslib.cifar10,
        "ARCHIVE",
        RemoteFile(archive.name, archive.sha256, archive.size, (official.url("404"),)),
    )
    with pytest.raises(MissingDataError, match="HTTP 404") as caught:
        load_dataset("cifar10-5-per_pixel")
    assert f"put it at {official.folder / archive.name}" in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_damaged_files_are_refused(official, tmp_path):
    def refused(path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            cifar10(5, standardisation="per_pixel", path=path)

    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(official.content[:-20])
    refused(tmp_path, "is damaged or another file")
    archive.unlink()

    unpacked = tmp_path / "cifar-10-batches-bin"
    unpacked.mkdir()
    for name, content in official.contents.items():
        (unpacked / name).write_bytes(content)
    (unpacked / "data_batch_3.bin").write_bytes(official.contents["data_batch_3.bin"][:-1] + b"!")
    refused(unpacked, r"data_batch_3\.bin .* is damaged")
    (unpacked / "test_batch.bin").unlink()
    (unpacked / "data_batch_3.bin").write_bytes(official.contents["data_batch_3.bin"])
    with pytest.raises(MissingDataError, match=r"holds no test_batch\.bin; unpack"):
        cifar10(5, standardisation="per_pixel", path=unpacked)

    pixels, labels = train_set()
    file = tmp_path / "cifar10-a.npz"
    for arrays, match in [
        ({"x_train": pixels}, "has to hold x_train.*and y_train.*it holds x_train"),
        ({"x_train": pixels / 255, "y_train": labels}, "has to be uint8 .* it is float64"),
        ({"x_train": pixels.transpose(0, 2, 3, 1), "y_train": labels}, r"\(30, 32, 32, 3\)"),
        ({"x_train": pixels, "y_train": labels[1:]}, "one label for each image"),
        ({"x_train": pixels, "y_train": labels + 1}, "integers from 0 to 9"),
        ({"x_train": pixels, "y_train": labels.astype(float)}, "integers from 0 to 9"),
        ({"x_train": pixels, "y_train": labels, "x_test": pixels}, "y_test of"),
        (
            {"x_train": pixels, "y_train": labels, "train_index": labels[1:]},
            "expected one per image",
        ),
        (
            {"x_train": np.array([{}], dtype=object), "y_train": labels},
            "not a readable .npz file: Object arrays cannot be loaded",
        ),
    ]:
        np.savez(file, **arrays)
        refused(file, match)
    file.write_bytes(b"PK nothing")
    refused(file, "not a readable .npz file")
    np.savez(tmp_path / "cifar10-b.npz", x_train=pixels, y_train=labels)
    (unpacked / "data_batch_1.bin").unlink()
    for rest in unpacked.iterdir():
        rest.unlink()
    unpacked.rmdir()
    refused(tmp_path, r"several: cifar10-a\.npz, cifar10-b\.npz; say which one with path=")


def test_more_images_than_there_are(official):
    with pytest.raises(ValueError, match=r"holds 30 train images, asked for 1,000; .*cifar10-1k"):
        load_dataset("cifar10-1k-per_pixel")
    with pytest.raises(ValueError, match="holds 30 train images, asked for 50,000"):
        load_dataset("cifar10", standardisation="per_pixel")  # all of them means all of them
    with pytest.raises(ValueError, match="holds 30 train images, asked for 0"):
        load_dataset("cifar10-0-per_pixel")
    with pytest.raises(ValueError, match="parts 'train' and 'test', asked for 'valid'"):
        cifar10(standardisation="per_pixel", part="valid")


def test_a_pixel_that_never_changes_cannot_be_standardised(tmp_path):
    pixels, labels = images(5, 0)
    pixels[:, 1, 2, 3] = 7
    np.savez(tmp_path / "cifar10.npz", x_train=pixels, y_train=labels)
    with pytest.raises(ValueError, match="1 pixels are the same in all 5 training images"):
        load_dataset("cifar10-5-per_pixel", path=tmp_path)
    assert torch.isfinite(load_dataset("cifar10-5-per_channel", path=tmp_path).inputs).all()


@pytest.mark.parametrize("axes", [(0,), (0, 2, 3)])
def test_statistics_of_as_many_images_as_the_real_set_has(axes):
    """At 50,000 images the sums of a channel no longer fit in 64 bits."""
    few, _ = images(2, 0)
    few[0, 0] = 255
    few[1] = few[0] ^ 1  # hardly any deviation, of which nothing may be lost
    many = np.broadcast_to(few[None], (25_000, *few.shape)).reshape(-1, 3, 32, 32)
    mean, deviation = eoslib.data._mean_and_deviation(many, axes)
    by = few.astype(float)
    assert np.allclose(mean, by.mean(axes, keepdims=True)[0], rtol=1e-14)
    assert np.allclose(deviation, by.std(axes, keepdims=True)[0], rtol=1e-12)


def test_options_that_a_data_set_does_not_take():
    with pytest.raises(ValueError, match="'digits-1k' takes no option 'path'; its options: red"):
        load_dataset("digits-1k", path=".")
    with pytest.raises(ValueError, match="takes no option 'standardisation'; its options: none"):
        load_dataset("chebyshev-3-20", standardisation="per_pixel")
    assert load_dataset("digits-1k", redrawn_labels=0.1).name == "digits-1k-redrawn0.1-seed0"


# ---- WikiText-2 ------------------------------------------------------------------------------

TRAIN = " \n = A title = \n \n the cat saw the <unk> dog . \n"
WORDS = ["<eos>", "=", "A", "title", "=", "<eos>", "<eos>"]
WORDS += ["the", "cat", "saw", "the", "<unk>", "dog", ".", "<eos>"]


def write_texts(folder: Path, pattern: str = "wiki.{}.tokens", **texts: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for part, text in texts.items():
        (folder / pattern.format(part)).write_text(text, encoding="utf-8")
    return folder


def test_words_and_vocabulary(tmp_path):
    folder = write_texts(tmp_path, train=TRAIN, valid=" the bird \u2028 . \n", test=" cat \n")
    stored = eoslib.wikitext2.read_wikitext2(folder)
    assert [stored.vocabulary[i] for i in stored.tokens["train"]] == WORDS
    assert len(set(stored.vocabulary)) == len(stored.vocabulary) == 11
    assert stored.vocabulary[:4] == ("<eos>", "=", "A", "title")
    # a separator that is no line feed ends no line
    assert [stored.vocabulary[i] for i in stored.tokens["valid"]] == ["the", "bird", ".", "<eos>"]


def test_sequences_are_pieces_of_columns_and_targets_are_the_next_words(tmp_path):
    words = [str(i) for i in range(103)]
    folder = write_texts(tmp_path, "{}.txt", train=" ".join(words[:-1]))  # and one <eos>
    data = wikitext2(path=folder, length=4, columns=5)
    assert data.inputs.shape == (20, 4)  # 103 words: 5 columns of 20, 4 pieces of 4 and a next word
    assert data.targets.shape == (20, 4)

    def told(rows):
        return [" ".join(data.vocabulary[i] for i in row) for row in rows]

    assert told(data.inputs[:6]) == [
        "0 1 2 3",
        "20 21 22 23",
        "40 41 42 43",
        "60 61 62 63",
        "80 81 82 83",
        "4 5 6 7",
    ]
    assert told(data.targets[:2]) == ["1 2 3 4", "21 22 23 24"]
    assert told(data.targets[-1:]) == ["93 94 95 96"]
    assert data.num_outputs == len(data.vocabulary) == 103
    first = load_dataset("wikitext-2-7", path=folder, length=4, columns=5)
    assert torch.equal(first.inputs, data.inputs[:7])
    assert torch.equal(first.targets, data.targets[:7])
    assert data.name == "wikitext-2-length4-columns5"
    assert first.name == "wikitext-2-7-length4-columns5"
    assert torch.equal(load_dataset(first.name, path=folder).inputs, first.inputs)
    with pytest.raises(
        ValueError, match=r"number of examples of wikitext-2 must .* 1\.\.20, got 21"
    ):
        wikitext2(21, path=folder, length=4, columns=5)
    with pytest.raises(ValueError, match="columns must be a positive whole number, got 0"):
        wikitext2(path=folder, length=4, columns=0)
    for length, columns in [(35, 100), (21, 5)]:
        with pytest.raises(ValueError, match="has 103 words: too few for"):
            wikitext2(path=folder, length=length, columns=columns)


def test_text_from_an_archive_and_what_is_missing(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    texts = {"train": TRAIN, "valid": "v w \n", "test": "t \n"}
    with zipfile.ZipFile(buffer, "w") as archive:
        for part, text in texts.items():
            archive.writestr(f"wikitext-2/wiki.{part}.tokens", text)
    folder = tmp_path / "cache"
    monkeypatch.setenv("EOSLIB_DATA", str(folder))
    with serving(buffer.getvalue()) as server:
        remote = RemoteFile(
            "wikitext-2-v1.zip",
            hashlib.sha256(buffer.getvalue()).hexdigest(),
            None,
            (server.url("good"),),
        )
        monkeypatch.setattr(eoslib.wikitext2, "ARCHIVE", remote)
        write_texts(folder / "wikitext-2", valid="x y z \n")  # not what is asked for
        data = load_dataset("wikitext-2", columns=1, length=7)
        assert [data.vocabulary[i] for i in data.inputs[0]] == WORDS[:7]
        assert "from wikitext-2-v1.zip: the train text, 15 words" in data.source
        assert server.paths() == ["good"]
        assert load_dataset("wikitext-2-test", columns=1, length=1).num_examples == 1
        assert server.paths() == ["good"]

        alone = write_texts(tmp_path / "alone", "{}.txt", valid="x y z \n")
        with pytest.raises(MissingDataError, match=r"no train text, only valid: put wiki\.train\."):
            load_dataset("wikitext-2", path=alone)
        assert load_dataset("wikitext-2-valid", path=alone, columns=1, length=2).num_outputs == 4
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(MissingDataError, match=r"wikitext-2-v1\.zip .*put it at"):
                load_dataset("wikitext-2", path=path)
        assert server.paths() == ["good"]
    (folder / "wikitext-2-v1.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is damaged or another file"):
        load_dataset("wikitext-2")
    (alone / "valid.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        load_dataset("wikitext-2-valid", path=alone)
    (alone / "valid.txt").write_bytes(b" \n")
    with pytest.raises(ValueError, match="has no words in it"):
        load_dataset("wikitext-2-valid", path=alone)
    with pytest.raises(ValueError, match="has the parts train, valid, test, asked for 'dev'"):
        wikitext2(part="dev")


# ---- the real files, where they are ----------------------------------------------------------

REAL = Path(os.environ.get("EOSLIB_DATA") or "/nonexistent")


@pytest.mark.skipif(not (REAL / "wikitext-2").is_dir(), reason="EOSLIB_DATA holds no wikitext-2")
@pytest.mark.parametrize(("part", "words"), [("valid", 217_646), ("test", 245_569)])
def test_the_published_numbers_of_words(part, words):
    stored = eoslib.wikitext2.read_wikitext2(REAL, part)
    assert len(stored.tokens[part]) == words
    assert "<unk>" in stored.vocabulary


@pytest.mark.skipif(not [*REAL.glob("cifar10*.npz")], reason="EOSLIB_DATA holds no cifar10*.npz")
def test_real_images_have_the_known_statistics():
    """The means and deviations everybody uses for CIFAR-10, those of 5,000 images being near."""
    stored = eoslib.cifar10.read_cifar10(REAL)
    data = load_dataset("cifar10-1k-per_channel", path=REAL)
    mean = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    deviation = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]
    usual = (torch.from_numpy(stored.train_images[:1000]) / 255 - mean) / deviation
    assert torch.allclose(data.inputs, usual, atol=0.1)
    assert data.labels.bincount().min() > 70
