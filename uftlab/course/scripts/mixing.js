// The map of notebook 06, from its stored trials: as in `uftlab.course.mixing`.
uftlabModels.mixing = (twin, map, { fixed }) => {
  const { orders, methods, names, rates, moved, outcomes, quantile } = map;
  const mean = (values) => values.reduce((total, value) => total + value, 0) / values.length;
  const best = (found, higher) => Object.keys(found).reduce((one, other) => {
    const [here, there] = [mean(found[one]), mean(found[other])];
    return (higher ? there > here : there < here) ? other : one;
  });
  const ends = (values) => ({
    array: values.map((own) => Math.max(...own) - mean(own)),
    arrayminus: values.map((own) => mean(own) - Math.min(...own)),
  });
  const key = (...parts) => parts.join(" | ");

  return ({ metric, first_rate, rate, nats, instructed, on_target }) => {
    const { layout, floor, higher } = outcomes[metric];
    const place = { order: "SFT first", loss: "UNA", first_rate, rate };
    const ofOrder = (changed) => {  // a mixture has one rate, and DPO was run with one strength only
      const { order, loss, first_rate: first, rate: last } = { ...place, ...changed };
      const strength = loss === "UNA" ? nats : map.nats;
      return orders[metric][key(order, loss, order === "mixed" ? last : first, last, strength)];
    };
    const six = Object.fromEntries(names.methods.map((name) => [
      name, methods[metric][key(name, instructed, on_target, rate)]]));
    const bars = (values, { error_x }) => ({ x: values.map(mean), error_x: { ...error_x, ...ends(values) } });
    const changes = [
      ...["UNA", "DPO"].map((loss, i) => bars(names.orders.map((order) => ofOrder({ order, loss })), twin.data[i])),
      bars(Object.values(six), twin.data[2]),
      ...floor,
    ];

    const byOrder = Object.fromEntries(names.orders.map((order) => [order, ofOrder({ order })]));
    const gains = byOrder.mixed.map((value, i) => value - byOrder["SFT first"][i]), gain = mean(gains), n = gains.length;
    const squares = gains.reduce((total, value) => total + (value - gain) ** 2, 0);
    const spread = quantile * Math.sqrt(squares / (n - 1) / n), [low, high] = [gain - spread, gain + spread];
    const verdict = low <= 0 && 0 <= high ? "not settled" : gain > 0 ? "higher" : "lower";
    const options = { order: names.orders, loss: ["UNA", "DPO"], first_rate: rates, rate: rates };
    const moves = Object.entries(options).map(([factor, values]) => {
      const means = values.map((value) => mean(ofOrder({ [factor]: value })));
      return [moved[factor], Math.max(...means) - Math.min(...means)];
    }).sort((one, other) => other[1] - one[1]);
    const [order, method] = [best(byOrder, higher), best(six, higher)];
    const words =
      `With UNA the best order is ${order} (${fixed(mean(byOrder[order]), 2)}). Mixed minus SFT first: ` +
      `${fixed(gain, 2, "+")} (${fixed(low, 2, "+")} to ${fixed(high, 2, "+")}), ${verdict}. Best method: ${method} ` +
      `(${fixed(mean(six[method]), 2)}). What moves “SFT first” most here: ${moves[0][0]} (${fixed(moves[0][1], 2)}), ` +
      `then ${moves[1][0]} (${fixed(moves[1][1], 2)}).`;
    return { data: twin.data.map((trace, i) => ({ ...trace, ...changes[i] })), layout, words };
  };
};
