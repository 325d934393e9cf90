"use strict";
(() => {
  const frames = [...document.querySelectorAll(".wide, .scroll, .sheet, .film")];
  // What is wider than the screen says so, and can be scrolled with the arrow keys.
  function letThemMove() {
    for (const frame of frames) {
      const moves = frame.scrollWidth > frame.clientWidth + 1;
      frame.toggleAttribute("data-moves", moves);
      if (frame.matches(".wide")) {
        if (moves) frame.tabIndex = 0;
        else frame.removeAttribute("tabindex");
      }
    }
  }
  for (const event of ["resize", "drawn", "load"]) addEventListener(event, letThemMove);
  document.addEventListener("toggle", letThemMove, true);
  letThemMove();
})();
