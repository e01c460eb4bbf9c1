"use strict";
// Shows tiles of the pictures inside this page. The state is in the address, after the "#".
(() => {
  const data = JSON.parse(document.getElementById("views").textContent);
  const root = document.getElementById("viewer");
  if (!root || !Object.keys(data.cases).length) return;
  const $ = (id) => document.getElementById(id);
  const modalities = Object.keys(data.labels);
  const pixels = new Map(); // the decoded pictures, by case and target

  const INFERNO = ["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"];
  const table = (stops) => {
    const rgb = stops.map((s) => [1, 3, 5].map((i) => parseInt(s.slice(i, i + 2), 16)));
    return Array.from({ length: 256 }, (_, i) => {
      const at = (i / 255) * (rgb.length - 1), k = Math.min(Math.floor(at), rgb.length - 2);
      return rgb[k].map((low, c) => low + (rgb[k + 1][c] - low) * (at - k));
    });
  };
  const map = table(INFERNO); // of errors and deviations, which share a scale

  const TALLEST = 560; // pixels of the screen
  // how images are shown; it stands in the address where it is not as here
  const DISPLAY = { window: 100, level: 50, zoom: 1, smooth: 0, compare: "none", swipe: 50, layer: "synthesis", at: "" };
  const state = { case: Object.keys(data.cases)[0], given: [modalities[0]], target: modalities[1], slice: 0, overlay: "none", opacity: 60, ...DISPLAY, at: null };

  function read() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (data.cases[asked.get("case")]) state.case = asked.get("case");
    if (!root.dataset.ready) state.slice = Math.floor(data.cases[state.case].slices.length / 2);
    if (asked.has("given")) state.given = modalities.filter((m) => asked.get("given").split(/[+ ,]/).includes(m));
    if (modalities.includes(asked.get("target"))) state.target = asked.get("target");
    if (asked.has("slice")) {
      const place = data.cases[state.case].slices.indexOf(Number(asked.get("slice")));
      if (place >= 0) state.slice = place;
    }
    if (["none", "error", "uncertainty"].includes(asked.get("overlay"))) state.overlay = asked.get("overlay");
    const opacity = Number(asked.get("opacity"));
    if (asked.has("opacity") && opacity >= 0 && opacity <= 100) state.opacity = opacity;
    for (const [name, low, high] of [["window", 2, 100], ["level", 0, 100], ["zoom", 1, 8], ["swipe", 0, 100], ["smooth", 0, 1]]) {
      const value = Number(asked.get(name));
      if (asked.has(name) && value >= low && value <= high) state[name] = value;
    }
    if (["none", "swipe", "blink"].includes(asked.get("compare"))) state.compare = asked.get("compare");
    if (["truth", "synthesis", "error", "uncertainty"].includes(asked.get("layer"))) state.layer = asked.get("layer");
    const cross = (asked.get("at") || "").split(/[ +]/).map(Number);
    if (cross.length === 3 && cross.every((n) => Number.isInteger(n) && n >= 0)) state.at = cross;
  }

  function settle() { // what a case lacks cannot be given, and something has to be
    const view = data.cases[state.case];
    const held = modalities.filter((m) => view.subsets.includes(m));
    state.given = state.given.filter((m) => held.includes(m));
    if (!state.given.length) state.given = [held.find((m) => m !== state.target) || held[0]];
    state.slice = Math.max(0, Math.min(state.slice, view.slices.length - 1));
    if (!view.targets[state.target].truth && state.overlay === "error") state.overlay = "none";
    if (!view.targets[state.target].spread && state.overlay === "uncertainty") state.overlay = "none";
    if (!view.targets[state.target].truth) state.compare = "none";
    return held;
  }

  function load(key) { // pictures are in the page, and there once it is loaded
    if (!pixels.has(key)) {
      const image = [...document.querySelectorAll("img[data-picture]")].find((i) => i.dataset.picture === key);
      const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      pixels.set(key, context);
    }
    return pixels.get(key);
  }

  function tile(target, column) {
    const view = data.cases[state.case];
    const rgba = load(`${state.case}/${target}`).getImageData(column * view.width, state.slice * view.height, view.width, view.height).data;
    return Uint8Array.from({ length: view.width * view.height }, (_, i) => rgba[4 * i]);
  }

  function paint(canvas, values, colour) {
    const view = data.cases[state.case];
    canvas.width = view.width;
    canvas.height = view.height;
    if (view.pixel) canvas.style.aspectRatio = `${view.width * view.pixel[0]} / ${view.height * view.pixel[1]}`;
    const context = canvas.getContext("2d");
    const image = context.createImageData(view.width, view.height);
    let sum = 0;
    for (let i = 0; i < values.length; i++) {
      const [r, g, b] = colour(values[i], i);
      image.data.set([r, g, b, 255], 4 * i);
      sum += r + g + b;
    }
    context.putImageData(image, 0, 0);
    canvas.dataset.sum = Math.round(sum);
  }

  const grey = (v) => { // through window and level
    const whole = state.window === 100 && state.level === 50;
    const shade = whole ? v : Math.max(0, Math.min(255, ((v / 2.55 - state.level) / state.window + 0.5) * 255));
    return [shade, shade, shade];
  };
  const words = (given) => given.map((m) => data.labels[m]).join(" + ");
  let shown = null;
  let blinked = false; // whether the truth stands in place of the synthesis

  const drawPlanes = makePlanes(load, { moved: (at) => { state.at = at; remember(); } });

  function zoomed() { // pixels, marks, and where the truth ends in the synthesis
    root.classList.toggle("smooth", state.smooth === 1);
    const view = data.cases[state.case];
    document.querySelectorAll("#viewer .frame").forEach((frame) => {
      frame.querySelector("canvas").style.transform = state.zoom > 1 ? `scale(${state.zoom})` : "";
      const [wide, high] = view.pixel || [1, 1];
      frame.style.maxWidth = `${(TALLEST * view.width * wide) / (view.height * high)}px`;
      mark(frame, view.sides, view.pixel && view.width * view.pixel[0], state.zoom);
    });
    const frame = $("synthesis").parentElement;
    frame.classList.toggle("swipe", state.compare === "swipe");
    frame.style.setProperty("--swipe", `${state.swipe}%`);
    for (const name of ["window", "level", "zoom", "swipe"]) $(name).value = state[name];
    $("swipe").disabled = state.compare !== "swipe";
    $("smooth").checked = state.smooth === 1;
    document.querySelectorAll("input[name=compare]").forEach((r) => {
      r.checked = r.value === state.compare;
      r.disabled = !view.targets[state.target].truth;
    });
  }

  function remember() { // the state, in the address
    const view = data.cases[state.case];
    const names = new URLSearchParams({ case: state.case, given: state.given.join("+"), target: state.target, slice: view.slices[state.slice], overlay: state.overlay, opacity: state.opacity });
    for (const [name, usual] of Object.entries(DISPLAY)) {
      const value = name === "at" ? (state.at || []).join("+") : state[name];
      if (value !== usual) names.set(name, value);
    }
    const hash = "#" + names.toString().replaceAll("%2B", "+");
    if (location.hash !== hash) history.replaceState(null, "", hash);
    root.dataset.state = hash.slice(1);
  }

  function draw() {
    const held = settle();
    const view = data.cases[state.case];
    const about = view.targets[state.target];
    const subset = view.subsets.indexOf(state.given.join("+"));
    const fov = tile(state.target, 1), mean = tile(state.target, 2 + subset);
    const truth = about.truth ? tile(state.target, 0) : null;
    const spread = about.spread ? tile(state.target, 2 + view.subsets.length + subset) : null;
    const inputs = modalities.map((m) => (view.targets[m].truth ? tile(m, 0) : null));

    const error = truth && mean.map((v, i) => Math.min(255, Math.abs(v - truth[i]) / data.limit));
    const scaled = spread && spread.map((v) => Math.min(255, (v * data.spread_limit) / data.limit));
    const inside = (v, i) => (fov[i] ? map[v] : [0, 0, 0]);
    const overlay = { error, uncertainty: scaled }[state.overlay];
    const weight = state.opacity / 100;
    const aside = (i) => (state.compare === "swipe" ? (i % view.width) + 0.5 < (state.swipe / 100) * view.width : state.compare === "blink" && blinked);
    paint($("synthesis"), mean, (v, i) => {
      if (aside(i)) return grey(truth[i]);
      if (!overlay || !fov[i]) return grey(v);
      const [shade] = grey(v);
      return map[overlay[i]].map((c) => weight * c + (1 - weight) * shade);
    });
    const blank = new Uint8Array(mean.length);
    paint($("truth"), truth || blank, grey);
    paint($("error"), error || blank, inside);
    paint($("spread"), scaled || blank, inside);
    modalities.forEach((m, k) => {
      paint($(`input-${m}`), inputs[k] || blank, grey);
      const box = $(`given-${m}`);
      box.checked = state.given.includes(m);
      box.disabled = !held.includes(m);
      box.closest("label").dataset.state = box.disabled ? "missing" : box.checked ? "given" : "held";
      $(`target-${m}`).checked = m === state.target;
    });
    sheet(view);
    $("case").value = state.case;
    $("slice").max = view.slices.length - 1;
    $("slice").value = state.slice;
    $("slice").setAttribute("aria-valuetext", `slice ${view.slices[state.slice]}`);
    $("slice-number").textContent = `${view.slices[state.slice]} (${state.slice + 1} of ${view.slices.length})`;
    document.querySelectorAll("input[name=overlay]").forEach((r) => {
      r.checked = r.value === state.overlay;
      r.disabled = (r.value === "error" && !truth) || (r.value === "uncertainty" && !spread);
    });
    $("opacity").value = state.opacity;
    $("opacity").disabled = state.overlay === "none";
    for (const id of ["truth", "error", "spread"]) $(id).closest("figure").classList.toggle("none", id === "spread" ? !spread : !truth);

    const kind = state.given.includes(state.target) ? "reconstructed: it is among the inputs" : "synthesised: it was not given";
    $("what").textContent = `${data.labels[state.target]} from ${words(state.given)}, ${kind}.`;
    const numbers = (data.scores[state.case] || {})[`${state.given.join("+")}>${state.target}`];
    $("numbers").textContent = numbers ? `This case, protocol ${data.protocol}: ${numbers}.` : "";
    $("why").textContent = view.why;
    shown = { fov, truth, mean, error, spread };

    zoomed();
    drawPlanes(state, data, map, grey);
    remember();
    root.dataset.ready = "yes";
  }

  // All subsets at once, a row per target. Buttons are not in the order of tabs: the controls above
  // reach every one of these states.
  let sheetOf = "";
  function sheet(view) {
    const box = $("sheet");
    const key = `${state.case}/${state.slice}`;
    if (key !== sheetOf) {
      const columns = [["truth", 0], ...view.subsets.map((name, k) => [name, 2 + k])];
      const cells = [];
      for (const m of modalities) {
        columns.forEach(([name, column]) => {
          const button = document.createElement("button");
          const canvas = button.appendChild(document.createElement("canvas"));
          paint(canvas, tile(m, column), grey);
          button.tabIndex = -1;
          const given = name === "truth" ? [] : name.split("+");
          button.dataset.place = `${name}>${m}`;
          button.classList.toggle("given", given.includes(m));
          button.setAttribute("aria-label", given.length ? `${data.labels[m]} from ${words(given)}` : `${data.labels[m]}, truth`);
          button.addEventListener("click", () => {
            state.target = m;
            if (given.length) state.given = given;
            draw();
          });
          cells.push(button);
        });
      }
      const heads = columns.map(([name]) => {
        const head = document.createElement("div");
        head.className = "column";
        head.textContent = name === "truth" ? "truth" : name.split("+").map((m) => data.labels[m]).join("\n");
        return head;
      });
      box.style.gridTemplateColumns = `repeat(${columns.length}, minmax(44px, 1fr))`;
      box.replaceChildren(...heads, ...cells);
      sheetOf = key;
    }
    box.querySelectorAll("button").forEach((b) => b.classList.toggle("now", b.dataset.place === `${state.given.join("+")}>${state.target}`));
  }

  function hover(event) { // the values under the pointer, and a cross at the same place everywhere
    if (!shown) return;
    const box = event.currentTarget.getBoundingClientRect(), view = data.cases[state.case];
    const unzoomed = (place) => 0.5 + (place - 0.5) / state.zoom; // around the middle
    const x = Math.floor(unzoomed((event.clientX - box.left) / box.width) * view.width);
    const y = Math.floor(unzoomed((event.clientY - box.top) / box.height) * view.height);
    const i = y * view.width + x;
    if (x < 0 || y < 0 || x >= view.width || y >= view.height) return;
    const say = (name, values, scale) => (values ? `${name} ${(values[i] / 255 * scale).toFixed(3)}` : "");
    $("readout").textContent = !shown.fov[i] ? "out of view" : [
      say("truth", shown.truth, 1), say("synthesis", shown.mean, 1),
      shown.truth ? `error ${(Math.abs(shown.mean[i] - shown.truth[i]) / 255).toFixed(3)}` : "", say("sd", shown.spread, data.spread_limit),
    ].filter(Boolean).join(", ");
    document.querySelectorAll("#viewer .cross").forEach((cross) => {
      const place = (k, n) => `${(0.5 + ((k + 0.5) / n - 0.5) * state.zoom) * 100}%`;
      cross.style.left = place(x, view.width);
      cross.style.top = place(y, view.height);
    });
    root.classList.add("pointing");
  }

  $("case").addEventListener("change", (e) => { state.case = e.target.value; state.at = null; draw(); });
  $("slice").addEventListener("input", (e) => { state.slice = Number(e.target.value); draw(); });
  $("opacity").addEventListener("input", (e) => { state.opacity = Number(e.target.value); draw(); });
  for (const name of ["window", "level", "zoom", "swipe"]) $(name).addEventListener("input", (e) => { state[name] = Number(e.target.value); sheetOf = ""; draw(); });
  $("smooth").addEventListener("change", (e) => { state.smooth = e.target.checked ? 1 : 0; draw(); });
  document.querySelectorAll("input[name=compare]").forEach((r) => r.addEventListener("change", () => { state.compare = r.value; draw(); }));
  document.querySelectorAll("input[name=layer]").forEach((r) => r.addEventListener("change", () => { state.layer = r.value; draw(); }));
  setInterval(() => {
    if (state.compare !== "blink" || !root.dataset.ready) return;
    blinked = !blinked;
    draw();
  }, 700);
  for (const m of modalities) {
    $(`given-${m}`).addEventListener("change", (e) => {
      const given = modalities.filter((n) => (n === m ? e.target.checked : state.given.includes(n)));
      if (given.length) state.given = given;
      draw();
    });
    $(`target-${m}`).addEventListener("change", () => { state.target = m; draw(); });
  }
  document.querySelectorAll("input[name=overlay]").forEach((r) => r.addEventListener("change", () => { state.overlay = r.value; draw(); }));
  document.querySelectorAll("#viewer .frame").forEach((frame) => {
    frame.addEventListener("pointermove", hover);
    frame.addEventListener("pointerleave", () => { root.classList.remove("pointing"); $("readout").textContent = ""; });
    frame.addEventListener("wheel", (e) => { // after the last slice, the page scrolls on
      const slice = state.slice + Math.sign(e.deltaY);
      if (!(slice in data.cases[state.case].slices)) return;
      e.preventDefault();
      state.slice = slice;
      draw();
    }, { passive: false });
  });
  addEventListener("hashchange", () => { read(); draw(); });
  addEventListener("load", () => {
    root.hidden = false;
    read();
    draw();
  });
})();

// Tables: one metric at a time on the screen, all of them on paper.
document.querySelectorAll(".tables").forEach((group) => {
  const choose = (name) => group.querySelectorAll(".metric").forEach((t) => t.classList.toggle("off", t.dataset.metric !== name));
  group.querySelectorAll("input[type=radio]").forEach((r) => {
    r.addEventListener("change", () => choose(r.value));
    if (r.checked) choose(r.value);
  });
});
