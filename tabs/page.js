() => {
  // Says aloud what changes on the page, and keeps the focus where a button was blocked under it: for people who
  // hear the page, or use it without a mouse.
  const told = document.createElement("div");
  told.id = "told";
  told.setAttribute("role", "status");
  document.body.append(told);
  const before = new Map();
  let pressed = null;
  let planned = 0;

  const tell = () => {
    planned = 0;
    const there = [...document.querySelectorAll(".status, .answer")];
    const fresh = there.filter((element) => element.innerText.trim() && before.get(element) !== element.innerText);
    before.clear();
    there.forEach((element) => before.set(element, element.innerText));
    if (fresh.length) told.textContent = fresh.map((element) => element.innerText.trim()).join(" ");
    if (document.activeElement === document.body && pressed?.disabled) {
      const near = pressed.parentElement?.querySelector("button:not(:disabled)");
      near?.focus();
    }
  };

  document.addEventListener("focusin", (event) => {
    pressed = event.target.closest("button");
  });
  new MutationObserver((changes) => {
    if (changes.every((change) => told.contains(change.target))) return;
    planned ||= setTimeout(tell, 400);
  }).observe(document.body, { childList: true, subtree: true, characterData: true, attributeFilter: ["disabled"] });
};
