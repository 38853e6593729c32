// Connects the inputs, the text, the inspector, and the session that computes.

'use strict';

const MAX_SCORED = 50000; // characters; the page would become slow

const model = JSON.parse(byId('model').textContent);
const tokenizer = new CharTokenizer(model);
const settings = new Settings(model.options, model.sizes.vocab, () => inspector.showCandidates());
const view = new TextView(byId('text'), tokenizer, onSelect);
const inspector = new Inspector(model, tokenizer, view, settings);
const prompt = new KnownText(byId('prompt'), byId('prompt-unknown'), tokenizer);
const pasted = new KnownText(byId('pasted'), byId('pasted-unknown'), tokenizer);

let task = null; // {number, type, ...} at work
let tasks = 0; // how many there were
let askedAbout = -1; // the number of the last question of the inspector
const send = startSession(receive);

// Start the session in a worker made from the page's own source, or else in this page. Returns the
// function that sends it a message.
function startSession(receive) {
  const source = {
    model,
    weights: byId('weights').textContent,
    kernel: typeof WebAssembly === 'object' ? byId('kernel').textContent : '',
  };
  const here = () => {
    makeSession(source, (answer) => setTimeout(() => receive(answer))).then((session) => {
      deliver = session;
      waiting.forEach(session);
    }).catch((error) => receive({ type: 'failed', error: String(error) }));
  };
  const waiting = []; // messages until it is known where the session runs
  let deliver = (message) => waiting.push(message);
  try {
    const code = `${byId('engine').textContent}\nstartWorker();`;
    const worker = new Worker(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
    worker.onmessage = ({ data }) => {
      if (data.type === 'ready') {
        deliver = (message) => worker.postMessage(message);
        waiting.forEach(deliver);
      }
      receive(data);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      worker.terminate();
      here();
    };
    worker.postMessage(source);
  } catch {
    here();
  }
  return (message) => deliver(message);
}

function showStatus(text) {
  byId('status').textContent = text;
}

function receive(answer) {
  if (answer.type === 'ready') {
    showStatus(`Ready: computes with ${answer.kernel}, loaded in ${Math.round(answer.milliseconds)} ms.`);
    document.body.dataset.kernel = answer.kernel;
    showWork();
  } else if (answer.type === 'failed') {
    showStatus(`It failed: ${answer.error}`);
    finish();
  } else if (answer.type === 'inspected') {
    if (answer.task === askedAbout && answer.index === view.chosen) inspector.show(answer);
  } else if (task && answer.task === task.number) {
    if (answer.type === 'characters') addCharacters(answer);
    else done(answer);
  }
}

function begin(type, message, more = {}) {
  task = { number: ++tasks, type, made: 0, ...more };
  send({ type, task: task.number, ...message });
  showWork();
}

function addCharacters({ ids, bits }) {
  if (task.type === 'generate') {
    view.append(ids, bits);
  } else {
    view.setBits(task.made, bits);
    if (!task.quiet) showStatus(`Scored ${number.format(task.made + ids.length)} of ${number.format(task.length)}`);
  }
  task.made += ids.length;
  byId('copy').disabled = !view.characters.length;
  if (!byId('surprise').hidden) showBits();
}

function done({ count, seconds }) {
  const { type, seed } = task;
  const rate = number.format(Math.round(count / Math.max(seconds, 0.001)));
  const one = model.unit === 'byte' ? 'bytes' : 'characters';
  const said = type === 'generate'
    ? `Generated ${number.format(count)} ${one} (${rate} a second). Seed ${seed} gives this text again.`
    : `Scored ${number.format(count)} ${one} (${rate} a second).`;
  const { quiet } = task;
  finish();
  if (!quiet) showStatus(said);
  scoreRest();
}

function finish() {
  task = null;
  showWork();
}

function stop() {
  const { type, made, seed } = task;
  send({ type: 'stop' });
  finish();
  showStatus(type === 'generate'
    ? `Stopped after ${number.format(made)}. Seed ${seed} gives this text again.`
    : `Stopped after ${number.format(made)}.`);
}

function showWork() {
  const ready = 'kernel' in document.body.dataset;
  byId('start').disabled = byId('score').disabled = !ready || Boolean(task);
  for (const button of document.querySelectorAll('button.stop')) button.disabled = !task;
  byId('text').setAttribute('aria-busy', String(Boolean(task)));
}

// Score what has no bits yet: a pasted text, or a prompt, once colours are shown.
function scoreRest() {
  showBits();
  const unknown = view.bits.indexOf(null);
  if (task || unknown < 0 || byId('surprise').hidden) return;
  const length = view.bits.lastIndexOf(null) + 1;
  const quiet = length < view.ids.length; // a prompt: what is said of the text stays
  begin('score', { ids: view.ids, length }, { length, quiet });
}

function showBits() {
  const known = view.bits.filter((b) => b !== null);
  if (!known.length) return byId('bits').replaceChildren();
  const total = known.reduce((sum, b) => sum + b, 0);
  const one = model.unit === 'byte' ? 'byte' : 'character';
  byId('bits').replaceChildren(
    element('strong', '', (total / known.length).toFixed(2)),
    ` bits per ${one}: ${number.format(Math.round(total))} bits for ${number.format(known.length)} ${one}s. ` +
    `Without a network, choosing among ${number.format(model.sizes.vocab)} ${one}s takes ` +
    `${Math.log2(model.sizes.vocab).toFixed(2)} bits for each.`,
  );
}

function onSelect(index) {
  if (index < 0) return inspector.hide();
  askedAbout = ++tasks;
  send({ type: 'inspect', task: askedAbout, ids: view.ids.slice(0, index), index });
}

// Scroll to the text if most of it is below the window.
function showText() {
  const card = byId('text').closest('section');
  if (byId('text').getBoundingClientRect().top > 0.6 * innerHeight) card.scrollIntoView();
}

function newText() {
  view.select(-1);
  view.clear();
}

byId('panel-generate').addEventListener('submit', (event) => {
  event.preventDefault();
  if (task || byId('start').disabled) return;
  if (!prompt.check()) return byId('prompt').focus();
  const typed = byId('seed').value.trim();
  if (typed && !/^\d+$/.test(typed)) {
    showStatus(`The seed is ${typed}; give a whole number, or leave it empty for a random one.`);
    return byId('seed').focus();
  }
  const seed = typed || String(crypto.getRandomValues(new Uint32Array(1))[0]);
  const ids = tokenizer.encode(byId('prompt').value);
  const length = byId('length').valueAsNumber;
  newText();
  view.append(ids, [], true);
  showStatus(`Generating with seed ${seed}`);
  showText();
  begin('generate', { ids, length, seed, options: { ...settings.values } }, { seed });
});

byId('panel-score').addEventListener('submit', (event) => {
  event.preventDefault();
  if (task || byId('score').disabled) return;
  const text = byId('pasted').value;
  if (!text) return byId('pasted').focus();
  if (!pasted.check()) return byId('pasted').focus();
  const ids = tokenizer.encode(text);
  if (ids.length > MAX_SCORED) {
    showStatus(`The text has ${number.format(ids.length)}; score at most ${number.format(MAX_SCORED)} at once.`);
    return byId('pasted').focus();
  }
  newText();
  view.append(ids, []);
  byId('coloured').checked = true;
  showText();
  showColours(); // which scores what is not scored yet
});

function showColours() {
  const shown = byId('coloured').checked;
  byId('text').classList.toggle('coloured', shown);
  byId('surprise').hidden = !shown;
  if (shown) scoreRest();
}

for (const button of document.querySelectorAll('button.stop')) button.addEventListener('click', stop);
byId('coloured').addEventListener('change', showColours);
byId('close').addEventListener('click', () => {
  view.select(-1);
  byId('text').focus({ preventScroll: true });
});
byId('copy').addEventListener('click', async () => {
  try {
    await navigator.clipboard.writeText(view.text);
    showStatus('Copied.');
  } catch {
    getSelection().selectAllChildren(byId('text'));
    showStatus('Selected: press Ctrl+C or Command+C to copy.');
  }
});

settings.addTo(byId('settings'));
settings.addTo(byId('live-settings'), ['temperature', 'top_p', 'top_k', 'min_p']);
byId('length').value = model.options.max_new_tokens || 1;
byId('text').dataset.empty = 'The text appears here.';
setUpTabs();
showLegend();
showAbout(model);
