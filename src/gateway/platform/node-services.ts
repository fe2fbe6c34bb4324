import type { Config } from "../../config/schema.ts";
import type { GrammarCompiler } from "../../grammar/grammar.ts";
import type { Tokenizer } from "../../tokenizer/index.ts";
import type { Services } from "../gateway.ts";
import type { ServedModel } from "../prepare.ts";
import { createDirectory } from "../tenants/directory.ts";
import type { TenantGate } from "../tenants/gate.ts";

/** How the parts of a model are made; files and processes are Node's. */
export interface ModelParts {
  readonly openTokenizer: (reference: string) => Promise<Tokenizer>;
  /** `key` names the compiler in every thread alike. */
  readonly openGrammars: (tokenizer: Tokenizer, config: Config, key: string) => GrammarCompiler;
}

export interface NodeServicesOptions {
  readonly parts: ModelParts;
  readonly saltKey: Uint8Array<ArrayBuffer>;
  /** Absent = a gate of this thread's own. */
  readonly openGate?: ((tenant: string) => TenantGate) | undefined;
}

interface OpenModel {
  readonly tokenizer: Tokenizer;
  readonly grammars: GrammarCompiler;
}

/**
 * What outlives a configuration on Node: opened tokenizers and grammar compilers (by what they were opened from), gates,
 * the salt key.
 */
export class NodeServices {
  readonly gates = new Map<string, TenantGate>();
  readonly #options: NodeServicesOptions;
  #open = new Map<string, OpenModel>();

  constructor(options: NodeServicesOptions) {
    this.#options = options;
  }

  /** The compiler that goes by this key, where it is open. */
  grammars(key: string): GrammarCompiler | undefined {
    return this.#open.get(key)?.grammars;
  }

  /** The vocabulary that a model's backends must have; undefined for a model that is not open. */
  vocabularyHash(config: Config, model: string): string | undefined {
    return this.tokenizer(config, model)?.vocabulary.vocabularyHash;
  }

  /** Of a model that is open. */
  tokenizer(config: Config, model: string): Tokenizer | undefined {
    const entry = config.models[model];
    return entry === undefined ? undefined : this.#open.get(modelKey(config, entry.tokenizer))?.tokenizer;
  }

  /**
   * Opens what `config` names and is not open yet. Throws and changes nothing when something cannot be opened; what the
   * new configuration no longer names is left open until `retire`.
   */
  async build(config: Config): Promise<Omit<Services, "dispatcher">> {
    const { parts, saltKey, openGate } = this.#options;
    const models = new Map<string, ServedModel>();
    const opened = new Map<string, OpenModel>();
    try {
      for (const [name, entry] of Object.entries(config.models)) {
        const key = modelKey(config, entry.tokenizer);
        let open = this.#open.get(key) ?? opened.get(key);
        if (open === undefined) {
          const tokenizer = await parts.openTokenizer(entry.tokenizer);
          open = { tokenizer, grammars: parts.openGrammars(tokenizer, config, key) };
          opened.set(key, open);
        }
        models.set(name, { name, config: entry, ...open });
      }
      const directory = await createDirectory(config, saltKey, this.gates, openGate);
      this.#open = new Map([...this.#open, ...opened]);
      return { config, directory, models };
    } catch (error) {
      for (const { grammars } of opened.values()) await grammars.close();
      throw error;
    }
  }

  /** Closes what `config` does not name; a request that is still being prepared with it would fail. */
  async retire(config: Config): Promise<void> {
    const named = new Set(Object.values(config.models).map((entry) => modelKey(config, entry.tokenizer)));
    for (const [key, open] of this.#open) {
      if (named.has(key)) continue;
      this.#open.delete(key);
      await open.grammars.close();
    }
  }

  async close(): Promise<void> {
    const open = [...this.#open.values()];
    this.#open.clear();
    await Promise.all(open.map(({ grammars }) => grammars.close()));
  }
}

/** Two models with one tokenizer and one grammar policy share both. */
const modelKey = ({ grammar, bounds }: Config, tokenizer: string): string =>
  JSON.stringify([tokenizer, grammar, bounds.grammarBytes, bounds.grammarCompile, bounds.grammarCacheBytes]);
