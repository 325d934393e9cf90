"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];
  // Colours on a white background, and their replacements in dark mode; other colours suit both.
  const ON_DARK = {
    "#222222": "#e8eaed", "#222": "#e8eaed", black: "#e8eaed", "#000000": "#e8eaed", "#2a3f5f": "#e8eaed", "#444": "#c3c9d1",
    "#ffffff": "#14171c", "#fff": "#14171c", white: "#14171c", "#5b6068": "#a9b1bb", "#506784": "#a9b1bb",
    "#e4e6ea": "#303640", "#ebf0f8": "#303640", "#c8d4e3": "#3d4550", "#d7dade": "#4a525d", "#0072b2": "#2b8fd6",
    "rgba(255, 255, 255, 0.8)": "rgba(20, 23, 28, 0.8)",
  };
  // CSS pixels: the width of A4 or Letter between its margins, and the width of a drawing for it.
  const PAPER = 680;
  const DRAWN = 860;
  // Below this width a figure takes the layout that it has for phones, if it has one.
  const NARROW = 600;
  const CONFIG = {
    displaylogo: false,
    // By default plotly offers to send the figure's data to its company.
    showSendToCloud: false,
    modeBarButtonsToRemove: ["zoom2d", "pan2d", "select2d", "lasso2d", "autoScale2d"],
  };

  // Only values of keys that end in "color": a question's option may be "white", too.
  function recoloured(value, key) {
    if (typeof value === "string") return (/color$/i.test(key) && ON_DARK[value.toLowerCase()]) || value;
    if (Array.isArray(value)) return typeof value[0] === "number" ? value : value.map((one) => recoloured(one, key));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, recoloured(one, /\.?([^.]+)$/.exec(name)?.[1] ?? name)]));
  }

  function library() {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly-code").textContent;
    document.head.append(script);
  }

  function themed(value, paper) {
    return dark.matches && !paper ? recoloured(value, "") : value;
  }

  function figureOf(plot) {
    plot.figure ??= JSON.parse(document.getElementById(`${plot.dataset.name}-data`).textContent);
    return plot.figure;
  }

  function merge(values, changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (value && typeof value === "object" && !Array.isArray(value) && values[name]) merge(values[name], value);
      else values[name] = value;
    }
  }

  function draw(plot, paper = false) {
    try {
      library();
      const { data, layout } = themed(structuredClone(figureOf(plot)), paper);
      if (!paper && layout.meta?.narrow && plot.parentElement.clientWidth < NARROW) {
        merge(layout, themed(structuredClone(layout.meta.narrow), paper));
        plot.style.minWidth = "0";
      } else plot.style.minWidth = "";
      // The page has buttons instead of plotly's own, which no keyboard can reach.
      delete layout.updatemenus;
      const size = paper ? { width: DRAWN, height: parseFloat(plot.style.height), autosize: false } : { autosize: true };
      // No zoom while plotly measures its texts.
      plot.style.zoom = "";
      const room = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
      window.Plotly.react(plot, data, { ...layout, ...room, ...size }, { ...CONFIG, responsive: !paper, toImageButtonOptions: { filename: plot.dataset.name } });
      if (paper) plot.style.zoom = PAPER / DRAWN;
      plot.dataset.drawn = paper ? "paper" : "screen";
      for (const [index, svg] of plot.querySelectorAll("svg.main-svg").entries()) {
        svg.setAttribute(...(index ? ["aria-hidden", "true"] : ["role", "img"]));
        if (!index) svg.setAttribute("aria-label", plot.dataset.text);
      }
      dispatchEvent(new Event("drawn"));
      for (const [menu, button] of Object.entries(plot.chosen ?? {})) press(plot, menu, button, paper);
    } catch (error) {
      console.error(error);
      plot.innerHTML = '<p class="failed">This figure could not be drawn. Its caption and its table are below.</p>';
    }
  }

  function press(plot, menu, index, paper = false) {
    const { method, args } = figureOf(plot).layout.updatemenus[menu].buttons[index];
    if (method === "skip" || !args) return;
    // plotly keeps and changes its arguments.
    window.Plotly[method](plot, ...themed(structuredClone(args), paper));
  }

  function drawOnce(plot) {
    if (!plot.dataset.drawn) draw(plot);
  }

  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        drawOnce(target);
      }
    },
    { rootMargin: "800px 0px" },
  );
  // After two frames, so that the first screen is visible before plotly's code is parsed.
  requestAnimationFrame(() => requestAnimationFrame(() => plots.forEach((plot) => near.observe(plot))));

  for (const button of document.querySelectorAll("[data-menu]")) {
    button.addEventListener("click", () => {
      const plot = document.getElementById(button.dataset.plot);
      drawOnce(plot);
      plot.chosen = { ...plot.chosen, [button.dataset.menu]: button.dataset.button };
      press(plot, button.dataset.menu, button.dataset.button);
      for (const one of button.parentElement.children) one.setAttribute("aria-pressed", String(one === button));
    });
  }

  dark.addEventListener("change", () => plots.filter((plot) => plot.dataset.drawn).forEach((plot) => draw(plot)));
  addEventListener("beforeprint", () => plots.forEach((plot) => draw(plot, true)));
  addEventListener("afterprint", () => plots.forEach((plot) => draw(plot)));
})();
