"""The laboratory in a page without a kernel: every control acts, every preset delivers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("anywidget")

from eoslib import GradientDescent, Objective, Run, build, chebyshev, every, train
from eoslib.widgets.laboratory import PRESETS, Laboratory
from tests.browser.widget_page import served, settle, write_page

browser_test = pytest.mark.browser

ROOT = ".eos-lab"
PHONE = {"viewport": {"width": 360, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("laboratory") / "page.html"
    return write_page(path, Laboratory(linked=True))


@pytest.fixture
def shown(page: Any, address: str) -> Any:
    """A page with one laboratory; afterwards: no request left it, no error was logged."""
    visit(page, address)
    yield page
    assert page.blocked == []
    assert page.problems == []


def visit(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(f"{ROOT}[data-step]", state="attached")


def facts(page: Any, which: int = 0) -> dict[str, Any]:
    """What a laboratory shows now."""
    settle(page)
    found = page.evaluate(
        """(k) => {
          const root = document.querySelectorAll(".eos-lab")[k], $ = (s) => root.querySelector(s);
          return { ...root.dataset, words: $("[role=status]").textContent,
            go: $(".eos-go").textContent, lr: $(".eos-lr").textContent,
            limit: $(".eos-limit").textContent,
            link: $(".eos-export a").getAttribute("href"),
            spoken: $(".eos-track input").getAttribute("aria-valuetext") };
        }""",
        which,
    )
    for name in ("step", "sharpness", "threshold"):
        found[name] = float(found.get(name, "nan").replace("Infinity", "inf"))
    return found


def reach(page: Any, step: int, which: int = 0) -> None:
    page.wait_for_function(
        """([k, step]) => Number(document.querySelectorAll(".eos-lab")[k]?.dataset.step ?? -1)
          >= step""",
        arg=[which, step],
        timeout=60_000,
    )


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True).first


def slider(page: Any) -> Any:
    return page.get_by_role("slider", name="step size η").first


def run_to(page: Any, step: int, speed: str = "Infinity") -> dict[str, Any]:
    """Run, by default at full speed, until a step, then pause."""
    page.locator(".eos-speed").first.select_option(speed)
    button(page, "Run").click()
    reach(page, step)
    button(page, "Pause").click()
    return at_rest(page)


def at_rest(page: Any) -> dict[str, Any]:
    """What is shown once nothing moves any more."""
    for _ in range(600):
        before = facts(page)
        page.wait_for_timeout(100)
        now = facts(page)
        if now["step"] == before["step"] and now["go"] == "Run":
            return now
    raise AssertionError(f"it does not come to rest: {now}")


def saved(page: Any, kind: str) -> Path:
    with page.expect_download() as download:
        button(page, {"json": "data, JSON", "csv": "data, CSV", "png": "picture"}[kind]).click()
    return Path(download.value.path())


def choose(page: Any, preset: str) -> None:
    page.get_by_label("experiment").select_option(str(list(PRESETS).index(preset)))
    settle(page)


def set_field(page: Any, name: str, value: str) -> None:
    field = page.locator(f"form [name={name}]")
    if field.evaluate("(e) => e.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)
        field.press("Enter")
    settle(page)


# -- run, pause, step, reset -----------------------------------------------------------------------


@browser_test
def test_first_picture(shown: Any) -> None:
    now = facts(shown)
    assert now["step"] == 0
    assert now["words"] == "ready"
    assert now["limit"] == "2/η = 10"
    assert now["sharpness"] == pytest.approx(5.47, abs=0.01)
    assert now["spoken"] == "step size 0.2, threshold 2/η = 10"
    painted = "document.querySelector('.eos-main canvas').getContext('2d')"
    assert shown.evaluate(f"{painted}.getImageData(0, 0, 400, 400).data.some((v) => v > 0)")


@browser_test
def test_step_run_pause_and_reset(shown: Any) -> None:
    button(shown, "Step").click()
    reach(shown, 1)
    assert at_rest(shown)["step"] == 1
    button(shown, "Run").click()
    assert facts(shown)["go"] == "Pause"
    reach(shown, 60)
    button(shown, "Pause").click()
    now = at_rest(shown)
    assert now["words"] == "below the edge, sharpening"
    button(shown, "Reset").click()
    reach(shown, 0)
    assert at_rest(shown)["step"] == 0
    assert not button(shown, "Forget earlier runs").is_disabled(), "the first run is a shadow"
    button(shown, "Forget earlier runs").click()
    settle(shown)
    assert button(shown, "Forget earlier runs").is_disabled()


@browser_test
def test_a_slow_run_is_slow(shown: Any) -> None:
    shown.locator(".eos-speed").select_option("10")
    button(shown, "Run").click()
    reach(shown, 3)
    shown.wait_for_timeout(300)
    button(shown, "Pause").click()
    assert at_rest(shown)["step"] < 60


@browser_test
def test_the_slider_moves_the_line_and_the_run_while_it_runs(shown: Any) -> None:
    shown.locator(".eos-speed").select_option("Infinity")
    button(shown, "Run").click()
    reach(shown, 900)
    assert 0.9 < facts(shown)["sharpness"] / 10 < 1.4
    slider(shown).focus()
    for _ in range(26):
        slider(shown).press("ArrowLeft")
    now = facts(shown)
    assert now["go"] == "Pause", "it still runs"
    assert now["threshold"] == pytest.approx(2 / float(now["lr"]), rel=1e-9)
    assert 13 < now["threshold"] < 15
    changed = now["step"]
    reach(shown, int(changed) + 2500)
    button(shown, "Pause").click()
    now = at_rest(shown)
    assert now["sharpness"] > 10.3, "sharpening resumed"
    assert re.search(r"changes=\d+:0\.\d+", now["link"])


@browser_test
def test_a_frame_draws_before_it_changes_the_page(shown: Any) -> None:
    """A text on a canvas asks for the layout: after a change the browser has to make it anew."""
    run_to(shown, 60)
    shown.evaluate(
        """() => {
          Object.assign(self, { texts: 0, late: 0 });
          const changes = new MutationObserver(() => {}), frame = self.requestAnimationFrame;
          const everything = { subtree: true, childList: true, characterData: true };
          changes.observe(document.querySelector(".eos-lab"), { ...everything, attributes: true });
          self.requestAnimationFrame = (draw) => frame.call(self, (now) => {
            changes.takeRecords();
            draw(now);
          });
          const { fillText: fill } = CanvasRenderingContext2D.prototype;
          CanvasRenderingContext2D.prototype.fillText = function (...given) {
            texts += 1;
            late += changes.takeRecords().length;
            fill.apply(this, given);
          };
        }"""
    )
    for _ in range(4):
        slider(shown).press("ArrowLeft")
        settle(shown)
    run_to(shown, int(facts(shown)["step"]) + 60)
    assert shown.evaluate("texts") > 100
    assert shown.evaluate("late") == 0


@browser_test
def test_slider_by_keyboard_and_buttons(shown: Any) -> None:
    slider(shown).press("ArrowRight")
    values = [float(facts(shown)["lr"])]
    assert values[0] == pytest.approx(0.2, rel=0.03)
    assert values[0] > 0.2
    slider(shown).press("PageDown")
    assert float(facts(shown)["lr"]) == pytest.approx(values[0] * 200**-0.1, rel=0.02)
    slider(shown).press("End")
    assert facts(shown)["lr"] == "2"
    slider(shown).press("Home")
    assert facts(shown)["limit"] == "2/η = 200"
    button(shown, "larger step size").click()
    assert float(facts(shown)["lr"]) > 0.01
    button(shown, "smaller step size").click()
    assert facts(shown)["lr"] == "0.01"


@browser_test
def test_divergence_is_said_and_the_controls_still_work(shown: Any) -> None:
    slider(shown).press("End")
    button(shown, "Run").click()
    shown.wait_for_selector(f"{ROOT}[data-state=diverged]", state="attached")
    now = facts(shown)
    assert re.fullmatch(
        r"diverged: the loss was .* at step \d+ with step size 2\. "
        r"Choose a smaller step size and press Reset\.",
        now["words"],
    )
    assert button(shown, "Run").is_disabled()
    for _ in range(4):
        slider(shown).press("PageDown")
    button(shown, "Reset").click()
    reach(shown, 0)
    now = run_to(shown, 100)
    assert now["state"] == "training"
    assert float(now["lr"]) < 0.5


def holds_focus(page: Any) -> str:
    """The class of the element that has the keyboard's focus; that of the page is empty."""
    settle(page)
    return str(page.evaluate("document.activeElement.className"))


