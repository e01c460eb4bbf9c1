"use strict";
// Three planes through a volume, with a cross that all share. Volumes are tiles of a picture inside
// this page; their axes point up, back and to the left, so that planes follow radiological convention.
const PLANES = {
  // the axes of columns, rows and slices, of (up, back, left); rows of upright planes start at the top
  axial: { columns: 2, rows: 1, through: 0, sides: ["R", "L", "A", "P"], upright: false },
  coronal: { columns: 2, rows: 0, through: 1, sides: ["R", "L", "S", "I"], upright: true },
  sagittal: { columns: 1, rows: 0, through: 2, sides: ["A", "P", "S", "I"], upright: true },
};

// Puts letters on the sides of an image, and a bar of a round number of mm beside them.
function mark(box, sides, widthMm, zoom) {
  ["left", "right", "top", "bottom"].forEach((side, k) => (box.querySelector(`.side.${side}`).textContent = sides ? sides[k] : ""));
  const bar = box.querySelector(".mm");
  bar.hidden = !widthMm;
  if (!widthMm) return;
  const seen = widthMm / zoom;
  const length = [100, 50, 20, 10, 5, 2, 1].find((mm) => mm <= seen / 3) || 1;
  bar.style.width = `${(100 * length) / seen}%`;
  bar.textContent = `${length} mm`;
}

