// Lines to try in a shell, for this very service.

import { token } from "./api.js";

/** A command that sends JSON to the service; a token stays a variable of the shell. */
export function example(path, body, method = "POST") {
  const authorization = token.get() ? " -H \"Authorization: Bearer $TOKEN\"" : "";
  const how = method === "POST" ? "" : ` -X ${method}`;
  return `curl${how} ${location.origin}${path}${authorization} -H 'Content-Type: application/json' -d '${JSON.stringify(body)}'`;
}
