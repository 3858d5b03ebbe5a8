// What Gradio's page lacks: after Run, its progress comes into view; names for screen readers; progress is announced.
(() => {
  "use strict";
  const RUNS = "button.run, button.go-on, [id$=examples] :is(tbody tr, button)";
  const SLIDER = "[data-testid=slider]"; // of an image slider
  const SLIDES = { ArrowLeft: -0.05, ArrowRight: 0.05, Home: -1, End: 1 }; // shares of its width
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

  /** The upload button below an empty image opens the file dialogue. By itself it only selects the source. */
  function chooseFile(event) {
    const button = event.target instanceof Element && event.target.closest(".source-selection button:first-of-type");
    if (button) button.closest(".block")?.querySelector("input[type=file]")?.click();
  }

  /** Moves an image slider by keyboard. It listens to the mouse only, so this is a short drag. */
  function slide(event) {
    const handle = event.target instanceof Element && event.target.closest(SLIDER);
    if (!handle || !(event.key in SLIDES)) return;
    event.preventDefault();
    const [frame, at] = [handle.parentElement.getBoundingClientRect(), handle.getBoundingClientRect()];
    const [x, clientY] = [at.x + at.width / 2, at.y + at.height / 2];
    const to = Math.max(frame.left, Math.min(frame.right, x + SLIDES[event.key] * frame.width));
    const drag = (type, target, clientX) =>
      target.dispatchEvent(new MouseEvent(type, { bubbles: true, cancelable: true, view: window, clientX, clientY }));
    drag("mousedown", handle, x);
    drag("mousemove", window, to);
    drag("mouseup", window, to);
    requestAnimationFrame(() => nameSlider(handle));
  }

  function nameSlider(handle) {
    const [frame, at] = [handle.parentElement.getBoundingClientRect(), handle.getBoundingClientRect()];
    if (!frame.width) return;
    set(handle, "tabindex", "0");
    set(handle, "role", "slider");
    set(handle, "aria-label", "Share of the image before");
    set(handle, "aria-valuenow", String(Math.round((100 * (at.x + at.width / 2 - frame.x)) / frame.width)));
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
    every(SLIDER).filter(visible).forEach(nameSlider);
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
    document.addEventListener("click", chooseFile);
    document.addEventListener("keydown", slide);
    document.addEventListener("focusin", (event) => event.target.matches?.(SLIDER) && nameSlider(event.target));
    changed.observe(document.body, { childList: true, subtree: true, characterData: true });
    nameThings();
  }
  if (document.body) start();
  else addEventListener("DOMContentLoaded", start);
})();
