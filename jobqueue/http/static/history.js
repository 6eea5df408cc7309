// The history: points in slots of one length. Points older than the range are dropped.

export class History {
  #points = new Map(); // points by the start of their slot, in s
  #seconds;
  #step = 0;

  /** Increases with each change. */
  version = 0;

  constructor(seconds) {
    this.#seconds = seconds;
  }

  get empty() {
    return this.#points.size === 0;
  }

  get length() {
    return this.#points.size;
  }

  /** Return whether any point satisfies the predicate. */
  some(like) {
    for (const point of this.#points.values()) if (like(point)) return true;
    return false;
  }

  /** Add the new and changed points of a document of GET /history. */
  add({ step, points }) {
    if (step !== this.#step) this.#points.clear();
    this.#step = step;
    for (const point of points) this.#points.set(Date.parse(point.at) / 1000, point);
    const first = this.#last() - this.#seconds;
    for (const at of this.#points.keys()) if (at <= first) this.#points.delete(at);
    this.version += 1;
  }

  /**
   * Return every slot of the range as {at, point}; point is null if there is none. The range ends at the last point, or two slots
   * before `now` (s) if that is later: the current slot is incomplete, and the previous one may not have arrived.
   */
  slots(now = 0) {
    if (this.empty) return [];
    const step = this.#step;
    const last = Math.max(this.#last(), (Math.floor(now / step) - 2) * step);
    const slots = [];
    for (let at = last - this.#seconds + step; at <= last; at += step) slots.push({ at, point: this.#points.get(at) ?? null });
    return slots;
  }

  #last() {
    let last = -Infinity;
    for (const at of this.#points.keys()) last = Math.max(last, at);
    return last;
  }
}
