// A daemon on a simulated host, for the tests of the page.

import { execFile, spawn } from "node:child_process";
import { mkdtemp, open, readFile, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);
const { BERTH_BIN = "target/debug" } = process.env;

/** Starts, kills and asks one berthd whose state outlives it. */
export class Daemon {
  /** @param {string} host e.g. `sim:gpu-server` */
  static async start(host) {
    const daemon = new Daemon();
    daemon.host = host;
    daemon.directory = await mkdtemp(join(tmpdir(), "berth-page-"));
    daemon.port = await freePort();
    daemon.url = `http://127.0.0.1:${daemon.port}/`;
    daemon.endpoint = `unix:${join(daemon.directory, "berthd.sock")}`;
    await daemon.up();
    return daemon;
  }

  /** Starts the process and waits until it answers. */
  async up() {
    const socket = (name) => `unix:${join(this.directory, name)}`;
    const log = await open(join(this.directory, "berthd.log"), "a");
    const options = [
      ["--host", this.host],
      ["--state-dir", join(this.directory, "state")],
      ["--listen-grpc", this.endpoint],
      ["--listen-http", `127.0.0.1:${this.port}`],
      ["--listen-handover", socket("handover.sock")],
    ];
    this.child = spawn(join(BERTH_BIN, "berthd"), options.flat(), {
      stdio: ["ignore", "ignore", log.fd],
    });
    await log.close();
    const deadline = Date.now() + 60_000;
    while (!(await this.isReady())) {
      if (this.child.exitCode !== null || Date.now() > deadline) {
        throw new Error(
          `berthd isn't ready: ${await readFile(join(this.directory, "berthd.log"), "utf8")}`,
        );
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  async isReady() {
    try {
      return (await fetch(`${this.url}readyz`)).ok;
    } catch {
      return false;
    }
  }

  /** SIGKILL: nothing is said to anybody. */
  async kill() {
    const ended = new Promise((resolve) => this.child.once("exit", resolve));
    this.child.kill("SIGKILL");
    await ended;
  }

  /** Removes the state of a daemon that is down: the next one knows nothing. */
  async forget() {
    await rm(join(this.directory, "state"), { recursive: true });
  }

  /** Ends the process and removes its state. */
  async stop() {
    if (this.child.exitCode === null && this.child.signalCode === null) await this.kill();
    await rm(this.directory, { recursive: true, force: true });
  }

  /** What `berth` prints; it throws when it fails. */
  async berth(...words) {
    const env = { ...process.env, BERTH_ENDPOINT: this.endpoint };
    return (await run(join(BERTH_BIN, "berth"), words, { env })).stdout;
  }

  /** Reserves a device; the reservation. */
  async reserve(holder, device, ...words) {
    const given = ["reserve", "--holder", holder, "--device", device, "-o", "json"];
    return JSON.parse(await this.berth(...given, ...words));
  }

  /** A process that holds a reservation's devices. */
  run(id, ...command) {
    const env = { ...process.env, BERTH_ENDPOINT: this.endpoint };
    const words = ["run", "--reservation", id, "--", ...command, "{device}", "{iommufd}"];
    return spawn(join(BERTH_BIN, "berth"), words, { env, stdio: "ignore" });
  }

  /** A document of the API. */
  async get(path) {
    return (
      await fetch(`${this.url}api/v1/${path}`, { headers: { accept: "application/json" } })
    ).json();
  }
}

/** @returns {Promise<number>} */
function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer().once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}
