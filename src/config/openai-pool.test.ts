import { expect, it } from "vitest";
import { parseConfig } from "./parse.ts";

const withPool = (pool: string) => `
models: {m: {pools: [spare], tokenizer: "gguf:m.gguf"}}
pools: {spare: ${pool}}
tenants: {acme: {keys: ["sha256:${"ab".repeat(32)}"]}}
`;
const parse = (pool: string) => parseConfig(withPool(pool), { SPARE_KEY: "secret" });

it("a pool of an OpenAI-compatible endpoint is declared as the design shows it", () => {
  const { spare } = parse(`{
    backend: openai, endpoints: ["https://api.example.com/v1"], key: {env: SPARE_KEY}, upstreamModel: some-small-model,
    capabilities: {jsonSchema: true, assistantPrefill: false}
  }`).pools;
  expect(spare).toMatchObject({
    upstreamModel: "some-small-model",
    capabilities: { jsonSchema: true, jsonObject: false, assistantPrefill: false, stop: true, streamUsage: true },
  });
});

it.each([
  ["{backend: openai, endpoints: ['https://me:pass@api.example.com/v1']}", "pools.spare.endpoints[0]"],
  ["{backend: openai, endpoints: ['https://api.example.com/v1?version=1']}", "pools.spare.endpoints[0]"],
  [
    "{backend: openai, endpoints: ['https://a.example/v1'], capabilities: {jsonschema: true}}",
    "pools.spare.capabilities.jsonschema",
  ],
  [
    "{backend: openai, endpoints: ['https://a.example/v1'], capabilities: {extensions: [top_p]}}",
    "pools.spare.capabilities.extensions[0]",
  ],
  ["{backend: openai, endpoints: ['https://a.example/v1'], health: 'http://elsewhere'}", "pools.spare.health"],
  ["{backend: openai, endpoints: ['https://a.example/v1'], key: {env: OTHER_KEY}}", "pools.spare.key.env"],
  ["{backend: daemon, endpoints: ['http://a.example'], capabilities: {}}", "pools.spare.capabilities"],
  ["{backend: daemon, endpoints: ['http://a.example'], health: none}", "pools.spare.health"],
])("%s is refused at %s", (pool, path) => {
  expect(() => parse(pool)).toThrow(expect.objectContaining({ code: "invalid_config", param: path }));
});
