"""The laboratory on the Python side: what it refuses, what it sends, what it gets back."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

pytest.importorskip("anywidget")

from eoslib import GradientDescent, Objective, build, chebyshev, digits, every, train
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


def test_repr_is_the_same_in_every_build():
    assert repr(Laboratory("adam")) == "Laboratory('adam')"
    assert repr(Laboratory(settings={"degree": 3})) == "Laboratory({'degree': 3})"


def test_weights_travel_as_float64():
    weights = np.linspace(-1, 1, 7)
    laboratory = Laboratory(settings={"hidden": [2]}, initial_point=weights)
    assert np.array_equal(np.frombuffer(laboratory.initial_point, "<f8"), weights)
    assert laboratory.preset == ""


def hand_over(
    every_: int, low: np.ndarray, high: np.ndarray, state: str = "training"
) -> Laboratory:
    """A laboratory to which the page has handed a run with the channels loss and eigenvalue1."""
    final, initial = np.arange(3.0), np.ones(3)
    laboratory = Laboratory()
    rows = [final, initial, low, high, 10 * low, 10 * high]
    result = {
        "settings": {"task": "chebyshev", "seed": 0},
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
