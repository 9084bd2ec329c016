// The browser of a run's images. Vanilla, offline: parts come as scripts that call cxrRay(name, value).
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const PARTS_KEPT = 400;
const DASH = "\u2013";
const waiting = new Map(); // part to its promise's resolve
const parts = new Map(); // part to a promise of its value; the last used stand last
let run = null;
let index = null; // of the model that is shown
let state = null;
let rows = []; // [explainer, image] that pass the filters, in order
let drawing = 0; // number of the last drawing; an older one gives up

window.cxrRay = (name, value) => {
  const done = waiting.get(name);
  waiting.delete(name);
  if (done) done(value);
};

function part(name) {
  let promise = parts.get(name);
  if (!promise) {
    promise = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = name + ".js";
      script.onload = () => { script.remove(); if (waiting.has(name)) reject(new Error(name)); };
      script.onerror = () => { script.remove(); waiting.delete(name); parts.delete(name); reject(new Error(name)); };
      waiting.set(name, resolve);
      document.head.append(script);
    });
  }
  parts.delete(name);
  parts.set(name, promise);
  for (const old of parts.keys()) {
    if (parts.size <= PARTS_KEPT) break;
    if (!old.endsWith("index") && old !== "run") parts.delete(old);
    else { const kept = parts.get(old); parts.delete(old); parts.set(old, kept); }
  }
  return promise;
}

// Texts. Nothing of a run is ever parsed as HTML; marks that turn the direction of text are spelt out.
function shown(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => "\\u" + c.codePointAt(0).toString(16).padStart(4, "0"));
}

function number(value, digits = 2, sign = false) {
  if (value === null || value === undefined) return DASH;
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 && Number(text) ? "\u2212" : sign && Number(text) ? "+" : "") + text;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const percent = (share) => Math.round(100 * share) + "%";
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// State: what is filtered and how it is sorted. It stands in the address, so that it can be kept and passed on.
const SORTS = {
  most: "most faithful first", least: "least faithful first", sure: "most confident first", unsure: "least confident first",
  patient: "by patient",
};
const VERDICTS = {
  any: "any", better: "beats the control", even: "even", worse: "does not beat it", every: "beats every control", none: "not measured",
};
const BEATEN = { yes: "beaten", no: "not shown to be beaten", differs: "beaten by one of mean advantage and win rate" };
const SIZES = [12, 24, 60];

function fresh() {
  const model = run.models[0].trial_id;
  return {
    model, explainers: [run.explainer], outcomes: run.outcomes.map((_, k) => k), kinds: [...run.concentrations.keys(), -1],
    control: "", verdict: "any", sort: "most", text: "", size: SIZES[0], page: 0,
  };
}

function fromAddress() {
  const found = new URLSearchParams(location.hash.slice(1));
  const made = fresh();
  const list = (key, known, all) => {
    if (!found.has(key)) return all;
    const asked = found.get(key).split(",");
    return known.filter((_, k) => asked.includes(String(known[k])));
  };
  const one = (key, known, otherwise) => (known.includes(found.get(key)) ? found.get(key) : otherwise);
  made.model = one("model", run.models.map((m) => m.trial_id), made.model);
  made.explainers = list("explainer", run.explainers, made.explainers);
  made.outcomes = list("outcome", run.outcomes, run.outcomes).map((o) => run.outcomes.indexOf(o));
  const kinds = [...run.concentrations, "none"];
  made.kinds = list("concentration", kinds, kinds).map((k) => (k === "none" ? -1 : run.concentrations.indexOf(k)));
  made.control = one("control", Object.keys(run.controls), "");
  made.verdict = one("verdict", Object.keys(VERDICTS), "any");
  made.sort = one("sort", Object.keys(SORTS), "most");
  made.text = found.get("text") || "";
  made.size = SIZES.includes(Number(found.get("cards"))) ? Number(found.get("cards")) : SIZES[0];
  made.page = Math.max(0, (parseInt(found.get("page"), 10) || 1) - 1);
  return made;
}

