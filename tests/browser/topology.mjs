// The topology page in a real browser: the dial is turned by keys, a refusal is shown in its words, and undone.
// usage: topology.mjs URL [SCREENSHOT_FOLDER]   inference must have one endpoint that answers, and stand at local; prints one JSON object
import { expect, journey } from "./journey.mjs";

const [url, screenshots] = process.argv.slice(2);

// Chromium logs every refusal; this journey asks for one.
await journey({ screenshots, context: { viewport: { width: 1280, height: 900 } }, expected: /422/ }, async (page, shoot) => {
  await page.goto(`${url}/topology`, { waitUntil: "domcontentloaded" });
  const dial = page.getByTestId("dial-inference");
  const stands = dial.getByTestId("dial-stands");
  const stood = (text) => page.waitForFunction(
    (text) => document.querySelector('[data-testid="dial-inference"] [data-testid="dial-stands"]')?.textContent.startsWith(text), text, { timeout: 10_000 });
  await stands.waitFor({ timeout: 10_000 });
  expect((await stands.innerText()).startsWith("local"), `it stands at ${await stands.innerText()}`);

  // By keys alone: the stage, what it will do, and yes.
  await dial.getByRole("button", { name: "50 %", exact: true }).focus();
  await page.keyboard.press("Enter");
  const confirm = page.getByTestId("confirm");
  await confirm.getByText("From local to 50 % remote.").waitFor({ timeout: 5_000 });
  await shoot("confirm", { fullPage: true });
  await stood("local");
  await page.keyboard.press("Enter");
  await stood("50 % remote");
  await page.getByTestId("said").getByText("inference is now 50 % remote").waitFor({ timeout: 5_000 });

  // Escape leaves it as it is.
  await dial.getByRole("button", { name: "Stage forward" }).click();
  await confirm.getByText("to 100 % remote").waitFor({ timeout: 5_000 });
  await page.keyboard.press("Escape");
  await confirm.waitFor({ state: "detached" });
  await stood("50 % remote");

  await dial.getByRole("button", { name: "Undo" }).click();
  await confirm.getByText("to local.").waitFor({ timeout: 5_000 });
  await confirm.getByLabel("Why").fill("back before the demo");
  await confirm.getByRole("button", { name: "Turn it" }).click();
  await stood("local");
  await dial.getByRole("button", { name: "Stage back" }).click();
  const refused = await confirm.getByTestId("refused").innerText();
  expect(refused.includes("no stage beyond"), refused);
  expect(await confirm.getByRole("button", { name: "Turn it" }).isDisabled(), "a refused turn cannot be confirmed");
  await page.keyboard.press("Escape");

  const changes = await page.getByTestId("changes").innerText();
  expect(changes.includes("local → 50 % remote") && changes.includes("dashboard") && changes.includes("back before the demo"), changes);
  const bottleneck = await page.getByTestId("bottleneck").innerText();
  expect(bottleneck.length > 20, bottleneck);
  for (const theme of ["light", "dark"]) {
    for (const width of [1280, 390]) {
      await page.setViewportSize({ width, height: 900 });
      await page.evaluate((theme) => (document.documentElement.dataset.theme = theme), theme);
      expect(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `the page is wider than ${width} px`);
      const all = await page.evaluate(() => document.querySelector(".page").scrollHeight + 140);
      if (screenshots) await page.setViewportSize({ width, height: all });
      await shoot(`${theme}-${width}`, { fullPage: true });
    }
  }
  return { bottleneck, refused };
});
