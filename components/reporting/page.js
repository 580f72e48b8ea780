// What the report's page does beyond showing results: it sorts tables, and draws the map of the photos.
"use strict";

// A click on a column head sorts the rows, best first, then worst first, then as they were. Cells without a value stay last.
function makeSortable(table) {
  const [head, ...rows] = table.rows;
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.matches(".name") ? cell.firstChild.textContent : parseFloat(cell.textContent);
  };
  const sorted = (column, order) => {
    const sign = order === "ascending" ? 1 : -1;
    return [...rows].sort((one, other) => {
      const [a, b] = [value(one, column), value(other, column)];
      if (typeof a === "string") return sign * a.localeCompare(b, undefined, {numeric: true});
      return Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : sign * (a - b);
    });
  };
  [...head.cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.append(...cell.childNodes);
    cell.append(button);
    const orders = rows.length && rows[0].cells[column].matches(".name") ? ["ascending", "descending"] : ["descending", "ascending"];
    button.addEventListener("click", () => {
      const order = orders[orders.indexOf(cell.ariaSort) + 1];
      for (const other of head.cells) other.ariaSort = null;
      cell.ariaSort = order ?? null;
      head.after(...(order ? sorted(column, order) : rows));
    });
  });
}

// On light and on dark paper each has a contrast of at least 3.5; classes beyond these have the second symbol.
const COLORS = ["#2a8f8c", "#d1583b", "#7476c9", "#a97f00", "#4b934b", "#b65aab", "#3b82c4", "#996a4a", "#7a7f68", "#d6548a"];
const SYMBOLS = ["circle", "diamond"];
const SHOWN = 40; // photos of a selection

function drawMap(section, map) {
  const [plot, legend, tip, selection] = [".plot", ".legend", ".tip", ".selection"].map((name) => section.querySelector(name));
  const names = map.groups.length ? map.groups : [""];
  const look = (group) => ({color: COLORS[group % COLORS.length], symbol: SYMBOLS[Math.floor(group / COLORS.length) % 2], size: 7, opacity: 0.8});
  const points = names.map((_, group) => map.x.flatMap((_, point) => (map.group[point] === group ? [point] : [])));
  const traces = points.map((chosen, group) => ({
    type: "scatter", mode: "markers", hoverinfo: "none", marker: look(group), customdata: chosen,
    x: chosen.map((point) => map.x[point]), y: chosen.map((point) => map.y[point]),
  }));

  const photo = (point, scale) => {
    const image = document.createElement("i");
    const [row, column] = [Math.floor(point / map.columns), point % map.columns].map((place) => -place * map.side * scale);
    image.style.cssText = `width:${map.side * scale}px;height:${map.side * scale}px;background-position:${column}px ${row}px;`
      + `background-size:${map.columns * map.side * scale}px auto`;
    const caption = document.createElement("figcaption");
    caption.textContent = map.label[point] || map.path[point];
    const figure = document.createElement("figure");
    figure.title = map.path[point];
    figure.append(image, caption);
    return figure;
  };
  const rule = document.createElement("style"); // once for all photos
  rule.textContent = `.map figure i { background-image: url("${map.sprite}"); }`;
  document.head.append(rule);

  const theme = () => {
    const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const axis = {color: color("--soft"), linecolor: color("--line"), mirror: true, showgrid: false, zeroline: false, showticklabels: false};
    return {
      paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: {color: color("--ink"), family: getComputedStyle(section).fontFamily, size: 12},
      modebar: {bgcolor: "transparent", color: color("--soft"), activecolor: color("--accent")},
      newselection: {line: {color: color("--ink"), width: 1, dash: "dot"}},
      xaxis: {...axis, title: {text: "1st direction"}}, yaxis: {...axis, title: {text: "2nd direction"}, scaleanchor: "x"},
    };
  };
  const layout = () => ({
    ...theme(), showlegend: false, hovermode: "closest", clickmode: "event+select", margin: {l: 30, r: 8, t: 34, b: 30},
    height: section.clientWidth < 600 ? 360 : 520, dragmode: matchMedia("(pointer: coarse)").matches ? false : "select", // a finger scrolls the page
  });
  const config = {
    responsive: true, displaylogo: false, displayModeBar: true, plotlyServerURL: "", showSendToCloud: false,
    modeBarButtons: [["select2d", "lasso2d", "zoom2d", "pan2d"], ["resetScale2d"]],
  };
  Plotly.newPlot(plot, traces, layout(), config);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Plotly.update(plot, {}, theme()));

  plot.on("plotly_hover", ({points: [first], event}) => {
    const box = section.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const beside = (place, size) => (place > size / 2 ? "calc(-100% - 12px)" : "12px");
    tip.replaceChildren(photo(first.customdata, 2));
    tip.style.cssText = `left:${x}px;top:${y}px;transform:translate(${beside(x, box.width)},${beside(y, plot.clientHeight)})`;
    tip.hidden = false;
  });
  plot.on("plotly_unhover", () => { tip.hidden = true; });

  const show = (chosen) => {
    const counts = names.map((name, group) => [name, chosen.filter((point) => map.group[point] === group).length]);
    const frequent = counts.filter(([, count]) => count).sort((one, other) => other[1] - one[1]);
    const more = frequent.slice(5).reduce((sum, [, count]) => sum + count, 0);
    const parts = [...frequent.slice(0, 5).map(([name, count]) => `${count} ${name}`), ...(more ? [`${more} more`] : [])];
    const words = map.groups.length ? `: ${parts.join(", ")}` : "";
    const some = chosen.length > SHOWN ? ` ${SHOWN} of them, evenly chosen:` : "";
    selection.querySelector("p").textContent = chosen.length ? `${chosen.length} photo${chosen.length === 1 ? "" : "s"} selected${words}.${some}` : "";
    const evenly = Array.from({length: Math.min(SHOWN, chosen.length)}, (_, place) => chosen[Math.floor((place * chosen.length) / Math.min(SHOWN, chosen.length))]);
    selection.querySelector(".cards").replaceChildren(...evenly.map((point) => photo(point, 1.5)));
  };
  plot.on("plotly_selected", (event) => show((event?.points ?? []).map((point) => point.customdata)));
  plot.on("plotly_deselect", () => show([]));

  // A legend of our own: plotly's does not wrap on a phone, and reads names of classes as markup.
  const visible = names.map(() => true);
  const buttons = map.groups.map((name, group) => {
    const button = document.createElement("button");
    const mark = document.createElement("i");
    mark.className = look(group).symbol;
    mark.style.background = look(group).color;
    button.append(mark, name);
    button.addEventListener("click", () => toggle(() => { visible[group] = !visible[group]; }));
    button.addEventListener("dblclick", () => toggle(() => {
      const alone = visible.every((is, other) => is === (other === group));
      visible.forEach((_, other) => { visible[other] = alone || other === group; });
    }));
    return button;
  });
  const toggle = (change) => {
    change();
    buttons.forEach((button, group) => { button.ariaPressed = String(visible[group]); });
    Plotly.restyle(plot, {visible: [...visible]});
  };
  buttons.forEach((button) => { button.ariaPressed = "true"; });
  legend.append(...buttons);
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
const mapData = document.getElementById("map-data");
if (mapData) drawMap(mapData.closest(".map"), JSON.parse(mapData.textContent));
