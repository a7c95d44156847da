/* Gradient descent on a quadratic with two curvatures: contours and the path of the iterates, loss
   and distances against the step, one slider for η. Everything is computed here, in the page, by
   the update rules of eoslib/update_rules.py; tests/test_quadratic.py compares the two. */

import {
  axes, clamp, draw, make, mix, nameSlider, number, path, resize, scale, sliderMarkup, tickLabels, watch,
} from "./plot.js";

/* ---- the mathematics: each eigenvector by itself ------------------------------------------ */

/* Iterates x_0 … x_n along an eigenvector with eigenvalue a, where the gradient is a·x. */
export function iterate({ momentum, beta, lr }, a, start, steps) {
  const xs = [start];
  for (let x = start, v = 0; xs.length <= steps; xs.push(x)) {
    const gradient = a * x;
    v = beta * v + gradient;
    x -= lr * { none: gradient, polyak: v, nesterov: gradient + beta * v }[momentum];
  }
  return xs;
}

/* The largest stable ηa: stability threshold times step size. */
export const limit = ({ momentum, beta }) =>
  ({ none: 2, polyak: 2 + 2 * beta, nesterov: (2 + 2 * beta) / (1 + 2 * beta) })[momentum];

/* What happens along an eigenvector in the long run: the dominant root of r² − sum·r + product,
   the characteristic polynomial of one step, or the modulus of this root if it is complex. */
export function mode(rule, a) {
  const z = rule.lr * a, b = rule.momentum === "none" ? 0 : rule.beta, ratio = z / limit(rule);
  const [sum, product] = rule.momentum === "nesterov" ? [(1 + b) * (1 - z), b * (1 - z)] : [1 + b - z, b];
  const square = sum * sum - 4 * product;
  const root = square < 0 ? Math.sqrt(product) : (sum + (sum < 0 ? -1 : 1) * Math.sqrt(square)) / 2;
  const factor = Math.abs(root) < 1e-12 ? 0 : root; // ηa = 1 up to rounding: there in one step
  const word = z === 0 ? "at rest" : Math.abs(ratio - 1) < 1e-9 ? "at the threshold"
    : z < 0 || ratio > 1 ? "diverges" : square < 0 ? "oscillates" : factor < 0 ? "zigzag" : "monotone";
  return { word, factor };
}

/* One word for both directions: the worst of those along which the start has a component. */
export function verdict(rule, curvatures, start) {
  const words = curvatures.filter((_, i) => start[i]).map((a) => mode(rule, a).word);
  return ["diverges", "at the threshold", "zigzag", "oscillates", "monotone"]
    .find((word) => words.includes(word)) ?? "at rest";
}

/* ---- the widget --------------------------------------------------------------------------- */

const WATCHED = ["lr", "curvatures", "momentum", "beta", "start", "num_steps"];
let quadratics = 0; // numbers the ids, since several may share a page

