// Asks for the same page again and again, and changes only what has changed: focus, scrolling, open
// details and half-filled forms stay. Without it, everything on the page works by reloading.
"use strict";
(() => {
  const gone = document.getElementById("unreachable");
  const every = Number(document.body.dataset.live);
  let etag = "", ahead = 0, seen = new Date(), isAsking = false;

  // By its attribute: a form with a field that is called id answers with that field.
  const key = (node) => (node.nodeType === 1 && (node.dataset.key || node.getAttribute("id"))) || "";

  function morph(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || key(old) !== key(fresh)) {
      old.replaceWith(fresh);
      return;
    }
    if (old.nodeType !== 1) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "open" && name !== "disabled") old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    children(old, fresh);
  }

  function children(old, fresh) {
    const known = new Map([...old.childNodes].filter(key).map((node) => [key(node), node]));
    const wanted = new Set([...fresh.childNodes].map(key).filter(Boolean));
    let at = old.firstChild;
    const drop = () => {
      const after = at.nextSibling;
      at.remove();
      at = after;
    };
    for (const next of [...fresh.childNodes]) {
      const same = known.get(key(next));
      // What is gone makes room, so that what stays need not be moved: moving takes the focus away.
      while (same && at && at !== same && !wanted.has(key(at))) drop();
      if (same && same !== at) {
        old.insertBefore(same, at);
        morph(same, next);
      } else if (at && (same || !key(at))) {
        const after = at.nextSibling;
        morph(at, next);
        at = after;
      } else {
        old.insertBefore(next, at);
      }
    }
    while (at) drop();
  }

  function ago() {
    const now = Date.now() + ahead;
    for (const time of document.querySelectorAll("time[data-ago]")) {
      const seconds = Math.max(0, Math.round((now - Date.parse(time.dateTime)) / 1000));
      const [size, unit] = seconds < 90 ? [1, "s"] : seconds < 5400 ? [60, "min"] : seconds < 172800 ? [3600, "h"] : [86400, "d"];
      const told = `${Math.floor(seconds / size)} ${unit} ago`;
      if (time.textContent !== told) {
        time.title = `${time.dateTime.slice(0, 19).replace("T", " ")} UTC`;
        time.textContent = told;
      }
    }
  }

  function reachable(isThere) {
    if (isThere) seen = new Date();
    if (gone.hidden === isThere) return;
    gone.querySelector("time").textContent = seen.toLocaleTimeString();
    gone.hidden = isThere;
  }

  async function look() {
    if (isAsking || document.visibilityState !== "visible") return;
    isAsking = true;
    try {
      const headers = etag ? { "If-None-Match": etag } : {};
      const answer = await fetch(location.href, { headers, cache: "no-store", credentials: "same-origin" });
      ahead = Date.parse(answer.headers.get("Date")) - Date.now() || 0;
      reachable(answer.status < 500);
      if (answer.status === 401) location.reload();
      if (answer.status === 200) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        etag = answer.headers.get("ETag") || "";
        for (const id of ["nav", "main"]) morph(document.getElementById(id), fresh.getElementById(id));
        document.title = fresh.title;
        ago();
      }
    } catch {
      reachable(false);
    } finally {
      isAsking = false;
    }
  }

  // A second click orders nothing twice.
  document.addEventListener("submit", (event) => setTimeout(() => {
    for (const button of event.target.querySelectorAll("button")) button.disabled = true;
  }));
  addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("button[disabled]")) button.disabled = false;
  });
  ago();
  setInterval(ago, 1000);
  if (every) {
    setInterval(look, every);
    document.addEventListener("visibilitychange", look);
  }
})();
