/** OpenAI's model object. */
export const modelBody = (name: string, created: number) =>
  ({ id: name, object: "model", created, owned_by: "sluice" }) as const;

export const modelListBody = (names: readonly string[], created: number) =>
  ({ object: "list", data: names.map((name) => modelBody(name, created)) }) as const;
