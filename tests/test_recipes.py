"""The recipes: every experiment of the paper by a name, and each of them can be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from eoslib import Outcome, Run, Series
from eoslib.experiment import run_experiment, run_together
from eoslib.recipes import (
    _FLOW_PRODUCTS,
    _PRODUCTS,
    IN_THE_BOOK,
    RECIPES,
    get_recipe,
    step_sizes_of,
)

ROOT = Path(__file__).parents[1]


def flow_run(sharpness, ticks=100, tick=0.5):
    steps = np.arange(len(sharpness))
    return Run(
        settings={"tick": tick, "threshold": np.inf, "optimizer": "gradient flow"},
        series={"sharpness": Series(steps, np.array(sharpness, dtype=float))},
        outcome=Outcome("goal reached", ticks, ""),
    )


def test_step_sizes_follow_the_rule():
    sizes = step_sizes_of(flow_run([10.0, 8.0, 100.0, 60.0]))
    thresholds = 2 / np.array(sizes)
    assert thresholds[0] == pytest.approx(12)
    assert thresholds[3] == pytest.approx(80)
    assert thresholds[4] == pytest.approx(120, rel=0.05)  # 125, to two digits
    np.testing.assert_allclose(thresholds[1:4] / thresholds[:3], (80 / 12) ** (1 / 3), rtol=0.05)


@pytest.mark.parametrize("sharpness", [[10.0, 14.0], [], [10.0, 5.0]])
def test_no_room_for_step_sizes_is_said(sharpness):
    with pytest.raises(ValueError, match=r"no room for step sizes.*--lr"):
        step_sizes_of(flow_run(sharpness))


def test_what_follows_covers_the_time_of_the_flow():
    recipe = get_recipe("fig5-square")
    following = recipe.following(flow_run([10.0, 100.0]))
    assert len({e.lr for e in following}) == 5
    (steps,) = {e.num_steps for e in following}
    assert 1.5 <= steps * min(e.lr for e in following) / (100 * 0.5) < 1.5 * 1.11
    assert [e.lr for e in recipe.following(flow_run([1.0]), [0.5])] == [0.5]
    assert get_recipe("fig4").following(flow_run([])) == []


def test_recipes_feed_claims_of_the_ledger():
    ledger = yaml.safe_load((ROOT / "book" / "claims.yml").read_text(encoding="utf-8"))
    for recipe in RECIPES.values():
        assert bool(recipe.claims) != recipe.paper.startswith("not in the paper"), recipe.name
        assert set(recipe.claims) <= ledger.keys(), recipe.name


def test_chapters_named_are_there():
    for chapter in IN_THE_BOOK.values():
        assert (ROOT / "book" / f"{chapter}.ipynb").is_file()


def test_names_and_notes():
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.experiments and recipe.paper and recipe.title
        keys = [experiment.key for experiment in recipe.experiments]
        assert len(set(keys)) == len(keys)
        if recipe.by_rule is not None:
            assert recipe.experiments[0].optimizer == "flow"
            assert "chosen by us" in recipe.notes
    with pytest.raises(ValueError, match="unknown recipe 'fig5'; did you mean"):
        get_recipe("fig5")


def test_the_eleven_networks_and_two_losses():
    varied = [recipe for name, recipe in RECIPES.items() if name.startswith("vary-")]
    tasks = {(r.experiments[0].architecture, r.experiments[0].loss) for r in varied}
    assert len(tasks) == 22
    assert len({architecture for architecture, _ in tasks}) == 11


def test_settings_of_the_paper():
    figure3 = get_recipe("fig3-square").experiments[0]
    assert 2 / figure3.lr == pytest.approx(600)
    assert (figure3.architecture, figure3.loss, figure3.accuracy_goal) == (
        "fc-tanh",
        "square",
        0.99,
    )
    assert 2 / get_recipe("fig4").experiments[0].lr == pytest.approx(200)
    for recipe in RECIPES.values():
        for experiment in recipe.experiments:
            if experiment.batch_norm == "ghost":
                assert experiment.chunk_size == min(1000, recipe.size.examples)
    for name, expected in (
        ("1k-momentum-{}-square", [100, 200]),
        ("momentum-{}-square", [100, 200, 300]),
        ("momentum-{}-cross-entropy", [30, 60, 100]),
    ):
        for optimizer in ("polyak", "nesterov"):
            runs = get_recipe(name.format(optimizer)).experiments
            assert {e.optimizer for e in runs} == {optimizer}
            assert [round(e.rule().threshold) for e in runs] == expected


def test_the_estimate_of_the_time():
    recipe = get_recipe("fig3-square")
    # by hand: 40,000 gradients, 14 products every 25th step, of two gradients each, and an
    # accuracy, a third of a gradient
    gradient = 6 * 656_400 * 5_000 / 3e10
    expected = (40_000 * (1 + 26 / 25) + 1_600 / 3) * gradient
    assert recipe.estimated_seconds("cpu") == pytest.approx(expected)
    assert recipe.estimated_seconds("gpu") == pytest.approx(expected * 3e10 / 1e13)
    twice = replace(recipe, experiments=recipe.experiments * 2)
    assert twice.estimated_seconds("cpu") == pytest.approx(2 * expected)
    # four gradients a step of 1/300, four products a tick, and five runs that follow
    flow = get_recipe("chebyshev-3")
    overhead = 4_000 * (4 * 75 + 8) + 5 * 10_000 * (1 + 26 / 5)
    assert flow.estimated_seconds("cpu") == pytest.approx(3e-4 * overhead)
    adaptive = get_recipe("5k-adam-square")  # two eigenvalues are measured, one of D⁻¹H
    expected_of_adam = 3 * (600 * (1 + 52 / 10) + 60 / 3) * gradient
    assert adaptive.estimated_seconds("cpu") == pytest.approx(expected_of_adam)
    parts = [(recipe.experiments[0], 0.25)]
    assert recipe.estimated_seconds("cpu", parts) == pytest.approx(expected / 4)


@pytest.mark.parametrize(("flow", "assumed"), [(False, _PRODUCTS), (True, _FLOW_PRODUCTS)])
def test_a_measurement_is_taken_to_cost_what_stored_ones_did(flow, assumed):
    runs = [Run.load(path) for path in sorted((ROOT / "runs").glob("*/*.npz"))]
    taken = [
        run.provenance["sharpness_products"] / len(run["sharpness"].steps)
        for run in runs
        if ("tick" in run.settings) == flow
        and run.provenance["runs_together"] == 1
        and "sharpness_products" in run.provenance
    ]
    assert assumed == pytest.approx(np.median(taken), abs=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Thirty random images in the place of CIFAR-10, and a text of few words."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    np.savez(
        folder / "cifar10.npz",
        x_train=random.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8),
        y_train=np.arange(30, dtype=np.uint8) % 10,
    )
    words = random.choice(["a", "b", "c", "<unk>"], 4_000)
    text = "\n".join(" ".join(words[i : i + 20]) for i in range(0, 4_000, 20))
    (folder / "wikitext-2").mkdir()
    for part in ("train", "valid", "test"):
        (folder / "wikitext-2" / f"wiki.{part}.tokens").write_text(f" {text} \n")
    return folder


def in_small(experiment, steps):
    """The same with a stand-in for its data, and few steps."""
    dataset, changes = experiment.dataset, {"num_steps": steps, "sharpness_rtol": 0.1}
    if dataset.startswith("cifar10"):
        changes |= {"dataset": "cifar10-30-per_pixel"}
    elif dataset.startswith("wikitext"):
        changes |= {"dataset": "wikitext-2-6", "chunk_size": 3}
    if experiment.architecture.startswith("fc-"):
        depth = len(experiment.architecture_options.get("widths", [0, 0]))
        changes["architecture_options"] = {"widths": depth * [5]}
    for name, most in (("chunk_size", 15), ("batch_size", 8), ("sharpness_examples", 10)):
        value = getattr(experiment, name)
        if value is not None and name not in changes:
            changes[name] = min(value, most)
    changes["lr_changes"] = [[1, lr] for _, lr in experiment.lr_changes]
    changes["quantities"] = {
        name: {key: value for key, value in options.items() if key != "every"} | {"at": [1]}
        for name, options in experiment.quantities.items()
    }
    if "expected-change" in changes["quantities"]:
        changes["quantities"]["expected-change"]["batch_size"] = 8
    return replace(experiment, **changes)


HEAVY = {"transformer", "vary-cnn", "batch-norm", "deep-linear"}

#: VGG-11 and ResNet-32 take minutes for a measurement on two cores, whatever the data are; their
#: networks and products are tested in test_networks.py. Of the other convolutional ones the two
#: losses differ in a name, as do 5,000 images and 1,000; the Transformer on part of the text
#: differs from `transformer` in its data only.
TRIED = [
    name
    for name, recipe in RECIPES.items()
    if not recipe.experiments[0].architecture.startswith(("vgg", "resnet"))
    and not (name.startswith(("vary-cnn", "batch-norm")) and name.endswith("cross-entropy"))
    and not name.startswith(("5k-cnn", "1k-transformer", "100-transformer"))
]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith(tuple(HEAVY)) else [])
        for name in TRIED
    ],
)
def test_a_recipe_runs_on_a_stand_in(name, tiny, tmp_path):
    recipe = RECIPES[name]
    last = recipe.by_rule or recipe.experiments[-1]
    for experiment in {e.key: e for e in (recipe.experiments[0], last)}.values():
        small = in_small(experiment, 2)
        if small.lr is not None:  # on another task the recipe's may be far too large
            small = replace(small, lr=min(small.lr, 1e-3))
        folder = tiny / "wikitext-2" if small.dataset.startswith("wikitext") else tiny
        data = folder if small.dataset.startswith(("cifar10", "wikitext")) else None
        run = run_experiment(small, tmp_path, data=data, device="cpu")
        assert run.outcome.status in ("completed", "goal reached")
        assert np.isfinite(run["loss"].values[0])
        assert np.isfinite(run["sharpness"].values[0])
        for quantity in small.quantities:
            assert run[quantity].steps.tolist() == [1]
            assert np.isfinite(run[quantity].values).all() or quantity == "top-direction"


def test_step_sizes_of_a_recipe_run_as_one_batch(tiny, tmp_path):
    recipe = get_recipe("fig5-square")
    experiments = recipe.following(flow_run([10.0, 100.0]))
    runs = run_together([in_small(e, 2) for e in experiments], tmp_path, data=tiny, device="cpu")
    assert [run.provenance["runs_together"] for run in runs] == [5] * 5
