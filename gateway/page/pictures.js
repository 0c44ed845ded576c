/**
 * The pictures, videos, sounds and other files of a result: small pictures in the list of jobs, and the whole one in a dialog.
 *
 * Bytes are shown as an image only if they are one, so that no file of a job becomes a page.
 */
import { request } from "./connection.js";
import { button, bytes, make, notify } from "./elements.js";

const SIZE = 144;
const MOST_PICTURES = 8;
const MOST_BYTES = 16 * 2 ** 20;
const NAMES = [["image", /\.(png|jpe?g|webp|gif|avif)$/i], ["video", /\.(mp4|webm|mov|m4v)$/i], ["audio", /\.(wav|mp3|flac|ogg|opus|m4a)$/i]];

/**
 * @typedef {object} Item
 * @property {string} name
 * @property {"image" | "video" | "audio" | "file"} kind
 * @property {() => Promise<Blob>} load
 * @property {number} [frames] pictures in it, if there are several
 */

/**
 * @param {any} result the answer of /v1/jobs/{id}/output
 * @returns {Item[]}
 */
export function itemsOf(result) {
  const base = `v1/jobs/${result.job_id}`;
  const files = (result.files ?? []).map((file, index) => itemOfPath(String(file.filename), `${base}/files/${index}`));
  return [...files, ...encodedItems(result.output), ...tensorItems(result.output, base)];
}

function itemOfPath(path, url) {
  const name = path.split("/").pop();
  const kind = NAMES.find(([, pattern]) => pattern.test(name))?.[0] ?? "file";
  return { name, kind, load: async () => (await request(url)).blob() };
}

/** Pictures that workers return as base64: in the entries of `images` and `files`, or at the top. */
function encodedItems(output) {
  if (!output || typeof output !== "object") return [];
  const entries = [output.images, output.files].filter(Array.isArray).flat().filter((entry) => entry && typeof entry === "object");
  const found = [...(typeof output.base64 === "string" ? [{ ...output, filename: entries[0]?.filename }] : []), ...entries];
  return found.flatMap((entry) => {
    const text = [entry.base64, entry.data].find((each) => typeof each === "string");
    const data = text === undefined ? null : decoded(text);
    const type = data && imageType(data);
    return type ? [{ name: String(entry.filename ?? "picture"), kind: "image", load: async () => new Blob([data], { type }) }] : [];
  });
}

