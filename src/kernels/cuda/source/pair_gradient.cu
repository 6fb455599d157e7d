
// The gradients of the matrix, by the `derive_columns` before this, and of the numbers beside it, each where there is a
// place for it. A warp has a row, a block a part of a row.
extern "C" __global__ void BOUNDS pairs_gradient(const Call call) {
  const int thread = threadIdx.x % GROUP;
#if !EACH
  for (long long row = group(); call.of_beside && row < call.rows; row += groups()) {
    if (thread == 0) call.of_beside[row] = narrowed(Real(factor_of(call, SAME) * call.weights[row * WEIGHTS + 6]));
  }
#endif
  if (!call.gradient) return;
  for (long long i = group(); i < call.rows * call.parts; i += groups()) {
    const Part part(call, i, call.parts);
    if (call.aligned) {
      derive_columns<PACK>(call, part, thread);
    } else {
      derive_columns<1>(call, part, thread);
    }
  }
}
