/* What CSS alone cannot do: find formulas wider than the page, keep the focus, unfold for paper. */
(() => {
  "use strict";

  // A formula wider than the text scrolls in a box of its own, and a box that scrolls must be a
  // stop of the Tab key, or a reader without a mouse never sees its end. All is measured before
  // anything is changed: a page of hundreds of formulas is then laid out once, not once for each.
  function roomFor(holder) {
    let block = holder.parentElement;
    while (getComputedStyle(block).display === "inline") block = block.parentElement;
    const style = getComputedStyle(block);
    return block.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  }

  function fitFormulas(where) {
    const formulas = [...where.querySelectorAll("mjx-container")];
    for (const one of formulas) one.parentElement.classList.remove("wide");
    const wide = formulas.map((one) => {
      const holder = one.parentElement;
      if (!holder.matches("span.math")) return one.scrollWidth > one.clientWidth + 1;
      const room = roomFor(holder);
      return room > 0 && one.getBoundingClientRect().width > room + 1;
    });
    formulas.forEach((one, index) => {
      one.parentElement.classList.toggle("wide", wide[index]);
      if (wide[index]) one.setAttribute("tabindex", "0");
      else one.removeAttribute("tabindex");
    });
  }

  async function fitPage() {
    if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise;
    for (const article of document.querySelectorAll(".bd-article")) fitFormulas(article);
  }

  document.addEventListener("DOMContentLoaded", fitPage);
  // A formula in a folded box has no size until the box is open.
  document.addEventListener("toggle", (event) => fitFormulas(event.target), true);
  let timer;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(fitPage, 200);
  });

  // The theme takes the focus off its switch, which throws a reader with a keyboard back to the
  // top of the page. A click without a pointer has no detail.
  document.addEventListener("click", (event) => {
    if (event.detail === 0) event.target.closest(".theme-switch-button")?.focus();
  });

  // On paper nothing unfolds or scrolls, and the ground is white. Hidden code stays hidden.
  const PAPER = 780; // width in px, at the size of type on the screen, that fits an A4 page
  let restore = [];
  window.addEventListener("beforeprint", () => {
    const root = document.documentElement;
    const theme = root.dataset.theme;
    root.dataset.theme = "light";
    restore = [() => (root.dataset.theme = theme)];
    for (const box of document.querySelectorAll(".bd-article details:not([open], .hide)")) {
      box.open = true;
      restore.push(() => (box.open = false));
    }
    for (const formula of document.querySelectorAll(".bd-article div.math > mjx-container")) {
      if (formula.scrollWidth <= PAPER) continue;
      const size = formula.style.fontSize;
      formula.style.fontSize = `${(parseFloat(size) * PAPER) / formula.scrollWidth}%`;
      restore.push(() => (formula.style.fontSize = size));
    }
  });
  window.addEventListener("afterprint", () => restore.splice(0).forEach((undo) => undo()));
})();
