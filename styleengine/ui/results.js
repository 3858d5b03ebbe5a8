// “Your results”: small copies of this visitor's last results, in this browser's local storage and nowhere else.
// `styleengine.keep(title, file, gallery)` adds what a run has made. Stored data are checked, since anything may be there.
window.styleengine = (() => {
  "use strict";
  const KEY = "styleengine-results";
  const MOST = 16; // results
  const SIDE = 768; // pixels of the longer side of a copy
  const MOST_CHARACTERS = 250_000; // of a copy as a data: URL; all together stay below 4 MB
  const QUALITIES = [0.85, 0.7, 0.5, 0.3];
  const JPEG = /^data:image\/jpeg;base64,[A-Za-z0-9+/]+=*$/;
  const VIDEO_SECONDS = 10; // to wait for a frame
  const STORED = "Small copies of your last results. They are stored in this browser only; the newest replace the oldest.";
  const NOT_STORED = "This browser stores no data for this page, so your last results are gone when it is reloaded.";

  const seen = new Set(); // addresses of files that are kept already
  let storing = true;
  let entries = load() || [];

  function usable(entry) {
    return (
      entry !== null && typeof entry === "object" &&
      typeof entry.title === "string" && entry.title.length <= 100 &&
      Number.isFinite(entry.time) && Math.abs(entry.time) < 8.64e15 &&
      typeof entry.image === "string" && entry.image.length <= MOST_CHARACTERS && JPEG.test(entry.image)
    );
  }

  /** The stored entries; null where nothing can be read. */
  function load() {
    let text;
    try {
      text = localStorage.getItem(KEY);
    } catch {
      storing = false;
      return null;
    }
    try {
      const found = JSON.parse(text ?? "[]");
      return Array.isArray(found) ? found.filter(usable).slice(0, MOST) : [];
    } catch {
      return []; // not JSON
    }
  }

  /** Stores the entries; the newest ones if there is not enough space. */
  function store() {
    for (let count = entries.length; count > 0; count--) {
      try {
        localStorage.setItem(KEY, JSON.stringify(entries.slice(0, count)));
        storing = true;
        return;
      } catch {
        storing = false;
      }
    }
    try {
      localStorage.removeItem(KEY);
    } catch {
      storing = false;
    }
  }

  /** A small JPEG of an image or of a video's middle frame, as a data: URL; null if there is none. */
  async function copyOf(url) {
    const blob = await (await fetch(url)).blob();
    const source = blob.type.startsWith("video/") ? await frameOf(blob) : await createImageBitmap(blob);
    const [width, height] = [source.videoWidth || source.width, source.videoHeight || source.height];
    const scale = Math.min(1, SIDE / Math.max(width, height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const context = canvas.getContext("2d");
    context.fillStyle = "white"; // JPEG has no transparency
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, canvas.width, canvas.height);
    if (source.src) URL.revokeObjectURL(source.src);
    const copies = QUALITIES.map((quality) => () => canvas.toDataURL("image/jpeg", quality));
    for (const copy of copies) {
      const image = copy();
      if (image.length <= MOST_CHARACTERS && JPEG.test(image)) return image;
    }
    return null;
  }

  function frameOf(blob) {
    const video = Object.assign(document.createElement("video"), { muted: true, preload: "auto" });
    return new Promise((done, failed) => {
      setTimeout(failed, VIDEO_SECONDS * 1000, new Error("no frame"));
      video.onerror = failed;
      video.onloadeddata = () => (video.currentTime = video.duration / 2);
      video.onseeked = () => done(video);
      video.src = URL.createObjectURL(blob);
    });
  }

  async function keep(title, file, gallery) {
    const drawn = Array.isArray(gallery) ? gallery.map((one) => [one?.image?.url, one?.caption]) : [];
    const fresh = drawn.filter(([url]) => url && !seen.has(url));
    const chosen = fresh.length ? fresh : file?.url && !seen.has(file.url) ? [[file.url, ""]] : [];
    [...drawn.map(([url]) => url), file?.url].forEach((url) => url && seen.add(url));
    for (const [url, caption] of chosen) {
      const image = await copyOf(url).catch(() => null);
      if (!image) continue;
      const words = [title, caption].filter(Boolean).join(", ") || "Results";
      if (storing) entries = load() || entries; // another tab may have added some
      entries = [{ title: words.slice(0, 100), time: Date.now(), image }, ...entries].slice(0, MOST);
      store();
    }
    show();
  }

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function when(entry) {
    return new Date(entry.time).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
  }

  function remove(gone) {
    if (storing) entries = load() || entries;
    entries = entries.filter((entry) => entry.time !== gone.time || entry.image !== gone.image);
    store();
    show();
  }

  function clear() {
    entries = [];
    store();
    show();
  }

  function open(entry) {
    const words = `${entry.title}, ${when(entry)}`;
    const dialog = make("dialog", { ariaLabel: words });
    const button = (text, click) => make("button", { type: "button", textContent: text, onclick: click });
    const save = make("a", { href: entry.image, download: "styleengine-result.jpg", textContent: "Save this copy" });
    const forget = button("Remove", () => (dialog.close(), remove(entry)));
    const actions = make("div", { className: "actions" }, button("Close", () => dialog.close()), save, forget);
    dialog.append(make("img", { src: entry.image, alt: entry.title }), make("p", { textContent: words }), actions);
    dialog.onclick = (event) => event.target === dialog && dialog.close();
    dialog.onclose = () => dialog.remove();
    document.querySelector(".kept-results .place").append(dialog);
    dialog.showModal();
  }

  function show() {
    const place = document.querySelector(".kept-results .place");
    if (!place) return;
    place.querySelector("section")?.remove();
    if (!entries.length) return;
    const items = entries.map((entry) => {
      const image = make("img", { src: entry.image, alt: "" });
      const title = make("span", { textContent: entry.title });
      const label = `Show the result of ${entry.title}, ${when(entry)}`;
      return make("li", {}, make("button", { type: "button", ariaLabel: label, onclick: () => open(entry) }, image, title));
    });
    const section = make("section", { ariaLabel: "Your results" }, make("h2", { textContent: "Your results" }));
    section.append(make("p", { textContent: storing ? STORED : NOT_STORED }), make("ul", {}, ...items));
    section.append(make("button", { type: "button", className: "clear", textContent: "Clear all", onclick: clear }));
    place.prepend(section);
  }

  addEventListener("storage", (event) => {
    if (event.key !== KEY && event.key !== null) return;
    entries = load() || entries;
    show();
  });
  return { keep, show };
})();
