"use strict";
(() => {
  async function copy(element) {
    try {
      await navigator.clipboard.writeText(element.textContent);
      return true;
    } catch {
      // A sandboxed frame has no clipboard; selected text can still be copied by a keystroke.
      const details = element.closest("details");
      if (details) details.open = true;
      getSelection().selectAllChildren(element);
      return document.execCommand("copy");
    }
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    const label = button.textContent;
    button.addEventListener("click", async () => {
      const copied = await copy(document.getElementById(button.dataset.copy));
      document.getElementById("report-status").textContent = copied ? "Copied." : "Selected: press Ctrl+C to copy.";
      button.textContent = copied ? "Copied" : "Selected: press Ctrl+C";
      setTimeout(() => { button.textContent = label; }, 2500);
    });
  }

  // A link into a folded part unfolds it.
  function unfold() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const folded = [];
    for (let one = target.closest("details"); one; one = one.parentElement.closest("details")) folded.push(one);
    if (!folded.some((one) => !one.open)) return;
    for (const one of folded) one.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", unfold);
  unfold();

  const contents = document.querySelector(".contents details");
  contents.addEventListener("click", (event) => {
    if (event.target.closest("a")) contents.open = false;
  });
  contents.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    contents.open = false;
    contents.querySelector("summary").focus();
  });
  contents.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !contents.contains(event.relatedTarget)) contents.open = false;
  });

  // Filters and order of a table, which is whole without them.
  for (const controls of document.querySelectorAll("[data-controls]")) {
    const body = document.getElementById(controls.dataset.controls).tBodies[0];
    const rows = [...body.rows];
    const filters = [...controls.querySelectorAll("[data-filter]")];
    const order = controls.querySelector("[data-sort]");
    const number = (row, name) => Number(row.getAttribute(`data-${name}`) ?? -Infinity);
    const text = (row) => row.dataset.question;

    function update() {
      let shown = 0;
      for (const row of rows) {
        row.hidden = filters.some(({ value, dataset }) => value && row.getAttribute(`data-${dataset.filter}`) !== value);
        shown += !row.hidden;
      }
      const compare = order.value === "question"
        ? (one, other) => text(one).localeCompare(text(other), undefined, { numeric: true })
        : (one, other) => number(other, order.value) - number(one, order.value) || 0;
      body.append(...[...rows].sort(compare));
      controls.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
    }

    controls.hidden = false;
    controls.addEventListener("change", update);
    controls.querySelector("button").addEventListener("click", () => {
      for (const select of controls.querySelectorAll("select")) select.selectedIndex = 0;
      update();
    });
    update();
  }
})();
