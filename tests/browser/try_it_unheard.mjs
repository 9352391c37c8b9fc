// "Try it" by a connection that breaks just before the page would hear that its call is over: it asks the record, and says that it is.
// usage: try_it_unheard.mjs URL WAV   (48 kHz mono) prints one JSON object with how often the connection broke
import net from "node:net";
import { expect, journey } from "./journey.mjs";

const [url, wav] = process.argv.slice(2);
const microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", `--use-file-for-fake-audio-capture=${wav}%noloop`];

let broken = 0;
const between = net.createServer((page) => {
  const server = net.connect(Number(new URL(url).port), "127.0.0.1");
  const end = () => [page, server].forEach((socket) => socket.destroy());
  [page, server].forEach((socket) => socket.on("error", end).on("close", end));
  page.pipe(server);
  server.on("data", (data) => {
    // What a server sends is not masked.
    if (!data.includes('"type":"ended"')) return page.write(data);
    broken += 1;
    end();
  });
});
await new Promise((resolve) => between.listen(0, "127.0.0.1", resolve));
const here = `http://127.0.0.1:${between.address().port}`;

await journey({ args: microphone, context: { permissions: ["microphone"] }, expected: /WebSocket/ }, async (page) => {
  await page.goto(`${here}/try`, { waitUntil: "domcontentloaded" });
  await page.getByTestId("try-mic").click();
  await page.locator('[data-testid="final"]').first().waitFor({ timeout: 30_000 });
  await page.getByTestId("try-stop").click();
  const panel = page.getByTestId("try-console");
  await page.locator('[data-testid="try-console"][data-phase="finished"], [data-testid="try-console"][data-phase="failed"]').waitFor({ timeout: 30_000 });
  expect((await panel.getAttribute("data-phase")) === "finished", `the page says: ${await page.innerText("main")}`);
  await page.getByTestId("try-open").click();
  await page.locator('[data-testid="final"]').first().waitFor({ timeout: 10_000 });
  return { broken };
});
between.close();
