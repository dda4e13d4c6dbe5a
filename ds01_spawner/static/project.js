"use strict";
(() => {
  const live = document.getElementById("live");
  const follow = () => live.querySelectorAll("[data-follow]").forEach((log) => { log.scrollTop = log.scrollHeight; });
  const isBuilding = () => document.getElementById("building").dataset.is === "1";
  let was = isBuilding();
  // A build that ends may have made the first image: only then does the list of tags change by itself.
  const freshTags = async () => {
    const tags = document.getElementById("tags");
    const answer = await fetch(tags.dataset.part, { headers: { "X-XSRFToken": document.body.dataset.xsrf } });
    if (answer.ok && !tags.contains(document.activeElement)) tags.innerHTML = await answer.text();
  };
  follow();
  window.ds01Refresh(live, {
    onPart: () => {
      follow();
      if (was && !isBuilding()) freshTags();
      was = isBuilding();
    },
  });
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (!button) return;
    window.setTimeout(() => { button.disabled = true; });
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) window.location.reload();
  });
})();
