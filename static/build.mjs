// Builds the dashboard into dist/: hashed assets and an index.html that names them.
//
// The page runs under `default-src 'self'`, so nothing is inlined: the theme script, the application, its style sheet and the
// worklet that reads the microphone are files of their own. `--watch` rebuilds on change; `--test` runs the *.test.ts files.

import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import * as esbuild from 'esbuild';

const here = path.dirname(fileURLToPath(import.meta.url));
const dist = path.join(here, 'dist');
const watching = process.argv.includes('--watch');

const shared = {
  absWorkingDir: here,
  bundle: true,
  target: ['es2022'],
  jsx: 'automatic',
  jsxImportSource: 'preact',
  charset: 'utf8',
  logLevel: 'warning',
};

const assets = {
  ...shared,
  minify: !watching,
  sourcemap: watching ? 'linked' : false,
  outdir: path.join(dist, 'assets'),
  entryNames: '[name]-[hash]',
  assetNames: '[name]-[hash]',
  metafile: true,
};

/** The hashed file an entry became, as the browser asks for it. */
function addressOf(metafile, entry) {
  for (const [file, output] of Object.entries(metafile.outputs)) {
    if (output.entryPoint === entry) return `/${path.posix.relative('dist', file)}`;
  }
  throw new Error(`${entry} was not built`);
}

async function build() {
  rmSync(dist, { recursive: true, force: true });
  mkdirSync(dist, { recursive: true });
  const small = await esbuild.build({
    ...assets,
    format: 'iife',
    entryPoints: ['src/theme.ts', 'src/try/capture.worklet.ts', 'src/favicon.svg', 'src/styles/main.css'],
    loader: { '.svg': 'copy' },
  });
  const main = await esbuild.build({
    ...assets,
    format: 'esm',
    entryPoints: ['src/main.tsx'],
    define: { CAPTURE_WORKLET: JSON.stringify(addressOf(small.metafile, 'src/try/capture.worklet.ts')) },
  });
  const names = {
    theme: addressOf(small.metafile, 'src/theme.ts'),
    icon: addressOf(small.metafile, 'src/favicon.svg'),
    style: addressOf(small.metafile, 'src/styles/main.css'),
    main: addressOf(main.metafile, 'src/main.tsx'),
  };
  const page = readFileSync(path.join(here, 'src/index.html'), 'utf8').replace(/\{\{(\w+)\}\}/g, (_, name) => names[name]);
  writeFileSync(path.join(dist, 'index.html'), page);
  report();
}

function report() {
  for (const name of readdirSync(path.join(dist, 'assets')).sort()) {
    const bytes = readFileSync(path.join(dist, 'assets', name));
    if (name.endsWith('.map')) continue;
    console.log(`${name.padEnd(36)} ${(bytes.length / 1024).toFixed(1).padStart(7)} KiB  ${(gzipSync(bytes).length / 1024).toFixed(1).padStart(6)} KiB gzip`);
  }
}

async function test() {
  const tests = readdirSync(path.join(here, 'src'), { recursive: true }).filter((name) => name.endsWith('.test.ts'));
  const out = mkdtempSync(path.join(tmpdir(), 'quickcomm-dashboard-'));
  try {
    symlinkSync(path.join(here, 'node_modules'), path.join(out, 'node_modules'));
    await esbuild.build({
      ...shared,
      entryPoints: tests.map((name) => path.posix.join('src', name.split(path.sep).join('/'))),
      platform: 'node',
      format: 'esm',
      packages: 'external',
      outdir: out,
      outExtension: { '.js': '.mjs' },
    });
    const files = readdirSync(out, { recursive: true }).filter((name) => name.endsWith('.test.mjs') && !name.startsWith('node_modules'));
    const ran = spawnSync(process.execPath, ['--test', ...files.map((name) => path.join(out, name))], { stdio: 'inherit' });
    process.exitCode = ran.status ?? 1;
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
}

if (process.argv.includes('--test')) {
  await test();
} else {
  await build();
  if (watching) {
    const { watch } = await import('node:fs');
    let timer;
    watch(path.join(here, 'src'), { recursive: true }, () => {
      clearTimeout(timer);
      timer = setTimeout(() => build().catch((error) => console.error(error.message)), 50);
    });
    console.log('watching src/');
  }
}
