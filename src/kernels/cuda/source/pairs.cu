
// The weights of a row: two soft ones, two shifts, two plain ones, and the derivative with respect to the number beside
// the matrix.
#define WEIGHTS 7

// Writes the weights of a row and adds its loss to the totals.
DEVICE void finish_row(const Call& call, long long row, const Row& of, double* totals) {
  const double sums[7] = {of.log_sum_exp(SAME), of.log_sum_exp(OTHER), of.sums[SAME], of.sums[OTHER],
                          of.counts[SAME], of.counts[OTHER], call.beside ? double(widened(call.beside[row])) : 0};
  // The loss, whether there is one, and the derivatives.
  double q[7];
  in_double::row_loss(sums, call.of_loss, q);
  const bool counted = q[1] != 0 && counts(call, q[0]);
  const double factor = counted ? 1 : 0;
  totals[0] += counted ? q[0] : 0;
  totals[2] += factor;
  totals[3] += of.counts[OTHER];
  double* const weights = call.weights + row * WEIGHTS;
  for (int k = 0; k < 2; k++) {
    weights[k] = factor * q[2 + k] / of.exponentials[k];
    weights[2 + k] = of.most[k];
    weights[4 + k] = factor * q[4 + k];
  }
  weights[6] = factor * q[6];
}

// The losses of all rows. A thread has a row.
extern "C" __global__ void BOUNDS pairs_losses(const Call call) {
  double totals[4] = {};
  const long long threads = gridDim.x * (long long)THREADS;
  for (long long row = blockIdx.x * (long long)THREADS + threadIdx.x; row < call.rows; row += threads) {
    const Row of(call, row);
    if (SOFT) {
      finish_row(call, row, of, totals);
      continue;
    }
    for (int k = 0; k < 2; k++) {
      totals[k] += of.sums[k];
      totals[2 + k] += of.counts[k];
    }
  }
  store_totals(call, totals);
}

DEVICE Weight weight_of(const Call& call, long long row, int kind) {
  const double factor = factor_of(call, kind);
  if (!SOFT) return {0, 0, Real(factor)};
  const double* const weights = call.weights + row * WEIGHTS + kind;
  return {Real(factor * weights[0]), Real(weights[2]), Real(factor * weights[4])};
}

template <int LENGTH>
DEVICE void derive_columns(const Call& call, const Part& part, int thread) {
  const long long row = part.row, label = label_of_row(call, row);
  const Weight of_same = weight_of(call, row, SAME), of_other = weight_of(call, row, OTHER);
  for (long long column = part.from + thread * LENGTH; column < part.to; column += GROUP * LENGTH) {
    const Columns<LENGTH> columns(call, row, label, column);
    PackOf<Element, LENGTH> gradients;
    for (int i = 0; i < LENGTH; i++) {
      Real term[2], slope = 0;
      if (columns.pair[i] && columns.same[i]) {
        same_term(columns.x[i], call.p, term);
        slope = of_same.of(call, term[0]) * term[1];
      } else if (columns.pair[i]) {
        other_term(columns.x[i], call.p + SAME_PARAMETERS, term);
        slope = of_other.of(call, term[0]) * term[1];
      }
      gradients.elements[i] = narrowed(slope);
    }
    *(PackOf<Element, LENGTH>*)(call.gradient + row * call.columns + column) = gradients;
  }
}
