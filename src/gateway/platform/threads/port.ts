import { createServer } from "node:net";
import { SluiceError } from "../../../errors.ts";
import { type ListenAddress, started } from "../node-server.ts";

/**
 * Whether several threads can listen at `address`. Throws SluiceError `port_taken` where somebody listens there already: a
 * socket that shares its port is let in beside another's without a word, and callers would come to either.
 */
export async function canShare({ host, port }: ListenAddress): Promise<boolean> {
  await bindOnce({ host, port });
  try {
    await bindOnce({ host, port, reusePort: true });
    return true;
  } catch (error) {
    if (error instanceof SluiceError && error.code === "cannot_share_port") return false;
    throw error;
  }
}

async function bindOnce(address: ListenAddress): Promise<void> {
  const server = createServer();
  await started(server, address);
  await new Promise<void>((resolve) => server.close(() => resolve()));
}
