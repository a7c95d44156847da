"""The colours of step sizes and states: faithful to viridis, and visible."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from eoslib import palette


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_stops_are_samples_of_matplotlibs_viridis(theme: str) -> None:
    import matplotlib

    viridis = matplotlib.colormaps["viridis"]
    stops = palette.STOPS[theme]
    assert len(stops) == 17
    positions = np.linspace(*palette.VIRIDIS_RANGE[theme], len(stops))
    assert list(stops) == [matplotlib.colors.to_hex(viridis(p)) for p in positions]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_stands_out_from_every_background(theme: str) -> None:
    lines = [palette.step_size_color(lr, 0.01, 1, theme=theme) for lr in np.geomspace(0.01, 1, 200)]
    lines += [palette.ACCENT[theme], *palette.STATE_COLORS[theme].values()]
    for background in palette.BACKGROUNDS[theme]:
        for color in lines:
            assert palette.contrast(color, background) >= 3, (color, background)
        for text in (palette.INK[theme], palette.MUTED[theme], palette.ACCENT[theme]):
            assert palette.contrast(text, background) >= 4.5, (text, background)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_small_step_sizes_are_dark_and_large_ones_bright(theme: str) -> None:
    luminances = [
        palette.relative_luminance(palette.step_size_color(lr, 0.01, 1, theme=theme))
        for lr in np.geomspace(0.01, 1, 50)
    ]
    assert np.all(np.diff(luminances) > 0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_states_differ_in_lightness(theme: str) -> None:
    """CIE lightness L* of any two states differs by at least 7: a grey print keeps them apart."""

    def lightness(color: str) -> float:
        y = palette.relative_luminance(color)
        return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y

    values = sorted(lightness(color) for color in palette.STATE_COLORS[theme].values())
    assert min(np.diff(values)) >= 7


def test_colour_is_a_function_of_log_lr_and_clamps() -> None:
    middle = palette.step_size_color(0.1, 0.01, 1)
    assert middle == palette.STOPS["light"][8]
    assert palette.step_size_color(1e-5, 0.01, 1) == palette.STOPS["light"][0]
    assert palette.step_size_color(50, 0.01, 1, theme="dark") == palette.STOPS["dark"][-1]
    assert palette.step_size_color(3, 3, 3) == palette.STOPS["light"][8]


@pytest.mark.parametrize(
    "bad", [(0, 1, 2), (-1, 1, 2), (float("nan"), 1, 2), (1, 0, 2), (1, 1, float("inf")), (1, 3, 2)]
)
def test_bad_step_sizes_are_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError):
        palette.step_size_color(*bad)


def test_unknown_theme_is_refused() -> None:
    with pytest.raises(ValueError, match="theme"):
        palette.step_size_color(1, 1, 2, theme="sepia")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pair,expected", [(("#000000", "#ffffff"), 21), (("#777777", "#777777"), 1)]
)
def test_contrast_of_known_pairs(pair: tuple[str, str], expected: float) -> None:
    assert palette.contrast(*pair) == pytest.approx(expected)


def test_import_needs_no_matplotlib() -> None:
    code = "import sys, eoslib.palette; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
