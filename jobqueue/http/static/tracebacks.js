// Parse the text of a Python traceback into the tree of its exception groups (the format of traceback.py in Python 3.11 and later).

const MAX_DEPTH = 50; // Python's default limit is 10 levels
const SHOWN_LEAVES = 3;
const FRAME = /^ {2}File /;
const LINK = /^(The above exception was the direct cause of the following exception|During handling of the above exception, another exception occurred):$/;

/**
 * Parse a traceback.
 *
 * Returns its parts in order: {text, members}. The members are the exceptions of a part's group, each {title, parts}. A text without groups
 * is one part. If a line cannot be parsed, for example because the service has cut a long text, all text from that line on is the last part.
 */
export function parse(text) {
  const lines = text.replace(/\n$/, "").split("\n");
  let here = 0;
  const top = parts(0);
  if (here < lines.length) top.push({ text: lines.slice(here).join("\n"), members: [] });
  return top;

  function parts(depth) {
    const margin = "  ".repeat(depth);
    const found = [];
    let content = [];
    const flush = (members) => {
      if (content.length || members.length) found.push({ text: content.join("\n"), members });
      content = [];
    };
    while (here < lines.length) {
      const line = lines[here];
      if (depth === 0 && /^ {2}(\+ Exception Group Traceback \(|\| )/.test(line)) {
        flush([]);
        const group = parts(1);
        if (!group.length) break;
        found.push(...group);
      } else if (depth === 0) {
        content.push(line);
        here += 1;
      } else if (line.startsWith(`${margin}| `) || line === `${margin}|`) {
        content.push(line.slice(margin.length + 2));
        here += 1;
      } else if (depth === 1 && !content.length && !found.length && line.startsWith(`${margin}+ Exception Group Traceback (`)) {
        content.push(line.slice(margin.length + 2));
        here += 1;
      } else if (depth < MAX_DEPTH && content.length && isFirst(line, margin)) {
        flush(members(depth + 1));
      } else break;
    }
    flush([]);
    return found;
  }

  function members(depth) {
    const margin = "  ".repeat(depth);
    const found = [];
    do {
      const title = lines[here].replace(/^[ +-]+/, "").replace(/ -+$/, "");
      here += 1;
      found.push({ title, parts: parts(depth) });
    } while (here < lines.length && lines[here].startsWith(`${margin}+---------------- `));
    if (here < lines.length && lines[here] === `${margin}+------------------------------------`) here += 1;
    return found;
  }
}

function isFirst(line, margin) {
  return line.startsWith(`${margin}+-+---------------- `);
}

/** Return the message of an exception: the first line after its frames. */
export function message(text) {
  const lines = text.split("\n");
  const frame = lines.findLastIndex((line) => FRAME.test(line) || LINK.test(line));
  return (lines.slice(frame + 1).find((line) => line !== "" && !line.startsWith(" ") && !line.startsWith("Traceback (")) ?? lines.at(-1)).trim();
}

/** Return the messages of the first few innermost exceptions of some parts. */
export function leaves(some) {
  const said = [];
  const visit = (list) => {
    for (const { text, members } of list.slice(-1)) {
      if (members.length) members.forEach((member) => visit(member.parts));
      else said.push(message(text));
    }
  };
  visit(some);
  return said.length > SHOWN_LEAVES ? [...said.slice(0, SHOWN_LEAVES), "…"] : said;
}
