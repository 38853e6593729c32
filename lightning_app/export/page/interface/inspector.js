// What the network predicted for one place of the text: the likeliest characters, and the attention.

'use strict';

const SHOWN = 10; // candidates

class Inspector {
  constructor(model, tokenizer, view, settings) {
    Object.assign(this, { model, tokenizer, view, settings });
    this.answer = null; // {index, logits, attention, length}
    this.head = 'mean';
    byId('heads').addEventListener('change', ({ target }) => {
      this.head = target.value;
      this.showWeights();
    });
  }

  show(answer) {
    this.answer = answer;
    byId('inspector').classList.add('open');
    byId('inspector-empty').hidden = true;
    byId('inspector-body').hidden = false;
    byId('close').hidden = false;
    this.showChosen();
    this.showCandidates();
    byId('attention').hidden = !answer.attention.length;
    if (answer.attention.length) this.showHeads();
  }

  hide() {
    this.answer = null;
    byId('inspector').classList.remove('open');
    byId('inspector-empty').hidden = false;
    byId('inspector-body').hidden = true;
    byId('close').hidden = true;
  }

  // The name of an id: its character; for a byte that is no ASCII character, its number.
  name(id) {
    const code = this.model.alphabet[id];
    if (this.model.unit === 'byte' && code > 127) return `0x${code.toString(16).toUpperCase()}`;
    return visible(String.fromCodePoint(code));
  }

  showChosen() {
    const { index, logits } = this.answer, { view } = this, character = view.at(index);
    const id = view.ids[index], bits = surprise(logits, id);
    const place = byId('chosen');
    const of = character.last - character.first + 1;
    const part = of > 1 ? `byte ${index - character.first + 1} of ${of} of ` : '';
    const probability = percent(2 ** -bits);
    place.replaceChildren(
      part, element('span', 'glyph', visible(character.text)),
      ` is number ${number.format(view.characters.indexOf(character) + 1)} of the text. ` +
      `The network gave it ${probability}: a surprise of ${bits.toFixed(2)} bits.`,
    );
    const best = ranking(logits).slice(0, 3);
    const shares = this.probabilities({ ...this.settings.values, ...PLAIN });
    const likeliest = Array.from(best, (v) => `${this.name(v)} ${percent(shares[v])}`).join(', ');
    announce(`${part}${visible(character.text)}, ${probability}. Likeliest: ${likeliest}`);
  }

  probabilities(options) {
    const { index, logits } = this.answer;
    const before = new Set(this.view.ids.slice(0, index));
    return distribution(logits, (v) => before.has(v), options);
  }

  // The ten likeliest, and the one that is in the text; called again whenever a setting changes.
  showCandidates() {
    if (!this.answer) return;
    const { index, logits } = this.answer, actual = this.view.ids[index];
    const plain = this.probabilities({ ...this.settings.values, ...PLAIN });
    const drawn = this.probabilities(this.settings.values);
    const ranks = ranking(logits), shown = Array.from(ranks.slice(0, SHOWN));
    const list = byId('candidates');
    if (!shown.includes(actual)) shown.push(actual);
    while (list.children.length > shown.length) list.lastChild.remove();
    while (list.children.length < shown.length) list.append(this.candidateRow());
    shown.forEach((v, i) => {
      const row = list.children[i], [name, track, share] = row.children;
      name.textContent = this.name(v);
      track.firstChild.style.width = `${100 * drawn[v]}%`;
      track.lastChild.style.width = `${100 * plain[v]}%`;
      share.textContent = drawn[v] ? percent(drawn[v]) : 'never';
      row.className = `${v === actual ? 'actual ' : ''}${drawn[v] ? '' : 'out '}${i === SHOWN ? 'gap' : ''}`;
      const rank = i === SHOWN ? `, rank ${ranks.indexOf(v) + 1}` : '';
      row.setAttribute('aria-label', `${this.name(v)}${rank}: ${share.textContent} with these settings, ${percent(plain[v])} as the network says${v === actual ? '; it is in the text' : ''}`);
      row.title = `the network says ${percent(plain[v])}${rank}`;
    });
  }

