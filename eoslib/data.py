"""Every data set of the book as one type: generated, carried inside the package, or downloaded.

A `Dataset` is all examples, in a fixed order. Generated and embedded ones are in float64, CIFAR-10
in float32, in which 50,000 images take 0.6 GB instead of 1.2; the objective casts to its own dtype
and moves to its own device. How files are found and read, `eoslib.cifar10` and `eoslib.wikitext2`
know; where they are kept, `eoslib.downloads`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eoslib._arguments import a_number, a_whole_number, shown
from eoslib._names import look_up
from eoslib.cifar10 import Cifar10, read_cifar10
from eoslib.prose import TEXT
from eoslib.wikitext2 import PARTS, read_wikitext2

__all__ = [
    "DATASETS",
    "Dataset",
    "Standardisation",
    "chebyshev",
    "cifar10",
    "digits",
    "load_dataset",
    "prose",
    "reads_files",
    "whitened_linear",
    "wikitext2",
]

Standardisation = Literal["per_pixel", "per_channel"]


@dataclass(frozen=True)
class Dataset:
    """All examples of a task.

    Attributes:
        name: as in run records, for instance ``"chebyshev-4-20"`` or ``"digits-1k"``;
            `load_dataset` finds the data set again by it, from the same files where it reads any.
        inputs: ``(n, ...)``: floating numbers, images ``(n, channels, height, width)``, or words
            ``(n, length)`` int64.
        targets: ``(n, outputs)``, of the inputs' dtype, one-hot rows for classification; for text
            the words to be predicted, ``(n, length)`` int64.
        labels: ``(n,)`` int64 for classification, else ``None``.
        source: where the numbers come from and what was done to them.
        vocabulary: for text, the words that its numbers stand for.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    labels: Tensor | None
    source: str
    vocabulary: tuple[str, ...] | None = None

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return self.inputs.shape[0]

    @property
    def num_inputs(self) -> int:
        """How many numbers one example has."""
        return self.inputs[0].numel()

    @property
    def num_outputs(self) -> int:
        """How many outputs a network for this task needs; for text, one for each word."""
        return self.targets.shape[1] if self.vocabulary is None else len(self.vocabulary)

    def first(self, num_examples: int) -> Dataset:
        """The first examples, as ``NAME-first10``; they share the memory of all.

        Raises:
            ValueError: there are not that many, or none is asked for.
        """
        count = a_whole_number(
            f"the number of examples of {self.name}", num_examples, most=self.num_examples
        )
        labels = None if self.labels is None else self.labels[:count]
        inputs, targets, name = self.inputs[:count], self.targets[:count], self.name
        if count < self.num_examples:
            name += f"-first{count}"
        return replace(self, name=name, inputs=inputs, targets=targets, labels=labels)


def chebyshev(degree: int = 4, num_points: int = 20) -> Dataset:
    r"""Fit the Chebyshev polynomial :math:`T_k` at evenly spaced points.

    .. math:: x_i = -1 + 2i/(n-1), \qquad y_i = T_k(x_i) = \cos(k \arccos x_i), \qquad i = 0..n-1

    Args:
        degree: k ≥ 0.
        num_points: n ≥ 2; both ends of [−1, 1] are included, there is no noise.

    Raises:
        ValueError: the degree is negative or there are fewer than two points.

    Source: the one-dimensional regression task of Cohen et al. (2021), degrees 3-5, 20 points.
    """
    degree = a_whole_number("the degree of chebyshev", degree, least=0)
    num_points = a_whole_number("num_points of chebyshev", num_points, least=2)
    x = np.linspace(-1.0, 1.0, num_points)
    y = np.polynomial.chebyshev.Chebyshev.basis(degree)(x)
    return Dataset(
        name=f"chebyshev-{degree}-{num_points}",
        inputs=torch.from_numpy(x)[:, None],
        targets=torch.from_numpy(y)[:, None],
        labels=None,
        source=f"T_{degree} at {num_points} evenly spaced points of [-1, 1], no noise",
    )


