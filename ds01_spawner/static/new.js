// A second press would only ask a second time for a name that is taken by then.
"use strict";
document.getElementById("new-project").addEventListener("submit", (event) => {
  const button = event.target.querySelector("button[type=submit]");
  window.setTimeout(() => {
    button.disabled = true;
    button.textContent = event.target.elements.repository.value ? "Cloning, for five minutes at most…" : "Creating…";
  });
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload();
});
