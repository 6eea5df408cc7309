// Example shell commands for this service.

import { token } from "./api.js";

/** Return a curl command that sends JSON to this service. The token stays a shell variable. */
export function example(path, body, method = "POST") {
  const authorization = token.get() ? " -H \"Authorization: Bearer $TOKEN\"" : "";
  const how = method === "POST" ? "" : ` -X ${method}`;
  return `curl${how} ${location.origin}${path}${authorization} -H 'Content-Type: application/json' -d '${JSON.stringify(body)}'`;
}
