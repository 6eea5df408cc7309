// A tree of tasks that is updated repeatedly. If the user opens or closes a node, the node keeps that state as long as it exists.

const OPEN_LEVELS = 3; // levels of nurseries that are open at first

export class Tree {
  #root = null;
  #toggled = new Map(); // whether a node is open, by key; only for nodes that differ from the initial state

  /** Replace the tree with the root task of a GET /tasks response. */
  take(root) {
    const keys = new Set();
    this.#root = named(root, "", 0, keys);
    for (const key of this.#toggled.keys()) if (!keys.has(key)) this.#toggled.delete(key);
  }

  isOpen(key, before) {
    return this.#toggled.get(key) ?? before;
  }

  setOpen(key, open, before) {
    if (open === before) this.#toggled.delete(key);
    else this.#toggled.set(key, open);
  }

  /**
   * Find the tasks that satisfy the predicate, with their ancestors. Returns {root: null if no task matches, tasks: the number of
   * tasks that match, long: how many of them have waited for at least `seconds`}.
   */
  found(isLike, seconds) {
    const counted = { tasks: 0, long: 0 };
    return { root: this.#root && pruned(this.#root, isLike, seconds, counted), ...counted };
  }
}

/** Give each task and nursery a key that stays the same across updates: its name, and its position among equal names. */
function named(task, parent, level, keys) {
  const key = `${parent}/${task.name}${task.job ? ` ${task.job.id}` : ""}`;
  let own = key;
  for (let place = 2; keys.has(own); place += 1) own = `${key} ${place}`;
  keys.add(own);
  keys.add(`${own} stack`);
  const nurseries = task.nurseries.map((nursery, place) => {
    const nurseryKey = `${own}#${place}`;
    keys.add(nurseryKey);
    return {
      key: nurseryKey,
      opened: level < OPEN_LEVELS,
      total: nursery.tasks.length,
      tasks: nursery.tasks.map((child) => named(child, nurseryKey, level + 1, keys)),
    };
  });
  return { key: own, task, nurseries };
}

function pruned(node, isLike, seconds, counted) {
  const nurseries = node.nurseries
    .map((nursery) => ({ ...nursery, tasks: nursery.tasks.map((child) => pruned(child, isLike, seconds, counted)).filter(Boolean) }))
    .filter((nursery) => nursery.tasks.length > 0);
  const like = isLike(node.task);
  if (!like && !nurseries.length) return null;
  const isLong = node.task.since !== null && node.task.since >= seconds;
  if (like) {
    counted.tasks += 1;
    if (isLong) counted.long += 1;
  }
  return { ...node, nurseries, isLong };
}
