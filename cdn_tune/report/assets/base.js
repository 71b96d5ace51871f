"use strict";
// What the other scripts share: the packed data, the theme, what is remembered while the page is open.

const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text; // text, never markup: queries are anybody's
  return made;
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}

async function unpack(id) {
  const stream = new Blob([bytesOf(byId(id).textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// What was chosen is remembered while a served page loads itself anew; a file begins afresh, but for the theme.
const isLive = document.querySelector('meta[name="live"]') !== null;
const storeOf = (key) => (key === "theme" ? localStorage : isLive ? sessionStorage : null);

function recall(key) {
  try { return storeOf(key)?.getItem(`cdn-tune-${key}`) ?? null; } catch { return null; } // may be refused to a file
}
function remember(key, value) {
  try { storeOf(key)?.setItem(`cdn-tune-${key}`, value); } catch { /* as above */ }
}

const onTheme = []; // called after the colours have changed

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  const button = byId("theme");
  button.setAttribute("aria-pressed", String(isDark()));
  onTheme.forEach((call) => call());
}

function startTheme() {
  setTheme(recall("theme"));
  byId("theme").addEventListener("click", () => {
    const name = isDark() ? "light" : "dark";
    setTheme(name);
    remember("theme", name);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(document.documentElement.dataset.theme));
  let before;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; setTheme("light"); });
  addEventListener("afterprint", () => setTheme(before));
}

document.documentElement.classList.remove("no-js");
