/* The step-size explorer: train loss above, sharpness and its threshold below, one slider for η;
   where there are runs of several networks ("groups"), a list that chooses among them.

   One front end, two hosts. In JupyterLab a kernel stands behind the model and can train at any
   step size. In the built page there is none (`_host` is "static") and the slider moves between
   the runs that were computed when the page was built. Everything drawn comes from the model. */

import {
  axes, canvasContext, clamp, draw, fillTable, floats, keyMoves, make, makeRunner, nameSlider, number,
  path, resize, scale, sliderMarkup, stepSizeColor, themeOf, thousands, tickLabels, tickMarks,
  trackCursor, watch,
} from "./plot.js";

const WINDOW = 60; // steps in the magnifier
let explorers = 0; // numbers the ids, since several explorers may share a page

/* ---- data ------------------------------------------------------------------------------- */

function decode(meta, view) {
  const all = floats(view);
  const series = (spec) => {
    const values = all.subarray(spec.values, spec.values + spec.n);
    const steps = "steps" in spec ? all.subarray(spec.steps, spec.steps + spec.n) : null;
    const step = steps ? (i) => steps[i] : (i) => spec.first + i * spec.every;
    const last = spec.n - 1;
    const nearest = (target) => { // index of the measurement nearest to a step
      if (!steps) return clamp(Math.round((target - spec.first) / spec.every), 0, last);
      let low = 0, high = last;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (steps[middle] <= target) low = middle; else high = middle;
      }
      return last < 0 || target - steps[low] <= steps[high] - target ? low : high;
    };
    return { n: spec.n, values, step, nearest, end: spec.n ? step(last) : 0 };
  };
  return (meta.runs || []).map((run) => ({
    ...run, loss: series(run.loss), sharpness: series(run.sharpness), cache: {},
  }));
}

function extent(runs, name, positive) {
  let low = Infinity, high = -Infinity;
  for (const run of runs) {
    for (const v of run[name].values) {
      if (positive && !(v > 0)) continue;
      if (v < low) low = v;
      if (v > high) high = v;
    }
  }
  return [low, high];
}

/* Axis ranges common to all runs, so that what moves when η moves is the run, not the axis.
   Diverged runs do not count: their last values would flatten all the others. */
function ranges(runs, scale) {
  const tame = runs.filter((run) => run.status !== "diverged");
  const counted = tame.length ? tame : runs;
  let [low, high] = extent(counted, "loss", true);
  const starts = runs.map((run) => run.loss.values[0]).filter((v) => v > 0 && v < 1e30);
  high = Math.max(tame.length ? high : 0, ...starts) * (tame.length < runs.length ? 6 : 1.6);
  if (!(low < high)) [low, high] = [1e-3, 1];
  const loss = { log: true, low: Math.max(low / 1.5, high * 1e-14), high };

  const thresholds = runs.map((run) => run.threshold);
  let [bottom, top] = extent(counted, "sharpness", true);
  if (!(bottom <= top)) [bottom, top] = [Math.min(...thresholds), Math.max(...thresholds)];
  const lowest = Math.min(...thresholds);
  // a threshold far above everything measured is named at the upper edge instead
  top = Math.max(top, lowest, ...thresholds.filter((t) => t <= 1.25 * top)) * 1.08;
  const log = scale === "log" || (scale === "auto" && top / lowest > 20);
  const low2 = log ? Math.max(Math.min(bottom, lowest) / 1.2, lowest / 20) : 0;
  return { loss, sharpness: { log, low: low2, high: top * (log ? 1.1 : 1) } };
}

/* ---- the widget ------------------------------------------------------------------------- */

