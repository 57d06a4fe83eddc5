() => {
  // Says aloud what changes on the page, and keeps the focus where a button was blocked under it: for people who
  // hear the page, or use it without a mouse.
  const told = document.createElement("div");
  told.id = "told";
  told.setAttribute("role", "status");
  document.body.append(told);
  const before = new WeakMap();
  let pressed = null;
  let lost = false; // the focus, while no button beside the blocked one could take it
  let planned = 0;

  const say = () => {
    const fresh = [...document.querySelectorAll(".status .md, .said")].filter((element) => {
      if (!element.checkVisibility()) return false; // in another tab, where it stays as it was
      const text = element.textContent.trim();
      const changed = before.get(element) !== text;
      before.set(element, text);
      return changed && text;
    });
    if (fresh.length) told.textContent = fresh.map((element) => element.textContent.trim()).join(" ");
  };

  const keepFocus = () => {
    if (document.activeElement !== document.body || !pressed?.isConnected) return;
    if (pressed.disabled) {
      const near = pressed.parentElement.querySelector("button:not(:disabled)");
      lost = !near;
      near?.focus({ preventScroll: true });
    } else if (lost) {
      pressed.focus({ preventScroll: true });
    }
  };

  for (const kind of ["focusin", "pointerdown"]) {
    document.addEventListener(kind, (event) => {
      pressed = event.target.closest("button");
      lost = false;
    });
  }
  const tell = () => {
    planned = 0;
    say();
    keepFocus();
  };
  new MutationObserver((changes) => {
    if (changes.every((change) => told.contains(change.target))) return;
    planned ||= setTimeout(tell, 400);
  }).observe(document.body, { childList: true, subtree: true, characterData: true, attributeFilter: ["disabled"] });
};
