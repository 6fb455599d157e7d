// Losses of rows of classes: what their kernels share. A group of threads computes a row. Each of them has PACKS packs
// of WIDTH numbers at a time, which it keeps in registers: those of the whole row where that is HELD.

struct RowCall {
  const Element* input;
  // A class for each row, or numbers.
  const void* target;
  // A weight for each class, or none, and their sum where smoothing needs it.
  const Real* weights;
  const double* weight_sum;
  // Where the gradient and the losses go, if they are wanted.
  Element* gradient;
  Element* losses;
  // What the derivatives are multiplied by: one number on the device, or one for each loss, besides `factor`.
  const Factor* factors;
  // What the mean is over, in parts; see `of_mean`.
  const double* counts;
  double* sums;
  // Set to false where a target has no loss.
  bool* note;
  long long rows;
  // How many rows lie beside each other: the distance of the classes of a row.
  long long inner;
  long long ignored;
  int classes;
  // Whether a target may be `ignored`.
  int ignores;
  int each;
  // How many parts `counts` has: none where the losses are not divided by what it says.
  int parts;
  Real factor;
  // The shares of a target that its own class keeps and that every class gets.
  Real own;
  Real spread;
  Real p[PARAMETERS + 1];
};

// The threads of a warp that share a row: a power of two of them, side by side.
template <int LANES>
struct Lanes {
  static const int SIZE = LANES;
  static DEVICE int rank() { return threadIdx.x % LANES; }
  // In pairs, so that all threads get the same bits. The whole warp comes here, whatever its rows are.
  template <class Fold>
  static DEVICE Real all(Real number, Fold fold, Real) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
      number = fold(number, __shfl_xor_sync(0xffffffffu, number, distance));
    }
    return number;
  }
  static DEVICE void wait() { __syncwarp(); }
};

// All threads of a block.
struct Whole {
  static const int SIZE = THREADS;
  static DEVICE int rank() { return threadIdx.x; }
  template <class Fold>
  static DEVICE Real all(Real number, Fold fold, Real neutral) { return of_block(number, fold, neutral); }
  static DEVICE void wait() { __syncthreads(); }
};

typedef GROUP Group;

// The blocks that a multiprocessor has at least at once, which leaves each thread 128 registers.
#define BLOCKS_AT_ONCE 2

#define NUMBERS (PACKS * WIDTH)
// The classes that a group has at a time.
#define CHUNK (NUMBERS * Group::SIZE)

// The class of the j-th number of this thread in the chunk that begins with class `first`.
DEVICE int class_at(int first, int j) {
  return first + (j / WIDTH * Group::SIZE + Group::rank()) * WIDTH + j % WIDTH;
}

// Where the numbers of a row begin.
DEVICE long long start_of(const RowCall& call, long long row) {
  if (!STRIDED) return row * call.classes;
  // A division of 64 bits takes as long as several classes.
  const bool is_short = row < 0x7fffffff && call.inner < 0x7fffffff;
  const long long outer = is_short ? int(row) / int(call.inner) : row / call.inner;
  return outer * call.inner * call.classes + (row - outer * call.inner);
}

DEVICE long long place_of(const RowCall& call, long long start, int c) {
  return STRIDED ? start + c * call.inner : start + c;
}

// Reads the numbers of this thread in a chunk of a row of so many classes; beyond these they are `none`.
DEVICE void read(const RowCall& call, const Element* from, long long start, int first, int classes, Real none,
                 Real* numbers) {
#pragma unroll
  for (int k = 0; k < PACKS; k++) {
    const int c = class_at(first, k * WIDTH);
    const bool within = c < classes;
    Pack<WIDTH> pack;
    if (within) pack = *(const Pack<WIDTH>*)(from + place_of(call, start, c));
#pragma unroll
    for (int i = 0; i < WIDTH; i++) numbers[k * WIDTH + i] = within ? widened(pack.elements[i]) : none;
  }
}

DEVICE void write(const RowCall& call, long long start, int first, int classes, const Real* numbers) {
#pragma unroll
  for (int k = 0; k < PACKS; k++) {
    const int c = class_at(first, k * WIDTH);
    Pack<WIDTH> pack;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) pack.elements[i] = narrowed(numbers[k * WIDTH + i]);
    if (c < classes) *(Pack<WIDTH>*)(call.gradient + place_of(call, start, c)) = pack;
  }
}

// Writes one number as the gradient of all classes.
DEVICE void fill(const RowCall& call, long long start, int classes, Real number) {
  Real numbers[NUMBERS];
#pragma unroll
  for (int j = 0; j < NUMBERS; j++) numbers[j] = number;
  for (int first = 0; first < classes; first += CHUNK) write(call, start, first, classes, numbers);
}

DEVICE Real weight_of(const RowCall& call, int c) { return call.weights ? call.weights[c] : Real(1); }

// The class of a row's target: −1 where it is ignored, −2 where it is none.
DEVICE int target_of(const RowCall& call, long long row) {
  return class_of(((const long long*)call.target)[row], call.ignores, call.ignored, call.classes);
}

// The loss of a row without a class, whose gradient is 0. That of a target that is none is NaN, and the row `invalid`.
DEVICE Real loss_without_class(const RowCall& call, long long start, int target, bool& invalid) {
  if (call.gradient) fill(call, start, call.classes, Real(0));
  invalid |= target == -2;
  return target == -2 ? NAN_REAL : Real(0);
}
