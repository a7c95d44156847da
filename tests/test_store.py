"""The store of runs: what is in it is what was computed."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eoslib import Experiment, Outcome, Run, Series, run_experiment, store
from eoslib.experiment import run_path
from eoslib.recipes import RECIPES

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "dataset": "chebyshev-3-12",
    "architecture": "fc-tanh",
    "architecture_options": {"widths": [6]},
    "num_steps": 40,
}
EXPERIMENTS = [
    Experiment(**SETTINGS, lr=0.1, eigenvalues=2),
    Experiment(**SETTINGS, lr=0.2, optimizer="polyak", beta=0.5),
    Experiment(**SETTINGS, lr=1e4),
    Experiment(**SETTINGS, lr=0.1, batch_size=5),
    Experiment(**{**SETTINGS, "num_steps": 6}, optimizer="flow", tick=0.5),
]


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for experiment in EXPERIMENTS:
        run_experiment(experiment, folder, device="cpu")
        store.add(run_path(experiment, folder), "a-recipe", folder / "store")
    return folder


@pytest.fixture
def kept(computed, tmp_path):
    shutil.copytree(computed / "store", tmp_path / "store")
    return tmp_path / "store"


def changed(path, change):
    """Write a run anew with something in it changed, as an editor of numbers would."""
    run = Run.load(path)
    change(run)
    run.save(path)


def test_an_untouched_store_is_well(kept):
    assert store.problems(kept) == []
    index = json.loads((kept / "index.json").read_text(encoding="utf-8"))
    assert len(index) == len(EXPERIMENTS)
    assert {entry["key"] for entry in index.values()} == {e.key for e in EXPERIMENTS}
    assert {entry["outcome"] for entry in index.values()} == {"completed", "diverged"}


def test_the_series_are_those_computed_and_the_final_point_is_left_out(computed, kept):
    for experiment in EXPERIMENTS:
        run, source = (
            Run.load(run_path(experiment, folder)) for folder in (kept / "a-recipe", computed)
        )
        assert run.final_point is None
        assert source.final_point is not None
        for name in source.series:
            np.testing.assert_array_equal(run[name].values, source[name].values)


def test_a_flipped_bit_is_found(kept):
    path = sorted(kept.glob("*/*.npz"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert any("its checksum is not that of the index" in p for p in store.problems(kept))


def test_a_number_edited_by_hand_is_found(kept):
    path = run_path(EXPERIMENTS[0], kept / "a-recipe")

    def edit(run):
        run["sharpness"].values[-1] *= 1.01

    changed(path, edit)
    assert any("was changed" in problem for problem in store.problems(kept))


def test_missing_unknown_and_edited_entries_are_found(kept):
    first, second, third = sorted(kept.glob("*/*.npz"))[:3]
    first.unlink()
    shutil.copy(second, kept / "a-recipe" / "copy.npz")
    index = json.loads((kept / "index.json").read_text(encoding="utf-8"))
    index[third.relative_to(kept).as_posix()]["step"] = 3
    (kept / "index.json").write_text(json.dumps(index), encoding="utf-8")
    found = "\n".join(store.problems(kept))
    assert f"{first.name} is in the index, but there is no such file" in found
    assert "copy.npz is not in the index" in found
    assert "copy.npz: its settings are those of" in found
    assert f"{third.name}: the index says other things of it" in found
    assert second.name not in found.replace(f"those of {second.stem}", "")
    (kept / "index.json").write_text("[", encoding="utf-8")
    assert "cannot be read" in store.problems(kept)[0]
    (kept / "index.json").unlink()
    assert "filled with runs --add" in store.problems(kept)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.settings.update(lr=0.3), "lr is 0.3, its experiment says 0.1"),
        (lambda run: run.settings.update(num_steps=3), "num_steps is 3, its experiment says 40"),
        (lambda run: run.settings["experiment"].update(seed=4), "its settings are those of"),
        (lambda run: run.provenance.pop("torch"), "'torch'"),
        (
            lambda run: run.series.update(sharpness=run["sharpness"].until(20)),
            "the steps of its sharpness are not those of its schedule",
        ),
        (
            lambda run: run.series.update(loss=run["loss"].since(1)),
            "its loss is not there for every step",
        ),
        (
            lambda run: run.series.update(loss=Series(np.arange(41), np.full(41, np.nan))),
            "a loss is not finite",
        ),
        (
            lambda run: setattr(run, "outcome", Outcome("stopped", 40, "")),
            "it is not finished: stopped",
        ),
        (lambda run: setattr(run, "final_point", np.zeros(3)), "it holds a final point"),
        (lambda run: run.settings.pop("experiment"), "of no experiment"),
    ],
)
def test_a_record_that_contradicts_its_settings_is_found(change, message, kept):
    """Even if somebody makes the index fit."""
    path = run_path(EXPERIMENTS[0], kept / "a-recipe")
    changed(path, change)
    if "'torch'" not in message and "of no" not in message:
        store.write_index(kept)
    assert any(message in problem for problem in store.problems(kept)), store.problems(kept)


def test_what_is_no_finished_run_does_not_get_in(computed, tmp_path):
    run = Run.load(run_path(EXPERIMENTS[0], computed))
    run.outcome = type(run.outcome)("stopped", 3, "")
    with pytest.raises(ValueError, match="not finished"):
        store.add(run.save(tmp_path / "a.npz"), "r", tmp_path / "store")
    run = Run.load(run_path(EXPERIMENTS[0], computed))
    del run.settings["experiment"]
    with pytest.raises(ValueError, match="of no experiment"):
        store.add(run.save(tmp_path / "a.npz"), "r", tmp_path / "store")
    assert not list(tmp_path.glob("store/*/*"))


def test_a_store_does_not_grow_beyond_its_limit(computed, kept, monkeypatch):
    before = (kept / "index.json").read_bytes()
    monkeypatch.setattr(store, "LIMIT_BYTES", 5_000)
    with pytest.raises(ValueError, match="more than 5,000"):
        store.add(run_path(EXPERIMENTS[0], computed), "another", kept)
    assert not list(kept.glob("another/*"))
    assert (kept / "index.json").read_bytes() == before
    assert any("more than 5,000" in problem for problem in store.problems(kept))
    there = run_path(EXPERIMENTS[0], kept / "a-recipe")
    with pytest.raises(ValueError, match="more than 5,000"):  # the same again
        store.add(run_path(EXPERIMENTS[0], computed), "a-recipe", kept)
    assert there.exists()


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)
def test_stored_runs_can_be_replayed(experiment, kept, tmp_path):
    path = run_path(experiment, kept / "a-recipe")
    apart = store.replayed(path, tmp_path / "again", num_steps=10)
    assert max(apart.values()) < 1e-5

    def edit(run):  # consistent, and wrong
        run["loss"].values[:] *= 1.01

    changed(path, edit)
    store.write_index(kept)
    assert store.problems(kept) == []
    assert store.replayed(path, tmp_path / "again", num_steps=5)["loss"] > 5e-3


def test_a_replay_compares_losses_and_sharpnesses_and_misses_none(kept, tmp_path):
    path = run_path(EXPERIMENTS[0], kept / "a-recipe")

    def edit(run):
        run["sharpness"].values[0] *= 1.01
        run.series["loss"] = run["loss"].since(1)

    changed(path, edit)
    apart = store.replayed(path, tmp_path / "again", num_steps=5)
    assert apart == {"loss": math.inf, "sharpness": pytest.approx(0.01, rel=0.1)}


def test_the_seconds_of_runs_that_were_computed_together_count_once(kept):
    first, second = Experiment(**SETTINGS, lr=0.1), Experiment(**SETTINGS, lr=0.2)
    alone = Experiment(**SETTINGS, lr=0.1, seed=1)
    run = Run.load(run_path(EXPERIMENTS[0], kept / "a-recipe"))
    for experiment, seconds, more in (
        (first, 3.0, {"runs_together": 2}),
        (second, 4.0, {"runs_together": 2}),
        (alone, 5.0, {"gpu": "Some GPU"}),
    ):
        run.settings["experiment"] = experiment.to_json()
        run.provenance |= {"seconds": seconds, "runs_together": 1, **more}
        run.save(run_path(experiment, kept / "timed"))
    assert store.seconds_of("timed", kept) == {"cpu": 4.0, "gpu": 5.0}


def test_a_time_is_measured_where_all_runs_are_stored_and_else_completed(kept):
    """A part of a recipe once stood for the whole, and a run that was short for one that is not."""
    first, second = (Experiment(**{**SETTINGS, "num_steps": n}, lr=0.1) for n in (40, 80))
    recipe = replace(RECIPES["fig4"], name="timed", experiments=(first, second))
    run = Run.load(run_path(EXPERIMENTS[0], kept / "a-recipe"))
    run.provenance |= {"runs_together": 1}

    def keep(experiment, seconds, step, **more):
        run.settings["experiment"] = experiment.to_json()
        run.outcome = replace(run.outcome, step=step)
        run.provenance |= {"seconds": seconds, **more}
        run.save(run_path(experiment, kept / "timed"))

    def estimate(kind, *parts):
        return pytest.approx(recipe.estimated_seconds(kind, parts))

    whole = {kind: (recipe.estimated_seconds(kind), False) for kind in ("cpu", "gpu")}
    assert store.expected_seconds(recipe, kept) == whole
    keep(first, 300.0, 40)
    found = store.expected_seconds(recipe, kept)
    assert found["cpu"] == (300 + estimate("cpu", (second, 1.0)).expected, False)
    assert found["gpu"] == whole["gpu"]
    keep(second, 500.0, 20)  # it reached its goal after a quarter of its steps
    found = store.expected_seconds(recipe, kept)
    assert found["cpu"] == (800.0, True)
    assert found["gpu"] == (estimate("gpu", (first, 1.0), (second, 0.25)), False)
    keep(second, 5.0, 20, gpu="Some GPU")
    found = store.expected_seconds(recipe, kept)
    assert found["gpu"] == (5 + estimate("gpu", (first, 1.0)).expected, False)
    assert found["cpu"] == (300 + estimate("cpu", (second, 0.25)).expected, False)


def test_the_time_of_a_recipe_with_a_rule_is_not_that_of_its_flow(kept):
    flow = EXPERIMENTS[-1]
    recipe = replace(RECIPES["fig5-square"], name="timed", experiments=(flow,))
    store.add(run_path(flow, kept / "a-recipe"), "timed", kept)
    seconds, measured = store.expected_seconds(recipe, kept)["cpu"]
    assert not measured
    assert seconds > recipe.estimated_seconds("cpu", 5 * [(recipe.by_rule, 1.0)])
    store.add(run_path(EXPERIMENTS[0], kept / "a-recipe"), "timed", kept)
    own = store.seconds_of("timed", kept)["cpu"]
    assert store.expected_seconds(recipe, kept)["cpu"] == (own, True)


def test_what_is_left_to_run(tmp_path, monkeypatch):
    recipes = [recipe for recipe in RECIPES.values() if recipe.by_rule is not None][:1]
    recipes += [recipe for recipe in RECIPES.values() if recipe.by_rule is None][:1]
    monkeypatch.setattr(store, "RECIPES", {recipe.name: recipe for recipe in recipes})
    for recipe in recipes:
        (tmp_path / recipe.name).mkdir()
        planned = len({experiment.key for experiment in recipe.experiments})
        for number in range(planned + (recipe.by_rule is not None)):
            last = tmp_path / recipe.name / f"{number}.npz"
            last.touch()
        last.unlink()
        assert store.left_to_run(tmp_path)[recipe.name] == number
        last.touch()
    assert store.left_to_run(tmp_path) == {}


# -- the store of this repository ---------------------------------------------------------------


def test_the_runs_kept_in_the_repository_are_well():
    assert list((ROOT / "runs").glob("*/*.npz")), "the store is empty"
    assert store.problems(ROOT / "runs") == []


def test_the_first_steps_of_the_runs_kept_are_what_the_code_computes(tmp_path):
    """One of each recipe whose data are in the package."""
    for folder in sorted((ROOT / "runs").iterdir()):
        if not folder.is_dir() or not folder.name.startswith(("chebyshev", "deep-linear")):
            continue
        for path in sorted(folder.glob("*.npz"))[:1]:
            apart = store.replayed(path, tmp_path, num_steps=10)
            assert max(apart.values()) < 2e-3, path


def test_the_runs_of_a_recipe_in_order(kept, monkeypatch):
    runs = store.runs_of("a-recipe", kept)
    assert [run.settings.get("lr") for run in runs] == [None, 0.1, 0.1, 0.2, 1e4]
    inverse = Experiment(**SETTINGS, optimizer="inverse-sharpness", sharpness_every=1)
    run_experiment(inverse, kept / "a-recipe", device="cpu")
    assert [run.settings.get("lr") for run in store.runs_of("a-recipe", kept)][1:3] == ["nan", 0.1]
    run_path(inverse, kept / "a-recipe").unlink()
    assert store.runs_of("standard-vgg11-square", kept) == []  # nobody ran it
    with pytest.raises(ValueError, match="unknown recipe '1k-cnn-tan-square'; did you mean"):
        store.runs_of("1k-cnn-tan-square", kept)
    below = kept.parent / "book" / "deep"
    below.mkdir(parents=True)
    kept.rename(kept.parent / "runs")
    monkeypatch.chdir(below)
    assert len(store.runs_of("a-recipe")) == len(EXPERIMENTS)
    monkeypatch.chdir(kept.anchor)
    with pytest.raises(FileNotFoundError, match=r"no folder runs with an index.json.*pass store="):
        store.runs_of("a-recipe")


def test_runs_of_one_step_size_come_in_the_order_of_its_changes(tmp_path):
    for step in (4, 3, 2, 1):
        changing = Experiment(**SETTINGS, lr=0.05, lr_changes=[(step, 0.01)])
        run_experiment(changing, tmp_path / "changing", device="cpu")
    found = store.runs_of("changing", tmp_path)
    assert [run.settings["lr_changes"][0][0] for run in found] == [1, 2, 3, 4]


def test_the_origin_of_runs(kept):
    runs = store.runs_of("a-recipe", kept)
    words = store.origin(runs)
    assert words.startswith(f"{len(runs)} stored runs, computed 20")
    assert " on cpu with PyTorch " in words and "T_3 at 12 evenly spaced points" in words
    assert words.count("T_3") == 1
    for run, hour in zip(runs, "12345", strict=True):
        run.provenance["date"] = f"2026-01-01T{hour}"
    assert "computed 2026-01-01 on" in store.origin(runs)
    runs[0].provenance["date"] = "2026-01-03T1"
    assert "computed 2026-01-01 to 2026-01-03 on" in store.origin(runs)
    assert store.origin(runs[:1]).startswith("1 stored run, ")
    before = {"device_before": "Some GPU", "torch_before": "2.1"}
    runs[0].provenance["resumed"] = [{"step": 1, "date": "", **before}]
    assert " on Some GPU, cpu with PyTorch 2.1, " in store.origin(runs)
    with pytest.raises(ValueError, match="no runs"):
        store.origin([])
