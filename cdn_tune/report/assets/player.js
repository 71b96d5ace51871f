// The video of a query: a player that stops where a moment ends, and small frames along the timeline.

function within(seconds, [start, end]) {
  return seconds >= start && seconds <= end;
}

// A player, or null where the video is not at hand. `play` plays a moment, `go` seeks, `onTime` is called with seconds.
function makePlayer(data, at) {
  const link = data.links[data.video[at]];
  if (!link) return null;
  const name = data.videos[data.video[at]], truth = data.truth[at], first = data.moments[at][0];
  const video = element("video");
  Object.assign(video, { controls: true, preload: "metadata", playsInline: true, src: link });
  video.setAttribute("aria-label", `Video ${name}`);
  const told = element("figcaption"), figure = element("figure", "player");
  figure.append(video, told);
  const player = { figure, video, onTime: [], onError: [] };
  let stop = null; // where the moment that is played ends

  player.go = (seconds) => {
    stop = null;
    video.currentTime = seconds;
  };
  player.play = ([start, end]) => {
    player.go(start);
    stop = end;
    video.play().catch(() => {}); // refused, or another moment was chosen meanwhile
  };
  const tell = () => {
    const now = video.currentTime;
    if (stop !== null && now >= stop) {
      stop = null;
      video.pause();
    }
    const inside = [within(now, truth) && "the annotated moment", first && within(now, first) && "answer #1"].filter(Boolean);
    told.textContent = `${clock(now)}${inside.length ? ` · in ${inside.join(" and ")}` : ""}`;
    figure.classList.toggle("in-truth", within(now, truth));
    figure.classList.toggle("in-first", Boolean(first && within(now, first)));
    player.onTime.forEach((call) => call(now));
  };
  video.addEventListener("loadedmetadata", () => { video.currentTime = (first ?? truth)[0]; }, { once: true });
  for (const event of ["timeupdate", "seeked"]) video.addEventListener(event, tell);
  video.addEventListener("error", () => {
    figure.replaceChildren(element("p", "about", `${name} does not play here: it is not at ${link} any more, or this browser cannot play its container or codec.`));
    player.onError.forEach((call) => call());
  }, { once: true });
  return player;
}

// Frames in the middles of equal parts of the timeline; one stop of the Tab key, and arrows go along.
function drawFrames(data, at, player) {
  const frames = data.frames[data.video[at]];
  if (!frames) return null;
  const strip = element("div", "track frames");
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", "Frames");
  for (let part = 0; part < frames.count; part++) {
    const seconds = ((part + 0.5) / frames.count) * data.duration[at];
    const button = element("button");
    button.type = "button";
    button.tabIndex = part ? -1 : 0;
    button.title = clock(seconds);
    button.setAttribute("aria-label", `Go to ${clock(seconds)}`);
    if (within(seconds, data.truth[at])) button.classList.add("in-truth");
    if (data.moments[at].length && within(seconds, data.moments[at][0])) button.classList.add("in-first");
    Object.assign(button.style, {
      backgroundImage: `url("${frames.picture}")`, backgroundSize: `${100 * frames.count}% 100%`,
      backgroundPosition: `${(100 * part) / (frames.count - 1)}% 0`, aspectRatio: `${frames.width} / ${frames.height}`,
    });
    button.addEventListener("click", () => player.go(seconds));
    strip.append(button);
  }
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const seen = [...strip.children].filter((button) => button.offsetParent); // on a phone every other one
    const next = step && seen[seen.indexOf(event.target) + step];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return strip;
}
