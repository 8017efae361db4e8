// How the page speaks to its server (the native protocol, /v1/...), with a key and one more try where the server is busy.

const KEY = "rm-plugins-key";
const LONGEST_WAIT = 30; // seconds; a server that is busy for longer is left alone

/** What the server said in place of an answer. */
export class ServerError extends Error {
  constructor(message, { status = 0, requestId = "" } = {}) {
    super(message);
    this.status = status;
    this.requestId = requestId;
  }
}

// Session storage lasts as long as the tab, and no other site or tab sees it.
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/**
 * The server's answer to a GET, or to a POST where there is a body.
 *
 * @param path Relative to the page, so that it works behind a proxy that serves it under a folder.
 * @param options.signal Ends it.
 * @param options.onWait Told the seconds before the one further try.
 * @throws ServerError for everything that is no answer; an AbortError where it was ended.
 */
export async function ask(path, body, { signal, onWait = () => {} } = {}) {
  let response = await send(path, body, signal);
  if (response.status === 429 || response.status === 503) {
    const seconds = retryAfter(response);
    if (seconds <= LONGEST_WAIT) {
      onWait(seconds);
      await pause(seconds, signal);
      response = await send(path, body, signal);
    }
  }
  const found = await response.json().catch((error) => {
    if (error.name === "AbortError") throw error;
    return null;
  });
  if (!response.ok || found === null) throw problem(response, found);
  return found;
}

async function send(path, body, signal) {
  const headers = { Accept: "application/json" };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(path, { method, headers, body: JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server could not be reached. Is it running, and is this machine connected to it?");
  }
}

function retryAfter(response) {
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  return Number.isFinite(seconds) && seconds >= 0 ? seconds : 1;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

function problem(response, found) {
  const said = found?.error?.message;
  const requestId = found?.error?.request_id ?? response.headers.get("X-Request-ID") ?? "";
  const message = typeof said === "string" ? said : `The server answered with status ${response.status}, and not in this page's protocol.`;
  return new ServerError(message, { status: response.status, requestId });
}
