"""CIFAR-10 as it is stored: bytes. No pickle is read, and nothing is unpacked to disk.

The images are those of Krizhevsky (2009), "Learning multiple layers of features from tiny images";
the format is the binary version's, described at https://www.cs.toronto.edu/~kriz/cifar.html: 3,073
bytes an image, the label and then the red, green and blue planes row by row, 10,000 images a file.

In place of the network `read_cifar10` takes

* ``cifar-10-binary.tar.gz``, the file that it would download;
* ``cifar-10-batches-bin``, the folder in it, with ``data_batch_1.bin`` … ``test_batch.bin``;
* an ``.npz`` file for images from elsewhere: ``x_train`` uint8 ``(n, 3, 32, 32)``, ``y_train``
  integers ``(n,)``, and if there are test images ``x_test``, ``y_test`` likewise. An optional
  ``train_index`` ``(n,)`` says which of the official 50,000 images these are.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eoslib.downloads import MissingDataError, RemoteFile, check_sha256, locate

__all__ = ["ARCHIVE", "Cifar10", "read_cifar10"]

ARCHIVE = RemoteFile(
    name="cifar-10-binary.tar.gz",
    # The MD5 published beside the file, c32a1d4ab5d03f1284b67883e8d87530, is no protection.
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    size=170_052_171,
    mirrors=(  # the author's own are last: in 2026 they sent 70 kB/s
        "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
        "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
        "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    ),
)

_FOLDER = "cifar-10-batches-bin"
_TRAIN = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
}
_TEST = {"test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"}
_IMAGE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Cifar10:
    """Images and labels as they are stored.

    Attributes:
        train_images, test_images: uint8 ``(n, 3, 32, 32)``.
        train_labels, test_labels: int64 ``(n,)``, 0 to 9.
        train_index: the positions of the training images among the official 50,000, ``(n,)``;
            ``None`` where the file does not say.
        file: the name of the file or folder they come from.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    train_index: NDArray[np.int64] | None
    file: str

    def fingerprint(self, num_examples: int) -> str:
        """A hash of the first training images and labels: the same images, the same hash."""
        digest = hashlib.sha256(self.train_images[:num_examples].tobytes())
        digest.update(self.train_labels[:num_examples].astype(np.uint8).tobytes())
        return digest.hexdigest()


def read_cifar10(path: Path | None = None) -> Cifar10:
    """Read the data set from a file or folder, or download it.

    Args:
        path: a file or folder as the module's docstring lists them, or a folder that holds one.
            Default: `eoslib.downloads.data_folder`, into which the archive is downloaded when none
            of them is there.

    Raises:
        MissingDataError: there is nothing at ``path``, or nothing there and no network; the message
            says which file belongs where.
        ValueError: a file is damaged, or is not what it should be.

    Cost: 184 MB of memory; a second or two, most of it unpacking.
    """
    formats = f"no {ARCHIVE.name}, no folder {_FOLDER} and no cifar10*.npz"
    found = locate(ARCHIVE, path, _find, formats)
    if found.is_dir():
        return _read_batches(lambda name: _checked_bytes(found / name), found.name)
    if found.suffix == ".npz":
        return _read_arrays(found)
    check_sha256(found, ARCHIVE.sha256)
    return _read_archive(found)


def _find(folder: Path) -> Path | None:
    """What a folder holds of CIFAR-10."""
    if (folder / "data_batch_1.bin").is_file():
        return folder
    for place in (folder / ARCHIVE.name, folder / _FOLDER):
        if place.exists():
            return place
    arrays = sorted(folder.glob("cifar10*.npz"))
    if len(arrays) > 1:
        raise ValueError(
            f"{folder} holds several: {', '.join(file.name for file in arrays)}; "
            "say which one with path="
        )
    return arrays[0] if arrays else None


def _checked_bytes(file: Path) -> bytes:
    if not file.is_file():
        raise MissingDataError(
            f"{file.parent} holds no {file.name}; unpack {ARCHIVE.name} there again"
        )
    check_sha256(file, (_TRAIN | _TEST)[file.name])
    return file.read_bytes()


def _read_archive(file: Path) -> Cifar10:
    with tarfile.open(file, "r:gz") as archive:
        wanted = {f"{_FOLDER}/{name}": name for name in (*_TRAIN, *_TEST)}
        contents: dict[str, bytes] = {}
        for member in archive:  # in the archive's order: going back would unpack it again
            if member.name in wanted and (opened := archive.extractfile(member)):
                contents[wanted[member.name]] = opened.read()
    return _read_batches(contents.__getitem__, file.name)


def _read_batches(read: Callable[[str], bytes], file: str) -> Cifar10:
    train = [_records(name, read(name)) for name in _TRAIN]
    images = np.concatenate([images for images, _ in train])
    labels = np.concatenate([labels for _, labels in train])
    (test,) = (_records(name, read(name)) for name in _TEST)
    return Cifar10(images, labels, *test, np.arange(len(images)), file)


def _records(name: str, content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one file of the binary version."""
    if not content or len(content) % _RECORD:
        raise ValueError(f"{name} has {len(content):,} bytes, expected {_RECORD:,} for each image")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, *_IMAGE), _checked_labels(records[:, 0], name)


def _read_arrays(file: Path) -> Cifar10:
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (
        # np.load raises whatever the bytes lead it to.
        AttributeError,
        EOFError,
        LookupError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{file} is not a readable .npz file: {error}; copy or download it again"
        ) from error
    if not {"x_train", "y_train"} <= set(arrays):
        raise ValueError(
            f"{file} has to hold x_train, uint8 (n, 3, 32, 32), and y_train, (n,); "
            f"it holds {', '.join(arrays) or 'nothing'}"
        )
    checked: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]] = {}
    for part in ("train", "test"):
        images = arrays.get(f"x_{part}", np.empty((0, *_IMAGE), np.uint8))
        labels = arrays.get(f"y_{part}", np.empty(0, np.int64))
        if images.dtype != np.uint8 or images.shape[1:] != _IMAGE:
            raise ValueError(
                f"x_{part} of {file} has to be uint8 of shape (n, 3, 32, 32), "
                f"it is {images.dtype} of shape {images.shape}"
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"y_{part} of {file} has shape {labels.shape}, expected {images.shape[:1]}: "
                "one label for each image"
            )
        checked[part] = images, _checked_labels(labels, f"y_{part} of {file}")
    index = arrays.get("train_index")
    if index is not None and index.shape != arrays["y_train"].shape:
        raise ValueError(f"train_index of {file} has shape {index.shape}, expected one per image")
    return Cifar10(*checked["train"], *checked["test"], index, file.name)


def _checked_labels(labels: NDArray[np.generic], where: str) -> NDArray[np.int64]:
    if labels.dtype.kind not in "iu" or not np.isin(labels, range(10)).all():
        raise ValueError(f"{where}: labels have to be integers from 0 to 9")
    return labels.astype(np.int64)
