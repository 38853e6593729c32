// The text on the page: characters that can be selected by a click or by keys, and coloured by
// surprise.

'use strict';

const MOST_BITS = 8; // the strongest colour

class TextView {
  // onSelect(i): called with the index of the selected id, or -1.
  constructor(root, tokenizer, onSelect) {
    Object.assign(this, { root, tokenizer, onSelect });
    root.addEventListener('click', ({ target }) => {
      const found = target.closest('.c') ?? target.querySelector?.('.c:last-of-type');
      if (found && root.contains(found)) this.select(found.character.first);
    });
    root.addEventListener('keydown', (event) => this.onKey(event));
    this.clear();
  }

  clear() {
    this.ids = [];
    this.bits = []; // of each id; null if it is not known yet
    this.characters = []; // {first, last, text, element}: a character and its ids
    this.decode = this.tokenizer.decoder();
    this.pending = 0; // the first id that has not completed a character
    this.chosen = -1;
    this.root.replaceChildren();
    this.line = null;
  }

  get text() {
    return this.characters.map(({ text }) => text).join('');
  }

  // Add ids with their bits at the end; isPrompt: they are the user's.
  append(ids, bits, isPrompt = false) {
    for (let i = 0; i < ids.length; i++) {
      this.ids.push(ids[i]);
      this.bits.push(bits[i] ?? null);
      const text = this.decode(ids[i]);
      if (text) this.addCharacter(text, isPrompt);
    }
  }

  addCharacter(text, isPrompt) {
    const made = element('span', 'c');
    const character = { first: this.pending, last: this.ids.length - 1, text, element: made };
    made.character = character;
    if (isPrompt) made.classList.add('prompt');
    if (!this.line) this.root.append((this.line = element('div', 'line')));
    this.line.append(made);
    if (text === '\n') {
      made.classList.add('newline');
      this.line = null;
    } else {
      made.textContent = text;
    }
    this.characters.push(character);
    this.pending = this.ids.length;
    this.colour(character);
  }

  // The bits of a character, the sum over its ids; null if one is not known.
  bitsOf({ first, last }) {
    const bits = this.bits.slice(first, last + 1);
    return bits.includes(null) ? null : bits.reduce((sum, b) => sum + b, 0);
  }

  setBits(first, bits) {
    bits.forEach((b, i) => (this.bits[first + i] = b));
    for (const character of this.characters) {
      if (character.last >= first && character.first < first + bits.length) this.colour(character);
    }
  }

  colour(character) {
    const bits = this.bitsOf(character);
    const level = bits === null ? 'none' : Math.min(MOST_BITS, Math.round(bits));
    const { classList } = character.element;
    for (const name of [...classList]) if (/^b(\d|none)$/.test(name)) classList.remove(name);
    classList.add(`b${level}`);
  }

  // The character that id i belongs to; undefined if it is not complete yet.
  at(i) {
    let low = 0, high = this.characters.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.characters[middle].last < i) low = middle + 1;
      else high = middle;
    }
    return this.characters[low];
  }

  select(i) {
    this.at(this.chosen)?.element.classList.remove('chosen');
    this.chosen = i;
    const character = i < 0 ? undefined : this.at(i);
    character?.element.classList.add('chosen');
    character?.element.scrollIntoView({ block: 'nearest' });
    this.onSelect(i);
  }

  onKey(event) {
    const count = this.pending, i = this.chosen;
    if (!count || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowLeft: () => Math.max(0, i - 1),
      ArrowRight: () => Math.min(count - 1, i + 1),
      ArrowUp: () => this.beside(-1),
      ArrowDown: () => this.beside(1),
      Home: () => 0,
      End: () => count - 1,
      Escape: () => -1,
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    this.select(i < 0 && event.key.startsWith('Arrow') ? 0 : moves[event.key]());
  }

  // The first id of the character above (-1) or below (1) the chosen one.
  beside(direction) {
    const place = (c) => c.element.getBoundingClientRect();
    const start = this.at(this.chosen), { top, left, height } = place(start);
    let best = null;
    for (let i = this.characters.indexOf(start) + direction; ; i += direction) {
      const character = this.characters[i];
      if (!character) break;
      const rect = place(character), distance = direction * (rect.top - top);
      if (distance < height / 2) continue;
      if (best && Math.abs(rect.top - best.top) > height / 2) break;
      const apart = Math.abs(rect.left - left);
      if (!best || apart < best.apart) best = { apart, top: rect.top, first: character.first };
    }
    return best ? best.first : this.chosen;
  }
}

function showLegend() {
  for (let bits = 0; bits <= MOST_BITS; bits++) {
    const item = element('li');
    item.append(element('i', `b${bits}`), element('span', '', `${2 ** bits}${bits === MOST_BITS ? '+' : ''}`));
    byId('legend').append(item);
  }
}
