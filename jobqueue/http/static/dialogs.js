// Modal dialogs, one at a time; Escape closes a dialog.

import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { KEYS, enabled, setEnabled } from "./keyboard.js";

export class Dialogs {
  #update;
  #asked = null; // {template, resolve}

  constructor(update) {
    this.#update = update;
  }

  get open() {
    return this.#asked !== null;
  }

  /**
   * Ask for a confirmation; resolves to true or false.
   *
   * question: {title, text, action: the button's label, danger: whether the action cannot be undone}. `text` may be a template.
   */
  confirm({ title, text, action, danger = false }) {
    return this.#ask(
      html`
        <h2 id="asked">${title}</h2>
        <div>${text}</div>
        <div class="buttons">
          <button type="button" autofocus @click=${() => this.#answer(false)}>Keep as it is</button>
          <button type="button" class=${danger ? "danger" : "primary"} @click=${() => this.#answer(true)}>${action}</button>
        </div>
      `,
      false,
    );
  }

  /**
   * Ask for values; resolves to an object of texts by name, or to null if the user declines.
   *
   * question: {title, text, action: the button's label, fields: [{name, label, value, hint, type, min, max, step}]}. The type of an input is
   * "number" by default. A field may stay empty.
   */
  form({ title, text, action, fields }) {
    const give = (event) => {
      event.preventDefault();
      this.#answer(Object.fromEntries(new FormData(event.target)));
    };
    return this.#ask(
      html`
        <form class="fields" @submit=${give}>
          <h2 id="asked">${title}</h2>
          <div>${text}</div>
          ${fields.map(
            ({ name, label, value, hint, type = "number", min, max, step }, place) => html`
              <label for=${`asked-${name}`}>${label}</label>
              <input id=${`asked-${name}`} name=${name} type=${type} min=${min ?? nothing} max=${max ?? nothing} step=${step ?? nothing} .value=${value ?? ""} aria-describedby=${`hint-${name}`} ?autofocus=${place === 0} />
              <span class="quiet" id=${`hint-${name}`}>${hint}</span>
            `,
          )}
          <div class="buttons">
            <button type="button" @click=${() => this.#answer(null)}>Keep as it is</button>
            <button class="primary">${action}</button>
          </div>
        </form>
      `,
      null,
    );
  }

  /** Ask for a token; resolves to null if the user declines. `wrong`: the service rejected the last token. */
  askToken(wrong) {
    const give = (event) => {
      event.preventDefault();
      this.#answer(event.target.elements.token.value.trim());
    };
    return this.#ask(
      html`
        <form @submit=${give}>
          <h2 id="asked">This service requires a token</h2>
          ${wrong ? html`<p class="bad">The service does not know the last token.</p>` : nothing}
          <p>A token with the role <b>read</b> can see everything. A token with the role <b>admin</b> can also make changes. The browser forgets it when you close this tab.</p>
          <label>Token <input name="token" type="password" autocomplete="off" required autofocus /></label>
          <div class="buttons">
            <button type="button" @click=${() => this.#answer(null)}>Not now</button>
            <button class="primary">Use token</button>
          </div>
        </form>
      `,
      null,
    );
  }

  showKeys() {
    return this.#ask(
      html`
        <h2 id="asked">Keyboard shortcuts</h2>
        <dl class="keys">${KEYS.map(({ keys, does }) => html`<dt>${keys.map((key) => html`<kbd>${key}</kbd> `)}</dt><dd>${does}</dd>`)}</dl>
        <label><input type="checkbox" .checked=${enabled()} @change=${(event) => setEnabled(event.target.checked)} /> Shortcuts are on</label>
        <div class="buttons"><button type="button" autofocus @click=${() => this.#answer(null)}>Close</button></div>
      `,
      null,
    );
  }

  /** Close the dialog as if the user had declined. */
  close() {
    if (this.#asked) this.#answer(this.#asked.declined);
  }

  render() {
    if (!this.#asked) return nothing;
    return html`<dialog aria-labelledby="asked" @cancel=${() => this.close()}>${this.#asked.template}</dialog>`;
  }

  /** Open the rendered dialog as a modal dialog. */
  show() {
    const dialog = document.querySelector("dialog");
    if (dialog && !dialog.open) dialog.showModal();
  }

  #ask(template, declined) {
    this.close();
    const before = document.activeElement;
    return new Promise((resolve) => {
      this.#asked = { template, declined, resolve, before };
      this.#update();
    });
  }

  #answer(value) {
    const { resolve, before } = this.#asked;
    this.#asked = null;
    document.querySelector("dialog")?.close();
    before?.focus?.();
    this.#update();
    resolve(value);
  }
}
