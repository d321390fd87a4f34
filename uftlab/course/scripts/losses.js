// The algebra explorer of notebook 02: as in `uftlab.objectives.curves`, with the slope of each loss written out.
uftlabModels.losses = (twin, { nats_per_token: NATS }, { fixed, short, titled }) => {
  const sigmoid = (u) => 1 / (1 + Math.exp(-u));
  const softplus = (u) => Math.max(u, 0) + Math.log1p(Math.exp(-Math.abs(u)));  // -log sigmoid(-u)
  const plus = ([loss, slope], [more, steeper]) => [loss + more, slope + steeper];
  const scaled = ([loss, slope], factor) => [factor * loss, factor * slope];

  // ---------------------------------------------------------------------------- the family: [loss, its slope in u]

  const squared = (u, score) => {
    const s = sigmoid(u);
    return [(s - score) ** 2, 2 * (s - score) * s * (1 - s)];
  };
  const cross = (u, score) => [
    score * softplus(-u) + (1 - score) * softplus(u), -score * sigmoid(-u) + (1 - score) * sigmoid(u)];
  const absolute = (u, score) => {
    const [s, left] = [sigmoid(u), sigmoid(-u)];
    return Math.log(score / (1 - score)) > u ? [score - 1 + left, -left * (1 - left)] : [s - score, s * (1 - s)];
  };
  const DISTANCES = { "squared error": squared, "cross-entropy": cross, "absolute error": absolute };
  const NORMALISATIONS = {
    sum: () => [1, 1],
    mean: (beta, tokens) => [tokens, 1],
    "2/(βn)": (beta, tokens) => [1, 2 / (beta * tokens)],
  };
  const member = ({ distance, normalisation, baseline, score, beta, tokens }) => (x) => {
    const [divisor, factor] = NORMALISATIONS[normalisation](beta, tokens);
    const [loss, slope] = DISTANCES[distance](beta * (x - baseline) / divisor, score);
    return [factor * loss, factor * slope * beta / divisor];
  };

  function knownAs(distance, baseline, normalisation, score) {
    const [label, good] = [score === 0 || score === 1, score === 1];
    if (normalisation === "2/(βn)") return distance === "cross-entropy" && good && baseline === 0 ? ["MinorSFT"] : [];
    if (normalisation !== "sum") return [];
    if (distance === "squared error") {
      if (baseline !== 0) return [];
      return ["UNA with squared error", ...(good ? ["UFT on a demonstration"] : [])];
    }
    if (distance === "cross-entropy") {
      if (baseline !== 0) {
        const other = `DPO whose ${good ? "rejected" : "chosen"} completion sits at the baseline`;
        return label ? ["BCO with δ = β·baseline", other] : [];
      }
      const names = label ? ["BCO with δ at 0", "DPO with the other side at its reference"] : [];
      return ["UNA with cross-entropy", ...names, ...(good ? ["MinorSFT up to its factor"] : [])];
    }
    if (baseline === 0) return ["UNA with absolute error", ...(label ? ["APO-zero", "KTO with its baseline at 0"] : [])];
    return label && baseline > 0 ? ["KTO"] : [];
  }

  // ------------------------------------------------------------- the registry on one completion: [loss, slope in x]
  //
  // x is the log-ratio of the completion that moves, `l0` its log-probability under the reference, n its tokens. Of a
  // pair the chosen one moves if the score is above one half, else the rejected one; `side` is 1 or -1.

  const chain = ([loss, slope], inner) => [loss, slope * inner];
  const preferred = (margin, slope) => chain(cross(margin, 1), slope);
  const perToken = ({ x, l0, n }) => [-(l0 + x) / n, -1 / n];
  const chosenPerToken = ({ x, l0, n, side }) => (side > 0 ? [-(l0 + x) / n, -1 / n] : [-l0 / n, 0]);
  const dpo = ({ x, beta, side }) => preferred(beta * side * x, beta * side);
  const cdpo = ({ x, beta, side }) => chain(cross(beta * side * x, 0.9), beta * side);
  const towards = (difference, slope) => [difference ** 2, 2 * difference * slope];
  const una = (distance, score) => (own) => chain(distance(own.beta * own.x, score(own)), own.beta);
  const label = ({ good }) => good, rated = ({ score }) => score;
  const log1mexp = (m) => (m > -Math.LN2 ? Math.log(-Math.expm1(m)) : Math.log1p(-Math.exp(m)));
  function orpo({ x, l0, n, side }) {
    const HIGHEST = -1e-6, WEIGHT = 0.1;
    const odds = (m) => Math.min(m, HIGHEST) - log1mexp(Math.min(m, HIGHEST));
    const moves = (l0 + x) / n, stays = l0 / n, ratio = side * (odds(moves) - odds(stays));
    const steep = moves <= HIGHEST ? (1 + 1 / Math.expm1(-moves)) / n : 0;
    const [loss, slope] = preferred(ratio, side * steep);
    return plus([-(side > 0 ? moves : stays), side > 0 ? -1 / n : 0], scaled([loss, slope], WEIGHT));
  }
  function bothSides(distance, shift) {
    return ({ x, beta, side }) => {
      const moves = beta * x, middle = shift * moves;
      const [own, other] = [distance(moves - middle, side > 0 ? 1 : 0), distance(-middle, side > 0 ? 0 : 1)];
      return [own[0] + other[0], own[1] * beta];  // the shift has no gradient
    };
  }
  function weighted(weight) {  // the weight has no gradient
    return ({ x, l0, n }) => {
      const mean = (l0 + x) / n, own = weight(mean, x / n);
      return [-own * mean, -own / n];
    };
  }
  function qrpo({ x, beta, score }) {
    const inverse = 1 / beta, logZ = inverse - Math.log(inverse) + Math.log(-Math.expm1(-inverse));
    return towards(score - beta * logZ - beta * x, -beta);
  }
  const METHODS = {
    "sft": perToken,
    "sft-sum": ({ x, l0 }) => [-(l0 + x), -1],
    dpo,
    cdpo,
    "ipo": ({ x, beta, side }) => towards(side * x - 1 / (2 * beta), side),
    "ipo-mean": ({ x, beta, side, n }) => towards(side * x / n - 1 / (2 * beta), side / n),
    "kto": ({ x, beta, good, baseline }) => chain(absolute(beta * x - beta * Math.max(baseline, 0), good), beta),
    orpo,
    "simpo": ({ x, beta, side, n }) => preferred(beta * side * x / n - 1, beta * side / n),
    "dpop": ({ x, beta, side }) => {
      const steep = side > 0 && x < 0 ? 1 + 5 : side;  // the penalty of a chosen completion below its reference
      return preferred(beta * steep * x, beta * steep);
    },
    "apo-zero": bothSides(absolute, 0),
    "bco": bothSides(cross, 0.5),
    "una-pair": dpo,
    "una-binary": una(squared, label),
    "una-binary-cross-entropy": una(cross, label),
    "una-binary-absolute-error": una(absolute, label),
    "una-score": una(squared, rated),
    "una-score-cross-entropy": una(cross, rated),
    "una-score-absolute-error": una(absolute, rated),
    "signed-sft": ({ x, l0, score }) => scaled([-(l0 + x), -1], score - 0.5),
    "accepted-sft": ({ x, l0, score }) => scaled([-(l0 + x), -1], Math.max(score - 0.5, 0)),
    "rpo": (own) => plus(dpo(own), chosenPerToken(own)),
    "sft-plus-dpo: demonstration": perToken,
    "sft-plus-dpo: preference": dpo,
    "joint-sft-dpo": (own) => plus(cdpo(own), chosenPerToken(own)),
    "var": ({ x, l0 }) => [-(l0 + x), -1],  // one completion alone has the weight 1
    "dft": weighted(Math.exp),
    "minor-sft": ({ x, beta, n }) => scaled(preferred(beta * x, beta), 2 / (beta * n)),
    qrpo,
    "dpo-norm": ({ x, beta, side, n }) => preferred(beta * side * x / n, beta * side / n),
    "tpo: demonstration": perToken,
    "tpo: preference": dpo,  // on one completion the reference cancels
    "iw-sft": weighted((mean, ratio) => Math.min(Math.exp(Math.min(ratio, 10)), 16)),
    "chord-phi": weighted((mean) => -Math.exp(mean) * Math.expm1(mean)),
  };
  const method = (name, { score, beta, tokens, baseline }) => {
    const good = score > 0.5 ? 1 : 0, own = { score, beta, baseline, good, side: good ? 1 : -1, n: tokens };
    return (x) => METHODS[name]({ ...own, x, l0: -NATS * tokens });
  };

  // ---------------------------------------------------------------------------------------------------- curves

  const tabled = (curve, x) => {
    const found = x.map(curve);
    return { x, loss: found.map(([loss]) => loss), pull: found.map(([, slope]) => -slope) };
  };

  // as `drawn`: even points, then more beside those where a straight line would be wrong
  function drawn(curve, low, high, most) {
    const step = (high - low) / 24;
    let found = tabled(curve, Array.from({ length: 25 }, (_, i) => (i < 12 ? low + step * i : high - step * (24 - i))));
    while (found.x.length < most) {
      const { x } = found, miss = x.map(() => 0);
      for (const values of [found.loss, found.pull]) {
        const v = values.map((value) => (Number.isFinite(value) ? value : 0));
        const height = Math.max(Math.max(...v) - Math.min(...v), 1e-300);
        for (let i = 1; i < x.length - 1; i++) {
          const chord = v[i - 1] + (v[i + 1] - v[i - 1]) * (x[i] - x[i - 1]) / (x[i + 1] - x[i - 1]);
          miss[i] = Math.max(miss[i], Math.abs(v[i] - chord) / height);
        }
      }
      const beside = x.slice(1).map((right, i) => (
        right - x[i] < 1e-5 * (high - low) ? 0 : Math.max(miss[i], miss[i + 1])));
      const worst = beside.map((_, i) => i).sort((i, j) => beside[j] - beside[i]).slice(0, most - x.length)
        .filter((i) => beside[i] > 0.003);
      if (!worst.length) break;
      const more = worst.map((i) => (x[i] + x[i + 1]) / 2);
      found = tabled(curve, [...x, ...more].sort((one, other) => one - other));
    }
    return found;
  }

  function factorBetween(one, other) {
    const both = one.map((_, i) => i).filter((i) => Number.isFinite(one[i]) && Number.isFinite(other[i]));
    const [a, b] = [both.map((i) => one[i]), both.map((i) => other[i])];
    const dot = (v, w) => v.reduce((total, value, i) => total + value * w[i], 0);
    if (!a.some((value) => value !== 0)) return null;
    const factor = dot(a, b) / dot(a, a), most = Math.max(...b.map(Math.abs));
    return a.every((value, i) => Math.abs(factor * value - b[i]) <= 1e-6 * most + 1e-6 * Math.abs(b[i])) ? factor : null;
  }

  const nameOf = ([name, kind]) => (name in METHODS ? name : `${name}: ${kind}`);
  const { label: laid } = twin.layout.meta.controls.find(({ name }) => name === "overlay");

  return (values) => {
    const { distance, normalisation, overlay, as_reward, baseline, score, beta, tokens } = values;
    const edge = as_reward ? 6 / beta : 60, certain = NATS * tokens, end = Math.min(edge, certain);
    const own = member(values), built = drawn(own, -edge, end, 200);
    const over = drawn(method(nameOf(overlay), values), -edge, end, 80);
    const factor = factorBetween(tabled(own, over.x).pull, over.pull);
    const names = knownAs(distance, baseline, normalisation, score), nameless = "a loss without a name in the literature";

    const scale = as_reward ? beta : 1, along = ({ x }) => x.map((value) => value * scale);
    const last = built.x.at(-1) === certain ? [along(built).at(-1)] : [];
    const panel = (kind) => [
      { x: along(built), y: built[kind] },
      { x: along(over), y: over[kind] },
    ];
    const dot = (kind) => ({ x: last, y: last.length ? [built[kind].at(-1)] : [] });
    const changes = [...panel("loss"), ...panel("pull"), dot("loss"), dot("pull")];
    const layout = { ...twin.layout, title: titled(twin.layout.title, names.slice(0, 2).join(", also ") || nameless) };
    for (const axis of ["xaxis", "xaxis2"]) {
      const title = { ...layout[axis].title, text: as_reward ? "implicit reward βΔ" : "log-ratio Δ, nats" };
      layout[axis] = { ...layout[axis], title, range: as_reward ? [-6.3, 6.3] : [-63, 63] };
    }

    const [loss, slope] = own(0);
    const same = factor === null ? "a different curve" : `the same curve (factor ${short(factor, 3)})`;
    const words =
      `This is ${names.join(", also ") || nameless}. At the reference: loss ${short(loss, 3)}, pull ${short(-slope, 3)}. ` +
      `Highest score ${fixed(sigmoid(beta * certain), 2)}. ${laid[0].toUpperCase()}${laid.slice(1)}, ${overlay[0]}: ${same}.`;
    return { data: twin.data.map((trace, i) => ({ ...trace, ...changes[i] })), layout, words };
  };
};
