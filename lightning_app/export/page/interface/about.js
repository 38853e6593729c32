// What the network is, and how good.

'use strict';

function showAbout({ about, sizes, unit }) {
  const one = unit === 'byte' ? 'byte' : 'character';
  const count = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} million` : number.format(n));
  byId('lede').textContent =
    `${count(about.parameters)} parameters, which write one ${one} at a time. Everything happens in ` +
    'this page, on this device: start it, stop it, and select any character to see what else could ' +
    'have stood there.';
  for (const place of document.querySelectorAll('.losses .unit')) place.textContent = one;
  const facts = {
    'trained on': about.text,
    [`${one}s of text`]: about.characters && number.format(about.characters),
    parameters: number.format(about.parameters),
    layers: sizes.layers,
    'heads per layer': sizes.heads,
    width: sizes.embd,
    context: `${number.format(sizes.blockSize)} ${one}s`,
    alphabet: `${number.format(sizes.vocab)} ${one}s`,
    'n-gram counts': sizes.ngramEntries && number.format(sizes.ngramEntries),
    'training steps': about.steps && number.format(about.steps),
  };
  for (const [name, value] of Object.entries(facts)) {
    if (!value) continue;
    const pair = element('div');
    pair.append(element('dt', '', name), element('dd', '', String(value)));
    byId('facts').append(pair);
  }
  const losses = [
    [`every ${one} equally likely`, about.uniform_bits],
    [`each ${one} as likely as it is frequent`, about.unigram_bits],
    ...about.baselines,
    ['this network', about.bits, true],
  ].filter(([, bits]) => bits !== null);
  losses.sort((a, b) => b[1] - a[1]);
  const highest = Math.max(...losses.map(([, bits]) => bits));
  for (const [name, bits, own] of losses) {
    const item = element('li', own ? 'own' : ''), row = element('div', 'row');
    const track = element('div', 'track'), bar = element('b');
    bar.style.width = `${(100 * bits) / highest}%`;
    track.append(bar);
    row.append(element('span', '', name), element('span', 'value', bits.toFixed(2)));
    item.append(row, track);
    byId('losses').append(item);
  }
  if (about.bits === null) {
    byId('losses').append(element('li', 'note', 'The checkpoint has no validation loss of this network.'));
  }
}
