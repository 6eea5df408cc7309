// The address of a view, in the URL's hash: #/jobs?state=dead&queue=mail. Users can share an address, because it never contains a token.

/** Parse an address into the parts of its path, and its query. */
export function read(hash = location.hash) {
  const [path, query = ""] = hash.replace(/^#/, "").split("?", 2);
  return { parts: path.split("/").filter(Boolean).map(decoded), query: Object.fromEntries(new URLSearchParams(query)) };
}

/** Return an address; query parameters without a value are left out. */
export function to(parts, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const path = "#/" + parts.map(encodeURIComponent).join("/");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

/** Go to an address. With `replace`, the address replaces the current entry in the browser's history. */
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
