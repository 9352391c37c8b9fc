// "Try it" with a fake microphone: what the file says is heard, live, and becomes a conversation in the record.
// usage: try_it.mjs URL WAV   (48 kHz mono) prints one JSON object with the text
import { chromium } from "playwright-core";

const [url, wav] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: [
    "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", `--use-file-for-fake-audio-capture=${wav}%noloop`,
  ],
});
try {
  const context = await browser.newContext({ permissions: ["microphone"] });
  const page = await context.newPage();
  await page.goto(`${url}/try`, { waitUntil: "domcontentloaded" });
  await page.getByTestId("try-mic").click();
  await page.locator('[data-testid="final"]').first().waitFor({ timeout: 30_000 });
  const text = (await page.getByTestId("final").allInnerTexts()).join(" ").replace(/\s+/g, " ");
  await page.getByTestId("try-stop").click();
  console.log(JSON.stringify({ text }));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  await browser.close();
}
