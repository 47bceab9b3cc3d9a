"use strict";
const distune = (() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // The theme: the system's, until the button is used.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const keep = { get() { try { return localStorage.getItem("distune-theme"); } catch { return null; } },
    set(v) { try { localStorage.setItem("distune-theme", v); } catch { /* a file that may store nothing */ } } };
  const drawn = new Set();
  const theme = (name) => { root.dataset.theme = name; drawn.forEach((el) => Plotly.relayout(el, themed(el.layout))); };
  theme(keep.get() || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => keep.get() || theme(dark.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => {
    keep.set(root.dataset.theme === "dark" ? "light" : "dark");
    theme(keep.get());
  });

  function themed(layout) {
    const changes = { "font.color": colour("--ink"), "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": colour("--card"), "hoverlabel.font.color": colour("--ink") };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key)))
      Object.assign(changes, { [`${axis}.gridcolor`]: colour("--line"), [`${axis}.linecolor`]: colour("--line"),
        [`${axis}.zerolinecolor`]: colour("--line") });
    return changes;
  }

  // Figures: each is drawn when it comes near the screen.
  const figures = read("data-figures");
  function plot(el) {
    if (drawn.has(el) || el.closest("[hidden]")) return;
    const { data, layout } = figures[el.dataset.figure];
    layout.font = { family: "inherit", size: 12 };
    Plotly.newPlot(el, data, layout, { responsive: true, displaylogo: false, displayModeBar: false })
      .then(() => Plotly.relayout(el, themed(layout)));
    drawn.add(el);
    if (data[0].type === "parcoords") el.on("plotly_restyle", () => brush(el));
  }
  function draw() {
    const near = new IntersectionObserver((seen) => seen.filter((s) => s.isIntersecting).forEach((s) => {
      near.unobserve(s.target);
      plot(s.target);
    }), { rootMargin: "400px" });
    document.querySelectorAll(".plot").forEach((el) => near.observe(el));
  }
  document.querySelectorAll("[data-choose]").forEach((select) => {
    const show = () => {
      document.querySelectorAll(`[data-group="${select.dataset.choose}"] figure`).forEach((f) => {
        f.hidden = f.id !== select.value;
      });
      if (window.Plotly) { plot(document.getElementById(select.value).querySelector(".plot")); brush(null); }
    };
    select.addEventListener("change", show);
    show();
  });

  // Trials: sorted, searched and brushed as numbers of rows; a page of them at a time is in the document.
  const { names, columns, messages } = read("data-trials");
  const table = document.getElementById("all"), SIZE = 50, at = (id) => document.getElementById(id);
  let order = columns[0].map((_, row) => row), kept = null, sorted = [null, 1], page = 0;
  const text = columns[0].map((_, row) => columns.slice(0, 7).map((c) => c[row]).join(" ").toLowerCase());

  function brush(el) {
    kept = null;
    if (el) {
      const trace = el.data[0];
      const held = trace.dimensions.filter((d) => d.constraintrange);
      const inside = (d, i) => [].concat(typeof d.constraintrange[0] === "number" ? [d.constraintrange] : d.constraintrange)
        .some(([low, high]) => d.values[i] >= low && d.values[i] <= high);
      if (held.length) kept = new Set(trace.meta.filter((_, i) => held.every((d) => inside(d, i))));
    }
    page = 0;
    rows();
  }
  function sort(column) {
    sorted = [column, sorted[0] === column ? -sorted[1] : typeof columns[column].find((v) => v !== null) === "number" ? -1 : 1];
    const values = columns[column], way = sorted[1];
    const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    order.sort((i, j) => {
      const [a, b] = [values[i] ?? null, values[j] ?? null];
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      return way * compare(a, b) || i - j;
    });
    page = 0;
    rows();
  }
  function rows() {
    if (!table) return;
    const wanted = at("find").value.toLowerCase();
    const shown = order.filter((row) => (!kept || kept.has(row)) && text[row].includes(wanted));
    const pages = Math.max(1, Math.ceil(shown.length / SIZE));
    const body = shown.slice(page * SIZE, (page + 1) * SIZE).map((row) => {
      const tr = document.createElement("tr");
      columns.forEach((values, column) => {
        const cell = document.createElement(column ? "td" : "th");
        cell.textContent = values[row] ?? "";
        if (typeof values[row] === "number") cell.className = "n";
        if (names[column] === "ended" && messages[row]) cell.title = messages[row];
        tr.append(cell);
      });
      return tr;
    });
    table.tBodies[0].replaceChildren(...body);
    at("count").textContent = `${shown.length} of ${order.length} trials${kept ? " in the brushed ranges" : ""}`;
    at("unbrush").hidden = !kept;
    at("page").textContent = `${page + 1} / ${pages}`;
    at("back").disabled = page === 0;
    at("next").disabled = page >= pages - 1;
    table.querySelectorAll("thead th").forEach((th, column) => {
      const way = column !== sorted[0] ? "none" : sorted[1] > 0 ? "ascending" : "descending";
      th.setAttribute("aria-sort", way);
      th.firstChild.textContent = names[column] + { none: "", ascending: " ▲", descending: " ▼" }[way];
    });
  }
  if (table) {
    const head = table.tHead.insertRow();
    names.forEach((name, column) => {
      const th = document.createElement("th"), button = document.createElement("button");
      th.scope = "col";
      button.type = "button";
      button.addEventListener("click", () => sort(column));
      th.append(button);
      head.append(th);
    });
    at("find").addEventListener("input", () => { page = 0; rows(); });
    at("back").addEventListener("click", () => { page -= 1; rows(); });
    at("next").addEventListener("click", () => { page += 1; rows(); });
    at("unbrush").addEventListener("click", () => {
      for (const el of drawn) if (el.data[0].type === "parcoords") {
        const open = Object.fromEntries(el.data[0].dimensions.map((_, i) => [`dimensions[${i}].constraintrange`, null]));
        Plotly.restyle(el, open);
      }
      brush(null);
    });
    rows();
  }
  return { draw };
})();
