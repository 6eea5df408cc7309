// A tree of tasks that is looked at again and again: what was opened stays open as long as it is there.

const OPEN_LEVELS = 3; // of nurseries, to begin with

export class Tree {
  #root = null;
  #toggled = new Map(); // by key, what is not as it is to begin with

  /** Take in a task as GET /tasks has it. */
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
   * The tasks that are like that, and those that lead to them: {root, or null where there is none; tasks: how many are; long: how many
   * of them have waited for so many seconds}.
   */
  found(isLike, seconds) {
    const counted = { tasks: 0, long: 0 };
    return { root: this.#root && pruned(this.#root, isLike, seconds, counted), ...counted };
  }
}

/** Give each task and nursery a key that it has the next time too: its name and its place among those of that name. */
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
