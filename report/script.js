"use strict";
// The address holds the view: #stage=&class=&sort=&image=&layers=, and once at=SECTION. Names are always text, never markup.
const $ = (id) => document.getElementById(id), data = JSON.parse($("data").textContent), nameOf = (id) => data.classes[id];
const CARDS = 60, FULL = 95; // cards that are added at a time; percent of an image
const miou = (image, stage) => image.stages[stage]?.miou ?? NaN, first = (stage) => data.stages[stage].first;
let shown = [], view = "";

function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  return element.append(...children), element;
}

function suspicions(image, stage) {
  const rows = image.stages[stage]?.classes ?? [], missing = image.tags.filter((id) => !rows.some(([found]) => found === id));
  return [...missing.map((id) => `no ${nameOf(id)}`), ...(rows.reduce((sum, row) => sum + row[1], 0) < FULL ? [] : ["fills the image"])];
}
const SORTS = { // by what an image at a stage is sorted, smallest first; it is left out where that is no number
  "changed pixels": (image, stage) => -image.stages[stage].changed,
  "lost mIoU": (image, stage) => miou(image, stage) - miou(image, first(stage)),
  "gained mIoU": (image, stage) => miou(image, first(stage)) - miou(image, stage),
  "lowest mIoU": miou,
  "most suspicious": (image, stage) => -suspicions(image, stage).length,
  "disagreement of stages": (image) => -(image.disagreement ?? NaN),
};

function arrange(sort, stage, wanted = -1) {
  const has = ({ tags, truth = [], stages }) => tags.includes(wanted) || [...truth, ...stages[stage].classes].some(([id]) => id === wanted);
  const rows = data.images.filter((one) => one.stages[stage] && (wanted < 1 || has(one))).map((one) => [SORTS[sort](one, stage), one]);
  return rows.filter(([value]) => !isNaN(value)).sort(([one], [other]) => one - other).map(([, image]) => image);
}

function state() {
  const asked = new URLSearchParams(location.hash.slice(1)), number = (key) => Number(asked.get(key) ?? NaN);
  const stage = data.stages[number("stage")] ? number("stage") : data.stages.length - 1, layers = asked.get("layers") ?? String(stage);
  const sorts = Object.keys(SORTS).filter((sort) => arrange(sort, stage).length), wanted = nameOf(number("class")) ? number("class") : -1;
  const sort = sorts.includes(asked.get("sort")) ? asked.get("sort") : sorts[0], image = data.images[number("image")];
  return { stage, sorts, sort, class: wanted, image, layers: layers.split(" ").filter(Boolean), at: asked.get("at") };
}

function address(changes) {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [key, value] of Object.entries({ at: null, ...changes })) value === null ? asked.delete(key) : asked.set(key, value);
  return `#${asked}`;
}

function framed(image, ids) { // an image under some of its layers
  const files = [".jpg", ...ids.map((id) => `_${id}.png`)], style = `--ratio: ${image.size[0] / image.size[1]}`;
  const images = files.map((end, i) => make("img", { src: image.number + end, alt: i ? "" : image.name, loading: "lazy" }));
  return make("span", { className: "frame" }, make("span", { className: "stack", style }, ...images));
}

function card(image, stage) {
  const score = miou(image, stage), changed = image.stages[stage].changed ?? NaN, href = address({ image: image.number });
  const facts = [isNaN(score) ? "" : `mIoU ${score.toFixed(1)}`, isNaN(changed) ? "" : `${changed} % changed`].filter(Boolean).join(", ");
  const marks = suspicions(image, stage).map((text) => make("mark", {}, text));
  return make("a", { className: "card", href }, framed(image, [stage]), make("b", {}, image.name), facts, ...marks);
}

const observer = new IntersectionObserver(([end]) => end.isIntersecting && addCards(), { rootMargin: "800px" });
function addCards() {
  const count = $("gallery").childElementCount, { stage } = state();
  $("gallery").append(...shown.slice(count, count + CARDS).map((image) => card(image, stage)));
  observer.unobserve($("more")); // it tells of changes only, and the end may still be in sight
  if (count < shown.length) observer.observe($("more"));
}

