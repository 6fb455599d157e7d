// Collectives of tensors on GPUs by NCCL (feature nccl). Compiled against the headers of NCCL and CUDA that libtorch was
// built with; build.rs looks for them.

#define USE_C10D_NCCL
#include "nccl.hpp"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <string>
#include <utility>

namespace {

// By default a thread of c10d ends the process where a rank dies or is late. Where the host waits for each collective,
// that is an error of the call instead, and the communicator is aborted.
class Waiting : public c10d::ProcessGroupNCCL {
 public:
  Waiting(const c10::intrusive_ptr<c10d::Store>& store, int rank, int world, c10::intrusive_ptr<Options> options)
      : ProcessGroupNCCL(store, rank, world, std::move(options)) {
    blockingWait_ = true;
    asyncErrorHandling_ = c10d::NoHandling;
  }

  // Without this the end of a group is a warning.
  ~Waiting() override {
    try {
      shutdown();
    } catch (...) {
      // A destructor that fails has nobody to tell.
    }
  }
};

// The members of the group's class depend on the version of NCCL, so that another one would write beyond its end.
void check_version() {
  const std::string compiled =
      std::to_string(NCCL_MAJOR) + "." + std::to_string(NCCL_MINOR) + "." + std::to_string(NCCL_PATCH);
  const std::string there = c10d::getNcclVersion();
  const bool same = there == compiled || there.rfind(compiled + ".", 0) == 0;
  TORCH_CHECK(same, "this program was compiled with the headers of NCCL ", compiled, ", and NCCL ", there, " is loaded");
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> tch_losses::nccl(
    const c10::intrusive_ptr<c10d::Store>& store,
    int rank,
    int world,
    std::chrono::milliseconds timeout) {
  check_version();
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  return c10::make_intrusive<Waiting>(store, rank, world, std::move(options));
}
