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
})();