function makePlanes(load, context) {
  const $ = (id) => document.getElementById(id);
  const volumes = new Map(); // by case and target
  let now = null; // what is drawn: the volume, and what came with it
  let at = null; // the cross, along (up, back, left)
  let place = ""; // the case that it belongs to

  function read(name, target, about, shape) { // the tiles of a picture as volumes
    const key = `${name}/${target}`;
    if (volumes.has(key)) return volumes.get(key);
    const names = ["fov", ...(about.truth ? ["truth"] : []), "mean", ...(about.spread ? ["spread"] : [])];
    const [depth, height, width] = shape;
    const rgba = load(`${key}/planes`).getImageData(0, 0, width * names.length, depth * height).data;
    const found = {};
    names.forEach((volume, n) => {
      found[volume] = new Uint8Array(depth * height * width);
      for (let row = 0; row < depth * height; row++) {
        for (let i = 0; i < width; i++) found[volume][row * width + i] = rgba[4 * (row * width * names.length + n * width + i)];
      }
    });
    volumes.set(key, found);
    return found;
  }

  function index(plane, x, y) {
    const [, height, width] = now.shape;
    const p = [...at];
    p[plane.columns] = x;
    p[plane.rows] = plane.upright ? now.shape[plane.rows] - 1 - y : y;
    return (p[0] * height + p[1]) * width + p[2];
  }

  function colour(i) { // of a voxel, in the layer that is shown
    const { volume, limit, spreadLimit, map, grey, layer } = now;
    if (layer === "truth") return grey(volume.truth[i]);
    if (layer === "synthesis") return grey(volume.mean[i]);
    if (!volume.fov[i]) return [0, 0, 0];
    const value = layer === "error" ? Math.abs(volume.mean[i] - volume.truth[i]) / limit : (volume.spread[i] * spreadLimit) / limit;
    return map[Math.min(255, Math.round(value))];
  }

  function paint(name) {
    const plane = PLANES[name], canvas = $(`plane-${name}`), box = canvas.parentElement;
    const width = now.shape[plane.columns], height = now.shape[plane.rows];
    const [wide, high] = [width * now.spacing[plane.columns], height * now.spacing[plane.rows]];
    canvas.width = width;
    canvas.height = height;
    canvas.style.aspectRatio = `${wide} / ${high}`;
    box.parentElement.style.flex = `${wide} 1 0`; // so that all planes have one scale
    const pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
    let sum = 0;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const [r, g, b] = colour(index(plane, x, y));
        image.data.set([r, g, b, 255], 4 * (y * width + x));
        sum += r + g + b;
      }
    }
    pen.putImageData(image, 0, 0);
    canvas.dataset.sum = Math.round(sum);
    const row = plane.upright ? height - 1 - at[plane.rows] : at[plane.rows];
    box.querySelector(".across").style.top = `${(100 * (row + 0.5)) / height}%`;
    box.querySelector(".down").style.left = `${(100 * (at[plane.columns] + 0.5)) / width}%`;
    mark(box, plane.sides, wide, 1);
    const slider = $(`at-${name}`), through = now.shape[plane.through];
    slider.max = through - 1;
    slider.value = at[plane.through];
    $(`where-${name}`).textContent = `${at[plane.through] + 1} of ${through}`;
  }

  function say() { // the values at the cross
    const [, height, width] = now.shape, { volume } = now, i = (at[0] * height + at[1]) * width + at[2];
    const unit = (values, scale) => ((values[i] / 255) * scale).toFixed(3);
    $("planes-value").textContent = !volume.fov[i] ? "out of view" : [
      volume.truth ? `truth ${unit(volume.truth, 1)}` : "", `synthesis ${unit(volume.mean, 1)}`,
      volume.truth ? `error ${(Math.abs(volume.mean[i] - volume.truth[i]) / 255).toFixed(3)}` : "",
      volume.spread ? `sd ${unit(volume.spread, now.spreadLimit)}` : "",
    ].filter(Boolean).join(", ");
  }

  function move(to) {
    at = to.map((value, axis) => Math.max(0, Math.min(now.shape[axis] - 1, value)));
    Object.keys(PLANES).forEach(paint);
    say();
  }

  function moved(to) { // by the user
    move(to);
    context.moved(at);
  }

  document.querySelectorAll("#planes .plane").forEach((box) => {
    const plane = PLANES[box.dataset.plane];
    const point = (event) => {
      if (!now || (event.type === "pointermove" && !event.buttons)) return;
      const rect = box.getBoundingClientRect(), to = [...at];
      to[plane.columns] = Math.floor(((event.clientX - rect.left) / rect.width) * now.shape[plane.columns]);
      const row = Math.floor(((event.clientY - rect.top) / rect.height) * now.shape[plane.rows]);
      to[plane.rows] = plane.upright ? now.shape[plane.rows] - 1 - row : row;
      moved(to);
    };
    box.addEventListener("pointerdown", point);
    box.addEventListener("pointermove", point);
    box.addEventListener("wheel", (event) => { // after the last slice, the page scrolls on
      const to = [...at], value = to[plane.through] + Math.sign(event.deltaY);
      if (value < 0 || value >= now.shape[plane.through]) return;
      event.preventDefault();
      to[plane.through] = value;
      moved(to);
    }, { passive: false });
    $(`at-${box.dataset.plane}`).addEventListener("input", (event) => {
      const to = [...at];
      to[plane.through] = Number(event.target.value);
      moved(to);
    });
  });

  // Draws a case and target; there is nothing where an older evaluation kept no volumes.
  return function draw(state, data, map, grey) {
    const planes = data.cases[state.case].planes, about = planes && planes.targets[state.target];
    $("planes").hidden = !about;
    if (!about) return;
    const volume = read(state.case, state.target, about, planes.shape);
    const has = { truth: volume.truth, synthesis: true, error: volume.truth, uncertainty: volume.spread };
    const layer = has[state.layer] ? state.layer : "synthesis";
    now = { volume, shape: planes.shape, spacing: planes.spacing, layer, map, grey, limit: data.limit, spreadLimit: data.spread_limit };
    document.querySelectorAll("input[name=layer]").forEach((r) => {
      r.checked = r.value === layer;
      r.disabled = !has[r.value];
    });
    const tilt = planes.tilt ? `; its axes are up to ${planes.tilt}° from those of the body` : "";
    $("planes-what").textContent = `${data.labels[state.target]} from ${about.given.map((m) => data.labels[m]).join(" + ")}${tilt}`;
    const middle = planes.shape.map((n) => Math.floor(n / 2));
    move(state.at || (place === state.case ? at : middle));
    place = state.case;
  };
}
