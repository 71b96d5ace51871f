// The browser of queries: a list to search, and for the chosen query its video, timeline and pictures.

const PAGE = 100;

function startQueries(data, palette) {
  if (!data) return;
  const all = data.id.map((_, at) => at);
  const texts = all.map((at) => `${data.query[at]} ${data.videos[data.video[at]]} ${data.id[at]}`.toLowerCase());
  const list = byId("query-list"), search = byId("query-search"), more = byId("query-more");
  const kinds = [...byId("query-kind").querySelectorAll("input")];
  let found = [], listed = 0, current = null;

  function item(at) {
    const button = element("button");
    button.type = "button";
    button.dataset.at = at;
    button.append(
      element("span", "text", data.query[at]),
      element("span", "iou", data.iou[at].toFixed(2)),
      element("span", "about", `${data.videos[data.video[at]]}${data.views?.of[at] ? " · with pictures" : ""}`),
    );
    button.querySelector(".iou").title = "IoU of the first answer";
    if (at === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => choose(at));
    const entry = element("li");
    entry.append(button);
    return entry;
  }

  function extend() {
    list.append(...found.slice(listed, listed + PAGE).map(item));
    listed = Math.min(found.length, listed + PAGE);
    more.hidden = listed >= found.length;
  }

  function refresh() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kind = kinds.find((radio) => radio.checked).value;
    found = (kind === "all" ? all : data.cases[kind]).filter((at) => words.every((word) => texts[at].includes(word)));
    list.replaceChildren();
    listed = 0;
    extend();
    byId("query-count").textContent = `${found.length} of ${all.length} queries`;
    remember("query-search", search.value);
    remember("query-kind", kind);
    if (found.length && !found.includes(current)) choose(found[0]);
  }

  function choose(at) {
    byId("query").querySelector("video")?.pause();
    current = at;
    for (const button of list.querySelectorAll("button")) {
      if (Number(button.dataset.at) !== at) { button.removeAttribute("aria-current"); continue; }
      button.setAttribute("aria-current", "true");
      const [top, bottom] = [button.parentElement.offsetTop, button.parentElement.offsetTop + button.offsetHeight];
      if (top < list.scrollTop) list.scrollTop = top; // the list scrolls, the page does not
      else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
    }
    remember("query", data.id[at]);
    byId("query").replaceChildren(...drawQuery(data, palette, at));
  }

  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.closest("button")) return;
    const buttons = [...list.querySelectorAll("button")];
    const next = buttons[buttons.indexOf(event.target.closest("button")) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
    choose(Number(next.dataset.at));
  });
  search.addEventListener("input", refresh);
  kinds.forEach((radio) => radio.addEventListener("change", refresh));
  more.addEventListener("click", extend);
  for (const link of document.querySelectorAll(".mistakes a")) {
    link.addEventListener("click", () => choose(Number(link.dataset.at))); // and it leads to the query
  }
  search.value = recall("query-search") || "";
  const kind = recall("query-kind");
  kinds.forEach((radio) => { if (radio.value === kind) radio.checked = true; });
  const before = data.id.indexOf(recall("query"));
  const seen = all.slice(0, PAGE).concat(data.cases.typical).find((at) => data.views?.of[at]); // something to see
  current = before >= 0 ? before : seen ?? null;
  refresh();
  if (current !== null) choose(current);
}

const clock = (seconds) => `${seconds.toFixed(1)} s`;

function overlapOf([a, b], [c, d]) {
  const union = Math.max(b, d) - Math.min(a, c);
  return union > 0 ? Math.max(0, Math.min(b, d) - Math.max(a, c)) / union : 0;
}

function drawQuery(data, palette, at) {
  const view = data.views?.of[at];
  const video = data.videos[data.video[at]];
  const player = makePlayer(data, at);
  const made = [
    element("h3", "", data.query[at]),
    element("p", "about", `${video}, ${clock(data.duration[at])} · ${data.id[at]} · ${data.split} split`),
    ...(player ? [player.figure] : []),
    drawLanes(data, palette, at, view, player),
  ];
  if (view?.scores) made.push(element("h4", "", "Score map"), drawMap(data, palette, at, view));
  else if (data.views && !view) made.push(element("p", "about", "Pictures were computed for chosen queries only: see Best, Typical, Worst and Sample."));
  return made;
}

