// Makes the types of the API out of the document that the daemon serves: target/web/api.d.ts.

import { readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { Daemon } from "./daemon.js";

const TOOLS = createRequire(
  resolve(process.env.BERTH_WEB_TOOLS || "target/web-tools", "package.json"),
);
const OUT = process.env.BERTH_PICTURES || "target/web";

const daemon = await Daemon.start("sim:small");
const document = await (await fetch(`${daemon.url}api/v1/openapi.json`)).text();
await daemon.stop();

// The generator takes seconds, and the document seldom changes.
const made = join(OUT, "openapi.json");
const known = await readFile(made, "utf8").catch(() => "");
if (known !== document) {
  const { default: openapi, astToString } = TOOLS("openapi-typescript");
  await writeFile(join(OUT, "api.d.ts"), astToString(await openapi(JSON.parse(document))));
  await writeFile(made, document);
}
