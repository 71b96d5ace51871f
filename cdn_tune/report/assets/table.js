// Tables: the sides on which one goes on are marked. The leaderboard: sorted by any column, filtered by words and states.

function startScrolls() {
  const mark = (box) => {
    const beyond = box.scrollWidth - box.clientWidth;
    box.classList.toggle("cut-left", beyond > 1 && box.scrollLeft > 1);
    box.classList.toggle("cut-right", beyond > 1 && box.scrollLeft < beyond - 1);
  };
  const watch = new ResizeObserver((changes) => changes.forEach((change) => mark(change.target.closest(".scroll"))));
  for (const box of document.querySelectorAll(".scroll")) {
    watch.observe(box);
    watch.observe(box.firstElementChild);
    box.addEventListener("scroll", () => mark(box), { passive: true });
  }
}

function startBoard() {
  const table = byId("board");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const filter = byId("board-filter");
  const boxes = [...byId("board-states").querySelectorAll("input")];
  const texts = new Map(rows.map((row) => [row, [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase()]));

  function value(row, column) {
    const raw = row.cells[column].dataset.sort;
    return raw === "" ? null : heads[column].classList.contains("num") ? Number(raw) : raw;
  }

  function sort(column, direction) {
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const order = (one, other) => {
      const [a, b] = [value(one, column), value(other, column)];
      if (a === null || b === null) return (a === null) - (b === null); // what has no value stays last
      return direction * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    };
    body.append(...rows.slice().sort(order));
    remember("sort", `${column} ${direction}`);
  }

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const states = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    let shown = 0;
    for (const row of rows) {
      row.hidden = !states.has(row.dataset.state) || !words.every((word) => texts.get(row).includes(word));
      shown += !row.hidden;
    }
    byId("board-count").textContent = `${shown} of ${rows.length} trials`;
    remember("filter", filter.value);
  }

  heads.forEach((head, column) => {
    head.firstElementChild.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      // Metrics are wanted highest first, ranks and words from their beginning.
      const first = head.classList.contains("num") && column > 1 ? -1 : 1;
      sort(column, now ? (now === "ascending" ? -1 : 1) : first);
    });
  });
  filter.addEventListener("input", show);
  boxes.forEach((box) => box.addEventListener("change", show));
  filter.value = recall("filter") || "";
  const [column, direction] = (recall("sort") || "").split(" ").map(Number);
  if (direction && column < heads.length) sort(column, direction);
  show();
}
