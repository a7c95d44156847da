"""How smooth the laboratory is: the built page in headless Chromium, setting by setting.

    python -m benchmarks.laboratory_page [--seconds 6] [--page _build/html/book/laboratory.html]

Prints JSON. The page is opened as a file, without a network. `ready` is the time from opening the
page to a *Run* button that acts, and `firstStep` from a click on it at that moment to the first
step on the screen. Then every setting runs at full speed: steps per second, frames per second, the
95th percentile of the time between frames, the tasks of the main thread that took more than 50 ms,
and the time from a click on *Pause* to the last change of the run on the screen. Last, a reader's
`hand` is on the slider, on the theme and on the width of the window while a run goes on.

On a machine that is never idle all of these only get worse; the load is in the report. What other
processes cannot spoil is `longestCpu`, the most processor time of one task of the main
thread, in milliseconds, which Chromium's own trace knows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: The settings, as the page's address has them, and what to do before the measurement.
SETTINGS = {
    "1-30-20-1 tanh, 20 Chebyshev points": "degree=6",
    "the same, 8 eigenvalues": "degree=6&eigenvalues=8",
    "64-64-10 tanh, 300 digits": "task=digits&points=300&hidden=64&stepSize=0.05",
    "two spirals, cross-entropy": "task=spirals&points=200&loss=cross_entropy&hidden=40,40",
    "1-200-200-1 tanh, 90 Chebyshev points": "points=90&hidden=200,200&stepSize=0.05",
    "as large as it may be: 2-290-290-2, 44 points": "task=rings&points=44&hidden=290,290",
    "a quadratic, hundreds of thousands of steps": "task=quadratic&stepSize=0.0999",
}

WATCH = """
self.seen = { long: [] }; // one name: the theme has globals of its own
new PerformanceObserver((list) => seen.long.push(...list.getEntries().map((e) => e.duration)))
  .observe({ type: "longtask", buffered: true });
const look = () => {
  const go = document.querySelector(".eos-lab .eos-go");
  if (!go || go.disabled) return requestAnimationFrame(look);
  seen.ready = performance.now();
  if (location.hash) return undefined;
  go.click();
  const wait = () => {
    if (Number(document.querySelector(".eos-lab").dataset.step) > 0) {
      seen.firstStep = performance.now() - seen.ready;
      go.click();
    } else requestAnimationFrame(wait);
  };
  return wait();
};
requestAnimationFrame(look);
"""

MEASURE = """async (seconds) => {
  const root = document.querySelector(".eos-lab"), $ = (s) => root.querySelector(s);
  const frame = () => new Promise(requestAnimationFrame), step = () => Number(root.dataset.step);
  $(".eos-speed").value = "Infinity";
  seen.long.length = 0;
  $(".eos-go").click();
  await frame();
  const from = step(), times = [performance.now()];
  while (times.at(-1) - times[0] < 1000 * seconds) {
    await frame();
    times.push(performance.now());
  }
  const steps = step() - from, tasks = [...seen.long];
  const clicked = performance.now();
  $(".eos-go").click();
  let last = step(), changed = clicked;
  while (performance.now() - Math.max(changed, clicked) < 400) {
    await frame();
    if (step() !== last) [last, changed] = [step(), performance.now()];
  }
  const gaps = times.slice(1).map((t, i) => t - times[i]).sort((a, b) => a - b);
  const total = (times.at(-1) - times[0]) / 1000;
  return {
    stepsPerSecond: steps / total, framesPerSecond: gaps.length / total,
    frame95: gaps[Math.floor(0.95 * gaps.length)], longTasks: tasks.length,
    longest: Math.max(0, ...tasks), pause: changed - clicked, steps: step(),
    state: root.dataset.state,
  };
}"""


def drag(page: Any) -> None:
    """Move the slider to and fro."""
    box = page.locator(".eos-lab .eos-track input").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for k in range(90):
        page.mouse.move(x - 2 * (k % 30), y)
        page.wait_for_timeout(16)
    page.mouse.up()


def change_theme(page: Any) -> None:
    """Make the page dark, and light again."""
    for theme in ("dark", "light"):
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        page.wait_for_timeout(300)


def resize(page: Any) -> None:
    """Take the page through the widths of several devices."""
    for width in (1000, 700, 400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)


HAND = {"the slider": drag, "the theme": change_theme, "the width": resize}


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--page", type=Path, default=ROOT / "_build/html/book/laboratory.html")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    if not options.page.is_file():
        parser.error(f"there is no {options.page}: `make book` builds it")
    if not options.chromium:
        parser.error("no chromium on the PATH: name one with --chromium")

    from playwright.sync_api import sync_playwright

    def load() -> float:
        return round(os.getloadavg()[0], 1)

    report: dict[str, Any] = {"cores": os.cpu_count(), "loadBefore": load()}
    report |= {"settings": {}, "hand": {}}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        report["browser"] = browser.version

        def opened(address: str) -> Any:
            page = browser.new_page(viewport={"width": 1280, "height": 900}, offline=True)
            page.add_init_script(WATCH)
            page.goto(address)
            page.wait_for_function("seen.ready !== undefined", timeout=60_000)
            return page

        address = options.page.resolve().as_uri()
        page = opened(address)
        page.wait_for_function("seen.firstStep !== undefined", timeout=60_000)
        report["opening"] = rounded(
            page.evaluate(
                """({ ready: seen.ready, firstStep: seen.firstStep, longTasks: seen.long.length,
                      longest: Math.max(0, ...seen.long) })"""
            )
        )
        page.close()
        for name, settings in SETTINGS.items():
            page = opened(f"{address}#laboratory?{settings}")
            page.wait_for_function('document.querySelector(".eos-lab").dataset.step !== undefined')
            browser.start_tracing(page=page, categories=["toplevel"])
            found = page.evaluate(MEASURE, options.seconds)
            found["longestCpu"] = longest_cpu(browser.stop_tracing())
            report["settings"][name] = rounded(found)
            page.close()
        page = opened(f"{address}#laboratory?degree=6")
        page.locator(".eos-lab .eos-go").click()
        for name, act in HAND.items():
            browser.start_tracing(page=page, categories=["toplevel"])
            page.evaluate("seen.long.length = 0")
            act(page)
            long = page.evaluate("seen.long")
            found = {"longTasks": len(long), "longest": max(long, default=0)}
            found["longestCpu"] = longest_cpu(browser.stop_tracing())
            report["hand"][name] = rounded(found)
        page.close()
        browser.close()
    report["loadAfter"] = load()
    print(json.dumps(report, indent=2))


def longest_cpu(trace: bytes) -> float:
    """Return the most processor time of one task of a page's main thread, in milliseconds."""
    events = json.loads(trace)["traceEvents"]
    main = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"].get("name") == "CrRendererMain"
    }
    tasks: list[float] = [
        event["tdur"] / 1000
        for event in events
        if event.get("name", "").endswith("RunTask")
        and "tdur" in event
        and (event["pid"], event["tid"]) in main
    ]
    if not tasks:
        raise RuntimeError("the trace holds no task of a main thread: has its format changed?")
    return float(max(tasks))


def rounded(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return the same numbers with one decimal."""
    return {k: round(v, 1) if isinstance(v, float) else v for k, v in numbers.items()}


if __name__ == "__main__":
    main()
