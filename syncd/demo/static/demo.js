// Sends a form without leaving the page, so that what is watched stays where it is. Whatever does not go
// that way is sent as forms are, and answered with a page.
"use strict";
(() => {
  const settle = (form) => {
    for (const field of form.elements) {
      if (field.type !== "hidden" && "defaultValue" in field) field.defaultValue = field.value;
      for (const option of field.options || []) option.defaultSelected = option.selected;
    }
    // From now on the field shows what its system holds.
    form.reset();
    setTimeout(() => {
      for (const button of form.querySelectorAll("button")) button.disabled = false;
    });
    const details = form.closest("details");
    if (details) details.open = false;
  };

  document.addEventListener("submit", async (event) => {
    const form = event.target;
    if (form.method !== "post") return;
    event.preventDefault();
    try {
      const body = new URLSearchParams(new FormData(form));
      const answer = await fetch(form.action, { method: "POST", body, redirect: "manual" });
      if (answer.type !== "opaqueredirect") throw new Error(answer.status);
    } catch {
      form.submit();
      return;
    }
    settle(form);
    // What asks for news asks now.
    document.dispatchEvent(new Event("visibilitychange"));
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches(".half select")) event.target.form.requestSubmit();
  });
})();
