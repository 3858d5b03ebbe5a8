// What Gradio's page lacks: after Run, its progress comes into view; names for screen readers; progress is announced.
(() => {
  "use strict";
  const RUNS = "button.run, button.go-on, [id$=examples] tbody tr";
  const ANNOUNCE_EVERY = 15000; // milliseconds between two announcements of the same phase
  const visible = (element) => element.offsetParent !== null;
  const every = (selector, root = document) => [...root.querySelectorAll(selector)];

  function showProgress(event) {
    if (!(event.target instanceof Element) || !event.target.closest(RUNS)) return;
    const frame = every(".frame").find(visible);
    if (!frame) return;
    const top = frame.getBoundingClientRect().top;
    if (top >= 0 && top < innerHeight * 0.6) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    frame.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
  }

  function fileName(url) {
    const name = url.split("?")[0].split("/").pop();
    try {
      return decodeURIComponent(name).replace(/\.\w+$/, "").replaceAll("-", " ");
    } catch {
      return name;
    }
  }

  function labelOf(element) {
    const label = element.closest(".block")?.querySelector("[data-testid=block-label]");
    return label ? label.textContent.trim() : "";
  }

  function set(element, name, value) {
    if (value && element.getAttribute(name) !== value) element.setAttribute(name, value);
  }

  function nameThings() {
    every("[id$=examples] img").forEach((image) => set(image, "alt", fileName(image.src)));
    every("[id$=examples] video").forEach((video) => set(video, "aria-label", fileName(video.src)));
    every(".result .content").forEach((pair) =>
      every("img", pair).forEach((image, place) => set(image, "alt", place ? "After" : "Before"))
    );
    every(".block img[alt='']:not([id$=examples] img)").forEach((image) => set(image, "alt", labelOf(image)));
    every("button.upload-container, .source-selection button").forEach((button) => {
      button.dataset.plain ||= button.getAttribute("aria-label") || button.title || "Upload a file";
      const label = labelOf(button);
      set(button, "aria-label", label ? `${label}: ${button.dataset.plain}` : button.dataset.plain);
    });
  }

  const announcer = document.createElement("div");
  announcer.className = "announcer";
  announcer.setAttribute("role", "status");
  announcer.setAttribute("aria-live", "polite");
  const said = { phase: "", text: "", at: 0 };

  function announce() {
    const status = every(".frame .status.prose, .frame .status .prose").find(visible);
    if (!status) return;
    const text = every("p", status).map((line) => line.textContent).join(" ");
    const phase = text.replace(/step \d+ of \d+.*$/, ""); // the same during a phase
    const now = Date.now();
    if (text === said.text || (phase === said.phase && now - said.at < ANNOUNCE_EVERY)) return;
    const first = !said.text;
    Object.assign(said, { phase, text, at: now });
    if (!first) announcer.textContent = text;
  }

  let due = false;
  const changed = new MutationObserver(() => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      nameThings();
      announce();
    });
  });

  function start() {
    document.body.append(announcer);
    document.addEventListener("click", showProgress);
    changed.observe(document.body, { childList: true, subtree: true, characterData: true });
    nameThings();
  }
  if (document.body) start();
  else addEventListener("DOMContentLoaded", start);
})();
