import { describe, expect, it } from "vitest";
import { configSchema } from "../../config/schema.ts";
import { gatewayConfig, modelName, threadsPerDaemon } from "./plan.ts";

describe("what `sluice up` starts", () => {
  const plan = {
    host: "127.0.0.1",
    port: 8080,
    model: "smollm2",
    modelPath: "/models/small.gguf",
    daemons: ["http://127.0.0.1:4001", "http://127.0.0.1:4002"],
    key: "sk-test",
    poolKeyEnv: "SLUICE_POOL_KEY",
  };

  it("is a configuration that the gateway takes", () => {
    const parsed = configSchema.parse(gatewayConfig(plan));
    expect(parsed.models.smollm2?.tokenizer).toBe("gguf:/models/small.gguf");
    expect(parsed.pools.local?.endpoints).toEqual(plan.daemons);
  });

  it("holds no key, only its hash", () => {
    const text = JSON.stringify(gatewayConfig(plan));
    expect(text).not.toContain("sk-test");
    expect(text).toMatch(/sha256:[0-9a-f]{64}/);
  });

  it("takes the tokenizer out of a checkpoint's folder", () => {
    const config = gatewayConfig({ ...plan, modelPath: "/models/tiny" });
    expect(config.models.smollm2?.tokenizer).toBe("file:/models/tiny/tokenizer.json");
  });

  it.each([
    ["smollm2", "/store/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"],
    ["file:./SmolLM2-135M-Instruct.Q4_1.gguf", "/store/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"],
    ["https://host/path/Some-Model.BF16.gguf?download=true", "/store/abc/Some-Model.BF16.gguf", "some-model"],
    ["./tiny", "/models/tiny", "tiny"],
  ])("of %s at %s is called %s", (reference, path, name) => {
    expect(modelName(reference, path)).toBe(name);
  });

  it.each([
    [8, 1, 8],
    [8, 3, 2],
    [2, 3, 1],
  ])("%i cores for %i daemons make %i threads each", (cores, daemons, threads) => {
    expect(threadsPerDaemon(cores, daemons)).toBe(threads);
  });
});
