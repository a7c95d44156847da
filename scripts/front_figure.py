"""Draw the picture of the README and the front page from runs made here and now.

python scripts/front_figure.py        # writes book/images/edge.png
"""

from pathlib import Path

from matplotlib import pyplot as plt

from eoslib import GradientDescent, Objective, build, chebyshev, every, train
from eoslib.plotting import plot_runs

STEP_SIZES = (0.1, 0.16, 0.25, 0.4)  # chosen by us


def main() -> None:
    """Train at each step size and save the figure."""
    model = build("fc-tanh", 1, 1, widths=(20, 20), init="lecun", seed=1)
    objective = Objective.from_dataset(model, chebyshev(4), "square", dtype="float64")
    runs = [
        train(objective, GradientDescent(lr), num_steps=2500, sharpness_schedule=every(15))
        for lr in STEP_SIZES
    ]
    figure = plot_runs(runs, lr_range=(0.0625, 1.0))
    target = Path(__file__).parents[1] / "book" / "images" / "edge.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=150, metadata={"Software": None})
    plt.close(figure)
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
