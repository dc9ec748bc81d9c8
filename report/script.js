"use strict";
// The address holds the view: #stage=&class=&sort=&image=&layers=, and once at=SECTION.
// Names are always text, never markup.

const CARDS = 60; // cards that are added at a time
const FULL = 95; // percent of an image; a mask that covers more is suspicious
const TRUTH = "t"; // the layer of the true mask; others are STAGE and STAGE_CLASS, a heat map

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const nameOf = (classId) => data.classes[classId];

let shown = []; // the images of the gallery, in order
let shownView = ""; // stage, class and sort of the gallery

function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

// ---- what is known of an image; a mask's classes are rows of class id, share, x, y ----

// A number, or NaN if it is not known.
function miouOf(image, stage) {
  return image.stages[stage]?.miou ?? NaN;
}

function changedOf(image, stage) {
  return image.stages[stage]?.changed ?? NaN;
}

function gainOf(image, stage) {
  return miouOf(image, stage) - miouOf(image, data.stages[stage].baseline);
}

function suspicionsOf(image, stage) {
  const classes = image.stages[stage]?.classes ?? [];
  const present = classes.map(([classId]) => classId);
  const missing = image.tags.filter((classId) => !present.includes(classId));
  const covered = classes.reduce((sum, [, share]) => sum + share, 0);

  const suspicions = missing.map((classId) => `no ${nameOf(classId)}`);
  if (covered >= FULL) suspicions.push("fills the image");
  return suspicions;
}

// Whether a class is tagged, in the true mask or in the mask of a stage.
function hasClass(image, stage, classId) {
  const rows = [...(image.truth ?? []), ...image.stages[stage].classes];
  return image.tags.includes(classId) || rows.some(([rowClass]) => rowClass === classId);
}

// ---- which images the gallery shows, in which order ----

// Smallest first; an image is left out if its value is NaN.
const SORTS = {
  "changed pixels": (image, stage) => -changedOf(image, stage),
  "lost mIoU": gainOf,
  "gained mIoU": (image, stage) => -gainOf(image, stage),
  "lowest mIoU": miouOf,
  "most suspicious": (image, stage) => -suspicionsOf(image, stage).length,
  "disagreement of stages": (image) => -(image.disagreement ?? NaN),
};

// classId -1: all images of the stage.
function arrange(sort, stage, classId = -1) {
  const rows = [];
  for (const image of data.images) {
    const isWanted = image.stages[stage] && (classId < 1 || hasClass(image, stage, classId));
    const value = isWanted ? SORTS[sort](image, stage) : NaN;
    if (!isNaN(value)) rows.push({ image, value });
  }
  rows.sort((row, other) => row.value - other.value);
  return rows.map(({ image }) => image);
}

// ---- the view in the address ----

function addressParameters() {
  return new URLSearchParams(location.hash.slice(1));
}

// What the address asks for; defaults take the place of what is missing or unknown.
function readView() {
  const asked = addressParameters();
  const number = (key) => Number(asked.get(key) ?? NaN);
  const stage = data.stages[number("stage")] ? number("stage") : data.stages.length - 1;
  const sorts = Object.keys(SORTS).filter((sort) => arrange(sort, stage).length);
  const layers = asked.get("layers") ?? String(stage);
  return {
    stage,
    sorts,
    sort: sorts.includes(asked.get("sort")) ? asked.get("sort") : sorts[0],
    class: nameOf(number("class")) ? number("class") : -1,
    image: data.images[number("image")],
    layers: layers.split(" ").filter(Boolean),
    at: asked.get("at"),
  };
}

// The address of the present view with some changes; null removes a part.
function addressWith(changes) {
  const parameters = addressParameters();
  for (const [key, value] of Object.entries({ at: null, ...changes })) {
    if (value === null) parameters.delete(key);
    else parameters.set(key, value);
  }
  return `#${parameters}`;
}

// ---- the gallery ----

// An image under some of its layers.
function makeFrame(image, layers) {
  const [width, height] = image.size;
  const stack = make("span", { className: "stack", style: `--ratio: ${width / height}` });
  stack.append(make("img", { src: `${image.number}.jpg`, alt: image.name, loading: "lazy" }));
  for (const layer of layers) {
    stack.append(make("img", { src: `${image.number}_${layer}.png`, alt: "", loading: "lazy" }));
  }
  return make("span", { className: "frame" }, stack);
}

function makeCard(image, stage) {
  const miou = miouOf(image, stage);
  const changed = changedOf(image, stage);
  const facts = [];
  if (!isNaN(miou)) facts.push(`mIoU ${miou.toFixed(1)}`);
  if (!isNaN(changed)) facts.push(`${changed} % changed`);

  const href = addressWith({ image: image.number });
  const marks = suspicionsOf(image, stage).map((text) => make("mark", {}, text));
  return make(
    "a",
    { className: "card", href },
    makeFrame(image, [stage]),
    make("b", {}, image.name),
    facts.join(", "),
    ...marks,
  );
}

const endObserver = new IntersectionObserver(
  ([end]) => end.isIntersecting && addCards(),
  { rootMargin: "800px" },
);

function addCards() {
  const count = byId("gallery").childElementCount;
  const { stage } = readView();
  const cards = shown.slice(count, count + CARDS).map((image) => makeCard(image, stage));
  byId("gallery").append(...cards);
  // The observer tells of changes only, and the end may still be in sight.
  endObserver.unobserve(byId("more"));
  if (count < shown.length) endObserver.observe(byId("more"));
}

