() => {
  // Announces what changes on the page, and keeps the focus when the focused button is blocked: for people who hear the
  // page, or use it without a mouse.
  const announcer = document.createElement("div");
  announcer.id = "announcer";
  announcer.setAttribute("role", "status");
  document.body.append(announcer);
  const before = new WeakMap();
  let pressed = null;
  let lost = false; // the focus, while no button beside the blocked one could take it
  let timer = 0;

  const announce = () => {
    const texts = [...document.querySelectorAll(".status .md, .announced")].flatMap((element) => {
      if (!element.checkVisibility()) return []; // in another tab, where it has not changed
      const text = element.textContent.trim();
      const changed = before.get(element) !== text;
      before.set(element, text);
      return changed && text ? [text] : [];
    });
    if (texts.length) announcer.textContent = texts.join(" ");
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
  const update = () => {
    timer = 0;
    announce();
    keepFocus();
  };
  new MutationObserver((changes) => {
    if (changes.every((change) => announcer.contains(change.target))) return;
    timer ||= setTimeout(update, 400);
  }).observe(document.body, { childList: true, subtree: true, characterData: true, attributeFilter: ["disabled"] });
};
