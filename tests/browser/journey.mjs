// What every journey in a browser begins and ends with: Chromium, a page whose complaints are kept, one JSON object on stdout, exit 1 with the reason.
import { chromium } from "playwright-core";

const CHROMIUM = [
  "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

export const expect = (condition, text) => {
  if (!condition) throw new Error(text);
};

/**
 * Runs `steps(page, shoot)` and prints what they return. `shoot(name)` keeps a picture in the folder `screenshots`, if one is given.
 * `args` are Chromium's, `context` is playwright's for the page. Whatever the page logs as an error fails the journey, unless it is `expected`.
 */
export async function journey({ screenshots, args = [], context = {}, expected = /^$/ }, steps) {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: [...CHROMIUM, ...args] });
  try {
    const page = await (await browser.newContext(context)).newPage();
    const problems = [];
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => message.type() === "error" && !expected.test(message.text()) && problems.push(message.text()));
    const shoot = async (name, options = {}) => screenshots && page.screenshot({ path: `${screenshots}/${name}.png`, ...options });
    const seen = await steps(page, shoot);
    expect(problems.length === 0, `the browser complained: ${problems.join("; ")}`);
    console.log(JSON.stringify(seen));
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  } finally {
    await browser.close();
  }
}