function showGallery(view) {
  shown = arrange(view.sort, view.stage, view.class);
  byId("sort").replaceChildren(...view.sorts.map((sort) => new Option(sort)));
  for (const id of ["stage", "class", "sort"]) byId(id).value = view[id];
  byId("count").textContent = `${shown.length} images`;
  byId("gallery").replaceChildren();
  addCards();
}

// ---- the viewer of an image ----

// The layers of an image: its masks, then its heat maps, which have no classes.
function layersOf(image) {
  const masks = [];
  const heatMaps = [];
  if (image.truth) masks.push({ id: TRUTH, title: "truth", classes: image.truth });
  for (const [stage, { miou, classes, heat }] of Object.entries(image.stages)) {
    const title = data.stages[stage].title;
    masks.push({ id: stage, title: `${title} ${miou?.toFixed(1) ?? ""}`, classes });
    for (const classId of heat) {
      heatMaps.push({ id: `${stage}_${classId}`, title: `${title}: ${nameOf(classId)}` });
    }
  }
  return [...masks, ...heatMaps];
}

function factsOf(image, stage) {
  const facts = [
    `${shown.indexOf(image) + 1} of ${shown.length}`,
    `tags: ${image.tags.map(nameOf).join(", ")}`,
  ];
  if (image.disagreement !== null) facts.push(`stages disagree on ${image.disagreement} %`);
  return [...facts, ...suspicionsOf(image, stage)].join(" · ");
}

function makeClassName([classId, , x, y]) {
  return make("span", { className: "name", style: `left: ${x}%; top: ${y}%` }, nameOf(classId));
}

// A button that shows or hides a layer; its key is 1 to 9, then a to z.
function makeLayerButton(image, layer, index, visibleIds) {
  const isVisible = visibleIds.includes(layer.id);
  const others = visibleIds.filter((id) => id !== layer.id);
  const toggled = isVisible ? others : [...visibleIds, layer.id];
  const options = {
    onclick: () => location.replace(addressWith({ layers: toggled.join(" ") })),
    ariaPressed: isVisible,
  };
  const key = make("kbd", {}, (index + 1).toString(36));
  return make("button", options, makeFrame(image, [layer.id]), key, layer.title);
}

function showImage({ image, stage, layers: visibleIds }) {
  const layers = layersOf(image);
  const visible = layers.filter(({ id }) => visibleIds.includes(id));
  const topMask = visible.findLast(({ classes }) => classes);

  byId("name").textContent = image.name;
  byId("facts").textContent = factsOf(image, stage);
  const frame = makeFrame(image, visible.map(({ id }) => id));
  const classNames = (topMask?.classes ?? []).map(makeClassName);
  frame.querySelector(".stack").append(...classNames);
  byId("large").replaceChildren(frame);
  const buttons = layers.map((layer, i) => makeLayerButton(image, layer, i, visibleIds));
  byId("layers").replaceChildren(...buttons);
}

// Go so many images on in the gallery's order; stay at its ends.
function move(steps) {
  const { image } = readView();
  const next = shown[shown.indexOf(image) + steps] ?? image;
  location.replace(addressWith({ image: next.number }));
}

// ---- the table of classes ----

function sortTable({ currentTarget }) {
  const heading = currentTarget.parentNode;
  const sign = heading.ariaSort === "descending" ? 1 : -1;
  for (const other of byId("classes").querySelectorAll("[aria-sort]")) other.ariaSort = "none";
  heading.ariaSort = sign > 0 ? "ascending" : "descending";

  const body = heading.closest("table").tBodies[0];
  const valueOf = (row) => {
    const value = row.cells[heading.cellIndex].dataset.value;
    return Number(value ?? sign * Infinity); // a row without a value stays last
  };
  const rows = [...body.rows];
  rows.sort((row, other) => sign * (valueOf(row) - valueOf(other)) || 0); // NaN: both have none
  body.append(...rows);
}

// ---- events ----

function render() {
  const view = readView();
  const asked = [view.stage, view.class, view.sort].join();
  if (shownView !== asked) {
    shownView = asked;
    showGallery(view);
  }

  const viewer = byId("viewer");
  if (view.image) showImage(view);
  if (view.image && !viewer.open) viewer.showModal();
  if (!view.image) viewer.close();
  byId(view.at)?.scrollIntoView();
}

function pressKey({ key, ctrlKey, metaKey, altKey }) {
  if (!byId("viewer").open || ctrlKey || metaKey || altKey) return;
  if (key === "ArrowLeft") move(-1);
  if (key === "ArrowRight") move(1);
  if (key === "0") location.replace(addressWith({ layers: "" })); // the image alone
  if (key.length === 1) byId("layers").children[parseInt(key, 36) - 1]?.click();
}

for (const id of ["stage", "class", "sort"]) {
  byId(id).onchange = () => location.assign(addressWith({ layers: null, [id]: byId(id).value }));
}
for (const button of document.querySelectorAll("[aria-sort] button")) button.onclick = sortTable;
byId("viewer").onclose = () => readView().image && location.assign(addressWith({ image: null }));
byId("previous").onclick = () => move(-1);
byId("next").onclick = () => move(1);
byId("close").onclick = () => byId("viewer").close();
addEventListener("keydown", pressKey);
addEventListener("hashchange", render);
render();
