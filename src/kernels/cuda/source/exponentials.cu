// The exponentials of the logits of a row, their sum, and logarithms of probabilities that keep their digits.

// What a thread knows of a row: the largest logit that it has seen, Σ exp(x − max) without the target's class, and for
// smoothing Σ w (max − x) and Σ w.
struct Exponentials {
  Real max;
  Real others;
  Real distances;
  Real weights;
};

// Adds the logits of a chunk, and replaces them by exp(x − max).
DEVICE void add(const RowCall& call, int first, int classes, int target, Real* numbers, Exponentials* known) {
  Real max = known->max;
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) max = fmax(max, numbers[j]);
  // Where all classes so far are masked by −∞, their exponentials are 0, and not those of ∞ − ∞.
  const Real base = max == -INFINITE_REAL ? Real(0) : max;
  Real others = known->others * exp(known->max - base);
  if (call.spread != 0) {
    Real distances = known->distances + (known->weights == 0 ? Real(0) : known->weights * (base - known->max));
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) {
      const int c = class_at(first, j);
      const Real weight = c < classes ? weight_of(call, c) : Real(0);
      // A masked class with weight 0 adds 0, and not 0 · ∞. Its distance does not grow with the maximum.
      distances += weight == 0 ? Real(0) : weight * (base - numbers[j]);
      known->weights += numbers[j] == -INFINITE_REAL ? Real(0) : weight;
    }
    known->distances = distances;
  }
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) {
    numbers[j] = exp(numbers[j] - base);
    others += class_at(first, j) == target ? Real(0) : numbers[j];
  }
  known->others = others;
  known->max = max;
}

// What the threads of a group know of a row's softmax, with the target t.
struct Softmax {
  // The largest logit, and what turns exp(x − max) of a thread's own maximum into exp(x − most).
  Real most;
  Real shift;
  // exp(x[t] − most), Σ exp(x − most) of the other classes, and both together.
  Real own;
  Real others;
  Real sum;
  // log Σ exp(x − most) and log p[t].
  Real log_of_sum;
  Real log_p;
  // Σ w and −Σ w log p over all classes, where there is smoothing.
  Real total;
  Real smooth;
};

// The softmax of a row whose target's logit is x. All threads of the group come here.
DEVICE Softmax softmax_of(const RowCall& call, const Exponentials& known, Real x) {
  Softmax of;
  of.most = Group::all(known.max, Larger(), -INFINITE_REAL);
  of.shift = exp(known.max - of.most);
  of.own = exp(x - of.most);
  of.others = Group::all(known.others * of.shift, Add(), Real(0));
  of.sum = of.own + of.others;
  of.log_of_sum = log(of.sum);
  // Unlike log(own / sum) this keeps the digits of a p near 1.
  of.log_p = of.own > of.others ? -log1p(of.others / of.own) : x - of.most - of.log_of_sum;
  of.total = of.smooth = 0;
  if (call.spread != 0) {
    const Real risen = known.weights == 0 ? Real(0) : known.weights * (of.most - known.max);
    of.total = call.weights ? Real(*call.weight_sum) : Real(call.classes);
    of.smooth = Group::all(known.distances + risen, Add(), Real(0)) + of.total * of.log_of_sum;
  }
  return of;
}

// The logit of the target of a row, −∞ where it has none.
DEVICE Real logit_of(const RowCall& call, long long start, int target) {
  return target < 0 ? -INFINITE_REAL : widened(call.input[place_of(call, start, target)]);
}
