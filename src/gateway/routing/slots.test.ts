import { expect, it } from "vitest";
import { Slots } from "./slots.ts";

it("gives one that comes back a new slot, and an old one again only when there is no other", () => {
  const slots = new Slots({ given: true, capacity: 3 });
  expect([slots.take("a"), slots.take("b")]).toEqual([0, 1]);
  slots.drop("a");
  expect(slots.of("a")).toBeUndefined();
  expect(slots.take("a")).toBe(2);
  slots.drop("b");
  expect(slots.take("c")).toBe(0);
  expect(slots.take("d")).toBe(1);
  expect(slots.take("e")).toBeUndefined();
  expect(Object.fromEntries(slots.all)).toEqual({ a: 2, c: 0, d: 1 });
});
