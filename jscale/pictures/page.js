"use strict";
// Two comforts: the measure of the horizontal axis is chosen, and values are read off the curves.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const measures = { step: "step", tokens: "tokens", seconds: "s" };
  document.documentElement.classList.add("scripted");

  const buttons = document.querySelectorAll(".choice button");
  for (const button of buttons)
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      for (const part of document.querySelectorAll("[data-x]")) part.hidden = part.dataset.x !== button.value;
    });

  const nearest = (places, x) => {
    let low = 0, high = places.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] <= x) low = middle; else high = middle;
    }
    return Math.abs(places[low] - x) <= Math.abs(places[high] - x) ? low : high;
  };
  const readable = (value) => {
    const number = Number(value);
    if (!Number.isFinite(number)) return String(value);
    const size = Math.abs(number);
    return size >= 1e-3 && size < 1e6 || size === 0 ? String(+number.toPrecision(5)) : number.toExponential(3);
  };
  const draw = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const name in attributes) node.setAttribute(name, attributes[name]);
    return node;
  };

  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const curves = data.charts[figure.dataset.chart];
    const readout = document.createElement("div");
    readout.className = "readout";
    readout.hidden = true;
    readout.setAttribute("role", "status");
    figure.append(readout);
    let shown = null;
    const hide = () => { readout.hidden = true; if (shown) shown.remove(); shown = null; };

    const show = (svg, x) => {
      const frame = svg.querySelector("[data-frame]");
      const [left, top, right, bottom, first, last] = frame.dataset.frame.split(" ").map(Number);
      const kind = svg.closest("[data-x]").dataset.x;
      const wanted = first + (x - left) / (right - left) * (last - first);
      const lines = [];
      let place = null;
      for (const curve of curves) {
        const series = data.runs[curve.run].series[curve.name];
        if (!series || !series[kind] || !series[kind].length) continue;
        const at = nearest(series[kind], wanted);
        if (place === null || Math.abs(series[kind][at] - wanted) < Math.abs(place - wanted)) place = series[kind][at];
        lines.push([curve.label, series.value[at], series[kind][at]]);
      }
      if (place === null) return;
      const head = document.createElement("div");
      head.textContent = (kind === "step" ? "step " : "") + place.toLocaleString("en") + (kind === "step" ? "" : " " + measures[kind]);
      readout.replaceChildren(head, ...lines.map(([label, value, at]) => {
        const line = document.createElement("div");
        line.textContent = (lines.length > 1 ? label + "  " : "") + readable(value) + (at === place ? "" : "  (at " + at.toLocaleString("en") + ")");
        return line;
      }));
      hide();
      const px = left + (place - first) / ((last - first) || 1) * (right - left);
      shown = draw("path", { class: "cursor", d: `M${px} ${top}V${bottom}` });
      frame.append(shown);
      readout.hidden = false;
      const box = svg.getBoundingClientRect(), from = figure.getBoundingClientRect();
      const where = box.left - from.left + px / svg.viewBox.baseVal.width * box.width;
      const room = from.width - readout.offsetWidth;
      readout.style.left = Math.max(0, Math.min(room, where < from.width / 2 ? where + 10 : where - readout.offsetWidth - 10)) + "px";
      figure.dataset.at = String(px);
    };
    const visible = () => [...figure.querySelectorAll("svg")].find((svg) => svg.getBoundingClientRect().width > 0);
    figure.addEventListener("pointermove", (event) => {
      const svg = visible();
      if (!svg) return;
      const box = svg.getBoundingClientRect();
      show(svg, (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width);
    });
    figure.addEventListener("pointerleave", hide);
    figure.addEventListener("blur", hide);
    figure.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key], svg = visible();
      if (!way || !svg) return;
      event.preventDefault();
      show(svg, Number(figure.dataset.at || 0) + way * 6);
    });
  }
})();
