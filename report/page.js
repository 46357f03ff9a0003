"use strict";

// Values under the pointer, or one epoch on with the arrow keys.
for (const svg of document.querySelectorAll(".chart")) {
  const series = JSON.parse(svg.dataset.series);
  const [low, high, left, right] = JSON.parse(svg.dataset.axis);
  const epochs = [...new Set(series.flatMap((one) => one.points.map((point) => point[0])))].sort((a, b) => a - b);
  const figure = svg.closest("figure");
  const values = figure.querySelector(".values");
  const cursor = svg.querySelector(".cursor");
  let chosen = epochs.length - 1;
  const show = (index) => {
    chosen = Math.max(0, Math.min(epochs.length - 1, index));
    const epoch = epochs[chosen];
    const at = left + ((epoch - low) / (high - low)) * (right - left);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    const lines = series.flatMap((one) =>
      one.points.filter((point) => point[0] === epoch).map((point) => `${one.name}  ${+point[1].toPrecision(4)}`));
    values.textContent = [`epoch ${epoch}`, ...lines].join("\n");
    values.classList.add("shown");
    const place = at * (svg.clientWidth / svg.viewBox.baseVal.width) + svg.offsetLeft;
    const room = figure.clientWidth - values.offsetWidth - 4;
    values.style.left = `${Math.max(4, Math.min(room, place + 12))}px`;
    values.style.top = `${svg.offsetTop + 8}px`;
  };
  const hide = () => {
    values.classList.remove("shown");
    cursor.setAttribute("x1", -9);
    cursor.setAttribute("x2", -9);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const epoch = low + ((at - left) / (right - left)) * (high - low);
    const distances = epochs.map((one) => Math.abs(one - epoch));
    show(distances.indexOf(Math.min(...distances)));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { show(chosen + step); event.preventDefault(); }
  });
}

// Tables are sorted by a click on a column; cells without a value come last.
for (const table of document.querySelectorAll(".sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const number = head.classList.contains("number");
      const up = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : !number;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value;
      const compare = (one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === "" || b === "") return (a === "") - (b === "");
        return (number ? a - b : a.localeCompare(b)) * (up ? 1 : -1);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

// Detections below the chosen score are hidden.
const slider = document.querySelector("#score");
if (slider) {
  const shown = document.querySelector("#score-value");
  const apply = () => {
    shown.textContent = Number(slider.value).toFixed(2);
    for (const region of document.querySelectorAll("[data-score]")) {
      region.classList.toggle("hidden", Number(region.dataset.score) < Number(slider.value));
    }
  };
  slider.addEventListener("input", apply);
  apply();
}

// A click on a picture shows it large.
const dialog = document.querySelector("dialog");
for (const picture of document.querySelectorAll(".picture")) {
  const open = () => { dialog.replaceChildren(picture.cloneNode(true)); dialog.showModal(); };
  picture.tabIndex = 0;
  picture.addEventListener("click", open);
  picture.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
}
if (dialog) dialog.addEventListener("click", () => dialog.close());
