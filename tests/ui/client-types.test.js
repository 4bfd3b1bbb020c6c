/** The declared types of the client: a host compiles against them, and they name what there is, no more and no less. */

import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import ts from 'typescript';
import * as sdk from '../../src/ui/sdk.js';

const HOST = fileURLToPath(new URL('harness/typed.ts', import.meta.url));
const DECLARED = fileURLToPath(new URL('../../src/ui/sdk.d.ts', import.meta.url));

const program = ts.createProgram([HOST, DECLARED], {
  strict: true,
  noEmit: true,
  types: [],
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
  lib: ['lib.es2022.d.ts', 'lib.dom.d.ts', 'lib.dom.iterable.d.ts'],
});

test('a host in TypeScript compiles', () => {
  const faults = ts.getPreEmitDiagnostics(program).map(({ file, start, messageText }) => {
    const line = file ? file.getLineAndCharacterOfPosition(start).line + 1 : 0;
    return `${file?.fileName}:${line}: ${ts.flattenDiagnosticMessageText(messageText, '\n')}`;
  });
  assert.deepEqual(faults, []);
});

test('what is declared exists, and what exists is declared', () => {
  const checker = program.getTypeChecker();
  const exported = checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(DECLARED)));
  const classes = exported.filter(({ flags }) => flags & ts.SymbolFlags.Class);
  assert.deepEqual(classes.map(({ name }) => name).sort(), Object.keys(sdk).sort());
  for (const symbol of classes.filter(({ name }) => name !== 'ChatboxError')) {
    const inherited = ['constructor', 'addEventListener'];
    const own = [...symbol.members.keys()].filter((name) => !inherited.includes(name) && !name.startsWith('__'));
    const there = Object.getOwnPropertyNames(sdk[symbol.name].prototype).filter((name) => !inherited.includes(name));
    assert.deepEqual(own.sort(), there.sort(), symbol.name);
  }
});
