// Makes the replica set and its users. Does nothing that has been done: it runs at each `docker compose up`.
const { readFileSync } = require("fs");

const secret = (name) => readFileSync(`/run/secrets/${name}`, "utf8").trim();
const password = secret("mongo_password");
const members = ["mongo-1", "mongo-2", "mongo-3"].map((host, _id) => ({ _id, host: `${host}:27017` }));
const ALREADY_INITIALIZED = 23;
const AUTHENTICATION_FAILED = 18;
const USER_EXISTS = 51003;

function ignoring(codes, work) {
  try {
    work();
  } catch (error) {
    if (!codes.includes(error.code)) throw error;
  }
}

const local = connect("mongodb://localhost:27017/admin?directConnection=true&serverSelectionTimeoutMS=60000");
// Before there is a user, nobody has a password.
ignoring([AUTHENTICATION_FAILED], () => local.auth("admin", password));
ignoring([ALREADY_INITIALIZED], () => local.adminCommand({ replSetInitiate: { _id: "chatbox", members } }));
const until = Date.now() + 60000;
while (!local.hello().isWritablePrimary) {
  // On a later start another member may be the primary, and everything is there.
  if (local.hello().primary) quit(0);
  if (Date.now() > until) throw new Error("the replica set has no primary");
  sleep(500);
}
ignoring([USER_EXISTS], () => local.createUser({ user: "admin", pwd: password, roles: ["root"] }));
ignoring([AUTHENTICATION_FAILED], () => local.auth("admin", password));
const roles = [{ role: "readWrite", db: "chatbox" }];
ignoring([USER_EXISTS], () => local.createUser({ user: "chatbox", pwd: secret("store_password"), roles }));
