"""The laboratory on the Python side: what it refuses, what it sends, what it gets back."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt

pytest.importorskip("anywidget")

from eoslib import (
    Adam,
    GradientDescent,
    Objective,
    Polyak,
    RMSProp,
    Run,
    Series,
    StepSizeChanges,
    build,
    chebyshev,
    digits,
    every,
    gradient_flow,
    train,
)
from eoslib.experiment import Experiment, run_experiment
from eoslib.widgets.laboratory import NUM_IMAGES, PRESETS, RUNS_FILE, Laboratory, picture
from scripts.laboratory_runs import run_all
from tests.test_laboratory_engine import drive, find_node, run_job

ENGINE = Path(__file__).parents[1] / "eoslib" / "widgets" / "laboratory_engine.js"


def page_images(laboratory: Laboratory) -> dict[str, object]:
    block = np.frombuffer(laboratory.pixels, np.uint8)
    return {
        "pixels": block[: 64 * NUM_IMAGES].tolist(),
        "labels": block[64 * NUM_IMAGES :].tolist(),
        **laboratory.images,
    }


def test_the_digits_of_the_page_are_those_of_the_library():
    laboratory = Laboratory()
    assert len(laboratory.pixels) == 65 * NUM_IMAGES
    job = run_job(
        {"task": "digits", "points": NUM_IMAGES, "hidden": [], "measureEvery": 1000},
        0,
        images=page_images(laboratory),
    )
    (found,) = drive(job)
    expected = digits(NUM_IMAGES)
    assert found["inputs"] == expected.inputs.flatten().tolist()
    assert found["targets"] == expected.targets.flatten().tolist()


def test_every_preset_has_settings_that_the_engine_takes():
    program = f"""
        import {{ laboratoryEngine }} from {json.dumps(ENGINE.as_uri())};
        const {{ checkSettings, SETTINGS }} = laboratoryEngine();
        for (const one of {json.dumps([one["settings"] for one in PRESETS.values()])}) {{
          checkSettings(one);
        }}
        console.log(JSON.stringify(Object.keys(SETTINGS)));
    """
    ended = subprocess.run(
        [find_node(), "--input-type=module", "-e", program],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    with pytest.raises(ValueError, match="unknown settings width; there are") as caught:
        Laboratory(settings={"width": 3})
    for name in json.loads(ended.stdout):
        assert name in str(caught.value)


def test_the_program_is_one_text_without_imports():
    programs = {Laboratory()._esm, Laboratory("adam", compact=True)._esm}
    assert len(programs) == 1, "a page keeps one copy for all"
    for widget in (Laboratory(), Laboratory("adam", compact=True)):
        assert "\nimport {" not in widget._esm
        assert widget._esm.count("\nexport default") == 1
        assert "workerSource" in widget._esm
    assert len(widget._esm.encode()) < 160_000


def test_the_engine_is_small():
    assert ENGINE.stat().st_size <= 60_000


def test_a_compact_one_sends_what_it_shows_and_no_more():
    compact = Laboratory("momentum", compact=True)
    assert [one["key"] for one in compact.presets] == ["momentum"]
    assert compact.title == PRESETS["momentum"]["name"]
    assert compact.pixels == b""
    assert len(Laboratory("digits", compact=True).pixels) == 65 * NUM_IMAGES
    own = Laboratory(settings={"task": "digits"}, compact=True)
    assert own.presets == []
    assert own.title == "The laboratory"
    assert len(own.pixels) == 65 * NUM_IMAGES
    assert Laboratory("momentum").title == "The laboratory"
    assert Laboratory("momentum", compact=True, title="Polyak").title == "Polyak"


def test_the_pictures_show_the_runs_of_the_engine():
    """Every stored number is the engine's, bit for bit, and every preset has its picture."""
    with np.load(RUNS_FILE, allow_pickle=False) as file:
        stored = dict(file)
    found = run_all()
    assert stored.keys() == found.keys()
    assert set(PRESETS) <= stored.keys()
    for name, values in found.items():
        assert np.array_equal(stored[name], values, equal_nan=True), name


def test_without_javascript_there_is_a_picture():
    data, _ = Laboratory("beside_flow", compact=True)._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"].startswith("Gradient descent beside gradient flow: a laboratory,")
    own, _ = Laboratory(settings={"degree": 3})._repr_mimebundle_()
    assert "image/png" not in own, "nobody has made that run"


