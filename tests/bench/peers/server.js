// Peer servers on Node: node server.js uws|ws|socketio, in the folder that `install` filled.
// Prints its port when it listens, and ends when its standard input does.
//
// Over WebSocket, by path: /echo sends back, /publish hands to every connection of /topic. Socket.IO has one
// path, and the events `m` (sent back), `join` and `publish`.

import { createServer } from "node:http";
import { createRequire } from "node:module";

const require = createRequire(`${process.cwd()}/`);
const TOPIC = "topic";
const ready = (port) => console.log(`${port}`);

function uws() {
  // The package's own entry looks for a file that only its build script makes.
  const folder = "./node_modules/@trufflesuite/uws-js-unofficial/dist";
  const uWS = require(`${folder}/uws_${process.platform}_${process.arch}_${process.versions.modules}.node`);
  const app = uWS.App();
  app.ws("/echo", { message: (socket, message, binary) => socket.send(message, binary) });
  app.ws("/topic", { open: (socket) => socket.subscribe(TOPIC) });
  app.ws("/publish", { message: (_socket, message, binary) => app.publish(TOPIC, message, binary) });
  app.listen("127.0.0.1", 0, (listening) => ready(uWS.us_socket_local_port(listening)));
}

function ws() {
  const { WebSocketServer } = require("ws");
  const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
  const subscribers = new Set();
  server.on("connection", (socket, request) => {
    if (request.url === "/topic") {
      subscribers.add(socket);
      socket.on("close", () => subscribers.delete(socket));
    } else if (request.url === "/publish") {
      socket.on("message", (data, binary) => {
        for (const subscriber of subscribers) subscriber.send(data, { binary });
      });
    } else {
      socket.on("message", (data, binary) => socket.send(data, { binary }));
    }
  });
  server.on("listening", () => ready(server.address().port));
}

function socketio() {
  const { Server } = require("socket.io");
  const http = createServer();
  const io = new Server(http, { transports: ["websocket"] });
  io.on("connection", (socket) => {
    socket.on("m", (text) => socket.emit("m", text));
    socket.on("join", () => {
      socket.join(TOPIC);
      socket.emit("joined");
    });
    socket.on("publish", (text) => io.to(TOPIC).emit("m", text));
  });
  http.listen(0, "127.0.0.1", () => ready(http.address().port));
}

const servers = { uws, ws, socketio };
servers[process.argv[2]]();
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
