"use strict";
// The page of `sgdm annotate --inspect`. The address behind # tells what is shown: controls change the address, and a
// changed address is drawn. DATA is of data.js (see engine/inspection.py); an image is a position in DATA.rows.

const LAYERS = DATA.layers, CLUSTERS = DATA.clusters, LABELS = DATA.labels;
const SORTS = {
  images: CLUSTERS ? {index: "by index", cluster: "by cluster"} : {index: "by index"},
  clusters: CLUSTERS ? {size: "by size", id: "by number"} : {},
};
const SIZES = ["48", "96", "192", "384"];
const GALLERY = 8;
const DEFAULTS = {
  view: "images", find: "", sort: "", size: "96", page: "1", opacity: "55", image: "",
  layers: LAYERS.filter(layer => !layer.truth).map(layer => layer.key).join(","),
};
const positionOf = new Map(DATA.rows.map((row, position) => [row, position]));
const members = CLUSTERS ? CLUSTERS.sizes.map(() => []) : [];
if (CLUSTERS) CLUSTERS.of.forEach((cluster, position) => members[cluster].push(position));
const LARGEST = CLUSTERS ? CLUSTERS.sizes.reduce((a, b) => Math.max(a, b)) : 0;

// What is asked for

function readState(hash) {
  const state = {...DEFAULTS, ...Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")))};
  if (!(state.view === "clusters" && CLUSTERS)) state.view = "images";
  if (!(state.sort in SORTS[state.view])) state.sort = "";
  if (!SIZES.includes(state.size)) state.size = DEFAULTS.size;
  return state;
}

function writeState(state) {
  const told = Object.entries(state).filter(([name, value]) => name === "view" || value !== DEFAULTS[name]);
  return "#" + new URLSearchParams(told);
}

/** "17, 20-25, #123, shirt": clusters, images behind #, either as ranges, and parts of names of labels. */
function parseSearch(text) {
  const wanted = {clusters: [], images: [], labels: new Set(), unknown: []};
  for (const term of text.split(",").map(part => part.trim()).filter(Boolean)) {
    const range = term.match(/^(#?)\s*(\d+)(?:\s*-\s*#?\s*(\d+))?$/);
    if (range && (range[1] || CLUSTERS)) {
      const ends = [Number(range[2]), Number(range[3] ?? range[2])];
      wanted[range[1] ? "images" : "clusters"].push([Math.min(...ends), Math.max(...ends)]);
      continue;
    }
    const names = LABELS ? LABELS.names : [], part = term.toLowerCase();
    const named = [...names.keys()].filter(label => names[label].toLowerCase().includes(part));
    named.forEach(label => wanted.labels.add(label));
    if (!named.length) wanted.unknown.push(term);
  }
  return wanted;
}

const within = (ranges, number) => ranges.some(([first, last]) => first <= number && number <= last);

function findImages({find, sort}) {
  const wanted = parseSearch(find);
  const found = [...DATA.rows.keys()].filter(position => !find.trim()
    || within(wanted.images, DATA.rows[position])
    || CLUSTERS && within(wanted.clusters, CLUSTERS.of[position])
    || LABELS && wanted.labels.has(LABELS.of[position]));
  return sort === "cluster" ? found : found.sort((a, b) => DATA.rows[a] - DATA.rows[b]);
}

function findClusters({find, sort}) {
  const wanted = parseSearch(find), sizes = CLUSTERS.sizes;
  const found = [...sizes.keys()].filter(cluster => !find.trim()
    || within(wanted.clusters, cluster)
    || members[cluster].some(position => within(wanted.images, DATA.rows[position]))
    || wanted.labels.has(CLUSTERS.commonest?.[cluster]?.[0]));
  return sort === "id" ? found : found.sort((a, b) => sizes[b] - sizes[a] || a - b);
}

/** A page of a list; numbers beyond its ends are those of its ends. */
function turnTo(list, number, size) {
  const pages = Math.max(1, Math.ceil(list.length / size));
  const page = Math.min(Math.max(1, Math.floor(Number(number)) || 1), pages);
  return {page, pages, items: list.slice((page - 1) * size, page * size)};
}

// Pictures

const sheets = {};

function sheet(file) {
  return sheets[file] ??= new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onload = () => resolve(picture);
    picture.onerror = () => reject(new Error(`${file} cannot be read`));
    picture.src = file;
  });
}

async function draw(canvas, position, layers, opacity, names = false) {
  const {side, columns, tiles} = DATA, place = position % tiles;
  const number = String(Math.floor(position / tiles)).padStart(3, "0");
  const tile = [place % columns * side, Math.floor(place / columns) * side, side, side];
  const segments = layers.filter(layer => !layer.boxes).map(layer => `${layer.key}-${number}.png`);
  const pictures = await Promise.all([`images-${number}.jpg`, ...segments].map(sheet));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  pictures.forEach((picture, depth) => {
    context.globalAlpha = depth ? opacity / 100 : 1;
    context.drawImage(picture, ...tile, 0, 0, canvas.width, canvas.height);
  });
  context.globalAlpha = 1;
  for (const layer of layers) {
    for (const [label, ...corners] of layer.boxes?.[position] ?? []) {
      const name = names && layer.classes.length > 1 ? layer.classes[label] : "";
      drawBox(context, corners, DATA.colours[label], layer.truth, name);
    }
  }
}

function drawBox(context, corners, colour, dashed, name) {
  const size = context.canvas.width, line = size / 80, text = size / 28;
  const [left, top, right, bottom] = corners.map(corner => Math.min(Math.max(corner * size, line), size - line));
  context.setLineDash(dashed ? [5 * line, 3 * line] : []);
  for (const [style, width] of [[dashed ? "rgb(0 0 0 / 0.7)" : "rgb(255 255 255 / 0.9)", 2.2 * line], [colour, line]]) {
    Object.assign(context, {strokeStyle: style, lineWidth: width});
    context.strokeRect(left, top, right - left, bottom - top);
  }
  if (!name) return;
  context.font = `600 ${text}px system-ui, sans-serif`;
  const width = context.measureText(name).width + text, height = 1.5 * text;
  const x = Math.max(0, Math.min(left, size - width)), y = Math.max(0, top - height);
  context.fillStyle = "rgb(0 0 0 / 0.75)";
  context.fillRect(x, y, width, height);
  context.fillStyle = "white";
  context.fillText(name, x + text / 2, y + 1.08 * text);
}

function canvas(position, width, layers, opacity, names) {
  const side = DATA.side * Math.max(1, Math.round(width * devicePixelRatio / DATA.side));
  const made = element("canvas", {width: side, height: side});
  draw(made, position, layers, opacity, names).catch(error => say(error.message));
  return made;
}

function picture(position, state) {
  const row = DATA.rows[position], shown = state.layers.split(",");
  const cluster = CLUSTERS ? `cluster ${CLUSTERS.of[position]}` : "", label = LABELS?.names[LABELS.of[position]];
  const made = element("button",
    {
      className: "picture",
      title: [`#${row}`, cluster, label && `label ${label}`].filter(Boolean).join(", "),
      onclick: () => go({image: String(row)}),
    },
    canvas(position, 128, LAYERS.filter(layer => shown.includes(layer.key)), state.opacity),
    element("span", {}, element("span", {}, `#${row}`), element("span", {}, cluster)));
  made.dataset.row = row;
  return made;
}

// The page

const byId = id => document.getElementById(id);
const said = number => number.toLocaleString("en");
const percent = share => `${Number((100 * share).toPrecision(3))}\u00a0%`;

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

let state, listed = [], drawn;

function go(changes, quietly = false) {
  const hash = writeState({...state, ...changes});
  if (quietly) location.replace(hash);
  else location.hash = hash;
}

function say(text) {
  byId("said").textContent = text;
}

function clusterCard(cluster, state) {
  const size = CLUSTERS.sizes[cluster], commonest = CLUSTERS.commonest?.[cluster];
  const all = () => go({view: "images", find: String(cluster), sort: "", page: "1"});
  const told = element("div", {},
    element("h3", {}, element("button", {title: "Its images", onclick: all}, cluster)),
    element("i", {style: `width: ${100 * size / LARGEST}%`}),
    element("p", {}, `${said(size)} images`),
    element("p", {}, `${percent(size / DATA.count)} of all`));
  if (commonest) told.append(element("p", {}, `label ${LABELS.names[commonest[0]]}, ${percent(commonest[1])}`));
  const pictures = gallery(cluster, GALLERY).map(position => picture(position, state));
  const card = element("section", {className: "cluster"}, told, element("div", {className: "pictures"}, ...pictures));
  card.dataset.cluster = cluster;
  return card;
}

/** Positions of the images of a cluster, first those nearest to its centroid. */
function gallery(cluster, count) {
  const nearest = (CLUSTERS.galleries[cluster] ?? []).map(row => positionOf.get(row));
  return [...new Set([...nearest, ...members[cluster]])].slice(0, count);
}

function showList() {
  const clusters = state.view === "clusters";
  const found = clusters ? findClusters(state) : findImages(state);
  listed = clusters ? [] : found;
  const {page, pages, items} = turnTo(found, state.page, clusters ? state.size / GALLERY : state.size);
  state.page = String(page);
  const shown = items.map(item => clusters ? clusterCard(item, state) : picture(item, state));
  byId("list").replaceChildren(element("div", {className: clusters ? "" : "pictures"}, ...shown));
  say(summary(found.length));
  Object.assign(byId("page"), {value: page, max: pages});
  byId("pages").textContent = `of ${said(pages)}`;
  byId("previous").disabled = page === 1;
  byId("next").disabled = page === pages;
}

function summary(found) {
  const clusters = state.view === "clusters", all = said(clusters ? CLUSTERS.sizes.length : DATA.rows.length);
  const {images, unknown} = parseSearch(state.find), share = DATA.rows.length / DATA.count;
  const told = [state.find.trim() ? `${said(found)} of ${all} ${state.view} match.` : `${all} ${state.view}.`];
  if (clusters && CLUSTERS.galleries.length) told.push("Beside each, the images nearest to its centroid.");
  if (unknown.length) told.push(`Not a cluster, image or label: ${unknown.join(", ")}.`);
  if (images.length && share < 1) told.push(`This page has ${percent(share)} of all images.`);
  return told.join(" ");
}

function showControls() {
  for (const tab of document.querySelectorAll("[data-view]")) {
    tab.setAttribute("aria-selected", tab.dataset.view === state.view);
  }
  if (byId("find").value !== state.find) byId("find").value = state.find;
  const sorts = Object.entries(SORTS[state.view]).map(([value, text]) => element("option", {value, text}));
  byId("sort").replaceChildren(...sorts);
  byId("sort").selectedIndex = Math.max(0, sorts.findIndex(option => option.value === state.sort));
  byId("size").value = state.size;
  byId("opacity").value = state.opacity;
  const shown = state.layers.split(",");
  for (const box of document.querySelectorAll("#switches [type=checkbox]")) box.checked = shown.includes(box.value);
  byId("legends").replaceChildren(...LAYERS.filter(layer => shown.includes(layer.key)).map(legend));
}

function legend(layer) {
  const classes = layer.classes.map((name, label) =>
    element("span", {}, element("i", {style: `background: ${DATA.colours[label]}`}), name));
  return element("div", {className: "legend"}, element("b", {}, title(layer)), ...classes);
}

const title = layer => layer.truth ? `True ${layer.kind}, not used` : layer.kind[0].toUpperCase() + layer.kind.slice(1);

function showLarge() {
  const large = byId("large"), row = Number(state.image), position = positionOf.get(row);
  if (!state.image || position === undefined) return large.close();
  const cluster = CLUSTERS?.of[position], label = LABELS?.names[LABELS.of[position]];
  const sequence = [listed, members[cluster], [...DATA.rows.keys()]].find(list => list?.includes(position));
  for (const [id, step] of [["before", -1], ["after", 1]]) {
    const other = DATA.rows[sequence[sequence.indexOf(position) + step]];
    Object.assign(byId(id), {disabled: other === undefined, onclick: () => go({image: String(other)}, true)});
  }
  byId("name").textContent = `Image #${row}`;
  const told = [];
  if (CLUSTERS) told.push(`cluster ${cluster}, ${said(CLUSTERS.sizes[cluster])} images`);
  if (label) told.push(`label ${label} (for comparison only)`);
  byId("about").textContent = told.join(" · ");
  const panels = {
    Image: [], Found: LAYERS.filter(layer => !layer.truth), "Truth, not used": LAYERS.filter(layer => layer.truth),
  };
  byId("panels").replaceChildren(...Object.entries(panels).flatMap(([caption, layers]) =>
    layers.length || caption === "Image"
      ? [element("figure", {}, canvas(position, 480, layers, state.opacity, true), element("figcaption", {}, caption))]
      : []));
  byId("neighbours").replaceChildren();
  if (CLUSTERS) {
    const others = gallery(cluster, 2 * GALLERY + 1).filter(other => other !== position).slice(0, 2 * GALLERY);
    byId("neighbours").append(
      element("h3", {}, `Cluster ${cluster}${CLUSTERS.galleries.length ? ", the nearest to its centroid first" : ""}`),
      element("div", {className: "pictures", style: "--picture: 92px"}, ...others.map(other => picture(other, state))));
  }
  if (!large.open) large.showModal();
}

function render() {
  state = readState(location.hash);
  const list = JSON.stringify({...state, image: ""});
  showControls();
  if (list !== drawn) showList();
  drawn = list;
  showLarge();
}

const turn = step => byId(step < 0 ? "previous" : "next").disabled || go({page: String(Number(state.page) + step)});

byId("list").style.setProperty("--picture", `${DATA.side * Math.max(1, Math.round(116 / DATA.side))}px`);
byId("switches").prepend(...LAYERS.map(layer =>
  element("label", {}, element("input", {type: "checkbox", value: layer.key}), title(layer))));
byId("switches").hidden = !LAYERS.length;
byId("opaque").hidden = LAYERS.every(layer => layer.boxes);
byId("switches").onchange = () => {
  const on = [...document.querySelectorAll("#switches :checked")].map(box => box.value);
  go({layers: on.join(",")}, true);
};
for (const tab of document.querySelectorAll("[data-view]")) {
  tab.onclick = () => go({view: tab.dataset.view, sort: "", page: "1"});
}
byId("find").oninput = event => go({find: event.target.value, page: "1"}, true);
byId("opacity").oninput = event => go({opacity: event.target.value}, true);
byId("sort").onchange = event => go({sort: event.target.value, page: "1"});
byId("size").onchange = event => go({size: event.target.value, page: "1"});
byId("page").onchange = event => go({page: event.target.value});
byId("previous").onclick = () => turn(-1);
byId("next").onclick = () => turn(1);
byId("close").onclick = () => go({image: ""});
byId("large").onclose = () => state.image && go({image: ""});
byId("large").onclick = event => event.target === byId("large") && go({image: ""});
addEventListener("keydown", event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
  if (byId("large").open) byId(step < 0 ? "before" : "after").click();
  else turn(step);
});
addEventListener("hashchange", render);
render();
