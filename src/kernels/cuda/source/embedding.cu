
struct Call {
  const Element* embeddings[EMBEDDINGS];
  Element* gradients[GRADIENTS + 1];
  const Label* labels;
  Element* losses;
  // What the derivatives are multiplied by, besides `factor`: one number, or one for `each` row; null for none.
  const Factor* factors;
  // Of the losses of each block.
  double* sums;
  // Of long rows: the sums of each part, then the derivatives of each row with respect to its sums.
  double* room;
  long long rows, columns;
  // How many columns a part has, and how many parts a row.
  long long part, parts;
  double factor;
  double of_loss[LOSS_PARAMETERS + 1];
  int each;
  int aligned;
  Real p[PARAMETERS + 1];
};

#define ALL 0xffffffffu

// The sum over the threads of a row.
DEVICE double of_group(double sum) {
  return GROUP == WARP ? __shfl_sync(ALL, of_warp(sum, Add()), 0) : of_block(sum, Add(), 0.0);
}

// What a thread adds to the sums of some columns of a row, LENGTH at a time.
template <int LENGTH>
DEVICE void add_columns(const Call& call, long long row, long long from, long long to, int first, int step, double* sums) {
  for (long long column = from + first * LENGTH; column < to; column += step * LENGTH) {
    PackOf<Element, LENGTH> packs[EMBEDDINGS];
    for (int k = 0; k < EMBEDDINGS; k++) {
      packs[k] = *(const PackOf<Element, LENGTH>*)(call.embeddings[k] + row * call.columns + column);
    }
    Real of_pack[SUMS] = {};
    for (int i = 0; i < LENGTH; i++) {
      Real a[EMBEDDINGS], more[SUMS];
      for (int k = 0; k < EMBEDDINGS; k++) a[k] = widened(packs[k].elements[i]);
      add(a, of_pack, call.p, more);
      for (int k = 0; k < SUMS; k++) of_pack[k] = more[k];
    }
    for (int k = 0; k < SUMS; k++) sums[k] += of_pack[k];
  }
}

// Writes the gradients of some columns of a row, given the derivatives with respect to its sums.
template <int LENGTH>
DEVICE void derive_columns(const Call& call, long long row, long long from, long long to, int first, int step, const Real* of_sums) {
  for (long long column = from + first * LENGTH; column < to; column += step * LENGTH) {
    const long long place = row * call.columns + column;
    PackOf<Element, LENGTH> packs[EMBEDDINGS], gradients[GRADIENTS + 1];
    for (int k = 0; k < EMBEDDINGS; k++) packs[k] = *(const PackOf<Element, LENGTH>*)(call.embeddings[k] + place);
    for (int i = 0; i < LENGTH; i++) {
      Real a[EMBEDDINGS], g[GRADIENTS + 1];
      for (int k = 0; k < EMBEDDINGS; k++) a[k] = widened(packs[k].elements[i]);
      derive(a, of_sums, call.p + ADD_PARAMETERS, g);
      for (int k = 0; k < GRADIENTS; k++) gradients[k].elements[i] = narrowed(g[k]);
    }
    for (int k = 0; k < GRADIENTS; k++) *(PackOf<Element, LENGTH>*)(call.gradients[k] + place) = gradients[k];
  }
}

DEVICE void add_part(const Call& call, long long row, long long from, long long to, int first, int step, double* sums) {
  for (int k = 0; k < SUMS; k++) sums[k] = 0;
  if (call.aligned) {
    add_columns<PACK>(call, row, from, to, first, step, sums);
  } else {
    add_columns<1>(call, row, from, to, first, step, sums);
  }
}

DEVICE void derive_part(const Call& call, long long row, long long from, long long to, int first, int step, const double* slopes) {
  Real of_sums[SUMS];
  for (int k = 0; k < SUMS; k++) of_sums[k] = Real(slopes[k]);
  if (call.aligned) {
    derive_columns<PACK>(call, row, from, to, first, step, of_sums);
  } else {
    derive_columns<1>(call, row, from, to, first, step, of_sums);
  }
}

// The loss of a row, stored by one of its threads; replaces the sums by the derivatives with respect to them.
DEVICE double loss_of(const Call& call, long long row, double* sums, bool stores) {
  double outputs[1 + SUMS];
  in_double::loss(sums, call.labels ? double(number_of(call.labels[row])) : 0, call.of_loss, outputs);
  double factor = call.factor;
  if (call.factors) factor *= number_of(call.factors[call.each ? row : 0]);
  for (int k = 0; k < SUMS; k++) sums[k] = outputs[1 + k] * factor;
  if (LOSSES && stores) call.losses[row] = narrowed(Real(outputs[0]));
  return outputs[0];
}

DEVICE void store_total(const Call& call, double total) {
  if (!call.sums) return;
  total = of_block(total, Add(), 0.0);
  if (threadIdx.x == 0) call.sums[blockIdx.x] = total;
}

// A warp or a block has a whole row.
extern "C" __global__ void BOUNDS_OF_MANY rows(const Call call) {
  const int thread = threadIdx.x % GROUP, groups = THREADS / GROUP;
  double total = 0, sums[SUMS];
  for (long long row = blockIdx.x * (long long)groups + threadIdx.x / GROUP; row < call.rows; row += gridDim.x * (long long)groups) {
    add_part(call, row, 0, call.columns, thread, GROUP, sums);
    for (int k = 0; k < SUMS; k++) sums[k] = of_group(sums[k]);
    const double loss = loss_of(call, row, sums, thread == 0);
    if (thread == 0) total += loss;
    if (GRADIENTS) derive_part(call, row, 0, call.columns, thread, GROUP, sums);
  }
  store_total(call, total);
}

// The sums of a part of a long row, which has a block of its own.
extern "C" __global__ void __launch_bounds__(THREADS) parts(const Call call) {
  const long long row = blockIdx.x / call.parts, from = blockIdx.x % call.parts * call.part;
  const long long to = from + call.part < call.columns ? from + call.part : call.columns;
  double sums[SUMS];
  add_part(call, row, from, to, threadIdx.x, THREADS, sums);
  for (int k = 0; k < SUMS; k++) {
    const double sum = of_block(sums[k], Add(), 0.0);
    if (threadIdx.x == 0) call.room[blockIdx.x * (long long)SUMS + k] = sum;
  }
}

// The losses of long rows, from the sums of their parts.
extern "C" __global__ void __launch_bounds__(THREADS) whole(const Call call) {
  double total = 0, sums[SUMS];
  double* const slopes = call.room + call.rows * call.parts * SUMS;
  for (long long row = blockIdx.x; row < call.rows; row += gridDim.x) {
    for (int k = 0; k < SUMS; k++) {
      double sum = 0;
      for (long long part = threadIdx.x; part < call.parts; part += THREADS) {
        sum += call.room[(row * call.parts + part) * SUMS + k];
      }
      sums[k] = of_block(sum, Add(), 0.0);
    }
    const double loss = loss_of(call, row, sums, threadIdx.x == 0);
    if (threadIdx.x != 0) continue;
    total += loss;
    for (int k = 0; k < SUMS; k++) slopes[row * SUMS + k] = sums[k];
  }
  store_total(call, total);
}

// The gradients of a part of a long row.
extern "C" __global__ void __launch_bounds__(THREADS) derivatives(const Call call) {
  const long long row = blockIdx.x / call.parts, from = blockIdx.x % call.parts * call.part;
  const long long to = from + call.part < call.columns ? from + call.part : call.columns;
  derive_part(call, row, from, to, threadIdx.x, THREADS, call.room + (call.rows * call.parts + row) * SUMS);
}
