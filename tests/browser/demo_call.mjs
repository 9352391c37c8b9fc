// A demo call in a real browser: the wall shows it, its text grows, its final text equals the API's.
// usage: demo_call.mjs URL [SCREENSHOT_FOLDER]   expects a demo call to start within 20 s; prints one JSON object, exits 1 with the reason on failure
import { expect, journey } from "./journey.mjs";

const [url, screenshots] = process.argv.slice(2);

await journey({ screenshots, context: { viewport: { width: 1280, height: 800 } } }, async (page, shoot) => {
  await page.goto(url, { waitUntil: "domcontentloaded" });

  const tile = page.getByTestId("tile").first();
  await tile.waitFor({ timeout: 20_000 });
  const id = await tile.getAttribute("data-conversation");
  await shoot("wall");
  await page.goto(`${url}/conversations/${id}`, { waitUntil: "domcontentloaded" });

  // The text grows: count the characters of finals and partials at two moments that the page itself announces.
  const shown = () => page.locator('[data-testid="final"],[data-testid="partial"]').allInnerTexts().then((all) => all.join(" ").length);
  await page.locator('[data-testid="final"],[data-testid="partial"]').first().waitFor({ timeout: 20_000 });
  const before = await shown();
  await page.waitForFunction(
    (n) => [...document.querySelectorAll('[data-testid="final"],[data-testid="partial"]')].map((e) => e.innerText).join(" ").length > n + 40,
    before,
    { timeout: 30_000 },
  );
  await shoot("live");

  // Until the record says that the call is over.
  let row;
  for (;;) {
    row = await (await fetch(`${url}/v1/conversations/${id}`)).json();
    if (row.state !== "live") break;
    await page.waitForTimeout(500);
  }
  const truth = [];
  for (let cursor = null; ; ) {
    const part = await (await fetch(`${url}/v1/conversations/${id}/utterances?limit=200${cursor ? `&cursor=${cursor}` : ""}`)).json();
    truth.push(...part.data.filter((u) => u.kind === "speech"));
    cursor = part.next_cursor;
    if (!cursor) break;
  }
  await page.waitForFunction((n) => document.querySelectorAll('[data-testid="final"]').length === n, truth.length, { timeout: 10_000 });
  const finals = await page.getByTestId("final").evaluateAll((all) =>
    all.map((e) => ({ id: e.dataset.utterance, text: (e.querySelector("[data-text]") ?? e).innerText.replace(/\s+/g, " ").trim() })),
  );
  for (const utterance of truth) {
    const line = finals.find((f) => f.id === utterance.id);
    expect(line, `utterance ${utterance.id} is in the record and not on the page`);
    expect(line.text.includes(utterance.text.replace(/\s+/g, " ")), `the page says ${JSON.stringify(line.text)}, the record ${JSON.stringify(utterance.text)}`);
  }
  await shoot("ended");
  return { conversation: id, utterances: truth.length };
});