@pytest.mark.parametrize("preset", PRESETS)
def test_a_picture_holds_the_whole_run(preset):
    figure = picture(preset)
    upper, lower = figure.axes
    with np.load(RUNS_FILE, allow_pickle=False) as file:
        _, loss, threshold, sharpness, _ = file[preset]
    for ax, values in ((upper, loss), (lower, sharpness)):
        low, high = ax.get_ylim()
        assert low < np.nanmin(values) <= np.nanmax(values) < high
    if PRESETS[preset]["settings"].get("optimizer") != "flow":
        assert np.nanmax(threshold) < lower.get_ylim()[1]
    plt.close(figure)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="preset must be one of edge, drop"):
        Laboratory("edges")
    with pytest.raises(ValueError, match="needs the settings"):
        Laboratory(initial_point=[1.0])
    for wrong in ([], [[1.0]], [np.nan]):
        with pytest.raises(ValueError, match="vector of finite numbers"):
            Laboratory(settings={}, initial_point=wrong)


def test_settings_may_be_assigned_later():
    laboratory = Laboratory()
    laboratory.settings = {"hidden": (8, 4)}
    assert laboratory.settings == {"hidden": [8, 4]}, "as JSON has it"
    with pytest.raises(ValueError, match="unknown settings width; there are"):
        laboratory.settings = {"width": 3}
    assert laboratory.settings == {"hidden": [8, 4]}


# -- what the chapters ask the reader to predict ---------------------------------------------------


def series(preset: str, steps: int, **changed: object) -> dict[str, np.ndarray]:
    """A preset's run, with settings changed, as the page would make it: every step."""
    job = run_job(PRESETS[preset]["settings"] | changed, steps, points=False)
    (found,) = drive(job)
    return {
        name: np.array([np.nan if v is None else v for v in values])
        for name, values in found["series"].items()
    }


def test_edge_of_stability_half_the_step_size_takes_more_than_twice_as_long():
    first = series("edge", 400)["eigenvalue1"]
    second = series("edge", 1300, stepSize=0.1)["eigenvalue1"]
    assert 340 < int(np.argmax(first > 10)) < 360
    assert int(np.argmax(second > 20)) > 800


def test_crossing_the_edge_creeps_down_and_jumps_up():
    before = PRESETS["hand"]["warm"]
    lower = series("hand", 2500, changes=[[1300, 0.1]])["eigenvalue1"]
    at_the_edge = np.median(lower[before:1300])
    assert at_the_edge == pytest.approx(2 / 0.14, rel=0.03)
    assert lower[1310] < 1.06 * at_the_edge, "it does not jump"
    assert 1.15 * at_the_edge < np.median(lower[2300:]) < 20, "it creeps towards the line at 20"
    higher = series("hand", 1700, changes=[[1300, 0.2]])
    assert higher["loss"][1300:1311].max() > 30 * higher["loss"][1300], "ten steps"
    assert np.median(higher["eigenvalue1"][1310:1340]) < 10, "it lands below the line"


def test_momentum_puts_the_line_at_20():
    run = series("momentum", 2000, stepSize=0.15)
    assert run["threshold"][0] == pytest.approx(20)
    assert np.median(run["eigenvalue1"][1400:]) == pytest.approx(20, rel=0.1)


def test_leaving_gradient_flow_at_the_same_share_above_the_line():
    shares = []
    for lr, last in ((0.2, 600), (0.25, 450)):
        sharpness = series("beside_flow", last, stepSize=lr)["eigenvalue1"]
        shares.append(sharpness.max() * lr / 2)
    assert shares[0] == pytest.approx(1.4, abs=0.06)
    assert shares[1] == pytest.approx(shares[0], rel=0.05)


def test_not_a_quadratic_story_the_network_rises_first_and_comes_back():
    run = series("taylor", 700)
    assert 1 < run["eigenvalue1"][380] / 10 < 1.1, "not a tenth above"
    loss, twin = run["loss"], run["twin"]
    assert np.allclose(loss[381:420], twin[381:420], rtol=0.05), "they do not part at once"
    rises = [380 + int(np.argmax(values[380:] > 2 * loss[380])) for values in (loss, twin)]
    assert 380 < rises[0] < rises[1]
    assert loss[rises[0] :].max() > 5 * loss[380] > 5 * loss[550], "it came back"
    assert np.nanmax(twin) > 1e3


def test_what_step_size_goes_back_to_its_line_with_a_bang():
    run = series("drop", 3000, changes=[[1000, 0.15], [1500, 0.2]])
    assert np.median(run["eigenvalue1"][1450:1500]) > 11.5
    assert run["loss"][1500:1700].max() > 10 * run["loss"][1500]
    assert np.median(run["eigenvalue1"][2000:]) == pytest.approx(10, rel=0.1)


