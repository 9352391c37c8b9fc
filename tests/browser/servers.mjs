// What the topology page says of servers that processes share, and of a peer in the registry.
// usage: servers.mjs URL ready|degraded|lost PEER [SCREENSHOT_FOLDER]   waits until the page says so; prints one JSON object
import { expect, journey } from "./journey.mjs";

const [url, state, peer, screenshots] = process.argv.slice(2);
const PATIENCE = { timeout: 30_000 };

// While the database is away, what the page asks of it is answered with 503.
await journey({ screenshots, context: { viewport: { width: 1280, height: 900 } }, expected: /503/ }, async (page, shoot) => {
  await page.goto(`${url}/topology`, { waitUntil: "domcontentloaded" });
  const servers = page.getByTestId("servers");
  await servers.waitFor(PATIENCE);
  const says = state === "degraded" ? "degraded" : "answers";
  const row = (name) => servers.locator("tr", { has: page.locator(`th:text-is("${name}")`) });
  for (const name of ["bus", "cache", "record", "registry"]) await row(name).locator("td", { hasText: says }).waitFor(PATIENCE);
  await row("recordings").locator("td", { hasText: "answers" }).waitFor(PATIENCE); // its disk is another
  let lost = null;
  if (state === "lost") {
    lost = await page.getByTestId("lost").filter({ hasText: peer }).innerText(PATIENCE);
  } else {
    const target = page.getByTestId("dial-inference").locator("tr", { hasText: peer });
    await target.getByText("in the registry").waitFor(PATIENCE);
    if (state === "ready") await target.getByText("in the registry, lease").waitFor(PATIENCE);
  }
  for (const width of [1280, 390]) {
    await page.setViewportSize({ width, height: 900 });
    expect(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `the page is wider than ${width} px`);
    for (const colorScheme of ["dark", "light"]) {
      await page.emulateMedia({ colorScheme });
      await shoot(`servers-${state}-${colorScheme}-${width}`, { fullPage: true });
    }
  }
  return { servers: await servers.innerText(), lost };
});