def digits(num_examples: int = 1000, *, redrawn_labels: float = 0.0, seed: int = 0) -> Dataset:
    """8 × 8 images of handwritten digits: the first ``num_examples`` of 1,000.

    The pixels (0..16) are standardised with one mean and one standard deviation, those of all
    pixels of the 1,000 images; standardising pixel by pixel would blow up the border pixels, which
    are zero in all but a few images. Targets are one-hot rows.

    Args:
        num_examples: 1 to 1,000.
        redrawn_labels: share of the examples, in [0, 1], whose label is replaced by one drawn
            uniformly from the ten. The images alone are so easy that a network trained with
            cross-entropy is done within a hundred steps; with noise there is something left to fit.
        seed: seed of which labels are redrawn, and as what.

    Raises:
        ValueError: an argument is out of its range.

    Source: Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI Machine
    Learning Repository, CC BY 4.0; the first 1,000 of the 1,797 examples that scikit-learn ships.
    """
    num_examples = a_whole_number("num_examples of digits", num_examples, most=1000)
    seed = a_whole_number("seed", seed, least=0)
    redrawn_labels = a_number("redrawn_labels", redrawn_labels)
    if not 0 <= redrawn_labels <= 1:
        raise ValueError(f"redrawn_labels is a share in [0, 1], got {redrawn_labels}")
    with (
        resources.files("eoslib").joinpath("digits-1k.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        pixels, labels = stored["pixels"].astype(np.float64), stored["labels"].astype(np.int64)
    pixels = (pixels - pixels.mean()) / pixels.std()
    random = np.random.default_rng(seed)
    redrawn = random.permutation(1000)[: round(1000 * redrawn_labels)]
    labels[redrawn] = random.integers(0, 10, len(redrawn))
    size = "1k" if num_examples == 1000 else str(num_examples)
    label_tensor = torch.from_numpy(labels[:num_examples])
    return Dataset(
        name=f"digits-{size}"
        + (
            f"-redrawn{repr(redrawn_labels).removesuffix('.0')}-seed{seed}"
            if redrawn_labels
            else ""
        ),
        inputs=torch.from_numpy(pixels[:num_examples]),
        targets=torch.nn.functional.one_hot(label_tensor, 10).double(),
        labels=label_tensor,
        source="UCI handwritten digits 8x8 (Alpaydin & Kaynak 1998), one mean and deviation"
        + (
            f"; {redrawn_labels:.0%} of the labels redrawn with seed {seed}" if len(redrawn) else ""
        ),
    )


def whitened_linear(dimension: int = 50, num_points: int = 50, *, seed: int = 0) -> Dataset:
    r"""Fit a random linear map on whitened inputs: the task of the deep linear network.

    .. math:: \tfrac1n X^\top X = I, \qquad Y = X A^\top, \qquad A_{ij} \sim N(0, 1)

    X is √n times the orthogonal factor of a Gaussian matrix (n × d). The square loss at zero output
    is ½‖A‖², about d²/2.

    Args:
        dimension: d ≥ 1, of inputs and outputs.
        num_points: n ≥ d.
        seed: seed of X and A.

    Raises:
        ValueError: d < 1 or n < d.

    Source: the deep linear task of Cohen et al. (2021), 50 points in 50 dimensions; the numbers
    are our own draw.
    """
    dimension = a_whole_number("dimension", dimension)
    num_points = a_whole_number("num_points of a whitened set", num_points, least=dimension)
    seed = a_whole_number("seed", seed, least=0)
    random = np.random.default_rng(seed)
    orthogonal, triangle = np.linalg.qr(random.standard_normal((num_points, dimension)))
    orthogonal *= np.sign(np.diagonal(triangle))  # unique, whatever signs the routine chooses
    inputs = np.sqrt(num_points) * orthogonal
    targets = inputs @ random.standard_normal((dimension, dimension)).T
    return Dataset(
        name=f"linear-{dimension}-{num_points}" + (f"-seed{seed}" if seed else ""),
        inputs=torch.from_numpy(inputs),
        targets=torch.from_numpy(targets),
        labels=None,
        source=f"{num_points} whitened points in {dimension} dimensions and a Gaussian linear map, "
        f"seed {seed}",
    )


def cifar10(
    num_examples: int | None = None,
    *,
    standardisation: Standardisation | None = None,
    part: str = "train",
    path: str | os.PathLike[str] | None = None,
) -> Dataset:
    r"""CIFAR-10, standardised: the first N training images, or the test images.

    .. math:: x = \frac{p - \mu}{\sigma}, \qquad
              \mu, \sigma\text{: over the 50,000 training images, whatever } N \text{ is}

    Args:
        num_examples: N; ``None`` for all there are.
        standardisation: has no default, because it makes two tasks of one. ``"per_pixel"``: every
            pixel of every channel has its own μ and σ, as in the code of Cohen et al. (2021).
            ``"per_channel"``: one μ and σ for each of the three channels, as in their text.
        part: ``"train"`` or ``"test"``; test images are standardised by the training images.
        path: a file or folder in place of the network; `eoslib.cifar10` lists the formats.

    Returns:
        Images ``(N, 3, 32, 32)`` and one-hot rows ``(N, 10)`` in float32. `source` says which file
        they are from and begins the SHA-256 of pixels and labels. It says so if μ and σ are of
        fewer than the 50,000 images because the file has no more, and if these are not the official
        first N.

    Raises:
        ValueError: no standardisation, or one without sense: a pixel that is the same in all images
            cannot be standardised; more images than there are; a damaged file.
        MissingDataError: the data set is not there and cannot be downloaded.

    Memory: 12 kB an image: 0.6 GB for all, twice that while they are read, the objective's copy not
    counted.

    Source: Krizhevsky (2009), "Learning multiple layers of features from tiny images".
    """
    if standardisation is None or standardisation not in get_args(Standardisation):
        raise ValueError(
            'say how CIFAR-10 is to be standardised: standardisation="per_pixel" (as in the '
            'code of Cohen et al.) or "per_channel" (as in their text); in a name, cifar10-5k-'
            f"per_pixel. They are two different tasks; got {standardisation!r}"
        )
    if part not in ("train", "test"):
        raise ValueError(f"CIFAR-10 has the parts 'train' and 'test', asked for {part!r}")
    if num_examples is not None:
        num_examples = a_whole_number("num_examples", num_examples, least=0)
    stored = read_cifar10(None if path is None else Path(path))
    images, labels = (
        (stored.train_images, stored.train_labels)
        if part == "train"
        else (stored.test_images, stored.test_labels)
    )
    # "All" means the official number: a smaller file is not taken for it silently.
    all_of_them = 50_000 if part == "train" else len(images)
    wanted = all_of_them if num_examples is None else num_examples
    if not 1 <= wanted <= len(images):
        raise ValueError(
            f"{stored.file} holds {len(images):,} {part} images, asked for {wanted:,}"
            + ("; name a smaller subset, for instance cifar10-1k" if len(images) else "")
        )
    axes = (0,) if standardisation == "per_pixel" else (0, 2, 3)
    mean, deviation = _mean_and_deviation(stored.train_images, axes)
    pixels = images[:wanted].astype(np.float32)
    pixels -= mean.astype(np.float32)  # in place: a second copy of all would be 0.6 GB
    pixels /= deviation.astype(np.float32)
    label_tensor = torch.from_numpy(labels[:wanted])
    subset = "cifar10" if part == "train" else "cifar10-test"
    if num_examples is not None and (part, num_examples) != ("train", 50_000):
        subset += f"-{_short(num_examples)}"
    return Dataset(
        name=f"{subset}-{standardisation}",
        inputs=torch.from_numpy(pixels),
        targets=torch.nn.functional.one_hot(label_tensor, 10).float(),
        labels=label_tensor,
        source=_cifar10_source(stored, part, wanted, standardisation),
    )


def _mean_and_deviation(
    images: NDArray[np.uint8], axes: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact sums of bytes, a few images at a time; shapes ``(3, 32, 32)`` or ``(3, 1, 1)``."""
    total = squares = np.zeros(1, np.int64)
    for block in np.array_split(images, max(1, len(images) // 1000)):
        wide = block.astype(np.int64)
        total = total + wide.sum(axis=axes, keepdims=True)
        squares = squares + (wide * wide).sum(axis=axes, keepdims=True)
    count = images[:, :1].size if len(axes) > 1 else len(images)
    mean = np.squeeze(total, axis=0) / count
    # n Σp² − (Σp)² in integers, so that nothing cancels; Python's, because 64 bits are too few.
    variance = np.squeeze(count * squares.astype(object) - total.astype(object) ** 2, axis=0)
    deviation = np.sqrt(variance.astype(np.float64)) / count
    if not (deviation > 0).all():
        raise ValueError(
            f"{int((deviation == 0).sum())} pixels are the same in all {len(images):,} training "
            "images and cannot be standardised one by one; take more images, or "
            'standardisation="per_channel"'
        )
    return mean, deviation


def _short(number: int) -> str:
    return f"{number // 1000}k" if number % 1000 == 0 else str(number)


def _cifar10_source(stored: Cifar10, part: str, wanted: int, standardisation: str) -> str:
    count = len(stored.train_images)
    whole = "the 50,000 training images"
    index = None if stored.train_index is None else stored.train_index[:wanted]
    if part == "test":
        which = f"{wanted:,} test images"
    elif index is None:
        which = f"the first {wanted:,} training images of the file, which does not say which"
    elif np.array_equal(index, np.arange(wanted)):
        which = f"the first {wanted:,} training images"
    else:
        which = (
            f"the first {wanted:,} training images of the file, which are not the official first "
            f"{wanted:,}"
        )
    unit = "pixel and channel" if standardisation == "per_pixel" else "channel"
    over = whole if count == 50_000 else f"the file's {count:,} training images, not over {whole}"
    digest = f", SHA-256 {stored.fingerprint(wanted)[:12]}" if part == "train" else ""
    return (
        f"CIFAR-10 (Krizhevsky 2009) from {stored.file}: {which}{digest}; one mean and deviation "
        f"for each {unit}, over {over}"
    )


def wikitext2(
    num_examples: int | None = None,
    *,
    part: str = "train",
    length: int = 35,
    columns: int = 100,
    path: str | os.PathLike[str] | None = None,
) -> Dataset:
    """WikiText-2 as sequences of words, each to be followed by the next.

    As in PyTorch's word language model example, on which the experiment of Cohen et al. (2021)
    builds, the text is cut into 100 columns of equal length and these into pieces of 35 words. An
    example is one piece of one column; its targets are the same words one later. The loss
    ``"token_cross_entropy"`` of `eoslib.losses` is then the mean over all words.

    Our own choices: a word at the end that fills no piece is left out, and the examples come piece
    by piece (the first piece of all columns, then the second), so that the first N·100 examples are
    the first 35·N rows of the text as the example batches it.

    Args:
        num_examples: the first so many; ``None`` for all.
        part: ``"train"``, ``"valid"`` or ``"test"``. The paper's test loss is the one of the
            validation text.
        length: words per example, the context of the last of them.
        columns: how many columns the text is cut into.
        path: a file or folder in place of the network; `eoslib.wikitext2` lists the formats.

    Returns:
        Inputs and targets ``(n, length)`` int64; 59,600 examples for the training text. The
        vocabulary is that of all parts that are there, 33,278 words with the training text.

    Raises:
        ValueError: an argument is out of its range, or a file is damaged.
        MissingDataError: the data set is not there and cannot be downloaded.

    Source: Merity et al. (2016), "Pointer sentinel mixture models"; the tokenised version.
    """
    length, columns = a_whole_number("length", length), a_whole_number("columns", columns)
    if part not in PARTS:
        raise ValueError(f"WikiText-2 has the parts {', '.join(PARTS)}, asked for {part!r}")
    stored = read_wikitext2(None if path is None else Path(path), part)
    tokens = stored.tokens[part]
    rows = len(tokens) // columns
    pieces = (rows - 1) // length
    if pieces < 1:
        raise ValueError(
            f"the {part} text has {len(tokens):,} words: too few for {columns} columns with a "
            f"sequence of {length} words and the word after it"
        )
    table = torch.from_numpy(tokens[: rows * columns].reshape(columns, rows))

    def sequences(start: int) -> Tensor:
        part_of_table = table[:, start : start + pieces * length]
        return part_of_table.reshape(columns, pieces, length).transpose(0, 1).reshape(-1, length)

    whole = Dataset(
        name="wikitext-2" + ("" if part == "train" else f"-{part}"),
        inputs=sequences(0),
        targets=sequences(1),
        labels=None,
        source=f"WikiText-2 (Merity et al. 2016) from {stored.file}: the {part} text, "
        f"{len(tokens):,} words in {columns} columns, cut into {length} words; "
        f"{len(stored.vocabulary):,} different words in {', '.join(stored.tokens)}",
        vocabulary=stored.vocabulary,
    )
    given = whole if num_examples is None else whole.first(num_examples)
    name = whole.name + ("" if num_examples is None else f"-{_short(given.num_examples)}")
    name += ("" if length == 35 else f"-length{length}") + (
        "" if columns == 100 else f"-columns{columns}"
    )
    return replace(given, name=name)


def prose(length: int = 16) -> Dataset:
    """A short story as sequences of words, each to be followed by the next.

    Words are in lower case, and punctuation marks are words too: 629 of them, 147 different ones.
    The story is cut into pieces from its beginning; what fills no piece at its end is left out.
    The loss ``"token_cross_entropy"`` of `eoslib.losses` is the mean over all words.

    Args:
        length: words per example, the context of the last of them.

    Returns:
        Inputs and targets ``(n, length)`` int64; with 16 words, n is 39. The vocabulary has the
        words in the order in which they first occur.

    Raises:
        ValueError: the story has no piece of that length and a word after it.

    Source: written for this book (`eoslib.prose`).
    """
    words = re.findall(r"\w+|[^\w\s]", TEXT.lower())
    length = a_whole_number(
        "length", length, most=len(words) - 1, advice=f"; prose has {len(words)} words"
    )
    count = (len(words) - 1) // length
    vocabulary = tuple(dict.fromkeys(words))
    index = {word: number for number, word in enumerate(vocabulary)}
    numbers = torch.tensor([index[word] for word in words])
    return Dataset(
        name=f"prose-{length}",
        inputs=numbers[: count * length].reshape(count, length),
        targets=numbers[1 : count * length + 1].reshape(count, length),
        labels=None,
        source=f"a short story written for this book, {len(words)} words cut into pieces of "
        f"{length}; {len(vocabulary)} different words",
        vocabulary=vocabulary,
    )


#: Data sets by name. CIFAR-10 further needs its standardisation, as an option or at the end of the
#: name; every size works, also one that is not listed.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "chebyshev-3-20": lambda: chebyshev(3),
    "chebyshev-4-20": lambda: chebyshev(4),
    "chebyshev-5-20": lambda: chebyshev(5),
    "digits-1k": digits,
    "linear-50-50": whitened_linear,
    "prose-16": prose,
    "cifar10": cifar10,
    **{f"cifar10-{size}": cifar10 for size in ("1k", "2k", "5k", "10k", "20k")},
    "cifar10-test": cifar10,
    "wikitext-2": wikitext2,
    "wikitext-2-valid": wikitext2,
    "wikitext-2-test": wikitext2,
}

_DIGITS = re.compile(r"digits-(\d+k?)(?:-redrawn(\d[\d.]*(?:e-\d+)?)-seed(\d+))?")
_LINEAR = re.compile(r"linear-(\d+)-(\d+)(?:-seed(\d+))?")
_CIFAR10 = re.compile(r"cifar10(-test)?(?:-(\d+k?))?(?:-(per_pixel|per_channel))?")
_WIKITEXT2 = re.compile(
    r"wikitext-2(?:-(valid|test))?(?:-(\d+k?))?(?:-length(\d+))?(?:-columns(\d+))?"
)
_FIRST = re.compile(r"(.+)-first(\d+)")


def load_dataset(name: str, **options: Any) -> Dataset:
    """Return a data set by its name.

    ``chebyshev-k-n`` works for every degree k and n points, ``linear-d-n`` for d dimensions and n
    points, ``prose-m`` for pieces of m words; ``digits-N``, ``cifar10-N`` and ``wikitext-2-N`` for
    every size N (``5k`` is 5,000). The name of CIFAR-10 may end in its standardisation,
    ``cifar10-5k-per_pixel``, which is then no option; likewise ``digits-1k-redrawn0.2-seed0``,
    ``linear-d-n-seed3`` and ``wikitext-2-N-length20-columns50``. ``NAME-first10`` are the first
    examples of any.

    Args:
        name: a key of `DATASETS`, or as above.
        **options: those of the data set's function, for instance
            ``load_dataset("cifar10-5k", standardisation="per_channel", path="cifar10.npz")``.

    Raises:
        ValueError: the name is unknown (the message suggests the near ones), an option is not one
            of this data set's or its value is wrong, or a file is damaged.
        MissingDataError: the data set is not there and cannot be downloaded; the message says which
            file belongs where.
    """
    make, given = _found(name)
    if match := _FIRST.fullmatch(name):
        return load_dataset(match[1], **options).first(int(match[2]))
    if twice := set(given) & set(options):
        raise ValueError(f"{name!r} says the {twice.pop()} already; leave the option out")
    allowed = make.__kwdefaults__ or {}
    if unknown := set(options) - set(allowed):
        raise ValueError(
            f"{name!r} takes no option {sorted(unknown)[0]!r}; "
            f"its options: {', '.join(allowed) or 'none'}"
        )
    return make(**given, **options)


def reads_files(name: str) -> bool:
    """Whether the data set of that name is downloaded or taken from files, by its option ``path``.

    Raises:
        ValueError: the name is unknown.
    """
    return "path" in (_found(name)[0].__kwdefaults__ or {})


def _found(name: str) -> tuple[Callable[..., Dataset], dict[str, Any]]:
    """The function that makes a data set, and what its name says of the arguments."""
    if not isinstance(name, str):
        raise ValueError(f"a data set has a name such as 'digits-1k', got {shown(name)}")
    if match := _FIRST.fullmatch(name):
        return _found(match[1])
    if match := re.fullmatch(r"chebyshev-(\d+)-(\d+)", name):
        return chebyshev, {"degree": int(match[1]), "num_points": int(match[2])}
    if match := _LINEAR.fullmatch(name):
        sizes = {"dimension": int(match[1]), "num_points": int(match[2])}
        return whitened_linear, sizes | ({"seed": int(match[3])} if match[3] else {})
    if match := _DIGITS.fullmatch(name):
        redrawn = {"redrawn_labels": float(match[2]), "seed": int(match[3])} if match[2] else {}
        return digits, {"num_examples": _number(match[1])} | redrawn
    if match := re.fullmatch(r"prose-(\d+)", name):
        return prose, {"length": int(match[1])}
    if match := _CIFAR10.fullmatch(name):
        given = {"part": "test" if match[1] else "train", "num_examples": _number(match[2])}
        return cifar10, given | ({"standardisation": match[3]} if match[3] else {})
    if match := _WIKITEXT2.fullmatch(name):
        cut = {"length": match[3], "columns": match[4]}
        given = {"part": match[1] or "train", "num_examples": _number(match[2])}
        return wikitext2, given | {key: int(value) for key, value in cut.items() if value}
    return look_up(DATASETS, name, "data set"), {}


def _number(text: str | None) -> int | None:
    """``5k`` is 5,000."""
    return None if text is None else int(text.removesuffix("k")) * (1000 if "k" in text else 1)
