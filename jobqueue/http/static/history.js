// The history by slots of one length, for a range up to the latest: what is older is let go, so it never holds more than a range.

export class History {
  #points = new Map(); // by the slot's start, in s
  #seconds;
  #step = 0;

  /** A change of it is another number. */
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

  /** Whether a point is as it is asked for. */
  some(like) {
    for (const point of this.#points.values()) if (like(point)) return true;
    return false;
  }

  /** Take in a document of GET /history: points that are new, or are known better by now. */
  add({ step, points }) {
    if (step !== this.#step) this.#points.clear();
    this.#step = step;
    for (const point of points) this.#points.set(Date.parse(point.at) / 1000, point);
    const first = this.#last() - this.#seconds;
    for (const at of this.#points.keys()) if (at <= first) this.#points.delete(at);
    this.version += 1;
  }

  /**
   * Every slot of the range up to the later of the last point and of `now` (s): {at, point}, where there is none with null.
   * The slot of now is not over, nor may the one before it have been told of yet.
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
