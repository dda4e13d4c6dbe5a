// Light or dark, as the hub's own pages remember it.
"use strict";
(() => {
  const key = "jupyterhub-bs-theme";
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try {
      return localStorage.getItem(key);
    } catch {
      return null; // storage may be forbidden; the system's choice is then all there is
    }
  };
  const show = () => document.documentElement.setAttribute("data-bs-theme", chosen() || (dark.matches ? "dark" : "light"));
  show();
  dark.addEventListener("change", show);
  document.addEventListener("DOMContentLoaded", () => {
    const toggle = document.getElementById("theme-toggle");
    if (!toggle) return;
    toggle.hidden = false;
    toggle.addEventListener("click", () => {
      const next = document.documentElement.getAttribute("data-bs-theme") === "dark" ? "light" : "dark";
      try {
        localStorage.setItem(key, next);
      } catch {
        // then it lasts until the page is left
      }
      document.documentElement.setAttribute("data-bs-theme", next);
    });
  });
})();
