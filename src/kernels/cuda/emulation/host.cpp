// The threads of a block are fibers of one thread, the blocks run one after another.

#include "host.h"

#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

// A place in a fiber, and a jump to it. GCC's own keep nothing but two pointers, since the compiler knows of them.
#if defined(__GNUC__) && !defined(__clang__)
typedef void* Jump[5];
#define KEEP_PLACE(jump) __builtin_setjmp(jump)
#define JUMP_TO(jump) __builtin_longjmp(jump, 1)
#else
#include <setjmp.h>
typedef jmp_buf Jump;
#define KEEP_PLACE(jump) _setjmp(jump)
#define JUMP_TO(jump) _longjmp(jump, 1)
#endif

emulation::Place threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// As in mod.rs.
constexpr unsigned MOST_THREADS = 256;
constexpr size_t STACK = 64 << 10;

Barrier of_block;
Warp warps[MOST_THREADS / LANES];

struct Fiber {
  Jump place;
  bool begun, done;
};

static Fiber fibers[MOST_THREADS];
static Jump launcher;
static void (*kernel)(void**);
static void** parameters;
static char* stacks;
// In which order the fibers take turns, whose turn it is next, and how many of them are not done.
static unsigned short turns[MOST_THREADS];
static unsigned turn, left;
// How often a fiber has come to a barrier or to its end, now and when the turns began.
static unsigned long progress, before;
static unsigned random_state;

static unsigned random_below(unsigned bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return (unsigned long long)random_state * bound >> 32;
}

static void begin_turns() {
  turn = 0;
  before = progress;
  if (!random_state) return;
  for (unsigned i = blockDim.x - 1; i > 0; i--) {
    const unsigned other = random_below(i + 1);
    const unsigned short swapped = turns[i];
    turns[i] = turns[other];
    turns[other] = swapped;
  }
}

static void run();

static void start(unsigned thread) {
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + thread * STACK;
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, run, 0);
  setcontext(&context);
}

// Goes on with the fiber whose turn it is, or where all are done, behind the block.
__attribute__((noinline, noreturn)) static void go_on() {
  for (;;) {
    while (turn < blockDim.x) {
      const unsigned thread = turns[turn++];
      Fiber& fiber = fibers[thread];
      if (fiber.done) continue;
      threadIdx.x = thread;
      if (fiber.begun) JUMP_TO(fiber.place);
      fiber.begun = true;
      start(thread);
    }
    if (!left) JUMP_TO(launcher);
    if (progress == before) {
      fprintf(stderr, "a barrier that not all threads come to\n");
      abort();
    }
    begin_turns();
  }
}

__attribute__((noinline)) static void yield() {
  if (KEEP_PLACE(fibers[threadIdx.x].place) == 0) go_on();
}

// A fiber: this thread of each block.
static void run() {
  for (;;) {
    kernel(parameters);
    fibers[threadIdx.x].done = true;
    progress++;
    left--;
    yield();
  }
}

__attribute__((noinline)) static void run_block() {
  if (KEEP_PLACE(launcher) == 0) go_on();
}

void wait(Barrier& barrier) {
  const unsigned long round = barrier.round;
  progress++;
  if (++barrier.waiting == barrier.threads) {
    barrier.waiting = 0;
    barrier.round++;
  }
  while (barrier.round == round) yield();
}

void launch(void (*run)(void**), unsigned grid, unsigned threads, unsigned order, void** given, char* room) {
  if (threads > MOST_THREADS) abort();
  kernel = run;
  parameters = given;
  stacks = room;
  random_state = order * 2654435761u;
  gridDim.x = grid;
  blockDim.x = threads;
  for (unsigned i = 0; i < threads; i++) {
    fibers[i].begun = false;
    turns[i] = i;
  }
  for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++) {
    of_block = Barrier{threads, 0, 0};
    for (unsigned i = 0; i < threads; i++) {
      Barrier& warp = warps[i / LANES].barrier;
      if (i % LANES == 0) warp = Barrier{0, 0, 0};
      warp.threads++;
      fibers[i].done = false;
    }
    left = threads;
    begin_turns();
    run_block();
  }
}

}  // namespace emulation
