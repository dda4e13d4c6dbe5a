// Keeps one part of a page fresh: asks for its HTML again and again, and says so when nobody answers.
"use strict";
window.ds01Refresh = (element, { onPart } = {}) => {
  const stale = document.getElementById("stale");
  let shown = element.innerHTML;
  let wait = Number(element.dataset.poll) || 5000;
  let failures = 0;
  const ask = async () => {
    try {
      const answer = await fetch(element.dataset.part, {
        headers: { "X-XSRFToken": document.body.dataset.xsrf },
        redirect: "manual",
      });
      if (answer.type === "opaqueredirect" || answer.status === 403) {
        window.location.reload(); // the login ended; a page can go through it, a script cannot
        return;
      }
      if (!answer.ok) throw new Error(String(answer.status));
      const html = await answer.text();
      wait = Number(answer.headers.get("X-Poll-Milliseconds")) || wait;
      failures = 0;
      if (stale) stale.hidden = true;
      if (html !== shown) {
        const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
        element.innerHTML = shown = html;
        if (focused) document.getElementById(focused)?.focus();
      }
      if (onPart?.(answer) === "stop") return;
    } catch {
      failures += 1;
      if (stale && failures > 1) stale.hidden = false;
    }
    schedule();
  };
  let timer = 0;
  const schedule = () => {
    window.clearTimeout(timer);
    // Nobody looks at a hidden page; it is brought up to date when it is shown again.
    if (!document.hidden) timer = window.setTimeout(ask, wait * Math.min(1 + failures, 6));
  };
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) ask();
  });
  schedule();
};
