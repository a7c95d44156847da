"""Interactive figures: live in Jupyter, frozen in the built page.

Importing this package loads anywidget; `import eoslib` does not import this package.
"""

from eoslib.widgets.explorer import StepSizeExplorer

__all__ = ["StepSizeExplorer"]