function render({ model, el }) {
  const id = `eos-explorer-${++explorers}`;
  const live = Boolean(model.get("trainable")) && model.get("_host") !== "static";
  const symbol = model.get("threshold_label"), curvature = model.get("curvature_label");
  const [lrLow, lrHigh] = model.get("lr_range");
  const groups = model.get("group_names") || [];

  let runs = [], partial = null, layout = null, theme = "light";
  let room = 0; // the magnifier's width: to ask for it at every frame would lay the page out twice
  let zoom = { steps: 0, time: 0 }, cursor = null, spoken = "";

  /* -- skeleton: constant text only; what comes from the model is set as text, never markup -- */
  const root = make("div", {
    class: `eos-x${live ? " eos-live" : ""}`, role: "group", "aria-labelledby": `${id}-title`,
    // without this, JupyterLab's command mode takes the arrow keys
    "data-lm-suppress-shortcuts": "true",
  });
  root.innerHTML = `
    <div class="eos-title" id="${id}-title"></div>
    <div class="eos-choose"><label for="${id}-group"></label><select id="${id}-group"
      data-lm-suppress-shortcuts="true"></select></div>
    ${sliderMarkup(id, 1000, `<span>η = <b class="eos-lr"></b></span>
      <span class="eos-threshold"><span class="eos-symbol"></span> = <b></b></span>`)}
    <div class="eos-status" role="status" aria-live="polite"><i></i><span></span></div>
    <div class="eos-body">
      <div class="eos-plot" tabindex="0" role="slider" data-lm-suppress-shortcuts="true"
        aria-label="cursor on the plots" aria-valuemin="0" aria-describedby="${id}-summary">
        <canvas aria-hidden="true"></canvas><svg aria-hidden="true"></svg>
      </div>
      <div class="eos-side">
        <details class="eos-magnifier" open><summary>${WINDOW} steps, magnified</summary>
          <div class="eos-caption"></div><svg aria-hidden="true"></svg><div class="eos-rises"></div>
        </details>
        <div class="eos-readout"></div>
      </div>
    </div>
    <div class="eos-tools">
      <fieldset class="eos-axis"><legend>x axis</legend>
        <label><input type="radio" name="${id}-axis" value="steps"><span>steps</span></label>
        <label><input type="radio" name="${id}-axis" value="time"><span>time = steps × η</span></label>
      </fieldset>
      <div class="eos-zoom" role="group" aria-label="range of the x axis"><span aria-hidden="true">zoom</span>
        <button type="button" data-by="1" aria-label="show half of the range">+</button>
        <button type="button" data-by="-1" aria-label="show twice the range">−</button>
      </div>
      <span class="eos-origin"></span>
    </div>
    <p class="eos-hidden" id="${id}-summary"></p>
    <details class="eos-table"><summary></summary><div><table class="eos-runs"></table></div></details>`;
  const $ = (selector) => root.querySelector(selector);
  const slider = $(".eos-track input"), plot = $(".eos-plot"), canvas = $("canvas");
  const svg = $(".eos-plot svg"), magnifier = $(".eos-magnifier svg");
  $(".eos-title").textContent = model.get("title");
  $(".eos-symbol").textContent = symbol;
  nameSlider(root, "step size η", "smaller step size", "larger step size");
  root.querySelectorAll(".eos-track span").forEach((end, k) => { end.textContent = number([lrLow, lrHigh][k]); });
  const list = $(".eos-choose select");
  $(".eos-choose label").textContent = model.get("group_label");
  if (groups.length) list.append(...groups.map((name) => make("option", { value: name }, name)));
  else $(".eos-choose").remove();
  el.append(root);

  /* -- η ------------------------------------------------------------------------------------ */
  const logSpan = Math.log(lrHigh / lrLow);
  const position = (lr) => (logSpan ? Math.round((1000 * Math.log(lr / lrLow)) / logSpan) : 500);
  const same = (a, b) => Math.abs(a / b - 1) < 1e-9;
  const distinct = () => [...new Set(runs.map((run) => run.lr))];

  /* The run at the chosen η: the one in progress, else the latest trained there, else none. */
  function selected() {
    const lr = model.get("lr");
    if (partial && same(partial.lr, lr)) return partial;
    return runs.findLast((run) => same(run.lr, lr)) ?? null;
  }

  function choose(lr) {
    model.set("lr", clamp(lr, lrLow, lrHigh));
    model.save_changes();
    schedule();
  }

  function neighbour(lr, by) { // `by` runs further along the sorted step sizes
    const all = distinct().sort((a, b) => a - b);
    let k = all.findIndex((v) => v >= lr * (1 - 1e-9));
    if (k < 0) k = all.length;
    if (by > 0 && !(k < all.length && same(all[k], lr))) k -= 1; // between two runs
    return all[clamp(k + by, 0, all.length - 1)];
  }

  /* -- the group ----------------------------------------------------------------------------- */
  const group = () => model.get("group") || "";
  const ofGroup = (all) => all.filter((run) => (run.group || "") === group());

  list.addEventListener("change", () => {
    const lr = model.get("lr"), away = (run) => Math.abs(Math.log(run.lr / lr));
    model.set("group", list.value);
    const there = ofGroup(decode(model.get("meta"), model.get("data")));
    // as the step size was, or the nearest at which there is a run
    model.set("lr", there.reduce((a, b) => (away(b) < away(a) ? b : a)).lr);
    model.save_changes();
  });

  const color = (lr) => stepSizeColor(lr, [lrLow, lrHigh], model.get("colors")[theme].stops);

  let pressed = false;
  slider.addEventListener("pointerdown", () => { pressed = true; });
  for (const event of ["pointerup", "pointercancel", "change", "blur"]) {
    slider.addEventListener(event, () => { pressed = false; });
  }
  slider.addEventListener("input", () => {
    const value = Number(slider.value), here = model.get("lr");
    const nearest = distinct().reduce((best, lr) =>
      Math.abs(position(lr) - value) < Math.abs(position(best) - value) ? lr : best);
    const away = Math.abs(position(nearest) - value);
    if (!live) {
      // assistive technology may move the thumb by less than the distance between two runs
      const stuck = !pressed && same(nearest, here) && away > 0;
      choose(stuck ? neighbour(here, Math.sign(value - position(here))) : nearest);
    } else if (away <= (pressed ? 6 : 0.5)) choose(nearest); // finished runs attract the thumb
    else choose(Number((lrLow * Math.exp((value / 1000) * logSpan)).toPrecision(3)));
    slider.value = position(model.get("lr"));
  });
  slider.addEventListener("keydown", (event) => {
    const by = keyMoves(event, distinct().length);
    if (!by) return;
    event.preventDefault();
    const lr = model.get("lr");
    if (!live) return choose(neighbour(lr, by));
    // between the runs: 5 of the slider's 1000 positions, and a leap of 100
    const target = clamp(position(lr) + (Math.abs(by) === 1 ? 5 : 100) * Math.sign(by), 0, 1000);
    const between = distinct().filter((v) => (v - lr) * by > 0 && !same(v, lr)
      && (position(v) - target) * by <= 0 && Math.abs(by) === 1);
    if (between.length) return choose(between.reduce((a, b) => ((b - a) * by < 0 ? b : a)));
    choose(Number((lrLow * Math.exp((target / 1000) * logSpan)).toPrecision(3)));
  });
  for (const button of root.querySelectorAll(".eos-step")) {
    button.addEventListener("click", () => choose(neighbour(model.get("lr"), Number(button.dataset.by))));
  }

  /* -- x axis ------------------------------------------------------------------------------- */
  const axis = () => model.get("axis");
  const perStep = (run) => (axis() === "time" ? run.lr : 1); // x per step of a run
  const shown = () => (partial ? [...runs, partial] : runs);
  const fullX = () => Math.max(1e-9, ...shown().map((run) => run.loss.end * perStep(run)));

  /* When one run is very much longer than most, start with a range that most of them fill. */
  function initialZoom() {
    const ends = runs.filter((run) => run.status !== "diverged")
      .map((run) => run.loss.end * perStep(run)).sort((a, b) => a - b);
    const usual = ends[Math.floor(ends.length / 2)];
    return usual > 0 ? Math.max(0, Math.floor(Math.log2((fullX() / usual) * 1.05))) : 0;
  }

  for (const radio of root.querySelectorAll(".eos-axis input")) {
    radio.addEventListener("change", () => {
      model.set("axis", radio.value);
      model.save_changes();
    });
  }
  for (const button of root.querySelectorAll(".eos-zoom button")) {
    button.addEventListener("click", () => {
      zoom[axis()] = clamp(zoom[axis()] + Number(button.dataset.by), 0, 10);
      relayout();
    });
  }

  /* -- layout: everything that does not depend on the selected run ---------------------------- */
  const parts = {}; // the SVG elements that change with the selected run

  function relayout() {
    const width = Math.floor(plot.clientWidth);
    if (!width || !runs.length) return;
    room = magnifier.clientWidth;
    theme = themeOf(root);
    const narrow = width < 430;
    const left = 46, right = narrow ? 46 : 76, top = 22, gap = 36;
    const heights = narrow ? [150, 170] : [180, 210];
    const inner = width - left - right, top2 = top + heights[0] + gap;
    const bottom = top2 + heights[1], height = bottom + 40;
    const maxX = fullX() / 2 ** zoom[axis()];
    const range = ranges(runs, model.get("sharpness_scale"));
    const panel = (name, top, size) => ({ left, top, width: inner, height: size,
      xTicks: tickLabels({ low: 0, high: maxX }, inner / 75), xScale: (x) => left + (x / maxX) * inner,
      yTicks: tickLabels(range[name], range[name].log ? 5 : 4), yScale: scale(range[name], top + size, top) });
    layout = {
      width, height, left, inner, narrow, top, top2, bottom, maxX, fullX: fullX(),
      panels: { loss: panel("loss", top, heights[0]), sharpness: panel("sharpness", top2, heights[1]) },
      key: [axis(), maxX, width].join(),
    };
    for (const run of shown()) run.cache = {};

    resize(svg, width, height);
    const defs = draw(svg, "defs");
    for (const [name, panel] of Object.entries(layout.panels)) {
      const clip = draw(defs, "clipPath", { id: `${id}-${name}` });
      draw(clip, "rect", { x: left, y: panel.top, width: inner, height: panel.height });
    }
    const frame = draw(svg, "g", { class: "eos-frame" });
    const heading = (name, label) => [label + (range[name].log ? ", log scale" : "")];
    axes(frame, layout.panels.loss, heading("loss", model.get("loss_label")));
    axes(frame, layout.panels.sharpness, heading("sharpness", curvature),
      axis() === "time" ? "time = steps × η" : "step");

    const box = (name) => ({ x: left, width: inner, y: layout.panels[name].top });
    parts.tint = draw(svg, "rect", { ...box("sharpness"), class: "eos-tint" });
    parts.above = draw(svg, "text", { x: left + 8, y: top2 + 15, class: "eos-above" }, `above ${symbol}`);
    parts.window = ["loss", "sharpness"].map((name) => draw(svg, "rect",
      { ...box(name), height: layout.panels[name].height, class: "eos-window" }));
    parts.threshold = draw(svg, "path", { class: "eos-dash" });
    for (const name of ["loss", "sharpness"]) {
      parts[name] = draw(svg, "path", { class: "eos-line", "clip-path": `url(#${id}-${name})` });
    }
    parts.text = draw(svg, "text", { class: "eos-dash-label" });
    parts.ends = draw(svg, "g");
    parts.cursor = draw(svg, "g", { class: "eos-cursor" });
    ghosts();
    describeRuns();
    update();
  }

  function paths(run) {
    if (run.cache.key !== layout.key) {
      const { left, inner, maxX, panels } = layout;
      const k = (perStep(run) * inner) / maxX;
      run.cache = { key: layout.key };
      for (const [name, { yScale }] of Object.entries(panels)) {
        const { n, step, values } = run[name];
        run.cache[name] = path(n, (i) => left + step(i) * k, (i) => yScale(values[i]), left + inner);
      }
    }
    return run.cache;
  }

  /* All runs, faintly, on a canvas: painted once per layout, so that dragging the slider costs
     the same whatever the number and length of the runs. */
  function ghosts() {
    const { width, height, left, inner, panels } = layout;
    const context = canvasContext(canvas, width, height);
    for (const [name, panel] of Object.entries(panels)) {
      context.save();
      context.beginPath();
      context.rect(left, panel.top, inner, panel.height);
      context.clip();
      for (const run of runs) {
        context.globalAlpha = theme === "dark" ? 0.34 : 0.26;
        context.strokeStyle = color(run.lr);
        context.stroke(new Path2D(paths(run)[name]));
      }
      context.restore();
    }
  }

  /* -- the selected run ----------------------------------------------------------------------- */
  const toX = (run, step) => layout.left + ((step * perStep(run)) / layout.maxX) * layout.inner;
  const lastStep = (run) => Math.min(run.loss.end, Math.floor(layout.maxX / perStep(run) + 1e-6));
  const focusStep = (run) => (cursor === null ? lastStep(run) : clamp(Math.round(cursor / perStep(run)), 0, lastStep(run)));

  let frameRequest = 0;
  function schedule() { // one picture per frame, however many events there were
    frameRequest ||= requestAnimationFrame(() => { frameRequest = 0; update(); });
  }

  function words(run, lr) {
    if (run === partial && run) return "training…";
    return run ? run.words : "not trained yet";
  }

  function update() {
    const lr = model.get("lr"), run = selected();
    const shade = color(lr), threshold = run ? run.threshold : thresholdAt(lr);
    root.style.setProperty("--eta", shade);
    const text = words(run, lr);
    slider.value = position(lr);
    slider.setAttribute("aria-valuetext",
      `step size ${number(lr)}, threshold ${number(threshold)}, ${text}`);
    $(".eos-lr").textContent = number(lr);
    $(".eos-threshold b").textContent = number(threshold);
    const about = [group(), live && !run ? `η = ${number(lr)}` : ""].filter(Boolean).join(", ");
    const status = about ? `${about}: ${text}` : text;
    list.value = group();
    if (status !== spoken) $(".eos-status span").textContent = spoken = status;
    $(".eos-status").classList.toggle("eos-diverged", run?.status === "diverged");
    const sizes = distinct();
    $('.eos-step[data-by="-1"]').disabled = !(Math.min(...sizes) < lr * (1 - 1e-9));
    $('.eos-step[data-by="1"]').disabled = !(Math.max(...sizes) > lr * (1 + 1e-9));
    for (const mark of root.querySelectorAll(".eos-ticks i")) {
      mark.classList.toggle("eos-on", same(Number(mark.dataset.lr), lr));
    }
    for (const row of root.querySelectorAll(".eos-table tr[data-lr]")) {
      if (same(Number(row.dataset.lr), lr)) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    if (trainer) trainer.update(lr);
    if (!layout) return;

    const { left, inner, panels, narrow, maxX } = layout, panel = panels.sharpness;
    const y = panel.yScale(threshold), inside = y >= panel.top - 0.5;
    const edge = clamp(y, panel.top, panel.top + panel.height);
    parts.tint.setAttribute("height", edge - panel.top);
    parts.above.style.display = edge - panel.top > 24 ? "" : "none";
    parts.threshold.setAttribute("d", inside ? `M${left} ${edge}h${inner}` : "");
    parts.text.replaceChildren();
    const wide = symbol.length > 4 || number(threshold).length > 4;
    const lines = narrow || wide ? [`${symbol} =`, number(threshold)]
      : [`${symbol} = ${number(threshold)}`];
    if (!inside) lines.push(...(narrow ? ["↑", "above"] : ["↑ above"]));
    lines.forEach((line, k, all) =>
      draw(parts.text, "tspan", { x: left + inner + 5,
        y: Math.max(edge, panel.top + 6 * all.length) + 4 + (k - (all.length - 1) / 2) * 14 }, line));

    parts.ends.replaceChildren();
    for (const name of ["loss", "sharpness"]) {
      parts[name].setAttribute("d", run ? paths(run)[name] : "");
      if (!run || !run[name].n || run === partial) continue;
      const series = run[name], last = series.n - 1;
      const x = toX(run, series.step(last));
      if (x > left + inner + 1) continue; // the run continues beyond the shown range
      const { top, height, yScale: toY } = panels[name];
      const at = clamp(toY(series.values[last]), top + 5, top + height - 4);
      if (run.status === "diverged") {
        draw(parts.ends, "path", { class: "eos-cross", d: `M${x - 5} ${at - 5}l10 10m0 -10l-10 10` });
        if (name === "loss") {
          const flip = x > left + inner * 0.6;
          draw(parts.ends, "text", { x: x + (flip ? -10 : 10), y: at + 5, class: "eos-cross-label",
            "text-anchor": flip ? "end" : "start" }, run.words);
        }
      } else draw(parts.ends, "circle", { class: "eos-end", cx: x, cy: at, r: 3 });
    }
    if (run && run.loss.end * perStep(run) > maxX * 1.001) {
      draw(parts.ends, "text", { class: "eos-more", x: left + inner, y: layout.bottom + 35,
        "text-anchor": "end" }, `to ${number(run.loss.end * perStep(run), 4)} →`);
    }
    $('.eos-zoom [data-by="1"]').disabled = zoom[axis()] >= 10;
    $('.eos-zoom [data-by="-1"]').disabled = zoom[axis()] <= 0;
    for (const radio of root.querySelectorAll(".eos-axis input")) radio.checked = radio.value === axis();
    point(run, threshold);
  }

  /* 2/η for gradient descent; other update rules have the same form, threshold = c/η. */
  function thresholdAt(lr) {
    const near = runs.reduce((a, b) =>
      (Math.abs(Math.log(b.lr / lr)) < Math.abs(Math.log(a.lr / lr)) ? b : a));
    return (near.threshold * near.lr) / lr;
  }

  /* -- cursor, read-out, magnifier ------------------------------------------------------------- */
  function point(run, threshold) {
    parts.cursor.replaceChildren();
    const readout = $(".eos-readout");
    for (const rect of parts.window) rect.setAttribute("width", 0);
    if (!run || !run.loss.n) {
      readout.replaceChildren();
      magnify(null);
      plot.setAttribute("aria-valuetext", "no run at this step size");
      return;
    }
    const step = focusStep(run), i = run.loss.nearest(step), at = run.loss.step(i);
    const loss = run.loss.values[i];
    const j = run.sharpness.n ? run.sharpness.nearest(at) : -1;
    const sharpness = j < 0 ? NaN : run.sharpness.values[j];
    // The sharpness is measured at some steps only: say at which, where it is not this one.
    const when = j < 0 || run.sharpness.step(j) === at ? "" : `, step ${thousands(run.sharpness.step(j))}`;
    const rows = [
      ["step", thousands(at)], ["time", number(at * run.lr, 4)], ["loss", number(loss)],
      [`${curvature}${when}`, number(sharpness)], [`÷ (${symbol})`, number(sharpness / threshold)],
    ];
    readout.replaceChildren(...rows.map(([name, value]) =>
      make("div", {}, make("span", {}, name), make("b", {}, value))));
    plot.setAttribute("aria-valuemax", lastStep(run));
    plot.setAttribute("aria-valuenow", at);
    plot.setAttribute("aria-valuetext", `step ${at}, loss ${number(loss)}, ${curvature} `
      + `${number(sharpness)}, ${number(sharpness / threshold)} times ${symbol}`);

    const from = Math.max(0, i - WINDOW + 1);
    const x1 = toX(run, run.loss.step(from)), x2 = toX(run, at);
    for (const rect of parts.window) {
      rect.setAttribute("x", x1.toFixed(1));
      rect.setAttribute("width", Math.max(2, x2 - x1).toFixed(1));
    }
    if (cursor !== null) {
      const { top, bottom, panels } = layout;
      draw(parts.cursor, "path", { d: `M${x2.toFixed(1)} ${top}V${bottom}` });
      const dots = [[panels.loss, x2, loss]];
      if (j >= 0) dots.push([panels.sharpness, toX(run, run.sharpness.step(j)), sharpness]);
      for (const [panel, x, value] of dots) {
        const y = panel.yScale(value);
        if (y >= panel.top && y <= panel.top + panel.height) {
          draw(parts.cursor, "circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: 4 });
        }
      }
    }
    magnify(run, from, i);
  }

  /* The last steps one by one: here an oscillation with period two shows as a zigzag. */
  function magnify(run, from, to) {
    magnifier.replaceChildren();
    $(".eos-rises").textContent = $(".eos-caption").textContent = "";
    if (!run || to - from < 2) return;
    const width = Math.max(120, room || 190), height = layout.narrow ? 84 : 96;
    magnifier.setAttribute("viewBox", `0 0 ${width} ${height}`);
    magnifier.setAttribute("height", height);
    const values = run.loss.values.subarray(from, to + 1);
    const low = Math.min(...values), high = Math.max(...values);
    const sx = (k) => 6 + (k * (width - 12)) / (WINDOW - 1);
    const log = low > 0 && high > 20 * low, f = log ? Math.log : (v) => v; // log when it explodes
    const sy = (v) => (high > low ? 8 + ((f(high) - f(v)) / (f(high) - f(low))) * (height - 16) : height / 2);
    let d = "", rises = 0;
    values.forEach((v, k) => {
      d += `${k ? "L" : "M"}${sx(k).toFixed(1)} ${sy(v).toFixed(1)}`;
      if (k && v > values[k - 1]) rises += 1;
    });
    draw(magnifier, "path", { d, class: "eos-zigzag" });
    // even and odd steps, filled and hollow: two interleaved curves when the period is two
    values.forEach((v, k) => draw(magnifier, "circle", { cx: sx(k).toFixed(1), cy: sy(v).toFixed(1),
      r: 1.9, class: (from + k) % 2 ? "eos-odd" : "eos-even" }));
    const [first, last] = [run.loss.step(from), run.loss.step(to)].map(thousands);
    $(".eos-caption").textContent = `loss, steps ${first} to ${last}`;
    const span = number(low) === number(high) ? `at ${number(low)}` : `${number(low)} to ${number(high)}`;
    $(".eos-rises").textContent = `${span}${log ? ", log scale" : ""}; rose in ${rises} of ${values.length - 1} steps (● even, ○ odd)`;
  }

  trackCursor(plot, {
    at: (pixel) => (layout ? ((pixel - layout.left) / layout.inner) * layout.maxX : null),
    move(event) {
      const run = selected();
      if (!run || !layout) return undefined;
      const last = lastStep(run), here = focusStep(run);
      const pixel = event.shiftKey ? 1 : Math.max(1, Math.round(layout.maxX / perStep(run) / layout.inner));
      const to = {
        ArrowRight: here + pixel, ArrowLeft: here - pixel, ArrowUp: here + pixel, ArrowDown: here - pixel,
        PageUp: here + last / 10, PageDown: here - last / 10, Home: 0, End: last,
      }[event.key];
      return to === undefined ? undefined : clamp(Math.round(to), 0, last) * perStep(run);
    },
    set(x) {
      cursor = x === null ? null : clamp(x, 0, layout.maxX);
      schedule();
    },
  });

  /* -- ticks, table, summary ------------------------------------------------------------------- */
  function describeRuns() {
    const sorted = [...runs].sort((a, b) => a.lr - b.lr);
    const count = `${runs.length} run${runs.length > 1 ? "s" : ""}`;
    $(".eos-origin").textContent = live ? `${count}; train more at any η`
      : model.get("_host") === "static" ? `${count} computed when this book was built` : count;
    const named = group() ? ` of ${group()}` : "";
    $(".eos-table summary").textContent = `${count}${named} as a table`;
    const last = ({ n, values }) => (n ? values[n - 1] : NaN);
    const rows = fillTable($(".eos-table table"),
      ["η", symbol, "last loss", `last measured ${curvature} ÷ ${symbol}`, "state"],
      sorted.map((run) => [run.lr, run.threshold, last(run.loss), last(run.sharpness) / run.threshold]
        .map((value) => number(value)).concat(run.words)));
    rows.forEach((row, k) => {
      row.dataset.lr = sorted[k].lr;
      row.firstChild.style.setProperty("--eta", color(sorted[k].lr));
    });
    $(`#${id}-summary`).textContent = `Two plots with a common x axis for ${count}${named} with step sizes `
      + `${number(sorted[0].lr)} to ${number(sorted[sorted.length - 1].lr)}: the ${model.get("loss_label")} `
      + `above, the ${curvature} and the threshold ${symbol} below. Arrow keys move a cursor along the `
      + "selected run. The table below lists all runs.";
    root.style.setProperty("--eos-ramp", `linear-gradient(to right, ${model.get("colors")[theme].stops.join()})`);
    tickMarks(root, sorted.map((run) => position(run.lr) / 1000))
      .forEach((mark, k) => { mark.dataset.lr = sorted[k].lr; });
    slider.disabled = !live && sorted.length < 2;
  }

  /* -- training, with a kernel ------------------------------------------------------------------ */
  const trainer = live ? makeRunner({
    model, id, symbol: "η", verbs: ["Train", "Training"], trait: "training", choose,
    complaint: (lr) => (lr <= 0 ? "a step size must be positive"
      : lr < lrLow || lr > lrHigh ? `${number(lr)} is outside the range of the slider` : ""),
    hint: `type a step size between ${number(lrLow)} and ${number(lrHigh)}`,
    request: (lr) => ({ do: "train", lr, group: group() }),
  }) : null;
  if (trainer) $(".eos-control").after(trainer.box);

  /* -- wiring ------------------------------------------------------------------------------------ */
  function reload() {
    runs = ofGroup(decode(model.get("meta"), model.get("data")));
    partial = null;
    relayout();
  }
  function changeGroup() { // what one knows of the new network's runs may be another range
    cursor = null;
    reload();
    zoom[axis()] = initialZoom();
    received();
    relayout();
  }
  function changeAxis() {
    cursor = null;
    zoom[axis()] = initialZoom();
    relayout();
  }
  function received() {
    if (!trainer) return;
    trainer.receive();
    const { state, meta } = model.get("training");
    partial = state === "running" && meta ? ofGroup(decode(meta, model.get("training_data")))[0] ?? null : null;
    if (partial && fullX() > layout?.fullX * (1 + 1e-9)) relayout();
    schedule();
  }
  const handlers = [["change:lr", schedule], ["change:axis", changeAxis], ["change:data", reload],
    ["change:group", changeGroup], ["change:training", received]];
  for (const [event, handler] of handlers) model.on(event, handler);

  runs = ofGroup(decode(model.get("meta"), model.get("data")));
  zoom[axis()] = initialZoom();
  const unwatch = watch(plot, relayout);
  $(".eos-magnifier").addEventListener("toggle", () => { room = magnifier.clientWidth; schedule(); });
  relayout();
  received();

  return () => {
    for (const [event, handler] of handlers) model.off(event, handler);
    unwatch();
    trainer?.dispose();
    cancelAnimationFrame(frameRequest);
  };
}

export default { render };