  candidateRow() {
    const row = element('li'), track = element('span', 'track');
    track.append(element('b'), element('u'));
    row.append(element('span', 'name'), track, element('span', 'share'));
    for (const part of row.children) part.setAttribute('aria-hidden', 'true');
    return row;
  }

  // A plot for each head, and one for the mean of all.
  showHeads() {
    const { attention } = this.answer, place = byId('heads');
    if (!place.firstChild) this.makeHeads();
    for (const label of place.querySelectorAll('label')) {
      label.querySelector('path').setAttribute('d', plot(this.weights(label.dataset.head)));
    }
    this.showWeights();
  }

  makeHeads() {
    const { layers, heads } = this.model.sizes;
    const row = (title, names, mean) => {
      const line = element('div', 'layer'), plots = element('div', mean ? '' : 'plots');
      for (const [name, spoken] of names) plots.append(this.headPlot(name, spoken, mean));
      line.append(element('span', '', title), plots);
      byId('heads').append(line);
    };
    row('mean', [['mean', 'Mean of all heads']], true);
    for (let layer = 0; layer < layers; layer++) {
      row(`layer ${layer + 1}`, Array.from({ length: heads }, (_, head) =>
        [`${layer} ${head}`, `Layer ${layer + 1}, head ${head + 1}`]), false);
    }
  }

  headPlot(name, spoken, mean) {
    const label = element('label', mean ? 'mean' : ''), input = element('input');
    Object.assign(input, { type: 'radio', name: 'head', value: name, checked: name === this.head });
    input.setAttribute('aria-label', spoken);
    label.title = spoken;
    label.dataset.head = name;
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    svg.setAttribute('viewBox', '0 0 100 100');
    svg.setAttribute('preserveAspectRatio', 'none');
    svg.setAttribute('aria-hidden', 'true');
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    path.setAttribute('fill', 'currentColor');
    svg.append(path);
    label.append(input, svg);
    return label;
  }

  // The attention weights of a head, or their mean, one for each id of the context.
  weights(head) {
    const { attention } = this.answer;
    if (head !== 'mean') {
      const [l, h] = head.split(' ').map(Number);
      return attention[l][h];
    }
    const all = attention.flat();
    return all[0].map((_, t) => all.reduce((sum, w) => sum + w[t], 0) / all.length);
  }

  // The text before the character, coloured by the weights of the chosen head.
  showWeights() {
    const { index, length } = this.answer, { view } = this, weights = this.weights(this.head);
    const first = index - length;
    const seen = [];
    for (let i = first; i < index; ) {
      const character = view.at(i), end = Math.min(character.last, index - 1);
      let weight = 0;
      for (let t = i; t <= end; t++) weight += weights[t - first];
      seen.push({ text: character.text, weight, back: index - i });
      i = end + 1;
    }
    const highest = Math.max(...seen.map(({ weight }) => weight));
    byId('strip').replaceChildren(...seen.map(({ text, weight }) => {
      const made = element('span', '', text === '\n' ? '↵\n' : text);
      made.style.setProperty('--weight', (weight / highest).toFixed(3));
      made.title = percent(weight);
      return made;
    }));
    byId('strip').scrollTop = byId('strip').scrollHeight;
    const most = [...seen].sort((a, b) => b.weight - a.weight).slice(0, 3);
    const unit = this.model.unit === 'byte' ? 'bytes' : 'characters';
    byId('looked-at').textContent = 'Most: ' + most.map(({ text, weight, back }) =>
      `${visible(text)} ${back === 1 ? 'just before' : `${back} ${unit} before`} (${percent(weight)})`).join(', ') + '.';
  }
}

const PLAIN = { sampling: 'prob', temperature: 1, repetition_penalty: 1 }; // as the network says

// Bars from the first weight on the left to the last on the right. Their height is the root of the
// weight relative to the highest, so that small weights can be seen.
function plot(weights) {
  const highest = Math.max(...weights), width = 100 / weights.length;
  return Array.from(weights, (w, t) => {
    const height = 100 * Math.sqrt(w / highest);
    return `M${(t * width).toFixed(2)} 100v${-height.toFixed(1)}h${width.toFixed(2)}v${height.toFixed(1)}z`;
  }).join('');
}
