// `tsc --checkJs` over the page.

import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const tools = createRequire(
  resolve(process.env.BERTH_WEB_TOOLS || "target/web-tools", "package.json"),
);
const tsc = tools.resolve("typescript/bin/tsc");
try {
  execFileSync(process.execPath, [tsc, "-p", "web/tsconfig.json"], { stdio: "inherit" });
} catch {
  process.exitCode = 1;
}
