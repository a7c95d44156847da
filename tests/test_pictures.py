"""The Sphinx extension that makes the figures small and gives them a twin for the dark theme."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from docutils import nodes
from PIL import Image, ImageDraw
from sphinx.errors import ExtensionError

from eoslib.palette import ACCENT, BACKGROUNDS, INK, contrast, step_size_color
from tests.extensions import load_extension


@pytest.fixture(scope="module")
def pictures() -> Any:
    return load_extension("pictures")


@pytest.fixture
def app(tmp_path: Path) -> Any:
    """What a build with one folder of pictures looks like to the extension."""
    (tmp_path / "_images").mkdir()
    return SimpleNamespace(
        outdir=tmp_path, builder=SimpleNamespace(format="html", imagedir="_images")
    )


def colors(path: Path) -> set[str]:
    with Image.open(path) as picture:
        found = picture.convert("RGB").getcolors(1 << 16)
    return {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in found}


def drawing(*strokes: str) -> Image.Image:
    picture = Image.new("RGBA", (300, 200), "white")
    for height, color in enumerate(strokes):
        line = [(10, 20 + 20 * height), (290, 20 + 20 * height)]
        ImageDraw.Draw(picture).line(line, fill=color, width=3)
    return picture


def test_pictures_get_a_palette_once_and_look_the_same(
    pictures: Any, app: Any, tmp_path: Path
) -> None:
    plain = drawing("#2d6a8e")
    path, twin = (tmp_path / "_images" / name for name in ("a.png", "a-dark.png"))
    plain.save(path)
    before = path.stat().st_size
    pictures.finish_pictures(app, None)
    small = path.read_bytes()
    assert len(small) < before
    with Image.open(path) as now:
        assert now.mode == "P"
        assert now.convert("RGBA").tobytes() == plain.tobytes()

    written = twin.stat().st_mtime_ns
    pictures.finish_pictures(app, None)
    assert path.read_bytes() == small
    assert twin.stat().st_mtime_ns == written
    assert len(list(path.parent.iterdir())) == 2, "a twin has no twin"
    plain.save(tmp_path / "_images" / "b.png")
    pictures.finish_pictures(app, RuntimeError("the build failed"))
    assert not (tmp_path / "_images" / "b-dark.png").exists()


def test_a_lost_twin_is_made_again(pictures: Any, app: Any, tmp_path: Path) -> None:
    drawing(INK["light"]).save(tmp_path / "_images" / "a.png")
    pictures.finish_pictures(app, None)
    twin = tmp_path / "_images" / "a-dark.png"
    first = twin.read_bytes()
    twin.unlink()
    pictures.finish_pictures(app, None)
    assert twin.read_bytes() == first


def test_the_twin_has_the_colours_of_the_dark_theme(
    pictures: Any, app: Any, tmp_path: Path
) -> None:
    lrs = (0.1, 0.2, 0.4)
    light, dark = (
        [INK[theme], ACCENT[theme], *(step_size_color(lr, 0.1, 0.4, theme=theme) for lr in lrs)]
        for theme in ("light", "dark")
    )
    drawing(*light).save(tmp_path / "_images" / "a.png")
    pictures.finish_pictures(app, None)
    assert colors(tmp_path / "_images" / "a.png") == {"#ffffff", *light}
    assert colors(tmp_path / "_images" / "a-dark.png") == {BACKGROUNDS["dark"][0], *dark}


def test_pale_curves_stay_pale(pictures: Any) -> None:
    """A third of ink on white becomes a third of the dark theme's ink on its paper."""

    def third(color: str, paper: str) -> np.ndarray:
        return pictures.rgb(paper) + (pictures.rgb(color) - pictures.rgb(paper)) / 3

    for table in (INK, ACCENT):
        found = pictures.in_dark(third(table["light"], "#ffffff")[None])[0].astype(float)
        assert np.abs(found - third(table["dark"], BACKGROUNDS["dark"][0])).max() < 4


def test_a_step_size_has_the_colour_of_its_slider(pictures: Any) -> None:
    for lr in np.geomspace(0.03, 0.7, 40):
        light, dark = (
            pictures.rgb(step_size_color(lr, 0.03, 0.7, theme=theme)) for theme in ("light", "dark")
        )
        found = pictures.in_dark(light[None])[0]
        assert np.abs(found - dark).max() <= 4
        red, green, blue = found
        assert contrast(f"#{red:02x}{green:02x}{blue:02x}", BACKGROUNDS["dark"][0]) >= 3


def test_matplotlib_draws_with_colours_that_have_a_counterpart(pictures: Any) -> None:
    """The share of a figure's pixels that are far from every colour we know is next to nothing."""
    plt = pytest.importorskip("matplotlib.pyplot")
    from eoslib.plotting import book_style

    with book_style():
        figure, ax = plt.subplots()
        for lr in (0.1, 0.2, 0.4):
            ax.plot([0, 1, 2], [0, lr, -lr], color=step_size_color(lr, 0.1, 0.4), label=f"{lr}")
        ax.axhspan(0.1, 9, color=ACCENT["light"], alpha=0.06, linewidth=0)
        ax.set_ylim(-0.5, 0.5)
        ax.set_title("three curves")
        ax.legend()
        file = io.BytesIO()
        figure.savefig(file)
        plt.close(figure)
    with Image.open(file) as picture:
        found = picture.convert("RGB").getcolors(1 << 20)
    counts = np.array([count for count, _ in found])
    values = np.array([color for _, color in found], dtype=float)
    light, _ = pictures.counterparts()
    far = np.sqrt(((values[:, None] - light) ** 2).sum(axis=-1)).min(axis=1) > 16
    assert counts[far].sum() < 0.003 * counts.sum()


def written(pictures: Any, folder: Path, **saved: Any) -> list[str]:
    """Save a picture 300 pixels wide; return what a page gets for it."""
    drawing(INK["light"]).save(folder / "a.png", **saved)

    class Translator:
        builder = SimpleNamespace(srcdir=str(folder))

        def __init__(self) -> None:
            self.body: list[str] = []

        def visit_image(self, node: nodes.image) -> None:
            node["uri"] = node["uri"].replace("a.", "../_images/a.")[-18:]
            words = " ".join(node["classes"])
            self.body.append(f'<img alt="{node["alt"]}" class="{words}" src="{node["uri"]}" />')

    translator = Translator()
    pictures.visit_image(translator, nodes.image(uri="a.png", alt="A line."))
    return translator.body


@pytest.mark.parametrize(("dpi", "legible"), [(72, 300), (110, 196), (150, 144)])
def test_a_page_holds_both_with_their_size_and_the_least_to_read_them(
    pictures: Any, tmp_path: Path, dpi: int, legible: int
) -> None:
    start, light, dark, end = written(pictures, tmp_path, dpi=(dpi, dpi))
    assert start == f'<span class="eos-picture" style="--legible: {legible}px">'
    size = '<img width="300" height="200" alt="A line." '
    assert light == size + 'class="in-light" src="../_images/a.png" />'
    assert dark.startswith(size + 'class="in-dark dark-light"')
    assert "a-dark.png" in dark
    assert end == "</span>"


def test_a_picture_without_a_resolution_is_refused(pictures: Any, tmp_path: Path) -> None:
    with pytest.raises(ExtensionError, match=r"a\.png does not say .* save it with a resolution"):
        written(pictures, tmp_path)
