// Typeset what arithmatex marks as a formula. The site has no instant loading, so once
// a page is enough.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const source = element.textContent.trim();
    const display = source.startsWith("\\[");
    const formula = source.slice(2, -2);
    katex.render(formula, element, { displayMode: display, throwOnError: false });
  }
});
