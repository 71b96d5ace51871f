// A served page asks whether the record has changed, and loads itself anew; what was chosen is remembered.

function startLive() {
  const told = document.querySelector('meta[name="live"]');
  if (!isLive) return;
  const at = recall("scroll");
  if (at) scrollTo({ top: Number(at), behavior: "instant" });
  addEventListener("pagehide", () => remember("scroll", String(scrollY)));
  const ask = async () => {
    try {
      const answer = await fetch("stamp", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== told.content) location.reload();
      byId("live").textContent = "live";
    } catch {
      byId("live").textContent = "not served any more";
    }
    setTimeout(ask, 3000);
  };
  setTimeout(ask, 3000);
}

startTheme();
startScrolls();
startBoard();
unpack("data").then(JSON.parse).then((data) => {
  startQueries(data.queries, bytesOf(data.palette));
  startFigures(data.figures);
  startLive();
  document.documentElement.dataset.ready = "yes";
});
