/* Shows anywidgets in a page that has no kernel.

Every Jupyter HTML exporter writes the widgets of a notebook into the page as two kinds of JSON:
their state ("widget-state+json") and the places where they appear ("widget-view+json"). This
script hands each state to the widget's own JavaScript (`render({ model, el })`, the anywidget
convention), so that what runs in JupyterLab runs here as well.

A classic script without imports or requests: it works from file:// and without a network. */
(() => {
  "use strict";
  const MIME = "application/vnd.jupyter.widget-";
  const NEEDS_KERNEL = "This control needs a running kernel: open the chapter in JupyterLab to use it.";
  // progress bars (tqdm) become widgets too; without a kernel they have nothing left to say
  const PROGRESS = /^(Float|Int)ProgressModel$/;

  /* The build may keep long strings that several widgets share in classic scripts of their own,
     which set `self.__eosShared[hash]`, and write `{"$shared": hash}` in their place. */
  function shared(value) {
    if (value === null || typeof value !== "object" || !("$shared" in value)) return value;
    const text = (self.__eosShared || {})[value.$shared];
    if (text === undefined) throw new Error(`the page lacks the shared text ${value.$shared}`);
    return text;
  }

  function fromBase64(text) {
    const binary = atob(text), bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return new DataView(bytes.buffer);
  }

  /* The part of the Jupyter model interface that a widget's render() may rely on. */
  function makeModel(entry) {
    const state = { _host: "static" }; // how a widget learns that nobody answers
    for (const [key, value] of Object.entries(entry.state)) state[key] = shared(value);
    for (const { path, data } of entry.buffers || []) {
      let target = state;
      for (const key of path.slice(0, -1)) target = target[key];
      target[path[path.length - 1]] = fromBase64(shared(data));
    }
    const listeners = new Map();
    const emit = (event, ...args) => {
      for (const listener of [...(listeners.get(event) || [])]) listener(...args);
    };
    const model = {
      get: (key) => state[key],
      set(key, value) {
        const changes = typeof key === "object" ? key : { [key]: value };
        const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
        Object.assign(state, changes);
        for (const name of changed) emit("change:" + name, model, state[name]);
        if (changed.length) emit("change", model);
      },
      on(events, listener) {
        for (const event of events.split(/\s+/)) {
          if (!listeners.has(event)) listeners.set(event, new Set());
          listeners.get(event).add(listener);
        }
      },
      off(events, listener) {
        if (!events) return listeners.clear();
        for (const event of events.split(/\s+/)) {
          if (listener) listeners.get(event)?.delete(listener);
          else listeners.delete(event);
        }
      },
      save_changes() {}, // nobody to tell
      send() {},
    };
    return model;
  }

  const modules = new Map(); // JavaScript text -> promise of the module: loaded once per page
  function load(text) {
    if (!modules.has(text)) {
      const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
      const loading = import(url).then(async (module) => {
        const widget = module.default ?? module;
        return typeof widget === "function" ? await widget() : widget;
      });
      modules.set(text, loading);
    }
    return modules.get(text);
  }

  const styles = new Set();
  function addStyle(text) {
    if (!text || styles.has(text)) return;
    styles.add(text);
    const style = document.createElement("style");
    style.textContent = text;
    document.head.append(style);
  }

  function note(text) {
    const p = document.createElement("p");
    p.className = "static-widget-note";
    p.textContent = text;
    return p;
  }

  const entries = {}, read = new Set(); // model id -> its stored state; the scripts that held them
  function collect() {
    for (const script of document.querySelectorAll(`script[type="${MIME}state+json"]`)) {
      if (read.has(script)) continue;
      read.add(script);
      Object.assign(entries, JSON.parse(script.textContent).state);
    }
  }

  const ready = new Map(); // model id -> promise of { widget, model }, initialised once per model
  function prepare(id) {
    if (!ready.has(id)) {
      ready.set(id, (async () => {
        const model = makeModel(entries[id]);
        const widget = await load(model.get("_esm"));
        await widget.initialize?.({ model });
        return { widget, model };
      })());
    }
    return ready.get(id);
  }

  /* What needs no element begins while the browser still reads the page. */
  function begin() {
    collect();
    for (const [id, { state }] of Object.entries(entries)) {
      if (state._esm) prepare(id).catch(() => {}); // `main` says what went wrong, where it shows
    }
  }

  async function main() {
    collect();
    const isProgress = (id, seen = new Set()) => {
      const entry = entries[id];
      if (!entry || seen.has(id)) return false;
      seen.add(id);
      return PROGRESS.test(entry.model_name) || (entry.state.children || []).some(
        (child) => isProgress(String(child).replace("IPY_MODEL_", ""), seen));
    };

    for (const script of document.querySelectorAll(`script[type="${MIME}view+json"]`)) {
      const id = JSON.parse(script.textContent).model_id;
      if (!entries[id]?.state?._esm) {
        if (!isProgress(id)) script.after(note(NEEDS_KERNEL));
        continue;
      }
      const el = document.createElement("div");
      el.className = "static-widget";
      script.after(el);
      try {
        const { widget, model } = await prepare(id);
        addStyle(model.get("_css")); // only now: it comes after the style sheets of the page
        await widget.render({ model, el });
      } catch (error) {
        el.replaceChildren(note(`This figure could not be shown: ${error.message}`));
        console.error(error);
      }
      await new Promise((done) => { setTimeout(done); }); // a task for each: all in one would take long
    }
  }

  begin();
  // as soon as the page is parsed: DOMContentLoaded waits for the theme's deferred scripts
  if (document.readyState === "loading") document.addEventListener("readystatechange", main, { once: true });
  else main();
})();
