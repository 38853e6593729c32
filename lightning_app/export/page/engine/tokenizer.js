// Text to ids and back; as data/tokenizer.py. With unit "char" every code point of the alphabet has
// an id, with unit "byte" every byte of UTF-8.

'use strict';

class CharTokenizer {
  // alphabet: code points, or bytes, by id. keyboard: what to type for typographic characters.
  constructor({ alphabet, unit, keyboard }) {
    this.unit = unit;
    this.alphabet = alphabet;
    this.keyboard = keyboard;
    this.ids = new Map(alphabet.map((code, id) => [code, id]));
  }

  // The codes of a text: of its characters, or its bytes.
  toCodes(text) {
    if (this.unit === 'byte') return Array.from(new TextEncoder().encode(text));
    return Array.from(text, (c) => c.codePointAt(0));
  }

  knows(text) {
    return this.toCodes(text).every((code) => this.ids.has(code));
  }

  // The different characters of a text that the network never saw.
  unknown(text) {
    return [...new Set(text)].filter((c) => !this.knows(c));
  }

  // Ids of a text whose characters are all known.
  encode(text) {
    return this.toCodes(text).map((code) => this.ids.get(code));
  }

  // A function that decodes one text id by id: it returns the characters that an id completes.
  decoder() {
    if (this.unit === 'char') return (id) => String.fromCodePoint(this.alphabet[id]);
    const utf8 = new TextDecoder('utf-8', { ignoreBOM: true });
    return (id) => utf8.decode(Uint8Array.of(this.alphabet[id]), { stream: true });
  }

  // Similar characters that the network knows: of the keyboard, without accents, of the other case.
  // An empty string if there are none.
  substitute(c) {
    const plain = c.normalize('NFKD').replace(/\p{M}/gu, '');
    const found = [this.keyboard[c] ?? '', plain, plain.toLowerCase(), plain.toUpperCase()];
    return found.find((s) => s && s !== c && this.knows(s)) ?? '';
  }
}
