"""WikiText-2 as words: the tokenised text of Merity et al. (2016).

The text is split at white space already and rare words are ``<unk>``, so a vocabulary is a list and
no tokeniser is needed. The end of every line, also of an empty one, is the word ``<eos>``, as in
PyTorch's word language model example; the three parts then have 2,088,628, 217,646 and 245,569
words, and the training text has 33,278 different ones.

In place of the network `read_wikitext2` takes ``wikitext-2-v1.zip``, the file that it would
download, or a folder with the files in it, ``wiki.train.tokens``, ``wiki.valid.tokens`` and
``wiki.test.tokens`` (or ``train.txt``, ``valid.txt``, ``test.txt``, as the example names them).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eoslib.downloads import (
    MissingDataError,
    RemoteFile,
    check_sha256,
    data_folder,
    fetch,
    locate,
)

__all__ = ["ARCHIVE", "PARTS", "WikiText2", "read_wikitext2"]

ARCHIVE = RemoteFile(
    name="wikitext-2-v1.zip",
    sha256="92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
    size=None,
    mirrors=(
        "https://wikitext.smerity.com/wikitext-2-v1.zip",
        "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
    ),
)

PARTS = ("train", "valid", "test")
_FOLDER = "wikitext-2"


@dataclass(frozen=True)
class WikiText2:
    """The text as numbers.

    Attributes:
        tokens: the parts that were there (``"train"``, ``"valid"``, ``"test"``), each as int64
            ``(words,)``, positions in the vocabulary.
        vocabulary: the words, in the order in which they first occur in the parts.
        file: the name of the file or folder they come from.
    """

    tokens: dict[str, NDArray[np.int64]]
    vocabulary: tuple[str, ...]
    file: str


def read_wikitext2(path: Path | None = None, part: str = "train") -> WikiText2:
    """Read the text from a file or folder, or download it.

    Args:
        path: a file or folder as the module's docstring lists them, or a folder that holds one.
            Default: `eoslib.downloads.data_folder`, into which the archive is downloaded when none
            of them is there.
        part: the part that is needed. The others are read as well if they are there, because the
            vocabulary is made of all.

    Raises:
        MissingDataError: the part is not there; the message says which file belongs where.
        ValueError: a file is damaged, is no UTF-8 text or is empty.
    """
    found = locate(ARCHIVE, path, _find, f"no {ARCHIVE.name} and no wiki.{part}.tokens")
    texts = _texts_in_folder(found) if found.is_dir() else _texts_in_archive(found)
    if part not in texts and path is None:
        found = fetch(ARCHIVE)
        texts = _texts_in_archive(found)
    if part not in texts:
        raise MissingDataError(
            f"{found} holds no {part} text, only {' and '.join(texts)}: put wiki.{part}.tokens "
            f"there (or {part}.txt), or name the archive. {ARCHIVE.instructions(data_folder())}"
        )
    return _as_numbers(texts, found.name)


def _find(folder: Path) -> Path | None:
    """What a folder holds of WikiText-2: the archive, or the folder with the texts."""
    if (folder / ARCHIVE.name).is_file():
        return folder / ARCHIVE.name
    places = (folder, folder / _FOLDER)
    return next((place for place in places if any(_text_files(place))), None)


def _text_files(folder: Path) -> dict[str, Path]:
    return {
        part: folder / name
        for part in PARTS
        for name in (f"{part}.txt", f"wiki.{part}.tokens")  # the second wins
        if (folder / name).is_file()
    }


def _texts_in_folder(folder: Path) -> dict[str, str]:
    return {part: _decoded(file.read_bytes(), file) for part, file in _text_files(folder).items()}


def _texts_in_archive(file: Path) -> dict[str, str]:
    check_sha256(file, ARCHIVE.sha256)
    with zipfile.ZipFile(file) as archive:
        members = {part: f"{_FOLDER}/wiki.{part}.tokens" for part in PARTS}
        return {part: _decoded(archive.read(name), name) for part, name in members.items()}


def _decoded(content: bytes, where: object) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no UTF-8 text: {error}; fetch it again") from error
    if not text.strip():
        raise ValueError(f"{where} has no words in it; fetch it again")
    return text


def _as_numbers(texts: dict[str, str], file: str) -> WikiText2:
    numbers: dict[str, int] = {}
    tokens = {
        part: np.fromiter(
            (numbers.setdefault(word, len(numbers)) for word in _words(texts[part])), np.int64
        )
        for part in PARTS
        if part in texts
    }
    return WikiText2(tokens, tuple(numbers), file)


def _words(text: str) -> Iterable[str]:
    # Lines end at \n alone: str.splitlines would also split at the characters that Unicode counts.
    for line in text.removesuffix("\n").split("\n"):
        yield from line.split()
        yield "<eos>"