function toAddress() {
  const plain = fresh();
  const kept = new URLSearchParams();
  const put = (key, value, usual) => { if (String(value) !== String(usual)) kept.set(key, value); };
  const name = (k) => (k === -1 ? "none" : run.concentrations[k]);
  put("model", state.model, plain.model);
  put("explainer", state.explainers, plain.explainers);
  put("outcome", state.outcomes.map((k) => run.outcomes[k]), plain.outcomes.map((k) => run.outcomes[k]));
  put("concentration", state.kinds.map(name), plain.kinds.map(name));
  put("control", state.control, "");
  put("verdict", state.verdict, "any");
  put("sort", state.sort, "most");
  put("text", state.text, "");
  put("cards", state.size, SIZES[0]);
  put("page", state.page + 1, 1);
  return "#" + kept.toString();
}

// Which control an explainer is compared with: the one chosen, else the hardest strong one, as the report does.
function controlOf(explainer) {
  if (state.control) return state.control;
  const hardest = index.summary.find((r) => r.explainer === explainer && r.bucket === "all" && r.hardest);
  return hardest ? hardest.control : Object.keys(run.controls)[0] || null;
}

function compared(explainer, control) {
  const of = index.explainers[explainer];
  return of && control ? of.controls[control] || null : null;
}

function verdictOf(explainer, image) {
  const of = compared(explainer, controlOf(explainer));
  const rate = of ? of.win_rate[image] : null;
  return rate === null ? "none" : rate > 0.5 ? "better" : rate < 0.5 ? "worse" : "even";
}

function beatsEvery(explainer, image) {
  const rates = Object.values(index.explainers[explainer].controls).map((c) => c.win_rate[image]);
  return rates.length > 0 && rates.every((rate) => rate !== null && rate > 0.5);
}

function select() {
  const outcomes = new Set(state.outcomes), kinds = new Set(state.kinds), wanted = state.text.trim().toLowerCase();
  rows = [];
  for (const explainer of state.explainers) {
    const of = index.explainers[explainer];
    if (!of) continue;
    for (let i = 0; i < run.image_id.length; i++) {
      if (index.outcome[i] === null || !outcomes.has(index.outcome[i])) continue;
      if (!kinds.has(of.concentration[i] === null ? -1 : of.concentration[i])) continue;
      if (wanted && !(run.path[i] + " " + run.patient[i] + " " + run.image_id[i]).toLowerCase().includes(wanted)) continue;
      if (state.verdict === "every" ? !beatsEvery(explainer, i)
        : state.verdict !== "any" && verdictOf(explainer, i) !== state.verdict) continue;
      rows.push([explainer, i]);
    }
  }
  sort();
}

function sort() {
  const gap = ([e, i]) => { const of = compared(e, controlOf(e)); return of ? of.gap[i] : null; };
  const sure = ([, i]) => Math.abs(index.logit[i]);
  const text = new Intl.Collator("en", { numeric: true });
  const keys = { most: [gap, -1], least: [gap, 1], sure: [sure, -1], unsure: [sure, 1] };
  const tie = (a, b) => a.row[1] - b.row[1] || run.explainers.indexOf(a.row[0]) - run.explainers.indexOf(b.row[0]);
  if (state.sort === "patient") {
    rows.sort((a, b) => text.compare(run.patient[a[1]], run.patient[b[1]]) || text.compare(run.path[a[1]], run.path[b[1]])
      || run.explainers.indexOf(a[0]) - run.explainers.indexOf(b[0]));
    return;
  }
  const [key, sign] = keys[state.sort];
  const keyed = rows.map((row) => ({ row, key: key(row) })); // what was not measured stands last, either way
  keyed.sort((a, b) => (a.key === null) - (b.key === null) || (a.key === null ? 0 : sign * (a.key - b.key)) || tie(a, b));
  rows = keyed.map((k) => k.row);
}

// The form.
function choices(title, name, options, chosen) {
  const boxes = options.map(([value, label]) => element("label", {},
    element("input", { type: "checkbox", name, value, checked: chosen.includes(value) }), label));
  return element("fieldset", {}, element("legend", {}, title), element("div", { class: "choices" }, ...boxes));
}

function menu(title, name, options, chosen) {
  const made = element("select", { name, id: "choose-" + name });
  for (const [value, label] of options) made.append(element("option", { value, selected: String(value) === String(chosen) }, label));
  return element("div", { class: "field" }, element("label", { for: "choose-" + name }, title), made);
}