function onKey(element, actions) {
  element.addEventListener("keydown", (event) => {
    const action = actions[event.key];
    if (!action || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    action(event);
  });
}

function render({ model, el }) {
  const id = `eos-quadratic-${++quadratics}`, get = (name) => model.get(name);
  const [lrLow, lrHigh] = get("lr_range"), extent = get("extent");
  const reach = 1.1 * extent; // the map shows a little more than where the start may lie
  const initial = Object.fromEntries(WATCHED.map((name) => [name, get(name)]));

  /* -- skeleton: numbers and constant text; the title is set as text, never markup -- */
  const range = (name, [low, high], step) => `<label><span>${name}</span>
    <input type="range" min="${low}" max="${high}" step="${step}"><b></b></label>`;
  const kind = (value, name) => `<label><input type="radio" name="${id}" value="${value}">${name}</label>`;
  const root = make("div", { class: "eos-x eos-q", role: "group", "aria-labelledby": `${id}-title`,
    "data-lm-suppress-shortcuts": "true" }); // or JupyterLab's command mode takes the arrow keys
  root.innerHTML = `
    <div class="eos-title" id="${id}-title"></div>
    ${sliderMarkup(id, 1000, ["η", "ηλ₁", "ηλ₂"].map((name) => `<span>${name} = <b></b></span>`).join(""))}
    <div class="eos-status"><i></i><span role="status" aria-live="polite"></span><small></small></div>
    <div class="eos-panels">
      <div class="eos-map"><svg aria-hidden="true"></svg>
        <div class="eos-ring" tabindex="0" role="slider" aria-label="start point"
          aria-valuemin="${-extent}" aria-valuemax="${extent}"></div></div>
      <div class="eos-curves"><svg aria-hidden="true"></svg></div></div>
    <p class="eos-hidden"></p>
    <div class="eos-settings">
      ${range("curvature λ₁", get("curvature_ranges")[0], 0.5)}
      ${range("curvature λ₂", get("curvature_ranges")[1], 0.1)}
      <fieldset><legend>momentum</legend>
        ${kind("none", "none")}${kind("polyak", "Polyak")}${kind("nesterov", "Nesterov")}</fieldset>
      ${range("β", [0, 0.99], 0.01)}</div>
    <div class="eos-below"><button type="button" class="eos-reset">Reset</button>
      <span>drag the ring to start elsewhere; ● even steps, ○ odd steps</span></div>
    <details class="eos-table"><summary>all steps as a table</summary><div><table></table></div></details>`;
  const $ = (selector) => root.querySelector(selector), all = (selector) => [...root.querySelectorAll(selector)];
  const slider = $(".eos-track input"), map = $(".eos-map"), ring = $(".eos-ring"), curves = $(".eos-curves");
  const settings = all(".eos-settings [type=range]"), status = $(".eos-status span"), table = $(".eos-table");
  $(".eos-title").textContent = get("title");
  nameSlider(root, "step size η", "smaller step size", "larger step size");
  all(".eos-track span").forEach((end, k) => { end.textContent = number([lrLow, lrHigh][k]); });
  const label = make("em");
  $(".eos-track").append(make("i", { class: "eos-unstable" }), make("i", { class: "eos-mark" }), label);
  el.append(root);

  /* -- changing what is shown -- */
  const rule = () => ({ momentum: get("momentum"), beta: get("beta"), lr: get("lr") });
  const edge = () => limit(rule()) / get("curvatures")[0]; // the step size at the threshold
  const position = (lr) => (1000 * Math.log(lr / lrLow)) / Math.log(lrHigh / lrLow);

  function change(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    model.save_changes();
    schedule();
  }

  function choose(place, snap) { // the threshold attracts what is nearer than `snap`
    const lr = Number((lrLow * (lrHigh / lrLow) ** (place / 1000)).toPrecision(3));
    const near = Math.abs(place - position(edge())) <= snap;
    change({ lr: near ? edge() : clamp(lr, lrLow, lrHigh) });
  }

  function move(by) { // a small step does not jump over the threshold
    const here = position(get("lr")), share = (position(edge()) - here) / by;
    choose(here + (Math.abs(by) < 50 && share > 1e-6 && share < 1 ? share : 1) * by, 1e-6);
  }

  let snap = 0.5;
  slider.addEventListener("pointerdown", () => { snap = 8; });
  slider.addEventListener("change", () => { snap = 0.5; });
  slider.addEventListener("input", () => choose(Number(slider.value), snap));
  const [up, down] = [() => move(5), () => move(-5)];
  onKey(slider, { ArrowRight: up, ArrowUp: up, ArrowLeft: down, ArrowDown: down,
    PageUp: () => move(100), PageDown: () => move(-100) });
  all(".eos-step").forEach((button, k) => button.addEventListener("click", [down, up][k]));
  $(".eos-settings").addEventListener("input", () => {
    const [a, b, beta] = settings.map((input) => Number(input.value));
    change({ curvatures: [a, Math.min(a, b)], beta, momentum: $(".eos-settings :checked").value });
  });
  $(".eos-reset").addEventListener("click", () => change(initial));
  table.addEventListener("toggle", () => schedule());

  const startAt = (...start) => change({ // + 0: no negative zero
    start: start.map((x) => Math.round(clamp(x, -extent, extent) * 20) / 20 + 0) });
  const startUnder = (event) => {
    const box = map.getBoundingClientRect();
    startAt(reach * (1 - (2 * (event.clientY - box.top)) / box.height),
      reach * ((2 * (event.clientX - box.left)) / box.width - 1));
  };
  map.addEventListener("pointerdown", (event) => {
    // a finger beside the ring may want to scroll the page; it can tap
    if (event.button || (event.pointerType === "touch" && event.target !== ring)) return;
    event.preventDefault();
    ring.focus({ preventScroll: true });
    map.setPointerCapture(event.pointerId);
  });
  map.addEventListener("pointermove", (event) => {
    if (map.hasPointerCapture(event.pointerId)) startUnder(event);
  });
  map.addEventListener("click", startUnder);
  const shift = (up, right) => ({ shiftKey }) => {
    const [x1, x2] = get("start"), by = shiftKey ? 0.5 : 0.05;
    startAt(x1 + up * by, x2 + right * by);
  };
  onKey(ring, { ArrowUp: shift(1, 0), ArrowDown: shift(-1, 0), ArrowRight: shift(0, 1), ArrowLeft: shift(0, -1) });

  /* -- drawing -- */
  let frame = 0, sizes = null; // of the two pictures: to ask for them lays the page out
  function schedule() { // one picture per frame, however many events there were
    frame ||= requestAnimationFrame(() => { frame = 0; update(); });
  }

  function update() {
    sizes ??= [map, curves].map((box) => [box.clientWidth, box.clientHeight]);
    const now = rule(), curvatures = get("curvatures"), start = get("start"), steps = get("num_steps");
    const xs = curvatures.map((a, i) => iterate(now, a, start[i], steps));
    const losses = xs[0].map((x1, t) => (curvatures[0] * x1 ** 2 + curvatures[1] * xs[1][t] ** 2) / 2);
    const word = verdict(now, curvatures, start), factors = curvatures.map((a) => mode(now, a).factor);
    const values = [now.lr, ...curvatures.map((a) => now.lr * a)].map((v) => number(v));

    for (const [theme, { stops }] of Object.entries(get("colors"))) { // the style sheet chooses the theme
      root.style.setProperty(`--eta-${theme}`, mix(stops, position(now.lr) / 1000));
      root.style.setProperty(`--ramp-${theme}`, `linear-gradient(to right, ${stops})`);
    }
    root.style.setProperty("--at", position(edge()) / 1000);
    label.textContent = `${number(limit(now))}/λ₁ = ${number(edge())}`;
    slider.value = position(now.lr);
    slider.setAttribute("aria-valuetext", `step size ${values[0]}, η λ₁ ${values[1]}, η λ₂ ${values[2]}, ${word}`);
    all(".eos-values b").forEach((b, k) => { b.textContent = values[k]; });
    if (status.textContent !== word) status.textContent = word; // spoken when it changes
    status.parentNode.classList.toggle("eos-lost", word === "diverges");
    $("small").textContent = factors.map((factor, i) =>
      `x${"₁₂"[i]} ${start[i] ? `× ${number(factor)}` : "stays 0"}`).join(", ")
      + ` per step${now.momentum === "none" ? "" : " in the long run"}`;
    [...curvatures, now.beta].forEach((value, k) => {
      settings[k].value = value;
      settings[k].nextSibling.textContent = number(value);
    });
    settings[2].disabled = now.momentum === "none";
    $(`[value=${now.momentum}]`).checked = true;
    ring.setAttribute("aria-valuenow", start[0]);
    ring.setAttribute("aria-valuetext", `x₁ = ${number(start[0])}, x₂ = ${number(start[1])}`);
    $(".eos-hidden").textContent = `${steps} steps on the contours of the loss, and loss and distances against the `
      + `step: ${word}. The loss goes from ${number(losses[0])} to ${number(losses[steps])}.`;

    drawMap(curvatures, start, xs);
    drawCurves(xs, losses);
    if (table.open) {
      const row = (tag, cells) => make("tr", {}, ...cells.map((cell) => make(tag, {}, cell)));
      $("table").replaceChildren(row("th", ["step", "x₁", "x₂", "loss"]), ...losses.map((loss, t) =>
        row("td", [t, number(xs[0][t]), number(xs[1][t]), number(loss)])));
    }
  }

  /* The sharp eigenvector points up, the flat one to the right; both with the same scale. */
  function drawMap([a1, a2], start, xs) {
    const svg = map.firstChild, [[size]] = sizes, middle = size / 2;
    const at = scale({ low: -reach, high: reach }, 0, size);
    const curve = (name, x1s, x2s) => draw(svg, "path", { class: name,
      d: path(x1s.length, (t) => at(x2s[t]), (t) => at(-x1s[t])) });
    resize(svg, size, size);
    draw(svg, "path", { class: "eos-grid", d: `M0 ${middle}h${size}M${middle} 0v${size}` });
    draw(svg, "text", { x: size - 20, y: middle - 6 }, "x₂");
    draw(svg, "text", { x: middle + 6, y: 14 }, "x₁");
    // levels of ½(λ₁x₁² + λ₂x₂²); below zero, on a saddle, the two directions change roles
    for (const [a, b, negative] of [[a1, a2, false], [-a2, -a1, true]]) {
      for (let k = 0, c = (a + Math.abs(b)) * reach ** 2; a > 0 && k < 11; k++, c /= 2) {
        const wide = b > 0 ? Math.min(reach, Math.sqrt(c / b)) : reach;
        const ys = Array.from({ length: 81 }, (_, n) => wide * Math.sin((n / 80 - 0.5) * Math.PI));
        for (const side of [1, -1]) {
          const x = ys.map((y) => side * Math.sqrt(Math.max(0, c - b * y * y) / a));
          if (negative) curve("eos-level eos-negative", ys, x); else curve("eos-level", x, ys);
        }
      }
    }
    const lost = xs[0].findIndex((x1, t) => Math.hypot(x1, xs[1][t]) > 3 * reach);
    const [x1s, x2s] = lost < 0 ? xs : xs.map((x) => x.slice(0, lost + 1));
    curve("eos-line", x1s, x2s);
    x1s.forEach((x1, t) => draw(svg, "circle", { class: t % 2 ? "eos-hollow" : "eos-full", r: 2.8,
      cx: at(x2s[t]).toFixed(1), cy: at(-x1).toFixed(1) }));
    ring.style.left = `${at(start[1])}px`;
    ring.style.top = `${at(-start[0])}px`;
  }

  /* The axes are fixed: what moves when η moves is the run. */
  function drawCurves(xs, losses) {
    const svg = curves.firstChild, [, [width, height]] = sizes;
    const left = 44, tall = (height - 94) / 2, xAxis = { low: 0, high: losses.length - 1 };
    const distances = xs.map((x) => x.map(Math.abs));
    resize(svg, width, height);
    [["loss, log scale", 1e-7, 1e5, losses], ["|x₁| solid, |x₂| dotted, log scale", 1e-4, 1e3, ...distances]]
      .forEach(([name, low, high, ...lines], k) => {
        const top = 20 + k * (tall + 34), yAxis = { log: true, low, high };
        const xScale = scale(xAxis, left, width - 8), yScale = scale(yAxis, top + tall, top);
        axes(svg, { left, top, width: width - left - 8, height: tall, xScale, yScale,
          xTicks: tickLabels(xAxis, 4), yTicks: tickLabels(yAxis, 5) }, [name], k ? "step" : "");
        draw(draw(svg, "clipPath", { id: `${id}-${k}` }), "rect",
          { x: left, y: top, width: width - left - 8, height: tall });
        lines.forEach((values, i) => draw(svg, "path", { class: `eos-line${i ? " eos-dotted" : ""}`,
          "clip-path": `url(#${id}-${k})`,
          d: path(values.length, (t) => xScale(t), (t) => (values[t] > 0 ? yScale(values[t]) : NaN)) }));
        const below = lines[0].findIndex((v) => v < 0);
        if (below >= 0) {
          draw(svg, "text", { x: left + 8, y: top + tall - 8, class: "eos-above" }, `below zero from step ${below}`);
        }
      });
  }

  for (const name of WATCHED) model.on(`change:${name}`, schedule);
  const unwatch = watch(root, () => { sizes = null; schedule(); });
  update();
  return () => {
    for (const name of WATCHED) model.off(`change:${name}`, schedule);
    unwatch();
    cancelAnimationFrame(frame);
  };
}

export default { render };
