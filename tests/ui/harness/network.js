/** Proxies that can be cut, and ports that nobody listens on. Both loopback families, as browsers try `::1` first. */

import dgram from 'node:dgram';
import net from 'node:net';
import { once } from 'node:events';

/** Ports that the kernel gives to no connection, where nothing else is configured, and the other tests do not take. */
const PORTS = { first: 30_000, count: 2700 };

let next = process.pid * 97;

/** @returns {Promise<number>} a port on which nobody listens, for TCP and UDP: nobody else takes it */
export async function freePort() {
  for (let tried = 0; tried < PORTS.count; tried += 1) {
    next += 1;
    const port = PORTS.first + (next % PORTS.count);
    if ((await isFree(port, '::1')) && (await isFree(port, '127.0.0.1'))) return port;
  }
  throw new Error('no port is free');
}

async function isFree(port, address) {
  const server = net.createServer().listen(port, address);
  try {
    await once(server, 'listening');
  } catch {
    return false;
  }
  server.close();
  await once(server, 'close');
  return true;
}

/**
 * Carries UDP to a port on this machine, until it is cut, in one direction or both; it can be slow, and lose some of
 * what the server sends. @param {number} target
 */
export async function udpProxy(target) {
  const port = await freePort();
  let [up, down] = [true, true];
  let [delay, share, chosen] = [0, 0, null];
  let [lost, closed] = [0, false];
  let random = 1;
  const loses = (packet) => {
    random = (random * 48_271) % 2_147_483_647;
    const size = packet.length;
    const next = chosen !== null && size >= chosen.least && size <= chosen.most;
    if (next) {
      chosen.lost(Date.now());
      chosen = null;
    }
    if (!next && random / 2_147_483_647 >= share) return false;
    lost += 1;
    return true;
  };
  const pass = (deliver) => (delay > 0 ? setTimeout(() => closed || deliver(), delay) : deliver());
  const sockets = [];
  const upstreams = new Map();
  for (const [type, address] of [['udp6', '::1'], ['udp4', '127.0.0.1']]) {
    const socket = dgram.createSocket(type);
    sockets.push(socket);
    socket.on('message', (packet, from) => {
      const key = `${type}:${from.port}`;
      let upstream = upstreams.get(key);
      if (!upstream) {
        upstream = dgram.createSocket('udp4');
        upstream.on('message', (answer) => {
          if (down && !loses(answer)) pass(() => socket.send(answer, from.port, from.address, () => {}));
        });
        upstream.on('error', () => {});
        upstreams.set(key, upstream);
      }
      if (up) pass(() => upstream.send(packet, target, '127.0.0.1', () => {}));
    });
    socket.bind(port, address);
    await once(socket, 'listening');
  }
  return {
    port,
    /** From now on packets vanish, as on a network that has begun to drop UDP. */
    cut: () => (up = down = false),
    /** From now on the server hears nothing, and is heard. */
    cutUp: () => (up = false),
    /** From now on the client hears nothing, and is heard. */
    cutDown: () => (down = false),
    /** Holds packets back for so many milliseconds, in each direction. */
    slow: (ms) => (delay = ms),
    /** Loses this share of what the server sends, the same ones in every run that sends the same. */
    lose: (part) => (share = part),
    /** Loses the next packet of the server of such a size. @returns {Promise<number>} when */
    loseNext: (least, most) => new Promise((resolve) => (chosen = { least, most, lost: resolve })),
    /** How many were lost. */
    get lost() {
      return lost;
    },
    close: () => {
      closed = true;
      for (const socket of [...sockets, ...upstreams.values()]) socket.close();
    },
  };
}

/**
 * Carries TCP to a port on this machine; connections can be reset, and new ones refused, and what the server sends be
 * swallowed. @param {number} target
 */
export async function tcpProxy(target, port) {
  let [open, down] = [true, true];
  const bytes = { sent: 0, swallowed: 0 };
  const sockets = new Set();
  const servers = [];
  for (const address of ['::1', '127.0.0.1']) {
    const server = net.createServer((client) => {
      if (!open) {
        client.resetAndDestroy();
        return;
      }
      const upstream = net.connect(target, '127.0.0.1');
      for (const socket of [client, upstream]) {
        sockets.add(socket);
        socket.on('error', () => {});
        socket.on('close', () => {
          sockets.delete(socket);
          client.destroy();
          upstream.destroy();
        });
      }
      client.on('data', (chunk) => {
        bytes.sent += chunk.length;
        upstream.write(chunk);
      });
      upstream.on('data', (chunk) => {
        if (down) client.write(chunk);
        else bytes.swallowed += chunk.length;
      });
    });
    servers.push(server);
    server.listen(port, address);
    await once(server, 'listening');
  }
  return {
    cut: () => {
      open = false;
      for (const socket of sockets) socket.resetAndDestroy();
    },
    cutDown: () => (down = false),
    /** How much clients have sent, and how much of what the server sent has not reached them. */
    bytes,
    mend: () => (open = down = true),
    close: () => {
      for (const socket of sockets) socket.destroy();
      for (const server of servers) server.close();
    },
  };
}
