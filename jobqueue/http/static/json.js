// Format JSON without parsing it to values. So numbers are not rounded, duplicate names are kept, and any depth works.

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g;

// Invisible characters that change how the text around them is displayed; they are shown as JSON escapes.
const UNSEEN = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

const MAX_INDENT = 40; // maximum levels of indentation; deeper levels are not indented further

/** Return the texts of an object's members, by name. */
export function members(text) {
  const found = new Map();
  let depth = 0;
  let name = null;
  let begin = 0;
  for (const { 0: token, index } of text.matchAll(TOKEN)) {
    if (token === "{" || token === "[") depth += 1;
    if (depth === 1 && token === ":") begin = index + 1;
    else if (depth === 1 && (token === "," || token === "}")) {
      if (name !== null) found.set(name, text.slice(begin, index).trim());
      name = null;
    } else if (depth === 1 && name === null && token[0] === '"') name = JSON.parse(token);
    if (token === "}" || token === "]") depth -= 1;
  }
  return found;
}

/** Indent a document by two spaces per level, and escape invisible characters. */
export function pretty(text) {
  const parts = [];
  let depth = 0;
  let before = "";
  const line = () => `\n${"  ".repeat(Math.min(depth, MAX_INDENT))}`;
  for (const [token] of text.matchAll(TOKEN)) {
    const closes = token === "}" || token === "]";
    if (closes) depth -= 1;
    const opened = before === "{" || before === "[";
    if (before === "," || (opened ? !closes : closes)) parts.push(line());
    parts.push(token === ":" ? ": " : token[0] === '"' ? token.replace(UNSEEN, escaped) : token);
    if (token === "{" || token === "[") depth += 1;
    before = token;
  }
  return parts.join("");
}

function escaped(character) {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}
