// The hinges max(0, p + margin − n) of an anchor's positives, at the distance p, and its negatives, at the distance n.

struct Call {
  const Element* far;
  // The labels; null for the number of the row, modulo `period`, or of the column.
  const long long* row_labels;
  const long long* column_labels;
  // Of each block: the sum of the hinges, how many count, and how many negatives are NaN.
  double* totals;
  // What the loss and the gradient are multiplied by.
  double* scale;
  void* loss;
  // How many hinges above 0 have each distance, with the sign of the derivative; null where no gradient is needed.
  Element* gradient;
  long long rows, columns, period;
  // Negatives are left out with n ≤ p + `beyond`, n > p + `up_to`, or a hinge ≤ `low` or ≥ `high`; NaN for no bound.
  double margin, beyond, up_to, low, high;
  // Whether row i and column i are the same sample, so that they form no pair.
  int own;
  int mean;
  // Whether the loss is of double precision, else of single precision.
  int wide;
  int unused;
};

#define ALL 0xffffffffu
#define WARPS (THREADS / WARP)
// A chunk of columns has at most so many positives; those of two fit.
#define MOST (2 * THREADS)

#if DOUBLE
DEVICE Real before(Real number) { return nextafter(number, -INFINITE_REAL); }
#else
DEVICE Real before(Real number) { return nextafterf(number, -INFINITE_REAL); }
#endif

// The largest number of the kernel's that is at most this one, or below it: distances are compared with it as with the
// number itself.
DEVICE Real at_most(double number) {
  const Real near = Real(number);
  return double(near) > number ? before(near) : near;
}
DEVICE Real below(double number) {
  const Real near = Real(number);
  return double(near) >= number ? before(near) : near;
}

// The positives of an anchor that are taken at a time. Their negatives are above `above` and at most `up_to`; the hinges
// of those up to `costly` are above 0. NaN is no bound.
struct Positives {
  Real above[MOST], up_to[MOST], costly[MOST], limit[MOST];
  int column[MOST];
  // How many negatives each warp has found whose hinge is above 0.
  int costs[WARPS][MOST];
  // How many positives each warp has found in a chunk.
  int found[WARPS];
};

DEVICE void insert(const Call& call, Positives& positives, int place, int column, Real distance) {
  const double p = distance, limit = p + call.margin;
  const Real high = call.high > 0 ? at_most(limit - call.high) : NAN_REAL;
  const Real low = call.low >= 0 ? below(limit - call.low) : NAN_REAL;
  positives.above[place] = fmax(at_most(p + call.beyond), high);
  positives.up_to[place] = fmin(at_most(p + call.up_to), low);
  positives.costly[place] = below(limit);
  positives.limit[place] = Real(limit);
  positives.column[place] = column;
}

DEVICE long long label_of_column(const Call& call, long long column) {
  return call.column_labels ? call.column_labels[column] : column;
}

// The hinges of some positives of an anchor with all of its negatives. All threads of a block.
DEVICE void add_hinges(
  const Call& call, Positives& positives, int count, long long row, long long label, double* totals
) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (int k = lane; k < count; k += WARP) positives.costs[warp][k] = 0;
  __syncthreads();
  for (long long start = 0; start < call.columns; start += THREADS) {
    const long long column = start + threadIdx.x;
    const bool there = column < call.columns, negative = there && label_of_column(call, column) != label;
    const Real n = negative ? widened(call.far[row * call.columns + column]) : Real(0);
    Real sum = 0;
    int number = 0, costs = 0;
    for (int k = 0; k < count; k++) {
      const bool counts = negative && !(n <= positives.above[k]) && !(n > positives.up_to[k]);
      const bool costly = counts && !(n > positives.costly[k]);
      sum += costly ? positives.limit[k] - n : Real(0);
      number += counts;
      costs += costly;
      const unsigned all = __ballot_sync(ALL, costly);
      if (lane == 0) positives.costs[warp][k] += __popc(all);
    }
    totals[0] += sum;
    totals[1] += number;
    if (call.gradient && negative) {
      Element* const gradient = call.gradient + row * call.columns + column;
      *gradient = narrowed(widened(*gradient) - Real(costs));
    }
  }
  __syncthreads();
  for (int k = threadIdx.x; call.gradient && k < count; k += THREADS) {
    int costs = 0;
    for (int i = 0; i < WARPS; i++) costs += positives.costs[i][k];
    call.gradient[row * call.columns + positives.column[k]] = narrowed(Real(costs));
  }
  __syncthreads();
}

// Writes the positives of a chunk of columns behind those that are there. Returns how many there are then.
DEVICE int collect(const Call& call, Positives& positives, int count, long long row, long long column, bool positive) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const unsigned of_warp = __ballot_sync(ALL, positive);
  if (lane == 0) positives.found[warp] = __popc(of_warp);
  __syncthreads();
  int place = count;
  for (int i = 0; i < WARPS; i++) {
    if (i < warp) place += positives.found[i];
    count += positives.found[i];
  }
  place += __popc(of_warp & ((1u << lane) - 1));
  if (positive) insert(call, positives, place, int(column), widened(call.far[row * call.columns + column]));
  __syncthreads();
  return count;
}

// A block has an anchor.
extern "C" __global__ void __launch_bounds__(THREADS, 1) triplets(const Call call) {
  __shared__ Positives positives;
  double totals[3] = {};
  for (long long row = blockIdx.x; row < call.rows; row += gridDim.x) {
    const long long label = call.row_labels ? call.row_labels[row] : row % call.period;
    int count = 0;
    // The gradients that no hinge has; a column is always the same thread's.
    for (long long column = threadIdx.x; column < call.columns; column += THREADS) {
      const Real far = widened(call.far[row * call.columns + column]);
      if (label_of_column(call, column) != label) totals[2] += far != far;
      if (call.gradient) call.gradient[row * call.columns + column] = narrowed(Real(0));
    }
    __syncthreads();
    for (long long start = 0; start < call.columns; start += THREADS) {
      const long long column = start + threadIdx.x;
      const bool same = column < call.columns && label_of_column(call, column) == label;
      const bool positive = same && !(call.own && column == row);
      count = collect(call, positives, count, row, column, positive);
      if (count <= THREADS && start + THREADS < call.columns) continue;
      if (count > 0) add_hinges(call, positives, count, row, label, totals);
      count = 0;
    }
  }
  for (int k = 0; k < 3; k++) {
    const double total = of_block(totals[k], Add(), 0.0);
    if (threadIdx.x == 0) call.totals[blockIdx.x * 3 + k] = total;
  }
}

// The loss and the scale, of the totals of so many blocks. One block.
extern "C" __global__ void __launch_bounds__(THREADS, 1) triplets_finish(const Call call, int blocks) {
  double totals[3] = {};
  for (int k = 0; k < 3; k++) {
    for (int block = threadIdx.x; block < blocks; block += THREADS) totals[k] += call.totals[block * 3 + k];
    totals[k] = of_block(totals[k], Add(), 0.0);
  }
  if (threadIdx.x != 0) return;
  // A negative that is NaN makes the loss NaN, and the gradient 0.
  const bool valid = totals[2] == 0;
  const double scale = call.mean ? 1 / (totals[1] < 1 ? 1 : totals[1]) : 1;
  const double loss = valid ? totals[0] * scale : double(NAN_REAL);
  *call.scale = valid ? scale : 0;
  if (call.wide) {
    *(double*)call.loss = loss;
  } else {
    *(float*)call.loss = float(loss);
  }
}
