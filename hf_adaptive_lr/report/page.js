"use strict";
// The table and the answer to "why did it change at step N?". Every text from the run's files goes through textContent.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const WINDOW = 50;
  const open = new Map(); // run index -> unpacked run
  let state = { run: 0, row: -1, start: 0, list: [] };

  // --- unpacking -----------------------------------------------------------------------------------------------------

  function column(packed, rows, holds) {
    const out = new Array(rows).fill(null);
    let index = 0;
    packed.v.forEach((value, k) => {
      index = packed.i ? index + packed.i[k] : k;
      out[index] = value;
    });
    if (holds) for (let k = 1; k < rows; k++) if (out[k] === null) out[k] = out[k - 1];
    return out;
  }

  function unpack(number) {
    if (open.has(number)) return open.get(number);
    const packed = data.runs[number], n = packed.rows;
    const run = { name: packed.name, base: packed.base, group: packed.group, n, events: new Map(), seen: [] };
    run.steps = packed.steps.flatMap(([first, count]) => Array.from({ length: count }, (_, k) => first + k));
    for (const name of ["lr", "reason", "ramp"]) run[name] = column(packed[name], n, true);
    for (const name of ["detail", "proposed", "bounded", "lrs"]) run[name] = column(packed[name], n, false);
    run.bounded = run.bounded.map((value, k) => (value === 0 ? run.lr[k] : value && value[0]));
    for (const name of Object.keys(packed.seen)) run.seen.push([name, column(packed.seen[name], n, false)]);
    for (const [row, step, action, facts] of packed.events) {
      if (!run.events.has(row)) run.events.set(row, []);
      run.events.get(row).push({ step, action, facts });
    }
    open.set(number, run);
    return run;
  }

  // --- numbers and words ---------------------------------------------------------------------------------------------

  function short(value, digits = 5) {
    if (Array.isArray(value)) return value.map((v) => short(v, digits)).join(", ");
    if (typeof value !== "number") return value === null || value === undefined ? "" : String(value);
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 1).replace(/\.?0+e/, "e");
    return String(Number(value.toPrecision(digits)));
  }

  function before(run, row) {
    for (let k = row - 1; k >= 0; k--) if (run.reason[k] !== "event") return k;
    return -1;
  }

  function change(run, row) {
    const k = before(run, row);
    if (k < 0 || run.reason[row] === "event" || !run.lr[k]) return null;
    return (run.lr[row] / run.lr[k] - 1) * 100;
  }

  function percent(value) {
    if (value === null) return "";
    if (value === 0) return "0 %";
    return (value > 0 ? "+" : "\u2212") + short(Math.abs(value), 3) + " %";
  }

  const inWords = (code) => (Object.hasOwn(data.reasons, code) ? data.reasons[code] : "");
  const proposedRate = (run, row) =>
    typeof run.proposed[row] === "number" && run.base !== null ? run.proposed[row] * run.base : null;
  const observed = (run, row) => run.seen.filter(([, values]) => values[row] !== null);
  const happened = (run, row) => run.events.has(row) || !["decision", "between"].includes(run.reason[row]);

  // --- small DOM helpers ---------------------------------------------------------------------------------------------

  function make(tag, content, attributes = {}) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    for (const part of Array.isArray(content) ? content : [content]) element.append(part);
    return element;
  }

  const link = (run, step, words) => make("a", words, { href: `#run=${run}&step=${step}` });

  // --- why -----------------------------------------------------------------------------------------------------------

  function explain() {
    const run = unpack(state.run), row = state.row, box = at("why");
    if (row < 0) return;
    const list = make("dl", []);
    const say = (key, name, words, value) =>
      list.append(make("dt", name), make("dd", words, { "data-key": key, "data-value": JSON.stringify(value) }));
    const reason = run.reason[row], last = before(run, row), moved = change(run, row);
    say("reason", "reason", inWords(reason) ? [make("code", reason), " \u2013 ", inWords(reason)] : make("code", reason), reason);
    if (run.detail[row] !== null) say("detail", "in detail", run.detail[row], run.detail[row]);
    for (const [name, values] of observed(run, row)) say("seen." + name, "saw " + name, short(values[row], 7), values[row]);
    if (run.proposed[row] !== null) {
      const rate = proposedRate(run, row);
      const words = rate === null ? "" : ` times the base LR ${short(run.base)} = ${short(rate, 7)}`;
      say("proposed", "proposed", short(run.proposed[row], 7) + words, run.proposed[row]);
    }
    if (run.bounded[row] !== null) say("bounded", "after bounds", short(run.bounded[row], 7), run.bounded[row]);
    if (run.ramp[row] !== 1) say("ramp", "warm-up or cooldown", "times " + short(run.ramp[row]), run.ramp[row]);
    if (reason !== "event") say("applied", "applied", short(run.lr[row], 7), run.lr[row]);
    if (run.lrs[row] !== null) say("lrs", "of every group", short(run.lrs[row], 5), run.lrs[row]);
    if (moved !== null) say("change", "change", `${percent(moved)} against update ${run.steps[last]}`, moved);
    if (reason === "between") {
      let k = row;
      while (k >= 0 && (run.reason[k] === "between" || run.reason[k] === "event")) k--;
      if (k >= 0) say("since", "in force since", link(state.run, run.steps[k], "update " + run.steps[k]), run.steps[k]);
    }
    for (const event of run.events.get(row) || []) {
      const facts = Object.entries(event.facts).map(([name, value]) => `${name} ${typeof value === "string" ? value : short(value)}`);
      say("event", "event", [make("strong", event.action), facts.length ? ": " + facts.join(", ") : ""], event.action);
    }
    const times = run.steps.reduce((count, step) => count + (step === run.steps[row]), 0);
    if (times > 1) say("times", "run again", `this update is in the trace ${times} times; this is the last`, times);
    const title = make("h3", `Update ${run.steps[row]}` + (data.runs.length > 1 ? ` of ${run.name}` : ""));
    title.id = "why-title";
    box.replaceChildren(title, list);
    box.dataset.step = run.steps[row];
  }

  // --- the table -----------------------------------------------------------------------------------------------------

  const FILTERS = {
    decisions: (run, row) => run.reason[row] !== "between" || run.events.has(row),
    events: happened,
    changes: (run, row) => Math.abs(change(run, row) || 0) >= 10,
    all: () => true,
  };

  function listed() {
    const run = unpack(state.run), wanted = FILTERS[at("filter").value] || FILTERS.all;
    state.list = [];
    for (let row = 0; row < run.n; row++) if (wanted(run, row)) state.list.push(row);
  }

  function position(row) { // index in the list of the first listed row that is not before this one
    let low = 0, high = state.list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (state.list[middle] < row) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function line(run, row) {
    const rate = proposedRate(run, row);
    const seen = observed(run, row).map(([name, values]) => `${name} ${short(values[row])}`);
    const told = (run.events.get(row) || []).map((event) => event.action);
    const why = [run.reason[row] + (run.detail[row] === null ? "" : `: ${run.detail[row]}`), ...told].join("; ");
    const cells = [
      make("td", link(state.run, run.steps[row], String(run.steps[row])), { class: "n" }),
      make("td", why, { title: inWords(run.reason[row]) }),
      make("td", seen.join(", ")),
      make("td", run.proposed[row] === null ? "" : short(rate === null ? run.proposed[row] : rate), { class: "n" }),
      make("td", short(run.bounded[row]), { class: "n" }),
      make("td", run.reason[row] === "event" ? "" : short(run.lr[row]), { class: "n" }),
      make("td", percent(change(run, row)), { class: "n" }),
    ];
    return make("tr", cells, row === state.row ? { class: "here", "aria-current": "true" } : {});
  }

  function show() {
    const run = unpack(state.run), total = state.list.length;
    state.start = Math.max(0, Math.min(state.start, total - 1));
    const end = Math.min(total, state.start + WINDOW);
    at("rows").tBodies[0].replaceChildren(...state.list.slice(state.start, end).map((row) => line(run, row)));
    at("count").textContent = total ? `rows ${state.start + 1} to ${end} of ${total}` : "no such rows";
    at("newer").disabled = end >= total;
    at("older").disabled = state.start === 0;
  }

  function choose(number, row) {
    state.run = number;
    state.row = row;
    at("run").value = String(number);
    listed();
    const place = position(row);
    state.start = Math.max(0, Math.min(place - 10, state.list.length - WINDOW));
    explain();
    show();
  }

  function find(run, step) { // the last row of that update, or of the nearest one before it
    const same = run.steps.lastIndexOf(step);
    if (same >= 0) return same;
    let best = 0;
    for (let k = 0; k < run.n; k++) if (run.steps[k] <= step && run.steps[k] >= run.steps[best]) best = k;
    return best;
  }

  function fromAddress(jumped) {
    const wish = new URLSearchParams(location.hash.slice(1));
    const number = Math.min(data.runs.length - 1, Math.max(0, Number.parseInt(wish.get("run") || "0", 10) || 0));
    const step = Number.parseInt(wish.get("step") || "", 10);
    const run = unpack(number);
    if (Object.hasOwn(FILTERS, wish.get("show") || "")) at("filter").value = wish.get("show");
    if (!wish.has("step") && jumped && !wish.has("run")) return; // an anchor of the page
    const row = Number.isNaN(step) ? 0 : find(run, step);
    choose(number, row);
    const missing = !Number.isNaN(step) && run.steps[row] !== step;
    at("said").textContent = missing ? `There is no update ${step} on this page; this is update ${run.steps[row]}.` : "";
    at("step").value = String(run.steps[row]);
    if (!wish.has("step")) return;
    at("explain").scrollIntoView();
    at("why").focus({ preventScroll: true });
  }

  function go(number, step) {
    const wanted = `#run=${number}&step=${step}`;
    if (location.hash === wanted) fromAddress(true);
    else location.hash = wanted;
  }

  data.runs.forEach((run, k) => at("run").append(make("option", run.name, { value: String(k) })));
  at("run").parentElement.hidden = data.runs.length < 2;
  at("jump").addEventListener("submit", (event) => {
    event.preventDefault();
    go(Number(at("run").value), Number.parseInt(at("step").value, 10) || 0);
  });
  at("run").addEventListener("change", () => go(Number(at("run").value), Number.parseInt(at("step").value, 10) || 0));
  at("filter").addEventListener("change", () => choose(state.run, state.row));
  at("older").addEventListener("click", () => { state.start -= WINDOW; show(); });
  at("newer").addEventListener("click", () => { state.start += WINDOW; show(); });
  window.addEventListener("hashchange", () => fromAddress(true));
  at("live").hidden = false;
  fromAddress(false);
})();
