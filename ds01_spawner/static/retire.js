// A button on one of the hub's own pages was pressed in this tab: nothing is asked where nothing would be lost.  Another
// site can lead here but cannot leave the mark, and the back button finds it gone.
"use strict";
(() => {
  const form = document.getElementById("retire");
  const button = form.querySelector("button");
  form.addEventListener("submit", () => {
    window.setTimeout(() => {
      button.disabled = true;
      button.textContent = "Retiring…";
    });
  });
  let pressed = null;
  try {
    pressed = sessionStorage.getItem("ds01-retire");
    sessionStorage.removeItem("ds01-retire");
  } catch {
    // storage may be forbidden; the button below is then pressed by hand
  }
  if (pressed === form.elements.project.value && form.dataset.asks === "0") form.requestSubmit();
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) window.location.reload();
  });
})();
