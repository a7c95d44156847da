/* A figure with one slider, which chooses among frames that were computed beforehand.

   Everything drawn comes from the model: `meta` describes panels, lines and marks, `data` holds their
   numbers. In JupyterLab a kernel may compute frames at further values; in the built page there is
   none (`_host` is "static"). */

import { makeCharts } from "./chart.js";
import {
  clamp, fillTable, floats, keyMoves, make, makeRunner, nameSlider, number, sliderMarkup, stepSizeColor,
  themeOf, tickMarks, watch,
} from "./plot.js";

let figures = 0; // numbers the ids, since several figures may share a page

function decode(meta, view) {
  const all = floats(view);
  const line = (spec) => {
    const xs = "x" in spec ? all.subarray(spec.x, spec.x + spec.n) : null;
    return { ...spec, values: all.subarray(spec.y, spec.y + spec.n),
      x: xs ? (i) => xs[i] : (i) => spec.first + i * spec.every };
  };
  return { ...meta, background: meta.background.map(line),
    frames: meta.frames.map((frame) => ({ ...frame, lines: frame.lines.map(line) })) };
}

function render({ model, el }) {
  const id = `eos-figure-${++figures}`;
  const live = Boolean(model.get("computable")) && model.get("_host") !== "static";
  const { label: quantity, symbol, step_sizes: ofStepSizes } = model.get("slider");
  let picture = null, theme = "light", spoken = null, frameRequest = 0;

  /* -- skeleton: constant text only; what comes from the model is set as text, never markup -- */
  const root = make("div", {
    class: "eos-x eos-figure", role: "group", "aria-labelledby": `${id}-title`, "aria-describedby": `${id}-alt`,
    // without this, JupyterLab's command mode takes the arrow keys
    "data-lm-suppress-shortcuts": "true",
  });
  root.innerHTML = `
    <div class="eos-title" id="${id}-title"></div>
    ${sliderMarkup(id, 0, `<span><span></span><b class="eos-value"></b></span>`)}
    <div class="eos-charts"></div>
    <div class="eos-status" role="status" aria-live="polite"><i></i><span></span></div>
    <p class="eos-hidden" id="${id}-alt"></p>
    <details class="eos-table"><summary>the figure in numbers</summary>
      <div><table class="eos-now"></table><table class="eos-all"></table></div></details>`;
  const $ = (selector) => root.querySelector(selector);
  const slider = $(".eos-track input"), details = $("details");
  $(".eos-title").textContent = model.get("title");
  $(`#${id}-alt`).textContent = model.get("alt");
  $(".eos-values span span").textContent = symbol && `${symbol} = `;
  $(".eos-status").classList.toggle("eos-colored", ofStepSizes);
  nameSlider(root, `${quantity} ${symbol}`.trim(), `previous ${quantity}`, `next ${quantity}`);
  el.append(root);

  const palette = () => model.get("colors")[theme];
  const color = ({ lr, color: name }) =>
    (lr ? stepSizeColor(lr, model.get("lr_range"), palette().stops) : palette()[name]);
  const charts = makeCharts($(".eos-charts"), id, color);

  /* -- the slider -------------------------------------------------------------------------- */
  const frame = () => picture.frames[model.get("index")];
  const colorAt = (k) => color(ofStepSizes ? { lr: picture.frames[k].number } : { color: "ink" });

  function choose(index) {
    model.set("index", clamp(index, 0, picture.frames.length - 1));
    model.save_changes();
    schedule();
  }
  slider.addEventListener("input", () => choose(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    const by = keyMoves(event, picture.frames.length);
    if (!by) return;
    event.preventDefault();
    choose(model.get("index") + by);
  });
  for (const button of root.querySelectorAll(".eos-step")) {
    button.addEventListener("click", () => choose(model.get("index") + Number(button.dataset.by)));
  }

  function schedule() { // one picture per screen refresh, however many events there were
    frameRequest ||= requestAnimationFrame(() => { frameRequest = 0; update(); });
  }

  /* -- what is shown ----------------------------------------------------------------------- */
  function load() {
    picture = decode(model.get("meta"), model.get("data"));
    charts.load({ ...picture, ghosts: model.get("ghosts") });
    const { frames } = picture;
    slider.max = frames.length - 1;
    slider.disabled = frames.length < 2;
    root.querySelectorAll(".eos-track > span").forEach((end, k) => {
      end.textContent = frames.length > 1 ? frames.at(-k).value : "";
    });
    tickMarks(root, frames.map((_, k) => k / Math.max(1, frames.length - 1)));
    relayout();
  }

  function relayout() {
    theme = themeOf(root);
    const ramp = picture.frames.map((_, k) => colorAt(k));
    root.style.setProperty("--eos-ramp",
      ofStepSizes && ramp.length > 1 ? `linear-gradient(to right, ${ramp.join()})` : "var(--rule)");
    charts.layout();
    update();
  }

  function update() {
    const index = model.get("index"), { value, text, number: at } = frame();
    root.style.setProperty("--eta", colorAt(index));
    slider.value = index;
    slider.setAttribute("aria-valuetext", `${quantity} ${value}`);
    $(".eos-value").textContent = value;
    if (text !== spoken) $(".eos-status span").textContent = spoken = text;
    root.querySelectorAll(".eos-step").forEach((button, k) => {
      button.disabled = index === (k ? picture.frames.length - 1 : 0);
    });
    root.querySelectorAll(".eos-ticks i").forEach((mark, k) => mark.classList.toggle("eos-on", k === index));
    runner?.update(at);
    charts.show(frame());
    tabulate();
  }

  function tabulate() {
    if (!details.open) return;
    const { lines, marks, value } = frame(), rows = [];
    for (const { label, panel, values, x } of [...lines, ...picture.background]) {
      if (!label) continue;
      const known = [...values.keys()].filter((i) => !Number.isNaN(values[i]));
      const extreme = (sign) => known.reduce((best, i) => (sign * values[i] > sign * values[best] ? i : best));
      const cells = [known[0], extreme(-1), extreme(1), known.at(-1)];
      rows.push([label, picture.panels[panel].y, ...cells.map((i) => `${number(values[i])} at ${number(x(i), 4)}`)]);
    }
    for (const { label, panel, along, at } of marks.filter((mark) => mark.label)) {
      const ends = at.map((end) => (end === null ? "…" : number(end))).join(" to ");
      rows.push([label, picture.panels[panel][along], ends, "", "", ""]);
    }
    fillTable($(".eos-now"), [`${quantity}: ${value}`, "axis", "first", "lowest", "highest", "last"], rows);
    const all = fillTable($(".eos-all"), [quantity, "what is to be seen"], picture.frames.map((one) => [one.value, one.text]));
    all.forEach((row, k) => row.firstChild.style.setProperty("--eta", colorAt(k)));
    all[model.get("index")].setAttribute("aria-current", "true");
  }
  details.addEventListener("toggle", tabulate);

  /* -- wiring ------------------------------------------------------------------------------ */
  const [least, most] = [0, -1].map((k) => model.get("meta").frames.at(k).number);
  const runner = live ? makeRunner({
    model, id, symbol: symbol || quantity, verbs: ["Compute", "Computing"], trait: "computing",
    complaint: (value) => (value < least || value > most ? `${number(value)} is outside the range of the slider` : ""),
    hint: `type a number between ${number(least)} and ${number(most)}`,
    choose() {}, request: (value) => ({ do: "compute", value }),
  }) : null;
  if (runner) $(".eos-control").after(runner.box);
  const handlers = [["change:index", schedule], ["change:meta", load],
    ["change:computing", () => { runner?.receive(); schedule(); }]];
  for (const [event, handler] of handlers) model.on(event, handler);
  load();
  runner?.receive();
  const unwatch = watch($(".eos-charts"), relayout);

  return () => {
    for (const [event, handler] of handlers) model.off(event, handler);
    unwatch();
    runner?.dispose();
    cancelAnimationFrame(frameRequest);
  };
}

export default { render };
