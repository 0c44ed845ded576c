/**
 * Elements of the page, and numbers and times as text. Text of jobs enters the page as text nodes only.
 */

/**
 * Create an element. Properties that begin with "on" are listeners; `class`, `role`, `for` and names with "-" are attributes, others properties.
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

/** A button with a label; `name` is its accessible name if it must say more. */
export function button(label, action, { name, look = "" } = {}) {
  return make("button", { type: "button", class: `button ${look}`, "aria-label": name, onclick: action }, label);
}

/** Set the text of an element, if it has changed. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = text === "";
}

/** Show a message for some seconds. It stays longer if it is long. */
export function notify(text) {
  const area = document.getElementById("messages");
  const message = make("div", { class: "message" }, make("span", {}, text), button("Close", () => message.remove(), { look: "quiet" }));
  area.append(message);
  while (area.children.length > 4) area.firstChild.remove();
  setTimeout(() => message.remove(), 6000 + 50 * text.length);
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
  if (count < 1) return `${Math.max(0, Math.round(count * 1000))} ms`;
  if (count < 100) return `${count.toFixed(1)} s`;
  if (count < 6000) return `${Math.floor(count / 60)} min ${Math.round(count % 60)} s`;
  return `${Math.floor(count / 3600)} h ${Math.floor((count % 3600) / 60)} min`;
}

/** @param {number} time in seconds since the epoch; the day is left out if it is today */
export function clock(time) {
  const date = new Date(time * 1000);
  const hours = date.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return date.toDateString() === new Date().toDateString() ? hours : `${date.toLocaleDateString()} ${hours}`;
}

/** @returns {string} a JSON value as indented text, at most `most` characters of it */
export function pretty(value, most = 20_000) {
  const shortened = (key, each) => (typeof each === "string" && each.length > 500 ? `${each.slice(0, 500)}… (${each.length} characters)` : each);
  const text = typeof value === "string" ? value : JSON.stringify(value, shortened, 2);
  return text.length > most ? `${text.slice(0, most)}…` : text;
}
