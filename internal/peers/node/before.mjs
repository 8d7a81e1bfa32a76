// The code of docs/comparison.md before a service moves.

export async function before(redlock, work) {
  await redlock.using(["orders/42"], 8_000, async (signal) => {
    await work(signal);
  });
}
