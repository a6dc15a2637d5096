// peer: npm's `nacos` 2.6.3 doing what client.lua does.
//
//   peer.js watch ADDRESS GROUP KEYS
//   peer.js add ADDRESS GROUP KEYS
//   peer.js read ADDRESS GROUP KEYS WAYS
'use strict';
const { NacosConfigClient } = require('nacos');

const [mode, address, group, keyCount, waysText] = process.argv.slice(2);
const keys = Number(keyCount);
const now = () => process.hrtime.bigint();
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const quiet = { info() {}, warn() {}, error() {}, debug() {}, log() {} };
const client = new NacosConfigClient({ serverAddr: address, namespace: '', requestTimeout: 6000, logger: quiet });
const parse = (content) => /^(\d+)\.([^.]*)/.exec(content).slice(1);

async function watch() {
  const before = new Map();
  const counts = {};
  for (let i = 0; i < keys; i++) {
    client.subscribe({ dataId: 'cfg-' + i, group }, (content) => {
      const seen = now();
      const [sent, tag] = parse(content);
      if (!before.has(i)) {
        before.set(i, tag);
        if (before.size === keys) console.log(`ready ${seen}`);
      } else if (!tag.startsWith('all')) {
        console.log(`change ${tag} ${sent} ${seen}`);
      } else if (before.get(i) !== tag) {
        counts[tag] = (counts[tag] || 0) + 1;
        if (counts[tag] === keys) console.log(`all ${tag} ${seen}`);
      }
      before.set(i, tag);
    });
  }
  if (keys === 0) {
    await client.getConfig('cfg-0', group);
    console.log(`ready ${now()}`);
    setTimeout(() => {}, 3600000);
  }
}

async function add() {
  for (let i = 0; i <= keys; i++) {
    let arrived = 0;
    let wake;
    const woken = new Promise((resolve) => { wake = resolve; });
    client.subscribe({ dataId: 'cfg-' + i, group }, (content) => {
      const [sent, tag] = parse(content);
      if (++arrived > 1) {
        console.log(`change ${tag} ${sent} ${now()}`);
        wake();
      }
    });
    console.log(`added ${i}`);
    if (i > 0) await woken;
    await sleep(1000);
  }
}

async function read() {
  const ways = Number(waysText);
  for await (const line of require('readline').createInterface({ input: process.stdin })) {
    const count = Number(line);
    let next = 0;
    const wall = now();
    const cpu = process.cpuUsage();
    await Promise.all(Array.from({ length: ways }, async () => {
      while (next < count) await client.getConfig('cfg-' + (next++ % keys), group);
    }));
    const used = process.cpuUsage(cpu);
    console.log(`done ${now() - wall} ${(used.user + used.system) * 1000}`);
  }
  process.exit(0);
}

({ watch, add, read })[mode]().catch((err) => {
  console.error(err);
  process.exit(1);
});
