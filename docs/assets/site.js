// The theme puts wide tables into boxes that scroll, some time after the page has loaded; a keyboard reaches them, too.
const reach = () => {
  document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach((box) => {
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Table");
  });
};
new MutationObserver(reach).observe(document.body, { childList: true, subtree: true });
reach();