function drawForm() {
  const form = document.getElementById("filters");
  const model = (m) => [m.trial_id, shown(m.name)];
  const kinds = [...run.concentrations.map((name, k) => [k, name]), [-1, "no map"]];
  form.replaceChildren(
    run.models.length > 1 ? menu("Model", "model", run.models.map(model), state.model) : "",
    choices("Explainer", "explainers", run.explainers.map((e) => [e, e]), state.explainers),
    choices("Outcome", "outcomes", run.outcomes.map((o, k) => [k, o]), state.outcomes),
    choices("Spatial concentration", "kinds", kinds, state.kinds),
    menu("Control", "control", [["", "the hardest strong one"], ...Object.keys(run.controls).map((c) => [c, c])], state.control),
    menu("Verdict on the image", "verdict", Object.entries(VERDICTS), state.verdict),
    menu("Order", "sort", Object.entries(SORTS), state.sort),
    menu("Cards on a page", "size", SIZES.map((n) => [n, String(n)]), state.size),
    element("div", { class: "field" }, element("label", { for: "choose-text" }, "File, patient or image id"),
      element("input", { type: "search", id: "choose-text", name: "text", value: state.text, autocomplete: "off", spellcheck: "false" })),
    element("div", { class: "field" }, element("button", { type: "reset", id: "reset" }, "Show all again")),
  );
}

function readForm(form) {
  const many = (name, make) => [...form.querySelectorAll(`input[name=${name}]:checked`)].map((box) => make(box.value));
  const value = (name) => (form.elements[name] ? form.elements[name].value : null);
  return {
    model: value("model") || state.model, explainers: many("explainers", String), outcomes: many("outcomes", Number),
    kinds: many("kinds", Number), control: value("control"), verdict: value("verdict"), sort: value("sort"),
    text: value("text"), size: Number(value("size")), page: 0,
  };
}

// Pictures.

const STEPS = 1023; // of a scale of colours

function shades(scale) { // STEPS + 1 colours from one end to the other
  return Array.from({ length: STEPS + 1 }, (_, k) => {
    const x = k / STEPS * (scale.length - 1), low = Math.min(Math.floor(x), scale.length - 2);
    return scale[low].map((v, c) => v + (x - low) * (scale[low + 1][c] - v));
  });
}

function picture(uri) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => resolve(null);
    image.src = uri;
  });
}

function channel(image) { // the first channel of a picture, four bytes a pixel
  const own = image.naturalWidth, canvas = document.createElement("canvas");
  canvas.width = canvas.height = own;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return [context.getImageData(0, 0, own, own).data, own];
}

// Upper and lower 32 bits of a product of 64 bits; those of a are unsigned.
function product(high, low, [factorHigh, factorLow]) {
  const a = low >>> 16, b = low & 65535, c = factorLow >>> 16, d = factorLow & 65535;
  const middle = a * d + ((b * d) >>> 16), cross = b * c + (middle % 65536);
  const carried = a * c + Math.floor(middle / 65536) + Math.floor(cross / 65536);
  return [(carried + Math.imul(high, factorLow) + Math.imul(low, factorHigh)) >>> 0, Math.imul(low, factorLow) >>> 0];
}

const GOLDEN = [0x9e3779b9, 0x7f4a7c15], MIXES = [[30, [0xbf58476d, 0x1ce4e5b9]], [27, [0x94d049bb, 0x133111eb]]];

function noise([high, low], side) { // the fill: SplitMix64, as cxr_ray/randomness.py, 0 to 255
  const grey = new Float32Array(4 * side * side);
  for (let p = 0; p < side * side; p++) {
    const sum = low + GOLDEN[1];
    high = (high + GOLDEN[0] + (sum > 0xffffffff ? 1 : 0)) >>> 0;
    low = sum >>> 0;
    let x = [high, low];
    for (const [bits, factor] of MIXES) x = product((x[0] ^ (x[0] >>> bits)) >>> 0, (x[1] ^ ((x[1] >>> bits) | (x[0] << (32 - bits)))) >>> 0, factor);
    grey[4 * p] = Math.round(255 * (((x[0] ^ (x[0] >>> 31)) >>> 8) + 0.5) / 16777216);
  }
  return grey;
}

