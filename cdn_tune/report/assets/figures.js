// Figures: each is drawn when it comes into view, and all of them before the page is printed.

const PAPER = 690; // width of a figure on paper, in pixels: A4 and letter between their margins

let plotly = null;

function loadPlotly() {
  plotly ??= unpack("plotly").then((source) => {
    const script = document.createElement("script");
    script.textContent = source; // its hash is in the page's policy
    document.head.append(script);
    return window.Plotly;
  });
  return plotly;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function mix(one, other, share) {
  const parts = [one, other].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return `rgb(${parts[0].map((value, at) => Math.round(value + (parts[1][at] - value) * share)).join(",")})`;
}

// Colours are named "@name" in the data; "@scale" is the scale of values, "@scale/0.5" its middle.
function inTheme(value) {
  if (Array.isArray(value)) return value.map(inTheme);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inTheme(item)]));
  }
  if (typeof value !== "string" || value[0] !== "@") return value;
  const scale = [0, 1, 2].map((at) => colour(`scale-${at}`));
  if (value === "@scale") return scale.map((hex, at) => [at / 2, hex]);
  if (value.startsWith("@scale/")) {
    const share = 2 * Number(value.slice(7));
    return share < 1 ? mix(scale[0], scale[1], share) : mix(scale[1], scale[2], share - 1);
  }
  return colour(value.slice(1));
}

function layoutOf(view, figure, narrow, width) {
  const layout = inTheme(view.layout);
  const grid = { gridcolor: colour("grid"), zerolinecolor: colour("grid"), linecolor: colour("grid"), automargin: true };
  const axes = new Set([...Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key)), "xaxis", "yaxis"]);
  for (const axis of axes) {
    const exponent = layout[axis]?.type === "log" ? { exponentformat: "power" } : {}; // 10^-4, not 100µ
    layout[axis] = { ...grid, ...exponent, ...layout[axis] };
  }
  return {
    ...layout,
    height: figure.height,
    ...(width ? { width } : { autosize: true }),
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 13, color: colour("text") },
    colorway: ["accent", "complete", "running", "failed", "refused", "pruned", "learned"].map(colour),
    margin: { l: 56, r: 20, t: 36, b: 48, ...layout.margin },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("grid"), font: { color: colour("text") } },
    dragmode: narrow ? false : "zoom", // a finger on a figure scrolls the page
  };
}

function startFigures(figures) {
  const shown = new Map(); // plot element -> name of its view
  const wanted = new Set();

  function paint(plot, width) { // once plotly.js is there; draws before it returns, since a print does not wait
    const figure = figures[plot.dataset.figure];
    const name = shown.get(plot) || Object.keys(figure.views)[0];
    shown.set(plot, name);
    const view = figure.views[name];
    const narrow = matchMedia("screen and (max-width: 760px)").matches;
    plot.querySelector(".placeholder")?.remove();
    const options = { displayModeBar: false, responsive: !width };
    const done = window.Plotly.react(plot, inTheme(view.data), layoutOf(view, figure, narrow, width), options);
    return done.then(() => { plot.dataset.drawn = name; });
  }

  async function draw(plot) {
    await loadPlotly();
    await paint(plot);
  }

  const plots = [...document.querySelectorAll("[data-figure]")];
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting || wanted.has(target)) continue;
      wanted.add(target);
      observer.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "300px" });
  for (const plot of plots) {
    observer.observe(plot);
    const radios = [...plot.closest("figure").querySelectorAll(".views input")];
    const before = recall(`view-${plot.dataset.figure}`);
    for (const radio of radios) {
      if (radio.value === before) { radio.checked = true; shown.set(plot, before); }
      radio.addEventListener("change", () => {
        shown.set(plot, radio.value);
        remember(`view-${plot.dataset.figure}`, radio.value);
        draw(plot);
      });
    }
  }
  onTheme.push(() => plots.filter((plot) => plot.dataset.drawn).forEach((plot) => paint(plot)));
  addEventListener("beforeprint", () => { if (window.Plotly) plots.forEach((plot) => paint(plot, PAPER)); });
  addEventListener("afterprint", () => { if (window.Plotly) plots.forEach((plot) => paint(plot)); });
  if (plots.length) (window.requestIdleCallback ?? setTimeout)(loadPlotly); // so that a print finds it there
  byId("print").addEventListener("click", async () => {
    if (plots.length) await loadPlotly();
    print();
  });
}
