/**
 * Requests with the token, and the stream of events. The token is in the storage of this tab and in no other place.
 */

const KEY = "yggdrasill.gateway.token";
const SILENCE_MS = 20_000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5000;

/** A request that was refused, with the message of the gateway. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  clear: () => sessionStorage.removeItem(KEY),
};

/** Seconds by which the clock of the gateway is ahead of this one. */
let ahead = 0;

/** @returns {number} the time of the gateway in seconds since the epoch */
export function now() {
  return Date.now() / 1000 + ahead;
}

/** Called when the gateway refuses the token. @type {() => void} */
let onRefused = () => {};

/** @param {() => void} action called when the gateway refuses the token */
export function whenRefused(action) {
  onRefused = action;
}

/**
 * Request a path of the gateway.
 * @param {string} path without a slash at the start
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} a successful response
 */
export async function request(path, options = {}) {
  const given = token.get();
  const headers = { ...options.headers, ...(given ? { Authorization: `Bearer ${given}` } : {}) };
  const response = await fetch(new URL(path, document.baseURI), { ...options, headers, cache: "no-store", credentials: "omit" });
  const difference = Date.parse(response.headers.get("Date") ?? "") / 1000 - Date.now() / 1000;
  ahead = Math.abs(difference) > 3 ? difference : 0;
  if (response.ok) return response;
  const message = await response.json().then(({ error }) => error?.message ?? error, () => `The gateway answered with status ${response.status}.`);
  if (response.status === 401 && given === token.get()) onRefused();
  throw new Refused(String(message), response.status);
}

/** @returns {Promise<any>} the JSON of a path, or null if it has more than `most` bytes */
export async function load(path, most = Infinity) {
  const response = await request(path);
  if (!(Number(response.headers.get("Content-Length")) > most)) return response.json();
  await response.body.cancel();
  return null;
}

/** Post a JSON body, and return the JSON of the answer. */
export async function post(path, body = {}) {
  return (await request(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } })).json();
}

/**
 * The events of all jobs. After a lost connection the stream resumes behind the last event that was received.
 */
export class Events {
  /**
   * @param {(kind: string, data: any, id: number | null) => void} onEvent
   * @param {(state: "live" | "waiting") => void} onState "live" when the gateway has begun to send
   */
  constructor(onEvent, onState) {
    this.onEvent = onEvent;
    this.onState = onState;
    this.last = null;
    this.stopped = false;
    this.controller = null;
  }

  async start() {
    let pause = FIRST_PAUSE_MS;
    while (!this.stopped) {
      try {
        await this.#read(() => (pause = FIRST_PAUSE_MS));
      } catch (error) {
        if (error instanceof Refused && error.status === 401) return;
      }
      if (this.stopped) return;
      this.onState("waiting");
      await new Promise((done) => setTimeout(done, pause));
      pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    }
  }

  stop() {
    this.stopped = true;
    this.controller?.abort();
  }

  async #read(onOpen) {
    const controller = (this.controller = new AbortController());
    let timer = null;
    // the gateway sends a comment at least every few seconds, so silence is a lost connection
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => controller.abort(), SILENCE_MS);
    };
    try {
      heard();
      const headers = this.last === null ? {} : { "Last-Event-ID": String(this.last) };
      const response = await request("v1/events", { headers, signal: controller.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      let opened = false;
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        heard();
        if (!opened) {
          opened = true;
          onOpen();
          this.onState("live");
        }
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        blocks.forEach((block) => this.#receive(block));
      }
    } finally {
      clearTimeout(timer);
    }
  }

  #receive(block) {
    const fields = {};
    for (const line of block.split("\n")) {
      const colon = line.indexOf(": ");
      if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
    }
    if (fields.data === undefined) return;
    const id = fields.id === undefined ? null : Number(fields.id);
    if (id !== null) this.last = id;
    this.onEvent(fields.event, JSON.parse(fields.data), id);
  }
}
