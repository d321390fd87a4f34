// The bandit of notebook 01: optimum and gradient ascent, as in `uftlab.course.bandit`.
uftlabModels.bandit = (twin, _, { numbers, fixed, short }) => {
  const reference = numbers(twin.data[0].x), answers = twin.data[0].y, steps = numbers(twin.data[3].x)[1];
  const logReference = reference.map(Math.log);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const dot = (one, other) => sum(one.map((value, i) => value * other[i]));
  const logSum = (values) => {
    const most = Math.max(...values);
    return most + Math.log(sum(values.map((value) => Math.exp(value - most))));
  };
  const times = (p, logs) => sum(p.map((value, i) => (value === 0 ? 0 : value * logs[i])));

  function ascent(rewards, beta) {
    const size = 3 / (beta + Math.max(...rewards) - Math.min(...rewards)), objectives = [];
    let logits = logReference, probs;
    for (let step = 0; step <= steps; step++) {
      const total = logSum(logits), logps = logits.map((value) => value - total);
      probs = logps.map(Math.exp);
      const advantages = rewards.map((reward, i) => reward - beta * (logps[i] - logReference[i]));
      const value = dot(probs, advantages);
      objectives.push(value);
      logits = logits.map((logit, i) => logit + size * probs[i] * (advantages[i] - value));
    }
    return { objectives, probs };
  }

  return ({ beta, f = 0, ...chosen }) => {
    const rewards = Object.values(chosen).map((reward) => reward + f);
    const tilted = rewards.map((reward, i) => logReference[i] + reward / beta), logZ = logSum(tilted);
    const logBest = tilted.map((value) => value - logZ), best = logBest.map(Math.exp), top = beta * logZ;
    const { objectives, probs } = ascent(rewards, beta);
    const climb = objectives.filter((_, step) => step % 5 === 0);
    const changes = [{}, { x: best }, { y: climb }, { y: [top, top] }];

    const expected = dot(best, rewards), kl = times(best, best.map(Math.log)) - times(best, logReference);
    const below = beta * (times(probs, probs.map(Math.log)) - times(probs, logBest)), most = Math.max(...best);
    const words =
      `β = ${fixed(beta, 2)}: the likeliest answer is “${answers[best.indexOf(most)]}” with probability ` +
      `${fixed(most, 2)}. Expected reward ${fixed(expected, 2)}, KL ${fixed(Math.max(kl, 0), 2)} nats, objective ` +
      `${fixed(expected - beta * kl, 2)}. Gradient ascent ends ${fixed(Math.abs(below), 4)} below.`;

    const layout = { ...twin.layout };
    if (layout.yaxis2.range) {  // as `theme.fitted_axis` has it
      const values = [...climb, top], [lowest, highest] = [Math.min(...values), Math.max(...values)];
      const room = 0.05 * (highest - lowest) || 0.5, range = [lowest - room, highest + room];
      const said = range[0] <= 0 && 0 <= range[1] ? "" : `<br>(the axis starts at ${short(range[0], 2)})`;
      const text = layout.yaxis2.title.text.split("<br>")[0] + said;
      layout.yaxis2 = { ...layout.yaxis2, range, title: { ...layout.yaxis2.title, text } };
    }
    return { data: twin.data.map((trace, i) => ({ ...trace, ...changes[i] })), layout, words };
  };
};
