/**
 * Elements of the page: creating them, loading the extension's style sheet, and replacing their children without losing the focus.
 */

const STYLE = "yggdrasill-style";

/**
 * Create an element. Properties that begin with "on" are listeners, `class`, `data-*`, `aria-*` and `role` are attributes, others are set as
 * properties.
 * @param {string} tag
 * @param {Record<string, any>} [properties]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {HTMLElement}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "role" || name === "for" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * A button with an icon alone; its name is its label for screen readers and its tooltip.
 * @param {string} icon of PrimeIcons, such as "pi-refresh"
 * @param {string} name
 * @param {(event: Event) => void} action
 * @param {string} [key] by which the focus is restored
 */
export function iconButton(icon, name, action, key = name) {
  return make("button", { class: "ygg-icon", type: "button", title: name, "aria-label": name, "data-key": key, onclick: action }, symbol(icon));
}

/** A button with a label. */
export function button(label, action, key = label, look = "") {
  return make("button", { class: `ygg-button ${look}`, type: "button", "data-key": key, onclick: action }, label);
}

/** A decorative icon. */
export function symbol(icon) {
  return make("i", { class: `pi ${icon}`, "aria-hidden": "true" });
}

/**
 * Replace the children of an element. If a child with a `data-key` has the focus, the new child with that key receives it.
 * @param {HTMLElement} element
 * @param {...(Node | string)} children
 */
export function fill(element, ...children) {
  const key = element.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  element.replaceChildren(...children);
  if (key) element.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** Load the extension's style sheet once. */
export function useStyle(app) {
  if (document.getElementById(STYLE)) return;
  document.head.append(make("link", { id: STYLE, rel: "stylesheet", href: app.api.apiURL("/yggdrasill/web/style.css") }));
}

/**
 * Open a modal dialog. Escape and its close button close it; the focus stays inside it and returns to the previous element afterwards.
 * @param {object} app
 * @param {string} title
 * @param {...Node} content
 * @returns {HTMLDialogElement}
 */
export function openDialog(app, title, ...content) {
  useStyle(app);
  const close = iconButton("pi-times", "Close", () => dialog.close());
  const dialog = make(
    "dialog",
    { class: "ygg ygg-dialog", "aria-label": title, onclose: () => dialog.remove(), onkeydown: (event) => event.stopPropagation() },
    make("header", {}, make("h2", {}, title), close),
    make("div", { class: "ygg-dialog-body" }, ...content),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** @returns {string} a number of bytes with a unit */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let rest = count;
  for (; rest >= 999.5 && unit < units.length - 1; unit += 1) rest /= 1000;
  return `${rest < 10 && unit ? rest.toFixed(1) : Math.round(rest)} ${units[unit]}`;
}

/** @returns {string} seconds with a unit */
export function seconds(count) {
  if (count < 1) return `${Math.round(count * 1000)} ms`;
  return count < 100 ? `${count.toFixed(1)} s` : `${Math.floor(count / 60)} min ${Math.round(count % 60)} s`;
}
