"use strict";
// What the page does. Rule: shows and hides what is there; makes no element out of data, sets text alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const findings = all(".finding");
  const list = by("list");
  const state = { words: [], severities: new Set(data.severities), kind: "", where: null, sort: "severity", down: false };

  // ---- which findings are shown ----

  // what was clicked → does a finding belong to it
  const PLACES = {
    cell: (finding, value) => finding.cells.includes(value),
    pair: (finding, value) => finding.pairs.includes(value),
    node: (finding, value) => finding.nodes.includes(value) || finding.pairs.some((pair) => pair.split(".").includes(String(value))),
    client: (finding, value) => finding.pairs.some((pair) => pair.split(".")[0] === String(value)),
    server: (finding, value) => finding.nodes.includes(value) || finding.pairs.some((pair) => pair.split(".")[1] === String(value)),
    bin: (finding, value) => finding.bins.includes(value),
  };
  const texts = new Array(findings.length);
  // names and numbers, not the explanations, which many findings share
  const textOf = (i) => (texts[i] ??= all("summary, .facts, .evidence", findings[i])
    .map((part) => part.textContent).join(" ").toLowerCase());

  const fits = (i) => {
    const finding = data.findings[i];
    return state.severities.has(data.severities[finding.severity])
      && (!state.kind || finding.kind === state.kind)
      && (!state.where || PLACES[state.where.by](finding, state.where.value))
      && state.words.every((word) => textOf(i).includes(word));
  };

  const filter = () => {
    if (!list) return;
    const begin = performance.now();
    let shown = 0;
    findings.forEach((element) => {
      const hide = !fits(Number(element.dataset.i));
      if (element.hidden !== hide) element.hidden = hide;
      shown += hide ? 0 : 1;
    });
    by("shown").textContent = `${shown.toLocaleString("en")} of ${findings.length.toLocaleString("en")} shown`;
    by("where").textContent = state.where ? state.where.words : "";
    by("nothing").hidden = shown > 0;
    by("clear").hidden = !(state.where || state.kind || state.words.length || state.severities.size < data.severities.length);
    performance.measure("filter", { start: begin });
  };

  const clear = () => {
    Object.assign(state, { words: [], severities: new Set(data.severities), kind: "" });
    if (list) {
      by("search").value = "";
      by("kind").value = "";
      all("[data-severity].chip").forEach((chip) => chip.setAttribute("aria-pressed", "true"));
    }
    choose(null);
  };

  // ---- what was clicked ----

  let chosen = null;
  const mark = (element, on) =>
    element.setAttribute(element.tagName === "TD" ? "aria-selected" : "aria-pressed", String(on));
  const choose = (element, by_, value, words) => {
    if (chosen) mark(chosen, false);
    chosen = element && element !== chosen ? element : null;
    if (chosen) mark(chosen, true);
    state.where = chosen ? { by: by_, value, words } : null;
    filter();
    if (chosen) by("findings-title").scrollIntoView({ block: "start" });
  };

  all("[data-cell]").forEach((cell) => cell.addEventListener("click", () =>
    choose(cell, "cell", cell.dataset.cell, `of ${cell.getAttribute("aria-label").split(":")[0]}`)));
  all("[data-node]").forEach((name) => name.addEventListener("click", () => {
    const value = Number(name.dataset.node);
    const words = { client: "from or to", server: "to" }[name.dataset.side];
    choose(name, name.dataset.side === "client" ? "node" : "server", value, `${words} ${data.nodes[value]}`);
  }));
  all("[data-bin]").forEach((bin) => bin.addEventListener("click", () =>
    choose(bin, "bin", Number(bin.dataset.bin), `of flows that began from ${bin.getAttribute("aria-label").split(": ")[0]}`)));

  const nodes = by("nodes");
  const pairOf = (cell) => `${cell.parentElement.rowIndex - 1}.${cell.cellIndex - 1}`;
  const pairName = (pair) => pair.split(".").map((n) => data.nodes[Number(n)]).join(" → ");
  const isCell = (target) => target.tagName === "TD" && !target.classList.contains("self") && !target.classList.contains("corner");
  const amount = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const pairWords = (cell) => {
    const pair = pairOf(cell);
    const counts = data.pairs[pair];
    if (!counts) return `${pairName(pair)}: no flow`;
    const kinds = counts.slice(0, data.kinds.length);
    const parts = kinds.map((count, n) => [count, data.kinds[n]]).filter(([count]) => count);
    const flows = amount(kinds.reduce((sum, count) => sum + count, 0), "flow");
    const listed = parts.map(([count, words]) => `${count.toLocaleString("en")} ${words}`).join(", ");
    return `${pairName(pair)}: ${flows} (${listed}), ${amount(counts.at(-2), "packet")}, ${amount(counts.at(-1), "byte")}`;
  };
  const choosePair = (cell) => {
    if (data.pairs[pairOf(cell)]) choose(cell, "pair", pairOf(cell), `of ${pairName(pairOf(cell))}`);
  };
  nodes.addEventListener("click", (event) => {
    const cell = event.target.closest("td, th");
    if (cell && isCell(cell)) choosePair(cell);
  });

  // ---- what is under the pointer or the focus ----

  const tell = (root, readout, words) => {
    if (!root) return;
    const said = (event) => {
      const text = words(event.target);
      if (text) by(readout).textContent = text;
    };
    root.addEventListener("pointerover", said);
    root.addEventListener("focusin", said);
  };
  const labelled = (target) => target.closest("[aria-label]")?.getAttribute("aria-label");
  tell(by("panels"), "roles-readout", (target) => target.closest("button")?.getAttribute("aria-label") || target.closest("[title]")?.title);
  tell(by("bins"), "time-readout", (target) => target.dataset.bin && labelled(target));
  tell(nodes, "nodes-readout", (target) => {
    const cell = target.closest("td, th");
    return cell && isCell(cell) ? pairWords(cell) : "";
  });

  // ---- keys within the node map and the times ----

  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const focus = (from, to) => {
    from.tabIndex = -1;
    to.tabIndex = 0;
    if (to.tagName === "TD") {
      to.setAttribute("aria-label", pairWords(to));
      to.setAttribute("role", "button");
    }
    to.focus();
  };
  const handle = (cell) => cell.querySelector("button") || cell;
  nodes.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td, th");
    if ((event.key === "Enter" || event.key === " ") && cell.tagName === "TD") {
      event.preventDefault();
      choosePair(cell);
    }
    if (!STEPS[event.key]) return;
    event.preventDefault();
    const [down, right] = STEPS[event.key];
    const next = nodes.rows[cell.parentElement.rowIndex + down]?.cells[cell.cellIndex + right];
    if (next && !next.classList.contains("corner")) focus(event.target, handle(next));
  });
  by("bins")?.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[event.key];
    const next = step && event.target[step];
    if (next) focus(event.target, next);
  });

  // times at which findings begin, by the gravest of them
  const gravest = new Map();
  data.findings.forEach((finding) => finding.bins.forEach((bin) =>
    gravest.set(bin, Math.min(finding.severity, gravest.get(bin) ?? Infinity))));
  all("[data-bin]").forEach((element) => {
    const severity = gravest.get(Number(element.dataset.bin));
    if (severity !== undefined) element.classList.add("found", data.severities[severity]);
  });

  // ---- search, severities, kinds, order ----

  const sort = () => {
    const key = state.sort;
    const value = (element) => data.findings[Number(element.dataset.i)][key];
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return Number(a.dataset.i) - Number(b.dataset.i);
      if (x === null || y === null) return x === null ? 1 : -1;
      return (x < y ? -1 : 1) * (state.down ? -1 : 1);
    };
    list.append(...[...findings].sort(compare));
    all("[data-sort]").forEach((button) => {
      const on = button.dataset.sort === key;
      button.setAttribute("aria-pressed", String(on));
      button.querySelector(".order").textContent = on ? (state.down ? " ↓" : " ↑") : "";
    });
  };

  if (list) {
    by("search").addEventListener("input", (event) => {
      state.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      filter();
    });
    by("kind").addEventListener("change", (event) => {
      state.kind = event.target.value;
      filter();
    });
    all(".chip").forEach((chip) => chip.addEventListener("click", () => {
      const name = chip.dataset.severity;
      if (!state.severities.delete(name)) state.severities.add(name);
      chip.setAttribute("aria-pressed", String(state.severities.has(name)));
      filter();
    }));
    all("[data-sort]").forEach((button) => button.addEventListener("click", () => {
      const same = state.sort === button.dataset.sort;
      state.down = same ? !state.down : button.classList.contains("n");
      state.sort = button.dataset.sort;
      sort();
    }));
    by("clear").addEventListener("click", clear);
    sort();
    (window.requestIdleCallback || setTimeout)(() => findings.forEach((_, i) => textOf(i)));
  }

  // ---- copy ----

  const copyText = async (code) => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      return true;
    } catch {
      getSelection().selectAllChildren(code);
      return document.execCommand("copy");
    }
  };
  const copy = async (finding) => {
    const button = finding.querySelector(".copy");
    if (!button) return;
    const done = await copyText(button.parentElement.querySelector("code"));
    button.textContent = done ? "Copied" : "Select and copy by hand";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };
  list?.addEventListener("click", (event) => {
    if (event.target.classList.contains("copy")) copy(event.target.closest(".finding"));
  });

  // ---- the page ----

  const open = (id) => {
    const finding = findings.find((element) => element.id === id);
    if (!finding) return;
    if (finding.hidden) clear();
    finding.open = true;
    finding.querySelector("summary").focus();
    finding.scrollIntoView({ block: "start" });
  };
  const openAddressed = () => open(decodeURIComponent(location.hash.slice(1)));
  window.addEventListener("hashchange", openAddressed);
  all(".gravest a, .cause a").forEach((link) => link.addEventListener("click", () => open(link.hash.slice(1))));
  if (location.hash) openAddressed();

  const THEMES = { "": ["dark", "Theme: as the system"], dark: ["light", "Theme: dark"], light: ["", "Theme: light"] };
  by("theme").addEventListener("click", (event) => {
    const next = THEMES[document.documentElement.dataset.theme || ""][0];
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    event.target.textContent = THEMES[next][1];
  });
  by("print").addEventListener("click", () => print());

  const move = (by_) => {
    const shown = [...list.children].filter((element) => !element.hidden);
    const at = shown.indexOf(document.activeElement?.closest(".finding"));
    const next = shown[at < 0 ? (by_ > 0 ? 0 : shown.length - 1) : at + by_];
    next?.querySelector("summary").focus();
  };
  const KEYS = {
    "/": () => by("search").focus(),
    j: () => move(1),
    k: () => move(-1),
    c: () => { const at = document.activeElement?.closest(".finding"); if (at) copy(at); },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") clear();
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (!list || typing || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
})();