@browser_test
def test_the_keyboard_stays_where_it_was(shown: Any) -> None:
    run_to(shown, 60)
    button(shown, "Reset").focus()
    for _ in range(2):
        shown.keyboard.press("Enter")
        assert holds_focus(shown) == "eos-reset"
    reach(shown, 0)
    assert holds_focus(shown) == "eos-reset"
    button(shown, "Forget earlier runs").focus()
    shown.keyboard.press("Enter")
    assert holds_focus(shown) == "eos-main", "the button is disabled now"
    slider(shown).press("End")
    button(shown, "Run").focus()
    shown.keyboard.press("Enter")
    shown.wait_for_selector(f"{ROOT}[data-state=diverged]", state="attached")
    assert holds_focus(shown) == "eos-reset", "what is left to do"


@browser_test
def test_a_hidden_tab_pauses(shown: Any) -> None:
    button(shown, "Run").click()
    reach(shown, 20)
    shown.evaluate(
        """() => {
          Object.defineProperty(document, "hidden", { value: true, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }"""
    )
    now = at_rest(shown)
    assert now["words"].endswith("; paused while the page was hidden")


@browser_test
def test_without_workers_it_runs_on_the_main_thread(page: Any, address: str) -> None:
    page.add_init_script("window.Worker = class { constructor() { throw new Error('refused'); } };")
    visit(page, address)
    now = run_to(page, 400)
    assert now["state"] == "training"
    assert page.problems == []


@browser_test
def test_without_workers_it_ends_when_it_is_removed(page: Any) -> None:
    page.add_init_script("""
      window.Worker = undefined;
      window.turns = 0;
      const post = MessagePort.prototype.postMessage;
      MessagePort.prototype.postMessage = function (...given) {
        turns += 1;
        post.apply(this, given);
      };
    """)
    show_live(page)
    page.locator(".eos-speed").select_option("Infinity")
    button(page, "Run").click()
    reach(page, 30)
    page.evaluate("() => { dispose(); document.body.replaceChildren(); }")
    page.wait_for_timeout(100)
    before = page.evaluate("turns")
    page.wait_for_timeout(200)
    assert page.evaluate("turns") == before
    assert page.problems == []


@browser_test
def test_reset_goes_back_to_where_the_experiment_began(shown: Any) -> None:
    choose(shown, "hand")
    warm = PRESETS["hand"]["warm"]
    reach(shown, warm)
    before, claim = at_rest(shown), shown.locator(".eos-claim")
    slider(shown).press("PageDown")
    assert shown.get_by_label("experiment").input_value() == "-1"
    assert claim.text_content() == ""
    run_to(shown, warm + 100)
    button(shown, "Reset").click()
    reach(shown, warm)
    now = at_rest(shown)
    for name in ("step", "lr", "sharpness", "threshold"):
        assert now[name] == before[name]
    assert claim.text_content() == PRESETS["hand"]["text"]
    # another network is another experiment
    shown.locator(".eos-settings summary").click()
    set_field(shown, "hidden", "8")
    button(shown, "Reset").click()
    reach(shown, 0)
    assert at_rest(shown)["step"] == 0


# -- what each preset promises ---------------------------------------------------------------------


def recorded(page: Any) -> dict[str, Any]:
    return json.loads(saved(page, "json").read_text())


