"""Interactive figures: live in Jupyter, frozen in the built page.

Importing this package loads anywidget; `import eoslib` does not import this package.
"""

from eoslib.widgets.explorer import StepSizeExplorer
from eoslib.widgets.figure_slider import FigureSlider
from eoslib.widgets.frames import Frame, Line, Mark, Panel, Slider
from eoslib.widgets.laboratory import Laboratory
from eoslib.widgets.quadratic import QuadraticExplorer

__all__ = [
    "FigureSlider",
    "Frame",
    "Laboratory",
    "Line",
    "Mark",
    "Panel",
    "QuadraticExplorer",
    "Slider",
    "StepSizeExplorer",
]
