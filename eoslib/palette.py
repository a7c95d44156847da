"""The colour of a step size, and the few colours that stand beside it.

A step size wears the same colour in every figure, slider and table of a page. The colour is a
sample of viridis over log η: small η dark, large η bright, in both themes and on every page; but
each page spreads the map over its own step sizes, because over the whole book's, from 0.01 to 100,
those of one page would look alike. Each theme uses the part of the map that keeps a contrast of at
least 3 : 1 with its background, so that even a thin line can be seen.

The module needs numpy only; `tests/test_palette.py` checks the stops against matplotlib.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

Theme = Literal["light", "dark"]

#: Which part of viridis each theme uses, from the smallest to the largest step size.
VIRIDIS_RANGE: dict[str, tuple[float, float]] = {"light": (0.0, 0.58), "dark": (0.38, 0.95)}

#: Page backgrounds the colours must stand out from: the book's, and JupyterLab's in the dark.
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "light": ("#ffffff",),
    "dark": ("#121212", "#14181e", "#212121"),
}

#: Equally spaced samples of viridis over `VIRIDIS_RANGE`.
STOPS: dict[str, tuple[str, ...]] = {
    "light": (
        "#440154",
        "#470e61",
        "#481b6d",
        "#482677",
        "#46337f",
        "#433e85",
        "#3f4889",
        "#3b528b",
        "#365d8d",
        "#31668e",
        "#2e6f8e",
        "#2a788e",
        "#26818e",
        "#23898e",
        "#20928c",
        "#1e9b8a",
        "#20a386",
    ),
    "dark": (
        "#2c738e",
        "#287c8e",
        "#25848e",
        "#228d8d",
        "#1f958b",
        "#1f9e89",
        "#22a785",
        "#29af7f",
        "#35b779",
        "#44bf70",
        "#56c667",
        "#69cd5b",
        "#7fd34e",
        "#95d840",
        "#addc30",
        "#c8e020",
        "#dfe318",
    ),
}

#: The one colour beside the step-size map: the unstable side of 2/η, and where a run diverged.
ACCENT: dict[str, str] = {"light": "#b8451c", "dark": "#ff9466"}

#: Text and thin lines that belong to no step size.
INK: dict[str, str] = {"light": "#222832", "dark": "#dfe5ec"}
MUTED: dict[str, str] = {"light": "#5b6470", "dark": "#9aa5b1"}

#: States of a run. They differ in lightness as well as in hue, so that a grey print works.
STATE_COLORS: dict[str, dict[str, str]] = {
    "light": {
        "diverged": "#4a0b16",
        "sharpening": "#1c3a72",
        "solved": "#166038",
        "at the edge": "#b8451c",
        "catapulting": "#b9791b",
    },
    "dark": {
        "diverged": "#b95f68",
        "sharpening": "#7296db",
        "at the edge": "#ff9466",
        "catapulting": "#f0c860",
        "solved": "#b8f2cd",
    },
}


def step_size_color(lr: float, lr_min: float, lr_max: float, *, theme: Theme = "light") -> str:
    """Return the colour of step size `lr` as `#rrggbb`.

    Args:
        lr: the step size η; values outside the range take the colour of the nearer end.
        lr_min: the step size that gets the first (darkest) colour.
        lr_max: the step size that gets the last (brightest) colour. When it equals `lr_min`
            there is nothing to compare, and the colour is that of the middle of the map.
        theme: "light" or "dark", the background the colour is seen on.

    Raises:
        ValueError: when a step size is not a positive finite number, when `lr_max < lr_min`,
            or when the theme is unknown.
    """
    for name, value in (("lr", lr), ("lr_min", lr_min), ("lr_max", lr_max)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    if lr_max < lr_min:
        raise ValueError(f"lr_max ({lr_max}) is smaller than lr_min ({lr_min})")
    if theme not in STOPS:
        raise ValueError(f"unknown theme {theme!r}: expected one of {', '.join(STOPS)}")
    stops = np.array([_rgb(stop) for stop in STOPS[theme]], dtype=float)
    fraction = 0.5 if lr_max == lr_min else math.log(lr / lr_min) / math.log(lr_max / lr_min)
    position = min(max(fraction, 0.0), 1.0) * (len(stops) - 1)
    index = min(int(position), len(stops) - 2)
    mixed = stops[index] + (position - index) * (stops[index + 1] - stops[index])
    # floor(x + 0.5), not round(): the explorer's JavaScript rounds halves up too
    red, green, blue = np.floor(mixed + 0.5).astype(int)
    return f"#{red:02x}{green:02x}{blue:02x}"


def contrast(first: str, second: str) -> float:
    """Return the WCAG 2 contrast ratio of two `#rrggbb` colours, between 1 and 21."""
    low, high = sorted((relative_luminance(first), relative_luminance(second)))
    return (high + 0.05) / (low + 0.05)


def relative_luminance(color: str) -> float:
    """Return the WCAG 2 relative luminance of a `#rrggbb` colour: 0 is black, 1 is white."""
    channels = np.array(_rgb(color)) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def _rgb(color: str) -> tuple[int, int, int]:
    if len(color) != 7 or color[0] != "#":
        raise ValueError(f"expected a colour like #1a2b3c, got {color!r}")
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