def middle(data: dict[str, Any], first: int, last: int) -> float:
    """Median sharpness over the threshold between two steps."""
    every = data["every"]
    low, high, limit = (
        np.array(values, dtype=float)[first // every : last // every]
        for values in (
            data["low"]["eigenvalue1"],
            data["high"]["eigenvalue1"],
            data["high"]["threshold"],
        )
    )
    return float(np.median((low + high) / 2 / limit))


@browser_test
@pytest.mark.parametrize(
    ("preset", "steps", "first", "low", "high"),
    [
        ("edge", 2000, 1200, 0.95, 1.1),
        ("momentum", 2200, 1400, 0.9, 1.1),
        ("nesterov", 2200, 1400, 0.9, 1.1),
        ("relu", 2200, 1400, 0.9, 1.1),
        ("deep_linear", 500, 100, 0.95, 1.1),
        ("adam", 2200, 1400, 0.85, 1.1),
        ("digits", 600, 300, 0.95, 1.15),
        ("batches", 2400, 1600, 0.4, 0.8),
        ("cross_entropy", 2600, 2400, 0.2, 0.8),
        ("drop", 3000, 2600, 0.9, 1.1),
        ("raise", 3200, 2400, 0.95, 1.05),
        ("hand", 1700, 1250, 0.95, 1.05),
    ],
)
def test_presets_reach_their_line(
    shown: Any, preset: str, steps: int, first: int, low: float, high: float
) -> None:
    choose(shown, preset)
    warm = PRESETS[preset].get("warm", 0)
    reach(shown, warm)
    assert at_rest(shown)["step"] == warm, "the run starts in the state that the text is about"
    run_to(shown, steps)
    data = recorded(shown)
    assert low <= middle(data, first, steps) <= high
    if preset == "drop":
        assert middle(data, 1010, 1100) < 0.85, "the line jumped away"
    if preset == "digits":
        assert middle(data, 0, 100) < 0.85, "it starts below its line"
    if preset == "raise":
        assert 0.95 <= middle(data, 1900, 1980) <= 1.05, "it sat at its line before"
        assert max(v or 0 for v in data["high"]["eigenvalue1"]) > 1.5 * 10, "far above its line"
        assert data["state"] == "training", "and it came back"
    if preset == "cross_entropy":
        assert 0.9 <= middle(data, 600, 1400) <= 1.1, "it was at the edge before"


@browser_test
def test_gradient_flow_passes_the_line_of_gradient_descent(shown: Any) -> None:
    run_to(shown, 800)
    choose(shown, "flow")
    reach(shown, 0)
    assert facts(shown)["limit"] == "no threshold"
    assert slider(shown).is_disabled()
    now = run_to(shown, 1500)
    assert now["sharpness"] > 20
    assert now["words"] == "following gradient flow, sharpening"


@browser_test
def test_the_quadratic_diverges_and_the_network_does_not(shown: Any) -> None:
    choose(shown, "taylor")
    reach(shown, 370)
    now = run_to(shown, 900)
    assert now["state"] == "training"
    twin = recorded(shown)["high"]["twin"]
    known = [v for v in twin if v is not None]
    assert known[-1] > 1e3, "the polynomial's loss before it was given up"
    assert twin[-1] is None
    choose(shown, "edge")
    reach(shown, 0)
    run_to(shown, 100)
    button(shown, "Step").click()
    frozen = int(at_rest(shown)["step"])
    button(shown, "Freeze a quadratic").click()
    assert facts(shown)["words"].endswith(
        "; the quadratic is frozen here and leaves with the next step"
    )
    for at in (frozen, frozen + 1):  # once more, from the next iterate
        button(shown, "Freeze a quadratic").click()
        button(shown, "Step").click()
        reach(shown, at + 1)
        assert f"twinAt={at}&" in at_rest(shown)["link"]


# -- settings --------------------------------------------------------------------------------------


@browser_test
@pytest.mark.parametrize(
    ("changes", "address_has", "words"),
    [
        ({"task": "spirals", "loss": "cross_entropy"}, "task=spirals", "decision regions"),
        ({"task": "rings", "noise": "0.05"}, "noise=0.05", "decision regions"),
        ({"task": "linear", "activation": "linear", "bias": "no"}, "bias=no", "outputs"),
        ({"task": "digits", "hidden": "8"}, "task=digits", "accuracy"),
        ({"degree": "3", "points": "12", "init": "pytorch"}, "degree=3", "fit and the targets"),
        ({"hidden": "8,8,8", "activation": "relu", "eigenvalues": "3"}, "eigenvalues=3", "fit"),
        ({"optimizer": "rmsprop", "beta2": "0.9"}, "optimizer=rmsprop", "fit"),
        ({"optimizer": "nesterov", "beta": "0.5"}, "beta=0.5", "fit"),
        ({"batch": "4", "seed": "3", "measureEvery": "5"}, "batch=4", "fit"),
    ],
)
def test_every_setting_starts_another_run(
    shown: Any, changes: dict[str, str], address_has: str, words: str
) -> None:
    shown.locator(".eos-settings summary").click()
    for name, value in changes.items():
        set_field(shown, name, value)
        assert shown.locator(".eos-settings .eos-wrong").inner_text() == ""
        reach(shown, 0)
    now = run_to(shown, 20)
    assert now["state"] in ("training", "diverged")
    assert address_has in now["link"]
    assert words in shown.locator(".eos-fit figcaption").inner_text()


@browser_test
def test_the_quadratic_task_and_a_wrong_setting(shown: Any) -> None:
    shown.locator(".eos-settings summary").click()
    set_field(shown, "hidden", "20,x")
    assert "hidden must be at most 60 layers" in shown.get_by_role("alert").inner_text()
    assert shown.locator("form [name=hidden]").get_attribute("aria-invalid") == "true"
    set_field(shown, "task", "quadratic")
    reach(shown, 0)
    now = facts(shown)
    assert now["sharpness"] == pytest.approx(20)
    assert shown.get_by_role("alert").inner_text() == ""
    button(shown, "Run").click()  # η = 0.2 is twice the threshold
    shown.wait_for_selector(f"{ROOT}[data-state=diverged]", state="attached")
    assert shown.locator(".eos-fit").is_hidden()


@browser_test
def test_a_change_of_the_task_has_no_dead_end(shown: Any) -> None:
    shown.locator(".eos-settings summary").click()
    steps = ("task", "linear"), ("points", "200"), ("dimension", "80"), ("task", "rings")
    for name, value in (*steps, ("task", "linear")):
        set_field(shown, name, value)
        reach(shown, 0)
        assert shown.get_by_role("alert").inner_text() == ""
    assert shown.locator("form [name=dimension]").input_value() == "50"


@browser_test
def test_a_quadratic_that_falls_for_ever_is_not_solved(page: Any, address: str) -> None:
    visit(page, f"{address}#laboratory?task=quadratic&spectrum=20,-1&stepSize=0.05&at=60")
    reach(page, 60)
    assert at_rest(page)["words"].endswith("; the loss has no minimum")
    assert "solved" not in facts(page)["words"]


@browser_test
def test_what_the_engine_refuses_is_said(shown: Any) -> None:
    shown.locator(".eos-settings summary").click()
    set_field(shown, "task", "digits")
    reach(shown, 0)
    set_field(shown, "points", "400")
    wrong = shown.get_by_role("alert")
    shown.get_by_text("images; points asks for 400").wait_for()
    slider(shown).press("PageDown")  # of a run that there is not
    shown.wait_for_timeout(200)
    assert "images; points asks for 400" in wrong.inner_text()
    set_field(shown, "points", "100")
    reach(shown, 0)
    assert wrong.inner_text() == ""


@browser_test
def test_what_was_not_measured_is_no_ratio(shown: Any) -> None:
    shown.locator(".eos-settings summary").click()
    set_field(shown, "measureEvery", "10")
    for step in (1, 2):
        button(shown, "Step").click()
        reach(shown, step)
    assert "threshold" not in shown.locator(".eos-numbers").inner_text()
    assert "Infinity" not in shown.locator(".eos-main").get_attribute("aria-valuetext")


@browser_test
def test_steps_or_time(shown: Any) -> None:
    run_to(shown, 60)
    picture = "document.querySelector('.eos-main canvas').toDataURL()"
    before = shown.evaluate(picture)
    shown.get_by_role("radio", name="time").check()
    settle(shown)
    assert shown.evaluate(picture) != before


# -- what leaves the page --------------------------------------------------------------------------


@browser_test
def test_a_link_repeats_the_run(shown: Any, open_page: Callable[..., Any], address: str) -> None:
    button(shown, "Step").click()
    slider(shown).press("PageDown")
    now = run_to(shown, 700)
    assert shown.evaluate("location.hash") == now["link"]
    other = open_page()
    visit(other, address + now["link"])
    reach(other, int(now["step"]))
    again = at_rest(other)
    assert again["step"] == now["step"]
    assert again["sharpness"] == now["sharpness"], "bit for bit"
    assert other.problems == []


@browser_test
def test_a_link_taken_while_it_runs_is_of_this_run(shown: Any) -> None:
    shown.locator(".eos-speed").select_option("60")
    button(shown, "Run").click()
    reach(shown, 40)
    slider(shown).press("PageDown")
    reach(shown, 60)
    now = facts(shown)
    assert "changes=" in now["link"], "what a reader would copy"
    assert "Objective" in library_lines(shown), "the lines too are there"
    shown.locator(".eos-export a").click()
    again = at_rest(shown)
    assert again["step"] >= now["step"], "it paused, and goes on from where it was"
    assert shown.evaluate("location.hash") == again["link"]
    assert f"at={again['step']:.0f}" in again["link"]


@browser_test
@pytest.mark.parametrize("speed", ["300", "Infinity"])
def test_a_step_size_chosen_in_a_pause_is_in_the_link(
    shown: Any, open_page: Callable[..., Any], address: str, speed: str
) -> None:
    run_to(shown, 50, speed)
    slider(shown).press("PageDown")
    now = at_rest(shown)
    assert re.search(r"changes=\d+:0\.11", now["link"])
    assert shown.evaluate("location.hash") == now["link"]
    ((_, lr),) = recorded(shown)["settings"]["changes"]
    assert f"{lr:.3g}" == now["lr"]
    other = open_page()
    visit(other, address + now["link"])
    reach(other, int(now["step"]))
    again = at_rest(other)
    for name in ("step", "lr", "limit"):
        assert again[name] == now[name]


@browser_test
def test_the_address_is_written_when_it_changes_only(shown: Any) -> None:
    # Browsers stop listening to a page that writes its address at every frame.
    step = int(run_to(shown, 100)["step"])
    shown.evaluate("""() => {
      self.written = 0;
      const write = history.replaceState;
      history.replaceState = (...given) => { self.written += 1; write.apply(history, given); };
    }""")
    box = shown.locator(".eos-main").bounding_box()
    for part in range(1, 9):
        shown.mouse.move(box["x"] + box["width"] * part / 9, box["y"] + 60)
        settle(shown)
    assert shown.evaluate("written") == 0
    button(shown, "Step").click()
    reach(shown, step + 1)
    settle(shown)
    assert shown.evaluate("written") == 1
    assert f"at={step + 1}" in shown.evaluate("location.hash")


@browser_test
def test_an_address_that_describes_nothing_is_named(page: Any, address: str) -> None:
    visit(page, f"{address}#laboratory?stepSize=-1")
    assert "stepSize must be a number above 0" in page.get_by_role("alert").inner_text()
    assert facts(page)["lr"] == "0.2"


@browser_test
def test_an_address_that_leads_too_far_says_so(page: Any, address: str) -> None:
    settings = "task=quadratic&spectrum=1&stepSize=0.1&measureEvery=1000"
    visit(page, f"{address}#laboratory?{settings}&at=1000100")
    assert "no further than to step 1,000,000" in page.get_by_role("alert").inner_text()


@browser_test
def test_a_preset_alone_is_an_address(page: Any, address: str) -> None:
    visit(page, f"{address}#laboratory?preset=momentum")
    chosen = page.get_by_label("experiment").locator("option:checked").inner_text()
    assert chosen == "Momentum" and not page.locator("[role=alert]").text_content()
    page.goto("about:blank")
    visit(page, f"{address}#laboratory?preset=nonsense")
    assert 'no preset "nonsense"' in page.get_by_role("alert").inner_text()
    page.goto("about:blank")
    visit(page, f"{address}#laboratory?degree=3&axis=foo")
    assert 'not "foo"' in page.get_by_role("alert").inner_text()


@browser_test
def test_a_link_keeps_the_axis_and_the_preset(
    shown: Any, open_page: Callable[..., Any], address: str
) -> None:
    for preset, axis in (("edge", "time"), ("beside_flow", "time"), ("beside_flow", "steps")):
        choose(shown, preset)
        shown.wait_for_function("!document.querySelector('.eos-go').disabled", timeout=60_000)
        shown.get_by_role("radio", name=axis).check()
        button(shown, "Step").click()
        reach(shown, 1)
        now = at_rest(shown)
        other = open_page()
        visit(other, address + now["link"])
        reach(other, 1)
        again = at_rest(other)
        assert again["link"] == now["link"]
        assert other.get_by_role("radio", name=axis).is_checked()
        chosen = other.get_by_label("experiment").input_value()
        assert chosen == str(list(PRESETS).index(preset))
        other.close()


@browser_test
def test_the_anchors_of_a_page_leave_the_run_alone(shown: Any) -> None:
    now = run_to(shown, 30)
    shown.evaluate("location.hash = '#elsewhere'")
    assert at_rest(shown)["step"] == now["step"]
    assert shown.evaluate("location.hash") == "#elsewhere"


@browser_test
def test_a_hundred_thousand_steps_take_no_more_room(page: Any, tmp_path: Path) -> None:
    bowl = Laboratory(settings={"task": "quadratic", "stepSize": 0.0999})
    visit(page, write_page(tmp_path / "page.html", bowl))
    debugger = page.context.new_cdp_session(page)

    def heap() -> float:
        """Bytes that the page's objects take; those of the engine are bounded by its record."""
        debugger.send("HeapProfiler.collectGarbage")
        return float(debugger.send("Runtime.getHeapUsage")["usedSize"])

    run_to(page, 5_000)
    before = heap()
    now = run_to(page, 105_000)
    assert now["step"] >= 105_000
    assert heap() - before < 2**20  # a number kept for every step would be 0.8 MB for each channel
    data = recorded(page)
    assert len(data["low"]["loss"]) <= 1024
    assert data["low"]["eigenvalue1"][-1] == pytest.approx(20)
    assert page.problems == []


@browser_test
def test_data_as_csv_and_a_picture(shown: Any) -> None:
    now = run_to(shown, 50, speed="60")
    rows = [line.split(",") for line in saved(shown, "csv").read_text().split("\n")[:-1]]
    names, last = rows[0], rows[-1]
    assert names[:3] == ["step", "time", "loss"]
    assert float(last[0]) == now["step"]
    assert float(last[names.index("eigenvalue1")]) == now["sharpness"]
    assert saved(shown, "png").read_bytes().startswith(b"\x89PNG")


def library_lines(page: Any) -> str:
    page.locator(".eos-lines summary").click()
    page.wait_for_function("document.querySelector('.eos-lines pre').textContent")
    return str(page.locator(".eos-lines pre").inner_text())


def run_lines(page: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Any]:
    """The run that the lines for the library make, and the page's data."""
    code, data = library_lines(page), recorded(page)
    (folder / "laboratory.json").write_text(json.dumps(data))
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    run = names["run"]
    assert isinstance(run, Run)
    return run, data


@browser_test
@pytest.mark.parametrize("optimizer", ["gd", "polyak", "nesterov", "rmsprop", "adam"])
def test_the_lines_for_the_library_repeat_the_run(
    shown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    shown.locator(".eos-settings summary").click()
    set_field(shown, "optimizer", optimizer)
    set_field(shown, "eigenvalues", "2")
    button(shown, "Step").click()
    reach(shown, 1)
    run_to(shown, 30, speed="60")
    slider(shown).press("PageDown")
    run_to(shown, 60, speed="60")
    run, data = run_lines(shown, tmp_path, monkeypatch)
    assert run.settings["optimizer"] == optimizer
    ((_, smaller),) = run.settings["lr_changes"]
    assert smaller < run.lr == run.settings["lr"] == data["settings"]["stepSize"]
    np.testing.assert_allclose(data["low"]["loss"], run["loss"].values, rtol=1e-7)
    if run.is_preconditioned:
        largest = run.preconditioned_sharpness.values
        np.testing.assert_allclose(data["low"]["eigenvalue1"], largest, rtol=3e-3)
    for j in () if run.is_preconditioned else (0, 1):
        np.testing.assert_allclose(
            data["low"][f"eigenvalue{j + 1}"], run["eigenvalues"].values[:, j], rtol=3e-3
        )


@browser_test
def test_the_lines_for_gradient_flow_follow_it(
    shown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(shown, "flow")
    reach(shown, 0)
    run_to(shown, 60, speed="60")
    run, data = run_lines(shown, tmp_path, monkeypatch)
    times = data["low"]["time"]
    assert run.outcome.step * run.time_per_step == pytest.approx(times[-1])
    for name, own in (("loss", "loss"), ("sharpness", "eigenvalue1")):
        values = np.interp(times, run[name].steps * run.time_per_step, run[name].values)
        np.testing.assert_allclose(data["low"][own], values, rtol=0.02)


@browser_test
def test_the_lines_for_mini_batches_run(
    shown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(shown, "batches")
    reach(shown, 0)
    run_to(shown, 60, speed="60")
    run, data = run_lines(shown, tmp_path, monkeypatch)
    assert run.settings["batch_size"] == 2
    assert run.outcome.step == data["steps"]
    # other batches, from the same weights
    assert run["loss"].values[0] == pytest.approx(data["low"]["loss"][0])


@browser_test
def test_an_adaptive_optimizers_curvature_has_its_own_name(shown: Any) -> None:
    run_to(shown, 20)
    assert "· sharpness " in shown.locator(".eos-numbers").inner_text()
    choose(shown, "adam")
    reach(shown, 0)
    run_to(shown, 20)
    assert "· preconditioned sharpness " in shown.locator(".eos-numbers").inner_text()
    spoken = str(shown.locator(".eos-main").get_attribute("aria-label"))
    assert spoken.startswith("train loss and preconditioned sharpness")


@browser_test
def test_lines_that_the_library_has_not(shown: Any) -> None:
    choose(shown, "quadratic")
    reach(shown, 0)
    run_to(shown, 20)
    assert "no counterpart of this task" in library_lines(shown)


# -- pages -----------------------------------------------------------------------------------------


@browser_test
def test_three_on_one_page(page: Any, tmp_path: Path) -> None:
    weights = np.linspace(-0.4, 0.6, 13)
    visit(
        page,
        write_page(
            tmp_path / "page.html",
            Laboratory(compact=True),
            Laboratory("adam"),
            Laboratory(settings={"hidden": [4]}, initial_point=weights, title="Your own"),
            share=True,
        ),
    )
    for which in range(3):
        page.locator(ROOT).nth(which).locator(".eos-go").click()
    for which in range(3):
        reach(page, 30, which)
        page.locator(ROOT).nth(which).locator(".eos-go").click()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert page.locator(ROOT).first.locator(".eos-side").is_hidden()
    own = page.locator(ROOT).nth(2)
    with page.expect_download() as download:
        own.get_by_role("button", name="data, JSON").click()
    data = json.loads(Path(download.value.path()).read_text())
    assert data["initialPoint"] == weights.tolist()
    assert page.evaluate("location.hash") == "", "none of them was given the address"
    assert page.problems == []


@pytest.fixture
def chapter(page: Any, tmp_path: Path) -> Any:
    """A page with three compact laboratories far apart, beside the laboratory's own page."""
    page.add_init_script(
        """window.workers = 0;
           const Before = Worker;
           window.Worker = class extends Before {
             constructor(address) { super(address); workers += 1; }
           };"""
    )
    widgets = (Laboratory(preset, compact=True) for preset in ("raise", "quadratic", "momentum"))
    address = write_page(tmp_path / "chapter.html", *widgets, share=True)
    text = (tmp_path / "chapter.html").read_text()
    own = len(text) + sum(path.stat().st_size for path in tmp_path.glob("*.js"))
    shared = [path for path in tmp_path.glob("*.js") if path.stat().st_size > 1000]
    assert len(shared) == 2, "one program and one style sheet for all three"
    assert own < 250_000
    # the first is in sight, the others are not
    apart = "<style>.static-widget { margin-bottom: 2000px; }</style></head>"
    (tmp_path / "chapter.html").write_text(text.replace("</head>", apart))
    write_page(tmp_path / "laboratory.html", Laboratory(linked=True), share=True)
    visit(page, address)
    yield page
    assert page.blocked == []
    assert page.problems == []


def bring(page: Any, which: int) -> Any:
    lab = page.locator(ROOT).nth(which)
    lab.scroll_into_view_if_needed()
    reach(page, 0, which)
    return lab


@browser_test
def test_three_in_a_chapter_wait_for_the_reader(chapter: Any) -> None:
    reach(chapter, PRESETS["raise"]["warm"])
    chapter.wait_for_timeout(500)
    assert facts(chapter)["step"] == PRESETS["raise"]["warm"], "it does not start by itself"
    assert facts(chapter)["go"] == "Run"
    assert chapter.evaluate("workers") == 1, "those out of sight do nothing"
    last = bring(chapter, 2)
    last.locator(".eos-go").click()
    reach(chapter, 30, 2)
    second = bring(chapter, 1)
    assert facts(chapter, 1)["step"] == 0
    last.locator(".eos-go").click()
    assert chapter.evaluate("workers") == 3
    assert facts(chapter)["step"] == PRESETS["raise"]["warm"], "the first was left alone"
    # the quadratic: above its line it goes up, and it comes down again only with a smaller step
    for _ in range(2):
        second.get_by_role("button", name="larger step size").click()
    assert float(facts(chapter, 1)["lr"]) > 0.1
    take(second, 15)
    for _ in range(3):
        second.get_by_role("button", name="smaller step size").click()
    take(second, 25)
    losses = losses_of(second)
    peak = int(np.argmax(losses))
    assert peak == 15
    assert losses[15] > 100 * losses[0]
    assert (np.diff(losses[4:16]) > 0).all()
    assert (np.diff(losses[15:]) < 0).all()


def take(lab: Any, steps: int) -> None:
    """Press *Step* so many times."""
    root = lab.element_handle()
    for _ in range(steps):
        before = int(lab.get_attribute("data-step"))
        lab.get_by_role("button", name="Step", exact=True).click()
        lab.page.wait_for_function(
            "([root, before]) => Number(root.dataset.step) > before", arg=[root, before]
        )


def losses_of(lab: Any) -> np.ndarray:
    """The losses of a run of at most 60 steps, read off with the cursor."""
    plot = lab.locator(".eos-main")
    plot.focus()
    plot.press("Home")
    found = []
    for _ in range(int(lab.get_attribute("data-step")) + 1):
        settle(lab.page)
        text = plot.get_attribute("aria-valuetext")
        assert text.startswith(f"step {len(found)}, ")
        found.append(as_number(re.search(r"loss (\S+),", text)[1]))
        plot.press("ArrowRight")
    return np.array(found)


def as_number(text: str) -> float:
    """A number as the widgets write it: 0.05, 12,400, 3.10×10⁻⁵."""
    mantissa, _, power = text.replace(",", "").partition("×10")
    digits = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
    return float(mantissa.replace("−", "-")) * 10.0 ** int(power.translate(digits) or 0)


@browser_test
def test_reset_in_a_chapter_goes_back_to_what_the_text_is_about(chapter: Any) -> None:
    warm = PRESETS["raise"]["warm"]
    reach(chapter, warm)
    before = at_rest(chapter)
    slider(chapter).press("End")
    button(chapter, "Run").click()
    chapter.wait_for_selector(f"{ROOT}[data-state=diverged]", state="attached")
    assert facts(chapter)["words"].endswith("Press Reset to go back.")
    button(chapter, "Reset").click()
    chapter.wait_for_selector(f"{ROOT}[data-state=training]", state="attached")
    reach(chapter, warm)
    now = at_rest(chapter)
    for name in ("step", "lr", "sharpness", "threshold"):
        assert now[name] == before[name]


@browser_test
def test_a_run_of_a_chapter_goes_on_in_the_laboratory(chapter: Any) -> None:
    reach(chapter, PRESETS["raise"]["warm"])
    run_to(chapter, 1500)
    slider(chapter).press("PageDown")
    now = run_to(chapter, 1600)
    chapter.get_by_role("link", name="Open this run in the laboratory").first.click()
    chapter.wait_for_url("**/laboratory.html#laboratory?*")
    reach(chapter, int(now["step"]))
    again = at_rest(chapter)
    for name in ("step", "lr", "sharpness", "threshold"):
        assert again[name] == now[name], "bit for bit"
    assert chapter.locator(".eos-settings").is_visible()


@browser_test
def test_a_chapter_says_which_of_two_presets_it_shows(page: Any, tmp_path: Path) -> None:
    """Two begin with the same settings, one of them beside gradient flow."""
    visit(page, write_page(tmp_path / "page.html", Laboratory("beside_flow", compact=True)))
    assert "preset=beside_flow&axis=time&" in page.locator(".eos-open a").get_attribute("href")


@browser_test
def test_a_compact_one_in_a_phone(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page(**PHONE)
    visit(page, write_page(tmp_path / "page.html", Laboratory("taylor", compact=True)))
    reach(page, PRESETS["taylor"]["warm"])
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    box = page.locator(ROOT).bounding_box()
    assert box["height"] < 740, "all of it is in sight at once"
    assert button(page, "Freeze a quadratic").is_visible()


@browser_test
def test_an_unusable_setting_is_named_in_a_compact_one(page: Any, tmp_path: Path) -> None:
    settings = {"task": "quadratic", "batch": 2}
    path = write_page(tmp_path / "page.html", Laboratory(settings=settings, compact=True))
    page.goto(path)
    page.get_by_text("batch must be 0 with the quadratic").wait_for()


# -- cursor ----------------------------------------------------------------------------------------


@browser_test
def test_the_cursor_reads_the_run(shown: Any) -> None:
    run_to(shown, 200, speed="300")
    data = recorded(shown)
    numbers, plot = shown.locator(".eos-numbers"), shown.locator(".eos-main")
    last = numbers.inner_text()
    box = plot.bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    settle(shown)
    step = int(re.match(r"step (\d+)", numbers.inner_text())[1])
    assert 50 < step < data["steps"]
    assert f"sharpness {data['low']['eigenvalue1'][step]:.3g}" in numbers.inner_text()
    assert f"loss {data['low']['loss'][step]:.3g} " in numbers.inner_text()
    shown.mouse.move(0, 0)
    settle(shown)
    assert numbers.inner_text() == last
    plot.focus()
    plot.press("Home")
    for _ in range(3):
        plot.press("ArrowRight")
    plot.press("PageUp")
    settle(shown)
    assert plot.get_attribute("aria-valuenow") == "23"
    assert numbers.inner_text().startswith("step 23 · ")
    plot.press("Escape")
    settle(shown)
    assert numbers.inner_text() == last


@browser_test
def test_the_cursor_reads_ranges_of_long_runs(page: Any, tmp_path: Path) -> None:
    """Beyond 1,024 steps a place stands for several: what is read is their lowest and highest."""
    settings = {"task": "quadratic", "stepSize": 0.0999, "spectrum": [20, 0.01]}
    visit(page, write_page(tmp_path / "page.html", Laboratory(settings=settings)))
    run_to(page, 3000)
    data = recorded(page)
    assert data["every"] >= 4
    plot = page.locator(".eos-main")
    plot.focus()
    plot.press("Home")
    settle(page)
    text = plot.get_attribute("aria-valuetext")
    assert text.startswith(f"step 0 to {data['every'] - 1}, ")
    low, high = (as_number(t) for t in re.search(r"loss (\S+) to (\S+),", text).groups())
    assert low == pytest.approx(data["low"]["loss"][0], rel=0.01)
    assert high == pytest.approx(data["high"]["loss"][0], rel=0.01)
    assert low < high


# -- what comes from Python ------------------------------------------------------------------------

LIVE_MODEL = """async ([esm, state]) => {
  const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  const listeners = {};
  self.model = {
    get: (name) => state[name], set(name, value) { state[name] = value; }, save_changes() {},
    on: (event, listener) => { (listeners[event] ??= []).push(listener); }, off() {},
    assign(name, value) { // what a message from a kernel does
      state[name] = value;
      for (const listener of listeners[`change:${name}`] ?? []) listener();
    },
  };
  self.dispose = widget.render({ model, el: document.body });
}"""


def show_live(page: Any) -> None:
    """A laboratory as a kernel shows it; `model` is its front end's."""
    laboratory = Laboratory(settings={"degree": 3, "hidden": [8], "stepSize": 0.1})
    names = ("title", "preset", "settings", "presets", "colors", "compact", "linked")
    page.goto("data:text/html,<!doctype html><title>test</title>")
    page.evaluate(
        LIVE_MODEL, [laboratory._esm, {name: getattr(laboratory, name) for name in names}]
    )
    reach(page, 0)


@browser_test
def test_settings_that_python_assigns_reach_the_page(page: Any) -> None:
    show_live(page)
    assert facts(page)["lr"] == "0.1"
    assert page.locator("form [name=hidden]").input_value() == "8"
    run_to(page, 30)
    page.evaluate("model.assign('settings', { degree: 3, hidden: [5, 5], stepSize: 0.05 })")
    reach(page, 0)
    now = at_rest(page)
    assert now["step"] == 0, "a new run, which waits for the reader"
    assert now["limit"] == "2/η = 40"
    assert page.locator("form [name=hidden]").input_value() == "5,5"
    assert button(page, "Forget earlier runs").is_disabled(), "that was of another network"
    page.evaluate("model.assign('settings', { hidden: [0] })")
    assert "hidden must be" in page.get_by_role("alert").inner_text()
    assert page.problems == []


# -- a run beside another --------------------------------------------------------------------------


@browser_test
def test_a_single_step_reaches_python_as_a_pause_does(page: Any) -> None:
    show_live(page)
    assert page.get_by_text("link to this run").is_hidden(), "it would lead nowhere"
    for step in (1, 2):
        button(page, "Step").click()
        page.wait_for_function("(step) => model.get('result')?.steps === step", arg=step)
        # weights, initial weights, then low and high of every channel, of steps 0 to `step`
        size = page.evaluate("model.get('numbers').byteLength / 8")
        channels = page.evaluate("model.get('result').channels.length")
        assert size == 2 * 25 + 2 * channels * (step + 1)
    assert page.problems == []


@browser_test
def test_weights_of_python_stay_while_they_fit(page: Any, tmp_path: Path) -> None:
    weights = np.linspace(-1, 1, 25)
    own = Laboratory(settings={"degree": 3, "hidden": [8]}, initial_point=weights)
    visit(page, write_page(tmp_path / "page.html", own))
    page.locator(".eos-settings summary").click()
    for name, value, kept in (("optimizer", "polyak", True), ("seed", "1", False)):
        set_field(page, name, value)
        reach(page, 0)
        at_rest(page)
        assert (recorded(page)["initialPoint"] == weights.tolist()) == kept
        button(page, "Reset").click()
        reach(page, 0)
        at_rest(page)
        assert (recorded(page)["initialPoint"] == weights.tolist()) == kept


@browser_test
def test_a_served_page_runs_as_a_file_does(open_page: Callable[..., Any], tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", Laboratory(linked=True))
    with served(tmp_path) as address:
        page = open_page(allow=(address,))
        visit(page, f"{address}/page.html")
        now = run_to(page, 400)
        assert now["state"] == "training"
        losses = recorded(page)["low"]["loss"][:400]
        again = open_page(allow=(address,))
        visit(again, f"{address}/page.html{now['link']}")
        reach(again, int(now["step"]))
        assert recorded(again)["low"]["loss"][:400] == losses, "bit for bit"
        assert page.problems == again.problems == page.blocked == again.blocked == []
    from_file = open_page()
    visit(from_file, (tmp_path / "page.html").as_uri() + now["link"])
    reach(from_file, int(now["step"]))
    assert recorded(from_file)["low"]["loss"][:400] == losses


@browser_test
def test_a_run_of_python_is_drawn_and_repeated(page: Any, tmp_path: Path) -> None:
    network = build("fc-tanh", 1, 1, widths=(8,), init="lecun", seed=3)
    objective = Objective.from_dataset(network, chebyshev(3, 12), dtype="float64")
    run = train(objective, GradientDescent(0.1), num_steps=200, sharpness_schedule=every(5))
    settings = {"degree": 3, "points": 12, "hidden": [8]}
    begin = {"settings": settings, "initial_point": objective.initial_point}
    visit(page, write_page(tmp_path / "with.html", Laboratory.from_run(run, **begin)))
    with_shadow = page.locator(".eos-main").screenshot()
    assert page.get_by_role("radio", name="steps").is_checked()
    assert page.get_by_role("button", name="Forget earlier runs").is_enabled()
    run_to(page, 100, speed="300")
    losses = recorded(page)["low"]["loss"][:100]
    np.testing.assert_allclose(losses, run["loss"].values[:100], rtol=1e-8)
    button(page, "Reset").click()
    settle(page)
    button(page, "Forget earlier runs").click()
    settle(page)
    assert page.get_by_role("button", name="Forget earlier runs").is_disabled()
    assert page.locator(".eos-main").screenshot() != with_shadow
    assert page.problems == []


@browser_test
def test_gradient_descent_keeps_to_gradient_flow_up_to_its_line(shown: Any) -> None:
    choose(shown, "beside_flow")
    shown.wait_for_function("!document.querySelector('.eos-go').disabled", timeout=60_000)
    assert not button(shown, "Forget earlier runs").is_disabled(), "gradient flow is the shadow"
    assert facts(shown)["limit"] == "2/η = 10"
    run_to(shown, 600)
    descent = recorded(shown)
    choose(shown, "flow")
    reach(shown, 0)
    run_to(shown, 1000)
    flow = recorded(shown)

    def sharpness(data: dict[str, Any], time: float) -> float:
        times, values = (np.array(data["high"][name]) for name in ("time", "eigenvalue1"))
        return float(np.interp(time, times, values))

    crossing = next(i for i, v in enumerate(descent["high"]["eigenvalue1"]) if v > 10)
    for time in np.linspace(5, 0.2 * crossing, 8):
        assert sharpness(descent, time) == pytest.approx(sharpness(flow, time), rel=0.03)
    assert sharpness(flow, 100) > 1.4 * sharpness(descent, 100)


@browser_test
def test_a_phone(open_page: Callable[..., Any], address: str) -> None:
    page = open_page(**PHONE)
    visit(page, address)
    page.locator(".eos-settings summary").tap()
    page.locator(".eos-go").tap()
    reach(page, 30)
    page.locator(".eos-go").tap()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    small = page.evaluate(
        """[...document.querySelectorAll(".eos-lab :is(button, select, summary, form input)")]
          .filter((e) => e.clientWidth && e.getBoundingClientRect().height < 24).length"""
    )
    assert small == 0
    assert page.problems == []


@browser_test
@pytest.mark.parametrize("compact", [False, True])
def test_a_narrow_column_holds_every_control(
    open_page: Callable[..., Any], tmp_path: Path, compact: bool
) -> None:
    page = open_page(viewport={"width": 320, "height": 700})
    path = write_page(tmp_path / "page.html", Laboratory("momentum", compact=compact))
    page.goto(path)
    page.add_style_tag(content="body { padding: 12px 24px !important; }")  # as in the book
    reach(page, 0)
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    beyond = page.evaluate(
        """[...document.querySelectorAll(".eos-lab :is(button, select, input, canvas, span)")]
          .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > 320 - 24)
          .map((e) => e.outerHTML)"""
    )
    assert beyond == []


@browser_test
def test_one_that_has_not_begun_is_printed_as_a_picture(page: Any, tmp_path: Path) -> None:
    labs = [Laboratory("edge", compact=True), Laboratory("momentum", compact=True)]
    address = write_page(tmp_path / "page.html", *labs)
    text = (tmp_path / "page.html").read_text()
    apart = "<style>.static-widget { margin-bottom: 2000px; }</style></head>"
    still = "</script><noscript><p class='still'>a picture</p></noscript></div>"
    # only views end so: the states and the page's own script are elsewhere
    text = text.replace("</head>", apart).replace("</script></div>", still)
    (tmp_path / "page.html").write_text(text)
    visit(page, address)
    reach(page, 0)
    stills = page.locator(".still")
    assert stills.count() == 2
    for medium, printed in (("screen", [False, False]), ("print", [False, True])):
        page.emulate_media(media=medium)
        assert [one.is_visible() for one in stills.all()] == printed
        begun = [one.is_visible() for one in page.locator(ROOT).all()]
        assert begun == [not one for one in printed]
    assert page.problems == []


@browser_test
def test_every_control_has_a_name(shown: Any) -> None:
    shown.locator(".eos-settings summary").click()
    nameless = shown.evaluate(
        """[...document.querySelectorAll(".eos-lab :is(button, select, input, a, [role=img])")]
          .filter((e) => !(e.textContent.trim() && e.tagName !== "SELECT") && !e.ariaLabel
            && ![...(e.labels ?? [])].some((l) => l.textContent.trim()))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert shown.get_by_role("group", name="The laboratory").count() == 1
    assert shown.locator("[role=status][aria-live=polite]").count() == 1


@browser_test
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("compact", [False, True])
def test_axe_finds_nothing(page: Any, tmp_path: Path, theme: str, compact: bool) -> None:
    """The rules of axe-core (WCAG and good practice) on a laboratory that runs."""
    from axe_playwright_python.sync_playwright import Axe

    widgets = [Laboratory("taylor", compact=compact)]
    if compact:
        widgets.append(Laboratory("momentum", compact=True))
    visit(page, write_page(tmp_path / "page.html", *widgets, theme=theme))
    # axe compares colours with the page's, which here has none of its own
    colors = {"light": "#ffffff", "dark": "#14181e"}
    page.add_style_tag(content=f"body {{ background: {colors[theme]} }}")
    page.evaluate(
        "document.querySelectorAll('.eos-lab details').forEach((d) => { d.open = true; })"
    )
    reach(page, 370)
    found = Axe().run(page, context=ROOT).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    page.evaluate(
        "document.querySelector('.eos-run label').replaceWith(document.createElement('select'))"
    )
    again = Axe().run(page, context=ROOT).response["violations"]
    assert "select-name" in [one["id"] for one in again], "it would have found a nameless control"


@browser_test
def test_a_title_is_text_not_markup(page: Any, tmp_path: Path) -> None:
    title = "<img src=x onerror='window.hacked = 1'></script>"
    visit(page, write_page(tmp_path / "page.html", Laboratory(title=title)))
    assert page.locator(".eos-title").text_content() == title
    assert page.evaluate("window.hacked") is None


# -- JupyterLab ------------------------------------------------------------------------------------

LIVE_CELL = """
from eoslib.widgets.laboratory import Laboratory

laboratory = Laboratory(settings={"degree": 3, "hidden": [8]}, title="before")
def tell(change):
    run = laboratory.run
    laboratory.title = f"{run.outcome.step} {len(run.sharpness)} {run.final_point.size}"
laboratory.observe(tell, "result")
laboratory
"""


@pytest.mark.lab
def test_a_paused_run_is_a_run_of_the_library(run_in_lab: Callable[[str, str], Any]) -> None:
    page = run_in_lab(LIVE_CELL, f"{ROOT}[data-step]")
    page.locator(".eos-go").click()
    reach(page, 40)
    page.locator(".eos-go").click()
    now = at_rest(page)
    count = int(now["step"])
    page.get_by_text(f"{count} {count + 1} 25").wait_for()
    assert page.blocked == []


FROM_RUN_CELL = """
from eoslib import Experiment, run_experiment
from eoslib.widgets.laboratory import Laboratory

experiment = Experiment(
    dataset="chebyshev-3-12",
    architecture="fc-tanh",
    architecture_options={"widths": [8]},
    lr=0.1,
    num_steps=60,
    dtype="float64",
)
run = run_experiment(experiment, "runs")
laboratory = Laboratory.from_run(run, title="before")
def tell(change):
    again, count = laboratory.run, min(50, laboratory.run.outcome.step)
    error = abs(again["loss"].values[:count] / run["loss"].values[:count] - 1).max()
    laboratory.title = f"{count} steps within {error:.0e}"
laboratory.observe(tell, "result")
laboratory
"""


@pytest.mark.lab
def test_a_run_of_the_library_is_repeated_in_a_notebook(
    run_in_lab: Callable[[str, str], Any],
) -> None:
    page = run_in_lab(FROM_RUN_CELL, f"{ROOT}[data-step]")
    assert page.get_by_role("button", name="Forget earlier runs").is_enabled(), "it is a shadow"
    page.locator(".eos-go").click()
    reach(page, 60)
    page.locator(".eos-go").click()
    title = page.get_by_text("50 steps within")
    title.wait_for()
    assert float(title.inner_text().split()[-1]) < 1e-3
    assert page.blocked == []