function pixels(data, own, side, smooth) { // enlarged: bilinear, or the nearest
  const grey = new Float32Array(side * side), places = [];
  for (let p = 0; p < side; p++) {
    const at = Math.min(Math.max((p + 0.5) * own / side - 0.5, 0), own - 1), low = Math.floor(at);
    places.push(smooth ? [low, Math.min(low + 1, own - 1), at - low] : [Math.floor((p + 0.5) * own / side), 0, 0]);
  }
  for (let y = 0, p = 0; y < side; y++) {
    const [top, bottom, down] = places[y];
    for (let x = 0; x < side; x++, p++) {
      const [left, right, along] = places[x], value = (row, column) => data[4 * (row * own + column)];
      grey[p] = !smooth ? value(top, left) : (1 - down) * ((1 - along) * value(top, left) + along * value(top, right))
        + down * ((1 - along) * value(bottom, left) + along * value(bottom, right));
    }
  }
  return grey;
}

const PLASMA = shades([[13, 8, 135], [84, 2, 163], [139, 10, 165], [185, 50, 137], [219, 92, 104], [244, 136, 73], [254, 188, 43], [240, 249, 33]]);
const RED_BLUE = shades([[5, 48, 97], [67, 147, 195], [209, 229, 240], [247, 247, 247], [253, 219, 199], [214, 96, 77], [103, 0, 31]]);

