// NumPy's random numbers: `np.random.default_rng(entropy).random()`, bit for bit. So that a seed
// gives the same text here and in `predict`.
//
// SeedSequence (after M. O'Neill, "Developing a seed_seq Alternative", 2015) spreads the seed over
// the state of PCG64 (O'Neill, "PCG", 2014).

'use strict';

// The state of a seed sequence, four 32-bit words. entropy: integers of 0 or more, as BigInt.
function seedPool(entropy) {
  const words = entropy.flatMap((n) => {
    const found = [];
    do found.push(Number(n & 0xffffffffn));
    while ((n >>= 32n) > 0n);
    return found;
  });
  let constant = 0x43b0d7e5;
  const hash = (value) => {
    value ^= constant;
    constant = Math.imul(constant, 0x931e8875);
    value = Math.imul(value, constant);
    return value ^ (value >>> 16);
  };
  const mix = (x, y) => {
    const mixed = Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715);
    return mixed ^ (mixed >>> 16);
  };
  const pool = [0, 1, 2, 3].map((i) => hash(words[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
  }
  for (const word of words.slice(4)) {
    for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  }
  return pool;
}

// A function that returns the next number in [0, 1).
function randomNumbers(entropy) {
  const pool = seedPool(entropy);
  let constant = 0x8b51f9dd;
  const seeds = Array.from({ length: 8 }, (_, i) => {
    let value = pool[i % 4] ^ constant;
    constant = Math.imul(constant, 0x58f38ded);
    value = Math.imul(value, constant);
    return BigInt((value ^ (value >>> 16)) >>> 0);
  });
  const bits128 = (i) => (seeds[i + 1] << 96n) | (seeds[i] << 64n) | (seeds[i + 3] << 32n) | seeds[i + 2];
  const increment = BigInt.asUintN(128, (bits128(4) << 1n) | 1n);
  let state = 0n;
  const step = () => {
    state = BigInt.asUintN(128, state * 0x2360ed051fc65da44385df649fccf645n + increment);
  };
  step();
  state += bits128(0);
  step();
  return () => {
    step();
    const folded = BigInt.asUintN(64, (state >> 64n) ^ state), turn = state >> 122n;
    const word = BigInt.asUintN(64, (folded >> turn) | (folded << (64n - turn)));
    return Number(word >> 11n) / 2 ** 53;
  };
}

// The numbers of the first sample of the first prompt; as `sample_rng` in generation/generate.py.
const sampleNumbers = (seed) => randomNumbers([BigInt(seed), 0n, 0n]);