function drawLanes(data, palette, at, view, player) {
  const duration = data.duration[at], truth = data.truth[at];
  const lanes = element("div", "lanes");
  const percent = (seconds) => `${(100 * Math.min(1, Math.max(0, seconds / duration))).toFixed(3)}%`;

  function place(span, [start, end]) {
    span.style.left = percent(start);
    span.style.width = `calc(${percent(end)} - ${percent(start)})`;
    return span;
  }
  // The name of a moment plays it, where there is a player.
  function nameOf(name, span) {
    if (!player) return element("span", "name", name);
    const button = element("button", "name", name);
    button.type = "button";
    button.setAttribute("aria-label", `Play ${name}, ${clock(span[0])} to ${clock(span[1])}`);
    button.addEventListener("click", () => player.play(span));
    return button;
  }
  function lane(kind, name, span, told) {
    const track = element("div", `track ${kind}`);
    if (kind !== "truth") track.append(place(element("span", "shadow"), truth));
    const wrapped = element("div", kind);
    track.append(place(element("span", "span"), span));
    wrapped.append(track);
    lanes.append(nameOf(name, span), wrapped, element("span", "told", told));
  }
  function strip({ title, names, rows, seconds }) {
    lanes.append(element("span", "title", title));
    rows.forEach((row, order) => {
      const track = element("div", "track fine"), cells = bytesOf(row);
      const canvas = paint(cells.length, 1, (cell) => cells[cell], palette);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${title}, ${names[order]}`);
      const [begin, end] = seconds || [0, duration];
      Object.assign(canvas.style, { left: `${(100 * begin) / duration}%`, width: `${(100 * (end - begin)) / duration}%` });
      track.append(canvas, place(element("span", "shadow"), truth));
      const name = element("span", "name", names[order]);
      name.title = names[order];
      lanes.append(name, track, element("span", "told", ""));
    });
  }

  const frames = drawFrames(data, at, player);
  if (frames) lanes.append(element("span", "name", "frames"), frames, element("span", "told", ""));

  lane("truth", "truth", truth, `${clock(truth[0])} – ${clock(truth[1])}`);
  data.moments[at].forEach((moment, place_) => {
    const told = `${moment[0].toFixed(1)} – ${moment[1].toFixed(1)} s · IoU ${overlapOf(moment, truth).toFixed(2)}`;
    lane(place_ ? "rest" : "first", `#${place_ + 1}`, moment, told);
    lanes.lastElementChild.title = `score ${moment[2].toFixed(3)}`;
  });
  (view?.strips ?? []).forEach(strip);
  const axis = element("div", "axis");
  for (let tick = 0; tick <= 4; tick++) {
    const label = element("span", "", clock((duration * tick) / 4));
    label.style.left = `${25 * tick}%`;
    axis.append(label);
  }
  lanes.append(element("span", "blank"), axis, element("span", "blank"));
  if (player) {
    lanes.classList.add("with-player");
    player.onTime.push((now) => lanes.style.setProperty("--now", percent(now)));
    player.onError.push(() => lanes.querySelectorAll("button").forEach((button) => { button.disabled = true; }));
    lanes.addEventListener("click", (event) => { // with a pointer anywhere; the player's own controls do it by key
      const track = event.target.closest(".track:not(.frames)");
      if (!track) return;
      const box = track.getBoundingClientRect();
      player.go(((event.clientX - box.left) / box.width) * duration);
    });
  }
  if (matchMedia("(max-width: 760px)").matches) lanes.querySelectorAll(".blank")[0].style.display = "block";
  return lanes;
}

// A canvas of cells, coloured by their bytes; a cell of which nothing is known (null) is left clear.
function paint(columns, rows, byteAt, palette) {
  const canvas = element("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let at = 0; at < columns * rows; at++) {
    const byte = byteAt(at);
    if (byte === null) continue;
    image.data.set(palette.subarray(3 * byte, 3 * byte + 3), 4 * at);
    image.data[4 * at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function drawMap(data, palette, at, view) {
  const clips = data.views.clips, duration = data.duration[at], truth = data.truth[at];
  const cells = new Uint16Array(bytesOf(data.views.cells).buffer);
  const bytes = bytesOf(view.scores);
  const known = new Array(clips * clips).fill(null);
  cells.forEach((cell, order) => { known[cell] = bytes[order]; });
  const spanOf = (cell) => [Math.floor(cell / clips), (cell % clips) + 1].map((edge) => (edge * duration) / clips);
  const best = cells.reduce((one, cell) => (overlapOf(spanOf(cell), truth) > overlapOf(spanOf(one), truth) ? cell : one), cells[0]);

  const frame = element("div", "frame");
  const canvas = paint(clips, clips, (cell) => known[cell], palette);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Scores of the moments of this video; highest ${view.top.toFixed(3)}`);
  const outline = element("span", "cell");
  const side = 100 / clips;
  Object.assign(outline.style, {
    left: `${(best % clips) * side}%`, top: `${Math.floor(best / clips) * side}%`, width: `${side}%`, height: `${side}%`,
  });
  frame.append(canvas, outline);
  const readout = element("p", "readout", "Point at a cell to read its moment and score.");
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const [column, row] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const cell = Math.min(clips - 1, Math.floor(row * clips)) * clips + Math.min(clips - 1, Math.floor(column * clips));
    const [start, end] = spanOf(cell);
    readout.textContent = known[cell] === null || known[cell] === undefined ? "no proposal"
      : `${clock(start)} – ${clock(end)}: score ${((known[cell] / 255) * view.top).toFixed(3)}, IoU ${overlapOf([start, end], truth).toFixed(2)}`;
  });
  const caption = element("figcaption");
  caption.append(element("span", "", "row: start ↓"), element("span", "", "column: end →"));
  const figure = element("figure");
  figure.append(frame, caption);

  const legend = element("div", "legend");
  const ramp = element("p", "ramp");
  ramp.append(element("span", "", "0"), paint(256, 1, (shade) => shade, palette), element("span", "", view.top.toFixed(3)));
  legend.append(
    element("p", "", "A cell is a moment, from the start of its row's clip to the end of its column's. The cell that fits the annotated moment best is outlined."),
    ramp, readout,
  );
  const map = element("div", "map");
  map.append(figure, legend);
  return map;
}
