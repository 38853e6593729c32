// The page's inputs: the settings of generation, the tabs, and texts with unknown characters.

'use strict';

const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat('en');
const percent = (p) => (p === 0 ? '0 %' : p < 0.001 ? '<0.1 %' : `${(100 * p).toFixed(1)} %`);

function element(tag, className = '', text = '') {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

// A character as it is shown alone: invisible ones by a sign or by their number.
function visible(c) {
  const sign = { ' ': '␣', '\n': '↵', '\t': '⇥' }[c];
  if (sign) return sign;
  if (/^\p{M}/u.test(c)) return `◌${c}`;
  if (/^[\p{C}\p{Z}]/u.test(c)) return codePointName(c);
  return c;
}

const codePointName = (c) => `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}`;

function announce(text) {
  byId('announcer').textContent = text;
}

const METHODS = {
  prob: 'all characters',
  top_p: 'a likely share (top-p)',
  top_k: 'the k likeliest (top-k)',
  min_p: 'those near the best (min-p)',
  argmax: 'only the likeliest',
};

// Sliders; one with a method is shown with this method only.
const sliders = (vocab) => [
  { name: 'temperature', label: 'Temperature', min: 0, max: 2, step: 0.05 },
  { name: 'top_p', label: 'Top-p', min: 0.01, max: 1, step: 0.01, method: 'top_p', usual: 0.9 },
  { name: 'top_k', label: 'Top-k', min: 1, max: vocab, step: 1, method: 'top_k', usual: 5 },
  { name: 'min_p', label: 'Min-p', min: 0, max: 1, step: 0.01, method: 'min_p', usual: 0.05 },
  { name: 'repetition_penalty', label: 'Repetition penalty', min: 1, max: 2, step: 0.05 },
];

// The settings of generation, shown in several places at once. `onChange` is called after a change.
class Settings {
  constructor(options, vocab, onChange) {
    this.values = { ...options };
    this.onChange = onChange;
    this.sliders = sliders(vocab);
    for (const { name, usual } of this.sliders) this.values[name] ??= usual;
    this.places = [];
  }

  // Add the settings with these names (all, if not given) before what is in `place`.
  addTo(place, names) {
    const rest = place.firstChild;
    const method = element('label', 'field');
    const select = element('select');
    for (const [name, text] of Object.entries(METHODS)) select.append(new Option(text, name));
    select.dataset.name = 'sampling';
    method.append(element('span', '', 'Choose among'), select);
    place.insertBefore(method, rest);
    for (const slider of this.sliders.filter(({ name }) => !names || names.includes(name))) {
      const field = element('label', 'field'), label = element('span', '', slider.label);
      const input = element('input'), output = element('output');
      Object.assign(input, { type: 'range', min: slider.min, max: slider.max, step: slider.step });
      input.dataset.name = slider.name;
      if (slider.method) field.dataset.method = slider.method;
      label.append(output);
      field.append(label, input);
      place.insertBefore(field, rest);
    }
    place.addEventListener('input', ({ target }) => {
      const { name } = target.dataset;
      if (!name) return;
      this.values[name] = name === 'sampling' ? target.value : Number(target.value);
      this.show(target);
      this.onChange();
    });
    this.places.push(place);
    this.show(null);
  }

  // Show the values in all places; not in `changed`, which the user holds.
  show(changed) {
    for (const place of this.places) {
      for (const input of place.querySelectorAll('[data-name]')) {
        const value = this.values[input.dataset.name];
        if (input !== changed) input.value = value;
        const output = input.parentElement.querySelector('output');
        if (output) output.textContent = value;
      }
      for (const field of place.querySelectorAll('[data-method]')) {
        field.hidden = field.dataset.method !== this.values.sampling;
      }
    }
  }
}

// Tabs as the ARIA practices describe them: arrow keys change the tab.
function setUpTabs() {
  const tabs = [byId('tab-generate'), byId('tab-score')];
  const show = (chosen) => {
    for (const tab of tabs) {
      tab.setAttribute('aria-selected', String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      byId(tab.getAttribute('aria-controls')).hidden = tab !== chosen;
    }
  };
  tabs.forEach((tab, i) => {
    tab.addEventListener('click', () => show(tab));
    tab.addEventListener('keydown', ({ key }) => {
      if (key !== 'ArrowLeft' && key !== 'ArrowRight') return;
      show(tabs[1 - i]);
      tabs[1 - i].focus();
    });
  });
}

// Names the characters of a text area that the network does not know, and offers to replace or
// remove them. Nothing is dropped unless the user says so.
class KnownText {
  constructor(area, message, tokenizer) {
    Object.assign(this, { area, message, tokenizer });
    area.addEventListener('input', () => this.check());
  }

  check() {
    const unknown = this.tokenizer.unknown(this.area.value);
    this.message.replaceChildren();
    if (!unknown.length) return true;
    const named = unknown.slice(0, 8).map((c) => `${visible(c)} (${codePointName(c)})`);
    const more = unknown.length > 8 ? ` and ${unknown.length - 8} more` : '';
    this.message.append(`The network has never seen: ${named.join(', ')}${more}.`, element('br'));
    const similar = unknown.filter((c) => this.tokenizer.substitute(c));
    const replaced = new Map(similar.map((c) => [c, this.tokenizer.substitute(c)]));
    if (similar.length) {
      const examples = similar.slice(0, 3).map((c) => `${visible(c)} by ${[...replaced.get(c)].map(visible).join('')}`);
      this.offer(`Replace ${examples.join(', ')}${similar.length > 3 ? ', …' : ''}`, (c) => replaced.get(c) ?? c);
    }
    this.offer(`Remove ${similar.length < unknown.length && similar.length ? 'all of them' : 'them'}`, (c) => (unknown.includes(c) ? '' : c));
    return false;
  }

  offer(text, change) {
    const button = element('button', '', text);
    button.type = 'button';
    button.addEventListener('click', () => {
      this.area.value = Array.from(this.area.value, change).join('');
      this.check();
      this.area.focus();
    });
    this.message.append(button);
  }
}
