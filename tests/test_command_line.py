"""`python -m eoslib`: what it prints, what it leaves, and how it fails."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eoslib import Checkpoint, Run, train
from eoslib import __main__ as command_line
from eoslib.__main__ import main
from eoslib.progress import ProgressLine, duration_in_words
from eoslib.recipes import RECIPES

TRAIN = "train --dataset chebyshev-3-12 --architecture fc-tanh --widths 6 --steps 30 --device cpu"


def call(text, capsys):
    try:
        status = main(text.split())
    except SystemExit as end:
        status = end.code
    out = capsys.readouterr()
    return status, out.out, out.err


def test_help_of_all_commands_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "eoslib", "--help"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    for word in ("train", "reproduce", "runs", "python -m eoslib train --dataset"):
        assert word in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_a_reader_that_has_seen_enough_is_no_error():
    program = f"{shlex.quote(sys.executable)} -m eoslib reproduce --list | head -1"
    done = subprocess.run(
        program, shell=True, cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("cuda", 0)])
def test_freed_memory_is_kept_on_a_cpu_only(device, times, tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(command_line, "keep_freed_memory", lambda: calls.append("kept"))
    monkeypatch.setattr(command_line, "resolve_device", lambda _: torch.device(device))
    status, _, _ = call(f"{TRAIN} --lr 0.1 --out {tmp_path}", capsys)
    assert (status, len(calls)) == (0, times)


def test_data_for_a_task_that_needs_none(tmp_path, capsys):
    out, files = tmp_path / "out", tmp_path / "files"
    status, _, err = call(f"{TRAIN} --lr 0.1 --data {files} --out {out}", capsys)
    assert status == 2
    assert "chebyshev-3-12 is part of the package; leave --data out" in err
    # given for several recipes it is for those that read files
    status, _, _ = call(
        f"reproduce deep-linear --dataset linear-3-4 --steps 1 --lr 1e-4 --data {files} "
        f"--out {out} --device cpu",
        capsys,
    )
    assert status == 0


@pytest.mark.parametrize("name", ["train", "reproduce", "runs"])
def test_help(name, capsys):
    status, out, _ = call(f"{name} --help", capsys)
    assert status == 0
    assert "usage: python -m eoslib" in out


def test_training_writes_runs_and_finds_them_again(tmp_path, capsys):
    text = f"{TRAIN} --lr 0.1 0.2 --record projection:every=10,dimension=3 --out {tmp_path}"
    status, out, err = call(text, capsys)
    assert status == 0
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == 2
    assert out.count("all 30 steps done") == 2
    assert [Run.load(path).lr for path in files] == [0.1, 0.2]
    assert Run.load(files[0])["projection"].values.shape == (3, 3)
    stamps = [path.stat().st_mtime_ns for path in files]
    status, again, err = call(text, capsys)
    assert (status, again) == (0, out)
    assert err.count("found ") == 2
    assert [path.stat().st_mtime_ns for path in files] == stamps
    status, listed, _ = call(f"runs {tmp_path}", capsys)
    assert status == 0
    assert all(path.name in listed for path in files)


def test_all_options_reach_the_experiment(capsys):
    text = (
        "train --dataset digits-1k --architecture vgg11-bn --loss cross_entropy --seed 3 "
        "--dtype float64 --batch-norm ghost --optimizer nesterov --lr 0.5 --beta 0.9 "
        "--lr-change 10:0.1 --lr-change 20:0.2 --steps 50 --batch-size 7 --physical-batch-size 9 "
        "--accuracy-goal 0.9 --loss-goal 0.1 --eigenvalues 4 --sharpness-every 3 "
        "--sharpness-rtol 0.01 --sharpness-cold-every 9 --sharpness-examples 100 "
        "--record accuracy:every=4 "
        "--option init=lecun --option depth=3 --widths 4,5 --dry-run"
    )
    status, out, _ = call(text, capsys)
    assert status == 0
    assert json.loads(out) == [
        {
            "dataset": "digits-1k",
            "architecture": "vgg11-bn",
            "architecture_options": {"init": "lecun", "depth": 3, "widths": [4, 5]},
            "loss": "cross_entropy",
            "optimizer": "nesterov",
            "lr": 0.5,
            "beta": 0.9,
            "lr_changes": [[10, 0.1], [20, 0.2]],
            "num_steps": 50,
            "seed": 3,
            "dtype": "float64",
            "batch_size": 7,
            "batch_norm": "ghost",
            "chunk_size": 9,
            "eigenvalues": 4,
            "sharpness_every": 3,
            "sharpness_rtol": 0.01,
            "sharpness_cold_every": 9,
            "sharpness_examples": 100,
            "accuracy_goal": 0.9,
            "loss_goal": 0.1,
            "quantities": {"accuracy": {"every": 4}},
        }
    ]


def test_settings_from_a_file(tmp_path, capsys):
    _, out, _ = call(f"{TRAIN} --lr 0.1 --dry-run", capsys)
    (tmp_path / "settings.json").write_text(out)
    again = call(f"train --settings {tmp_path / 'settings.json'} --dry-run", capsys)
    assert again[:2] == (0, out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train --dataset chebysev-3-12 --architecture fc-tanh --lr 1", "did you mean 'chebyshev"),
        ("train --dataset digits-1k --architecture fc-tan --lr 1", "did you mean 'fc-tanh'"),
        ("train --dataset digits-1k --lr 1", "train needs --architecture"),
        ("train --dataset digits-1k --architecture fc-tanh", "the optimizer 'gd' needs lr"),
        (f"{TRAIN} --lr 1 --device cud", "is not a device name"),
        (f"{TRAIN} --lr 1 --record accurcy:every=2", "did you mean 'accuracy'"),
        ("reproduce fig5-sqare", "did you mean 'fig5-square'"),
        (f"{TRAIN} --lr 1e39", "must be a number that float32 has"),
        (f"{TRAIN} --lr 1 --option foo=3", "'foo'; its options are widths, activation, init"),
        (f"{TRAIN[:53]} --lr 1 --option widths=5", "an option is of the wrong kind"),
        (f"{TRAIN} --lr 1 --device meta", "device 'meta' cannot be used here"),
        (f"{TRAIN} --lr 1 --seed {2**64}", "seed must fit in 64 bits"),
        (f"{TRAIN} --optimizer adam --lr 0.1 --beta 0.9", "beta has no meaning for the optimizer"),
        (f"{TRAIN} --optimizer flow --tick 0", "tick must be finite and above 0"),
        ("reproduce chebyshev-4 --lr 0", "must be finite and above 0"),
        ("reproduce fig4 --data no/such/file", "there is no no/such/file, which --data names"),
        ("runs no/such/folder", "there is no folder"),
        (f"{TRAIN} --lr 1 --option widths=5", "are the same setting"),
        ("train --settings no/such/file", "No such file"),
        ("train --settings x.json --seed 0 --steps 5", "leave out what sets num_steps, seed"),
        ("train --settings x.json --lr 0.1 --option a=1", "sets architecture_options, lr, or"),
        ("runs --replay 5", "--replay belongs to --verify"),
    ],
)
def test_mistakes_are_told_with_what_was_meant(text, message, tmp_path, capsys):
    place = "" if text.startswith("runs") else f" --out {tmp_path / 'x'}"
    status, _, err = call(text + place, capsys)
    assert status == 2
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.npz"))


def test_widths_that_are_no_numbers(capsys):
    status, _, err = call(TRAIN.replace("--widths 6", "--widths a,b") + " --lr 1", capsys)
    assert status == 2
    assert "expected whole numbers, got 'a,b'" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[5]", "settings are names and values, got 5"),
        ("", "is no JSON file"),
        ('{"dataset": 5, "architecture": "fc-tanh", "lr": 1}', "dataset is a name, got 5"),
        (
            '{"dataset": "digits-20", "architecture": ["x"], "lr": 1}',
            "architecture is a name, got ['x']",
        ),
        (
            '{"dataset": "digits-20", "architecture": "fc-tanh", "lr": 1, "quantities": 5}',
            "wrong kind",
        ),
    ],
)
def test_settings_files_that_hold_none(content, message, tmp_path, capsys):
    path = tmp_path / "settings.json"
    path.write_text(content)
    status, _, err = call(f"train --settings {path} --out {tmp_path / 'x'}", capsys)
    assert status == 2
    assert err.startswith("error: ") and message in err


def test_step_sizes_given_one_by_one_add_up(capsys):
    status, out, _ = call(f"{TRAIN} --lr 0.1 --lr 0.2 0.3 --dry-run", capsys)
    assert status == 0
    assert [one["lr"] for one in json.loads(out)] == [0.1, 0.2, 0.3]


def test_a_file_that_is_no_record_hides_no_other(tmp_path, capsys):
    folder = tmp_path / "chebyshev-3"
    call(f"{TRAIN} --lr 0.1 0.2 --quiet --out {folder}", capsys)
    first, second = sorted(folder.glob("*.npz"))
    run = Run.load(first)
    run.settings |= {"threshold": "none", "experiment": {"dataset": 1}}
    run.save(first)
    status, out, _ = call(f"runs {tmp_path}", capsys)
    assert status == 2
    assert f"{first.name}\n    no record of a run: ValueError(" in out and second.name in out
    status, out, _ = call(f"runs {tmp_path} --verify --replay 2", capsys)
    assert status == 1
    assert f"{first} cannot be replayed: " in out and f"{second}: apart by" in out
    status, out, err = call(f"reproduce --list --store {tmp_path}", capsys)
    assert status == 2
    assert "error: an experiment needs architecture" in err
    assert all(f" {name} " in out for name in RECIPES)
    kept = tmp_path / "kept"
    status, out, err = call(f"runs {kept} --add {first} {second}", capsys)
    assert status == 2
    assert "error: an experiment needs architecture" in err and second.name in out


def test_a_file_in_the_place_of_a_run_stops_no_other(tmp_path, capsys):
    call(f"{TRAIN} --lr 0.1 0.2 --quiet --out {tmp_path}", capsys)
    first, second = sorted(tmp_path.glob("*.npz"))
    first.write_bytes(b"no run")
    second.unlink()
    status, out, err = call(f"{TRAIN} --lr 0.1 0.2 --out {tmp_path}", capsys)
    assert status == 2
    assert f"error: {first} (6 bytes) is not a readable run" in err and "move it away" in err
    assert str(second) in out and second.exists()
    assert first.read_bytes() == b"no run"


@pytest.mark.parametrize("kind", ["run", "checkpoint"])
def test_a_file_in_the_way_of_a_recipe_stops_no_other(kind, tmp_path, capsys):
    text = f"reproduce chebyshev-3 chebyshev-4 --steps 3 --lr 0.1 --device cpu --out {tmp_path}"
    assert call(text, capsys)[0] == 0
    (flow,) = (tmp_path / "chebyshev-3").glob("*_flow_*.npz")
    later = sorted((tmp_path / "chebyshev-4").glob("*.npz"))
    for path in (flow, *later):
        path.unlink()
    damaged = flow if kind == "run" else flow.with_suffix(".checkpoint")
    damaged.write_bytes(b"damaged")
    status, _, err = call(text, capsys)
    assert status == 2
    assert err.count("error: ") == 1 and f"error: {damaged}" in err
    assert damaged.read_bytes() == b"damaged"
    assert sorted((tmp_path / "chebyshev-4").glob("*.npz")) == later
    damaged.unlink()
    assert call(text, capsys)[0] == 0


def test_away_from_the_repository(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = call("reproduce --list", capsys)
    assert status == 0
    assert "Here all are estimates: there is no folder of stored runs" in out
    assert "*" not in out.split("Times")[0]
    for text in ("runs", "runs --missing", "runs --verify"):
        status, out, err = call(text, capsys)
        assert (status, out) == (2, "")
        assert "in the repository, not in the installed package; name a folder" in err
    status, _, err = call("reproduce --list --store nowhere", capsys)
    assert status == 2 and "there is no folder nowhere, which --store names" in err
    assert call("reproduce fig4 --explain", capsys)[0] == 0
    # in a folder of the repository, its store is found
    monkeypatch.chdir(Path(__file__).parent)
    status, out, _ = call("reproduce --list", capsys)
    assert "* / " in out and "Here all are estimates" not in out
    assert "5k-fc-tanh-square" not in call("runs --missing", capsys)[1]


def test_data_that_find_no_memory(tmp_path, capsys, monkeypatch):
    from eoslib import experiment

    def full(name, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 byte")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "load_dataset", full)
        status, _, err = call(f"{TRAIN} --lr 0.1 --out {tmp_path}", capsys)
    assert status == 2
    assert "not enough memory: the data set chebyshev-3-12 could not be loaded" in err
    assert "take fewer examples" in err
    assert not list(tmp_path.glob("*.npz"))
    assert call(f"{TRAIN} --lr 0.1 --out {tmp_path}", capsys)[0] == 0


def test_a_damaged_file_does_not_hide_the_others(tmp_path, capsys):
    call(f"{TRAIN} --lr 0.1 0.2 --quiet --out {tmp_path}", capsys)
    first, second = sorted(tmp_path.glob("*.npz"))
    first.write_bytes(first.read_bytes()[:100])
    status, out, _ = call(f"runs {tmp_path}", capsys)
    assert status == 2
    assert "not a readable run" in out and second.name in out


def test_what_goes_on_from_a_checkpoint(tmp_path, capsys, monkeypatch):
    offer = Checkpoint.offer

    def stops(checkpoint, identity, state):
        checkpoint.stop_requested = True
        offer(checkpoint, identity, state)

    def stopped(text):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "offer", stops)
            assert call(text, capsys)[0] == 130

    both, single = (f"{TRAIN} --lr {lr} --out {tmp_path}" for lr in ("0.1 0.2", "0.1"))
    stopped(both)
    (shared,) = tmp_path.glob("*.checkpoint")
    said = call(f"runs {tmp_path}", capsys)[1]
    assert "just these 2 runs, in this order, goes on with it: fc-tanh_" in said
    stopped(single)
    said = call(f"runs {tmp_path}", capsys)[1]
    assert said.count("not finished; its command goes on with it") == 1
    for lr in (0.1, 0.2):  # one by one: now nothing goes on from what they had together
        call(f"{TRAIN} --lr {lr} --out {tmp_path}", capsys)
    assert list(tmp_path.glob("*.checkpoint")) == [shared]
    status, said, _ = call(f"runs {tmp_path}", capsys)
    assert status == 0
    assert "its 2 runs are done; this may be deleted" in said
    assert "goes on" not in said
    (run, _) = sorted(tmp_path.glob("*.npz"))
    run.with_suffix(".checkpoint").touch()
    assert "its run is done; this may be deleted" in call(f"runs {tmp_path}", capsys)[1]
    shared.write_bytes(b"no checkpoint")
    status, said, _ = call(f"runs {tmp_path}", capsys)
    assert status == 2
    assert f"{shared} is not a readable checkpoint" in said and run.name in said


def test_a_plan_of_several_recipes_is_one_json_list(capsys):
    status, out, err = call("reproduce chebyshev-3 1k-momentum-polyak-square --dry-run", capsys)
    assert status == 0
    assert {one["optimizer"] for one in json.loads(out)} == {"flow", "polyak"}
    assert "chebyshev-3: its step sizes follow from the flow" in err


def test_a_closed_standard_output_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main([*TRAIN.split(), "--lr", "0.1", "--quiet", "--out", str(tmp_path)]) == 0


def test_a_recipe_is_stored_under_one_name(tmp_path, capsys):
    status, _, err = call(f"runs {tmp_path} --recipe ../x --add {tmp_path / 'no'}", capsys)
    assert status == 2
    assert "that of one folder, got '../x'" in err


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from eoslib import experiment

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "train_together", interrupted)
        status, _, err = call(f"{TRAIN} --lr 0.1 --out {tmp_path}", capsys)
    assert status == 130
    assert "the same command goes on" in err
    assert call(f"{TRAIN} --lr 0.1 --out {tmp_path}", capsys)[0] == 0


def test_the_list_of_recipes(tmp_path, capsys):
    status, out, _ = call("reproduce --list", capsys)
    assert status == 0
    assert all(f" {name} " in out for name in RECIPES)
    assert "*" not in call(f"reproduce --list --store {tmp_path}", capsys)[1].split("Times")[0]
    status, out, _ = call("reproduce fig3-square --explain", capsys)
    assert "2/η = 600 is the paper's" in out
    assert "(estimate; where no run is stored, to the last step, and many" in out and "C11" in out
    assert '{"optimizer": "gd", "loss": "square", "dataset": "cifar10-5k-per_pixel"' in out
    assert "(estimate)" in call("reproduce sgd --explain", capsys)[1]  # has no goal
    _, out, _ = call("reproduce chebyshev-3 --explain", capsys)
    assert "1.2 λ₀ to 0.8 λ_max" in out and 'at these step sizes: {"optimizer": "gd"' in out


def test_other_step_sizes_for_a_fixed_list(capsys):
    _, out, _ = call("reproduce standard-vgg11-square --lr 0.5 0.25 --dry-run", capsys)
    assert [settings["lr"] for settings in json.loads(out)] == [0.5, 0.25]
    _, out, _ = call("reproduce inverse-sharpness --lr 0.5 --dry-run", capsys)
    assert sorted(settings.get("lr", 0) for settings in json.loads(out)) == [0, 0, 0.5, 0.5]


def test_a_recipe_from_flow_to_step_sizes(tmp_path, capsys):
    text = f"reproduce chebyshev-3 --steps 60 --device cpu --quiet --out {tmp_path}"
    status, _, err = call(f"{text} --lr 0.1 0.2", capsys)
    assert status == 0, err
    runs = [Run.load(path) for path in (tmp_path / "chebyshev-3").glob("*.npz")]
    assert len(runs) == 3
    assert {run.settings["optimizer"] for run in runs} == {"gradient flow", "gd"}
    # kept, its time is a measured one, and it is missing no more
    kept = tmp_path / "kept"
    files = " ".join(str(path) for path in (tmp_path / "chebyshev-3").glob("*.npz"))
    assert "reproduce chebyshev-3 " in call(f"runs {kept} --missing", capsys)[1]
    assert call(f"runs {kept} --add {files}", capsys)[0] == 0
    out = call(f"runs {kept} --missing", capsys)[1]
    assert "reproduce chebyshev-3 " not in out and "reproduce chebyshev-4 " in out
    (line,) = [
        line
        for line in call(f"reproduce --list --store {kept}", capsys)[1].splitlines()
        if line.startswith("  chebyshev-3 ")
    ]
    flow = next(run for run in runs if "tick" in run.settings)
    together = [run.provenance["seconds"] for run in runs if run is not flow]
    seconds = flow.provenance["seconds"] + max(together)
    assert f"{duration_in_words(seconds)}* /" in line
    next((kept / "chebyshev-3").glob("*_flow_*")).unlink()
    next((kept / "chebyshev-3").glob("*_gd_*")).unlink()
    out = call(f"runs {kept} --missing", capsys)[1]
    assert "reproduce chebyshev-3 --device auto  # 1 of its runs are there" in out


def test_verifying_a_store(tmp_path, capsys):
    call(f"{TRAIN} --lr 0.1 --out {tmp_path / 'a-recipe'}", capsys)
    (path,) = (tmp_path / "a-recipe").glob("*.npz")
    kept = tmp_path / "kept"
    assert call(f"runs {kept} --add {path}", capsys)[0] == 0
    status, out, _ = call(f"runs {kept} --verify --replay 5", capsys)
    assert status == 0 and "all is well" in out and "apart by" in out
    run = Run.load(kept / "a-recipe" / path.name)
    run["loss"].values[3] *= 1.1
    run.save(kept / "a-recipe" / path.name)
    status, out, _ = call(f"runs {kept} --verify --replay 5", capsys)
    assert status == 1
    assert "its checksum is not that of the index" in out
    assert "loss differs by" in out


def test_a_run_of_the_command_line_is_that_of_the_library(tmp_path, capsys):
    from eoslib import GradientDescent, Objective, build, load_dataset

    call(f"{TRAIN} --lr 0.1 --out {tmp_path}", capsys)
    (path,) = tmp_path.glob("*.npz")
    data = load_dataset("chebyshev-3-12")
    objective = Objective.from_dataset(build("fc-tanh", 1, 1, widths=(6,)), data)
    by_hand = train(objective, GradientDescent(0.1), num_steps=30)
    np.testing.assert_array_equal(Run.load(path)["loss"].values, by_hand["loss"].values)


# -- progress -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_the_time_left_is_that_of_the_pace_since_the_start(stream, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    line = ProgressLine("a run", stream=stream, interval=1)
    line.update(1000, 5000)  # resumed there: these took no time
    clock[0] = 0.5
    assert not line.due
    line.update(1001, 5000)
    clock[0] = 60.0
    assert line.due
    line.update(1600, 5000, ", loss 1")
    line.close()
    text = stream.getvalue()
    assert "a run: 1,600 of 5,000, loss 1, about 6 min left" in text
    assert text.endswith("\r" if stream.isatty() else "\n")
    assert text.count("of 5,000") == 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (90, "90 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
        (90_000, "25 h"),
        (1e6, "12 days"),
    ],
)
def test_durations(seconds, words):
    assert duration_in_words(seconds) == words


def test_a_line_of_progress_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    stream = Terminal()
    line = ProgressLine("a long label " * 9, stream=stream, interval=0)
    for done in range(3):
        line.update(done, 3, ", loss 0.123")
    shown = [part for part in stream.getvalue().split("\r") if part]
    assert shown and max(map(len, shown)) <= 49
    assert shown[-1].endswith(" left")
