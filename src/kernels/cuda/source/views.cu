// Cross entropy with the Jensen-Shannon divergence: the mean cross entropy of the first of VIEWS views of each sample,
// plus p[0] times the divergence of all views from their mean, whose probabilities are at least p[1]. A row is a sample
// here, and a view's rows lie behind those of the view before. The kernel multiplies what is of the cross entropy by
// `mean`.

#if DOUBLE
// What is known of all views needs more registers.
#undef BLOCKS_AT_ONCE
#define BLOCKS_AT_ONCE 1
#endif

// The views of a sample, as far as they are known: of each softmax the largest logit, Σ exp(x − most) and its
// logarithm.
struct Views {
  Real most[VIEWS];
  Real sums[VIEWS];
  Real logs[VIEWS];
};

// The probabilities p of this thread in a chunk of all views, and with their mean m the terms p (log p − log m), which
// are the derivatives of the divergence with respect to log p. Returns the divergence.
DEVICE Real mix(const RowCall& call, long long start, int first, int classes, const Views& views,
                Real (*p)[NUMBERS], Real (*terms)[NUMBERS]) {
  Real divergence = 0;
#pragma unroll
  for (int v = 0; v < VIEWS; v++) {
    read(call, call.input, start + v * call.rows * call.classes, first, classes, -INFINITE_REAL, terms[v]);
#pragma unroll
    for (int j = 0; j < NUMBERS; j++) p[v][j] = exp(terms[v][j] - views.most[v]) / views.sums[v];
  }
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) {
    Real mean = 0;
#pragma unroll
    for (int v = 0; v < VIEWS; v++) mean += p[v][j];
    mean *= Real(1) / VIEWS;
    // Where the floor replaces the mean, the derivatives by way of the mean are 0 and do not cancel the rest.
    const bool below = mean < call.p[1];
    mean = below ? call.p[1] : mean;
    const Real log_of_mean = log(mean);
#pragma unroll
    for (int v = 0; v < VIEWS; v++) {
      const Real distance = p[v][j] - mean, share = distance / mean;
      // log p − log m would lose the digits of a difference near 0, which views that agree have.
      const bool close = fabs(share) < Real(0.5);
      const Real difference = close ? log1p(share) : terms[v][j] - views.most[v] - views.logs[v] - log_of_mean;
      // A masked class has p = 0 and log p = −∞, and must add 0, not NaN.
      const Real term = p[v][j] == 0 ? Real(0) : p[v][j] * difference;
      // p − m is subtracted from each view's term. Over all views these differences add up to 0, apart from the
      // rounding of m, whose effect on the sum this removes.
      divergence += below ? term : term - distance;
      terms[v][j] = below ? p[v][j] + term : term;
    }
  }
  return divergence;
}

// The loss of a sample, for all threads that share it; they write its gradient.
DEVICE Real row_loss(const RowCall& call, Real factor, Real mean, long long sample, bool exists, bool& invalid) {
  const long long start = start_of(call, sample), apart = call.rows * call.classes;
  const int target = exists ? target_of(call, sample) : -2;
  const int classes = target == -2 ? 0 : call.classes;
  Views views;
  Softmax first_view;
#pragma unroll
  for (int v = 0; v < VIEWS; v++) {
    Exponentials known = {-INFINITE_REAL, 0, 0, 0};
    const int own = v == 0 ? target : -1;
    for (int first = 0; first < classes; first += CHUNK) {
      Real numbers[NUMBERS];
      read(call, call.input, start + v * apart, first, classes, -INFINITE_REAL, numbers);
      add(call, first, classes, own, numbers, &known);
    }
    const Softmax of = softmax_of(call, known, logit_of(call, start, own));
    if (v == 0) first_view = of;
    views.most[v] = of.most;
    views.sums[v] = of.sum;
    views.logs[v] = of.log_of_sum;
  }
  Real p[VIEWS][NUMBERS], terms[VIEWS][NUMBERS], sums[VIEWS];
#pragma unroll
  for (int v = 0; v < VIEWS; v++) sums[v] = 0;
  Real divergence = 0;
  for (int first = 0; first < classes; first += CHUNK) {
    divergence += mix(call, start, first, classes, views, p, terms);
#pragma unroll
    for (int v = 0; v < VIEWS; v++) {
#pragma unroll
      for (int j = 0; j < NUMBERS; j++) sums[v] += terms[v][j];
    }
  }
  divergence = Group::all(divergence, Add(), Real(0));
#pragma unroll
  for (int v = 0; v < VIEWS; v++) sums[v] = Group::all(sums[v], Add(), Real(0));
  if (!exists) return 0;
  if (target == -2) {
    for (int v = 0; v < VIEWS; v++) loss_without_class(call, start + v * apart, target, invalid);
    return NAN_REAL;
  }
  for (int first = 0; call.gradient && first < classes; first += CHUNK) {
    mix(call, start, first, classes, views, p, terms);
    const Real of_divergence = factor * call.p[0];
#pragma unroll
    for (int v = 0; v < VIEWS; v++) {
      const Real of_entropy = v == 0 && target >= 0 ? factor * mean : Real(0), spread = of_entropy * call.spread;
      const Real of_sum = -of_divergence * sums[v];
#pragma unroll
      for (int j = 0; j < NUMBERS; j++) {
        const Real gradient = fma(p[v][j], of_entropy + of_sum, fma(terms[v][j], of_divergence, -spread));
        // p − (1 − ε) as ε − (1 − p): p near 1 has lost the digits of 1 − p.
        const Real of_own = of_entropy * (1 - call.own - first_view.others / first_view.sum);
        const Real own = of_own + fma(p[v][j], of_sum, terms[v][j] * of_divergence) - spread;
        terms[v][j] = v == 0 && class_at(first, j) == target ? own : gradient;
      }
      write(call, start + v * apart, first, classes, terms[v]);
    }
  }
  const Real entropy = call.spread * first_view.smooth - call.own * first_view.log_p;
  const Real of_class = target < 0 ? Real(0) : entropy * mean;
  // The mean over no class is NaN.
  return mean == mean ? of_class + call.p[0] * divergence : NAN_REAL;
}