def test_stochastic_gradients_creep():
    sharpness = series("batches", 4500, changes=[[1500, 0.05]])["eigenvalue1"]
    before, after = np.median(sharpness[1000:1500]), np.median(sharpness[4000:])
    assert 4 < before < 7
    assert 1.1 < after / before < 1.6
    assert after < 10, "not even at the old line"


def test_cross_entropy_uses_the_room_early_and_not_late():
    early = series("cross_entropy", 1600, changes=[[1000, 0.1]])["eigenvalue1"]
    late = series("cross_entropy", 3200, changes=[[2400, 0.1]])["eigenvalue1"]
    assert late[900:1000] == pytest.approx(10, rel=0.1)
    assert np.median(early[1400:]) > 15
    assert late[2400] == pytest.approx(5, abs=0.3)
    assert late[2400:].max() < 5.5
    assert late[3100] < 4


def test_repr_is_the_same_in_every_build():
    assert repr(Laboratory("adam")) == "Laboratory('adam')"
    assert repr(Laboratory(settings={"degree": 3})) == "Laboratory({'degree': 3})"


def test_weights_travel_as_float64():
    weights = np.linspace(-1, 1, 7)
    laboratory = Laboratory(settings={"hidden": [2]}, initial_point=weights)
    assert np.array_equal(np.frombuffer(laboratory.initial_point, "<f8"), weights)
    assert laboratory.preset == ""


def hand_over(
    every_: int,
    low: np.ndarray,
    high: np.ndarray,
    state: str = "training",
    first: float = 0.2,
    changes: tuple[list[float], ...] = (),
    **settings: Any,
) -> Laboratory:
    """A laboratory to which the page has handed a run with the channels loss and eigenvalue1."""
    final, initial = np.arange(3.0), np.ones(3)
    laboratory = Laboratory()
    rows = [final, initial, low, high, 10 * low, 10 * high]
    result = {
        "settings": {"task": "chebyshev", "seed": 0, "stepSize": first, "changes": list(changes)}
        | settings,
        "state": state,
        "message": "the loss was 1e9" if state == "diverged" else "",
        "steps": every_ * len(low) - 1,
        "every": every_,
        "channels": ["loss", "eigenvalue1"],
        "parameters": 3,
        "threshold": 10.0,
        "stepSize": 0.2,
        "examples": 20,
    }
    numbers = memoryview(np.concatenate(rows).astype("<f8").tobytes())  # as a kernel gets them
    laboratory.set_state({"numbers": numbers, "result": result})
    return laboratory


def test_no_run_before_the_first_pause():
    assert Laboratory().run is None


def test_a_short_run_arrives_step_by_step():
    values = np.array([3.0, 2.0, np.inf, 0.5])
    run = hand_over(1, values, np.where(np.isinf(values), -np.inf, values)).run
    assert run is not None
    assert run["loss"].steps.tolist() == [0, 1, 3]
    assert run.sharpness.values.tolist() == [30, 20, 5]
    assert set(run.series) == {"loss", "sharpness"}
    assert (run.lr, run.threshold, run.crossing) == (0.2, 10, 0)
    assert run.outcome.status == "stopped"
    assert run.outcome.step == 3
    assert run.final_point is not None
    assert run.final_point.tolist() == [0, 1, 2]
    assert run.settings["initial_point"] == [1, 1, 1]


