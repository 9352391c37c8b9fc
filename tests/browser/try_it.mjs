// "Try it" with a fake microphone: what the file says is heard, live, and becomes a conversation in the record.
// usage: try_it.mjs URL WAV   (48 kHz mono) prints one JSON object with the text
import { journey } from "./journey.mjs";

const [url, wav] = process.argv.slice(2);
const microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", `--use-file-for-fake-audio-capture=${wav}%noloop`];

await journey({ args: microphone, context: { permissions: ["microphone"] } }, async (page) => {
  await page.goto(`${url}/try`, { waitUntil: "domcontentloaded" });
  await page.getByTestId("try-mic").click();
  await page.locator('[data-testid="final"]').first().waitFor({ timeout: 30_000 });
  const text = (await page.getByTestId("final").allInnerTexts()).join(" ").replace(/\s+/g, " ");
  await page.getByTestId("try-stop").click();
  return { text };
});
