// Requests to the server that sent this page, and what their failures mean.

const PATIENCE_MS = 120_000;
const LEAST_MASK = 0.3; // score
const KEY = "detrkit-token";
const MEANINGS = {
  400: "The picture could not be read",
  403: "The server does not answer this page",
  404: "The server has no such model",
  408: "The picture did not arrive in time",
  413: "The picture is too large for this server",
  415: "The server does not take this kind of file",
  422: "The server cannot use this request",
  429: "The server is busy",
  500: "The server failed",
  503: "The server is stopping, or has too many connections",
  504: "The server did not come to it in time",
};
/** What the same request may meet otherwise a little later. */
const PASSING = new Set([0, 408, 429, 500, 502, 503, 504]);

/** A request without an answer: `status` is HTTP's, 0 where nothing came back. */
export class Failure extends Error {
  constructor(status, message, waitS = 0) {
    super(message);
    this.status = status;
    this.waitS = waitS;
    this.passing = PASSING.has(status);
  }
}

/** The token stays in this tab: sessionStorage ends with it. */
export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export async function loadModels() {
  return (await call("v1/models")).models;
}

/**
 * Everything that a model finds in a picture: the page applies thresholds itself, so that a slider asks nothing.
 * Masks cost time, and are asked for of detections that are likely to be shown.
 */
export async function detect({ blob, name }, { name: model, masks }) {
  const options = new URLSearchParams({ model, threshold: 0, ...(masks && { masks: LEAST_MASK }) });
  const body = new FormData();
  body.append("images", blob, name);
  const start = performance.now();
  const answer = await call(`v1/detect?${options}`, { method: "POST", body }, blob.size);
  return { ...answer, ...answer.images[0], roundTripMs: performance.now() - start };
}

async function call(path, options = {}, bytes = 0) {
  const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(PATIENCE_MS) });
    if (response.ok) return await response.json();
  } catch (error) {
    throw await broken(error, bytes);
  }
  // a proxy in between may answer something other than the server's JSON
  const told = await response.json().catch(() => null);
  const meaning = MEANINGS[response.status] ?? `The server answered ${response.status}`;
  const waitS = Number(response.headers.get("Retry-After")) || 0;
  throw new Failure(response.status, `${meaning}. ${told?.error?.message ?? ""}`.trim(), waitS);
}

/** Tell a server that is gone from one that closed the connection while a picture was on its way. */
async function broken(error, bytes) {
  if (error.name === "TimeoutError") return new Failure(0, `No answer within ${PATIENCE_MS / 1000} s.`);
  const alive = await fetch("health/live", { signal: AbortSignal.timeout(5000) }).then((r) => r.ok, () => false);
  if (!alive) return new Failure(0, "The server cannot be reached: it has ended, or the network is gone.");
  const size = bytes ? ` The picture has ${(bytes / 2 ** 20).toFixed(1)} MB; the server may take less.` : "";
  return new Failure(0, `The server closed the connection before it answered.${size}`);
}
