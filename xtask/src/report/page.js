"use strict";
// The behaviour of the report: sorting, the filter, the theme, and the charts. Everything that a chart shows is in a
// table too, so each part is set up on its own and the tables work without the charts.
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  function debounced(run, milliseconds) {
    let timer;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(run, milliseconds);
    };
  }

  // ---- Figures in words

  const scales = {
    ns: { step: 1000, names: ["ns", "µs", "ms", "s"] },
    bytes: { step: 1024, names: ["B", "KiB", "MiB", "GiB"] },
  };

  /** Three significant digits, in the unit that suits; a tick has more where it needs them, and no trailing zeros. */
  function format(value, unit = "", isTick = false) {
    const precision = isTick ? 6 : 3;
    if (!Number.isFinite(value)) return "no value";
    const { step, names } = scales[unit] ?? { step: Infinity, names: [unit.startsWith("×") ? "×" : unit] };
    let at = 0;
    let left = value;
    // The rounded figure decides the unit, so that 999.9 ns is 1.00 µs.
    while (at < names.length - 1 && Math.abs(left) >= step - 0.5) {
      left /= step;
      at += 1;
    }
    const rounded = Math.abs(left) >= 1000 ? Math.round(left) : Number(left.toPrecision(precision));
    const decimals = rounded === 0 ? 0 : Math.max(0, precision - 1 - Math.floor(Math.log10(Math.abs(rounded))));
    const countable = unit === "" || (unit === "bytes" && at === 0);
    const digits = rounded.toLocaleString("en-GB",
      { minimumFractionDigits: isTick || countable ? 0 : decimals, maximumFractionDigits: decimals });
    return names[at] === "" || names[at] === "×" ? digits + names[at] : `${digits}\u00a0${names[at]}`;
  }

  const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en-GB")} ${count === 1 ? one : many}`;

  // ---- Sorting

  const collator = new Intl.Collator("en-GB", { numeric: true });

  function cellKey(row, column) {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.value === undefined) return cell.textContent.trim() || null;
    const value = Number.parseFloat(cell.dataset.value);
    return Number.isNaN(value) ? null : value;
  }

  function compareKeys(left, right) {
    if (typeof left === "number" && typeof right === "number") return left - right;
    if (typeof left !== typeof right) return typeof left === "number" ? -1 : 1;
    return collator.compare(left, right);
  }

  function sortBy(table, header) {
    const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    for (const body of table.tBodies) {
      const keyed = [...body.rows].map((row) => [cellKey(row, header.cellIndex), row]);
      // A cell without a value is last in both directions: it has no place in the order.
      keyed.sort(([left], [right]) =>
        left === null || right === null ? (left === null) - (right === null) : sign * compareKeys(left, right));
      body.append(...keyed.map(([, row]) => row));
    }
  }

  const tables = all("table.data");

  function makeSortable(table) {
    for (const header of all("thead th", table)) {
      const button = element("button", { type: "button" }, ...header.childNodes);
      button.addEventListener("click", () => sortBy(table, header));
      header.append(button);
    }
    // A long identifier should break after a slash rather than anywhere.
    for (const header of all("tbody th", table)) {
      if (header.children.length > 0) continue;
      const parts = header.textContent.trim().split(/(?<=\/)/);
      header.replaceChildren(...parts.flatMap((part, at) => (at ? [element("wbr"), part] : [part])));
    }
    const scroll = table.closest(".scroll");
    if (!scroll) return;
    // What scrolls must be reachable by keyboard.
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", table.caption?.textContent ?? "Data");
  }

  // ---- Filter

  let terms = [];
  const matches = (text) => {
    const lower = (text ?? "").toLowerCase();
    return terms.every((term) => lower.includes(term));
  };

  function filterTables() {
    let total = 0;
    let left = 0;
    for (const table of tables) {
      let shown = 0;
      const rows = all("tbody tr", table).filter((row) => row.querySelector("th"));
      for (const row of rows) {
        row.hidden = !matches(row.querySelector("th").textContent);
        shown += row.hidden ? 0 : 1;
      }
      total += rows.length;
      left += shown;
      const summary = table.closest("details")?.querySelector("summary");
      if (!summary) continue;
      summary.querySelector(".shown")?.remove();
      if (terms.length > 0) summary.append(element("span", { className: "shown" }, ` (${shown} shown)`));
    }
    document.getElementById("filter-count").textContent =
      terms.length > 0 ? `${left.toLocaleString("en-GB")} of ${plural(total, "row")}` : plural(total, "row");
  }

  // ---- Theme

  const themes = ["auto", "light", "dark"];

  function setUpTheme() {
    const button = document.getElementById("theme");
    const current = () => root.dataset.theme ?? "auto";
    const next = () => themes[(themes.indexOf(current()) + 1) % themes.length];
    const say = () => {
      button.textContent = `Theme: ${current()}`;
      button.setAttribute("aria-label", `Theme: ${current()}. Change to ${next()}.`);
    };
    button.addEventListener("click", () => {
      const theme = next();
      if (theme === "auto") delete root.dataset.theme;
      else root.dataset.theme = theme;
      try {
        localStorage.setItem("airssys-report-theme", theme);
      } catch { /* Storage may be forbidden; the choice then lasts as long as the page. */ }
      say();
    });
    say();
  }

  // ---- What the charts share

  const good = "var(--good)";
  const bad = "var(--bad)";
  const neutral = "var(--neutral)";
  const down = {
    draw(context, size) {
      const half = Math.sqrt(size / Math.sqrt(3));
      context.moveTo(-half, -half * 0.58);
      context.lineTo(half, -half * 0.58);
      context.lineTo(0, half * 1.16);
      context.closePath();
    },
  };
  const plain = { words: "without a goal", colour: neutral, symbol: d3.symbolCircle };
  const verdicts = {
    met: { words: "goal met", colour: good, symbol: d3.symbolCircle },
    near: { words: "goal within the interval", colour: neutral, symbol: d3.symbolCircle, hollow: true },
    missed: { words: "goal missed", colour: bad, symbol: d3.symbolDiamond },
    slower: { words: "slower", colour: bad, symbol: d3.symbolTriangle },
    "more work": { words: "more work", colour: bad, symbol: d3.symbolTriangle, hollow: true },
    faster: { words: "faster", colour: good, symbol: down },
    same: { words: "same", colour: neutral, symbol: d3.symbolSquare },
    unclear: { words: "unclear", colour: neutral, symbol: d3.symbolCircle, hollow: true },
    new: { words: "new", colour: neutral, symbol: d3.symbolCross },
    gone: { words: "gone", colour: neutral, symbol: d3.symbolWye },
  };
  const seriesSymbols = [d3.symbolCircle, d3.symbolSquare, d3.symbolTriangle, d3.symbolDiamond, d3.symbolCross, down];
  const seriesDashes = ["none", "6 3", "2 3", "8 3 2 3", "10 4", "4 2"];
  // These look the same in every chart of the page; others take the looks in turn.
  const seriesNames = ["ours", "raw", "kameo", "ractor"];

  function seriesLooks(points) {
    const labels = [...new Set(points.map((point) => point.label))];
    const isKnown = labels.some((label) => seriesNames.includes(label));
    const names = isKnown ? [...new Set([...seriesNames, ...labels])] : labels;
    return new Map(labels.map((label) => {
      const at = names.indexOf(label) % seriesSymbols.length;
      const colour = `var(--series-${at})`;
      return [label, { words: label, colour, symbol: seriesSymbols[at], dash: seriesDashes[at] }];
    }));
  }

  function legend(entries) {
    const list = element("ul", { className: "legend" });
    for (const { words, colour = "currentColor", symbol, hollow, dash, tick, band } of entries) {
      const half = dash ? 14 : 7;
      const swatch = d3.create("svg").attr("aria-hidden", "true").attr("stroke", colour)
        .attr("viewBox", [-half, -7, 2 * half, 14]).attr("width", 2 * half).attr("height", 14);
      if (band) swatch.append("path").attr("d", "M0,-6V6").attr("stroke-width", 12).attr("stroke-opacity", 0.14);
      if (dash) swatch.append("path").attr("d", "M-14,0H14").attr("stroke-width", 1.75).attr("stroke-dasharray", dash);
      if (tick) swatch.append("path").attr("d", "M0,-6V6").attr("stroke-width", 2);
      const fill = hollow ? "var(--paper)" : colour;
      if (symbol) swatch.append("path").attr("d", d3.symbol(symbol, 50)()).attr("fill", fill);
      list.append(element("li", {}, swatch.node(), words));
    }
    return list;
  }

  const canvas = document.createElement("canvas").getContext("2d");
  const fontSize = 12;

  function textWidth(text) {
    canvas.font = `${fontSize}px ${getComputedStyle(document.body).fontFamily}`;
    return canvas.measureText(text).width;
  }

  /** The label in lines that fit, broken after slashes. */
  function wrap(label, width) {
    const lines = [""];
    for (const part of label.split(/(?<=[/ ])/)) {
      const last = lines.length - 1;
      if (lines[last] !== "" && textWidth(lines[last] + part) > width) lines.push(part);
      else lines[last] += part;
    }
    return lines;
  }

  /** Round values for a logarithmic axis, about as many as asked for. */
  function logTicks([low, high], count, unit) {
    const base = unit === "bytes" ? 2 : 10;
    const power = (value) => Math.log(value) / Math.log(base);
    const powers = d3.range(Math.ceil(power(low) - 1e-9), Math.floor(power(high) + 1e-9) + 1);
    if (base === 10) {
      const fine = d3.range(Math.floor(power(low)), Math.ceil(power(high)) + 1)
        .flatMap((exponent) => [1, 2, 5].map((digit) => digit * 10 ** exponent))
        .filter((value) => value >= low && value <= high);
      if (fine.length < 3) return d3.ticks(low, high, count);
      if (fine.length <= count) return fine;
    }
    const stride = [1, 2, 5, 10, 20].find((step) => powers.length / step <= count) ?? 40;
    return powers.filter((exponent) => exponent % stride === 0).map((exponent) => base ** exponent);
  }

  /** A scale's type, domain and ticks. A logarithm has no place for zero: such values sit at the low end. */
  function axis(values, { log = false, unit = "", zero = false, count = 6 }) {
    const usable = values.filter((value) => Number.isFinite(value) && (!log || value > 0));
    let [low = 1, high = 1] = d3.extent(usable);
    if (log) {
      const pad = Math.max((high / low) ** 0.04, 1.02);
      [low, high] = [low / pad, high * pad];
    } else {
      const pad = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
      [low, high] = [zero ? Math.min(0, low) : low - pad, high + pad];
    }
    const domain = [low, high];
    return {
      scale: { type: log ? "log" : "linear", domain, label: null },
      ticks: log ? logTicks(domain, count, unit) : linearTicks(domain, count, unit),
      text: (value) => format(value, unit, true),
      clamp: (value) => Math.min(high, Math.max(low, value)),
      unit,
    };
  }

  /** Bytes are round in powers of two. */
  function linearTicks([low, high], count, unit) {
    if (unit !== "bytes") return d3.ticks(low, high, count);
    const step = 2 ** Math.max(0, Math.ceil(Math.log2((high - low) / count)));
    return d3.range(Math.ceil(low / step) * step, high, step);
  }

  const lineHeight = 15;

  /** Where each row stands. Labels are beside the marks where there is room, and else in lines of their own above. */
  function place(rows, width, endText) {
    const marginRight = Math.ceil(Math.max(...rows.map((row) => textWidth(endText(row))))) + 14;
    const widest = Math.ceil(Math.max(...rows.map((row) => textWidth(row.label)))) + 14;
    const beside = widest + marginRight + 260 < width;
    const marginLeft = beside ? widest : 10;
    const headings = [];
    let y = beside ? 0 : 4;
    let group;
    const placed = rows.map((row) => {
      if (row.group && row.group !== group) {
        y += headings.length > 0 ? 12 : 2;
        headings.push({ text: row.group, y: y + 8 });
        y += 22;
        group = row.group;
      }
      const lines = beside ? [row.label] : wrap(row.label, width - 4);
      const labelY = beside ? y + 11 : y + 4;
      if (!beside) y += lines.length * lineHeight + 2;
      const result = { ...row, y: y + 11, labelY, text: lines.join("\n"), end: endText(row) };
      y += beside ? 22 : 28;
      return result;
    });
    // The halo keeps the vertical rules out of labels that stand above the marks.
    const halo = { fill: "currentColor", stroke: "var(--paper)", strokeWidth: 4 };
    const left = { text: "text", frameAnchor: "left", textAnchor: "start", dx: -marginLeft, ...halo };
    const besideMarks = { textAnchor: "end", dx: -12 };
    const aboveMarks = { lineAnchor: "top", lineHeight: lineHeight / fontSize };
    const marks = [
      Plot.text(placed, { ...left, y: "labelY", ...(beside ? besideMarks : aboveMarks) }),
      Plot.text(placed, { y: "y", text: "end", frameAnchor: "right", textAnchor: "end", dx: marginRight }),
      Plot.text(headings, { ...left, y: "y", fontWeight: 600 }),
    ];
    return { rows: placed, marks, marginLeft, marginRight, inner: y };
  }

  const base = { style: { fontSize: `${fontSize}px`, fontFamily: "inherit", background: "none", overflow: "visible" } };

  function rowPlot(width, layout, x, marks) {
    const tall = layout.inner > 420;
    const [marginTop, marginBottom] = [24, tall ? 24 : 8];
    // Given as text, since a logarithmic scale would leave out the labels that it finds too many.
    const ticks = { text: x.text, tickSize: 4, label: null };
    return Plot.plot({
      ...base, width, height: layout.inner + marginTop + marginBottom, marginTop, marginBottom,
      marginLeft: layout.marginLeft, marginRight: layout.marginRight, x: x.scale,
      // One unit is one pixel, so that rows may differ in height.
      y: { axis: null, type: "linear", domain: [layout.inner, 0] },
      marks: [
        Plot.gridX(x.ticks, { strokeOpacity: 0.12 }),
        Plot.axisX(x.ticks, { ...ticks, anchor: "top" }),
        tall ? Plot.axisX(x.ticks, { ...ticks, anchor: "bottom" }) : null,
        Plot.ruleY(layout.rows, { y: "y", strokeOpacity: 0.08 }),
        ...marks.slice(0, -1),
        ...layout.marks,
        // The tip is last, over everything else.
        marks.at(-1),
      ],
    });
  }

  const around = (half) => ({ y1: (row) => row.y - half, y2: (row) => row.y + half });
  const tickCount = (width, layout) => Math.max(3, Math.floor((width - layout.marginLeft - layout.marginRight) / 80));
  const tip = (rows, x, lines, pointer = Plot.pointerY) => {
    const title = (row) => lines(row).filter(Boolean).join("\n");
    return Plot.tip(rows, pointer({ x, y: "y", title, fontSize, stroke: "var(--muted)", pathFilter: "none" }));
  };
  const between = ([low, high], unit) => `${format(low, unit)} to ${format(high, unit)}`;
  const span = ({ lower, upper }, unit) =>
    (Number.isFinite(lower) && Number.isFinite(upper) ? ` (${between([lower, upper], unit)})` : "");
  const range = (rows, unit) => `from ${between(d3.extent(rows, (row) => row.value), unit)}`;

  // ---- The kinds of chart

  // Each takes the data, a width and the state of its figure. It gives the nodes and a summary of them, or only a
  // sentence where there is nothing to draw.

  const kinds = {
    intervals({ rows = [], unit, log, reference, band, bandLabel }, width) {
      const usable = rows.filter((row) => Number.isFinite(row.value));
      if (usable.length === 0) return nothing;
      const layout = place(usable, width, (row) => format(row.value, unit));
      const values = usable.flatMap((row) => [row.value, row.lower, row.upper, row.goal]);
      const x = axis([...values, reference, ...(band ?? [])], { log, unit, count: tickCount(width, layout) });
      const placed = layout.rows.map((row) => ({
        ...row, x: x.clamp(row.value), from: x.clamp(row.lower ?? row.value), to: x.clamp(row.upper ?? row.value),
      }));
      const goals = placed.filter((row) => Number.isFinite(row.goal));
      const groups = [...Object.values(verdicts), plain]
        .map((look) => [look, placed.filter((row) => (verdicts[row.verdict] ?? plain) === look)])
        .filter(([, members]) => members.length > 0);
      const marks = groups.flatMap(([{ colour: stroke, symbol, hollow }, members]) => [
        Plot.ruleY(members, { y: "y", x1: "from", x2: "to", stroke, strokeWidth: 2 }),
        Plot.dot(members, { x: "x", y: "y", r: 4, symbol, stroke, fill: hollow ? "var(--paper)" : stroke }),
      ]);
      const area = { y1: 0, y2: layout.inner, fill: "currentColor", fillOpacity: 0.08 };
      const svg = rowPlot(width, layout, x, [
        band ? Plot.rect([band], { x1: ([low]) => low, x2: ([, high]) => high, ...area }) : null,
        Number.isFinite(reference) ? Plot.ruleX([reference], { strokeOpacity: 0.6 }) : null,
        Plot.ruleX(goals, { x: "goal", ...around(7), strokeWidth: 2 }),
        ...marks,
        tip(placed, "x", (row) => [
          format(row.value, unit) + span(row, unit),
          Number.isFinite(row.goal) ? `goal: at most ${format(row.goal, unit)}` : "",
          row.verdict ?? "",
        ]),
      ]);
      // Where nothing has a goal or a verdict, there is one kind of mark and nothing to tell apart.
      const entries = groups.length === 1 && groups[0][0] === plain ? [] : groups.map(([look]) => look);
      if (goals.length > 0) entries.push({ words: "goal", tick: true });
      if (band) entries.push({ words: bandLabel ?? between(band, unit), band: true });
      const counts = groups.map(([look, members]) => `${look.words}: ${members.length}`).join("; ");
      const summary = `${plural(usable.length, "row")} ${range(usable, unit)}. By colour and symbol: ${counts}.`;
      return { nodes: [legend(entries), svg], summary };
    },

    distribution({ rows = [], unit }, width) {
      const usable = rows.filter((row) => row.samples?.length > 0).map((row) => {
        const sorted = d3.sort(row.samples);
        const [q1, q2, q3] = [0.25, 0.5, 0.75].map((part) => d3.quantileSorted(sorted, part));
        return { ...row, sorted, q1, q2, q3 };
      });
      if (usable.length === 0) return nothing;
      const everything = d3.sort(usable.flatMap((row) => row.sorted));
      // A few samples far out would squeeze all others into a line. What is slow is rarer and further out.
      const shown = [
        Math.min(d3.quantileSorted(everything, 0.01), ...usable.map((row) => row.q1)),
        Math.max(d3.quantileSorted(everything, 0.97), ...usable.map((row) => row.q3)),
      ];
      const [low, high] = axis(shown, {}).scale.domain;
      const isIn = (value) => value >= low && value <= high;
      const outside = (row) => row.sorted.filter((value) => !isIn(value)).length;
      const layout = place(usable, width, (row) => (outside(row) > 0 ? `${outside(row)} out` : ""));
      const x = axis(shown, { unit, count: tickCount(width, layout) });
      const samples = layout.rows.flatMap((row) => row.sorted.filter(isIn).map((value) => ({ value, y: row.y })));
      const blue = "var(--accent)";
      const middle = { x1: "q1", x2: "q3", ...around(6), fill: blue, fillOpacity: 0.14, stroke: blue };
      const svg = rowPlot(width, layout, x, [
        Plot.ruleX(samples, { x: "value", ...around(6), stroke: blue, strokeOpacity: 0.28 }),
        Plot.rect(layout.rows, middle),
        Plot.ruleX(layout.rows, { x: "q2", ...around(7), strokeWidth: 2.5 }),
        tip(layout.rows, "q2", (row) => [
          `half of ${plural(row.sorted.length, "sample")}: ${between([row.q1, row.q3], unit)}`,
          `all: ${between([row.sorted[0], row.sorted.at(-1)], unit)}`,
        ]),
      ]);
      const out = d3.sum(usable, outside);
      const words = out === 0
        ? `All ${plural(everything.length, "sample")} are shown.`
        : `Of ${plural(everything.length, "sample")}, ${out.toLocaleString("en-GB")} lie outside the range shown; ` +
          `“out” counts them by row. All lie within ${between(d3.extent(everything), unit)}.`;
      const summary = `${plural(usable.length, "row")}. ${words}`;
      return { nodes: [svg, note(words)], summary };
    },

    bars({ rows = [], unit, log }, width) {
      const usable = rows.filter((row) => Number.isFinite(row.value));
      if (usable.length === 0) return nothing;
      const layout = place(usable, width, (row) => format(row.value, unit));
      const values = usable.flatMap((row) => [row.value, row.limit]);
      const x = axis(values, { log, unit, zero: !log, count: tickCount(width, layout) });
      const placed = layout.rows.map((row) => ({ ...row, x: x.clamp(row.value) }));
      const limits = placed.filter((row) => Number.isFinite(row.limit));
      const isOver = (row) => Number.isFinite(row.limit) && row.value > row.limit;
      const colour = (row) => (isOver(row) ? bad : "var(--accent)");
      // The length of a bar says nothing on a logarithmic axis, which has no zero: there, a dot at the end of a line.
      const stem = { x1: x.scale.domain[0], x2: "x", stroke: colour, strokeOpacity: 0.5, strokeWidth: 1.5 };
      const shapes = log ? [
        Plot.ruleY(placed, { y: "y", ...stem }),
        Plot.dot(placed.filter((row) => !isOver(row)), { x: "x", y: "y", r: 4, fill: colour }),
        Plot.dot(placed.filter(isOver), { x: "x", y: "y", r: 4, fill: colour, symbol: d3.symbolDiamond }),
      ] : [
        Plot.rect(placed, { x1: 0, x2: "x", ...around(6), fill: colour }),
      ];
      const svg = rowPlot(width, layout, x, [
        ...shapes,
        // On a bar, the tick stands out by its edge.
        Plot.ruleX(limits, { x: "limit", ...around(8), stroke: "var(--paper)", strokeWidth: 5 }),
        Plot.ruleX(limits, { x: "limit", ...around(8), strokeWidth: 2 }),
        tip(placed, "x", (row) => [
          format(row.value, unit),
          Number.isFinite(row.limit) ? `limit ${format(row.limit, unit)}: ${isOver(row) ? "missed" : "met"}` : "",
        ]),
      ]);
      const over = usable.filter(isOver).length;
      const entries = limits.length > 0 ? [{ words: "limit", tick: true }] : [];
      const symbol = log ? d3.symbolDiamond : d3.symbolSquare;
      if (over > 0) entries.push({ words: "beyond its limit", colour: bad, symbol });
      const judged = limits.length > 0 ? `; ${over} of ${limits.length} beyond their limit` : "";
      const summary = `${plural(usable.length, "row")} ${range(usable, unit)}${judged}.`;
      return { nodes: [legend(entries), svg], summary };
    },

    percentiles({ series = [], x: names, unit, log }, width) {
      const points = series.flatMap(({ label, values, facet = "" }) =>
        values.map((value, at) => ({ value, x: names[at], where: [facet, names[at]], label, facet })))
        .filter((point) => Number.isFinite(point.value));
      if (points.length === 0) return nothing;
      const y = axis(points.map((point) => point.value), { log, unit, zero: !log });
      const scale = { type: "point", domain: names, padding: 0.25 };
      const x = { scale, ticks: names, text: (name) => name, tickSize: 0 };
      const panels = d3.groups(points, (point) => point.facet);
      const columns = Math.max(1, Math.min(panels.length, Math.floor((width + 24) / 290)));
      const each = Math.min(560, Math.floor((width - 24 * (columns - 1)) / columns));
      const looks = seriesLooks(points);
      const grid = element("div", { className: "multiples" });
      grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
      grid.append(...panels.map(([facet, members]) =>
        element("div", {}, facet ? element("h4", {}, facet) : "", linePlot(each, 240, x, y, members, looks))));
      const summary = `${[...looks.keys()].join(", ")}, by percentile: ${range(points, unit)}.`;
      return { nodes: [legend(looks.values()), grid], summary };
    },

    lines({ series = [], unit, xlabel = "", logx, logy }, width) {
      const points = series.flatMap(({ label, points: own }) =>
        own.map((point) => ({ at: point.x, value: point.y, where: [`${format(point.x)} ${xlabel}`], label })))
        .filter((point) => Number.isFinite(point.value) && Number.isFinite(point.at));
      if (points.length === 0) return nothing;
      const wide = Math.min(width, 760);
      const along = axis(points.map((point) => point.at), { log: logx, count: Math.floor(wide / 80) });
      const x = { ...along, label: xlabel };
      const y = axis(points.map((point) => point.value), { log: logy, unit, zero: !logy });
      const looks = seriesLooks(points);
      const placed = points.map((point) => ({ ...point, x: along.clamp(point.at) }));
      const svg = linePlot(wide, Math.min(360, wide * 0.7), x, y, placed, looks);
      const summary = `${[...looks.keys()].join(", ")}${xlabel && `, by ${xlabel}`}: ${range(points, unit)}.`;
      return { nodes: [legend(looks.values()), svg], summary };
    },

    history({ runs = [], benchmarks = [] }, width, state) {
      if (runs.length < 2) return "A history needs two runs or more, and there are fewer.";
      if (benchmarks.length === 0) return nothing;
      const chosen = benchmarks.find((one) => one.id === state.chosen) ?? benchmarks[0];
      const options = benchmarks.map((one) => element("option", { selected: one === chosen }, one.id));
      const select = element("select", {}, ...options);
      select.addEventListener("change", () => {
        state.chosen = select.value;
        draw(state);
      });
      const pick = element("p", { className: "pick" }, element("label", {}, "Benchmark ", select));
      const points = chosen.points.filter((point) => Number.isFinite(point?.value)).map((point) => {
        const { name, revision, date, machine } = runs[point.run];
        const where = [name, [revision, date].filter(Boolean).join(", "), machine];
        return { ...point, x: point.run, label: chosen.id, where };
      });
      if (points.length === 0) return { nodes: [pick, note("No run has this benchmark.")] };
      const values = points.flatMap((point) => [point.value, point.lower, point.upper]);
      const y = axis(values, { unit: chosen.unit });
      const ticks = d3.range(runs.length);
      const longest = Math.max(...runs.map((run) => textWidth(run.name)));
      const isSlanted = longest + 12 > (width - 90) / runs.length;
      const below = isSlanted ? 24 + Math.min(90, longest * 0.6) : 28;
      const scale = { type: "point", domain: ticks, padding: 0.4 };
      const turn = { tickSize: 0, tickRotate: isSlanted ? -35 : 0, marginBottom: below };
      const x = { scale, ticks, text: (run) => runs[run].name, ...turn };
      const svg = linePlot(width, 260 + below, x, y, points, seriesLooks(points));
      const summary = `${chosen.id}, in ${plural(points.length, "run")}: ${range(points, chosen.unit)}.`;
      return { nodes: [pick, svg], summary };
    },
  };

  /** Lines with a symbol at each point, and its interval where it has one. */
  function linePlot(width, height, x, y, points, looks) {
    const marginLeft = Math.ceil(Math.max(...y.ticks.map((tick) => textWidth(y.text(tick))))) + 14;
    const { scale, ticks, text, tickSize, tickRotate, label, marginBottom = label ? 42 : 28 } = x;
    const placed = points.map((point) => ({ ...point, y: y.clamp(point.value) }));
    const hasInterval = (point) => Number.isFinite(point.lower) && Number.isFinite(point.upper);
    const marks = d3.groups(placed, (point) => point.label).flatMap(([name, members]) => {
      const { colour: stroke, dash: strokeDasharray, symbol } = looks.get(name);
      const interval = { x: "x", y1: "lower", y2: "upper", stroke, strokeWidth: 5, strokeOpacity: 0.3 };
      return [
        Plot.ruleX(members.filter(hasInterval), interval),
        Plot.line(members, { x: "x", y: "y", stroke, strokeWidth: 1.75, strokeDasharray }),
        Plot.dot(members, { x: "x", y: "y", r: 4, symbol, fill: stroke, stroke }),
      ];
    });
    const describe = (point) => [point.label, ...point.where, format(point.value, y.unit) + span(point, y.unit)];
    const below = { text, tickSize, tickRotate, label: label || null, labelAnchor: "center", labelArrow: "none" };
    return Plot.plot({
      ...base, width, height, marginLeft, marginBottom, marginTop: 12, marginRight: 16,
      x: { ...scale, label: null }, y: y.scale,
      marks: [
        Plot.gridY(y.ticks, { strokeOpacity: 0.12 }),
        Plot.axisY(y.ticks, { text: y.text, tickSize: 0, label: null }),
        Plot.axisX(ticks, below),
        ...marks,
        tip(placed, "x", describe, Plot.pointer),
      ],
    });
  }

  // ---- Drawing

  const nothing = "There is nothing to draw here.";
  const note = (words) => element("p", { className: "note" }, words);

  /** What the filter leaves of a chart. A series counts as a benchmark only where it has an id. */
  function filtered(data) {
    const kept = { ...data };
    if (data.rows) kept.rows = data.rows.filter((row) => matches(row.label));
    if (data.series) kept.series = data.series.filter((one) => one.id === undefined || matches(one.id));
    if (data.benchmarks) kept.benchmarks = data.benchmarks.filter((one) => matches(one.id));
    return kept;
  }

  function draw(chart) {
    const { figure, data, drawing } = chart;
    const width = Math.floor(figure.clientWidth);
    if (width === 0) return;
    chart.width = width;
    const kind = Object.hasOwn(kinds, data?.kind ?? "") ? kinds[data.kind] : () => nothing;
    let result;
    try {
      const kept = filtered(data ?? {});
      const isEmptied = (list) => data?.[list]?.length > 0 && kept[list].length === 0;
      result = ["rows", "series", "benchmarks"].some(isEmptied)
        ? "No benchmark of this chart matches the filter." : kind(kept, width, chart);
    } catch (error) {
      console.warn(`the chart ${figure.dataset.chart} cannot be drawn`, error);
      result = "This chart cannot be drawn from the data of the report.";
    }
    if (typeof result === "string") {
      drawing.replaceChildren(note(result));
      return;
    }
    const focused = drawing.contains(document.activeElement);
    drawing.replaceChildren(...result.nodes.filter((node) => !node.matches(".legend:empty")));
    // A new drawing has a new selection, and whoever was in the old one stays there.
    if (focused) drawing.querySelector("select")?.focus();
    const caption = figure.querySelector("figcaption")?.textContent.trim() ?? "";
    const where = figure.closest("section")?.querySelector("table.data") ? " The data are in the table below." : "";
    for (const svg of all("svg:not(.legend svg)", drawing)) {
      const panel = svg.parentElement.querySelector("h4")?.textContent;
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", [caption, panel, result.summary].filter(Boolean).join(". ") + where);
    }
  }

  function setUpCharts() {
    const charts = JSON.parse(document.getElementById("charts").textContent).charts ?? {};
    const list = all("figure[data-chart]").map((figure) => {
      const drawing = element("div", { className: "drawing" });
      figure.append(drawing);
      return { figure, drawing, data: charts[figure.dataset.chart] };
    });
    const redraw = () => list.forEach(draw);
    redraw();
    const isStale = (chart) => Math.floor(chart.figure.clientWidth) !== chart.width;
    const observer = new ResizeObserver(debounced(() => list.filter(isStale).forEach(draw), 100));
    for (const { figure } of list) observer.observe(figure);
    return debounced(redraw, 150);
  }

  /** Marks the section that is being read. */
  function setUpNavigation() {
    const links = new Map(all(".side nav a[href^='#']").map((link) => [link.hash.slice(1), link]));
    const seen = new Set();
    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) seen[isIntersecting ? "add" : "delete"](target.id);
      const first = [...links.keys()].find((id) => seen.has(id));
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(first)?.setAttribute("aria-current", "true");
    }, { rootMargin: "-10% 0px -60% 0px" });
    for (const id of links.keys()) {
      const section = document.getElementById(id);
      if (section) observer.observe(section);
    }
  }

  tables.forEach(makeSortable);
  filterTables();
  setUpTheme();
  setUpNavigation();
  document.getElementById("tools").hidden = false;
  const redrawCharts = setUpCharts();
  document.getElementById("filter").addEventListener("input", (event) => {
    terms = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    filterTables();
    redrawCharts();
  });

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });
})();
