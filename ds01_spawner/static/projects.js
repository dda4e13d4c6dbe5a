"use strict";
window.ds01Refresh(document.getElementById("rows"));
// A second click on a button that already works on it would only ask a second time.
document.addEventListener("submit", (event) => {
  const button = event.target.querySelector("button[type=submit]");
  if (!button) return;
  window.setTimeout(() => {
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
  });
});
window.addEventListener("pageshow", (event) => {
  // Back from another page: what the browser kept is old.
  if (event.persisted) window.location.reload();
});
