"""Run the laboratory's experiments once and keep what they look like.

A page without JavaScript cannot run the laboratory; `Laboratory` then shows a picture of the run,
drawn from the file that this script writes. The runs are the engine's own, in Node, and
repeat bit for bit, so that a test can compare the file with the engine of today.

    python scripts/laboratory_runs.py        # writes eoslib/widgets/laboratory_runs.npz
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from eoslib.widgets.laboratory import PRESETS, RUNS_FILE, Laboratory  # noqa: E402
from tests.node import find_node  # noqa: E402

#: How far the picture shows the run: steps, for every preset.
STEPS = {
    "edge": 2000,
    "drop": 3000,
    "raise": 3200,
    "hand": 1700,
    "flow": 1500,
    "beside_flow": 800,
    "quadratic": 60,
    "taylor": 800,
    "relu": 2200,
    "deep_linear": 500,
    "momentum": 2200,
    "nesterov": 2200,
    "adam": 2200,
    "batches": 2400,
    "cross_entropy": 2600,
    "digits": 600,
}
CHANNELS = ("time", "loss", "threshold", "eigenvalue1", "twin")
PLACES = 400  # along the x axis, at most

PROGRAM = """
import { readFileSync } from "node:fs";
const { laboratoryEngine } = await import(process.argv[1]);
const { Session } = laboratoryEngine();
const results = JSON.parse(readFileSync(0, "utf8")).map(({ settings, steps, images }) => {
  const session = new Session(settings, { images });
  session.advance({ steps });
  const { record } = session;
  while (Math.ceil(record.steps / record.width) > PLACES) record.join();
  const { low, high, width } = record.snapshot();
  const known = (v) => (Math.abs(v) < Infinity ? v : null);
  const rows = (side) => CHANNELS.map((name) => [...side[name]].map(known));
  return { width, low: rows(low), high: rows(high) };
});
console.log(JSON.stringify(results));
""".replace("PLACES", str(PLACES)).replace("CHANNELS", json.dumps(CHANNELS))


def jobs() -> dict[str, dict[str, Any]]:
    """Every run by its name; that of a preset's shadow ends in ``-shadow``."""
    laboratory = Laboratory()
    block = np.frombuffer(laboratory.pixels, np.uint8)
    count = block.size // 65
    images = {
        "pixels": block[: 64 * count].tolist(),
        "labels": block[64 * count :].tolist(),
        **laboratory.images,
    }
    found: dict[str, dict[str, Any]] = {}
    for name, preset in PRESETS.items():
        settings = preset["settings"]
        found[name] = {"settings": settings, "steps": STEPS[name]}
        if settings.get("task") == "digits":
            found[name]["images"] = images
        if shadow := preset.get("shadow"):
            found[f"{name}-shadow"] = {
                "settings": settings | shadow["settings"],
                "steps": shadow["steps"],
            }
    return found


def run_all() -> dict[str, NDArray[np.float32]]:
    """Run every experiment; each is an array (channels, 2, places), lowest and highest values.

    What was not measured is NaN. `<name>-width` is the number of steps that share a place.
    """
    wanted = jobs()
    engine = (ROOT / "eoslib" / "widgets" / "laboratory_engine.js").as_uri()
    ended = subprocess.run(
        [find_node(), "--input-type=module", "-e", PROGRAM, engine],
        input=json.dumps(list(wanted.values())),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )
    if ended.returncode:
        raise RuntimeError(f"the engine stopped:\n{ended.stderr}")
    arrays = {}
    for name, result in zip(wanted, json.loads(ended.stdout), strict=True):
        both = np.array([result["low"], result["high"]], dtype=np.float64)
        arrays[name] = np.clip(both.swapaxes(0, 1), -1e30, 1e30).astype(np.float32)
        arrays[f"{name}-width"] = np.array(result["width"], dtype=np.float32)
    return arrays


def main() -> None:
    """Write the file."""
    np.savez_compressed(RUNS_FILE, allow_pickle=False, **run_all())
    print(f"{RUNS_FILE.relative_to(ROOT)}: {RUNS_FILE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