def test_a_run_whose_step_size_was_moved_begins_with_the_first_one():
    values = np.array([0.25, 0.25, 0.5, 0.5])
    run = hand_over(1, values, values, first=0.8, changes=([1, 0.4], [2, 0.2], [9, 0.1])).run
    assert run is not None
    assert (run.lr, run.threshold) == (0.8, 2.5)
    assert run.settings["lr_changes"] == [[1, 0.4], [2, 0.2]]
    np.testing.assert_allclose(run.sharpness_ratio.values, [1, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(run.time(np.arange(5)), [0, 0.8, 1.2, 1.4, 1.6])


def test_a_run_without_a_sharpness_is_not_set_beside_the_page():
    nothing = np.full(4, np.nan)
    run = hand_over(1, nothing, nothing).run
    assert run is not None
    run.series["loss"] = Series(np.arange(2), np.array([1.0, 0.5]))
    with pytest.raises(ValueError, match="no sharpness that was found"):
        Laboratory.from_run(run)


def test_a_long_run_arrives_as_an_envelope(tmp_path):
    low, high = np.array([3.0, 1.0]), np.array([5.0, 1.0])
    run = hand_over(4, low, high, "diverged").run
    assert run is not None
    assert run["loss"].steps.tolist() == [0, 4]
    assert run["loss"].values.tolist() == [4, 1]
    assert run["loss_low"].values.tolist() == [3, 1]
    assert run["sharpness_high"].values.tolist() == [50, 10]
    assert run.outcome.status == "diverged"
    assert run.outcome.message == "the loss was 1e9"
    again = type(run).load(run.save(tmp_path / "run"))
    assert again["loss_high"].values.tolist() == [5, 1]


def test_weights_of_the_library_train_alike_in_the_page():
    network = build("fc-tanh", 1, 1, widths=(8,), init="lecun", seed=3)
    objective = Objective.from_dataset(network, chebyshev(3, 12), dtype="float64")
    run = train(objective, GradientDescent(0.1), num_steps=40, sharpness_schedule=every(1))
    laboratory = Laboratory(
        settings={"degree": 3, "points": 12, "hidden": [8], "stepSize": 0.1},
        initial_point=objective.initial_point,
    )
    weights = np.frombuffer(laboratory.initial_point, "<f8").tolist()
    (found,) = drive(run_job(dict(laboratory.settings), 40, initialPoint=weights))
    np.testing.assert_allclose(found["series"]["loss"], run["loss"].values, rtol=1e-9)
    np.testing.assert_allclose(found["series"]["eigenvalue1"], run["sharpness"].values, rtol=3e-3)


# -- a run of Python's in the page -----------------------------------------------------------------

CHEBYSHEV_3 = {"task": "chebyshev", "degree": 3, "points": 12, "hidden": [8]}


@pytest.fixture(scope="module")
def small() -> Objective:
    network = build("fc-tanh", 1, 1, widths=(8,), init="lecun", seed=3)
    return Objective.from_dataset(network, chebyshev(3, 12), dtype="float64")


def shadow_of(laboratory: Laboratory) -> dict[str, np.ndarray]:
    rows = np.frombuffer(laboratory.shadow_numbers, "<f8")
    channels = laboratory.shadow["channels"]
    return dict(zip(channels, rows.reshape(len(channels), 2, -1), strict=True))


def repeated(laboratory: Laboratory, steps: int) -> dict[str, list[float]]:
    """What the engine makes of the settings and weights that the page gets."""
    weights = np.frombuffer(laboratory.initial_point, "<f8").tolist()
    job = run_job(dict(laboratory.settings), steps, initialPoint=weights)
    if laboratory.settings["task"] == "digits":
        job |= {"images": page_images(laboratory)}
    (found,) = drive(job)
    return found["series"]


@pytest.mark.parametrize(
    "rule",
    [
        GradientDescent(0.1),
        Polyak(0.1, 0.5),
        # (T₃ is odd: some gradients are zero but for rounding, which a small ε would blow up.)
        RMSProp(0.001, 0.9, 1e-3),
        Adam(0.001, 0.8, 0.99, 1e-3),
        StepSizeChanges(GradientDescent(0.1), [(10, 0.05), (30, 0.2)]),
    ],
    ids=["gd", "polyak", "rmsprop", "adam", "changes"],
)
def test_the_page_repeats_a_run_of_python_beside_its_shadow(small, rule):
    run = train(small, rule, num_steps=40, sharpness_schedule=every(1))
    laboratory = Laboratory.from_run(
        run, settings=CHEBYSHEV_3, initial_point=small.initial_point, title="Mine"
    )
    assert laboratory.title == "Mine"
    shadow, engine = shadow_of(laboratory), repeated(laboratory, 40)
    np.testing.assert_allclose(shadow["loss"][0], engine["loss"], rtol=1e-9)
    np.testing.assert_allclose(shadow["eigenvalue1"][1], engine["eigenvalue1"], rtol=3e-3)
    np.testing.assert_allclose(shadow["time"][0], engine["time"], atol=1e-12)
    assert laboratory.shadow["steps"] == len(run["loss"]) == 41
    assert laboratory.shadow["threshold"] == rule.threshold
    assert laboratory.shadow["settings"] == laboratory.settings


def test_a_shadow_holds_the_extremes_of_what_was_measured(small):
    run = train(small, GradientDescent(0.1), num_steps=3000, sharpness_schedule=every(20))
    laboratory = Laboratory.from_run(run, settings=CHEBYSHEV_3, initial_point=small.initial_point)
    shadow, width = shadow_of(laboratory), laboratory.shadow["width"]
    assert width == max(np.diff(run.sharpness.steps))
    assert shadow["loss"].shape == (2, 3000 // width + 1)
    for name, series in (("loss", run["loss"]), ("eigenvalue1", run.sharpness)):
        for bucket, (low, high) in enumerate(shadow[name].T):
            inside = series.values[series.steps // width == bucket]
            assert (low, high) == (inside.min(), inside.max())


def test_gradient_flow_of_python_is_a_shadow_in_time(small):
    run = gradient_flow(small, duration=5.0, tick=0.25)
    laboratory = Laboratory.from_run(run, settings=CHEBYSHEV_3, initial_point=small.initial_point)
    assert laboratory.settings["optimizer"] == "flow"
    assert laboratory.shadow["threshold"] is None
    np.testing.assert_allclose(shadow_of(laboratory)["time"][0], 0.25 * np.arange(21))


@pytest.mark.parametrize(
    "settings",
    [
        {"dataset": "chebyshev-5-20", "architecture": "fc-softplus"},
        {"dataset": "digits-30", "architecture": "fc-relu", "loss": "cross_entropy"},
    ],
)
def test_experiments_say_themselves_what_they_are(settings, tmp_path):
    options = {"architecture_options": {"widths": [9, 7]}, "dtype": "float64", "lr": 0.05}
    experiment = Experiment(**settings, **options, num_steps=10, sharpness_every=1, seed=4)
    run = run_experiment(experiment, tmp_path)
    laboratory = Laboratory.from_run(run)
    engine = repeated(laboratory, 10)
    np.testing.assert_allclose(shadow_of(laboratory)["loss"][0], engine["loss"], rtol=1e-8)


def test_a_run_of_the_page_comes_back_to_a_page():
    low, high = np.array([3.0, 1.0]), np.array([5.0, 1.0])
    handed = hand_over(4, low, high)
    assert handed.run is not None
    run = handed.run
    laboratory = Laboratory.from_run(run)
    own = {"task": "chebyshev", "seed": 0, "stepSize": 0.2, "changes": []}
    assert laboratory.settings == own
    assert np.frombuffer(laboratory.initial_point, "<f8").tolist() == [1, 1, 1]
    np.testing.assert_array_equal(shadow_of(laboratory)["loss"], [low, high])
    np.testing.assert_array_equal(shadow_of(laboratory)["eigenvalue1"], [10 * low, 10 * high])


def test_what_adam_is_measured_by_has_its_own_name():
    low, high = np.array([3.0, 1.0]), np.array([5.0, 1.0])
    handed = hand_over(4, low, high, optimizer="adam", beta1=0.9)
    assert handed.run is not None
    assert "sharpness" not in handed.run.series
    np.testing.assert_array_equal(handed.run.preconditioned_sharpness.values, [40, 10])
    laboratory = Laboratory.from_run(handed.run)
    np.testing.assert_array_equal(shadow_of(laboratory)["eigenvalue1"], [10 * low, 10 * high])


def test_runs_without_a_counterpart_are_refused(small, tmp_path):
    run = train(small, GradientDescent(0.1), num_steps=2)
    for options, words in (
        ({}, "does not know its data and network"),
        ({"settings": CHEBYSHEV_3}, "give the run's initial_point"),
        ({"settings": CHEBYSHEV_3, "initial_point": [1.0]}, "the run has 25 weights.* has 1"),
    ):
        with pytest.raises(ValueError, match=words):
            Laboratory.from_run(run, **options)
    for change in (
        {"optimizer": "inverse-sharpness"},
        {"batch_size": 3},
        {"loss": "token_cross_entropy"},
    ):
        other = Run(run.settings | change, run.series, run.outcome)
        with pytest.raises(ValueError, match=r"the laboratory (repeats|has no loss)"):
            Laboratory.from_run(other, settings=CHEBYSHEV_3, initial_point=small.initial_point)
    for settings in (
        {"dataset": "linear-3-4", "architecture": "deep-linear"},
        {"dataset": "digits-400", "architecture": "fc-tanh"},
        {"dataset": "chebyshev-4-20", "architecture": "regression"},
    ):
        experiment = Experiment(**settings, lr=1e-4, num_steps=1)
        with pytest.raises(ValueError, match="has no counterpart of"):
            Laboratory.from_run(run_experiment(experiment, tmp_path))
