// A Llama in plain JavaScript, as in transformers: RMSNorm, rotary attention, SwiGLU, tied embeddings.
//
// `weights` are all tensors in half precision, packed as one text, in the order of `sizes`: name -> how many numbers.
// The model begins a text when it is called; what it gives reads one token after the other, and each time says the
// logits of the next.
const uftlabLlama = ({ weights, sizes, layers, heads, epsilon, theta }) => {
  const halves = new Uint16Array(Uint8Array.from(atob(weights), (letter) => letter.charCodeAt(0)).buffer);
  const full = (half) => {
    const exponent = (half >> 10) & 31, fraction = (half & 1023) / 1024;
    return (half >> 15 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
  };
  const tensors = {};
  let from = 0;
  for (const [name, size] of Object.entries(sizes)) {
    tensors[name] = Float64Array.from(halves.subarray(from, from + size), full);
    from += size;
  }

  const times = (matrix, x) => {  // rows of the matrix are as long as x
    const out = new Float64Array(matrix.length / x.length);
    for (let row = 0, at = 0; row < out.length; row++) for (let i = 0; i < x.length; i++) out[row] += matrix[at++] * x[i];
    return out;
  };
  const plus = (x, y) => x.map((value, i) => value + y[i]);
  const normed = (x, weight) => {
    const scale = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + epsilon);
    return x.map((value, i) => value * scale * weight[i]);
  };
  const turned = (x, position) => {  // each half of a head against the other, by an angle that grows with the position
    const size = x.length / heads, half = size / 2, out = new Float64Array(x.length);
    for (let first = 0; first < x.length; first += size) for (let i = 0; i < half; i++) {
      const angle = position * theta ** (-2 * i / size), [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      const [a, b] = [x[first + i], x[first + half + i]];
      out[first + i] = a * cos - b * sin;
      out[first + half + i] = b * cos + a * sin;
    }
    return out;
  };
  const attended = (query, keys, values) => {
    const size = query.length / heads, out = new Float64Array(query.length);
    for (let first = 0; first < query.length; first += size) {
      const scores = keys.map((key) => {
        let score = 0;
        for (let i = first; i < first + size; i++) score += query[i] * key[i];
        return score / Math.sqrt(size);
      });
      const most = Math.max(...scores), shares = scores.map((score) => Math.exp(score - most));
      const all = shares.reduce((sum, share) => sum + share);
      values.forEach((value, t) => {
        for (let i = first; i < first + size; i++) out[i] += shares[t] / all * value[i];
      });
    }
    return out;
  };

  return () => {
    const past = Array.from({ length: layers }, () => ({ keys: [], values: [] }));
    return (token) => {
      const width = tensors.norm.length;
      let x = tensors.embed_tokens.slice(token * width, (token + 1) * width);
      past.forEach(({ keys, values }, layer) => {
        const own = (name) => tensors[`layers.${layer}.${name}`];
        const seen = normed(x, own("input_layernorm")), position = keys.length;
        keys.push(turned(times(own("self_attn.k_proj"), seen), position));
        values.push(times(own("self_attn.v_proj"), seen));
        const query = turned(times(own("self_attn.q_proj"), seen), position);
        x = plus(x, times(own("self_attn.o_proj"), attended(query, keys, values)));
        const read = normed(x, own("post_attention_layernorm")), up = times(own("mlp.up_proj"), read);
        const gated = times(own("mlp.gate_proj"), read).map((value, i) => value / (1 + Math.exp(-value)) * up[i]);
        x = plus(x, times(own("mlp.down_proj"), gated));
      });
      return times(tensors.embed_tokens, normed(x, tensors.norm));
    };
  };
};
