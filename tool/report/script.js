"use strict";
// The address holds the view: #stage=&class=&sort=&picture=&layers=, and once at=SECTION. Names are always text, never markup.
const $ = (id) => document.getElementById(id), data = JSON.parse($("data").textContent), nameOf = (id) => data.classes[id];
const CARDS = 60, FULL = 95; // cards that are added at a time; percent of a picture
const miou = (picture, stage) => picture.stages[stage]?.miou ?? NaN, first = (stage) => data.stages[stage].first;
let shown = [], view = "";

function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  return element.append(...children), element;
}

function suspicions(picture, stage) {
  const rows = picture.stages[stage]?.classes ?? [], missing = picture.tags.filter((id) => !rows.some(([found]) => found === id));
  return [...missing.map((id) => `no ${nameOf(id)}`), ...(rows.reduce((sum, row) => sum + row[1], 0) < FULL ? [] : ["fills the picture"])];
}
const SORTS = { // by what a picture at a stage is sorted, smallest first; it is left out where that is no number
  "changed pixels": (picture, stage) => -picture.stages[stage].changed,
  "lost mIoU": (picture, stage) => miou(picture, stage) - miou(picture, first(stage)),
  "gained mIoU": (picture, stage) => miou(picture, first(stage)) - miou(picture, stage),
  "lowest mIoU": miou,
  "most suspicious": (picture, stage) => -suspicions(picture, stage).length,
  "disagreement of stages": (picture) => -(picture.disagreement ?? NaN),
};

function arrange(sort, stage, wanted = -1) {
  const has = ({ tags, truth = [], stages }) => tags.includes(wanted) || [...truth, ...stages[stage].classes].some(([id]) => id === wanted);
  const rows = data.pictures.filter((one) => one.stages[stage] && (wanted < 1 || has(one))).map((one) => [SORTS[sort](one, stage), one]);
  return rows.filter(([value]) => !isNaN(value)).sort(([one], [other]) => one - other).map(([, picture]) => picture);
}

function state() {
  const asked = new URLSearchParams(location.hash.slice(1)), number = (key) => Number(asked.get(key) ?? NaN);
  const stage = data.stages[number("stage")] ? number("stage") : data.stages.length - 1, layers = asked.get("layers") ?? String(stage);
  const sorts = Object.keys(SORTS).filter((sort) => arrange(sort, stage).length), wanted = nameOf(number("class")) ? number("class") : -1;
  const sort = sorts.includes(asked.get("sort")) ? asked.get("sort") : sorts[0], picture = data.pictures[number("picture")];
  return { stage, sorts, sort, class: wanted, picture, layers: layers.split(" ").filter(Boolean), at: asked.get("at") };
}

function address(changes) {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [key, value] of Object.entries({ at: null, ...changes })) value === null ? asked.delete(key) : asked.set(key, value);
  return `#${asked}`;
}

function framed(picture, ids) { // a picture under some of its layers
  const files = [".jpg", ...ids.map((id) => `_${id}.png`)], style = `--ratio: ${picture.size[0] / picture.size[1]}`;
  const images = files.map((end, i) => make("img", { src: picture.number + end, alt: i ? "" : picture.name, loading: "lazy" }));
  return make("span", { className: "frame" }, make("span", { className: "stack", style }, ...images));
}

function card(picture, stage) {
  const score = miou(picture, stage), changed = picture.stages[stage].changed ?? NaN, href = address({ picture: picture.number });
  const facts = [isNaN(score) ? "" : `mIoU ${score.toFixed(1)}`, isNaN(changed) ? "" : `${changed} % changed`].filter(Boolean).join(", ");
  const marks = suspicions(picture, stage).map((text) => make("mark", {}, text));
  return make("a", { className: "card", href }, framed(picture, [stage]), make("b", {}, picture.name), facts, ...marks);
}

const observer = new IntersectionObserver(([end]) => end.isIntersecting && addCards(), { rootMargin: "800px" });
function addCards() {
  const count = $("gallery").childElementCount, { stage } = state();
  $("gallery").append(...shown.slice(count, count + CARDS).map((picture) => card(picture, stage)));
  observer.unobserve($("more")); // it tells of changes only, and the end may still be in sight
  if (count < shown.length) observer.observe($("more"));
}

function look({ picture, stage, layers }) {
  const seen = Object.entries(picture.stages).map(([i, one]) => [i, data.stages[i].title, one]);
  const all = [...(picture.truth ? [["t", "truth", picture.truth]] : []), // id, title, classes
    ...seen.map(([i, title, { miou, classes }]) => [i, `${title} ${miou?.toFixed(1) ?? ""}`, classes]),
    ...seen.flatMap(([i, title, { heat }]) => heat.map((k) => [`${i}_${k}`, `${title}: ${nameOf(k)}`]))];
  const visible = all.filter(([id]) => layers.includes(id)), place = `${shown.indexOf(picture) + 1} of ${shown.length}`;
  const differ = picture.disagreement === null ? [] : [`stages disagree on ${picture.disagreement} %`];
  $("name").textContent = picture.name;
  $("facts").textContent = [place, `tags: ${picture.tags.map(nameOf).join(", ")}`, ...differ, ...suspicions(picture, stage)].join(" · ");
  $("large").replaceChildren(framed(picture, visible.map(([id]) => id)));
  for (const [id, , x, y] of visible.findLast(([, , classes]) => classes)?.[2] ?? [])
    $("large").querySelector(".stack").append(make("span", { className: "name", style: `left: ${x}%; top: ${y}%` }, nameOf(id)));
  $("layers").replaceChildren(...all.map(([id, title], i) => {
    const left = layers.includes(id) ? layers.filter((one) => one !== id) : [...layers, id];
    const options = { onclick: () => location.replace(address({ layers: left.join(" ") })), ariaPressed: layers.includes(id) };
    return make("button", options, framed(picture, [id]), make("kbd", {}, (i + 1).toString(36)), title);
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
    $("count").textContent = `${shown.length} pictures`;
    $("gallery").replaceChildren();
    addCards();
  }
  if (now.picture) look(now);
  if (!now.picture || !$("viewer").open) $("viewer")[now.picture ? "showModal" : "close"]();
  $(now.at)?.scrollIntoView();
}

for (const id of ["stage", "class", "sort"]) $(id).onchange = () => location.assign(address({ layers: null, [id]: $(id).value }));
for (const button of document.querySelectorAll("[aria-sort] button")) button.onclick = sortTable;
$("viewer").onclose = () => state().picture && location.assign(address({ picture: null }));
const move = (steps) => location.replace(address({ picture: (shown[shown.indexOf(state().picture) + steps] ?? state().picture).number }));
for (const [id, steps] of [["previous", -1], ["next", 1]]) $(id).onclick = () => move(steps);
$("close").onclick = () => $("viewer").close();
addEventListener("keydown", ({ key, ctrlKey, metaKey, altKey }) => {
  if (!$("viewer").open || ctrlKey || metaKey || altKey) return;
  $({ ArrowLeft: "previous", ArrowRight: "next" }[key])?.click();
  if (key === "0") location.replace(address({ layers: "" })); // the picture alone; 1 to 9, then a to z are its layers
  if (key.length === 1) $("layers").children[parseInt(key, 36) - 1]?.click();
});
render(addEventListener("hashchange", render));