function look({ image, stage, layers }) {
  const seen = Object.entries(image.stages).map(([i, one]) => [i, data.stages[i].title, one]);
  const all = [...(image.truth ? [["t", "truth", image.truth]] : []), // id, title, classes
    ...seen.map(([i, title, { miou, classes }]) => [i, `${title} ${miou?.toFixed(1) ?? ""}`, classes]),
    ...seen.flatMap(([i, title, { heat }]) => heat.map((k) => [`${i}_${k}`, `${title}: ${nameOf(k)}`]))];
  const visible = all.filter(([id]) => layers.includes(id)), place = `${shown.indexOf(image) + 1} of ${shown.length}`;
  const differ = image.disagreement === null ? [] : [`stages disagree on ${image.disagreement} %`];
  $("name").textContent = image.name;
  $("facts").textContent = [place, `tags: ${image.tags.map(nameOf).join(", ")}`, ...differ, ...suspicions(image, stage)].join(" · ");
  $("large").replaceChildren(framed(image, visible.map(([id]) => id)));
  for (const [id, , x, y] of visible.findLast(([, , classes]) => classes)?.[2] ?? [])
    $("large").querySelector(".stack").append(make("span", { className: "name", style: `left: ${x}%; top: ${y}%` }, nameOf(id)));
  $("layers").replaceChildren(...all.map(([id, title], i) => {
    const left = layers.includes(id) ? layers.filter((one) => one !== id) : [...layers, id];
    const options = { onclick: () => location.replace(address({ layers: left.join(" ") })), ariaPressed: layers.includes(id) };
    return make("button", options, framed(image, [id]), make("kbd", {}, (i + 1).toString(36)), title);
  }));
}

function sortTable({ currentTarget }) {
  const head = currentTarget.parentNode, body = head.closest("table").tBodies[0], sign = head.ariaSort === "descending" ? 1 : -1;
  for (const th of $("classes").querySelectorAll("[aria-sort]")) th.ariaSort = th !== head ? "none" : sign > 0 ? "ascending" : "descending";
  const value = (row) => Number(row.cells[head.cellIndex].dataset.value ?? sign * Infinity); // what has no value stays last
  body.append(...[...body.rows].sort((one, other) => sign * (value(one) - value(other)) || 0));
}

function render() {
  const now = state(), asked = [now.stage, now.class, now.sort].join();
  if (view !== asked) {
    [view, shown] = [asked, arrange(now.sort, now.stage, now.class)];
    $("sort").replaceChildren(...now.sorts.map((sort) => new Option(sort)));
    for (const id of ["stage", "class", "sort"]) $(id).value = now[id];
    $("count").textContent = `${shown.length} images`;
    $("gallery").replaceChildren();
    addCards();
  }
  if (now.image) look(now);
  if (!now.image || !$("viewer").open) $("viewer")[now.image ? "showModal" : "close"]();
  $(now.at)?.scrollIntoView();
}

for (const id of ["stage", "class", "sort"]) $(id).onchange = () => location.assign(address({ layers: null, [id]: $(id).value }));
for (const button of document.querySelectorAll("[aria-sort] button")) button.onclick = sortTable;
$("viewer").onclose = () => state().image && location.assign(address({ image: null }));
const move = (steps) => location.replace(address({ image: (shown[shown.indexOf(state().image) + steps] ?? state().image).number }));
for (const [id, steps] of [["previous", -1], ["next", 1]]) $(id).onclick = () => move(steps);
$("close").onclick = () => $("viewer").close();
addEventListener("keydown", ({ key, ctrlKey, metaKey, altKey }) => {
  if (!$("viewer").open || ctrlKey || metaKey || altKey) return;
  $({ ArrowLeft: "previous", ArrowRight: "next" }[key])?.click();
  if (key === "0") location.replace(address({ layers: "" })); // the image alone; 1 to 9, then a to z are its layers
  if (key.length === 1) $("layers").children[parseInt(key, 36) - 1]?.click();
});
render(addEventListener("hashchange", render));