function painted(side, label, colour) { // colour: place of a pixel to [r, g, b]
  const canvas = element("canvas", { width: side, height: side, role: "img", "aria-label": label });
  const context = canvas.getContext("2d"), image = context.createImageData(side, side), data = image.data;
  for (let p = 0; p < side * side; p++) {
    const made = colour(p);
    data[4 * p] = made[0];
    data[4 * p + 1] = made[1];
    data[4 * p + 2] = made[2];
    data[4 * p + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function overlay(grey, heat, signed) {
  const scale = signed ? RED_BLUE : PLASMA, made = [0, 0, 0]; // the colour of one pixel at a time
  return (p) => {
    const value = Math.max(-1, Math.min(1, (heat[p] - 128) / 127)), alpha = 0.75 * Math.abs(value);
    const top = scale[Math.round(STEPS * (signed ? (value + 1) / 2 : Math.abs(value)))];
    for (let c = 0; c < 3; c++) made[c] = (1 - alpha) * grey[p] + alpha * top[c];
    return made;
  };
}

async function decoded(card, xray, control) {
  const side = 224;
  const read = async (uri, smooth) => {
    const image = uri ? await picture(uri) : null;
    return image ? pixels(...channel(image), side, smooth) : null;
  };
  const of = async (one) => one && {
    map: await read(one.map, true), mask: await read(one.mask, false), deleted: await read(one.deleted, true),
  };
  const [grey, fill, own, beside] = await Promise.all([
    read(xray && xray.photo, true), read(xray && typeof xray.fill === "string" ? xray.fill : null, true), of(card), of(control),
  ]);
  const put = xray && xray.fill && xray.fill.noise ? pixels(noise(xray.fill.noise, xray.fill.side), xray.fill.side, side, true) : fill;
  return { side, grey, fill: put || (xray ? xray.fill : null), own, control: beside };
}

function deletion(made, of) { // place of a pixel to its colour once the mask is filled; null where that is not known
  if (!of || !of.mask || !made.grey) return null;
  if (of.deleted) return (p) => [of.deleted[p], of.deleted[p], of.deleted[p]];
  const fill = made.fill;
  if (fill === null || fill === undefined) return null;
  return (p) => { const v = of.mask[p] > 127 ? (typeof fill === "number" ? fill : fill[p]) : made.grey[p]; return [v, v, v]; };
}

function figure(kind, canvas, why, ...caption) {
  return element("figure", { class: kind }, canvas || element("div", { class: "empty" }, why), element("figcaption", {}, ...caption));
}

const bold = (text) => element("b", {}, text);

// Numbers of a card.
function scores(card, control) { // log-odds of the target after deletion at the level of drops
  const curves = card.curves[control], d = index.directions.indexOf("morf"), l = index.levels.indexOf(run.level);
  return curves && d >= 0 && l >= 0 ? curves[d].map((line) => line[l]) : null;
}

function scored(logit) {
  return logit === null || logit === undefined ? DASH : `P ${number(sigmoid(logit), 3)} (${number(logit, 2, true)})`;
}

function words(explainer, image, control) {
  const of = index.explainers[explainer], numbers = compared(explainer, control);
  const kind = of.concentration[image] === null ? "no map" : run.concentrations[of.concentration[image]];
  const said = { better: "beats", even: "is even with", worse: "does not beat", none: "was not compared with" };
  const lines = [element("p", {}, bold(kind), of.area[image] === null ? "" : `: half of its mass on ${percent(of.area[image])} of the image`)];
  if (control) lines.push(element("p", {}, `The map ${said[verdictOf(explainer, image)]} `, bold(control), numbers && numbers.win_rate[image] !== null ? ":" : "."));
  if (numbers && numbers.gap[image] !== null) {
    lines.push(element("p", {}, "advantage ", bold(number(numbers.gap[image], 2, true)), ` log-odds, win rate ${number(numbers.win_rate[image])} of ${plural(numbers.draws, "draw")}`));
    if (numbers.p_value[image] !== null) lines.push(element("p", {}, `p = ${number(numbers.p_value[image], 3)}, one-sided`));
  }
  return element("div", { class: "words" }, ...lines);
}

// Curves.
function chart(title, levels, own, band, level) {
  const [width, height, left, right, top, bottom] = [300, 150, 34, 17, 16, 26];
  const finite = [...own, ...(band ? [...band[1], ...band[2]] : [])].filter((v) => v !== null);
  if (!finite.length) return null;
  const pad = (Math.max(...finite) - Math.min(...finite)) * 0.06 || 0.5;
  const low = Math.min(...finite) - pad, high = Math.max(...finite) + pad;
  const x = (v) => left + v * (width - left - right), y = (v) => top + (high - v) / (high - low) * (height - top - bottom);
  const points = (line) => line.map((v, k) => [v, k]).filter(([v]) => v !== null).map(([v, k]) => `${x(levels[k]).toFixed(1)},${y(v).toFixed(1)}`);
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100].find((s) => (high - low) / s <= 4) || 1000;
  const ticks = [];
  for (let t = Math.ceil(low / step) * step; t <= high; t += step) ticks.push(t);
  const ends = own.filter((v) => v !== null);
  const label = `${title}: log-odds of the target from ${number(ends[0])} to ${number(ends[ends.length - 1])}`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ...ticks.flatMap((t) => [svg("line", { class: "grid", x1: left, x2: width - right, y1: y(t), y2: y(t) }),
      svg("text", { x: left - 4, y: y(t) + 4, "text-anchor": "end" }, number(t, step < 1 ? 1 : 0))]),
    svg("text", { x: left, y: 11 }, title),
    ...[0, 0.25, 0.5, 0.75, 1].map((t) => svg("text", { x: x(t), y: height - 12, "text-anchor": "middle" }, percent(t))),
    svg("text", { x: (left + width) / 2, y: height - 1, "text-anchor": "middle" }, title.startsWith("Del") ? "deleted" : "inserted"),
    ...(level === null ? [] : [svg("line", { class: "level", x1: x(level), x2: x(level), y1: top, y2: height - bottom })]),
    svg("polyline", { class: "axis", points: `${left},${top} ${left},${height - bottom} ${width - right},${height - bottom}` }),
    ...(band ? [svg("polygon", { class: "band", points: [...points(band[2]), ...points(band[1]).reverse()].join(" ") }),
      svg("polyline", { class: "control", points: points(band[0]).join(" ") })] : []),
    svg("polyline", { class: "map", points: points(own).join(" ") }),
    ...points(own).map((at) => svg("circle", { class: "dot", cx: at.split(",")[0], cy: at.split(",")[1], r: 2.4 })),
  );
}

function curves(card, control) {
  const own = card.curves.none, band = control ? card.curves[control] : null, charts = [];
  if (!own) return element("p", { class: "soft" }, "No curve was measured.");
  index.directions.forEach((direction, d) => {
    if (direction === "morf") charts.push(chart("Deletion", index.levels, own[d][0], band && band[d], run.level));
    // Insertion of the share k is deletion of the least salient 1 - k.
    else charts.push(chart("Insertion", index.levels.map((l) => 1 - l), own[d][0], band && band[d], null));
  });
  const made = charts.filter(Boolean), several = band && band.some(([, low, high]) => low.some((v, l) => v !== high[l]));
  const key = element("p", { class: "soft" }, element("span", { class: "swatch map" }), "map", band ? "  " : "",
    ...(band ? [element("span", { class: "swatch" }), control] : []), band ? (several ? ": its first draw, and all its draws as a band" : ": its one draw") : "", "; log-odds of the target");
  return element("div", {}, element("div", { class: "curves" + (made.length < 2 ? " one" : "") }, ...made), key);
}

function numbersTable(explainer, image, card) {
  const body = element("tbody"), of = index.explainers[explainer].controls;
  for (const name of new Set(["none", ...Object.keys(run.controls), ...Object.keys(of)])) {
    const after = scores(card, name), measured = of[name];
    if (!after && !measured) continue;
    const range = after && name !== "none" ? ` [${number(after[1], 2, true)}, ${number(after[2], 2, true)}]` : "";
    const cells = [name === "none" ? "map" : name, after ? scored(after[0]) + range : DASH, measured ? number(measured.gap[image], 3, true) : "",
      measured ? number(measured.win_rate[image]) : ""];
    body.append(element("tr", {}, element("th", { scope: "row" }, cells[0]), ...cells.slice(1).map((c) => element("td", {}, c))));
  }
  const head = ["map or control", `score without ${percent(run.level)}`, "advantage", "win rate"].map((h) => element("th", { scope: "col" }, h));
  return element("details", {}, element("summary", {}, "All controls"), element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Numbers of all controls, ${run.image_id[image]} ${explainer}` },
    element("table", {}, element("thead", {}, element("tr", {}, ...head)), body)));
}

// Cards.
function whyNoMap(card) {
  if (card.why === "lost") return "The map is not finite.";
  return run.keep_maps ? "No map was made." : "The run kept no maps (explain.keep_maps: false).";
}

function title(explainer, image) {
  const path = run.path[image], name = path.slice(path.lastIndexOf("/") + 1);
  return [element("bdi", {}, shown(name)), ` \u00B7 ${explainer}`];
}

function shell(explainer, image, number_) {
  const label = run.classes[index.label[image]], said = run.classes[index.predicted[image]], outcome = run.outcomes[index.outcome[image]];
  const id = `card-${number_}`;
  return element("article", { class: "card", "aria-labelledby": id, "data-image": run.image_id[image], "data-explainer": explainer, "data-outcome": outcome },
    element("header", {}, element("h3", { id }, ...title(explainer, image)), element("span", { class: "outcome" }, outcome)),
    element("p", { class: "what" }, `${label} called ${said} \u00B7 patient `, element("bdi", {}, shown(run.patient[image] || "unknown")), ` \u00B7 P(${run.classes[1]}) ${number(index.prob[image], 3)}`),
    element("div", { class: "body" }));
}

async function fill(node, explainer, image, mine) {
  const n = Math.floor(image / run.part), at = image % run.part, model = run.models.find((m) => m.trial_id === state.model);
  const body = node.querySelector(".body");
  let xray, card;
  try {
    const [photos, cards] = await Promise.all([part(`xrays-${model.view}/${n}`), part(`${state.model}/${n}`)]);
    xray = photos[at];
    card = cards[at] && cards[at][explainer];
  } catch (e) {
    body.replaceChildren(element("p", { class: "note" }, `A part of this page is missing: browser/${e.message}.js. Draw the report again.`));
    return;
  }
  if (mine !== drawing) return;
  const control = controlOf(explainer), picture = (card.controls && card.controls[control]) || null;
  const made = await decoded(card, xray, picture);
  if (mine !== drawing) return;
  const grey = made.grey || new Float32Array(made.side ** 2).fill(128);
  const signed = index.explainers[explainer].signed, level = percent(run.level), own = scores(card, "none"), after = control ? scores(card, control) : null;
  const target = run.classes[index.target[image]], noXray = "The X-ray could not be read.";
  const untouched = card.curves.none && card.curves.none[0] ? card.curves.none[0][0][0] : null;
  const canvas = (label, colour) => (colour ? painted(made.side, label, colour) : null);
  const file = shown(run.path[image]);
  const first = figure("of-xray", canvas(`X-ray ${file}`, made.grey ? (p) => [grey[p], grey[p], grey[p]] : null), noXray,
    bold("X-ray"), ` ${target}: ${untouched === null ? `log-odds ${number((index.target[image] ? 1 : -1) * index.logit[image], 2, true)}` : scored(untouched)}`);
  const map = figure("of-map", canvas(`Map of ${explainer} over the X-ray`, made.own.map && overlay(grey, made.own.map, signed)), whyNoMap(card), bold("Map"), ` of ${explainer}`);
  const gone = figure("of-map", canvas(`X-ray without the map's top ${level}`, deletion(made, made.own)), made.own.mask ? noXray : whyNoMap(card),
    bold(`Top ${level} deleted`), ` ${own ? scored(own[0]) : "not measured"}`);
  if (control) node.style.setProperty("--control", run.controls[control].colour);
  const panels = [first, map, gone, words(explainer, image, control)];
  const pictured = index.explainers[explainer].drawn, drawn = made.control;
  const unseen = !pictured.includes(control) ? `${control} is not pictured: ${run.controls[control].drawn ? "pictures of every control would take too much room" : "its masks cannot be drawn again"}${pictured.length ? `. ${pictured.join(", ")} is` : ""}.`
    : card.map ? "This image has no such draw." : whyNoMap(card);
  if (control) {
    const whose = drawn && picture.of ? run.image_id.indexOf(picture.of) : -1;
    const name = whose >= 0 ? run.path[whose].slice(run.path[whose].lastIndexOf("/") + 1) : null;
    const look = drawn && (drawn.map ? overlay(grey, drawn.map, picture.signed) : drawn.mask && ((p) => (drawn.mask[p] > 127 ? [0.5 * grey[p] + 90, 0.5 * grey[p] + 35, 0.5 * grey[p]] : [grey[p], grey[p], grey[p]])));
    panels.push(figure("of-control", canvas(`Control ${control} over the X-ray`, look), unseen, element("span", { class: "swatch" }), bold(control), name ? ": map of " : control === "mean_map" ? ": mean of other patients' rank maps" : ": first draw", name ? element("bdi", {}, shown(name)) : ""));
    panels.push(figure("of-control", canvas(`X-ray without the control's top ${level}`, deletion(made, drawn)), drawn ? noXray : unseen,
      element("span", { class: "swatch" }), bold(`Its top ${level} deleted`), ` ${after ? scored(after[0]) : "not measured"}`));
  }
  const differs = drawn && picture.differs ? element("p", { class: "soft" }, "The pictured masks are approximate: this map is larger than the tables keep.") : "";
  body.replaceChildren(element("div", { class: "panels" }, ...panels), differs, curves(card, control), numbersTable(explainer, image, card),
    element("p", { class: "soft" }, element("bdi", {}, file), ` \u00B7 ${run.image_id[image]}`));
  node.setAttribute("data-drawn", "");
}

// The page.
function count() {
  const images = new Set(rows.map((r) => r[1])), patients = new Set([...images].map((i) => run.patient[i]));
  const maps = state.explainers.length > 1 ? `${plural(rows.length, "map")} of ` : "";
  document.getElementById("count").textContent = `${maps}${plural(images.size, "image")} of ${plural(patients.size, "patient")}, ${SORTS[state.sort]}`;
}

function drawSummary() {
  const list = document.getElementById("summary");
  const all = state.outcomes.length === run.outcomes.length;
  const buckets = all ? ["all"] : state.outcomes.map((k) => run.outcomes[k]);
  const lines = [];
  for (const explainer of state.explainers) {
    for (const bucket of buckets) {
      const r = index.summary.find((s) => s.explainer === explainer && s.bucket === bucket && s.control === controlOf(explainer));
      if (!r || r.mean === null) continue;
      const interval = r.lower === null ? "" : ` [${number(r.lower, 2, true)}, ${number(r.upper, 2, true)}]`;
      lines.push(element("li", {}, bold(explainer), ` over ${r.control}${r.hardest ? " (the hardest strong control)" : ""}, ${bucket === "all" ? "all images" : bucket}: mean advantage in ${run.metric} `,
        bold(number(r.mean, 2, true) + interval), ` log-odds, ${plural(r.n, "image")} of ${plural(r.n_patients, "patient")}; ${BEATEN[r.beaten] || "not tested"}`));
    }
  }
  for (const v of index.verdicts) {
    if (state.explainers.includes(v.explainer) && buckets.includes(v.bucket) && v.control === controlOf(v.explainer)) lines.push(element("li", {}, shown(v.sentence)));
  }
  list.replaceChildren(...lines);
  list.hidden = !lines.length;
}

function drawPager(pages) {
  for (const nav of document.querySelectorAll(".pager")) {
    const turn = (label, by, key) => {
      const button = element("button", { type: "button", disabled: state.page + by < 0 || state.page + by >= pages }, label);
      button.dataset.turn = key;
      button.addEventListener("click", () => { state.page += by; show(true); });
      return button;
    };
    nav.replaceChildren(turn("Previous", -1, "previous"), element("span", {}, `Page ${state.page + 1} of ${pages}`), turn("Next", 1, "next"));
    nav.hidden = pages < 2;
  }
}

function show(focus = false) {
  const pages = Math.max(1, Math.ceil(rows.length / state.size)), mine = ++drawing;
  state.page = Math.min(state.page, pages - 1);
  count();
  drawSummary();
  drawPager(pages);
  const chosen = rows.slice(state.page * state.size, (state.page + 1) * state.size);
  const nodes = chosen.map(([explainer, image], k) => shell(explainer, image, k));
  document.getElementById("cards").replaceChildren(...(nodes.length ? nodes : [element("p", {}, "No image passes these filters.")]));
  const address = toAddress();
  if (location.hash !== address && !(location.hash === "" && address === "#")) {
    ours = address;
    location.hash = address;
  }
  if (focus) {
    const results = document.getElementById("results");
    results.focus({ preventScroll: true });
    results.scrollIntoView();
  }
  document.body.setAttribute("aria-busy", "true");
  return Promise.all(nodes.map((node, k) => fill(node, ...chosen[k], mine))).then(() => {
    if (mine === drawing) document.body.setAttribute("aria-busy", "false");
  });
}
let ours = null; // the address that this page set itself

async function update(form) {
  const before = state.model;
  state = { ...state, ...readForm(form) };
  if (state.model !== before) index = await part(`${state.model}/index`);
  select();
  show();
}

async function restore() {
  state = fromAddress();
  index = await part(`${state.model}/index`);
  drawForm();
  select();
  await show();
}

const TERMS = [
  ["Map", "Where the explainer says that the model looked. Each map is scaled by itself: colours compare places within one map, never maps with each other."],
  ["Top deleted", () => `The most salient ${percent(run.level)} of the map, replaced by the fill ${run.fill}, and the model's score of what is left: probability (log-odds) of the explained class.`],
  ["Control", "A map that should lose against a faithful one. Its first draw is pictured; the band of the curve holds all its draws."],
  ["Advantage", () => `In ${run.metric}, log-odds, ${run.setting}. Above 0: the map is more faithful than the control's mean. Table faithfulness, column gap.`],
  ["Win rate", "Share of the control's draws that the map beats on this image, ties half; 0.5 is chance. One image proves little: the line above the cards holds the group's mean and interval."],
  ["Confidence", "Distance of the log-odds from 0, the threshold."],
  ["Spatial concentration", "compact: one blob on at most a quarter of the image; scattered: many; border: along the edge; degenerate: constant; diffuse: the rest."],
];

function drawTerms() {
  const list = element("dl");
  for (const [term, text] of TERMS) list.append(element("dt", {}, term), element("dd", {}, typeof text === "function" ? text() : text));
  for (const [name, control] of Object.entries(run.controls)) list.append(element("dt", {}, name), element("dd", {}, control.caption));
  document.getElementById("terms").replaceChildren(list);
}

async function start() {
  run = await part("run");
  document.title = `Images of ${shown(run.name)}: cxr_ray report`;
  document.getElementById("title").textContent = `Images of ${shown(run.name)}`;
  document.getElementById("private").textContent = run.private + (run.more.length ? ` Not here: ${run.more.join(", ")}.` : "");
  document.getElementById("unread").textContent = run.unread;
  document.getElementById("unread").hidden = !run.unread;
  drawTerms();
  const form = document.getElementById("filters");
  form.addEventListener("submit", (e) => e.preventDefault());
  form.addEventListener("change", () => update(form));
  let typing = 0;
  form.addEventListener("input", (e) => {
    if (e.target.name !== "text") return;
    clearTimeout(typing);
    typing = setTimeout(() => update(form), 200);
  });
  form.addEventListener("reset", (e) => { e.preventDefault(); state = { ...fresh(), model: state.model }; drawForm(); select(); show(); document.getElementById("reset").focus(); });
  window.addEventListener("hashchange", () => { if (location.hash !== ours && location.hash !== "#results") restore(); });
  await restore();
}

document.addEventListener("DOMContentLoaded", () => start().catch((e) => {
  document.getElementById("count").textContent = `This page cannot be drawn: ${e.message}. Draw the report again.`;
}));
