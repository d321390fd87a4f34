// The rewards and margins of notebook 05, from stored log-probabilities. Rewards are rounded to 32 bits, as in Python.
uftlabModels.margins = (twin, { runs }, { numbers, fixed, short, percent }) => {
  const ROLES = ["chosen", "rejected", "demonstration"];
  const middles = numbers(twin.data[0].x), wall = numbers(twin.data[5].x)[1];
  const half = (middles[1] - middles[0]) / 2, edges = [...middles.map((middle) => middle - half), middles.at(-1) + half];
  const logps = Object.fromEntries(Object.entries(runs).map(([name, run]) => [
    name, Object.fromEntries(ROLES.map((role) => [role, run.logps[role].map(numbers)]))]));
  const clip = (value, low, high) => Math.min(Math.max(value, low), high);
  const share = (values, holds) => values.filter(holds).length / values.length;

  function histogram(values) {
    const counts = middles.map(() => 0);
    for (const value of values) {
      const inside = clip(value, edges[0], edges.at(-1));
      const bin = edges.findLastIndex((edge) => edge <= inside);
      counts[Math.min(bin, counts.length - 1)] += 1;  // the last bin has both its edges
    }
    return counts.map((count) => count / values.length);
  }
  function median(values) {
    const sorted = [...values].sort((a, b) => a - b), middle = sorted.length / 2;
    return (sorted[Math.ceil(middle) - 1] + sorted[Math.floor(middle)]) / 2;
  }

  return ({ run, own, step, beta }) => {
    const { steps, starts } = runs[run], at = steps.filter((done) => done <= step).length - 1;
    const before = own ? starts[at] : 0, strength = Math.fround(beta);
    const rewards = Object.fromEntries(Object.entries(logps[run]).map(([role, policy]) => [
      role, policy[at].map((logp, i) => Math.fround(strength * Math.fround(logp - policy[before][i])))]));
    const { chosen, rejected } = rewards;
    const right = (reward, i) => chosen[i] > rejected[i], wrong = (reward, i) => !right(reward, i);
    const shown = (side, kept) => side.filter(kept).map((reward) => clip(reward, -wall, wall));
    const changes = [
      ...ROLES.map((role) => ({ y: histogram(rewards[role]) })),
      ...[right, wrong].map((kept) => ({ x: shown(rejected, kept), y: shown(chosen, kept) })),
    ];

    const none = Object.values(rewards).every((values) => values.every((reward) => reward === 0));
    const verdict = none
      ? "no order yet: the policy is its own reference"
      : `${percent(share(chosen, right))} of pairs in the right order`;
    const margins = chosen.map((reward, i) => Math.fround(reward - rejected[i]));
    const above = ROLES.map((role) => `${role} ${percent(share(rewards[role], (reward) => reward > 0))}`).join(", ");
    const mean = margins.reduce((total, margin) => total + margin, 0) / margins.length;
    const words =
      `${verdict[0].toUpperCase()}${verdict.slice(1)}. Rewards above 0: ${above}. Mean margin ${fixed(mean, 3, "+")}, ` +
      `median ${fixed(median(margins), 3, "+")}; they carry β = ${short(beta, 2)}.`;
    const text = `${run}, step ${fixed(step, 0)}, β = ${short(beta, 2)}:<br>${verdict}`;
    return {
      data: twin.data.map((trace, i) => ({ ...trace, ...changes[i] })),
      layout: { ...twin.layout, title: { ...twin.layout.title, text } },
      words,
    };
  };
};
