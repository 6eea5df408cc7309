// Requests to the service. The page keeps the token while the tab is open, and sends it in a header. The browser never adds the token
// to a request automatically, so no other site can use the token.

const TOKEN = "jobqueue.token";

const SILENCE = 40_000; // ms without a byte after which a stream counts as lost; the service sends something every 15 s
const FIRST_PAUSE = 500; // ms until the first reconnect; the pause doubles each time
const LONGEST_PAUSE = 10_000;

/** An error response (RFC 9457). The status is 0 if no response arrived. */
export class Problem extends Error {
  constructor(status, { title = "", detail = "", field = null } = {}) {
    super(detail || title || `The service returned status ${status}.`);
    this.status = status;
    this.field = field;
  }
}

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (secret) => sessionStorage.setItem(TOKEN, secret),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** Get a JSON document. Undefined values in `query` are left out. */
export async function get(path, query = {}, { signal } = {}) {
  return (await ask("GET", address(path, query), { signal })).json();
}

/** Get a document as text. Parsing would round numbers beyond 2^53, and drop the first of two members with the same name. */
export async function getText(path, query = {}, { signal } = {}) {
  return (await ask("GET", address(path, query), { signal })).text();
}

/** Send a request that changes something, and return its response. Even after an error, the change may have happened. */
export async function act(method, path, { query = {}, body } = {}) {
  return (await ask(method, address(path, query), { body })).json();
}

/** Return the path of a job, queue, and so on; any characters are allowed in the names. */
export function path(...parts) {
  return "/" + parts.map((part) => encodeURIComponent(part)).join("/");
}

/**
 * Follow server-sent events until `signal` is aborted, and reconnect after lost connections.
 *
 * onEvent(name, data, text): handles an event; text is the unparsed data. It returns true if this was the last event.
 * onState(state, problem): the state is "open"; "lost", before a reconnect; or "refused" after a 4xx, which is final.
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

/** Parse server-sent events from a stream of bytes, as in the HTML standard: event, data, and comments; ids are ignored. */
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
    timer = setTimeout(() => reject(new Problem(0, { detail: "The service has stopped sending data." })), ms);
  });
  return Promise.race([promise, silence]).finally(() => clearTimeout(timer));
}

function delay(ms, signal) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end); // otherwise listeners would accumulate while a connection is lost for days
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });
}
