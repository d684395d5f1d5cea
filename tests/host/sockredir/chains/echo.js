// SPDX-License-Identifier: MIT OR Apache-2.0
//
// usage: echo.js server PORT | echo.js client PORT SEED TRANSFERS MOST
//
// Streams of Node. The server sends back what it gets until the end. The client sends and reads at once, and compares.
'use strict';
const crypto = require('crypto');
const net = require('net');
const [what, port, seed, transfers, most] = [process.argv[2], ...process.argv.slice(3).map(Number)];

if (what === 'server') {
    net.createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket)).listen(port, '127.0.0.1');
} else {
    client().catch((error) => { console.error(error); process.exit(1); });
}

// Numbers from 0 to 1 (mulberry32).
function numbers(state) {
    return () => {
        state = (state + 0x6d2b79f5) | 0;
        let t = Math.imul(state ^ (state >>> 15), 1 | state);
        t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
        return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
}

function transfer(chance, size) {
    return new Promise((resolve, reject) => {
        const data = crypto.randomBytes(size);
        const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true });
        const late = setTimeout(() => reject(new Error(`${at} of ${size} bytes came back in 30 s`)), 30000);
        let [sent, at] = [0, 0];
        const send = () => {
            while (sent < size) {
                const end = Math.min(size, sent + Math.ceil(300000 ** chance()));
                const more = socket.write(data.subarray(sent, end));
                sent = end;
                if (!more) { socket.once('drain', send); return; }
            }
            socket.end();
        };
        socket.on('connect', send);
        socket.on('data', (got) => {
            if (!data.subarray(at, at + got.length).equals(got)) reject(new Error(`wrong after ${at} of ${size}`));
            at += got.length;
        });
        socket.on('error', reject);
        socket.on('end', () => {
            clearTimeout(late);
            if (at === size && sent === size) resolve(); else reject(new Error(`${at} of ${size} bytes came back`));
        });
    });
}

async function client() {
    const chance = numbers(seed);
    const sizes = [1024, most];
    while (sizes.length < transfers) sizes.push(Math.floor(1024 * (most / 1024) ** chance()));
    while (sizes.length) await Promise.all(sizes.splice(0, 4).map((size) => transfer(chance, size)));
    console.log('ok', transfers);
}
