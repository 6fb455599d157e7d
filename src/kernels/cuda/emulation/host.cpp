// The threads of a block are fibers of one thread, the blocks run one after another.

#include "host.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

emulation::Place threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// As in mod.rs.
constexpr unsigned MOST_THREADS = 256;
constexpr size_t STACK = 64 << 10;

Barrier of_block;
Warp warps[MOST_THREADS / LANES];

// Volatile is what changes while another fiber runs, which the compiler does not see.
struct Fiber {
  jmp_buf place;
  volatile bool begun, done;
};

static Fiber fibers[MOST_THREADS];
static jmp_buf launcher;
static void (*kernel)(void**);
static void** parameters;
static char* stacks;
// How many fibers are not done, and how often one has come to a barrier or to its end.
static volatile unsigned left;
static volatile unsigned long progress;
static unsigned random_state;

static unsigned random_below(unsigned bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return (unsigned long long)random_state * bound >> 32;
}

static void shuffle(unsigned short* turns) {
  for (unsigned i = blockDim.x - 1; i > 0; i--) {
    const unsigned other = random_below(i + 1);
    const unsigned short swapped = turns[i];
    turns[i] = turns[other];
    turns[other] = swapped;
  }
}

// Ends the turn of a fiber, which goes on here.
static void yield() {
  if (_setjmp(fibers[threadIdx.x].place) == 0) _longjmp(launcher, 1);
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

static void start(unsigned thread) {
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + thread * STACK;
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, run, 0);
  setcontext(&context);
}

// A turn begins and ends on the stack of the caller. That is far from those of the fibers, by which valgrind knows that it
// is another one; from one fiber to the next it would see a stack that grows.
static void take_turn(unsigned thread) {
  threadIdx.x = thread;
  if (_setjmp(launcher) != 0) return;
  if (fibers[thread].begun) _longjmp(fibers[thread].place, 1);
  fibers[thread].begun = true;
  start(thread);
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

static void begin_block() {
  of_block = Barrier{blockDim.x, 0, 0};
  for (unsigned i = 0; i < blockDim.x; i++) {
    Barrier& warp = warps[i / LANES].barrier;
    if (i % LANES == 0) warp = Barrier{0, 0, 0};
    warp.threads++;
    fibers[i].done = false;
  }
  left = blockDim.x;
}

static void run_block(unsigned short* turns) {
  begin_block();
  while (left) {
    const unsigned long before = progress;
    if (random_state) shuffle(turns);
    for (unsigned i = 0; i < blockDim.x; i++) {
      if (!fibers[turns[i]].done) take_turn(turns[i]);
    }
    if (left && progress == before) {
      fprintf(stderr, "a barrier that not all threads come to\n");
      abort();
    }
  }
}

void launch(void (*run)(void**), unsigned grid, unsigned threads, unsigned order, void** given, char* room) {
  if (threads > MOST_THREADS) abort();
  kernel = run;
  parameters = given;
  stacks = room;
  random_state = order * 2654435761u;
  gridDim.x = grid;
  blockDim.x = threads;
  unsigned short turns[MOST_THREADS];
  for (unsigned i = 0; i < threads; i++) {
    fibers[i].begun = false;
    turns[i] = i;
  }
  for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++) run_block(turns);
}

}  // namespace emulation
