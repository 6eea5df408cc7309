// What the page asks the service for. A token, where one is needed, is kept for as long as the tab is open, and sent in a header:
// a browser adds it to nothing by itself, so no other site can act with it.

const TOKEN = "jobqueue.token";

const SILENCE = 40_000; // ms without a byte after which a stream is taken for lost: the service sends something every 15 s
const FIRST_PAUSE = 500; // ms until a lost stream is opened again, twice as long each time
const LONGEST_PAUSE = 10_000;

/** An answer that is a problem (RFC 9457), or none at all: then its status is 0. */
export class Problem extends Error {
  constructor(status, { title = "", detail = "", field = null } = {}) {
    super(detail || title || `The service answered ${status}.`);
    this.status = status;
    this.field = field;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (secret) => sessionStorage.setItem(TOKEN, secret),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** Ask for a document; `query` may hold undefined values, which are left out. */
export async function get(path, query = {}, { signal } = {}) {
  return (await ask("GET", address(path, query), { signal })).json();
}

/** The same as text, for what parsing would change: numbers beyond 2^53 are rounded, and of two members of one name the first is lost. */
export async function getText(path, query = {}, { signal } = {}) {
  return (await ask("GET", address(path, query), { signal })).text();
}

/** Have something done. A failure in between may mean that it was done: the answer says so. */
export async function act(method, path, { query = {}, body } = {}) {
  return (await ask(method, address(path, query), { body })).json();
}

/** The path of one job, queue, ..., whatever its name holds. */
export function path(...parts) {
  return "/" + parts.map((part) => encodeURIComponent(part)).join("/");
}

/**
 * Follow server-sent events until `signal` is aborted, through lost connections.
 *
 * onEvent(name, data, text): may return true to say that it was the last one; text is what data was parsed from.
 * onState("open" | "lost", problem): the connection is there, or lost and will be tried again; 4xx is told as "refused", and is the end.
 */
export async function follow(path, query, { signal, onEvent, onState }) {
  let pause = FIRST_PAUSE;
  while (!signal.aborted) {
    try {
      const answer = await ask("GET", address(path, query), { signal, accept: "text/event-stream" });
      onState("open");
      for await (const { name, text } of events(answer.body, signal)) {
        pause = FIRST_PAUSE;
        if (onEvent(name, JSON.parse(text), text)) return;
      }
      onState("lost");
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status >= 400 && error.status < 500) {
        onState("refused", error);
        return;
      }
      onState("lost", error);
    }
    await delay(pause * (0.5 + Math.random() / 2), signal);
    pause = Math.min(LONGEST_PAUSE, pause * 2);
  }
}

function address(path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

async function ask(method, url, { body, signal, accept = "application/json" } = {}) {
  const headers = { Accept: accept };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(url, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), credentials: "omit" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, { detail: "The service cannot be reached." });
  }
  if (!answer.ok) throw new Problem(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

/** Read events out of a stream of bytes, as the HTML standard has them (event, data, comments; ids are of no use here). */
async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    while (true) {
      const { value, done } = await within(SILENCE, reader.read());
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = { name: "message", text: null };
        for (const line of block.split("\n")) {
          if (line.startsWith("event: ")) event.name = line.slice(7);
          else if (line.startsWith("data: ")) event.text = line.slice(6);
        }
        if (event.text !== null) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function within(ms, promise) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Problem(0, { detail: "The service has fallen silent." })), ms);
  });
  return Promise.race([promise, silence]).finally(() => clearTimeout(timer));
}

function delay(ms, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end); // a connection may be lost for days
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });
}
