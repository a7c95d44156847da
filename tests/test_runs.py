"""The run record: survives storage exactly, refuses what is no run, reads its own numbers."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from eoslib import Outcome, Run, RunFileError, Series
from eoslib.runs import in_digits


def make_run(ratios=(0.5, 0.8, 1.0, 1.05, 1.0), status="completed", lr=0.1, **extra):
    values = np.asarray(ratios) * 2 / lr
    steps = 10 * np.arange(len(values))
    return Run(
        settings={"lr": lr, "threshold": 2 / lr, "loss": "square", "dataset": "made up"},
        series={
            "loss": Series(np.arange(50), np.linspace(1, 0.1, 50)),
            "sharpness": Series(steps, values),
            **extra,
        },
        outcome=Outcome(status, 49, "a message"),
        provenance={"torch": "x", "seconds": 1.5},
    )


def test_a_run_survives_storage_exactly(tmp_path):
    run = make_run(eigenvalues=Series([0, 10], [[2.0, 1.0], [3.0, np.nan]]))
    run.final_point = np.linspace(0, 1, 7, dtype=np.float32)
    path = run.save(tmp_path / "deep" / "run.npz")
    again = Run.load(path)
    assert again.settings == run.settings
    assert again.outcome == run.outcome
    assert again.provenance == run.provenance
    assert again.series.keys() == run.series.keys()
    for name in run.series:
        np.testing.assert_array_equal(again[name].steps, run[name].steps)
        np.testing.assert_array_equal(again[name].values, run[name].values)
    np.testing.assert_array_equal(again.final_point, run.final_point)
    assert again.final_point.dtype == np.float32


def test_no_pickle_is_needed_to_read_it(tmp_path):
    path = make_run().save(tmp_path / "run.npz")
    with np.load(path, allow_pickle=False) as stored:
        assert {stored[name].dtype.kind for name in stored.files} <= set("ifU")


def test_saving_over_a_run_is_atomic(tmp_path, monkeypatch):
    path = make_run().save(tmp_path / "run.npz")
    before = path.read_bytes()

    def break_half_way(file, **arrays):
        file.write(b"half a run")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", break_half_way)
    with pytest.raises(OSError, match="no space"):
        make_run(lr=0.2).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.npz"]  # noqa: PTH208


def test_a_saved_run_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        path = make_run().save(tmp_path / "run.npz")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_numpy_numbers_and_nan_in_settings_become_plain_json(tmp_path):
    run = make_run()
    run.settings |= {"width": np.int64(3), "goal": float("nan"), "widths": (3, 4)}
    again = Run.load(run.save(tmp_path / "run.npz"))
    assert {k: again.settings[k] for k in ("width", "goal", "widths")} == {
        "width": 3,
        "goal": "nan",
        "widths": [3, 4],
    }
    assert again.describe() == run.describe()


def test_settings_that_are_no_json_are_refused_and_leave_nothing(tmp_path):
    run = make_run()
    run.settings["model"] = object()
    with pytest.raises(TypeError, match=r"\['settings'\]\['model'\] is a object"):
        run.save(tmp_path / "run.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 10, 200, -30])
def test_a_truncated_file_is_said_to_be_one(tmp_path, size):
    path = make_run().save(tmp_path / "run.npz")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(RunFileError, match=r"run\.npz \(\d+ bytes\) is not a readable run.*again"):
        Run.load(path)


def test_files_that_are_something_else(tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, x=np.ones(3))
    with pytest.raises(RunFileError, match="not a readable run"):
        Run.load(other)
    picture = tmp_path / "run.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(RunFileError, match=r"is not a readable run: no \.npz file\. Expected"):
        Run.load(picture)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, header=np.array([{}], dtype=object))
    with pytest.raises(RunFileError, match="not a readable run"):
        Run.load(pickled)
    for header in ("[1]", '{"format": "eoslib-run", "version": 1}', "no json"):
        np.savez(other, header=np.array(header))
        with pytest.raises(RunFileError, match="not a readable run"):
            Run.load(other)
    array = tmp_path / "array.npz"
    with array.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(RunFileError, match="not a readable run"):
        Run.load(array)
    newer = tmp_path / "newer.npz"
    header = {"format": "eoslib-run", "version": 99}
    np.savez(newer, header=np.array(json.dumps(header)))
    with pytest.raises(RunFileError, match="run format 99, this eoslib reads up to 1"):
        Run.load(newer)
    with pytest.raises(FileNotFoundError):
        Run.load(tmp_path / "absent.npz")


def test_series_refuse_what_is_none():
    with pytest.raises(ValueError, match="one value per step"):
        Series([0, 1], [1.0])
    with pytest.raises(ValueError, match="increase strictly"):
        Series([0, 0], [1.0, 2.0])
    for steps in ([0.5, 1.7], [0, np.nan]):
        with pytest.raises(ValueError, match="must be whole numbers"):
            Series(steps, [1.0, 2.0])
    assert Series([0.0, 5.0], [1.0, 2.0]).steps.dtype == np.int64


def test_an_unmeasured_series_is_named():
    with pytest.raises(KeyError, match=r"no series 'accuracy'; measured: loss, sharpness"):
        make_run()["accuracy"]


@pytest.mark.parametrize(
    ("ratios", "status", "words"),
    [
        ([0.2, 0.5, 1.1, 1.0, 1.0], "completed", "at the edge since step 20"),
        ([0.2, 0.3, 0.5], "completed", "sharpening: sharpness 10, threshold 20"),
        ([0.5, 0.4, 0.3], "completed", "below the edge: sharpness 6, threshold 20"),
        ([0.2, 0.6, 0.5], "completed", "below the edge: sharpness 10, threshold 20"),
        ([0.2, 0.3, 0.4], "goal reached", "solved before reaching the edge: sharpness 8"),
        ([0.5, 1.2, 1.0, 0.4, 0.3, 0.2], "completed", "was at the edge, now below it"),
        ([2.5, 0.5, 0.4, 0.3, 0.3], "completed", "started above the edge, now below it"),
        ([0.5, 1.9, 1.8, 1.9, 1.9], "completed", "above it at the end: sharpness 1.90"),
        (
            [1.5, 1.0, 1.02, 1.0, 1.0],
            "completed",
            "started above the edge, at the edge since step 10",
        ),
        ([0.5, *[1.0] * 13, 2.0], "completed", "at the edge since step 10"),
        ([0.5, 1.9], "diverged", "diverged at step 49"),
    ],
)
def test_a_run_says_its_state_in_words(ratios, status, words):
    assert make_run(ratios, status).describe().startswith(words)


def test_crossing_and_ratio_ignore_missing_measurements():
    run = make_run([0.5, np.nan, 1.2])
    assert run.crossing == 20
    assert run.sharpness.steps.tolist() == [0, 20]
    np.testing.assert_allclose(run.sharpness_ratio.values, [0.5, 1.2])
    assert make_run([0.5, 1.0, 0.9]).crossing == 10


def test_an_adaptive_optimizers_threshold_is_for_the_preconditioned_sharpness():
    run = make_run([0.1, 0.1, 0.1])
    assert run.curvature.values.tolist() == run.sharpness.values.tolist()
    assert not run.is_preconditioned
    with pytest.raises(KeyError, match="no series 'preconditioned_sharpness'"):
        len(run.preconditioned_sharpness)
    steps = run["sharpness"].steps
    for ratios, words in (
        ([0.5, 1.2, 1.0], "at the edge since step 10"),
        ([0.5, 0.6, 0.7], "sharpening: preconditioned sharpness 14, threshold 20"),
        ([0.5, 1.6, 1.6], "above it at the end: preconditioned sharpness 1.60 × threshold"),
    ):
        run.series["preconditioned_sharpness"] = Series(steps, 20.0 * np.array(ratios))
        assert run.is_preconditioned
        np.testing.assert_allclose(run.sharpness_ratio.values, ratios)
        np.testing.assert_allclose(run.sharpness.values, 2)
        assert run.describe() == words
    run.series["preconditioned_sharpness"] = Series(steps, [np.nan, 10.0, 30.0])
    assert run.crossing == 20
    assert run.threshold_name == "2/η"


def test_the_first_steps_of_an_adaptive_optimizer_are_no_crossing():
    """Its preconditioner knows one gradient then."""
    for ratios, words, crossing in (
        ([15.0, 0.1, 0.2, 0.3, 0.5], "sharpening: preconditioned sharpness 10, thresh", None),
        ([15.0, 0.1, 0.5, 0.9, 1.1, 1.0], "at the edge since step 40", 40),
        ([15.0, 2.0, 1.5], "started above the edge, above it at the end: precond", 0),
    ):
        run = make_run(ratios)
        run.series["preconditioned_sharpness"] = run.series["sharpness"]
        assert run.describe().startswith(words)
        assert run.crossing == crossing
        np.testing.assert_allclose(run.sharpness_ratio.values, ratios)


def test_a_change_of_the_step_size_moves_the_threshold():
    run = make_run(ratios=(0.5, 0.5, 0.5, 0.5), lr=0.1)
    run.settings["lr_changes"] = [[20, 0.4]]
    np.testing.assert_allclose(run.sharpness_ratio.values, [0.5, 0.5, 2, 2])
    assert run.crossing == 20
    run.settings["lr_changes"] = [[20, 0.05]]
    assert run.describe() == "below the edge: sharpness 10, threshold 40"


def test_time_is_the_sum_of_the_step_sizes():
    run = make_run(lr=0.1)
    run.settings["lr_changes"] = [[2, 0.5], [3, 1.0]]
    np.testing.assert_allclose(run.time(np.arange(6)), [0, 0.1, 0.2, 0.7, 1.7, 2.7])
    np.testing.assert_allclose(run.thresholds([0, 1, 2, 3]), [20, 20, 4, 2])
    run.settings["lr_changes"] = [[60, 0.5]]  # after its end
    assert run.lr_changes == []
    np.testing.assert_allclose(run.time([0, 100]), [0, 10])


def test_at_the_edge_since_counts_from_the_stay_that_lasts():
    spike = [0.5] * 5 + [1.05] * 2 + [0.3] * 20 + [0.9, 0.95, 1.0] + [1.02] * 20
    assert make_run(spike).describe() == "crossed at step 50, at the edge since step 290"
    dips = [0.9, 1.0, 1.1, 0.7, 0.75, 1.1] * 8 + [1.0]  # no stretch of five
    assert make_run(dips).describe() == "at the edge since step 10"
    just_below = [1.5] * 2 + [0.3] * 20 + [0.95] * 20
    words = "started above the edge, at the edge since step 230"  # the stretch reaches there
    assert make_run(just_below).describe() == words
    dropped = make_run([0.5, 1.0, *[1.0] * 10, *[1.02] * 20], lr=0.1)
    dropped.outcome = Outcome("completed", 320, "a message")
    dropped.settings["lr_changes"] = [[40, 0.1]]  # none, but a change all the same
    assert dropped.describe() == "crossed at step 10, at the edge since step 40"


def test_a_run_that_stays_above_its_edge_does_not_say_at_it():
    words = make_run(ratios=(1.25, 1.2, 1.2, 1.2, 1.2)).describe()
    assert words == "started above the edge, above it at the end: sharpness 1.20 × threshold"
    assert make_run(ratios=(1.5, 1.0, 1.0, 1.0)).describe().endswith("at the edge since step 10")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (3.14159, "3.14"),
        (0.00123, "0.00123"),
        (999.4, "999"),
        (1764.2, "1,764"),
        (2e6, "2,000,000"),
    ],
)
def test_numbers_are_told_without_an_exponent(number, told):
    assert in_digits(number) == told
