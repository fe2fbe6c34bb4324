import { SluiceError } from "../errors.ts";

/**
 * Instance metadata hands credentials to whoever asks from the machine, and no engine lives there. Endpoints may be private
 * or loopback; these never.
 */
const metadataV4 = [
  // AWS, Azure, Google, Oracle, DigitalOcean and others use 169.254.169.254; AWS containers others of the link-local net.
  /^169\.254\./,
  // Alibaba Cloud.
  /^100\.100\.100\.200$/,
  // Oracle Cloud at Customer.
  /^192\.0\.0\.192$/,
  // Azure's host agent.
  /^168\.63\.129\.16$/,
];
const metadataV6 = [
  // Link-local, fe80::/10.
  /^fe[89ab][0-9a-f]:/,
  // AWS.
  /^fd00:ec2:/,
  // Google.
  /^fd20:ce::254$/,
];
const metadataNames = new Set(["metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"]);

/** True for a host of a URL (brackets allowed), a name or an address in any spelling that leads to instance metadata. */
export function isMetadataAddress(host: string): boolean {
  const name = host
    .replace(/^\[|\]$/g, "")
    .replace(/%.*$/, "")
    .replace(/\.$/, "")
    .toLowerCase();
  if (metadataNames.has(name)) return true;
  const address = canonical(name);
  const v4 = embeddedV4(address) ?? address;
  return metadataV4.some((pattern) => pattern.test(v4)) || metadataV6.some((pattern) => pattern.test(address));
}

/** URL parsing gives every address one spelling: `0xa9fea9fe` and `::ffff:169.254.1.1` as well. */
function canonical(name: string): string {
  const host = name.includes(":") ? `[${name}]` : name;
  const url = `http://${host}/`;
  return URL.canParse(url) ? new URL(url).hostname.replace(/^\[|\]$/g, "") : name;
}

/** The IPv4 address in an IPv4-mapped (`::ffff:a:b`) or NAT64 (`64:ff9b::a:b`) one. */
function embeddedV4(address: string): string | undefined {
  const groups = /^(?:::ffff:|64:ff9b::)([0-9a-f]{1,4}):([0-9a-f]{1,4})$/.exec(address);
  if (groups === null) return undefined;
  return groups
    .slice(1)
    .flatMap((group) => [Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 255])
    .join(".");
}

type LookupDone = (
  error: NodeJS.ErrnoException | null,
  address: string | Array<{ address: string; family: number }>,
  family?: number,
) => void;
export type Lookup = (hostname: string, options: object, done: LookupDone) => void;

/**
 * A resolver whose addresses are looked at before any of them is connected to. A check of the name alone, or a lookup of its
 * own, could be told another address than the connection gets.
 */
export function guardedLookup(lookup: Lookup): Lookup {
  return (hostname, options, done) =>
    lookup(hostname, options, (error, found, family) => {
      const addresses = typeof found === "string" ? [found] : (found ?? []).map(({ address }) => address);
      if (error === null && addresses.some(isMetadataAddress)) return done(metadataRefused(), "", 4);
      done(error, found, family);
    });
}

function metadataRefused(): SluiceError {
  return new SluiceError({
    status: 502,
    type: "server_error",
    code: "endpoint_refused",
    message: "A backend's name leads to an address that is never connected to.",
    retryable: true,
  });
}
