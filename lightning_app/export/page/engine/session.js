// Generates and scores texts when it is told to. It runs in a worker, so that the page stays
// responsive; where a browser has no worker for a page on disk, in the page itself. It pauses after
// SLICE_MS to send what it has and to hear whether it should stop.
//
// Messages to it: {type: 'generate' | 'score' | 'inspect', task, ...}, {type: 'stop'}. Every answer
// has the `task` it belongs to. A new text stops the one before it.

'use strict';

const SLICE_MS = 12;

// `post` sends an answer. model: see `page.py`; weights: gzip in base64; kernel: base64, may be empty.
async function makeSession({ model, weights, kernel }, post) {
  const began = performance.now();
  const unpacked = await unzip(fromBase64(weights));
  const network = new Network(model, unpacked, kernel ? fromBase64(kernel) : null);
  const { blockSize, vocab } = model.sizes;
  const channel = new MessageChannel(); // unlike setTimeout, it does not wait
  let resume = null;
  let current = null; // the text at work
  channel.port1.onmessage = () => resume();
  const pause = () => new Promise((resolve) => {
    resume = resolve;
    channel.port2.postMessage(null);
  });
  const window = (ids, n) => ids.slice(n - contextLength(n, blockSize), n);

  // Send {ids, bits} of a text as it is made. `next` returns [id, bits], or null at the end.
  async function stream(task, next) {
    const started = performance.now();
    let count = 0;
    for (let ended = false; !ended; ) {
      const ids = [], bits = [], until = performance.now() + SLICE_MS;
      while (!ended && performance.now() < until) {
        const found = next();
        if (!found) ended = true;
        else ids.push(found[0]), bits.push(found[1]);
      }
      count += ids.length;
      post({ type: 'characters', task, ids, bits });
      await pause();
      if (current !== task) return;
    }
    post({ type: 'done', task, count, seconds: (performance.now() - started) / 1000 });
  }

  const first = firstDistribution(model.counts, vocab);
  // A pasted text may begin with a character that the training part of the text never had.
  const firstBits = (id) => -Math.log2(first[id] || 1 / vocab);

  const work = {
    // Continue `ids` by up to `length` characters.
    generate({ task, ids, length, seed, options }) {
      const text = Array.from(ids), seen = new Uint8Array(vocab), random = sampleNumbers(seed);
      for (const id of text) seen[id] = 1;
      const end = text.length + length;
      return stream(task, () => {
        if (text.length >= end) return null;
        let id, bits;
        if (text.length) {
          const logits = network.logitsAfter(window(text, text.length));
          id = draw(distribution(logits, (v) => seen[v], options), random());
          bits = surprise(logits, id);
        } else {
          id = draw(first, random());
          bits = firstBits(id);
        }
        seen[id] = 1;
        text.push(id);
        return [id, bits];
      });
    },

    // The surprise at each of the first `length` ids of a text, given those before it.
    score({ task, ids, length }) {
      let i = 0, passes = -1, begin = -1, passEnd = 0; // passEnd: one past the last id that was read
      return stream(task, () => {
        if (i >= length) return null;
        const id = ids[i];
        let bits = firstBits(id);
        if (i) {
          const start = i - contextLength(i, blockSize);
          if (start !== begin || passes !== network.passes) { // a new context, or another task's
            begin = start;
            passEnd = i - 1;
            if (passEnd > begin) network.logitsAfter(ids.slice(begin, passEnd));
          }
          if (i > passEnd) { // several ids are read together
            passEnd = Math.min(i - 1 + POSITIONS_PER_PASS, begin + blockSize, ids.length);
            network.forward(ids.slice(i - 1, passEnd), i - 1 - begin);
          }
          passes = network.passes;
          bits = surprise(network.logits(i - 1 - begin - network.passStart), id);
        }
        i++;
        return [id, bits];
      });
    },

    // What could have followed the first `index` ids of a text, and what the network looked at.
    inspect({ task, ids, index }) {
      if (!index) {
        const logits = Float32Array.from(first, (p) => Math.log(Math.max(p, 1e-30)));
        return post({ type: 'inspected', task, index, logits, attention: [], length: 0 });
      }
      const seenIds = window(ids, index);
      const logits = network.logitsAfter(seenIds);
      const attention = network.attentionWeights(seenIds.length);
      return post({ type: 'inspected', task, index, logits, attention, length: seenIds.length });
    },
  };

  post({ type: 'ready', kernel: network.kernelName, milliseconds: performance.now() - began });
  return async (message) => {
    // Inspecting takes a moment; a text that is being generated goes on after it.
    if (message.type !== 'inspect') current = message.task ?? null;
    try {
      await work[message.type]?.(message);
    } catch (error) {
      post({ type: 'failed', task: message.task, error: String(error) });
    }
  };
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function unzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Called at the end of a worker's source: its first message is the model.
function startWorker() {
  let session = null;
  const fail = (error) => setTimeout(() => { throw error; }); // an event for the page
  self.onmessage = ({ data }) => {
    if (session) session.then((receive) => receive(data));
    else (session = makeSession(data, (answer) => self.postMessage(answer))).catch(fail);
  };
}
