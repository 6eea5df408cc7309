// The address of what is shown, which is all behind the #: #/jobs?state=dead&queue=mail. It can be shared, and never holds a token.

/** Read the address: the parts of its path, and its query. */
export function read(hash = location.hash) {
  const [path, query = ""] = hash.replace(/^#/, "").split("?", 2);
  return { parts: path.split("/").filter(Boolean).map(decoded), query: Object.fromEntries(new URLSearchParams(query)) };
}

/** Write an address; what has no value is left out. */
export function to(parts, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const path = "#/" + parts.map(encodeURIComponent).join("/");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

/** Go to an address. Where `replace` is true, the way back does not lead through the one before. */
export function go(parts, query = {}, { replace = false } = {}) {
  const hash = to(parts, query);
  if (hash === location.hash) return;
  if (!replace) {
    location.hash = hash;
    return;
  }
  history.replaceState(null, "", hash);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