function decoded(text) {
  try {
    return Uint8Array.from(atob(text.slice(text.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  } catch {
    return null;
  }
}

/** @returns {string | null} the media type of an image by its first bytes */
function imageType(data) {
  const start = String.fromCharCode(...data.slice(0, 12));
  if (start.startsWith("\x89PNG")) return "image/png";
  if (start.startsWith("\xff\xd8\xff")) return "image/jpeg";
  if (start.startsWith("GIF8")) return "image/gif";
  return start.startsWith("RIFF") && start.endsWith("WEBP") ? "image/webp" : null;
}

/** Tensors that are pictures: the last dimension is the channels, and a first one of four the pictures of a batch. */
function tensorItems(value, base, name = "picture") {
  if (!value || typeof value !== "object") return [];
  if (!Array.isArray(value.shape)) return Object.entries(value).flatMap(([key, each]) => tensorItems(each, base, key));
  const { shape, dtype, nbytes } = value;
  const [height, width, channels] = shape.slice(-3);
  const isPicture = [3, 4].includes(shape.length) && [1, 3, 4].includes(channels) && ["float32", "uint8"].includes(dtype) && height * width > 1;
  if (!isPicture || nbytes > MOST_BYTES) return [];
  const load = async () => {
    const data = value.base64 === undefined ? await (await request(`${base}/artifacts/${value.url.split("/").pop()}`)).arrayBuffer() : decoded(value.base64).buffer;
    return drawn(dtype === "uint8" ? new Uint8Array(data) : new Float32Array(data), height, width, channels, dtype === "uint8" ? 1 : 255);
  };
  return [{ name, kind: "image", load, frames: shape.length === 4 ? shape[0] : 1 }];
}

/** Return the first picture of a tensor as a PNG. */
function drawn(values, height, width, channels, scale) {
  const canvas = make("canvas", { width, height });
  const pixels = new ImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    for (let channel = 0; channel < 4; channel += 1) {
      const from = channel < 3 ? (channels === 1 ? 0 : channel) : 3;
      pixels.data[4 * pixel + channel] = from < channels ? Math.round(scale * values[pixel * channels + from]) : 255;
    }
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/**
 * Fill an element with the pictures and files of a result.
 * @param {HTMLElement} element
 * @param {Item[]} items
 * @param {string} job name of the job
 */
export async function showItems(element, items, job) {
  const shown = items.slice(0, MOST_PICTURES).map((item) => thumbnail(item, job));
  const more = items.length - shown.length;
  element.replaceChildren(...shown, ...(more > 0 ? [make("span", { class: "soft" }, `and ${more} more`)] : []));
  element.hidden = !shown.length;
  for (const each of shown) await each.fill?.();
}

/**
 * Show the preview of a running node, in place of the one before.
 * @param {HTMLElement} element
 * @param {string} text base64 of an image
 * @param {string} job name of the job
 */
export async function showPreview(element, text, job) {
  const data = decoded(text);
  const type = data && imageType(data);
  if (!type) return;
  const picture = await createImageBitmap(new Blob([data], { type })).catch(() => null);
  if (!picture) return;
  const known = element.querySelector(".preview");
  const canvas = known ?? make("canvas", { class: "preview", role: "img", "aria-label": `Preview of ${job}` });
  draw(picture, canvas);
  if (!known) element.replaceChildren(canvas);
  element.hidden = false;
}

function draw(picture, canvas) {
  const ratio = SIZE / Math.max(picture.width, picture.height);
  Object.assign(canvas, { width: Math.max(1, picture.width * ratio), height: Math.max(1, picture.height * ratio) });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
}

function thumbnail(item, job) {
  const label = item.frames > 1 ? `${item.name}, first of ${item.frames}` : item.name;
  const open = () => void openItem(item, label).catch((error) => notify(`${label} cannot be shown: ${error.message}`));
  if (item.kind !== "image") return make("button", { type: "button", class: "button file", onclick: open }, make("span", { class: "cut" }, item.name));
  const canvas = make("canvas", { width: SIZE, height: SIZE, "aria-hidden": "true" });
  const element = make("button", { type: "button", class: "thumb", title: label, "aria-label": `Picture ${label} of ${job}`, onclick: open }, canvas);
  element.fill = async () => {
    try {
      draw(await createImageBitmap(await item.load()), canvas);
      element.dataset.ready = "";
    } catch {
      element.replaceChildren(make("span", { class: "soft cut" }, `${label} is gone`));
    }
  };
  return element;
}

/** Show an item in the dialog, with a link that saves it. */
async function openItem(item, label) {
  const dialog = document.getElementById("picture");
  const blob = await item.load();
  const url = URL.createObjectURL(blob);
  // a link to the bytes themselves could open a page of this origin
  const saved = URL.createObjectURL(new Blob([blob], { type: "application/octet-stream" }));
  const media = {
    image: () => make("img", { src: url, alt: label }),
    video: () => make("video", { src: url, controls: true, loop: true }),
    audio: () => make("audio", { src: url, controls: true }),
    file: () => make("p", { class: "soft" }, `${bytes(blob.size)} without a preview`),
  }[item.kind]();
  const link = make("a", { class: "button", href: saved, download: item.name }, "Save");
  const close = button("Close", () => dialog.close());
  dialog.replaceChildren(make("div", { class: "row" }, make("b", { class: "cut" }, label), link, close), media);
  dialog.onclose = () => {
    dialog.replaceChildren();
    [url, saved].forEach((each) => URL.revokeObjectURL(each));
  };
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  dialog.showModal();
}
